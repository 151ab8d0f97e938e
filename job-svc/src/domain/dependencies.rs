//! Which tasks a task waits for.
//!
//! A task names its parents by their ids, and by ranges of numbers: a range
//! matches ids that are integers as text, leading zeros ignored. A parent
//! satisfies when it has completed and its exit conditions say so (exit code 0,
//! if they say nothing). Of several ids with one number the first that
//! satisfies counts. All ids and all numbers of all ranges must be satisfied.
//!
//! Parents may be added later. A satisfied parent that is deleted stays
//! satisfied, until a task with its id is added again: dependants that have not
//! started wait for that one. A parent that is activated again is open again.
//! A task that has started once never waits for parents again.

use std::collections::BTreeSet;

use kiln_ids::TaskId;
use kiln_proto::job::v1::TaskDependencies;

use super::Error;

/// All ids a task names may have this many characters together.
pub const MAX_IDS_LENGTH: usize = 64_000;
/// Ranges a task may name.
pub const MAX_RANGES: usize = 1000;

/// What one task waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dependencies {
    /// Keys of ids; each once.
    pub ids: Vec<String>,
    /// Numbers, both ends included; each range once.
    pub ranges: Vec<(i32, i32)>,
}

/// Where a parent stands for its dependants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParentState {
    /// There is no task with this id.
    Missing,
    /// It has not completed.
    Open,
    /// It has completed, and its dependants may run.
    Satisfied,
    /// It has completed, and its dependants may not run.
    Blocks,
}

impl Dependencies {
    /// What the message says, each parent once; `None` if it names none.
    pub fn of(on: &TaskDependencies) -> Option<Self> {
        let ids: BTreeSet<String> = on.task_ids.iter().map(|id| id.to_ascii_lowercase()).collect();
        let ranges: BTreeSet<(i32, i32)> = on.task_id_ranges.iter().map(|range| (range.start, range.end)).collect();
        let found = Self { ids: ids.into_iter().collect(), ranges: ranges.into_iter().collect() };
        (found != Self::default()).then_some(found)
    }
}

/// The number that ranges know a task by; `None` if its id is no integer.
pub fn number_of(id: &str) -> Option<i32> {
    let digits = id.strip_prefix('-').unwrap_or(id);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    id.parse().ok()
}

/// Checks what a new task says about its parents.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(id: &TaskId, on: &TaskDependencies) -> Result<(), Error> {
    let length: usize = on.task_ids.iter().map(String::len).sum();
    if length > MAX_IDS_LENGTH {
        return Err(Error::Invalid {
            reason: "TaskDependencyListTooLong",
            name: "dependsOn.taskIds".to_owned(),
            value: length.to_string(),
            why: format!("the ids have more than {MAX_IDS_LENGTH} characters together"),
        });
    }
    if on.task_id_ranges.len() > MAX_RANGES {
        return Err(Error::Invalid {
            reason: "TaskDependencyRangesTooLong",
            name: "dependsOn.taskIdRanges".to_owned(),
            value: on.task_id_ranges.len().to_string(),
            why: format!("has more than {MAX_RANGES} ranges"),
        });
    }
    for parent in &on.task_ids {
        let parent = TaskId::parse(parent).map_err(|why| Error::bad_id("dependsOn.taskIds", parent, &why))?;
        if parent == *id {
            return Err(Error::invalid("dependsOn.taskIds", parent, "a task cannot wait for itself"));
        }
    }
    let own = number_of(id.as_str());
    for range in &on.task_id_ranges {
        let text = format!("{} to {}", range.start, range.end);
        if range.start > range.end {
            return Err(Error::invalid("dependsOn.taskIdRanges", text, "start is above end"));
        }
        if own.is_some_and(|own| (range.start..=range.end).contains(&own)) {
            return Err(Error::invalid("dependsOn.taskIdRanges", text, "a task cannot wait for itself"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kiln_proto::job::v1::TaskIdRange;

    use super::*;

    fn on(ids: &[&str], ranges: &[(i32, i32)]) -> TaskDependencies {
        TaskDependencies {
            task_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            task_id_ranges: ranges.iter().map(|(start, end)| TaskIdRange { start: *start, end: *end }).collect(),
        }
    }

    fn reason(id: &str, on: &TaskDependencies) -> Option<String> {
        let refused = check(&TaskId::parse(id).unwrap(), on).err()?;
        Some(kiln_error::Error::from(refused).reason().to_owned())
    }

    #[test]
    fn numbers_are_integers_as_text() {
        for (id, number) in [
            ("4", Some(4)),
            ("004", Some(4)),
            ("-0012", Some(-12)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("-", None),
            ("4a", None),
            ("--4", None),
            ("t4", None),
        ] {
            assert_eq!(number_of(id), number, "{id}");
        }
    }

    #[test]
    fn every_parent_counts_once_whatever_its_case() {
        let found = Dependencies::of(&on(&["B", "b", "a"], &[(1, 3), (1, 3)])).unwrap();
        assert_eq!((found.ids.len(), found.ranges.len()), (2, 1));
        assert_eq!(Dependencies::of(&on(&[], &[])), None);
    }

    #[test]
    fn what_is_refused_is_named() {
        assert_eq!(reason("t", &on(&["a", "B-2"], &[(-5, 5)])), None);
        let long = "x".repeat(64);
        let fits: Vec<&str> = std::iter::repeat_n(long.as_str(), 1000).collect();
        assert_eq!(reason("t", &on(&fits, &[])), None);
        let more: Vec<&str> = std::iter::repeat_n(long.as_str(), 1001).collect();
        assert_eq!(reason("t", &on(&more, &[])).unwrap(), "TaskDependencyListTooLong");
        assert_eq!(reason("t", &on(&[], &[(1, 1); 1001])).unwrap(), "TaskDependencyRangesTooLong");
        for (id, on) in [
            ("t", on(&["bad/id"], &[])),
            ("t", on(&["T"], &[])),
            ("t", on(&[], &[(3, 2)])),
            ("007", on(&[], &[(7, 7)])),
        ] {
            assert_eq!(reason(id, &on).unwrap(), "InvalidPropertyValue", "{on:?}");
        }
    }
}
