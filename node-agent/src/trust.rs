//! How an agent knows that it speaks to the right service.
//!
//! Over TLS pool-svc and job-svc have to show a certificate of the authority in
//! the join file, for the name of the service. The node itself is known by its
//! token; a certificate is shown beside it only if the settings name one, for
//! deployments that let nobody connect without.

use kiln_error::{Error, Kind};
use kiln_grpc::{Security, connect_lazy, connect_secured};
use kiln_tls::{ClientTls, Files};
use tonic::transport::Channel;

use crate::config::NodeAgentConfig;

/// Name of the service behind the control stream.
pub const POOL_SVC: &str = "pool-svc";
/// Name of the service behind the work stream.
pub const JOB_SVC: &str = "job-svc";

/// The first of the replicas that an endpoint names.
pub fn first(endpoint: &str) -> Option<url::Url> {
    url::Url::parse(endpoint.split(',').next()?.trim()).ok()
}

/// A channel to the service `name` at `endpoint`, which may name several replicas.
///
/// # Errors
/// If the endpoint is no URL, or authority or certificate cannot be used.
pub async fn channel(config: &NodeAgentConfig, endpoint: &str, name: &'static str) -> Result<Channel, Error> {
    let Some(pem) = config.join.ca_pem.clone().filter(|_| endpoint.starts_with("https://")) else {
        return connect_lazy(endpoint);
    };
    let own = config.settings.certificate.clone();
    let read = move || {
        let own = own.map(|(certificate, key)| Files { certificate, key, authority: None });
        ClientTls::with_authority(&pem, own.as_ref())
    };
    let unusable = |why: String| Error::new(Kind::FailedPrecondition, "CertificateUnusable", why);
    let tls = tokio::task::spawn_blocking(read).await.map_err(|error| unusable(error.to_string()))?;
    let tls = Some(tls.map_err(|error| unusable(error.to_string()))?);
    connect_secured(endpoint, &Security { tls, name: Some(name) })
}
