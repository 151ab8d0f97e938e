//! Which events of a transaction become one message.
//!
//! A message has events of one type, because the type is its routing key. In a
//! transaction about many tasks types alternate (one starts, ends, the next
//! starts), and a message for every event would make the bus the limit. So
//! events are moved together by type, as far as nobody can tell:
//! - the events of one subject keep their order;
//! - an event about anything but a task stays behind all before it and before
//!   all behind it: a job's end comes after the ends of its tasks.
//!
//! Numbers are given afterwards, so the order of messages is that of numbers.

use std::collections::HashMap;

use super::NewEvent;

/// Events of one message at most.
pub(super) const MESSAGE_EVENTS: usize = 500;
/// Only these are moved.
const MOVABLE: &str = "job.task.";

/// Events of one type each, in the order in which they are published.
pub(super) fn by_type(events: Vec<NewEvent>) -> Vec<Vec<NewEvent>> {
    let places = places(&events);
    let mut groups: Vec<Vec<NewEvent>> = Vec::new();
    groups.resize_with(places.iter().max().map_or(0, |last| last + 1), Vec::new);
    for (event, place) in events.into_iter().zip(places) {
        groups[place].push(event);
    }
    groups
}

/// The group of each event.
fn places(events: &[NewEvent]) -> Vec<usize> {
    let mut sizes: Vec<usize> = Vec::new();
    // The group that still takes events of a type, and the group that has the
    // latest event of a subject. Both are forgotten when something else comes.
    let mut open: HashMap<&str, usize> = HashMap::new();
    let mut latest: HashMap<(&str, &str), usize> = HashMap::new();
    let mut previous: Option<&str> = None;
    let mut places = Vec::with_capacity(events.len());
    for event in events {
        let found = if event.event_type.starts_with(MOVABLE) {
            let subject = (event.account.as_str(), event.subject.as_str());
            let not_before = latest.get(&subject).copied().unwrap_or(0);
            open.get(event.event_type).copied().filter(|place| *place >= not_before)
        } else {
            open.clear();
            latest.clear();
            previous.filter(|before| *before == event.event_type).map(|_| sizes.len() - 1)
        };
        let place = found.filter(|place| sizes[*place] < MESSAGE_EVENTS).unwrap_or_else(|| {
            sizes.push(0);
            sizes.len() - 1
        });
        if event.event_type.starts_with(MOVABLE) {
            open.insert(event.event_type, place);
            latest.insert((event.account.as_str(), event.subject.as_str()), place);
        }
        sizes[place] += 1;
        previous = Some(event.event_type);
        places.push(place);
    }
    places
}

#[cfg(test)]
mod tests {
    use kiln_proto::events::v1::BlobChanged;
    use kiln_proto::events::v1::event::Payload;

    use super::*;

    fn event(event_type: &'static str, subject: &str) -> NewEvent {
        NewEvent {
            time_micros: 1,
            account: "a".into(),
            subject: subject.into(),
            event_type,
            traceparent: String::new(),
            payload: Payload::Blob(BlobChanged::default()),
        }
    }

    fn shape(events: Vec<NewEvent>) -> Vec<(&'static str, Vec<String>)> {
        let group =
            |group: Vec<NewEvent>| (group[0].event_type, group.into_iter().map(|event| event.subject).collect());
        by_type(events).into_iter().map(group).collect()
    }

    const STARTED: &str = "job.task.started";
    const FINISHED: &str = "job.task.finished";
    const JOB: &str = "job.job.state";

    #[test]
    fn alternating_types_become_one_message_each() {
        let events = ["1", "2", "3"].iter().flat_map(|task| [event(STARTED, task), event(FINISHED, task)]);
        let all: Vec<String> = vec!["1".into(), "2".into(), "3".into()];
        assert_eq!(shape(events.collect()), [(STARTED, all.clone()), (FINISHED, all)]);
    }

    #[test]
    fn a_subject_keeps_its_order_and_a_job_its_place() {
        let events = vec![
            event(FINISHED, "1"),
            event(STARTED, "1"),
            event(FINISHED, "1"),
            event(FINISHED, "2"),
            event(JOB, "j"),
            event(FINISHED, "3"),
        ];
        let one = |subject: &str| vec![subject.to_owned()];
        assert_eq!(
            shape(events),
            [
                (FINISHED, one("1")),
                (STARTED, one("1")),
                (FINISHED, vec!["1".into(), "2".into()]),
                (JOB, one("j")),
                (FINISHED, one("3")),
            ]
        );
    }

    #[test]
    fn messages_are_bounded_and_nothing_is_lost() {
        let events: Vec<NewEvent> = (0..2 * MESSAGE_EVENTS + 1).map(|n| event(STARTED, &n.to_string())).collect();
        let sizes: Vec<usize> = by_type(events).iter().map(Vec::len).collect();
        assert_eq!(sizes, [MESSAGE_EVENTS, MESSAGE_EVENTS, 1]);
        let jobs: Vec<NewEvent> = (0..2 * MESSAGE_EVENTS + 1).map(|_| event(JOB, "j")).collect();
        let sizes: Vec<usize> = by_type(jobs).iter().map(Vec::len).collect();
        assert_eq!(sizes, [MESSAGE_EVENTS, MESSAGE_EVENTS, 1]);
    }
}
