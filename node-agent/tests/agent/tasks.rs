//! Tasks with real processes and files.

use std::time::Duration;

use kiln_proto::common::v1::resource_file::Source;
use kiln_proto::common::v1::{EnvironmentSetting, OutputFile, OutputFileUploadCondition, ResourceFile};
use kiln_proto::job::v1::{Assignment, EndCause, Stop, TaskConstraints, TaskSpec, work_down};
use kiln_testkit::eventually;

use crate::service::{World, failure_code, is_running, key, line_of, task};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_of_processes() {
    let world = World::start().await;
    let table: &[(&str, &str, Option<i32>, &str, EndCause)] = &[
        ("ok", "true", Some(0), "", EndCause::Exited),
        ("three", "/bin/sh -c 'exit 3'", Some(3), "FailureExitCode", EndCause::Exited),
        ("term", "/bin/sh -c 'kill -TERM $$'", Some(143), "FailureExitCode", EndCause::Exited),
        ("segv", "/bin/sh -c 'kill -SEGV $$'", Some(139), "FailureExitCode", EndCause::Exited),
        ("missing", "no-such-program", None, "CommandProgramNotFound", EndCause::PreProcessingError),
        ("missing-path", "./no-such", None, "CommandProgramNotFound", EndCause::PreProcessingError),
        ("not-executable", "/etc/passwd", None, "CommandLaunchFailed", EndCause::PreProcessingError),
        ("quote", "echo \"open", None, "CommandLaunchFailed", EndCause::PreProcessingError),
        ("empty", "", None, "CommandLaunchFailed", EndCause::PreProcessingError),
    ];
    for (id, command, _, _, _) in table {
        world.assign(task(id, command));
    }
    for (id, command, code, failure, cause) in table {
        let ended = world.log.result(id).await;
        assert_eq!((ended.exit_code, failure_code(&ended), ended.cause()), (*code, *failure, *cause), "{command}");
        assert!(ended.start_time.is_some() && ended.end_time.is_some());
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_finds_its_place_and_its_environment() {
    let world = World::start().await;
    let mut spec = task("t", "/bin/sh -c 'pwd; env; echo oops >&2; cat'");
    spec.environment.push(EnvironmentSetting { name: "MINE".into(), value: "a b".into() });
    spec.environment.push(EnvironmentSetting { name: "AZ_BATCH_TASK_ID".into(), value: "forged".into() });
    let ended = world.run(spec).await;
    assert_eq!(ended.exit_code, Some(0));
    let wd = world.task_dir("t").join("wd");
    let out = world.output("t", "stdout.txt");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], wd.to_str().unwrap());
    for expected in
        ["MINE=a b", "AZ_BATCH_TASK_ID=t", "AZ_BATCH_JOB_ID=j", "AZ_BATCH_NODE_ID=n1", "KILN_TASK_ATTEMPT=1"]
    {
        assert!(lines.contains(&expected), "{expected} in {out}");
    }
    assert!(lines.contains(&format!("AZ_BATCH_TASK_WORKING_DIR={}", wd.display()).as_str()));
    assert!(!out.contains("CARGO"), "the agent's own environment is not passed on: {out}");
    assert_eq!(world.output("t", "stderr.txt"), "oops\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_keeps_the_directory_and_loses_the_output() {
    let world = World::start().await;
    world.run(task("t", "/bin/sh -c 'echo first; touch mark; exit 1'")).await;
    world.assign_attempt(task("t", "/bin/sh -c 'echo $KILN_TASK_ATTEMPT; ls'"), 2);
    eventually("the second attempt", || async { (world.log.ended("t").len() == 2).then_some(()) }).await;
    assert_eq!(world.output("t", "stdout.txt"), "2\nmark\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wall_clock_kills_everything_the_task_started() {
    let world = World::start().await;
    // A grandchild in a session of its own that ignores SIGTERM, one that even
    // clears its environment, and the task itself.
    let script = "trap '' TERM HUP; \
        setsid sh -c 'trap \"\" TERM; echo $$ > ../a; sleep 1000; sleep 1000' & \
        setsid env -i sh -c 'trap \"\" TERM; echo $$ > ../b; sleep 1000; sleep 1000' & \
        (setsid sh -c 'echo $$ > ../c; exec sleep 1000' &) ; sleep 1000; sleep 1000";
    let mut spec = task("t", &format!("/bin/sh -c \"{}\"", script.replace('\\', "\\\\").replace('"', "\\\"")));
    spec.constraints = Some(TaskConstraints {
        max_wall_clock_time: Some(kiln_proto::time::duration(Duration::from_millis(1500))),
        ..TaskConstraints::default()
    });
    world.assign(spec);
    let mut pids = Vec::new();
    for file in ["a", "b", "c"] {
        pids.push(line_of(world.task_dir("t").join(file)).await);
    }
    let ended = world.log.result("t").await;
    assert_eq!((ended.exit_code, failure_code(&ended)), (Some(137), "TaskEnded"));
    assert_eq!(ended.cause(), EndCause::WallClockExpired);
    for pid in pids {
        assert!(!is_running(&pid), "{pid} still runs");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_leaves_behind_is_killed_when_it_ends() {
    let world = World::start().await;
    let ended = world.run(task("t", "/bin/sh -c '(setsid sh -c \"echo \\$\\$ > ../pid; exec sleep 1000\" &); while [ ! -s ../pid ]; do sleep 0.01; done'")).await;
    assert_eq!(ended.exit_code, Some(0));
    assert!(!is_running(&world.output("t", "pid")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_kills_and_reports() {
    let world = World::start().await;
    world.assign(task("t", "/bin/sh -c 'echo $$ > ../pid; trap \"\" TERM; sleep 1000; sleep 1000'"));
    let pid = line_of(world.task_dir("t").join("pid")).await;
    world.log.send_work(work_down::Message::Stop(Stop { attempts: vec![key("t", 1), key("unknown", 7)] }));
    let ended = world.log.result("t").await;
    assert_eq!((ended.cause(), failure_code(&ended)), (EndCause::Stopped, "TaskEnded"));
    assert!(!is_running(&pid));
    assert_eq!(world.log.result("unknown").await.cause(), EndCause::Stopped);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_output_arrives_whole() {
    let world = World::start().await;
    let ended = world.run(task("t", "head -c 67108864 /dev/zero")).await;
    assert_eq!(ended.exit_code, Some(0));
    assert_eq!(std::fs::metadata(world.task_dir("t").join("stdout.txt")).unwrap().len(), 64 << 20);
    world.stop().await;
}

fn http(world: &World, blob: &str, path: &str) -> ResourceFile {
    let source = Some(Source::HttpUrl(format!("{}{blob}", world.blob_url)));
    ResourceFile { source, file_path: path.into(), ..ResourceFile::default() }
}

fn with_files(id: &str, command: &str, resource_files: Vec<ResourceFile>) -> TaskSpec {
    TaskSpec { resource_files, ..task(id, command) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_in_from_every_source() {
    let world = World::start().await;
    world.store.put("/acc/c/script.sh", "#!/bin/sh\ncat data/*.txt sub/in/*.txt\n");
    for name in ["one", "two", "three"] {
        world.store.put(&format!("/acc/c/in/{name}.txt"), format!("{name}\n"));
    }
    world.store.put("/acc/c/other.txt", "not asked for");
    let container = |source| ResourceFile { source: Some(source), ..ResourceFile::default() };
    let files = vec![
        ResourceFile { file_mode: "0755".into(), ..http(&world, "/acc/c/script.sh?sig=ok", "bin/run.sh") },
        ResourceFile {
            blob_prefix: "in/".into(),
            file_path: "sub".into(),
            ..container(Source::StorageContainerUrl(format!("{}/acc/c?sig=ok", world.blob_url)))
        },
        ResourceFile { blob_prefix: "in/t".into(), ..container(Source::AutoStorageContainerName("c".into())) },
        http(&world, "/acc/c/in/one.txt", "data/one.txt"),
    ];
    let ended = world.run(with_files("t", "./bin/run.sh", files)).await;
    assert_eq!((ended.exit_code, failure_code(&ended)), (Some(0), ""));
    assert_eq!(world.output("t", "stdout.txt"), "one\none\nthree\ntwo\n");
    assert_eq!(world.output("t", "wd/in/two.txt"), "two\n");
    assert!(!world.task_dir("t").join("wd/sub/other.txt").exists());
    let expected = format!("Bearer {}", crate::service::NODE_TOKEN);
    let tokens = world.store.tokens.lock().unwrap().clone();
    assert!(!tokens.is_empty() && tokens.iter().all(|token| *token == expected));
    let mode = |path: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(world.task_dir("t").join(path)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("wd/bin/run.sh"), mode("wd/data/one.txt")), (0o755, 0o770));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_of_a_resource_file_has_its_code() {
    let world = World::start().await;
    world.store.put("/acc/c/ok", "content");
    world.store.put("/acc/c/../escape", "content");
    world.store.put("/acc/c/busy", "content");
    world.store.put("/acc/c/flaky", "content");
    world.store.put("/acc/c/md5", "content");
    world.store.put("/acc/c/md5-once", "content");
    world.store.fail("/acc/c/busy", 503, 1000);
    world.store.fail("/acc/c/flaky", 500, 2);
    world.store.wrong_md5.lock().unwrap().extend([("/acc/c/md5".to_owned(), 1000), ("/acc/c/md5-once".to_owned(), 1)]);
    let url = |text: &str| ResourceFile {
        source: Some(Source::HttpUrl(text.into())),
        file_path: "f".into(),
        ..ResourceFile::default()
    };
    let container = |name: &str| ResourceFile {
        source: Some(Source::StorageContainerUrl(format!("{}/acc/{name}", world.blob_url))),
        ..ResourceFile::default()
    };
    let table = [
        ("gone", http(&world, "/acc/c/none", "f"), "BlobNotFound"),
        ("denied", http(&world, "/acc/c/ok?sig=bad", "f"), "BlobAccessDenied"),
        ("busy", http(&world, "/acc/c/busy", "f"), "BlobDownloadMiscError"),
        ("flaky", http(&world, "/acc/c/flaky", "f"), ""),
        ("md5", http(&world, "/acc/c/md5", "f"), "BlobDownloadMiscError"),
        ("md5-once", http(&world, "/acc/c/md5-once", "f"), ""),
        ("refused", url("http://127.0.0.1:1/x"), "BlobDownloadMiscError"),
        ("scheme", url("file:///etc/passwd"), "BlobDownloadMiscError"),
        ("escape", http(&world, "/acc/c/ok", "../f"), "ResourceFileCreateFailed"),
        ("absolute", http(&world, "/acc/c/ok", "/tmp/f"), "ResourceFileCreateFailed"),
        ("no-container", container("none"), "ResourceContainerNotFound"),
        ("no-access", container("c?sig=bad"), "ResourceContainerAccessDenied"),
        ("blob-escape", container("c"), "ResourceFileCreateFailed"),
    ];
    for (id, file, _) in &table {
        world.assign(with_files(id, "true", vec![file.clone()]));
    }
    for (id, _, code) in &table {
        let ended = world.log.result(id).await;
        assert_eq!(failure_code(&ended), *code, "{id}: {ended:?}");
        let cause = if code.is_empty() { EndCause::Exited } else { EndCause::PreProcessingError };
        assert_eq!(ended.cause(), cause, "{id}");
        let shown = format!("{ended:?}");
        assert!(!shown.contains("sig="), "signatures are secrets: {shown}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_files_are_fetched_once_and_never_mixed_up() {
    let world = World::start().await;
    world.store.put("/acc/c/shared", "v1\n");
    for id in ["a", "b", "c", "d"] {
        // Each writes into its own copy.
        let file = http(&world, &format!("/acc/c/shared?sig={id}"), "f");
        world.assign(with_files(id, "/bin/sh -c 'cat f; echo dirty >> f'", vec![file]));
    }
    for id in ["a", "b", "c", "d"] {
        assert_eq!(world.log.result(id).await.exit_code, Some(0));
        assert_eq!(world.output(id, "stdout.txt"), "v1\n");
    }
    assert_eq!(world.store.count("/acc/c/shared", 200), 1);
    assert_eq!(world.store.count("/acc/c/shared", 304), 3);
    let denied = world.run(with_files("e", "true", vec![http(&world, "/acc/c/shared?sig=bad", "f")])).await;
    assert_eq!(failure_code(&denied), "BlobAccessDenied");
    world.store.put("/acc/c/shared", "v2\n");
    world.run(with_files("f", "cat f", vec![http(&world, "/acc/c/shared", "f")])).await;
    assert_eq!(world.output("f", "stdout.txt"), "v2\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_out_as_their_conditions_say() {
    let world = World::start().await;
    let out = |pattern: &str, path: &str, condition: OutputFileUploadCondition| OutputFile {
        file_pattern: pattern.into(),
        path: path.into(),
        container_url: format!("{}/acc/out?sig=ok", world.blob_url),
        upload_condition: condition.into(),
        upload_headers: Vec::new(),
    };
    use OutputFileUploadCondition as C;
    let files = vec![
        out("../std*.txt", "$AZ_BATCH_TASK_ID-logs", C::TaskCompletion),
        out("**/*.csv", "data", C::TaskSuccess),
        out("big.bin", "big", C::TaskSuccess),
        out("only-on-failure", "failure", C::TaskFailure),
    ];
    let mut spec = task(
        "t",
        "/bin/sh -c 'echo hi; mkdir -p d; echo 1 > d/a.csv; echo 2 > only-on-failure; head -c 70000000 /dev/zero > big.bin'",
    );
    spec.output_files = files.clone();
    let ended = world.run(spec).await;
    assert_eq!((ended.exit_code, failure_code(&ended)), (Some(0), ""), "{ended:?}");
    assert_eq!(world.store.get("/acc/out/$AZ_BATCH_TASK_ID-logs/stdout.txt").unwrap(), "hi\n");
    assert_eq!(world.store.get("/acc/out/data/d/a.csv").unwrap(), "1\n");
    assert_eq!(world.store.get("/acc/out/big").unwrap().len(), 70_000_000);
    assert!(world.store.get("/acc/out/failure").is_none());
    assert!(world.output("t", "fileuploadout.txt").contains("stdout.txt"));
    assert_eq!(world.output("t", "fileuploaderr.txt"), "");

    let mut spec = task("failing", "/bin/sh -c 'echo 2 > only-on-failure; exit 1'");
    spec.output_files = files;
    assert_eq!(failure_code(&world.run(spec).await), "FailureExitCode");
    assert_eq!(world.store.get("/acc/out/failure").unwrap(), "2\n");

    // What is tried again uploads nothing, until the last try.
    let mut spec = task("tried", "/bin/sh -c 'exit 4'");
    spec.output_files = vec![out("../stdout.txt", "tried", C::TaskCompletion)];
    for (attempt, retry_follows) in [(1, true), (2, false)] {
        world.give(Assignment {
            key: Some(key("tried", attempt)),
            spec: Some(spec.clone()),
            retry_follows,
            ..Assignment::default()
        });
        let ends = eventually("the end", || async {
            let ends = world.log.ended("tried");
            (ends.len() == attempt as usize).then_some(ends)
        })
        .await;
        assert_eq!(ends.last().map(|end| (end.exit_code, end.outputs_kept)), Some((Some(4), retry_follows)));
        assert_eq!(world.store.get("/acc/out/tried").is_none(), retry_follows);
    }

    for (id, status, code) in [
        ("gone", 404, "FileUploadContainerNotFound"),
        ("denied", 403, "FileUploadAccessDenied"),
        ("sick", 500, "FileUploadMiscError"),
    ] {
        world.store.fail(&format!("/acc/out/{id}"), status, 1000);
        let mut spec = task(id, "true");
        spec.output_files = vec![out("../stdout.txt", id, C::TaskCompletion)];
        let ended = world.run(spec).await;
        assert_eq!((ended.exit_code, failure_code(&ended), ended.cause()), (Some(0), code, EndCause::FileUploadError));
        assert!(world.output(id, "fileuploaderr.txt").contains(code));
    }
    world.stop().await;
}
