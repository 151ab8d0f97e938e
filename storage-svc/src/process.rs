//! storage-svc as a process of its own; `deploy/config/storage-svc.toml` explains its settings.

use std::process::ExitCode;

use kiln_service::Flags;

use crate::{Deps, Listeners, RawConfig};

/// Runs until SIGTERM or SIGINT; gives the exit code of the process.
pub fn main(flags: &Flags) -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(flags, |config, shell| async move {
        let blob = kiln_service::bind("blob_listen", config.blob_listen).await?;
        let blob = shell.tls.public_port(blob);
        tracing::info!(blob_listen = %config.blob_listen, tls = blob.has_tls(), "the data plane listens");
        let deps = Deps { cluster_key: shell.cluster_key, bus: shell.bus };
        crate::run(config.service, deps, Listeners { grpc: shell.port, blob }, shell.shutdown).await
    })
}
