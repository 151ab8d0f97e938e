//! Certificates and keys from PEM files, checked against each other before
//! anything uses them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use crate::names::CertificateInfo;
use crate::provider;

/// Larger files are no certificates and no keys.
const MAX_BYTES: u64 = 1024 * 1024;

/// Where the certificate of a port, its key and the authority are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, then those of intermediate authorities; PEM.
    pub certificate: PathBuf,
    /// Its private key; PEM.
    pub key: PathBuf,
    /// Authorities whose certificates are accepted from the other side; PEM.
    pub authority: Option<PathBuf>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what is expected.
        why: String,
    },
    /// The certificates of this machine cannot be read.
    #[error("the certificate authorities of this system cannot be read: {0}")]
    System(String),
    /// They cannot be put together.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsError {
    pub(crate) fn file(path: &Path, why: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), why: why.into() }
    }
}

/// What is in [`Files`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<Vec<u8>>,
}

/// [`Contents`], understood and checked.
pub(crate) struct Material {
    pub key: Arc<CertifiedKey>,
    pub info: CertificateInfo,
    pub roots: Option<Arc<RootCertStore>>,
}

/// Reads a file of a sensible size.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error: std::io::Error| TlsError::file(path, error.to_string());
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(TlsError::file(path, "is too large for a certificate or a key"));
    }
    std::fs::read(path).map_err(failed)
}

/// All certificates in a PEM text.
pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::file(path, "has no certificate (PEM, BEGIN CERTIFICATE)")),
        Err(error) => Err(TlsError::file(path, format!("is no PEM file: {error}"))),
    }
}

/// Authorities in a PEM text.
pub(crate) fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| TlsError::file(path, format!("has an unusable authority: {error}")))?;
    }
    Ok(roots)
}

impl Files {
    pub(crate) fn read(&self) -> Result<Contents, TlsError> {
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            authority: self.authority.as_deref().map(read).transpose()?,
        })
    }

    /// Checks that the certificate is valid now, that the key is its own, and,
    /// if an authority is named, that it issued the certificate where
    /// `own_authority` says so.
    pub(crate) fn check(&self, contents: &Contents, own_authority: bool) -> Result<Material, TlsError> {
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let wrong = |why: String| TlsError::file(&self.certificate, why);
        let first = chain.first().ok_or_else(|| wrong("has no certificate".to_owned()))?;
        let info = CertificateInfo::parse(first).map_err(wrong)?;
        let now = UnixTime::now();
        if info.seconds_left(now.as_secs().cast_signed()) < 0 {
            return Err(wrong("the certificate has expired; renew it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| TlsError::file(&self.key, format!("has no private key (PEM): {error}")))?;
        let roots = match (&self.authority, &contents.authority) {
            (Some(path), Some(pem)) => Some(Arc::new(roots(path, pem)?)),
            _ => None,
        };
        if let Some(roots) = roots.as_ref().filter(|_| own_authority) {
            self.check_issuer(roots, &chain, now)?;
        }
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::file(&self.key, format!("is not the key of {}", self.certificate.display()))
            }
            other => TlsError::file(&self.key, other.to_string()),
        })?;
        Ok(Material { key: Arc::new(key), info, roots })
    }

    /// Others will check the same, and say less about it.
    fn check_issuer(
        &self,
        roots: &Arc<RootCertStore>,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let verifier = client_verifier(roots, true)?;
        let Some((first, rest)) = chain.split_first() else { return Ok(()) };
        verifier.verify_client_cert(first, rest, now).map(drop).map_err(|error| {
            let why = match &error {
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                    let authority = self.authority.as_deref().unwrap_or(Path::new(""));
                    format!("was not issued by the authority in {}", authority.display())
                }
                _ => format!("cannot be shown to other services: {error}"),
            };
            TlsError::file(&self.certificate, why)
        })
    }
}

/// Checks certificates of clients; those without one pass unless `required`.
pub(crate) fn client_verifier(
    roots: &Arc<RootCertStore>,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| TlsError::Setup(error.to_string()))
}

/// What the first certificate of a file says.
///
/// # Errors
/// If the file cannot be read or has none.
pub fn info(path: &Path) -> Result<CertificateInfo, TlsError> {
    let found = certificates(path, &read(path)?)?;
    let first = found.first().ok_or_else(|| TlsError::file(path, "has no certificate"))?;
    CertificateInfo::parse(first).map_err(|why| TlsError::file(path, why))
}
