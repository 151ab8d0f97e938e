//! OData-like filters of lists: `startswith(id,'p') and state eq 'active'`.
//!
//! ```text
//! filter     := or
//! or         := and ( "or" and )*
//! and        := unary ( "and" unary )*
//! unary      := "not" unary | "(" or ")" | startswith | comparison
//! startswith := "startswith" "(" property "," text ")"
//! comparison := property ( "eq" | "ne" | "gt" | "ge" | "lt" | "le" ) literal
//! property   := name ( "/" name )*
//! literal    := text | number | "true" | "false" | "DateTime" text
//! text       := "'" ( any character, "''" for a quote )* "'"
//! ```
//!
//! Texts compare without case; a text that is an instant compares with times.
//! Length, nesting and the number of conditions are bounded, so that a filter
//! of a stranger costs little.

mod parser;

use std::cmp::Ordering;

use kiln_error::Error;
use kiln_time::Timestamp;

/// Value of a property of one record.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Compared without case.
    Text(String),
    /// Integers and fractions.
    Number(f64),
    /// `true` or `false`.
    Bool(bool),
    /// An instant.
    Time(Timestamp),
}

/// A parsed filter.
#[derive(Debug, Clone)]
pub struct Filter {
    root: Option<Node>,
}

#[derive(Debug, Clone)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    StartsWith { property: String, lower_prefix: String },
    Compare { property: String, operator: Operator, literal: Literal },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

#[derive(Debug, Clone)]
enum Literal {
    /// In lower case, and as an instant if it is one.
    Text {
        lower: String,
        time: Option<Timestamp>,
    },
    Number(f64),
    Bool(bool),
    Time(Timestamp),
}

impl Filter {
    /// Parses `text`; only the properties named in `allowed` may occur. An
    /// empty text matches everything.
    ///
    /// # Errors
    /// `InvalidQueryParameterValue` says what is wrong and where.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Ok(Self { root: None });
        }
        parser::parse(text, allowed).map(|root| Self { root: Some(root) }).map_err(|problem| problem.into_error(text))
    }

    /// Whether the filter lets every record through (it was empty).
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether a record matches; `property` gives its values, `None` where it
    /// has none (no comparison with a missing value holds, except `ne`).
    pub fn matches(&self, property: &dyn Fn(&str) -> Option<Value>) -> bool {
        self.root.as_ref().is_none_or(|root| root.matches(property))
    }
}

impl Node {
    fn matches(&self, values: &dyn Fn(&str) -> Option<Value>) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.matches(values)),
            Self::Any(nodes) => nodes.iter().any(|node| node.matches(values)),
            Self::Not(node) => !node.matches(values),
            Self::StartsWith { property, lower_prefix } => match values(property) {
                Some(Value::Text(text)) => text.to_lowercase().starts_with(lower_prefix.as_str()),
                _ => false,
            },
            Self::Compare { property, operator, literal } => {
                let order = values(property).and_then(|value| literal.compare(&value));
                match (operator, order) {
                    (Operator::Ne, order) => order != Some(Ordering::Equal),
                    (_, None) => false,
                    (Operator::Eq, Some(order)) => order == Ordering::Equal,
                    (Operator::Gt, Some(order)) => order == Ordering::Greater,
                    (Operator::Ge, Some(order)) => order != Ordering::Less,
                    (Operator::Lt, Some(order)) => order == Ordering::Less,
                    (Operator::Le, Some(order)) => order != Ordering::Greater,
                }
            }
        }
    }
}

impl Literal {
    /// How `value` stands to the literal; `None` if the two have nothing in common.
    fn compare(&self, value: &Value) -> Option<Ordering> {
        match (value, self) {
            (Value::Text(value), Self::Text { lower, .. }) => Some(value.to_lowercase().as_str().cmp(lower)),
            (Value::Number(value), Self::Number(literal)) => value.partial_cmp(literal),
            (Value::Bool(value), Self::Bool(literal)) => Some(value.cmp(literal)),
            // Some clients quote booleans.
            (Value::Bool(value), Self::Text { lower, .. }) => lower.parse().ok().map(|literal| value.cmp(&literal)),
            (Value::Time(value), Self::Time(literal) | Self::Text { time: Some(literal), .. }) => {
                Some(value.cmp(literal))
            }
            (Value::Text(_), Self::Number(_) | Self::Bool(_) | Self::Time(_))
            | (Value::Number(_), Self::Text { .. } | Self::Bool(_) | Self::Time(_))
            | (Value::Bool(_), Self::Number(_) | Self::Time(_))
            | (Value::Time(_), Self::Text { time: None, .. } | Self::Number(_) | Self::Bool(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALLOWED: &[&str] =
        &["id", "state", "exitCode", "creationTime", "autoScale", "executionInfo/exitCode", "gone"];

    fn record(name: &str) -> Option<Value> {
        Some(match name {
            "id" => Value::Text("Pool-1".into()),
            "state" => Value::Text("active".into()),
            "exitCode" => Value::Number(0.0),
            "executionInfo/exitCode" => Value::Number(-3.5),
            "creationTime" => Value::Time(Timestamp::parse_rfc3339("2026-01-31T12:00:00Z").unwrap()),
            "autoScale" => Value::Bool(false),
            _ => return None,
        })
    }

    fn holds(text: &str) -> bool {
        Filter::parse(text, ALLOWED).unwrap_or_else(|error| panic!("{text}: {error}")).matches(&record)
    }

    #[test]
    fn what_clients_send_is_understood() {
        for text in [
            "",
            "  ",
            "state eq 'active'",
            "state eq 'ACTIVE'",
            "startswith(id,'p') and state eq 'active'",
            "startswith( id , 'POOL' )",
            "not startswith(id,'x')",
            "not (state eq 'deleting' or exitCode ne 0)",
            "id ge 'pool-0' and id lt 'pool-2'",
            "executionInfo/exitCode lt -3 and executionInfo/exitCode gt -4.0",
            "exitCode eq 0",
            "autoScale eq false",
            "autoScale eq 'false'",
            "autoScale ne true",
            "creationTime gt DateTime'2026-01-01T00:00:00Z'",
            "creationTime le datetime'2026-01-31T12:00:00.0000000Z'",
            "creationTime lt 'Sat, 31 Jan 2026 12:00:01 GMT'",
            "creationTime ge '2026-01-31'",
            "gone ne 'x'",
            "state eq 'deleting' or state eq 'active' and exitCode eq 0",
            "(((state eq 'active')))",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn what_does_not_hold_does_not_match() {
        for text in [
            "state ne 'active'",
            "startswith(id,'q')",
            "gone eq 'x'",
            "gone gt 1",
            "exitCode eq '0'",
            "creationTime gt 'soon'",
            "id eq 'it''s'",
            "state eq 'active' and (exitCode eq 1 or autoScale eq true)",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn quotes_are_doubled() {
        let filter = Filter::parse("id eq 'it''s ''so'''", ALLOWED).unwrap();
        assert!(filter.matches(&|_| Some(Value::Text("It's 'SO'".into()))));
    }

    #[test]
    fn errors_say_what_and_where() {
        let cases = [
            ("stat eq 'x'", "property", "position 1"),
            ("state eq", "end", "position 9"),
            ("state == 'x'", "'='", "position 7"),
            ("state eq 'x", "quote", "position 10"),
            ("state eq 'x' nor id eq 'y'", "nor", "position 14"),
            ("state has 'x'", "has", "position 7"),
            ("(state eq 'x'", ")", "position 14"),
            ("startswith(id)", ",", "position 14"),
            ("startswith(id, 5)", "text", "position 16"),
            ("creationTime gt DateTime'x'", "date", "position 17"),
            ("exitCode eq 1x", "1x", "position 13"),
            ("exitCode eq 1e999", "number", "position 13"),
            ("ä eq 1", "'ä'", "position 1"),
        ];
        for (text, word, place) in cases {
            let error = Filter::parse(text, ALLOWED).unwrap_err();
            assert_eq!(error.reason(), "InvalidQueryParameterValue", "{text}");
            let detail = |name: &str| {
                error.details().iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default()
            };
            assert_eq!(detail("QueryParameterName"), "$filter");
            assert_eq!(detail("QueryParameterValue"), text);
            let reason = detail("Reason");
            assert!(reason.contains(word) && reason.contains(place), "{text}: {reason}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let deep = format!("{}state eq 'x'{}", "(".repeat(200), ")".repeat(200));
        assert!(Filter::parse(&deep, ALLOWED).is_err());
        assert!(Filter::parse(&"not ".repeat(500), ALLOWED).is_err());
        let long = format!("state eq '{}'", "x".repeat(100_000));
        let error = Filter::parse(&long, ALLOWED).unwrap_err();
        assert!(error.details().iter().all(|(_, value)| value.len() < 1000), "the value is not sent back whole");
        let many = vec!["exitCode eq 0"; 100].join(" and ");
        assert!(holds(&many));
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".{0,200}") {
            if let Ok(filter) = Filter::parse(&text, ALLOWED) {
                filter.matches(&record);
            }
        }

        #[test]
        fn no_mix_of_words_panics(words in proptest::collection::vec(
            proptest::sample::select(vec![
                "id", "state", "exitCode", "eq", "ne", "gt", "and", "or", "not", "(", ")", "startswith", ",", "'", "''",
                "'x'", "DateTime", "DateTime'2026-01-01'", "1", "-", ".", "1.5", "true", "/", "executionInfo/exitCode", "é",
            ]), 0..40)) {
            for text in [words.join(" "), words.concat()] {
                if let Ok(filter) = Filter::parse(&text, ALLOWED) {
                    filter.matches(&record);
                }
            }
        }

        #[test]
        fn any_text_can_be_compared(value in "[^\u{0}]{0,60}") {
            let filter = Filter::parse(&format!("id eq '{}'", value.replace('\'', "''")), ALLOWED).unwrap();
            prop_assert!(filter.matches(&|_| Some(Value::Text(value.clone()))));
        }
    }
}
