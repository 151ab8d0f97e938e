//! The case in which clients write names of metadata.
//!
//! HTTP does not care about the case of a header's name, and [`HeaderMap`] has
//! lower case only; but clients of Azure expect a name back as they wrote it.
//! hyper remembers the case of HTTP/1 requests for the sake of proxies, in an
//! extension that nobody else can look into; it does nothing with it but write a
//! head with the same case. So that is how it is read here: hyper writes a head
//! to memory ([`written`]); and how it is made: hyper reads one ([`extension`]).
//! Only requests with metadata, and answers with capitals in it, go this way.
//!
//! HTTP/2 sends lower case only; there is nothing to remember or to restore.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Names by their lower case.
pub type Cases = HashMap<String, String>;

/// Bytes of a head on its way through memory; more waits until it is read.
const PIPE: usize = 16 * 1024;

/// How the client wrote those names that begin with `prefix`. A name that came
/// in several forms has the first.
pub async fn written(extensions: &Extensions, headers: &HeaderMap, prefix: &str) -> Cases {
    let names: Vec<&HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(prefix)).collect();
    if names.is_empty() {
        return Cases::new();
    }
    let answer = |_: Request<Incoming>| {
        let mut response = Response::new(Body::empty());
        for name in &names {
            response.headers_mut().insert((*name).clone(), HeaderValue::from_static("-"));
        }
        *response.extensions_mut() = extensions.clone();
        response
    };
    let head = exchange("", 0, answer).await;
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, _)| (name.to_ascii_lowercase(), name.to_owned()))
        .filter(|(name, _)| name.starts_with(prefix))
        .collect()
}

/// What an answer needs to have these names in this case.
pub async fn extension(names: &[String]) -> Extensions {
    let taken = Mutex::new(Extensions::new());
    let lines: String = names.iter().map(|name| format!("{name}: -\r\n")).collect();
    let answer = |request: Request<Incoming>| {
        *taken.lock().unwrap_or_else(PoisonError::into_inner) = request.extensions().clone();
        Response::new(Body::empty())
    };
    exchange(&lines, names.len(), answer).await;
    taken.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a request with these lines through hyper; gives the head of the answer.
async fn exchange(lines: &str, count: usize, answer: impl Fn(Request<Incoming>) -> Response<Body>) -> String {
    let (mut ours, theirs) = tokio::io::duplex(PIPE);
    let service = service_fn(|request| ready(Ok::<_, Infallible>(answer(request))));
    // Two lines are ours.
    let serve = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(count + 2)
        .max_buf_size(lines.len() + PIPE)
        .serve_connection(TokioIo::new(theirs), service);
    let talk = async {
        let request = format!("GET / HTTP/1.1\r\nhost: memory\r\nconnection: close\r\n{lines}\r\n");
        ours.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        ours.read_to_end(&mut head).await?;
        Ok::<_, std::io::Error>(head)
    };
    let (served, head) = tokio::join!(serve, talk);
    if let Err(error) = served {
        tracing::warn!(%error, "the case of names of metadata could not be kept");
    }
    head.map(|head| String::from_utf8_lossy(&head).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_come_back_as_they_were_written() {
        let names = ["x-ms-meta-CamelCase", "X-Ms-Meta-lower", "x-ms-meta-A_1", "X-Other"].map(str::to_owned);
        let extensions = extension(&names).await;
        let headers: HeaderMap = names
            .iter()
            .map(|name| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1")))
            .collect();
        let cases = written(&extensions, &headers, "x-ms-meta-").await;
        let expected = names[..3].iter().map(|name| (name.to_ascii_lowercase(), name.clone())).collect();
        assert_eq!(cases, expected);
        assert_eq!(written(&extensions, &headers, "x-none-").await, Cases::new());
    }

    #[tokio::test]
    async fn many_names_and_none_at_all_are_kept() {
        let names: Vec<String> = (0..500).map(|n| format!("x-ms-meta-Name{n}")).collect();
        let extensions = extension(&names).await;
        let headers: HeaderMap = names
            .iter()
            .map(|name| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1")))
            .collect();
        assert_eq!(written(&extensions, &headers, "x-ms-meta-").await.len(), 500);
        // HTTP/2 has nothing to remember.
        let cases = written(&Extensions::new(), &headers, "x-ms-meta-").await;
        assert_eq!(cases["x-ms-meta-name7"], "x-ms-meta-name7");
    }
}
