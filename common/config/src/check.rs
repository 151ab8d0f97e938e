//! What settings must look like; every error names the key and the value.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use crate::ConfigError;

/// Longest time that can be set in seconds: a day.
const MOST_SECONDS: u64 = 86_400;

/// The value of a setting that has no default.
///
/// # Errors
/// It is not set.
pub fn required<T>(key: &'static str, value: Option<T>) -> Result<T, ConfigError> {
    value.ok_or_else(|| ConfigError::value(key, "", "is required"))
}

/// An IP address and a port.
///
/// # Errors
/// It is something else; names are not looked up.
pub fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::value(key, text, "must be an address and a port such as 127.0.0.1:7450"))
}

/// An HTTP URL without trailing slashes: links are made by appending to it.
///
/// # Errors
/// It has another scheme or no host.
pub fn url(key: &'static str, text: &str) -> Result<String, ConfigError> {
    let trimmed = text.trim_end_matches('/');
    let valid = trimmed
        .parse::<http::Uri>()
        .is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    if valid {
        return Ok(trimmed.to_owned());
    }
    Err(ConfigError::value(key, text, "must be a URL such as http://127.0.0.1:7450"))
}

/// Largest number of replicas that one setting can name.
const MOST_URLS: usize = 32;

/// URLs of the replicas of one service, separated by commas, as
/// [`url`] wants each; the same list without spaces is given back.
///
/// # Errors
/// It has none or too many, one of them is no URL, or they differ in scheme.
pub fn urls(key: &'static str, text: &str) -> Result<String, ConfigError> {
    let all: Vec<String> = text.split(',').map(|one| url(key, one.trim())).collect::<Result<_, _>>()?;
    if all.len() > MOST_URLS {
        return Err(ConfigError::value(key, text, format!("names more than {MOST_URLS} URLs")));
    }
    let scheme = |url: &String| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
    if all.windows(2).any(|pair| scheme(&pair[0]) != scheme(&pair[1])) {
        return Err(ConfigError::value(key, text, "must have one scheme: all http or all https"));
    }
    Ok(all.join(","))
}

/// A number from 1 to `most`.
///
/// # Errors
/// It is less or more.
pub fn within<N>(key: &'static str, number: N, most: N) -> Result<N, ConfigError>
where
    N: Copy + PartialOrd + From<u8> + Display,
{
    if (N::from(1)..=most).contains(&number) {
        return Ok(number);
    }
    Err(ConfigError::value(key, number, format!("must be between 1 and {most}")))
}

/// A time of at least a second and at most a day.
///
/// # Errors
/// It is shorter or longer.
pub fn seconds(key: &'static str, seconds: u64) -> Result<Duration, ConfigError> {
    within(key, seconds, MOST_SECONDS).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_values_pass_and_bad_ones_are_named() {
        assert_eq!(url("u", "http://a:1//").unwrap(), "http://a:1");
        assert_eq!(urls("u", "http://a:1/, http://b:2").unwrap(), "http://a:1,http://b:2");
        assert_eq!(address("a", "[::1]:0").unwrap().port(), 0);
        assert_eq!(within("n", 5_u16, 5).unwrap(), 5);
        assert_eq!(seconds("s", 86_400).unwrap(), Duration::from_secs(86_400));
        assert_eq!(required("r", Some(1)).unwrap(), 1);
        for (error, key) in [
            (url("u", "7460").unwrap_err(), "u = \"7460\""),
            (url("u", "http://").unwrap_err(), "u = \"http://\""),
            (urls("u", "http://a:1,").unwrap_err(), "u = \"\""),
            (urls("u", "http://a:1,https://b:1").unwrap_err(), "one scheme"),
            (urls("u", &["http://a:1"; 33].join(",")).unwrap_err(), "more than 32"),
            (url("u", "ftp://a").unwrap_err(), "u = \"ftp://a\""),
            (address("a", "localhost").unwrap_err(), "a = \"localhost\""),
            (within("n", 0_u16, 5).unwrap_err(), "n = \"0\""),
            (seconds("s", u64::MAX).unwrap_err(), "s = "),
            (required::<u8>("r", None).unwrap_err(), "r = \"\""),
        ] {
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
