//! Entries of directories.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_proto::common::v1::FileEntry;
use kiln_proto::pool::v1::ListFiles;

use super::FileFailure;
use super::resolve::resolve;

const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
/// A search that sees more entries than this is given up.
const MAX_VISITED: usize = 2_000_000;

/// Entries below `path` in byte order of their names (relative to `path`), and
/// whether there are more. Blocks.
///
/// # Errors
/// As [`resolve`].
pub fn list(root: &Path, path: &str, options: &ListFiles) -> Result<(Vec<FileEntry>, bool), FileFailure> {
    let dir = resolve(root, path)?;
    if !dir.is_dir() {
        return Err(FileFailure::new("FileNotFound", format!("{path:?} is not a directory")));
    }
    let limit = match usize::try_from(options.limit) {
        Ok(0) | Err(_) => DEFAULT_LIMIT,
        Ok(limit) => limit.min(MAX_LIMIT),
    };
    let mut search = Search { options, limit, smallest: BTreeMap::new(), visited: 0 };
    search.visit(&dir, "")?;
    let more = search.smallest.len() > limit;
    Ok((search.smallest.into_iter().take(limit).map(|(_, entry)| entry).collect(), more))
}

/// The file or directory itself. Blocks.
///
/// # Errors
/// As [`resolve`].
pub fn stat(root: &Path, path: &str) -> Result<FileEntry, FileFailure> {
    let real = resolve(root, path)?;
    let metadata = std::fs::metadata(&real).map_err(|error| FileFailure::io(Path::new(path), &error))?;
    Ok(entry(path.trim_matches('/').to_owned(), &metadata))
}

struct Search<'a> {
    options: &'a ListFiles,
    limit: usize,
    /// The smallest names so far; one more than asked for, to know of more.
    smallest: BTreeMap<String, FileEntry>,
    visited: usize,
}

impl Search<'_> {
    /// Depth is bounded by the length of paths, so the recursion is, too.
    fn visit(&mut self, dir: &Path, prefix: &str) -> Result<(), FileFailure> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            // Removed by its task a moment ago, or closed by it.
            Err(_) if !prefix.is_empty() => return Ok(()),
            Err(error) => return Err(FileFailure::io(Path::new("."), &error)),
        };
        for found in entries.flatten() {
            self.visited += 1;
            if self.visited > MAX_VISITED {
                return Err(FileFailure::new("IOError", "the directory has too many files to be listed"));
            }
            let Ok(name) = found.file_name().into_string() else { continue };
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            // Links are shown as themselves: what they point to may be outside.
            let Ok(metadata) = found.metadata() else { continue };
            let wanted = &self.options.name_prefix;
            if name.starts_with(wanted.as_str()) && name > self.options.after {
                self.add(name.clone(), &metadata);
            }
            let below = format!("{name}/");
            let may_match = below.starts_with(wanted.as_str()) || wanted.starts_with(&below);
            if self.options.recursive && metadata.is_dir() && may_match && !self.is_beyond(&below) {
                self.visit(&found.path(), &name)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: String, metadata: &Metadata) {
        if self.is_beyond(&name) {
            return;
        }
        self.smallest.insert(name.clone(), entry(name, metadata));
        if self.smallest.len() > self.limit + 1 {
            self.smallest.pop_last();
        }
    }

    /// Enough smaller names are known.
    fn is_beyond(&self, name: &str) -> bool {
        self.smallest.len() > self.limit && self.smallest.last_key_value().is_some_and(|(last, _)| name > last.as_str())
    }
}

fn entry(name: String, metadata: &Metadata) -> FileEntry {
    let is_directory = metadata.is_dir();
    let content_type = if is_directory { String::new() } else { content_type(&name).to_owned() };
    FileEntry {
        name,
        is_directory,
        content_length: if is_directory { 0 } else { metadata.len() },
        last_modified: Some(prost_types::Timestamp {
            seconds: metadata.mtime(),
            nanos: i32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        }),
        mode: metadata.mode(),
        content_type,
    }
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("txt" | "log" | "sh" | "py" | "md") => "text/plain",
        Some("csv") => "text/csv",
        Some("json") => "application/json",
        Some("xml") => "application/xml",
        Some("html") => "text/html",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path, options: &ListFiles) -> (Vec<String>, bool) {
        let (entries, more) = list(root, "t", options).unwrap();
        (entries.into_iter().map(|entry| entry.name).collect(), more)
    }

    #[test]
    fn pages_cover_everything_in_byte_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("t/wd/a")).unwrap();
        std::fs::create_dir_all(root.join("t/wd/a-b")).unwrap();
        for file in ["stdout.txt", "wd/a/x", "wd/a-b/y", "wd/a.txt", "wd/z"] {
            std::fs::write(root.join("t").join(file), "12").unwrap();
        }
        let all = ListFiles { recursive: true, ..ListFiles::default() };
        let expected = ["stdout.txt", "wd", "wd/a", "wd/a-b", "wd/a-b/y", "wd/a.txt", "wd/a/x", "wd/z"];
        assert_eq!(names(root, &all), (expected.map(str::to_owned).to_vec(), false));
        let mut paged = Vec::new();
        loop {
            let after = paged.last().cloned().unwrap_or_default();
            let (page, more) = names(root, &ListFiles { recursive: true, limit: 3, after, ..ListFiles::default() });
            paged.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(paged, expected);
        assert_eq!(names(root, &ListFiles::default()).0, ["stdout.txt", "wd"]);
        let below = ListFiles { recursive: true, name_prefix: "wd/a/".into(), ..ListFiles::default() };
        assert_eq!(names(root, &below).0, ["wd/a/x"]);
        let prefix = ListFiles { recursive: true, name_prefix: "wd/a".into(), ..ListFiles::default() };
        assert_eq!(names(root, &prefix).0, ["wd/a", "wd/a-b", "wd/a-b/y", "wd/a.txt", "wd/a/x"]);
    }

    #[test]
    fn entries_have_properties() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.txt"), "123").unwrap();
        let entry = stat(dir.path(), "a.txt").unwrap();
        assert_eq!((entry.content_length, entry.is_directory, &*entry.content_type), (3, false, "text/plain"));
        assert_eq!(entry.mode & 0o170000, 0o100000);
        assert!(stat(dir.path(), "").unwrap().is_directory);
        assert_eq!(list(dir.path(), "a.txt", &ListFiles::default()).unwrap_err().reason, "FileNotFound");
    }
}
