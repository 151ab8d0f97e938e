//! The environment of a process.
//!
//! Three layers: a sane base, what users set (the task's own above the job's),
//! and the service's own variables, which users cannot replace. The agent's own
//! environment is not passed on: it may hold secrets of whoever runs the agent.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Prefixes of names that belong to the service.
const RESERVED: [&str; 2] = ["AZ_BATCH_", "KILN_"];
/// The index of an array of tasks: the client's to give, though it bears our name.
const ARRAY_INDEX: &str = "KILN_ARRAY_INDEX";
/// What the AZ_BATCH_ variable tells: below so much free disk a task is in danger.
const RESERVED_DISK_BYTES: u64 = 1_000_000;

/// Named with the primary's address: reserved for the service, which has no use for it.
const MASTER_PORT: u16 = 6000;

/// What every process of the node sees.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Account that owns the pool.
    pub account: String,
    /// URL of the Batch service.
    pub batch_url: String,
    /// Pool of the node.
    pub pool_id: String,
    /// The node.
    pub node_id: String,
    /// Not a low-priority node.
    pub is_dedicated: bool,
    /// Absolute path of the node root.
    pub root_dir: String,
    /// `PATH`.
    pub path: String,
    /// Variables of the pool's packages.
    pub packages: Arc<Vec<(String, String)>>,
}

/// Which task a process belongs to; the start task belongs to none.
#[derive(Debug, Clone)]
pub struct TaskFacts {
    /// The job.
    pub job_id: String,
    /// The task.
    pub task_id: String,
    /// Which try of it, and how many slots it holds; tasks of the node itself
    /// have neither.
    pub attempt: Option<(u32, i32)>,
    /// Absolute path of the directory of the job's preparation task.
    pub preparation_dir: Option<String>,
    /// Which instance of a multi-instance task.
    pub instance: Option<InstanceFacts>,
    /// Opens the operations on its own job.
    pub token: Token,
}

/// An instance among all of its task.
#[derive(Debug, Clone)]
pub struct InstanceFacts {
    /// Of all nodes that run one; the primary's is the first.
    pub addresses: Vec<String>,
    /// It is the primary.
    pub is_master: bool,
    /// Where the common files are.
    pub shared_dir: String,
}

/// A secret of the task; empty for none.
#[derive(Clone, Default)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}

impl TaskFacts {
    /// Nothing but names.
    pub fn new(job_id: &str, task_id: &str) -> Self {
        Self {
            job_id: job_id.to_owned(),
            task_id: task_id.to_owned(),
            attempt: None,
            preparation_dir: None,
            instance: None,
            token: Token::default(),
        }
    }
}

/// What one process sees.
#[derive(Debug, Clone)]
pub struct ProcessFacts<'a> {
    /// Its task, unless it is the start task.
    pub task: Option<&'a TaskFacts>,
    /// Absolute path of the directory with stdout.txt.
    pub task_dir: &'a str,
    /// Absolute path of its current directory.
    pub working_dir: &'a str,
    /// Unique over all processes the agent ever starts.
    pub marker: &'a str,
    /// W3C trace context; empty if nothing is traced.
    pub traceparent: &'a str,
    /// W3C vendor part of it.
    pub tracestate: &'a str,
    /// Variables of its own packages.
    pub packages: &'a [(String, String)],
}

/// The name under which every process of the agent carries its marker.
pub const MARKER: &str = "KILN_ATTEMPT_ID";
/// Names the node that a process belongs to, by its root directory.
pub const ROOT_VARIABLE: &str = "AZ_BATCH_NODE_ROOT_DIR";

/// The complete environment. `user` settings are in rising order of precedence.
pub fn build<'a>(
    node: &NodeFacts,
    process: &ProcessFacts<'_>,
    user: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        variables.insert(name.to_owned(), value.to_owned());
    };
    set("PATH", &node.path);
    set("HOME", process.working_dir);
    set("PWD", process.working_dir);
    set("LANG", "C.UTF-8");
    set("SHELL", "/bin/sh");
    set("TMPDIR", "/tmp");
    if !process.traceparent.is_empty() {
        set("TRACEPARENT", process.traceparent);
        if !process.tracestate.is_empty() {
            set("TRACESTATE", process.tracestate);
        }
    }
    for (name, value) in user {
        if is_allowed(name, value) {
            set(name, value);
        }
    }

    for (name, value) in node.packages.iter().chain(process.packages) {
        set(name, value);
    }
    let root = &node.root_dir;
    set("AZ_BATCH_ACCOUNT_NAME", &node.account);
    set("AZ_BATCH_ACCOUNT_URL", &node.batch_url);
    set("AZ_BATCH_CERTIFICATES_DIR", &format!("{}/certs", process.task_dir));
    set("AZ_BATCH_NODE_ID", &node.node_id);
    set("AZ_BATCH_NODE_IS_DEDICATED", if node.is_dedicated { "true" } else { "false" });
    set(ROOT_VARIABLE, root);
    set("AZ_BATCH_NODE_SHARED_DIR", &format!("{root}/shared"));
    set("AZ_BATCH_NODE_STARTUP_DIR", &format!("{root}/startup"));
    set("AZ_BATCH_NODE_STARTUP_WORKING_DIR", &format!("{root}/startup/wd"));
    set("AZ_BATCH_NODE_MOUNTS_DIR", &format!("{root}/fsmounts"));
    set("AZ_BATCH_POOL_ID", &node.pool_id);
    set("AZ_BATCH_TASK_DIR", process.task_dir);
    set("AZ_BATCH_TASK_WORKING_DIR", process.working_dir);
    set("AZ_BATCH_TASK_RESERVED_EPHEMERAL_DISK_SPACE_BYTES", &RESERVED_DISK_BYTES.to_string());
    if let Some(task) = process.task {
        set("AZ_BATCH_JOB_ID", &task.job_id);
        set("AZ_BATCH_TASK_ID", &task.task_id);
        if let Some(dir) = &task.preparation_dir {
            set("AZ_BATCH_JOB_PREP_DIR", dir);
            set("AZ_BATCH_JOB_PREP_WORKING_DIR", &format!("{dir}/wd"));
        }
        if let Some(instance) = &task.instance {
            set("AZ_BATCH_HOST_LIST", &instance.addresses.join(","));
            set("AZ_BATCH_NODE_LIST", &instance.addresses.join(";"));
            set("AZ_BATCH_IS_CURRENT_NODE_MASTER", if instance.is_master { "true" } else { "false" });
            let master = instance.addresses.first().map(String::as_str).unwrap_or_default();
            set("AZ_BATCH_MASTER_NODE", &format!("{master}:{MASTER_PORT}"));
            let nodes = instance.addresses.iter().map(|address| format!(" {address} 1"));
            set("CCP_NODES", &format!("{}{}", instance.addresses.len(), nodes.collect::<String>()));
            set("AZ_BATCH_TASK_SHARED_DIR", &instance.shared_dir);
        }
        if !task.token.0.is_empty() {
            set("AZ_BATCH_AUTHENTICATION_TOKEN", &task.token.0);
        }
        if let Some((attempt, slots)) = task.attempt {
            set("KILN_TASK_ATTEMPT", &attempt.to_string());
            set("KILN_TASK_SLOTS", &slots.to_string());
        }
    }
    set(MARKER, process.marker);
    variables
}

/// Whether a user may set `name` to `value`. The service refuses such settings
/// when the task is added; here they are left out.
pub fn is_allowed(name: &str, value: &str) -> bool {
    !name.is_empty()
        && !name.contains(['=', '\0'])
        && !value.contains('\0')
        && (name == ARRAY_INDEX || !RESERVED.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            account: "acc".into(),
            batch_url: "http://h:7450/".into(),
            pool_id: "p".into(),
            node_id: "n1".into(),
            is_dedicated: true,
            root_dir: "/n/root".into(),
            path: "/bin".into(),
            packages: Arc::default(),
        }
    }

    fn task_environment(user: &[(&str, &str)]) -> BTreeMap<String, String> {
        let task = TaskFacts { attempt: Some((2, 1)), ..TaskFacts::new("j", "t") };
        let process = ProcessFacts {
            task: Some(&task),
            task_dir: "/n/root/workitems/j/job-1/t",
            working_dir: "/n/root/workitems/j/job-1/t/wd",
            marker: "inc/j/t/2",
            traceparent: "00-1-2-01",
            tracestate: "",
            packages: &[],
        };
        build(&node(), &process, user.iter().copied())
    }

    #[test]
    fn a_task_sees_exactly_these_variables() {
        let variables = task_environment(&[]);
        let names: Vec<&str> = variables.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "AZ_BATCH_ACCOUNT_NAME",
                "AZ_BATCH_ACCOUNT_URL",
                "AZ_BATCH_CERTIFICATES_DIR",
                "AZ_BATCH_JOB_ID",
                "AZ_BATCH_NODE_ID",
                "AZ_BATCH_NODE_IS_DEDICATED",
                "AZ_BATCH_NODE_MOUNTS_DIR",
                "AZ_BATCH_NODE_ROOT_DIR",
                "AZ_BATCH_NODE_SHARED_DIR",
                "AZ_BATCH_NODE_STARTUP_DIR",
                "AZ_BATCH_NODE_STARTUP_WORKING_DIR",
                "AZ_BATCH_POOL_ID",
                "AZ_BATCH_TASK_DIR",
                "AZ_BATCH_TASK_ID",
                "AZ_BATCH_TASK_RESERVED_EPHEMERAL_DISK_SPACE_BYTES",
                "AZ_BATCH_TASK_WORKING_DIR",
                "HOME",
                "KILN_ATTEMPT_ID",
                "KILN_TASK_ATTEMPT",
                "KILN_TASK_SLOTS",
                "LANG",
                "PATH",
                "PWD",
                "SHELL",
                "TMPDIR",
                "TRACEPARENT",
            ]
        );
        assert_eq!(variables["AZ_BATCH_TASK_WORKING_DIR"], "/n/root/workitems/j/job-1/t/wd");
        assert_eq!(variables["AZ_BATCH_NODE_SHARED_DIR"], "/n/root/shared");
        assert_eq!(variables["KILN_TASK_ATTEMPT"], "2");
    }

    #[test]
    fn users_set_their_own_and_never_the_services() {
        let variables = task_environment(&[
            ("A", "job"),
            ("A", "task"),
            ("PATH", "/opt/bin"),
            ("AZ_BATCH_NODE_ID", "forged"),
            ("AZ_BATCH_NEW", "forged"),
            ("KILN_ATTEMPT_ID", "forged"),
            ("KILN_ARRAY_INDEX", "7"),
            ("", "x"),
            ("B=C", "x"),
            ("NUL", "a\0b"),
        ]);
        assert_eq!(variables["A"], "task");
        assert_eq!(variables["PATH"], "/opt/bin");
        assert_eq!(variables["KILN_ARRAY_INDEX"], "7");
        assert_eq!(variables["AZ_BATCH_NODE_ID"], "n1");
        assert_eq!(variables["KILN_ATTEMPT_ID"], "inc/j/t/2");
        for absent in ["AZ_BATCH_NEW", "", "B=C", "NUL"] {
            assert!(!variables.contains_key(absent), "{absent}");
        }
    }

    #[test]
    fn instances_see_all_of_their_task_and_a_token_is_no_text_for_logs() {
        let instance = InstanceFacts {
            addresses: vec!["10.0.0.4".into(), "10.0.0.5".into()],
            is_master: false,
            shared_dir: "/n/root/workitems/j/job-1/t".into(),
        };
        let task = TaskFacts {
            instance: Some(instance),
            token: Token("secret".into()),
            preparation_dir: Some("/n/root/workitems/j/job-1/prep".into()),
            ..TaskFacts::new("j", "t")
        };
        assert!(!format!("{task:?}").contains("secret"));
        let process = ProcessFacts {
            task: Some(&task),
            task_dir: "/d",
            working_dir: "/d/wd",
            marker: "m",
            traceparent: "",
            tracestate: "",
            packages: &[],
        };
        let variables = build(&node(), &process, [("CCP_NODES", "forged")]);
        for (name, value) in [
            ("AZ_BATCH_HOST_LIST", "10.0.0.4,10.0.0.5"),
            ("AZ_BATCH_NODE_LIST", "10.0.0.4;10.0.0.5"),
            ("AZ_BATCH_IS_CURRENT_NODE_MASTER", "false"),
            ("AZ_BATCH_MASTER_NODE", "10.0.0.4:6000"),
            ("CCP_NODES", "2 10.0.0.4 1 10.0.0.5 1"),
            ("AZ_BATCH_TASK_SHARED_DIR", "/n/root/workitems/j/job-1/t"),
            ("AZ_BATCH_AUTHENTICATION_TOKEN", "secret"),
            ("AZ_BATCH_JOB_PREP_DIR", "/n/root/workitems/j/job-1/prep"),
            ("AZ_BATCH_JOB_PREP_WORKING_DIR", "/n/root/workitems/j/job-1/prep/wd"),
        ] {
            assert_eq!(variables[name], value, "{name}");
        }
    }

    #[test]
    fn packages_of_pool_and_task_are_told_and_not_to_be_forged() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut node = node();
        node.packages =
            Arc::new(vec![pair("AZ_BATCH_APP_PACKAGE_a", "/pool/a"), pair("AZ_BATCH_APP_PACKAGE_b_1", "/pool/b")]);
        let own = [pair("AZ_BATCH_APP_PACKAGE_a", "/task/a")];
        let process = ProcessFacts {
            task: None,
            task_dir: "/d",
            working_dir: "/d/wd",
            marker: "m",
            traceparent: "",
            tracestate: "",
            packages: &own,
        };
        let variables = build(&node, &process, [("AZ_BATCH_APP_PACKAGE_b_1", "forged")]);
        assert_eq!(variables["AZ_BATCH_APP_PACKAGE_a"], "/task/a");
        assert_eq!(variables["AZ_BATCH_APP_PACKAGE_b_1"], "/pool/b");
    }

    #[test]
    fn the_start_task_has_no_job() {
        let process = ProcessFacts {
            task: None,
            task_dir: "/n/root/startup",
            working_dir: "/n/root/startup/wd",
            marker: "m",
            traceparent: "",
            tracestate: "",
            packages: &[],
        };
        let variables = build(&node(), &process, []);
        for absent in ["AZ_BATCH_JOB_ID", "AZ_BATCH_TASK_ID", "KILN_TASK_ATTEMPT", "TRACEPARENT"] {
            assert!(!variables.contains_key(absent), "{absent}");
        }
        assert_eq!(variables["AZ_BATCH_TASK_DIR"], "/n/root/startup");
    }
}
