//! A program that is not Kiln's reads events by docs/events.md: a queue of its own at the broker, and nothing of ours but
//! the contract.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use kiln_e2e::processes::{Deployment, Options, amqp_url};
use kiln_e2e::work::{job, pool, run_task, shell_task};
use kiln_proto::common::v1::ExecutionResult;
use kiln_proto::events::v1::EventBatch;
use kiln_proto::events::v1::event::Payload;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use prost::Message;

const TASKS: usize = 3;

fn text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("no text: {other:?}"),
    }
}

#[tokio::test]
async fn an_outside_program_reads_along_with_a_queue_of_its_own() {
    let deployment = Deployment::start_with(&Deployment::free_host(), Options::default()).await;
    let exchange = format!("{}kiln.events", deployment.prefix());
    let queue = format!("{}outside", deployment.prefix());
    let broker = Connection::connect(&amqp_url(), ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(10_000));
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    let bind = QueueBindOptions::default();
    let (of, from) = (queue.as_str(), exchange.as_str());
    channel.queue_bind(of.into(), from.into(), "job.task.finished".into(), bind, FieldTable::default()).await.unwrap();

    let client = deployment.client();
    pool(&client, "p", 1, 2).await;
    job(&client, "j", "p", &[]).await;
    for n in 0..TASKS {
        let done = run_task(&client, "j", shell_task(&format!("t{n}"), "true")).await;
        assert_eq!(done.execution.unwrap().result(), ExecutionResult::Success);
    }

    channel.basic_qos(10, BasicQosOptions::default()).await.unwrap();
    let consume = channel.basic_consume(
        queue.as_str().into(),
        "outside".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut deliveries = consume.await.unwrap();
    let mut finished: BTreeMap<String, String> = BTreeMap::new();
    let (mut given_back, mut sequences) = (BTreeSet::new(), BTreeSet::new());
    let all = async {
        while finished.len() < TASKS {
            let delivery = deliveries.next().await.unwrap().unwrap();
            let properties = delivery.properties.clone();
            let headers = properties.headers().clone().unwrap();
            let header = |name: &str| headers.inner().get(name).map(text);
            let batch = EventBatch::decode(&*delivery.data).unwrap();
            let first = batch.events.first().unwrap();
            assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/protobuf");
            assert_eq!(*properties.delivery_mode(), Some(2));
            assert_eq!(properties.message_id().as_ref().unwrap().as_str(), first.id);
            assert_eq!(header("cloudEvents:specversion").as_deref(), Some("1.0"));
            assert_eq!(header("cloudEvents:id").as_ref(), Some(&first.id));
            assert_eq!(header("cloudEvents:source").as_ref(), Some(&first.source));
            assert_eq!(header("cloudEvents:type").as_deref(), Some("job.task.finished"));
            assert_eq!(delivery.routing_key.as_str(), "job.task.finished");
            assert_eq!(header("traceparent").unwrap_or_default(), first.traceparent);
            // What is not acknowledged comes again, the same.
            if given_back.insert(first.id.clone()) {
                let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                delivery.nack(options).await.unwrap();
                continue;
            }
            assert!(delivery.redelivered);
            for event in &batch.events {
                assert_eq!(event.r#type, "job.task.finished");
                let Some(Payload::Task(task)) = &event.payload else { panic!("{event:?}") };
                assert_eq!((task.job_id.as_str(), task.exit_code), ("j", Some(0)));
                assert_eq!(event.subject, format!("jobs/j/tasks/{}", task.task_id));
                assert!(sequences.insert((event.source.clone(), event.sequence)), "unique");
                finished.insert(task.task_id.clone(), event.id.clone());
            }
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
    };
    tokio::time::timeout(kiln_e2e::LONG, all).await.expect("all tasks are told");
    assert_eq!(finished.keys().map(String::as_str).collect::<Vec<_>>(), ["t0", "t1", "t2"]);

    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    broker.close(200, "OK".into()).await.unwrap();
    deployment.stop().await;
}
