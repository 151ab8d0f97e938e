//! `kiln run FILE.yaml`: a whole workflow with one command.
//!
//! - [`load`] reads and checks the file ([`yaml`], [`reader`], [`expand`],
//!   [`files`], [`tasks`], [`depends`]) and gives a [`model::Workflow`]; `docs/workflow.md`
//!   is its manual;
//! - [`specs`] turns that into messages of the API;
//! - [`carry_out`] stages, makes pool and job, adds tasks, follows them
//!   ([`tally`]) and fetches; [`clean_up`] takes away what the run made;
//! - [`progress`] and [`summary`] show it.

pub mod carry_out;
pub mod clean_up;
pub mod depends;
pub mod expand;
pub mod files;
pub mod load;
pub mod model;
pub mod progress;
pub mod reader;
pub mod specs;
pub mod summary;
pub mod tally;
pub mod tasks;
pub mod yaml;

use std::path::{Path, PathBuf};
use std::time::Instant;

use tracing::Instrument;

use crate::commands::parse_pair;
use crate::connect::ConnectArgs;
use crate::failure::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::Format;
use crate::session::Session;

use carry_out::Run;
use load::Source;
use model::Workflow;
use progress::Progress;
use summary::Summary;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The workflow file; its manual is docs/workflow.md
    file: PathBuf,
    /// Value of a variable of the file
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
    /// Leave job, pool and containers (and an embedded server's data) in place
    #[arg(long)]
    keep: bool,
    /// Start a server for this run alone, even if one runs
    #[arg(long, conflicts_with = "endpoint")]
    embedded: bool,
    /// Check the file and show what would be done
    #[arg(long)]
    check: bool,
}

/// `kiln run`.
///
/// # Errors
/// [`Failure::Usage`] with all problems of the file; else what went wrong, after
/// everything was taken away again.
pub async fn command(connect: ConnectArgs, format: Format, args: RunArgs) -> Outcome {
    let begin = Instant::now();
    let workflow = read(&args.file, &args.set)?;
    if args.check {
        crate::output::text_block(format_args!("{}", summary::plan(&workflow)));
        return Ok(());
    }
    let interrupt = Interrupt::listen()?;
    let progress = Progress::new(format == Format::Json);
    let session = tokio::select! {
        session = Session::open(&connect, args.embedded) => session?,
        () = interrupt.requested() => return Err(Failure::Interrupted),
    };
    let mut summary = Summary::new(&workflow);
    if session.is_embedded() {
        summary.phases.server = Some(begin.elapsed());
    }
    // Made after the server was started, whose own work is not part of the run.
    let span = tracing::info_span!("kiln run", job.id = workflow.job.id);
    let mut run = Run::new(session.client.clone(), &workflow, &progress, &mut summary);
    let result = tokio::select! {
        result = Box::pin(run.carry_out().instrument(span)) => result,
        () = interrupt.requested() => Err(Failure::Interrupted),
        () = over(&workflow, begin) => Err(Failure::Other(anyhow::anyhow!("the run is not done within its timeout"))),
    };
    let made = run.into_made();
    if let Err(Failure::Interrupted) = &result {
        progress.say("stopping (Ctrl-C again to leave at once)");
    }
    let cleaning = Instant::now();
    // What is on an embedded server goes with it.
    let left = if args.keep || session.is_embedded() {
        Vec::new()
    } else {
        clean_up::clean_up(&session.client, made, &workflow).await
    };
    let embedded = session.is_embedded();
    let kept = session.close(args.keep).await;
    summary.phases.clean_up = Some(cleaning.elapsed());
    summary.phases.total = Some(begin.elapsed());
    progress.clear();
    for failure in &left {
        eprintln!("warning: not taken away: {failure}");
    }
    summary.print(format, result.as_ref().err());
    if args.keep {
        summary::tell_kept(format, &workflow, kept.as_deref(), embedded);
    }
    match result {
        Ok(()) if summary.is_good() && left.is_empty() => Ok(()),
        Ok(()) => Err(Failure::Silent(1)),
        Err(failure) => Err(failure),
    }
}

async fn over(workflow: &Workflow, begin: Instant) {
    match workflow.timeout {
        Some(limit) => tokio::time::sleep_until((begin + limit).into()).await,
        None => std::future::pending().await,
    }
}

fn read(file: &Path, set: &[(String, String)]) -> Outcome<Workflow> {
    let name = file.display().to_string();
    let text = std::fs::read(file).map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
    let text = String::from_utf8(text).map_err(|_| Failure::Usage(format!("{name}: the file is not UTF-8")))?;
    let base = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let source = Source { text: &text, file: &name, base, set, suffix: &suffix() };
    load::load(source).map_err(|problems| Failure::Usage(problems.to_string()))
}

/// Six letters and digits that no other run has.
pub fn suffix() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let random = uuid::Uuid::new_v4();
    random.as_bytes()[..6].iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}
