//! `kiln certs ...`: a private certificate authority in a directory.
//!
//! ```text
//! <dir>/ca.crt            the authority; everybody may read it
//! <dir>/ca.key            its key; keep it where no service runs
//! <dir>/<name>.crt .key   what it has issued
//! ```
//!
//! Files are never overwritten but by `renew`, which replaces a certificate and
//! its key by new ones with the same names. Keys can be read by their owner alone.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use kiln_tls::authority::{Authority, AuthorityError, Issued, Kind, Request};
use kiln_tls::{CertificateInfo, Role, files};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, json, table};
use crate::up::dir::write_atomic;

const DAY: Duration = Duration::from_secs(86_400);
/// Name of the authority's own files.
const CA: &str = "ca";

/// Where the authority is.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// Directory of the authority and of what it issues
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum For {
    /// One of Kiln's services; --name says which
    Service,
    /// Agents, where the services require a certificate of everybody
    Node,
    /// The ports that users come to: of the gateway and of blobs
    Gateway,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make a new authority
    Init {
        /// Where
        #[command(flatten)]
        place: Place,
        /// Its name, for people
        #[arg(long, default_value = "Kiln")]
        name: String,
        /// How long it is valid; what it issues is not valid for longer
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issue a certificate, with a new key
    Issue {
        /// What it is for
        #[arg(value_enum)]
        kind: For,
        /// Where
        #[command(flatten)]
        place: Place,
        /// Name of the service (gateway, job-svc, monitor-svc, pool-svc, storage-svc), and of the files
        #[arg(long, required_if_eq("kind", "service"))]
        name: Option<String>,
        /// Host name or address under which it is reached; may be repeated
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Replace certificates and keys by new ones with the same names; running services take them within seconds
    Renew {
        /// Names of the files; all that the authority has issued if none is given
        names: Vec<String>,
        /// Where
        #[command(flatten)]
        place: Place,
        /// Only those that expire within so many days
        #[arg(long, value_name = "DAYS")]
        within: Option<u32>,
        /// How long the new ones are valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Show names and expiry of all certificates
    Show {
        /// Where
        #[command(flatten)]
        place: Place,
    },
}

/// Carries out a subcommand.
///
/// # Errors
/// What is wrong with names or files.
pub fn run(format: Format, command: CertsCommand) -> Outcome {
    match command {
        CertsCommand::Init { place, name, days } => init(format, &place.dir, &name, days),
        CertsCommand::Issue { kind, place, name, hosts, days } => issue(format, &place.dir, kind, name, hosts, days),
        CertsCommand::Renew { names, place, within, days } => renew(format, &place.dir, names, within, days),
        CertsCommand::Show { place } => show(format, &place.dir),
    }
}

fn certificate_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.crt"))
}

fn key_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.key"))
}

impl From<AuthorityError> for Failure {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Name(_) | AuthorityError::Unusable(_) => Self::Usage(error.to_string()),
            AuthorityError::Failed(_) => Self::Other(error.into()),
        }
    }
}

fn init(format: Format, dir: &Path, name: &str, days: u32) -> Outcome {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let authority = Authority::create(name, DAY * days)?;
    let made = Issued { certificate: authority.certificate().to_owned(), key: authority.key().to_owned() };
    write_new(dir, CA, &made)?;
    output::done(format, || {
        format!(
            "{} is the authority; services are given {} alone",
            key_file(dir, CA).display(),
            certificate_file(dir, CA).display()
        )
    });
    Ok(())
}

fn open(dir: &Path) -> Outcome<Authority> {
    let read = |path: PathBuf| {
        std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Failure::Usage(format!("{} is not there; `kiln certs init` makes an authority", path.display()))
            }
            _ => Failure::Usage(format!("{}: {error}", path.display())),
        })
    };
    Ok(Authority::load(&read(certificate_file(dir, CA))?, &read(key_file(dir, CA))?)?)
}

fn issue(format: Format, dir: &Path, kind: For, name: Option<String>, hosts: Vec<String>, days: u32) -> Outcome {
    let authority = open(dir)?;
    let (kind, default) = match kind {
        For::Service => (Kind::Service, "service"),
        For::Node => (Kind::Node, "node"),
        // The gateway is a service, too, whose certificate has that name.
        For::Gateway => (Kind::Gateway, "public"),
    };
    let name = name.unwrap_or_else(|| default.to_owned());
    check_name(&name)?;
    let issued = authority.issue(&Request { kind, name: name.clone(), hosts }, DAY * days)?;
    write_new(dir, &name, &issued)?;
    output::done(format, || {
        format!("{} with {}", certificate_file(dir, &name).display(), key_file(dir, &name).display())
    });
    Ok(())
}

/// Names become file names.
fn check_name(name: &str) -> Outcome {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name == CA || name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
        let why = "has to be 1 to 64 of A-Z a-z 0-9 - _ ., not beginning with a dot, and not \"ca\"";
        return Err(Failure::Usage(format!("--name {name:?} {why}")));
    }
    Ok(())
}

/// Writes a certificate and its key where there are none.
fn write_new(dir: &Path, name: &str, issued: &Issued) -> Outcome {
    let (certificate, key) = (certificate_file(dir, name), key_file(dir, name));
    for path in [&certificate, &key] {
        if path.exists() {
            return Err(taken(path));
        }
    }
    create(&key, 0o600, &issued.key)?;
    create(&certificate, 0o644, &issued.certificate)
}

fn taken(path: &Path) -> Failure {
    let path = path.display();
    Failure::Usage(format!("{path} is there already and is not overwritten; `kiln certs renew` replaces certificates"))
}

fn create(path: &Path, mode: u32, text: &str) -> Outcome {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(taken(path)),
        other => other.with_context(|| path.display().to_string())?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(|| path.display().to_string())?;
    Ok(())
}

/// A certificate that lies in the directory.
struct Found {
    name: String,
    info: CertificateInfo,
}

fn read(dir: &Path, name: &str) -> Outcome<Found> {
    let info = files::info(&certificate_file(dir, name)).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(Found { name: name.to_owned(), info })
}

/// All certificates, by name; the authority first.
fn all(dir: &Path) -> Outcome<Vec<Found>> {
    let entries = std::fs::read_dir(dir).map_err(|error| Failure::Usage(format!("{}: {error}", dir.display())))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| dir.display().to_string())?;
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".crt")) {
            names.push(name.to_owned());
        }
    }
    names.sort_by_key(|name| (name != CA, name.clone()));
    names.iter().map(|name| read(dir, name)).collect()
}

fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn renew(format: Format, dir: &Path, names: Vec<String>, within: Option<u32>, days: u32) -> Outcome {
    let authority = open(dir)?;
    let found = if names.is_empty() {
        all(dir)?.into_iter().filter(|found| !found.info.is_authority).collect()
    } else {
        names.iter().map(|name| check_name(name).and_then(|()| read(dir, name))).collect::<Outcome<Vec<_>>>()?
    };
    let soon =
        |info: &CertificateInfo| within.is_none_or(|days| info.seconds_left(now_seconds()) <= i64::from(days) * 86_400);
    for Found { name, info } in found.into_iter().filter(|found| soon(&found.info)) {
        let issued = authority.issue(&again(&info), DAY * days)?;
        // A service that looks in between sees that they do not fit, and looks again.
        write_atomic(&key_file(dir, &name), issued.key.as_bytes()).with_context(|| name.clone())?;
        let certificate = certificate_file(dir, &name);
        write_atomic(&certificate, issued.certificate.as_bytes()).with_context(|| name.clone())?;
        // Others read certificates.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&certificate, open).with_context(|| name.clone())?;
        output::done(format, || format!("{name} renewed"));
    }
    Ok(())
}

/// The request that gives the same names again.
fn again(info: &CertificateInfo) -> Request {
    let (kind, name) = match &info.role {
        Some(Role::Service(name)) => (Kind::Service, name.clone()),
        Some(Role::Node) => (Kind::Node, info.subject.clone()),
        None => (Kind::Gateway, info.subject.clone()),
    };
    let hosts = info.dns.iter().cloned().chain(info.addresses.iter().map(ToString::to_string)).collect();
    Request { kind, name, hosts }
}

fn kind_of(info: &CertificateInfo) -> &'static str {
    match (&info.role, info.is_authority) {
        (_, true) => "authority",
        (Some(Role::Service(_)), _) => "service",
        (Some(Role::Node), _) => "node",
        (None, _) => "gateway",
    }
}

fn show(format: Format, dir: &Path) -> Outcome {
    let found = all(dir)?;
    let days_left = |info: &CertificateInfo| info.seconds_left(now_seconds()).div_euclid(86_400);
    let names = |info: &CertificateInfo| -> Vec<String> {
        let role = info.role.as_ref().map(ToString::to_string);
        role.into_iter().chain(again(info).hosts).collect()
    };
    let expires = |info: &CertificateInfo| {
        kiln_time::Timestamp::from_micros(info.not_after.saturating_mul(1_000_000)).to_string()
    };
    match format {
        Format::Json => {
            let rows = found.iter().map(|Found { name, info }| {
                serde_json::json!({
                    "name": name,
                    "kind": kind_of(info),
                    "subject": info.subject,
                    "issuer": info.issuer,
                    "names": names(info),
                    "expires": expires(info),
                    "daysLeft": days_left(info),
                })
            });
            output::line(format_args!("{}", json::pretty(&serde_json::Value::Array(rows.collect()))));
        }
        Format::Table => {
            let rows = found.iter().map(|Found { name, info }| {
                vec![
                    name.clone(),
                    kind_of(info).to_owned(),
                    names(info).join(" "),
                    expires(info),
                    days_left(info).to_string(),
                ]
            });
            output::text_block(format_args!(
                "{}",
                table::table(&["file", "kind", "names", "expires", "days left"], rows)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn quiet(command: CertsCommand) -> Outcome {
        run(Format::Json, command)
    }

    fn service(dir: &Path, name: &str, days: u32) -> CertsCommand {
        CertsCommand::Issue {
            kind: For::Service,
            place: Place { dir: dir.to_owned() },
            name: Some(name.to_owned()),
            hosts: vec!["host.example".to_owned()],
            days,
        }
    }

    #[test]
    fn nothing_is_overwritten_and_keys_are_for_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let init = || CertsCommand::Init { place: Place { dir: dir.to_owned() }, name: "test".to_owned(), days: 100 };
        let error = quiet(service(dir, "pool-svc", 1)).unwrap_err();
        assert!(error.to_string().contains("kiln certs init"), "{error}");
        quiet(init()).unwrap();
        quiet(service(dir, "pool-svc", 10)).unwrap();
        for name in ["ca", "pool-svc"] {
            let mode = std::fs::metadata(key_file(dir, name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let before = std::fs::read(key_file(dir, "pool-svc")).unwrap();
        for again in [init(), service(dir, "pool-svc", 10)] {
            let error = quiet(again).unwrap_err();
            assert!(error.to_string().contains("not overwritten"), "{error}");
        }
        assert_eq!(std::fs::read(key_file(dir, "pool-svc")).unwrap(), before);
        for bad in ["../x", "ca", "", ".x", "a b"] {
            assert_eq!(quiet(service(dir, bad, 1)).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn renewing_keeps_the_names_and_replaces_what_expires_soon() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let place = || Place { dir: dir.to_owned() };
        quiet(CertsCommand::Init { place: place(), name: "test".to_owned(), days: 1000 }).unwrap();
        quiet(service(dir, "job-svc", 10)).unwrap();
        quiet(service(dir, "pool-svc", 300)).unwrap();
        quiet(CertsCommand::Issue { kind: For::Gateway, place: place(), name: None, hosts: vec![], days: 5 }).unwrap();
        let before: Vec<_> = all(dir).unwrap().into_iter().map(|found| found.info).collect();
        let key = std::fs::read(key_file(dir, "job-svc")).unwrap();
        quiet(CertsCommand::Renew { names: vec![], place: place(), within: Some(30), days: 400 }).unwrap();
        let after: Vec<_> = all(dir).unwrap().into_iter().map(|found| found.info).collect();
        for (before, after) in before.iter().zip(&after) {
            let mut same = after.clone();
            (same.not_before, same.not_after) = (before.not_before, before.not_after);
            assert_eq!(&same, before);
            let renewed = before.seconds_left(now_seconds()) < 30 * 86_400;
            assert_eq!(after.not_after > before.not_after, renewed, "{}", before.subject);
        }
        assert_ne!(std::fs::read(key_file(dir, "job-svc")).unwrap(), key);
        quiet(CertsCommand::Show { place: place() }).unwrap();
    }
}
