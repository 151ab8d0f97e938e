//! Places on a command line.

use std::path::PathBuf;

use crate::failure::{Failure, Outcome};

/// Tells blobs from local files; a local file of such a name is `./kiln:...`.
const SCHEME: &str = "kiln:";
/// These make a name a pattern; `[*]` stands for the character itself.
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A file, a directory or a pattern of this machine.
    Local(PathBuf),
    /// Blobs.
    Blob(BlobPath),
    /// Standard input or output.
    Standard,
}

/// A container and what follows it: nothing, a name, the beginning of names, or a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPath {
    /// Its name.
    pub container: String,
    /// What follows the first slash.
    pub name: String,
}

impl End {
    /// As `cp` and `sync` read it.
    ///
    /// # Errors
    /// No container is named.
    pub fn parse(text: &str) -> Outcome<Self> {
        match text.strip_prefix(SCHEME) {
            Some(_) => BlobPath::parse(text).map(Self::Blob),
            None if text == "-" => Ok(Self::Standard),
            None if text.is_empty() => Err(Failure::Usage("a path is empty".to_owned())),
            None => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

impl BlobPath {
    /// With or without `kiln:`, for commands that know of blobs alone.
    ///
    /// # Errors
    /// No container is named.
    pub fn parse(text: &str) -> Outcome<Self> {
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        let (container, name) = rest.split_once('/').unwrap_or((rest, ""));
        if container.is_empty() || is_pattern(container) {
            return Err(Failure::Usage(format!("{text:?} is not {SCHEME}CONTAINER/NAME")));
        }
        Ok(Self { container: container.to_owned(), name: name.to_owned() })
    }

    /// Whether the name is a pattern.
    pub fn is_pattern(&self) -> bool {
        is_pattern(&self.name)
    }

    /// What all names that the pattern means begin with.
    pub fn fixed(&self) -> &str {
        let end = self.name.find(WILDCARDS).unwrap_or(self.name.len());
        &self.name[..end]
    }

    /// The name of what lies at `relative` below this place.
    pub fn below(&self, relative: &str) -> String {
        match self.name.as_str() {
            "" => relative.to_owned(),
            name if name.ends_with('/') => format!("{name}{relative}"),
            name => format!("{name}/{relative}"),
        }
    }

    /// The name of a single file here: this one's, or the file's own in a container or
    /// behind a slash.
    pub fn of_single(&self, own: &str) -> String {
        match self.name.is_empty() || self.name.ends_with('/') {
            true => format!("{}{own}", self.name),
            false => self.name.clone(),
        }
    }
}

impl std::fmt::Display for BlobPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.container, self.name)
    }
}

/// Whether a name is a pattern.
pub fn is_pattern(name: &str) -> bool {
    name.contains(WILDCARDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let blob = |container: &str, name: &str| {
            End::Blob(BlobPath { container: container.to_owned(), name: name.to_owned() })
        };
        assert_eq!(End::parse("kiln:c/a/b").unwrap(), blob("c", "a/b"));
        assert_eq!(End::parse("kiln:c").unwrap(), blob("c", ""));
        assert_eq!(End::parse("c/a").unwrap(), End::Local("c/a".into()));
        assert_eq!(End::parse("./kiln:x").unwrap(), End::Local("./kiln:x".into()));
        assert_eq!(End::parse("-").unwrap(), End::Standard);
        for wrong in ["", "kiln:", "kiln:/x", "kiln:*/x"] {
            assert!(End::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_below_a_place() {
        let path = |text: &str| BlobPath::parse(text).unwrap();
        assert_eq!(path("c").below("a/b"), "a/b");
        assert_eq!(path("c/p").below("a"), "p/a");
        assert_eq!(path("c/p/").below("a"), "p/a");
        assert_eq!(
            (path("c/p/").of_single("a"), path("c").of_single("a"), path("c/p").of_single("a")),
            ("p/a".into(), "a".into(), "p".into())
        );
        assert_eq!((path("c/a/b*.txt").fixed(), path("c/a/b*.txt").is_pattern()), ("a/b", true));
        assert_eq!((path("c/ab").fixed(), path("c/ab").is_pattern()), ("ab", false));
    }
}
