//! Lenient readers of request bodies, and a writer that leaves out what has no
//! value.
//!
//! Clients of ten years send integers and booleans as JSON strings, enum values
//! in any letter case, zero-padded durations, nulls, and keys this server does
//! not know. All of that is read; what cannot be understood is refused with the
//! path of the property, for example `startTask.resourceFiles[0].httpUrl`.

use std::fmt;
use std::time::Duration;

use kiln_error::{Error, Kind};
use kiln_time::{Timestamp, iso};
use prost_types::Duration as ProtoDuration;
use serde_json::{Map, Value};

/// From this many seconds on a duration is "no limit".
const INFINITE_SECONDS: i64 = 10_675_199 * 86_400;

/// One JSON object of a request and where it is.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// Reads a whole body. An empty one is an empty object, for operations whose
/// body is optional.
///
/// # Errors
/// `InvalidRequestBody` if it is not a JSON object.
pub fn parse_body(body: &[u8]) -> Result<Value, Error> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Map::new()));
    }
    let invalid = |why: String| Error::new(Kind::InvalidArgument, "InvalidRequestBody", why);
    let value: Value =
        serde_json::from_slice(body).map_err(|error| invalid(format!("the body is not JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(invalid("the body must be a JSON object".to_owned())) }
}

impl<'a> Fields<'a> {
    /// The fields of a body's object.
    ///
    /// # Errors
    /// If `value` is no object.
    pub fn root(value: &'a Value) -> Result<Self, Error> {
        Self::at(value, String::new())
    }

    fn at(value: &'a Value, path: String) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(wrong(&path, other, "must be an object")),
        }
    }

    /// Path of a property, for errors.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The raw value; null is no value.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether there is a value.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn refuse<T>(&self, name: &str, value: &Value, why: &str) -> Result<T, Error> {
        Err(wrong(&self.path_of(name), value, why))
    }

    /// Says that `name` is needed.
    pub fn missing(&self, name: &str) -> Error {
        Error::missing_property(&self.path_of(name))
    }

    /// A text.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => self.refuse(name, other, "must be a text"),
        }
    }

    /// A text that may be missing, which is the same as empty.
    ///
    /// # Errors
    /// As [`Fields::text`].
    pub fn text_or_empty(&self, name: &str) -> Result<String, Error> {
        Ok(self.text(name)?.unwrap_or_default())
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// As [`Fields::text`], or if it is missing.
    pub fn required_text(&self, name: &str) -> Result<String, Error> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    /// A whole number, as a number or in a text.
    ///
    /// # Errors
    /// If the value is none, or too large.
    pub fn int(&self, name: &str) -> Result<Option<i32>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| {
                // 3.0 is a whole number, too.
                number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15).map(|n| n as i64)
            }),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number.and_then(|number| i32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => self.refuse(name, value, "must be a whole number"),
        }
    }

    /// A whole number of any size, as a number or in a text.
    ///
    /// # Errors
    /// If the value is none.
    pub fn long(&self, name: &str) -> Result<Option<i64>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => self.refuse(name, value, "must be a whole number"),
        }
    }

    /// Refuses properties other than these, in parts that are our own: there
    /// nobody sends what belongs to another server.
    ///
    /// # Errors
    /// Names the first that is not known.
    pub fn only(&self, names: &[&str]) -> Result<(), Error> {
        match self.map.iter().find(|(name, value)| !value.is_null() && !names.contains(&name.as_str())) {
            Some((name, value)) => self.refuse(name, value, &format!("is not known; known are {}", names.join(", "))),
            None => Ok(()),
        }
    }

    /// An instant.
    ///
    /// # Errors
    /// If the text is none.
    pub fn time(&self, name: &str) -> Result<Option<prost_types::Timestamp>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match Timestamp::parse_rfc3339(&text) {
            Ok(time) => Ok(Some(kiln_proto::time::timestamp(time.as_micros()))),
            Err(error) => self.refuse(name, &Value::String(text), &error.to_string()),
        }
    }

    /// A boolean, as one or in a text.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value {
            Value::Bool(value) => Ok(Some(*value)),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            other => self.refuse(name, other, "must be true or false"),
        }
    }

    /// One of several words, in any letter case.
    ///
    /// # Errors
    /// If the value is none of them; the message has the list.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                self.refuse(name, &Value::String(text), &format!("must be one of {}", words.join(", ")))
            }
        }
    }

    /// A duration; "no limit" comes as the longest one, see [`write_duration`].
    ///
    /// # Errors
    /// If the text is no ISO 8601 duration.
    pub fn duration(&self, name: &str) -> Result<Option<ProtoDuration>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match iso::parse(&text) {
            Ok(Some(duration)) => Ok(Some(kiln_proto::time::duration(duration))),
            Ok(None) => Ok(Some(ProtoDuration { seconds: INFINITE_SECONDS, nanos: 0 })),
            Err(error) => self.refuse(name, &Value::String(text), &error.to_string()),
        }
    }

    /// As [`Fields::duration`] for limits: "no limit" is no value.
    ///
    /// # Errors
    /// As [`Fields::duration`].
    pub fn limit(&self, name: &str) -> Result<Option<ProtoDuration>, Error> {
        Ok(self.duration(name)?.filter(|duration| duration.seconds < INFINITE_SECONDS))
    }

    /// A nested object.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Error> {
        self.get(name).map(|value| Fields::at(value, self.path_of(name))).transpose()
    }

    /// The elements of a list; none if it is missing.
    ///
    /// # Errors
    /// If the value is no list.
    pub fn list(&self, name: &str) -> Result<&'a [Value], Error> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => self.refuse(name, other, "must be a list"),
        }
    }

    /// The elements of a list of objects, each read by `read`.
    ///
    /// # Errors
    /// If an element is no object, or what `read` says.
    pub fn each<T>(&self, name: &str, read: impl Fn(&Fields<'a>) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        self.list(name)?
            .iter()
            .enumerate()
            .map(|(at, value)| read(&Fields::at(value, format!("{}[{at}]", self.path_of(name)))?))
            .collect()
    }

    /// The elements of a list of texts.
    ///
    /// # Errors
    /// If an element is no text.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Error> {
        self.list(name)?
            .iter()
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => self.refuse(name, other, "must be a list of texts"),
            })
            .collect()
    }
}

fn wrong(path: &str, value: &Value, why: &str) -> Error {
    // Long values are cut: an error must not repeat a whole body.
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let short: String = text.chars().take(100).collect();
    Error::invalid_property(path, short, why)
}

/// An object in the making that leaves out what has no value.
#[derive(Debug, Default)]
pub struct Out(Map<String, Value>);

impl Out {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a value.
    pub fn put(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Takes a value away.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.0.shift_remove(name);
        self
    }

    /// Puts a value if there is one.
    pub fn put_some(&mut self, name: &str, value: Option<impl Into<Value>>) -> &mut Self {
        if let Some(value) = value {
            self.put(name, value);
        }
        self
    }

    /// Puts a text unless it is empty.
    pub fn put_text(&mut self, name: &str, text: &str) -> &mut Self {
        if !text.is_empty() {
            self.put(name, text);
        }
        self
    }

    /// Puts an instant if there is one.
    pub fn put_time(&mut self, name: &str, time: Option<&prost_types::Timestamp>) -> &mut Self {
        self.put_some(name, time.map(write_time))
    }

    /// Puts a list unless it is empty.
    pub fn put_list(&mut self, name: &str, values: Vec<Value>) -> &mut Self {
        if !values.is_empty() {
            self.put(name, Value::Array(values));
        }
        self
    }

    /// The object.
    pub fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// An instant as its clients expect it.
pub fn write_time(time: &prost_types::Timestamp) -> String {
    timestamp(time).to_rfc3339()
}

/// Our instant.
pub fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_micros(kiln_proto::time::micros(time))
}

/// A duration; the longest ones, and none, are "no limit".
pub fn write_duration(duration: Option<&ProtoDuration>) -> String {
    let finite = duration
        .filter(|duration| duration.seconds < INFINITE_SECONDS)
        .map(|duration| kiln_proto::time::std_duration(duration).unwrap_or(Duration::ZERO));
    iso::format_limit(finite)
}

/// The word of a value, out of the table that reads it.
pub fn word<T: Copy + PartialEq + fmt::Debug>(choices: &[(&'static str, T)], value: T) -> Option<&'static str> {
    choices.iter().find(|(_, known)| *known == value).map(|(word, _)| *word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_clients_send_is_read() {
        let body = json!({"a": "1", "b": 2, "c": 3.0, "d": "True", "e": null, "f": "PT01H00M00S",
            "g": iso::INFINITE, "h": "TaskCompletion", "n": {"l": [{"x": "-5"}]}});
        let fields = Fields::root(&body).unwrap();
        assert_eq!(fields.int("a").unwrap(), Some(1));
        assert_eq!(fields.int("b").unwrap(), Some(2));
        assert_eq!(fields.int("c").unwrap(), Some(3));
        assert_eq!(fields.boolean("d").unwrap(), Some(true));
        assert_eq!(fields.int("e").unwrap(), None);
        assert_eq!(fields.duration("f").unwrap().unwrap().seconds, 3600);
        assert_eq!(fields.limit("g").unwrap(), None);
        assert_eq!(write_duration(fields.duration("g").unwrap().as_ref()), iso::INFINITE);
        assert_eq!(fields.choice("h", &[("taskcompletion", 7)]).unwrap(), Some(7));
        let nested = fields.object("n").unwrap().unwrap();
        assert_eq!(nested.each("l", |item| item.int("x")).unwrap(), [Some(-5)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let body = json!({"a": "x", "d": "maybe", "l": {}, "n": {"l": [{"x": []}]}, "big": 3_000_000_000_u64});
        let fields = Fields::root(&body).unwrap();
        for error in [
            fields.int("a").unwrap_err(),
            fields.boolean("d").unwrap_err(),
            fields.list("l").unwrap_err(),
            fields.int("big").unwrap_err(),
            fields.duration("a").unwrap_err(),
            fields.choice("a", &[("b", 1)]).unwrap_err(),
        ] {
            assert_eq!(error.reason(), "InvalidPropertyValue");
        }
        let nested = fields.object("n").unwrap().unwrap();
        let error = nested.each("l", |item| item.text("x")).unwrap_err();
        assert_eq!(error.details()[0], ("PropertyName".to_owned(), "n.l[0].x".to_owned()));
        assert_eq!(nested.required_text("id").unwrap_err().details()[0].1, "n.id");
    }

    #[test]
    fn bodies_are_objects_or_empty() {
        assert_eq!(parse_body(b" \n").unwrap(), json!({}));
        for bad in ["{", "[]", "\"x\"", "{\"a\":}"] {
            assert_eq!(parse_body(bad.as_bytes()).unwrap_err().reason(), "InvalidRequestBody");
        }
    }
}
