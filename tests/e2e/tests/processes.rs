//! The services as processes of their own over RabbitMQ: the same work, and the death of each service in the middle of
//! it, with their records in files and in PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kiln_e2e::processes::{Deployment, Options};
use kiln_e2e::work::{self, add_tasks, by_subject, job, pool, shell_task, until_counts};
use kiln_e2e::{LONG, until};

const TASKS: usize = 300;

#[tokio::test]
async fn separate_services_do_the_same_work_and_survive_each_other() {
    work_while_services_die(Deployment::start().await).await;
}

#[tokio::test]
async fn separate_services_on_postgresql_do_the_same_work_and_survive_each_other() {
    let options = Options { postgres: true, ..Options::default() };
    work_while_services_die(Deployment::start_with(&Deployment::free_host(), options).await).await;
}

async fn work_while_services_die(mut deployment: Deployment) {
    let client = deployment.client();
    pool(&client, "p", 2, 2).await;
    job(&client, "j", "p", &[]).await;
    add_tasks(&client, "j", (0..TASKS).map(|n| shell_task(&format!("t{n}"), "sleep 0.01")).collect()).await;
    for service in ["job-svc", "monitor-svc", "pool-svc", "storage-svc", "gateway"] {
        deployment.kill_9_and_restart(service).await;
    }
    let counts = until_counts(&client, "j", LONG, |counts| counts.completed == TASKS as i64).await;
    assert_eq!(counts.succeeded, TASKS as i64, "{counts:?}");

    let finished = until("every completion has come over RabbitMQ", Duration::from_secs(60), async || {
        let events = work::events(&client, "jobs/j/tasks/", "job.task.finished").await;
        (events.len() >= TASKS).then_some(events)
    })
    .await;
    let by_task = by_subject(&finished);
    assert_eq!((finished.len(), by_task.len()), (TASKS, TASKS), "each completion is recorded once");
    deployment.stop().await;
}
