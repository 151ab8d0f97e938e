//! One trace from the client's call to the task's process.
#![allow(clippy::unwrap_used)]

use kiln_e2e::otlp::Collector;
use kiln_e2e::server::Server;
use kiln_e2e::work::{job, pool, shell_task};
use kiln_e2e::{LONG, until, work};
use kiln_proto::job::v1::{AddTaskRequest, TaskState};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn one_trace_leads_from_the_call_to_the_task() {
    let collector = Collector::start().await;
    let server = Server::start_with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())]).await;
    let client = server.client();
    pool(&client, "p", 1, 1).await;
    job(&client, "j", "p", &[]).await;

    let mut request = tonic::Request::new(AddTaskRequest {
        request_id: work::request_id(),
        job_id: "j".to_owned(),
        task: Some(shell_task("t", "echo $TRACEPARENT > \"$TEST_OUT\"; sleep 0.1").with_out(&server)),
    });
    // The caller's own span, as a traced program sends it. The client has no exporter here, so it adds none of its own.
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    client.jobs().add_task(request).await.unwrap();
    until("the task completes", LONG, async || {
        (work::task(&client, "j", "t").await.state() == TaskState::Completed).then_some(())
    })
    .await;

    let seen_by_task = std::fs::read_to_string(server.dir().join("traceparent")).unwrap();
    let parts: Vec<_> = seen_by_task.trim().split('-').collect();
    assert_eq!(parts[1], TRACE, "TRACEPARENT of the task is {seen_by_task:?}");

    // Spans are exported in batches: the agent's last ones come after the result.
    let spans = until("the spans arrive", LONG, async || {
        let spans = collector.trace(TRACE);
        let has = |id: &str| spans.iter().any(|span| span.id == id);
        let connected = spans.iter().all(|span| span.parent == CALLER || has(&span.parent));
        (has(parts[2]) && connected).then_some(spans)
    })
    .await;
    for span in &spans {
        println!("{} {} {} <- {}", span.service, span.name, span.id, span.parent);
    }
    let root = spans.iter().filter(|span| span.parent == CALLER).count();
    assert_eq!(root, 1, "the gateway continues the caller's span");
    for name in ["/kiln.job.v1.JobService/AddTask", "task.attempt", "task.stage_in", "task.run", "task.stage_out"] {
        assert!(spans.iter().any(|span| span.name == name), "no {name}: {spans:#?}");
    }
    assert!(spans.iter().any(|span| span.attributes.contains(&("task.id".to_owned(), "t".to_owned()))), "{spans:#?}");
    server.stop().await;
}

trait WithOut {
    fn with_out(self, server: &Server) -> Self;
}

impl WithOut for kiln_proto::job::v1::TaskSpec {
    fn with_out(mut self, server: &Server) -> Self {
        let value = server.dir().join("traceparent").to_str().unwrap().to_owned();
        self.environment.push(kiln_proto::common::v1::EnvironmentSetting { name: "TEST_OUT".to_owned(), value });
        self
    }
}
