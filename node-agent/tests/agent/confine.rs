//! Limits and users of tasks, with real processes.

use std::os::unix::fs::MetadataExt;

use kiln_proto::common::v1::{AutoUserScope, ElevationLevel, Resources, UserIdentity};
use kiln_proto::job::v1::{AttemptEnded, EndCause, Stop, TaskSpec, work_down};
use kiln_proto::pool::v1::{NodeSettings, UserAccount};

use crate::service::{World, failure_code, is_running, key, line_of, task};

const MIB: i64 = 1 << 20;

/// Fills memory until it is stopped; a grandchild does it.
const FILL: &str = "python3 -c \"import time; x = [bytearray(1 << 20) for _ in range(4000)]; time.sleep(1000)\"";

fn limited(id: &str, command: &str, resources: Resources) -> TaskSpec {
    TaskSpec { resources: Some(resources), ..task(id, command) }
}

fn details(ended: &AttemptEnded) -> Vec<(String, i64)> {
    let details = ended.failure.iter().flat_map(|failure| &failure.details);
    details.map(|detail| (detail.name.clone(), detail.value.parse().unwrap())).collect()
}

async fn memory_is_limited(world: &World) {
    let resources = Resources { memory_bytes: 100 * MIB, ..Resources::default() };
    let spec = limited("memory", &format!("/bin/sh -c '({FILL}); exit $?'"), resources);
    let ended = world.run(spec).await;
    assert_eq!((ended.exit_code, ended.cause()), (Some(137), EndCause::Exited), "{ended:?}");
    assert_eq!(failure_code(&ended), "MemoryLimitExceeded");
    let details = details(&ended);
    assert_eq!(details[0], ("Limit".to_owned(), 100 * MIB));
    assert!(details[1].0 == "Peak" && details[1].1 > 50 * MIB, "{details:?}");
    // What stays below is not touched.
    let spec = limited("little", "python3 -c \"x = bytearray(10 << 20); print(len(x))\"", resources);
    assert_eq!(world.run(spec).await.exit_code, Some(0));
    assert_eq!(world.output("little", "stdout.txt"), "10485760\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fills_the_memory_is_killed_and_told() {
    let world = World::start().await;
    memory_is_limited(&world).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_control_groups_the_memory_is_watched() {
    let world = World::start_as(NodeSettings { task_slots: 4, ..NodeSettings::default() }, |_| {}).await;
    world.connected().await;
    memory_is_limited(&world).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fills_the_disk_is_killed_and_told() {
    let world = World::start().await;
    let resources = Resources { disk_bytes: 20 * MIB, ..Resources::default() };
    // More than a gigabyte if nobody stops it.
    let script = "/bin/sh -c 'echo $$ > ../pid; trap \"\" TERM; head -c 1200000000 /dev/zero; sleep 1000'";
    let ended = world.run(limited("disk", script, resources)).await;
    assert_eq!((ended.exit_code, failure_code(&ended)), (Some(137), "DiskLimitExceeded"));
    assert!(details(&ended)[1].1 > 20 * MIB);
    assert!(!is_running(&world.output("disk", "pid")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confined_process_starts_ends_and_fails_as_others_do() {
    let world = World::start().await;
    let resources = Resources { memory_bytes: 500 * MIB, cpu_millis: 500, ..Resources::default() };
    let table: &[(&str, &str, Option<i32>, &str)] = &[
        ("ok", "/bin/sh -c 'cat; echo \"$0\" $AZ_BATCH_TASK_ID; pwd'", Some(0), ""),
        ("three", "/bin/sh -c 'exit 3'", Some(3), "FailureExitCode"),
        ("signal", "/bin/sh -c 'kill -SEGV $$'", Some(139), "FailureExitCode"),
        ("missing", "no-such-program", None, "CommandProgramNotFound"),
        ("interpreter", "./script", None, "CommandLaunchFailed"),
    ];
    for (id, command, code, failure) in table {
        if *id == "interpreter" {
            let wd = world.task_dir(id).join("wd");
            std::fs::create_dir_all(&wd).unwrap();
            std::fs::write(wd.join("script"), "#!/no/such/interpreter\n").unwrap();
            std::fs::set_permissions(wd.join("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let ended = world.run(limited(id, command, resources)).await;
        assert_eq!((ended.exit_code, failure_code(&ended)), (*code, *failure), "{command}");
    }
    let wd = world.task_dir("ok").join("wd");
    assert_eq!(world.output("ok", "stdout.txt"), format!("/bin/sh ok\n{}\n", wd.display()));
    // Stopped with everything it started.
    let script = "/bin/sh -c 'trap \"\" TERM; setsid sh -c \"echo \\$\\$ > ../pid; exec sleep 1000\" & sleep 1000'";
    world.assign(limited("stopped", script, resources));
    let pid = line_of(world.task_dir("stopped").join("pid")).await;
    world.log.send_work(work_down::Message::Stop(Stop { attempts: vec![key("stopped", 1)] }));
    assert_eq!(world.log.result("stopped").await.cause(), EndCause::Stopped);
    assert!(!is_running(&pid));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graphics_processors_that_are_not_there_are_refused() {
    let world = World::start().await;
    let resources = Resources { gpus: 1000, ..Resources::default() };
    let ended = world.run(limited("t", "true", resources)).await;
    assert_eq!((ended.cause(), failure_code(&ended)), (EndCause::PreProcessingError, "GpusUnavailable"));
    world.stop().await;
}

fn as_user(id: &str, command: &str, username: &str, scope: AutoUserScope, level: ElevationLevel) -> TaskSpec {
    let identity =
        UserIdentity { username: username.into(), auto_user_scope: scope.into(), elevation_level: level.into() };
    TaskSpec { user_identity: Some(identity), ..task(id, command) }
}

fn settings() -> NodeSettings {
    let account = |name: &str, uid: Option<u32>, level: ElevationLevel| UserAccount {
        name: name.into(),
        uid,
        gid: uid,
        elevation_level: level.into(),
        ..UserAccount::default()
    };
    let user_accounts = vec![
        account("ann", None, ElevationLevel::NonAdmin),
        account("bob", Some(54321), ElevationLevel::NonAdmin),
        account("boss", None, ElevationLevel::Admin),
    ];
    NodeSettings { task_slots: 4, user_accounts, ..NodeSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_as_who_they_ask_for() {
    use AutoUserScope::{Pool, Task, Unspecified};
    use ElevationLevel::{Admin, NonAdmin};
    let world = World::start_with(settings()).await;
    world.connected().await;
    let unknown = world.run(as_user("unknown", "true", "eve", Unspecified, NonAdmin)).await;
    assert_eq!(failure_code(&unknown), "UserIdentityUnavailable");
    if !nix::unistd::geteuid().is_root() {
        // Nobody but itself can be had, and only by who does not ask for more.
        for (id, name, scope, level, code) in [
            ("pool", "", Pool, NonAdmin, ""),
            ("own", "", Task, NonAdmin, "UserIdentityUnavailable"),
            ("admin", "", Pool, Admin, "UserIdentityUnavailable"),
            ("ann", "ann", Unspecified, NonAdmin, "UserIdentityUnavailable"),
        ] {
            assert_eq!(failure_code(&world.run(as_user(id, "true", name, scope, level)).await), code, "{id}");
        }
        world.stop().await;
        return;
    }
    let script = "/bin/sh -c 'id -u; id -G; echo x > file; echo y > $AZ_BATCH_NODE_SHARED_DIR/$AZ_BATCH_TASK_ID'";
    let mut uids = Vec::new();
    for (id, name, scope, level) in [
        ("pool-1", "", Pool, NonAdmin),
        ("pool-2", "", Unspecified, NonAdmin),
        ("own-1", "", Task, NonAdmin),
        ("own-2", "", Task, NonAdmin),
        ("admin", "", Task, Admin),
        ("ann", "ann", Unspecified, NonAdmin),
        ("bob", "bob", Unspecified, NonAdmin),
        ("boss", "boss", Unspecified, NonAdmin),
    ] {
        let ended = world.run(as_user(id, script, name, scope, level)).await;
        assert_eq!(ended.exit_code, Some(0), "{id}: {ended:?} {}", world.output(id, "stderr.txt"));
        let out = world.output(id, "stdout.txt");
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0] == "0" || lines[0] == lines[1], "no other groups: {out}");
        let uid: u32 = lines[0].parse().unwrap();
        assert_eq!(std::fs::metadata(world.task_dir(id).join("wd/file")).unwrap().uid(), uid, "{id}");
        uids.push(uid);
    }
    let [pool, same, own, other, admin, ann, bob, boss] = uids[..] else { panic!("{uids:?}") };
    assert!(pool == same && admin == 0 && boss == 0 && bob == 54321, "{uids:?}");
    let different: std::collections::HashSet<u32> = [0, pool, own, other, ann, bob].into();
    assert_eq!(different.len(), 6, "{uids:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_one_task_sees_nothing_of_the_others() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let world = World::start_with(settings()).await;
    world.connected().await;
    let own = |id: &str, command: &str| as_user(id, command, "", AutoUserScope::Task, ElevationLevel::NonAdmin);
    world.store.put("/acc/c/file", "brought\n");
    let mut first = own("first", "/bin/sh -c 'cat file; echo more >> file; echo secret > note; exit 1'");
    let source = format!("{}/acc/c/file", world.blob_url);
    first.resource_files = vec![kiln_proto::common::v1::ResourceFile {
        source: Some(kiln_proto::common::v1::resource_file::Source::HttpUrl(source)),
        file_path: "file".into(),
        ..Default::default()
    }];
    assert_eq!(world.run(first).await.exit_code, Some(1));
    assert_eq!(world.output("first", "stdout.txt"), "brought\n");
    // Of the agent's user, of another: closed, and so is what the agent keeps for itself.
    assert_eq!(world.run(task("root", "/bin/sh -c 'echo secret > note'")).await.exit_code, Some(0));
    let node = world.join.node_dir.display();
    let spy = "cat ../../first/wd/note ../../root/wd/note; ls ../..";
    let ended = world.run(own("spy", &format!("/bin/sh -c '{spy} {node} {node}/state; exit 3'"))).await;
    assert_eq!(ended.exit_code, Some(3));
    assert_eq!(world.output("spy", "stdout.txt"), "../..:\nfirst\nroot\nspy\n");
    // A link in the place of the working directory leads nowhere.
    assert_eq!(
        world.run(own("bent", "/bin/sh -c 'mv ../wd ../old; ln -s ../first/wd ../wd'")).await.exit_code,
        Some(0)
    );
    world.assign_attempt(own("bent", "cat note"), 2);
    let ended =
        kiln_testkit::eventually("the second attempt", || async { world.log.ended("bent").get(1).cloned() }).await;
    assert_eq!(failure_code(&ended), "ResourceDirectoryCreateFailed");
    // The next attempt finds what this one left, as another user.
    world.assign_attempt(own("first", "/bin/sh -c 'cat note; echo again > note'"), 2);
    let ended =
        kiln_testkit::eventually("the second attempt", || async { world.log.ended("first").get(1).cloned() }).await;
    assert_eq!(ended.exit_code, Some(0));
    assert_eq!(world.output("first", "stdout.txt"), "secret\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_users_cannot_reach_is_said_so() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let world = World::start_with(settings()).await;
    world.connected().await;
    let above = world.join.node_dir.parent().unwrap();
    std::fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let spec = as_user("t", "true", "", AutoUserScope::Pool, ElevationLevel::NonAdmin);
    let ended = world.run(spec).await;
    assert_eq!(failure_code(&ended), "UserIdentityUnavailable");
    assert!(ended.failure.unwrap().message.contains("cannot enter"));
    world.stop().await;
}
