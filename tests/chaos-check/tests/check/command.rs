//! The program: files in, one object out.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use serde::Serialize;
use serde_json::Value;

use crate::right::{Shape, history, plain};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chaos-check")).args(arguments).output().unwrap()
}

fn write<T: Serialize>(directory: &Path, name: &str, lines: &[T]) {
    let mut file = File::create(directory.join(name)).unwrap();
    for line in lines {
        writeln!(file, "{}", serde_json::to_string(line).unwrap()).unwrap();
    }
}

#[test]
fn files_are_read_and_one_object_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, text) = (directory.path(), directory.path().to_str().unwrap());
    let mut history = history(&Shape { nodes: 2, tasks: vec![plain(); 4], watchers: 2 });
    write(path, "clients.jsonl", &history.clients);
    let (first, second) = history.nodes.split_at(history.nodes.len() / 2);
    write(path, "nodes-a.jsonl", first);
    write(path, "nodes-b.jsonl", second);
    write(path, "final.jsonl", &history.finals);
    write(path, "events.jsonl", &history.events);
    write(path, "watchers.jsonl", &history.watched);
    std::fs::write(path.join("seed.txt"), "not a history").unwrap();

    let output = run(&[text]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert_eq!((&printed["kept"], &printed["tasks"], &printed["watchers"]), (&true.into(), &4.into(), &2.into()));
    for count in ["lost", "doubled", "holes", "repeated", "watcher_missed", "watcher_repeated"] {
        assert_eq!(printed[count], 0, "{count}");
    }

    history.finals.pop();
    write(path, "final.jsonl", &history.finals);
    let output = run(&[text, "--clock-error-ms", "5"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &printed["lost"]), (Some(1), &1.into()));
    assert_eq!(printed["offenders"]["lost"][0]["what"], "j/t4");
}

#[test]
fn what_cannot_be_read_is_no_verdict() {
    let directory = tempfile::tempdir().unwrap();
    let (path, text) = (directory.path(), directory.path().to_str().unwrap());
    let says = |arguments: &[&str], words: &str| {
        let output = run(arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(words) && output.stdout.is_empty(), "{told}");
    };
    says(&[], "usage");
    says(&[text, "--clock-error-ms"], "usage");
    says(&[text], "nothing to check");
    std::fs::write(path.join("clients.jsonl"), "{\"said\":\"added\"}\n").unwrap();
    says(&[text], "clients.jsonl:1");
    std::fs::write(path.join("other.jsonl"), "").unwrap();
    std::fs::write(path.join("clients.jsonl"), "").unwrap();
    says(&[text], "other.jsonl");
}
