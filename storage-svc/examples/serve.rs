//! Serves a fresh directory with the well-known account of the storage
//! emulators, to try clients by hand:
//! `cargo run -p storage-svc --example serve -- 127.0.0.1:10000`.

use std::sync::Arc;

use kiln_auth::SecretKey;
use kiln_bus::memory::MemoryBus;
use kiln_grpc::ServiceAuth;
use kiln_proto::storage::v1::PutAccountRequest;
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;
use storage_svc::{Config, Deps, Listeners};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:10000".to_owned());
    let data_dir = match std::env::args().nth(2) {
        Some(dir) => dir.into(),
        None => tempfile::tempdir()?.keep(),
    };
    let grpc = TcpListener::bind("127.0.0.1:0").await?;
    let grpc_endpoint = format!("http://{}", grpc.local_addr()?);
    let listeners = Listeners { grpc: grpc.into(), blob: TcpListener::bind(&address).await?.into() };
    let cluster_key = Arc::new(SecretKey::generate());
    let shutdown = CancellationToken::new();
    let config = Config::new(data_dir, format!("http://{address}"));
    println!("http://{address}/{ACCOUNT} from {}", config.data_dir.display());
    let deps = Deps { cluster_key: cluster_key.clone(), bus: Arc::new(MemoryBus::new()) };
    let served = kiln_telemetry::spawn(storage_svc::run(config, deps, listeners, shutdown.clone()));
    let channel = ServiceAuth::new("example", cluster_key).connect(&grpc_endpoint)?;
    let account = PutAccountRequest { account: ACCOUNT.into(), key1: KEY.into(), key2: KEY.into() };
    StorageAdminServiceClient::new(channel).put_account(account).await?;
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    served.await?
}
