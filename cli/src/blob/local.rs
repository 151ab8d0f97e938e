//! Directories of this machine. All of it blocks.

use std::io;
use std::path::{Component, Path, PathBuf};

use kiln_time::Timestamp;

/// Files of one command; more in one go is a mistake.
pub const MAX_FILES: usize = 1_000_000;

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name from where the search began, with slashes.
    pub relative: String,
    /// Bytes.
    pub length: u64,
    /// When it was written last.
    pub modified: Timestamp,
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of their names.
    pub files: Vec<LocalFile>,
    /// Neither files nor directories, links among them: they are left out.
    pub skipped: Vec<PathBuf>,
    /// Their names are no text, so they cannot become blobs.
    pub unnameable: Vec<PathBuf>,
}

/// One file.
///
/// # Errors
/// It is not there, or no file.
pub fn file(path: &Path) -> io::Result<LocalFile> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory; copy it with --recursive"));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| io::Error::other("its name is no text"))?;
    Ok(LocalFile {
        path: path.to_owned(),
        relative: name.to_owned(),
        length: metadata.len(),
        modified: time(&metadata)?,
    })
}

/// All files below `directory`, without following links.
///
/// # Errors
/// A directory cannot be read, or there are too many files.
pub fn walk(directory: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let mut waiting = vec![(directory.to_owned(), String::new())];
    while let Some((directory, prefix)) = waiting.pop() {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
            let Ok(name) = entry.file_name().into_string() else {
                found.unnameable.push(path);
                continue;
            };
            if kind.is_dir() {
                waiting.push((path, format!("{prefix}{name}/")));
            } else if kind.is_file() {
                let metadata = entry.metadata().map_err(failed)?;
                if found.files.len() == MAX_FILES {
                    return Err(io::Error::other(format!("there are more than {MAX_FILES} files")));
                }
                let relative = format!("{prefix}{name}");
                found.files.push(LocalFile { path, relative, length: metadata.len(), modified: time(&metadata)? });
            } else {
                found.skipped.push(path);
            }
        }
    }
    found.files.sort_unstable_by(|a, b| a.relative.cmp(&b.relative));
    Ok(found)
}

/// Makes the directories above `file`, a path below `base`. Names of blobs come from anybody, and
/// a link that lies below `base` must not lead them elsewhere.
///
/// # Errors
/// A directory cannot be made, or is a link out of `base`.
pub fn make_parents(base: &Path, file: &Path) -> io::Result<()> {
    let outside = || io::Error::other("it leads out of the directory");
    std::fs::create_dir_all(base)?;
    let real_base = base.canonicalize()?;
    let relative = file.strip_prefix(base).map_err(|_| outside())?;
    let mut directory = base.to_owned();
    for part in relative.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(name) = part else { return Err(outside()) };
        directory.push(name);
        match std::fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if !directory.canonicalize()?.starts_with(&real_base) {
            return Err(outside());
        }
    }
    Ok(())
}

fn time(metadata: &std::fs::Metadata) -> io::Result<Timestamp> {
    use std::os::unix::fs::MetadataExt;
    Ok(Timestamp::from_micros(metadata.mtime() * 1_000_000 + metadata.mtime_nsec() / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_walked_without_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("b/c")).unwrap();
        for name in ["b/c/x", "b/ü y", "a"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"bad\xff");
        std::fs::write(root.join::<&std::ffi::OsStr>(bytes), "").unwrap();
        let found = walk(root).unwrap();
        let names: Vec<_> = found.files.iter().map(|file| file.relative.as_str()).collect();
        assert_eq!(names, ["a", "b/c/x", "b/ü y"]);
        assert_eq!((found.skipped.len(), found.unnameable.len()), (1, 1));
        assert!(file(root).is_err() && file(&root.join("none")).is_err());
        assert_eq!(file(&root.join("a")).unwrap().length, 1);
    }

    #[test]
    fn nothing_is_made_outside() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        make_parents(&base, &base.join("a/b/c")).unwrap();
        assert!(base.join("a/b").is_dir() && !base.join("a/b/c").exists());
        std::os::unix::fs::symlink(dir.path(), base.join("out")).unwrap();
        std::os::unix::fs::symlink(base.join("a"), base.join("in")).unwrap();
        std::os::unix::fs::symlink("/nowhere", base.join("dangling")).unwrap();
        for bad in ["out/x", "out/new/x", "dangling/x", "../x/y", "a/../../x"] {
            assert!(make_parents(&base, &base.join(bad)).is_err(), "{bad}");
        }
        assert!(!dir.path().join("new").exists());
        make_parents(&base, &base.join("in/new/x")).unwrap();
        assert!(base.join("a/new").is_dir());
    }
}
