//! Carries copies out: several at once, without those whose target is the same already, so
//! a command that was broken off goes on where it was when it is given again.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use futures::StreamExt;
use kiln_client::Client;
use kiln_client::blobs::{About, Place, Transfers, file_md5};
use kiln_proto::storage::v1::{Blob, GetBlobRequest};
use kiln_time::Timestamp;

use super::local;
use super::select::{Source, Target};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, json, table, text};
use crate::run::progress::Progress;

/// Files that are copied at once.
const PARALLEL: usize = 8;
/// Failures that are told one by one.
const MAX_TOLD: usize = 1000;

/// One copy.
#[derive(Debug, Clone)]
pub struct Item {
    /// What.
    pub source: Source,
    /// Where to.
    pub target: Target,
}

/// When a target that exists is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// By length and MD5.
    Content,
    /// By length, and if the target is not older.
    Times,
    /// Never: all is copied.
    Never,
}

/// How to copy.
#[derive(Debug)]
pub struct Carrier {
    /// Asks about blobs.
    pub client: Client,
    /// Moves bytes.
    pub transfers: Transfers,
    /// What is left out.
    pub compare: Compare,
    /// Type of new blobs.
    pub content_type: String,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Form of what is said.
    pub format: Format,
}

/// What was done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Copies.
    pub copied: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Targets that were the same already.
    pub same: usize,
    /// Targets that have no source any more.
    pub deleted: usize,
    /// Names, and why.
    pub failures: Vec<(String, String)>,
    /// All of them.
    pub failed: usize,
}

impl Report {
    /// Takes a failure down.
    pub fn fail(&mut self, name: String, why: String) {
        self.failed += 1;
        if self.failures.len() < MAX_TOLD {
            self.failures.push((name, why));
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// [`Failure::Silent`] if anything failed; it was said.
    pub fn finish(self, format: Format, dry_run: bool) -> Outcome {
        match format {
            Format::Json => {
                let failures: Vec<_> =
                    self.failures.iter().map(|(name, why)| serde_json::json!({"name": name, "error": why})).collect();
                let value = serde_json::json!({
                    "copied": self.copied, "bytes": self.bytes, "same": self.same, "deleted": self.deleted,
                    "failed": self.failed, "failures": failures, "dryRun": dry_run,
                });
                output::line(format_args!("{}", json::pretty(&value)));
            }
            Format::Table => {
                for (name, why) in &self.failures {
                    eprintln!("error: {}: {}", table::printable(name), table::printable(why));
                }
                let mut words = vec![format!("{} copied ({})", self.copied, text::bytes(self.bytes))];
                let more = [(self.same, "the same"), (self.deleted, "deleted"), (self.failed, "failed")];
                words
                    .extend(more.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
                let note = if dry_run { " (nothing was done)" } else { "" };
                output::line(format_args!("{}{note}", words.join(", ")));
            }
        }
        if self.failed > 0 { Err(Failure::Silent(1)) } else { Ok(()) }
    }
}

impl Carrier {
    /// Copies all items; `known` are the blobs that exist where they go, if they were listed.
    pub async fn carry(&self, items: Vec<Item>, known: Option<&HashMap<String, Blob>>) -> Report {
        let total = items.iter().map(|item| item.source.length()).sum();
        let progress = Progress::bars(self.format == Format::Json || self.dry_run);
        let phase = progress.transfer("copy", total);
        let mut report = Report::default();
        let mut done = futures::stream::iter(items)
            .map(|item| {
                let counter = phase.counter();
                async move { (self.one(&item, known, &counter).await, item) }
            })
            .buffer_unordered(PARALLEL);
        while let Some((result, item)) = done.next().await {
            match result {
                Ok(true) => {
                    report.copied += 1;
                    report.bytes += item.source.length();
                    if self.dry_run && self.format == Format::Table {
                        let words = format!("copy {} to {}", item.source, item.target);
                        output::line(format_args!("{}", table::printable(&words)));
                    }
                }
                Ok(false) => report.same += 1,
                Err(failure) => report.fail(item.source.to_string(), failure.to_string()),
            }
        }
        progress.clear();
        report
    }

    /// Whether it had to be copied.
    async fn one(
        &self,
        item: &Item,
        known: Option<&HashMap<String, Blob>>,
        counter: &(dyn Fn(u64) + Sync),
    ) -> Outcome<bool> {
        let same = self.compare != Compare::Never && self.is_same(item, known).await?;
        if same {
            counter(item.source.length());
            return Ok(false);
        }
        if self.dry_run {
            return Ok(true);
        }
        match (&item.source, &item.target) {
            (Source::File(file), Target::Blob(place)) => {
                let about = About { content_type: self.content_type.clone(), ..About::default() };
                self.transfers.upload(&file.path, place, &about, counter).await?;
            }
            (Source::Blob { blob, .. }, Target::Blob(place)) => {
                self.transfers.copy(blob, place, counter).await?;
            }
            (Source::Blob { blob, .. }, Target::File { base, path }) => {
                let (base, made) = (base.clone(), path.clone());
                blocking(move || local::make_parents(&base, &made)).await?;
                let place = Place::new(&blob.container, &blob.name);
                self.transfers.download(&place, path, counter).await?;
            }
            (Source::File(_), Target::File { .. }) => {
                return Err(Failure::Usage("one end has to be kiln:CONTAINER/...".to_owned()));
            }
        }
        Ok(true)
    }

    async fn is_same(&self, item: &Item, known: Option<&HashMap<String, Blob>>) -> Outcome<bool> {
        match (&item.source, &item.target) {
            (Source::File(file), Target::Blob(place)) => {
                let Some(blob) = self.existing(place, known).await? else { return Ok(false) };
                match self.compare {
                    _ if blob.content_length != file.length => Ok(false),
                    Compare::Times => Ok(modified(&blob) >= file.modified),
                    _ => has_md5(&file.path, &blob).await,
                }
            }
            (Source::Blob { blob, .. }, Target::Blob(place)) => {
                let Some(there) = self.existing(place, known).await? else { return Ok(false) };
                let length = there.content_length == blob.content_length;
                Ok(length
                    && match self.compare {
                        Compare::Times => modified(&there) >= modified(blob),
                        _ => !there.content_md5.is_empty() && there.content_md5 == blob.content_md5,
                    })
            }
            (Source::Blob { blob, .. }, Target::File { path, .. }) => {
                let there = path.clone();
                // A link is replaced by what should be there, not followed.
                let found = blocking(move || match std::fs::symlink_metadata(&there) {
                    Ok(metadata) if metadata.is_file() => local::file(&there).map(Some),
                    Ok(_) => Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                })
                .await?;
                match (found, self.compare) {
                    (Some(file), _) if file.length != blob.content_length => Ok(false),
                    (Some(file), Compare::Times) => Ok(file.modified >= modified(blob)),
                    (Some(_), _) => has_md5(path, blob).await,
                    (None, _) => Ok(false),
                }
            }
            (Source::File(_), Target::File { .. }) => Ok(false),
        }
    }

    async fn existing(&self, place: &Place, known: Option<&HashMap<String, Blob>>) -> Outcome<Option<Blob>> {
        if let Some(known) = known {
            return Ok(known.get(&place.name).cloned());
        }
        let request = GetBlobRequest { container: place.container.clone(), name: place.name.clone() };
        match self.client.storage().get_blob(request).await {
            Ok(found) => Ok(found.into_inner().blob),
            // If the container is missing the copy itself says so.
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }
}

async fn has_md5(path: &Path, blob: &Blob) -> Outcome<bool> {
    if blob.content_md5.is_empty() {
        return Ok(false);
    }
    let path = path.to_owned();
    let found = blocking(move || file_md5(&path)).await?;
    Ok(blob.content_md5 == found)
}

fn modified(blob: &Blob) -> Timestamp {
    Timestamp::from_micros(blob.last_modified.as_ref().map(kiln_proto::time::micros).unwrap_or_default())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Outcome<T> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??)
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.path.display()),
            Self::Blob { blob, .. } => write!(f, "kiln:{}/{}", blob.container, blob.name),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "{}", path.display()),
            Self::Blob(place) => write!(f, "kiln:{place}"),
        }
    }
}
