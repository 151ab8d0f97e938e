//! What happens to the world: time, users and accidents.

use super::*;

impl World {
    pub(super) fn pass_time(&mut self, by: Duration) {
        self.mono += by;
        for at in 0..self.agents.len() {
            if self.agents[at].lease_end <= self.mono {
                // Without a lease nothing may run.
                self.give_back_line(at);
                for key in self.agents[at].alive.clone() {
                    self.end(at, key, EndCause::AgentFailure, 137);
                }
                self.stop_job_tasks(at);
            }
        }
        self.input(Input::Tick);
    }

    pub(super) fn add(&mut self) {
        let Some(job) = self.any_job() else { return };
        let state = self.jobs.get(&job).map(|view| view.state);
        if state.is_none_or(|state| state.check_add().is_err()) {
            return;
        }
        let tasks: Vec<ReadyTask> = (0..self.rng.random_range(1..4))
            .map(|_| {
                let row = self.next_row;
                // Every other job has small tasks only: these may go ahead.
                let needs = if job % 2 == 0 { Needs::slots(1) } else { any_needs(&mut self.rng) };
                self.next_row += 1;
                self.new_member(job, row);
                self.insert_task(job, row, needs);
                ready_with(row, needs)
            })
            .collect();
        self.notes.push_back(Note::Added(job, tasks));
    }

    pub(super) fn insert_task(&mut self, job: JobKey, row: Row, needs: Needs) {
        let task = Task::new(self.now().wall);
        self.tasks.insert(row, Stored { job, needs, task, finishes: 0, former: None, instances: Vec::new() });
    }

    pub(super) fn reactivate(&mut self) {
        let now = self.now().wall;
        let failed: Vec<Row> = self
            .tasks
            .iter()
            .filter(|(_, t)| t.task.clone().apply(TaskEvent::Reactivate, now).is_ok())
            .map(|(row, _)| *row)
            .collect();
        if failed.is_empty() {
            return;
        }
        // Rather one that may still run somewhere.
        let runs = |row: &&Row| self.agents.iter().any(|agent| agent.alive.iter().any(|alive| alive.0 == **row));
        let running = failed.iter().find(runs).copied();
        let row = running.unwrap_or(failed[self.rng.random_range(0..failed.len())]);
        let Some(stored) = self.tasks.get_mut(&row) else { return };
        if self.jobs[&stored.job].state.check_add().is_err() {
            return;
        }
        let Ok(transition) = stored.task.apply(TaskEvent::Reactivate, now) else { return };
        stored.task = transition.task;
        stored.former = transition.history.or(stored.former.take());
        stored.finishes = 0;
        self.notes.push_back(Note::Reactivated(stored.job, row));
    }

    pub(super) fn end_when_complete(&mut self) {
        let Some(job) = self.any_job() else { return };
        if let Some(view) = self.jobs.get_mut(&job)
            && view.state.check_update().is_ok()
            && self.tasks.values().any(|stored| stored.job == job)
        {
            view.ends_when_complete = true;
            view.version += 1;
            self.notes.push_back(Note::JobChanged(job));
        }
    }

    pub(super) fn change_job(&mut self, event: &JobEvent) {
        let Some(job) = self.any_job() else { return };
        if let Some(view) = self.jobs.get_mut(&job)
            && let Ok(state) = view.state.apply(event)
        {
            let was_over = view.state == JobState::Completed;
            view.state = state;
            view.version += 1;
            // It has been released.
            view.preparation =
                view.preparation.map(|rules| Rules { release: rules.release.filter(|_| !was_over), ..rules });
            self.notes.push_back(Note::JobChanged(job));
        }
    }

    pub(super) fn command(&mut self) {
        let rows: Vec<(Row, JobKey, Needs)> =
            self.tasks.iter().map(|(row, task)| (*row, task.job, task.needs)).collect();
        if rows.is_empty() {
            return;
        }
        let (row, job, needs) = rows[self.rng.random_range(0..rows.len())];
        if self.rng.random_bool(0.7) {
            self.input(Input::Terminate { job, row, needs, reply: 0 });
        } else {
            self.input(Input::Delete { job, row, needs, reply: 0 });
        }
    }

    pub(super) fn accident(&mut self) {
        let at = self.rng.random_range(0..self.agents.len());
        match self.rng.random_range(0..100) {
            0..=24 => self.take_up(at),
            25..=49 => self.take_down(at),
            50..=64 => self.commit(),
            65..=69 => self.add(),
            70..=77 => {
                if self.rng.random_bool(0.5) {
                    let well = self.rng.random_bool(0.7);
                    self.end_job_task(at, well);
                }
                let begun = self.begun(at);
                if !begun.is_empty() {
                    let key = begun[self.rng.random_range(0..begun.len())];
                    let code = i32::from(self.rng.random_bool(0.3));
                    self.go_on(at, key, code);
                }
            }
            78..=80 => self.connect(at),
            81..=83 => self.ask_lease(at),
            84 if self.rng.random_bool(0.5) => self.give_back_line(at),
            84 => self.lose_stream(at),
            85 => {
                if let Some(conn) = self.agents[at].conn {
                    self.break_stream(conn);
                    if self.links.remove(&conn) {
                        self.input(Input::Disconnected { conn });
                    }
                }
            }
            86 => match self.rng.random_range(0..4) {
                // The agent dies, and its processes and results with it.
                0 => {
                    self.lose_stream(at);
                    self.new_life(at);
                }
                1 => self.say_goodbye(at),
                2 => self.drain(at, None),
                _ => {
                    let how = [RunningTasks::Requeue, RunningTasks::Terminate, RunningTasks::Wait];
                    let how = how[self.rng.random_range(0..how.len())];
                    self.drain(at, Some(how));
                }
            },
            87 => match self.rng.random_range(0..4) {
                0 | 1 => {
                    self.crash();
                    // Before any agent has come back.
                    for _ in 0..self.rng.random_range(0..4) {
                        self.reactivate();
                    }
                }
                2 => self.fail_commit(),
                _ => self.end_when_complete(),
            },
            88 => self.command(),
            89 if self.rng.random_bool(0.5) => self.reactivate(),
            89 => self.delete_completed(),
            90 => match self.rng.random_range(0..8) {
                0 => self.change_job(&JobEvent::Terminate(String::new())),
                1 => self.change_job(&JobEvent::Delete),
                2 => self.change_job(&JobEvent::Disable(DisableTasks::Wait)),
                3 | 4 => self.change_job(&JobEvent::Disable(DisableTasks::Terminate)),
                _ => self.change_job(&JobEvent::Disable(DisableTasks::Requeue)),
            },
            91 => self.change_job(&JobEvent::Enable),
            92..=93 => {
                self.take_ghost();
                self.take_notes();
            }
            94 => {
                let end = JobEvent::Terminate(String::new());
                let event = if self.rng.random_bool(0.6) { end } else { JobEvent::Delete };
                self.change_job(&event);
            }
            95..=97 => {
                let by = Duration::from_millis(self.rng.random_range(10..3000));
                self.pass_time(by);
            }
            98 => {
                let by = Duration::from_secs(self.rng.random_range(5..20));
                self.pass_time(by);
            }
            _ => {
                if let Some(up) = self.agents[at].up.iter().find(|up| matches!(up, Up::Ended(..))).cloned() {
                    self.agents[at].up.push_back(up);
                }
            }
        }
    }
}
