//! Command lines of tasks.
//!
//! The agent splits a command line into words by white space and quotes and
//! expands nothing. Here words are put together so that they come out of it
//! again unchanged.

/// One command line out of its words.
pub fn join<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A command line that runs `script` in a shell.
pub fn shell(script: &str) -> String {
    join(&["/bin/sh", "-c", script])
}

/// `word` as one word of a command line, in the quotes of a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_they_must_be() {
        assert_eq!(join(&["python3", "a.py", "--top=3"]), "python3 a.py --top=3");
        assert_eq!(join(&["echo", "a b", "", "it's", "$x\\"]), r"echo 'a b' '' 'it'\''s' '$x\'");
        assert_eq!(shell("sort a | uniq"), "/bin/sh -c 'sort a | uniq'");
    }
}
