//! `kiln watch JOB`: its events until it is completed.

use kiln_client::Client;
use kiln_proto::events::v1::{Event, event::Payload};
use kiln_proto::job::v1::GetJobRequest;

use crate::failure::Outcome;
use crate::follow::Follow;
use crate::output::{Format, json, text};

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub struct WatchArgs {
    /// The job
    job: String,
    /// Go on after the job is completed
    #[arg(long)]
    forever: bool,
}

/// Prints events as they come; JSON is one object a line.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, args: WatchArgs) -> Outcome {
    // A job that does not exist is an error, not a long silence.
    client.jobs().get_job(GetJobRequest { id: args.job.clone(), precondition: None }).await?;
    let mut follow = Follow::job(client, &args.job, !args.forever);
    while let Some(events) = follow.next().await? {
        for event in &events {
            print_event(format, event)?;
        }
    }
    Ok(())
}

/// One event as one line.
///
/// # Errors
/// If it has no JSON form.
pub fn print_event(format: Format, event: &Event) -> Outcome {
    match format {
        Format::Json => crate::output::line(format_args!("{}", json::value("kiln.events.v1.Event", event)?)),
        Format::Table => {
            let time = text::time(event.time.as_ref());
            crate::output::line(format_args!("{time}  {:24} {:40} {}", event.r#type, event.subject, summary(event)));
        }
    }
    Ok(())
}

/// What changed, in a few words.
fn summary(event: &Event) -> String {
    match &event.payload {
        Some(Payload::Pool(pool)) => {
            let target = pool.target_dedicated_nodes + pool.target_low_priority_nodes;
            format!(
                "{} {}/{target} nodes {}",
                text::word(pool.allocation_state().as_str_name(), "ALLOCATION_STATE"),
                pool.current_nodes,
                pool.reason
            )
        }
        Some(Payload::Node(node)) => {
            format!("{} {}", text::word(node.new_state().as_str_name(), "NODE_STATE"), node.reason)
        }
        Some(Payload::Job(job)) => {
            format!("{} {}", text::word(job.new_state().as_str_name(), "JOB_STATE"), job.reason)
        }
        Some(Payload::Task(task)) => {
            let mut words = vec![text::word(task.new_state().as_str_name(), "TASK_STATE")];
            if !task.node_id.is_empty() {
                words.push(format!("on {}", task.node_id));
            }
            if let Some(code) = task.exit_code {
                words.push(format!("exit code {code}"));
            }
            words.push(task.reason.clone());
            words.join(" ")
        }
        Some(Payload::Blob(blob)) => text::bytes(blob.content_length),
        Some(Payload::JobSchedule(schedule)) => {
            format!("{} {}", text::word(schedule.new_state().as_str_name(), "JOB_SCHEDULE_STATE"), schedule.reason)
        }
        Some(Payload::AutoPoolFailed(failed)) => {
            failed.failure.as_ref().map(|failure| format!("{}: {}", failure.code, failure.message)).unwrap_or_default()
        }
        None => String::new(),
    }
    .trim_end()
    .to_owned()
}
