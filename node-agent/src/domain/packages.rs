//! Packages of applications on a node: what their variables are called, and
//! what of a zip may become a file.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::paths::{self, InvalidPath};

/// What the variables of packages begin with.
const PREFIX: &str = "AZ_BATCH_APP_PACKAGE_";
/// A small zip may become this large whatever its own size is.
const SMALL: u64 = 1 << 30;
/// Beyond that, a zip may become so many times larger than it is.
const MAX_RATIO: u64 = 200;
/// What the kinds of files are told by.
const KIND: u32 = 0o170_000;

/// Names of the variables that tell where a package is. Without `version` it was
/// found as the default one.
///
/// The name has the application's letters as its maker wrote them; a second name has them
/// in lower case, as some examples of Azure have it, if that differs.
pub fn variables(application: &str, version: Option<&str>) -> BTreeSet<String> {
    let sanitise = |text: &str| text.replace(['.', '-', '#'], "_");
    let suffix = version.map(|version| format!("_{}", sanitise(version))).unwrap_or_default();
    let name = sanitise(application);
    let lower = name.to_ascii_lowercase();
    [name, lower].into_iter().map(|name| format!("{PREFIX}{name}{suffix}")).collect()
}

/// Why a zip is not unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An entry cannot have such a name.
    #[error("entry {0:?}: {1}")]
    Name(String, InvalidPath),
    /// A link that leads out of the package.
    #[error("entry {0:?} is a link that leads out of the package, or may do so: {1:?}")]
    Link(String, String),
    /// A device, a pipe or a socket.
    #[error("entry {0:?} is neither a file nor a directory nor a link")]
    Kind(String),
    /// More than may be unpacked.
    #[error("it becomes larger than {0} bytes, which is the limit for packages of this node (package_bytes)")]
    TooLarge(u64),
    /// Much more than it seems.
    #[error("it becomes more than {MAX_RATIO} times larger than it is")]
    Ratio,
}

/// What an entry of a zip becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// A directory.
    Directory,
    /// A file with these permissions.
    File(u32),
    /// A symbolic link.
    Link,
}

/// What an entry becomes, by its name and the mode of Unix in it.
///
/// # Errors
/// It is something that no package needs.
pub fn becomes(name: &str, is_directory: bool, mode: Option<u32>) -> Result<Becomes, Refused> {
    match mode.map_or(0, |mode| mode & KIND) {
        0o040_000 => Ok(Becomes::Directory),
        _ if is_directory => Ok(Becomes::Directory),
        0o120_000 => Ok(Becomes::Link),
        // What may be executed by its owner may be by all: tasks may have users of their own.
        0 | 0o100_000 => Ok(Becomes::File(if mode.is_some_and(|mode| mode & 0o111 != 0) { 0o755 } else { 0o644 })),
        _ => Err(Refused::Kind(name.to_owned())),
    }
}

/// Where an entry goes, below the package's directory; `None` for that directory itself.
/// Some programs of Windows write backslashes between names.
///
/// # Errors
/// It would leave the directory.
pub fn target(name: &str) -> Result<Option<PathBuf>, Refused> {
    let path = paths::below_or_same(&name.replace('\\', "/")).map_err(|why| Refused::Name(name.to_owned(), why))?;
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

/// Checks where the link `entry` (a path that [`target`] gave) leads. It may climb only from the directory
/// that it is in, at the beginning, and not higher than the package: what it then passes are
/// directories, or links of which the same holds. A climb behind another name
/// would begin wherever that name leads.
///
/// # Errors
/// It leads out, or may do so.
pub fn check_link(entry: &Path, to: &str) -> Result<(), Refused> {
    let refused = || Refused::Link(entry.to_string_lossy().into_owned(), to.to_owned());
    let mut depth = entry.components().count().saturating_sub(1);
    let mut climbs = true;
    for component in Path::new(to).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if climbs => depth = depth.checked_sub(1).ok_or_else(refused)?,
            Component::Normal(_) => climbs = false,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(refused()),
        }
    }
    if to.is_empty() || to.contains('\0') { Err(refused()) } else { Ok(()) }
}

/// How much a zip may become; counted while it is unpacked, whatever it says.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    limit: u64,
    by_ratio: u64,
    used: u64,
}

impl Allowance {
    /// For a zip of `packed` bytes, on a node that takes packages up to `limit`.
    pub fn new(packed: u64, limit: u64) -> Self {
        Self { limit, by_ratio: packed.saturating_mul(MAX_RATIO).max(SMALL), used: 0 }
    }

    /// So many bytes more are about to be written.
    ///
    /// # Errors
    /// That is too much.
    pub fn take(&mut self, bytes: u64) -> Result<(), Refused> {
        self.used = self.used.saturating_add(bytes);
        if self.used > self.limit {
            Err(Refused::TooLarge(self.limit))
        } else if self.used > self.by_ratio {
            Err(Refused::Ratio)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn variables_have_the_names_of_azure() {
        let names = |application, version| variables(application, version).into_iter().collect::<Vec<_>>().join(" ");
        for (application, version, expected) in [
            ("blender", Some("2.7"), "AZ_BATCH_APP_PACKAGE_blender_2_7"),
            ("blender", None, "AZ_BATCH_APP_PACKAGE_blender"),
            ("Blender", Some("2.7-RC"), "AZ_BATCH_APP_PACKAGE_Blender_2_7_RC AZ_BATCH_APP_PACKAGE_blender_2_7_RC"),
            ("My-App", None, "AZ_BATCH_APP_PACKAGE_My_App AZ_BATCH_APP_PACKAGE_my_app"),
        ] {
            assert_eq!(names(application, version), expected);
        }
    }

    #[test]
    fn entries_stay_below_their_package() {
        assert_eq!(target("bin/a").unwrap(), Some("bin/a".into()));
        assert_eq!(target("bin\\sub\\a.exe").unwrap(), Some("bin/sub/a.exe".into()));
        assert_eq!(target("./").unwrap(), None);
        for bad in ["../a", "a/../../b", "/etc/passwd", "..\\a", "a/..", "a\0b", "\\\\host\\x"] {
            assert!(matches!(target(bad), Err(Refused::Name(..))), "{bad}");
        }
    }

    #[test]
    fn modes_decide_what_an_entry_becomes() {
        for (directory, mode, expected) in [
            (false, None, Becomes::File(0o644)),
            (false, Some(0o100_600), Becomes::File(0o644)),
            (false, Some(0o100_700), Becomes::File(0o755)),
            (false, Some(0o104_755), Becomes::File(0o755)),
            (false, Some(0o755), Becomes::File(0o755)),
            (true, None, Becomes::Directory),
            (true, Some(0o700), Becomes::Directory),
            (false, Some(0o040_755), Becomes::Directory),
            (false, Some(0o120_777), Becomes::Link),
        ] {
            assert_eq!(becomes("e", directory, mode), Ok(expected), "{mode:?}");
        }
        for device in [0o010_644, 0o020_644, 0o060_644, 0o140_644] {
            assert_eq!(becomes("e", false, Some(device)), Err(Refused::Kind("e".to_owned())));
        }
    }

    #[test]
    fn links_lead_to_what_is_in_the_package() {
        for (entry, to) in [
            ("lib.so", "lib.so.1"),
            ("lib/lib.so", "../other/lib.so.1"),
            ("a/b/c", "../../x"),
            ("a/b", "./c/d"),
            ("a/b", ".."),
        ] {
            assert!(check_link(Path::new(entry), to).is_ok(), "{entry} -> {to}");
        }
        for (entry, to) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("a/b", "../../x"),
            // Where `up` leads is not known here.
            ("a/b/c", "up/.."),
            ("a", "b/../../x"),
            ("a", ""),
            ("a", "b\0c"),
        ] {
            assert!(matches!(check_link(Path::new(entry), to), Err(Refused::Link(..))), "{entry} -> {to}");
        }
    }

    #[test]
    fn an_allowance_ends_at_the_limit_and_where_a_zip_grows_too_much() {
        let mut small = Allowance::new(10, 5000);
        assert!(small.take(5000).is_ok());
        assert_eq!(small.take(1), Err(Refused::TooLarge(5000)));
        let mut bomb = Allowance::new(10, u64::MAX);
        assert!(bomb.take(SMALL).is_ok());
        assert_eq!(bomb.take(1), Err(Refused::Ratio));
        let mut large = Allowance::new(SMALL, u64::MAX);
        assert!(large.take(SMALL * MAX_RATIO).is_ok());
        assert_eq!(large.take(u64::MAX), Err(Refused::Ratio));
    }

    proptest! {
        /// Variables are names that shells can say.
        #[test]
        fn variables_are_names(application in "[A-Za-z0-9_-]{1,64}", version in "[A-Za-z0-9_.-]{1,64}") {
            for name in variables(&application, Some(&version)).iter().chain(&variables(&application, None)) {
                let rest = name.strip_prefix(PREFIX).unwrap();
                prop_assert!(!rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
            }
            let usual = format!("{PREFIX}{}", application.replace('-', "_"));
            prop_assert!(variables(&application, None).contains(&usual));
        }
    }
}
