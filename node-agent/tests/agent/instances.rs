//! Multi-instance tasks: each instance has an agent of its own.

use kiln_proto::common::v1::resource_file::Source;
use kiln_proto::common::v1::{OutputFile, ResourceFile};
use kiln_proto::job::v1::{
    Assignment, AttemptKey, EndCause, Instance, InstanceHost, MultiInstanceSettings, Proceed, Stop, TaskSpec, work_down,
};

use crate::service::{World, failure_code, is_running, key, line_of, task};

fn instance_key(id: &str, instance: u32) -> AttemptKey {
    AttemptKey { instance, ..key(id, 1) }
}

fn spec(command: &str, coordination: &str) -> TaskSpec {
    let settings = MultiInstanceSettings {
        number_of_instances: 2,
        coordination_command_line: coordination.into(),
        common_resource_files: Vec::new(),
    };
    TaskSpec { multi_instance: Some(settings), ..task("mpi", command) }
}

fn assign(world: &World, number: u32, spec: TaskSpec) {
    let host = |node: &str| InstanceHost { node_id: node.into(), ip_address: "127.0.0.1".into() };
    world.give(Assignment {
        key: Some(instance_key(&spec.id, number)),
        spec: Some(spec),
        instance: Some(Instance { number, hosts: vec![host("n1"), host("n2")] }),
        ..Assignment::default()
    });
}

fn http(world: &World, blob: &str, path: &str) -> ResourceFile {
    let source = Some(Source::HttpUrl(format!("{}{blob}", world.blob_url)));
    ResourceFile { source, file_path: path.into(), ..ResourceFile::default() }
}

fn stop(world: &World, number: u32) {
    let attempts = vec![instance_key("mpi", number)];
    world.log.send_work(work_down::Message::Stop(Stop { attempts }));
}

const SERVER: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", 0))
open("../pid", "w").write("%d\n" % os.getpid())
open("../port", "w").write("%d\n" % server.getsockname()[1])
while True:
    with server.accept()[0] as peer:
        peer.sendall(b"instance " + peer.recv(100))
"#;
const CLIENT: &str = r#"
import os, socket
port = int(open(os.environ["AZ_BATCH_TASK_SHARED_DIR"] + "/peer").read())
with socket.create_connection((os.environ["AZ_BATCH_HOST_LIST"].split(",")[1], port)) as peer:
    peer.sendall(b"answers\n")
    print(peer.recv(100).decode(), end="")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_talk_over_tcp_and_end_together() {
    let (first, second) = (World::start().await, World::start().await);
    let worlds = [&first, &second];
    for (world, own) in [(&first, "client.py"), (&second, "unused.py")] {
        world.store.put("/acc/c/server.py", SERVER);
        world.store.put("/acc/c/client.py", CLIENT);
        let mut spec = spec(
            "/bin/sh -c 'echo command; python3 own.py'",
            "/bin/sh -c 'echo coordination $AZ_BATCH_IS_CURRENT_NODE_MASTER $CCP_NODES; \
             setsid python3 $AZ_BATCH_TASK_SHARED_DIR/server.py & while [ ! -s ../port ]; do sleep 0.02; done'",
        );
        spec.multi_instance.as_mut().unwrap().common_resource_files =
            vec![http(world, "/acc/c/server.py", "server.py")];
        // The second does not ask for its own files: this one does not exist.
        spec.resource_files = vec![http(world, &format!("/acc/c/{own}"), "own.py")];
        spec.output_files = vec![OutputFile {
            file_pattern: "../stdout.txt".into(),
            path: "out".into(),
            container_url: format!("{}/acc/out?sig=ok", world.blob_url),
            ..OutputFile::default()
        }];
        assign(world, u32::from(own != "client.py"), spec);
    }
    for world in worlds {
        world.log.ready("mpi").await;
        // Ready, and again on a new stream.
        world.log.work.lock().unwrap().clear();
        world.log.break_work();
        world.log.ready("mpi").await;
    }
    let mut servers = Vec::new();
    for world in worlds {
        servers.push(line_of(world.task_dir("mpi").join("pid")).await);
    }
    assert!(servers.iter().all(|pid| is_running(pid)), "what the coordination command left stays");
    assert!(!first.output("mpi", "stdout.txt").contains("command"), "the primary waits");
    std::fs::write(first.task_dir("mpi").join("peer"), line_of(second.task_dir("mpi").join("port")).await).unwrap();
    // Another task of the node comes and goes: the place is held.
    assert_eq!(second.run(task("other", "true")).await.exit_code, Some(0));
    assert!(is_running(&servers[1]));
    for (number, world) in worlds.into_iter().enumerate() {
        let attempts = vec![instance_key("mpi", number as u32)];
        world.log.send_work(work_down::Message::Proceed(Proceed { attempts }));
    }
    let ended = first.log.result("mpi").await;
    let errors = first.output("mpi", "stderr.txt");
    assert_eq!((ended.exit_code, ended.cause()), (Some(0), EndCause::Exited), "{ended:?} {errors}");
    let out = first.output("mpi", "stdout.txt");
    assert_eq!(out, "coordination true 2 127.0.0.1 1 127.0.0.1 1\ncommand\ninstance answers\n");
    assert_eq!(first.store.get("/acc/out/out").unwrap(), out.into_bytes());
    assert!(!is_running(&servers[0]), "the end of the command is the end of the instance");

    assert!(second.log.ended("mpi").is_empty() && is_running(&servers[1]));
    stop(&second, 1);
    assert_eq!(second.log.result("mpi").await.cause(), EndCause::Stopped);
    assert!(!is_running(&servers[1]));
    assert_eq!(second.output("mpi", "stdout.txt"), "coordination false 2 127.0.0.1 1 127.0.0.1 1\n");
    assert!(second.store.get("/acc/out/out").is_none() && second.task_dir("mpi").join("server.py").exists());
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_cannot_be_coordinated_has_failed() {
    let world = World::start().await;
    assign(&world, 1, spec("true", "/bin/sh -c 'sleep 1000 & echo $! > ../pid; exit 4'"));
    let ended = world.log.result("mpi").await;
    assert_eq!((ended.exit_code, ended.cause(), failure_code(&ended)), (Some(4), EndCause::Exited, "FailureExitCode"));
    assert!(!is_running(&world.output("mpi", "pid")));

    let missing = TaskSpec { id: "missing".into(), ..spec("true", "no-such-program") };
    assign(&world, 0, missing);
    let ended = world.log.result("missing").await;
    assert_eq!((ended.cause(), failure_code(&ended)), (EndCause::PreProcessingError, "CommandProgramNotFound"));

    // Stopped in the middle of it.
    let slow = TaskSpec { id: "slow".into(), ..spec("true", "/bin/sh -c 'echo $$ > ../pid; sleep 1000; sleep 1000'") };
    assign(&world, 0, slow);
    let pid = line_of(world.task_dir("slow").join("pid")).await;
    let attempts = vec![instance_key("slow", 0)];
    world.log.send_work(work_down::Message::Stop(Stop { attempts }));
    assert_eq!(world.log.result("slow").await.cause(), EndCause::Stopped);
    assert!(!is_running(&pid));

    // A program of the task that does not exist ends what was coordinated, too.
    let late = TaskSpec { id: "late".into(), ..spec("no-such-program", "/bin/sh -c 'sleep 1000 & echo $! > ../pid'") };
    assign(&world, 0, late);
    world.log.ready("late").await;
    let attempts = vec![instance_key("late", 0)];
    world.log.send_work(work_down::Message::Proceed(Proceed { attempts }));
    assert_eq!(failure_code(&world.log.result("late").await), "CommandProgramNotFound");
    assert!(!is_running(&world.output("late", "pid")));
    world.stop().await;
}
