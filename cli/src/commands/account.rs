//! `kiln account`: accounts of a deployment whose services run apart. `kiln up` makes its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_auth::SecretKey;
use kiln_client::Client;
use kiln_error::{Error, Kind};
use kiln_grpc::ServiceAuth;
use kiln_proto::gateway::v1 as gateway;
use kiln_proto::gateway::v1::gateway_admin_service_client::GatewayAdminServiceClient;
use kiln_proto::storage::v1 as storage;
use kiln_proto::storage::v1::storage_admin_service_client::StorageAdminServiceClient;
use kiln_tls::{ClientTls, Files};

use crate::connect::ConnectArgs;
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::up::deployment::check_account_name;

/// Default of `--endpoint`: the gateway's own.
const GATEWAY: &str = "http://127.0.0.1:7450";

/// `kiln account ...`.
#[derive(Debug, clap::Subcommand)]
pub enum AccountCommand {
    /// Make an account, or print what programs need to use it
    ///
    /// For whoever runs the services: it needs the deployment's key. The account gets two new keys; one that exists keeps
    /// its own. Prints shell exports, as `kiln env` does; the key is among them.
    Create(CreateArgs),
}

/// `kiln account create`.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// 3 to 24 lower-case letters and digits; also the name of its storage account
    name: String,
    /// gRPC port of storage-svc
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7461")]
    storage: String,
    /// File with the deployment's key, as the services have it
    #[arg(long, value_name = "FILE")]
    cluster_key_file: PathBuf,
    /// Certificate to show to services that have one, with the name kiln-account; PEM. --ca-file names their authority
    #[arg(long, value_name = "FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Its private key; PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,
    /// Give an account that exists new keys; the old ones end at once
    #[arg(long)]
    replace_keys: bool,
}

/// Carries out `kiln account`; `connect` may name the gateway.
///
/// # Errors
/// As the services say, or if the key cannot be read.
pub async fn run(connect: &ConnectArgs, command: AccountCommand) -> Outcome {
    let AccountCommand::Create(args) = command;
    check_account_name("account", &args.name)?;
    let endpoint = connect.endpoint.as_deref().unwrap_or(GATEWAY);
    let key = Arc::new(read_key(&args.cluster_key_file)?);
    let authority = connect.authority();
    let auth = ServiceAuth::new("kiln-account", key).with_tls(trust(&args, authority.as_deref())?);
    let mut at_storage = StorageAdminServiceClient::new(auth.connect_to(&args.storage, "storage-svc")?);
    let mut at_gateway = GatewayAdminServiceClient::new(auth.connect(endpoint)?);

    // storage-svc is asked first and is the one that knows: if this breaks off half-way, it is said again and goes on.
    let account = args.name;
    let known = existing(&mut at_storage, &account).await.map_err(|failure| failure.at(&args.storage))?;
    let (key1, key2) = match known {
        Some((key1, key2)) if !args.replace_keys => (key1, key2),
        _ => (SecretKey::generate().to_base64(), SecretKey::generate().to_base64()),
    };
    let request = storage::PutAccountRequest { account: account.clone(), key1: key1.clone(), key2: key2.clone() };
    at_storage.put_account(request).await?;
    let storage_account = account.clone();
    let request = gateway::PutAccountRequest { account: account.clone(), key1: key1.clone(), key2, storage_account };
    at_gateway.put_account(request).await.map_err(|status| Failure::from(status).at(endpoint))?;

    let client = match &authority {
        Some(authority) => Client::connect_trusting(endpoint, &account, &key1, authority)?,
        None => Client::connect(endpoint, &account, &key1)?,
    };
    let told = client.account().get_account(gateway::GetAccountRequest {}).await?.into_inner();
    env::print(env::of(account, key1, told.batch_endpoint, told.blob_endpoint));
    Ok(())
}

/// Both keys of the account, if there is one.
async fn existing(
    admin: &mut StorageAdminServiceClient<kiln_grpc::ServiceChannel>,
    account: &str,
) -> Outcome<Option<(String, String)>> {
    match admin.get_account(storage::GetAccountRequest { account: account.to_owned() }).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            Ok(Some((answer.key1, answer.key2)))
        }
        Err(status) => {
            let error = Error::from(status);
            if error.kind() == Kind::NotFound { Ok(None) } else { Err(error.into()) }
        }
    }
}

/// Whom to trust, and what to show.
fn trust(args: &CreateArgs, authority: Option<&Path>) -> Outcome<Option<ClientTls>> {
    let own = match (&args.tls_cert_file, &args.tls_key_file) {
        (Some(certificate), Some(key)) => {
            Some(Files { certificate: certificate.clone(), key: key.clone(), authority: None })
        }
        _ => None,
    };
    let Some(authority) = authority else {
        return match own {
            Some(_) => Err(Failure::Usage("--tls-cert-file needs --ca-file".to_owned())),
            None => Ok(None),
        };
    };
    let pem = std::fs::read_to_string(authority)
        .map_err(|error| Failure::Usage(format!("--ca-file {}: {error}", authority.display())))?;
    ClientTls::with_authority(&pem, own.as_ref()).map(Some).map_err(|error| Failure::Usage(error.to_string()))
}

fn read_key(path: &Path) -> Outcome<SecretKey> {
    let wrong = |why: String| Failure::Usage(format!("--cluster-key-file {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    SecretKey::from_base64(&text).map_err(|error| wrong(error.to_string()))
}
