//! Publishing with confirms.
//!
//! Messages are sent one after the other without waiting, up to the window of
//! the session; a place is free again when the broker has confirmed. All
//! publishers of a bus share the window.

use std::collections::VecDeque;

use lapin::options::BasicPublishOptions;
use lapin::{Confirmation, PublisherConfirm};
use tokio::sync::OwnedSemaphorePermit;

use super::RabbitConfig;
use super::link::Session;
use super::wire::{properties, short};
use crate::{BusError, Message};

/// A message that was sent and not yet confirmed.
struct InFlight {
    confirm: PublisherConfirm,
    _place: OwnedSemaphorePermit,
}

/// See [`crate::Bus::publish_all`].
pub(super) async fn publish_all(
    config: &RabbitConfig,
    session: &Session,
    messages: Vec<Message>,
) -> Result<(), BusError> {
    let mut in_flight = VecDeque::new();
    let sent = send(config, session, messages, &mut in_flight).await;
    // Also after an error: what is in flight shall not clutter the session.
    let mut settled = Ok(());
    for message in in_flight {
        let confirmed = confirmed(session, message).await;
        settled = settled.and(confirmed);
    }
    sent.and(settled)
}

async fn send(
    config: &RabbitConfig,
    session: &Session,
    messages: Vec<Message>,
    in_flight: &mut VecDeque<InFlight>,
) -> Result<(), BusError> {
    let channel = session.channel.get().ok_or(BusError::Closed)?;
    let exchange = short("exchange", &config.exchange)?;
    for message in messages {
        let place = place(session, in_flight).await?;
        let publish = channel.basic_publish(
            exchange.clone(),
            short("the routing key", &message.routing_key)?,
            BasicPublishOptions::default(),
            &message.body,
            properties(&message)?,
        );
        let confirm =
            session.answer("basic.publish", publish).await.map_err(|error| channel_is_gone(session, error))?;
        in_flight.push_back(InFlight { confirm, _place: place });
    }
    Ok(())
}

/// A free place of the window. Whoever has messages in flight waits for its own
/// oldest one, so publishers cannot wait for each other in a circle.
async fn place(session: &Session, in_flight: &mut VecDeque<InFlight>) -> Result<OwnedSemaphorePermit, BusError> {
    loop {
        if let Ok(place) = session.window.clone().try_acquire_owned() {
            return Ok(place);
        }
        match in_flight.pop_front() {
            Some(oldest) => confirmed(session, oldest).await?,
            None => {
                let acquire = session.window.clone().acquire_owned();
                let place = session.answer("publishing before us", async { Ok(acquire.await) }).await?;
                return place.map_err(|_| BusError::Closed);
            }
        }
    }
}

async fn confirmed(session: &Session, message: InFlight) -> Result<(), BusError> {
    let answer = session.answer("publisher confirm", message.confirm).await;
    match answer.map_err(|error| channel_is_gone(session, error))? {
        Confirmation::Ack(_) => Ok(()),
        Confirmation::Nack(_) => {
            Err(BusError::Unavailable("the broker did not take the message; a queue may be full".to_owned()))
        }
        Confirmation::NotRequested => {
            session.health.fail("the publishing channel is not in confirm mode");
            Err(BusError::Unavailable("the message was not confirmed".to_owned()))
        }
    }
}

/// A refusal closed the one channel for publishing: only a new session helps.
fn channel_is_gone(session: &Session, error: BusError) -> BusError {
    session.health.fail(&error);
    BusError::Unavailable(error.to_string())
}
