//! `kiln events dead`: messages of the broker that nobody could deal with.
//!
//! For operators: it speaks to RabbitMQ, by the settings of the services, and not
//! to a server. Messages are named by their ids.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Subcommand;
use kiln_bus::rabbitmq::dead::{DeadLetter, DeadLetters, Done, Fate};
use kiln_bus::{BusError, RabbitConfig};
use kiln_proto::events::v1::EventBatch;
use prost::Message as _;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, json as json_form, table};

/// Which broker and deployment.
#[derive(Debug, clap::Args)]
pub struct Broker {
    /// RabbitMQ, as in the services' amqp_url; holds a password, better named by a file
    #[arg(long, value_name = "URL", env = "KILN_AMQP_URL", hide_env_values = true, global = true)]
    amqp_url: Option<String>,
    /// File with that URL
    #[arg(long, value_name = "FILE", global = true)]
    amqp_url_file: Option<PathBuf>,
    /// What the services have as amqp_prefix
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true, global = true)]
    amqp_prefix: String,
}

/// Which letters.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// Ids of messages, from `kiln events dead ls`
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All there are
    #[arg(long)]
    all: bool,
    /// Only those of this queue
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
}

/// Arguments of `events dead`.
#[derive(Debug, clap::Args)]
pub struct DeadArgs {
    #[command(flatten)]
    broker: Broker,
    #[command(subcommand)]
    command: DeadCommand,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List them, the oldest first
    Ls {
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one with its events
    Show {
        /// Id of the message
        id: String,
    },
    /// Send them to the queues they come from
    Replay(Which),
    /// Throw them away
    Rm(Which),
}

impl Which {
    fn has(&self, letter: &DeadLetter) -> bool {
        (self.all || self.ids.contains(&letter.message.id))
            && self.queue.as_ref().is_none_or(|queue| *queue == letter.queue)
    }

    /// Says what was asked for and is not there.
    fn check(&self, found: &BTreeSet<String>) -> Outcome {
        match self.ids.iter().find(|id| !found.contains(*id)) {
            Some(missing) => Err(missing_letter(missing)),
            None => Ok(()),
        }
    }
}

fn missing_letter(id: &str) -> Failure {
    Failure::Other(anyhow::anyhow!("there is no dead letter {id}; `kiln events dead ls` lists them"))
}

fn failed(error: BusError) -> Failure {
    Failure::Other(anyhow::Error::new(error))
}

impl Broker {
    fn url(&self) -> Result<String, Failure> {
        match (&self.amqp_url_file, &self.amqp_url) {
            (Some(file), _) => std::fs::read_to_string(file)
                .map(|text| text.trim().to_owned())
                .map_err(|error| Failure::Usage(format!("--amqp-url-file {}: {error}", file.display()))),
            (None, Some(url)) => Ok(url.clone()),
            (None, None) => Err(Failure::Usage(
                "say which broker: --amqp-url-file FILE, --amqp-url URL, or KILN_AMQP_URL".to_owned(),
            )),
        }
    }
}

/// Carries out a subcommand.
///
/// # Errors
/// The broker cannot be used, or there is no such letter.
pub async fn run(format: Format, args: DeadArgs) -> Outcome {
    let config = RabbitConfig::new(args.broker.url()?, "kiln events dead").with_prefix(&args.broker.amqp_prefix);
    let letters = DeadLetters::open(config).await.map_err(failed)?;
    let outcome = match args.command {
        DeadCommand::Ls { limit } => list(&letters, format, limit as usize).await,
        DeadCommand::Show { id } => show(&letters, format, &id).await,
        DeadCommand::Replay(which) => change(&letters, format, &which, Fate::Replay).await,
        DeadCommand::Rm(which) => change(&letters, format, &which, Fate::Drop).await,
    };
    letters.close().await;
    outcome
}

async fn list(letters: &DeadLetters, format: Format, limit: usize) -> Outcome {
    let mut found = Vec::new();
    let done = letters
        .each(|letter| {
            if found.len() < limit {
                found.push(head(letter));
            }
            Fate::Keep
        })
        .await
        .map_err(failed)?;
    match format {
        Format::Json => output::line(format_args!("{}", json_form::pretty(&Value::Array(found)))),
        Format::Table => {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let columns = ["id", "queue", "type", "reason", "times", "since", "events"];
            let row = |letter: &Value| columns.iter().map(|column| text(&letter[*column])).collect();
            output::text_block(format_args!("{}", table::table(&columns, found.iter().map(row))));
            if done.seen > found.len() {
                output::line(format_args!("{} more; --limit shows them", done.seen - found.len()));
            }
        }
    }
    Ok(())
}

/// What is known of a letter without its events.
fn head(letter: &DeadLetter) -> Value {
    let since = letter.since.map(|seconds| {
        let micros = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        kiln_time::Timestamp::from_micros(micros).to_string()
    });
    let events = EventBatch::decode(letter.message.body.clone());
    json!({
        "id": letter.message.id,
        "queue": letter.queue,
        "type": letter.message.routing_key,
        "source": letter.message.source,
        "reason": letter.reason,
        "times": letter.times,
        "since": since.unwrap_or_default(),
        "events": events.map_or(Value::from("unreadable"), |batch| Value::from(batch.events.len())),
    })
}

async fn show(letters: &DeadLetters, format: Format, id: &str) -> Outcome {
    let mut found = None;
    let find = |letter: &DeadLetter| {
        if letter.message.id == id {
            found.get_or_insert_with(|| letter.clone());
        }
        Fate::Keep
    };
    letters.each(find).await.map_err(failed)?;
    let letter = found.ok_or_else(|| missing_letter(id))?;
    let mut shown = head(&letter);
    let batch = EventBatch::decode(letter.message.body);
    shown["events"] = match &batch {
        Ok(batch) => {
            let events: Result<Vec<Value>, Failure> =
                batch.events.iter().map(|event| json_form::value("kiln.events.v1.Event", event)).collect();
            Value::Array(events?)
        }
        Err(error) => Value::from(format!("unreadable: {error}")),
    };
    match format {
        // Events are deep; both forms show them as JSON.
        Format::Json | Format::Table => output::line(format_args!("{}", json_form::pretty(&shown))),
    }
    Ok(())
}

async fn change(letters: &DeadLetters, format: Format, which: &Which, fate: Fate) -> Outcome {
    let done = letters.each(|letter| if which.has(letter) { fate } else { Fate::Keep }).await.map_err(failed)?;
    let Done { replayed, dropped, refused, .. } = done;
    match format {
        Format::Json => {
            let refused: Vec<Value> = refused.iter().map(|(id, why)| json!({"id": id, "why": why})).collect();
            let all = json!({"replayed": replayed, "dropped": dropped, "refused": refused});
            output::line(format_args!("{}", json_form::pretty(&all)));
        }
        Format::Table => {
            let word = if fate == Fate::Replay { "replayed" } else { "dropped" };
            output::line(format_args!("{} {word}", replayed.len() + dropped.len()));
            for (id, why) in &refused {
                output::line(format_args!("{id} stays: {why}"));
            }
        }
    }
    let found = replayed.into_iter().chain(dropped).chain(refused.iter().map(|(id, _)| id.clone())).collect();
    which.check(&found)?;
    if refused.is_empty() {
        return Ok(());
    }
    Err(Failure::Silent(1))
}
