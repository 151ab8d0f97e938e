//! Shared access signatures: what is signed, and what a token says.
//!
//! | `sv` | fields of a service SAS |
//! |---|---|
//! | 2012-02-12 | sp st se R si sv |
//! | to 2014-02-14 | + rscc rscd rsce rscl rsct |
//! | 2015-02-21 | the same, R begins with /blob |
//! | from 2015-04-05 | sip spr before sv |
//! | from 2018-11-09 | sr, snapshot after sv |
//! | from 2020-12-06 | ses after snapshot |

use std::net::IpAddr;

use kiln_auth::SecretKey;
use kiln_time::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::StorageError;
use super::model::StoredPolicy;
use super::query::Query;

/// Version of the tokens this service makes.
pub const NEW_SAS_VERSION: &str = "2021-12-02";

/// Tokens of services have signed the headers of answers since this version.
const OVERRIDES_SINCE: &str = "2013-08-15";

/// Tokens sign what kind of resource they are for, and a snapshot, since this version.
const SNAPSHOTS_SINCE: &str = "2018-11-09";

/// What stays as it is in the value of a query parameter.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A token as it came in a query, decoded; absent fields are empty.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // The names of the parameters.
pub struct Sas {
    pub sv: String,
    pub sr: String,
    pub st: String,
    pub se: String,
    pub sp: String,
    pub sip: String,
    pub spr: String,
    pub si: String,
    pub ses: String,
    pub ss: String,
    pub srt: String,
    pub sig: String,
    pub snapshot: String,
    pub overrides: Overrides,
}

/// Headers that a service SAS puts on the answers of reads (`rscc` ... `rsct`);
/// empty texts mean absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names of the headers.
pub struct Overrides {
    pub cache_control: String,
    pub content_disposition: String,
    pub content_encoding: String,
    pub content_language: String,
    pub content_type: String,
}

/// What a token may be used for, its signature being right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SasGrant {
    /// Letters.
    pub permissions: String,
    /// For a blob, a container or the account.
    pub scope: SasScope,
    /// Of a service SAS.
    pub overrides: Overrides,
}

/// What a token is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SasScope {
    /// The one blob of the request's path.
    Blob,
    /// The snapshot that the request names, of the one blob of its path.
    Snapshot,
    /// The container of the request's path.
    Container,
    /// Services and resource types, in letters.
    Account {
        /// `ss`
        services: String,
        /// `srt`
        resource_types: String,
    },
}

/// The circumstances a token is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// The clock.
    pub now: Timestamp,
    /// Who sent the request.
    pub peer: IpAddr,
    /// Whether it came over TLS.
    pub https: bool,
}

impl Sas {
    /// The token in `query`; `None` if there is no signature.
    ///
    /// # Errors
    /// Two signatures.
    pub fn from_query(query: &Query) -> Result<Option<Self>, StorageError> {
        let mut signatures = query.all("sig");
        let Some(sig) = signatures.next() else { return Ok(None) };
        if signatures.next().is_some() {
            return Err(failed("Signature is given twice"));
        }
        let get = |name: &str| query.get(name).unwrap_or_default().to_owned();
        Ok(Some(Self {
            sig: sig.to_owned(),
            sv: get("sv"),
            sr: get("sr"),
            st: get("st"),
            se: get("se"),
            sp: get("sp"),
            sip: get("sip"),
            spr: get("spr"),
            si: get("si"),
            ses: get("ses"),
            ss: get("ss"),
            srt: get("srt"),
            snapshot: get("snapshot"),
            overrides: Overrides {
                cache_control: get("rscc"),
                content_disposition: get("rscd"),
                content_encoding: get("rsce"),
                content_language: get("rscl"),
                content_type: get("rsct"),
            },
        }))
    }

    /// An account SAS has services, a service SAS a resource.
    pub fn is_account(&self) -> bool {
        !self.ss.is_empty() || !self.srt.is_empty()
    }

    /// Signature of the token for the resource; `blob` only matters for `sr=b`.
    pub fn string_to_sign(&self, account: &str, container: &str, blob: &str) -> String {
        if self.is_account() { self.account_string(account) } else { self.service_string(account, container, blob) }
    }

    fn service_string(&self, account: &str, container: &str, blob: &str) -> String {
        let sv = self.sv.as_str();
        let mut resource = format!("/{account}/{container}");
        if sv >= "2015-02-21" {
            resource.insert_str(0, "/blob");
        }
        if self.sr != "c" {
            resource.push('/');
            resource.push_str(blob);
        }
        let mut fields: Vec<&str> = vec![&self.sp, &self.st, &self.se, &resource, &self.si];
        if sv >= "2015-04-05" {
            fields.extend([self.sip.as_str(), &self.spr]);
        }
        fields.push(sv);
        if sv >= SNAPSHOTS_SINCE {
            let snapshot = if matches!(self.sr.as_str(), "bs" | "bv") { self.snapshot.as_str() } else { "" };
            fields.extend([self.sr.as_str(), snapshot]);
        }
        if sv >= "2020-12-06" {
            fields.push(&self.ses);
        }
        if sv >= OVERRIDES_SINCE {
            let o = &self.overrides;
            fields.extend([
                o.cache_control.as_str(),
                &o.content_disposition,
                &o.content_encoding,
                &o.content_language,
                &o.content_type,
            ]);
        }
        fields.join("\n")
    }

    fn account_string(&self, account: &str) -> String {
        let mut fields =
            vec![account, &self.sp, &self.ss, &self.srt, &self.st, &self.se, &self.sip, &self.spr, &self.sv];
        if self.sv.as_str() >= "2020-12-06" {
            fields.push(&self.ses);
        }
        fields.join("\n") + "\n"
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`StorageError::AuthenticationFailed`].
    pub fn verify(&self, keys: &[SecretKey], account: &str, container: &str, blob: &str) -> Result<(), StorageError> {
        let minimum = if self.is_account() { "2015-04-05" } else { "2012-02-12" };
        if !is_version(&self.sv) || self.sv.as_str() < minimum {
            return Err(failed("sv is not a version of shared access signatures"));
        }
        if !self.is_account() {
            match self.sr.as_str() {
                "b" | "c" => {}
                "bs" if self.sv.as_str() < SNAPSHOTS_SINCE => {
                    return Err(failed("sr=bs is not known to this version of shared access signatures"));
                }
                // The signature would be one for any blob that has no snapshot.
                "bs" if self.snapshot.is_empty() => return Err(failed("sr=bs needs the parameter snapshot")),
                "bs" => {}
                _ => return Err(failed("sr must be b, bs or c")),
            }
        }
        let text = self.string_to_sign(account, container, blob);
        if keys.iter().any(|key| key.verify_base64(text.as_bytes(), &self.sig)) {
            Ok(())
        } else {
            // The string helps to find the difference and holds no secret.
            Err(failed(&format!("Signature did not match. String to sign used was {text}")))
        }
    }

    /// What the (verified) token allows here and now. `policy` is the stored
    /// policy that `si` names.
    ///
    /// # Errors
    /// Not yet or no longer valid, wrong protocol, wrong address.
    pub fn grant(self, policy: Option<&StoredPolicy>, circumstances: &Circumstances) -> Result<SasGrant, StorageError> {
        if !self.si.is_empty() && policy.is_none() {
            return Err(failed("The stored access policy does not exist"));
        }
        let from_policy = |pick: fn(&StoredPolicy) -> &Option<String>| {
            policy.and_then(|policy| pick(policy).clone()).filter(|text| !text.is_empty())
        };
        let merge = |own: &str, stored: Option<String>| match (own.is_empty(), stored) {
            (false, Some(_)) => Err(failed("A field is given both in the token and in the stored access policy")),
            (false, None) => Ok(own.to_owned()),
            (true, stored) => Ok(stored.unwrap_or_default()),
        };
        let start = merge(&self.st, from_policy(|p| &p.start))?;
        let expiry = merge(&self.se, from_policy(|p| &p.expiry))?;
        let permissions = merge(&self.sp, from_policy(|p| &p.permission))?;
        if expiry.is_empty() || permissions.is_empty() {
            return Err(failed("se and sp are mandatory"));
        }
        let frame = || failed("Signature not valid in the specified time frame");
        let instant = |text: &str| Timestamp::parse_rfc3339(text).map_err(|_| failed("A date is malformed"));
        if !start.is_empty() && instant(&start)? > circumstances.now {
            return Err(frame());
        }
        if instant(&expiry)? < circumstances.now {
            return Err(frame());
        }
        match self.spr.as_str() {
            "" | "https,http" | "http,https" => {}
            "https" if circumstances.https => {}
            _ => return Err(StorageError::AuthorizationProtocolMismatch),
        }
        if !self.sip.is_empty() && !address_matches(&self.sip, circumstances.peer) {
            return Err(StorageError::AuthorizationSourceIpMismatch(circumstances.peer));
        }
        let scope = if self.is_account() {
            SasScope::Account { services: self.ss, resource_types: self.srt }
        } else if self.sr == "c" {
            SasScope::Container
        } else if self.sr == "bs" {
            SasScope::Snapshot
        } else {
            SasScope::Blob
        };
        // What is not signed is not what the signer wanted: whoever passes such a
        // URL on could make a file a page that runs.
        let signed = !matches!(scope, SasScope::Account { .. }) && self.sv.as_str() >= OVERRIDES_SINCE;
        let overrides = if signed { self.overrides } else { Overrides::default() };
        Ok(SasGrant { permissions, scope, overrides })
    }
}

/// What a new token is to say.
#[derive(Debug, Clone, Copy)]
pub struct NewSas<'a> {
    /// Account that signs.
    pub account: &'a str,
    /// Container it is for.
    pub container: &'a str,
    /// Blob it is for; the whole container if absent.
    pub blob: Option<&'a str>,
    /// Letters.
    pub permissions: &'a str,
    /// Valid from.
    pub starts: Option<Timestamp>,
    /// Valid to.
    pub expires: Timestamp,
}

/// Order in which Azure wants the letters.
const PERMISSIONS: &str = "racwdxyltfmei";

/// Signs a token; gives its query string without the question mark.
///
/// # Errors
/// Permissions that do not exist.
pub fn create(new: &NewSas<'_>, key: &SecretKey) -> Result<String, kiln_error::Error> {
    if new.permissions.is_empty() || new.permissions.chars().any(|letter| !PERMISSIONS.contains(letter)) {
        let why = format!("must be letters out of {PERMISSIONS}");
        return Err(kiln_error::Error::invalid_property("permissions", new.permissions, why));
    }
    let seconds = |instant: Timestamp| instant.truncate_to_second().to_rfc3339();
    let sas = Sas {
        sv: NEW_SAS_VERSION.to_owned(),
        sr: if new.blob.is_some() { "b" } else { "c" }.to_owned(),
        st: new.starts.map(seconds).unwrap_or_default(),
        se: seconds(new.expires),
        sp: PERMISSIONS.chars().filter(|letter| new.permissions.contains(*letter)).collect(),
        ..Sas::default()
    };
    let text = sas.string_to_sign(new.account, new.container, new.blob.unwrap_or_default());
    let sig = key.sign_base64(text.as_bytes());
    let pairs = [("sv", &sas.sv), ("st", &sas.st), ("se", &sas.se), ("sr", &sas.sr), ("sp", &sas.sp), ("sig", &sig)];
    let pairs: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, VALUE)))
        .collect();
    Ok(pairs.join("&"))
}

/// Whether `text` is a date such as Azure's versions are.
pub fn is_version(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, b)| if at == 4 || at == 7 { b == b'-' } else { b.is_ascii_digit() })
}

fn address_matches(sip: &str, peer: IpAddr) -> bool {
    let (first, last) = sip.split_once('-').unwrap_or((sip, sip));
    match (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) {
        (Ok(first), Ok(last)) if first.is_ipv4() == peer.is_ipv4() => first <= peer && peer <= last,
        _ => false,
    }
}

fn failed(detail: &str) -> StorageError {
    StorageError::AuthenticationFailed(detail.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    const ACCOUNT: &str = "devstoreaccount1";

    fn service(sv: &str) -> Sas {
        Sas { sv: sv.into(), sr: "b".into(), se: "2030-01-02T03:04:05Z".into(), sp: "r".into(), ..Sas::default() }
    }

    #[test]
    fn known_service_signatures() {
        let key = SecretKey::from_base64(KEY).unwrap();
        for (sv, sig) in [
            ("2014-02-14", "DWFdGCoSPERS1it7xaj2+f5xszo7uWdEBay1rY/JCxY="),
            ("2017-04-17", "lXdtI9CqTQC9YtcWBjcoQetux+6+fVHWYY+2Y8IgyE8="),
            ("2019-12-12", "1bjoRXoF8TVoQkpi8UwJ27D9VsgTnmCqPxmr2YvCyiw="),
            ("2021-12-02", "JZHLBqxjHGqQECWhQRYkJwMBWwHqf9ErSHhI6Af867o="),
            ("2026-10-06", "W0QmEM33Dv9PGndDuH29iRLi4WelvX6uooFnxAVgBxg="),
        ] {
            let sas = Sas { sig: sig.into(), ..service(sv) };
            sas.verify(std::slice::from_ref(&key), ACCOUNT, "cont", "a b.txt").unwrap();
            let other = sas.verify(std::slice::from_ref(&key), ACCOUNT, "cont", "b.txt").unwrap_err();
            assert_eq!(other.code(), "AuthenticationFailed");
        }
    }

    #[test]
    fn known_account_signatures() {
        let key = SecretKey::from_base64(KEY).unwrap();
        for (sv, sig) in [
            ("2017-04-17", "WL18aKA0gdt69cZxFgGBXV25yvyAsu+ZHBw/MU3luF0="),
            ("2021-12-02", "lXOuCioxjKE5azrVNc+dDfdZxQqzrFl/PiVWowtL3xA="),
        ] {
            let (ss, srt, sp) = ("b".into(), "sco".into(), "rwl".into());
            let sas = Sas { sig: sig.into(), ss, srt, sp, sr: String::new(), ..service(sv) };
            sas.verify(std::slice::from_ref(&key), ACCOUNT, "any", "").unwrap();
        }
    }

    #[test]
    fn tokens_of_snapshots_are_for_one_snapshot() {
        let key = SecretKey::generate();
        let at = "2026-11-20T08:00:00.1234560Z";
        let sas = Sas { sr: "bs".into(), snapshot: at.into(), ..service("2021-12-02") };
        let sig = key.sign_base64(sas.string_to_sign(ACCOUNT, "cont", "b").as_bytes());
        let sas = Sas { sig, ..sas };
        let verify = |sas: &Sas| sas.verify(std::slice::from_ref(&key), ACCOUNT, "cont", "b").is_ok();
        assert!(verify(&sas));
        for other in ["2026-11-20T08:00:00.1234570Z", ""] {
            assert!(!verify(&Sas { snapshot: other.into(), ..sas.clone() }), "{other}");
        }
        assert!(!verify(&Sas { sr: "b".into(), ..sas.clone() }), "the blob itself");
        assert_eq!(grant(sas, None, 1).unwrap().scope, SasScope::Snapshot);
        let old = Sas { sr: "bs".into(), ..service("2017-04-17") };
        let sig = key.sign_base64(old.string_to_sign(ACCOUNT, "cont", "b").as_bytes());
        assert!(!verify(&Sas { sig, snapshot: at.into(), ..old }), "does not sign the snapshot");
    }

    #[test]
    fn made_tokens_verify() {
        let key = SecretKey::generate();
        let new = NewSas {
            account: "acct",
            container: "cont",
            blob: Some("dir/ü b"),
            permissions: "wr",
            starts: Some(Timestamp::from_micros(0)),
            expires: Timestamp::from_micros(2_000_000),
        };
        let text = create(&new, &key).unwrap();
        let sas = Sas::from_query(&Query::parse(&text).unwrap()).unwrap().unwrap();
        assert_eq!(sas.sp, "rw");
        sas.verify(std::slice::from_ref(&key), "acct", "cont", "dir/ü b").unwrap();
        assert!(create(&NewSas { permissions: "q", ..new }, &key).is_err());
        assert!(create(&NewSas { permissions: "", ..new }, &key).is_err());
    }

    fn grant(sas: Sas, policy: Option<&StoredPolicy>, now: i64) -> Result<SasGrant, &'static str> {
        let now = Timestamp::from_micros(now * 1_000_000);
        let circumstances = Circumstances { now, peer: "10.1.2.3".parse().unwrap(), https: false };
        sas.grant(policy, &circumstances).map_err(|error| error.code())
    }

    #[test]
    fn tokens_are_valid_only_in_their_circumstances() {
        let base =
            Sas { st: "1970-01-01T00:00:10Z".into(), se: "1970-01-01T00:00:20Z".into(), ..service("2021-12-02") };
        assert_eq!(grant(base.clone(), None, 9), Err("AuthenticationFailed"));
        assert_eq!(grant(base.clone(), None, 10).unwrap().permissions, "r");
        assert_eq!(grant(base.clone(), None, 21), Err("AuthenticationFailed"));
        let https = Sas { spr: "https".into(), ..base.clone() };
        assert_eq!(grant(https, None, 15), Err("AuthorizationProtocolMismatch"));
        for (sip, ok) in [("10.1.2.3", true), ("10.1.2.0-10.1.2.9", true), ("10.1.2.4", false), ("x", false)] {
            let limited = Sas { sip: sip.into(), ..base.clone() };
            assert_eq!(grant(limited, None, 15).is_ok(), ok, "{sip}");
        }
        assert_eq!(grant(Sas { se: String::new(), ..base.clone() }, None, 15), Err("AuthenticationFailed"));
        assert_eq!(grant(Sas { se: "soon".into(), ..base }, None, 15), Err("AuthenticationFailed"));
    }

    #[test]
    fn only_signed_headers_are_put_on_answers() {
        let overrides = Overrides { content_type: "text/html".into(), ..Overrides::default() };
        let account = || Sas { ss: "b".into(), srt: "o".into(), sr: String::new(), ..service("2021-12-02") };
        for (sas, kept) in [(service("2021-12-02"), true), (service("2012-02-12"), false), (account(), false)] {
            let granted = grant(Sas { overrides: overrides.clone(), ..sas }, None, 1).unwrap();
            assert_eq!(granted.overrides == overrides, kept);
        }
    }

    #[test]
    fn stored_policies_fill_what_the_token_leaves_out() {
        let token = Sas { si: "p1".into(), se: String::new(), sp: String::new(), ..service("2021-12-02") };
        let policy = StoredPolicy {
            id: "p1".into(),
            expiry: Some("1970-01-01T00:00:20Z".into()),
            permission: Some("rl".into()),
            start: None,
        };
        assert_eq!(grant(token.clone(), Some(&policy), 1).unwrap().permissions, "rl");
        assert_eq!(grant(token.clone(), None, 1), Err("AuthenticationFailed"));
        let both = Sas { sp: "r".into(), ..token };
        assert_eq!(grant(both, Some(&policy), 1), Err("AuthenticationFailed"));
    }
}
