//! Values on their way into a statement and out of a row.
//!
//! There are as many kinds of values as SQLite has (without reals, which no
//! store uses). Truth values are integers; PostgreSQL's smaller integers and its
//! booleans are, too, once they are read.

use std::borrow::Cow;

use super::Error;

/// A value, borrowed from its owner or from a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'v> {
    /// Nothing.
    Null,
    /// Any whole number or truth value.
    Integer(i64),
    /// UTF-8. PostgreSQL's cannot have the character NUL.
    Text(&'v str),
    /// Bytes.
    Blob(&'v [u8]),
}

impl<'v> Value<'v> {
    /// The bytes.
    ///
    /// # Errors
    /// It is something else.
    pub fn as_blob(self) -> Result<&'v [u8], Error> {
        match self {
            Self::Blob(bytes) => Ok(bytes),
            other => Err(other.is_not("bytes")),
        }
    }

    /// The bytes, or nothing.
    ///
    /// # Errors
    /// It is something else.
    pub fn as_blob_or_null(self) -> Result<Option<&'v [u8]>, Error> {
        match self {
            Self::Null => Ok(None),
            other => other.as_blob().map(Some),
        }
    }

    /// The text.
    ///
    /// # Errors
    /// It is something else.
    pub fn as_str(self) -> Result<&'v str, Error> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.is_not("text")),
        }
    }

    /// The number.
    ///
    /// # Errors
    /// It is something else.
    pub fn as_i64(self) -> Result<i64, Error> {
        match self {
            Self::Integer(number) => Ok(number),
            other => Err(other.is_not("a number")),
        }
    }

    fn is_not(self, wanted: &'static str) -> Error {
        let found = match self {
            Self::Null => "null",
            Self::Integer(_) => "a number",
            Self::Text(_) => "text",
            Self::Blob(_) => "bytes",
        };
        Error::Type(format!("{found} where {wanted} should be"))
    }
}

/// What can be given to a statement.
pub trait ToValue {
    /// As a value.
    fn value(&self) -> Value<'_>;
}

/// What can be read from a row.
pub trait FromValue: Sized {
    /// From a value.
    ///
    /// # Errors
    /// The value is of another kind, or too large.
    fn from_value(value: Value<'_>) -> Result<Self, Error>;
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl ToValue for $type {
            #[inline]
            fn value(&self) -> Value<'_> {
                Value::Integer(i64::from(*self))
            }
        }

        impl FromValue for $type {
            #[inline]
            fn from_value(value: Value<'_>) -> Result<Self, Error> {
                let number = value.as_i64()?;
                Self::try_from(number).map_err(|_| Error::Type(format!("{number} is out of range")))
            }
        }
    )*};
}

integers!(u8, i16, u16, i32, u32, i64);

impl ToValue for bool {
    fn value(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl FromValue for bool {
    fn from_value(value: Value<'_>) -> Result<Self, Error> {
        Ok(value.as_i64()? != 0)
    }
}

impl ToValue for Value<'_> {
    #[inline]
    fn value(&self) -> Value<'_> {
        *self
    }
}

impl ToValue for str {
    #[inline]
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl ToValue for String {
    #[inline]
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl ToValue for Cow<'_, str> {
    #[inline]
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl FromValue for String {
    fn from_value(value: Value<'_>) -> Result<Self, Error> {
        value.as_str().map(str::to_owned)
    }
}

impl ToValue for [u8] {
    #[inline]
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl<const N: usize> ToValue for [u8; N] {
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl ToValue for Vec<u8> {
    #[inline]
    fn value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: Value<'_>) -> Result<Self, Error> {
        value.as_blob().map(<[u8]>::to_vec)
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    #[inline]
    fn value(&self) -> Value<'_> {
        (**self).value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    #[inline]
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, ToValue::value)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value<'_>) -> Result<Self, Error> {
        match value {
            Value::Null => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

/// The parameters `?1`, `?2`, ... of a statement: [`params!`](crate::params) for
/// values of several types, an array for values of one.
pub trait Params {
    /// How many there are.
    fn count(&self) -> usize;
    /// The one at `at`, counted from 0.
    fn at(&self, at: usize) -> Value<'_>;
}

impl Params for &[&dyn ToValue] {
    #[inline]
    fn count(&self) -> usize {
        self.len()
    }

    #[inline]
    fn at(&self, at: usize) -> Value<'_> {
        self[at].value()
    }
}

/// `[]`: none.
impl Params for [&dyn ToValue; 0] {
    fn count(&self) -> usize {
        0
    }

    fn at(&self, _: usize) -> Value<'_> {
        Value::Null
    }
}

macro_rules! arrays {
    ($($count:literal),*) => {$(
        impl<T: ToValue> Params for [T; $count] {
            #[inline]
            fn count(&self) -> usize {
                $count
            }

            #[inline]
            fn at(&self, at: usize) -> Value<'_> {
                self[at].value()
            }
        }
    )*};
}

arrays!(1, 2, 3, 4, 5, 6, 7, 8);

/// Parameters of several types for one statement.
#[macro_export]
macro_rules! params {
    ($($param:expr),* $(,)?) => {
        &[$(&$param as &dyn $crate::sql::ToValue),*] as &[&dyn $crate::sql::ToValue]
    };
}
