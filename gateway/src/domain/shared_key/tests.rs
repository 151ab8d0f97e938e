//! `vectors.json` has requests as real clients sent them (azure-batch 15.1.0
//! and 2.0.1, recorded), and two signed by hand; all with the account `demo`
//! and the key of the bytes 0 to 63.

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::*;

fn key() -> SecretKey {
    // Base64 of the bytes 0 to 63.
    let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";
    SecretKey::from_base64(text).unwrap()
}

struct Vector {
    client: String,
    method: String,
    path: String,
    query: String,
    headers: HeaderMap,
}

impl Vector {
    fn all() -> Vec<Self> {
        let values: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        values
            .iter()
            .map(|value| Self {
                client: text(&value["client"]),
                method: text(&value["method"]),
                path: text(&value["path"]),
                query: text(&value["query"]),
                headers: value["headers"]
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(name, value)| {
                        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value.as_str().unwrap()).unwrap())
                    })
                    .collect(),
            })
            .collect()
    }

    fn date(&self) -> Timestamp {
        Timestamp::parse_http_date(self.headers["ocp-date"].to_str().unwrap()).unwrap()
    }

    fn verify_with(&self, keys: &[&SecretKey], now: Timestamp) -> Result<(), Error> {
        let (account, signature) = parse(self.headers["authorization"].to_str().unwrap()).unwrap();
        let signed = Signed { method: &self.method, path: &self.path, query: &self.query, headers: &self.headers };
        verify(signed, account, signature, keys, now)
    }

    fn verify(&self) -> Result<(), Error> {
        self.verify_with(&[&SecretKey::generate(), &key()], self.date())
    }
}

#[test]
fn what_real_clients_sign_is_accepted_with_either_key() {
    for vector in Vector::all() {
        let name = format!("{} {} {}", vector.client, vector.method, vector.path);
        assert!(vector.verify().is_ok(), "{name}: {:?}", vector.verify());
        assert!(vector.verify_with(&[&key(), &SecretKey::generate()], vector.date()).is_ok(), "{name}");
        assert!(vector.verify_with(&[&SecretKey::generate()], vector.date()).is_err(), "{name}");
    }
}

#[test]
fn any_change_of_the_request_breaks_the_signature() {
    type Change = fn(&mut Vector);
    let changes: [(&str, Change); 5] = [
        ("method", |vector| vector.method = "OPTIONS".into()),
        ("path", |vector| vector.path.push('x')),
        ("query", |vector| vector.query.push_str("&force=true")),
        ("content-length", |vector| drop(vector.headers.insert("content-length", HeaderValue::from_static("7")))),
        ("ocp-range", |vector| drop(vector.headers.insert("ocp-range", HeaderValue::from_static("bytes=1-")))),
    ];
    for (what, change) in changes {
        for mut vector in Vector::all() {
            change(&mut vector);
            let error = vector.verify().unwrap_err();
            assert_eq!(error.reason(), "AuthenticationFailed", "{what}");
        }
    }
}

#[test]
fn old_and_future_requests_are_refused() {
    let vector = &Vector::all()[0];
    let minutes = |n: u64| Duration::from_secs(n * 60);
    for (now, good) in [
        (vector.date().plus(minutes(14)), true),
        (vector.date().minus(minutes(14)), true),
        (vector.date().plus(minutes(16)), false),
        (vector.date().minus(minutes(16)), false),
    ] {
        assert_eq!(vector.verify_with(&[&key()], now).is_ok(), good);
    }
    let mut undated = Vector::all().remove(0);
    let now = undated.date();
    undated.headers.remove("ocp-date");
    assert!(undated.verify_with(&[&key()], now).is_err());
}

#[test]
fn malformed_authorizations_are_told_apart_from_wrong_ones() {
    for text in
        ["", "SharedKey", "SharedKey demo", "SharedKey :x", "SharedKey demo:", "Basic ZGVtbzp4", "sharedkey a:b"]
    {
        assert_eq!(parse(text).unwrap_err().reason(), "InvalidAuthenticationInfo", "{text}");
    }
    assert_eq!(parse("SharedKey demo:c2ln").unwrap(), ("demo", "c2ln"));
}

#[test]
fn repeated_and_empty_parameters_count_once_and_not() {
    assert_eq!(canonical_query("b=2&a=1&b=3&c=", false), "\na:1\nb:2");
    assert_eq!(canonical_query("Z=1&a=2", false), "\nZ:1\na:2");
    assert_eq!(canonical_query("Z=1&a=2", true), "\na:2\nz:1");
}

proptest::proptest! {
    /// What strangers send is refused, never fatal.
    #[test]
    fn no_request_is_too_strange(authorization in "(SharedKey )?.*", path in ".*", query in "[a-z%&=+$0-9\\PC]*") {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("ocp-date"), HeaderValue::from_static(NOW))]);
        let request = Signed { method: "GET", path: &path, query: &query, headers: &headers };
        if let Ok((account, signature)) = parse(&authorization) {
            let now = Timestamp::parse_http_date(NOW).unwrap();
            proptest::prop_assert!(verify(request, account, signature, &[&key()], now).is_err());
        }
    }
}

const NOW: &str = "Sat, 31 Jan 2026 12:00:00 GMT";
