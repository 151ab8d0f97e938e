//! Targets of files, given by users, that stay below their directory.

use std::path::{Component, Path, PathBuf};

/// Longest path below a directory that is accepted.
const MAX_LEN: usize = 4096;

/// Why a path is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// No name at all.
    #[error("the path is empty")]
    Empty,
    /// Longer than the system allows.
    #[error("the path is longer than 4096 bytes")]
    TooLong,
    /// Begins at the root.
    #[error("the path is absolute; it has to be relative")]
    Absolute,
    /// Leads out of its directory.
    #[error("the path has a '..' part; it has to stay below its directory")]
    Escapes,
    /// Files cannot have such names.
    #[error("the path contains a NUL character")]
    Nul,
}

/// A relative path without `.`, `..` and empty parts. Says nothing about
/// symbolic links; who opens it has to check them.
///
/// # Errors
/// [`InvalidPath`] says what is wrong.
pub fn below(text: &str) -> Result<PathBuf, InvalidPath> {
    let path = below_or_same(text)?;
    if path.as_os_str().is_empty() { Err(InvalidPath::Empty) } else { Ok(path) }
}

/// As [`below`]; the empty text and `.` mean the directory itself.
///
/// # Errors
/// [`InvalidPath`] says what is wrong.
pub fn below_or_same(text: &str) -> Result<PathBuf, InvalidPath> {
    if text.len() > MAX_LEN {
        return Err(InvalidPath::TooLong);
    }
    if text.contains('\0') {
        return Err(InvalidPath::Nul);
    }
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(InvalidPath::Escapes),
            Component::RootDir | Component::Prefix(_) => return Err(InvalidPath::Absolute),
        }
    }
    Ok(path)
}

/// `path` without `.` and `..` parts, as text alone: links are not followed.
/// `None` if it leads above the root.
pub fn normalise_absolute(path: &Path) -> Option<PathBuf> {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                if !result.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_paths_are_cleaned_and_bad_ones_refused() {
        for (text, expected) in [("a", "a"), ("a/b.txt", "a/b.txt"), ("./a//b/", "a/b"), ("..a/b..", "..a/b..")] {
            assert_eq!(below(text), Ok(PathBuf::from(expected)), "{text}");
        }
        for (text, why) in [
            ("", InvalidPath::Empty),
            (".", InvalidPath::Empty),
            ("/etc/passwd", InvalidPath::Absolute),
            ("../x", InvalidPath::Escapes),
            ("a/../../x", InvalidPath::Escapes),
            ("a/..", InvalidPath::Escapes),
            ("a\0b", InvalidPath::Nul),
        ] {
            assert_eq!(below(text), Err(why), "{text}");
        }
        assert_eq!(below(&"x/".repeat(5000)), Err(InvalidPath::TooLong));
        assert_eq!(below_or_same(""), Ok(PathBuf::new()));
    }

    #[test]
    fn absolute_paths_are_normalised_as_text() {
        assert_eq!(normalise_absolute(Path::new("/a/b/../c/./d")), Some(PathBuf::from("/a/c/d")));
        assert_eq!(normalise_absolute(Path::new("/a/../..")), None);
    }

    proptest! {
        #[test]
        fn accepted_paths_never_leave(text in "[a./]{0,20}") {
            if let Ok(path) = below_or_same(&text) {
                let joined = normalise_absolute(&Path::new("/base").join(&path)).unwrap();
                prop_assert!(joined.starts_with("/base"));
            }
        }
    }
}
