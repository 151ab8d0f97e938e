//! Which server, database and schema, and how long to wait.

use std::fmt;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

/// Connections of one process to one schema, unless set.
const CONNECTIONS: usize = 8;
/// Fewest: one writes, one listens, one reads.
const FEWEST: usize = 3;
/// Most.
const MOST: usize = 200;

/// A schema of a PostgreSQL database and how it is used. Made of a URL such as
/// `postgres://user:password@host:5432/database?sslmode=require`.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    pub(crate) server: tokio_postgres::Config,
    pub(crate) tls: Tls,
    pub(crate) schema: String,
    pub(crate) connections: usize,
    /// A statement may take this long.
    pub(crate) statement_timeout: Duration,
    /// Other replicas may keep the writer waiting for this long.
    pub(crate) lock_timeout: Duration,
}

/// How the connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Else it is plain.
    pub(crate) on: bool,
    /// Certificates of authorities that are trusted (PEM); else the system's.
    pub(crate) roots: Option<std::path::PathBuf>,
}

/// Why a URL or a schema cannot be used. It does not repeat the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidUrl {
    why: String,
    schema: bool,
}

impl InvalidUrl {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), schema: false }
    }

    /// Whether it is about the schema's name and not about the URL.
    pub fn is_schema(&self) -> bool {
        self.schema
    }
}

impl PostgresConfig {
    /// The schema `schema` of the database that `url` names. Beside what
    /// libpq takes: `sslmode` is `disable` or `require` (the same as
    /// `verify-full`: an unknown server is never trusted); if it is absent,
    /// servers on other machines need TLS and those on this one do not.
    /// `sslrootcert` names the trusted certificates, else the system's are.
    ///
    /// # Errors
    /// [`InvalidUrl`] says what is wrong.
    pub fn new(url: &str, schema: &str) -> Result<Self, InvalidUrl> {
        let wrong = |why: &str| InvalidUrl::new(why);
        let mut parsed = url::Url::parse(url).map_err(|error| InvalidUrl::new(format!("is no URL: {error}")))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(wrong("must begin with postgres://"));
        }
        let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
        for (key, value) in parsed.query_pairs() {
            match &*key {
                "sslmode" => mode = Some(value.into_owned()),
                "sslrootcert" => roots = Some(std::path::PathBuf::from(&*value)),
                _ => rest.push((key.into_owned(), value.into_owned())),
            }
        }
        parsed.set_query(None);
        if !rest.is_empty() {
            parsed.query_pairs_mut().extend_pairs(rest);
        }
        let mut server: tokio_postgres::Config = parsed.as_str().parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            InvalidUrl::new(format!("cannot be used: {cause}"))
        })?;
        if server.get_hosts().is_empty() {
            return Err(wrong("has no host"));
        }
        let on = match mode.as_deref() {
            None => !server.get_hosts().iter().all(is_here),
            Some("disable") => false,
            Some("require" | "verify-full") => true,
            Some(_) => return Err(wrong("sslmode must be disable, require or verify-full")),
        };
        server.ssl_mode(if on { SslMode::Require } else { SslMode::Disable });
        if server.get_connect_timeout().is_none() {
            server.connect_timeout(Duration::from_secs(5));
        }
        // A connection whose other end is gone is noticed within half a minute.
        server.keepalives_idle(Duration::from_secs(10));
        server.keepalives_interval(Duration::from_secs(5));
        server.keepalives_retries(3);
        server.tcp_user_timeout(Duration::from_secs(30));
        if server.get_application_name().is_none() {
            server.application_name(format!("kiln {schema}"));
        }
        Ok(Self {
            server,
            tls: Tls { on, roots },
            schema: checked_schema(schema)?,
            connections: CONNECTIONS,
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
        })
    }

    /// With so many connections: one writes, one listens, the others read.
    ///
    /// # Errors
    /// [`InvalidUrl`] if there are too few or too many.
    pub fn with_connections(mut self, connections: usize) -> Result<Self, InvalidUrl> {
        if !(FEWEST..=MOST).contains(&connections) {
            return Err(InvalidUrl::new(format!("must be between {FEWEST} and {MOST}")));
        }
        self.connections = connections;
        Ok(self)
    }

    /// With other limits: of one statement, and of the wait for other replicas
    /// that write.
    #[must_use]
    pub fn with_timeouts(mut self, statement: Duration, lock: Duration) -> Self {
        self.statement_timeout = statement;
        self.lock_timeout = lock;
        self
    }

    /// Name of the schema.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// Reads at once.
    pub(crate) fn readers(&self) -> usize {
        self.connections.saturating_sub(2).max(1)
    }
}

/// A schema's name: lower case, so that it is the same quoted and unquoted.
fn checked_schema(name: &str) -> Result<String, InvalidUrl> {
    let usable =
        |(at, byte): (usize, u8)| byte.is_ascii_lowercase() || byte == b'_' || (at > 0 && byte.is_ascii_digit());
    if !name.is_empty() && name.len() <= 60 && name.bytes().enumerate().all(usable) && !name.starts_with("pg_") {
        return Ok(name.to_owned());
    }
    let why = "must be 1 to 60 of a-z, 0-9 and _, and must not begin with a digit or pg_".to_owned();
    Err(InvalidUrl { why, schema: true })
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

impl fmt::Display for PostgresConfig {
    /// For messages: without password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self
            .server
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let database = self.server.get_dbname().unwrap_or_default();
        write!(f, "postgres://{}/{database} schema {}", hosts.join(","), self.schema)
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("database", &self.to_string())
            .field("tls", &self.tls)
            .field("connections", &self.connections)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_elsewhere_need_tls_and_passwords_are_not_shown() {
        let config = PostgresConfig::new("postgres://u:hush@db.example:5433/kiln", "job_svc").unwrap();
        assert!(config.tls.on);
        let shown = format!("{config:?} {config}");
        assert!(!shown.contains("hush") && shown.contains("db.example") && shown.contains("job_svc"), "{shown}");
        for here in ["postgres://u@127.0.0.1/k", "postgres://u@localhost/k", "postgres://u@%2Frun%2Fpostgresql/k"] {
            assert!(!PostgresConfig::new(here, "s").unwrap().tls.on, "{here}");
        }
        assert!(!PostgresConfig::new("postgres://u@db/k?sslmode=disable", "s").unwrap().tls.on);
        let with = PostgresConfig::new("postgres://u@[::1]/k?sslmode=verify-full&sslrootcert=/ca.pem", "s").unwrap();
        assert_eq!(with.tls, Tls { on: true, roots: Some("/ca.pem".into()) });
    }

    #[test]
    fn what_cannot_be_used_is_said_without_the_url() {
        for (url, schema) in [
            ("hush", "s"),
            ("mysql://u:hush@h/k", "s"),
            ("postgres://u:hush@h/k?sslmode=hush", "s"),
            ("postgres://u:hush@h/k?unknown=hush1", "s"),
            ("postgres://u:hush@h/k", "S"),
            ("postgres://u:hush@h/k", "a b"),
            ("postgres://u:hush@h/k", "pg_x"),
            ("postgres://u:hush@h/k", "1a"),
        ] {
            let error = PostgresConfig::new(url, schema).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
        let config = PostgresConfig::new("postgres://u@h/k", "s").unwrap();
        assert!(config.clone().with_connections(2).is_err());
        assert_eq!(config.with_connections(5).unwrap().readers(), 3);
    }
}
