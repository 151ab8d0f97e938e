//! A path of a caller becomes a file below the node root.

use std::path::{Path, PathBuf};

use super::FileFailure;
use crate::domain::paths::{self, InvalidPath};

/// Directories that the agent itself needs.
const KEPT: [&str; 6] = ["applications", "fsmounts", "shared", "startup", "volatile", "workitems"];

/// The real path (links followed) of what `path` names; it exists and lies
/// below `root`. Blocks.
///
/// # Errors
/// `PathNotAllowed`, `FileNotFound`, `IOError`.
pub fn resolve(root: &Path, path: &str) -> Result<PathBuf, FileFailure> {
    let joined = join(root, path)?;
    let real = joined.canonicalize().map_err(|error| FileFailure::io(Path::new(path), &error))?;
    let real_root = root.canonicalize().map_err(|error| FileFailure::io(Path::new("."), &error))?;
    if real.starts_with(&real_root) { Ok(real) } else { Err(outside(path)) }
}

/// Below `root` as text; nothing is said about links.
pub fn join(root: &Path, path: &str) -> Result<PathBuf, FileFailure> {
    match paths::below_or_same(path) {
        Ok(relative) => Ok(root.join(relative)),
        Err(InvalidPath::Escapes | InvalidPath::Absolute) => Err(outside(path)),
        Err(error) => Err(FileFailure::new("PathNotAllowed", format!("{path:?}: {error}"))),
    }
}

fn outside(path: &str) -> FileFailure {
    FileFailure::new("PathNotAllowed", format!("{path:?} leads out of the node's directory"))
}

/// Removes a file or directory. Blocks.
///
/// # Errors
/// As [`resolve`]; `IOError` for directories that are not empty, unless
/// `recursive`.
pub fn remove(root: &Path, path: &str, recursive: bool) -> Result<(), FileFailure> {
    let joined = join(root, path)?;
    let relative = joined.strip_prefix(root).unwrap_or(&joined);
    if relative.as_os_str().is_empty() || KEPT.iter().any(|kept| relative == Path::new(kept)) {
        return Err(FileFailure::new("PathNotAllowed", format!("{path:?} belongs to the node and stays")));
    }
    // The parent is followed, the last part is not: a link is removed itself.
    let name = relative.file_name().map(PathBuf::from).unwrap_or_default();
    let parent = relative.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
    let target = resolve(root, &parent)?.join(name);
    let failed = |error: std::io::Error| FileFailure::io(Path::new(path), &error);
    let kind = std::fs::symlink_metadata(&target).map_err(failed)?.file_type();
    if !kind.is_dir() {
        std::fs::remove_file(&target).map_err(failed)
    } else if recursive {
        std::fs::remove_dir_all(&target).map_err(failed)
    } else {
        std::fs::remove_dir(&target).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("workitems/j")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::fs::write(root.join("workitems/j/file"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("workitems/j/up")).unwrap();
        std::os::unix::fs::symlink("file", root.join("workitems/j/link")).unwrap();
        let reason = |path: &str| resolve(&root, path).map(|_| ()).map_err(|failure| failure.reason);
        assert_eq!(reason("workitems/j/file"), Ok(()));
        assert_eq!(reason("workitems/j/link"), Ok(()));
        assert_eq!(reason(""), Ok(()));
        assert_eq!(reason("../secret"), Err("PathNotAllowed"));
        assert_eq!(reason("workitems/../../secret"), Err("PathNotAllowed"));
        assert_eq!(reason("/etc/passwd"), Err("PathNotAllowed"));
        assert_eq!(reason("workitems/j/up/secret"), Err("PathNotAllowed"));
        assert_eq!(reason("workitems/j/none"), Err("FileNotFound"));
        assert_eq!(reason("workitems/j/file/x"), Err("FileNotFound"));
        assert_eq!(reason("a\0b"), Err("PathNotAllowed"));
    }

    #[test]
    fn removal_needs_recursive_and_spares_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("workitems/j/d/e")).unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("keep"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("workitems/j/link")).unwrap();
        let reason = |path: &str, recursive| remove(&root, path, recursive).map_err(|failure| failure.reason);
        assert_eq!(reason("workitems/j/d", false), Err("IOError"));
        assert_eq!(reason("workitems/j/d", true), Ok(()));
        assert_eq!(reason("workitems/j/d", true), Err("FileNotFound"));
        assert_eq!(reason("", true), Err("PathNotAllowed"));
        assert_eq!(reason("workitems", true), Err("PathNotAllowed"));
        assert_eq!(reason("workitems/j/link/keep", false), Err("PathNotAllowed"));
        assert_eq!(reason("workitems/j/link", true), Ok(()));
        assert!(outside.join("keep").exists());
    }
}
