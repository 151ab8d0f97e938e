//! Certificates: who they speak for, TLS with them, and new ones without a
//! restart.
//!
//! - [`names`]: what stands in a certificate, and whom it makes a caller;
//! - [`files`]: certificates and keys from PEM files, checked against each other;
//! - [`live`]: a service's own certificate, replaced when its files change;
//! - [`client`]: whom an outgoing connection trusts;
//! - [`explain`]: why a handshake failed, for people;
//! - `authority` (a feature): a private certificate authority.
//!
//! TLS 1.2 and 1.3 by rustls with ring. A private authority issues one
//! certificate for each service, with its name as a DNS name and as a role
//! (`kiln://service/pool-svc`). Clients check the service's name, not the name
//! of its host: it is the same service wherever it runs. Servers read the role.

#[cfg(feature = "authority")]
pub mod authority;
pub mod client;
pub mod explain;
pub mod files;
pub mod live;
pub mod names;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::ClientTls;
pub use explain::explain;
pub use files::{Files, TlsError};
pub use live::{ClientCertificates, Live};
pub use names::{CertificateInfo, Peer, Role};

/// The library of ciphers. Given explicitly, so that nothing depends on which
/// part of the process was first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
