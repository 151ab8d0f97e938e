//! Agents and their streams, as the simulated service meets them.

use super::*;

impl World {
    pub(super) fn agent_of(&mut self, conn: Conn) -> Option<&mut FakeAgent> {
        self.agents.iter_mut().find(|agent| agent.conn == Some(conn))
    }

    pub(super) fn mail(&mut self, conn: Conn, message: Down) {
        if let Some(agent) = self.agent_of(conn) {
            agent.down.push_back(message);
        }
    }

    pub(super) fn break_stream(&mut self, conn: Conn) {
        if let Some(at) = self.agents.iter().position(|agent| agent.conn == Some(conn)) {
            let agent = &mut self.agents[at];
            agent.conn = None;
            agent.up.clear();
            agent.down.clear();
            agent.requests.clear();
            if agent.leaving {
                self.new_life(at);
            }
        }
        self.ghosts.retain(|(_, ghost, _)| *ghost != conn);
    }

    /// The agent sees that its stream is broken; the service may see it later.
    pub(super) fn lose_stream(&mut self, at: usize) {
        let Some(conn) = self.agents[at].conn else { return };
        let up = self.agents[at].up.clone();
        self.break_stream(conn);
        self.ghosts.push((at, conn, up));
    }

    /// The former life and all it had is gone.
    pub(super) fn new_life(&mut self, at: usize) {
        self.trace(|| format!("agent {at} begins a new life"));
        let agent = &mut self.agents[at];
        agent.alive.clear();
        agent.ready.clear();
        agent.dying.clear();
        agent.proceeded.clear();
        agent.line.clear();
        agent.results.clear();
        agent.lease_end = Duration::ZERO;
        agent.incarnation += 1;
        agent.stream = 0;
        agent.leaving = false;
        agent.draining = None;
        agent.jobs.clear();
        agent.words.clear();
    }

    /// Something that was said on a broken stream arrives, or its end.
    pub(super) fn take_ghost(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let place = self.rng.random_range(0..self.ghosts.len());
        let (at, conn, up) = &mut self.ghosts[place];
        let (at, conn) = (*at, *conn);
        match up.pop_front() {
            Some(message) => self.hear(at, conn, message),
            None => {
                self.ghosts.swap_remove(place);
                if self.links.remove(&conn) {
                    self.input(Input::Disconnected { conn });
                }
            }
        }
    }

    pub(super) fn status(&self, at: usize) -> NodeStatus {
        let draining = self.agents[at].draining;
        NodeStatus {
            accepting: draining.is_none(),
            running_tasks: draining.unwrap_or(RunningTasks::Requeue),
            capacity: Capacity { memory_bytes: MEMORY, ..Capacity::UNKNOWN },
            ..node_status(SLOTS)
        }
    }

    pub(super) fn drain(&mut self, at: usize, how: Option<RunningTasks>) {
        self.agents[at].draining = how;
        if how.is_some() {
            self.give_back_line(at);
        }
        let status = self.status(at);
        if self.agents[at].conn.is_some() && !self.agents[at].leaving {
            self.agents[at].up.push_back(Up::Status(status));
        }
    }

    pub(super) fn say_goodbye(&mut self, at: usize) {
        if self.agents[at].conn.is_none() || self.agents[at].leaving {
            return;
        }
        self.give_back_line(at);
        for key in self.agents[at].alive.clone() {
            self.end(at, key, EndCause::AgentFailure, 137);
        }
        self.stop_job_tasks(at);
        self.agents[at].up.push_back(Up::Goodbye);
        self.agents[at].leaving = true;
    }

    pub(super) fn connect(&mut self, at: usize) {
        if self.agents[at].conn.is_some() {
            return;
        }
        let status = self.status(at);
        let agent = &mut self.agents[at];
        agent.conn = Some(self.next_conn);
        agent.stream += 1;
        self.next_conn += 1;
        let mut view: Vec<(Key, bool)> = agent.alive.iter().map(|key| (*key, false)).collect();
        view.extend(agent.line.iter().map(|(key, _, _)| (*key, false)));
        view.extend(agent.results.iter().map(|(key, _)| (*key, true)));
        let hello = Hello { incarnation: agent.incarnation, stream: agent.stream, status, attempts: view };
        agent.up.push_back(Up::Hello(hello));
        // What a primary said before it went on is not due any more.
        for key in agent.alive.iter().filter(|key| agent.ready.contains(key) && !agent.proceeded.contains(key)) {
            agent.up.push_back(Up::Ready(*key));
        }
        for (key, end) in agent.results.clone() {
            agent.up.push_back(Up::Ended(key, end));
        }
        for word in agent.words.clone() {
            agent.up.push_back(Up::Word(word));
        }
        self.ask_lease(at);
    }

    pub(super) fn ask_lease(&mut self, at: usize) {
        let mono = self.mono;
        let agent = &mut self.agents[at];
        if agent.conn.is_some() {
            agent.sequence += 1;
            agent.requests.insert(agent.sequence, mono);
            agent.up.push_back(Up::Lease(agent.sequence));
        }
    }

    /// One message of an agent reaches the service.
    pub(super) fn take_up(&mut self, at: usize) {
        let Some(conn) = self.agents[at].conn else { return };
        let Some(message) = self.agents[at].up.pop_front() else { return };
        self.hear(at, conn, message);
    }

    pub(super) fn hear(&mut self, at: usize, conn: Conn, message: Up) {
        let is_hello = matches!(message, Up::Hello(_));
        if is_hello {
            self.links.insert(conn);
        } else if !self.links.contains(&conn) {
            return;
        }
        match message {
            Up::Hello(hello) => {
                self.seen.insert(conn, hello.attempts.iter().map(|(key, _)| *key).collect());
                let seen = hello.attempts.iter().enumerate().map(|(token, ((row, attempt, instance), ended))| Seen {
                    token: u32::try_from(token).unwrap(),
                    row: Some(*row),
                    attempt: *attempt,
                    instance: *instance,
                    ended: *ended,
                });
                let seen = seen.collect();
                // As of version 7, so that they are in order.
                let life = uuid::Uuid::from_u128((u128::from(hello.incarnation) << 80) | (7 << 76) | (2 << 62));
                let (incarnation, stream) = (life.to_string(), hello.stream);
                self.input(Input::Hello { conn, node: name(at), incarnation, stream, status: hello.status, seen });
            }
            Up::Lease(sequence) => self.input(Input::Lease { conn, sequence }),
            Up::Status(status) => self.input(Input::Status { conn, status }),
            Up::Word(word) => self.hear_word(conn, word),
            Up::Goodbye => self.input(Input::Goodbye { conn }),
            Up::Started((row, attempt, instance)) => {
                let at = self.now().wall;
                self.input(Input::Started { conn, row, attempt, instance, at });
            }
            Up::Ready((row, attempt, instance)) => self.input(Input::Ready { conn, row, attempt, instance }),
            Up::Ended(key, end) => {
                let foreign = self.foreign.entry(conn).or_default();
                if let Some(place) = foreign.iter().position(|known| *known == key) {
                    foreign.swap_remove(place);
                    self.input(Input::ForeignEnded { conn });
                }
                let (row, attempt, instance) = key;
                let input = Input::Ended { conn, row, attempt, instance, end, action: JobAction::None };
                self.input_with_ack(input, vec![(conn, key)]);
            }
        }
    }

    /// One message of the service reaches an agent.
    pub(super) fn take_down(&mut self, at: usize) {
        let message = self.agents[at].down.pop_front();
        self.trace(|| format!("agent {at} <- {message:?}"));
        let agent = &mut self.agents[at];
        match message {
            None => {}
            Some(Down::Assign(..) | Down::Stop(..) | Down::Release(_)) if agent.leaving => {}
            Some(Down::Assign(key, job, done)) => {
                agent.line.push_back((key, job, done));
                let drains = agent.draining.is_some();
                self.begin(at);
                if drains {
                    self.give_back_line(at);
                }
            }
            Some(Down::Release(job)) => self.run_release(at, job),
            Some(Down::WordAck(sequence)) => agent.words.retain(|word| word.sequence != sequence),
            // Its process takes its time to die, and may end by itself meanwhile.
            Some(Down::Stop(key)) if agent.alive.contains(&key) && self.rng.random_bool(0.5) => {
                agent.dying.insert(key);
            }
            Some(Down::Stop(key)) => self.end(at, key, EndCause::Stopped, 137),
            Some(Down::Proceed(key)) if !agent.alive.contains(&key) => {}
            Some(Down::Proceed(key)) => {
                agent.proceeded.insert(key);
                let count = self.tasks.get(&key.0).map_or(0, |stored| u32::from(stored.needs.instances));
                for instance in 0..count {
                    let ready = self.was_ready.contains(&(key.0, key.1, instance));
                    assert!(ready, "task {} goes on without instance {instance}", key.0);
                }
            }
            Some(Down::Ack(key)) => {
                agent.results.retain(|result| result.0 != key);
                let (row, attempt, instance) = key;
                let waits = |stored: &&Stored| {
                    instance == 0
                        && stored.task.attempt == attempt
                        && matches!(stored.task.state, TaskState::Running { .. })
                };
                assert!(self.tasks.get(&row).filter(waits).is_none(), "task {row}: a result was acknowledged and lost");
            }
            Some(Down::Grant(sequence)) => {
                if let Some(sent) = agent.requests.remove(&sequence) {
                    agent.lease_end = agent.lease_end.max(sent + LEASE);
                }
            }
        }
    }

    /// A process goes on: an instance becomes ready; what may end ends.
    pub(super) fn go_on(&mut self, at: usize, key: Key, code: i32) {
        let gang = self.tasks.get(&key.0).is_some_and(|stored| stored.needs.instances > 1);
        let agent = &mut self.agents[at];
        let stays = gang && !agent.proceeded.contains(&key) && code == 0;
        if stays && agent.dying.contains(&key) {
            self.end(at, key, EndCause::Stopped, 137);
        } else if !stays {
            self.end(at, key, EndCause::Exited, code);
        } else if agent.ready.insert(key) {
            self.was_ready.insert(key);
            if agent.conn.is_some() {
                agent.up.push_back(Up::Ready(key));
            }
        }
    }

    pub(super) fn end(&mut self, at: usize, key: Key, cause: EndCause, code: i32) {
        let now = self.now().wall;
        self.trace(|| format!("agent {at} ends {key:?}: {cause:?}"));
        let agent = &mut self.agents[at];
        if agent.results.iter().any(|result| result.0 == key) {
            return;
        }
        agent.alive.retain(|alive| *alive != key);
        let line = agent.line.len();
        agent.line.retain(|(waits, _, _)| *waits != key);
        let has_begun = cause != EndCause::NotStarted && agent.line.len() == line;
        let cause = if has_begun { cause } else { EndCause::NotStarted };
        let start = has_begun.then(|| now.minus(Duration::from_millis(self.rng.random_range(0..30))));
        let end = AttemptEnd { start, end: now, exit_code: Some(code), failure: None, cause, outputs_kept: false };
        agent.results.push((key, end.clone()));
        if agent.conn.is_some() {
            agent.up.push_back(Up::Ended(key, end));
        }
        self.leave(at, key);
        self.begin(at);
    }

    /// The first in line begin, as far as there are slots.
    fn begin(&mut self, at: usize) {
        loop {
            let slots = |key: &Key| self.tasks.get(&key.0).map_or(1, |task| task.needs.slots);
            let agent = &mut self.agents[at];
            let used: u16 = agent.alive.iter().map(slots).sum();
            let Some((first, job, done)) = agent.line.front().copied() else { return };
            if used + slots(&first) > SLOTS {
                return;
            }
            agent.line.pop_front();
            self.arrive(at, first, job, done);
        }
    }

    pub(super) fn give_back_line(&mut self, at: usize) {
        let line = std::mem::take(&mut self.agents[at].line);
        for (key, _, _) in line {
            self.end(at, key, EndCause::NotStarted, 0);
        }
    }
}
