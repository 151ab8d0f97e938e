//! Where the bytes are, as the settings say it, and the store that is there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path as StorePath;
use object_store::{ObjectStore, RetryConfig};
use url::Url;

/// Times that one request to a remote store is tried again.
const RETRIES: usize = 6;
/// How long that may take; then the client hears of it and may try again.
const RETRY_TIME: Duration = Duration::from_secs(60);

/// Where the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectsPlace {
    /// A directory of one process.
    Own(PathBuf),
    /// A directory of all replicas that share a catalogue.
    Shared(PathBuf),
    /// The memory of this process: gone with it.
    Memory,
    /// A bucket.
    Remote(RemotePlace),
}

/// A bucket of S3, Azure Blob Storage or Google Cloud Storage, and the path in it.
#[derive(Clone, PartialEq, Eq)]
pub struct RemotePlace {
    url: Url,
    options: BTreeMap<String, String>,
}

impl fmt::Debug for RemotePlace {
    /// Without the values of options: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.url, self.options.keys().collect::<Vec<_>>())
    }
}

/// What a remote store has to do.
pub trait Bucket: ObjectStore + MultipartStore {}
impl<T: ObjectStore + MultipartStore> Bucket for T {}

impl ObjectsPlace {
    /// Reads the setting `objects`: `memory:`, `file:///srv/blobs`,
    /// `s3://bucket/path`, `az://container/path` or `gs://bucket/path`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, options: BTreeMap<String, String>) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(
                "must have neither user nor parameters: credentials have a file or variables of their own".into()
            );
        }
        let bucket = url.host_str().filter(|host| !host.is_empty());
        let local = match url.scheme() {
            "memory" => Self::Memory,
            "file" if bucket.is_none() && url.path() != "/" => Self::Shared(Path::new(url.path()).to_owned()),
            "s3" | "az" | "gs" if bucket.is_some() => return Ok(Self::Remote(RemotePlace { url, options })),
            "s3" | "az" | "gs" | "file" => return Err("lacks the name of the bucket, or the directory".into()),
            _ => return Err("must begin with s3://, az://, gs://, file:/// or memory:".into()),
        };
        match options.keys().next() {
            Some(option) => Err(format!("has no options, so {option} means nothing")),
            None => Ok(local),
        }
    }

    /// Whether processes other than this one may write there.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_) | Self::Remote(_))
    }
}

/// Reads a file of options: lines of `name = value`.
///
/// # Errors
/// The number of a line that is something else; never its text, which may be a secret.
pub fn parse_options(text: &str) -> Result<BTreeMap<String, String>, String> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(|(number, line)| {
            let (name, value) = line.split_once('=').ok_or_else(|| format!("line {} is not NAME=VALUE", number + 1))?;
            Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect()
}

impl RemotePlace {
    /// Path below which everything is; may be empty.
    pub(super) fn prefix(&self) -> StorePath {
        StorePath::from(self.url.path())
    }

    /// The store, by its options and the variables of the environment that its
    /// own tools use (`AWS_*`, `AZURE_*`, `GOOGLE_*`). Does not connect.
    ///
    /// # Errors
    /// An option that it does not know or that is missing.
    pub fn open(&self) -> Result<Arc<dyn Bucket>, String> {
        // Clients of stores take the provider of the process; there may be one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIME, ..RetryConfig::default() };
        let unknown = |name: &str| format!("does not know the option {name}");
        let refused = |error: object_store::Error| format!("cannot be used: {error}");
        let url = format!("{}://{}", self.url.scheme(), self.url.host_str().unwrap_or_default());
        macro_rules! built {
            ($builder:ty) => {{
                let mut builder = <$builder>::from_env().with_url(url).with_retry(retry);
                for (name, value) in &self.options {
                    builder = builder.with_config(name.parse().map_err(|_| unknown(name))?, value);
                }
                Ok(Arc::new(builder.build().map_err(refused)?))
            }};
        }
        match self.url.scheme() {
            "s3" => built!(AmazonS3Builder),
            "az" => built!(MicrosoftAzureBuilder),
            _ => built!(GoogleCloudStorageBuilder),
        }
    }
}

/// The store of [`ObjectsPlace::Memory`].
pub(super) fn memory() -> Arc<dyn Bucket> {
    Arc::new(InMemory::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ObjectsPlace, String> {
        ObjectsPlace::parse(text, BTreeMap::new())
    }

    #[test]
    fn places_are_understood_or_say_why_not() {
        assert_eq!(parse("memory:"), Ok(ObjectsPlace::Memory));
        assert_eq!(parse("file:///srv/blobs"), Ok(ObjectsPlace::Shared("/srv/blobs".into())));
        let Ok(ObjectsPlace::Remote(remote)) = parse("s3://bucket/a/b/") else { panic!("no bucket") };
        assert_eq!(remote.prefix().as_ref(), "a/b");
        for (text, why) in [
            ("/srv/blobs", "no URL"),
            ("ftp://x/y", "must begin with"),
            ("s3:///x", "lacks the name"),
            ("file:///", "lacks the name"),
            ("s3://user:secret@bucket", "neither user"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}: {:?}", parse(text));
        }
        let options = BTreeMap::from([("region".to_owned(), "x".to_owned())]);
        assert!(ObjectsPlace::parse("memory:", options).unwrap_err().contains("region"));
    }

    #[test]
    fn options_are_checked_before_anything_is_written() {
        let place = |url: &str, options: &str| match ObjectsPlace::parse(url, parse_options(options).unwrap()) {
            Ok(ObjectsPlace::Remote(remote)) => remote,
            other => panic!("{other:?}"),
        };
        let s3 = "aws_region = eu-1\n# a comment\n\nAWS_ACCESS_KEY_ID=a\naws_secret_access_key=b=c\nallow_http=true";
        let remote = place("s3://bucket/x", s3);
        remote.open().unwrap();
        assert!(!format!("{remote:?}").contains("b=c"), "{remote:?}");
        assert!(place("s3://bucket", "colour=red").open().err().unwrap().contains("colour"));
        assert!(place("az://container", "account_key=no").open().is_err());
        assert!(parse_options("a=b\nsecret").unwrap_err().contains("line 2"));
    }
}
