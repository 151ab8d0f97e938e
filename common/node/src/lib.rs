//! What the providers, the agent and the fronts agree on about a node.
//!
//! A node's own directory:
//!
//! ```text
//! <node dir>/
//!   join.json      how to join (written by the provider, mode 0600)
//!   agent.lock     held with flock while the agent lives; contains its pid
//!   agent.log      the agent's log (local provider)
//!   state/         what the agent remembers across its own restarts
//!   root/          AZ_BATCH_NODE_ROOT_DIR, all that tasks and file calls see:
//!     applications/  fsmounts/  shared/  volatile/
//!     startup/{stdout.txt,stderr.txt,wd/}
//!     workitems/<job>/job-1/<task>/{stdout.txt,stderr.txt,wd/}
//! ```

pub mod record;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// File with the [`JoinConfig`], in the node's directory.
pub const JOIN_FILE: &str = "join.json";
/// File the agent holds locked while it lives; its text is the agent's pid.
pub const LOCK_FILE: &str = "agent.lock";
/// The agent's log when a local provider started it.
pub const LOG_FILE: &str = "agent.log";
/// What the agent remembers across restarts.
pub const STATE_DIR: &str = "state";
/// Root of all that tasks and file calls see.
pub const ROOT_DIR: &str = "root";

/// Directory of the start task, relative to the node root.
pub const STARTUP_DIR: &str = "startup";
/// Directory shared by the tasks of a node, relative to the node root.
pub const SHARED_DIR: &str = "shared";
/// Directory of all jobs, relative to the node root.
pub const WORKITEMS_DIR: &str = "workitems";
/// Names of a process's output files, in its task directory.
pub const STDOUT_FILE: &str = "stdout.txt";
/// See [`STDOUT_FILE`].
pub const STDERR_FILE: &str = "stderr.txt";
/// Working directory of a process, in its task directory.
pub const WORKING_DIR: &str = "wd";

/// How a new agent finds its place.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinConfig {
    /// URL of pool-svc's control service.
    pub control_endpoint: String,
    /// Account that owns the pool.
    pub account: String,
    /// Pool of the node.
    pub pool_id: String,
    /// Name of the node.
    pub node_id: String,
    /// Bearer token for the registration.
    pub join_token: String,
    /// Authority that issued the services' certificates, PEM; absent where
    /// they have none. With it agents know pool-svc and job-svc by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The node's own directory (absolute).
    pub node_dir: PathBuf,
}

impl std::fmt::Debug for JoinConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinConfig")
            .field("control_endpoint", &self.control_endpoint)
            .field("pool_id", &self.pool_id)
            .field("node_id", &self.node_id)
            .field("node_dir", &self.node_dir)
            .finish_non_exhaustive()
    }
}

impl JoinConfig {
    /// Reads the file a provider wrote.
    ///
    /// # Errors
    /// If the file cannot be read or is not a join configuration.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read(path)?;
        serde_json::from_slice(&text).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }

    /// The node root that tasks see.
    pub fn root_dir(&self) -> PathBuf {
        self.node_dir.join(ROOT_DIR)
    }
}

/// What `kiln node join` needs, in one word: `kilnjoin1.<Base64 of JSON>`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinInvitation {
    /// URL of pool-svc's control service.
    pub control_endpoint: String,
    /// See [`JoinConfig::ca_pem`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Bearer token for the pool.
    pub token: String,
}

const INVITATION: &str = "kilnjoin1.";

impl JoinInvitation {
    /// As one word.
    pub fn to_text(&self) -> String {
        // Strings only: serialising cannot fail.
        #[allow(clippy::expect_used)]
        let json = serde_json::to_vec(self).expect("strings are JSON");
        format!("{INVITATION}{}", BASE64_URL_SAFE_NO_PAD.encode(json))
    }

    /// From that word; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let json = BASE64_URL_SAFE_NO_PAD.decode(text.trim().strip_prefix(INVITATION)?).ok()?;
        serde_json::from_slice(&json).ok()
    }
}

impl std::fmt::Debug for JoinInvitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinInvitation").field("control_endpoint", &self.control_endpoint).finish_non_exhaustive()
    }
}

/// Directory of a job relative to the node root: `workitems/<job>/job-1`. The
/// jobs of a schedule are named `<schedule>:job-<n>` and live at
/// `workitems/<schedule>/job-<n>`.
pub fn job_dir(job_id: &str) -> String {
    let (name, number) = job_id.split_once(":job-").unwrap_or((job_id, "1"));
    format!("{WORKITEMS_DIR}/{name}/job-{number}")
}

/// Directory of a task relative to the node root.
pub fn task_dir(job_id: &str, task_id: &str) -> String {
    format!("{}/{task_id}", job_dir(job_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invitations_are_one_word_and_do_not_print_their_secret() {
        let ca_pem = Some("-----BEGIN CERTIFICATE-----\n".to_owned());
        let invitation = JoinInvitation { control_endpoint: "https://p:1".into(), ca_pem, token: "kiln1.s".into() };
        let text = invitation.to_text();
        assert_eq!(JoinInvitation::parse(&format!("{text}\n")), Some(invitation.clone()));
        assert!(!format!("{invitation:?}").contains("kiln1"));
        for bad in ["", "kilnjoin1.", "kilnjoin1.e30", "kiln1.x.y"] {
            assert_eq!(JoinInvitation::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn directories_are_those_of_azure_batch() {
        assert_eq!(task_dir("j1", "t1"), "workitems/j1/job-1/t1");
        assert_eq!(task_dir("nightly:job-7", "t1"), "workitems/nightly/job-7/t1");
    }
}
