//! The transition table of tasks, cell by cell, and the rule of retries.

use super::*;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn node() -> Arc<NodeId> {
    Arc::new(NodeId::parse("n1").unwrap())
}

fn exited(code: i32) -> AttemptEnd {
    AttemptEnd {
        start: Some(at(2)),
        end: at(5),
        exit_code: Some(code),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    }
}

fn running() -> Task {
    Task::new(at(0)).apply(TaskEvent::Assign { node: node(), preparing: false }, at(1)).unwrap().task
}

fn preparing() -> Task {
    Task::new(at(0)).apply(TaskEvent::Assign { node: node(), preparing: true }, at(1)).unwrap().task
}

fn completed(code: i32) -> Task {
    running().apply(TaskEvent::Finish { attempt: 1, end: exited(code) }, at(6)).unwrap().task
}

fn events() -> Vec<(&'static str, TaskEvent)> {
    vec![
        ("assign", TaskEvent::Assign { node: node(), preparing: false }),
        ("start", TaskEvent::Start { attempt: 1, at: at(2) }),
        ("finish", TaskEvent::Finish { attempt: 1, end: exited(0) }),
        ("retry", TaskEvent::Retry { attempt: 1, end: exited(1) }),
        ("requeue", TaskEvent::Requeue { attempt: 1, cause: RequeueCause::NodeLost }),
        ("give up", TaskEvent::GiveUp { attempt: 1, cause: GiveUpCause::TooManyInternalRetries }),
        ("terminate", TaskEvent::Terminate),
        ("reactivate", TaskEvent::Reactivate),
    ]
}

#[test]
fn every_cell_of_the_table() {
    use Phase::{Active, Completed, Running};
    assert_eq!(preparing().state.phase(), Phase::Preparing);
    use Rejected::{Impossible, TaskCompleted, TaskNotCompleted, TaskSucceeded};
    let table: [(Task, [Result<Phase, Rejected>; 8]); 5] = [
        (
            Task::new(at(0)),
            [
                Ok(Running),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Ok(Completed),
                Err(TaskNotCompleted),
            ],
        ),
        (
            running(),
            [
                Err(Impossible),
                Ok(Running),
                Ok(Completed),
                Ok(Active),
                Ok(Active),
                Ok(Completed),
                Ok(Completed),
                Err(TaskNotCompleted),
            ],
        ),
        (
            preparing(),
            [
                Err(Impossible),
                Ok(Running),
                Ok(Completed),
                Ok(Active),
                Ok(Active),
                Ok(Completed),
                Ok(Completed),
                Err(TaskNotCompleted),
            ],
        ),
        (
            completed(1),
            [
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(TaskCompleted),
                Ok(Active),
            ],
        ),
        (
            completed(0),
            [
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(Impossible),
                Err(TaskCompleted),
                Err(TaskSucceeded),
            ],
        ),
    ];
    for (task, cells) in table {
        for ((name, event), cell) in events().into_iter().zip(cells) {
            let got = task.apply(event, at(9)).map(|transition| transition.task.state.phase());
            assert_eq!(got, cell, "{name} in {:?}", task.state);
        }
    }
}

#[test]
fn reports_of_other_attempts_are_stale() {
    let task = running();
    for (name, event) in [
        ("start", TaskEvent::Start { attempt: 2, at: at(2) }),
        ("finish", TaskEvent::Finish { attempt: 0, end: exited(0) }),
        ("retry", TaskEvent::Retry { attempt: 7, end: exited(1) }),
        ("requeue", TaskEvent::Requeue { attempt: 2, cause: RequeueCause::JobDisabled }),
        ("give up", TaskEvent::GiveUp { attempt: 2, cause: GiveUpCause::UnreadableSpec }),
    ] {
        assert_eq!(task.apply(event, at(9)), Err(Rejected::Stale), "{name}");
    }
}

#[test]
fn counters_tell_retries_requeues_and_losses_apart() {
    let retried = running().apply(TaskEvent::Retry { attempt: 1, end: exited(3) }, at(6)).unwrap();
    assert_eq!((retried.task.retry_count, retried.task.last_retry), (1, Some(at(6))));
    let history = retried.history.unwrap();
    assert_eq!((history.number, history.exit_code, history.outcome), (1, Some(3), Outcome::Failed));
    let lost = running().apply(TaskEvent::Requeue { attempt: 1, cause: RequeueCause::NodeLost }, at(6)).unwrap();
    assert_eq!((lost.task.requeue_count, lost.task.internal_retry_count), (0, 1));
    assert_eq!(lost.history.unwrap().outcome, Outcome::NodeLost);
    let moved = running().apply(TaskEvent::Requeue { attempt: 1, cause: RequeueCause::JobDisabled }, at(6)).unwrap();
    assert_eq!((moved.task.requeue_count, moved.task.internal_retry_count), (1, 0));
    assert_eq!(moved.task.last_requeue, Some(at(6)));
}

#[test]
fn a_task_that_was_prepared_runs_from_its_start_on() {
    let begun = preparing().apply(TaskEvent::Start { attempt: 1, at: at(3) }, at(4)).unwrap().task;
    assert_eq!((begun.since, begun.previous), (at(4), Some((Phase::Preparing, at(1)))));
    let at_once = running().apply(TaskEvent::Start { attempt: 1, at: at(3) }, at(4)).unwrap().task;
    assert_eq!((at_once.since, at_once.previous), (at(1), Some((Phase::Active, at(0)))));
    for (cause, outcome, counted) in [
        (RequeueCause::PreparationFailed, Outcome::Requeued, (0, 0)),
        (RequeueCause::NotStarted, Outcome::Requeued, (0, 0)),
        (RequeueCause::Preempted, Outcome::Preempted, (1, 0)),
        (RequeueCause::AgentFailure, Outcome::NodeLost, (0, 1)),
    ] {
        let again = preparing().apply(TaskEvent::Requeue { attempt: 1, cause }, at(5)).unwrap();
        let history = again.history.unwrap();
        assert_eq!((history.outcome, history.requeued), (outcome, Some(cause)));
        assert_eq!((again.task.requeue_count, again.task.internal_retry_count), counted, "{cause:?}");
    }
}

#[test]
fn reactivation_clears_the_past_but_keeps_it_as_history() {
    let task = completed(4);
    let again = task.apply(TaskEvent::Reactivate, at(10)).unwrap();
    assert_eq!((again.task.retry_count, again.task.internal_retry_count, again.task.attempt), (0, 0, 1));
    assert_eq!(again.history.unwrap().exit_code, Some(4));
    let second = again.task.apply(TaskEvent::Assign { node: node(), preparing: false }, at(11)).unwrap().task;
    assert_eq!(second.attempt, 2);
}

#[test]
fn failures_have_a_reason_and_successes_none() {
    let failure = |task: Task| match task.state {
        TaskState::Completed { failure, .. } => failure.map(|failure| failure.code),
        other => panic!("{other:?}"),
    };
    assert_eq!(failure(completed(0)), None);
    assert_eq!(failure(completed(1)).as_deref(), Some(FAILURE_EXIT_CODE));
    let lost = TaskEvent::GiveUp { attempt: 1, cause: GiveUpCause::TooManyInternalRetries };
    let lost = running().apply(lost, at(9)).unwrap().task;
    assert_eq!(failure(lost).as_deref(), Some("MaxInternalRetryCountReached"));
    let ended = running().apply(TaskEvent::Terminate, at(9)).unwrap().task;
    assert_eq!(failure(ended).as_deref(), Some(TASK_ENDED));
}

#[test]
fn only_exit_codes_are_retried() {
    let with = |cause, exit_code| AttemptEnd { cause, exit_code, ..exited(0) };
    for (end, retries, max, verdict) in [
        (exited(0), 0, 5, Verdict::Finish),
        (exited(1), 0, 0, Verdict::Finish),
        (exited(1), 0, 1, Verdict::Retry),
        (exited(1), 1, 1, Verdict::Finish),
        (exited(1), u32::MAX, -1, Verdict::Retry),
        // The limit was lowered after the agent had been told of a retry.
        (AttemptEnd { outputs_kept: true, ..exited(1) }, 3, 1, Verdict::Retry),
        (AttemptEnd { outputs_kept: true, ..exited(0) }, 0, 1, Verdict::Finish),
        (with(EndCause::Exited, None), 0, 5, Verdict::Finish),
        (with(EndCause::PreProcessingError, None), 0, 5, Verdict::Finish),
        (with(EndCause::FileUploadError, Some(1)), 0, 5, Verdict::Finish),
        (with(EndCause::WallClockExpired, Some(137)), 0, -1, Verdict::Finish),
        (with(EndCause::Stopped, Some(137)), 0, 0, Verdict::Requeue),
        (with(EndCause::AgentFailure, None), 0, 0, Verdict::Requeue),
        (with(EndCause::PreparationFailed, None), 0, 0, Verdict::Requeue),
        (with(EndCause::NotStarted, None), 0, 0, Verdict::Requeue),
    ] {
        assert_eq!(judge(&end, retries, max), verdict, "{end:?} {retries}/{max}");
    }
}
