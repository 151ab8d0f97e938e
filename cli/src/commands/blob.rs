//! `kiln blob ...`

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use kiln_client::Client;
use kiln_proto::storage::v1::{
    CreateContainerRequest, CreateSasRequest, DeleteContainerRequest, GetBlobRequest, ListContainersRequest,
    PublicAccess,
};
use kiln_time::Timestamp;

use super::{pages, present};
use crate::blob::cp::{self, CpArgs, SyncArgs};
use crate::blob::list;
use crate::blob::place::BlobPath;
use crate::blob::remove::{self, RmArgs};
use crate::blob::sas::{self, SasArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, text};
use crate::transfer::request_id;

/// Subcommands. Blobs are named `CONTAINER/NAME`.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// List containers, or the blobs of one
    Ls {
        /// CONTAINER or CONTAINER/PREFIX; without it containers are listed
        place: Option<String>,
        /// All blobs, not level by level
        #[arg(long, short)]
        recursive: bool,
        /// With MD5 and ETag
        #[arg(long, short)]
        long: bool,
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show the properties of a blob
    Show {
        /// CONTAINER/NAME
        blob: String,
    },
    /// Copy files to blobs, back, or from blob to blob
    ///
    /// Blobs are kiln:CONTAINER/NAME; with --recursive all that lies below a directory or name is
    /// copied to below the target. Patterns (* ? [..] **) may be in quotes. What is the same already, by length and
    /// MD5, is left out: a copy that was broken off goes on when it is given again.
    Cp(CpArgs),
    /// Make a directory and a container the same, one way
    ///
    /// SOURCE and TARGET are directories or kiln:CONTAINER/PREFIX.
    Sync(SyncArgs),
    /// Write a local file into a blob; a short form of cp
    Put {
        /// The file; - is standard input
        file: PathBuf,
        /// CONTAINER/NAME, or CONTAINER/ to keep the file's name
        blob: String,
        /// Its content type
        #[arg(long, default_value = "application/octet-stream", value_name = "TYPE")]
        content_type: String,
    },
    /// Read a blob into a local file; a short form of cp
    Get {
        /// CONTAINER/NAME
        blob: String,
        /// The file or an existing directory; without it standard output
        file: Option<PathBuf>,
    },
    /// Delete blobs: named ones, those of a pattern, or all below a name
    Rm(RmArgs),
    /// Make a container
    Mkcontainer {
        /// Its name: 3 to 63 of a-z 0-9 and single hyphens
        name: String,
    },
    /// Delete a container and its blobs
    Rmcontainer {
        /// Its name
        name: String,
    },
    /// Sign access to containers or blobs for somebody without the key
    Sas(SasArgs),
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said, or if a local file cannot be used.
pub async fn run(client: &Client, format: Format, command: BlobCommand) -> Outcome {
    let mut storage = client.storage();
    match command {
        BlobCommand::Ls { place: None, limit, .. } => list_containers(client, format, limit).await,
        BlobCommand::Ls { place: Some(place), recursive, long, limit } => {
            let options = list::Options { recursive, long, limit: limit as usize };
            list::blobs(client, format, &BlobPath::parse(&place)?, options).await
        }
        BlobCommand::Cp(args) => cp::cp(client, format, args).await,
        BlobCommand::Sync(args) => cp::sync(client, format, args).await,
        BlobCommand::Rm(args) => remove::rm(client, format, args).await,
        BlobCommand::Sas(args) => sas::sas(client, format, args).await,
        BlobCommand::Show { blob } => {
            let (container, name) = split(&blob)?;
            let request = GetBlobRequest { container, name };
            let blob = present(storage.get_blob(request).await?.into_inner().blob, "blob")?;
            output::show(format, "kiln.storage.v1.Blob", &blob, |blob| {
                vec![
                    ("container", blob.container.clone()),
                    ("name", blob.name.clone()),
                    ("size", format!("{} ({} bytes)", text::bytes(blob.content_length), blob.content_length)),
                    ("type", blob.content_type.clone()),
                    ("etag", blob.etag.clone()),
                    ("created", text::time(blob.created.as_ref())),
                    ("modified", text::time(blob.last_modified.as_ref())),
                ]
            })
        }
        BlobCommand::Put { file, blob, content_type } => {
            cp::cp(client, format, CpArgs::one(local(&file), remote(&blob), content_type)).await
        }
        BlobCommand::Get { blob, file } => {
            let file = file.map_or_else(|| "-".to_owned(), |file| local(&file));
            cp::cp(client, format, CpArgs::one(remote(&blob), file, String::new())).await
        }
        BlobCommand::Mkcontainer { name } => {
            storage.create_container(create_request(&name)).await?;
            output::done(format, || format!("container {name} is there"));
            Ok(())
        }
        BlobCommand::Rmcontainer { name } => {
            let request = DeleteContainerRequest { request_id: request_id(), name: name.clone() };
            storage.delete_container(request).await?;
            output::done(format, || format!("container {name} is deleted"));
            Ok(())
        }
    }
}

/// As `cp` takes a path of this machine, whatever it begins with.
fn local(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with("kiln:") { format!("./{text}") } else { text.into_owned() }
}

fn remote(blob: &str) -> String {
    if blob.starts_with("kiln:") { blob.to_owned() } else { format!("kiln:{blob}") }
}

/// A private container.
pub fn create_request(name: &str) -> CreateContainerRequest {
    CreateContainerRequest {
        request_id: request_id(),
        name: name.to_owned(),
        metadata: HashMap::new(),
        public_access: PublicAccess::Unspecified.into(),
    }
}

/// Access that begins a little in the past, since clocks differ.
pub fn sas_request(container: &str, blob: &str, permissions: &str, valid: Duration) -> CreateSasRequest {
    let instant = |time: Timestamp| Some(kiln_proto::time::timestamp(time.as_micros()));
    let now = Timestamp::now();
    CreateSasRequest {
        container: container.to_owned(),
        blob: blob.to_owned(),
        permissions: permissions.to_owned(),
        starts: instant(now.minus(Duration::from_secs(300))),
        expires: instant(now.plus(valid)),
    }
}

async fn list_containers(client: &Client, format: Format, limit: u32) -> Outcome {
    let containers = pages(limit, |page_size, page_token| {
        let mut storage = client.storage();
        let request = ListContainersRequest { prefix: String::new(), page_size, page_token };
        async move {
            let page = storage.list_containers(request).await?.into_inner();
            Ok((page.containers, page.next_page_token))
        }
    })
    .await?;
    output::list(format, "kiln.storage.v1.Container", &containers, &["name", "modified"], |container| {
        vec![container.name.clone(), text::time(container.last_modified.as_ref())]
    })
}

fn split(blob: &str) -> Outcome<(String, String)> {
    match blob.split_once('/') {
        Some((container, name)) if !container.is_empty() && !name.is_empty() => {
            Ok((container.to_owned(), name.to_owned()))
        }
        _ => Err(Failure::Usage(format!("{blob:?} is not CONTAINER/NAME"))),
    }
}
