//! The program as its users start it: real processes, a data directory and
//! ports of their own per test.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Generous: the machine may be busy, and nothing that works waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

fn kiln() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    for name in ["KILN_ENDPOINT", "KILN_ACCOUNT", "KILN_ACCOUNT_KEY", "KILN_DATA", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

struct Server {
    data: PathBuf,
    child: Child,
}

impl Server {
    fn start(data: &Path) -> Self {
        Self { data: data.to_owned(), child: spawn(data) }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        kiln().args(arguments).arg("--data").arg(&self.data).output().unwrap()
    }

    /// As `run`, for commands that take everything after `--`.
    fn exec(&self, arguments: &[&str]) -> Output {
        kiln().arg("--data").arg(&self.data).args(arguments).output().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

/// Starts a server and waits until it says that it is ready.
fn spawn(data: &Path) -> Child {
    let mut child = kiln()
        .args(["up", "--listen", "127.0.0.1:0", "--blob-listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .env("KILN_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = stdout.lines().map(Result::unwrap);
    let first = lines.next().unwrap_or_else(|| panic!("kiln up said nothing and ended: {:?}", child.wait()));
    assert!(first.starts_with("kiln is ready"), "{first}");
    println!("{first}");
    // Read to the end, so that the server never waits for its reader.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in processes_of(&self.data) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Processes that name the directory in their command line.
fn processes_of(directory: &Path) -> Vec<Pid> {
    let name = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(name) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_server_lives_once_per_directory_and_leaves_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());

    let env = stdout(&server.run(&["env"]));
    assert!(env.contains("export AZURE_BATCH_ENDPOINT=") && env.contains("BlobEndpoint="), "{env}");

    let second = server.run(&["up"]);
    assert_eq!(second.status.code(), Some(4), "{}", text(&second));
    assert!(text(&second).contains(&format!("process {}", server.child.id())), "{}", text(&second));

    assert_eq!(stdout(&server.exec(&["exec", "--", "echo", "hello world"])), "hello world\n");
    let failed = server.exec(&["exec", "--", "sh", "-c", "echo no >&2; exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed));
    assert_eq!(String::from_utf8_lossy(&failed.stderr), "no\n");
    let missing = server.exec(&["exec", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
    assert!(text(&missing).contains("CommandProgramNotFound"), "{}", text(&missing));

    let array = stdout(&server.exec(&["exec", "--array", "1-9:2", "--", "sh", "-c", "echo $KILN_ARRAY_INDEX"]));
    let mut lines: Vec<&str> = array.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[1] 1", "[3] 3", "[5] 5", "[7] 7", "[9] 9"]);

    // Nothing of `exec` is left but its pool.
    eventually("the jobs vanish", || stdout(&server.run(&["job", "list", "--output", "json"])).trim() == "[]");
    assert!(stdout(&server.run(&["pool", "list"])).contains("exec"));
    assert!(!processes_of(dir.path()).is_empty());

    server.signal(Signal::SIGINT);
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(processes_of(dir.path()), []);
    let gone = server.run(&["job", "list"]);
    assert_eq!(gone.status.code(), Some(3), "{}", text(&gone));
}

#[test]
fn data_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "acknowledged\n").unwrap();
    let mut server = Server::start(&data);
    let env = stdout(&server.run(&["env"]));
    stdout(&server.run(&["blob", "mkcontainer", "keep"]));
    stdout(&server.run(&["blob", "put", file.to_str().unwrap(), "keep/a.txt"]));
    stdout(&server.run(&["pool", "create", "p"]));
    stdout(&server.run(&["job", "create", "j", "--pool", "p"]));
    stdout(&server.exec(&["task", "add", "j", "t", "--", "echo", "done"]));

    server.signal(Signal::SIGKILL);
    assert_eq!(server.child.wait().unwrap().signal(), Some(9));
    server.child = spawn(&data);

    assert_eq!(stdout(&server.run(&["env"])), env, "keys or ports changed");
    assert_eq!(stdout(&server.run(&["blob", "get", "keep/a.txt"])), "acknowledged\n");
    eventually("the task completes", || stdout(&server.run(&["job", "counts", "j"])).contains("1          1"));
    assert_eq!(stdout(&server.run(&["logs", "j", "t"])), "done\n");
}

const WORKFLOW: &str = r#"
name: lengths
vars: {greeting: hello}
inputs:
  texts: {files: "texts/*.txt"}
pool: {nodes: 2, slots: 2}
tasks:
  - id: count-${stem}
    for_each: texts
    command: printf '${greeting} '; wc -c < ${file}
    outputs:
      - {files: ../stdout.txt, to: results, path: "${stem}.out"}
outputs:
  results: {fetch: out}
"#;

fn workflow(directory: &Path) -> PathBuf {
    std::fs::create_dir_all(directory.join("texts")).unwrap();
    for (name, content) in [("a b.txt", "12345"), ("c.txt", "")] {
        std::fs::write(directory.join("texts").join(name), content).unwrap();
    }
    let file = directory.join("w.yaml");
    std::fs::write(&file, WORKFLOW.replace("${file}", "'${file}'")).unwrap();
    file
}

#[test]
fn a_workflow_brings_its_server_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = workflow(dir.path());
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let output = kiln()
        .arg("run")
        .arg(&file)
        .args(["--set", "greeting=hi", "--output", "json", "--data"])
        .arg(dir.path().join("none"))
        .env("TMPDIR", &temporary)
        .output()
        .unwrap();
    let result: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    println!("{}", result["phases"]);
    assert_eq!((&result["succeeded"], &result["tasksSucceeded"]), (&true.into(), &2.into()), "{result}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    assert_eq!((read("a b.out").as_str(), read("c.out").as_str()), ("hi 5\n", "hi 0\n"));
    assert_eq!(processes_of(&temporary), []);
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn a_workflow_on_a_server_takes_its_things_away() {
    let dir = tempfile::tempdir().unwrap();
    let file = workflow(dir.path());
    let server = Server::start(&dir.path().join("data"));
    let output = server.run(&["run", file.to_str().unwrap()]);
    assert!(stdout(&output).contains("2 of 2 tasks succeeded"), "{}", text(&output));
    for list in [["pool", "list"], ["job", "list"], ["blob", "ls"]] {
        assert_eq!(stdout(&server.run(&[&list[..], &["--output", "json"]].concat())).trim(), "[]", "{list:?}");
    }

    std::fs::write(&file, "tasks:\n  - {id: bad, command: echo why >&2; exit 3}\n  - {id: good, command: exit 0}\n")
        .unwrap();
    let output = server.run(&["run", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("bad") && report.contains("why") && report.contains("1 of 2"), "{report}");
    assert_eq!(stdout(&server.run(&["job", "list", "--output", "json"])).trim(), "[]");
}

#[test]
fn a_stopped_workflow_takes_its_things_away() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.yaml");
    std::fs::write(&file, "tasks:\n  - {id: long, command: sleep 600}\n").unwrap();
    let server = Server::start(&dir.path().join("data"));
    let mut run = kiln()
        .arg("run")
        .arg(&file)
        .arg("--data")
        .arg(&server.data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the task runs", || {
        let jobs = stdout(&server.run(&["job", "list", "--output", "json"]));
        let jobs: serde_json::Value = serde_json::from_str(&jobs).unwrap();
        let Some(job) = jobs[0]["id"].as_str() else { return false };
        stdout(&server.run(&["task", "list", job])).contains("running")
    });
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    for list in [["pool", "list"], ["job", "list"]] {
        assert_eq!(stdout(&server.run(&[&list[..], &["--output", "json"]].concat())).trim(), "[]", "{list:?}");
    }
}

#[test]
fn mistakes_start_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.yaml");
    std::fs::write(&file, "tasks:\n  - {id: a, comand: x}\n").unwrap();
    let output = kiln().arg("run").arg(&file).arg("--data").arg(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("w.yaml:2:13: tasks[0].comand: unknown field"), "{}", text(&output));
    let output = kiln().args(["job", "list", "--data"]).arg(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("kiln up"), "{}", text(&output));
}
