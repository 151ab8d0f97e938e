//! storage-svc as a process of its own; `deploy/config/storage-svc.toml` explains
//! its settings.

use std::process::ExitCode;

use storage_svc::{Deps, Listeners, RawConfig};

fn main() -> ExitCode {
    kiln_service::main::<RawConfig, _, _>(|config, shell| async move {
        let blob = kiln_service::bind("blob_listen", config.blob_listen).await?;
        tracing::info!(blob_listen = %config.blob_listen, "the data plane listens");
        let deps = Deps { cluster_key: shell.cluster_key, bus: shell.bus };
        storage_svc::run(config.service, deps, Listeners { grpc: shell.listener, blob }, shell.shutdown).await
    })
}
