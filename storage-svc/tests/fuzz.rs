//! What clients can write into a URL or a header never panics, and means the
//! same after it was written and read again.

#![allow(clippy::unwrap_used)]

use http::{HeaderMap, HeaderName, HeaderValue};
use kiln_auth::SecretKey;
use kiln_time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::collection::vec;
use proptest::prelude::*;
use storage_svc::domain::append::runs;
use storage_svc::domain::limits::Limits;
use storage_svc::domain::model::StoredPolicy;
use storage_svc::domain::names;
use storage_svc::domain::query::Query;
use storage_svc::domain::range::{Span, WantedRange};
use storage_svc::domain::sas::{self, Circumstances, NewSas, Sas};
use storage_svc::domain::shared_key::{Scheme, SignedRequest, parse_authorization, string_forms, verify};

/// Texts that look like what they are not, beside any text at all.
fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,40}",
        "(%[0-9a-fA-F]{0,2}|[a-z=&+/?]){0,20}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:.]{0,20}Z?)?",
        "[0-9TZ:é-]{15,19}",
        "bytes=[0-9]{0,25}-[0-9]{0,25}(,[0-9]{0,3}-)?",
    ]
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Parameters of tokens, in any order, some of them twice.
fn token() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = prop_oneof![
        prop::sample::select(vec![
            "sv", "sr", "st", "se", "sp", "sip", "spr", "si", "ses", "ss", "srt", "sig", "snapshot", "rscc", "rsct",
        ])
        .prop_map(str::to_owned),
        odd(),
    ];
    let value = prop_oneof![
        odd(),
        prop::sample::select(vec!["2012-02-12", "2015-04-05", "2018-11-09", "2026-10-06", "b", "bs", "c", "bv", "rwl"])
            .prop_map(str::to_owned),
    ];
    vec((name, value), 0..20)
}

fn written(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>().join("&")
}

proptest! {
    #[test]
    fn any_query_is_read_or_refused(raw in odd()) {
        if let Ok(query) = Query::parse(&raw) {
            let sorted = query.sorted();
            prop_assert!(sorted.is_sorted());
            for (name, value) in sorted {
                prop_assert!(query.all(name).any(|found| found == value));
                prop_assert!(query.get(name).is_some());
            }
            let _ = Sas::from_query(&query);
        }
    }

    #[test]
    fn what_is_encoded_is_read_as_it_was(pairs in vec(("[a-z]{1,8}", any::<String>()), 0..20)) {
        let query = Query::parse(&written(&pairs)).unwrap();
        for (name, _) in &pairs {
            let expected: Vec<&str> = pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
            prop_assert_eq!(query.all(name).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn tokens_of_any_kind_are_judged(
        pairs in token(),
        blob in any::<String>(),
        policy in prop::option::of((odd(), prop::option::of(odd()), prop::option::of(odd()))),
        now in any::<i32>(),
    ) {
        let key = SecretKey::generate();
        let Ok(query) = Query::parse(&written(&pairs)) else { return Ok(()) };
        let Ok(Some(sas)) = Sas::from_query(&query) else { return Ok(()) };
        prop_assert!(sas.verify(std::slice::from_ref(&key), "acct", "cont", &blob).is_err(), "nobody signed it");
        // With the right signature only what it says counts.
        let sig = key.sign_base64(sas.string_to_sign("acct", "cont", &blob).as_bytes());
        let sas = Sas { sig, ..sas };
        let _ = sas.verify(std::slice::from_ref(&key), "acct", "cont", &blob);
        let policy = policy.map(|(id, start, expiry)| StoredPolicy { id, start, expiry, permission: None });
        let circumstances = Circumstances {
            now: Timestamp::from_micros(i64::from(now) * 1_000_000),
            peer: "127.0.0.1".parse().unwrap(),
            https: now % 2 == 0,
        };
        if let Ok(grant) = sas.grant(policy.as_ref(), &circumstances) {
            prop_assert!(!grant.permissions.is_empty());
        }
    }

    #[test]
    fn tokens_that_are_made_are_for_their_blob_alone(
        blob in "\\PC{1,40}",
        other in "\\PC{1,40}",
        letters in "[racwdl]{1,6}",
        expires in 0_i64..4_000_000_000,
    ) {
        let key = SecretKey::generate();
        let keys = std::slice::from_ref(&key);
        let expires = Timestamp::from_micros(expires * 1_000_000);
        let new = NewSas {
            account: "acct", container: "cont", blob: Some(&blob), permissions: &letters, starts: None, expires,
        };
        let text = sas::create(&new, &key).unwrap();
        let sas = Sas::from_query(&Query::parse(&text).unwrap()).unwrap().unwrap();
        prop_assert!(sas.verify(keys, "acct", "cont", &blob).is_ok());
        prop_assert_eq!(sas.verify(keys, "acct", "cont", &other).is_ok(), blob == other);
        prop_assert!(sas.verify(keys, "acct", "other", &blob).is_err());
        let more = Sas { sp: format!("{}m", sas.sp), ..sas };
        prop_assert!(more.verify(keys, "acct", "cont", &blob).is_err());
    }

    #[test]
    fn requests_of_any_kind_are_verified_in_every_form(
        path in odd(),
        raw in odd(),
        pairs in vec(("(x-ms-[a-z0-9_-]{0,10}|content-length|range|date)", "[ -~]{0,20}"), 0..12),
        lite in any::<bool>(),
    ) {
        let Ok(query) = Query::parse(&raw) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        for (name, value) in &pairs {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        let scheme = if lite { Scheme::Lite } else { Scheme::Full };
        let request = SignedRequest { method: "PUT", account: "acct", path: &path, query: &query, headers: &headers };
        let (key, other) = (SecretKey::generate(), SecretKey::generate());
        let forms = string_forms(scheme, &request);
        prop_assert!(!forms.is_empty());
        for form in &forms {
            let signature = key.sign_base64(form.as_bytes());
            prop_assert!(verify(scheme, &request, std::slice::from_ref(&key), &signature));
            prop_assert!(!verify(scheme, &request, std::slice::from_ref(&other), &signature));
        }
        let _ = verify(scheme, &request, std::slice::from_ref(&key), &raw);
    }

    #[test]
    fn authorizations_fall_apart_or_are_refused(text in odd(), account in "[a-z]{3,24}", signature in "[A-Za-z0-9+/]{0,44}") {
        let _ = parse_authorization(&text);
        let whole = format!("SharedKey {account}:{signature}");
        prop_assert_eq!(parse_authorization(&whole), Some((Scheme::Full, account.as_str(), signature.as_str())));
    }

    #[test]
    fn ranges_stay_within_the_blob(text in odd(), start in any::<u64>(), end in prop::option::of(any::<u64>()), length in any::<u64>()) {
        for wanted in [WantedRange::parse(&text), Some(WantedRange { start, end })].into_iter().flatten() {
            if wanted.end.is_some_and(|end| end < wanted.start) {
                continue;
            }
            let shown = format!("bytes={}-{}", wanted.start, wanted.end.map(|end| end.to_string()).unwrap_or_default());
            prop_assert_eq!(WantedRange::parse(&shown), Some(wanted));
            match wanted.within(length) {
                Ok(Span { start, length: cut }) => {
                    prop_assert_eq!(start, wanted.start);
                    prop_assert!(cut > 0 && start.checked_add(cut).is_some_and(|end| end <= length));
                }
                Err(error) => prop_assert!(wanted.start >= length && error.status() == 416),
            }
        }
    }

    #[test]
    fn names_and_metadata_are_checked(name in any::<String>(), pairs in vec((odd(), any::<String>()), 0..8)) {
        let _ = names::check_container(&name);
        let _ = names::check_account(&name);
        let _ = names::check_block_id(&name);
        prop_assert_eq!(names::check_blob(&name).is_ok(), (1..=1024).contains(&name.chars().count()));
        if let Ok(metadata) = names::check_metadata(pairs) {
            prop_assert!(metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= 8 * 1024 + 8);
            prop_assert_eq!(names::check_metadata(metadata.clone()).unwrap(), metadata);
        }
    }

    #[test]
    fn dates_are_read_or_refused(text in odd()) {
        let _ = Timestamp::parse_http_date(&text);
        if let Ok(instant) = Timestamp::parse_rfc3339(&text) {
            prop_assert_eq!(Timestamp::parse_rfc3339(&instant.to_rfc3339_ticks()).ok(), Some(instant));
        }
    }

    #[test]
    fn limits_never_shrink_with_the_version(a in "20[0-9]{2}-[01][0-9]-[0-3][0-9]", b in "20[0-9]{2}-[01][0-9]-[0-3][0-9]") {
        let (old, new) = (Limits::of(a.as_str().min(b.as_str())), Limits::of(a.as_str().max(b.as_str())));
        prop_assert!(old.put_blob <= new.put_blob && old.put_block <= new.put_block && old.append <= new.append);
    }

    #[test]
    fn runs_cover_their_places(mut places in vec(0_u64..200, 0..60)) {
        places.sort_unstable();
        places.dedup();
        let covered: Vec<u64> = runs(places.clone()).into_iter().flat_map(|(first, last)| first..=last).collect();
        prop_assert_eq!(covered, places);
    }
}
