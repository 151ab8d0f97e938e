//! Tasks as people really have them: sweeps with dependencies, programs that talk to each other, that leave processes
//! behind, take too much memory, write without end, or die by a signal.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiln_client::Client;
use kiln_e2e::rest::Batch;
use kiln_e2e::server::{Server, find_files, processes_of};
use kiln_e2e::work::{add_tasks, attempts, job, pool, request_id, run_task, shell_task, task, until_counts};
use kiln_e2e::{LONG, until};
use kiln_proto::common::v1::{ExecutionResult, Resources};
use kiln_proto::job::v1::{
    CreateJobRequest, ExplainTaskRequest, GetJobRequest, JobSpec, JobState, ListSubtasksRequest, MultiInstanceSettings,
    OnAllTasksComplete, SubtaskState, Task, TaskDependencies, TaskIdRange, TaskSpec, TaskState, TerminateTaskRequest,
    UpdateJobRequest,
};

/// Tasks of the sweep between the one before them all and the one after them all.
const SWEEP: i32 = 498;

/// A job that may have dependencies, and that sees `$RENDEZVOUS`, a directory of the test.
async fn dependent_job(client: &Client, id: &str, rendezvous: &std::path::Path) {
    std::fs::create_dir_all(rendezvous).unwrap();
    let spec = JobSpec {
        pool_id: "p".to_owned(),
        uses_task_dependencies: true,
        common_environment: vec![kiln_proto::common::v1::EnvironmentSetting {
            name: "RENDEZVOUS".to_owned(),
            value: rendezvous.to_str().unwrap().to_owned(),
        }],
        ..Default::default()
    };
    let request = CreateJobRequest { request_id: request_id(), id: id.to_owned(), spec: Some(spec) };
    client.jobs().create_job(request).await.unwrap();
}

fn after(mut task: TaskSpec, ids: &[&str], range: Option<(i32, i32)>) -> TaskSpec {
    task.depends_on = Some(TaskDependencies {
        task_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        task_id_ranges: range.into_iter().map(|(start, end)| TaskIdRange { start, end }).collect(),
    });
    task
}

fn failure(task: &Task) -> &str {
    task.execution.as_ref().unwrap().failure.as_ref().map_or("", |failure| failure.code.as_str())
}

fn exit_code(task: &Task) -> Option<i32> {
    task.execution.as_ref().unwrap().exit_code
}

async fn until_job(client: &Client, id: &str, state: JobState) -> kiln_proto::job::v1::Job {
    until("the job gets there", LONG, async || {
        let request = GetJobRequest { id: id.to_owned(), precondition: None };
        let job = client.jobs().get_job(request).await.ok()?.into_inner().job.unwrap();
        (job.state() == state).then_some(job)
    })
    .await
}

#[tokio::test]
async fn a_sweep_of_500_tasks_fans_out_and_in() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 2, 4).await;
    let shared = server.dir().join("sweep");
    dependent_job(&client, "sweep", &shared).await;
    // Children before their parents: the order of adding says nothing.
    let collect = "test $(ls $RENDEZVOUS | grep -c ^part) = 498 && cat $RENDEZVOUS/part.* > $RENDEZVOUS/sum";
    let mut tasks = vec![after(shell_task("collect", collect), &[], Some((1, SWEEP)))];
    let part = "test -f $RENDEZVOUS/seed && echo $AZ_BATCH_TASK_ID > $RENDEZVOUS/part.$AZ_BATCH_TASK_ID";
    tasks.extend((1..=SWEEP).map(|number| after(shell_task(&number.to_string(), part), &["seed"], None)));
    tasks.push(shell_task("seed", "sleep 0.3; touch $RENDEZVOUS/seed"));
    add_tasks(&client, "sweep", tasks).await;
    let counts = until_counts(&client, "sweep", LONG, |counts| counts.completed == i64::from(SWEEP) + 2).await;
    assert_eq!((counts.succeeded, counts.failed), (i64::from(SWEEP) + 2, 0), "each found what it depends on");
    let mut numbers: Vec<i32> =
        std::fs::read_to_string(shared.join("sum")).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=SWEEP).collect::<Vec<_>>());
    for id in ["seed", "1", "498", "collect"] {
        assert_eq!(attempts(&client, "sweep", id).await.len(), 1, "attempts of {id}");
    }
    server.stop().await;
}

#[tokio::test]
async fn tasks_behind_a_failed_one_end_their_job_and_say_why_they_wait() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 1, 2).await;
    let shared = server.dir().join("rendezvous");
    dependent_job(&client, "j", &shared).await;
    add_tasks(
        &client,
        "j",
        vec![
            shell_task("bad", "until [ -f $RENDEZVOUS/go ]; do sleep 0.05; done; exit 3"),
            after(shell_task("child", "true"), &["bad"], None),
            after(shell_task("grandchild", "true"), &["child"], None),
        ],
    )
    .await;
    // Only now: a job without tasks would be over at once.
    let request = UpdateJobRequest {
        request_id: request_id(),
        id: "j".to_owned(),
        on_all_tasks_complete: OnAllTasksComplete::TerminateJob.into(),
        ..Default::default()
    };
    client.jobs().update_job(request).await.unwrap();
    let explain = async |id: &str| {
        let request = ExplainTaskRequest { job_id: "j".to_owned(), task_id: id.to_owned() };
        client.jobs().explain_task(request).await.unwrap().into_inner()
    };
    let why = explain("child").await;
    assert_eq!((why.reason.as_str(), why.never), ("DependencyOpen", false), "{why:?}");
    std::fs::write(shared.join("go"), "").unwrap();
    let job = until_job(&client, "j", JobState::Completed).await;
    assert_eq!(job.terminate_reason, "AllTasksComplete");
    for id in ["child", "grandchild"] {
        let task = task(&client, "j", id).await;
        assert_eq!((task.state(), task.attempt), (TaskState::Active, 0), "{id} never ran");
    }
    server.stop().await;
}

/// Each instance but the first serves its name over TCP; the first asks all of them.
#[tokio::test]
async fn instances_of_a_task_talk_over_tcp() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 3, 1).await;
    let shared = server.dir().join("rendezvous");
    dependent_job(&client, "j", &shared).await;
    let serve = "import os,socket,sys
s=socket.create_server((\"127.0.0.1\",0)); d=os.environ[\"RENDEZVOUS\"]; n=os.environ[\"AZ_BATCH_NODE_ID\"]
open(d+\"/.\"+n,\"w\").write(str(s.getsockname()[1])); os.rename(d+\"/.\"+n,d+\"/port.\"+n)
if os.fork(): sys.exit(0)
while True: c,_=s.accept(); c.sendall(n.encode()); c.close()";
    std::fs::write(shared.join("serve.py"), serve).unwrap();
    let ask = "import glob,os,socket
names=[socket.create_connection((h,int(open(p).read()))).recv(99).decode()
  for h,p in zip(os.environ[\"AZ_BATCH_HOST_LIST\"].split(\",\"),sorted(glob.glob(os.environ[\"RENDEZVOUS\"]+\"/port.*\")))]
assert len(set(names))==3,names
print(*names)";
    std::fs::write(shared.join("ask.py"), ask).unwrap();
    let mut gang = shell_task("gang", "exec python3 $RENDEZVOUS/ask.py");
    gang.multi_instance = Some(MultiInstanceSettings {
        number_of_instances: 3,
        coordination_command_line: "/bin/sh -c 'exec python3 $RENDEZVOUS/serve.py'".to_owned(),
        common_resource_files: Vec::new(),
    });
    // Something in the way at first: the gang needs all three nodes at once.
    add_tasks(&client, "j", vec![shell_task("first", "until [ -f $RENDEZVOUS/go ]; do sleep 0.05; done")]).await;
    until_counts(&client, "j", LONG, |counts| counts.running == 1).await;
    add_tasks(&client, "j", vec![gang]).await;
    assert_eq!(task(&client, "j", "gang").await.state(), TaskState::Active);
    std::fs::write(shared.join("go"), "").unwrap();
    let done = until("the gang has ended", LONG, async || {
        let task = task(&client, "j", "gang").await;
        (task.state() == TaskState::Completed).then_some(task)
    })
    .await;
    assert_eq!((exit_code(&done), failure(&done)), (Some(0), ""), "{done:?}");
    let subtasks = until("the others are stopped", LONG, async || {
        let request = ListSubtasksRequest { job_id: "j".to_owned(), task_id: "gang".to_owned() };
        let subtasks = client.jobs().list_subtasks(request).await.unwrap().into_inner().subtasks;
        subtasks.iter().all(|subtask| subtask.state() == SubtaskState::Completed).then_some(subtasks)
    })
    .await;
    assert_eq!(subtasks.iter().map(|subtask| subtask.id).collect::<Vec<_>>(), [1, 2]);
    until("nothing of the instances is left", LONG, async || {
        processes_of(&shared).iter().all(|(_, command)| !command.contains("serve.py")).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn grandchildren_that_ignore_every_signal_they_can_end_with_their_task() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 1, 2).await;
    let shared = server.dir().join("grandchildren");
    dependent_job(&client, "j", &shared).await;
    let stubborn = "trap \"\" TERM HUP INT; (trap \"\" TERM HUP INT; setsid sh -c \"sleep 1000 & sleep 1001\") & ";
    let leaves = run_task(&client, "j", shell_task("leaves", &format!("{stubborn} echo left"))).await;
    assert_eq!(exit_code(&leaves), Some(0));
    add_tasks(&client, "j", vec![shell_task("stays", &format!("{stubborn} touch $RENDEZVOUS/up; wait"))]).await;
    until("it runs", LONG, async || shared.join("up").exists().then_some(())).await;
    let request =
        TerminateTaskRequest { job_id: "j".to_owned(), task_id: "stays".to_owned(), ..TerminateTaskRequest::default() };
    client.jobs().terminate_task(request).await.unwrap();
    assert_eq!(failure(&task(&client, "j", "stays").await), "TaskEnded");
    until("all of them are gone", LONG, async || {
        processes_of(&shared).iter().all(|(_, command)| !command.contains("sleep 100")).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn programs_that_break_limits_or_die_are_told_apart() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 1, 2).await;
    job(&client, "j", "p", &[]).await;

    let mut greedy = shell_task("greedy", "exec python3 -c \"x = bytearray(400 << 20); print(len(x))\"");
    greedy.resources = Some(Resources { memory_bytes: 64 << 20, ..Default::default() });
    let greedy = run_task(&client, "j", greedy).await;
    assert_eq!(failure(&greedy), "MemoryLimitExceeded", "{greedy:?}");
    let mut modest = shell_task("modest", "exec python3 -c \"print(1)\"");
    modest.resources = Some(Resources { memory_bytes: 256 << 20, ..Default::default() });
    assert_eq!(exit_code(&run_task(&client, "j", modest).await), Some(0));

    let segfault = run_task(&client, "j", shell_task("segfault", "kill -SEGV $$")).await;
    assert_eq!((exit_code(&segfault), failure(&segfault)), (Some(139), "FailureExitCode"));
    assert_eq!(segfault.execution.unwrap().result(), ExecutionResult::Failure);

    let loud = run_task(&client, "j", shell_task("loud", "exec head -c 1073741824 /dev/zero")).await;
    assert_eq!(exit_code(&loud), Some(0), "{loud:?}");
    let stdout = Batch::of(&server).send("HEAD", "/jobs/j/tasks/loud/files/stdout.txt", "").await;
    assert_eq!(stdout.header("content-length"), Some("1073741824"), "{stdout:?}");
    let on_disk = find_files(&server.data(), "stdout.txt");
    assert!(on_disk.iter().any(|file| file.metadata().unwrap().len() == 1 << 30));
    server.stop().await;
}

/// A task that asks for more than any node has is not left silent.
#[tokio::test]
async fn what_can_never_run_is_said_at_once() {
    let server = Server::start().await;
    let client = server.client();
    pool(&client, "p", 1, 2).await;
    job(&client, "j", "p", &[]).await;
    let mut huge = shell_task("huge", "true");
    huge.resources = Some(Resources { memory_bytes: 1 << 60, ..Default::default() });
    let wide = TaskSpec { required_slots: 3, ..shell_task("wide", "true") };
    add_tasks(&client, "j", vec![huge, wide]).await;
    for (id, reason) in [("huge", "ResourcesTooLarge"), ("wide", "RequiredSlotsTooLarge")] {
        let request = ExplainTaskRequest { job_id: "j".to_owned(), task_id: id.to_owned() };
        let why = client.jobs().explain_task(request).await.unwrap().into_inner();
        assert_eq!((why.reason.as_str(), why.never), (reason, true), "{why:?}");
        let subject = format!("jobs/j/tasks/{id}");
        let told = until("it is announced", Duration::from_secs(60), async || {
            kiln_e2e::work::events(&client, &subject, "job.task.unschedulable").await.pop()
        })
        .await;
        assert_eq!(told.event.unwrap().subject, subject);
    }
    // It holds up nobody.
    assert_eq!(exit_code(&run_task(&client, "j", shell_task("small", "true")).await), Some(0));
    server.stop().await;
}
