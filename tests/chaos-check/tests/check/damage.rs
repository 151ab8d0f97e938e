//! One thing wrong with a right history, and as what it has to be found.

use kiln_chaos_check::history::{History, Said, TaskName, Watched};
use kiln_chaos_check::verdict::Kind;
use kiln_node::record::{Event, Line};
use proptest::sample::Index;

/// Ways of going wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The server does not know an acknowledged task any more.
    ForgetTask,
    /// It never completes.
    NeverCompletes,
    /// The server says that it completed, and no node ran it.
    NeverRan,
    /// A node says that the last attempt began, and not that it ended.
    NeverEnded,
    /// It runs on another node, too.
    RunsElsewhere,
    /// The same attempt is run again later.
    RunsAgain,
    /// An attempt begins before the one before it has ended.
    BeginsEarly,
    /// Nothing says that the life of an attempt's agent ended, and the next attempt begins.
    LivesOn,
    /// An attempt that the server does not know.
    UnknownAttempt,
    /// A task that nobody asked for.
    UnknownTask,
    /// An event is missing in the middle of its source.
    EventMissing,
    /// The event of a completion is missing at the end of its source.
    LastCompletionMissing,
    /// An event is in the log twice.
    EventTwice,
    /// A task completes twice.
    CompletesTwice,
    /// A watcher did not see a completion.
    NotSeen,
    /// A watcher saw one twice.
    SeenTwice,
    /// A watcher saw what did not happen.
    SeenOnly,
    /// The node says another exit code.
    NodeDisagrees,
    /// The server says another exit code.
    ServerDisagrees,
    /// The event says another exit code.
    EventDisagrees,
    /// The client expected another exit code.
    ClientDisagrees,
    /// A deleted task is still there.
    DeletionForgotten,
    /// A deleted task runs on.
    DeletedRunsOn,
    /// An attempt ends that never started.
    EndWithoutStart,
}

impl Damage {
    pub const ALL: [Self; 24] = [
        Self::ForgetTask,
        Self::NeverCompletes,
        Self::NeverRan,
        Self::NeverEnded,
        Self::RunsElsewhere,
        Self::RunsAgain,
        Self::BeginsEarly,
        Self::LivesOn,
        Self::UnknownAttempt,
        Self::UnknownTask,
        Self::EventMissing,
        Self::LastCompletionMissing,
        Self::EventTwice,
        Self::CompletesTwice,
        Self::NotSeen,
        Self::SeenTwice,
        Self::SeenOnly,
        Self::NodeDisagrees,
        Self::ServerDisagrees,
        Self::EventDisagrees,
        Self::ClientDisagrees,
        Self::DeletionForgotten,
        Self::DeletedRunsOn,
        Self::EndWithoutStart,
    ];

    /// Does it somewhere; `None` if this history has no place for it.
    pub fn apply(self, history: &mut History, pick: &Index) -> Option<Kind> {
        match self {
            Self::ForgetTask => {
                let at = kept_final(history, pick)?;
                history.finals.remove(at);
                Some(Kind::Lost)
            }
            Self::NeverCompletes => {
                let at = kept_final(history, pick)?;
                history.finals[at].state = "running".into();
                Some(Kind::Lost)
            }
            Self::NeverRan => {
                let (name, last) = last_attempt(history, pick)?;
                history.nodes.retain(|line| !is_of(line, &name, last));
                Some(Kind::Lost)
            }
            Self::NeverEnded => {
                let (name, last) = last_attempt(history, pick)?;
                history.nodes.retain(|line| !(is_of(line, &name, last) && matches!(line.event, Event::Ended { .. })));
                Some(Kind::Lost)
            }
            Self::RunsElsewhere => {
                let at = place(&history.nodes, pick, |line| matches!(line.event, Event::Starting { .. }))?;
                let line = history.nodes[at].clone();
                let elsewhere =
                    |time, event| Line { time, node: "a/p/other".into(), incarnation: "other".into(), event };
                let Event::Starting { attempt } = line.event else { return None };
                history.nodes.push(elsewhere(line.time - 1, Event::LifeBegan { pid: 1 }));
                history.nodes.push(elsewhere(line.time + 1, Event::Starting { attempt: attempt.clone() }));
                history.nodes.push(elsewhere(line.time + 3, Event::Ended { attempt, exit_code: Some(0) }));
                Some(Kind::Doubled)
            }
            Self::RunsAgain => {
                let (name, last) = last_attempt(history, pick)?;
                let again: Vec<Line> = history.nodes.iter().filter(|line| is_of(line, &name, last)).cloned().collect();
                let shift = 1_000_000;
                history.nodes.extend(again.into_iter().map(|line| Line { time: line.time + shift, ..line }));
                Some(Kind::Doubled)
            }
            Self::BeginsEarly => {
                let at = place(
                    &history.nodes,
                    pick,
                    |line| matches!(&line.event, Event::Starting { attempt } if attempt.attempt > 1),
                )?;
                let Event::Starting { attempt } = history.nodes[at].event.clone() else { return None };
                let earlier = history.nodes.iter().find(|line| {
                    matches!(&line.event, Event::Starting { attempt: other }
                        if other.task == attempt.task && other.attempt + 1 == attempt.attempt)
                })?;
                // On another node, whose life is old enough; the line after the earlier one's start.
                let (time, node) = (earlier.time + 1, history.nodes[at].node.clone());
                if node == earlier.node {
                    return None;
                }
                let old_enough = history.nodes.iter().any(|line| {
                    matches!(line.event, Event::LifeBegan { .. })
                        && line.incarnation == history.nodes[at].incarnation
                        && line.time < time
                });
                if !old_enough {
                    return None;
                }
                history.nodes[at].time = time;
                Some(Kind::Doubled)
            }
            Self::LivesOn => {
                // Of the first agent that was killed with an attempt: all that says so.
                let at = place(&history.nodes, pick, |line| matches!(line.event, Event::LifeOver))?;
                let (node, incarnation, time) =
                    (history.nodes[at].node.clone(), history.nodes[at].incarnation.clone(), history.nodes[at].time);
                let later = |line: &Line| line.node == node && line.time >= time;
                let goes_on = history.nodes.iter().any(|line| {
                    let Event::Starting { attempt } = &line.event else { return false };
                    let cut = history.nodes.iter().any(|other| {
                        matches!(&other.event, Event::Starting { attempt: open }
                            if open.task == attempt.task && open.attempt < attempt.attempt
                            && other.incarnation == incarnation)
                            && !history.nodes.iter().any(|end| {
                                matches!((&other.event, &end.event),
                                    (Event::Starting { attempt: a }, Event::Ended { attempt: b, .. }) if a == b)
                            })
                    });
                    cut && line.time > time && line.node != node
                });
                if !goes_on {
                    return None;
                }
                history.nodes.retain(|line| !later(line));
                Some(Kind::Doubled)
            }
            Self::UnknownAttempt => {
                let at = kept_final(history, pick)?;
                let extra = history.finals[at].attempts.iter().map(|attempt| attempt.attempt).min()?;
                history.finals[at].attempts.retain(|attempt| attempt.attempt != extra);
                Some(Kind::UnknownAttempts)
            }
            Self::UnknownTask => {
                let at = kept_final(history, pick)?;
                let name = history.finals[at].name.clone();
                history.clients.retain(|said| name_of(said) != &name);
                Some(Kind::UnknownAttempts)
            }
            Self::EventMissing => {
                let at = place(&history.events, pick, |event| {
                    history.events.iter().any(|other| other.source == event.source && other.sequence > event.sequence)
                })?;
                history.events.remove(at);
                Some(Kind::Holes)
            }
            Self::LastCompletionMissing => {
                let last = history.events.iter().rposition(|event| event.source.starts_with("job-svc"))?;
                let gone = history.events.remove(last);
                let name = TaskName::of_subject(&gone.subject)?;
                let counts = gone.is_completion() && promised_and_kept(history, &name);
                counts.then_some(Kind::Unlogged)
            }
            Self::EventTwice => {
                let at = place(&history.events, pick, |_| true)?;
                let event = history.events[at].clone();
                history.events.push(event);
                Some(Kind::Repeated)
            }
            Self::CompletesTwice => {
                let at = place(&history.events, pick, |event| event.is_completion())?;
                let mut event = history.events[at].clone();
                event.sequence = 1 + history.events.iter().filter(|other| other.source == event.source).count() as u64;
                history.events.push(event);
                Some(Kind::Repeated)
            }
            Self::NotSeen => {
                let at = completion_seen(history, pick)?;
                history.watched.remove(at);
                Some(Kind::WatcherMissed)
            }
            Self::SeenTwice => {
                let at = completion_seen(history, pick)?;
                let again = history.watched[at].clone();
                history.watched.push(again);
                Some(Kind::WatcherRepeated)
            }
            Self::SeenOnly => {
                let at = completion_seen(history, pick)?;
                let mut more = history.watched[at].clone();
                if let Watched::Saw { event, .. } = &mut more {
                    event.sequence += 1_000_000;
                }
                history.watched.push(more);
                Some(Kind::Disagreements)
            }
            Self::NodeDisagrees => {
                let (name, last) = last_attempt(history, pick)?;
                let of_primary = history.nodes.iter_mut().filter(|line| is_of(line, &name, last));
                for line in of_primary {
                    if let Event::Ended { exit_code: Some(code), .. } = &mut line.event {
                        *code += 1;
                    }
                }
                Some(Kind::Disagreements)
            }
            Self::ServerDisagrees => {
                let at = kept_final(history, pick)?;
                history.finals[at].exit_code = history.finals[at].exit_code.map(|code| code + 1);
                Some(Kind::Disagreements)
            }
            Self::EventDisagrees => {
                let at = place(&history.events, pick, |event| {
                    event.is_completion()
                        && TaskName::of_subject(&event.subject).is_some_and(|name| promised_and_kept(history, &name))
                })?;
                history.events[at].exit_code = Some(99_999);
                Some(Kind::Disagreements)
            }
            Self::ClientDisagrees => {
                let at = place(&history.clients, pick, |said| {
                    matches!(said, Said::Added { .. }) && promised_and_kept(history, name_of(said))
                })?;
                if let Said::Added { exit_code, .. } = &mut history.clients[at] {
                    *exit_code = Some(99_999);
                }
                Some(Kind::Disagreements)
            }
            Self::DeletionForgotten => {
                let at = kept_final(history, pick)?;
                let name = history.finals[at].name.clone();
                history.clients.push(Said::Deleted { name, time: u64::MAX, acknowledged: true });
                Some(Kind::Disagreements)
            }
            Self::DeletedRunsOn => {
                let at =
                    place(&history.clients, pick, |said| matches!(said, Said::Deleted { acknowledged: true, .. }))?;
                let Said::Deleted { name, time, .. } = history.clients[at].clone() else { return None };
                let end = history.nodes.iter_mut().rev().find(|line| {
                    matches!(&line.event, Event::Ended { attempt, .. } if attempt.task == name.task && attempt.instance == 0)
                })?;
                // Its agent may have begun no other life since.
                end.time = time + 1;
                Some(Kind::Disagreements)
            }
            Self::EndWithoutStart => {
                let at = place(&history.nodes, pick, |line| matches!(line.event, Event::Starting { .. }))?;
                let line = history.nodes.remove(at);
                let Event::Starting { attempt } = line.event else { return None };
                let ends = history
                    .nodes
                    .iter()
                    .any(|line| matches!(&line.event, Event::Ended { attempt: other, .. } if *other == attempt));
                ends.then_some(Kind::Disagreements)
            }
        }
    }
}

fn place<T>(all: &[T], pick: &Index, fits: impl Fn(&T) -> bool) -> Option<usize> {
    let places: Vec<usize> = (0..all.len()).filter(|at| fits(&all[*at])).collect();
    (!places.is_empty()).then(|| places[pick.index(places.len())])
}

fn name_of(said: &Said) -> &TaskName {
    match said {
        Said::Added { name, .. } | Said::Deleted { name, .. } => name,
    }
}

/// Its addition was acknowledged, and nobody asked for its deletion.
fn promised_and_kept(history: &History, name: &TaskName) -> bool {
    let mut of_task = history.clients.iter().filter(|said| name_of(said) == name);
    history.finals.iter().any(|word| word.name == *name)
        && of_task.all(|said| matches!(said, Said::Added { acknowledged: true, .. }))
}

fn kept_final(history: &History, pick: &Index) -> Option<usize> {
    place(&history.finals, pick, |word| promised_and_kept(history, &word.name))
}

fn last_attempt(history: &History, pick: &Index) -> Option<(TaskName, u32)> {
    let word = &history.finals[kept_final(history, pick)?];
    Some((word.name.clone(), word.attempts.iter().map(|attempt| attempt.attempt).max()?))
}

fn is_of(line: &Line, name: &TaskName, number: u32) -> bool {
    match &line.event {
        Event::Starting { attempt } | Event::Running { attempt, .. } | Event::Ended { attempt, .. } => {
            attempt.job == name.job && attempt.task == name.task && attempt.attempt == number
        }
        Event::LifeBegan { .. } | Event::LifeOver | Event::LeaseOver => false,
    }
}

fn completion_seen(history: &History, pick: &Index) -> Option<usize> {
    place(&history.watched, pick, |said| matches!(said, Watched::Saw { event, .. } if event.is_completion()))
}
