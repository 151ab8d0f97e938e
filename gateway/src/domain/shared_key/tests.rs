use http::HeaderValue;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

const NOW: &str = "Sat, 31 Jan 2026 12:00:00 GMT";

fn now() -> Timestamp {
    Timestamp::parse_http_date(NOW).unwrap()
}
