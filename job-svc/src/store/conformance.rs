//! What every [`Store`] has to do. [`all`] runs it on an empty one.

use std::sync::Arc;

use kiln_etag::{Conditions, EtagSet};
use kiln_ids::NodeId;
use kiln_proto::job::v1::{JobPreparationTask, JobReleaseTask, JobSpec, NodeTaskInfo, OnAllTasksComplete, TaskSpec};
use prost::Message;

use super::*;
use crate::domain::dependencies::Dependencies;
use crate::domain::job::{JobEvent, JobState};
use crate::domain::needs::Needs;
use crate::domain::spec;
use crate::domain::subtask::{Subtask, SubtaskEvent};
use crate::domain::task::{AttemptEnd, EndCause, Phase, Task, TaskEvent};

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

pub(super) fn account() -> AccountName {
    AccountName::parse("Acct").unwrap()
}

pub(super) fn job_id(text: &str) -> JobId {
    JobId::parse(text).unwrap()
}

fn task_id(text: &str) -> TaskId {
    TaskId::parse(text).unwrap()
}

fn request(method: &'static str, id: &str) -> Request {
    Request { method, id: id.to_owned() }
}

fn new_job(id: &str) -> NewJob {
    NewJob {
        account: account(),
        job: job_id(id),
        pool: PoolId::parse("P1").unwrap(),
        spec: JobSpec { pool_id: "P1".into(), ..JobSpec::default() },
        traceparent: String::new(),
        now: at(100),
        encode: |row| row.job.as_str().as_bytes().to_vec(),
    }
}

fn new_task(id: &str) -> Result<NewTask, Error> {
    let spec = TaskSpec { id: id.into(), command_line: "true".into(), ..TaskSpec::default() };
    let (id, facts) = spec::check_task(&spec)?;
    Ok(NewTask { id, facts, spec: spec.encode_to_vec().into(), names_job_action: false, depends: None })
}

pub(super) fn adding(job: &str, ids: &[&str]) -> AddTasks {
    AddTasks {
        account: account(),
        job: job_id(job),
        tasks: ids.iter().map(|id| new_task(id)).collect(),
        same_is_added: false,
        request: Request::default(),
        encode: |added| added.results.len().to_string().into_bytes(),
        traceparent: "trace".into(),
        now: at(200),
    }
}

pub(super) fn new<T: std::fmt::Debug>(answered: Answered<T>) -> T {
    match answered {
        Answered::New(value) => value,
        Answered::Before(bytes) => panic!("answered before: {bytes:?}"),
    }
}

pub(super) fn commit(number: u64) -> Commit {
    Commit {
        account: account(),
        fence: None,
        tasks: Vec::new(),
        parents: Vec::new(),
        history: Vec::new(),
        deleted: Vec::new(),
        counts: Vec::new(),
        jobs: Vec::new(),
        subtasks: Vec::new(),
        job_nodes: Vec::new(),
        events: Vec::new(),
        answers: Vec::new(),
        now: at(300),
        number,
    }
}

pub(super) async fn create(store: &impl Store, id: &str) -> JobRow {
    new(store.create_job(new_job(id), Request::default()).await.unwrap())
}

pub(super) async fn add(store: &impl Store, job: &str, ids: &[&str]) -> Vec<TaskRow> {
    let added = new(store.add_tasks(adding(job, ids)).await.unwrap());
    added.results.into_iter().map(|result| result.outcome.unwrap().new.unwrap()).collect()
}

pub(super) fn write(row: &TaskRow, event: TaskEvent) -> (TaskWrite, Task) {
    let transition = row.task.apply(event, at(300)).unwrap();
    let expect = (row.task.state.phase(), row.task.attempt);
    (TaskWrite { row: row.row, expect, task: transition.task.clone() }, transition.task)
}

pub(super) fn assign() -> TaskEvent {
    TaskEvent::Assign { node: Arc::new(NodeId::parse("n1").unwrap()), preparing: false }
}

fn end(code: i32) -> AttemptEnd {
    AttemptEnd {
        start: None,
        end: at(400),
        exit_code: Some(code),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    }
}

/// Everything.
pub async fn all(store: &impl Store) {
    jobs_by_key_and_version(store).await;
    requests_are_answered_once(store).await;
    tasks_and_counts(store).await;
    an_id_is_given_once_also_within_a_call(store).await;
    needs_are_kept(store).await;
    instances_are_kept(store).await;
    the_scheduler_is_fenced(store).await;
    job_events_are_judged_in_the_transaction(store).await;
    reactivation_and_deletion_of_completed_tasks(store).await;
    what_is_known_of_parents(store).await;
    old_tasks_of_jobs_that_go_on(store).await;
    nodes_of_a_job_are_remembered(store).await;
    deleted_jobs_leave_nothing(store).await;
}

async fn jobs_by_key_and_version(store: &impl Store) {
    let job = create(store, "Jobs-1").await;
    let again = store.create_job(new_job("JOBS-1"), Request::default()).await.unwrap_err();
    assert!(matches!(again, Error::JobExists(_)));
    let read = store.job(&account(), &job_id("jobs-1")).await.unwrap();
    assert_eq!((read.row, read.job.as_str(), read.version), (job.row, "Jobs-1", 1));
    let disable = JobChange::Event(JobEvent::Disable(crate::domain::job::DisableTasks::Wait), |_| Vec::new());
    let condition = Conditions { if_match: Some(EtagSet::parse("0x8D0")), ..Conditions::default() };
    let id = job_id("jobs-1");
    let refused = store.change_job(&account(), &id, disable.clone(), condition, Request::default(), at(5)).await;
    assert!(matches!(refused.unwrap_err(), Error::ConditionNotMet(_)));
    let changed = store.change_job(&account(), &id, disable, Conditions::default(), Request::default(), at(101)).await;
    let changed = new(changed.unwrap());
    assert_eq!((changed.version, changed.life.state.name()), (2, "disabling"));
    assert!(changed.last_modified > job.last_modified);
    create(store, "jobs-2").await;
    let listed = store.list_jobs(&account(), Some("jobs-1".into()), 1).await.unwrap();
    assert_eq!(listed[0].job.as_str(), "jobs-2");
    let nobody = AccountName::parse("other").unwrap();
    assert!(store.list_jobs(&nobody, None, 10).await.unwrap().is_empty());
    assert!(matches!(store.job(&nobody, &id).await.unwrap_err(), Error::JobNotFound(_)));
    let pools = store.pools().await.unwrap();
    assert!(pools.iter().any(|(a, p)| *a == account() && p.key() == "p1"));
    let jobs = store.pool_jobs(&account(), &PoolId::parse("p1").unwrap()).await.unwrap();
    assert!(jobs.iter().any(|row| row.row == job.row));
}

async fn requests_are_answered_once(store: &impl Store) {
    let first = store.create_job(new_job("req"), request("CreateJob", "a")).await.unwrap();
    assert!(matches!(first, Answered::New(_)));
    let second = store.create_job(new_job("req"), request("CreateJob", "a")).await.unwrap();
    assert!(matches!(second, Answered::Before(bytes) if bytes == b"req"));
    let add = || AddTasks { request: request("AddTasks", "b"), ..adding("req", &["x", "y"]) };
    assert!(matches!(store.add_tasks(add()).await.unwrap(), Answered::New(_)));
    assert!(matches!(store.add_tasks(add()).await.unwrap(), Answered::Before(bytes) if bytes == b"2"));
    let answer = NewAnswer { request: request("TerminateTask", "c"), answer: Vec::new() };
    store.commit(Commit { answers: vec![answer.clone(), answer], ..commit(1) }).await.unwrap();
    assert!(store.answer(&account(), &request("TerminateTask", "c")).await.unwrap().is_some());
    assert!(store.answer(&account(), &request("DeleteTask", "c")).await.unwrap().is_none());
}

async fn tasks_and_counts(store: &impl Store) {
    let job = create(store, "tasks").await;
    let rows = add(store, "tasks", &["B", "a", "c"]).await;
    assert!(rows.windows(2).all(|pair| pair[0].row < pair[1].row), "row ids grow with age");
    let mut repeated = adding("tasks", &["b", "d"]);
    let added = new(store.add_tasks(repeated.clone()).await.unwrap());
    assert!(matches!(added.results[0].outcome, Err(Error::TaskExists(_))) && added.results[1].outcome.is_ok());
    repeated.same_is_added = true;
    repeated.tasks = vec![new_task("B"), new_task("b")];
    let added = new(store.add_tasks(repeated).await.unwrap());
    assert!(added.results[0].outcome.as_ref().is_ok_and(|task| task.new.is_none()), "the same spec");
    assert!(added.results[1].outcome.is_err(), "the same id with another spec");
    assert_eq!(store.counts(&account(), &job_id("tasks")).await.unwrap().tasks, [4, 0, 0, 0]);
    let page = store.list_tasks(job.row, Some("a".into()), 2).await.unwrap();
    assert_eq!(page.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["B", "c"]);
    assert_eq!(&*page[0].traceparent, "trace");
    let open = store.open_tasks(job.row, rows[0].row, 10).await.unwrap();
    assert_eq!(open.len(), 3);
    let (_, task) = store.task(&account(), &job_id("tasks"), &task_id("b")).await.unwrap();
    assert_eq!(task.row, rows[0].row);
    assert_eq!(store.load_tasks(vec![rows[1].row, 999_999]).await.unwrap().len(), 1);
}

async fn an_id_is_given_once_also_within_a_call(store: &impl Store) {
    create(store, "twice").await;
    let call = |same_is_added| AddTasks { same_is_added, ..adding("twice", &["a", "b", "A", "c", "b"]) };
    let outcomes = |added: Added| -> Vec<Result<bool, String>> {
        let outcome = |result: AddResult| match result.outcome {
            Ok(added) => Ok(added.new.is_some()),
            Err(Error::TaskExists(id)) => Err(id),
            Err(other) => panic!("{other}"),
        };
        added.results.into_iter().map(outcome).collect()
    };
    let first = outcomes(new(store.add_tasks(call(false)).await.unwrap()));
    let exists = |id: &str| Err(id.to_owned());
    assert_eq!(first, [Ok(true), Ok(true), exists("A"), Ok(true), exists("b")]);
    assert_eq!(store.counts(&account(), &job_id("twice")).await.unwrap().tasks, [3, 0, 0, 0]);
    let mut more = call(true);
    more.tasks.push(new_task("d"));
    more.tasks.push(new_task("d"));
    let again = outcomes(new(store.add_tasks(more).await.unwrap()));
    assert_eq!(again[3..], [Ok(false), Ok(false), Ok(true), Ok(false)]);
    assert_eq!(store.counts(&account(), &job_id("twice")).await.unwrap().tasks, [4, 0, 0, 0]);
    let tasks = store.list_tasks(store.job(&account(), &job_id("twice")).await.unwrap().row, None, 9).await.unwrap();
    assert_eq!(tasks.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

async fn needs_are_kept(store: &impl Store) {
    let job = create(store, "needs").await;
    let all = Needs {
        cpu_millis: 1500,
        memory_bytes: u64::MAX >> 1,
        disk_bytes: 3,
        gpus: 4,
        instances: 5,
        exclusive: true,
        dedicated_only: true,
        manager: true,
        ..Needs::slots(6)
    };
    let mut adding = adding("needs", &["plain", "rich"]);
    if let Ok(task) = &mut adding.tasks[1] {
        task.facts.needs = all;
    }
    new(store.add_tasks(adding).await.unwrap());
    let open = store.open_tasks(job.row, 0, 10).await.unwrap();
    assert_eq!([open[0].facts.needs, open[1].facts.needs], [Needs::slots(1), all]);
    let (_, task) = store.task(&account(), &job_id("needs"), &task_id("rich")).await.unwrap();
    assert_eq!(task.facts.needs, all);
}

async fn instances_are_kept(store: &impl Store) {
    create(store, "gang").await;
    let task = add(store, "gang", &["wide"]).await.remove(0);
    let node = |name: &str| Arc::new(NodeId::parse(name).unwrap());
    let first = [Subtask::new(0, 1, node("n1"), at(5)), Subtask::new(1, 1, node("n2"), at(5))];
    let running = first[1].apply(SubtaskEvent::Start(at(6)), at(7)).unwrap();
    let ready = running.apply(SubtaskEvent::Ready, at(8)).unwrap();
    let lost = ready.apply(SubtaskEvent::Lose, at(9)).unwrap();
    for now in [&first[1], &running, &ready, &lost] {
        let subtasks = vec![(task.row, first[0].clone()), (task.row, now.clone())];
        store.commit(Commit { subtasks, ..commit(1) }).await.unwrap();
        assert_eq!(store.subtasks(task.row).await.unwrap(), [first[0].clone(), now.clone()]);
    }
    store.commit(Commit { deleted: vec![task.row], ..commit(2) }).await.unwrap();
    assert_eq!(store.subtasks(task.row).await.unwrap(), []);
}

async fn the_scheduler_is_fenced(store: &impl Store) {
    let job = create(store, "fence").await;
    let mut rows = add(store, "fence", &["a", "b"]).await;
    let (first, running) = write(&rows[0], assign());
    let mut delta = CountsDelta::default();
    delta.moved(Some(Bucket::Active), Some(Bucket::Running), 1);
    let batch = Commit { tasks: vec![first.clone()], counts: vec![(job.row, delta)], ..commit(1) };
    store.commit(batch).await.unwrap();
    assert_eq!(store.counts(&account(), &job_id("fence")).await.unwrap().tasks, [1, 1, 0, 0]);
    let open = store.open_tasks(job.row, 0, 10).await.unwrap();
    assert_eq!(open[0].node.as_ref().map(|node| node.as_str()), Some("n1"));
    // Once more: the row has moved on, and nothing of the batch is written.
    let (other, _) = write(&rows[1], assign());
    let again = store.commit(Commit { tasks: vec![other, first], ..commit(2) }).await;
    assert!(matches!(again.unwrap_err(), CommitError::Stale { row } if row == rows[0].row));
    let (_, untouched) = store.task(&account(), &job_id("fence"), &task_id("b")).await.unwrap();
    assert_eq!(untouched.task.state.phase(), Phase::Active);
    rows[0].task = running;
    let transition = rows[0].task.apply(TaskEvent::Retry { attempt: 1, end: end(3) }, at(400)).unwrap();
    let history = vec![(rows[0].row, transition.history.unwrap())];
    let back = TaskWrite { row: rows[0].row, expect: (Phase::Running, 1), task: transition.task.clone() };
    store.commit(Commit { tasks: vec![back], history, ..commit(3) }).await.unwrap();
    let attempts = store.attempts(rows[0].row, 0, 10).await.unwrap();
    assert_eq!((attempts[0].number, attempts[0].exit_code), (1, Some(3)));
    let (_, read) = store.task(&account(), &job_id("fence"), &task_id("a")).await.unwrap();
    assert_eq!(read.task, transition.task);
}

async fn job_events_are_judged_in_the_transaction(store: &impl Store) {
    let job = create(store, "events").await;
    add(store, "events", &["a"]).await;
    let event = JobEvent::Terminate("AllTasksComplete".into());
    let all = |only_if_open| JobWrite { job: job.row, event: event.clone(), only_if_open };
    let state = |fates: Vec<JobFate>| match fates.into_iter().next() {
        Some(JobFate::Row(row)) => row.life.state,
        other => panic!("{other:?}"),
    };
    let fates = store.commit(Commit { jobs: vec![all(Some(0)), all(Some(2))], ..commit(1) }).await.unwrap();
    assert_eq!(state(fates), JobState::Active, "a task is open");
    let other = create(store, "blocked").await;
    add(store, "blocked", &["a"]).await;
    let one = JobWrite { job: other.row, ..all(Some(1)) };
    let fates = store.commit(Commit { jobs: vec![one], ..commit(1) }).await.unwrap();
    assert_eq!(state(fates), JobState::Terminating, "the one that is open never runs");
    let fates = store.commit(Commit { jobs: vec![all(None)], ..commit(2) }).await.unwrap();
    assert_eq!(state(fates), JobState::Terminating);
    let refused = store.add_tasks(adding("events", &["b"])).await.unwrap_err();
    assert!(matches!(refused, Error::JobBeingTerminated));
    let drained = JobWrite { job: job.row, event: JobEvent::Drained, only_if_open: None };
    let fates = store.commit(Commit { jobs: vec![drained.clone()], ..commit(3) }).await.unwrap();
    assert_eq!(state(fates), JobState::Completed);
    let gone = JobWrite { job: 999_999, ..drained };
    let fates = store.commit(Commit { jobs: vec![gone], ..commit(4) }).await.unwrap();
    assert!(matches!(fates[..], [JobFate::Gone(999_999)]));
    let update = JobUpdate { on_all_tasks_complete: Some(OnAllTasksComplete::TerminateJob), ..JobUpdate::default() };
    let change = JobChange::Update(Box::new(update), |_| Vec::new());
    let none = Conditions::default();
    let over = store.change_job(&account(), &job_id("events"), change, none, Request::default(), at(1)).await;
    assert!(matches!(over.unwrap_err(), Error::JobCompleted));
}

async fn reactivation_and_deletion_of_completed_tasks(store: &impl Store) {
    let job = create(store, "again").await;
    let mut row = add(store, "again", &["a"]).await.remove(0);
    let id = (job_id("again"), task_id("a"));
    let none = Conditions::default;
    let live = store.delete_completed_task(&account(), &id.0, &id.1, none(), Request::default(), at(1)).await;
    assert!(matches!(new(live.unwrap()), Deleted::Live(..)));
    for event in [assign(), TaskEvent::Finish { attempt: 1, end: end(1) }] {
        let (change, task) = write(&row, event);
        store.commit(Commit { tasks: vec![change], ..commit(1) }).await.unwrap();
        row.task = task;
    }
    let mut delta = CountsDelta::default();
    delta.moved(Some(Bucket::Active), Some(Bucket::Failed), 1);
    store.commit(Commit { counts: vec![(job.row, delta)], ..commit(2) }).await.unwrap();
    assert!(store.open_tasks(job.row, 0, 10).await.unwrap().is_empty());
    let again = store.reactivate_task(&account(), &id.0, &id.1, none(), Request::default(), at(500)).await;
    assert_eq!(new(again.unwrap()).task.state.phase(), Phase::Active);
    assert_eq!(store.open_tasks(job.row, 0, 10).await.unwrap().len(), 1);
    assert_eq!(store.attempts(row.row, 0, 10).await.unwrap().len(), 1);
    let twice = store.reactivate_task(&account(), &id.0, &id.1, none(), Request::default(), at(501)).await;
    assert!(matches!(twice.unwrap_err(), Error::TaskNotCompleted));
    store.commit(Commit { deleted: vec![row.row], ..commit(3) }).await.unwrap();
    let gone = store.task(&account(), &id.0, &id.1).await.unwrap_err();
    assert!(matches!(gone, Error::TaskNotFound { .. }));
    let next = add(store, "again", &["a"]).await.remove(0);
    assert!(next.row > row.row, "row ids are not used twice");
}

async fn nodes_of_a_job_are_remembered(store: &impl Store) {
    let task = |id: &str| Some(TaskSpec { id: id.into(), command_line: "true".into(), ..TaskSpec::default() });
    let preparation = Some(JobPreparationTask { task: task(""), ..JobPreparationTask::default() });
    let release = Some(JobReleaseTask { task: task("Bye") });
    let spec = JobSpec {
        pool_id: "P1".into(),
        job_preparation_task: preparation,
        job_release_task: release,
        ..JobSpec::default()
    };
    let job = NewJob { spec, ..new_job("nodes") };
    let job = new(store.create_job(job, Request::default()).await.unwrap());
    let filled = job.spec.job_preparation_task.as_ref().unwrap().task.as_ref().unwrap();
    assert_eq!(filled.id, "jobpreparation");
    let added = new(store.add_tasks(adding("nodes", &["JobPreparation", "bye", "t"])).await.unwrap());
    let reasons = added.results.into_iter().map(|result| match result.outcome {
        Ok(_) => String::new(),
        Err(error) => kiln_error::Error::from(error).reason().to_owned(),
    });
    let reasons: Vec<String> = reasons.collect();
    assert_eq!(reasons, ["TaskIdSameAsJobPreparationTask", "TaskIdSameAsJobReleaseTask", ""]);

    let info = |exit_code| Some(NodeTaskInfo { exit_code: Some(exit_code), ..NodeTaskInfo::default() });
    let about = |node: &str, pool: &str| JobNodeWrite {
        job: job.row,
        pool: PoolId::parse(pool).unwrap(),
        node: Arc::new(NodeId::parse(node).unwrap()),
        incarnation: "life-1".into(),
        barred: None,
        ran: false,
        preparation: None,
        release: None,
    };
    let job_nodes = vec![
        JobNodeWrite { preparation: info(7), ..about("N2", "p1") },
        JobNodeWrite { ran: true, barred: Some("life-0".into()), incarnation: "life-2".into(), ..about("n2", "p1") },
        JobNodeWrite { release: info(0), ..about("n1", "p1") },
        // Another pool's node, and a job that is not there.
        JobNodeWrite { preparation: info(0), ..about("n3", "p2") },
        JobNodeWrite { job: 999_999, preparation: info(0), ..about("n4", "p1") },
    ];
    store.commit(Commit { job_nodes: job_nodes.clone(), ..commit(1) }).await.unwrap();
    let other = AccountName::parse("other").unwrap();
    store.commit(Commit { account: other, job_nodes, ..commit(1) }).await.unwrap();
    let first = store.job_nodes(job.row, None, 1).await.unwrap();
    let rest = store.job_nodes(job.row, Some(("n1".into(), "p1".into())), 10).await.unwrap();
    let [first, second] = [&first[0], &rest[0]];
    assert_eq!((first.node.as_str(), &first.release, &first.preparation), ("n1", &info(0), &None));
    assert_eq!((second.node.as_str(), &second.preparation, second.ran), ("N2", &info(7), true));
    assert_eq!((second.incarnation.as_str(), second.barred.as_deref()), ("life-1", Some("life-0")));
    assert_eq!(rest.len(), 1);
    let delete = JobChange::Event(JobEvent::Delete, |_| Vec::new());
    let none = Conditions::default();
    store.change_job(&account(), &job_id("nodes"), delete, none, Request::default(), at(300)).await.unwrap();
    let mut removed = 0;
    for _ in 0..4 {
        removed += store.purge_tasks(job.row, 1).await.unwrap();
    }
    assert_eq!(removed, 3, "a task and two nodes");
    assert_eq!(store.job_nodes(job.row, None, 9).await.unwrap(), []);
}

async fn old_tasks_of_jobs_that_go_on(store: &impl Store) {
    let job = create(store, "old").await;
    let rows = add(store, "old", &["a", "b", "c"]).await;
    let young = AddTasks { now: at(5000), ..adding("old", &["young"]) };
    store.add_tasks(young).await.unwrap();
    let (over, _) = write(&rows[0], TaskEvent::Terminate);
    store.commit(Commit { tasks: vec![over], ..commit(1) }).await.unwrap();
    let old = async |before, after| {
        let found = store.old_tasks(at(before), after, 1000).await.unwrap();
        found.into_iter().filter(|old| old.job == job.row).map(|old| old.row).collect::<Vec<_>>()
    };
    assert_eq!(old(4000, 0).await, [rows[1].row, rows[2].row]);
    assert_eq!(old(4000, rows[1].row).await, [rows[2].row]);
    assert_eq!(old(100, 0).await, [0_u64; 0]);
    let end = JobChange::Event(JobEvent::Terminate("enough".into()), |_| Vec::new());
    let none = Conditions::default();
    store.change_job(&account(), &job_id("old"), end, none, Request::default(), at(6000)).await.unwrap();
    assert_eq!(old(4000, 0).await, [0_u64; 0], "they stay as they are");
}

/// A job that uses dependencies with a task for each id; given ones wait.
async fn family(store: &impl Store, id: &str, tasks: &[(&str, Option<Dependencies>)]) -> (JobRow, Vec<TaskRow>) {
    let spec = JobSpec { pool_id: "P1".into(), uses_task_dependencies: true, ..JobSpec::default() };
    let job = new(store.create_job(NewJob { spec, ..new_job(id) }, Request::default()).await.unwrap());
    let ids: Vec<&str> = tasks.iter().map(|(id, _)| *id).collect();
    let mut add = adding(id, &ids);
    for (task, (_, on)) in add.tasks.iter_mut().zip(tasks) {
        task.as_mut().unwrap().depends.clone_from(on);
    }
    let added = new(store.add_tasks(add).await.unwrap());
    (job, added.results.into_iter().map(|result| result.outcome.unwrap().new.unwrap()).collect())
}

async fn end_of(store: &impl Store, row: &TaskRow, satisfies: bool) {
    let (begun, task) = write(row, assign());
    store.commit(Commit { tasks: vec![begun], ..commit(1) }).await.unwrap();
    let running = TaskRow { task, ..row.clone() };
    let (over, _) = write(&running, TaskEvent::Finish { attempt: 1, end: end(i32::from(!satisfies)) });
    let key = row.id.key().into_owned();
    let parents = vec![ParentWrite { job: row.job, key, row: row.row, satisfies }];
    store.commit(Commit { tasks: vec![over], parents, ..commit(2) }).await.unwrap();
}

async fn what_is_known_of_parents(store: &impl Store) {
    use ParentState::{Blocks, Missing, Open, Satisfied};
    let on = Dependencies { ids: vec!["a".into(), "none".into()], ranges: vec![(1, 9)] };
    let parts = [("A", None), ("1", None), ("02", None), ("2", None), ("4", None), ("D", Some(on.clone()))];
    let (job, rows) = family(store, "family", &parts).await;
    let id = |task: &str| (job_id("family"), task_id(task));
    let plain = NewTask { depends: Some(on.clone()), ..new_task("x").unwrap() };
    create(store, "alone").await;
    let refused = AddTasks { tasks: vec![Ok(plain)], ..adding("alone", &[]) };
    let refused = new(store.add_tasks(refused).await.unwrap()).results.remove(0);
    assert!(matches!(refused.outcome, Err(Error::NoDependencies(task)) if task == "x"));

    let found = store.dependants(job.row, 0, 10).await.unwrap();
    assert_eq!(found, [StoredDependant { row: rows[5].row, key: "d".into(), on }]);
    assert!(store.dependants(job.row, rows[5].row, 10).await.unwrap().is_empty());
    let states = async |keys: &[&str]| {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        store.parents(job.row, keys).await.unwrap().into_iter().map(|(_, state)| state).collect::<Vec<_>>()
    };
    let numbers = async || store.numbers(job.row, vec![(1, 9)]).await.unwrap().remove(0);
    assert_eq!(states(&["a", "none"]).await, [Open, Missing]);
    assert_eq!(numbers().await, Numbers::default());
    for (at, satisfies) in [(0, true), (1, true), (2, true), (3, false), (4, false)] {
        end_of(store, &rows[at], satisfies).await;
    }
    assert_eq!(states(&["a", "2", "4"]).await, [Satisfied, Blocks, Blocks]);
    assert_eq!(numbers().await, Numbers { satisfied: vec![(1, 2)], blocks: vec![4] }, "02 satisfies 2");
    assert_eq!(store.missing_numbers(job.row, vec![1, 3, 4, 5]).await.unwrap(), [3, 5]);

    // Deleted: what was satisfied stays, until its id comes again.
    let none = Conditions::default;
    for task in ["a", "4"] {
        let (job, task) = id(task);
        store.delete_completed_task(&account(), &job, &task, none(), Request::default(), at(9)).await.unwrap();
    }
    assert_eq!(states(&["a", "4"]).await, [Satisfied, Missing]);
    let again = add(store, "family", &["a"]).await.remove(0);
    assert_eq!(store.parents(job.row, vec!["a".into()]).await.unwrap(), [(again.row, Open)]);
    let (job_name, two) = id("2");
    store.reactivate_task(&account(), &job_name, &two, none(), Request::default(), at(9)).await.unwrap();
    assert_eq!(states(&["2"]).await, [Open]);

    // Ended while it waits, and activated again: it waits again.
    let (over, _) = write(&rows[5], TaskEvent::Terminate);
    let parents = vec![ParentWrite { job: job.row, key: "d".into(), row: rows[5].row, satisfies: false }];
    store.commit(Commit { tasks: vec![over], parents, ..commit(3) }).await.unwrap();
    assert!(store.dependants(job.row, 0, 10).await.unwrap().is_empty());
    store.commit(Commit { deleted: vec![again.row], ..commit(4) }).await.unwrap();
    assert_eq!(states(&["a"]).await, [Missing]);

    let delete = JobChange::Event(JobEvent::Delete, |_| Vec::new());
    store.change_job(&account(), &job_name, delete, none(), Request::default(), at(10)).await.unwrap();
    while store.purge_tasks(job.row, 2).await.unwrap() > 0 {}
    assert_eq!(states(&["1", "2"]).await, [Missing, Missing]);
}

async fn deleted_jobs_leave_nothing(store: &impl Store) {
    let job = create(store, "gone").await;
    add(store, "gone", &["a", "b", "c"]).await;
    assert_eq!(store.purge_tasks(job.row, 10).await.unwrap(), 0, "only jobs that are being deleted");
    let delete = JobChange::Event(JobEvent::Delete, |_| Vec::new());
    let none = Conditions::default();
    store.change_job(&account(), &job_id("gone"), delete, none, Request::default(), at(300)).await.unwrap();
    assert_eq!(store.purge_tasks(job.row, 2).await.unwrap(), 2);
    assert_eq!(store.purge_tasks(job.row, 2).await.unwrap(), 1);
    store.remove_job(job.row, at(301)).await.unwrap();
    assert!(store.job_by_row(job.row).await.unwrap().is_none());
    create(store, "gone").await;
}

#[tokio::test]
async fn each_database_does_what_a_store_has_to_do() {
    for place in kiln_store::testing::TestStore::each() {
        let store = sql::SqlStore::open(place.config()).await.unwrap();
        all(&store).await;
    }
}

/// How fast tasks are added, assigned and read: `cargo test --release -p job-svc -- --ignored --nocapture rate`.
#[tokio::test]
#[ignore = "prints figures, checks nothing"]
async fn rate() {
    const TASKS: usize = 50_000;
    const CALL: usize = 1_000;
    for place in kiln_store::testing::TestStore::each() {
        let store = sql::SqlStore::open(place.config()).await.unwrap();
        let job = create(&store, "j").await;
        let ids: Vec<String> = (0..TASKS).map(|n| format!("t{n:07}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let begun = std::time::Instant::now();
        // All at once, so that several come into one transaction.
        let calls = ids.chunks(CALL).map(|ids| store.add_tasks(adding("j", ids)));
        let added: Vec<TaskRow> = futures::future::join_all(calls)
            .await
            .into_iter()
            .flat_map(|answered| new(answered.unwrap()).results)
            .map(|result| result.outcome.unwrap().new.unwrap())
            .collect();
        let adding = begun.elapsed();
        let begun = std::time::Instant::now();
        for (number, rows) in (1..).zip(added.chunks(CALL)) {
            let mut delta = CountsDelta::default();
            rows.iter().for_each(|_| delta.moved(Some(Bucket::Active), Some(Bucket::Running), 1));
            let tasks = rows.iter().map(|row| write(row, assign()).0).collect();
            store.commit(Commit { tasks, counts: vec![(job.row, delta)], ..commit(number) }).await.unwrap();
        }
        let assigning = begun.elapsed();
        let begun = std::time::Instant::now();
        for rows in added.chunks(CALL) {
            let rows: Vec<u64> = rows.iter().map(|row| row.row).collect();
            assert_eq!(store.load_tasks(rows).await.unwrap().len(), CALL);
        }
        let per_second = |took: std::time::Duration| TASKS as f64 / took.as_secs_f64();
        println!(
            "{}: {:.0} tasks added, {:.0} assigned, {:.0} read a second",
            place.config(),
            per_second(adding),
            per_second(assigning),
            per_second(begun.elapsed())
        );
    }
}
