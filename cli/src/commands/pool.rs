//! `kiln pool ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_client::Client;
use kiln_proto::common::v1::{ApplicationPackageReference, DeallocationOption};
use kiln_proto::pool::v1::{
    AllocationState, CreatePoolRequest, DeletePoolRequest, GetPoolRequest, ListPoolsRequest, NodeFillType, Pool,
    PoolSpec, PoolState, ResizePoolRequest, StartTask,
};

use super::app::{package_text, parse_package};
use super::{ListArgs, environment, pages, parse_duration, parse_env, present};
use crate::failure::Outcome;
use crate::output::{self, Format, text};
use crate::transfer::request_id;

const MESSAGE: &str = "kiln.pool.v1.Pool";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool
    Create(CreateArgs),
    /// List pools
    List(ListArgs),
    /// Show one pool
    Show {
        /// Its id
        id: String,
    },
    /// Change the number of nodes
    Resize {
        /// Its id
        id: String,
        /// Nodes it should have
        nodes: i32,
        /// What happens to tasks on nodes that go
        #[arg(long, value_enum, default_value_t)]
        tasks: OnLeave,
        /// Time the resize may take
        #[arg(long, value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Delete a pool and its nodes
    Delete {
        /// Its id
        id: String,
    },
}

/// What happens to the tasks of a node that goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnLeave {
    /// They run again on another node.
    #[default]
    Requeue,
    /// They are over.
    Terminate,
    /// The node waits for them.
    Finish,
}

impl OnLeave {
    /// The word of the contract.
    pub fn option(self) -> DeallocationOption {
        match self {
            Self::Requeue => DeallocationOption::Requeue,
            Self::Terminate => DeallocationOption::Terminate,
            Self::Finish => DeallocationOption::TaskCompletion,
        }
    }
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its id
    id: String,
    /// Number of nodes
    #[arg(short, long, default_value_t = 1)]
    nodes: i32,
    /// Tasks that may run at once on a node
    #[arg(short, long, default_value_t = 1)]
    slots: i32,
    /// Size of a node in the provider's words
    #[arg(long, default_value = "local")]
    vm_size: String,
    /// Fill one node before the next
    #[arg(long)]
    pack: bool,
    /// Application package that every node installs; again for more
    #[arg(long = "package", value_name = "APP[:VERSION]", value_parser = parse_package)]
    packages: Vec<ApplicationPackageReference>,
    /// Command line that runs on every node before its first task
    #[arg(long, value_name = "COMMAND LINE")]
    start_task: Option<String>,
    /// Environment of the start task
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env, requires = "start_task")]
    start_env: Vec<(String, String)>,
    /// Time a resize may take
    #[arg(long, value_parser = parse_duration)]
    resize_timeout: Option<Duration>,
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, command: PoolCommand) -> Outcome {
    let mut pools = client.pools();
    match command {
        PoolCommand::Create(args) => {
            let id = args.id.clone();
            let request = CreatePoolRequest { request_id: request_id(), id, spec: Some(spec(args)) };
            let pool = present(pools.create_pool(request).await?.into_inner().pool, "pool")?;
            output::show(format, MESSAGE, &pool, rows)
        }
        PoolCommand::List(args) => {
            let list = pages(args.limit, |page_size, page_token| {
                let mut pools = client.pools();
                let request = ListPoolsRequest { filter: args.filter.clone(), page_size, page_token };
                async move {
                    let page = pools.list_pools(request).await?.into_inner();
                    Ok((page.pools, page.next_page_token))
                }
            })
            .await?;
            let header = ["id", "state", "allocation", "nodes", "slots", "size", "created"];
            output::list(format, MESSAGE, &list, &header, |pool| {
                let spec = pool.spec.clone().unwrap_or_default();
                vec![
                    pool.id.clone(),
                    text::word(pool.state().as_str_name(), "POOL_STATE"),
                    text::word(pool.allocation_state().as_str_name(), "ALLOCATION_STATE"),
                    nodes(pool),
                    spec.task_slots_per_node.max(1).to_string(),
                    spec.vm_size,
                    text::time(pool.creation_time.as_ref()),
                ]
            })
        }
        PoolCommand::Show { id } => {
            let request = GetPoolRequest { id, ..GetPoolRequest::default() };
            let pool = present(pools.get_pool(request).await?.into_inner().pool, "pool")?;
            output::show(format, MESSAGE, &pool, rows)
        }
        PoolCommand::Resize { id, nodes, tasks, timeout } => {
            let request = ResizePoolRequest {
                request_id: request_id(),
                id,
                target_dedicated_nodes: Some(nodes),
                resize_timeout: timeout.map(kiln_proto::time::duration),
                deallocation_option: tasks.option().into(),
                ..ResizePoolRequest::default()
            };
            let pool = present(pools.resize_pool(request).await?.into_inner().pool, "pool")?;
            output::show(format, MESSAGE, &pool, rows)
        }
        PoolCommand::Delete { id } => {
            let request = DeletePoolRequest { request_id: request_id(), id: id.clone(), precondition: None };
            pools.delete_pool(request).await?;
            output::done(format, || format!("pool {id} is being deleted"));
            Ok(())
        }
    }
}

fn spec(args: CreateArgs) -> PoolSpec {
    let fill = if args.pack { NodeFillType::Pack } else { NodeFillType::Spread };
    PoolSpec {
        vm_size: args.vm_size,
        target_dedicated_nodes: args.nodes,
        task_slots_per_node: args.slots,
        node_fill_type: fill.into(),
        application_packages: args.packages,
        resize_timeout: args.resize_timeout.map(kiln_proto::time::duration),
        start_task: args.start_task.map(|command_line| StartTask {
            command_line,
            environment: environment(args.start_env),
            ..StartTask::default()
        }),
        ..PoolSpec::default()
    }
}

fn nodes(pool: &Pool) -> String {
    let target = pool.spec.as_ref().map_or(0, |spec| spec.target_dedicated_nodes + spec.target_low_priority_nodes);
    format!("{}/{target}", pool.current_dedicated_nodes + pool.current_low_priority_nodes)
}

fn rows(pool: &Pool) -> Vec<(&'static str, String)> {
    let spec = pool.spec.clone().unwrap_or_default();
    let errors: Vec<String> =
        pool.resize_errors.iter().map(|error| format!("{}: {}", error.code, error.message)).collect();
    let fill = if spec.node_fill_type() == NodeFillType::Pack { "pack" } else { "spread" };
    vec![
        ("id", pool.id.clone()),
        ("state", text::word(PoolState::as_str_name(&pool.state()), "POOL_STATE")),
        ("allocation", text::word(AllocationState::as_str_name(&pool.allocation_state()), "ALLOCATION_STATE")),
        ("nodes", nodes(pool)),
        ("slots", format!("{} per node, {fill}", spec.task_slots_per_node.max(1))),
        ("size", spec.vm_size),
        ("packages", spec.application_packages.iter().map(package_text).collect::<Vec<_>>().join(", ")),
        ("start task", spec.start_task.map(|task| task.command_line).unwrap_or_default()),
        ("created", text::time(pool.creation_time.as_ref())),
        ("errors", errors.join("; ")),
    ]
}
