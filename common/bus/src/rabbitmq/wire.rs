//! Messages as AMQP 0-9-1 carries them.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::{BusError, Message};

const CONTENT_TYPE: &str = "application/protobuf";
/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;

const SPEC_VERSION: &str = "cloudEvents:specversion";
const ID: &str = "cloudEvents:id";
const SOURCE: &str = "cloudEvents:source";
const TYPE: &str = "cloudEvents:type";
const TRACEPARENT: &str = "traceparent";

/// A short text of the protocol (at most 255 bytes).
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, BusError> {
    ShortString::try_new(text).map_err(|_| BusError::Refused(format!("{what} is longer than 255 bytes")))
}

/// Properties and headers of `message`.
pub(super) fn properties(message: &Message) -> Result<BasicProperties, BusError> {
    let mut headers = FieldTable::default();
    for (name, value) in [
        (SPEC_VERSION, "1.0"),
        (ID, &message.id),
        (SOURCE, &message.source),
        (TYPE, &message.routing_key),
        (TRACEPARENT, &message.traceparent),
    ] {
        if !value.is_empty() {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
    }
    Ok(BasicProperties::default()
        .with_message_id(short("the message id", &message.id)?)
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers))
}

/// The message of a delivery. Whatever is missing is empty: the body alone
/// decides whether a consumer can use it.
pub(super) fn message(delivery: &mut Delivery) -> Message {
    let header = |name: &str| {
        let headers = delivery.properties.headers().as_ref()?;
        match headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    };
    let id = delivery.properties.message_id().as_ref().map(ToString::to_string).or_else(|| header(ID));
    Message {
        id: id.unwrap_or_default(),
        // Of what came by another way (a dead letter that was replayed) the key is a queue's name.
        routing_key: header(TYPE).unwrap_or_else(|| delivery.routing_key.to_string()),
        source: header(SOURCE).unwrap_or_default(),
        traceparent: header(TRACEPARENT).unwrap_or_default(),
        body: Bytes::from(std::mem::take(&mut delivery.data)),
    }
}
