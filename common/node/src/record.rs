//! What ran on a node, as the node itself wrote it down: evidence that does not come from the service it is held against.
//!
//! An agent with the setting `record_file` appends a line of JSON for each step of an attempt. `Starting` is in the file
//! before there is a process, so nothing runs that is not recorded; a line is one write, so it is whole also when
//! the agent is killed. The lines of several agents of one machine may share a file.
//!
//! What was killed for an agent that stood still (`LeaseOver`) was over by then, though the agent writes `Ended` later.
//!
//! An attempt without `Ended` is over when its agent's life is: with the guard's `LifeOver`, or at the latest with the
//! next `LifeBegan` of the node, before which an agent kills what earlier ones left.

use serde::{Deserialize, Serialize};

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since 1970, by the machine's clock.
    pub time: u64,
    /// `<account>/<pool>/<node>`.
    pub node: String,
    /// The life of the agent.
    pub incarnation: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A life of the agent begins; nothing of earlier ones runs.
    LifeBegan {
        /// The agent's process.
        pid: u32,
    },
    /// Nothing of this life runs any more.
    LifeOver,
    /// The agent stood still past its lease: nothing of what it had started runs any more. It may go on.
    LeaseOver,
    /// A process of the attempt is about to be started.
    Starting {
        /// Which.
        #[serde(flatten)]
        attempt: AttemptName,
    },
    /// It was started.
    Running {
        /// Which.
        #[serde(flatten)]
        attempt: AttemptName,
        /// Its process.
        pid: u32,
    },
    /// Its process, and all that it started, have ended; or there was none, because it could not be started.
    Ended {
        /// Which.
        #[serde(flatten)]
        attempt: AttemptName,
        /// Of the process; absent if there was none.
        exit_code: Option<i32>,
    },
}

/// Names an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptName {
    /// Its job.
    pub job: String,
    /// Its task.
    pub task: String,
    /// Tells the task from others that had its name.
    pub number: u64,
    /// Which try.
    pub attempt: u32,
    /// Of a multi-instance task: which instance; 0 for all others.
    pub instance: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let attempt = AttemptName { job: "j".into(), task: "t".into(), number: 7, attempt: 2, instance: 0 };
        for event in [
            Event::LifeBegan { pid: 3 },
            Event::LifeOver,
            Event::LeaseOver,
            Event::Starting { attempt: attempt.clone() },
            Event::Running { attempt: attempt.clone(), pid: 4 },
            Event::Ended { attempt, exit_code: None },
        ] {
            let line = Line { time: 1, node: "a/p/n".into(), incarnation: "i".into(), event };
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
    }
}
