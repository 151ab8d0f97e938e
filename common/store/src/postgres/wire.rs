//! Values as PostgreSQL's columns want and give them.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::sql::{Error, Value};

type Cause = Box<dyn std::error::Error + Sync + Send>;

/// Whether the value fits the type; else nothing must be sent.
pub(super) fn check(value: Value<'_>, wanted: &Type) -> Result<(), Error> {
    let fits = match (value, wanted) {
        (Value::Null, _) | (Value::Integer(_), &Type::INT8 | &Type::BOOL) | (Value::Blob(_), &Type::BYTEA) => true,
        (Value::Integer(number), &Type::INT4) => i32::try_from(number).is_ok(),
        (Value::Integer(number), &Type::INT2) => i16::try_from(number).is_ok(),
        (Value::Text(text), &Type::TEXT | &Type::VARCHAR | &Type::NAME) => {
            if text.as_bytes().contains(&0) {
                return Err(Error::Nul);
            }
            true
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(Error::Type(format!("{value:.20?} does not fit a parameter of type {wanted}"))) }
}

/// Appends the value, which has been [`check`]ed.
fn put(value: Value<'_>, wanted: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
    match value {
        Value::Null => return Ok(IsNull::Yes),
        Value::Integer(number) if *wanted == Type::INT4 => out.put_i32(i32::try_from(number)?),
        Value::Integer(number) if *wanted == Type::INT2 => out.put_i16(i16::try_from(number)?),
        Value::Integer(number) if *wanted == Type::BOOL => out.put_u8(u8::from(number != 0)),
        Value::Integer(number) => out.put_i64(number),
        Value::Text(text) => out.put_slice(text.as_bytes()),
        Value::Blob(bytes) => out.put_slice(bytes),
    }
    Ok(IsNull::No)
}

/// One parameter.
#[derive(Debug)]
pub(super) struct Parameter<'v>(pub(super) Value<'v>);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, wanted: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        put(self.0, wanted, out)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// One parameter of many rows, as an array.
#[derive(Debug)]
pub(super) struct Column {
    of: Type,
    count: i32,
    has_null: bool,
    elements: BytesMut,
}

impl Column {
    pub(super) fn new(of: Type) -> Self {
        Self { of, count: 0, has_null: false, elements: BytesMut::new() }
    }

    /// Adds a value; returns how many bytes it takes.
    pub(super) fn push(&mut self, value: Value<'_>) -> Result<usize, Error> {
        check(value, &self.of)?;
        let start = self.elements.len();
        self.elements.put_i32(-1);
        match put(value, &self.of, &mut self.elements).map_err(|error| Error::Type(error.to_string()))? {
            IsNull::Yes => self.has_null = true,
            IsNull::No => {
                let length = i32::try_from(self.elements.len() - start - 4)
                    .map_err(|_| Error::Type("a value of more than 2 GiB".to_owned()))?;
                self.elements[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
        self.count += 1;
        Ok(self.elements.len() - start)
    }

    /// Forgets all values.
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.has_null = false;
        self.elements.clear();
    }
}

impl ToSql for Column {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        // One dimension, which begins at 1.
        out.put_i32(1);
        out.put_i32(i32::from(self.has_null));
        out.put_u32(self.of.oid());
        out.put_i32(self.count);
        out.put_i32(1);
        out.put_slice(&self.elements);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A value of a row.
pub(crate) struct Read<'r>(pub(crate) Value<'r>);

impl<'r> FromSql<'r> for Read<'r> {
    fn from_sql(of: &Type, raw: &'r [u8]) -> Result<Self, Cause> {
        let value = match *of {
            Type::INT8 => Value::Integer(i64::from_be_bytes(raw.try_into()?)),
            Type::INT4 => Value::Integer(i64::from(i32::from_be_bytes(raw.try_into()?))),
            Type::INT2 => Value::Integer(i64::from(i16::from_be_bytes(raw.try_into()?))),
            Type::BOOL => Value::Integer(i64::from(raw != [0])),
            Type::TEXT | Type::VARCHAR | Type::NAME => Value::Text(std::str::from_utf8(raw)?),
            Type::BYTEA => Value::Blob(raw),
            // A statement that needs a CAST.
            _ => return Err(format!("a column of type {of} cannot be read").into()),
        };
        Ok(Self(value))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Cause> {
        Ok(Self(Value::Null))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_does_not_fit_is_not_sent() {
        assert!(check(Value::Integer(1 << 40), &Type::INT4).is_err());
        assert!(check(Value::Integer(1 << 40), &Type::INT8).is_ok());
        assert!(check(Value::Text("a"), &Type::INT8).is_err());
        assert!(matches!(check(Value::Text("a\0"), &Type::TEXT), Err(Error::Nul)));
        assert!(check(Value::Null, &Type::BYTEA).is_ok());
    }

    #[test]
    fn arrays_have_their_elements_behind_a_head() {
        let mut column = Column::new(Type::TEXT);
        for value in [Value::Text("ab"), Value::Null] {
            column.push(value).unwrap();
        }
        let mut out = BytesMut::new();
        column.to_sql(&Type::TEXT_ARRAY, &mut out).unwrap();
        let words = [1, 1, 25, 2, 1, 2].map(i32::to_be_bytes).concat();
        assert_eq!(out[..], [&words[..], b"ab", &(-1_i32).to_be_bytes()[..]].concat());
        column.clear();
        assert!(column.push(Value::Integer(1)).is_err());
    }
}
