//! The blobs of a container.

use quick_xml::events::Event;
use quick_xml::reader::Reader;
use url::Url;

use super::transfer::{Access, Http, TransferError, TryError, check, request_error, text};

/// Names asked for at once.
const PAGE: usize = 5000;
/// Bytes of one page: names of 1024 characters with all their properties, and
/// 8 KiB of metadata, would be fewer.
const MAX_PAGE_BYTES: usize = 64 * 1024 * 1024;
/// A task with more input files than this has a mistake in it.
const MAX_BLOBS: usize = 100_000;
/// Pages without names are possible, endless ones are not.
const MAX_PAGES: usize = 10_000;

/// Names of the blobs of `container` that begin with `prefix`.
///
/// # Errors
/// [`TransferError`].
pub async fn list(http: &Http, container: &Url, access: Access, prefix: &str) -> Result<Vec<String>, TransferError> {
    let mut names = Vec::new();
    let mut marker = String::new();
    for _ in 0..MAX_PAGES {
        let mut url = container.clone();
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("restype", "container").append_pair("comp", "list");
            query.append_pair("maxresults", &PAGE.to_string());
            if !prefix.is_empty() {
                query.append_pair("prefix", prefix);
            }
            if !marker.is_empty() {
                query.append_pair("marker", &marker);
            }
        }
        let page = http
            .with_retries(|| async {
                let request = http.prepare(http.client(&url).get(url.clone()), access);
                let response = check(request.send().await.map_err(request_error)?).await?;
                let text = text(response, MAX_PAGE_BYTES).await?;
                read_page(&text).map_err(|error| TryError::Final(TransferError::Other(error)))
            })
            .await?;
        names.extend(page.names);
        if names.len() > MAX_BLOBS {
            let message = format!("the container has more than {MAX_BLOBS} blobs with this prefix");
            return Err(TransferError::Other(message));
        }
        if page.next_marker.is_empty() {
            return Ok(names);
        }
        marker = page.next_marker;
    }
    Err(TransferError::Other("the list of the container has no end".to_owned()))
}

/// The URL of one blob of a container; keeps the container's query.
pub fn blob_url(container: &Url, name: &str) -> Option<Url> {
    let mut url = container.clone();
    let mut path = url.path_segments_mut().ok()?;
    path.pop_if_empty();
    for part in name.split('/') {
        path.push(part);
    }
    drop(path);
    Some(url)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Page {
    names: Vec<String>,
    next_marker: String,
}

fn read_page(xml: &str) -> Result<Page, String> {
    let mut page = Page::default();
    let mut reader = Reader::from_str(xml.trim_start_matches('\u{feff}'));
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    let mut encoded = false;
    loop {
        match reader.read_event().map_err(|error| format!("the list of the container is not XML: {error}"))? {
            Event::Start(start) => {
                text.clear();
                encoded = start
                    .attributes()
                    .flatten()
                    .any(|attribute| attribute.key.as_ref() == "Encoded" && attribute.value.as_ref() == "true");
                path.push(start.name().as_ref().to_owned());
            }
            Event::Text(piece) => {
                text.push_str(&piece);
            }
            Event::GeneralRef(reference) => {
                let name: &str = &reference;
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(character)) => Some(character.to_string()),
                    _ => quick_xml::escape::resolve_predefined_entity(name).map(str::to_owned),
                };
                text.push_str(&resolved.ok_or_else(|| format!("the list of the container has the entity {name}"))?);
            }
            Event::CData(data) => text.push_str(&data),
            Event::End(_) => {
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                match names[..] {
                    [.., "Blob", "Name"] => {
                        let name = if encoded {
                            percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
                        } else {
                            text.clone()
                        };
                        page.names.push(name);
                    }
                    [_, "NextMarker"] => page.next_marker = text.trim().to_owned(),
                    _ => {}
                }
                text.clear();
                path.pop();
            }
            Event::Eof if path.is_empty() => return Ok(page),
            Event::Eof => return Err("the list of the container ends too early".to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_marker_are_read() {
        let xml = "<?xml version=\"1.0\"?><EnumerationResults><Prefix>a</Prefix><Blobs>\
            <Blob><Name>a/b &amp; c.txt</Name><Properties><Etag>x</Etag></Properties><Metadata><Name>no</Name></Metadata></Blob>\
            <Blob><Name Encoded=\"true\">a%20b</Name></Blob><BlobPrefix><Name>no/</Name></BlobPrefix></Blobs>\
            <NextMarker>m1</NextMarker></EnumerationResults>";
        let page = read_page(xml).unwrap();
        assert_eq!(page.names, ["a/b & c.txt", "a b"]);
        assert_eq!(page.next_marker, "m1");
        let last = read_page("<EnumerationResults><Blobs /><NextMarker /></EnumerationResults>").unwrap();
        assert_eq!(last, Page::default());
        assert!(read_page("<EnumerationResults><Blobs>").is_err());
        assert!(read_page("no xml <").is_err());
    }

    #[test]
    fn blob_urls_keep_the_signature_and_encode_names() {
        let container = Url::parse("http://h:1/acc/c?sv=1&sig=a%2Bb").unwrap();
        assert_eq!(
            blob_url(&container, "d/a b?#.txt").unwrap().as_str(),
            "http://h:1/acc/c/d/a%20b%3F%23.txt?sv=1&sig=a%2Bb"
        );
    }
}
