//! Applications and their packages.
//!
//! A package is one version of an application. Its zip is a blob in a container
//! of the account that only this part of the service writes to
//! ([`CONTAINER`], whose name users cannot choose). A new zip is put under a
//! name of its own and becomes the package's content when it is activated;
//! the content before it is used until then:
//!
//! | a package has | create | activate | delete |
//! |---|---|---|---|
//! | nothing (it is new) | pending | - | - |
//! | pending | new pending, the old one is dropped | content | both go |
//! | content | content and pending, if updates are allowed | stays as it is | goes, if updates are allowed |
//! | content and pending | new pending, if updates are allowed | new content, the old one is dropped | both go, if updates are allowed |

use kiln_error::Kind;
use kiln_ids::{ApplicationId, InvalidId, PackageVersion};
use kiln_package::zip::NotAZip;
use kiln_time::Timestamp;
use serde::{Deserialize, Serialize};

pub use kiln_package::CONTAINER;

/// Applications of an account.
pub const MAX_APPLICATIONS: usize = 200;
/// Packages of an application.
pub const MAX_PACKAGES: usize = 40;
/// Characters of a display name.
pub const MAX_DISPLAY_NAME: usize = 1024;
/// References that are checked at once.
pub const MAX_REFERENCES: usize = 100;
/// What the zip of a package may have.
pub const MAX_ZIP: u64 = 5000 * 1024 * 1024;
/// How long the URL of an announced zip takes it.
pub const UPLOAD_TIME: std::time::Duration = std::time::Duration::from_secs(4 * 3600);

/// Programs that nodes install by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Its name.
    pub id: ApplicationId,
    /// For people.
    pub display_name: String,
    /// Packages may be replaced and deleted.
    pub allow_updates: bool,
    /// Used where a reference names no version.
    pub default_version: Option<PackageVersion>,
    /// By version.
    pub packages: Vec<Package>,
    /// When it was made.
    pub created: Timestamp,
    /// When it, or one of its packages, was last changed.
    pub modified: Timestamp,
}

/// One version of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub version: PackageVersion,
    /// What nodes install; absent until a zip was activated.
    pub content: Option<PackageContent>,
    /// Name of the blob that was announced and is not active yet.
    pub pending: Option<String>,
    /// When it was made.
    pub created: Timestamp,
}

/// The zip of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageContent {
    /// Blob in [`CONTAINER`]; names are never used twice.
    pub blob: String,
    /// Of the blob.
    pub etag: String,
    /// Of the blob, if it is known.
    pub md5: Option<[u8; 16]>,
    /// Bytes.
    pub length: u64,
    /// When it became the content.
    pub activated: Timestamp,
}

/// What changes in an application; absent means that it stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplicationChange {
    /// For people.
    pub display_name: Option<String>,
    /// Packages may be replaced and deleted.
    pub allow_updates: Option<bool>,
    /// `Some(None)`: there is none any more.
    pub default_version: Option<Option<PackageVersion>>,
}

/// A package by its names, as pools and tasks refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The application.
    pub application: ApplicationId,
    /// Absent: whatever is the default version.
    pub version: Option<PackageVersion>,
}

/// What a reference means now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The application, as its maker wrote it.
    pub application: ApplicationId,
    /// The version, as its maker wrote it.
    pub version: PackageVersion,
    /// What nodes install.
    pub content: PackageContent,
}

/// Why something about an application was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplicationError {
    /// No such application.
    #[error("there is no application {0}")]
    NotFound(ApplicationId),
    /// There is one of that id.
    #[error("there is an application {0} already")]
    Exists(ApplicationId),
    /// No such version.
    #[error("application {0} has no version {1}")]
    PackageNotFound(ApplicationId, PackageVersion),
    /// It has no default version.
    #[error("application {0} has no default version; name a version, or set one with `kiln app set`")]
    NoDefault(ApplicationId),
    /// Its zip is not there yet.
    #[error("version {1} of application {0} is not active: its zip was not activated yet")]
    NotActive(ApplicationId, PackageVersion),
    /// Its packages stay as they are.
    #[error("application {0} does not allow that its packages are replaced or deleted (allow_updates is false)")]
    UpdatesNotAllowed(ApplicationId),
    /// It still has packages.
    #[error("application {0} still has packages; delete them first")]
    NotEmpty(ApplicationId),
    /// Nothing was put to the URL of the package.
    #[error("no zip of version {1} of application {0} was uploaded; put it to the URL that announced it first")]
    NotUploaded(ApplicationId, PackageVersion),
    /// The zip was replaced while it was looked at.
    #[error("the zip was replaced at this moment; activate it again")]
    Replaced,
    /// What was put is no zip.
    #[error("the package is no zip: {0}")]
    NotAZip(#[from] NotAZip),
    /// The zip is larger than a package may be.
    #[error("the zip has {0} bytes; a package may have {MAX_ZIP}")]
    TooLarge(u64),
    /// No more applications.
    #[error("the account has {MAX_APPLICATIONS} applications, which is the limit")]
    TooManyApplications,
    /// No more versions.
    #[error("application {0} has {MAX_PACKAGES} versions, which is the limit")]
    TooManyPackages(ApplicationId),
    /// A reference that nodes could not resolve.
    #[error("application package references: {0}")]
    InvalidReference(Box<Self>),
    /// Written to without an announcement.
    #[error("blobs of {CONTAINER} are those of application packages; they are changed with these alone")]
    Reserved,
    /// A name that cannot be one.
    #[error("{name}: {why}")]
    InvalidId {
        /// The field.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is wrong.
        why: InvalidId,
    },
    /// The display name is too long.
    #[error("display_name: has {0} characters; at most {MAX_DISPLAY_NAME} are allowed")]
    DisplayName(usize),
    /// Too many at once.
    #[error("packages: has {0} references; at most {MAX_REFERENCES} are checked at once")]
    TooManyReferences(usize),
}

impl ApplicationError {
    /// The stable word, HTTP status and kind.
    pub fn parts(&self) -> (&'static str, u16, Kind) {
        use ApplicationError as E;
        match self {
            E::NotFound(_) => ("ApplicationNotFound", 404, Kind::NotFound),
            E::PackageNotFound(..) => ("ApplicationPackageNotFound", 404, Kind::NotFound),
            E::NoDefault(_) => ("ApplicationHasNoDefaultVersion", 409, Kind::FailedPrecondition),
            E::Exists(_) => ("ApplicationExists", 409, Kind::AlreadyExists),
            E::NotActive(..) => ("ApplicationPackageNotActive", 409, Kind::FailedPrecondition),
            E::UpdatesNotAllowed(_) => ("ApplicationUpdatesNotAllowed", 409, Kind::FailedPrecondition),
            E::NotEmpty(_) => ("ApplicationHasPackages", 409, Kind::FailedPrecondition),
            E::NotUploaded(..) => ("ApplicationPackageNotUploaded", 409, Kind::FailedPrecondition),
            E::Replaced => ("ApplicationPackageReplaced", 409, Kind::Aborted),
            E::NotAZip(_) => ("InvalidApplicationPackage", 400, Kind::InvalidArgument),
            E::TooLarge(_) => ("InvalidApplicationPackage", 413, Kind::TooLarge),
            E::TooManyApplications => ("ApplicationQuotaReached", 409, Kind::ResourceExhausted),
            E::TooManyPackages(_) => ("ApplicationPackageQuotaReached", 409, Kind::ResourceExhausted),
            E::InvalidReference(_) => ("InvalidApplicationPackageReferences", 409, Kind::FailedPrecondition),
            E::Reserved => ("AuthorizationFailure", 403, Kind::PermissionDenied),
            E::InvalidId { .. } | E::DisplayName(_) | E::TooManyReferences(_) => {
                ("InvalidPropertyValue", 400, Kind::InvalidArgument)
            }
        }
    }

    /// Names with values for programs.
    pub fn details(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::InvalidId { name, value, .. } => {
                vec![("PropertyName", (*name).to_owned()), ("PropertyValue", value.clone())]
            }
            Self::InvalidReference(why) => match &**why {
                Self::NotFound(application) | Self::NoDefault(application) => {
                    vec![("ApplicationPackageReference", application.to_string())]
                }
                Self::PackageNotFound(application, version) | Self::NotActive(application, version) => {
                    vec![("ApplicationPackageReference", format!("{application}:{version}"))]
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }
}

/// The id of an application.
///
/// # Errors
/// What is wrong with it.
pub fn id(name: &'static str, text: &str) -> Result<ApplicationId, ApplicationError> {
    ApplicationId::parse(text).map_err(|why| ApplicationError::InvalidId { name, value: text.to_owned(), why })
}

/// A version.
///
/// # Errors
/// What is wrong with it.
pub fn version(name: &'static str, text: &str) -> Result<PackageVersion, ApplicationError> {
    PackageVersion::parse(text).map_err(|why| ApplicationError::InvalidId { name, value: text.to_owned(), why })
}

/// Checks a display name.
///
/// # Errors
/// It is too long.
pub fn check_display_name(text: &str) -> Result<(), ApplicationError> {
    match text.chars().count() {
        length if length > MAX_DISPLAY_NAME => Err(ApplicationError::DisplayName(length)),
        _ => Ok(()),
    }
}

/// The name of a new blob of a package.
pub fn blob_name(application: &ApplicationId, version: &PackageVersion, unique: &str) -> String {
    format!("{}/{}/{unique}.zip", application.key(), version.key())
}

/// Keys of application and version in the name of such a blob.
pub fn of_blob(name: &str) -> Option<(&str, &str)> {
    let mut parts = name.split('/');
    let (application, version) = (parts.next()?, parts.next()?);
    (parts.next().is_some() && parts.next().is_none()).then_some((application, version))
}

impl Application {
    /// The package of that version.
    ///
    /// # Errors
    /// There is none.
    pub fn package(&self, version: &PackageVersion) -> Result<&Package, ApplicationError> {
        self.packages
            .iter()
            .find(|package| package.version == *version)
            .ok_or_else(|| ApplicationError::PackageNotFound(self.id.clone(), version.clone()))
    }

    /// What nodes install for a version, or for the default one.
    ///
    /// # Errors
    /// There is none, or it is not active.
    pub fn resolve(&self, version: Option<&PackageVersion>) -> Result<Resolved, ApplicationError> {
        let version = version.or(self.default_version.as_ref());
        let package = self.package(version.ok_or_else(|| ApplicationError::NoDefault(self.id.clone()))?)?;
        let not_active = || ApplicationError::NotActive(self.id.clone(), package.version.clone());
        Ok(Resolved {
            application: self.id.clone(),
            version: package.version.clone(),
            content: package.content.clone().ok_or_else(not_active)?,
        })
    }

    /// Whether a zip of that version may be announced.
    ///
    /// # Errors
    /// It would replace what must stay, or there are too many.
    pub fn check_create(&self, version: &PackageVersion) -> Result<(), ApplicationError> {
        match self.package(version) {
            Ok(package) if package.content.is_some() && !self.allow_updates => {
                Err(ApplicationError::UpdatesNotAllowed(self.id.clone()))
            }
            Ok(_) => Ok(()),
            Err(_) if self.packages.len() >= MAX_PACKAGES => Err(ApplicationError::TooManyPackages(self.id.clone())),
            Err(_) => Ok(()),
        }
    }

    /// Whether that version may be deleted.
    ///
    /// # Errors
    /// There is none, or it must stay. What was never active may always go.
    pub fn check_delete(&self, version: &PackageVersion) -> Result<&Package, ApplicationError> {
        let package = self.package(version)?;
        if package.content.is_some() && !self.allow_updates {
            return Err(ApplicationError::UpdatesNotAllowed(self.id.clone()));
        }
        Ok(package)
    }

    /// Whether that version may become the default.
    ///
    /// # Errors
    /// There is none, or it is not active.
    pub fn check_default(&self, version: &PackageVersion) -> Result<PackageVersion, ApplicationError> {
        self.resolve(Some(version)).map(|found| found.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(version: &str, active: bool) -> Package {
        let content = PackageContent {
            blob: "b".into(),
            etag: "e".into(),
            md5: None,
            length: 1,
            activated: Timestamp::default(),
        };
        Package {
            version: PackageVersion::parse(version).unwrap(),
            content: active.then_some(content),
            pending: (!active).then(|| "p".to_owned()),
            created: Timestamp::default(),
        }
    }

    fn application(allow_updates: bool, packages: Vec<Package>) -> Application {
        Application {
            id: ApplicationId::parse("Tool").unwrap(),
            display_name: String::new(),
            allow_updates,
            default_version: None,
            packages,
            created: Timestamp::default(),
            modified: Timestamp::default(),
        }
    }

    fn word<T: std::fmt::Debug>(result: Result<T, ApplicationError>) -> &'static str {
        result.map_or_else(|error| error.parts().0, |_| "ok")
    }

    fn v(text: &str) -> PackageVersion {
        PackageVersion::parse(text).unwrap()
    }

    #[test]
    fn references_mean_an_active_version_or_the_default() {
        let mut tool = application(true, vec![package("1.0", true), package("2.0-RC", false)]);
        assert_eq!(word(tool.resolve(None)), "ApplicationHasNoDefaultVersion");
        assert_eq!(word(tool.resolve(Some(&v("3")))), "ApplicationPackageNotFound");
        assert_eq!(word(tool.resolve(Some(&v("2.0-rc")))), "ApplicationPackageNotActive");
        assert_eq!(word(tool.check_default(&v("2.0-rc"))), "ApplicationPackageNotActive");
        tool.default_version = Some(v("1.0"));
        assert_eq!(tool.resolve(None).unwrap().version.as_str(), "1.0");
        let shown = ApplicationError::InvalidReference(Box::new(tool.resolve(Some(&v("3"))).unwrap_err()));
        assert_eq!(shown.details(), [("ApplicationPackageReference", "Tool:3".to_owned())]);
    }

    #[test]
    fn what_was_active_stays_if_updates_are_not_allowed() {
        for (allowed, replace, delete) in
            [(true, "ok", "ok"), (false, "ApplicationUpdatesNotAllowed", "ApplicationUpdatesNotAllowed")]
        {
            let tool = application(allowed, vec![package("1", true), package("2", false)]);
            assert_eq!(word(tool.check_create(&v("1"))), replace);
            assert_eq!(word(tool.check_delete(&v("1"))), delete);
            for other in ["2", "3"] {
                assert_eq!(word(tool.check_create(&v(other))), "ok", "{other}");
            }
            assert_eq!(word(tool.check_delete(&v("2"))), "ok");
            assert_eq!(word(tool.check_delete(&v("3"))), "ApplicationPackageNotFound");
        }
        let full = application(true, (0..MAX_PACKAGES).map(|n| package(&n.to_string(), true)).collect());
        assert_eq!(word(full.check_create(&v("new"))), "ApplicationPackageQuotaReached");
        assert_eq!(word(full.check_create(&v("7"))), "ok");
    }

    #[test]
    fn names_of_blobs_tell_their_package() {
        let name = blob_name(&ApplicationId::parse("Tool-1").unwrap(), &v("2.0-RC"), "u");
        assert_eq!(name, "tool-1/2.0-rc/u.zip");
        assert_eq!(of_blob(&name), Some(("tool-1", "2.0-rc")));
        for other in ["", "a", "a/b", "a/b/c/d"] {
            assert_eq!(of_blob(other), None, "{other}");
        }
        assert!(id("id", "a.b").is_err() && version("version", "a.b").is_ok() && version("version", "a/b").is_err());
    }
}
