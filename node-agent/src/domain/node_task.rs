//! How a task of the node itself goes: the start task, and a job's preparation
//! and release tasks.

use kiln_time::Timestamp;

use super::failure::Failure;

/// The latest run of such a task, with what went before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// When the latest run began.
    pub start: Timestamp,
    /// When the latest run that has ended did so; stays visible while a retry runs.
    pub end: Option<Timestamp>,
    /// Nothing runs, and no retry follows at once.
    pub completed: bool,
    /// Of the latest process that ended.
    pub exit_code: Option<i32>,
    /// Why the latest run failed.
    pub failure: Option<Failure>,
    /// Retries after exit codes other than 0.
    pub retries: u32,
    /// When the latest of them began.
    pub last_retry: Option<Timestamp>,
}

impl Run {
    /// The first run begins.
    pub fn begin(now: Timestamp) -> Self {
        Self { start: now, end: None, completed: false, exit_code: None, failure: None, retries: 0, last_retry: None }
    }

    /// The next run begins.
    pub fn again(&mut self, now: Timestamp) {
        self.retries = self.retries.saturating_add(1);
        self.start = now;
        self.last_retry = Some(now);
        self.completed = false;
    }

    /// A run has ended.
    pub fn ended(&mut self, exit_code: Option<i32>, failure: Option<Failure>, now: Timestamp) {
        self.end = Some(now);
        self.completed = true;
        self.exit_code = exit_code;
        self.failure = failure;
    }

    /// Whether the task has ended as it should.
    pub fn succeeded(&self) -> bool {
        self.completed && self.failure.is_none()
    }

    /// Whether it is tried again: only exit codes are, not missing files or
    /// programs, nor what was killed for its time. `max` below 0 is without end.
    pub fn is_tried_again(&self, max: i32) -> bool {
        let by_code = self.failure.as_ref().is_some_and(|failure| failure.code != "TaskEnded");
        self.completed
            && self.exit_code.is_some_and(|code| code != 0)
            && by_code
            && (max < 0 || i64::from(self.retries) < i64::from(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1);

    #[test]
    fn only_exit_codes_are_tried_again_and_as_often_as_allowed() {
        let after = |exit_code, failure| {
            let mut run = Run::begin(NOW);
            run.ended(exit_code, failure, NOW);
            run
        };
        let mut failed = after(Some(3), Some(Failure::exit_code(3)));
        assert!(!failed.is_tried_again(0) && failed.is_tried_again(1) && failed.is_tried_again(-1));
        failed.again(NOW);
        assert!(!failed.is_tried_again(1) && !failed.succeeded());
        failed.ended(Some(3), Some(Failure::exit_code(3)), NOW);
        assert!(!failed.is_tried_again(1) && failed.is_tried_again(2));
        assert!(!after(None, Some(Failure::user("BlobNotFound", ""))).is_tried_again(-1));
        assert!(!after(Some(137), Some(Failure::user("TaskEnded", ""))).is_tried_again(-1));
        assert!(!after(Some(0), None).is_tried_again(-1) && after(Some(0), None).succeeded());
    }
}
