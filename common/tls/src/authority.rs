//! A private certificate authority.
//!
//! | kind | names | may be shown by |
//! |---|---|---|
//! | service | its name, `localhost` and hosts as DNS names; `kiln://service/<name>` | servers and clients |
//! | node | `kiln://node` | clients |
//! | gateway | hosts; no role | servers |
//!
//! Keys are ECDSA P-256. What it issues is valid from five minutes ago, for
//! clocks that are behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::names::{CertificateInfo, Role};

/// Clocks of two machines may differ by this much.
const SKEW: Duration = Duration::from_secs(300);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of Kiln's services, called and calling.
    Service,
    /// Agents of nodes.
    Node,
    /// Ports that users come to: the gateway's and the blob port.
    Gateway,
}

/// A certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is for.
    pub kind: Kind,
    /// The service's name; for others a name for people.
    pub name: String,
    /// Host names and addresses under which it is reached.
    pub hosts: Vec<String>,
}

/// A certificate with its key, both PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A name cannot be in a certificate.
    #[error("{0:?} cannot be a name in a certificate")]
    Name(String),
    /// The authority's own files are not usable.
    #[error("the authority cannot be used: {0}")]
    Unusable(String),
    /// The library refused.
    #[error("the certificate cannot be made: {0}")]
    Failed(#[from] rcgen::Error),
}

/// See the module.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |time: SystemTime| Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    params.not_before = epoch + since(from);
    params.not_after = epoch + since(until);
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn create(name: &str, valid: Duration) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name);
        // Issues no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        validity(&mut params, now - SKEW, now + valid);
        let certificate = params.self_signed(&key)?.pem();
        Self::load(&certificate, &key.serialize_pem())
    }

    /// One that was made before; both PEM.
    ///
    /// # Errors
    /// If it is none, or the key is another's.
    pub fn load(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let unusable = |why: String| AuthorityError::Unusable(why);
        let der =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let info = CertificateInfo::parse(&der).map_err(unusable)?;
        if !info.is_authority {
            return Err(unusable("its certificate may not sign others".to_owned()));
        }
        let pair = KeyPair::from_pem(key).map_err(|error| unusable(format!("its key cannot be read: {error}")))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| unusable(error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(unusable("its key is not that of its certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, pair)?;
        let not_after = UNIX_EPOCH + Duration::from_secs(info.not_after.max(0).cast_unsigned());
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), issuer, not_after })
    }

    /// What others have to trust; PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key; PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate with a new key, valid from now; not longer than the
    /// authority itself.
    ///
    /// # Errors
    /// If a name cannot be in a certificate.
    pub fn issue(&self, request: &Request, valid: Duration) -> Result<Issued, AuthorityError> {
        let now = SystemTime::now();
        self.issue_between(request, now - SKEW, now + valid)
    }

    /// As [`Authority::issue`], for any time.
    ///
    /// # Errors
    /// As there.
    pub fn issue_between(
        &self,
        request: &Request,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&request.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match request.kind {
            Kind::Service => vec![Usage::ServerAuth, Usage::ClientAuth],
            Kind::Node => vec![Usage::ClientAuth],
            Kind::Gateway => vec![Usage::ServerAuth],
        };
        params.subject_alt_names = names(request)?;
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, from, until.min(self.not_after));
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

fn names(request: &Request) -> Result<Vec<SanType>, AuthorityError> {
    let bad = |text: &str| AuthorityError::Name(text.to_owned());
    let ascii = |text: &str| Ia5String::try_from(text).map_err(|_| bad(text));
    let dns = |text: &str| {
        // A name that cannot be a host's would never be matched.
        rustls::pki_types::DnsName::try_from(text).map_err(|_| bad(text))?;
        Ok::<_, AuthorityError>(SanType::DnsName(ascii(text)?))
    };
    let uri = |role: Role| Ok::<_, AuthorityError>(SanType::URI(ascii(&role.to_string())?));
    let mut names = Vec::new();
    let mut add = |name: SanType| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    match request.kind {
        Kind::Service => {
            add(uri(Role::Service(request.name.clone()))?);
            add(dns(&request.name)?);
        }
        Kind::Node => add(uri(Role::Node)?),
        Kind::Gateway => {}
    }
    for host in &request.hosts {
        add(match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => dns(host.strip_prefix("*.").unwrap_or(host)).and_then(|_| Ok(SanType::DnsName(ascii(host)?)))?,
        });
    }
    if request.kind != Kind::Node {
        add(dns("localhost")?);
        add(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        add(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn info(pem: &str) -> CertificateInfo {
        CertificateInfo::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn each_kind_has_its_names() {
        let authority = Authority::create("test authority", DAY * 10).unwrap();
        let made = info(authority.certificate());
        assert!(made.is_authority && made.subject == "test authority" && made.role.is_none());
        let issue = |kind, name: &str, hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            authority
                .issue(&Request { kind, name: name.to_owned(), hosts }, DAY)
                .map(|issued| info(&issued.certificate))
        };
        let service = issue(Kind::Service, "pool-svc", &["pool.example", "10.0.0.7"]).unwrap();
        assert_eq!(service.role, Some(Role::Service("pool-svc".to_owned())));
        assert_eq!(service.dns, ["pool-svc", "pool.example", "localhost"]);
        assert!(service.addresses.contains(&"10.0.0.7".parse().unwrap()), "{service:?}");
        assert_eq!((service.issuer.as_str(), service.is_authority), ("test authority", false));
        let node = issue(Kind::Node, "any", &[]).unwrap();
        assert_eq!((node.role, node.dns.len()), (Some(Role::Node), 0));
        let gateway = issue(Kind::Gateway, "front", &["*.batch.example"]).unwrap();
        assert_eq!((gateway.role, gateway.dns[0].as_str()), (None, "*.batch.example"));
        for name in ["a b", "ä", "", "a/b"] {
            assert!(issue(Kind::Service, name, &[]).is_err(), "{name}");
        }
    }

    #[test]
    fn nothing_outlives_its_authority_and_keys_belong_to_certificates() {
        let authority = Authority::create("short", DAY).unwrap();
        let again = Authority::load(authority.certificate(), authority.key()).unwrap();
        let request = Request { kind: Kind::Node, name: "n".to_owned(), hosts: Vec::new() };
        let issued = again.issue(&request, DAY * 30).unwrap();
        assert_eq!(info(&issued.certificate).not_after, info(authority.certificate()).not_after);
        assert!(Authority::load(&issued.certificate, &issued.key).is_err(), "not an authority");
        let other = Authority::create("other", DAY).unwrap();
        assert!(Authority::load(authority.certificate(), other.key()).is_err(), "another's key");
    }
}
