//! Preparation and release of jobs.

use std::time::Duration;

use kiln_proto::common::v1::{EnvironmentSetting, ExecutionResult};
use kiln_proto::job::v1::{
    Assignment, EndCause, JobNodeTask, Preparation, ReleaseJob, Stop, TaskConstraints, TaskSpec, work_down,
};
use kiln_testkit::eventually;

use crate::service::{World, failure_code, is_running, key, line_of, task};

const JOB: u64 = 77;

fn preparation(command_line: &str, retries: i32) -> Preparation {
    let constraints = TaskConstraints { max_task_retry_count: Some(retries), ..TaskConstraints::default() };
    let spec = TaskSpec { constraints: Some(constraints), ..task("prep", command_line) };
    let environment = vec![EnvironmentSetting { name: "COMMON".into(), value: "shared".into() }];
    Preparation { spec: Some(spec), environment, wait_for_success: true, done: false }
}

fn assign(world: &World, spec: TaskSpec, preparation: Preparation) {
    world.give(Assignment {
        key: Some(key(&spec.id, 1)),
        spec: Some(spec),
        preparation: Some(preparation),
        job_number: JOB,
        ..Assignment::default()
    });
}

fn release(world: &World, spec: TaskSpec) {
    world.log.send_work(work_down::Message::Release(ReleaseJob {
        job_id: "j".into(),
        job_number: JOB,
        spec: Some(spec),
        environment: Vec::new(),
        preparation_task_id: "prep".into(),
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_prepared_once_then_its_tasks_run_then_it_is_released() {
    let world = World::start().await;
    let script = "/bin/sh -c 'echo x >> ../runs; while [ ! -e ../go ]; do sleep 0.02; done; env; echo data > file'";
    for id in ["a", "b"] {
        assign(
            &world,
            task(id, "/bin/sh -c 'cat $AZ_BATCH_JOB_PREP_WORKING_DIR/file; echo $AZ_BATCH_JOB_PREP_DIR'"),
            preparation(script, 0),
        );
    }
    line_of(world.task_dir("prep").join("runs")).await;
    let running = world.log.words(JobNodeTask::Preparation);
    assert!(running.iter().all(|word| word.info.as_ref().is_some_and(|info| info.end_time.is_none())));
    assert!(!world.log.has_started("a") && !world.log.has_started("b"));
    std::fs::write(world.task_dir("prep").join("go"), "").unwrap();
    let prep_dir = world.task_dir("prep");
    for id in ["a", "b"] {
        let result = world.log.result(id).await;
        assert_eq!((result.exit_code, result.start_time.is_some()), (Some(0), true));
        assert_eq!(world.output(id, "stdout.txt"), format!("data\n{}\n", prep_dir.display()));
    }
    // Later ones, also of a job that an earlier life has prepared.
    assign(&world, task("c", "true"), preparation(script, 0));
    assert_eq!(world.log.result("c").await.exit_code, Some(0));
    assert_eq!(world.output("prep", "runs"), "x\n");
    let info = world.log.node_task(JobNodeTask::Preparation).await;
    assert_eq!((info.exit_code, info.result(), info.retry_count), (Some(0), ExecutionResult::Success, 0));
    assert_eq!(info.task_root_directory, "workitems/j/job-1/prep");
    let out = world.output("prep", "stdout.txt");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.contains(&"COMMON=shared") && lines.contains(&"AZ_BATCH_TASK_ID=prep"), "{out}");
    assert!(lines.contains(&"AZ_BATCH_JOB_ID=j") && !out.contains("AZ_BATCH_JOB_PREP_DIR"), "{out}");

    // Waits for the last task, and runs once however often it is asked for.
    assign(
        &world,
        task("d", "/bin/sh -c 'while [ ! -e ../go ]; do sleep 0.02; done; echo d >> ../../order'"),
        preparation(script, 0),
    );
    eventually("d begins", || async { world.log.has_started("d").then_some(()) }).await;
    let spec = task("rel", "/bin/sh -c 'echo release >> ../../order; ls $AZ_BATCH_JOB_PREP_WORKING_DIR; exit 5'");
    release(&world, spec.clone());
    release(&world, spec.clone());
    eventually("d's directory", || async { world.task_dir("d").join("stdout.txt").exists().then_some(()) }).await;
    std::fs::write(world.task_dir("d").join("go"), "").unwrap();
    let info = world.log.node_task(JobNodeTask::Release).await;
    assert_eq!((info.exit_code, info.result()), (Some(5), ExecutionResult::Failure));
    let words = world.log.words(JobNodeTask::Release).len();
    release(&world, spec);
    eventually("who asks again is told again", || async {
        (world.log.words(JobNodeTask::Release).len() > words).then_some(())
    })
    .await;
    assert_eq!(std::fs::read_to_string(world.task_dir("d").parent().unwrap().join("order")).unwrap(), "d\nrelease\n");
    assert_eq!(world.output("rel", "stdout.txt"), "file\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preparation_is_tried_again_as_often_as_it_says() {
    let world = World::start().await;
    let script = "/bin/sh -c 'echo x >> ../tries; test $(wc -l < ../tries) -ge 3'";
    assign(&world, task("a", "true"), preparation(script, 5));
    assert_eq!(world.log.result("a").await.exit_code, Some(0));
    let info = world.log.node_task(JobNodeTask::Preparation).await;
    assert_eq!((info.exit_code, info.retry_count, info.last_retry_time.is_some()), (Some(0), 2, true));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_preparation_gives_its_attempts_back_until_the_next_life() {
    let world = World::start().await;
    *world.log.acking.lock().unwrap() = false;
    let script = "/bin/sh -c 'echo x >> ../tries; exit 9'";
    assign(&world, task("a", "true"), preparation(script, 1));
    let ended = world.log.result("a").await;
    assert_eq!((ended.cause(), ended.exit_code), (EndCause::PreparationFailed, None));
    assert_eq!(failure_code(&ended), "JobPreparationTaskFailed");
    assert!(!world.log.has_started("a"));
    assign(&world, task("b", "true"), preparation(script, 1));
    assert_eq!(world.log.result("b").await.cause(), EndCause::PreparationFailed);
    assert_eq!(world.output("prep", "tries"), "x\nx\n");
    let info = world.log.node_task(JobNodeTask::Preparation).await;
    assert_eq!((info.exit_code, info.failure.unwrap().code.as_str()), (Some(9), "FailureExitCode"));
    // Tasks that do not need its success run.
    let beside = Preparation { wait_for_success: false, ..preparation(script, 1) };
    assign(&world, task("c", "true"), beside);
    assert_eq!(world.log.result("c").await.exit_code, Some(0));
    // Nothing of it was acknowledged: the next stream hears it again.
    let words = world.log.words(JobNodeTask::Preparation).len();
    *world.log.acking.lock().unwrap() = true;
    world.log.break_work();
    eventually("the word again", || async { (world.log.words(JobNodeTask::Preparation).len() > words).then_some(()) })
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preparation_without_anybody_to_wait_for_it_is_stopped() {
    let world = World::start().await;
    let script = "/bin/sh -c 'echo $$ > ../pid; trap \"\" TERM; sleep 1000; sleep 1000'";
    assign(&world, task("a", "true"), preparation(script, 0));
    let pid = line_of(world.task_dir("prep").join("pid")).await;
    world.log.send_work(work_down::Message::Stop(Stop { attempts: vec![key("a", 1)] }));
    assert_eq!(world.log.result("a").await.cause(), EndCause::Stopped);
    let info = world.log.node_task(JobNodeTask::Preparation).await;
    assert_eq!(info.failure.unwrap().code, "TaskEnded");
    assert!(!is_running(&pid));
    // The next task of the job has it run again.
    assign(&world, task("b", "true"), preparation("true", 0));
    assert_eq!(world.log.result("b").await.exit_code, Some(0));
    // What an earlier life has done is not done again.
    let done = Preparation { done: true, ..preparation("false", 0) };
    world.give(Assignment {
        key: Some(key("other", 1)),
        spec: Some(task("other", "true")),
        preparation: Some(done),
        job_number: JOB + 1,
        ..Assignment::default()
    });
    assert_eq!(world.log.result("other").await.exit_code, Some(0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preparation_has_a_wall_clock_and_dies_with_the_lease() {
    let world = World::start().await;
    let mut slow = preparation("sleep 1000", 3);
    slow.spec.as_mut().unwrap().constraints = Some(TaskConstraints {
        max_wall_clock_time: Some(kiln_proto::time::duration(Duration::from_millis(300))),
        max_task_retry_count: Some(3),
        ..TaskConstraints::default()
    });
    assign(&world, task("a", "true"), slow);
    assert_eq!(world.log.result("a").await.cause(), EndCause::PreparationFailed);
    let info = world.log.node_task(JobNodeTask::Preparation).await;
    assert_eq!((info.retry_count, info.failure.unwrap().code.as_str()), (0, "TaskEnded"));

    let script = "/bin/sh -c 'echo $$ > ../pid; sleep 1000; sleep 1000'";
    world.give(Assignment {
        key: Some(key("b", 1)),
        spec: Some(task("b", "true")),
        preparation: Some(Preparation { spec: Some(task("other", script)), ..preparation("", 0) }),
        job_number: JOB + 1,
        ..Assignment::default()
    });
    let pid = line_of(world.task_dir("other").join("pid")).await;
    *world.log.granting.lock().unwrap() = false;
    *world.log.lease.lock().unwrap() = Duration::from_millis(500);
    world.log.break_work();
    assert_eq!(world.log.result("b").await.cause(), EndCause::AgentFailure);
    eventually("the end of the preparation", || async { (!is_running(&pid)).then_some(()) }).await;
    world.stop().await;
}
