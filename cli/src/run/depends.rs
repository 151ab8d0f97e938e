//! Which tasks of a workflow wait for which.

use std::collections::HashMap;

use super::model::{TaskPart, Workflow};
use super::reader::{Field, Report};

/// What a task may name of others: the service takes no more.
const MAX_CHARACTERS: usize = 64_000;

/// What the `depends_on` of a task says, before all tasks are known.
pub struct Wish<'a> {
    /// Position of the task.
    pub task: usize,
    /// An id, or a beginning and an end with a `*` between them.
    pub text: String,
    /// Where it stands.
    pub field: Field<'a>,
}

/// Resolves wishes to positions; notes what cannot be.
pub fn resolve(tasks: &mut [TaskPart], wishes: &[Wish<'_>], report: &mut Report) {
    let ids: Vec<String> = tasks.iter().map(|task| task.id.to_ascii_lowercase()).collect();
    let positions: HashMap<&str, usize> = ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
    let mut patterns: HashMap<String, Vec<usize>> = HashMap::new();
    for wish in wishes {
        let wanted = wish.text.to_ascii_lowercase();
        let found = match wanted.split_once('*') {
            None => positions.get(wanted.as_str()).copied().into_iter().collect(),
            Some((begin, end)) => patterns.entry(wanted.clone()).or_insert_with(|| matching(&ids, begin, end)).clone(),
        };
        if found.is_empty() {
            wish.field.problem(report, format!("there is no task {:?}", wish.text));
            return;
        }
        // A pattern may cover the task itself; naming it is a mistake.
        if found == [wish.task] {
            wish.field.problem(report, "the task would wait for itself");
            return;
        }
        tasks[wish.task].depends_on.extend(found.into_iter().filter(|parent| *parent != wish.task));
    }
    for wish in wishes {
        let parents = &mut tasks[wish.task].depends_on;
        parents.sort_unstable();
        parents.dedup();
        if parents.iter().map(|parent| ids[*parent].len()).sum::<usize>() > MAX_CHARACTERS {
            let why = format!("names tasks with more than {MAX_CHARACTERS} characters in all; put a task in between");
            wish.field.problem(report, why);
            return;
        }
    }
    if let Some(task) = in_a_circle(tasks)
        && let Some(wish) = wishes.iter().find(|wish| wish.task == task)
    {
        wish.field.problem(report, format!("task {:?} would wait for itself, through others", tasks[task].id));
    }
}

fn matching(ids: &[String], begin: &str, end: &str) -> Vec<usize> {
    let fits = |id: &str| id.len() >= begin.len() + end.len() && id.starts_with(begin) && id.ends_with(end);
    ids.iter().enumerate().filter(|(_, id)| fits(id)).map(|(at, _)| at).collect()
}

/// A task that can never start because it waits for itself through others.
fn in_a_circle(tasks: &[TaskPart]) -> Option<usize> {
    let children = children(tasks);
    let mut open: Vec<usize> = tasks.iter().map(|task| task.depends_on.len()).collect();
    let mut ready: Vec<usize> = (0..tasks.len()).filter(|at| open[*at] == 0).collect();
    while let Some(task) = ready.pop() {
        for child in &children[task] {
            open[*child] -= 1;
            if open[*child] == 0 {
                ready.push(*child);
            }
        }
    }
    // Those behind a circle are open, too; one on it has only open parents...
    let mut task = open.iter().position(|count| *count > 0)?;
    // ...so going up as often as there are tasks ends on it.
    for _ in 0..tasks.len() {
        task = tasks[task].depends_on.iter().copied().find(|parent| open[*parent] > 0)?;
    }
    Some(task)
}

fn children(tasks: &[TaskPart]) -> Vec<Vec<usize>> {
    let mut children = vec![Vec::new(); tasks.len()];
    for (at, task) in tasks.iter().enumerate() {
        for parent in &task.depends_on {
            children[*parent].push(at);
        }
    }
    children
}

/// Follows which tasks cannot run any more because one they wait for failed.
#[derive(Debug)]
pub struct Blocked {
    positions: HashMap<String, usize>,
    children: Vec<Vec<usize>>,
    blocked: Vec<bool>,
    finished: Vec<bool>,
    count: usize,
}

impl Blocked {
    /// Nothing has failed yet.
    pub fn of(workflow: &Workflow) -> Self {
        let positions = workflow.tasks.iter().enumerate().map(|(at, task)| (task.id.to_ascii_lowercase(), at));
        Self {
            positions: positions.collect(),
            children: children(&workflow.tasks),
            blocked: vec![false; workflow.tasks.len()],
            finished: vec![false; workflow.tasks.len()],
            count: 0,
        }
    }

    /// A task has completed for good.
    pub fn finished(&mut self, id: &str, succeeded: bool) {
        let Some(position) = self.positions.get(&id.to_ascii_lowercase()).copied() else { return };
        self.finished[position] = true;
        if std::mem::replace(&mut self.blocked[position], false) {
            self.count -= 1;
        }
        let mut next = if succeeded { Vec::new() } else { vec![position] };
        while let Some(task) = next.pop() {
            for child in &self.children[task] {
                if !self.finished[*child] && !std::mem::replace(&mut self.blocked[*child], true) {
                    self.count += 1;
                    next.push(*child);
                }
            }
        }
    }

    /// How many tasks have not completed and cannot run any more.
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::load::{Source, load};

    fn workflow(tasks: &str) -> Result<Workflow, String> {
        let text = format!("tasks:\n{tasks}");
        let base = std::path::Path::new(".");
        let source = Source { text: &text, file: "w.yaml", base, set: &[], suffix: "abc123" };
        load(source).map_err(|problems| problems.to_string())
    }

    const FAN: &str = "
  - {id: first, command: x}
  - {id: \"part-${item}\", for_each: 1-3, depends_on: FIRST, command: x}
  - {id: sum, depends_on: [\"part-*\", first], command: x}
  - {id: other, command: x}
";

    #[test]
    fn ids_and_patterns_become_positions() {
        let workflow = workflow(FAN).unwrap();
        let parents: Vec<&[usize]> = workflow.tasks.iter().map(|task| task.depends_on.as_slice()).collect();
        assert_eq!(parents, [&[][..], &[0], &[0], &[0], &[0, 1, 2, 3], &[]]);
    }

    #[test]
    fn what_can_never_start_is_named() {
        let problem = |tasks: &str| workflow(tasks).unwrap_err();
        assert!(problem("  - {id: a, depends_on: b, command: x}").contains("depends_on: there is no task \"b\""));
        assert!(problem("  - {id: a, depends_on: a, command: x}").contains("would wait for itself"));
        let circle = problem(
            "
  - {id: a, depends_on: c, command: x}
  - {id: b, depends_on: a, command: x}
  - {id: c, depends_on: b, command: x}
  - {id: behind, depends_on: c, command: x}",
        );
        assert!(circle.contains("would wait for itself, through others"), "{circle}");
        assert!(!circle.contains("behind"), "{circle}");
        let many = problem(
            "
  - {id: \"long-long-long-long-long-long-long-${item}\", for_each: 1-2000, command: x}
  - {id: all, depends_on: \"long-*\", command: x}",
        );
        assert!(many.contains("more than 64000 characters"), "{many}");
    }

    #[test]
    fn a_failure_blocks_all_that_waits_for_it() {
        let workflow = workflow(FAN).unwrap();
        let mut blocked = Blocked::of(&workflow);
        blocked.finished("first", true);
        assert_eq!(blocked.count(), 0);
        blocked.finished("Part-2", false);
        blocked.finished("part-2", false);
        assert_eq!(blocked.count(), 1);
        // The service ended it.
        blocked.finished("sum", false);
        assert_eq!(blocked.count(), 0);
        let mut all = Blocked::of(&workflow);
        all.finished("first", false);
        assert_eq!(all.count(), 4);
    }
}
