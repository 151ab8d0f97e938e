//! Packages of applications on this node.
//!
//! A reference is resolved by storage-svc, with the node's token: what is the default version
//! now, and which content a version has ([`fetch`]). The zip is unpacked
//! beside its place ([`unpack`]), which it takes by a rename: `applications/<application>/<version>` below
//! the node's root, where all tasks find it.
//!
//! What was installed stays for this life of the agent, whatever happens to the package. A mark in the
//! agent's own directory says what is there, so that the next life takes it over if it is still
//! what the reference means. The mark names the boot of the machine: files are not flushed, and are not
//! believed after a loss of power.

mod fetch;
mod unpack;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::{StreamExt, TryStreamExt};
use kiln_ids::{ApplicationId, PackageVersion};
use kiln_proto::common::v1::ApplicationPackageReference;
use kiln_proto::storage::v1::ResolvedPackage;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::domain::failure::Failure;
use crate::domain::packages::variables;
use crate::stage::transfer::{Http, TransferError};
use unpack::{UnpackError, make_directory, unpack};

/// Directory of all packages, below the node's root.
pub const APPLICATIONS_DIR: &str = "applications";
/// Packages that are fetched and unpacked at once.
const PARALLEL: usize = 4;
/// So often a package is resolved anew because it was replaced meanwhile.
const TRIES: u32 = 3;
/// The word of Azure Batch for everything that is wrong with a package.
const CODE: &str = "ApplicationPackageError";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Names with values of an environment.
pub type Variables = Vec<(String, String)>;

/// See the module; clones share everything.
#[derive(Debug, Clone)]
pub struct Packages {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: Http,
    /// Where packages are: absolute.
    applications: PathBuf,
    /// Marks of what is there; nobody but the agent writes here.
    marks: PathBuf,
    /// Zips and half-unpacked packages.
    work: PathBuf,
    /// Bytes that one package may become.
    limit: u64,
    boot: String,
    permits: Semaphore,
    /// Cancelled when the agent ends.
    over: CancellationToken,
    slots: Mutex<HashMap<Key, Slot>>,
    /// Of the packages of the pool.
    pool: RwLock<Arc<Variables>>,
}

/// Lower-case forms of application and version.
type Key = (String, String);
/// Held by whoever installs the package; what it has is for this life.
type Slot = Arc<tokio::sync::Mutex<Option<Installed>>>;

/// A package that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Installed {
    application: String,
    version: String,
    /// The zip: no two contents have the same name and ETag.
    blob: String,
    etag: String,
    /// Of the machine.
    boot: String,
}

/// What a process wants.
#[derive(Debug, Clone)]
struct Wanted {
    application: ApplicationId,
    version: Option<PackageVersion>,
}

impl Wanted {
    fn parse(reference: &ApplicationPackageReference) -> Result<Self, Failure> {
        let bad = |why: kiln_ids::InvalidId| Failure::user(CODE, format!("application package reference: {why}"));
        let version = Some(&*reference.version).filter(|version| !version.is_empty());
        Ok(Self {
            application: ApplicationId::parse(&reference.application_id).map_err(bad)?,
            version: version.map(PackageVersion::parse).transpose().map_err(bad)?,
        })
    }

    /// As Azure shows it: `app:version`.
    fn shown(&self) -> String {
        match &self.version {
            Some(version) => format!("{}:{version}", self.application),
            None => self.application.to_string(),
        }
    }

    /// The word, a message, and which package it is about.
    fn failure(&self, server: bool, why: impl std::fmt::Display) -> Failure {
        let message = format!("application package {}: {why}", self.shown());
        let failure = if server { Failure::server(CODE, message) } else { Failure::user(CODE, message) };
        failure.with("ApplicationPackageReference", self.shown())
    }
}

impl Packages {
    /// Packages of the node whose directory for packages is `applications` and whose own
    /// one is `state`. What an earlier life left half-done is removed.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn create(
        applications: PathBuf,
        state: &Path,
        limit: u64,
        http: Http,
        over: CancellationToken,
    ) -> io::Result<Self> {
        let (marks, work) = (state.join("packages"), state.join("unpacking"));
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&work)?,
        }
        std::fs::create_dir_all(&marks)?;
        // Without one, nothing of an earlier life is believed.
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_else(|_| uuid::Uuid::new_v4().to_string());
        let inner = Inner {
            http,
            applications,
            marks,
            work,
            limit,
            boot: boot.trim().to_owned(),
            permits: Semaphore::new(PARALLEL),
            over,
            slots: Mutex::default(),
            pool: RwLock::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Installs the packages of the pool; every process of the node is told of them from now on.
    ///
    /// # Errors
    /// The first failure.
    pub async fn install_for_pool(
        &self,
        references: &[ApplicationPackageReference],
        blob_endpoint: &str,
    ) -> Result<(), Failure> {
        let variables = self.install(references, blob_endpoint).await?;
        *self.inner.pool.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(variables);
        Ok(())
    }

    /// Variables of the packages of the pool.
    pub fn of_pool(&self) -> Arc<Variables> {
        self.inner.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Installs what is not there yet; gives the variables that tell where the packages are.
    /// Goes on when the caller goes away: others may wait for the same package.
    ///
    /// # Errors
    /// The first failure.
    pub async fn install(
        &self,
        references: &[ApplicationPackageReference],
        blob_endpoint: &str,
    ) -> Result<Variables, Failure> {
        let wanted: Vec<Wanted> = references.iter().map(Wanted::parse).collect::<Result<_, _>>()?;
        let mut installs = futures::stream::iter(wanted)
            .map(|wanted| {
                let (packages, endpoint, lost) = (self.clone(), blob_endpoint.to_owned(), wanted.clone());
                let work = kiln_telemetry::spawn(async move { packages.install_one(&wanted, &endpoint).await });
                async move { work.await.unwrap_or_else(|error| Err(lost.failure(true, error))) }
            })
            .buffered(PARALLEL);
        let mut all = Variables::new();
        while let Some(variables) = installs.try_next().await? {
            all.extend(variables);
        }
        Ok(all)
    }

    async fn install_one(&self, wanted: &Wanted, blob_endpoint: &str) -> Result<Variables, Failure> {
        // The usual case: neither a question nor a wait.
        if let Some(version) = &wanted.version
            && let Some(there) = self.ready(&key(wanted.application.as_str(), version.as_str()))
        {
            return Ok(self.variables(wanted, &there));
        }
        let mut left = TRIES;
        loop {
            left -= 1;
            let resolved = match fetch::resolve(&self.inner.http, blob_endpoint, wanted).await {
                Ok(resolved) => resolved,
                Err(error) => return self.take_over(wanted, &error).await,
            };
            match self.install_resolved(&resolved, blob_endpoint).await {
                Ok(there) => return Ok(self.variables(wanted, &there)),
                Err(Trouble::Replaced(why)) if left == 0 => return Err(wanted.failure(true, why)),
                Err(Trouble::Replaced(why)) => tracing::debug!(why, "a package was replaced while it was fetched"),
                Err(Trouble::Transfer(error)) => return Err(transfer_failure(wanted, &error)),
                Err(Trouble::Unpack(error)) => return Err(unpack_failure(wanted, &error)),
            }
        }
    }

    /// What this life has of a package, if nobody is at work on it.
    fn ready(&self, key: &Key) -> Option<Installed> {
        let slot = self.slots().get(key)?.clone();
        slot.try_lock().ok()?.clone()
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Slot>> {
        self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn install_resolved(&self, resolved: &ResolvedPackage, blob_endpoint: &str) -> Result<Installed, Trouble> {
        let key = key(&resolved.application_id, &resolved.version);
        let slot = self.slots().entry(key.clone()).or_default().clone();
        let mut held = slot.lock().await;
        if let Some(there) = &*held {
            return Ok(there.clone());
        }
        let result = self.bring(&key, resolved, blob_endpoint).await;
        match &result {
            Ok(there) => *held = Some(there.clone()),
            // Else names of packages that cannot be installed would be remembered for ever.
            Err(_) => {
                let mut slots = self.slots();
                if Arc::strong_count(&slot) <= 2 {
                    slots.remove(&key);
                }
            }
        }
        result
    }

    async fn bring(&self, key: &Key, resolved: &ResolvedPackage, blob_endpoint: &str) -> Result<Installed, Trouble> {
        let wanted = Installed {
            application: resolved.application_id.clone(),
            version: resolved.version.clone(),
            blob: resolved.blob.clone(),
            etag: resolved.etag.clone(),
            boot: self.inner.boot.clone(),
        };
        if self.marked(key).await.is_some_and(|mark| mark == wanted) {
            tracing::debug!(application = wanted.application, version = wanted.version, "package is there already");
            return Ok(wanted);
        }
        let _permit = self.inner.permits.acquire().await;
        let work = self.inner.work.join(uuid::Uuid::new_v4().simple().to_string());
        let (zip, unpacked) = (work.with_extension("zip"), work);
        let result = async {
            fetch::download(&self.inner.http, blob_endpoint, resolved, &self.inner.permits, &zip).await?;
            let (packages, key, mark) = (self.clone(), key.clone(), wanted.clone());
            let (from, into) = (zip.clone(), unpacked.clone());
            let placed = tokio::task::spawn_blocking(move || packages.place(&key, &mark, &from, &into)).await;
            placed.unwrap_or_else(|error| Err(UnpackError::Unreadable(error.to_string()))).map_err(Trouble::Unpack)
        }
        .await;
        // One of them or both may not exist.
        let _ = tokio::fs::remove_file(&zip).await;
        let _ = tokio::fs::remove_dir_all(&unpacked).await;
        result?;
        tracing::info!(application = wanted.application, version = wanted.version, "package installed");
        Ok(wanted)
    }

    /// Unpacks, and puts the result in its place. Blocks.
    fn place(&self, key: &Key, mark: &Installed, zip: &Path, unpacked: &Path) -> Result<(), UnpackError> {
        let failed = |path: &Path, error: io::Error| UnpackError::Io { path: path.to_owned(), error };
        unpack(zip, unpacked, self.inner.limit, &self.inner.over)?;
        let parent = self.inner.applications.join(&key.0);
        for directory in [&self.inner.applications, &parent] {
            match make_directory(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(directory, error)),
                _ => {}
            }
            // A task of the agent's user could have put a link there.
            if !std::fs::symlink_metadata(directory).map_err(|error| failed(directory, error))?.is_dir() {
                return Err(failed(directory, io::Error::other("is no directory")));
            }
        }
        let mark_path = self.mark_path(key);
        match std::fs::remove_file(&mark_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&mark_path, error)),
            _ => {}
        }
        let place = parent.join(&key.1);
        let old = unpacked.with_extension("old");
        match std::fs::rename(&place, &old) {
            // Goes at the next start if it cannot be removed now.
            Ok(()) => drop(std::fs::remove_dir_all(&old)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&place, error)),
        }
        std::fs::rename(unpacked, &place).map_err(|error| failed(&place, error))?;
        let text = serde_json::to_vec(mark).map_err(|error| failed(&mark_path, error.into()))?;
        std::fs::write(&mark_path, text).map_err(|error| failed(&mark_path, error))
    }

    fn mark_path(&self, key: &Key) -> PathBuf {
        // No id of an application has a dot, so no two packages share a mark.
        self.inner.marks.join(format!("{}.{}.json", key.0, key.1))
    }

    /// What was installed there in this boot of the machine.
    async fn marked(&self, key: &Key) -> Option<Installed> {
        let text = tokio::fs::read(self.mark_path(key)).await.ok()?;
        let mark: Installed = serde_json::from_slice(&text).ok()?;
        let place = self.place_of(key);
        let is_there = tokio::fs::symlink_metadata(&place).await.is_ok_and(|found| found.is_dir());
        (is_there && mark.boot == self.inner.boot).then_some(mark)
    }

    /// Storage cannot be asked: a version that an earlier life has installed is still that version.
    async fn take_over(&self, wanted: &Wanted, error: &TransferError) -> Result<Variables, Failure> {
        let refused =
            matches!(error, TransferError::NotFound(_) | TransferError::Conflict(_) | TransferError::Denied(_));
        if let (false, Some(version)) = (refused, &wanted.version) {
            let key = key(wanted.application.as_str(), version.as_str());
            if let Some(mark) = self.marked(&key).await {
                tracing::warn!(%error, package = wanted.shown(), "a package is taken as an earlier life left it");
                return Ok(self.variables(wanted, &mark));
            }
        }
        Err(transfer_failure(wanted, error))
    }

    fn place_of(&self, key: &Key) -> PathBuf {
        self.inner.applications.join(&key.0).join(&key.1)
    }

    fn variables(&self, wanted: &Wanted, there: &Installed) -> Variables {
        let place = self.place_of(&key(&there.application, &there.version)).to_string_lossy().into_owned();
        let version = wanted.version.as_ref().map(|_| &*there.version);
        variables(&there.application, version).into_iter().map(|name| (name, place.clone())).collect()
    }
}

fn key(application: &str, version: &str) -> Key {
    (application.to_ascii_lowercase(), version.to_ascii_lowercase())
}

/// Why a resolved package is not there.
#[derive(Debug)]
enum Trouble {
    /// It means something else by now.
    Replaced(String),
    Transfer(TransferError),
    Unpack(UnpackError),
}

fn transfer_failure(wanted: &Wanted, error: &TransferError) -> Failure {
    match error {
        TransferError::NotFound(_) | TransferError::Conflict(_) => wanted.failure(false, error),
        TransferError::DiskFull => Failure::server("DiskFull", "the node's disk is full"),
        _ => wanted.failure(true, error),
    }
}

fn unpack_failure(wanted: &Wanted, error: &UnpackError) -> Failure {
    match error {
        UnpackError::Io { error, .. }
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            Failure::server("DiskFull", "the node's disk is full")
        }
        UnpackError::Io { .. } | UnpackError::Stopped => wanted.failure(true, error),
        UnpackError::NotAZip(_) | UnpackError::Unreadable(_) | UnpackError::Refused(_) | UnpackError::Twice(_) => {
            wanted.failure(false, error)
        }
    }
}
