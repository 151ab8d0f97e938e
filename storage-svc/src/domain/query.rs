//! Query strings as Azure reads them.

use percent_encoding::percent_decode_str;

use super::StorageError;

/// Parameters of one request, decoded, in the order they came.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

/// A service has no use for more; bounds the work of a request.
const MAX_PARAMETERS: usize = 128;

impl Query {
    /// Decodes `raw` (without the question mark). Names are lower-cased; a plus
    /// is a space, except in a signature, where old clients leave it as it is.
    ///
    /// # Errors
    /// Too many parameters, or bytes that are not UTF-8.
    pub fn parse(raw: &str) -> Result<Self, StorageError> {
        let mut pairs = Vec::new();
        for part in raw.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decode(name)?.to_lowercase();
            let value = if name == "sig" { decode(value)? } else { decode(&value.replace('+', " "))? };
            pairs.push((name, value));
            if pairs.len() > MAX_PARAMETERS {
                return Err(StorageError::InvalidUri("too many query parameters"));
            }
        }
        Ok(Self(pairs))
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Names with values, sorted by name, then value.
    pub fn sorted(&self) -> Vec<(&str, &str)> {
        let mut pairs: Vec<_> = self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        pairs.sort_unstable();
        pairs
    }
}

fn decode(text: &str) -> Result<String, StorageError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| StorageError::InvalidUri("the query is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_once_and_signatures_keep_their_plus() {
        let query = Query::parse("Comp=list&prefix=a%2Fb+c%252F&sig=a+b%2Bc/%3D&flag&&x=1&x=2").unwrap();
        assert_eq!(query.get("comp"), Some("list"));
        assert_eq!(query.get("prefix"), Some("a/b c%2F"));
        assert_eq!(query.get("sig"), Some("a+b+c/="));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.all("x").collect::<Vec<_>>(), ["1", "2"]);
        assert!(Query::parse("a=%ff").is_err());
        assert!(Query::parse(&"a=1&".repeat(200)).is_err());
    }
}
