//! Questions about the node's files.

use kiln_proto::common::v1::ByteRange;
use kiln_proto::pool::v1::file_answer::Part;
use kiln_proto::pool::v1::file_request::Operation;
use kiln_proto::pool::v1::{CancelTransfer, FileRequest, ListFiles, ReadFile, RemoveFile, StatFile, control_down};
use kiln_testkit::eventually;

use crate::service::{World, task};

fn request(id: &str, path: &str, operation: Operation) -> FileRequest {
    FileRequest { transfer_id: id.into(), path: path.into(), operation: Some(operation) }
}

fn data(parts: &[Part]) -> Vec<u8> {
    parts
        .iter()
        .filter_map(|part| match part {
            Part::Data(data) => Some(data.to_vec()),
            _ => None,
        })
        .flatten()
        .collect()
}

fn reason(parts: &[Part]) -> &str {
    match parts.last() {
        Some(Part::Error(error)) => &error.reason,
        _ => "",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_listed_read_and_removed() {
    let world = World::start().await;
    world
        .run(task(
            "t",
            "/bin/sh -c 'printf 0123456789; head -c 1000000 /dev/zero > big; mkdir d; ln -s /etc/passwd leak'",
        ))
        .await;
    let dir = "workitems/j/job-1/t";
    let list = ListFiles { recursive: true, ..ListFiles::default() };
    let parts = world.log.ask(request("1", dir, Operation::List(list))).await;
    let [Part::List(list), Part::Done(_)] = &parts[..] else { panic!("{parts:?}") };
    let names: Vec<&str> = list.files.iter().map(|file| &*file.name).collect();
    assert_eq!(names, ["stderr.txt", "stdout.txt", "wd", "wd/big", "wd/d", "wd/leak"]);
    let out = format!("{dir}/stdout.txt");
    let parts = world.log.ask(request("2", &out, Operation::Stat(StatFile {}))).await;
    assert!(matches!(parts.last(), Some(Part::File(file)) if file.content_length == 10));
    let read = |start, end, follow| Operation::Read(ReadFile { range: Some(ByteRange { start, end }), follow });
    assert_eq!(data(&world.log.ask(request("3", &out, Operation::Read(ReadFile::default()))).await), b"0123456789");
    assert_eq!(data(&world.log.ask(request("4", &out, read(2, Some(4), false))).await), b"234");
    assert_eq!(data(&world.log.ask(request("5", &out, read(8, None, false))).await), b"89");
    assert_eq!(reason(&world.log.ask(request("6", &out, read(10, None, false))).await), "InvalidRange");
    let big = format!("{dir}/wd/big");
    assert_eq!(data(&world.log.ask(request("7", &big, Operation::Read(ReadFile::default()))).await).len(), 1_000_000);
    for (id, path, expected) in [
        ("8", "../join.json", "PathNotAllowed"),
        ("9", "/etc/passwd", "PathNotAllowed"),
        ("10", "workitems/j/job-1/t/wd/leak", "PathNotAllowed"),
        ("11", "workitems/none", "FileNotFound"),
    ] {
        let parts = world.log.ask(request(id, path, Operation::Read(ReadFile::default()))).await;
        assert_eq!(reason(&parts), expected, "{path}");
    }
    let parts = world.log.ask(request("12", &big, Operation::Remove(RemoveFile { recursive: false }))).await;
    assert!(matches!(parts.last(), Some(Part::Done(_))));
    assert!(!world.task_dir("t").join("wd/big").exists());
    let parts = world.log.ask(request("13", "workitems", Operation::Remove(RemoveFile { recursive: true }))).await;
    assert_eq!(reason(&parts), "PathNotAllowed");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_growing_file_is_followed_to_its_end() {
    let world = World::start().await;
    world.assign(task(
        "t",
        "/bin/sh -c 'echo one; while [ ! -e ../go ]; do sleep 0.02; done; echo two; sleep 0.1; echo three'",
    ));
    eventually("the directory", || async { world.task_dir("t").exists().then_some(()) }).await;
    let follow = Operation::Read(ReadFile { range: None, follow: true });
    world.log.command(0, control_down::Message::FileRequest(request("f", "workitems/j/job-1/t/stdout.txt", follow)));
    let seen = || {
        let answers = world.log.answers.lock().unwrap();
        answers.get("f").map(|answers| answers.iter().filter_map(|answer| answer.part.clone()).collect::<Vec<_>>())
    };
    eventually("the first line", || async { seen().filter(|parts| data(parts) == b"one\n") }).await;
    std::fs::write(world.task_dir("t").join("go"), "").unwrap();
    let parts =
        eventually("the end", || async { seen().filter(|parts| matches!(parts.last(), Some(Part::Done(_)))) }).await;
    assert_eq!(data(&parts), b"one\ntwo\nthree\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_transfer_ends() {
    let world = World::start().await;
    world.assign(task("t", "/bin/sh -c 'echo one; sleep 1000'"));
    eventually("the file", || async { world.task_dir("t").join("stdout.txt").exists().then_some(()) }).await;
    let path = "workitems/j/job-1/t/stdout.txt";
    // More than are answered at the same time: the cancelled ones make room.
    for number in 0..40 {
        let id = format!("f{number}");
        let follow = Operation::Read(ReadFile { range: None, follow: true });
        world.log.command(0, control_down::Message::FileRequest(request(&id, path, follow)));
        eventually("the first line", || async { world.log.answers.lock().unwrap().get(&id).map(|_| ()) }).await;
        world
            .log
            .command(0, control_down::Message::FileRequest(request(&id, "", Operation::Cancel(CancelTransfer {}))));
    }
    let parts = eventually("room for another", || async {
        let id = uuid::Uuid::new_v4().to_string();
        let parts = world.log.ask(request(&id, path, Operation::Stat(StatFile {}))).await;
        reason(&parts).is_empty().then_some(parts)
    })
    .await;
    assert!(matches!(parts.last(), Some(Part::File(_))));
    world.stop().await;
}

/// Not a check: prints how long lines take from a task to who follows its output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement; run it alone"]
async fn delay_of_followed_lines() {
    let world = World::start().await;
    // Each line is the moment of its writing.
    world.assign(task("t", "/bin/sh -c 'for i in $(seq 50); do date +%s%N; sleep 0.07; done'"));
    eventually("the file", || async { world.task_dir("t").join("stdout.txt").exists().then_some(()) }).await;
    let follow = Operation::Read(ReadFile { range: None, follow: true });
    world.log.command(0, control_down::Message::FileRequest(request("f", "workitems/j/job-1/t/stdout.txt", follow)));
    let mut delays = Vec::new();
    let mut seen = 0;
    loop {
        let parts: Vec<_> = {
            let answers = world.log.answers.lock().unwrap();
            answers.get("f").into_iter().flatten().filter_map(|answer| answer.part.clone()).collect()
        };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let text = String::from_utf8(data(&parts)).unwrap();
        for line in text.lines().skip(seen) {
            delays.push(now.saturating_sub(line.parse().unwrap()) / 1000);
            seen += 1;
        }
        if matches!(parts.last(), Some(Part::Done(_))) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_micros(500)).await;
    }
    delays.sort_unstable();
    println!("{} lines: median {} µs, most {} µs", delays.len(), delays[delays.len() / 2], delays[delays.len() - 1]);
    world.stop().await;
}
