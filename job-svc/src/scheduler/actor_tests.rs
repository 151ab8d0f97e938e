//! The actor on a store whose commits fail: before they are done, or after.
//!
//! In both cases nobody knows what is true until everything is read again.
//! Nothing that was acknowledged to an agent or a client may be lost, nothing
//! may be decided twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use kiln_etag::Conditions;
use kiln_ids::{JobId, NodeId, TaskId};
use kiln_proto::job::v1::work_down::Message as Down;
use kiln_proto::job::v1::{AttemptKey, JobSpec, TaskSpec, WorkDown};
use kiln_store::StoreError;
use kiln_store::testing::TestStore;
use kiln_testkit::eventually;
use prost::Message;

use super::*;
use crate::domain::Error;

use crate::domain::dependencies::ParentState;
use crate::domain::needs::{Capacity, Needs};
use crate::domain::spec::TaskFacts;
use crate::domain::subtask::Subtask;
use crate::domain::task::{AttemptEnd, AttemptRecord, EndCause, TaskState};
use crate::scheduler::core::{NodeStatus, RunningTasks};
use crate::scheduler::note::{Hello, Report, Up};
use crate::scheduler::registry::{Place, Registry};
use crate::store::leases::{LeaseStore, Presence};
use crate::store::sql::SqlStore;
use crate::store::{
    AddTasks, Added, Answered, Counts, Deleted, JobChange, JobRow, NewJob, NewTask, Numbers, OldTask, OpenTask,
    Request, StoredDependant, TaskUpdate,
};

/// How a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing was written.
    Refused,
    /// Everything was written, and the answer was lost.
    AnswerLost,
}

/// Fails the commits with the numbers `first..first + count`.
#[derive(Debug)]
struct Faulty {
    inner: SqlStore,
    fault: Fault,
    commits: AtomicUsize,
    failing: std::ops::Range<usize>,
}

#[async_trait]
impl Store for Faulty {
    async fn job_nodes(
        &self,
        job: u64,
        after: Option<(String, String)>,
        limit: u32,
    ) -> Result<Vec<crate::store::JobNodeRow>, Error> {
        self.inner.job_nodes(job, after, limit).await
    }
    async fn commit(&self, commit: Commit) -> Result<Vec<JobFate>, CommitError> {
        let number = self.commits.fetch_add(1, Ordering::Relaxed);
        if !self.failing.contains(&number) {
            return self.inner.commit(commit).await;
        }
        if self.fault == Fault::AnswerLost {
            self.inner.commit(commit).await?;
        }
        Err(CommitError::Store(StoreError::Damaged("on purpose".to_owned())))
    }

    async fn create_job(&self, job: NewJob, request: Request) -> Result<Answered<JobRow>, Error> {
        self.inner.create_job(job, request).await
    }
    async fn job(&self, account: &AccountName, job: &JobId) -> Result<JobRow, Error> {
        self.inner.job(account, job).await
    }
    async fn job_by_row(&self, row: u64) -> Result<Option<JobRow>, Error> {
        self.inner.job_by_row(row).await
    }
    async fn list_jobs(&self, account: &AccountName, after: Option<String>, limit: u32) -> Result<Vec<JobRow>, Error> {
        self.inner.list_jobs(account, after, limit).await
    }
    async fn change_job(
        &self,
        account: &AccountName,
        job: &JobId,
        change: JobChange,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<JobRow>, Error> {
        self.inner.change_job(account, job, change, condition, request, now).await
    }
    async fn counts(&self, account: &AccountName, job: &JobId) -> Result<Counts, Error> {
        self.inner.counts(account, job).await
    }
    async fn add_tasks(&self, add: AddTasks) -> Result<Answered<Added>, Error> {
        self.inner.add_tasks(add).await
    }
    async fn task(&self, account: &AccountName, job: &JobId, task: &TaskId) -> Result<(JobRow, TaskRow), Error> {
        self.inner.task(account, job, task).await
    }
    async fn list_tasks(&self, job: u64, after: Option<String>, limit: u32) -> Result<Vec<TaskRow>, Error> {
        self.inner.list_tasks(job, after, limit).await
    }
    async fn update_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        update: TaskUpdate,
    ) -> Result<Answered<TaskRow>, Error> {
        self.inner.update_task(account, job, task, update).await
    }
    async fn reactivate_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<TaskRow>, Error> {
        self.inner.reactivate_task(account, job, task, condition, request, now).await
    }
    async fn delete_completed_task(
        &self,
        account: &AccountName,
        job: &JobId,
        task: &TaskId,
        condition: Conditions,
        request: Request,
        now: Timestamp,
    ) -> Result<Answered<Deleted>, Error> {
        self.inner.delete_completed_task(account, job, task, condition, request, now).await
    }
    async fn attempts(&self, task: u64, after: u32, limit: u32) -> Result<Vec<AttemptRecord>, Error> {
        self.inner.attempts(task, after, limit).await
    }
    async fn subtasks(&self, task: u64) -> Result<Vec<Subtask>, Error> {
        self.inner.subtasks(task).await
    }
    async fn answer(&self, account: &AccountName, request: &Request) -> Result<Option<Vec<u8>>, Error> {
        self.inner.answer(account, request).await
    }
    async fn pools(&self) -> Result<Vec<(AccountName, PoolId)>, Error> {
        self.inner.pools().await
    }
    async fn pool_jobs(&self, account: &AccountName, pool: &PoolId) -> Result<Vec<JobRow>, Error> {
        self.inner.pool_jobs(account, pool).await
    }
    async fn open_tasks(&self, job: u64, after: u64, limit: u32) -> Result<Vec<OpenTask>, Error> {
        self.inner.open_tasks(job, after, limit).await
    }
    async fn old_tasks(&self, before: Timestamp, after: u64, limit: u32) -> Result<Vec<OldTask>, Error> {
        self.inner.old_tasks(before, after, limit).await
    }
    async fn dependants(&self, job: u64, after: u64, limit: u32) -> Result<Vec<StoredDependant>, Error> {
        self.inner.dependants(job, after, limit).await
    }
    async fn parents(&self, job: u64, keys: Vec<String>) -> Result<Vec<(u64, ParentState)>, Error> {
        self.inner.parents(job, keys).await
    }
    async fn numbers(&self, job: u64, ranges: Vec<(i32, i32)>) -> Result<Vec<Numbers>, Error> {
        self.inner.numbers(job, ranges).await
    }
    async fn missing_numbers(&self, job: u64, numbers: Vec<i32>) -> Result<Vec<i32>, Error> {
        self.inner.missing_numbers(job, numbers).await
    }
    async fn load_tasks(&self, rows: Vec<u64>) -> Result<Vec<TaskRow>, Error> {
        self.inner.load_tasks(rows).await
    }
    async fn purge_tasks(&self, job: u64, limit: u32) -> Result<usize, Error> {
        self.inner.purge_tasks(job, limit).await
    }
    async fn remove_job(&self, job: u64, now: Timestamp) -> Result<(), Error> {
        self.inner.remove_job(job, now).await
    }
    async fn forget(&self, now: Timestamp) -> Result<usize, Error> {
        self.inner.forget(now).await
    }
}

struct World {
    store: Arc<Faulty>,
    registry: Arc<Registry>,
    metrics: Metrics,
    inbox: mpsc::Sender<Note>,
    shutdown: CancellationToken,
    place: Arc<TestStore>,
}

fn account() -> AccountName {
    AccountName::parse("acct").unwrap()
}

fn pool() -> PoolId {
    PoolId::parse("p").unwrap()
}

fn job_id() -> JobId {
    JobId::parse("j").unwrap()
}

const TASKS: usize = 12;

impl World {
    /// A job with tasks; commits with these numbers fail.
    async fn new(fault: Fault, failing: std::ops::Range<usize>, specs: impl Fn(usize) -> Vec<u8>) -> Self {
        Self::on(TestStore::sqlite(), Duration::from_secs(3), fault, failing, specs).await
    }

    /// The pool is leased for `lease`, and never again: nobody renews it.
    async fn on(
        place: TestStore,
        lease: Duration,
        fault: Fault,
        failing: std::ops::Range<usize>,
        specs: impl Fn(usize) -> Vec<u8>,
    ) -> Self {
        let inner = SqlStore::open(place.config()).await.unwrap();
        let store = Arc::new(Faulty { inner, fault, commits: AtomicUsize::new(0), failing });
        let new = NewJob {
            account: account(),
            job: job_id(),
            pool: pool(),
            spec: JobSpec { pool_id: "p".into(), ..JobSpec::default() },
            traceparent: String::new(),
            now: Timestamp::now(),
            encode: |_| Vec::new(),
        };
        store.create_job(new, Request::default()).await.unwrap();
        let task = |at: usize| {
            let id = TaskId::parse(&format!("t{at}")).unwrap();
            let facts = TaskFacts { needs: Needs::slots(1), max_retries: 0, affinity: 0 };
            Ok(NewTask { id, facts, spec: specs(at).into(), names_job_action: false, depends: None })
        };
        let add = AddTasks {
            account: account(),
            job: job_id(),
            tasks: (0..TASKS).map(task).collect(),
            same_is_added: false,
            request: Request::default(),
            encode: |_| Vec::new(),
            traceparent: "".into(),
            now: Timestamp::now(),
        };
        store.add_tasks(add).await.unwrap();
        Self::of(Arc::new(place), lease, store).await
    }

    /// A replica on what is there.
    async fn of(place: Arc<TestStore>, lease: Duration, store: Arc<Faulty>) -> Self {
        let metrics = Metrics::new().unwrap();
        let settings = Settings { patience: Duration::from_secs(3600), linger: Duration::ZERO };
        let context = Context {
            store: store.clone(),
            settings,
            lease: Duration::from_secs(30),
            cache_bytes: 1 << 20,
            metrics: metrics.clone(),
            cluster_key: Arc::new(kiln_auth::SecretKey::generate()),
        };
        let shutdown = CancellationToken::new();
        let leases = Arc::new(store.inner.clone());
        let presence = Presence { endpoint: "http://127.0.0.1:1".into(), lease };
        let registry = Arc::new(Registry::new(context, leases, presence, shutdown.clone()));
        let inbox = eventually("nobody else has the pool", || async {
            match registry.find(&account(), &pool()).await.unwrap() {
                Place::Here(inbox) => Some(inbox),
                Place::There(_) => None,
            }
        })
        .await;
        Self { store, registry, metrics, inbox, shutdown, place }
    }

    async fn all_tasks(&self) -> Vec<TaskRow> {
        let (job, _) = self.store.task(&account(), &job_id(), &TaskId::parse("t0").unwrap()).await.unwrap();
        self.store.list_tasks(job.row, None, 1000).await.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn end(exit_code: i32) -> AttemptEnd {
    let end = Timestamp::now();
    let cause = EndCause::Exited;
    AttemptEnd { start: None, end, exit_code: Some(exit_code), failure: None, cause, outputs_kept: false }
}

/// An agent that connects again whenever its stream ends, keeps results until
/// they are acknowledged, and counts what it was given.
struct FakeAgent {
    runs: HashMap<(u64, u32), u32>,
    results: HashMap<(u64, u32), AttemptKey>,
    stream: u64,
}

impl FakeAgent {
    /// Of a node with two slots that holds nothing, to nobody.
    fn hello(conn: Conn, stream: u64) -> Hello {
        let status = NodeStatus {
            slots: 2,
            accepting: true,
            running_tasks: RunningTasks::Requeue,
            pack: false,
            by_creation: false,
            dedicated: true,
            capacity: Capacity::UNKNOWN,
        };
        Hello {
            conn,
            node: Arc::new(NodeId::parse("n").unwrap()),
            incarnation: "life".into(),
            stream,
            status,
            ip: String::new(),
            attempts: Vec::new(),
            out: mpsc::channel(1).0,
            closer: CancellationToken::new(),
        }
    }

    async fn work(&mut self, world: &World) {
        loop {
            self.stream += 1;
            let (out, mut down) = mpsc::channel::<WorkDown>(64);
            let (conn, closer) = (world.registry.new_conn(), CancellationToken::new());
            let attempts = self.results.values().map(|key| (key.clone(), true)).collect();
            let hello = Hello { attempts, out, closer: closer.clone(), ..Self::hello(conn, self.stream) };
            let say = |up| world.inbox.send(Note::Up(conn, up));
            world.inbox.send(Note::Hello(Box::new(hello))).await.unwrap();
            let results = self.results.values().map(|key| (key.clone(), Report::Ended(end(0)))).collect();
            say(Up::Reports(results)).await.unwrap();
            loop {
                let message = tokio::select! {
                    message = down.recv() => message,
                    () = closer.cancelled() => None,
                };
                match message.and_then(|message| message.message) {
                    None => break,
                    Some(Down::Assignments(given)) => {
                        for assignment in given.assignments {
                            let key = assignment.key.unwrap();
                            let name = (key.task_number, key.attempt);
                            *self.runs.entry(name).or_default() += 1;
                            self.results.insert(name, key.clone());
                            let started = (key.clone(), Report::Started(Timestamp::now()));
                            say(Up::Reports(vec![started, (key, Report::Ended(end(0)))])).await.unwrap();
                        }
                    }
                    Some(Down::Acks(acks)) => {
                        for key in acks.attempts {
                            self.results.remove(&(key.task_number, key.attempt));
                        }
                    }
                    Some(_) => {}
                }
            }
            say(Up::Gone).await.unwrap();
        }
    }
}

fn spec(at: usize) -> Vec<u8> {
    TaskSpec { id: format!("t{at}"), command_line: "true".into(), ..TaskSpec::default() }.encode_to_vec()
}

#[tokio::test]
async fn failed_commits_lose_and_double_nothing() {
    for fault in [Fault::Refused, Fault::AnswerLost] {
        for first in 0..6 {
            let failing = first..first + 2;
            let world = World::new(fault, failing.clone(), spec).await;
            let mut agent = FakeAgent { runs: HashMap::new(), results: HashMap::new(), stream: 0 };
            let done = eventually("all tasks completed", || async {
                let tasks = world.all_tasks().await;
                let completed = |task: &TaskRow| matches!(task.task.state, TaskState::Completed { .. });
                tasks.iter().all(completed).then_some(tasks)
            });
            let tasks = tokio::select! {
                tasks = done => tasks,
                () = agent.work(&world) => unreachable!("the agent never ends"),
            };
            assert!(world.metrics.rebuilds.get() >= 1, "{fault:?} {failing:?}: the fault was never met");
            assert_eq!(tasks.len(), TASKS);
            assert!(agent.runs.values().all(|times| *times == 1), "{fault:?} {failing:?}: {:?}", agent.runs);
            for task in &tasks {
                let TaskState::Completed { exit_code, .. } = &task.task.state else { continue };
                assert_eq!(*exit_code, Some(0), "{fault:?} {failing:?}: {task:?}");
                // What was run was run under the number that the store has.
                assert!(agent.runs.contains_key(&(task.row, task.task.attempt)), "{fault:?} {failing:?}: {task:?}");
            }
            let counts = world.store.counts(&account(), &job_id()).await.unwrap();
            assert_eq!(counts.tasks, [0, 0, TASKS as i64, 0], "{fault:?} {failing:?}");
        }
    }
}

#[tokio::test]
async fn a_caller_hears_of_a_reload_instead_of_waiting() {
    let world = World::new(Fault::Refused, 0..1, spec).await;
    let task = world.all_tasks().await.remove(0);
    let ask = |answer| {
        let (reply, wait) = oneshot::channel();
        let command =
            crate::scheduler::note::Command { job: task.job, row: task.row, needs: task.facts.needs, answer, reply };
        (Note::Terminate(command), wait)
    };
    let (first, lost) = ask(None);
    world.inbox.send(first).await.unwrap();
    assert!(lost.await.is_err(), "the commit failed: nobody may say that it was done");
    let (second, done) = ask(None);
    world.inbox.send(second).await.unwrap();
    assert_eq!(done.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_task_whose_spec_cannot_be_read_fails_and_the_others_go_on() {
    let damaged = |at: usize| if at == 3 { vec![0xff; 7] } else { spec(at) };
    let world = World::new(Fault::Refused, 0..0, damaged).await;
    let mut agent = FakeAgent { runs: HashMap::new(), results: HashMap::new(), stream: 0 };
    let done = eventually("all tasks completed", || async {
        let counts = world.store.counts(&account(), &job_id()).await.unwrap();
        (counts.open() == 0).then_some(counts)
    });
    let counts = tokio::select! {
        counts = done => counts,
        () = agent.work(&world) => unreachable!("the agent never ends"),
    };
    assert_eq!(counts.tasks, [0, 0, TASKS as i64 - 1, 1]);
    let task = world.all_tasks().await.into_iter().find(|task| task.id.as_str() == "t3").unwrap();
    let TaskState::Completed { failure, .. } = task.task.state else { panic!("{task:?}") };
    assert!(failure.unwrap().message.contains("cannot be read"));
}

#[tokio::test]
async fn a_scheduler_that_lost_its_pool_writes_nothing_and_closes_its_streams() {
    let world = World::new(Fault::Refused, 0..0, spec).await;
    // With a file, every claim wins; the scheduler here has not heard of it.
    let thief = SqlStore::open(world.place.config()).await.unwrap();
    let presence = Presence { endpoint: "http://127.0.0.1:2".into(), lease: Duration::from_secs(3) };
    thief.claim_pools(&presence, vec![(account(), pool())]).await.unwrap();
    let (out, mut down) = mpsc::channel::<WorkDown>(64);
    let (conn, closer) = (world.registry.new_conn(), CancellationToken::new());
    let hello = Hello { out, closer: closer.clone(), ..FakeAgent::hello(conn, 1) };
    world.inbox.send(Note::Hello(Box::new(hello))).await.unwrap();
    closer.cancelled().await;
    while let Some(message) = down.recv().await {
        assert!(!matches!(message.message, Some(Down::Assignments(_) | Down::LeaseGrant(_))), "{message:?}");
    }
    let untouched = |task: &TaskRow| matches!(task.task.state, TaskState::Active) && task.task.attempt == 0;
    assert!(world.all_tasks().await.iter().all(untouched));
    eventually("the actor is gone", || async { world.inbox.is_closed().then_some(()) }).await;
    assert!(world.registry.here(&account(), &pool()).is_none_or(|inbox| inbox.is_closed()));
}

#[tokio::test]
async fn a_replica_that_cannot_renew_gives_its_pool_up_by_itself_and_another_goes_on() {
    let lease = Duration::from_millis(500);
    let first = World::on(TestStore::postgres(), lease, Fault::Refused, 0..0, spec).await;
    let (out, _down) = mpsc::channel::<WorkDown>(64);
    let (conn, closer) = (first.registry.new_conn(), CancellationToken::new());
    let hello = Hello { out, closer: closer.clone(), ..FakeAgent::hello(conn, 1) };
    first.inbox.send(Note::Hello(Box::new(hello))).await.unwrap();
    closer.cancelled().await;
    eventually("the actor is gone", || async { first.inbox.is_closed().then_some(()) }).await;
    let inner = SqlStore::open(first.place.config()).await.unwrap();
    let store = Arc::new(Faulty { inner, fault: Fault::Refused, commits: AtomicUsize::new(0), failing: 0..0 });
    let second = World::of(first.place.clone(), Duration::from_secs(600), store).await;
    let there = first.registry.find(&account(), &pool()).await.unwrap();
    assert!(matches!(there, Place::There(owner) if *owner.id == *second.store.inner.replica()));
    let mut agent = FakeAgent { runs: HashMap::new(), results: HashMap::new(), stream: 1 };
    // What the first had assigned is not known to the agent: it runs as the next attempt.
    let done = eventually("all tasks completed", || async {
        let counts = second.store.counts(&account(), &job_id()).await.unwrap();
        (counts.open() == 0).then_some(counts)
    });
    let counts = tokio::select! {
        counts = done => counts,
        () = agent.work(&second) => unreachable!("the agent never ends"),
    };
    assert_eq!(counts.tasks, [0, 0, TASKS as i64, 0]);
    assert!(agent.runs.values().all(|times| *times == 1), "{:?}", agent.runs);
}
