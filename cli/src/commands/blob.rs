//! `kiln blob ...`

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use kiln_client::Client;
use kiln_proto::storage::v1::{
    CreateContainerRequest, CreateSasRequest, DeleteBlobRequest, DeleteContainerRequest, GetBlobRequest,
    ListContainersRequest, PublicAccess,
};
use kiln_time::Timestamp;

use super::{pages, parse_duration, present};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, text};
use crate::transfer::{self, request_id};

/// Subcommands. Blobs are named `CONTAINER/NAME`.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// List containers, or the blobs of one
    Ls {
        /// CONTAINER or CONTAINER/PREFIX; without it containers are listed
        place: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show the properties of a blob
    Show {
        /// CONTAINER/NAME
        blob: String,
    },
    /// Write a local file into a blob
    Put {
        /// The file; - is standard input
        file: PathBuf,
        /// CONTAINER/NAME, or CONTAINER/ to keep the file's name
        blob: String,
        /// Its content type
        #[arg(long, default_value = "application/octet-stream", value_name = "TYPE")]
        content_type: String,
    },
    /// Read a blob into a local file
    Get {
        /// CONTAINER/NAME
        blob: String,
        /// The file or an existing directory; without it standard output
        file: Option<PathBuf>,
    },
    /// Delete a blob
    Rm {
        /// CONTAINER/NAME
        blob: String,
    },
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
    /// Sign access to a container or a blob for somebody without the key
    Sas {
        /// CONTAINER or CONTAINER/NAME
        place: String,
        /// Letters: r read, a add, c create, w write, d delete, l list
        #[arg(long, default_value = "r")]
        permissions: String,
        /// How long it is valid
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        expires: Duration,
    },
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said, or if a local file cannot be used.
pub async fn run(client: &Client, format: Format, command: BlobCommand) -> Outcome {
    let mut storage = client.storage();
    match command {
        BlobCommand::Ls { place: None, limit } => list_containers(client, format, limit).await,
        BlobCommand::Ls { place: Some(place), limit } => {
            let (container, prefix) = place.split_once('/').unwrap_or((&place, ""));
            let blobs = transfer::list_blobs(client, container, prefix, limit as usize).await?;
            let header = ["name", "bytes", "modified", "type"];
            output::list(format, "kiln.storage.v1.Blob", &blobs, &header, |blob| {
                vec![
                    blob.name.clone(),
                    blob.content_length.to_string(),
                    text::time(blob.last_modified.as_ref()),
                    blob.content_type.clone(),
                ]
            })
        }
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
        BlobCommand::Put { file, blob, content_type } => put(client, format, &file, &blob, &content_type).await,
        BlobCommand::Get { blob, file } => get(client, format, &blob, file).await,
        BlobCommand::Rm { blob } => {
            let (container, name) = split(&blob)?;
            let request = DeleteBlobRequest { request_id: request_id(), container, name, precondition: None };
            storage.delete_blob(request).await?;
            output::done(format, || format!("{blob} is deleted"));
            Ok(())
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
        BlobCommand::Sas { place, permissions, expires } => {
            let (container, blob) = place.split_once('/').unwrap_or((&place, ""));
            let request = sas_request(container, blob, &permissions, expires);
            let signed = storage.create_sas(request).await?.into_inner();
            output::show(format, "kiln.storage.v1.CreateSasResponse", &signed, |signed| {
                vec![("sas", signed.sas.clone()), ("url", signed.url.clone())]
            })
        }
    }
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

async fn put(client: &Client, format: Format, file: &Path, blob: &str, content_type: &str) -> Outcome {
    let mut target = blob.to_owned();
    if blob.ends_with('/') {
        target.push_str(&file.file_name().context("the file has no name")?.to_string_lossy());
    }
    let (container, name) = split(&target)?;
    let written = if file == Path::new("-") {
        transfer::upload_from(client, tokio::io::stdin(), &container, &name, content_type, &|_| {}).await?
    } else {
        transfer::upload(client, file, &container, &name, content_type, |_| {}).await?
    };
    output::done(format, || format!("{target}: {}", text::bytes(written.content_length)));
    Ok(())
}

async fn get(client: &Client, format: Format, blob: &str, file: Option<PathBuf>) -> Outcome {
    let (container, name) = split(blob)?;
    let Some(mut file) = file else {
        let mut stdout = tokio::io::stdout();
        transfer::download_into(client, &container, &name, &mut stdout, &|_| {}).await?;
        return Ok(tokio::io::AsyncWriteExt::flush(&mut stdout).await?);
    };
    if file.is_dir() {
        file = transfer::local_path(&file, name.rsplit('/').next().unwrap_or(&name))?;
    }
    let length = transfer::download(client, &container, &name, &file, |_| {}).await?;
    output::done(format, || format!("{}: {}", file.display(), text::bytes(length)));
    Ok(())
}
