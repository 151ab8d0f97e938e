//! Whom an outgoing connection trusts, and which certificate it shows.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use crate::files::{self, Files, TlsError};
use crate::live::Live;
use crate::provider;

/// TLS of outgoing connections; clones share it.
#[derive(Debug, Clone)]
pub struct ClientTls(Source);

#[derive(Debug, Clone)]
enum Source {
    Fixed(Arc<ClientConfig>),
    Live(Arc<Live>),
}

impl ClientTls {
    /// Trusts the authorities that this system trusts.
    ///
    /// # Errors
    /// If they cannot be read, or there are none.
    pub fn system() -> Result<Self, TlsError> {
        // They are hundreds, and channels are made for every account.
        static SYSTEM: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        if let Some(config) = SYSTEM.get() {
            return Ok(Self(Source::Fixed(config.clone())));
        }
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems have some that rustls refuses, for reasons that are theirs.
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
            return Err(TlsError::System(why));
        }
        let made = Arc::new(config(Arc::new(roots), None)?);
        Ok(Self(Source::Fixed(SYSTEM.get_or_init(|| made).clone())))
    }

    /// Trusts the authorities in a PEM text and nobody else; shows the
    /// certificate in `own` if one is given.
    ///
    /// # Errors
    /// If text or files cannot be used.
    pub fn with_authority(pem: &str, own: Option<&Files>) -> Result<Self, TlsError> {
        let roots = files::roots(Path::new("the certificate authority"), pem.as_bytes())?;
        let key = own.map(|files| Ok::<_, TlsError>(files.check(&files.read()?, false)?.key)).transpose()?;
        Ok(Self(Source::Fixed(Arc::new(config(Arc::new(roots), key)?))))
    }

    /// As [`ClientTls::with_authority`], from a file.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn with_authority_file(path: &Path) -> Result<Self, TlsError> {
        let roots = files::roots(path, &files::read(path)?)?;
        Ok(Self(Source::Fixed(Arc::new(config(Arc::new(roots), None)?))))
    }

    /// A service's own: its certificate and authority, as they are at the time
    /// of each connection.
    pub fn of_service(live: Arc<Live>) -> Self {
        Self(Source::Live(live))
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ClientConfig> {
        match &self.0 {
            Source::Fixed(config) => config.clone(),
            Source::Live(live) => live.client_config(),
        }
    }
}

/// For gRPC: HTTP/2 only.
pub(crate) fn config(roots: Arc<RootCertStore>, key: Option<Arc<CertifiedKey>>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
