//! Variables in texts: `${name}`.

use std::collections::BTreeMap;

/// What the names stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope(BTreeMap<String, String>);

impl Scope {
    /// Gives `name` a value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Replaces every `${name}`; `$${` gives `${`; any other `$` stays.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn expand(&self, text: &str) -> Result<String, String> {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            result.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(tail) = rest.strip_prefix("$${") {
                result.push_str("${");
                rest = tail;
            } else if let Some(tail) = rest.strip_prefix("${") {
                let end = tail.find('}').ok_or_else(|| format!("{:?} has no closing brace", shorten(rest)))?;
                let name = &tail[..end];
                match self.0.get(name) {
                    Some(value) => result.push_str(value),
                    None => return Err(self.unknown(name)),
                }
                rest = &tail[end + 1..];
            } else {
                result.push('$');
                rest = &rest[1..];
            }
        }
        result.push_str(rest);
        Ok(result)
    }

    fn unknown(&self, name: &str) -> String {
        let known: Vec<&str> = self.names().collect();
        let mut message = format!("unknown variable ${{{name}}}");
        match near(name, known.iter().copied()) {
            Some(other) => message.push_str(&format!("; did you mean ${{{other}}}?")),
            None if known.is_empty() => message.push_str("; none is known here"),
            None => message.push_str(&format!("; known here: {}", known.join(", "))),
        }
        message.push_str(" (write $${ for a literal ${)");
        message
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(20).collect()
}

/// The most similar of `known`, if one is similar enough to be a slip.
pub fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|other| (strsim::damerau_levenshtein(&name.to_lowercase(), other), other))
        .filter(|(distance, other)| *distance <= 2 && *distance < other.len().max(2) - 1)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_shell_text_stays() {
        let mut scope = Scope::default();
        scope.set("a", "1");
        scope.set("file", "x y.txt");
        let cases = [
            ("", ""),
            ("plain", "plain"),
            ("${a}${a}", "11"),
            ("cat ${file} | sort", "cat x y.txt | sort"),
            ("$HOME $$ $", "$HOME $$ $"),
            ("$${HOME}-${a}", "${HOME}-1"),
            ("ä${a}ö", "ä1ö"),
        ];
        for (text, expanded) in cases {
            assert_eq!(scope.expand(text).as_deref(), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn unknown_names_are_errors_with_a_hint() {
        let mut scope = Scope::default();
        assert_eq!(
            scope.expand("${x}").unwrap_err(),
            "unknown variable ${x}; none is known here (write $${ for a literal ${)"
        );
        scope.set("stem", "a");
        scope.set("file", "a.txt");
        assert!(scope.expand("${stm}").unwrap_err().contains("did you mean ${stem}?"));
        assert!(scope.expand("${whatever}").unwrap_err().contains("known here: file, stem"));
        assert!(scope.expand("${file").unwrap_err().contains("no closing brace"));
    }
}
