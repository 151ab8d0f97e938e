//! What workflow files may say and which mistakes are named.

use kiln_proto::common::v1::ApplicationPackageReference;

use super::super::model::{Resource, When};
use super::*;
use crate::commands::app::package_text;

/// A directory with the files that the tests name.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("texts")).unwrap();
    for name in ["texts/one.txt", "texts/two words.txt", "count.py"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    dir
}

fn load_with(text: &str, set: &[(&str, &str)]) -> Result<Workflow, Problems> {
    let dir = files();
    let set: Vec<_> = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let source = Source { text, file: "w.yaml", base: dir.path(), set: &set, suffix: "abc123" };
    load(source)
}

fn problems(text: &str) -> String {
    load_with(text, &[]).unwrap_err().to_string()
}

const FULL: &str = r#"
name: top-words
vars:
  top: 10
  label: n${top}
inputs:
  texts:
    files: texts/*.txt
  script:
    files: count.py
    container: my-scripts
pool:
  nodes: 2
  slots: 3
  fill: pack
  packages: [tool, "other:1.${top}"]
  start: {command: [sh, -c, "echo a b"], resources: script, wait: false, retries: 2}
job:
  priority: -5
  max_parallel: 7
  timeout: 1h
  env: {LABEL: "${label}"}
tasks:
  - id: count-${stem}
    for_each: texts
    resources: [script, {input: texts, path: all}]
    command: python3 count.py '${file}' --top ${top} > $HOME/$${X}
    env: {INDEX: "${index}"}
    slots: 2
    packages: "tool:2.0-RC"
    timeout: 5m
    retries: 1
    outputs:
      - {files: ../stdout.txt, to: results, path: "${stem}.txt"}
      - {files: "*.log", to: results, when: always}
  - id: again-${item}
    for_each: 2-4:2
    command: [echo, "${item} of ${index}"]
outputs:
  results:
    fetch: out
timeout: 30m
"#;

#[test]
fn a_whole_file_becomes_a_workflow() {
    let workflow = load_with(FULL, &[("top", "3")]).unwrap();
    assert_eq!(workflow.run, "top-words-abc123");
    let ids: Vec<&str> = workflow.tasks.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["count-one", "count-two-words", "again-2", "again-4"]);
    let packages = |list: &[ApplicationPackageReference]| list.iter().map(package_text).collect::<Vec<_>>();
    assert_eq!(packages(&workflow.pool.packages), ["tool", "other:1.3"]);
    let task = &workflow.tasks[1];
    assert_eq!(packages(&task.packages), ["tool:2.0-RC"]);
    assert_eq!(task.command_line, r"/bin/sh -c 'python3 count.py '\''two words.txt'\'' --top 3 > $HOME/${X}'");
    assert_eq!(task.env, [("INDEX".to_owned(), "2".to_owned())]);
    assert_eq!(task.resources[0], Resource::File { input: 0, file: 1 });
    assert_eq!(task.resources[2], Resource::Input { input: 0, path: "all".to_owned() });
    assert_eq!((task.outputs[0].path.as_str(), task.outputs[0].when), ("two words.txt", When::Success));
    assert_eq!((task.outputs[1].path.as_str(), task.outputs[1].when), ("count-two-words", When::Always));
    assert_eq!(workflow.tasks[3].command_line, "echo '4 of 2'");
    assert_eq!(workflow.inputs[0].container, Container { name: "top-words-abc123-texts".to_owned(), keep: false });
    assert_eq!(workflow.inputs[1].container, Container { name: "my-scripts".to_owned(), keep: true });
    assert_eq!(workflow.outputs[0].container.name, "top-words-abc123-out-results");
    assert_eq!(workflow.job.env, [("LABEL".to_owned(), "n3".to_owned())]);
    assert_eq!((workflow.job.priority, workflow.job.max_parallel), (-5, Some(7)));
    assert_eq!((workflow.pool.nodes, workflow.pool.slots, workflow.pool.pack), (2, 3, true));
    let start = workflow.pool.start.unwrap();
    assert_eq!((start.command_line.as_str(), start.retries, start.wait), ("sh -c 'echo a b'", 2, false));
}

#[test]
fn a_job_prepares_its_nodes_and_tasks_say_what_they_need() {
    let text = "
inputs:
  script: {files: count.py}
job:
  prepare: {command: make, resources: script, wait: false, retries: 2}
  release: {command: [rm, -r, x], timeout: 5m}
tasks:
  - {id: a, command: x, needs: {cpu: 1.5, memory: 2GiB, gpus: 1}}
";
    let workflow = load_with(text, &[]).unwrap();
    let signed = crate::run::specs::Signed { inputs: vec!["http://h/c?s".to_owned()], outputs: Vec::new() };
    let job = crate::run::specs::job(&signed, &workflow);
    let prepare = job.job_preparation_task.unwrap();
    assert_eq!(prepare.wait_for_success, Some(false));
    let prepare = prepare.task.unwrap();
    assert_eq!((prepare.id.as_str(), prepare.resource_files.len()), ("jobpreparation", 1));
    assert_eq!(prepare.constraints.unwrap().max_task_retry_count, Some(2));
    let release = job.job_release_task.unwrap().task.unwrap();
    assert_eq!((release.command_line.as_str(), release.constraints.unwrap().max_task_retry_count), ("rm -r x", None));
    assert!(!job.uses_task_dependencies);
    let task = crate::run::specs::task(&workflow.tasks[0], &signed, &workflow);
    let needs = task.resources.unwrap();
    assert_eq!((needs.cpu_millis, needs.memory_bytes, needs.disk_bytes, needs.gpus), (1500, 2 << 30, 0, 1));

    let wrong = problems("pool: {packages: [\"a/b\"]}\ntasks: [{id: a, command: x, packages: \"t:..\"}]\n");
    assert!(wrong.contains("pool.packages[0]: ") && wrong.contains("tasks[0].packages: "), "{wrong}");

    let alone = problems("job: {release: {command: x}}\ntasks: [{id: a, command: x}]\n");
    assert!(alone.contains("job.release: runs where prepare ran"), "{alone}");
}

#[test]
fn the_smallest_file() {
    let workflow = load_with("tasks:\n  - {id: a, command: \"true\"}\n", &[]).unwrap();
    assert_eq!(workflow.run, "w-abc123");
    assert_eq!((workflow.job.id.as_str(), workflow.pool.id.as_str()), ("w-abc123", "w-abc123"));
    assert_eq!((workflow.pool.nodes, workflow.pool.slots), (1, 1));
}

#[test]
fn unknown_fields_name_their_neighbours() {
    let text = "nmae: x\ntasks:\n  - id: a\n    comand: \"true\"\n    zzzzzz: 1\n";
    insta::assert_snapshot!(problems(text), @r#"
        w.yaml:1:1: nmae: unknown field; did you mean "name"?
        w.yaml:3:5: tasks[0].command: is required
        w.yaml:4:5: tasks[0].comand: unknown field; did you mean "command"?
        w.yaml:5:5: tasks[0].zzzzzz: unknown field; known here: id, for_each, command, resources, packages, env, depends_on, slots, needs, timeout, retries, outputs
        "#);
}

#[test]
fn values_of_the_wrong_kind_are_named() {
    let text = "
pool:
  nodes: many
  slots: 0
  fill: sprad
job: 7
timeout: soon
tasks:
  - id: a
    command: ''
    resources: {url: \"ftp://x\"}
    env: [A]
    needs: {cpu: lots}
    outputs: [{files: x, to: nowhere, when: sometimes}]
";
    insta::assert_snapshot!(problems(text), @r#"
        w.yaml:3:10: pool.nodes: "many" is not a whole number from 1 to 1000
        w.yaml:4:10: pool.slots: "0" is not a whole number from 1 to 256
        w.yaml:5:9: pool.fill: "sprad" is neither "spread" nor "pack"
        w.yaml:6:6: job: has to be a mapping with some of: id, priority, max_parallel, timeout, retries, env, prepare, release
        w.yaml:7:10: timeout: "soon" is not a duration such as 90s, 15m or 1h30m
        w.yaml:10:14: tasks[0].command: is empty
        w.yaml:11:16: tasks[0].resources: a url needs the path of the file it becomes
        w.yaml:11:22: tasks[0].resources.url: "ftp://x" is no http or https URL
        w.yaml:12:10: tasks[0].env: has to be a mapping of names to values
        w.yaml:13:18: tasks[0].needs.cpu: cpu: "lots" is no amount such as 2, 0.5 or 500m
        w.yaml:14:30: tasks[0].outputs[0].to: there is no output "nowhere"; the file has no outputs
        w.yaml:14:45: tasks[0].outputs[0].when: "sometimes" is none of: success, failure, always
        "#);
}

#[test]
fn names_that_lead_nowhere_are_errors() {
    let text = "
inputs:
  texts: {files: [texts/*.txt, none/*.txt]}
  script: {files: cuont.py}
outputs:
  out: {}
tasks:
  - id: a
    for_each: text
    command: cat ${file}
  - id: b-${x}
    command: cat ${file}
    resources: [scripts]
";
    let text = problems(text);
    let text: Vec<&str> = text.lines().collect();
    assert!(text[0].starts_with("w.yaml:3:32: inputs.texts.files[1]: no file matches "), "{text:#?}");
    assert!(text[1].starts_with("w.yaml:4:19: inputs.script.files: ") && text[1].ends_with("cuont.py does not exist"));
    insta::assert_snapshot!(text[2..].join("\n"), @r#"
        w.yaml:6:8: outputs.out: needs fetch, container or both: its files would vanish with the run
        w.yaml:9:15: tasks[0].for_each: there is no input "text"; did you mean "texts"?
        w.yaml:11:9: tasks[1].id: unknown variable ${x}; known here: run (write $${ for a literal ${)
        w.yaml:12:14: tasks[1].command: unknown variable ${file}; known here: run (write $${ for a literal ${)
        w.yaml:13:17: tasks[1].resources[0]: there is no input "scripts"; did you mean "script"?
        "#);
}

#[test]
fn variables_have_defaults_that_can_be_set() {
    let text = "vars: {a: 1, run: 2, b: null}\ntasks:\n  - {id: x, command: \"echo ${a}\"}\n";
    let found = load_with(text, &[("aa", "1"), ("a", "5")]).unwrap_err().to_string();
    insta::assert_snapshot!(found, @r#"
        w.yaml:1:1: vars: --set aa: the file has no such variable; it has: a, run, b
        w.yaml:1:14: vars.run: this name is given by kiln; choose another
        w.yaml:1:22: vars.b: has no default: give it with --set b=...
        "#);
}

#[test]
fn ids_have_to_differ() {
    let text = "inputs: {texts: {files: texts/*.txt}}\ntasks:\n  - {id: same, for_each: texts, command: \"true\"}\n";
    insta::assert_snapshot!(problems(text), @r#"w.yaml:3:3: tasks: tasks number 1 and 2 both have the id "same"; use ${index}, ${stem} or ${item} in the id"#);
    let text = "name: a/b\njob: {id: \"a b\"}\ninputs: {t: {files: texts, container: A}}\ntasks: []\n";
    insta::assert_snapshot!(problems(text), @r#"
        w.yaml:1:7: name: has to be 1 to 24 of the characters A-Z a-z 0-9 - _
        "#);
    let text = "job: {id: \"a b\"}\ninputs: {t: {files: texts, container: A}}\ntasks: []\n";
    insta::assert_snapshot!(problems(text), @r#"
        w.yaml:1:11: job.id: id "a b" has the character ' '; allowed are A-Z a-z 0-9 - _
        w.yaml:2:39: inputs.t.container: "A" is no container name: 3 to 63 of a-z 0-9 and single hyphens
        w.yaml:3:8: tasks: needs at least one task
        "#);
}

#[test]
fn paths_stay_in_the_working_directory() {
    let text = "tasks:\n  - {id: a, command: x, resources: [{container: abc, path: ../x}]}\n";
    assert!(problems(text).contains("leaves the working directory"));
}
