//! Page sizes and page tokens of lists.

use kiln_error::Error;

/// The number of rows to return: `requested`, or `default` for 0.
///
/// # Errors
/// If `requested` is negative or above `max`.
pub fn size(requested: i32, default: u32, max: u32) -> Result<u32, Error> {
    match u32::try_from(requested) {
        Ok(0) => Ok(default),
        Ok(size) if size <= max => Ok(size),
        _ => Err(Error::invalid_property("page_size", requested, format!("must be between 1 and {max}"))),
    }
}

/// Packs the key of the last row of a page. Only characters that survive in a
/// URL as they are, since REST clients decode and encode the token once.
pub fn token(last_key: &str) -> String {
    last_key.bytes().fold(String::from("k"), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

/// Unpacks what [`token`] packed; an empty token is the first page.
///
/// # Errors
/// If the token is not one of ours.
pub fn last_key(token: &str) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let invalid = || Error::invalid_property("page_token", token, "is not a token this service gave out");
    let hex = token.strip_prefix('k').ok_or_else(invalid)?;
    if hex.len() % 2 != 0 || !hex.is_ascii() {
        return Err(invalid());
    }
    let bytes: Result<Vec<u8>, _> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16)).collect();
    let bytes = bytes.map_err(|_| invalid())?;
    String::from_utf8(bytes).map(Some).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_and_foreign_ones_are_refused() {
        for key in ["a", "", "Ünïcode/ %2F", "task-99"] {
            assert_eq!(last_key(&token(key)).unwrap().as_deref(), Some(key));
        }
        assert_eq!(last_key("").unwrap(), None);
        for bad in ["x", "k1", "kzz", "kff", "kä"] {
            assert!(last_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0, 100, 1000).unwrap(), 100);
        assert_eq!(size(7, 100, 1000).unwrap(), 7);
        assert!(size(-1, 100, 1000).is_err());
        assert!(size(1001, 100, 1000).is_err());
    }
}
