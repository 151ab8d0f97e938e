//! Files in and out with the real program: the same input of a thousand tasks, trees with odd names, transfers that
//! outlive the server.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use kiln_e2e::programs::{command, kiln, run_kiln, text};
use kiln_e2e::server::Server;
use kiln_e2e::work::{add_tasks, job, pool, shell_task, until_counts};
use kiln_e2e::{LONG, until};
use kiln_proto::common::v1::ResourceFile;
use kiln_proto::common::v1::resource_file::Source;

const MIB: usize = 1024 * 1024;

/// Bytes that are not the same anywhere.
fn content(length: usize, seed: u32) -> Vec<u8> {
    let words = (0..length.div_ceil(4)).flat_map(|at| (at as u32 ^ seed).wrapping_mul(2_654_435_761).to_le_bytes());
    words.take(length).collect()
}

async fn done(server: &Server, arguments: &[&str]) -> String {
    let output = run_kiln(server, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes of blobs that the storage service has sent.
async fn sent(server: &Server) -> u64 {
    let file = std::fs::read(server.data().join("deployment.json")).unwrap();
    let deployment: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let port = &deployment["ports"]["storage"];
    let metrics = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap().text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("kiln_storage_sent_bytes_total "));
    line.unwrap_or_else(|| panic!("{metrics}")).parse::<f64>().unwrap() as u64
}

/// All files of a tree by their names.
fn tree(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_thousand_tasks_with_the_same_input_read_it_once_per_node() {
    let server = Server::start().await;
    let client = server.client();
    let input = server.dir().join("input");
    std::fs::write(&input, content(MIB, 1)).unwrap();
    done(&server, &["blob", "mkcontainer", "data"]).await;
    done(&server, &["blob", "cp", input.to_str().unwrap(), "kiln:data/input"]).await;
    let url = done(&server, &["blob", "sas", "data/input", "--output", "json"]).await;
    let url: serde_json::Value = serde_json::from_str(&url).unwrap();
    pool(&client, "p", 2, 8).await;
    job(&client, "j", "p", &[]).await;
    let before = sent(&server).await;
    let tasks = (0..1000).map(|number| {
        let mut task = shell_task(&format!("t{number}"), "test $(wc -c < input) = 1048576");
        task.resource_files = vec![ResourceFile {
            source: Some(Source::HttpUrl(url["url"].as_str().unwrap().to_owned())),
            file_path: "input".to_owned(),
            ..ResourceFile::default()
        }];
        task
    });
    add_tasks(&client, "j", tasks.collect()).await;
    let counts = until_counts(&client, "j", LONG, |counts| counts.completed == 1000).await;
    assert_eq!((counts.succeeded, counts.failed), (1000, 0));
    let read = sent(&server).await - before;
    assert!(read <= 2 * MIB as u64, "{read} bytes were read by two nodes");
    assert!(read >= MIB as u64);
    server.stop().await;
}

#[tokio::test]
async fn trees_go_up_and_come_back_the_same() {
    let server = Server::start().await;
    let (tree_dir, back) = (server.dir().join("tree"), server.dir().join("back"));
    let names = [
        "a.txt",
        "empty",
        "b c/ü 日本.bin",
        "b c/%41+&=?#.txt",
        "d/-rf",
        "d/[x]*",
        "d/.hidden",
        "e/\u{1}\\n",
        "e/kiln:x/~",
    ];
    for (number, name) in names.iter().enumerate() {
        let path = tree_dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let length = if *name == "empty" { 0 } else { 1000 * number + 1 };
        std::fs::write(path, content(length, number as u32)).unwrap();
    }
    // Larger than one call.
    std::fs::write(tree_dir.join("large"), content(17 * MIB + 5, 99)).unwrap();
    let all = tree(&tree_dir);
    let (from, to) = (tree_dir.to_str().unwrap(), back.to_str().unwrap());
    done(&server, &["blob", "mkcontainer", "trees"]).await;
    let up = ["blob", "cp", "-r", from, "kiln:trees/t"];
    let said = done(&server, &up).await;
    assert!(said.starts_with("10 copied"), "{said}");
    let again = done(&server, &[&up[..], &["--output", "json"]].concat()).await;
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!((again["copied"].as_u64(), again["same"].as_u64()), (Some(0), Some(10)), "{again}");
    done(&server, &["blob", "cp", "-r", "kiln:trees/t", to]).await;
    assert!(tree(&back) == all, "{:?}", tree(&back).keys());

    // From blob to blob, and what a pattern means.
    done(&server, &["blob", "mkcontainer", "copies"]).await;
    done(&server, &["blob", "cp", "-r", "kiln:trees/t", "kiln:copies"]).await;
    let listed = done(&server, &["blob", "ls", "copies"]).await;
    assert!(listed.contains("b c/") && !listed.contains("日本"), "{listed}");
    let some = server.dir().join("some");
    done(&server, &["blob", "cp", "kiln:copies/b c/*.txt", some.to_str().unwrap()]).await;
    assert_eq!(tree(&some).keys().collect::<Vec<_>>(), ["%41+&=?#.txt"]);

    // Only what differs goes, and what is gone goes, too.
    std::fs::write(tree_dir.join("a.txt"), "new").unwrap();
    std::fs::remove_file(tree_dir.join("d/-rf")).unwrap();
    let sync = ["blob", "sync", from, "kiln:copies", "--delete"];
    let said = done(&server, &[&sync[..], &["--dry-run"]].concat()).await;
    assert!(said.contains("delete kiln:copies/d/-rf") && said.contains("nothing was done"), "{said}");
    let said = done(&server, &sync).await;
    assert!(said.ends_with("1 copied (3 B), 8 the same, 1 deleted\n"), "{said}");
    std::fs::write(back.join("extra"), "x").unwrap();
    done(&server, &["blob", "sync", "kiln:copies", to, "--delete"]).await;
    assert!(tree(&back) == tree(&tree_dir));

    // A name that leads out of the directory fails, and nothing else does.
    done(&server, &["blob", "put", input_of(&server).as_str(), "copies/../../evil"]).await;
    std::os::unix::fs::symlink(server.dir(), server.dir().join("out-link")).unwrap();
    let evil = server.dir().join("evil-target");
    std::fs::create_dir(&evil).unwrap();
    std::os::unix::fs::symlink(server.dir(), evil.join("d")).unwrap();
    let output = run_kiln(&server, &["blob", "cp", "-r", "kiln:copies", evil.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(!server.dir().join("evil").exists() && !server.dir().join(".hidden").exists());
    assert!(evil.join("a.txt").exists(), "the others are copied");

    let said = done(&server, &["blob", "rm", "-r", "copies", "trees/t/[ab]*"]).await;
    assert!(said.contains("deleted kiln:copies/a.txt") && said.contains("deleted kiln:trees/t/a.txt"), "{said}");
    assert_eq!(done(&server, &["blob", "ls", "-r", "copies", "--output", "json"]).await, "[]\n");
    let output = run_kiln(&server, &["blob", "rm", "copies/none"]).await;
    assert_eq!(output.status.code(), Some(1));
    server.stop().await;
}

fn input_of(server: &Server) -> String {
    let path = server.dir().join("plain");
    std::fs::write(&path, "x").unwrap();
    path.to_str().unwrap().to_owned()
}

/// Whole blocks of an upload; other files come and go meanwhile.
fn blocks(directory: &Path) -> usize {
    let shards = std::fs::read_dir(directory).unwrap().map(|shard| shard.unwrap().path());
    let objects = shards.filter_map(|shard| std::fs::read_dir(shard).ok()).flatten().flatten();
    objects.filter(|object| object.metadata().is_ok_and(|object| object.len() == 8 * MIB as u64)).count()
}

#[tokio::test]
async fn transfers_go_on_when_the_server_was_killed() {
    let mut server = Server::start().await;
    let (large, back) = (server.dir().join("large"), server.dir().join("back"));
    let bytes = content(64 * MIB + 1, 7);
    std::fs::write(&large, &bytes).unwrap();
    done(&server, &["blob", "mkcontainer", "data"]).await;
    let start = |server: &Server, arguments: &[&str]| {
        let mut program = command(&kiln());
        program.args(arguments).envs(server.variables()).stdout(std::process::Stdio::piped());
        program.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };

    let up = start(&server, &["blob", "cp", large.to_str().unwrap(), "kiln:data/large"]);
    // A block is durable, not all are.
    until("the first blocks are there", LONG, async || (blocks(&server.data().join("blobs")) >= 1).then_some(())).await;
    server.kill_9().await;
    server.restart().await;
    let output = up.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let down = start(&server, &["blob", "cp", "kiln:data/large", back.to_str().unwrap()]);
    until("the first bytes are there", LONG, async || {
        let files = std::fs::read_dir(server.dir()).unwrap().map(|entry| entry.unwrap());
        let mut parts = files.filter(|entry| entry.file_name().to_string_lossy().starts_with(".kiln-"));
        parts.any(|entry| entry.metadata().is_ok_and(|part| part.len() > 0)).then_some(())
    })
    .await;
    server.kill_9().await;
    server.restart().await;
    let output = down.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(std::fs::read(&back).unwrap() == bytes);
    server.stop().await;
}
