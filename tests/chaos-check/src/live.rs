//! From when to when attempts were alive, by the records of the nodes alone.

use std::collections::{BTreeMap, HashMap};

use kiln_node::record::{AttemptName, Event, Line};

use crate::Rules;
use crate::history::TaskName;
use crate::verdict::{Kind, Verdict};

/// One time that an attempt was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Which attempt.
    pub name: AttemptName,
    /// Where.
    pub node: String,
    /// In which life of the agent.
    pub incarnation: String,
    /// From before its process was there.
    pub from: u64,
    /// Until after its process had gone; absent if nothing says that it has.
    pub to: Option<u64>,
    /// The record says how it ended.
    pub ended: Option<Option<i32>>,
}

impl Life {
    /// The task.
    pub fn task(&self) -> TaskName {
        TaskName { job: self.name.job.clone(), task: self.name.task.clone() }
    }

    fn place(&self) -> String {
        format!("attempt {} on {} (life {})", self.name.attempt, self.node, self.incarnation)
    }
}

/// All lives of attempts, by task. Lines may come in any order, as files of several nodes do.
pub fn lives(lines: &[Line], verdict: &mut Verdict) -> BTreeMap<TaskName, Vec<Life>> {
    let mut by_agent: BTreeMap<(&str, &str), Vec<&Line>> = BTreeMap::new();
    let mut begins: HashMap<&str, Vec<(u64, &str)>> = HashMap::new();
    for line in lines {
        by_agent.entry((&line.node, &line.incarnation)).or_default().push(line);
        if matches!(line.event, Event::LifeBegan { .. }) {
            begins.entry(&line.node).or_default().push((line.time, &line.incarnation));
        }
    }
    let mut found: BTreeMap<TaskName, Vec<Life>> = BTreeMap::new();
    for ((node, incarnation), lines) in by_agent {
        // A stable sort: lines of one time stay in the order in which they were written.
        let mut lines = lines;
        lines.sort_by_key(|line| line.time);
        for life in
            of_agent(node, incarnation, &lines, begins.get(node).map(Vec::as_slice).unwrap_or_default(), verdict)
        {
            verdict.attempts += 1;
            found.entry(life.task()).or_default().push(life);
        }
    }
    for lives in found.values_mut() {
        lives.sort_by_key(|life| life.from);
    }
    found
}

fn of_agent(
    node: &str,
    incarnation: &str,
    lines: &[&Line],
    begins: &[(u64, &str)],
    verdict: &mut Verdict,
) -> Vec<Life> {
    let began = lines.iter().find(|line| matches!(line.event, Event::LifeBegan { .. })).map(|line| line.time);
    if began.is_none() {
        verdict.found(Kind::Disagreements, node, format!("the record of life {incarnation} has no beginning"));
    }
    let over = lines.iter().find(|line| matches!(line.event, Event::LifeOver)).map(|line| line.time);
    // An agent kills what earlier ones left before its own life begins.
    let next = began.and_then(|began| {
        begins.iter().filter(|(time, other)| *time > began && *other != incarnation).map(|(time, _)| *time).min()
    });
    let end_of_life = [over, next].into_iter().flatten().min();

    let mut lives: Vec<Life> = Vec::new();
    let mut open: HashMap<&AttemptName, usize> = HashMap::new();
    for line in lines {
        match &line.event {
            Event::LifeBegan { .. } | Event::LifeOver => {}
            Event::LeaseOver => {
                for at in open.values() {
                    lives[*at].to = Some(line.time);
                }
            }
            // Was being started then.
            Event::Running { attempt, .. } => {
                if let Some(at) = open.get(attempt) {
                    lives[*at].to = None;
                }
            }
            Event::Starting { attempt } => {
                // One that was open stays so until the end of the agent's life: a second process beside it.
                open.insert(attempt, lives.len());
                lives.push(Life {
                    name: attempt.clone(),
                    node: node.to_owned(),
                    incarnation: incarnation.to_owned(),
                    from: line.time,
                    to: None,
                    ended: None,
                });
            }
            Event::Ended { attempt, exit_code } => match open.remove(attempt) {
                Some(at) => {
                    if let Some(life) = lives.get_mut(at) {
                        life.to = life.to.or(Some(line.time));
                        life.ended = Some(*exit_code);
                    }
                }
                None => {
                    let what = format!("{}/{}", attempt.job, attempt.task);
                    let reason = format!("attempt {} ended on {node} and never started there", attempt.attempt);
                    verdict.found(Kind::Disagreements, what, reason);
                }
            },
        }
    }
    for life in &mut lives {
        life.to = life.to.or(end_of_life);
    }
    lives
}

/// Looks for attempts of one task that were alive at once, and for attempts that were run more than once.
pub fn doubled(lives: &BTreeMap<TaskName, Vec<Life>>, rules: &Rules, verdict: &mut Verdict) {
    for (task, lives) in lives {
        for (at, a) in lives.iter().enumerate() {
            for reason in lives.iter().skip(at + 1).filter_map(|b| conflict(a, b, rules)) {
                verdict.found(Kind::Doubled, task, reason);
            }
        }
    }
}

/// `a` started no later than `b`.
fn conflict(a: &Life, b: &Life, rules: &Rules) -> Option<String> {
    let same = a.name == b.name;
    if a.name.attempt == b.name.attempt && a.name.number == b.name.number && !same {
        // Instances of one attempt run beside each other.
        return None;
    }
    let overlap = match a.to {
        Some(to) => to.min(b.to.unwrap_or(u64::MAX)).saturating_sub(b.from),
        None => u64::MAX,
    };
    if overlap > rules.clock_error {
        let both = match a.to {
            Some(_) => format!("for {overlap} us"),
            None => "and nothing says when the first one ended".to_owned(),
        };
        return Some(format!("{} and {} were alive together, {both}", a.place(), b.place()));
    }
    same.then(|| format!("{} and {}: one attempt was run twice", a.place(), b.place()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lives of one attempt in these events, one a microsecond.
    fn ends(events: Vec<Event>) -> Vec<Option<u64>> {
        let line = |(time, event)| Line { time, node: "a/p/n".into(), incarnation: "i".into(), event };
        let lines: Vec<Line> = (1..).zip(events).map(line).collect();
        let mut verdict = Verdict::default();
        let lives = lives(&lines, &mut verdict);
        lives.into_values().flatten().map(|life| life.to).collect()
    }

    #[test]
    fn what_was_killed_for_an_agent_that_stood_still_was_over_then() {
        let attempt = AttemptName { job: "j".into(), task: "t".into(), number: 1, attempt: 1, instance: 0 };
        let begun = Event::LifeBegan { pid: 1 };
        let starting = Event::Starting { attempt: attempt.clone() };
        let running = Event::Running { attempt: attempt.clone(), pid: 2 };
        let ended = Event::Ended { attempt, exit_code: Some(137) };
        let told_late = vec![begun.clone(), starting.clone(), running.clone(), Event::LeaseOver, ended.clone()];
        assert_eq!(ends(told_late), [Some(4)]);
        let started_late = vec![begun, starting, Event::LeaseOver, running, ended];
        assert_eq!(ends(started_late), [Some(5)], "it was started after all");
    }
}
