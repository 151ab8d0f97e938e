//! `kiln blob cp` and `kiln blob sync`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use futures::{StreamExt, stream};
use kiln_client::Client;
use kiln_client::blobs::{About, Place, Transfers};
use kiln_proto::storage::v1::{Blob, DeleteBlobRequest};
use tokio::io::AsyncWriteExt;

use super::carry::{Carrier, Compare, Item, Report};
use super::local::{self, MAX_FILES};
use super::place::{BlobPath, End};
use super::select::{self, Selection, Source, Target};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, table};
use crate::transfer::{self, request_id};

/// Blobs that are deleted at once.
const DELETIONS: usize = 8;

/// Arguments of `kiln blob cp`.
#[derive(Debug, clap::Args)]
pub struct CpArgs {
    /// Sources, then the target; - is standard input or output
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    paths: Vec<String>,
    /// All below directories and names
    #[arg(long, short)]
    recursive: bool,
    /// Copy also what is the same
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Content type of blobs that files become
    #[arg(long, default_value = "application/octet-stream", value_name = "TYPE")]
    content_type: String,
}

impl CpArgs {
    /// One file or blob, copied in any case.
    pub fn one(from: String, to: String, content_type: String) -> Self {
        Self { paths: vec![from, to], recursive: false, force: true, dry_run: false, content_type }
    }
}

/// Arguments of `kiln blob sync`.
#[derive(Debug, clap::Args)]
pub struct SyncArgs {
    /// Where it is
    source: String,
    /// Where it shall be
    target: String,
    /// Delete at the target what the source does not have
    #[arg(long)]
    delete: bool,
    /// Compare by length and time instead of length and MD5
    #[arg(long)]
    times: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Carries out `cp`.
///
/// # Errors
/// The first reason why nothing could begin, or [`Failure::Silent`] if copies failed.
pub async fn cp(client: &Client, format: Format, args: CpArgs) -> Outcome {
    let CpArgs { mut paths, recursive, force, dry_run, content_type } = args;
    let target = paths.pop().unwrap_or_default();
    let end = End::parse(&target)?;
    let sources = paths.iter().map(|path| End::parse(path)).collect::<Outcome<Vec<_>>>()?;
    let transfers = Transfers::new(client.clone());
    match (&sources[..], &end) {
        ([End::Standard], End::Blob(to)) if !to.name.is_empty() && !to.name.ends_with('/') => {
            let about = About { content_type, ..About::default() };
            let place = Place::new(&to.container, &to.name);
            let blob = transfers.upload_stream(tokio::io::stdin(), &place, &about, &|_| {}).await?;
            return Report { copied: 1, bytes: blob.content_length, ..Report::default() }.finish(format, false);
        }
        ([End::Blob(from)], End::Standard) => {
            return to_stdout(&transfers, &Place::new(&from.container, &from.name)).await;
        }
        (_, End::Standard) | ([End::Standard, ..], _) => {
            return Err(Failure::Usage("- goes with one named blob at the other end".to_owned()));
        }
        _ => {}
    }
    let mut selected = Selection { many: sources.len() > 1, ..Selection::default() };
    for source in &sources {
        let found = match source {
            End::Local(path) if matches!(end, End::Blob(_)) => find_files(path, recursive).await?,
            End::Blob(path) => select::blobs(client, path, recursive).await?,
            _ => return Err(Failure::Usage("one end has to be kiln:CONTAINER/...".to_owned())),
        };
        selected.many |= found.many;
        selected.sources.extend(found.sources);
        selected.refused.extend(found.refused);
    }
    let compare = if force { Compare::Never } else { Compare::Content };
    let carrier = Carrier { client: client.clone(), transfers, compare, content_type, dry_run, format };
    let ends_with_slash = target.ends_with('/');
    let (report, _) = copy(&carrier, selected, &end, ends_with_slash).await?;
    report.finish(format, dry_run)
}

/// Carries out `sync`.
///
/// # Errors
/// As [`cp`].
pub async fn sync(client: &Client, format: Format, args: SyncArgs) -> Outcome {
    let SyncArgs { source, target, delete, times, dry_run } = args;
    let (from, to) = (End::parse(&source)?, End::parse(&target)?);
    let selected = match (&from, &to) {
        (End::Local(path), End::Blob(_)) if path.is_dir() => find_files(path, true).await?,
        (End::Local(path), End::Blob(_)) => {
            return Err(Failure::Usage(format!("{} is not a directory", path.display())));
        }
        (End::Blob(path), End::Local(_) | End::Blob(_)) if !path.is_pattern() => {
            select::blobs(client, path, true).await?
        }
        _ => {
            return Err(Failure::Usage(
                "sync goes from a directory or prefix to another, one of them kiln:".to_owned(),
            ));
        }
    };
    let compare = if times { Compare::Times } else { Compare::Content };
    let carrier = Carrier {
        client: client.clone(),
        transfers: Transfers::new(client.clone()),
        compare,
        content_type: String::new(),
        dry_run,
        format,
    };
    let (mut report, wanted) = copy(&carrier, Selection { many: true, ..selected }, &to, true).await?;
    if delete && report.failed > 0 {
        eprintln!("nothing is deleted, because not all could be copied");
    } else if delete {
        match &to {
            End::Blob(path) => delete_blobs(&carrier, path, &wanted, &mut report).await?,
            End::Local(path) => delete_files(&carrier, path, &wanted, &mut report).await?,
            End::Standard => {}
        }
    }
    report.finish(format, dry_run)
}

async fn find_files(path: &Path, recursive: bool) -> Outcome<Selection> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || select::files(&path, recursive)).await.map_err(anyhow::Error::from)?
}

/// Copies what was selected; also gives the names below the target that belong there.
async fn copy(
    carrier: &Carrier,
    selected: Selection,
    to: &End,
    ends_with_slash: bool,
) -> Outcome<(Report, HashSet<String>)> {
    let Selection { sources, many, refused } = selected;
    let mut early = Report::default();
    for (name, why) in refused {
        early.fail(name, why);
    }
    let (mut items, mut wanted) = (Vec::new(), HashSet::new());
    for source in sources {
        wanted.insert(source.relative().to_owned());
        match target_of(&source, many, to, ends_with_slash) {
            Ok(target) => items.push(Item { source, target }),
            Err(failure) => early.fail(source.to_string(), failure.to_string()),
        }
    }
    let known = match to {
        End::Blob(path) if many => Some(blobs_below(carrier, path).await?),
        _ => None,
    };
    let mut report = carrier.carry(items, known.as_ref()).await;
    for (name, why) in early.failures {
        report.fail(name, why);
    }
    Ok((report, wanted))
}

fn target_of(source: &Source, many: bool, to: &End, ends_with_slash: bool) -> Outcome<Target> {
    let relative = source.relative();
    match to {
        End::Blob(path) => {
            let name = if many { path.below(relative) } else { path.of_single(relative) };
            Ok(Target::Blob(Place::new(&path.container, name)))
        }
        End::Local(path) if many || ends_with_slash || path.is_dir() => select::below(path, relative),
        End::Local(path) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            // With a directory in front of it, so that it is below one.
            let base = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
            let name = path.file_name().ok_or_else(|| Failure::Usage(format!("{} is no file", path.display())))?;
            Ok(Target::File { path: base.join(name), base })
        }
        End::Standard => Err(Failure::Usage("- takes one blob".to_owned())),
    }
}

async fn blobs_below(carrier: &Carrier, path: &BlobPath) -> Outcome<HashMap<String, Blob>> {
    let listed = transfer::list_blobs(&carrier.client, &path.container, &path.below(""), MAX_FILES).await?;
    Ok(listed.into_iter().map(|blob| (blob.name.clone(), blob)).collect())
}

async fn delete_blobs(carrier: &Carrier, path: &BlobPath, wanted: &HashSet<String>, report: &mut Report) -> Outcome {
    let prefix = path.below("");
    let there = blobs_below(carrier, path).await?;
    let extra: Vec<_> = there.into_keys().filter(|name| !wanted.contains(&name[prefix.len()..])).collect();
    let places = extra.into_iter().map(|name| Place::new(&path.container, name));
    let (deleted, failed) = delete_all(&carrier.client, places.collect(), carrier.dry_run, carrier.format).await;
    report.deleted += deleted;
    for (place, why) in failed {
        report.fail(format!("kiln:{place}"), why);
    }
    Ok(())
}

/// Deletes blobs, several at once, and says each; gives how many, and what failed.
pub async fn delete_all(
    client: &Client,
    places: Vec<Place>,
    dry_run: bool,
    format: Format,
) -> (usize, Vec<(Place, String)>) {
    let mut deletions = stream::iter(places)
        .map(|place| async move {
            if dry_run {
                return (place, Ok(()));
            }
            let deleted = transfer::retry(|| {
                let mut storage = client.storage();
                let (container, name) = (place.container.clone(), place.name.clone());
                let request = DeleteBlobRequest { request_id: request_id(), container, name, precondition: None };
                async move { Ok(storage.delete_blob(request).await.map(drop)?) }
            })
            .await;
            (place, deleted)
        })
        .buffer_unordered(DELETIONS);
    let (mut count, mut failed) = (0, Vec::new());
    while let Some((place, result)) = deletions.next().await {
        match result {
            Ok(()) => {
                count += 1;
                let words = if dry_run { "delete kiln:" } else { "deleted kiln:" };
                output::done(format, || table::printable(&format!("{words}{place}")).into_owned());
            }
            Err(failure) => failed.push((place, failure.to_string())),
        }
    }
    (count, failed)
}

async fn delete_files(carrier: &Carrier, path: &Path, wanted: &HashSet<String>, report: &mut Report) -> Outcome {
    let directory = path.to_owned();
    if !directory.is_dir() {
        return Ok(());
    }
    let found = tokio::task::spawn_blocking(move || local::walk(&directory)).await.map_err(anyhow::Error::from)??;
    for file in found.files.into_iter().filter(|file| !wanted.contains(&file.relative)) {
        let shown = file.path.display().to_string();
        let removed = if carrier.dry_run { Ok(()) } else { tokio::fs::remove_file(&file.path).await };
        match removed {
            Ok(()) => {
                report.deleted += 1;
                let words = if carrier.dry_run { "delete" } else { "deleted" };
                output::done(carrier.format, || table::printable(&format!("{words} {shown}")).into_owned());
            }
            Err(error) => report.fail(shown, error.to_string()),
        }
    }
    Ok(())
}

/// A reader that has enough (`| head`) is no error.
///
/// # Errors
/// What the service said, or if stdout cannot be written.
pub async fn to_stdout(transfers: &Transfers, place: &Place) -> Outcome {
    let blob = transfers.blob(place).await?;
    let (mut reader, mut stdout) = (transfers.read(&blob), tokio::io::stdout());
    while let Some(piece) = reader.next().await? {
        match stdout.write_all(&piece).await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(stdout.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::super::local::LocalFile;
    use super::*;

    #[test]
    fn where_things_go() {
        let file = |relative: &str| {
            let modified = kiln_time::Timestamp::default();
            Source::File(LocalFile { path: relative.into(), relative: relative.into(), length: 0, modified })
        };
        let blob = |relative: &str| Source::Blob { blob: Box::default(), relative: relative.into() };
        let target = |source: &Source, many, to: &str| {
            target_of(source, many, &End::parse(to).unwrap(), to.ends_with('/')).map(|target| target.to_string()).ok()
        };
        for (source, many, to, expected) in [
            (file("a"), false, "kiln:c", Some("kiln:c/a")),
            (file("a"), false, "kiln:c/b", Some("kiln:c/b")),
            (file("a"), false, "kiln:c/b/", Some("kiln:c/b/a")),
            (file("d/a"), true, "kiln:c/b", Some("kiln:c/b/d/a")),
            (blob("a"), false, "/none/x", Some("/none/x")),
            (blob("a"), false, "/none/x/", Some("/none/x/a")),
            (blob("a"), false, "x", Some("./x")),
            (blob("a"), false, "/", Some("/a")),
            (blob("d/a"), true, "/none", Some("/none/d/a")),
            (blob("../a"), true, "/none", None),
            (blob("d/../../a"), true, "/none", None),
            (blob("/etc/passwd"), true, "/none", None),
            (blob("d//a"), true, "/none", None),
            (blob("./a"), true, "/none", None),
            (blob("d/"), true, "/none", None),
            (blob(""), true, "/none", None),
        ] {
            assert_eq!(target(&source, many, to).as_deref(), expected, "{source:?} {to}");
        }
    }
}
