//! The simulated store: what is durable, what the scheduler is told late, and how it loads again.

use super::*;

impl Stored {
    /// Instances that may still run.
    fn open_instances(&self) -> Vec<(u32, Arc<NodeId>)> {
        let open = (0..).zip(&self.instances).filter(|(_, (_, open))| *open);
        open.map(|(instance, (node, _))| (instance, node.clone())).collect()
    }
}

impl World {
    /// Whether the scheduler has changed a task, which is not durable yet.
    pub(super) fn is_ahead(&self, row: Row) -> bool {
        self.pending.iter().any(|(fx, _, _)| {
            fx.tasks.iter().any(|(touched, _, _)| *touched == row) || fx.deleted.iter().any(|(gone, _)| *gone == row)
        })
    }

    /// The scheduler is told the oldest thing that users did.
    pub(super) fn take_notes(&mut self) {
        match self.notes.pop_front() {
            None => {}
            Some(Note::Added(job, tasks)) => {
                let loaded_to = self.loaded_to.get(&job).copied().unwrap_or(0);
                self.highest = tasks.iter().map(|task| task.row).fold(self.highest, Row::max);
                let tasks: Vec<ReadyTask> = tasks.into_iter().filter(|task| task.row > loaded_to).collect();
                let (dependants, tasks) = self.dependants(job, &tasks);
                if !tasks.is_empty() || dependants.tasks.is_empty() {
                    self.input(Input::Added { job, tasks });
                }
                self.input(Input::Dependants { job, dependants });
            }
            Some(Note::Reactivated(job, row)) => {
                let Some(stored) = self.tasks.get(&row) else { return };
                if stored.task.state != TaskState::Active || self.is_ahead(row) {
                    return;
                }
                let (dependants, _) = self.dependants(job, &[ready_of(row, &self.tasks[&row])]);
                let waits = !dependants.tasks.is_empty();
                self.input(Input::Dependants { job, dependants });
                if !waits {
                    self.ready_again(job, row);
                }
            }
            Some(Note::ParentDeleted(job, row)) => self.parent_deleted(job, row),
            Some(Note::JobChanged(job)) => match self.jobs.get(&job).cloned() {
                Some(view) if self.core.has_job(job) => self.input(Input::Job { view, answer: false }),
                Some(_) if self.purged.contains(&job) => {}
                Some(view) if view.state != JobState::Completed => self.load_job(view),
                Some(_) => {}
                None => self.input(Input::JobGone(job)),
            },
        }
    }

    pub(super) fn ready_again(&mut self, job: JobKey, row: Row) {
        let stored = &self.tasks[&row];
        let task = ready_of(row, stored);
        let nodes = if task.needs.instances > 1 {
            stored.open_instances()
        } else {
            let held = stored.former.clone().filter(|former| former.outcome == Outcome::Terminated);
            held.into_iter().map(|former| (0, former.run.node)).collect()
        };
        if nodes.is_empty() || self.core.is_live(row) {
            self.input(Input::Added { job, tasks: vec![task] });
        } else {
            self.input(Input::Held { job, task, nodes });
        }
    }

    pub(super) fn load_job(&mut self, view: JobView) {
        let (mut waiting, mut running, mut again) = (Vec::new(), Vec::new(), Vec::new());
        let over = matches!(view.state, JobState::Terminating | JobState::Deleting);
        let mut last = self.highest;
        for (row, stored) in self.tasks.iter().filter(|(_, stored)| stored.job == view.key) {
            let task = ready_of(*row, stored);
            match &stored.task.state {
                TaskState::Active if !over && matches!(stored.task.previous, Some((TaskPhase::Completed, _))) => {
                    again.push(*row);
                }
                TaskState::Active if !over && task.needs.instances > 1 && task.attempt > 0 => again.push(*row),
                TaskState::Active => waiting.push(task),
                TaskState::Running { .. } if task.needs.instances > 1 => running.push((task, stored.open_instances())),
                TaskState::Running { node, .. } => running.push((task, vec![(0, node.clone())])),
                TaskState::Completed { .. } => continue,
            }
            last = last.max(*row);
        }
        self.highest = last;
        let job = view.key;
        self.loaded_to.insert(job, last);
        let rows: Vec<ReadyTask> = again.iter().map(|row| ready_of(*row, &self.tasks[row])).chain(waiting).collect();
        let (dependants, waiting) = if over { (Dependants::default(), rows) } else { self.dependants(job, &rows) };
        let waits = |row: &Row| dependants.tasks.iter().any(|new| new.task.row == *row);
        let again: Vec<Row> = again.into_iter().filter(|row| !waits(row)).collect();
        let waiting = waiting.into_iter().filter(|task| !again.contains(&task.row)).collect();
        let of_job = self.nodes.iter().filter(|((key, _), _)| *key == job);
        let nodes = of_job.map(|((_, node), on)| (node.clone(), on.clone())).collect();
        self.input(Input::Loaded { view, ready: waiting, running, nodes, dependants });
        for row in again {
            self.ready_again(job, row);
        }
    }

    /// The oldest commit becomes durable, and what waited for it is sent.
    pub(super) fn commit(&mut self) {
        let Some((mut fx, acks, heard)) = self.pending.pop_front() else { return };
        let fates = self.write(&mut fx, &heard);
        for send in fx.sends {
            match send {
                Send::Welcome(_) => {}
                Send::Assign(_, row, attempt, _) if self.rng.random_bool(0.002) => {
                    self.input(Input::Unrunnable { row, attempt });
                }
                Send::Assign(conn, row, attempt, instance) => {
                    let done = self.for_good.remove(&(conn, row, attempt));
                    if let Some(job) = self.tasks.get(&row).map(|stored| stored.job) {
                        self.mail(conn, Down::Assign((row, attempt, instance), job, done));
                    }
                }
                Send::Stop(conn, row, attempt, instance) => self.mail(conn, Down::Stop((row, attempt, instance))),
                Send::Proceed(conn, row, attempt) => self.mail(conn, Down::Proceed((row, attempt, 0))),
                Send::Release(conn, job) => self.mail_release(conn, job),
                Send::StopSeen(conn, token) => {
                    let key = self.seen[&conn][token as usize];
                    self.mail(conn, Down::Stop(key));
                }
            }
        }
        for (conn, key) in acks {
            self.mail(conn, Down::Ack(key));
        }
        for heard in heard {
            self.mail(heard.conn, Down::WordAck(heard.word.sequence));
        }
        for job in fx.purge {
            self.jobs.remove(&job);
            self.nodes.retain(|(of, _), _| *of != job);
            self.tasks.retain(|_, stored| stored.job != job);
            self.create_job();
        }
        for fate in fates {
            match fate {
                Ok(view) => {
                    if view.state == JobState::Completed {
                        self.create_job();
                    }
                    self.input(Input::Job { view, answer: true });
                }
                Err(gone) => self.input(Input::JobGone(gone)),
            }
        }
    }

    /// The transaction; gives what became of the jobs that were to be changed.
    pub(super) fn write(&mut self, fx: &mut Effects, heard: &[Heard]) -> Vec<Result<JobView, JobKey>> {
        let now = self.now().wall;
        self.write_nodes(std::mem::take(&mut fx.nodes), heard);
        for (row, _, event) in std::mem::take(&mut fx.tasks) {
            let stored = self.tasks.get_mut(&row).unwrap_or_else(|| panic!("task {row} is gone: {event:?}"));
            if matches!(
                (&event, &stored.task.state),
                (TaskEvent::Start { .. }, TaskState::Running { started: Some(_), .. })
            ) {
                continue;
            }
            let transition = stored.task.apply(event.clone(), now);
            let transition = transition.unwrap_or_else(|why| panic!("task {row}: {event:?}: {why}"));
            stored.task = transition.task;
            stored.former = transition.history.or(stored.former.take());
            if matches!(event, TaskEvent::Finish { .. }) {
                stored.finishes += 1;
            }
        }
        for (row, change) in std::mem::take(&mut fx.subtasks) {
            let Some(stored) = self.tasks.get_mut(&row) else { continue };
            match change {
                InstanceChange::Assigned { nodes, .. } => {
                    assert_eq!(nodes.len(), usize::from(stored.needs.instances), "task {row} got a part of its nodes");
                    assert!(stored.open_instances().is_empty(), "task {row}: its last attempt may run");
                    stored.instances = nodes.into_iter().map(|node| (node, true)).collect();
                }
                InstanceChange::Happened(instance, SubtaskEvent::End(_) | SubtaskEvent::Lose) => {
                    stored.instances[instance as usize].1 = false;
                }
                InstanceChange::Happened(_, SubtaskEvent::Start(_) | SubtaskEvent::Ready) => {}
            }
        }
        for (row, _) in std::mem::take(&mut fx.deleted) {
            self.forget_member(row);
        }
        let mut fates = Vec::new();
        for write in std::mem::take(&mut fx.jobs) {
            let open = |stored: &Stored| stored.job == write.job && stored.task.state.phase() != TaskPhase::Completed;
            let denied = write
                .only_if_open
                .is_some_and(|wanted| self.tasks.values().filter(|stored| open(stored)).count() != wanted);
            fates.push(match self.jobs.get_mut(&write.job) {
                Some(view) => {
                    if !denied && let Ok(state) = view.state.apply(&write.event) {
                        view.state = state;
                        view.version += 1;
                    }
                    Ok(view.clone())
                }
                None => Err(write.job),
            });
        }
        fates
    }

    /// The service dies: what was not durable is gone.
    pub(super) fn crash(&mut self) {
        self.notes.clear();
        self.highest = 0;
        self.core = Core::new(settings());
        self.load();
        self.ghosts.clear();
    }

    /// A commit fails, or seems to: everything is read again.
    pub(super) fn fail_commit(&mut self) {
        if self.rng.random_bool(0.5)
            && let Some((mut fx, _, heard)) = self.pending.pop_front()
        {
            self.write(&mut fx, &heard);
        }
        self.core.reset();
        self.load();
    }

    pub(super) fn load(&mut self) {
        let conns: Vec<Conn> = self.agents.iter().filter_map(|agent| agent.conn).collect();
        for conn in conns {
            // A hello that was not read yet still is.
            let read = self.links.contains(&conn);
            match self.agents.iter().position(|agent| agent.conn == Some(conn)) {
                Some(at) if !read => self.lose_stream(at),
                _ => self.break_stream(conn),
            }
        }
        self.links.clear();
        self.purged.clear();
        self.pending.clear();
        self.family.started.clear();
        for view in self.jobs.clone().into_values() {
            if view.state != JobState::Completed {
                self.load_job(view);
            }
        }
    }
}
