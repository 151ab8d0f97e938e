//! `kiln bench blobs`
//!
//! - [`server`]: what is measured: an own storage-svc, Azurite, any other;
//! - [`client`]: signed requests over one connection; [`load`]: what is asked;
//! - [`crash`]: instead, whether what was acknowledged survives `kill -9`.
//!
//! With Azurite, each load goes to one server and then to the other before the
//! next load comes, so both have the same minute.

pub mod client;
pub mod crash;
pub mod load;
pub mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;

use super::disk_floor;
use super::figures::{Report, Round};
use super::job::new_id;
use crate::connect::ConnectArgs;
use crate::failure::{Failure, Outcome};
use client::Place;
use load::Load;
use server::Server;

const MIB: f64 = 1024.0 * 1024.0;
/// Clients where there are several.
const CLIENTS: usize = 16;
/// Clients that send the blocks of one blob.
const SENDERS: usize = 4;
/// Lists whose first page is timed in a round; the best counts.
const LISTS: usize = 3;

/// Arguments of `kiln bench blobs`.
#[derive(Debug, Args)]
pub struct BlobsArgs {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// How long each load of small blobs lasts
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
    /// Size of the large blob
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    large: u64,
    /// Blobs that are listed
    #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
    names: u64,
    /// Measure Azurite at the same time; PROGRAM is its azurite-blob [default: npx, which fetches it]
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, require_equals = true, default_missing_value = "npx")]
    azurite: Option<PathBuf>,
    /// Blobs that Azurite lists, since it takes long to make many
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", requires = "azurite")]
    azurite_names: u64,
    /// Instead: kill an own server under writes, look for what was acknowledged
    #[arg(long, conflicts_with = "azurite")]
    crash: bool,
    /// How often it is killed
    #[arg(long, default_value_t = 10, value_name = "COUNT", requires = "crash")]
    kills: usize,
    /// Key of the account at --endpoint, which is a data plane here [env: KILN_ACCOUNT_KEY]
    #[arg(long, value_name = "BASE64")]
    key: Option<String>,
}

/// A figure of one server, of the other, and what the first is to the second.
#[derive(Debug, Clone, Copy)]
struct Figure {
    own: &'static str,
    azurite: &'static str,
    ratio: &'static str,
}

const fn figure(own: &'static str, azurite: &'static str, ratio: &'static str) -> Figure {
    Figure { own, azurite, ratio }
}

const PUT_1: Figure = figure("put_1_per_second", "azurite_put_1_per_second", "put_1_to_azurite");
const PUT_16: Figure = figure("put_16_per_second", "azurite_put_16_per_second", "put_16_to_azurite");
const GET_1: Figure = figure("get_1_per_second", "azurite_get_1_per_second", "get_1_to_azurite");
const GET_16: Figure = figure("get_16_per_second", "azurite_get_16_per_second", "get_16_to_azurite");
const UPLOAD: Figure = figure("upload_mib_per_second", "azurite_upload_mib_per_second", "upload_to_azurite");
const UPLOAD_1: Figure = figure("upload_1_mib_per_second", "azurite_upload_1_mib_per_second", "upload_1_to_azurite");
const DOWNLOAD: Figure = figure("download_mib_per_second", "azurite_download_mib_per_second", "download_to_azurite");
const NAMES: Figure = figure("names_per_second", "azurite_names_per_second", "names_to_azurite");
const FIRST_PAGE: Figure = figure("first_page_ms", "azurite_first_page_ms", "first_page_to_azurite");

/// A server, its container, and how many blobs it lists.
struct Subject {
    server: Server,
    load: Load,
    names: u64,
}

/// Measures.
///
/// # Errors
/// If a server fails or refuses something, or has lost something.
pub async fn run(connect: &ConnectArgs, args: BlobsArgs) -> Outcome<Report> {
    let external = external(connect, args.key.as_deref())?;
    if args.crash && external.is_some() {
        return Err(Failure::Usage("--crash kills a server of its own: leave out --endpoint".to_owned()));
    }
    if !(args.seconds.is_finite() && args.seconds >= 0.0) || args.large == 0 || args.names == 0 {
        return Err(Failure::Usage("--seconds, --large and --names: must be above zero".to_owned()));
    }
    // Clients on one thread of their own: more would compete with the server.
    let measured = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
        runtime.block_on(async {
            if args.crash { Box::pin(crash::run(args.kills)).await } else { Box::pin(measure(external, &args)).await }
        })
    });
    measured.await.context("the benchmark")?
}

/// The data plane that the flags name. A variable that points to a deployment's front door is not meant.
fn external(connect: &ConnectArgs, key: Option<&str>) -> Outcome<Option<Place>> {
    let Some(endpoint) = &connect.endpoint else {
        return match key {
            Some(_) => Err(Failure::Usage("--key: is for a server named by --endpoint".to_owned())),
            None => Ok(None),
        };
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let account = connect.account.clone().or_else(|| variable("KILN_ACCOUNT"));
    let key = key.map(str::to_owned).or_else(|| variable("KILN_ACCOUNT_KEY"));
    let (Some(account), Some(key)) = (account, key) else {
        return Err(Failure::Usage(format!("{endpoint} needs credentials: --account and --key (or KILN_ACCOUNT_KEY)")));
    };
    Place::new(endpoint, &account, &key).map(Some)
}

async fn measure(external: Option<Place>, args: &BlobsArgs) -> Outcome<Report> {
    let directory = tempfile::Builder::new().prefix("kiln-bench-").tempdir().context("temporary directory")?;
    let mut report = Report::new("blobs");
    report.fact("seconds", args.seconds);
    report.fact("large_mib", args.large);
    report.fact("names", args.names);
    report.fact("floor", "copy and sync of a file; the file through one TCP connection; files of 4 KiB, flushed");
    let server = match external {
        Some(place) => Server::external(place),
        None => Server::kiln(directory.path()).await?,
    };
    let mut subjects = vec![subject(server, args.names).await?];
    if let Some(program) = &args.azurite {
        report.fact("azurite_names", args.azurite_names);
        let program = program.canonicalize().unwrap_or_else(|_| program.clone());
        subjects.push(subject(Server::azurite(directory.path(), &program).await?, args.azurite_names).await?);
    }
    for subject in &subjects {
        subject.load.prepare().await?;
        subject.load.fill(subject.names).await?;
    }
    let large = directory.path().join("large");
    write_large(&large, args.large)?;
    for number in 0..args.repeat {
        report.round(round(&subjects, args, number, &large).await?);
    }
    for (subject, name) in subjects.into_iter().zip(["peak_memory_bytes", "azurite_peak_memory_bytes"]) {
        if let Some(peak) = subject.server.peak_memory() {
            report.fact(name, peak);
        }
        subject.load.delete().await?;
        subject.server.stop().await?;
    }
    Ok(report)
}

async fn subject(server: Server, names: u64) -> Outcome<Subject> {
    let load = Load::new(server.place(), &new_id("bench")).await?;
    Ok(Subject { server, load, names })
}

async fn round(subjects: &[Subject], args: &BlobsArgs, number: usize, large: &Path) -> Outcome<Round> {
    let during = Duration::from_secs_f64(args.seconds);
    let length = args.large * 1024 * 1024;
    let mut round = Round::new();
    let scratch = large.with_extension(format!("small-{number}"));
    let synced = blocking(move || disk_floor::synced_files(&scratch, load::SMALL, during)).await?;
    round.push(("floor_synced_files_per_second", synced));
    for (clients, put, get) in [(1, PUT_1, GET_1), (CLIENTS, PUT_16, GET_16)] {
        let mut figures = Vec::new();
        for subject in subjects {
            figures.push(subject.load.put(clients, during).await?);
        }
        let rate = push(&mut round, put, &figures);
        if clients == 1 {
            round.push(("put_1_to_floor", rate / synced));
        }
        figures.clear();
        for subject in subjects {
            figures.push(subject.load.get(clients, during).await?);
        }
        push(&mut round, get, &figures);
    }
    let (from, to) = (large.to_owned(), large.with_extension(format!("copy-{number}")));
    let copied = MIB.recip() * length as f64 / blocking(move || disk_floor::copy(&from, &to)).await?.as_secs_f64();
    round.push(("floor_copy_mib_per_second", copied));
    for (senders, upload, ratio) in [(1, UPLOAD_1, "upload_1_to_floor"), (SENDERS, UPLOAD, "upload_to_floor")] {
        let mut figures = Vec::new();
        for subject in subjects {
            // New names: what replaces a blob has the old one to remove.
            figures.push(subject.load.upload(&format!("large-{number}-{senders}"), length, senders).await? / MIB);
        }
        let rate = push(&mut round, upload, &figures);
        round.push((ratio, rate / copied));
    }
    let file = large.to_owned();
    let sent = MIB.recip() * length as f64 / blocking(move || disk_floor::through_tcp(&file)).await?.as_secs_f64();
    round.push(("floor_tcp_mib_per_second", sent));
    let mut figures = Vec::new();
    for subject in subjects {
        figures.push(subject.load.download(&format!("large-{number}-{SENDERS}"), length).await? / MIB);
    }
    let rate = push(&mut round, DOWNLOAD, &figures);
    round.push(("download_to_floor", rate / sent));
    let (mut firsts, mut rates) = (Vec::new(), Vec::new());
    for subject in subjects {
        let mut best = (f64::INFINITY, 0.0f64);
        for _ in 0..LISTS {
            let (first, rate) = subject.load.list(subject.names).await?;
            best = (best.0.min(first.as_secs_f64() * 1000.0), best.1.max(rate));
        }
        firsts.push(best.0);
        rates.push(best.1);
    }
    push(&mut round, FIRST_PAGE, &firsts);
    push(&mut round, NAMES, &rates);
    Ok(round)
}

/// One figure of all servers; gives that of the first.
fn push(round: &mut Round, figure: Figure, values: &[f64]) -> f64 {
    let own = values.first().copied().unwrap_or_default();
    round.push((figure.own, own));
    if let Some(azurite) = values.get(1) {
        round.push((figure.azurite, *azurite));
        round.push((figure.ratio, own / azurite));
    }
    own
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Outcome<T> {
    Ok(tokio::task::spawn_blocking(work).await.context("floor")?.context("floor")?)
}

/// The file of the floors, flushed, so that its writing does not go on beside what is measured.
fn write_large(path: &Path, mib: u64) -> Outcome {
    use std::io::Write;
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create_new(path)?;
        for number in 0..mib {
            file.write_all(&client::noise(number, 1024 * 1024))?;
        }
        file.sync_all()
    };
    write().map_err(|error| anyhow!("{}: {error}", path.display()).into())
}
