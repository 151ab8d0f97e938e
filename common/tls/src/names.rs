//! What stands in a certificate, and whom it makes a caller.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

const SERVICE: &str = "kiln://service/";
const NODE: &str = "kiln://node";

/// On whose behalf a certificate may be shown; an URI among its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// `kiln://service/<name>`: the service of that name.
    Service(String),
    /// `kiln://node`: any node. Which one, its token says.
    Node,
}

impl Role {
    /// The role that an URI names.
    pub fn parse(uri: &str) -> Option<Self> {
        match uri.strip_prefix(SERVICE) {
            Some(name) if !name.is_empty() => Some(Self::Service(name.to_owned())),
            Some(_) => None,
            None => (uri == NODE).then_some(Self::Node),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "{SERVICE}{name}"),
            Self::Node => f.write_str(NODE),
        }
    }
}

/// The other end of a connection with TLS; an extension of each of its requests.
/// Requests of connections without TLS have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// It has shown no certificate.
    Anonymous,
    /// A certificate of the deployment's authority with this role.
    Known(Role),
    /// A certificate of the deployment's authority without a role.
    Stranger,
}

impl Peer {
    /// From the certificates that a handshake has verified.
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(first) = certificates.and_then(<[_]>::first) else { return Self::Anonymous };
        match CertificateInfo::parse(first).ok().and_then(|info| info.role) {
            Some(role) => Self::Known(role),
            None => Self::Stranger,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("no certificate"),
            Self::Known(role) => write!(f, "a certificate of {role}"),
            Self::Stranger => f.write_str("a certificate without a role"),
        }
    }
}

/// What people want to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its common name; may be empty.
    pub subject: String,
    /// That of whoever signed it.
    pub issuer: String,
    /// Its role, if it has one.
    pub role: Option<Role>,
    /// Host names it is for.
    pub dns: Vec<String>,
    /// Addresses it is for.
    pub addresses: Vec<IpAddr>,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// Seconds since the Unix epoch before which it is void.
    pub not_before: i64,
    /// Seconds since the Unix epoch after which it is void.
    pub not_after: i64,
}

impl CertificateInfo {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
        let name = |name: &x509_parser::x509::X509Name<'_>| {
            name.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
        };
        let mut info = Self {
            subject: name(parsed.subject()),
            issuer: name(parsed.issuer()),
            role: None,
            dns: Vec::new(),
            addresses: Vec::new(),
            is_authority: parsed.is_ca(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        };
        let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => info.dns.push((*name).to_owned()),
                GeneralName::URI(uri) => match (Role::parse(uri), &info.role) {
                    (Some(_), Some(_)) => return Err("it has more than one role".to_owned()),
                    (Some(role), None) => info.role = Some(role),
                    (None, _) => {}
                },
                GeneralName::IPAddress(bytes) => info.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(info)
    }

    /// Seconds until it is void; negative afterwards.
    pub fn seconds_left(&self, now_seconds: i64) -> i64 {
        self.not_after.saturating_sub(now_seconds)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_what_they_print() {
        for role in [Role::Service("pool-svc".to_owned()), Role::Node] {
            assert_eq!(Role::parse(&role.to_string()), Some(role));
        }
        for text in ["", "kiln://service/", "kiln://nodes", "https://node", "KILN://node"] {
            assert_eq!(Role::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_a_stranger() {
        assert_eq!(Peer::of(None), Peer::Anonymous);
        assert_eq!(Peer::of(Some(&[])), Peer::Anonymous);
        assert_eq!(Peer::of(Some(&[CertificateDer::from(vec![1, 2, 3])])), Peer::Stranger);
    }
}
