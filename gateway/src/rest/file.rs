//! Files of tasks and of nodes.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures::{Stream, StreamExt};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use kiln_error::{Error, Kind};
use kiln_proto::common::v1::{ByteRange, FileEntry};
use kiln_proto::pool::v1::ReadNodeFileResponse;
use kiln_proto::pool::v1::read_node_file_response::Part;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Streaming;

use super::call::{Call, MAX_RESULTS};
use super::json::timestamp;
use super::reply::Reply;
use super::router::Operation;
use super::view::escape_whole;
use super::{node_json, odata};
use crate::task_file::{Files, ListOptions, Location};

const IS_DIRECTORY: HeaderName = HeaderName::from_static("ocp-batch-file-isdirectory");
const FILE_URL: HeaderName = HeaderName::from_static("ocp-batch-file-url");
const FILE_MODE: HeaderName = HeaderName::from_static("ocp-batch-file-mode");

/// Whose files an operation is about: the collection's path, and where they are.
struct Target {
    files: Files,
    location: Location,
    parent: [String; 4],
}

impl Target {
    async fn of(operation: Operation, call: &Call) -> Result<Self, Error> {
        let files = Files::new(call.backends.clone(), call.account.name.as_str());
        let (first, second) = (call.argument(0), call.argument(1));
        let of_task = matches!(
            operation,
            Operation::TaskFileList | Operation::TaskFileGet | Operation::TaskFileHead | Operation::TaskFileDelete
        );
        let (location, names) = if of_task {
            (files.locate(&first, &second).await?, ["jobs", "tasks"])
        } else {
            (Location::node(&first, &second), ["pools", "nodes"])
        };
        let parent = [names[0].to_owned(), first, names[1].to_owned(), second];
        Ok(Self { files, location, parent })
    }

    fn url(&self, call: &Call, path: &str) -> String {
        let parent: Vec<&str> = self.parent.iter().map(String::as_str).collect();
        call.view().file_url(&parent, path.trim_start_matches('/'))
    }
}

pub(super) async fn list(operation: Operation, call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let options = ListOptions {
        recursive: call.query.flag("recursive"),
        name_prefix: odata::name_prefix(&call.filter())?,
        page_size,
        page_token,
    };
    let target = Target::of(operation, call).await?;
    let (files, next_token) = target.files.list(&target.location, options).await?;
    let values = files.iter().map(|file| node_json::write_file(file, target.url(call, &file.name))).collect();
    Ok(odata::page(call, "files", values, &next_token))
}

pub(super) async fn head(operation: Operation, call: &Call) -> Result<Reply, Error> {
    let target = Target::of(operation, call).await?;
    let path = call.argument(2);
    let file = target.files.get(&target.location, &path).await?;
    check_dates(call, &file)?;
    let length = if file.is_directory { 0 } else { file.content_length };
    Ok(describe(Reply::empty(StatusCode::OK), &file, &target.url(call, &path))
        .header(CONTENT_LENGTH, &length.to_string()))
}

/// The bytes, or the range of `ocp-range`; 200 in both cases, as clients expect.
pub(super) async fn get(operation: Operation, call: &Call) -> Result<Reply, Error> {
    let range = call.header("ocp-range").map(parse_range).transpose()?;
    let target = Target::of(operation, call).await?;
    let path = call.argument(2);
    let mut stream = target.files.read(&target.location, &path, range, false).await?;
    let file = match stream.next().await.transpose()?.and_then(|message| message.part) {
        Some(Part::File(file)) => file,
        _ => return Err(Error::internal("pool-svc answered without the file's properties")),
    };
    if file.is_directory {
        return Err(Error::new(Kind::FailedPrecondition, "OperationInvalidForCurrentState", "this is a directory"));
    }
    check_dates(call, &file)?;
    let length = length_of(range, file.content_length)?;
    // What is appended from now on is for the next request: the length is said.
    let body = Body::from_stream(bytes(stream, length, call.place.clone()));
    Ok(describe(Reply::stream(body), &file, &target.url(call, &path)).header(CONTENT_LENGTH, &length.to_string()))
}

pub(super) async fn delete(operation: Operation, call: &Call) -> Result<Reply, Error> {
    let target = Target::of(operation, call).await?;
    let recursive = call.query.flag("recursive");
    target.files.delete(&target.location, &call.argument(2), recursive, String::new()).await?;
    Ok(Reply::empty(StatusCode::OK))
}

fn describe(reply: Reply, file: &FileEntry, url: &str) -> Reply {
    let is_directory = if file.is_directory { "True" } else { "False" };
    // No ocp-creation-time: Linux does not tell when a file was made.
    reply
        .version("", file.last_modified.as_ref())
        .header(CONTENT_TYPE, node_json::content_type(file))
        .header(IS_DIRECTORY, is_directory)
        .header(FILE_URL, &escape_whole(url))
        .header(FILE_MODE, &node_json::file_mode(file))
}

/// Files have dates but no versions.
fn check_dates(call: &Call, file: &FileEntry) -> Result<(), Error> {
    let Some(condition) = call.precondition()? else { return Ok(()) };
    let Some(modified) = file.last_modified.as_ref().map(|time| timestamp(time).truncate_to_second()) else {
        return Ok(());
    };
    let unmet = condition.if_modified_since.as_ref().is_some_and(|since| modified <= timestamp(since))
        || condition.if_unmodified_since.as_ref().is_some_and(|since| modified > timestamp(since));
    if unmet {
        return Err(Error::new(
            Kind::ConditionNotMet,
            "ConditionNotMet",
            "the file's date does not meet the condition",
        ));
    }
    Ok(())
}

fn invalid_range(text: &str) -> Error {
    Error::new(Kind::OutOfRange, "InvalidRange", format!("ocp-range {text:?} is no range of this file"))
}

/// `bytes=<start>-<end>`, both inclusive, the end optional.
fn parse_range(text: &str) -> Result<ByteRange, Error> {
    let read = || {
        let (start, end) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        let start: u64 = start.trim().parse().ok()?;
        let end = match end.trim() {
            "" => None,
            end => Some(end.parse::<u64>().ok()?),
        };
        end.is_none_or(|end| end >= start).then_some(ByteRange { start, end })
    };
    read().ok_or_else(|| invalid_range(text))
}

/// Bytes that a range has of a file of that size.
fn length_of(range: Option<ByteRange>, size: u64) -> Result<u64, Error> {
    let Some(range) = range else { return Ok(size) };
    if range.start >= size {
        return Err(invalid_range(&format!("bytes={}-", range.start)));
    }
    let last = range.end.map_or(size - 1, |end| end.min(size - 1));
    Ok(last - range.start + 1)
}

/// The data of a stream, at most `length` bytes; the account's place is taken
/// until the last of them.
fn bytes(
    stream: Streaming<ReadNodeFileResponse>,
    length: u64,
    place: Arc<OwnedSemaphorePermit>,
) -> impl Stream<Item = Result<Bytes, tonic::Status>> {
    futures::stream::unfold((stream, length, place), |(mut stream, left, place)| async move {
        if left == 0 {
            return None;
        }
        loop {
            match stream.next().await? {
                Ok(message) => {
                    let Some(Part::Data(mut data)) = message.part else { continue };
                    data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - data.len() as u64;
                    return Some((Ok(data), (stream, left, place)));
                }
                Err(status) => return Some((Err(status), (stream, 0, place))),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive() {
        let range = |text| parse_range(text).unwrap();
        assert_eq!(length_of(Some(range("bytes=0-4")), 11).unwrap(), 5);
        assert_eq!(length_of(Some(range("bytes=4-")), 11).unwrap(), 7);
        assert_eq!(length_of(Some(range("bytes=4-100")), 11).unwrap(), 7);
        assert_eq!(length_of(None, 11).unwrap(), 11);
        assert_eq!(length_of(Some(range("bytes=11-")), 11).unwrap_err().reason(), "InvalidRange");
        for bad in ["", "bytes=", "bytes=-5", "bytes=5-2", "items=0-1", "bytes=a-b"] {
            assert_eq!(parse_range(bad).unwrap_err().reason(), "InvalidRange", "{bad}");
        }
    }
}
