//! Resource files arrive in the working directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use kiln_proto::common::v1::ResourceFile;
use kiln_proto::common::v1::resource_file::Source;
use url::Url;

use super::cache::Cache;
use super::listing;
use super::transfer::{Access, Http, TransferError, without_query};
use super::writer::blocking;
use crate::domain::failure::Failure;
use crate::domain::paths;

/// Files of one task that are fetched at once.
const PARALLEL_PER_TASK: usize = 8;
const DEFAULT_MODE: u32 = 0o770;

/// Brings resource files in.
#[derive(Debug)]
pub struct Input {
    /// Lists containers.
    pub http: Http,
    /// Fetches files.
    pub cache: Cache,
}

/// One file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Download {
    url: Url,
    access: Access,
    /// Relative to the working directory.
    target: PathBuf,
    mode: u32,
}

impl Input {
    /// Brings all `files` into `working_dir`. `blob_endpoint` is the data plane
    /// of the node's account.
    ///
    /// # Errors
    /// The first failure.
    pub async fn fetch_all(
        &self,
        files: &[ResourceFile],
        working_dir: &Path,
        blob_endpoint: &str,
    ) -> Result<(), Failure> {
        if files.is_empty() {
            return Ok(());
        }
        let mut downloads = Vec::new();
        for file in files {
            downloads.extend(self.plan(file, blob_endpoint).await?);
        }
        let base = tokio::fs::canonicalize(working_dir)
            .await
            .map_err(|error| Failure::server("ResourceDirectoryCreateFailed", format!("working directory: {error}")))?;
        futures::stream::iter(downloads)
            .map(|download| self.fetch(download, &base))
            .buffer_unordered(PARALLEL_PER_TASK)
            .try_collect::<()>()
            .await
    }

    async fn plan(&self, file: &ResourceFile, blob_endpoint: &str) -> Result<Vec<Download>, Failure> {
        let mode = mode(&file.file_mode)?;
        match &file.source {
            Some(Source::HttpUrl(url)) => {
                let url = web_url(url)?;
                let target = target(&file.file_path)?;
                Ok(vec![Download { url, access: Access::Url, target, mode }])
            }
            Some(Source::StorageContainerUrl(url)) => self.plan_container(web_url(url)?, Access::Url, file, mode).await,
            Some(Source::AutoStorageContainerName(name)) => {
                let container = web_url(blob_endpoint)
                    .ok()
                    .and_then(|endpoint| listing::blob_url(&endpoint, name))
                    .ok_or_else(|| Failure::server("ResourceContainerListMiscError", "the account has no storage"))?;
                self.plan_container(container, Access::Node, file, mode).await
            }
            None => Err(Failure::user("BlobNotFound", "a resource file has no source")),
        }
    }

    async fn plan_container(
        &self,
        container: Url,
        access: Access,
        file: &ResourceFile,
        mode: u32,
    ) -> Result<Vec<Download>, Failure> {
        let names = listing::list(&self.http, &container, access, &file.blob_prefix)
            .await
            .map_err(|error| container_failure(&container, &error))?;
        let directory = paths::below_or_same(&file.file_path).map_err(|error| bad_target(&file.file_path, error))?;
        let mut downloads = Vec::new();
        // Some tools mark directories by empty blobs whose names end with a slash.
        for name in names.iter().filter(|name| !name.ends_with('/')) {
            let below = target(name)?;
            let url = listing::blob_url(&container, name)
                .ok_or_else(|| Failure::user("BlobDownloadMiscError", "a URL cannot be that of a container"))?;
            downloads.push(Download { url, access, target: directory.join(below), mode });
        }
        Ok(downloads)
    }

    async fn fetch(&self, download: Download, base: &Path) -> Result<(), Failure> {
        let target = base.join(&download.target);
        let parent = target.parent().unwrap_or(base).to_owned();
        create_directory(base, &parent).await?;
        // A name beside the target, so that the rename stays in one file system.
        let partial = parent.join(format!(".kiln-{}.part", uuid::Uuid::new_v4().simple()));
        let result = self.fetch_to(&download, &partial, &target).await;
        if result.is_err() {
            // It may not exist.
            let _ = tokio::fs::remove_file(&partial).await;
        }
        result
    }

    async fn fetch_to(&self, download: &Download, partial: &Path, target: &Path) -> Result<(), Failure> {
        self.cache
            .fetch(&download.url, download.access, partial)
            .await
            .map_err(|error| download_failure(&download.url, &error))?;
        let create_failed = |error: std::io::Error| {
            Failure::server("ResourceFileCreateFailed", format!("{}: {error}", download.target.display()))
                .with("FilePath", download.target.display().to_string())
        };
        let permissions = std::fs::Permissions::from_mode(download.mode);
        let (partial, target) = (partial.to_owned(), target.to_owned());
        blocking(move || {
            std::fs::set_permissions(&partial, permissions)?;
            // Replaces a file or link of that name, does not follow a link.
            std::fs::rename(partial, target)
        })
        .await
        .map_err(create_failed)
    }
}

fn web_url(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).map_err(|error| {
        Failure::user("BlobDownloadMiscError", format!("a resource file has no valid URL: {error}"))
    })?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        let message = format!("a resource file has a URL of the kind {:?}; only http and https are read", url.scheme());
        Err(Failure::user("BlobDownloadMiscError", message))
    }
}

fn mode(text: &str) -> Result<u32, Failure> {
    if text.is_empty() {
        return Ok(DEFAULT_MODE);
    }
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).map(|mode| mode & 0o777).ok_or_else(|| {
        Failure::user("ResourceFileCreateFailed", format!("file mode {text:?} is not octal, for example 0755"))
    })
}

fn target(text: &str) -> Result<PathBuf, Failure> {
    paths::below(text).map_err(|error| bad_target(text, error))
}

fn bad_target(text: &str, error: paths::InvalidPath) -> Failure {
    Failure::user("ResourceFileCreateFailed", format!("file path {text:?}: {error}")).with("FilePath", text)
}

/// Makes `directory` below `base`, refusing links that lead out of `base`.
async fn create_directory(base: &Path, directory: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::server("ResourceDirectoryCreateFailed", format!("{}: {error}", directory.display()))
    };
    // What exists already may be (or lie behind) a link of an earlier attempt:
    // check the deepest part that exists before anything is made below it.
    let mut existing = directory;
    let real = loop {
        match tokio::fs::canonicalize(existing).await {
            Ok(real) => break real,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && existing != base => {
                match tokio::fs::symlink_metadata(existing).await {
                    Ok(found) if found.is_symlink() => {
                        let message = format!("{} is a link to nothing", existing.display());
                        return Err(Failure::user("ResourceDirectoryCreateFailed", message));
                    }
                    // Made a moment ago for another file of the task: look again.
                    Ok(_) => continue,
                    Err(_) => {}
                }
                existing = existing.parent().unwrap_or(base);
            }
            Err(error) => return Err(failed(error)),
        }
    };
    if !real.starts_with(base) {
        let message = format!("{} leads out of the working directory", existing.display());
        return Err(Failure::user("ResourceDirectoryCreateFailed", message));
    }
    tokio::fs::create_dir_all(directory).await.map_err(failed)
}

fn download_failure(url: &Url, error: &TransferError) -> Failure {
    let message = format!("{}: {error}", without_query(url));
    let failure = match error {
        TransferError::NotFound(_) => Failure::user("BlobNotFound", message),
        TransferError::Denied(_) => Failure::user("BlobAccessDenied", message),
        TransferError::TimedOut(_) => Failure::server("BlobDownloadTimedOut", message),
        TransferError::Local(_) => Failure::server("ResourceFileWriteFailed", message),
        TransferError::DiskFull => Failure::server("DiskFull", message),
        TransferError::Conflict(_) | TransferError::Changed | TransferError::NoRanges | TransferError::Other(_) => {
            Failure::server("BlobDownloadMiscError", message)
        }
    };
    failure.with("BlobSource", without_query(url).to_string())
}

fn container_failure(container: &Url, error: &TransferError) -> Failure {
    let message = format!("{}: {error}", without_query(container));
    let failure = match error {
        TransferError::NotFound(_) => Failure::user("ResourceContainerNotFound", message),
        TransferError::Denied(_) => Failure::user("ResourceContainerAccessDenied", message),
        TransferError::TimedOut(_) => Failure::server("ResourceContainerListTimedOut", message),
        TransferError::Conflict(_)
        | TransferError::Changed
        | TransferError::NoRanges
        | TransferError::Local(_)
        | TransferError::DiskFull
        | TransferError::Other(_) => Failure::server("ResourceContainerListMiscError", message),
    };
    failure.with("ContainerSource", without_query(container).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_with_a_default() {
        assert_eq!(mode(""), Ok(0o770));
        assert_eq!(mode("0755"), Ok(0o755));
        assert_eq!(mode("600"), Ok(0o600));
        assert!(mode("0999").is_err() && mode("rwx").is_err() && mode("-1").is_err());
    }

    #[tokio::test]
    async fn links_that_lead_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap().join("wd");
        std::fs::create_dir(&base).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        std::os::unix::fs::symlink("/nowhere/x", base.join("dangling")).unwrap();
        std::fs::create_dir(base.join("in")).unwrap();
        std::os::unix::fs::symlink(base.join("in"), base.join("same")).unwrap();
        for bad in ["out/kiln-test", "dangling/a", "dangling"] {
            assert!(create_directory(&base, &base.join(bad)).await.is_err(), "{bad}");
        }
        for good in ["a/b/c", "same/x", ""] {
            create_directory(&base, &base.join(good)).await.unwrap();
        }
        assert!(base.join("in/x").is_dir());
    }
}
