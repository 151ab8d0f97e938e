//! Two accounts on one service: nothing of one opens the other.

// Helpers outside of test functions.
#![allow(clippy::unwrap_used)]

mod common;

use common::Service;
use kiln_auth::SecretKey;
use kiln_auth::token::{self, Claims, Principal};
use kiln_proto::storage::v1::PutAccountRequest;
use kiln_time::Timestamp;
use storage_svc::domain::sas::{self, NewSas};

const SECRET: &str = "what only acct may see";

fn bearer(key: &SecretKey, principal: Principal) -> String {
    format!("Bearer {}", token::mint(key, &Claims { principal, expires: i64::from(u32::MAX) }))
}

#[tokio::test]
async fn keys_tokens_and_signatures_of_one_account_do_not_open_another() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    s.create("cont").await;
    s.put("/acct/cont/b", SECRET.as_bytes()).await;
    let stranger = SecretKey::generate();
    let key = stranger.to_base64();
    let account = PutAccountRequest { account: "stranger".into(), key1: key.clone(), key2: key };
    s.admin().put_account(account).await.unwrap();

    let account = |name: &str| Principal::Account { account: name.into() };
    let node = |name: &str| Principal::Node {
        account: name.into(),
        pool: "p".into(),
        node: "n".into(),
        incarnation: "i".into(),
    };
    let own = bearer(&stranger, account("stranger"));
    // It does open what is its own.
    let headers = [("Authorization", own.as_str()), ("Content-Length", "0")];
    let made = s.raw("PUT", "/stranger/cont?restype=container", &headers, b"").await;
    assert_eq!(made.status, 201);

    let expires = Timestamp::from_micros(i64::from(u32::MAX) * 1_000_000);
    let new = NewSas { account: "acct", container: "cont", blob: None, permissions: "rwdl", starts: None, expires };
    let forged = sas::create(&new, &stranger).unwrap();
    let true_of_stranger = sas::create(&NewSas { account: "stranger", ..new }, &stranger).unwrap();
    let mut tried = Vec::new();
    for query in [&forged, &true_of_stranger] {
        tried.push((s.raw("GET", &format!("/acct/cont/b?{query}"), &[], b"").await, "a signature"));
    }
    for authorization in [
        own.clone(),
        bearer(&stranger, account("acct")),
        bearer(&stranger, node("acct")),
        bearer(&s.cluster_key, node("stranger")),
        // Tokens for other doors.
        bearer(&s.cluster_key, account("acct")),
        bearer(&s.cluster_key, Principal::Service { name: "gateway".into() }),
        bearer(
            &s.cluster_key,
            Principal::Join { account: "acct".into(), pool: "p".into(), node: "n".into(), made_micros: 1 },
        ),
        bearer(&s.cluster_key, Principal::PoolJoin { account: "acct".into(), pool: "p".into(), id: "t".into() }),
        bearer(&s.cluster_key, Principal::Job { account: "acct".into(), job: "j".into(), created_micros: 1 }),
        "SharedKey stranger:AAAA".to_owned(),
    ] {
        for host in [s.blob.to_string(), "stranger.example.org".to_owned(), "acct.example.org".to_owned()] {
            for path in ["/acct/cont/b", "/cont/b", "/ACCT/cont/b", "/acct-secondary/cont/b", "//acct/cont/b"] {
                let headers = [("Authorization", authorization.as_str()), ("Host", host.as_str())];
                tried.push((s.raw("GET", path, &headers, b"").await, "a token"));
            }
        }
    }
    let source = format!("http://{}/acct/cont/b", s.blob);
    let copy = [("Authorization", own.as_str()), ("x-ms-copy-source", &source), ("Content-Length", "0")];
    tried.push((s.raw("PUT", "/stranger/cont/stolen", &copy, b"").await, "a copy"));
    for (reply, what) in tried {
        assert!(reply.status >= 400 && !reply.text().contains(SECRET), "{what}: {} {}", reply.status, reply.text());
    }
    s.stop().await;
}

#[tokio::test]
async fn errors_do_not_repeat_the_signature_of_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    s.create("cont").await;
    let refused = s.signed("PUT", "/acct/cont/b", &[("x-ms-copy-source", "nothing?sig=SECRET")], b"").await;
    assert_eq!(refused.outcome(), (400, "InvalidHeaderValue"));
    assert!(!refused.text().contains("SECRET"), "{}", refused.text());
    s.stop().await;
}
