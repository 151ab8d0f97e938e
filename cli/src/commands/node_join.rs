//! `kiln node join`: this machine as a node of a pool.
//!
//! The token is exchanged for a node of the pool; then an agent runs in a process
//! of its own, as for every other node, and this one waits for it. At the end
//! the node leaves its pool, unless it is to stay (`--keep`): then the same
//! directory joins again without a token.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use kiln_auth::token;
use kiln_grpc::{Security, connect_secured};
use kiln_node::{JOIN_FILE, JoinConfig, JoinInvitation};
use kiln_proto::pool::v1::node_control_service_client::NodeControlServiceClient;
use kiln_proto::pool::v1::{JoinRequest, LeaveRequest};
use kiln_tls::ClientTls;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

use crate::connect::ConnectArgs;
use crate::failure::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::transfer::request_id;
use crate::up::dir;

/// How long the agent may take to stop its tasks and itself.
const STOP_LIMIT: Duration = Duration::from_secs(40);
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The name that its certificate has.
const POOL_SVC: &str = "pool-svc";

/// Arguments.
#[derive(Clone, clap::Args)]
pub struct JoinArgs {
    /// What `kiln node token` printed; --endpoint replaces the address in it
    #[arg(long, env = "KILN_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The node's directory [default: one for each node, below the data directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Stay a node of the pool at the end; the same --dir joins again without a token
    #[arg(long, requires = "dir")]
    keep: bool,
}

impl std::fmt::Debug for JoinArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinArgs").field("dir", &self.dir).field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// Joins, runs the agent, leaves.
///
/// # Errors
/// If the token is refused, pool-svc does not answer, or the agent fails.
pub async fn run(connect: ConnectArgs, args: JoinArgs) -> Outcome {
    let interrupt = Interrupt::listen()?;
    let earlier = match &args.dir {
        Some(dir) if dir.join(JOIN_FILE).exists() => Some(read(dir)?),
        _ => None,
    };
    let join = match earlier {
        Some(join) => join,
        None => Box::pin(become_node(&connect, &args)).await?,
    };
    println!(
        "node {} of pool {}; Ctrl-C {}",
        join.node_id,
        join.pool_id,
        if args.keep { "stops it" } else { "leaves" }
    );
    let ended = attend(&join, &interrupt).await;
    let asked = interrupt.is_requested();
    if !args.keep {
        // Also when the agent failed: nobody would start it again.
        leave(&join).await?;
        remove(&join.node_dir);
        println!("node {} has left", join.node_id);
    }
    let status = ended?;
    if status.success() || asked {
        return Ok(());
    }
    Err(Failure::Other(anyhow::anyhow!("the agent ended with {status}; its log is above")))
}

fn read(dir: &Path) -> Outcome<JoinConfig> {
    let file = dir.join(JOIN_FILE);
    JoinConfig::read(&file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))
}

fn channel(endpoint: &str, ca_pem: Option<&str>) -> Outcome<Channel> {
    let tls = ca_pem.map(|pem| ClientTls::with_authority(pem, None)).transpose();
    let tls = tls.map_err(|error| Failure::Usage(error.to_string()))?;
    let name = tls.is_some().then_some(POOL_SVC);
    Ok(connect_secured(endpoint, &Security { tls, name })?)
}

fn with_token<T>(message: T, token: &str) -> Outcome<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_LIMIT);
    let bearer = format!("Bearer {token}").parse();
    request.metadata_mut().insert("authorization", bearer.map_err(|_| not_a_token())?);
    Ok(request)
}

fn not_a_token() -> Failure {
    Failure::Usage("--token is not what `kiln node token` prints (kilnjoin1....)".to_owned())
}

/// Exchanges the token for a node, and writes what its agent needs.
async fn become_node(connect: &ConnectArgs, args: &JoinArgs) -> Outcome<JoinConfig> {
    let text = args.token.as_deref().ok_or_else(|| {
        Failure::Usage("--token is required (or KILN_JOIN_TOKEN); `kiln node token` makes one".to_owned())
    })?;
    let mut invitation = JoinInvitation::parse(text).ok_or_else(not_a_token)?;
    if let Some(endpoint) = &connect.endpoint {
        invitation.control_endpoint.clone_from(endpoint);
    }
    if let Some(file) = &connect.ca_file {
        let pem = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        invitation.ca_pem = Some(pem);
    }
    let JoinInvitation { control_endpoint, ca_pem, token } = invitation;
    let claims = token::peek(&token).map_err(|_| not_a_token())?;
    if claims.expires < kiln_grpc::caller::now_seconds() {
        return Err(Failure::Usage("this join token has expired; make another one with `kiln node token`".to_owned()));
    }
    let mut client = NodeControlServiceClient::new(channel(&control_endpoint, ca_pem.as_deref())?);
    let request = with_token(JoinRequest { request_id: request_id() }, &token)?;
    let joined = client.join(request).await.map_err(|status| Failure::from(status).at(&control_endpoint))?.into_inner();
    let node_dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => {
            let base = connect.data.clone().map_or_else(dir::default_path, Ok)?;
            base.join("joined").join(&joined.account).join(&joined.pool_id).join(&joined.node_id)
        }
    };
    let node_dir = std::path::absolute(node_dir)?;
    let join = JoinConfig {
        control_endpoint,
        account: joined.account,
        pool_id: joined.pool_id,
        node_id: joined.node_id,
        join_token: joined.join_token,
        ca_pem,
        node_dir,
    };
    if let Err(failure) = write(&join) {
        // Nobody would come as this node.
        leave(&join).await?;
        return Err(failure);
    }
    Ok(join)
}

fn write(join: &JoinConfig) -> Outcome {
    let dir = &join.node_dir;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| dir.display().to_string())?;
    let text = serde_json::to_vec_pretty(join).context("join file")?;
    let path = dir.join(JOIN_FILE);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&text)).with_context(|| path.display().to_string())?;
    Ok(())
}

/// Runs the agent until it ends; passes on that it has to stop.
async fn attend(join: &JoinConfig, interrupt: &Interrupt) -> Outcome<ExitStatus> {
    let mut agent = Command::new("/proc/self/exe")
        .args(["agent", "--join"])
        .arg(join.node_dir.join(JOIN_FILE))
        .env_remove("KILN_JOIN_TOKEN")
        .kill_on_drop(true)
        .spawn()
        .context("the agent cannot be started")?;
    tokio::select! {
        status = agent.wait() => return Ok(status?),
        () = interrupt.requested() => {}
    }
    stop(&mut agent).await
}

async fn stop(agent: &mut Child) -> Outcome<ExitStatus> {
    if let Some(pid) = agent.id() {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    }
    match tokio::time::timeout(STOP_LIMIT, agent.wait()).await {
        Ok(status) => Ok(status?),
        Err(_) => {
            agent.start_kill()?;
            Ok(agent.wait().await?)
        }
    }
}

async fn leave(join: &JoinConfig) -> Outcome {
    let mut client = NodeControlServiceClient::new(channel(&join.control_endpoint, join.ca_pem.as_deref())?);
    let left = client.leave(with_token(LeaveRequest {}, &join.join_token)?).await;
    left.map(drop).map_err(|status| Failure::from(status).at(&join.control_endpoint))
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        eprintln!("{} could not be removed: {error}", dir.display());
    }
}
