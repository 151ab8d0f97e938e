//! `$select`, the few filters answered here, and links to the next page.

use kiln_error::Error;
use kiln_filter::Filter;
use kiln_time::Timestamp;
use serde_json::Value;

use super::call::{Call, query_error};
use super::reply::Reply;

/// A page of a list: `$select` applied, with a link to the next page.
pub fn page(call: &Call, set: &'static str, mut values: Vec<Value>, next_token: &str) -> Reply {
    for value in &mut values {
        select(call, value);
    }
    let next = (!next_token.is_empty()).then(|| next_link(call, next_token));
    Reply::list(set, values, next)
}

/// Leaves only the selected properties.
pub fn select(call: &Call, value: &mut Value) {
    let Some(names) = call.query.get("$select") else { return };
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Value::Object(map) = value
        && !names.is_empty()
    {
        map.retain(|name, _| names.contains(&name.as_str()));
    }
}

/// Whether an entry as answers have it matches; for lists that are filtered
/// here.
pub fn matches(filter: &Filter, entry: &Value) -> bool {
    filter.matches(&|property| {
        let value = property.split('/').try_fold(entry, |value, name| value.get(name))?;
        match value {
            Value::String(text) if property.ends_with("Time") => {
                Timestamp::parse_rfc3339(text).ok().map(kiln_filter::Value::Time)
            }
            Value::String(text) => Some(kiln_filter::Value::Text(text.clone())),
            Value::Number(number) => number.as_f64().map(kiln_filter::Value::Number),
            Value::Bool(value) => Some(kiln_filter::Value::Bool(*value)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    })
}

/// The URL as it was called, with the new token. Tokens are letters and digits
/// only, so they survive being decoded and encoded again.
fn next_link(call: &Call, token: &str) -> String {
    let mut link = format!("{}{}?", call.base, call.path);
    for part in call.raw_query.split('&').filter(|part| !part.is_empty()) {
        let name = part.split('=').next().unwrap_or_default();
        if !["$skiptoken", "%24skiptoken"].iter().any(|old| name.eq_ignore_ascii_case(old)) {
            link.push_str(part);
            link.push('&');
        }
    }
    link.push_str("$skiptoken=");
    link.push_str(token);
    link
}

/// The prefix of a `startswith(name,'...')` filter; no filter is no prefix.
///
/// # Errors
/// `InvalidQueryParameterValue` for any other filter.
pub fn name_prefix(filter: &str) -> Result<String, Error> {
    one_condition(filter, "startswith(name,'...')", |text| {
        let inner = text.strip_prefix("startswith")?.trim_start().strip_prefix('(')?.trim_end().strip_suffix(')')?;
        let (name, literal) = inner.split_once(',')?;
        (name.trim() == "name").then(|| quoted(literal.trim()))?
    })
}

/// The value of a `poolId eq '...'` filter; no filter is no value.
///
/// # Errors
/// `InvalidQueryParameterValue` for any other filter.
pub fn pool_id(filter: &str) -> Result<String, Error> {
    one_condition(filter, "poolId eq '...'", |text| {
        let rest = text.strip_prefix("poolId")?;
        let literal = rest.trim_start().strip_prefix("eq")?;
        rest.starts_with(char::is_whitespace).then(|| quoted(literal.trim()))?
    })
}

fn one_condition(filter: &str, form: &str, read: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    let text = filter.trim();
    if text.is_empty() {
        return Ok(String::new());
    }
    read(text).ok_or_else(|| {
        query_error("InvalidQueryParameterValue", "$filter", filter, &format!("this list knows only {form}"))
    })
}

fn quoted(literal: &str) -> Option<String> {
    let inner = literal.strip_prefix('\'')?.strip_suffix('\'')?;
    let text = inner.replace("''", "\u{0}");
    // A quote that is not doubled ends the text early.
    (!text.contains('\'')).then(|| text.replace('\u{0}', "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_filtered_as_they_are_answered() {
        let allowed = ["poolId", "run/startTime", "run/exitCode", "run/state"];
        let entry = serde_json::json!({"poolId": "p",
            "run": {"startTime": "2026-01-31T12:00:00Z", "exitCode": 3, "state": "completed"}});
        let holds = |text: &str| matches(&Filter::parse(text, &allowed).unwrap(), &entry);
        for text in ["", "poolId eq 'P'", "run/exitCode ne 0", "run/startTime lt DateTime'2027-01-01T00:00:00Z'"] {
            assert!(holds(text), "{text}");
        }
        for text in ["poolId ne 'p'", "run/exitCode eq 0", "run/startTime gt DateTime'2027-01-01T00:00:00Z'"] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn small_filters() {
        assert_eq!(name_prefix("").unwrap(), "");
        assert_eq!(name_prefix("startswith(name,'wd/a')").unwrap(), "wd/a");
        assert_eq!(name_prefix(" startswith ( name , 'it''s' ) ").unwrap(), "it's");
        for bad in ["name eq 'x'", "startswith(id,'x')", "startswith(name,'a'b')", "startswith(name,x)"] {
            assert_eq!(name_prefix(bad).unwrap_err().reason(), "InvalidQueryParameterValue", "{bad}");
        }
        assert_eq!(pool_id("poolId eq 'p1'").unwrap(), "p1");
        assert!(pool_id("poolIdeq 'p1'").is_err() && pool_id("poolId ne 'p1'").is_err());
    }
}
