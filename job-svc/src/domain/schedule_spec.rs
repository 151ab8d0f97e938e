//! What users may ask for in job schedules.

use std::time::Duration;

use kiln_proto::job::v1::{JobScheduleSpec, JobSpec, Schedule};
use kiln_proto::time::{micros, std_duration};
use kiln_time::Timestamp;
use prost::Message;

use super::schedule::{MIN_INTERVAL, ScheduleId, Timing};
use super::{Error, spec};

/// Characters of a display name.
const MAX_DISPLAY_NAME: usize = 1024;
/// Bytes of a schedule's spec beside its job's.
const MAX_BYTES: usize = 1024 * 1024;

/// Checks the id and the spec of a new schedule.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(id: &str, spec: &JobScheduleSpec) -> Result<(ScheduleId, Timing), Error> {
    if id.is_empty() {
        return Err(Error::Missing("id".to_owned()));
    }
    let id = ScheduleId::parse(id).map_err(|why| match why {
        Some(why) => Error::bad_id("id", id, &why),
        None => Error::invalid("id", id, "must have 1 to 64 characters of A-Z a-z 0-9 - _"),
    })?;
    let length = spec.display_name.chars().count();
    if length > MAX_DISPLAY_NAME {
        let why = format!("has {length} characters; at most {MAX_DISPLAY_NAME} are allowed");
        return Err(Error::invalid("displayName", "", why));
    }
    let schedule = spec.schedule.as_ref().ok_or_else(|| Error::Missing("schedule".to_owned()))?;
    let timing = timing(schedule)?;
    check_job(spec.job.as_ref().ok_or_else(|| Error::Missing("jobSpecification".to_owned()))?)?;
    spec::check_metadata(&spec.metadata)?;
    check_size(spec)?;
    Ok((id, timing))
}

/// Checks what the jobs of a schedule will be like: as a job's own spec.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_job(job: &JobSpec) -> Result<(), Error> {
    spec::check_job_spec(job).map(drop)
}

/// Checks the size of a whole spec.
///
/// # Errors
/// If it is too large.
pub fn check_size(spec: &JobScheduleSpec) -> Result<(), Error> {
    let size = spec.encoded_len() - spec.job.as_ref().map_or(0, Message::encoded_len);
    if size > MAX_BYTES {
        return Err(Error::TooLarge { what: "the job schedule", size, max: MAX_BYTES });
    }
    Ok(())
}

/// The times of a schedule.
///
/// # Errors
/// The first thing that is wrong.
pub fn timing(schedule: &Schedule) -> Result<Timing, Error> {
    let at = |time: &prost_types::Timestamp| Timestamp::from_micros(micros(time));
    let timing = Timing {
        not_before: schedule.do_not_run_until.as_ref().map(at),
        not_after: schedule.do_not_run_after.as_ref().map(at),
        window: span("schedule.startWindow", schedule.start_window.as_ref())?,
        interval: span("schedule.recurrenceInterval", schedule.recurrence_interval.as_ref())?,
    };
    if let (Some(start), Some(end)) = (timing.not_before, timing.not_after)
        && end <= start
    {
        return Err(Error::invalid("schedule.doNotRunAfter", end, "must be after doNotRunUntil"));
    }
    Ok(timing)
}

fn span(name: &str, value: Option<&prost_types::Duration>) -> Result<Option<Duration>, Error> {
    let Some(value) = value else { return Ok(None) };
    match std_duration(value) {
        Some(span) if span >= MIN_INTERVAL => Ok(Some(span)),
        _ => Err(Error::invalid(name, format!("{}s", value.seconds), "must be at least 1 minute")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> JobScheduleSpec {
        JobScheduleSpec {
            schedule: Some(Schedule::default()),
            job: Some(JobSpec { pool_id: "p".into(), ..JobSpec::default() }),
            ..JobScheduleSpec::default()
        }
    }

    fn refused(change: impl FnOnce(&mut JobScheduleSpec)) -> String {
        let mut spec = good();
        change(&mut spec);
        check("s", &spec).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_named() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        assert!(check("s", &good()).is_ok());
        assert!(check("a:b", &good()).unwrap_err().to_string().starts_with("id"));
        assert!(refused(|spec| spec.schedule = None).starts_with("schedule is required"));
        assert!(refused(|spec| spec.job = None).starts_with("jobSpecification"));
        assert!(refused(|spec| spec.job = Some(JobSpec::default())).starts_with("poolInfo"));
        let short = |schedule: Schedule| refused(|spec| spec.schedule = Some(schedule));
        let text = short(Schedule { recurrence_interval: seconds(59), ..Schedule::default() });
        assert!(text.starts_with("schedule.recurrenceInterval"), "{text}");
        let text = short(Schedule { start_window: seconds(-60), ..Schedule::default() });
        assert!(text.starts_with("schedule.startWindow"), "{text}");
        let text = short(Schedule { do_not_run_until: at(5), do_not_run_after: at(5), ..Schedule::default() });
        assert!(text.starts_with("schedule.doNotRunAfter"), "{text}");
        let text = refused(|spec| spec.metadata = vec![kiln_proto::common::v1::NameValue::default()]);
        assert!(text.starts_with("metadata"), "{text}");
    }
}
