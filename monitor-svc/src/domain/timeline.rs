//! The story of one task, folded from its events in the order of their
//! sequence. The log is the only record: a timeline costs nothing until
//! somebody asks for it, and cannot disagree with the events.
//!
//! | event | effect |
//! |---|---|
//! | added | a new life: what was before is another task of the same id |
//! | assigned | the attempt begins on its node |
//! | started | its process runs |
//! | finished | the task ends, and the attempt if it was open |
//! | requeued | the attempt ends if it was open; the task waits again |
//! | deleted | nothing: the story stays |

/// Attempts shown of one task; of more, the last ones.
pub const MAX_ATTEMPTS: usize = 100;

/// What happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// It was created.
    Added,
    /// It was given to a node.
    Assigned,
    /// Its process began.
    Started,
    /// It ended.
    Finished,
    /// It goes back to the queue.
    Requeued,
    /// Its record was removed.
    Deleted,
}

/// One event of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What happened.
    pub kind: StepKind,
    /// Order of the events of one store.
    pub sequence: i64,
    /// When.
    pub time_micros: i64,
    /// The try it is about; 0 if none.
    pub attempt: u32,
    /// Where the attempt is.
    pub node_id: String,
    /// Of the process.
    pub exit_code: Option<i32>,
    /// `success` or `failure`, if it ended.
    pub result: String,
    /// Why it failed or was requeued.
    pub reason: String,
}

/// The story of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// When it was created.
    pub added: Option<i64>,
    /// Its tries, in order.
    pub attempts: Vec<Attempt>,
    /// When it ended.
    pub finished: Option<i64>,
    /// How it ended.
    pub result: String,
}

/// One try.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempt {
    /// 1, 2, 3, ...
    pub attempt: u32,
    /// Where.
    pub node_id: String,
    /// When it was given to the node.
    pub assigned: Option<i64>,
    /// When its process began.
    pub started: Option<i64>,
    /// When it was over.
    pub ended: Option<i64>,
    /// How it ended: the result, or the reason of a failure or requeue.
    pub outcome: String,
    /// Of the process.
    pub exit_code: Option<i32>,
}

impl Timeline {
    /// Folds the steps, in whatever order they come.
    pub fn of(mut steps: Vec<Step>) -> Self {
        steps.sort_by_key(|step| step.sequence);
        let mut timeline = Self::default();
        for step in steps {
            timeline.apply(step);
        }
        let surplus = timeline.attempts.len().saturating_sub(MAX_ATTEMPTS);
        timeline.attempts.drain(..surplus);
        timeline
    }

    fn apply(&mut self, step: Step) {
        match step.kind {
            StepKind::Added => *self = Self { added: Some(step.time_micros), ..Self::default() },
            StepKind::Assigned => {
                (self.finished, self.result) = (None, String::new());
                let attempt = self.attempt(&step);
                attempt.assigned = Some(step.time_micros);
            }
            StepKind::Started => {
                let attempt = self.attempt(&step);
                attempt.started = Some(step.time_micros);
            }
            StepKind::Finished => {
                let outcome = if step.reason.is_empty() { step.result.clone() } else { step.reason.clone() };
                if step.attempt > 0 {
                    let attempt = self.attempt(&step);
                    // A task that was waiting again when it was ended keeps the
                    // end of its last try.
                    if attempt.ended.is_none() {
                        attempt.ended = Some(step.time_micros);
                        attempt.outcome = outcome;
                        attempt.exit_code = step.exit_code;
                    }
                }
                self.finished = Some(step.time_micros);
                self.result = step.result;
            }
            StepKind::Requeued => {
                (self.finished, self.result) = (None, String::new());
                if step.attempt > 0 {
                    let attempt = self.attempt(&step);
                    if attempt.ended.is_none() {
                        attempt.ended = Some(step.time_micros);
                        attempt.outcome = if step.reason.is_empty() { "requeued".to_owned() } else { step.reason };
                        attempt.exit_code = step.exit_code;
                    }
                }
            }
            StepKind::Deleted => {}
        }
    }

    /// The attempt a step is about, made if it is the first to tell of it.
    fn attempt(&mut self, step: &Step) -> &mut Attempt {
        let at = match self.attempts.binary_search_by_key(&step.attempt, |attempt| attempt.attempt) {
            Ok(at) => at,
            Err(at) => {
                self.attempts.insert(at, Attempt { attempt: step.attempt, ..Attempt::default() });
                at
            }
        };
        let attempt = &mut self.attempts[at];
        if !step.node_id.is_empty() {
            attempt.node_id.clone_from(&step.node_id);
        }
        attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: StepKind, sequence: i64, attempt: u32) -> Step {
        let result = if kind == StepKind::Finished { "success" } else { "" };
        Step {
            kind,
            sequence,
            time_micros: sequence * 10,
            attempt,
            node_id: if attempt > 0 { format!("n{attempt}") } else { String::new() },
            exit_code: (kind == StepKind::Finished).then_some(0),
            result: result.into(),
            reason: String::new(),
        }
    }

    fn story() -> Vec<Step> {
        use StepKind as K;
        vec![
            step(K::Added, 1, 0),
            step(K::Assigned, 2, 1),
            step(K::Started, 3, 1),
            step(K::Requeued, 4, 1),
            step(K::Assigned, 5, 2),
            step(K::Started, 6, 2),
            step(K::Finished, 7, 2),
            step(K::Deleted, 8, 0),
        ]
    }

    #[test]
    fn a_story_is_told_whatever_the_order_of_arrival() {
        let expected = Timeline::of(story());
        assert_eq!((expected.added, expected.finished, expected.result.as_str()), (Some(10), Some(70), "success"));
        let phases: Vec<_> = expected.attempts.iter().map(|a| (a.assigned, a.started, a.ended)).collect();
        assert_eq!(phases, [(Some(20), Some(30), Some(40)), (Some(50), Some(60), Some(70))]);
        assert_eq!((expected.attempts[0].outcome.as_str(), expected.attempts[1].node_id.as_str()), ("requeued", "n2"));
        for rotation in 0..story().len() {
            let mut steps = story();
            steps.rotate_left(rotation);
            assert_eq!(Timeline::of(steps), expected);
        }
    }

    #[test]
    fn a_task_that_runs_again_is_not_finished_and_a_new_life_forgets_the_old() {
        let mut steps = story();
        steps.pop();
        steps.push(step(StepKind::Requeued, 8, 2));
        let again = Timeline::of(steps.clone());
        assert_eq!((again.finished, again.attempts[1].ended), (None, Some(70)));
        steps.push(step(StepKind::Added, 9, 0));
        let new = Timeline::of(steps);
        assert_eq!((new.added, new.attempts.len()), (Some(90), 0));
    }

    #[test]
    fn attempts_are_bounded() {
        let steps = (1..500).map(|n| step(StepKind::Assigned, i64::from(n), n)).collect();
        let timeline = Timeline::of(steps);
        assert_eq!((timeline.attempts.len(), timeline.attempts.last().unwrap().attempt), (MAX_ATTEMPTS, 499));
    }
}
