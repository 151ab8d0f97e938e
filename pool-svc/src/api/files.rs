//! Calls about files of nodes: relayed to the agent, which is the only one that
//! can read them.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use kiln_error::{Error, Kind};
use kiln_grpc::{Caller, page};
use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::file_request::Operation;
use kiln_proto::pool::v1::{self as wire, read_node_file_response};
use tonic::{Request, Status};

use crate::api::{convert, validate};
use crate::core::Core;
use crate::domain::Refused;
use crate::transfers::Transfer;

/// Bytes of a name's beginning: as many as a path may have.
const MAX_PREFIX: usize = 4096;

/// What [`read`] answers with.
pub type ReadStream = Pin<Box<dyn Stream<Item = Result<wire::ReadNodeFileResponse, Status>> + Send>>;

/// Asks a node, after making sure that it exists and can be reached.
async fn ask(
    core: &Core,
    caller: &Caller,
    pool: &str,
    node: &str,
    path: &str,
    operation: Operation,
) -> Result<Transfer, Error> {
    let name = convert::pool_name(caller.service_account()?, "pool_id", pool)?;
    let id = convert::node_id("node_id", node)?;
    let node = name.node(&id);
    if let Some(transfer) = core.transfers.ask(&node, path, operation)? {
        return Ok(transfer);
    }
    // Not connected: the record says why.
    let (_, nodes) = core.pool_and_nodes(&name, std::slice::from_ref(&id)).await?;
    match nodes.into_iter().next() {
        Some(node) => Err(Refused::NodeUnreachable { node: node.id, state: node.state }.into()),
        None => Err(Refused::NodeNotFound { pool: name.pool, node: id }.into()),
    }
}

fn unexpected() -> Error {
    Error::internal("the node answered something else than was asked")
}

pub async fn list(
    core: &Core,
    request: Request<wire::ListNodeFilesRequest>,
) -> Result<wire::ListNodeFilesResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let path = validate::node_path("directory", &message.directory)?;
    let size = page::size(message.page_size, 1000, 1000)?;
    if message.name_prefix.len() > MAX_PREFIX {
        let why = format!("has {} bytes; at most {MAX_PREFIX} are allowed", message.name_prefix.len());
        return Err(Error::invalid_property("name_prefix", "", why));
    }
    let operation = Operation::List(wire::ListFiles {
        recursive: message.recursive,
        name_prefix: message.name_prefix.clone(),
        after: page::last_key(&message.page_token)?.unwrap_or_default(),
        limit: i32::try_from(size).unwrap_or(i32::MAX),
    });
    let mut transfer = ask(core, &caller, &message.pool_id, &message.node_id, &path, operation).await?;
    // Names may be long and messages may not: a page comes in parts, an empty one in none.
    let (mut files, mut more) = (Vec::new(), false);
    while let Some(part) = transfer.next(false).await? {
        let Part::List(list) = part else { return Err(unexpected()) };
        files.extend(list.files);
        more = list.more;
        if files.len() > size as usize {
            return Err(unexpected());
        }
    }
    let next_page_token = match files.last() {
        Some(last) if more => page::token(&last.name),
        _ => String::new(),
    };
    Ok(wire::ListNodeFilesResponse { files, next_page_token })
}

pub async fn get(core: &Core, request: Request<wire::GetNodeFileRequest>) -> Result<wire::GetNodeFileResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let path = file_path(&message.path)?;
    let operation = Operation::Stat(wire::StatFile {});
    let mut transfer = ask(core, &caller, &message.pool_id, &message.node_id, &path, operation).await?;
    let Some(Part::File(file)) = transfer.next(false).await? else { return Err(unexpected()) };
    transfer.finish();
    Ok(wire::GetNodeFileResponse { file: Some(file) })
}

pub async fn delete(
    core: &Core,
    request: Request<wire::DeleteNodeFileRequest>,
) -> Result<wire::DeleteNodeFileResponse, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let path = file_path(&message.path)?;
    let operation = Operation::Remove(wire::RemoveFile { recursive: message.recursive });
    let mut transfer = ask(core, &caller, &message.pool_id, &message.node_id, &path, operation).await?;
    match transfer.next(false).await? {
        None => Ok(wire::DeleteNodeFileResponse {}),
        Some(_) => Err(unexpected()),
    }
}

/// The path of one file; the root itself is none.
fn file_path(path: &str) -> Result<String, Error> {
    if path.is_empty() {
        return Err(Error::missing_property("path"));
    }
    let path = validate::node_path("path", path)?;
    if path.is_empty() {
        return Err(Error::invalid_property("path", ".", "must name a file below the node root"));
    }
    Ok(path)
}

/// The file's properties, then its bytes as they come. Errors before the first
/// part are the call's own; dropping the stream stops the agent.
pub async fn read(core: &Core, request: Request<wire::ReadNodeFileRequest>) -> Result<ReadStream, Error> {
    let caller = Caller::of(&request)?;
    let message = request.get_ref();
    let path = file_path(&message.path)?;
    if let Some(range) = &message.range
        && range.end.is_some_and(|end| end < range.start)
    {
        return Err(Error::new(Kind::OutOfRange, "InvalidRange", "the range ends before it starts"));
    }
    let follow = message.follow;
    let operation = Operation::Read(wire::ReadFile { range: message.range, follow });
    let mut transfer = ask(core, &caller, &message.pool_id, &message.node_id, &path, operation).await?;
    let Some(Part::File(file)) = transfer.next(false).await? else { return Err(unexpected()) };
    let first = wire::ReadNodeFileResponse { part: Some(read_node_file_response::Part::File(file)) };
    let rest = futures::stream::unfold(Some(transfer), move |transfer| async move {
        let mut transfer = transfer?;
        match transfer.next(follow).await {
            Ok(Some(Part::Data(data))) => {
                let part = Some(read_node_file_response::Part::Data(data));
                Some((Ok(wire::ReadNodeFileResponse { part }), Some(transfer)))
            }
            Ok(None) => None,
            Ok(Some(_)) => Some((Err(Status::from(unexpected())), None)),
            Err(error) => Some((Err(Status::from(error)), None)),
        }
    });
    Ok(Box::pin(futures::stream::iter([Ok(first)]).chain(rest)))
}
