//! Attempts that were assigned ahead of a free slot.

use std::time::Duration;

use kiln_proto::common::v1::DeallocationOption;
use kiln_proto::job::v1::{AttemptEnded, EndCause, Stop, TaskSpec, work_down};
use kiln_proto::pool::v1::{DisableScheduling, NodeSettings, control_down};

use crate::service::{World, key, line_of, task};

/// An agent with so many slots whose attempts wait for so long.
async fn world(task_slots: i32, patience: Duration) -> World {
    let settings = NodeSettings { task_slots, is_dedicated: true, ..NodeSettings::default() };
    let world = World::start_as(settings, |config| config.settings.line_patience = patience).await;
    world.connected().await;
    world
}

/// Runs until its directory has a file `go`.
fn lasting(id: &str) -> TaskSpec {
    task(id, "/bin/sh -c 'echo x > ../runs; while [ ! -e ../go ]; do sleep 0.02; done'")
}

fn let_go(world: &World, id: &str) {
    std::fs::write(world.task_dir(id).join("go"), "").unwrap();
}

fn time(time: Option<&prost_types::Timestamp>) -> i64 {
    kiln_proto::time::micros(time.unwrap())
}

fn is_before(first: &AttemptEnded, second: &AttemptEnded) -> bool {
    time(first.end_time.as_ref()) <= time(second.start_time.as_ref())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_used_once_and_in_the_order_of_arrival() {
    let world = world(2, Duration::from_secs(3600)).await;
    world.assign(lasting("wide-1"));
    world.assign(lasting("wide-2"));
    for id in ["wide-1", "wide-2"] {
        line_of(world.task_dir(id).join("runs")).await;
    }
    world.assign(TaskSpec { required_slots: 2, ..task("both", "true") });
    for number in 0..20 {
        world.assign(task(&format!("t{number}"), "true"));
    }
    let_go(&world, "wide-1");
    let first = world.log.result("wide-1").await;
    assert!(!world.log.has_started("both") && !world.log.has_started("t0"), "one slot is not enough for the first");
    let_go(&world, "wide-2");
    let second = world.log.result("wide-2").await;
    let both = world.log.result("both").await;
    assert!(is_before(&first, &both) && is_before(&second, &both));
    let mut ends: Vec<AttemptEnded> = Vec::new();
    for number in 0..20 {
        let result = world.log.result(&format!("t{number}")).await;
        assert_eq!(result.exit_code, Some(0));
        assert!(is_before(&both, &result));
        let start = time(result.start_time.as_ref());
        let at_once = ends.iter().filter(|other| time(other.end_time.as_ref()) > start).count();
        assert!(at_once <= 1, "t{number} ran beside {at_once} others on two slots");
        ends.push(result);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_attempt_leaves_the_line() {
    let world = world(1, Duration::from_secs(3600)).await;
    world.assign(lasting("first"));
    line_of(world.task_dir("first").join("runs")).await;
    world.assign(task("second", "true"));
    world.assign(task("third", "true"));
    world.log.send_work(work_down::Message::Stop(Stop { attempts: vec![key("second", 1)] }));
    let second = world.log.result("second").await;
    assert_eq!((second.cause(), second.start_time), (EndCause::NotStarted, None));
    let_go(&world, "first");
    assert_eq!(world.log.result("third").await.exit_code, Some(0));
    assert!(!world.task_dir("second").exists());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_does_not_move_is_given_back() {
    let world = world(1, Duration::from_millis(100)).await;
    world.assign(lasting("first"));
    line_of(world.task_dir("first").join("runs")).await;
    for id in ["a", "b"] {
        world.assign(task(id, "true"));
    }
    for id in ["a", "b"] {
        assert_eq!(world.log.result(id).await.cause(), EndCause::NotStarted);
    }
    let_go(&world, "first");
    assert_eq!(world.log.result("first").await.exit_code, Some(0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_no_tasks_gives_its_line_back() {
    let world = world(1, Duration::from_secs(3600)).await;
    world.assign(lasting("first"));
    line_of(world.task_dir("first").join("runs")).await;
    world.assign(task("second", "true"));
    let option = DeallocationOption::TaskCompletion.into();
    world.log.command(5, control_down::Message::DisableScheduling(DisableScheduling { option }));
    assert_eq!(world.log.result("second").await.cause(), EndCause::NotStarted);
    // What was on its way.
    world.assign(task("third", "true"));
    assert_eq!(world.log.result("third").await.cause(), EndCause::NotStarted);
    let_go(&world, "first");
    assert_eq!(world.log.result("first").await.exit_code, Some(0));
    world.stop().await;
}
