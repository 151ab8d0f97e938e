//! Lease Blob and Lease Container.

use http::HeaderMap;

use super::call::Call;
use super::reply::Reply;
use super::{Answer, Job, headers};
use crate::domain::StorageError;
use crate::domain::access::Operation;
use crate::domain::lease::{LeaseAction, LeaseAnswer, MAX_BREAK_SECONDS, SECONDS};

const ACTION: &str = "x-ms-lease-action";
const DURATION: &str = "x-ms-lease-duration";
const PERIOD: &str = "x-ms-lease-break-period";
const PROPOSED: &str = "x-ms-proposed-lease-id";

/// Breaking needs less permission than the others, so it counts as an operation of its own.
pub fn operation(headers: &HeaderMap, breaking: Operation, other: Operation) -> Operation {
    match headers.get(ACTION) {
        Some(action) if action.as_bytes().eq_ignore_ascii_case(b"break") => breaking,
        _ => other,
    }
}

impl Job<'_> {
    pub(super) async fn lease_blob(self) -> Answer {
        let conditions = headers::write_conditions(self.call)?;
        let action = action(self.call)?;
        let (account, container, name) = self.name();
        let stamp = self.plane.storage.stamp(account, "");
        let catalogue = self.plane.storage.catalogue();
        let (blob, answer) = catalogue.lease_blob(stamp, container, name, conditions, action.clone()).await?;
        Ok(reply(&action, &answer).version(&blob.etag, blob.last_modified))
    }

    pub(super) async fn lease_container(self) -> Answer {
        let conditions = headers::container_conditions(self.call, headers::ContainerDates::Both)?;
        let action = action(self.call)?;
        let stamp = self.plane.storage.stamp(&self.call.account.name, "");
        let catalogue = self.plane.storage.catalogue();
        let (container, answer) =
            catalogue.lease_container(stamp, &self.call.container, conditions, action.clone()).await?;
        Ok(reply(&action, &answer).version(&container.etag, container.last_modified))
    }
}

fn reply(action: &LeaseAction, answer: &LeaseAnswer) -> Reply {
    let reply = Reply::new(match action {
        LeaseAction::Acquire { .. } => 201,
        LeaseAction::Renew { .. } | LeaseAction::Change { .. } | LeaseAction::Release { .. } => 200,
        LeaseAction::Break { .. } => 202,
    });
    match answer {
        LeaseAnswer::Held(id) => reply.header("x-ms-lease-id", id),
        LeaseAnswer::Released => reply,
        LeaseAnswer::BreaksIn(seconds) => reply.header("x-ms-lease-time", seconds.to_string()),
    }
}

/// What the headers ask for.
fn action(call: &Call) -> Result<LeaseAction, StorageError> {
    let action = call.header(ACTION).ok_or(StorageError::MissingRequiredHeader(ACTION))?;
    let id = || headers::lease_id(call)?.ok_or(StorageError::MissingRequiredHeader(headers::LEASE_ID));
    let proposed = || headers::guid(call, PROPOSED);
    match action.to_ascii_lowercase().as_str() {
        "acquire" => Ok(LeaseAction::Acquire {
            proposed: proposed()?,
            fresh: uuid::Uuid::new_v4().to_string(),
            seconds: duration(call)?,
        }),
        "renew" => Ok(LeaseAction::Renew { id: id()? }),
        "change" => Ok(LeaseAction::Change {
            id: id()?,
            proposed: proposed()?.ok_or(StorageError::MissingRequiredHeader(PROPOSED))?,
        }),
        "release" => Ok(LeaseAction::Release { id: id()? }),
        "break" => {
            let seconds = call.header(PERIOD).map(|text| number(PERIOD, text)).transpose()?;
            match seconds.map(u32::try_from) {
                None => Ok(LeaseAction::Break { seconds: None }),
                Some(Ok(seconds)) if seconds <= MAX_BREAK_SECONDS => Ok(LeaseAction::Break { seconds: Some(seconds) }),
                Some(_) => Err(wrong(PERIOD, call)),
            }
        }
        _ => Err(wrong(ACTION, call)),
    }
}

/// Seconds, or absent for -1: for ever.
fn duration(call: &Call) -> Result<Option<u32>, StorageError> {
    let text = call.header(DURATION).ok_or(StorageError::MissingRequiredHeader(DURATION))?;
    match (number(DURATION, text)?, u32::try_from(number(DURATION, text)?)) {
        (-1, _) => Ok(None),
        (_, Ok(seconds)) if SECONDS.contains(&seconds) => Ok(Some(seconds)),
        _ => Err(wrong(DURATION, call)),
    }
}

fn number(name: &'static str, text: &str) -> Result<i64, StorageError> {
    text.trim().parse().map_err(|_| StorageError::InvalidHeaderValue { name, value: text.to_owned() })
}

fn wrong(name: &'static str, call: &Call) -> StorageError {
    StorageError::InvalidHeaderValue { name, value: call.header(name).unwrap_or_default().to_owned() }
}
