//! Dead letters: messages that a queue could not deliver, and what an operator
//! does about them.
//!
//! They wait in one queue of the deployment, `<exchange>.dead-letters`. Letters
//! that are looked at are held until all have been, and given back when the
//! channel closes, so nobody else sees them meanwhile and a look loses none.
//!
//! A replay sends the message to the queue that it comes from, and to no other,
//! and takes the letter away when the broker has the message. Who is killed between
//! the two leaves both; consumers drop the repetition by its events' source and
//! sequence, as any other.

use std::future::Future;
use std::time::Duration;

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::time::{Instant, timeout};

use super::{RabbitConfig, topology, wire};
use crate::{BusError, Message};

/// Headers of the broker about the letter's death begin so.
const OF_DEATH: [&str; 4] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count"];

/// Whether letters that were given back are there again is looked at this often.
const BACK: Duration = Duration::from_millis(20);

/// A message nobody could deal with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// What was published.
    pub message: Message,
    /// The queue it comes from, as the broker names it; empty if it does not say.
    pub queue: String,
    /// `delivery_limit`, `rejected`, `maxlen`, `expired`; empty if the broker does not say.
    pub reason: String,
    /// How often it became a dead letter of that queue for that reason.
    pub times: u64,
    /// When it first did, in seconds since the Unix epoch.
    pub since: Option<u64>,
}

/// What becomes of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// It goes to the queue it comes from.
    Replay,
    /// It is thrown away.
    Drop,
}

/// What was done with the letters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Letters that were there.
    pub seen: usize,
    /// Ids of messages that were sent to their queues.
    pub replayed: Vec<String>,
    /// Ids of messages that were thrown away.
    pub dropped: Vec<String>,
    /// Ids of letters that were to be replayed and stay, and why.
    pub refused: Vec<(String, String)>,
}

/// The dead letters of one deployment, over a connection of their own.
#[derive(Debug)]
pub struct DeadLetters {
    connection: Connection,
    config: RabbitConfig,
    queue: String,
}

impl DeadLetters {
    /// Connects. Nothing is declared: who names a wrong deployment makes none.
    ///
    /// # Errors
    /// The broker cannot be reached, or has no such deployment.
    pub async fn open(config: RabbitConfig) -> Result<Self, BusError> {
        let uri = config.url.parse().map_err(|error| BusError::Refused(format!("the broker's URL: {error}")))?;
        let properties = ConnectionProperties::default().with_connection_name(config.name.clone().into());
        let connection = timeout(config.answer_within, Connection::connect_uri(uri, properties)).await;
        let connection = connection
            .map_err(|_| BusError::Unavailable(format!("no connection within {:?}", config.answer_within)))?
            .map_err(|error| BusError::Unavailable(error.to_string()))?;
        let queue = topology::dead_letter_name(&config);
        Ok(Self { connection, config, queue })
    }

    /// Asks about every letter that is there now, the oldest first, and does what
    /// `decide` says.
    ///
    /// # Errors
    /// The broker went away, or refuses. What was done until then is done; all
    /// other letters stay.
    pub async fn each(&self, mut decide: impl FnMut(&DeadLetter) -> Fate) -> Result<Done, BusError> {
        let channel = self.answer("channel.open", self.connection.create_channel()).await?;
        let name = wire::short("queue name", &self.queue)?;
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let found = self.answer("queue.declare", channel.queue_declare(name.clone(), look, FieldTable::default()));
        let found = found.await.map_err(|error| match error {
            BusError::Refused(why) if why.contains("NOT_FOUND") => BusError::Refused(format!(
                "there is no queue {}: the virtual host of the URL or the prefix is another deployment's",
                self.queue
            )),
            other => other,
        })?;
        self.answer("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let mut done = Done::default();
        // Letters that come meanwhile, also of messages replayed here, are for the next look.
        for _ in 0..found.message_count() {
            let get = channel.basic_get(name.clone(), BasicGetOptions { no_ack: false });
            let Some(got) = self.answer("basic.get", get).await? else { break };
            let mut delivery = got.delivery;
            let properties = delivery.properties.clone();
            let letter = letter(&properties, wire::message(&mut delivery));
            done.seen += 1;
            let id = letter.message.id.clone();
            match decide(&letter) {
                Fate::Keep => continue,
                Fate::Drop => done.dropped.push(id),
                Fate::Replay => match self.replay(&channel, &letter, properties).await? {
                    Ok(()) => done.replayed.push(id),
                    Err(why) => {
                        done.refused.push((id, why));
                        continue;
                    }
                },
            }
            let taken = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
            self.answer("basic.ack", taken).await?;
        }
        let kept = done.seen - done.replayed.len() - done.dropped.len();
        if kept > 0 {
            // Tag 0 is all that are held.
            let back = channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            self.answer("basic.nack", back).await?;
            self.until_back(&channel, kept).await?;
        }
        self.answer("channel.close", channel.close(200, "OK".into())).await?;
        Ok(done)
    }

    /// Waits until the queue has its letters again: it takes them back after its
    /// answer, and the next look would miss them. Gives up after one answer's time,
    /// since others may take letters, too.
    async fn until_back(&self, channel: &Channel, kept: usize) -> Result<(), BusError> {
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let end = Instant::now() + self.config.answer_within;
        while Instant::now() < end {
            let name = wire::short("queue name", &self.queue)?;
            let found = channel.queue_declare(name, look, FieldTable::default());
            if self.answer("queue.declare", found).await?.message_count() as usize >= kept {
                return Ok(());
            }
            tokio::time::sleep(BACK).await;
        }
        Ok(())
    }

    /// Sends the letter's message to its queue; the inner error says why the queue
    /// does not have it.
    async fn replay(
        &self,
        channel: &Channel,
        letter: &DeadLetter,
        properties: BasicProperties,
    ) -> Result<Result<(), String>, BusError> {
        if letter.queue.is_empty() {
            return Ok(Err("the broker does not say which queue it comes from".to_owned()));
        }
        let mut headers = FieldTable::default();
        for (key, value) in properties.headers().iter().flat_map(FieldTable::inner) {
            if !OF_DEATH.iter().any(|begin| key.as_str().starts_with(begin)) {
                headers.insert(key.clone(), value.clone());
            }
        }
        // The default exchange leads to the queue of that name alone.
        let publish = channel.basic_publish(
            "".into(),
            wire::short("queue name", &letter.queue)?,
            BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
            &letter.message.body,
            properties.with_headers(headers),
        );
        let confirm = self.answer("basic.publish", publish).await?;
        Ok(match self.answer("publisher confirm", confirm).await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(format!("there is no queue {} any more", letter.queue)),
            Confirmation::Nack(_) => Err(format!("the queue {} does not take it; it may be full", letter.queue)),
            Confirmation::NotRequested => Err("the broker did not confirm it".to_owned()),
        })
    }

    /// Ends the connection.
    pub async fn close(self) {
        if let Err(error) = self.answer("connection.close", self.connection.close(200, "OK".into())).await {
            tracing::debug!(%error, "the connection did not close in good order");
        }
    }

    async fn answer<T>(&self, call: &str, work: impl Future<Output = lapin::Result<T>>) -> Result<T, BusError> {
        match timeout(self.config.answer_within, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_amqp_soft_error() => Err(BusError::Refused(format!("{call}: {error}"))),
            Ok(Err(error)) => Err(BusError::Unavailable(format!("{call}: {error}"))),
            Err(_) => Err(BusError::Unavailable(format!("no answer to {call} within {:?}", self.config.answer_within))),
        }
    }
}

/// Reads what the broker has written down about the death; the latest is first.
fn letter(properties: &BasicProperties, message: Message) -> DeadLetter {
    let deaths = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death"));
    let latest = match deaths {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().first(),
        _ => None,
    };
    let field = |name: &str| match latest {
        Some(AMQPValue::FieldTable(death)) => death.inner().get(name),
        _ => None,
    };
    let text = |name: &str| match field(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::ShortString(text)) => text.to_string(),
        _ => String::new(),
    };
    let times = match field("count") {
        Some(AMQPValue::LongLongInt(count)) => u64::try_from(*count).unwrap_or_default(),
        Some(AMQPValue::LongUInt(count)) => u64::from(*count),
        _ => 0,
    };
    let since = match field("time") {
        Some(AMQPValue::Timestamp(seconds)) => Some(*seconds),
        _ => None,
    };
    DeadLetter { message, queue: text("queue"), reason: text("reason"), times, since }
}
