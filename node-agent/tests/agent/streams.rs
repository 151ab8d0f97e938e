//! The two streams: reconnects, lease, drain, reboot, goodbye.

use std::time::Duration;

use kiln_proto::common::v1::DeallocationOption;
use kiln_proto::job::v1::{AttemptPhase, Cleanup, EndCause, Redirect, ReportAcks, work_down, work_up};
use kiln_proto::pool::v1::{
    AgentPhase, DisableScheduling, Drain, EnableScheduling, Leave, Reboot, SchedulingState, control_down,
};
use kiln_testkit::eventually;

use crate::service::{World, is_running, key, line_of, task};

fn hellos(world: &World) -> Vec<kiln_proto::job::v1::WorkerHello> {
    let work = world.log.work.lock().unwrap();
    work.iter()
        .filter_map(|message| match message {
            work_up::Message::Hello(hello) => Some(hello.clone()),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_survive_a_broken_stream_until_they_are_acknowledged() {
    let world = World::start().await;
    *world.log.acking.lock().unwrap() = false;
    world.run(task("done", "true")).await;
    world.assign(task("running", "/bin/sh -c 'while [ ! -e ../go ]; do sleep 0.02; done'"));
    eventually("the task's directory", || async {
        world.task_dir("running").join("stdout.txt").exists().then_some(())
    })
    .await;
    world.log.break_work();
    let second = eventually("the second hello", || async { hellos(&world).get(1).cloned() }).await;
    let phase = |task: &str| {
        second
            .attempts
            .iter()
            .find(|view| view.key.as_ref().is_some_and(|key| key.task_id == task))
            .map(|view| view.phase())
    };
    assert_eq!(phase("done"), Some(AttemptPhase::Ended));
    assert_eq!(hellos(&world).iter().map(|hello| hello.stream).collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(phase("running"), Some(AttemptPhase::Running | AttemptPhase::StagingIn)));
    eventually("the repeated report", || async { (world.log.ended("done").len() >= 2).then_some(()) }).await;
    world.log.send_work(work_down::Message::Acks(ReportAcks { attempts: vec![key("done", 1)] }));
    // The same assignment again is not run again.
    let before = std::fs::metadata(world.task_dir("done").join("stdout.txt")).unwrap().modified().unwrap();
    world.assign(task("done", "true"));
    // It would be, if the task was deleted and another one had its name now.
    *world.log.acking.lock().unwrap() = true;
    let again = kiln_proto::job::v1::AttemptKey { task_number: 2, ..key("again", 1) };
    for key in [key("again", 1), again] {
        let ends = world.log.ended("again").len();
        let spec = Some(task("again", "true"));
        world.give(kiln_proto::job::v1::Assignment { key: Some(key), spec, ..Default::default() });
        eventually("the end", || async { (world.log.ended("again").len() > ends).then_some(()) }).await;
    }
    std::fs::write(world.task_dir("running").join("go"), "").unwrap();
    assert_eq!(world.log.result("running").await.exit_code, Some(0));
    assert_eq!(std::fs::metadata(world.task_dir("done").join("stdout.txt")).unwrap().modified().unwrap(), before);
    world.log.break_work();
    let third = eventually("the third hello", || async { hellos(&world).get(2).cloned() }).await;
    assert!(third.attempts.iter().all(|view| view.key != Some(key("done", 1))), "acknowledged ones are forgotten");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_tasks_are_killed_and_reported_later() {
    let world = World::services(Default::default()).await;
    *world.log.lease.lock().unwrap() = Duration::from_millis(1500);
    let agent =
        kiln_telemetry::spawn(node_agent::run(node_agent::Config::new(world.join.clone()), world.shutdown.clone()));
    world.connected().await;
    world.assign(task("t", "/bin/sh -c 'echo $$ > ../pid; sleep 1000'"));
    let pid = line_of(world.task_dir("t").join("pid")).await;
    assert!(is_running(&pid));
    *world.log.refusing_work.lock().unwrap() = true;
    world.log.break_work();
    eventually("the end of the process", || async { (!is_running(&pid)).then_some(()) }).await;
    assert!(world.log.ended("t").is_empty());
    *world.log.refusing_work.lock().unwrap() = false;
    assert_eq!(world.log.result("t").await.cause(), EndCause::AgentFailure);
    // The node goes on.
    world.assign(task("next", "true"));
    assert_eq!(world.log.result("next").await.exit_code, Some(0));
    world.shutdown.cancel();
    agent.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_reaches_nobody_ends() {
    let world = World::services(Default::default()).await;
    let mut config = node_agent::Config::new(world.join.clone());
    config.settings.grace = Duration::ZERO;
    *world.log.lease.lock().unwrap() = Duration::from_millis(600);
    let agent = kiln_telemetry::spawn(node_agent::run(config, world.shutdown.clone()));
    world.connected().await;
    *world.log.refusing_all.lock().unwrap() = true;
    world.log.break_work();
    world.log.break_control();
    let error = agent.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("could not be reached"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_leads_to_a_new_registration() {
    let world = World::start().await;
    world.log.registrations.lock().unwrap().clear();
    world
        .log
        .control_down
        .lock()
        .unwrap()
        .take()
        .unwrap()
        .send(Err(tonic::Status::unauthenticated("expired")))
        .unwrap();
    eventually("another registration", || async { world.log.registrations.lock().unwrap().first().cloned() }).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduling_is_disabled_and_enabled() {
    let world = World::start().await;
    let option = DeallocationOption::TaskCompletion.into();
    world.log.command(5, control_down::Message::DisableScheduling(DisableScheduling { option }));
    let report = world.log.report("disabled", |report| report.done_command_id == 5).await;
    assert_eq!(report.scheduling_state(), SchedulingState::Disabled);
    let status = |accepting: bool| {
        let work = world.log.work.lock().unwrap();
        work.iter().rev().find_map(|message| match message {
            work_up::Message::Status(status) if status.accepting == accepting => Some(*status),
            _ => None,
        })
    };
    let told = eventually("job-svc is told", || async { status(false) }).await;
    assert_eq!(told.running_tasks(), DeallocationOption::TaskCompletion);
    world.log.command(6, control_down::Message::EnableScheduling(EnableScheduling {}));
    let report = world.log.report("enabled", |report| report.done_command_id == 6).await;
    assert_eq!(report.scheduling_state(), SchedulingState::Enabled);
    eventually("job-svc is told", || async { status(true) }).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_tasks_and_then_the_node_leaves() {
    let mut world = World::start().await;
    world.assign(task("t", "/bin/sh -c 'while [ ! -e ../go ]; do sleep 0.02; done'"));
    eventually("the task's directory", || async { world.task_dir("t").join("stdout.txt").exists().then_some(()) })
        .await;
    let option = DeallocationOption::TaskCompletion.into();
    world.log.command(9, control_down::Message::Drain(Drain { option }));
    let report = world.log.report("the drain began", |report| report.done_command_id == 9).await;
    assert_eq!(report.phase(), AgentPhase::Ready);
    assert_eq!(report.running_tasks, 1);
    std::fs::write(world.task_dir("t").join("go"), "").unwrap();
    let report = world.log.report("drained", |report| report.phase() == AgentPhase::Drained).await;
    assert_eq!((report.total_tasks_run, report.total_tasks_succeeded), (1, 1));
    assert_eq!(report.recent_tasks[0].task_id, "t");
    world.log.command(10, control_down::Message::Leave(Leave { reason: "resize".into() }));
    world.end().await.unwrap();
    assert!(matches!(world.log.work.lock().unwrap().last(), Some(work_up::Message::Goodbye(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_begins_a_new_life() {
    let world = World::start().await;
    let option = DeallocationOption::Requeue.into();
    world.log.command(3, control_down::Message::Reboot(Reboot { option }));
    eventually("a second registration", || async {
        (world.log.registrations.lock().unwrap().len() == 2).then_some(())
    })
    .await;
    let report = world.log.report("the command is done", |report| report.done_command_id == 3).await;
    let registrations = world.log.registrations.lock().unwrap().clone();
    assert_ne!(registrations[0].incarnation, registrations[1].incarnation);
    assert_eq!(report.incarnation, registrations[1].incarnation);
    eventually("the second hello", || async { hellos(&world).get(1).cloned() }).await;
    world.assign(task("t", "true"));
    assert_eq!(world.log.result("t").await.exit_code, Some(0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_word_is_goodbye() {
    let world = World::start().await;
    world.assign(task("t", "/bin/sh -c 'echo $$ > ../pid; sleep 1000'"));
    let pid = line_of(world.task_dir("t").join("pid")).await;
    let log = world.log.clone();
    world.stop().await;
    assert!(!is_running(&pid));
    assert!(matches!(log.work.lock().unwrap().last(), Some(work_up::Message::Goodbye(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_and_clean_ups_are_followed() {
    let world = World::start().await;
    world.run(task("a", "true")).await;
    world.run(task("b", "mkdir -p x/y")).await;
    let endpoint = world.join.control_endpoint.clone();
    world.log.send_work(work_down::Message::Redirect(Redirect { endpoint }));
    eventually("the second hello", || async { hellos(&world).get(1).cloned() }).await;
    world.log.send_work(work_down::Message::Cleanup(Cleanup { tasks: vec![key("a", 1)], job_ids: Vec::new() }));
    eventually("a is gone", || async { (!world.task_dir("a").exists()).then_some(()) }).await;
    assert!(world.task_dir("b").exists());
    world.log.send_work(work_down::Message::Cleanup(Cleanup {
        tasks: Vec::new(),
        job_ids: vec!["j".into(), "../..".into()],
    }));
    eventually("the job is gone", || async { (!world.join.root_dir().join("workitems/j").exists()).then_some(()) })
        .await;
    assert!(world.join.root_dir().join("workitems").exists());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_tasks_share_messages() {
    let world = World::start().await;
    for number in 0..200 {
        world.assign(task(&format!("t{number}"), "true"));
    }
    for number in 0..200 {
        assert_eq!(world.log.result(&format!("t{number}")).await.exit_code, Some(0));
    }
    world.stop().await;
}

/// Not a check: prints how many tasks a second one agent runs, 8 at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement; run it alone"]
async fn rate_of_small_tasks() {
    let world = World::start().await;
    let begin = std::time::Instant::now();
    let (count, window) = (2000, 8);
    let mut assigned = 0;
    while assigned < count {
        let ended = world.log.ended_count();
        while assigned < (ended + window).min(count) {
            world.assign(task(&format!("t{assigned}"), "true"));
            assigned += 1;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    eventually("all", || async { (world.log.ended_count() == count).then_some(()) }).await;
    println!("{:.0} tasks/s", count as f64 / begin.elapsed().as_secs_f64());
    world.stop().await;
}
