//! Published events as the log keeps them.

use bytes::Bytes;
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::event::Payload;
use kiln_proto::events::v1::{Event, EventBatch, JobChanged, NodeChanged, TaskChanged};
use kiln_proto::job::v1::TaskState;
use kiln_proto::pool::v1::NodeState;
use kiln_proto::time::micros;
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

use crate::domain::counts::{TaskClass, node_deltas, task_deltas};
use crate::domain::fact::{Delta, Fact};

/// Number of the field `EventBatch.events`.
const EVENTS: u32 = 1;
/// Longest name of a source, an account or a type, and longest subject.
const MAX_NAME: usize = 256;
const MAX_SUBJECT: usize = 4096;

/// The events of a message, each with its part of it, or why there are none.
pub(super) fn events(message: &Bytes) -> Result<Vec<(Event, Bytes)>, DecodeError> {
    let mut rest = &message[..];
    let mut events = Vec::new();
    while !rest.is_empty() {
        let (field, kind) = encoding::decode_key(&mut rest)?;
        if (field, kind) != (EVENTS, WireType::LengthDelimited) {
            encoding::skip_field(kind, field, &mut rest, DecodeContext::default())?;
            continue;
        }
        let length = encoding::decode_varint(&mut rest)?;
        let Some((event, behind)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length))
        else {
            // Prost's own word for it.
            return EventBatch::decode(message.clone()).map(|_| events);
        };
        events.push((Event::decode(event)?, message.slice_ref(event)));
        rest = behind;
    }
    Ok(events)
}

/// The event as a fact, or why it is none.
pub(super) fn fact(mut event: Event, mut bytes: Bytes) -> Result<Fact, &'static str> {
    for name in [&event.source, &event.account, &event.r#type] {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err("source, account or type is empty or too long");
        }
    }
    if event.subject.is_empty() || event.subject.len() > MAX_SUBJECT {
        return Err("the subject is empty or too long");
    }
    let sequence = i64::try_from(event.sequence).ok().filter(|n| *n > 0).ok_or("the sequence is out of range")?;
    let time_micros = micros(event.time.as_ref().ok_or("the time is missing")?);
    if drop_secrets(&mut event) {
        bytes = event.encode_to_vec().into();
    }
    Ok(Fact {
        sequence,
        time_micros,
        deltas: deltas(&event),
        subject: lower(event.subject),
        source: event.source,
        account: event.account,
        event_type: event.r#type,
        bytes,
    })
}

/// Most names are in lower case already.
fn lower(text: String) -> String {
    let is_lower = text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if is_lower { text } else { text.to_lowercase() }
}

/// What a pool shall be like is for pool-svc, and may hold passwords: the log is
/// open to all who may read events. Says whether there was such a thing.
fn drop_secrets(event: &mut Event) -> bool {
    match &mut event.payload {
        Some(Payload::Job(JobChanged { auto_pool: Some(auto), .. })) => auto.pool.take().is_some(),
        _ => false,
    }
}

fn deltas(event: &Event) -> Vec<Delta> {
    match &event.payload {
        Some(Payload::Task(task)) => of_task(&event.r#type, task),
        Some(Payload::Node(node)) => of_node(&event.r#type, node),
        Some(
            Payload::Pool(_)
            | Payload::Job(_)
            | Payload::Blob(_)
            | Payload::JobSchedule(_)
            | Payload::AutoPoolFailed(_),
        )
        | None => Vec::new(),
    }
}

fn of_task(event_type: &str, task: &TaskChanged) -> Vec<Delta> {
    let (old, new) = match event_type {
        "job.task.added" => (TaskClass::Absent, class(task, task.new_state()).unwrap_or(TaskClass::Active)),
        "job.task.assigned" => from_to(task, TaskClass::Active, TaskClass::Running),
        "job.task.started" => from_to(task, TaskClass::Running, TaskClass::Running),
        "job.task.finished" => {
            let ended = class(task, TaskState::Completed).unwrap_or(TaskClass::Failed);
            (class(task, task.old_state()).unwrap_or(TaskClass::Running), ended)
        }
        "job.task.requeued" => {
            // Only tasks that failed can be made to run again after their end.
            let old = match task.old_state() {
                TaskState::Completed => TaskClass::Failed,
                state => class(task, state).unwrap_or(TaskClass::Running),
            };
            (old, class(task, task.new_state()).unwrap_or(TaskClass::Active))
        }
        "job.task.deleted" => (class(task, task.old_state()).unwrap_or(TaskClass::Absent), TaskClass::Absent),
        _ => return Vec::new(),
    };
    let job = format!("jobs/{}", task.job_id.to_lowercase());
    let pool = (!task.pool_id.is_empty()).then(|| format!("pools/{}", task.pool_id.to_lowercase()));
    task_deltas(&job, pool.as_deref(), i64::from(task.required_slots.max(1)), old, new)
}

fn from_to(task: &TaskChanged, old: TaskClass, new: TaskClass) -> (TaskClass, TaskClass) {
    (class(task, task.old_state()).unwrap_or(old), class(task, task.new_state()).unwrap_or(new))
}

/// What a task in `state` counts as; `None` if the event does not say.
fn class(task: &TaskChanged, state: TaskState) -> Option<TaskClass> {
    match state {
        TaskState::Unspecified => None,
        TaskState::Active => Some(TaskClass::Active),
        TaskState::Preparing | TaskState::Running => Some(TaskClass::Running),
        TaskState::Completed => Some(match (task.result(), task.exit_code) {
            (ExecutionResult::Success, _) | (ExecutionResult::Unspecified, Some(0)) => TaskClass::Succeeded,
            (ExecutionResult::Failure | ExecutionResult::Unspecified, _) => TaskClass::Failed,
        }),
    }
}

fn of_node(event_type: &str, node: &NodeChanged) -> Vec<Delta> {
    let pool = format!("pools/{}", node.pool_id.to_lowercase());
    let (old, new) = (state_name(node.old_state()), state_name(node.new_state()));
    let (old, new) = match event_type {
        "pool.node.created" => (None, new),
        "pool.node.removed" => (old.or(new), None),
        _ => (old, new),
    };
    node_deltas(&pool, i64::from(node.task_slots), old.as_deref(), new.as_deref())
}

/// `waiting_for_start_task` of `NODE_STATE_WAITING_FOR_START_TASK`.
fn state_name(state: NodeState) -> Option<String> {
    match state {
        NodeState::Unspecified => None,
        state => Some(state.as_str_name().trim_start_matches("NODE_STATE_").to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(old: TaskState, new: TaskState) -> TaskChanged {
        TaskChanged {
            job_id: "J".into(),
            pool_id: "P".into(),
            old_state: old.into(),
            new_state: new.into(),
            ..TaskChanged::default()
        }
    }

    fn sum(deltas: &[Delta]) -> Vec<(String, i64)> {
        let mut sums: Vec<(String, i64)> =
            deltas.iter().map(|d| (format!("{} {}", d.scope, d.counter), d.delta)).collect();
        sums.sort();
        sums
    }

    #[test]
    fn states_that_are_not_said_follow_from_the_type() {
        use TaskState as T;
        for (event_type, said) in [
            ("job.task.added", (T::Unspecified, T::Active)),
            ("job.task.assigned", (T::Active, T::Preparing)),
            ("job.task.started", (T::Preparing, T::Running)),
            ("job.task.finished", (T::Running, T::Completed)),
            ("job.task.requeued", (T::Running, T::Active)),
        ] {
            let said = of_task(event_type, &task(said.0, said.1));
            let unsaid = of_task(event_type, &task(T::Unspecified, T::Unspecified));
            assert_eq!(sum(&said), sum(&unsaid), "{event_type}");
        }
    }

    #[test]
    fn a_whole_life_adds_up_to_one_ended_task_and_no_slots() {
        use TaskState as T;
        let mut finished = task(T::Running, T::Completed);
        finished.result = ExecutionResult::Success.into();
        let mut total = std::collections::BTreeMap::new();
        for (event_type, task) in [
            ("job.task.added", task(T::Unspecified, T::Active)),
            ("job.task.assigned", task(T::Active, T::Preparing)),
            ("job.task.started", task(T::Preparing, T::Running)),
            ("job.task.requeued", task(T::Running, T::Active)),
            ("job.task.assigned", task(T::Active, T::Running)),
            ("job.task.finished", finished),
            ("job.task.deleted", task(T::Completed, T::Unspecified)),
        ] {
            for (name, delta) in sum(&of_task(event_type, &task)) {
                *total.entry(name).or_insert(0) += delta;
            }
        }
        total.retain(|_, sum| *sum != 0);
        assert_eq!(total.into_iter().collect::<Vec<_>>(), [("jobs/j succeeded".to_owned(), 1)]);
    }

    #[test]
    fn events_keep_the_bytes_they_came_in() {
        let event = |n: u64| Event { sequence: n, subject: "jobs/j".into(), ..Event::default() };
        let batch = EventBatch { events: vec![event(1), event(2)] };
        let mut bytes = batch.encode_to_vec();
        // A field of a later contract.
        bytes.extend([0x78, 0x05]);
        let events = events(&bytes.into()).unwrap();
        let pairs: Vec<_> = batch.events.iter().map(|event| (event.clone(), event.encode_to_vec().into())).collect();
        assert_eq!(events, pairs);
        for broken in [&[0x0a][..], &[0x0a, 0x05, 0x00], &[0xff], &[0x0a, 0x02, 0x0a, 0x09]] {
            assert!(super::events(&Bytes::copy_from_slice(broken)).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn passwords_of_pools_are_not_kept() {
        let users = vec![kiln_proto::pool::v1::UserAccount {
            name: "ann".into(),
            password: "hunter2".into(),
            ..Default::default()
        }];
        let pool = Some(kiln_proto::pool::v1::PoolSpec { user_accounts: users, ..Default::default() });
        let auto_pool = Some(kiln_proto::job::v1::AutoPool { pool, id_prefix: "tmp".into(), ..Default::default() });
        let event = Event {
            source: "s/1".into(),
            account: "a".into(),
            r#type: "job.job.created".into(),
            subject: "jobs/j".into(),
            sequence: 1,
            time: Some(kiln_proto::time::timestamp(5)),
            payload: Some(Payload::Job(JobChanged { auto_pool, ..JobChanged::default() })),
            ..Event::default()
        };
        let kept =
            String::from_utf8_lossy(&fact(event.clone(), event.encode_to_vec().into()).unwrap().bytes).into_owned();
        assert!(!kept.contains("hunter2") && kept.contains("tmp"), "{kept:?}");
    }

    #[test]
    fn events_that_cannot_be_kept_say_why() {
        let good = Event {
            source: "s/1".into(),
            account: "a".into(),
            r#type: "job.job.created".into(),
            subject: "Jobs/J".into(),
            sequence: 1,
            time: Some(kiln_proto::time::timestamp(5)),
            ..Event::default()
        };
        let fact = |event: &Event| fact(event.clone(), Bytes::new());
        assert_eq!(fact(&good).unwrap().subject, "jobs/j");
        for bad in [
            Event { source: String::new(), ..good.clone() },
            Event { sequence: 0, ..good.clone() },
            Event { sequence: u64::MAX, ..good.clone() },
            Event { time: None, ..good.clone() },
            Event { subject: "x".repeat(MAX_SUBJECT + 1), ..good },
        ] {
            assert!(fact(&bad).is_err());
        }
    }
}
