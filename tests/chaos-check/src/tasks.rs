//! Every acknowledged task ended exactly once and was really run, deleted ones are gone, the server knows every attempt, and
//! all agree on how tasks ended.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::Rules;
use crate::history::{Final, History, Logged, Said, TaskName};
use crate::live::Life;
use crate::verdict::{Kind, Verdict};

/// What clients were told of one task.
#[derive(Debug, Default)]
struct Promised {
    added: bool,
    exit_code: Option<i32>,
    /// Asked for, answered or not.
    deletion: bool,
    /// When it was acknowledged.
    deleted: Option<u64>,
}

/// See the module.
pub fn check(history: &History, lives: &BTreeMap<TaskName, Vec<Life>>, rules: &Rules, verdict: &mut Verdict) {
    let mut promised: BTreeMap<&TaskName, Promised> = BTreeMap::new();
    for said in &history.clients {
        match said {
            Said::Added { name, acknowledged, exit_code, .. } => {
                let task = promised.entry(name).or_default();
                task.added |= acknowledged;
                task.exit_code = task.exit_code.or(*exit_code);
            }
            Said::Deleted { name, time, acknowledged } => {
                let task = promised.entry(name).or_default();
                task.deletion = true;
                if *acknowledged {
                    // The first answer counts: from then on nothing of it may run.
                    task.deleted = Some(task.deleted.map_or(*time, |earlier| earlier.min(*time)));
                }
            }
        }
    }
    let mut finals: HashMap<&TaskName, &Final> = HashMap::new();
    for word in &history.finals {
        if finals.insert(&word.name, word).is_some() {
            verdict.found(Kind::Disagreements, &word.name, "the server has two final words on it");
        }
    }
    let mut events: HashMap<TaskName, Vec<&Logged>> = HashMap::new();
    let mut seen = HashSet::new();
    for event in &history.events {
        // Doubles in the log are the log's fault, not the task's.
        if let Some(name) = TaskName::of_subject(&event.subject)
            && seen.insert((&event.source, event.sequence))
        {
            events.entry(name).or_default().push(event);
        }
    }

    verdict.tasks = promised.values().filter(|task| task.added).count();
    for (name, task) in &promised {
        let told = Told {
            name,
            lives: lives.get(*name).map(Vec::as_slice).unwrap_or_default(),
            word: finals.get(*name).copied(),
            events: events.get(*name).map(Vec::as_slice).unwrap_or_default(),
        };
        told.completion(task, verdict);
        told.deletion(task, rules, verdict);
        told.attempts(verdict);
        told.exit_codes(task, verdict);
    }
    for name in lives.keys().filter(|name| !promised.contains_key(name)) {
        verdict.found(Kind::UnknownAttempts, name, "it ran, and no client has asked for it");
    }
}

/// What all say about one task.
struct Told<'a> {
    name: &'a TaskName,
    lives: &'a [Life],
    word: Option<&'a Final>,
    events: &'a [&'a Logged],
}

impl Told<'_> {
    fn completion(&self, task: &Promised, verdict: &mut Verdict) {
        let completions = self.events.iter().filter(|event| event.is_completion()).count();
        verdict.found_many(
            Kind::Repeated,
            (completions as u64).saturating_sub(1),
            self.name,
            format!("it completed {completions} times"),
        );
        if !task.added || task.deletion {
            return;
        }
        let Some(word) = self.word else {
            return verdict.found(Kind::Lost, self.name, "it was acknowledged, and the server does not know it");
        };
        if word.state != "completed" {
            return verdict.found(Kind::Lost, self.name, format!("it is {}, not completed", word.state));
        }
        if completions == 0 {
            verdict.found(Kind::Unlogged, self.name, "it completed, and the log does not say so");
        }
        let Some(last) = word.attempts.iter().map(|attempt| attempt.attempt).max() else {
            return verdict.found(Kind::Lost, self.name, "it completed without an attempt");
        };
        let mut ran = self.lives.iter().filter(|life| life.name.attempt == last && life.name.instance == 0);
        if !ran.any(|life| life.ended.is_some_and(|code| code.is_some())) {
            let reason = format!("it completed with attempt {last}, and no node has run that to its end");
            verdict.found(Kind::Lost, self.name, reason);
        }
    }

    fn deletion(&self, task: &Promised, rules: &Rules, verdict: &mut Verdict) {
        let Some(deleted) = task.deleted else { return };
        if self.word.is_some() {
            verdict.found(Kind::Disagreements, self.name, "its deletion was acknowledged, and the server still has it");
        }
        for life in self.lives {
            if life.to.is_none_or(|to| to > deleted.saturating_add(rules.clock_error)) {
                let reason = format!("attempt {} on {} was alive after its deletion", life.name.attempt, life.node);
                verdict.found(Kind::Disagreements, self.name, reason);
            }
        }
    }

    fn attempts(&self, verdict: &mut Verdict) {
        let by_word = self.word.into_iter().flat_map(|word| word.attempts.iter().map(|attempt| attempt.attempt));
        let known: HashSet<u32> = match self.word {
            Some(_) => by_word.collect(),
            // Of a task that is gone the log knows.
            None => self.events.iter().filter_map(|event| event.attempt).collect(),
        };
        let mut told = HashSet::new();
        for life in self.lives {
            let attempt = life.name.attempt;
            if !known.contains(&attempt) && told.insert(attempt) {
                let reason = format!("attempt {attempt} ran on {}, and the server does not know it", life.node);
                verdict.found(Kind::UnknownAttempts, self.name, reason);
            }
        }
    }

    fn exit_codes(&self, task: &Promised, verdict: &mut Verdict) {
        let Some(word) = self.word else { return };
        for attempt in &word.attempts {
            // An attempt that was killed after its process had ended may be told without a code.
            let Some(code) = attempt.exit_code else { continue };
            let of_nodes = self
                .lives
                .iter()
                .filter(|life| life.name.attempt == attempt.attempt && life.name.instance == 0)
                .filter_map(|life| life.ended.flatten());
            for other in of_nodes.filter(|other| *other != code) {
                let reason =
                    format!("attempt {} ended with {other} on its node, with {code} for the server", attempt.attempt);
                verdict.found(Kind::Disagreements, self.name, reason);
            }
        }
        if word.state != "completed" {
            return;
        }
        let last = word.attempts.iter().max_by_key(|attempt| attempt.attempt).and_then(|attempt| attempt.exit_code);
        let mut against = |who: &str, code: Option<i32>| {
            if code != word.exit_code {
                let reason = format!("it completed with {:?}, {who} say {code:?}", word.exit_code);
                verdict.found(Kind::Disagreements, self.name, reason);
            }
        };
        against("its attempts", last);
        for event in self.events.iter().filter(|event| event.is_completion()) {
            against("the events", event.exit_code);
        }
        if task.exit_code.is_some() {
            against("the clients", task.exit_code);
        }
    }
}
