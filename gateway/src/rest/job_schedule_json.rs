//! JSON of job schedules.

use kiln_error::Error;
use kiln_proto::job::v1::{JobMetadata, JobSchedule, JobScheduleSpec, JobScheduleState, JobSpec, Schedule};
use serde_json::Value;

use super::common::{read_name_values, write_name_values};
use super::job_json;
use super::json::{Fields, Out, word, write_duration};
use super::view::View;

const STATES: &[(&str, JobScheduleState)] = &[
    ("active", JobScheduleState::Active),
    ("completed", JobScheduleState::Completed),
    ("disabled", JobScheduleState::Disabled),
    ("terminating", JobScheduleState::Terminating),
    ("deleting", JobScheduleState::Deleting),
];

/// What a PATCH gives; absent parts stay as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// When jobs are created.
    pub schedule: Option<Schedule>,
    /// What later jobs will be like.
    pub job: Option<JobSpec>,
    /// All of it.
    pub metadata: Option<JobMetadata>,
}

/// Id and specification out of the body of "add job schedule".
///
/// # Errors
/// Names the property that is missing or wrong.
pub fn read_new(body: &Value) -> Result<(String, JobScheduleSpec), Error> {
    let fields = Fields::root(body)?;
    let id = fields.required_text("id")?;
    let schedule = read_schedule(&fields)?.ok_or_else(|| fields.missing("schedule"))?;
    let spec = JobScheduleSpec {
        display_name: fields.text_or_empty("displayName")?,
        schedule: Some(schedule),
        job: Some(read_job(&fields)?.ok_or_else(|| fields.missing("jobSpecification"))?),
        metadata: read_name_values(&fields, "metadata")?,
        // What a schedule has no field for belongs to its jobs, which keep it.
        client_settings_json: String::new(),
    };
    Ok((id, spec))
}

/// What the body of a PATCH changes.
///
/// # Errors
/// Names the property that is wrong.
pub fn read_patch(body: &Value) -> Result<Change, Error> {
    let fields = Fields::root(body)?;
    let metadata = read_name_values(&fields, "metadata")?;
    Ok(Change {
        schedule: read_schedule(&fields)?,
        job: read_job(&fields)?,
        metadata: fields.has("metadata").then_some(JobMetadata { items: metadata }),
    })
}

/// What the body of a PUT replaces; what is not given falls back to its default.
///
/// # Errors
/// Names the property that is missing or wrong.
pub fn read_put(body: &Value) -> Result<Change, Error> {
    let given = read_patch(body)?;
    let job = given.job.ok_or_else(|| Error::missing_property("jobSpecification"))?;
    Ok(Change {
        schedule: Some(given.schedule.unwrap_or_default()),
        job: Some(job),
        metadata: Some(given.metadata.unwrap_or_default()),
    })
}

fn read_job(fields: &Fields<'_>) -> Result<Option<JobSpec>, Error> {
    match (fields.get("jobSpecification"), fields.object("jobSpecification")?) {
        (Some(body), Some(job)) => Ok(Some(job_json::read_spec(body, &job)?)),
        _ => Ok(None),
    }
}

fn read_schedule(fields: &Fields<'_>) -> Result<Option<Schedule>, Error> {
    let Some(schedule) = fields.object("schedule")? else { return Ok(None) };
    Ok(Some(Schedule {
        do_not_run_until: schedule.time("doNotRunUntil")?,
        do_not_run_after: schedule.time("doNotRunAfter")?,
        start_window: schedule.limit("startWindow")?,
        recurrence_interval: schedule.limit("recurrenceInterval")?,
    }))
}

/// A job schedule as GET answers it.
pub fn write(schedule: &JobSchedule, view: View<'_>) -> Value {
    let default = JobScheduleSpec::default();
    let spec = schedule.spec.as_ref().unwrap_or(&default);
    let mut out = Out::new();
    out.put("id", schedule.id.as_str())
        .put_text("displayName", &spec.display_name)
        .put("url", view.url(&["jobschedules", &schedule.id]))
        .put("eTag", schedule.etag.as_str())
        .put_time("lastModified", schedule.last_modified.as_ref())
        .put_time("creationTime", schedule.creation_time.as_ref())
        .put("state", word(STATES, schedule.state()).unwrap_or("active"))
        .put_time("stateTransitionTime", schedule.state_transition_time.as_ref())
        .put_some("previousState", word(STATES, schedule.previous_state()))
        .put_time("previousStateTransitionTime", schedule.previous_state_transition_time.as_ref());
    let times = spec.schedule.unwrap_or_default();
    let mut inner = Out::new();
    inner
        .put_time("doNotRunUntil", times.do_not_run_until.as_ref())
        .put_time("doNotRunAfter", times.do_not_run_after.as_ref())
        .put_some("startWindow", times.start_window.as_ref().map(|window| write_duration(Some(window))))
        .put_some("recurrenceInterval", times.recurrence_interval.as_ref().map(|every| write_duration(Some(every))));
    out.put("schedule", inner.done())
        .put_some("jobSpecification", spec.job.as_ref().map(|job| job_json::write_spec(job, view.version)));
    let mut execution = Out::new();
    execution.put_time("nextRunTime", schedule.next_run_time.as_ref());
    if !schedule.recent_job_id.is_empty() {
        let mut recent = Out::new();
        recent.put("id", schedule.recent_job_id.as_str()).put("url", view.url(&["jobs", &schedule.recent_job_id]));
        execution.put("recentJob", recent.done());
    }
    execution.put_time("endTime", schedule.end_time.as_ref());
    out.put("executionInfo", execution.done()).put_list("metadata", write_name_values(&spec.metadata));
    out.done()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rest::version::Version;

    fn body() -> Value {
        json!({
            "id": "s", "displayName": "nightly",
            "schedule": {"doNotRunUntil": "2030-01-01T00:00:00.000Z", "doNotRunAfter": "2031-01-01T00:00:00Z",
                "startWindow": "PT05M00S", "recurrenceInterval": "P1D"},
            "jobSpecification": {"displayName": "j", "priority": "3", "poolInfo": {"poolId": "p"},
                "onAllTasksComplete": "terminateJob", "usesTaskDependencies": true,
                "networkConfiguration": {"subnetId": "n"},
                "jobManagerTask": {"id": "jm", "commandLine": "x"},
                "metadata": [{"name": "of", "value": "job"}]},
            "metadata": [{"name": "a", "value": "b"}],
        })
    }

    fn back(body: &Value) -> Value {
        let (id, spec) = read_new(body).unwrap();
        let schedule = JobSchedule {
            id,
            spec: Some(spec),
            state: JobScheduleState::Active.into(),
            recent_job_id: "s:job-1".into(),
            next_run_time: Some(kiln_proto::time::timestamp(1_769_860_800_000_000)),
            ..JobSchedule::default()
        };
        write(&schedule, View { base: "http://h", version: Version::LATEST })
    }

    #[test]
    fn a_schedule_comes_back() {
        let answer = back(&body());
        assert_eq!(
            answer["schedule"],
            json!({"doNotRunUntil": "2030-01-01T00:00:00Z", "doNotRunAfter": "2031-01-01T00:00:00Z",
                "startWindow": "PT5M", "recurrenceInterval": "P1D"})
        );
        let job = &answer["jobSpecification"];
        assert_eq!((&job["displayName"], &job["priority"]), (&json!("j"), &json!(3)));
        assert_eq!((&job["poolInfo"], &job["usesTaskDependencies"]), (&json!({"poolId": "p"}), &json!(true)));
        assert_eq!(
            (&job["networkConfiguration"]["subnetId"], &job["jobManagerTask"]["id"]),
            (&json!("n"), &json!("jm"))
        );
        assert_eq!(job["metadata"], json!([{"name": "of", "value": "job"}]));
        assert_eq!((&answer["displayName"], &answer["metadata"][0]["name"]), (&json!("nightly"), &json!("a")));
        assert_eq!(
            answer["executionInfo"],
            json!({"nextRunTime": "2026-01-31T12:00:00Z",
                "recentJob": {"id": "s:job-1", "url": "http://h/jobs/s:job-1"}})
        );
    }

    #[test]
    fn patches_give_parts_and_puts_give_all() {
        let metadata = Some(JobMetadata { items: Vec::new() });
        assert_eq!(read_patch(&json!({})).unwrap(), Change::default());
        assert_eq!(
            read_patch(&json!({"metadata": []})).unwrap(),
            Change { metadata: metadata.clone(), ..Change::default() }
        );
        let put = read_put(&json!({"jobSpecification": {"poolInfo": {"poolId": "p"}}})).unwrap();
        assert_eq!((put.schedule, put.metadata), (Some(Schedule::default()), metadata));
        assert_eq!(put.job.unwrap().pool_id, "p");
        // What was read goes back.
        let answer = back(&body());
        let (_, spec) = read_new(&body()).unwrap();
        let again = read_put(&answer).unwrap();
        assert_eq!(again.schedule, spec.schedule);
        assert_eq!(again.job.unwrap().client_settings_json, spec.job.unwrap().client_settings_json);
    }

    #[test]
    fn wrong_schedules_are_refused_with_the_property() {
        let mut cases = Vec::new();
        for name in ["id", "schedule", "jobSpecification"] {
            let mut body = body();
            body.as_object_mut().unwrap().remove(name);
            cases.push((body, name));
        }
        let mut change = |pointer: &str, value: Value, property| {
            let mut body = body();
            *body.pointer_mut(pointer).unwrap() = value;
            cases.push((body, property));
        };
        change("/schedule/doNotRunUntil", json!("tomorrow"), "schedule.doNotRunUntil");
        change("/schedule/startWindow", json!("5 minutes"), "schedule.startWindow");
        change("/jobSpecification/poolInfo", json!({}), "jobSpecification.poolInfo.poolId");
        change("/jobSpecification/jobManagerTask", json!({"id": "x"}), "jobSpecification.jobManagerTask.commandLine");
        for (body, property) in cases {
            let error = read_new(&body).unwrap_err();
            assert_eq!(error.details()[0], ("PropertyName".to_owned(), property.to_owned()));
        }
        assert_eq!(read_put(&json!({})).unwrap_err().details()[0].1, "jobSpecification");
    }
}
