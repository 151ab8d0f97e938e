//! From the text of a workflow file to a checked [`Workflow`].
//!
//! Everything is checked here, before anything starts: form and fields,
//! variables, names that refer to other parts, ids, and that the input files
//! are there. Tasks with `for_each` are read once per item, each time with the
//! variables of that item.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::expand::{Scope, near};
use super::files;
use super::model::{Container, Input, InputFile, JobPart, NodeTaskPart, Output, PoolPart, StartPart, Workflow};
use super::reader::{Field, Fields, Problem, Problems, Report};
use super::tasks::{self, Names};
use super::yaml;

/// Longest beginning of ids of a run; the rest of 64 is for what is appended.
const MAX_NAME: usize = 24;

/// What a workflow is read with.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The text of the file.
    pub text: &'a str,
    /// The file as the user named it, for errors.
    pub file: &'a str,
    /// Directory that local paths are relative to.
    pub base: &'a Path,
    /// Values of variables from the command line.
    pub set: &'a [(String, String)],
    /// Makes the ids of this run unique; lower-case letters and digits.
    pub suffix: &'a str,
}

/// Reads and checks a workflow.
///
/// # Errors
/// [`Problems`]: all that is wrong, each with line, column and field.
pub fn load(source: Source<'_>) -> Result<Workflow, Problems> {
    let root = yaml::parse(source.text).map_err(|error| Problems {
        file: source.file.to_owned(),
        list: vec![Problem { at: error.at, field: String::new(), message: error.message }],
        more: 0,
    })?;
    let mut report = Report::default();
    let workflow = read(Field::root(&root), source, &mut report);
    report.finish(source.file)?;
    // Every `None` above was reported.
    workflow.ok_or_else(|| Problems {
        file: source.file.to_owned(),
        list: vec![Problem { at: root.at, field: String::new(), message: "cannot be read".to_owned() }],
        more: 0,
    })
}

const TOP: [&str; 8] = ["name", "vars", "inputs", "pool", "job", "tasks", "outputs", "timeout"];

fn read(root: Field<'_>, source: Source<'_>, report: &mut Report) -> Option<Workflow> {
    let top = root.fields(&TOP, report)?;
    let name = read_name(&top, source, report)?;
    let mut scope = read_vars(&top, source, report);
    let run = format!("{name}-{}", source.suffix);
    scope.set("run", &run);

    let inputs = read_inputs(&top, &run, source.base, &scope, report);
    let outputs = read_outputs(&top, &run, source.base, &scope, report);
    let names = Names { inputs: &inputs, outputs: &outputs };
    let pool = read_pool(&top, &run, &names, &scope, report);
    let job = read_job(&top, &run, &names, &scope, report);
    let timeout = top.get("timeout").and_then(|field| field.duration(&scope, report));
    let tasks = match top.require("tasks", report) {
        Some(field) => tasks::read(&field, &names, &scope, report),
        None => Vec::new(),
    };
    Some(Workflow { run, timeout, pool, job, tasks, inputs, outputs })
}

fn read_name(top: &Fields<'_>, source: Source<'_>, report: &mut Report) -> Option<String> {
    let Some(field) = top.get("name") else {
        let stem = Path::new(source.file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = tasks::id_text(&stem.unwrap_or_default(), MAX_NAME);
        return Some(if name.is_empty() { "run".to_owned() } else { name });
    };
    let name = field.text(&Scope::default(), report)?;
    let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !valid || name.len() > MAX_NAME {
        field.problem(report, format!("has to be 1 to {MAX_NAME} of the characters A-Z a-z 0-9 - _"));
        return None;
    }
    Some(name)
}

fn read_vars(top: &Fields<'_>, source: Source<'_>, report: &mut Report) -> Scope {
    let mut scope = Scope::default();
    let entries = top.get("vars").map(|field| field.entries(report)).unwrap_or_default();
    for (name, at, value) in &entries {
        if tasks::RESERVED.contains(name) || *name == "run" {
            report.add(*at, &value.path, "this name is given by kiln; choose another");
            continue;
        }
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            report.add(*at, &value.path, "variables are named with A-Z a-z 0-9 _ -");
            continue;
        }
        let given = source.set.iter().rev().find(|(set, _)| set == name);
        let text = match given {
            Some((_, text)) => Some(text.clone()),
            None if value.node.value == yaml::Value::Null => {
                report.add(*at, &value.path, format!("has no default: give it with --set {name}=..."));
                None
            }
            None => value.text(&scope, report),
        };
        // Also after a problem, so that its uses are not reported as unknown.
        scope.set(*name, text.unwrap_or_default());
    }
    let known: Vec<&str> = entries.iter().map(|(name, ..)| *name).collect();
    for (name, _) in source.set {
        if known.contains(&name.as_str()) {
            continue;
        }
        let mut message = format!("--set {name}: the file has no such variable");
        match near(name, known.iter().copied()) {
            Some(other) => message.push_str(&format!("; did you mean {other:?}?")),
            None if known.is_empty() => message.push_str(" (it has none)"),
            None => message.push_str(&format!("; it has: {}", known.join(", "))),
        }
        report.add(top.at, "vars", message);
    }
    scope
}

/// `<run>-<part>` with only what container names may have, at most 63 long.
fn container_name(run: &str, part: &str) -> String {
    let mut name = String::new();
    for c in format!("{run}-{part}").chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    name.truncate(63);
    let trimmed = name.trim_end_matches('-');
    if trimmed.len() < 3 { format!("run-{trimmed}") } else { trimmed.to_owned() }
}

fn read_container(
    fields: &Fields<'_>,
    run: &str,
    part: &str,
    taken: &mut HashSet<String>,
    scope: &Scope,
    report: &mut Report,
) -> Container {
    let given = fields.get("container").and_then(|field| {
        let name = field.text(scope, report)?;
        let valid = (3..=63).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--");
        if !valid {
            field.problem(report, format!("{name:?} is no container name: 3 to 63 of a-z 0-9 and single hyphens"));
        }
        Some(name)
    });
    if let Some(name) = given {
        taken.insert(name.clone());
        return Container { name, keep: true };
    }
    let mut name = container_name(run, part);
    let mut number = 1;
    while !taken.insert(name.clone()) {
        number += 1;
        name = container_name(run, &format!("{number}-{part}"));
    }
    Container { name, keep: false }
}

fn check_part_name(name: &str, field: &Field<'_>, report: &mut Report) {
    let valid = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if name.is_empty() || name.len() > 28 || !valid {
        field.problem(report, "names of inputs and outputs are 1 to 28 of A-Z a-z 0-9 - _");
    }
}

fn read_inputs(top: &Fields<'_>, run: &str, base: &Path, scope: &Scope, report: &mut Report) -> Vec<Input> {
    let mut taken = HashSet::new();
    let mut inputs = Vec::new();
    for (name, _, field) in top.get("inputs").map(|field| field.entries(report)).unwrap_or_default() {
        check_part_name(name, &field, report);
        let Some(fields) = field.fields(&["files", "container"], report) else { continue };
        let container = read_container(&fields, run, name, &mut taken, scope, report);
        let mut found: BTreeMap<String, InputFile> = BTreeMap::new();
        for pattern in fields.require("files", report).map(|field| field.one_or_many(report)).unwrap_or_default() {
            let Some(text) = pattern.text(scope, report) else { continue };
            if let Err(message) = files::find(base, &text, &mut found) {
                pattern.problem(report, message);
            }
        }
        inputs.push(Input { name: name.to_owned(), container, files: found.into_values().collect() });
    }
    inputs
}

fn read_outputs(top: &Fields<'_>, run: &str, base: &Path, scope: &Scope, report: &mut Report) -> Vec<Output> {
    let mut taken = HashSet::new();
    let mut outputs = Vec::new();
    for (name, _, field) in top.get("outputs").map(|field| field.entries(report)).unwrap_or_default() {
        check_part_name(name, &field, report);
        let Some(fields) = field.fields(&["container", "fetch"], report) else { continue };
        let container = read_container(&fields, run, &format!("out-{name}"), &mut taken, scope, report);
        let fetch = fields.get("fetch").and_then(|field| {
            let path = base.join(field.text(scope, report)?);
            if path.exists() && !path.is_dir() {
                field.problem(report, format!("{} exists and is no directory", path.display()));
            }
            Some(path)
        });
        if fetch.is_none() && !container.keep {
            field.problem(report, "needs fetch, container or both: its files would vanish with the run");
        }
        outputs.push(Output { name: name.to_owned(), container, fetch });
    }
    outputs
}

fn read_id(fields: &Fields<'_>, scope: &Scope, report: &mut Report) -> Option<String> {
    let field = fields.get("id")?;
    let id = field.text(scope, report)?;
    if let Err(error) = kiln_ids::PoolId::parse(&id) {
        // All ids a user chooses have the same rules; only the word differs.
        field.problem(report, error.to_string().trim_start_matches("pool ").to_owned());
    }
    Some(id)
}

fn read_pool(top: &Fields<'_>, run: &str, names: &Names<'_>, scope: &Scope, report: &mut Report) -> PoolPart {
    let mut pool = PoolPart {
        id: run.to_owned(),
        keep: false,
        nodes: 1,
        slots: 1,
        pack: false,
        vm_size: "local".to_owned(),
        packages: Vec::new(),
        start: None,
    };
    let known = ["id", "nodes", "slots", "fill", "vm_size", "packages", "start"];
    let Some(fields) = top.get("pool").and_then(|field| field.fields(&known, report)) else { return pool };
    if let Some(id) = read_id(&fields, scope, report) {
        pool.id = id;
        pool.keep = true;
    }
    if let Some(nodes) = fields.get("nodes").and_then(|field| field.number(scope, 1, 1000, report)) {
        pool.nodes = nodes;
    }
    if let Some(slots) = fields.get("slots").and_then(|field| field.number(scope, 1, 256, report)) {
        pool.slots = slots;
    }
    if let Some(size) = fields.get("vm_size").and_then(|field| field.text(scope, report)) {
        pool.vm_size = size;
    }
    if let Some(field) = fields.get("fill") {
        match field.text(scope, report).as_deref() {
            Some("pack") => pool.pack = true,
            Some("spread") | None => {}
            Some(other) => field.problem(report, format!("{other:?} is neither \"spread\" nor \"pack\"")),
        }
    }
    pool.packages = tasks::read_packages(&fields, scope, report);
    pool.start = fields.get("start").and_then(|field| read_start(&field, names, scope, report));
    pool
}

fn read_start(field: &Field<'_>, names: &Names<'_>, scope: &Scope, report: &mut Report) -> Option<StartPart> {
    let fields = field.fields(&["command", "resources", "env", "retries", "wait"], report)?;
    let command_line = tasks::read_command(&fields, scope, report);
    Some(StartPart {
        resources: tasks::read_resources(&fields, names, scope, report),
        env: fields.get("env").map(|field| field.environment(scope, report)).unwrap_or_default(),
        retries: fields.get("retries").and_then(|field| field.number(scope, -1, 1000, report)).unwrap_or(0),
        wait: fields.get("wait").and_then(|field| field.flag(scope, report)).unwrap_or(true),
        command_line: command_line?,
    })
}

fn read_job(top: &Fields<'_>, run: &str, names: &Names<'_>, scope: &Scope, report: &mut Report) -> JobPart {
    let mut job = JobPart {
        id: run.to_owned(),
        priority: 0,
        max_parallel: None,
        timeout: None,
        retries: 0,
        env: Vec::new(),
        prepare: None,
        release: None,
    };
    let known = ["id", "priority", "max_parallel", "timeout", "retries", "env", "prepare", "release"];
    let Some(fields) = top.get("job").and_then(|field| field.fields(&known, report)) else { return job };
    if let Some(id) = read_id(&fields, scope, report) {
        job.id = id;
    }
    if let Some(priority) = fields.get("priority").and_then(|field| field.number(scope, -1000, 1000, report)) {
        job.priority = priority;
    }
    job.max_parallel = fields.get("max_parallel").and_then(|field| field.number(scope, 1, i32::MAX, report));
    job.timeout = fields.get("timeout").and_then(|field| field.duration(scope, report));
    if let Some(retries) = fields.get("retries").and_then(|field| field.number(scope, -1, 1000, report)) {
        job.retries = retries;
    }
    job.env = fields.get("env").map(|field| field.environment(scope, report)).unwrap_or_default();
    let known = ["command", "resources", "env", "timeout", "retries", "wait"];
    job.prepare = fields.get("prepare").and_then(|field| read_node_task(&field, &known, names, scope, report));
    job.release = fields.get("release").and_then(|field| read_node_task(&field, &known[..4], names, scope, report));
    if let (Some(release), None) = (fields.get("release"), fields.get("prepare")) {
        release.problem(report, "runs where prepare ran: the job needs that, too");
    }
    job
}

fn read_node_task(
    field: &Field<'_>,
    known: &[&str],
    names: &Names<'_>,
    scope: &Scope,
    report: &mut Report,
) -> Option<NodeTaskPart> {
    let fields = field.fields(known, report)?;
    let command_line = tasks::read_command(&fields, scope, report);
    Some(NodeTaskPart {
        resources: tasks::read_resources(&fields, names, scope, report),
        env: fields.get("env").map(|field| field.environment(scope, report)).unwrap_or_default(),
        timeout: fields.get("timeout").and_then(|field| field.duration(scope, report)),
        retries: fields.get("retries").and_then(|field| field.number(scope, -1, 1000, report)),
        wait: fields.get("wait").and_then(|field| field.flag(scope, report)).unwrap_or(true),
        command_line: command_line?,
    })
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
