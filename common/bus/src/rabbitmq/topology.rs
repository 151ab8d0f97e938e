//! Exchanges, queues and bindings.
//!
//! Arguments of a queue cannot be changed once it exists: the broker refuses a
//! declaration that differs. Changing one here needs a new queue name, or an
//! operator who deletes the empty queue; the error says so.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::RabbitConfig;
use super::link::Session;
use super::wire::short;
use crate::{BusError, QueueSpec};

/// Messages the dead-letter queue keeps; the oldest go first.
const MAX_DEAD_LETTERS: i64 = 100_000;

/// The queue's name at the broker.
pub(super) fn queue_name(config: &RabbitConfig, queue: &str) -> String {
    format!("{}{queue}", config.queue_prefix)
}

pub(super) fn dead_letter_name(config: &RabbitConfig) -> String {
    format!("{}.dead-letters", config.exchange)
}

/// Declares the exchange of events, and exchange and queue for dead letters.
pub(super) async fn declare_exchanges(
    config: &RabbitConfig,
    session: &Session,
    channel: &Channel,
) -> Result<(), BusError> {
    let dead = dead_letter_name(config);
    for (name, kind) in [(&config.exchange, ExchangeKind::Topic), (&dead, ExchangeKind::Fanout)] {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declare = channel.exchange_declare(short("exchange", name)?, kind, options, FieldTable::default());
        session.answer("exchange.declare", declare).await?;
    }
    let mut arguments = quorum();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_DEAD_LETTERS));
    queue(session, channel, &dead, arguments).await?;
    bind(session, channel, &dead, &dead, "").await
}

/// Declares `queue` on a channel of its own: a refusal closes the channel.
pub(super) async fn declare_queue(config: &RabbitConfig, session: &Session, spec: &QueueSpec) -> Result<(), BusError> {
    let channel = session.channel().await?;
    let name = queue_name(config, &spec.name);
    let mut arguments = quorum();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(config.delivery_limit.into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(config.max_queue_messages.into()));
    // Events are dealt with in their order: of the replicas of a service one gets
    // them, the next when it is gone.
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    // Full means that publishers keep their messages, not that some are lost.
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments.insert("x-dead-letter-exchange".into(), text(&dead_letter_name(config)));
    queue(session, &channel, &name, arguments).await?;
    for binding in &spec.bindings {
        bind(session, &channel, &name, &config.exchange, binding).await?;
    }
    Ok(())
}

async fn queue(session: &Session, channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), BusError> {
    let declare = channel.queue_declare(short("queue name", name)?, QueueDeclareOptions::durable(), arguments);
    session.answer("queue.declare", declare).await.map(drop).map_err(|error| match error {
        BusError::Refused(why) if why.contains("PRECONDITION_FAILED") => BusError::Refused(format!(
            "the queue {name} was made with other settings, perhaps by an older version: stop the services that consume \
             from it when it is empty, delete it (rabbitmqctl delete_queue {name} --if-empty), and start again ({why})"
        )),
        other => other,
    })
}

async fn bind(session: &Session, channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), BusError> {
    let bind = channel.queue_bind(
        short("queue name", queue)?,
        short("exchange", exchange)?,
        short("binding", key)?,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    session.answer("queue.bind", bind).await
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Deletes what the declarations above made.
#[cfg(any(test, feature = "conformance"))]
pub(super) async fn remove(config: &RabbitConfig, session: &Session, queues: &[String]) -> Result<(), BusError> {
    use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};

    let channel = session.channel().await?;
    let dead = dead_letter_name(config);
    for name in queues.iter().map(|queue| queue_name(config, queue)).chain([dead.clone()]) {
        let delete = channel.queue_delete(short("queue name", &name)?, QueueDeleteOptions::default());
        session.answer("queue.delete", delete).await?;
    }
    for name in [&config.exchange, &dead] {
        let delete = channel.exchange_delete(short("exchange", name)?, ExchangeDeleteOptions::default());
        session.answer("exchange.delete", delete).await?;
    }
    Ok(())
}
