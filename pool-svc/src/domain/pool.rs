//! A pool and its two state machines.
//!
//! A pool is `active` until its deletion is asked for, then `deleting` until its
//! last node is gone and the record vanishes. Beside that it has an allocation
//! state:
//!
//! | from \ event | resize or remove nodes | stop | met | failed or timed out | settled | delete |
//! |---|---|---|---|---|---|---|
//! | steady | resizing | refused | – | – | – | resizing to 0 |
//! | resizing | refused | stopping | steady | steady + errors | – | resizing to 0 |
//! | stopping | refused | refused | – | – | steady + `ResizeStopped` | resizing to 0 |
//!
//! A new pool with a target of 0 is steady, any other is resizing. While a pool is deleting every
//! client operation is refused, and its resize cannot fail: it ends with the
//! pool. Errors describe the latest resize only.

use std::time::Duration;

use kiln_ids::{AccountName, NodeId, PoolId};
use kiln_time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{DeallocationOption, Refused};

/// Limit of a resize if none is given.
pub const DEFAULT_RESIZE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Longest node id.
const MAX_NODE_ID: usize = kiln_ids::MAX_ID_LEN;

/// Whether the pool is there to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolState {
    /// Usable.
    Active,
    /// Its deletion was accepted and is not finished.
    Deleting,
}

/// Numbers of nodes by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Nodes that stay.
    pub dedicated: u32,
    /// Nodes that may be taken away.
    pub low_priority: u32,
}

impl Counts {
    /// Of both kinds.
    pub fn total(self) -> u32 {
        self.dedicated.saturating_add(self.low_priority)
    }

    /// Of one kind.
    pub fn of(self, dedicated: bool) -> u32 {
        if dedicated { self.dedicated } else { self.low_priority }
    }

    /// Of one kind, to change it.
    pub fn of_mut(&mut self, dedicated: bool) -> &mut u32 {
        if dedicated { &mut self.dedicated } else { &mut self.low_priority }
    }
}

/// A resize that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// When it began.
    pub started: Timestamp,
    /// How long it may take.
    pub timeout: Duration,
    /// What happens to tasks of nodes that leave.
    pub option: DeallocationOption,
}

/// Whether nodes are being made or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// Nothing changes.
    Steady,
    /// On the way to the target.
    Resizing(Resize),
    /// The resize was stopped by the client and is being ended.
    Stopping,
}

impl Allocation {
    /// As clients write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Resizing(_) => "resizing",
            Self::Stopping => "stopping",
        }
    }
}

/// Why a resize ended before its target was met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeError {
    /// One of Azure's codes, for example `AllocationTimedout`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Names with values.
    pub values: Vec<(String, String)>,
}

impl ResizeError {
    /// An error without further values.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), values: Vec::new() }
    }
}

/// Join tokens of a pool that have not expired.
pub const MAX_JOIN_TOKENS: usize = 64;

/// A token with which machines may join. The token itself is not kept: it is
/// signed, and says which of these it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Its name.
    pub id: String,
    /// Until when it can be used.
    pub expires: Timestamp,
    /// Machines that may still join with it.
    pub uses_left: u32,
}

/// What a new pool is made of.
#[derive(Debug, Clone)]
pub struct NewPool {
    /// Owner.
    pub account: AccountName,
    /// Its id.
    pub id: PoolId,
    /// Nodes asked for.
    pub target: Counts,
    /// Limit of its first resize.
    pub resize_timeout: Duration,
    /// Slots of each node.
    pub task_slots: u32,
    /// See [`Pool::settings`].
    pub settings: Vec<u8>,
}

/// A pool's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Owner.
    pub account: AccountName,
    /// Its id.
    pub id: PoolId,
    /// Active or deleting.
    pub state: PoolState,
    /// When that began.
    pub state_since: Timestamp,
    /// Steady, resizing, stopping.
    pub allocation: Allocation,
    /// When that began.
    pub allocation_since: Timestamp,
    /// Nodes asked for.
    pub target: Counts,
    /// Nodes the provider has made and that are not gone.
    pub current: Counts,
    /// Limit of the latest manual resize.
    pub resize_timeout: Duration,
    /// Why the latest resize failed; empty while one runs.
    pub resize_errors: Vec<ResizeError>,
    /// Slots of each node.
    pub task_slots: u32,
    /// Number of the next node; never goes back while the pool lives.
    pub next_node: u64,
    /// When it was made.
    pub created: Timestamp,
    /// When a client last changed it.
    pub modified: Timestamp,
    /// Changes with every write of a client.
    pub etag: u64,
    /// With which machines may join; those that have expired go when others come.
    #[serde(default)]
    pub join_tokens: Vec<JoinToken>,
    /// What clients set and nodes receive and no rule here depends on: an
    /// encoded `kiln.pool.v1.PoolSpec`. Kept beside the record.
    #[serde(skip)]
    pub settings: Vec<u8>,
    /// Counts the writes of the record; 0 before the first.
    #[serde(skip)]
    pub revision: i64,
}

impl Pool {
    /// A new pool; its first sizing is a resize unless it has no nodes.
    pub fn create(new: NewPool, now: Timestamp) -> Self {
        let allocation = match new.target.total() {
            0 => Allocation::Steady,
            _ => Allocation::Resizing(Resize {
                started: now,
                timeout: new.resize_timeout,
                option: DeallocationOption::Requeue,
            }),
        };
        Self {
            account: new.account,
            id: new.id,
            state: PoolState::Active,
            state_since: now,
            allocation,
            allocation_since: now,
            target: new.target,
            current: Counts::default(),
            resize_timeout: new.resize_timeout,
            resize_errors: Vec::new(),
            task_slots: new.task_slots,
            next_node: 1,
            created: now,
            modified: now,
            etag: kiln_etag::next(0, now),
            join_tokens: Vec::new(),
            settings: new.settings,
            revision: 0,
        }
    }

    /// The ETag as clients see it, without quotes.
    pub fn etag_text(&self) -> String {
        kiln_etag::text(self.etag)
    }

    /// A client replaces settings.
    ///
    /// # Errors
    /// [`Refused::PoolBeingDeleted`].
    pub fn update(&mut self, settings: Vec<u8>, now: Timestamp) -> Result<(), Refused> {
        self.require_active()?;
        self.settings = settings;
        self.touch(now);
        Ok(())
    }

    /// A client asks for other numbers of nodes.
    ///
    /// # Errors
    /// If the pool is not steady or is being deleted.
    pub fn resize(
        &mut self,
        target: Counts,
        timeout: Duration,
        option: DeallocationOption,
        now: Timestamp,
    ) -> Result<(), Refused> {
        self.require_active()?;
        match self.allocation {
            Allocation::Steady => {}
            Allocation::Resizing(_) | Allocation::Stopping => return Err(Refused::PoolBeingResized(self.id.clone())),
        }
        self.target = target;
        self.resize_timeout = timeout;
        self.resize_errors.clear();
        self.set_allocation(Allocation::Resizing(Resize { started: now, timeout, option }), now);
        self.touch(now);
        Ok(())
    }

    /// A client stops the resize that runs.
    ///
    /// # Errors
    /// If none runs or the pool is being deleted.
    pub fn stop_resize(&mut self, now: Timestamp) -> Result<(), Refused> {
        self.require_active()?;
        match self.allocation {
            Allocation::Resizing(_) => {}
            Allocation::Steady | Allocation::Stopping => return Err(Refused::NotResizing(self.id.clone())),
        }
        self.set_allocation(Allocation::Stopping, now);
        self.touch(now);
        Ok(())
    }

    /// A client deletes the pool: nodes leave and their tasks are queued again.
    ///
    /// # Errors
    /// If that was done before.
    pub fn delete(&mut self, now: Timestamp) -> Result<(), Refused> {
        self.require_active()?;
        self.state = PoolState::Deleting;
        self.state_since = now;
        self.target = Counts::default();
        self.resize_errors.clear();
        let resize = Resize { started: now, timeout: DEFAULT_RESIZE_TIMEOUT, option: DeallocationOption::Requeue };
        self.set_allocation(Allocation::Resizing(resize), now);
        self.touch(now);
        Ok(())
    }

    /// Machines may join with a new token.
    ///
    /// # Errors
    /// If the pool is being deleted or has too many tokens.
    pub fn add_join_token(&mut self, token: JoinToken, now: Timestamp) -> Result<(), Refused> {
        self.require_active()?;
        self.join_tokens.retain(|token| now < token.expires);
        if self.join_tokens.len() >= MAX_JOIN_TOKENS {
            return Err(Refused::TooManyJoinTokens(self.id.clone()));
        }
        self.join_tokens.push(token);
        Ok(())
    }

    /// A machine joins with a token.
    ///
    /// # Errors
    /// If the pool is being deleted, or the token has expired or has no uses left.
    pub fn use_join_token(&mut self, id: &str, now: Timestamp) -> Result<(), Refused> {
        self.require_active()?;
        let token = self.join_tokens.iter_mut().find(|token| token.id == id && now < token.expires);
        let Some(token) = token else { return Err(Refused::JoinTokenExpired(self.id.clone())) };
        token.uses_left = token.uses_left.checked_sub(1).ok_or_else(|| Refused::JoinTokenUsedUp(self.id.clone()))?;
        Ok(())
    }

    /// The resize has ended, well or with errors.
    pub fn end_resize(&mut self, errors: Vec<ResizeError>, now: Timestamp) {
        self.resize_errors = errors;
        self.set_allocation(Allocation::Steady, now);
    }

    /// Takes the next node id: `<pool>-<number>`, the pool's id shortened if
    /// needed. Numbers are never used twice.
    pub fn take_node_id(&mut self) -> NodeId {
        let number = self.next_node;
        self.next_node += 1;
        let suffix = format!("-{number}");
        let room = MAX_NODE_ID.saturating_sub(suffix.len());
        // Pool ids are ASCII, so cutting by bytes is safe.
        let prefix = self.id.as_str().get(..room).unwrap_or(self.id.as_str());
        // Letters of a pool id and digits make a node id.
        #[allow(clippy::expect_used)]
        NodeId::parse(&format!("{prefix}{suffix}")).expect("a pool id with a number is a node id")
    }

    fn require_active(&self) -> Result<(), Refused> {
        match self.state {
            PoolState::Active => Ok(()),
            PoolState::Deleting => Err(Refused::PoolBeingDeleted(self.id.clone())),
        }
    }

    fn set_allocation(&mut self, allocation: Allocation, now: Timestamp) {
        self.allocation = allocation;
        self.allocation_since = now;
    }

    fn touch(&mut self, now: Timestamp) {
        self.modified = now;
        self.etag = kiln_etag::next(self.etag, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_763_600_000_000_000);

    fn pool(target: u32) -> Pool {
        Pool::create(
            NewPool {
                account: AccountName::parse("a").unwrap(),
                id: PoolId::parse("p1").unwrap(),
                target: Counts { dedicated: target, low_priority: 0 },
                resize_timeout: DEFAULT_RESIZE_TIMEOUT,
                task_slots: 1,
                settings: Vec::new(),
            },
            NOW,
        )
    }

    fn steady() -> Pool {
        pool(0)
    }

    fn resizing() -> Pool {
        pool(2)
    }

    fn stopping() -> Pool {
        let mut pool = resizing();
        pool.stop_resize(NOW).unwrap();
        pool
    }

    fn deleting() -> Pool {
        let mut pool = resizing();
        pool.delete(NOW).unwrap();
        pool
    }

    fn resize(pool: &mut Pool) -> Result<(), Refused> {
        let target = Counts { dedicated: 3, low_priority: 1 };
        pool.resize(target, DEFAULT_RESIZE_TIMEOUT, DeallocationOption::Terminate, NOW)
    }

    #[test]
    fn every_cell_of_the_table_holds() {
        type Start = fn() -> Pool;
        type Action = fn(&mut Pool) -> Result<(), Refused>;
        let (resize, stop, delete, update): (Action, Action, Action, Action) =
            (resize, |p| p.stop_resize(NOW), |p| p.delete(NOW), |p| p.update(vec![1], NOW));
        let id = || PoolId::parse("p1").unwrap();
        let cases: [(Start, Action, Result<&str, Refused>); 16] = [
            (steady, resize, Ok("resizing")),
            (steady, stop, Err(Refused::NotResizing(id()))),
            (steady, delete, Ok("resizing")),
            (steady, update, Ok("steady")),
            (resizing, resize, Err(Refused::PoolBeingResized(id()))),
            (resizing, stop, Ok("stopping")),
            (resizing, delete, Ok("resizing")),
            (resizing, update, Ok("resizing")),
            (stopping, resize, Err(Refused::PoolBeingResized(id()))),
            (stopping, stop, Err(Refused::NotResizing(id()))),
            (stopping, delete, Ok("resizing")),
            (stopping, update, Ok("stopping")),
            (deleting, resize, Err(Refused::PoolBeingDeleted(id()))),
            (deleting, stop, Err(Refused::PoolBeingDeleted(id()))),
            (deleting, delete, Err(Refused::PoolBeingDeleted(id()))),
            (deleting, update, Err(Refused::PoolBeingDeleted(id()))),
        ];
        for (number, (start, action, expected)) in cases.into_iter().enumerate() {
            let before = start();
            let mut after = before.clone();
            let result = action(&mut after).map(|()| after.allocation.name());
            assert_eq!(result, expected, "case {number}");
            match result {
                Ok(_) => assert!(after.etag > before.etag, "case {number}: a client's write changes the ETag"),
                Err(_) => assert_eq!(after, before, "case {number}: a refusal changes nothing"),
            }
        }
    }

    #[test]
    fn the_end_of_a_resize_is_not_a_write_of_a_client() {
        let mut pool = resizing();
        let etag = pool.etag;
        pool.end_resize(vec![ResizeError::new("AllocationTimedout", "slow")], NOW);
        assert_eq!((pool.allocation, pool.etag), (Allocation::Steady, etag));
        resize(&mut pool).unwrap();
        assert!(pool.resize_errors.is_empty(), "errors are those of the latest resize");
        assert!(pool.etag_text().starts_with("0x8D"), "{}", pool.etag_text());
    }

    #[test]
    fn a_join_token_is_for_its_uses_and_its_time() {
        let id = || PoolId::parse("p1").unwrap();
        let later = |seconds| NOW.plus(Duration::from_secs(seconds));
        let token = |name: &str| JoinToken { id: name.to_owned(), expires: later(60), uses_left: 2 };
        let mut pool = steady();
        let etag = pool.etag;
        pool.add_join_token(token("a"), NOW).unwrap();
        pool.use_join_token("a", NOW).unwrap();
        assert_eq!(pool.use_join_token("b", NOW), Err(Refused::JoinTokenExpired(id())), "of another pool");
        pool.use_join_token("a", later(59)).unwrap();
        assert_eq!(pool.use_join_token("a", NOW), Err(Refused::JoinTokenUsedUp(id())));
        assert_eq!(pool.use_join_token("a", later(60)), Err(Refused::JoinTokenExpired(id())));
        assert_eq!(pool.etag, etag, "not a change of what the client set");
        for number in 1..MAX_JOIN_TOKENS {
            pool.add_join_token(token(&number.to_string()), NOW).unwrap();
        }
        assert_eq!(pool.add_join_token(token("more"), NOW), Err(Refused::TooManyJoinTokens(id())));
        pool.add_join_token(JoinToken { expires: later(120), ..token("later") }, later(60)).unwrap();
        assert_eq!(pool.join_tokens.len(), 1, "those that have expired are gone");
        pool.delete(NOW).unwrap();
        assert_eq!(pool.use_join_token("later", NOW), Err(Refused::PoolBeingDeleted(id())));
    }

    #[test]
    fn node_ids_are_never_repeated_and_not_too_long() {
        let mut pool = pool(0);
        assert_eq!(pool.take_node_id().as_str(), "p1-1");
        assert_eq!(pool.take_node_id().as_str(), "p1-2");
        pool.id = PoolId::parse(&"x".repeat(64)).unwrap();
        pool.next_node = 12_345;
        let id = pool.take_node_id();
        assert_eq!(id.as_str().len(), 64);
        assert!(id.as_str().ends_with("x-12345"));
    }
}
