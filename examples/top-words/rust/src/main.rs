//! Top words through Kiln's gRPC API: upload, pool, a stream of tasks, a watch on the job, results, clean-up.
//!
//! Run it with the variables that `kiln env` prints:
//! `cargo run -p top-words -- [DIRECTORY WITH THE EXAMPLE]`

mod check;
mod steps;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kiln_client::Client;

use steps::{Run, Text};

fn main() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(count())
}

async fn count() -> anyhow::Result<()> {
    let example = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("examples/top-words"), PathBuf::from);
    let top = variable("TOP_WORDS").map_or(Ok(10), |text| text.parse()).context("TOP_WORDS")?;
    let client = Client::connect(
        &required("KILN_ENDPOINT")?,
        &required("AZURE_BATCH_ACCOUNT")?,
        &required("AZURE_BATCH_ACCESS_KEY")?,
    )?;
    let texts = Text::read_all(&example.join("data"))?;
    let script = std::fs::read(example.join("top_words.py")).context("top_words.py")?;

    let run = Run::new(client, top);
    let mut clock = Clock::start();
    let outcome = work(&run, &texts, script, &mut clock).await;
    let total = clock.total();
    // Whatever happened, nothing stays behind.
    run.clean_up().await?;
    clock.lap("everything deleted");

    let problems = outcome?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    println!(
        "total: {:.2} s without the deletion; {} results, {} problems",
        total.as_secs_f64(),
        texts.len(),
        problems.len()
    );
    if !problems.is_empty() {
        bail!("results differ from the second count");
    }
    Ok(())
}

/// All steps up to the results; returns what is wrong with them.
async fn work(run: &Run, texts: &[Text], script: Vec<u8>, clock: &mut Clock) -> anyhow::Result<Vec<String>> {
    run.make_containers().await?;
    run.upload("top_words.py", script).await?;
    for text in texts {
        run.upload(&text.file_name(), text.content.clone().into_bytes()).await?;
    }
    clock.lap("upload");

    run.make_pool(2).await?;
    run.make_job().await?;
    run.add_tasks(texts).await?;
    clock.lap("pool, job, tasks added");

    run.watch_job().await?;
    clock.lap("tasks completed");

    let mut problems = Vec::new();
    for text in texts {
        let expected = check::top_words(&text.content, run.top);
        let printed = run.task_file(&text.stem, "stdout.txt").await?;
        let uploaded = run.download(&format!("{}.txt", text.stem)).await?;
        print!("{}:\n{printed}", text.stem);
        for (what, found) in [("stdout.txt", printed), ("the uploaded result", uploaded)] {
            if found != expected {
                problems.push(format!("{}: {what} differs from the second count", text.stem));
            }
        }
    }
    clock.lap("results fetched");
    Ok(problems)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn required(name: &str) -> anyhow::Result<String> {
    variable(name).with_context(|| format!("{name} is not set; use what `kiln env` prints"))
}

/// Prints how long each part took.
struct Clock {
    start: Instant,
    last: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now }
    }

    fn lap(&mut self, what: &str) {
        let now = Instant::now();
        println!("{:6.2} s  {what}", (now - self.last).as_secs_f64());
        self.last = now;
    }

    fn total(&self) -> Duration {
        self.last - self.start
    }
}
