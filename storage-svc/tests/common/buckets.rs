//! Empty buckets at servers of other makers.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_auth::SecretKey;
use kiln_testkit::servers::TestServer;
use kiln_time::Timestamp;
use storage_svc::domain::query::Query;
use storage_svc::domain::shared_key::{Scheme, SignedRequest, string_forms};
use storage_svc::objects::place::ObjectsPlace;

const BUCKET: &str = "bucket";
/// The account that all emulators of Azure have, and its key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server with one bucket.
pub struct Buckets {
    server: TestServer,
    client: reqwest::Client,
    scheme: &'static str,
    pub options: BTreeMap<String, String>,
}

fn client() -> reqwest::Client {
    // Another test of this process may have done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

fn options(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl Buckets {
    pub async fn s3() -> Self {
        let (server, client) = (TestServer::s3(), client());
        let made = client.put(format!("{}/{BUCKET}", server.url())).send().await.unwrap();
        assert!(made.status().is_success(), "{made:?}");
        let options = options(&[
            ("endpoint", &server.url()),
            ("region", "us-east-1"),
            ("access_key_id", "test"),
            ("secret_access_key", "test"),
            ("allow_http", "true"),
        ]);
        Self { server, client, scheme: "s3", options }
    }

    pub async fn azure() -> Self {
        let (server, client) = (TestServer::azure(), client());
        let path = format!("/{ACCOUNT}/{BUCKET}");
        let date = Timestamp::now().to_http_date();
        let headers: http::HeaderMap = [("x-ms-date", date.as_str()), ("x-ms-version", "2021-12-02")]
            .into_iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        let query = Query::parse("restype=container").unwrap();
        let request = SignedRequest { method: "PUT", account: ACCOUNT, path: &path, query: &query, headers: &headers };
        let signature =
            SecretKey::from_base64(KEY).unwrap().sign_base64(string_forms(Scheme::Full, &request)[0].as_bytes());
        let made = client
            .put(format!("{}{path}?restype=container", server.url()))
            .headers(headers)
            .header("authorization", format!("SharedKey {ACCOUNT}:{signature}"))
            .header("content-length", "0")
            .send()
            .await
            .unwrap();
        assert!(made.status().is_success(), "{made:?}");
        let options = options(&[
            ("endpoint", &format!("{}/{ACCOUNT}", server.url())),
            ("account_name", ACCOUNT),
            ("account_key", KEY),
            ("allow_http", "true"),
        ]);
        Self { server, client, scheme: "az", options }
    }

    /// The URL of `path` in the bucket, as the setting `objects` takes it.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{BUCKET}/{path}", self.scheme)
    }

    pub fn place(&self, path: &str) -> ObjectsPlace {
        ObjectsPlace::parse(&self.url(path), self.options.clone()).unwrap()
    }

    /// Uploads in parts that are neither complete nor aborted (S3).
    pub async fn uploads(&self) -> usize {
        let url = format!("{}/{BUCKET}?uploads", self.server.url());
        self.client.get(url).send().await.unwrap().text().await.unwrap().matches("<Upload>").count()
    }

    /// Names of all objects (S3, at most 1000).
    pub async fn names(&self) -> Vec<String> {
        let url = format!("{}/{BUCKET}?list-type=2", self.server.url());
        let text = self.client.get(url).send().await.unwrap().text().await.unwrap();
        text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once('<')?.0.to_owned())).collect()
    }
}

pub fn pattern_bytes(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}
