//! Finds the local files of an input.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::model::InputFile;

/// Files of one input.
const MAX_FILES: usize = 100_000;

/// Files that `pattern` (relative to `base`) stands for, by blob name.
///
/// # Errors
/// What is wrong, in words.
pub fn find(base: &Path, pattern: &str, found: &mut BTreeMap<String, InputFile>) -> Result<(), String> {
    let mut matched = BTreeMap::new();
    find_pattern(base, pattern, &mut matched)?;
    for (blob, file) in matched {
        if let Some(other) = found.get(&blob)
            && other.local != file.local
        {
            return Err(collision(&other.local, &file.local, &blob));
        }
        found.insert(blob, file);
    }
    if found.len() > MAX_FILES {
        return Err(format!("more than {MAX_FILES} files"));
    }
    Ok(())
}

fn collision(one: &Path, other: &Path, blob: &str) -> String {
    format!("{} and {} would both be {blob:?}", one.display(), other.display())
}

fn find_pattern(base: &Path, pattern: &str, found: &mut BTreeMap<String, InputFile>) -> Result<(), String> {
    let full = base.join(pattern);
    let text = full.to_str().ok_or("the path is not UTF-8")?;
    if !pattern.contains(['*', '?', '[']) {
        if full.is_dir() {
            walk(&full, &full, found)?;
        } else {
            let parent = full.parent().unwrap_or(base).to_path_buf();
            add(&parent, &full, found).map_err(|why| match why {
                Refused::Missing => format!("{} does not exist", full.display()),
                Refused::Other(why) => why,
            })?;
        }
        if found.is_empty() {
            return Err(format!("{} holds no files", full.display()));
        }
        return Ok(());
    }
    // Blob names are relative to the part of the pattern without a wildcard.
    let root: PathBuf =
        full.components().take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '['])).collect();
    let options = glob::MatchOptions { case_sensitive: true, require_literal_separator: true, ..Default::default() };
    for entry in glob::glob_with(text, options).map_err(|error| format!("not a pattern: {}", error.msg))? {
        let path = entry.map_err(|error| format!("{}: {}", error.path().display(), error.error()))?;
        if path.is_dir() {
            // `**` also names directories; `data/*` should not drag them in.
            continue;
        }
        add(&root, &path, found).map_err(Refused::into_text)?;
    }
    if found.is_empty() {
        return Err(format!("no file matches {}", full.display()));
    }
    Ok(())
}

fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<String, InputFile>) -> Result<(), String> {
    let listing = std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for entry in listing {
        let entry = entry.map_err(|error| format!("{}: {error}", directory.display()))?;
        let kind = entry.file_type().map_err(|error| format!("{}: {error}", entry.path().display()))?;
        if kind.is_dir() {
            walk(root, &entry.path(), found)?;
        } else {
            add(root, &entry.path(), found).map_err(Refused::into_text)?;
        }
    }
    Ok(())
}

enum Refused {
    Missing,
    Other(String),
}

impl Refused {
    fn into_text(self) -> String {
        match self {
            Self::Missing => "a file vanished".to_owned(),
            Self::Other(why) => why,
        }
    }
}

fn add(root: &Path, path: &Path, found: &mut BTreeMap<String, InputFile>) -> Result<(), Refused> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Refused::Missing),
        Err(error) => return Err(Refused::Other(format!("{}: {error}", path.display()))),
    };
    if !metadata.is_file() {
        return Err(Refused::Other(format!("{} is no file", path.display())));
    }
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Option<Vec<&str>> = relative
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_str()),
            _ => None,
        })
        .collect();
    let blob = parts.ok_or_else(|| Refused::Other(format!("{} is not UTF-8", path.display())))?.join("/");
    if blob.len() > 1024 {
        return Err(Refused::Other(format!("the path {blob:?} is longer than 1024 bytes")));
    }
    if let Some(other) = found.get(&blob)
        && other.local != path
    {
        return Err(Refused::Other(collision(&other.local, path, &blob)));
    }
    if found.len() >= MAX_FILES {
        return Err(Refused::Other(format!("more than {MAX_FILES} files")));
    }
    found.insert(blob.clone(), InputFile { local: path.to_owned(), blob, size: metadata.len() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(base: &Path, pattern: &str) -> Result<Vec<String>, String> {
        let mut found = BTreeMap::new();
        find(base, pattern, &mut found).map(|()| found.into_keys().collect())
    }

    #[test]
    fn names_are_relative_to_the_fixed_part() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        std::fs::create_dir_all(base.join("data/2024")).unwrap();
        for name in ["data/a.txt", "data/b.csv", "data/2024/c.txt"] {
            std::fs::write(base.join(name), "x").unwrap();
        }
        assert_eq!(names(base, "data/a.txt"), Ok(vec!["a.txt".to_owned()]));
        assert_eq!(names(base, "data/*.txt"), Ok(vec!["a.txt".to_owned()]));
        assert_eq!(names(base, "data/**/*.txt"), Ok(vec!["2024/c.txt".to_owned(), "a.txt".to_owned()]));
        assert_eq!(names(base, "data"), Ok(vec!["2024/c.txt".to_owned(), "a.txt".to_owned(), "b.csv".to_owned()]));
        assert!(names(base, "data/*.md").unwrap_err().starts_with("no file matches"));
        assert!(names(base, "nothing.txt").unwrap_err().ends_with("nothing.txt does not exist"));
    }

    #[test]
    fn two_files_cannot_share_a_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("x.txt"), "x").unwrap();
        }
        let mut found = BTreeMap::new();
        find(dir.path(), "a/*.txt", &mut found).unwrap();
        assert!(find(dir.path(), "b/*.txt", &mut found).unwrap_err().contains("would both be \"x.txt\""));
        find(dir.path(), "a/x.txt", &mut found).unwrap();
        assert_eq!(found.len(), 1);
    }
}
