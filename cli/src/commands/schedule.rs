//! `kiln schedule ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_client::Client;
use kiln_proto::job::v1::{
    CreateJobScheduleRequest, DeleteJobScheduleRequest, DisableJobScheduleRequest, EnableJobScheduleRequest,
    GetJobScheduleRequest, JobManagerTask, JobSchedule, JobScheduleSpec, JobSpec, ListJobSchedulesRequest,
    ListJobsRequest, Schedule, TaskSpec, TerminateJobScheduleRequest,
};
use kiln_time::Timestamp;

use super::{ListArgs, environment, pages, parse_duration, parse_env, present};
use crate::command_line;
use crate::failure::Outcome;
use crate::output::{self, Format, text};
use crate::transfer::request_id;

const MESSAGE: &str = "kiln.job.v1.JobSchedule";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Make a schedule: its jobs are <id>:job-1, <id>:job-2, ...
    Create(CreateArgs),
    /// List schedules
    List(ListArgs),
    /// Show one schedule
    Show {
        /// Its id
        id: String,
    },
    /// List the jobs a schedule has created
    Jobs {
        /// Its id
        id: String,
        /// How much of it
        #[command(flatten)]
        list: ListArgs,
    },
    /// Let a schedule create jobs again
    Enable {
        /// Its id
        id: String,
    },
    /// Let a schedule create no jobs; a job that runs goes on
    Disable {
        /// Its id
        id: String,
    },
    /// End a schedule and its job
    Terminate {
        /// Its id
        id: String,
    },
    /// Delete a schedule and all its jobs
    Delete {
        /// Its id
        id: String,
    },
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its id
    id: String,
    /// Pool on which the tasks of its jobs run
    #[arg(short, long)]
    pool: String,
    /// Time between two jobs, at least 1m; without it there is a single job
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    every: Option<Duration>,
    /// How late a job may be created, at least 1m; without it as late as need be
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    window: Option<Duration>,
    /// No job before this time, such as 2026-01-31T12:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<Timestamp>,
    /// No job from this time on
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Shell command that every job runs; the job ends with it
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Priority of its jobs, -1000 to 1000
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Environment of every task
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text).map_err(|error| error.to_string())
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said.
pub async fn run(client: &Client, format: Format, command: ScheduleCommand) -> Outcome {
    let mut schedules = client.job_schedules();
    match command {
        ScheduleCommand::Create(args) => {
            let id = args.id.clone();
            let request = CreateJobScheduleRequest { request_id: request_id(), id, spec: Some(spec(args)) };
            show(format, schedules.create_job_schedule(request).await?.into_inner().job_schedule)
        }
        ScheduleCommand::List(args) => list(client, format, args).await,
        ScheduleCommand::Show { id } => {
            let request = GetJobScheduleRequest { id, precondition: None };
            show(format, schedules.get_job_schedule(request).await?.into_inner().job_schedule)
        }
        ScheduleCommand::Jobs { id, list } => jobs(client, format, id, list).await,
        ScheduleCommand::Enable { id } => {
            let request = EnableJobScheduleRequest { request_id: request_id(), id, precondition: None };
            show(format, schedules.enable_job_schedule(request).await?.into_inner().job_schedule)
        }
        ScheduleCommand::Disable { id } => {
            let request = DisableJobScheduleRequest { request_id: request_id(), id, precondition: None };
            show(format, schedules.disable_job_schedule(request).await?.into_inner().job_schedule)
        }
        ScheduleCommand::Terminate { id } => {
            let request = TerminateJobScheduleRequest { request_id: request_id(), id, precondition: None };
            show(format, schedules.terminate_job_schedule(request).await?.into_inner().job_schedule)
        }
        ScheduleCommand::Delete { id } => {
            let request = DeleteJobScheduleRequest { request_id: request_id(), id: id.clone(), precondition: None };
            schedules.delete_job_schedule(request).await?;
            output::done(format, || format!("job schedule {id} is being deleted"));
            Ok(())
        }
    }
}

async fn list(client: &Client, format: Format, args: ListArgs) -> Outcome {
    let list = pages(args.limit, |page_size, page_token| {
        let mut schedules = client.job_schedules();
        let request = ListJobSchedulesRequest { filter: args.filter.clone(), page_size, page_token };
        async move {
            let page = schedules.list_job_schedules(request).await?.into_inner();
            Ok((page.job_schedules, page.next_page_token))
        }
    })
    .await?;
    let header = ["id", "state", "every", "next run", "recent job", "created", "ended"];
    output::list(format, MESSAGE, &list, &header, |schedule| {
        vec![
            schedule.id.clone(),
            state(schedule),
            every(schedule),
            text::time(schedule.next_run_time.as_ref()),
            schedule.recent_job_id.clone(),
            text::time(schedule.creation_time.as_ref()),
            text::time(schedule.end_time.as_ref()),
        ]
    })
}

async fn jobs(client: &Client, format: Format, id: String, args: ListArgs) -> Outcome {
    let list = pages(args.limit, |page_size, page_token| {
        let mut jobs = client.jobs();
        let (filter, job_schedule_id) = (args.filter.clone(), id.clone());
        let request = ListJobsRequest { filter, page_size, page_token, job_schedule_id };
        async move {
            let page = jobs.list_jobs(request).await?.into_inner();
            Ok((page.jobs, page.next_page_token))
        }
    })
    .await?;
    let header = ["id", "state", "created", "ended", "reason"];
    output::list(format, "kiln.job.v1.Job", &list, &header, |job| {
        vec![
            job.id.clone(),
            text::word(job.state().as_str_name(), "JOB_STATE"),
            text::time(job.creation_time.as_ref()),
            text::time(job.end_time.as_ref()),
            job.terminate_reason.clone(),
        ]
    })
}

fn show(format: Format, schedule: Option<JobSchedule>) -> Outcome {
    output::show(format, MESSAGE, &present(schedule, "job schedule")?, rows)
}

fn spec(args: CreateArgs) -> JobScheduleSpec {
    let at = |time: Timestamp| kiln_proto::time::timestamp(time.as_micros());
    let task = |command: String| TaskSpec {
        id: "jobmanager".to_owned(),
        command_line: command_line::shell(&command),
        ..TaskSpec::default()
    };
    let job = JobSpec {
        pool_id: args.pool,
        priority: args.priority,
        common_environment: environment(args.env),
        job_manager_task: args
            .run
            .map(|command| JobManagerTask { task: Some(task(command)), ..JobManagerTask::default() }),
        ..JobSpec::default()
    };
    let schedule = Schedule {
        do_not_run_until: args.from.map(at),
        do_not_run_after: args.until.map(at),
        start_window: args.window.map(kiln_proto::time::duration),
        recurrence_interval: args.every.map(kiln_proto::time::duration),
    };
    JobScheduleSpec { schedule: Some(schedule), job: Some(job), ..JobScheduleSpec::default() }
}

fn state(schedule: &JobSchedule) -> String {
    text::word(schedule.state().as_str_name(), "JOB_SCHEDULE_STATE")
}

fn times(schedule: &JobSchedule) -> Schedule {
    schedule.spec.as_ref().and_then(|spec| spec.schedule).unwrap_or_default()
}

fn span(duration: Option<&prost_types::Duration>) -> String {
    duration.map(|span| format!("{}s", span.seconds)).unwrap_or_default()
}

fn every(schedule: &JobSchedule) -> String {
    match times(schedule).recurrence_interval {
        Some(interval) => span(Some(&interval)),
        None => "once".to_owned(),
    }
}

fn rows(schedule: &JobSchedule) -> Vec<(&'static str, String)> {
    let times = times(schedule);
    vec![
        ("id", schedule.id.clone()),
        ("state", state(schedule)),
        ("every", every(schedule)),
        ("window", span(times.start_window.as_ref())),
        ("from", text::time(times.do_not_run_until.as_ref())),
        ("until", text::time(times.do_not_run_after.as_ref())),
        ("next run", text::time(schedule.next_run_time.as_ref())),
        ("recent job", schedule.recent_job_id.clone()),
        ("created", text::time(schedule.creation_time.as_ref())),
        ("ended", text::time(schedule.end_time.as_ref())),
    ]
}
