//! A connection to the server, with the settings that stores need.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::Stream;
use futures::stream::{self, StreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::{AsyncMessage, Client};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::config::{PostgresConfig, Tls};
use crate::sql::Error;

/// What drives a connection: it has to be polled for anything to happen, gives
/// what the server says unasked, and ends with the connection.
pub(super) type Driver = Pin<Box<dyn Stream<Item = Result<AsyncMessage, tokio_postgres::Error>> + Send>>;

/// Connects and prepares the session.
pub(super) async fn connect(config: &PostgresConfig) -> Result<(Client, Driver), Error> {
    let tls = MakeRustlsConnect::new(tls_config(&config.tls)?);
    let (client, mut connection) = config.server.connect(tls).await?;
    let mut driver: Driver = Box::pin(stream::poll_fn(move |cx| connection.poll_message(cx)));
    let mut settings = Some(driver.as_mut());
    drive(&mut settings, client.batch_execute(&settings_of(config)), |_| {}).await?;
    Ok((client, driver))
}

/// A process that stands still in the middle of a transaction keeps all others from writing.
/// The server undoes its transaction after this time: less than a lease of job-svc, so that
/// those of other replicas are renewed in time.
const STANDSTILL: Duration = Duration::from_millis(1500);

fn settings_of(config: &PostgresConfig) -> String {
    let PostgresConfig { schema, statement_timeout, lock_timeout, .. } = config;
    // SQLite knows only nested loops over indexes, and the statements of the
    // stores are written for that. Tables that have grown since they were last
    // analysed would else be read from end to end.
    format!(
        "SET search_path = \"{schema}\";
         SET statement_timeout = {};
         SET lock_timeout = {};
         SET idle_in_transaction_session_timeout = {};
         SET synchronous_commit = on;
         SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
         SET client_min_messages = warning",
        statement_timeout.as_millis(),
        lock_timeout.as_millis(),
        STANDSTILL.as_millis()
    )
}

fn tls_config(tls: &Tls) -> Result<rustls::ClientConfig, Error> {
    let wrong = |why: String| Error::Unreachable(format!("TLS: {why}"));
    let mut roots = rustls::RootCertStore::empty();
    match (tls.on, &tls.roots) {
        (false, _) => {}
        (true, Some(file)) => {
            let unusable = |why: &dyn std::fmt::Display| wrong(format!("{} cannot be used: {why}", file.display()));
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))? {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
        }
        (true, None) => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(wrong("the system has no trusted certificates; name some with sslrootcert".to_owned()));
            }
        }
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Does `work`, which waits for the connection, and keeps that going meanwhile.
/// When the connection has ended, `driver` is `None`.
pub(super) async fn drive<S, T>(
    driver: &mut Option<S>,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    mut heard: impl FnMut(AsyncMessage),
) -> Result<T, tokio_postgres::Error>
where
    S: Stream<Item = Result<AsyncMessage, tokio_postgres::Error>> + Unpin,
{
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            let Some(connection) = driver else { return Poll::Pending };
            match connection.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(message))) => heard(message),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a connection to PostgreSQL ended");
                    *driver = None;
                }
                Poll::Ready(None) => *driver = None,
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}
