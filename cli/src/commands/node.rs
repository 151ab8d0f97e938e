//! `kiln node ...`

use clap::Subcommand;
use kiln_client::Client;
use kiln_proto::pool::v1::{
    CreateJoinTokenRequest, DisableNodeSchedulingRequest, EnableNodeSchedulingRequest, GetNodeRequest,
    ListNodeFilesRequest, ListNodesRequest, Node, ReadNodeFileRequest, RebootNodeRequest, SchedulingState,
    read_node_file_response,
};

use super::pool::OnLeave;
use super::{FILE_HEADER, ListArgs, copy_to_stdout, file_row, pages, present};
use crate::failure::Outcome;
use crate::output::{self, Format, text};
use crate::transfer::request_id;

const MESSAGE: &str = "kiln.pool.v1.Node";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes of a pool
    List {
        /// The pool
        pool: String,
        /// Which of them
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one node
    Show {
        /// The pool
        pool: String,
        /// The node
        node: String,
    },
    /// List files below a directory of a node
    Files {
        /// The pool
        pool: String,
        /// The node
        node: String,
        /// Directory relative to the node's root
        #[arg(default_value = "", hide_default_value = true)]
        directory: String,
        /// Also what is in directories
        #[arg(short, long)]
        recursive: bool,
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Print a file of a node
    Cat {
        /// The pool
        pool: String,
        /// The node
        node: String,
        /// Path relative to the node's root
        path: String,
        /// Go on as the file grows
        #[arg(short, long)]
        follow: bool,
    },
    /// Restart a node's agent; its start task runs again
    Reboot {
        /// The pool
        pool: String,
        /// The node
        node: String,
        /// What happens to its tasks
        #[arg(long, value_enum, default_value_t)]
        tasks: OnLeave,
    },
    /// Give a node no more tasks
    Disable {
        /// The pool
        pool: String,
        /// The node
        node: String,
        /// What happens to its tasks
        #[arg(long, value_enum, default_value_t)]
        tasks: OnLeave,
    },
    /// Make a token with which other machines join a pool
    Token {
        /// The pool; its targets do not count nodes that join
        #[arg(long)]
        pool: String,
        /// How long it can be used, at most a week (7d)
        #[arg(long, default_value = "1h", value_parser = super::parse_duration)]
        valid: std::time::Duration,
        /// How many machines may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=1000))]
        uses: i32,
    },
    /// Make this machine a node of a pool, until Ctrl-C
    Join(super::node_join::JoinArgs),
    /// Give a node tasks again
    Enable {
        /// The pool
        pool: String,
        /// The node
        node: String,
    },
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, command: NodeCommand) -> Outcome {
    let mut pools = client.pools();
    match command {
        NodeCommand::List { pool, list } => {
            let nodes = list_nodes(client, &pool, &list).await?;
            let header = ["id", "state", "scheduling", "tasks", "slots", "run", "address"];
            output::list(format, MESSAGE, &nodes, &header, |node| {
                vec![
                    node.id.clone(),
                    state(node),
                    text::word(node.scheduling_state().as_str_name(), "SCHEDULING_STATE"),
                    node.running_tasks.to_string(),
                    format!("{}/{}", node.running_task_slots, node.task_slots),
                    node.total_tasks_run.to_string(),
                    node.ip_address.clone(),
                ]
            })
        }
        NodeCommand::Show { pool, node } => {
            let request = GetNodeRequest { pool_id: pool, node_id: node };
            let node = present(pools.get_node(request).await?.into_inner().node, "node")?;
            output::show(format, MESSAGE, &node, rows)
        }
        NodeCommand::Files { pool, node, directory, recursive, limit } => {
            let files = pages(limit, |page_size, page_token| {
                let mut pools = client.pools();
                let request = ListNodeFilesRequest {
                    pool_id: pool.clone(),
                    node_id: node.clone(),
                    directory: directory.clone(),
                    recursive,
                    page_size,
                    page_token,
                    ..ListNodeFilesRequest::default()
                };
                async move {
                    let page = pools.list_node_files(request).await?.into_inner();
                    Ok((page.files, page.next_page_token))
                }
            })
            .await?;
            output::list(format, "kiln.common.v1.FileEntry", &files, &FILE_HEADER, file_row)
        }
        NodeCommand::Cat { pool, node, path, follow } => {
            let request = ReadNodeFileRequest { pool_id: pool, node_id: node, path, range: None, follow };
            let stream = pools.read_node_file(request).await?.into_inner();
            copy_to_stdout(stream, |message| match message.part {
                Some(read_node_file_response::Part::Data(data)) => Some(data),
                Some(read_node_file_response::Part::File(_)) | None => None,
            })
            .await
        }
        NodeCommand::Reboot { pool, node, tasks } => {
            let request = RebootNodeRequest {
                request_id: request_id(),
                pool_id: pool,
                node_id: node.clone(),
                option: tasks.option().into(),
            };
            pools.reboot_node(request).await?;
            output::done(format, || format!("node {node} reboots"));
            Ok(())
        }
        NodeCommand::Disable { pool, node, tasks } => {
            let request = DisableNodeSchedulingRequest {
                request_id: request_id(),
                pool_id: pool,
                node_id: node.clone(),
                option: tasks.option().into(),
            };
            pools.disable_node_scheduling(request).await?;
            output::done(format, || format!("node {node} gets no more tasks"));
            Ok(())
        }
        NodeCommand::Token { pool, valid, uses } => {
            let seconds = i64::try_from(valid.as_secs()).unwrap_or(i64::MAX);
            let nanos = i32::try_from(valid.subsec_nanos()).unwrap_or_default();
            let request = CreateJoinTokenRequest {
                request_id: request_id(),
                pool_id: pool,
                valid: Some(prost_types::Duration { seconds, nanos }),
                uses,
            };
            let made = pools.create_join_token(request).await?.into_inner();
            match format {
                Format::Json => output::show(format, "kiln.pool.v1.CreateJoinTokenResponse", &made, |_| Vec::new()),
                Format::Table => {
                    let expires = text::time(made.expires.as_ref());
                    eprintln!("on each machine, for {} of them, until {expires}:", made.uses);
                    output::line(format_args!("kiln node join --token {}", made.token));
                    Ok(())
                }
            }
        }
        // Needs no server of ours; dispatched before.
        NodeCommand::Join(_) => Ok(()),
        NodeCommand::Enable { pool, node } => {
            let request =
                EnableNodeSchedulingRequest { request_id: request_id(), pool_id: pool, node_id: node.clone() };
            pools.enable_node_scheduling(request).await?;
            output::done(format, || format!("node {node} gets tasks"));
            Ok(())
        }
    }
}

/// Nodes of a pool.
///
/// # Errors
/// What the service said.
pub async fn list_nodes(client: &Client, pool: &str, list: &ListArgs) -> Outcome<Vec<Node>> {
    pages(list.limit, |page_size, page_token| {
        let mut pools = client.pools();
        let request = ListNodesRequest { pool_id: pool.to_owned(), filter: list.filter.clone(), page_size, page_token };
        async move {
            let page = pools.list_nodes(request).await?.into_inner();
            Ok((page.nodes, page.next_page_token))
        }
    })
    .await
}

fn state(node: &Node) -> String {
    text::word(node.state().as_str_name(), "NODE_STATE")
}

fn rows(node: &Node) -> Vec<(&'static str, String)> {
    let errors: Vec<String> = node.errors.iter().map(|error| format!("{}: {}", error.code, error.message)).collect();
    let start = node.start_task_info.as_ref().map(|info| match (info.exit_code, &info.failure) {
        (_, Some(failure)) => format!("failed: {}: {}", failure.code, failure.message),
        (Some(code), None) => format!("exit code {code}"),
        (None, None) => text::word(info.state().as_str_name(), "START_TASK_STATE"),
    });
    vec![
        ("id", node.id.clone()),
        ("pool", node.pool_id.clone()),
        ("state", state(node)),
        ("scheduling", text::word(SchedulingState::as_str_name(&node.scheduling_state()), "SCHEDULING_STATE")),
        ("slots", format!("{} of {} used", node.running_task_slots, node.task_slots)),
        (
            "tasks",
            format!(
                "{} running, {} run, {} succeeded",
                node.running_tasks, node.total_tasks_run, node.total_tasks_succeeded
            ),
        ),
        ("start task", start.unwrap_or_default()),
        ("address", node.ip_address.clone()),
        ("size", node.vm_size.clone()),
        ("allocated", text::time(node.allocation_time.as_ref())),
        ("booted", text::time(node.last_boot_time.as_ref())),
        ("last contact", text::time(node.agent_last_contact.as_ref())),
        ("agent", node.agent_version.clone()),
        ("errors", errors.join("; ")),
    ]
}
