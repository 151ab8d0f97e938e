//! A small blob server: containers in memory, faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kiln_proto::storage::v1::ResolvedPackage;
use prost::Message;

#[derive(Debug, Default)]
pub struct Store {
    /// By path: `/acc/container/blob`.
    pub blobs: Mutex<BTreeMap<String, (Bytes, u64)>>,
    /// Answers this status so many times first.
    pub faults: Mutex<HashMap<String, (u16, u32)>>,
    /// Method, path and status of every request.
    pub log: Mutex<Vec<(Method, String, u16)>>,
    /// The Authorization headers that were seen.
    pub tokens: Mutex<Vec<String>>,
    /// A wrong Content-MD5 is sent with these, so many times.
    pub wrong_md5: Mutex<HashMap<String, u32>>,
    /// What references (`app:version`, `app:`) mean.
    pub packages: Mutex<HashMap<String, ResolvedPackage>>,
    blocks: Mutex<HashMap<String, Bytes>>,
}

impl Store {
    pub fn put(&self, path: &str, content: impl Into<Bytes>) {
        let mut blobs = self.blobs.lock().unwrap();
        let version = blobs.get(path).map_or(1, |(_, version)| version + 1);
        blobs.insert(path.to_owned(), (content.into(), version));
    }

    /// Makes a reference mean this zip.
    pub fn put_package(&self, application: &str, version: &str, as_default: bool, zip: Vec<u8>) {
        let blob = format!("{application}/{version}/{}.zip", self.packages.lock().unwrap().len());
        let path = format!("/acc/$packages/{blob}");
        let content_length = zip.len() as u64;
        self.put(&path, zip);
        let resolved = ResolvedPackage {
            application_id: application.to_owned(),
            version: version.to_owned(),
            etag: format!("v{}", self.blobs.lock().unwrap()[&path].1),
            blob,
            content_length,
            content_md5: Vec::new(),
        };
        let mut packages = self.packages.lock().unwrap();
        if as_default {
            packages.insert(format!("{application}:"), resolved.clone());
        }
        packages.insert(format!("{application}:{version}"), resolved);
    }

    pub fn get(&self, path: &str) -> Option<Bytes> {
        self.blobs.lock().unwrap().get(path).map(|(content, _)| content.clone())
    }

    pub fn fail(&self, path: &str, status: u16, times: u32) {
        self.faults.lock().unwrap().insert(path.to_owned(), (status, times));
    }

    pub fn count(&self, path: &str, status: u16) -> usize {
        self.log.lock().unwrap().iter().filter(|(_, seen, code)| seen == path && *code == status).count()
    }
}

/// Serves the store; gives its URL.
pub async fn serve(store: Arc<Store>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(store).layer(axum::extract::DefaultBodyLimit::disable());
    kiln_telemetry::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

async fn answer(
    State(store): State<Arc<Store>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = percent(uri.path());
    if let Some(token) = headers.get("authorization") {
        store.tokens.lock().unwrap().push(token.to_str().unwrap().to_owned());
    }
    let response = respond(&store, &method, &path, &query, &headers, body);
    store.log.lock().unwrap().push((method, path, response.status().as_u16()));
    response
}

fn percent(path: &str) -> String {
    percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned()
}

fn respond(
    store: &Store,
    method: &Method,
    path: &str,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    if let Some((status, times)) = store.faults.lock().unwrap().get_mut(path)
        && *times > 0
    {
        *times -= 1;
        return (StatusCode::from_u16(*status).unwrap(), "as asked").into_response();
    }
    if query.get("sig").is_some_and(|sig| sig == "bad") {
        return StatusCode::FORBIDDEN.into_response();
    }
    if path.ends_with("/$packages") && query.get("restype").is_some_and(|kind| kind == "package") {
        let reference = format!("{}:{}", query["application"], query["version"]);
        return match store.packages.lock().unwrap().get(&reference) {
            Some(found) => found.encode_to_vec().into_response(),
            None => (StatusCode::NOT_FOUND, [("x-ms-error-code", "ApplicationNotFound")]).into_response(),
        };
    }
    let comp = query.get("comp").map(String::as_str);
    match (method, comp) {
        (&Method::GET, Some("list")) => list(store, path, query),
        (&Method::GET, _) => {
            let blobs = store.blobs.lock().unwrap();
            let Some((content, version)) = blobs.get(path) else { return StatusCode::NOT_FOUND.into_response() };
            let etag = format!("\"v{version}\"");
            if headers.get("if-none-match").is_some_and(|known| known.to_str().unwrap() == etag) {
                return StatusCode::NOT_MODIFIED.into_response();
            }
            if headers.get("if-match").is_some_and(|wanted| wanted.to_str().unwrap() != etag) {
                return StatusCode::PRECONDITION_FAILED.into_response();
            }
            let mut response = Response::builder().header("etag", etag);
            if let Some(times) = store.wrong_md5.lock().unwrap().get_mut(path)
                && *times > 0
            {
                *times -= 1;
                response = response.header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
            }
            response.body(Body::from(content.clone())).unwrap()
        }
        (&Method::PUT, Some("block")) => {
            store.blocks.lock().unwrap().insert(query["blockid"].clone(), body);
            StatusCode::CREATED.into_response()
        }
        (&Method::PUT, Some("blocklist")) => {
            let list = String::from_utf8(body.to_vec()).unwrap();
            let blocks = store.blocks.lock().unwrap();
            let ids = list.split("<Latest>").skip(1).map(|part| part.split('<').next().unwrap());
            let content: Vec<u8> = ids.flat_map(|id| blocks[id].to_vec()).collect();
            store.put(path, content);
            StatusCode::CREATED.into_response()
        }
        (&Method::PUT, _) => {
            if headers.get("x-ms-blob-type").is_none_or(|kind| kind != "BlockBlob") {
                return StatusCode::BAD_REQUEST.into_response();
            }
            store.put(path, body);
            StatusCode::CREATED.into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

/// Two names a page, so that markers are used.
fn list(store: &Store, path: &str, query: &HashMap<String, String>) -> Response {
    if path.ends_with("/none") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let marker = query.get("marker").cloned().unwrap_or_default();
    let names: Vec<String> = store
        .blobs
        .lock()
        .unwrap()
        .keys()
        .filter_map(|blob| blob.strip_prefix(&format!("{path}/")))
        .filter(|name| name.starts_with(&prefix) && **name > *marker)
        .map(str::to_owned)
        .collect();
    let next = if names.len() > 2 { names[1].clone() } else { String::new() };
    let blobs: String = names.iter().take(2).map(|name| format!("<Blob><Name>{name}</Name></Blob>")).collect();
    format!("<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>")
        .into_response()
}
