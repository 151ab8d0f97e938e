//! Packages of applications: of the pool, of tasks, and what nobody should install.

use std::io::{Cursor, Write};
use std::os::unix::fs::MetadataExt;

use kiln_proto::common::v1::ApplicationPackageReference;
use kiln_proto::job::v1::{EndCause, JobNodeTask, Preparation, TaskSpec};
use kiln_proto::pool::v1::{AgentPhase, NodeSettings, Reboot, StartTask, control_down};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::service::{NODE_TOKEN, World, failure_code, key, task};

fn zip_of(text: &str) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("bin/say", SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
    writer.write_all(format!("#!/bin/sh\necho {text}\n").as_bytes()).unwrap();
    writer.finish().unwrap().into_inner()
}

/// A zip whose entry leads out.
fn evil() -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("AA/AA/AA/evil", SimpleFileOptions::default()).unwrap();
    let mut bytes = writer.finish().unwrap().into_inner();
    for at in 0..bytes.len() - 8 {
        if bytes[at..].starts_with(b"AA/AA/AA") {
            bytes[at..at + 8].copy_from_slice(b"../../..");
        }
    }
    bytes
}

fn reference(application: &str, version: &str) -> ApplicationPackageReference {
    ApplicationPackageReference { application_id: application.into(), version: version.into() }
}

fn with(id: &str, command: &str, packages: Vec<ApplicationPackageReference>) -> TaskSpec {
    TaskSpec { application_packages: packages, ..task(id, &format!("/bin/sh -c '{command}'")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_finds_its_packages_by_their_variables() {
    let world = World::start().await;
    world.store.put_package("Tool", "1.0-RC", true, zip_of("one"));
    world.store.put_package("other", "2", false, zip_of("two"));
    let command = "$AZ_BATCH_APP_PACKAGE_Tool_1_0_RC/bin/say; $AZ_BATCH_APP_PACKAGE_tool_1_0_RC/bin/say; \
                   $AZ_BATCH_APP_PACKAGE_other_2/bin/say; env | grep -c AZ_BATCH_APP";
    let packages = vec![reference("Tool", "1.0-RC"), reference("other", "2")];
    let ended = world.run(with("t1", command, packages)).await;
    assert_eq!((ended.exit_code, world.output("t1", "stdout.txt").as_str()), (Some(0), "one\none\ntwo\n3\n"));
    // By default; the same files, and only by the name without a version.
    let command = "$AZ_BATCH_APP_PACKAGE_Tool/bin/say; env | grep -c AZ_BATCH_APP";
    world.run(with("t2", command, vec![reference("Tool", "")])).await;
    assert_eq!(world.output("t2", "stdout.txt"), "one\n2\n");
    assert_eq!(world.store.count("/acc/$packages/Tool/1.0-RC/0.zip", 200), 1, "fetched once");
    assert!(world.store.tokens.lock().unwrap().contains(&format!("Bearer {NODE_TOKEN}")));
    // Tasks without packages see none of it.
    world.run(with("t3", "env | grep -c AZ_BATCH_APP", Vec::new())).await;
    assert_eq!(world.output("t3", "stdout.txt"), "0\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_at_once_install_a_package_once() {
    let world = World::start().await;
    world.store.put_package("tool", "1", false, zip_of("x"));
    for n in 0..20 {
        world.assign(with(&format!("t{n}"), "$AZ_BATCH_APP_PACKAGE_tool_1/bin/say", vec![reference("tool", "1")]));
    }
    for n in 0..20 {
        assert_eq!(world.log.result(&format!("t{n}")).await.exit_code, Some(0));
    }
    assert_eq!(world.store.count("/acc/$packages/tool/1/0.zip", 200), 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_fails_without_its_package() {
    let world = World::start().await;
    world.store.put_package("evil", "1", false, evil());
    world.store.put_package("broken", "1", false, b"no zip".to_vec());
    for (id, package) in [
        ("missing", reference("missing", "1")),
        ("broken", reference("broken", "1")),
        ("evil", reference("evil", "1")),
        ("name", reference("a/b", "")),
        ("dots", reference("tool", "..")),
    ] {
        let ended = world.run(with(id, "echo ran", vec![package])).await;
        assert_eq!(
            (ended.cause(), failure_code(&ended)),
            (EndCause::PreProcessingError, "ApplicationPackageError"),
            "{id}"
        );
        assert!(!world.task_dir(id).join("stdout.txt").exists() || world.output(id, "stdout.txt").is_empty(), "{id}");
    }
    let node_dir = &world.join.node_dir;
    for up in [node_dir.clone(), node_dir.join("root"), node_dir.join("root/applications"), node_dir.join("state")] {
        assert!(!up.join("evil").is_file(), "{}", up.display());
    }
    let left = std::fs::read_dir(node_dir.join("state/unpacking")).unwrap().count();
    assert_eq!(left, 0, "nothing half-unpacked stays");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_that_is_replaced_while_it_is_fetched_is_resolved_again() {
    let world = World::start().await;
    world.store.put_package("tool", "1", false, zip_of("new"));
    // As if the blob had been another one a moment ago.
    world.store.fail("/acc/$packages/tool/1/0.zip", 412, 1);
    world.store.fail("/acc/$packages", 503, 2);
    let ended = world.run(with("t", "$AZ_BATCH_APP_PACKAGE_tool_1/bin/say", vec![reference("tool", "1")])).await;
    assert_eq!((ended.exit_code, world.output("t", "stdout.txt").as_str()), (Some(0), "new\n"));
    world.stop().await;
}

fn pool(packages: Vec<ApplicationPackageReference>, start: &str) -> NodeSettings {
    let start_task = StartTask { command_line: format!("/bin/sh -c '{start}'"), ..StartTask::default() };
    NodeSettings { start_task: Some(start_task), application_packages: packages, ..NodeSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_of_the_pool_are_there_before_the_start_task_and_outlive_the_agent() {
    let settings = pool(vec![reference("tool", "1"), reference("def", "")], "$AZ_BATCH_APP_PACKAGE_tool_1/bin/say");
    let mut world = World::services(settings).await;
    world.store.put_package("tool", "1", false, zip_of("pool"));
    world.store.put_package("def", "7", true, zip_of("seven"));
    world.start_agent();
    world.connected().await;
    let startup = world.join.root_dir().join("startup/stdout.txt");
    assert_eq!(std::fs::read_to_string(&startup).unwrap(), "pool\n");
    // Of every process: tasks, and tasks of jobs on the node.
    let preparation = Preparation {
        spec: Some(TaskSpec { id: "prep".into(), ..with("prep", "$AZ_BATCH_APP_PACKAGE_def/bin/say", Vec::new()) }),
        wait_for_success: true,
        ..Preparation::default()
    };
    let assignment = kiln_proto::job::v1::Assignment {
        key: Some(key("t", 1)),
        spec: Some(with("t", "$AZ_BATCH_APP_PACKAGE_def/bin/say", Vec::new())),
        preparation: Some(preparation),
        job_number: 7,
        ..Default::default()
    };
    world.give(assignment);
    assert_eq!(world.log.result("t").await.exit_code, Some(0));
    assert_eq!(world.log.node_task(JobNodeTask::Preparation).await.exit_code, Some(0));
    assert_eq!(
        (world.output("t", "stdout.txt"), world.output("prep", "stdout.txt")),
        ("seven\n".into(), "seven\n".into())
    );

    // The default changes: this life has the old one, the next one the new; what did not change stays in place.
    let applications = world.join.root_dir().join("applications");
    let inode = |path: &str| std::fs::metadata(applications.join(path)).unwrap().ino();
    let (tool, old) = (inode("tool/1"), inode("def/7"));
    world.store.put_package("def", "8", true, zip_of("eight"));
    world.log.command(5, control_down::Message::Reboot(Reboot { option: 0 }));
    kiln_testkit::eventually("a second life", || async {
        (world.log.registrations.lock().unwrap().len() == 2).then_some(())
    })
    .await;
    world.log.report("ready again", |report| report.phase() == AgentPhase::Ready && report.done_command_id == 5).await;
    world.reconnected(2).await;
    let ended = world.run(with("u", "$AZ_BATCH_APP_PACKAGE_def/bin/say", Vec::new())).await;
    assert_eq!((ended.exit_code, world.output("u", "stdout.txt").as_str()), (Some(0), "eight\n"));
    assert_eq!((inode("tool/1"), inode("def/7")), (tool, old), "old versions stay");
    assert_eq!(world.store.count("/acc/$packages/tool/1/0.zip", 200), 1, "not fetched again");

    // A version with another content is installed anew in the next life; and if storage cannot be asked, what
    // is there is taken.
    world.store.put_package("tool", "1", false, zip_of("replaced"));
    world.log.command(6, control_down::Message::Reboot(Reboot { option: 0 }));
    world.log.report("a third life", |report| report.phase() == AgentPhase::Ready && report.done_command_id == 6).await;
    assert_eq!(std::fs::read_to_string(&startup).unwrap(), "replaced\n");
    assert_ne!(inode("tool/1"), tool);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_storage_a_version_is_taken_as_an_earlier_life_left_it() {
    let settings = pool(vec![reference("tool", "1")], "$AZ_BATCH_APP_PACKAGE_tool_1/bin/say");
    let mut world = World::services(settings).await;
    world.store.put_package("tool", "1", false, zip_of("kept"));
    world.start_agent();
    world.connected().await;
    world.store.fail("/acc/$packages", 503, u32::MAX);
    world.log.command(3, control_down::Message::Reboot(Reboot { option: 0 }));
    world
        .log
        .report("a second life", |report| report.phase() == AgentPhase::Ready && report.done_command_id == 3)
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_package_of_its_pool_is_unusable() {
    let world = World::start_with(pool(vec![reference("gone", "1.0")], "echo never")).await;
    let report = world.log.report("unusable", |report| report.phase() == AgentPhase::Unusable).await;
    let error = &report.errors[0];
    assert_eq!(error.code, "ApplicationPackageError");
    let detail = &error.details[0];
    assert_eq!((detail.name.as_str(), detail.value.as_str()), ("ApplicationPackageReference", "gone:1.0"));
    assert!(!world.join.root_dir().join("startup/stdout.txt").exists());
    assert!(world.log.work.lock().unwrap().is_empty(), "no tasks come");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_that_becomes_too_large_is_refused() {
    let settings = NodeSettings { application_packages: vec![reference("large", "1")], ..NodeSettings::default() };
    let mut world = World::services(settings).await;
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("zeros", SimpleFileOptions::default()).unwrap();
    writer.write_all(&vec![0; 4 << 20]).unwrap();
    world.store.put_package("large", "1", false, writer.finish().unwrap().into_inner());
    world.start_agent_as(|config| config.settings.package_bytes = 1 << 20);
    let report = world.log.report("unusable", |report| report.phase() == AgentPhase::Unusable).await;
    assert!(report.errors[0].message.contains("package_bytes"), "{:?}", report.errors);
    assert!(!world.join.root_dir().join("applications/large/1").exists());
    world.stop().await;
}
