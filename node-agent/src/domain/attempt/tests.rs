//! The transition table, cell by cell, and what results say.

use super::*;
use crate::domain::failure::Category;

const T1: Timestamp = Timestamp::from_micros(1);
const T2: Timestamp = Timestamp::from_micros(2);

fn failure() -> Failure {
    Failure::user("BlobNotFound", "gone")
}

fn events() -> Vec<Event> {
    vec![
        Event::GivenBack,
        Event::Begin,
        Event::BeginFailed(failure()),
        Event::Coordinated { code: 0, expired: false },
        Event::Coordinated { code: 3, expired: false },
        Event::Started,
        Event::PreFailed(failure()),
        Event::Exited { code: 3, broken: None },
        Event::Uploaded,
        Event::Kept,
        Event::UploadFailed(failure()),
        Event::Interrupted,
        Event::WallClock,
        Event::Stop(StopCause::Requested),
        Event::Acknowledged,
    ]
}

fn staging_in(stopping: Stopping) -> Attempt {
    Attempt::StagingIn { start: T1, stopping }
}
fn running(stopping: Stopping) -> Attempt {
    Attempt::Running { start: T1, stopping }
}
fn staging_out(exit_code: i32, expired: bool, stopping: Stopping) -> Attempt {
    Attempt::StagingOut { start: T1, exit_code, expired, broken: None, stopping }
}

/// One word for a cell: the state afterwards, the cause if it ended, the effect.
fn cell(state: &Attempt, event: Event) -> String {
    match state.apply(event, T2) {
        Err(_) => "-".to_owned(),
        Ok(Transition { next: None, .. }) => "forgotten".to_owned(),
        Ok(Transition { next: Some(next), effect }) => {
            let name = match &next {
                Attempt::Ended(ended) => format!("{:?}", ended.cause),
                other => other.name().replace(' ', "-"),
            };
            match effect {
                Effect::None => name,
                Effect::Kill => format!("{name}!kill"),
                Effect::Report => format!("{name}!"),
            }
        }
    }
}

#[test]
fn every_cell_of_the_table() {
    use Stopping::{No, WallClock};
    let asked = Stopping::Cause(StopCause::Requested);
    let waiting = |stopping| Attempt::Waiting { since: T1, stopping };
    let ready = |stopping| Attempt::Ready { start: T1, stopping };
    let over = Attempt::Ended(finished(T1, T2, 0, false, None));
    // A line has a word for each event, in their order.
    let table: [(Attempt, &str); 13] = [
        (waiting(No), "NotStarted! staging-in! PreparationFailed! - - - - - - - - - - waiting!kill -"),
        (waiting(asked), "NotStarted! staging-in! Stopped! - - - - - - - - Stopped! - waiting -"),
        (staging_in(No), "- - - ready! Exited! running PreProcessingError! - - - - - - staging-in!kill -"),
        (staging_in(asked), "- - - Stopped! Stopped! running Stopped! - - - - Stopped! - staging-in -"),
        (ready(No), "- - - - - running PreProcessingError! - - - - - - ready!kill -"),
        (ready(asked), "- - - - - running Stopped! - - - - Stopped! - ready -"),
        (running(No), "- - - - - - - staging-out - - - - running!kill running!kill -"),
        (running(WallClock), "- - - - - - - staging-out - - - - running running!kill -"),
        (running(asked), "- - - - - - - Stopped! - - - - running running -"),
        (staging_out(0, false, No), "- - - - - - - - Exited! - FileUploadError! - - staging-out!kill -"),
        (staging_out(3, false, No), "- - - - - - - - Exited! Exited! FileUploadError! - - staging-out!kill -"),
        (staging_out(137, true, No), "- - - - - - - - WallClockExpired! - FileUploadError! - - staging-out!kill -"),
        (over, "- - - - - - - - - - - - - Exited! forgotten"),
    ];
    for (state, expected) in table {
        let expected: Vec<&str> = expected.split(' ').collect();
        assert_eq!(expected.len(), events().len());
        for (event, expected) in events().into_iter().zip(expected) {
            let name = event_name(&event);
            assert_eq!(cell(&state, event), expected, "{state:?} {name}");
        }
    }
    let leaving = staging_out(0, false, asked);
    for (event, expected) in [
        (Event::Interrupted, "Stopped!"),
        (Event::Uploaded, "Exited!"),
        (Event::Stop(StopCause::Shutdown), "staging-out"),
    ] {
        assert_eq!(cell(&leaving, event), expected);
    }
}

#[test]
fn results_say_what_happened() {
    let result = |state: Attempt, event| match state.apply(event, T2).unwrap().next {
        Some(Attempt::Ended(ended)) => ended,
        other => panic!("not ended: {other:?}"),
    };
    let ok = result(staging_out(0, false, Stopping::No), Event::Uploaded);
    assert_eq!((ok.exit_code, ok.failure, ok.start, ok.end), (Some(0), None, T1, T2));
    let failed = result(staging_out(3, false, Stopping::No), Event::Uploaded);
    assert_eq!(failed.failure.unwrap().code, "FailureExitCode");
    let kept = result(staging_out(3, false, Stopping::No), Event::Kept);
    assert!(kept.outputs_kept && kept.failure.is_some());
    let expired = result(staging_out(137, true, Stopping::No), Event::Uploaded);
    assert_eq!((expired.exit_code, expired.failure.unwrap().code), (Some(137), "TaskEnded"));
    let lost =
        result(running(Stopping::Cause(StopCause::LeaseLost)), Event::Exited { code: 137, broken: Some(failure()) });
    assert_eq!((lost.cause, lost.failure.unwrap().category), (Cause::AgentFailure, Category::Server));
    let alone = result(staging_in(Stopping::No), Event::Coordinated { code: 3, expired: false });
    assert_eq!(
        (alone.exit_code, alone.cause, alone.failure.unwrap().code),
        (Some(3), Cause::Exited, "FailureExitCode")
    );
    let late = result(staging_in(Stopping::No), Event::Coordinated { code: 137, expired: true });
    assert_eq!((late.cause, late.failure.unwrap().code), (Cause::WallClockExpired, "TaskEnded"));
}

#[test]
fn a_broken_limit_is_the_failure() {
    let broken = Failure::user("MemoryLimitExceeded", "too much");
    let end = |state: Attempt, code| {
        let out = state.apply(Event::Exited { code, broken: Some(broken.clone()) }, T2).unwrap().next.unwrap();
        match out.apply(Event::Uploaded, T2).unwrap().next {
            Some(Attempt::Ended(ended)) => (ended.cause, ended.failure.map(|failure| failure.code)),
            other => panic!("not ended: {other:?}"),
        }
    };
    assert_eq!(end(running(Stopping::No), 137), (Cause::Exited, Some("MemoryLimitExceeded")));
    assert_eq!(end(running(Stopping::WallClock), 137), (Cause::WallClockExpired, Some("TaskEnded")));
    // The task got over it.
    assert_eq!(end(running(Stopping::No), 0), (Cause::Exited, None));
}

#[test]
fn a_waiting_attempt_begins_when_it_does_not_wait_any_more() {
    let waiting = Attempt::Waiting { since: T1, stopping: Stopping::No };
    assert_eq!(waiting.apply(Event::Begin, T2).unwrap().next.unwrap().start(), T2);
    assert!(waiting.is_live());
}
