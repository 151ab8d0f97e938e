//! PostgreSQL and RabbitMQ: whether they are there, before anything is started.

use std::time::Duration;

use tokio::net::TcpStream;
use url::Url;

use crate::failure::{Failure, Outcome};

/// How long a server may take to accept a connection.
const LIMIT: Duration = Duration::from_secs(5);

/// A server that a deployment uses and does not start.
#[derive(Debug, Clone, Copy)]
pub struct Backing {
    /// For messages.
    pub name: &'static str,
    /// Where it is named.
    pub flag: &'static str,
    /// Of its URLs.
    pub schemes: [&'static str; 2],
    /// Its usual ports, by scheme.
    pub ports: [u16; 2],
    /// How to get one.
    pub start: &'static str,
}

/// Keeps the records.
pub const POSTGRES: Backing = Backing {
    name: "PostgreSQL",
    flag: "--database-url",
    schemes: ["postgres", "postgresql"],
    ports: [5432, 5432],
    start: "podman run -d -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust docker.io/library/postgres:15",
};

/// Carries the events.
pub const RABBITMQ: Backing = Backing {
    name: "RabbitMQ",
    flag: "--amqp-url",
    schemes: ["amqp", "amqps"],
    ports: [5672, 5671],
    start: "podman run -d -p 5672:5672 docker.io/library/rabbitmq:3",
};

impl Backing {
    /// Host and port of a URL.
    ///
    /// # Errors
    /// If it is none of this kind. The message does not repeat it: it may hold a password.
    fn place(&self, text: &str) -> Outcome<(String, u16)> {
        let [plain, other] = self.schemes;
        let wrong = || Failure::Usage(format!("{} must be a URL such as {plain}://user:password@host", self.flag));
        let url = Url::parse(text).map_err(|_| wrong())?;
        let usual = match url.scheme() {
            scheme if scheme == plain => self.ports[0],
            scheme if scheme == other => self.ports[1],
            _ => return Err(wrong()),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        Ok((host.trim_matches(['[', ']']).to_owned(), url.port().unwrap_or(usual)))
    }

    /// Sees that somebody listens there.
    ///
    /// # Errors
    /// Says what to do if nobody does.
    pub async fn check(&self, url: &str) -> Outcome {
        let (host, port) = self.place(url)?;
        let why = match tokio::time::timeout(LIMIT, TcpStream::connect((host.as_str(), port))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {LIMIT:?}"),
        };
        let Self { name, flag, start, .. } = self;
        Err(Failure::Unreachable(format!(
            "{name} cannot be reached at {host}:{port} ({why}); start one, for example with\n  {start}\nor say where \
             yours is with {flag}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_where_servers_are() {
        let place = |backing: Backing, url| backing.place(url).ok();
        assert_eq!(place(POSTGRES, "postgres://u:p@db/x?sslmode=require"), Some(("db".to_owned(), 5432)));
        assert_eq!(place(POSTGRES, "postgresql://u@[::1]:7/x"), Some(("::1".to_owned(), 7)));
        assert_eq!(place(RABBITMQ, "amqps://h/%2f"), Some(("h".to_owned(), 5671)));
        for wrong in ["db", "amqp://h", "postgres:///x"] {
            let failure = POSTGRES.place(wrong).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains("--database-url"), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_missing_is_named_with_what_to_do() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqp://guest:secret@{}", listener.local_addr().unwrap());
        RABBITMQ.check(&url).await.unwrap();
        drop(listener);
        let failure = RABBITMQ.check(&url).await.unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.exit_code(), 3);
        assert!(text.contains("--amqp-url") && text.contains("podman") && !text.contains("secret"), "{text}");
    }
}
