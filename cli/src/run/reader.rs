//! Reads values out of the tree, expands variables on the way, and collects
//! every problem with its place, so that a file with three mistakes needs one
//! correction and not three.

use std::fmt;
use std::time::Duration;

use super::expand::{Scope, near};
use super::yaml::{Node, Place, Value};

/// Further problems are counted, not shown.
const MAX_PROBLEMS: usize = 20;

/// One thing that is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub at: Place,
    /// Path of the field, for example `tasks[0].outputs[1].to`; empty for the whole file.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// All that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file as the user named it.
    pub file: String,
    /// In the order of the file.
    pub list: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: ", self.file, problem.at.line, problem.at.column)?;
            if !problem.field.is_empty() {
                write!(f, "{}: ", problem.field)?;
            }
            write!(f, "{}", problem.message)?;
        }
        if self.more > 0 {
            write!(f, "\n({} more)", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems.
#[derive(Debug, Default)]
pub struct Report {
    list: Vec<Problem>,
    more: usize,
}

impl Report {
    /// Notes a problem; the same one (of a template) only once.
    pub fn add(&mut self, at: Place, field: &str, message: impl Into<String>) {
        let problem = Problem { at, field: field.to_owned(), message: message.into() };
        if self.list.contains(&problem) {
            return;
        }
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        } else {
            self.more += 1;
        }
    }

    /// Whether nothing is wrong so far.
    pub fn is_clean(&self) -> bool {
        self.list.is_empty()
    }

    /// The end of the check.
    ///
    /// # Errors
    /// [`Problems`] if there are any.
    pub fn finish(mut self, file: &str) -> Result<(), Problems> {
        if self.is_clean() {
            return Ok(());
        }
        self.list.sort_by_key(|problem| problem.at);
        Err(Problems { file: file.to_owned(), list: self.list, more: self.more })
    }
}

/// A value with what is needed to read it.
#[derive(Clone)]
pub struct Field<'a> {
    /// The value.
    pub node: &'a Node,
    /// Its path.
    pub path: String,
}

/// A mapping whose keys have been checked.
pub struct Fields<'a> {
    entries: &'a [(super::yaml::Key, Node)],
    path: String,
    /// Where the mapping begins.
    pub at: Place,
}

impl<'a> Fields<'a> {
    /// The value of `name`, if it is given.
    pub fn get(&self, name: &str) -> Option<Field<'a>> {
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        if node.value == Value::Null {
            return None;
        }
        Some(Field { node, path: join(&self.path, name) })
    }

    /// The value of `name`; a problem if it is missing.
    pub fn require(&self, name: &str, report: &mut Report) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() {
            report.add(self.at, &join(&self.path, name), "is required");
        }
        field
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl<'a> Field<'a> {
    /// The root of a document.
    pub fn root(node: &'a Node) -> Self {
        Self { node, path: String::new() }
    }

    /// Notes a problem with this value.
    pub fn problem(&self, report: &mut Report, message: impl Into<String>) {
        report.add(self.node.at, &self.path, message);
    }

    /// A mapping with only `known` keys.
    pub fn fields(&self, known: &[&str], report: &mut Report) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            self.problem(report, format!("has to be a mapping with some of: {}", known.join(", ")));
            return None;
        };
        for (key, _) in entries {
            if known.contains(&key.name.as_str()) {
                continue;
            }
            let mut message = String::from("unknown field");
            match near(&key.name, known.iter().copied()) {
                Some(other) => message.push_str(&format!("; did you mean {other:?}?")),
                None => message.push_str(&format!("; known here: {}", known.join(", "))),
            }
            report.add(key.at, &join(&self.path, &key.name), message);
        }
        Some(Fields { entries, path: self.path.clone(), at: self.node.at })
    }

    /// A mapping with any keys.
    pub fn entries(&self, report: &mut Report) -> Vec<(&'a str, Place, Field<'a>)> {
        let Value::Map(entries) = &self.node.value else {
            self.problem(report, "has to be a mapping of names to values");
            return Vec::new();
        };
        entries
            .iter()
            .map(|(key, node)| (key.name.as_str(), key.at, Field { node, path: join(&self.path, &key.name) }))
            .collect()
    }

    /// A list.
    pub fn items(&self, report: &mut Report) -> Vec<Field<'a>> {
        let Value::List(items) = &self.node.value else {
            self.problem(report, "has to be a list");
            return Vec::new();
        };
        items.iter().enumerate().map(|(index, node)| Field { node, path: format!("{}[{index}]", self.path) }).collect()
    }

    /// One value, or a list of them.
    pub fn one_or_many(&self, report: &mut Report) -> Vec<Field<'a>> {
        match self.node.value {
            Value::List(_) => self.items(report),
            _ => vec![self.clone()],
        }
    }

    /// A text with its variables replaced.
    pub fn text(&self, scope: &Scope, report: &mut Report) -> Option<String> {
        let Value::Scalar(text) = &self.node.value else {
            self.problem(report, "has to be a text");
            return None;
        };
        match scope.expand(text) {
            Ok(text) => Some(text),
            Err(message) => {
                self.problem(report, message);
                None
            }
        }
    }

    /// A whole number between `min` and `max`.
    pub fn number(&self, scope: &Scope, min: i32, max: i32, report: &mut Report) -> Option<i32> {
        let text = self.text(scope, report)?;
        match text.trim().parse::<i32>() {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.problem(report, format!("{text:?} is not a whole number from {min} to {max}"));
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, scope: &Scope, report: &mut Report) -> Option<bool> {
        let text = self.text(scope, report)?;
        match text.as_str() {
            "true" | "yes" => Some(true),
            "false" | "no" => Some(false),
            _ => {
                self.problem(report, format!("{text:?} is neither true nor false"));
                None
            }
        }
    }

    /// A duration such as `90s` or `1h30m`.
    pub fn duration(&self, scope: &Scope, report: &mut Report) -> Option<Duration> {
        let text = self.text(scope, report)?;
        let duration = parse_duration(&text);
        if duration.is_none() {
            self.problem(report, format!("{text:?} is not a duration such as 90s, 15m or 1h30m"));
        }
        duration
    }

    /// A mapping of environment variables.
    pub fn environment(&self, scope: &Scope, report: &mut Report) -> Vec<(String, String)> {
        let mut environment = Vec::new();
        for (name, at, value) in self.entries(report) {
            if let Err(message) = check_environment_name(name) {
                report.add(at, &value.path, message);
                continue;
            }
            if value.node.value == Value::Null {
                environment.push((name.to_owned(), String::new()));
            } else if let Some(text) = value.text(scope, report) {
                environment.push((name.to_owned(), text));
            }
        }
        environment
    }
}

/// Whether users may set an environment variable of this name.
///
/// # Errors
/// Why not.
pub fn check_environment_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("is no name of an environment variable".to_owned());
    }
    if name.starts_with("AZ_BATCH_") || name.starts_with("KILN_") {
        return Err("names that begin with AZ_BATCH_ or KILN_ are set by the service".to_owned());
    }
    Ok(())
}

/// Numbers with units `ms s m h d`, largest or smallest first, added up.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    (total <= Duration::from_secs(10_000 * 86_400)).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        let cases = [("90s", 90.0), ("1h30m", 5400.0), ("500ms", 0.5), ("1.5m", 90.0), ("1d", 86_400.0), ("0s", 0.0)];
        for (text, seconds) in cases {
            assert_eq!(parse_duration(text).map(|d| d.as_secs_f64()), Some(seconds), "{text}");
        }
        for text in ["", "5", "s", "5x", "-5s", "1e9d", "99999999999999d", "5 s", "ä"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
