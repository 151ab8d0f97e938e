//! The files and blobs that a command line means, and where each goes.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use kiln_client::Client;
use kiln_client::blobs::Place;
use kiln_proto::storage::v1::{Blob, GetBlobRequest};

use super::local::{self, LocalFile, MAX_FILES};
use super::place::{BlobPath, is_pattern};
use crate::commands::present;
use crate::failure::{Failure, Outcome};
use crate::transfer;

/// `*` ends at a slash, `**` does not.
const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// What is copied.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file of this machine.
    File(LocalFile),
    /// A version of a blob, and its name from where the search began.
    Blob {
        /// As it was when it was found.
        blob: Box<Blob>,
        /// With slashes.
        relative: String,
    },
}

impl Source {
    /// Its name from where the search began.
    pub fn relative(&self) -> &str {
        match self {
            Self::File(file) => &file.relative,
            Self::Blob { relative, .. } => relative,
        }
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::File(file) => file.length,
            Self::Blob { blob, .. } => blob.content_length,
        }
    }
}

/// Where something goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file at or below a directory that it must not leave.
    File {
        /// The directory.
        base: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// A blob.
    Blob(Place),
}

/// What was found, and what will not be copied.
#[derive(Debug, Default)]
pub struct Selection {
    /// In order.
    pub sources: Vec<Source>,
    /// It is more than one thing by its nature, even if it is one by chance.
    pub many: bool,
    /// Names and why they were left out; these are failures.
    pub refused: Vec<(String, String)>,
}

/// Local files: one, all below a directory, or those that a pattern means.
///
/// # Errors
/// There are none, or they cannot be read.
pub fn files(path: &Path, recursive: bool) -> Outcome<Selection> {
    let failed = |path: &Path, error: std::io::Error| Failure::Other(anyhow::anyhow!("{}: {error}", path.display()));
    if recursive && path.is_dir() {
        let found = local::walk(path).map_err(|error| failed(path, error))?;
        for path in &found.skipped {
            eprintln!("{}: neither a file nor a directory; left out", path.display());
        }
        let refused =
            found.unnameable.iter().map(|path| (path.display().to_string(), "its name is no text".to_owned()));
        let refused = refused.collect();
        return Ok(Selection { sources: found.files.into_iter().map(Source::File).collect(), many: true, refused });
    }
    let text = path.to_str().filter(|text| is_pattern(text) && std::fs::symlink_metadata(path).is_err());
    let Some(pattern) = text else {
        let file = local::file(path).map_err(|error| failed(path, error))?;
        return Ok(Selection { sources: vec![Source::File(file)], ..Selection::default() });
    };
    let matches = glob::glob_with(pattern, MATCHING).map_err(|error| Failure::Usage(format!("{pattern}: {error}")))?;
    let mut selection = Selection { many: true, ..Selection::default() };
    for path in matches.take(MAX_FILES) {
        let path = path.map_err(|error| Failure::Other(error.into()))?;
        if path.is_dir() && !recursive {
            continue;
        }
        let found = files(&path, recursive)?;
        selection.sources.extend(found.sources);
        selection.refused.extend(found.refused);
    }
    if selection.sources.is_empty() {
        return Err(Failure::Other(anyhow::anyhow!("no file matches {pattern}")));
    }
    Ok(selection)
}

/// Blobs: one, all below a name, or those that a pattern means.
///
/// # Errors
/// There are none (but a container may be empty), or what the service said.
pub async fn blobs(client: &Client, path: &BlobPath, recursive: bool) -> Outcome<Selection> {
    let (prefix, pattern) = if path.is_pattern() {
        let pattern = Pattern::new(&path.name).map_err(|error| Failure::Usage(format!("{path}: {error}")))?;
        (path.fixed().to_owned(), Some(pattern))
    } else if recursive {
        (path.below(""), None)
    } else {
        if path.name.is_empty() {
            return Err(Failure::Usage(format!("{path} is a container; add --recursive, or name a blob")));
        }
        let request = GetBlobRequest { container: path.container.clone(), name: path.name.clone() };
        let blob = present(client.storage().get_blob(request).await?.into_inner().blob, "blob")?;
        let relative = blob.name.rsplit('/').next().unwrap_or_default().to_owned();
        let sources = vec![Source::Blob { blob: Box::new(blob), relative }];
        return Ok(Selection { sources, ..Selection::default() });
    };
    let listed = transfer::list_blobs(client, &path.container, &prefix, MAX_FILES).await?;
    let base = match &pattern {
        Some(_) => prefix.rfind('/').map_or(0, |slash| slash + 1),
        None => prefix.len(),
    };
    let sources: Vec<_> = listed
        .into_iter()
        .filter(|blob| pattern.as_ref().is_none_or(|pattern| pattern.matches_with(&blob.name, MATCHING)))
        .map(|blob| Source::Blob { relative: blob.name[base..].to_owned(), blob: Box::new(blob) })
        .collect();
    if sources.is_empty() && pattern.is_some() {
        return Err(Failure::Other(anyhow::anyhow!("no blob matches {path}")));
    }
    Ok(Selection { sources, many: true, refused: Vec::new() })
}

/// Where a blob of this name goes below `directory`.
///
/// # Errors
/// The name is no path below a directory.
pub fn below(directory: &Path, relative: &str) -> Outcome<Target> {
    let path = transfer::local_path(directory, relative)?;
    Ok(Target::File { base: directory.to_owned(), path })
}
