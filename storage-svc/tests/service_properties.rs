//! Properties of the blob service, and scripts of other origins.

#![allow(clippy::unwrap_used)]

mod common;

use common::Service;

const TARGET: &str = "/acct/?restype=service&comp=properties";

async fn set(s: &Service, inner: &str) -> common::Reply {
    let body = format!("<?xml version='1.0'?><StorageServiceProperties>{inner}</StorageServiceProperties>");
    s.signed("PUT", TARGET, &[], body.as_bytes()).await
}

#[tokio::test]
async fn they_are_kept_for_each_account() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    let fresh = s.signed("GET", TARGET, &[], b"").await;
    assert!(fresh.text().contains("<Cors></Cors>") && !fresh.text().contains("DefaultServiceVersion"), "{fresh:?}");
    let rule = "<Cors><CorsRule><AllowedOrigins>https://a.org</AllowedOrigins><AllowedMethods>GET</AllowedMethods>\
        <MaxAgeInSeconds>9</MaxAgeInSeconds><ExposedHeaders>etag</ExposedHeaders><AllowedHeaders>*</AllowedHeaders>\
        </CorsRule></Cors>";
    assert_eq!(set(&s, rule).await.status, 202);
    assert_eq!(set(&s, "<DefaultServiceVersion>2018-03-28</DefaultServiceVersion>").await.status, 202);
    let refused = set(&s, "<Cors/><StaticWebsite><Enabled>true</Enabled></StaticWebsite>").await;
    assert_eq!(refused.outcome(), (400, "UnsupportedXmlNode"));
    assert!(refused.text().contains("<XmlNodeName>StaticWebsite</XmlNodeName>"), "{}", refused.text());
    let got = s.signed("GET", TARGET, &[], b"").await.text();
    assert!(got.contains("<AllowedOrigins>https://a.org</AllowedOrigins>"), "{got}");
    assert!(got.contains("<DefaultServiceVersion>2018-03-28</DefaultServiceVersion>"), "{got}");
    // Who names no version means that one.
    let anonymous = s.raw("GET", "/acct/cont/b", &[], b"").await;
    assert_eq!((anonymous.status, anonymous.header("x-ms-version")), (404, "2018-03-28"));
    s.stop().await;
    let again = Service::start(dir.path()).await;
    assert!(again.signed("GET", TARGET, &[], b"").await.text().contains("https://a.org"), "it survives a restart");
    again.stop().await;
}

#[tokio::test]
async fn scripts_of_other_origins() {
    let dir = tempfile::tempdir().unwrap();
    let s = Service::start(dir.path()).await;
    s.create("cont").await;
    s.put("/acct/cont/b", b"hello").await;
    let ask = async |headers: &[(&str, &str)]| s.raw("OPTIONS", "/acct/cont/b?comp=block", headers, b"").await;
    let put = ("Access-Control-Request-Method", "PUT");
    let origin = ("Origin", "https://a.org");
    assert_eq!(ask(&[origin, put]).await.outcome(), (403, "CorsPreflightFailure"), "no rules");
    let rule = |origins: &str, methods: &str| {
        format!(
            "<CorsRule><AllowedOrigins>{origins}</AllowedOrigins><AllowedMethods>{methods}</AllowedMethods>\
             <MaxAgeInSeconds>9</MaxAgeInSeconds><ExposedHeaders>etag,x-ms-meta-*</ExposedHeaders>\
             <AllowedHeaders>x-ms-*</AllowedHeaders></CorsRule>"
        )
    };
    let rules = format!("<Cors>{}{}</Cors>", rule("https://a.org", "GET,PUT"), rule("*", "HEAD"));
    assert_eq!(set(&s, &rules).await.status, 202);

    let allowed = ask(&[origin, put, ("Access-Control-Request-Headers", "x-ms-date, x-ms-version")]).await;
    assert_eq!(allowed.status, 200, "{}", allowed.text());
    for (name, value) in [
        ("access-control-allow-origin", "https://a.org"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-ms-date, x-ms-version"),
        ("access-control-max-age", "9"),
        ("access-control-allow-credentials", "true"),
        ("vary", "Origin"),
    ] {
        assert_eq!(allowed.header(name), value, "{name}");
    }
    let refused = (403, "CorsPreflightFailure");
    assert_eq!(ask(&[origin, put, ("Access-Control-Request-Headers", "content-type")]).await.outcome(), refused);
    assert_eq!(ask(&[("Origin", "https://b.org"), put]).await.outcome(), refused);
    assert_eq!(ask(&[origin, ("Access-Control-Request-Method", "DELETE")]).await.outcome(), refused);
    assert_eq!(ask(&[put]).await.outcome(), (400, "MissingRequiredHeader"));
    assert_eq!(ask(&[origin]).await.outcome(), (400, "MissingRequiredHeader"));

    let get = s.signed("GET", "/acct/cont/b", &[origin], b"").await;
    assert_eq!((get.text().as_str(), get.header("access-control-allow-origin")), ("hello", "https://a.org"));
    assert_eq!(get.header("access-control-expose-headers"), "etag,x-ms-meta-*");
    let stranger = s.signed("GET", "/acct/cont/b", &[("Origin", "https://b.org")], b"").await;
    assert_eq!((stranger.status, stranger.header("access-control-allow-origin")), (200, ""));
    assert_eq!(stranger.header("vary"), "Origin");
    let any = s.signed("HEAD", "/acct/cont/b", &[("Origin", "https://b.org")], b"").await;
    assert_eq!((any.header("access-control-allow-origin"), any.header("vary")), ("*", ""));
    let error = s.signed("GET", "/acct/cont/none", &[origin], b"").await;
    assert_eq!((error.status, error.header("access-control-allow-origin")), (404, "https://a.org"));
    let plain = s.signed("GET", "/acct/cont/b", &[], b"").await;
    assert_eq!(plain.header("access-control-allow-origin"), "");
    s.stop().await;
}
