//! Typed identifiers of Kiln.
//!
//! Ids keep the letters their creator wrote and compare without regard to
//! case, as in Azure Batch. [`PoolId::key`] (and its like on every id) gives
//! the lower-case form under which stores keep a record.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Longest id a user may choose.
pub const MAX_ID_LEN: usize = 64;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Empty text.
    #[error("{kind} id is empty")]
    Empty {
        /// What the id names, for example "pool".
        kind: &'static str,
    },
    /// More than the allowed number of characters.
    #[error("{kind} id has {len} characters; at most {max} are allowed")]
    TooLong {
        /// What the id names.
        kind: &'static str,
        /// Characters it has.
        len: usize,
        /// Characters it may have.
        max: usize,
    },
    /// A character that ids must not have.
    #[error("{kind} id {text:?} has the character {character:?}; allowed are A-Z a-z 0-9 - _")]
    Character {
        /// What the id names.
        kind: &'static str,
        /// The whole id.
        text: String,
        /// The first character that is not allowed.
        character: char,
    },
}

fn check(kind: &'static str, text: &str, max: usize, extra: &[char]) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty { kind });
    }
    let len = text.chars().count();
    if len > max {
        return Err(InvalidId::TooLong { kind, len, max });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || extra.contains(&c);
    // Ids become names of files, where one or two dots have a meaning.
    let allowed = |c: char| allowed(c) && !text.chars().all(|c| c == '.');
    match text.chars().find(|c| !allowed(*c)) {
        Some(character) => Err(InvalidId::Character { kind, text: text.to_owned(), character }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:expr, $extra:expr) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters.
            ///
            /// # Errors
            /// [`InvalidId`] says what is wrong with the text.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                check($kind, text, $max, $extra)?;
                Ok(Self(Arc::from(text)))
            }

            /// As its creator wrote it.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The lower-case form that identifies the record.
            pub fn key(&self) -> Cow<'_, str> {
                if self.0.bytes().any(|b| b.is_ascii_uppercase()) {
                    Cow::Owned(self.0.to_ascii_lowercase())
                } else {
                    Cow::Borrowed(&self.0)
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &self.0)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.eq_ignore_ascii_case(&other.0)
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                for byte in self.0.bytes() {
                    state.write_u8(byte.to_ascii_lowercase());
                }
                state.write_u8(0xff);
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                let lower = |text: &Arc<str>| text.to_ascii_lowercase();
                lower(&self.0).cmp(&lower(&other.0))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// An account: owner of pools, jobs and schedules.
    AccountName, "account", MAX_ID_LEN, &[]
);
id!(
    /// A pool within an account.
    PoolId, "pool", MAX_ID_LEN, &[]
);
id!(
    /// A node within a pool.
    NodeId, "node", 128, &[]
);
id!(
    /// A job within an account. The jobs of a schedule are named
    /// `<schedule>:job-<n>`, so a colon occurs in ids the service made;
    /// [`JobId::is_user_choice`] tells whether a user may choose the id.
    JobId, "job", 96, &[':']
);
id!(
    /// A task within a job.
    TaskId, "task", MAX_ID_LEN, &[]
);
id!(
    /// An application within an account.
    ApplicationId, "application", MAX_ID_LEN, &[]
);
id!(
    /// A package: one version of an application.
    PackageVersion, "version", MAX_ID_LEN, &['.']
);

impl JobId {
    /// Whether a user may give this id to a new job.
    pub fn is_user_choice(&self) -> bool {
        self.0.len() <= MAX_ID_LEN && !self.0.contains(':')
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn ids_compare_without_case_and_keep_their_letters() {
        let a = PoolId::parse("My-Pool_1").unwrap();
        let b = PoolId::parse("my-pool_1").unwrap();
        assert_eq!(a, b);
        assert_eq!(a.as_str(), "My-Pool_1");
        assert_eq!(a.key(), "my-pool_1");
        let map = HashMap::from([(a, 1)]);
        assert_eq!(map.get(&b), Some(&1));
    }

    #[test]
    fn bad_ids_say_what_is_wrong() {
        assert_eq!(PoolId::parse(""), Err(InvalidId::Empty { kind: "pool" }));
        assert!(matches!(TaskId::parse("a/b"), Err(InvalidId::Character { character: '/', .. })));
        assert!(matches!(TaskId::parse(&"x".repeat(65)), Err(InvalidId::TooLong { len: 65, .. })));
        assert!(TaskId::parse(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn versions_have_dots_but_are_no_directories() {
        assert_eq!(PackageVersion::parse("1.0-RC.2").unwrap().key(), "1.0-rc.2");
        for bad in [".", "..", "...", "a/b", "", "1 0"] {
            assert!(PackageVersion::parse(bad).is_err(), "{bad}");
        }
        assert!(ApplicationId::parse("a.b").is_err());
    }

    #[test]
    fn colons_are_for_jobs_of_schedules() {
        assert!(!JobId::parse("nightly:job-1").unwrap().is_user_choice());
        assert!(JobId::parse("nightly").unwrap().is_user_choice());
    }
}
