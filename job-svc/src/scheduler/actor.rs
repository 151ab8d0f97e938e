//! The actor of one pool: does what the [core](super::core) decides.
//!
//! It takes whatever is in its inbox, steps the core, applies the events to the
//! records of the tasks and gathers all writes into one [`Commit`]. While a
//! commit is under way it goes on stepping; what it decides meanwhile becomes
//! the next commit. Messages and answers leave when their commit is durable, so
//! an agent never hears of an attempt that a crash could undo, and forgets a
//! result only when it is safe.
//!
//! The pool is its own for as long as its [`Tenure`] holds. When that is over, or
//! a commit was fenced off, somebody else may place its tasks: the actor closes
//! all streams and ends without writing anything more.
//!
//! If a commit fails, the actor's picture runs ahead of the truth: it closes
//! all streams, forgets everything and loads again; agents come back and say
//! what they have.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use kiln_auth::SecretKey;
use kiln_ids::{AccountName, PoolId};
use kiln_time::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::core::depends::ParentNews;
use super::core::{Conn, Core, Effects, Input, JobKey, Now, Refused, ReplyId, Row, Settings};
use super::job_info::JobInfo;
use super::link::{Link, Mail};
use super::note::Note;
use super::parents::Overlay;
use super::tenure::Tenure;
use crate::domain::job::JobState;
use crate::domain::subtask::Subtask;
use crate::metrics::Metrics;
use crate::store::{Commit, CommitError, CountsDelta, JobFate, NewAnswer, Store, TaskRow};

/// Notes of one step at most.
const NOTES: usize = 512;
/// Writes that may gather while a commit is under way; then the inbox waits.
const MAX_PENDING: usize = 20_000;
/// Deleted jobs that are remembered.
pub(super) const MAX_PURGED: usize = 1_000;
/// Tasks of a deleted job that one transaction removes.
const PURGE: u32 = 1_000;
/// First and longest wait after the store failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Why the actor has to load again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] crate::domain::Error),
    /// The store refused a commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The core asked for something impossible.
    #[error("task row {row}: {why}")]
    Picture {
        /// Task.
        row: Row,
        /// What is wrong.
        why: String,
    },
    /// The lease of the pool is over.
    #[error("the lease of the pool was not renewed in time")]
    Lost,
}

/// What an actor needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Times.
    pub settings: Settings,
    /// What agents are told.
    pub lease: Duration,
    /// Bytes of specs in memory.
    pub cache_bytes: usize,
    /// Metrics of the service.
    pub metrics: Metrics,
    /// Signs the tokens of tasks that may work on their own job.
    pub cluster_key: Arc<SecretKey>,
}

/// Where the answer to a command goes.
type CommandReply = oneshot::Sender<Result<(), Refused>>;

/// Commands that wait for their answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub reply: CommandReply,
    pub answer: Option<NewAnswer>,
}

/// What is written and sent together.
#[derive(Debug)]
pub(super) struct Batch {
    pub commit: Commit,
    /// Where each task is in the commit.
    pub index: HashMap<Row, usize>,
    /// Tasks that it removes.
    pub removed: HashSet<Row>,
    /// What it says about tasks that others wait for.
    pub parents: Overlay,
    pub counts: HashMap<JobKey, CountsDelta>,
    pub mail: Mail,
    pub replies: Vec<(CommandReply, Result<(), Refused>)>,
    pub purge: Vec<JobKey>,
}

/// See the module.
pub(super) struct Actor {
    pub account: AccountName,
    pub pool: PoolId,
    pub context: Context,
    pub tenure: Tenure,
    pub core: Core,
    pub jobs: HashMap<JobKey, JobInfo>,
    /// Tasks with an attempt that holds slots.
    pub live: HashMap<Row, TaskRow>,
    /// Their instances, of multi-instance tasks.
    pub subtasks: HashMap<Row, Vec<Subtask>>,
    pub cache: Cache,
    pub links: HashMap<Conn, Link>,
    pub waiters: HashMap<ReplyId, Waiter>,
    pub next_reply: ReplyId,
    pub batch: Batch,
    pub batch_number: u64,
    /// The highest row it was ever told of. Rows become visible in their order,
    /// so a load that begins later has seen all below.
    pub highest: Row,
    /// Deleted jobs that were given up lately: a late note must not bring them
    /// back while their rows are still there.
    pub purged: VecDeque<JobKey>,
    /// Tasks that the commit under way changes or removes.
    pub under_way: (HashMap<Row, usize>, HashSet<Row>),
    /// What the commit under way says about tasks that others wait for.
    pub parents_under_way: Overlay,
    /// News about tasks that others wait for, to be told to the core.
    pub news: Vec<(JobKey, ParentNews)>,
    pub fx: Effects,
    pub inputs: VecDeque<Input>,
    started: Instant,
}

type InFlight = BoxFuture<'static, Result<Vec<JobFate>, CommitError>>;

impl Actor {
    pub(super) fn new(account: AccountName, pool: PoolId, context: Context, tenure: Tenure) -> Self {
        let batch = Batch::new(&account);
        Self {
            core: Core::new(context.settings),
            cache: Cache::new(context.cache_bytes),
            jobs: HashMap::new(),
            live: HashMap::new(),
            subtasks: HashMap::new(),
            links: HashMap::new(),
            waiters: HashMap::new(),
            next_reply: 0,
            batch,
            batch_number: 1,
            highest: 0,
            purged: VecDeque::new(),
            under_way: Default::default(),
            parents_under_way: Overlay::new(),
            news: Vec::new(),
            fx: Effects::default(),
            inputs: VecDeque::new(),
            started: Instant::now(),
            account,
            pool,
            context,
            tenure,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now { wall: Timestamp::now(), mono: self.started.elapsed() }
    }

    /// Works until `shutdown`, or until the pool is lost. `ready` is told when everything is loaded.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Note>,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) {
        let mut ready = Some(ready);
        let mut wait = RETRY.0;
        let mut tenure = self.tenure.clone();
        loop {
            let broken = tokio::select! {
                biased;
                () = tenure.over() => Broken::Lost,
                () = shutdown.cancelled() => break,
                outcome = self.live_once(&mut inbox, &mut ready, &mut wait) => match outcome {
                    Ok(()) => break,
                    Err(broken) => broken,
                },
            };
            if matches!(broken, Broken::Lost | Broken::Commit(CommitError::Fenced { .. })) {
                tracing::warn!(
                    account = %self.account, pool.id = %self.pool, epoch = self.tenure.fence.epoch, why = %broken,
                    "this replica gives the pool up"
                );
                self.forget_everything();
                for what in ["waiting", "running"] {
                    self.context.metrics.depth.with_label_values(&[self.pool.as_str(), what]).set(0);
                }
                return;
            }
            tracing::error!(
                account = %self.account, pool.id = %self.pool, error = %broken, retry_in = ?wait,
                "the scheduler's picture is not the store's: reading everything again"
            );
            self.context.metrics.rebuilds.inc();
            self.forget_everything();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The next round says so.
                () = tenure.over() => {}
                () = shutdown.cancelled() => break,
            }
            wait = (wait * 2).min(RETRY.1);
        }
        for link in self.links.values() {
            link.closer.cancel();
        }
    }

    fn forget_everything(&mut self) {
        for link in self.links.values() {
            link.closer.cancel();
        }
        self.links.clear();
        self.core.reset();
        self.cache = Cache::new(self.context.cache_bytes);
        self.jobs.clear();
        self.live.clear();
        self.subtasks.clear();
        // Callers see that nobody answers, and ask again.
        self.waiters.clear();
        self.batch = Batch::new(&self.account);
        self.under_way = Default::default();
        self.parents_under_way.clear();
        self.news.clear();
        self.purged.clear();
        self.fx = Effects::default();
        self.inputs.clear();
    }

    async fn live_once(
        &mut self,
        inbox: &mut mpsc::Receiver<Note>,
        ready: &mut Option<oneshot::Sender<()>>,
        wait: &mut Duration,
    ) -> Result<(), Broken> {
        self.load().await?;
        self.absorb().await?;
        *wait = RETRY.0;
        if let Some(ready) = ready.take() {
            // Nobody may be waiting any more.
            let _ = ready.send(());
        }
        let mut notes = Vec::with_capacity(NOTES);
        let mut in_flight: Option<(InFlight, Batch, Instant)> = None;
        loop {
            if in_flight.is_none() && self.batch.has_writes() {
                in_flight = Some(self.submit());
            } else if in_flight.is_none() && self.batch.has_rest() {
                let batch = std::mem::replace(&mut self.batch, Batch::new(&self.account));
                self.deliver(batch);
            }
            if !self.inputs.is_empty() {
                self.step();
                self.absorb().await?;
                continue;
            }
            let tick = self.core.next_tick().map(|at| self.started + at);
            let room = self.batch.commit.tasks.len() < MAX_PENDING;
            let landed = tokio::select! {
                biased;
                outcome = async {
                    match &mut in_flight {
                        Some((commit, _, _)) => commit.await,
                        None => std::future::pending().await,
                    }
                } => Some(outcome),
                count = inbox.recv_many(&mut notes, NOTES), if room => {
                    if count == 0 {
                        return Ok(());
                    }
                    // Whoever sent a note may have seen what this commit made
                    // true: it has to be known here before the note is read.
                    in_flight.as_mut().and_then(|(commit, _, _)| commit.now_or_never())
                }
                () = async {
                    match tick {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => None,
            };
            if let Some(outcome) = landed {
                let fates = outcome?;
                if let Some((_, batch, began)) = in_flight.take() {
                    self.context.metrics.commit.observe(began.elapsed().as_secs_f64());
                    self.cache.durable(batch.commit.number);
                    self.under_way = Default::default();
                    self.parents_under_way.clear();
                    if !self.tenure.holds() {
                        return Err(Broken::Lost);
                    }
                    self.deliver(batch);
                }
                for fate in fates {
                    self.take_fate(fate).await?;
                }
            }
            for note in notes.drain(..) {
                self.take_note(note).await?;
            }
            // After the notes: a lease that was renewed in time must not run out.
            // And also when notes never end.
            if tick.is_some_and(|at| at <= Instant::now()) {
                self.inputs.push_back(Input::Tick);
            }
            self.step();
            self.absorb().await?;
        }
    }

    /// Steps the core through all inputs and places what can be placed.
    pub(super) fn step(&mut self) {
        let timer = self.context.metrics.step.start_timer();
        let now = self.now();
        while let Some(input) = self.inputs.pop_front() {
            self.core.step(input, now, &mut self.fx);
        }
        self.core.recheck(now, &mut self.fx);
        self.core.place(&mut self.fx);
        timer.observe_duration();
        #[cfg(test)]
        if let Err(broken) = self.core.check() {
            tracing::error!(pool.id = %self.pool, broken, "a rule of the scheduler does not hold");
        }
    }

    fn submit(&mut self) -> (InFlight, Batch, Instant) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(&self.account));
        let mut commit = batch.take_commit(self.batch_number);
        commit.fence = Some(self.tenure.fence.clone());
        self.batch_number += 1;
        self.under_way = (std::mem::take(&mut batch.index), std::mem::take(&mut batch.removed));
        self.parents_under_way = std::mem::take(&mut batch.parents);
        let store = self.context.store.clone();
        let future: InFlight = Box::pin(async move { store.commit(commit).await });
        (future, batch, Instant::now())
    }

    /// What a durable commit leaves to do.
    fn deliver(&mut self, batch: Batch) {
        for (reply, result) in batch.replies {
            // The caller may have gone.
            let _ = reply.send(result);
        }
        for (conn, mail) in batch.mail.links {
            let Some(link) = self.links.get(&conn) else { continue };
            if !mail.into_messages().into_iter().all(|message| link.send(message)) {
                tracing::warn!(pool.id = %self.pool, "an agent does not keep up; its stream is closed");
                self.drop_link(conn);
            }
        }
        for job in batch.purge {
            self.purge(job);
        }
    }

    pub(super) fn drop_link(&mut self, conn: Conn) {
        if let Some(link) = self.links.remove(&conn) {
            link.closer.cancel();
            self.inputs.push_back(Input::Disconnected { conn });
        }
    }

    /// Removes the rows of a deleted job, a bounded number at a time.
    fn purge(&mut self, job: JobKey) {
        let store = self.context.store.clone();
        if let Some(info) = self.forget_job(job) {
            for link in self.links.values() {
                let cleanup =
                    kiln_proto::job::v1::Cleanup { tasks: Vec::new(), job_ids: vec![info.job.as_str().to_owned()] };
                // Directories of a job that is gone are not worth a stream.
                let _ = link.send(kiln_proto::job::v1::work_down::Message::Cleanup(cleanup));
            }
        }
        kiln_telemetry::spawn(async move {
            let mut wait = RETRY.0;
            loop {
                let outcome = match store.purge_tasks(job, PURGE).await {
                    Ok(0) => store.remove_job(job, Timestamp::now()).await.map(|()| true),
                    Ok(_) => Ok(false),
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(true) => return,
                    Ok(false) => {}
                    // At the next start at the latest it is found again.
                    Err(crate::domain::Error::Store(kiln_store::StoreError::Closed)) => return,
                    Err(error) => {
                        tracing::warn!(job, %error, retry_in = ?wait, "a deleted job could not be removed");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY.1);
                    }
                }
            }
        });
    }

    pub(super) fn forget_job(&mut self, job: JobKey) -> Option<JobInfo> {
        self.jobs.remove(&job)
    }

    async fn take_fate(&mut self, fate: JobFate) -> Result<(), Broken> {
        match fate {
            JobFate::Row(row) if row.pool == self.pool => {
                let key = row.row;
                let over = row.life.state == JobState::Completed;
                let view = self.note_job(*row);
                self.inputs.push_back(Input::Job { view, answer: true });
                if over {
                    self.step();
                    self.absorb().await?;
                    self.forget_job(key);
                }
            }
            JobFate::Row(row) => {
                self.forget_job(row.row);
                self.inputs.push_back(Input::JobGone(row.row));
            }
            JobFate::Gone(job) => {
                self.forget_job(job);
                self.inputs.push_back(Input::JobGone(job));
            }
        }
        Ok(())
    }
}

impl Batch {
    pub(super) fn new(account: &AccountName) -> Self {
        Self {
            commit: Commit {
                account: account.clone(),
                fence: None,
                tasks: Vec::new(),
                parents: Vec::new(),
                subtasks: Vec::new(),
                history: Vec::new(),
                deleted: Vec::new(),
                counts: Vec::new(),
                jobs: Vec::new(),
                job_nodes: Vec::new(),
                events: Vec::new(),
                answers: Vec::new(),
                now: Timestamp::default(),
                number: 0,
            },
            index: HashMap::new(),
            removed: HashSet::new(),
            parents: Overlay::new(),
            counts: HashMap::new(),
            mail: Mail::default(),
            replies: Vec::new(),
            purge: Vec::new(),
        }
    }

    fn has_writes(&self) -> bool {
        !self.commit.tasks.is_empty()
            || !self.commit.deleted.is_empty()
            || !self.commit.jobs.is_empty()
            || !self.commit.subtasks.is_empty()
            || !self.commit.job_nodes.is_empty()
            || !self.commit.events.is_empty()
            || !self.commit.answers.is_empty()
    }

    fn has_rest(&self) -> bool {
        !self.mail.is_empty() || !self.replies.is_empty() || !self.purge.is_empty()
    }

    /// The commit; what is to be done after it stays.
    fn take_commit(&mut self, number: u64) -> Commit {
        self.commit.counts = self.counts.drain().collect();
        self.commit.now = Timestamp::now();
        self.commit.number = number;
        let empty = Self::new(&self.commit.account).commit;
        let empty = Commit { number, ..empty };
        std::mem::replace(&mut self.commit, empty)
    }
}

#[cfg(test)]
#[path = "actor_tests.rs"]
mod tests;
