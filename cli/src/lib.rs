//! The `kiln` program: runs everything, submits, watches, fetches.
//!
//! - [`up`]: all services in one process, on one data directory;
//! - [`run`]: workflow files; [`exec`]: one command, or an array of it;
//! - [`bench`]: how fast it is;
//! - [`blob`]: many files and blobs at once;
//! - [`commands`]: one module per resource, for looking and changing by hand;
//! - [`connect`]: which server a command talks to; [`follow`]: event streams
//!   that survive a broken connection; [`transfer`]: files in and out;
//! - [`output`]: tables and JSON; [`failure`]: errors and exit codes.
//!
//! `kiln agent` runs on nodes and is started by the local provider; it makes
//! its own small runtime. Every other command gets the runtime it needs: many
//! threads where services run, one where only calls are made.

pub mod amounts;
pub mod array;
pub mod bench;
pub mod blob;
pub mod command_line;
pub mod commands;
pub mod connect;
pub mod env;
pub mod exec;
pub mod failure;
pub mod follow;
pub mod interrupt;
pub mod output;
pub mod run;
pub mod session;
pub mod transfer;
pub mod up;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use kiln_telemetry::{LogFormat, Options};

use connect::ConnectArgs;
use failure::{Failure, Outcome};
use output::Format;

/// Batch computing that you run yourself.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, disable_help_subcommand = true, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Form of the output
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole deployment in this process
    Up(UpArgs),
    /// Print what other programs need to reach the server, as shell exports
    ///
    /// Use it as: eval "$(kiln env)"
    Env,
    /// Run a workflow file: stage, compute, fetch, clean up
    Run(run::RunArgs),
    /// Run a command on a node, or once per index of an array
    Exec(exec::ExecArgs),
    /// Pools: groups of nodes
    #[command(subcommand)]
    Pool(commands::pool::PoolCommand),
    /// Nodes of a pool
    #[command(subcommand)]
    Node(commands::node::NodeCommand),
    /// Jobs: groups of tasks
    #[command(subcommand)]
    Job(commands::job::JobCommand),
    /// Job schedules: jobs that are created again and again
    #[command(subcommand)]
    Schedule(commands::schedule::ScheduleCommand),
    /// Tasks of a job
    #[command(subcommand)]
    Task(commands::task::TaskCommand),
    /// Applications and their packages, which nodes install
    #[command(subcommand)]
    App(commands::app::AppCommand),
    /// Containers and blobs
    #[command(subcommand)]
    Blob(commands::blob::BlobCommand),
    /// Show what happens to a job until it is completed
    Watch(commands::watch::WatchArgs),
    /// Show the output of a task
    Logs(commands::logs::LogsArgs),
    /// Show the event log of the account
    Events(commands::events::EventsArgs),
    /// Accounts of a deployment whose services run apart
    #[command(subcommand)]
    Account(commands::account::AccountCommand),
    /// Measure how fast a deployment is, beside what the machine allows
    ///
    /// A server is started for it, unless --endpoint or --data names one.
    Bench(bench::BenchArgs),
    /// Certificates of a private authority, for TLS between services
    #[command(subcommand)]
    Certs(commands::certs::CertsCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory
    Man {
        /// The directory; made if need be
        directory: PathBuf,
    },
    /// Show the server of a data directory, and its processes if it has more than one
    Status,
    /// Run one service of a deployment; `kiln up --cluster-dev` does
    #[command(hide = true)]
    Service(up::cluster::service::ServiceArgs),
    /// Run a node's agent; the local provider does
    #[command(hide = true)]
    Agent(node_agent::AgentArgs),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// Address of the front door (gRPC and Azure Batch REST); port 0 is any
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7450")]
    listen: SocketAddr,
    /// Address of the blob data plane; port 0 is any
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7451")]
    blob_listen: SocketAddr,
    /// Name under which others reach this machine, if it is not the address
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
    /// The shape of a cluster, to try it: replicas as processes, PostgreSQL, RabbitMQ
    #[arg(long)]
    cluster_dev: bool,
    /// Processes of each service that can have several
    #[arg(long, value_name = "N", requires = "cluster_dev", default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=8))]
    replicas: u16,
    /// PostgreSQL; the deployment has schemas of its own in it
    #[arg(long, value_name = "URL", requires = "cluster_dev", default_value = up::cluster::DATABASE_URL)]
    database_url: String,
    /// RabbitMQ; the deployment has queues of its own in it
    #[arg(long, value_name = "URL", requires = "cluster_dev", default_value = up::cluster::AMQP_URL)]
    amqp_url: String,
}

/// Carries out a command line; gives the exit code of the process.
pub fn main(cli: Cli) -> ExitCode {
    // Fails only if somebody was faster, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Outcome {
    let Cli { connect, output, command } = cli;
    match command {
        // Runs on every node: its own small runtime, nothing of ours.
        Command::Agent(args) => Ok(node_agent::main_with(args)?),
        Command::Service(args) => args.run(),
        Command::Status => commands::status::command(output, &connect.data_dir()?),
        Command::Env => env::command(&connect.data_dir()?),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { directory } => write_man_pages(&directory),
        Command::Certs(command) => commands::certs::run(output, command),
        Command::Up(args) => {
            let data = connect.data_dir()?;
            let addresses = up::Addresses { gateway: args.listen, blob: args.blob_listen, advertise: args.advertise };
            let format = if args.log_json { LogFormat::Json } else { LogFormat::Plain };
            if args.cluster_dev {
                let options = up::cluster::Options {
                    replicas: args.replicas.into(),
                    database_url: args.database_url,
                    amqp_url: args.amqp_url,
                };
                return with_runtime(Threads::Many, format, "info", || async move {
                    up::cluster::command(&data, &addresses, &options).await
                });
            }
            with_runtime(Threads::Many, format, "info", || async move { up::command(&data, &addresses).await })
        }
        Command::Bench(args) => {
            with_runtime(Threads::Many, LogFormat::Plain, "error", || bench::command(connect, output, args))
        }
        Command::Node(commands::node::NodeCommand::Join(args)) => {
            with_runtime(Threads::One, LogFormat::Plain, "warn", || commands::node_join::run(connect, args))
        }
        Command::Events(commands::events::EventsArgs {
            command: Some(commands::events::EventsCommand::Dead(args)),
            ..
        }) => with_runtime(Threads::One, LogFormat::Plain, "error", || commands::events::dead::run(output, args)),
        // These two may start a server of their own.
        Command::Run(args) => {
            with_runtime(Threads::Many, LogFormat::Plain, "error", || run::command(connect, output, args))
        }
        Command::Exec(args) => with_runtime(Threads::Many, LogFormat::Plain, "error", || exec::command(connect, args)),
        // Comes before there is anything to connect as.
        Command::Account(command) => with_runtime(Threads::One, LogFormat::Plain, "warn", || async move {
            commands::account::run(&connect, command).await
        }),
        command => with_runtime(Threads::One, LogFormat::Plain, "warn", || async move {
            let target = connect.require()?;
            let client = target.client()?;
            let result = match command {
                Command::Pool(command) => commands::pool::run(&client, output, command).await,
                Command::Node(command) => commands::node::run(&client, output, command).await,
                Command::Job(command) => commands::job::run(&client, output, command).await,
                Command::Schedule(command) => commands::schedule::run(&client, output, command).await,
                Command::Task(command) => commands::task::run(&client, output, command).await,
                Command::App(command) => commands::app::run(&client, output, command).await,
                Command::Blob(command) => commands::blob::run(&client, output, command).await,
                Command::Watch(args) => commands::watch::run(&client, output, args).await,
                Command::Logs(args) => commands::logs::run(&client, args).await,
                Command::Events(args) => commands::events::run(&client, output, args).await,
                // Dispatched above.
                Command::Up(_)
                | Command::Env
                | Command::Status
                | Command::Service(_)
                | Command::Run(_)
                | Command::Exec(_)
                | Command::Account(_)
                | Command::Bench(_)
                | Command::Certs(_)
                | Command::Completions { .. }
                | Command::Man { .. }
                | Command::Agent(_) => Ok(()),
            };
            result.map_err(|failure| failure.at(&target.endpoint))
        }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    Many,
}

fn with_runtime<F, Fut>(threads: Threads, format: LogFormat, filter: &'static str, work: F) -> Outcome
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Outcome>,
{
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().context("runtime")?;
    let (telemetry, result) = runtime.block_on(async {
        let telemetry = kiln_telemetry::init(Options {
            service: "kiln",
            format,
            default_filter: filter,
            otlp_endpoint: Options::otlp_from_env(),
        });
        match telemetry {
            Ok(telemetry) => (Some(telemetry), Box::pin(work()).await),
            Err(error) => (None, Err(Failure::Usage(format!("{error:#}")))),
        }
    });
    // Blocking threads may still hold files; nobody waits for that.
    runtime.shutdown_background();
    if let Some(telemetry) = telemetry {
        telemetry.shutdown();
    }
    result
}

fn write_man_pages(directory: &std::path::Path) -> Outcome {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(|| directory.display().to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_of_the_manual_are_understood() {
        for line in [
            "kiln up",
            "kiln up --data d --listen 127.0.0.1:0 --blob-listen 127.0.0.1:0",
            "kiln up --cluster-dev --replicas 3 --database-url postgres://h/d --amqp-url amqp://h",
            "kiln service job-svc --config f --with-parent",
            "kiln status --output json",
            "kiln env --data d",
            "kiln run w.yaml --set a=1 --set b=x=y --keep --output json",
            "kiln exec -- true",
            "kiln exec --array 1-10:2 -n 3 --pool p --env A=b -- sh -c x",
            "kiln pool create p --nodes 2 --slots 4",
            "kiln pool list --output json",
            "kiln node cat p n startup/stdout.txt",
            "kiln job counts j",
            "kiln task add j t -- python3 a.py",
            "kiln blob put a.txt c/a.txt",
            "kiln blob cp a.txt b.txt kiln:c/p/ --force",
            "kiln blob cp -r kiln:c/p d --dry-run",
            "kiln blob cp - kiln:c/x",
            "kiln blob sync d kiln:c --delete --times --dry-run",
            "kiln blob ls c/p -l -r",
            "kiln blob rm -r c/p c/*.txt",
            "kiln blob sas c/a c/b --permissions rw --expires 2h",
            "kiln app create tool --display-name T --no-updates",
            "kiln app upload tool 1.0 tool.zip --default",
            "kiln app url tool 1.0",
            "kiln app activate tool 1.0",
            "kiln app set tool --default-version 1.0",
            "kiln app set tool --no-default-version --allow-updates false",
            "kiln app rm tool 1.0",
            "kiln app rm tool --all",
            "kiln pool create p --package tool:1.0 --package other",
            "kiln task add j t --package tool -- run",
            "kiln watch j",
            "kiln logs -f j t --stderr",
            "kiln events --type job.task",
            "kiln events dead ls --amqp-url amqp://h --amqp-prefix a. --output json",
            "kiln events dead show --amqp-url-file f 1",
            "kiln events dead replay 1 2 --queue monitor.events",
            "kiln events dead rm --all",
            "kiln account create alpha --cluster-key-file k --endpoint http://g:1 --storage http://s:2",
            "kiln bench tasks --count 10 --nodes 2 --slots 1 --simulated --repeat 1 --output json",
            "kiln bench latency --queued 5 --by poll",
            "kiln bench latency --load 100,1000",
            "kiln bench submit --count 5",
            "kiln bench nodes --nodes 10,1000",
            "kiln bench core --count 10",
            "kiln bench blobs --seconds 1 --large 16 --names 100 --azurite --azurite-names 10",
            "kiln bench blobs --azurite=node_modules/.bin/azurite-blob --repeat 1",
            "kiln bench blobs --endpoint http://127.0.0.1:10000 --account a --key b",
            "kiln bench blobs --crash --kills 3",
            "kiln node token --pool p --valid 2h --uses 5",
            "kiln node join --token t --endpoint http://127.0.0.1:7462",
            "kiln node join --dir d --keep",
            "kiln certs init",
            "kiln certs issue service --name pool-svc --host pool.example --days 30",
            "kiln certs issue gateway --host batch.example --dir d",
            "kiln certs issue node",
            "kiln certs renew pool-svc",
            "kiln certs renew --within 30",
            "kiln certs show --output json",
            "kiln completions zsh",
            "kiln man m",
            "kiln agent --join f",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "kiln",
            "kiln exec",
            "kiln exec --array 3-1 -- true",
            "kiln blob cp a",
            "kiln blob sync a",
            "kiln blob rm",
            "kiln run",
            "kiln run w.yaml --set a",
            "kiln up --listen x",
            "kiln up --replicas 2",
            "kiln bench blobs --kills 3",
            "kiln up --cluster-dev --replicas 0",
            "kiln service agent",
            "kiln events dead",
            "kiln events dead rm",
            "kiln events dead replay 1 --all",
            "kiln certs issue",
            "kiln certs issue service",
            "kiln certs issue service --name a --days 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_command_has_a_page_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        write_man_pages(&dir.path().join("man")).unwrap();
        let pages = std::fs::read_dir(dir.path().join("man")).unwrap().count();
        assert!(pages > 30, "{pages}");
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "kiln", &mut script);
        assert!(String::from_utf8(script).unwrap().contains("blob-listen"));
    }
}
