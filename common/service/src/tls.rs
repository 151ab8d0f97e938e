//! Certificates of a service's ports, and what it shows to others.
//!
//! | key | |
//! |---|---|
//! | `tls_cert_file` | certificate of this service, and intermediate ones; PEM |
//! | `tls_key_file` | its private key; PEM |
//! | `tls_ca_file` | the authority that issues the certificates of all services; PEM |
//! | `tls_client_certificates` | `optional` (default): calls of services need one, agents and probes do not; `required`: nobody connects without |
//! | `public_tls_cert_file` | certificate of the port that users come to; PEM |
//! | `public_tls_key_file` | its private key; PEM |
//!
//! The first three go together, and so do the last two. Without them ports are
//! plain, which is right for loopback and behind a proxy alone. Files are read
//! again when they change (`kiln_tls::live`).

use std::path::PathBuf;
use std::sync::Arc;

use kiln_config::ConfigError;
use kiln_grpc::Port;
use kiln_tls::{ClientCertificates, ClientTls, Files, Live, TlsError};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The port that users come to. It has a certificate of its own, for they do
/// not know the deployment's authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicPort {
    /// None; users come through the gateway.
    None,
    /// The main one.
    Main,
    /// One beside the main one.
    Other,
}

/// The settings as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTls {
    tls_cert_file: Option<PathBuf>,
    tls_key_file: Option<PathBuf>,
    tls_ca_file: Option<PathBuf>,
    tls_client_certificates: Option<String>,
    public_tls_cert_file: Option<PathBuf>,
    public_tls_key_file: Option<PathBuf>,
}

/// The keys of [`RawTls`]. The first is for services whose main port is not
/// public, the last two are for those with a public port.
const KEYS: [&str; 6] = [
    "tls_client_certificates",
    "tls_cert_file",
    "tls_key_file",
    "tls_ca_file",
    "public_tls_cert_file",
    "public_tls_key_file",
];

/// Certificates that were read and checked.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    service: Option<Arc<Live>>,
    public: Option<Arc<Live>>,
    /// The authority of the deployment.
    pub authority: Option<PathBuf>,
}

impl RawTls {
    /// Keys that a service may have.
    pub(crate) fn keys(public: PublicPort) -> &'static [&'static str] {
        match public {
            PublicPort::None => &KEYS[..KEYS.len() - 2],
            PublicPort::Main => &KEYS[1..],
            PublicPort::Other => &KEYS,
        }
    }

    /// Reads the files.
    pub(crate) fn open(self) -> Result<Tls, ConfigError> {
        let clients = match self.tls_client_certificates.as_deref() {
            None | Some("optional") => ClientCertificates::Optional,
            Some("required") => ClientCertificates::Required,
            Some(other) => {
                return Err(ConfigError::value("tls_client_certificates", other, "must be optional or required"));
            }
        };
        let authority = self.tls_ca_file.clone();
        let service = match (self.tls_cert_file, self.tls_key_file, self.tls_ca_file) {
            (None, None, None) if clients == ClientCertificates::Required => {
                return Err(ConfigError::value("tls_client_certificates", "required", "needs tls_ca_file"));
            }
            (None, None, None) => None,
            (Some(certificate), Some(key), Some(authority)) => {
                let shown = certificate.display().to_string();
                let files = Files { certificate, key, authority: Some(authority) };
                Some(Live::service(files, clients).map_err(unusable("tls_cert_file", shown))?)
            }
            (None, ..) => return Err(together("tls_cert_file", "tls_key_file and tls_ca_file")),
            (_, None, _) => return Err(together("tls_key_file", "tls_cert_file and tls_ca_file")),
            (.., None) => return Err(together("tls_ca_file", "tls_cert_file and tls_key_file")),
        };
        let public = match (self.public_tls_cert_file, self.public_tls_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let shown = certificate.display().to_string();
                let files = Files { certificate, key, authority: authority.clone() };
                Some(Live::public(files).map_err(unusable("public_tls_cert_file", shown))?)
            }
            (None, Some(_)) => return Err(together("public_tls_cert_file", "public_tls_key_file")),
            (Some(_), None) => return Err(together("public_tls_key_file", "public_tls_cert_file")),
        };
        Ok(Tls { service, public, authority })
    }
}

fn unusable(key: &'static str, value: String) -> impl FnOnce(TlsError) -> ConfigError {
    move |error| ConfigError::value(key, value, error.to_string())
}

fn together(key: &'static str, others: &str) -> ConfigError {
    ConfigError::value(key, "", format!("is required together with {others}"))
}

impl Tls {
    /// A port for other services and agents.
    pub fn port(&self, listener: TcpListener) -> Port {
        Port::new(listener, self.service.clone())
    }

    /// A port for users.
    pub fn public_port(&self, listener: TcpListener) -> Port {
        Port::new(listener, self.public.clone())
    }

    /// For calls to other services.
    pub fn client(&self) -> Option<ClientTls> {
        self.service.clone().map(ClientTls::of_service)
    }

    /// Whether other services are called over TLS.
    pub fn is_mutual(&self) -> bool {
        self.service.is_some()
    }

    /// Whether users come over TLS.
    pub fn is_public(&self) -> bool {
        self.public.is_some()
    }

    /// Looks at the files until `shutdown`.
    pub(crate) fn watch(&self, shutdown: &CancellationToken) {
        for live in self.service.iter().chain(&self.public) {
            kiln_telemetry::spawn(live.clone().watch(shutdown.clone()));
        }
    }

    /// Checks the URL of another service, or those of its replicas: with a
    /// certificate of its own a service calls over TLS only.
    ///
    /// # Errors
    /// It is plain.
    pub fn check_url(&self, key: &'static str, url: String) -> Result<String, ConfigError> {
        if self.is_mutual() && !url.split(',').all(|url| url.starts_with("https://")) {
            return Err(ConfigError::value(key, url, "must begin with https://, since tls_cert_file is set"));
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use kiln_tls::authority::{Authority, Kind, Request};

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn files(dir: &Path) -> RawTls {
        let authority = Authority::create("test", DAY).unwrap();
        let issue = |kind, name: &str| {
            authority.issue(&Request { kind, name: name.to_owned(), hosts: Vec::new() }, DAY).unwrap()
        };
        let (service, public) = (issue(Kind::Service, "a-svc"), issue(Kind::Gateway, "front"));
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        RawTls {
            tls_cert_file: write("a.crt", &service.certificate),
            tls_key_file: write("a.key", &service.key),
            tls_ca_file: write("ca.crt", authority.certificate()),
            tls_client_certificates: None,
            public_tls_cert_file: write("front.crt", &public.certificate),
            public_tls_key_file: write("front.key", &public.key),
        }
    }

    #[test]
    fn all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tls = files(dir.path()).open().unwrap();
        assert!(tls.is_mutual() && tls.is_public() && tls.client().is_some());
        assert!(tls.check_url("job_endpoint", "http://a:1".to_owned()).is_err());
        let none = RawTls::default().open().unwrap();
        assert!(!none.is_mutual() && !none.is_public());
        assert_eq!(none.check_url("job_endpoint", "http://a:1".to_owned()).unwrap(), "http://a:1");

        type Change = fn(&mut RawTls);
        let wrong: [(&str, Change); 7] = [
            ("tls_cert_file = \"\"", |raw| raw.tls_cert_file = None),
            ("tls_key_file = \"\"", |raw| raw.tls_key_file = None),
            ("tls_ca_file = \"\"", |raw| raw.tls_ca_file = None),
            ("public_tls_key_file = \"\"", |raw| raw.public_tls_key_file = None),
            ("tls_client_certificates = \"never\"", |raw| raw.tls_client_certificates = Some("never".to_owned())),
            ("is not the key of", |raw| raw.tls_key_file = raw.public_tls_key_file.clone()),
            ("No such file", |raw| raw.tls_ca_file = Some("/nonexistent/ca.crt".into())),
        ];
        for (expected, change) in wrong {
            let mut raw = files(dir.path());
            change(&mut raw);
            let error = raw.open().unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn only_services_with_a_public_port_know_its_keys() {
        assert!(!RawTls::keys(PublicPort::None).contains(&"public_tls_key_file"));
        assert!(RawTls::keys(PublicPort::Other).contains(&"public_tls_key_file"));
        // A main port that is public asks nobody for a certificate.
        assert!(!RawTls::keys(PublicPort::Main).contains(&"tls_client_certificates"));
        assert!(RawTls::keys(PublicPort::Other).contains(&"tls_client_certificates"));
    }
}
