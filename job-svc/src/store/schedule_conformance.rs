//! What every [`ScheduleStore`] has to do, beside a [`Store`] of the same data.

use kiln_proto::job::v1::{JobScheduleSpec, JobSpec, Schedule};

use super::schedules::{NewSchedule, ScheduleChange, ScheduleRow, ScheduleWhat, Stepped};
use super::*;
use crate::domain::job::{JobEvent, JobState};
use crate::domain::schedule::{ScheduleEvent, ScheduleId, ScheduleState};
use crate::domain::schedule_spec;

const MINUTE: i64 = 60_000_000;

fn at(minute: i64) -> Timestamp {
    Timestamp::from_micros(minute * MINUTE)
}

fn account() -> AccountName {
    AccountName::parse("Acct").unwrap()
}

fn id(text: &str) -> ScheduleId {
    ScheduleId::parse(text).unwrap()
}

fn new_schedule(text: &str) -> NewSchedule {
    let interval = prost_types::Duration { seconds: 600, nanos: 0 };
    let schedule = Schedule { recurrence_interval: Some(interval), ..Schedule::default() };
    let timing = schedule_spec::timing(&schedule).unwrap();
    let job = JobSpec { pool_id: "P1".into(), ..JobSpec::default() };
    let spec = JobScheduleSpec { schedule: Some(schedule), job: Some(job), ..JobScheduleSpec::default() };
    NewSchedule { account: account(), id: id(text), timing, spec, now: at(0), encode: |row, _| row.id.as_str().into() }
}

async fn create(store: &impl ScheduleStore, text: &str) -> ScheduleRow {
    match store.create_schedule(new_schedule(text), Request::default()).await.unwrap() {
        Answered::New(row) => row,
        Answered::Before(bytes) => panic!("{bytes:?}"),
    }
}

async fn change(store: &impl ScheduleStore, text: &str, event: ScheduleEvent) -> Result<ScheduleState, Error> {
    let change = ScheduleChange {
        what: ScheduleWhat::Event(event),
        look_at: at(1),
        condition: Conditions::default(),
        request: Request::default(),
        encode: |_, _| Vec::new(),
        now: at(1),
    };
    match store.change_schedule(&account(), &id(text), change).await? {
        Answered::New(row) => Ok(row.life.state),
        Answered::Before(bytes) => panic!("{bytes:?}"),
    }
}

async fn steps(store: &impl ScheduleStore, row: &ScheduleRow, now: i64) -> Vec<(String, JobState)> {
    let mut done = Vec::new();
    loop {
        let Stepped { jobs, more, .. } = store.step_schedule(row.row, at(now)).await.unwrap();
        done.extend(jobs.into_iter().map(|job| (job.job.as_str().to_owned(), job.life.state)));
        if !more {
            // What comes to rest is not due any more.
            store.step_schedule(row.row, at(now)).await.unwrap();
            return done;
        }
    }
}

/// Ends a job as its scheduler does.
async fn end_job(store: &impl Store, job: &str) {
    let row = store.job(&account(), &JobId::parse(job).unwrap()).await.unwrap();
    let write = |event| JobWrite { job: row.row, event, only_if_open: None };
    for event in [JobEvent::Terminate("done".into()), JobEvent::Drained] {
        let commit = Commit { jobs: vec![write(event)], now: at(2), ..super::conformance::commit(1) };
        store.commit(commit).await.unwrap();
    }
}

/// Everything.
pub async fn all<S: Store + ScheduleStore>(store: &S) {
    jobs_and_schedules_share_their_ids(store).await;
    a_request_is_answered_once(store).await;
    an_occurrence_makes_one_job_and_waits_for_its_end(store).await;
    terminating_ends_the_job_first(store).await;
    deleting_takes_all_jobs_along(store).await;
}

fn new_job(text: &str) -> NewJob {
    NewJob {
        account: account(),
        job: JobId::parse(text).unwrap(),
        pool: PoolId::parse("P1").unwrap(),
        spec: JobSpec { pool_id: "P1".into(), ..JobSpec::default() },
        traceparent: String::new(),
        now: at(0),
        encode: |_| Vec::new(),
    }
}

async fn jobs_and_schedules_share_their_ids<S: Store + ScheduleStore>(store: &S) {
    create(store, "Taken").await;
    let refused = store.create_schedule(new_schedule("TAKEN"), Request::default()).await.unwrap_err();
    assert!(matches!(refused, Error::JobScheduleExists(_)));
    let refused = store.create_job(new_job("taken"), Request::default()).await.unwrap_err();
    assert!(matches!(refused, Error::JobScheduleWithSameIdExists(_)));
    store.create_job(new_job("a-job"), Request::default()).await.unwrap();
    let refused = store.create_schedule(new_schedule("A-Job"), Request::default()).await.unwrap_err();
    assert!(matches!(refused, Error::JobWithSameIdExists(_)));
    let listed = store.list_schedules(&account(), Some("t".into()), 1).await.unwrap();
    assert_eq!(listed[0].id.as_str(), "Taken");
    let nobody = AccountName::parse("other").unwrap();
    assert!(matches!(store.schedule(&nobody, &id("taken")).await.unwrap_err(), Error::JobScheduleNotFound(_)));
}

async fn a_request_is_answered_once(store: &impl ScheduleStore) {
    let key = || Request { method: "CreateJobSchedule", id: "one".into() };
    let first = store.create_schedule(new_schedule("asked"), key()).await.unwrap();
    assert!(matches!(first, Answered::New(_)));
    let again = store.create_schedule(new_schedule("asked"), key()).await.unwrap();
    assert!(matches!(again, Answered::Before(bytes) if bytes == b"asked"));
}

async fn an_occurrence_makes_one_job_and_waits_for_its_end<S: Store + ScheduleStore>(store: &S) {
    let row = create(store, "Runs").await;
    assert!(store.due_schedules(at(0), 100).await.unwrap().contains(&row.row));
    assert_eq!(steps(store, &row, 0).await, [("Runs:job-1".to_owned(), JobState::Active)]);
    assert!(!store.due_schedules(at(1000), 100).await.unwrap().contains(&row.row), "its job's end is the reason");
    assert_eq!(steps(store, &row, 10).await, []);
    end_job(store, "runs:job-1").await;
    assert!(store.due_schedules(at(3), 100).await.unwrap().contains(&row.row), "the end is noted with the end");
    assert_eq!(steps(store, &row, 3).await, []);
    let row = store.schedule(&account(), &id("runs")).await.unwrap();
    assert_eq!((row.life.created, row.life.next, row.version), (1, Some(at(10)), 2));
    assert_eq!(store.next_look().await.unwrap().map(|at| at <= self::at(10)), Some(true));
    assert_eq!(steps(store, &row, 12).await, [("Runs:job-2".to_owned(), JobState::Active)]);
    let job = store.job(&account(), &JobId::parse("runs:job-2").unwrap()).await.unwrap();
    assert_eq!((job.pool.as_str(), job.created), ("P1", at(12)));
    store.postpone_schedule(row.row, at(99)).await.unwrap();
    assert!(!store.due_schedules(at(98), 100).await.unwrap().contains(&row.row));
}

async fn terminating_ends_the_job_first<S: Store + ScheduleStore>(store: &S) {
    let row = create(store, "Ends").await;
    steps(store, &row, 0).await;
    assert_eq!(change(store, "ends", ScheduleEvent::Terminate).await.unwrap(), ScheduleState::Terminating);
    assert_eq!(steps(store, &row, 1).await, [("Ends:job-1".to_owned(), JobState::Terminating)]);
    assert_eq!(steps(store, &row, 1).await, [], "once");
    end_job(store, "ends:job-1").await;
    steps(store, &row, 2).await;
    let over = store.schedule(&account(), &id("ends")).await.unwrap();
    assert_eq!((over.life.state, over.life.end), (ScheduleState::Completed, Some(at(2))));
    let refused = change(store, "ends", ScheduleEvent::Disable).await.unwrap_err();
    assert!(matches!(refused, Error::JobScheduleCompleted));
}

async fn deleting_takes_all_jobs_along<S: Store + ScheduleStore>(store: &S) {
    // A neighbour whose keys are near.
    create(store, "goes-on").await;
    let row = create(store, "Goes").await;
    for minute in [0, 10, 20] {
        steps(store, &row, minute).await;
        end_job(store, &format!("goes:job-{}", minute / 10 + 1)).await;
    }
    change(store, "goes", ScheduleEvent::Delete).await.unwrap();
    let deleted = steps(store, &row, 30).await;
    assert!(deleted.len() == 3 && deleted.iter().all(|(_, state)| *state == JobState::Deleting), "{deleted:?}");
    let refused = store.create_schedule(new_schedule("goes"), Request::default()).await.unwrap_err();
    assert!(matches!(refused, Error::JobScheduleBeingDeleted));
    for number in 1..=3 {
        let job = store.job(&account(), &JobId::parse(&format!("goes:job-{number}")).unwrap()).await.unwrap();
        store.remove_job(job.row, at(31)).await.unwrap();
        steps(store, &row, 31).await;
    }
    assert!(store.schedule(&account(), &id("goes")).await.is_err());
    assert!(store.schedule(&account(), &id("goes-on")).await.is_ok());
}

#[tokio::test]
async fn each_database_does_what_a_schedule_store_has_to_do() {
    for place in kiln_store::testing::TestStore::each() {
        let store = sql::SqlStore::open(place.config()).await.unwrap();
        all(&store).await;
    }
}
