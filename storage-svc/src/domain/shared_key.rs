//! SharedKey and SharedKeyLite signatures of requests.
//!
//! Clients disagree in two places, so all forms are tried: whether headers sort
//! by bytes or by the service's own weights, and whether parameters with an
//! empty value are signed.

use std::cmp::Ordering;

use http::HeaderMap;
use kiln_auth::SecretKey;

use super::query::Query;

/// Versions before this sign a length of zero as `0`.
const EMPTY_LENGTH_SINCE: &str = "2015-02-21";

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// GET, PUT, ...
    pub method: &'a str,
    /// Account that signs.
    pub account: &'a str,
    /// Path as sent, still encoded.
    pub path: &'a str,
    /// Its parameters.
    pub query: &'a Query,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// The two schemes of `Authorization: <scheme> <account>:<signature>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// All of the request.
    Full,
    /// Only its essentials.
    Lite,
}

/// Splits the header; the third part is the signature.
pub fn parse_authorization(value: &str) -> Option<(Scheme, &str, &str)> {
    let (scheme, rest) = value.split_once(' ')?;
    let scheme = match scheme {
        "SharedKey" => Scheme::Full,
        "SharedKeyLite" => Scheme::Lite,
        _ => return None,
    };
    let (account, signature) = rest.trim().split_once(':')?;
    Some((scheme, account, signature))
}

/// Whether one of `keys` signed the request, in any form clients use.
pub fn verify(scheme: Scheme, request: &SignedRequest<'_>, keys: &[SecretKey], signature: &str) -> bool {
    // Nearly always the first form is the right one; the others are not even made then.
    FORMS.iter().any(|form| {
        let text = string(scheme, request, *form);
        keys.iter().any(|key| key.verify_base64(text.as_bytes(), signature))
    })
}

/// What a client signs: the usual form.
pub fn string_to_sign(scheme: Scheme, request: &SignedRequest<'_>) -> String {
    string(scheme, request, FORMS[0])
}

/// The strings a correct client may have signed, the usual one first.
pub fn string_forms(scheme: Scheme, request: &SignedRequest<'_>) -> Vec<String> {
    let mut forms: Vec<String> = Vec::new();
    for form in FORMS {
        let text = string(scheme, request, form);
        if !forms.contains(&text) {
            forms.push(text);
        }
    }
    forms
}

/// How headers are ordered, and whether parameters with an empty value are left out.
type Form = (fn(&str, &str) -> Ordering, bool);

const FORMS: [Form; 4] = [(by_weight, false), (by_weight, true), (by_bytes, false), (by_bytes, true)];

fn string(scheme: Scheme, request: &SignedRequest<'_>, (order, skip_empty): Form) -> String {
    match scheme {
        Scheme::Full => full(request, order, skip_empty),
        Scheme::Lite => lite(request, order),
    }
}

fn full(request: &SignedRequest<'_>, order: fn(&str, &str) -> Ordering, skip_empty: bool) -> String {
    let mut text = String::from(request.method);
    text.push('\n');
    let version = header(request, "x-ms-version");
    for name in ["content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"] {
        let value = match name {
            "date" if request.headers.contains_key("x-ms-date") => String::new(),
            "content-length" => Some(header(request, name))
                .filter(|v| v != "0" || version.as_str() < EMPTY_LENGTH_SINCE)
                .unwrap_or_default(),
            _ => header(request, name),
        };
        text.push_str(&value);
        text.push('\n');
    }
    for name in ["if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"] {
        text.push_str(&header(request, name));
        text.push('\n');
    }
    push_headers(&mut text, request, order);
    text.push('/');
    text.push_str(request.account);
    text.push_str(request.path);
    let pairs = request.query.sorted();
    let mut at = 0;
    while at < pairs.len() {
        let name = pairs[at].0;
        let end = at + pairs[at..].iter().take_while(|(other, _)| *other == name).count();
        let values: Vec<&str> = pairs[at..end].iter().map(|(_, value)| *value).collect();
        let joined = values.join(",");
        if !(skip_empty && joined.is_empty()) {
            text.push('\n');
            text.push_str(name);
            text.push(':');
            text.push_str(&joined);
        }
        at = end;
    }
    text
}

fn lite(request: &SignedRequest<'_>, order: fn(&str, &str) -> Ordering) -> String {
    let date = if request.headers.contains_key("x-ms-date") { String::new() } else { header(request, "date") };
    let mut text = format!(
        "{}\n{}\n{}\n{date}\n",
        request.method,
        header(request, "content-md5"),
        header(request, "content-type"),
    );
    push_headers(&mut text, request, order);
    text.push('/');
    text.push_str(request.account);
    text.push_str(request.path);
    if let Some(comp) = request.query.get("comp") {
        text.push_str("?comp=");
        text.push_str(comp);
    }
    text
}

fn header(request: &SignedRequest<'_>, name: &str) -> String {
    request
        .headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        .unwrap_or_default()
}

fn push_headers(text: &mut String, request: &SignedRequest<'_>, order: fn(&str, &str) -> Ordering) {
    let mut names: Vec<&str> =
        request.headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-ms-")).collect();
    names.sort_unstable_by(|a, b| order(a, b));
    for name in names {
        let values: Vec<String> = request
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
            .collect();
        text.push_str(name);
        text.push(':');
        text.push_str(&values.join(","));
        text.push('\n');
    }
}

fn by_bytes(a: &str, b: &str) -> Ordering {
    a.cmp(b)
}

/// The service's own order: hyphens do not count, `_` comes before digits and
/// digits before letters; names that are then equal differ by their hyphens,
/// the one whose hyphen comes later first.
fn by_weight(a: &str, b: &str) -> Ordering {
    let weights = |text: &str| text.bytes().filter(|b| *b != b'-').map(weight).collect::<Vec<_>>();
    weights(a).cmp(&weights(b)).then_with(|| {
        let hyphens = |text: &str| text.bytes().map(|b| u8::from(b == b'-')).collect::<Vec<_>>();
        hyphens(a).cmp(&hyphens(b))
    })
}

fn weight(byte: u8) -> u16 {
    match byte {
        b'0'..=b'9' | b'a'..=b'z' => 0x100 + u16::from(byte),
        other => u16::from(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The well-known key of the storage emulators.
    const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn check(scheme: Scheme, method: &str, path: &str, query: &str, sent: &HeaderMap, signature: &str) {
        let query = Query::parse(query).unwrap();
        let request = SignedRequest { method, account: "devstoreaccount1", path, query: &query, headers: sent };
        let key = SecretKey::from_base64(KEY).unwrap();
        assert!(
            verify(scheme, &request, &[SecretKey::generate(), key], signature),
            "{:?}",
            string_forms(scheme, &request)
        );
        assert!(!verify(scheme, &request, &[SecretKey::generate()], signature));
    }

    const DATE: (&str, &str) = ("x-ms-date", "Fri, 20 Nov 2026 08:00:00 GMT");
    const VERSION: (&str, &str) = ("x-ms-version", "2021-12-02");

    #[test]
    fn known_signatures() {
        let put = headers(&[
            ("content-length", "5"),
            ("content-type", "application/octet-stream"),
            ("x-ms-blob-type", "BlockBlob"),
            DATE,
            VERSION,
        ]);
        let path = "/devstoreaccount1/cont/dir/a%20b.txt";
        check(Scheme::Full, "PUT", path, "", &put, "hn8F+zFW6mtX2kP965S3saj1Ry+1uhL+TRFgEWyhd4Q=");
        let get = headers(&[DATE, VERSION]);
        let query = "restype=container&comp=list&include=metadata%2Csnapshots";
        check(
            Scheme::Full,
            "GET",
            "/devstoreaccount1/cont",
            query,
            &get,
            "Ot+C1DtfQV9J3YXzjmrw7khkffgFH0LpG2yfFotGBFo=",
        );
        check(Scheme::Lite, "PUT", "/devstoreaccount1/cont", "", &get, "6OQdz4C7h+4NxTPKX07RZndvZXX91vR1tDXHqwtSOac=");
    }

    #[test]
    fn both_orders_and_both_ways_with_empty_parameters_are_tried() {
        let sent = headers(&[DATE, VERSION, ("x-ms-meta-ab", "1"), ("x-ms-meta-a1", "2"), ("x-ms-meta-a_1", "3")]);
        let query = Query::parse("prefix=&comp=list").unwrap();
        let request = SignedRequest { method: "GET", account: "a", path: "/a/c", query: &query, headers: &sent };
        let forms = string_forms(Scheme::Full, &request);
        assert_eq!(forms.len(), 4);
        assert!(forms.iter().any(|f| f.contains("a_1:3\nx-ms-meta-a1:2\nx-ms-meta-ab:1") && f.ends_with("prefix:")));
        assert!(forms.iter().any(|f| f.contains("a1:2\nx-ms-meta-a_1:3\nx-ms-meta-ab:1") && f.ends_with("comp:list")));
    }

    #[test]
    fn zero_length_is_signed_by_version() {
        let query = Query::default();
        for (version, expected) in [("2014-02-14", "PUT\n\n\n0\n"), ("2015-02-21", "PUT\n\n\n\n")] {
            let sent = headers(&[("content-length", "0"), ("x-ms-version", version)]);
            let request = SignedRequest { method: "PUT", account: "a", path: "/a/c", query: &query, headers: &sent };
            assert!(string_forms(Scheme::Full, &request)[0].starts_with(expected), "{version}");
        }
    }
}
