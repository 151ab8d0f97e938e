//! Tasks and task templates of a workflow file.

use std::collections::HashMap;

use kiln_proto::common::v1::{ApplicationPackageReference, Resources};

use super::depends::{self, Wish};
use super::expand::{Scope, near};
use super::model::{Input, Output, Resource, TaskOutput, TaskPart, When};
use super::reader::{Field, Fields, Report};
use super::yaml::Value;
use crate::commands::app::parse_package;
use crate::{amounts, command_line};

/// Variables that only templates have; `vars` cannot use their names.
pub const RESERVED: [&str; 5] = ["index", "file", "name", "stem", "item"];
/// Tasks of one workflow file.
const MAX_TASKS: usize = 1_000_000;

/// What tasks may refer to.
pub struct Names<'a> {
    /// Inputs of the workflow.
    pub inputs: &'a [Input],
    /// Outputs of the workflow.
    pub outputs: &'a [Output],
}

/// What a template is repeated for.
enum Items {
    /// The files of an input (position).
    Files(usize),
    /// Any texts.
    Values(Vec<String>),
}

/// Reads the list of tasks.
pub fn read(field: &Field<'_>, names: &Names<'_>, scope: &Scope, report: &mut Report) -> Vec<TaskPart> {
    let entries = field.items(report);
    if entries.is_empty() && matches!(field.node.value, Value::List(_)) {
        field.problem(report, "needs at least one task");
    }
    let mut list = List::default();
    for entry in &entries {
        read_entry(entry, names, scope, report, &mut list);
        if list.tasks.len() > MAX_TASKS {
            entry.problem(report, format!("more than {MAX_TASKS} tasks"));
            return list.tasks;
        }
    }
    check_unique(&list.tasks, field, report);
    if report.is_clean() {
        depends::resolve(&mut list.tasks, &list.wishes, report);
    }
    list.tasks
}

/// Tasks in the making.
#[derive(Default)]
struct List<'a> {
    tasks: Vec<TaskPart>,
    wishes: Vec<Wish<'a>>,
}

const KNOWN: [&str; 12] = [
    "id",
    "for_each",
    "command",
    "resources",
    "packages",
    "env",
    "depends_on",
    "slots",
    "needs",
    "timeout",
    "retries",
    "outputs",
];

fn read_entry<'a>(entry: &Field<'a>, names: &Names<'_>, scope: &Scope, report: &mut Report, list: &mut List<'a>) {
    let Some(fields) = entry.fields(&KNOWN, report) else { return };
    let Some(for_each) = fields.get("for_each") else {
        read_task(&fields, names, scope, None, report, list);
        return;
    };
    let Some(items) = read_items(&for_each, names, scope, report) else { return };
    match items {
        Items::Files(input) => {
            for (index, file) in names.inputs[input].files.iter().enumerate() {
                let name = file.blob.rsplit('/').next().unwrap_or(&file.blob);
                let stem = name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem });
                let mut scope = scope.clone();
                for (variable, value) in [("file", &*file.blob), ("item", &file.blob), ("name", name), ("stem", stem)] {
                    scope.set(variable, value);
                }
                scope.set("index", (index + 1).to_string());
                let own = Resource::File { input, file: index };
                read_task(&fields, names, &scope, Some(own), report, list);
                if !goes_on(list, report) {
                    return;
                }
            }
        }
        Items::Values(values) => {
            for (index, value) in values.into_iter().enumerate() {
                let mut scope = scope.clone();
                scope.set("item", value);
                scope.set("index", (index + 1).to_string());
                read_task(&fields, names, &scope, None, report, list);
                if !goes_on(list, report) {
                    return;
                }
            }
        }
    }
}

/// A template with a mistake has it for every item: stop at the first.
fn goes_on(list: &List<'_>, report: &Report) -> bool {
    report.is_clean() && list.tasks.len() <= MAX_TASKS
}

fn read_items(field: &Field<'_>, names: &Names<'_>, scope: &Scope, report: &mut Report) -> Option<Items> {
    if let Value::List(_) = field.node.value {
        let values: Vec<String> = field.items(report).iter().filter_map(|item| item.text(scope, report)).collect();
        if values.is_empty() {
            field.problem(report, "the list is empty");
        }
        return Some(Items::Values(values));
    }
    let text = field.text(scope, report)?;
    if let Some(input) = names.inputs.iter().position(|input| input.name == text) {
        return Some(Items::Files(input));
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        match crate::array::parse(&text) {
            Ok(indices) => return Some(Items::Values(indices.iter().map(u64::to_string).collect())),
            Err(message) => {
                field.problem(report, message);
                return None;
            }
        }
    }
    field.problem(report, unknown_name("input", &text, names.inputs.iter().map(|input| input.name.as_str())));
    None
}

fn unknown_name<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let mut message = format!("there is no {what} {name:?}");
    match near(name, known.iter().copied()) {
        Some(other) => message.push_str(&format!("; did you mean {other:?}?")),
        None if known.is_empty() => message.push_str(&format!("; the file has no {what}s")),
        None => message.push_str(&format!("; {what}s are: {}", known.join(", "))),
    }
    message
}

fn read_task<'a>(
    fields: &Fields<'a>,
    names: &Names<'_>,
    scope: &Scope,
    own: Option<Resource>,
    report: &mut Report,
    list: &mut List<'a>,
) {
    let id = fields.require("id", report).and_then(|field| {
        let text = field.text(scope, report)?;
        let id = id_text(&text, 64);
        if id.is_empty() {
            field.problem(report, format!("{text:?} has none of the characters an id can have"));
            return None;
        }
        Some(id)
    });
    let command_line = read_command(fields, scope, report);
    let mut resources: Vec<Resource> = own.into_iter().collect();
    resources.extend(read_resources(fields, names, scope, report));
    let packages = read_packages(fields, scope, report);
    let outputs = read_outputs(fields, id.as_deref().unwrap_or_default(), names, scope, report);
    let task = list.tasks.len();
    for field in fields.get("depends_on").map(|field| field.one_or_many(report)).unwrap_or_default() {
        if let Some(text) = field.text(scope, report) {
            list.wishes.push(Wish { task, text: parent_text(&text), field });
        }
    }
    let env = fields.get("env").map(|field| field.environment(scope, report)).unwrap_or_default();
    let slots = fields.get("slots").and_then(|field| field.number(scope, 1, 256, report)).unwrap_or(1);
    let needs = fields.get("needs").and_then(|field| read_needs(&field, scope, report));
    let timeout = fields.get("timeout").and_then(|field| field.duration(scope, report));
    let retries = fields.get("retries").and_then(|field| field.number(scope, -1, 1000, report));
    let (Some(id), Some(command_line)) = (id, command_line) else { return };
    list.tasks.push(TaskPart {
        id,
        command_line,
        resources,
        packages,
        env,
        depends_on: Vec::new(),
        slots,
        needs,
        timeout,
        retries,
        outputs,
    });
}

/// The id of a parent as tasks get theirs; a `*` stays.
fn parent_text(text: &str) -> String {
    match text.split_once('*') {
        None => id_text(text, 64),
        Some((begin, end)) => format!("{begin}*{end}"),
    }
}

/// The `needs` field: amounts by name.
fn read_needs(field: &Field<'_>, scope: &Scope, report: &mut Report) -> Option<Resources> {
    let fields = field.fields(&amounts::NAMES, report)?;
    let mut resources = Resources::default();
    for name in amounts::NAMES {
        let Some(field) = fields.get(name) else { continue };
        let text = field.text(scope, report)?;
        if let Err(message) = amounts::set(&mut resources, name, &text) {
            field.problem(report, message);
        }
    }
    Some(resources)
}

/// `text` with only the characters of an id, runs of others as one `-`.
pub fn id_text(text: &str, max: usize) -> String {
    let mut id = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            id.push(c);
        } else if !id.ends_with('-') && !id.is_empty() {
            id.push('-');
        }
    }
    id.truncate(max);
    id.trim_end_matches('-').to_owned()
}

/// The `command` field as a command line.
pub fn read_command(fields: &Fields<'_>, scope: &Scope, report: &mut Report) -> Option<String> {
    let field = fields.require("command", report)?;
    if let Value::List(_) = field.node.value {
        let words: Vec<String> = field.items(report).iter().filter_map(|item| item.text(scope, report)).collect();
        if words.first().is_none_or(String::is_empty) {
            field.problem(report, "needs a program");
        }
        return Some(command_line::join(&words));
    }
    let script = field.text(scope, report)?;
    if script.trim().is_empty() {
        field.problem(report, "is empty");
    }
    Some(command_line::shell(script.trim_end()))
}

/// The `packages` field: `APP` or `APP:VERSION`, one or many.
pub fn read_packages(fields: &Fields<'_>, scope: &Scope, report: &mut Report) -> Vec<ApplicationPackageReference> {
    let Some(field) = fields.get("packages") else { return Vec::new() };
    let mut packages = Vec::new();
    for item in field.one_or_many(report) {
        let Some(text) = item.text(scope, report) else { continue };
        match parse_package(&text) {
            Ok(package) => packages.push(package),
            Err(message) => item.problem(report, format!("{message}; write APP or APP:VERSION")),
        }
    }
    packages
}

/// The `resources` field.
pub fn read_resources(fields: &Fields<'_>, names: &Names<'_>, scope: &Scope, report: &mut Report) -> Vec<Resource> {
    let Some(field) = fields.get("resources") else { return Vec::new() };
    field.one_or_many(report).iter().filter_map(|item| read_resource(item, names, scope, report)).collect()
}

fn read_resource(field: &Field<'_>, names: &Names<'_>, scope: &Scope, report: &mut Report) -> Option<Resource> {
    if let Value::Scalar(_) = field.node.value {
        let input = find_input(field, names, scope, report)?;
        return Some(Resource::Input { input, path: String::new() });
    }
    let fields = field.fields(&["input", "url", "container", "path", "prefix", "mode"], report)?;
    let mut text = |name: &str| fields.get(name).and_then(|field| field.text(scope, report));
    let (path, prefix, mode) = (text("path"), text("prefix"), text("mode"));
    if let Some(path) = &path
        && (path.starts_with('/') || path.split('/').any(|part| part == ".."))
    {
        field.problem(report, format!("path {path:?} leaves the working directory"));
    }
    match (fields.get("input"), fields.get("url"), fields.get("container")) {
        (Some(input), None, None) => {
            let input = find_input(&input, names, scope, report)?;
            Some(Resource::Input { input, path: path.unwrap_or_default() })
        }
        (None, Some(url), None) => {
            let text = url.text(scope, report)?;
            if !text.starts_with("http://") && !text.starts_with("https://") {
                url.problem(report, format!("{text:?} is no http or https URL"));
            }
            if path.is_none() {
                field.problem(report, "a url needs the path of the file it becomes");
            }
            Some(Resource::Url { url: text, path: path?, mode: mode.unwrap_or_default() })
        }
        (None, None, Some(container)) => Some(Resource::Container {
            container: container.text(scope, report)?,
            prefix: prefix.unwrap_or_default(),
            path: path.unwrap_or_default(),
        }),
        _ => {
            field.problem(report, "needs exactly one of: input, url, container");
            None
        }
    }
}

fn find_input(field: &Field<'_>, names: &Names<'_>, scope: &Scope, report: &mut Report) -> Option<usize> {
    let name = field.text(scope, report)?;
    let found = names.inputs.iter().position(|input| input.name == name);
    if found.is_none() {
        field.problem(report, unknown_name("input", &name, names.inputs.iter().map(|input| input.name.as_str())));
    }
    found
}

fn read_outputs(
    fields: &Fields<'_>,
    task: &str,
    names: &Names<'_>,
    scope: &Scope,
    report: &mut Report,
) -> Vec<TaskOutput> {
    let Some(field) = fields.get("outputs") else { return Vec::new() };
    field.one_or_many(report).iter().filter_map(|item| read_output(item, task, names, scope, report)).collect()
}

fn read_output(
    field: &Field<'_>,
    task: &str,
    names: &Names<'_>,
    scope: &Scope,
    report: &mut Report,
) -> Option<TaskOutput> {
    let fields = field.fields(&["files", "to", "path", "when"], report)?;
    let files = fields.require("files", report).and_then(|field| field.text(scope, report));
    let output = fields.require("to", report).and_then(|field| {
        let name = field.text(scope, report)?;
        let found = names.outputs.iter().position(|output| output.name == name);
        if found.is_none() {
            let known = names.outputs.iter().map(|output| output.name.as_str());
            field.problem(report, unknown_name("output", &name, known));
        }
        found
    });
    let when = match fields.get("when") {
        None => When::Success,
        Some(field) => match field.text(scope, report)?.as_str() {
            "success" => When::Success,
            "failure" => When::Failure,
            "always" => When::Always,
            other => {
                field.problem(report, format!("{other:?} is none of: success, failure, always"));
                return None;
            }
        },
    };
    let path = fields.get("path").and_then(|field| field.text(scope, report));
    let (files, output) = (files?, output?);
    let path = path.unwrap_or_else(|| {
        if files.contains(['*', '?', '[']) {
            task.to_owned()
        } else {
            format!("{task}/{}", files.rsplit('/').next().unwrap_or(&files))
        }
    });
    Some(TaskOutput { files, output, path, when })
}

fn check_unique(list: &[TaskPart], field: &Field<'_>, report: &mut Report) {
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(list.len());
    for (position, task) in list.iter().enumerate() {
        if let Some(first) = seen.insert(task.id.to_ascii_lowercase(), position) {
            field.problem(
                report,
                format!(
                    "tasks number {} and {} both have the id {:?}; use ${{index}}, ${{stem}} or ${{item}} in the id",
                    first + 1,
                    position + 1,
                    task.id
                ),
            );
            return;
        }
    }
}
