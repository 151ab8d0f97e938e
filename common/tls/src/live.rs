//! A certificate in use, replaced when its files change.
//!
//! The files are read every second and compared with what is in use. What has
//! changed is tried when it was the same twice in a row, since certificate and
//! key are two files that are written one after the other. If it can be used,
//! new connections get it, and those that are open go on with the old one. If
//! not, that is told once, and the old one stays.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_telemetry::prometheus::{self, IntGaugeVec, Opts};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::client;
use crate::files::{Contents, Files, Material, TlsError, client_verifier};
use crate::names::CertificateInfo;
use crate::provider;

/// How often the files are read.
const LOOK: Duration = Duration::from_secs(1);

/// Whether callers of a port show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They may; what they may do without one is decided by call.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// See the module.
pub struct Live {
    name: &'static str,
    files: Files,
    clients: ClientCertificates,
    mutual: bool,
    used: RwLock<Arc<Used>>,
}

struct Used {
    contents: Contents,
    info: CertificateInfo,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Seconds until the certificate of each port of this process expires.
fn metric() -> Option<&'static IntGaugeVec> {
    static METRIC: OnceLock<Option<IntGaugeVec>> = OnceLock::new();
    METRIC
        .get_or_init(|| {
            let options = Opts::new(
                "kiln_certificate_expires_in_seconds",
                "Time until the certificate in use expires, by what it is for",
            );
            let metric = IntGaugeVec::new(options, &["certificate"]).ok()?;
            prometheus::register(Box::new(metric.clone())).ok()?;
            Some(metric)
        })
        .as_ref()
}

fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Live {
    /// The certificate of a service: its authority must have issued it, and
    /// callers are checked against the same.
    ///
    /// # Errors
    /// If the files cannot be used.
    pub fn service(files: Files, clients: ClientCertificates) -> Result<Arc<Self>, TlsError> {
        if files.authority.is_none() {
            return Err(TlsError::Setup("a service needs the authority of the others".to_owned()));
        }
        Self::open("service", files, clients, true)
    }

    /// The certificate of a port for users. With an authority, certificates of
    /// services are recognized; nobody has to show one.
    ///
    /// # Errors
    /// If the files cannot be used.
    pub fn public(files: Files) -> Result<Arc<Self>, TlsError> {
        Self::open("public", files, ClientCertificates::Optional, false)
    }

    fn open(
        name: &'static str,
        files: Files,
        clients: ClientCertificates,
        mutual: bool,
    ) -> Result<Arc<Self>, TlsError> {
        let contents = files.read()?;
        let used = RwLock::new(Arc::new(use_now(&files, contents, clients, mutual)?));
        let live = Self { name, files, clients, mutual, used };
        live.show();
        Ok(Arc::new(live))
    }

    fn used(&self) -> Arc<Used> {
        self.used.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For the next connection that comes in.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.used().server.clone()
    }

    /// For the next connection that goes out.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.used().client.clone()
    }

    /// The certificate in use.
    pub fn info(&self) -> CertificateInfo {
        self.used().info.clone()
    }

    fn show(&self) {
        if let Some(metric) = metric() {
            metric.with_label_values(&[self.name]).set(self.used().info.seconds_left(now_seconds()));
        }
    }

    /// Looks at the files until `shutdown`.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut watcher = Watcher::default();
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let live = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                watcher.look(&live);
                watcher
            });
            match looked.await {
                Ok(same) => watcher = same,
                Err(error) => {
                    tracing::error!(%error, "the files of a certificate are no longer watched");
                    return;
                }
            }
        }
    }
}

/// What was seen of the files that is not in use.
#[derive(Default)]
struct Watcher {
    /// Once; it may be half of a change.
    seen: Option<Result<Contents, String>>,
    /// Twice, and could not be used.
    refused: Option<Result<Contents, String>>,
}

impl Watcher {
    fn look(&mut self, live: &Live) {
        live.show();
        let found = live.files.read().map_err(|error| error.to_string());
        if found.as_ref().is_ok_and(|found| *found == live.used().contents) {
            *self = Self::default();
            return;
        }
        if self.refused.as_ref() == Some(&found) {
            return;
        }
        if self.seen.as_ref() != Some(&found) {
            self.seen = Some(found);
            return;
        }
        self.seen = None;
        let tried = found.clone().and_then(|contents| {
            use_now(&live.files, contents, live.clients, live.mutual).map_err(|error| error.to_string())
        });
        match tried {
            Ok(used) => {
                let expires = text(used.info.not_after);
                *live.used.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(used);
                live.show();
                self.refused = None;
                tracing::info!(certificate = live.name, expires, "new connections use the new certificate");
            }
            Err(error) => {
                let expires = text(live.info().not_after);
                tracing::warn!(
                    certificate = live.name,
                    error,
                    expires,
                    "the new certificate cannot be used; the old one stays until it expires"
                );
                self.refused = Some(found);
            }
        }
    }
}

fn text(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn use_now(files: &Files, contents: Contents, clients: ClientCertificates, mutual: bool) -> Result<Used, TlsError> {
    let Material { key, info, roots } = files.check(&contents, mutual)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?;
    let builder = match &roots {
        Some(roots) => {
            builder.with_client_cert_verifier(client_verifier(roots, clients == ClientCertificates::Required)?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if roots.is_some() {
        // A session that is resumed is one whose certificate is not looked at again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    // A port for users calls nobody: then these trust nobody.
    let roots = roots.unwrap_or_else(|| Arc::new(RootCertStore::empty()));
    let client = client::config(roots, Some(key))?;
    Ok(Used { contents, info, server: Arc::new(server), client: Arc::new(client) })
}

impl fmt::Debug for Live {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        f.debug_struct("Live")
            .field("files", &self.files)
            .field("clients", &self.clients)
            .field("subject", &info.subject)
            .field("expires", &text(info.not_after))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::authority::{Authority, Issued, Kind, Request};

    const DAY: Duration = Duration::from_secs(86_400);

    fn request() -> Request {
        Request { kind: Kind::Service, name: "a-svc".to_owned(), hosts: Vec::new() }
    }

    fn write(dir: &Path, authority: &Authority, issued: &Issued) -> Files {
        let files =
            Files { certificate: dir.join("a.crt"), key: dir.join("a.key"), authority: Some(dir.join("ca.crt")) };
        std::fs::write(&files.certificate, &issued.certificate).unwrap();
        std::fs::write(&files.key, &issued.key).unwrap();
        std::fs::write(dir.join("ca.crt"), authority.certificate()).unwrap();
        files
    }

    #[test]
    fn a_new_certificate_is_used_when_it_was_seen_twice_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("test", DAY * 100).unwrap();
        let files = write(dir.path(), &authority, &authority.issue(&request(), DAY * 10).unwrap());
        let live = Live::service(files.clone(), ClientCertificates::Optional).unwrap();
        let first = live.info().not_after;
        let mut watcher = Watcher::default();
        watcher.look(&live);
        assert_eq!(live.info().not_after, first);

        write(dir.path(), &authority, &authority.issue(&request(), DAY * 20).unwrap());
        watcher.look(&live);
        assert_eq!(live.info().not_after, first, "the key may not be there yet");
        watcher.look(&live);
        let second = live.info().not_after;
        assert!(second > first);

        // Of another authority, of another key, no certificate, not there.
        let other = Authority::create("other", DAY * 100).unwrap();
        let good = std::fs::read(&files.certificate).unwrap();
        let foreign = other.issue(&request(), DAY).unwrap();
        let mut refused = Vec::new();
        for bad in [foreign.certificate.as_bytes(), b"nonsense", b""] {
            std::fs::write(&files.certificate, bad).unwrap();
            watcher.look(&live);
            watcher.look(&live);
            assert_eq!(live.info().not_after, second);
            refused.push(files.check(&files.read().unwrap(), true).err().unwrap().to_string());
        }
        assert!(refused[0].contains("was not issued by the authority in"), "{refused:?}");
        assert!(refused[1].contains("has no certificate"), "{refused:?}");
        std::fs::remove_file(&files.certificate).unwrap();
        watcher.look(&live);
        watcher.look(&live);
        assert_eq!(live.info().not_after, second);
        std::fs::write(&files.certificate, &good).unwrap();
        watcher.look(&live);
        assert!(watcher.refused.is_none(), "what is in use is back");

        std::fs::write(&files.key, &foreign.key).unwrap();
        let error = files.check(&files.read().unwrap(), true).err().unwrap().to_string();
        assert!(error.contains("a.key: is not the key of"), "{error}");
    }

    #[test]
    fn an_expired_certificate_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("test", DAY * 100).unwrap();
        let now = SystemTime::now();
        let expired = authority.issue_between(&request(), now - DAY, now - DAY / 2).unwrap();
        let files = write(dir.path(), &authority, &expired);
        let error = Live::service(files, ClientCertificates::Optional).unwrap_err().to_string();
        assert!(error.contains("a.crt: the certificate has expired"), "{error}");
    }
}
