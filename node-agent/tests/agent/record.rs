//! What the agent writes down of what it runs.

use std::path::{Path, PathBuf};

use kiln_node::record::{Event, Line};
use kiln_proto::pool::v1::NodeSettings;
use kiln_testkit::eventually;
use nix::sys::signal::Signal;

use crate::death::{signal, start_agent_with};
use crate::service::{World, line_of, task};

fn lines(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Events about the task, in short.
fn of(lines: &[Line], id: &str) -> Vec<String> {
    let short = |event: &Event| match event {
        Event::Starting { attempt } if attempt.task == id => Some(format!("starting {}", attempt.attempt)),
        Event::Running { attempt, pid } if attempt.task == id && *pid > 1 => Some("running".to_owned()),
        Event::Ended { attempt, exit_code } if attempt.task == id => Some(format!("ended {exit_code:?}")),
        _ => None,
    };
    lines.iter().filter_map(|line| short(&line.event)).collect()
}

fn file(world: &World) -> PathBuf {
    world.join.node_dir.parent().unwrap().join("record.jsonl")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_are_written_before_the_process_and_ends_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("record.jsonl");
    let settings = NodeSettings { task_slots: 4, ..NodeSettings::default() };
    let world = World::start_as(settings, |config| config.settings.record_file = Some(path.clone())).await;
    world.connected().await;
    let ended = world.run(task("looks", &format!("grep -c looks {}", path.display()))).await;
    assert_eq!(ended.exit_code, Some(0), "its own start is there when it runs");
    world.run(task("three", "/bin/sh -c 'exit 3'")).await;
    world.run(task("missing", "no-such-program")).await;
    let stopped = task("stopped", "/bin/sh -c 'echo $$ > ../pid; sleep 1000'");
    world.assign_attempt(stopped, 2);
    line_of(world.task_dir("stopped").join("pid")).await;
    world.stop().await;

    let lines = lines(&path);
    assert_eq!(of(&lines, "looks"), ["starting 1", "running", "ended Some(0)"]);
    assert_eq!(of(&lines, "three"), ["starting 1", "running", "ended Some(3)"]);
    assert_eq!(of(&lines, "missing"), ["starting 1", "ended None"]);
    assert_eq!(of(&lines, "stopped"), ["starting 2", "running", "ended Some(137)"]);
    assert!(matches!(lines[0].event, Event::LifeBegan { pid } if pid == std::process::id()));
    assert!(lines.iter().all(|line| line.node == "acc/p/n1" && line.incarnation == lines[0].incarnation));
    assert!(lines.is_sorted_by_key(|line| line.time), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_writes_the_end_of_a_life_that_was_cut_off() {
    let world = World::services(NodeSettings::default()).await;
    let path = file(&world);
    let environment = [("KILN_AGENT_RECORD_FILE", path.as_path())];
    let mut agent = start_agent_with(&world, &environment);
    world.connected().await;
    world.assign(task("long", "/bin/sh -c 'echo $$ > ../pid; sleep 1000'"));
    line_of(world.task_dir("long").join("pid")).await;
    signal(&agent, Signal::SIGKILL);
    agent.wait().await.unwrap();
    let over = eventually("the end of the life", || async {
        lines(&path).into_iter().find(|line| line.event == Event::LifeOver)
    })
    .await;
    let first = lines(&path);
    assert_eq!(of(&first, "long"), ["starting 1", "running"]);
    assert_eq!(over.incarnation, first[0].incarnation);

    let mut agent = start_agent_with(&world, &environment);
    eventually("the next life", || async {
        let began = |line: &Line| matches!(line.event, Event::LifeBegan { .. }) && line.incarnation != over.incarnation;
        lines(&path).iter().any(began).then_some(())
    })
    .await;
    signal(&agent, Signal::SIGTERM);
    agent.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_record_the_agent_does_not_begin() {
    let world = World::services(NodeSettings::default()).await;
    let mut config = node_agent::Config::new(world.join.clone());
    config.settings.record_file = Some("/dev/full".into());
    let error = node_agent::run(config, world.shutdown.clone()).await.unwrap_err();
    assert!(format!("{error:#}").contains("record_file /dev/full"), "{error:#}");
}
