//! Leases of blobs and containers: who alone may write, or delete, for a while.
//!
//! [`Lease`] is what is stored; time turns it on ([`Lease::at`]): a lease that ran out is expired, one that was
//! being broken is broken. [`Lease::apply`] is what the lease operations do (Lease Blob and Lease Container of the
//! Blob service, "Outcomes of lease operations"):
//!
//! | | available | leased | breaking | broken | expired |
//! |---|---|---|---|---|---|
//! | acquire, no id | leased | AlreadyPresent | AlreadyPresent | leased | leased |
//! | acquire, its id | - | leased | IsBreakingAndCannotBeAcquired | leased | leased |
//! | acquire, another id | leased | AlreadyPresent | AlreadyPresent | leased | leased |
//! | renew | IdMismatch | leased | IsBrokenAndCannotBeRenewed | IsBrokenAndCannotBeRenewed | leased |
//! | change | NotPresent | leased | IsBreakingAndCannotBeChanged | NotPresent | NotPresent |
//! | release | IdMismatch | available | available | available | available |
//! | break | NotPresent | breaking, broken | breaking, broken | broken | broken |
//!
//! Renew, change and release with another id are IdMismatch wherever a lease id is known, but a change to the id
//! that the lease has already is repeated, whichever id it comes from. Each word stands for an error `Lease...`.
//! A lease changes neither the ETag nor the date of what it is on.
//!
//! [`Lease::check_write`] and [`Lease::check_read`] are the other half: who may use what is leased.
//! A write forgets a lease that is broken or expired ([`Lease::after_write`]), so it cannot be renewed then.

use std::time::Duration;

use kiln_time::Timestamp;
use serde::{Deserialize, Serialize};

use super::StorageError;

/// Seconds for which a lease can be taken, unless it is for ever.
pub const SECONDS: std::ops::RangeInclusive<u32> = 15..=60;
/// Seconds that breaking may take at most.
pub const MAX_BREAK_SECONDS: u32 = 60;

/// A lease, as it was at the last change or look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Lease {
    /// There is none.
    #[default]
    Available,
    /// Somebody has it.
    Leased {
        /// Names the holder; a GUID in lower case.
        id: String,
        /// Until when; absent: for ever.
        term: Option<Term>,
    },
    /// It ends soon, and cannot be renewed.
    Breaking {
        /// Names the holder.
        id: String,
        /// When it ends.
        until: Timestamp,
    },
    /// It was ended by a break.
    Broken {
        /// Who had it.
        id: String,
    },
    /// It ran out.
    Expired {
        /// Who had it, and may renew it.
        id: String,
        /// How long it was.
        seconds: u32,
    },
}

/// How long a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// As it was asked for.
    pub seconds: u32,
    /// When it runs out.
    pub until: Timestamp,
}

/// What a lease operation wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAction {
    /// To have the lease.
    Acquire {
        /// Id that the caller proposes.
        proposed: Option<String>,
        /// Id of the lease if none is proposed.
        fresh: String,
        /// For so long; absent: for ever.
        seconds: Option<u32>,
    },
    /// To have it for its whole length from now on.
    Renew {
        /// The lease's.
        id: String,
    },
    /// To give it another id.
    Change {
        /// The lease's.
        id: String,
        /// The new one.
        proposed: String,
    },
    /// To give it back.
    Release {
        /// The lease's.
        id: String,
    },
    /// To end it without its id.
    Break {
        /// Leave the holder so many seconds at most.
        seconds: Option<u32>,
    },
}

/// What a lease operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// The lease's id.
    Held(String),
    /// Nothing is left of it.
    Released,
    /// Seconds until it can be taken by others.
    BreaksIn(u32),
}

/// What is leased; some errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leased {
    /// A blob: all writes and its deletion need the id.
    Blob,
    /// A container: only its deletion needs the id.
    Container,
}

impl Lease {
    /// The lease at `now`.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Self {
        match self {
            Self::Leased { id, term: Some(term) } if term.until <= now => {
                Self::Expired { id: id.clone(), seconds: term.seconds }
            }
            Self::Breaking { id, until } if *until <= now => Self::Broken { id: id.clone() },
            Self::Available
            | Self::Leased { .. }
            | Self::Breaking { .. }
            | Self::Broken { .. }
            | Self::Expired { .. } => self.clone(),
        }
    }

    /// The lease after `action` at `now`, and what is answered.
    ///
    /// # Errors
    /// As the table of the module says.
    pub fn apply(&self, action: &LeaseAction, now: Timestamp) -> Result<(Self, LeaseAnswer), StorageError> {
        let current = self.at(now);
        match action {
            LeaseAction::Acquire { proposed, fresh, seconds } => {
                match &current {
                    Self::Available | Self::Broken { .. } | Self::Expired { .. } => {}
                    Self::Leased { id, .. } if proposed.as_ref() == Some(id) => {}
                    Self::Breaking { id, .. } if proposed.as_ref() == Some(id) => {
                        return Err(StorageError::LeaseIsBreakingAndCannotBeAcquired);
                    }
                    Self::Leased { .. } | Self::Breaking { .. } => return Err(StorageError::LeaseAlreadyPresent),
                }
                Ok(leased(proposed.as_ref().unwrap_or(fresh), *seconds, now))
            }
            LeaseAction::Renew { id } => match &current {
                Self::Leased { id: own, term } if own == id => Ok(leased(id, term.map(|term| term.seconds), now)),
                Self::Expired { id: own, seconds } if own == id => Ok(leased(id, Some(*seconds), now)),
                Self::Breaking { id: own, .. } | Self::Broken { id: own } if own == id => {
                    Err(StorageError::LeaseIsBrokenAndCannotBeRenewed)
                }
                Self::Available
                | Self::Leased { .. }
                | Self::Breaking { .. }
                | Self::Broken { .. }
                | Self::Expired { .. } => Err(StorageError::LeaseIdMismatchWithLeaseOperation),
            },
            LeaseAction::Change { id, proposed } => match current {
                Self::Leased { id: own, term } if own == *id || own == *proposed => {
                    Ok((Self::Leased { id: proposed.clone(), term }, LeaseAnswer::Held(proposed.clone())))
                }
                Self::Breaking { id: own, .. } if own == *id => Err(StorageError::LeaseIsBreakingAndCannotBeChanged),
                Self::Leased { .. } | Self::Breaking { .. } => Err(StorageError::LeaseIdMismatchWithLeaseOperation),
                Self::Available | Self::Broken { .. } | Self::Expired { .. } => {
                    Err(StorageError::LeaseNotPresentWithLeaseOperation)
                }
            },
            LeaseAction::Release { id } => match current.id() {
                Some(own) if own == id => Ok((Self::Available, LeaseAnswer::Released)),
                Some(_) | None => Err(StorageError::LeaseIdMismatchWithLeaseOperation),
            },
            LeaseAction::Break { seconds } => current.broken(*seconds, now),
        }
    }

    fn broken(self, asked: Option<u32>, now: Timestamp) -> Result<(Self, LeaseAnswer), StorageError> {
        let asked = asked.map(|seconds| now.plus(Duration::from_secs(seconds.into())));
        let (id, until) = match self {
            Self::Available => return Err(StorageError::LeaseNotPresentWithLeaseOperation),
            // Breaking never makes a lease longer.
            Self::Leased { id, term: Some(Term { until, .. }) } | Self::Breaking { id, until } => {
                (id, asked.map_or(until, |asked| asked.min(until)))
            }
            Self::Leased { id, term: None } => (id, asked.unwrap_or(now)),
            Self::Broken { id } | Self::Expired { id, .. } => (id, now),
        };
        if until <= now {
            return Ok((Self::Broken { id }, LeaseAnswer::BreaksIn(0)));
        }
        let left = u32::try_from(until.since(now).as_micros().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        Ok((Self::Breaking { id, until }, LeaseAnswer::BreaksIn(left)))
    }

    /// Id of the one who has it, or had it last.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Available => None,
            Self::Leased { id, .. } | Self::Breaking { id, .. } | Self::Broken { id } | Self::Expired { id, .. } => {
                Some(id)
            }
        }
    }

    /// Whether a write, or a deletion, may happen that names the lease `given`.
    ///
    /// # Errors
    /// It has to name the lease, names another one, or one that is over.
    pub fn check_write(&self, what: Leased, given: Option<&str>, now: Timestamp) -> Result<(), StorageError> {
        match (self.at(now), given) {
            (Self::Leased { .. } | Self::Breaking { .. }, None) => Err(StorageError::LeaseIdMissing),
            (_, given) => self.check_read(what, given, now),
        }
    }

    /// Whether a read may happen that names the lease `given`; one that names none may always. The same holds for
    /// changes of a container.
    ///
    /// # Errors
    /// It names another lease, or one that is over.
    pub fn check_read(&self, what: Leased, given: Option<&str>, now: Timestamp) -> Result<(), StorageError> {
        let Some(given) = given else { return Ok(()) };
        match self.at(now) {
            Self::Available => Err(match what {
                Leased::Blob => StorageError::LeaseNotPresentWithBlobOperation,
                Leased::Container => StorageError::LeaseNotPresentWithContainerOperation,
            }),
            Self::Broken { .. } | Self::Expired { .. } => Err(StorageError::LeaseLost),
            Self::Leased { id, .. } | Self::Breaking { id, .. } if id == given => Ok(()),
            Self::Leased { .. } | Self::Breaking { .. } => Err(match what {
                Leased::Blob => StorageError::LeaseIdMismatchWithBlobOperation,
                Leased::Container => StorageError::LeaseIdMismatchWithContainerOperation,
            }),
        }
    }

    /// What a write that was allowed leaves of the lease.
    #[must_use]
    pub fn after_write(&self, now: Timestamp) -> Self {
        match self.at(now) {
            Self::Broken { .. } | Self::Expired { .. } => Self::Available,
            lasting @ (Self::Available | Self::Leased { .. } | Self::Breaking { .. }) => lasting,
        }
    }

    /// `locked` or `unlocked`, at a moment for which [`Lease::at`] was asked.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Leased { .. } | Self::Breaking { .. } => "locked",
            Self::Available | Self::Broken { .. } | Self::Expired { .. } => "unlocked",
        }
    }

    /// The state's word, at a moment for which [`Lease::at`] was asked.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Leased { .. } => "leased",
            Self::Breaking { .. } => "breaking",
            Self::Broken { .. } => "broken",
            Self::Expired { .. } => "expired",
        }
    }

    /// `fixed` or `infinite` while somebody has it, else empty.
    pub fn duration(&self) -> &'static str {
        match self {
            Self::Leased { term: Some(_), .. } => "fixed",
            Self::Leased { term: None, .. } => "infinite",
            Self::Available | Self::Breaking { .. } | Self::Broken { .. } | Self::Expired { .. } => "",
        }
    }
}

fn leased(id: &str, seconds: Option<u32>, now: Timestamp) -> (Lease, LeaseAnswer) {
    let term = seconds.map(|seconds| Term { seconds, until: now.plus(Duration::from_secs(seconds.into())) });
    (Lease::Leased { id: id.to_owned(), term }, LeaseAnswer::Held(id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

    fn after(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    fn fixed(seconds: u32, until: u64) -> Lease {
        Lease::Leased { id: "a".into(), term: Some(Term { seconds, until: after(until) }) }
    }

    /// One of each state at [`NOW`], reached by time where time leads there.
    fn states() -> [Lease; 6] {
        [
            Lease::Available,
            fixed(30, 20),
            Lease::Leased { id: "a".into(), term: None },
            Lease::Breaking { id: "a".into(), until: after(10) },
            Lease::Breaking { id: "a".into(), until: NOW }.at(NOW),
            fixed(30, 0).at(NOW),
        ]
    }

    /// State and answer in one word, or the code of the error without `Lease`.
    fn outcome(lease: &Lease, action: &LeaseAction) -> String {
        match lease.apply(action, NOW) {
            Ok((lease, LeaseAnswer::Held(id))) => {
                assert_eq!(lease.id(), Some(id.as_str()));
                let left = match &lease {
                    Lease::Leased { term: Some(term), .. } => term.until.since(NOW).as_secs().to_string(),
                    _ => "ever".to_owned(),
                };
                format!("{} {id} {left}", lease.state())
            }
            Ok((lease, LeaseAnswer::Released)) => lease.state().to_owned(),
            Ok((lease, LeaseAnswer::BreaksIn(seconds))) => format!("{} {seconds}", lease.state()),
            Err(error) => error.code().trim_start_matches("Lease").to_owned(),
        }
    }

    fn acquire(proposed: Option<&str>, seconds: Option<u32>) -> LeaseAction {
        LeaseAction::Acquire { proposed: proposed.map(str::to_owned), fresh: "f".into(), seconds }
    }

    #[test]
    fn operations_cell_by_cell() {
        let renew = |id: &str| LeaseAction::Renew { id: id.into() };
        let release = |id: &str| LeaseAction::Release { id: id.into() };
        let change = |id: &str, to: &str| LeaseAction::Change { id: id.into(), proposed: to.into() };
        let end = |seconds| LeaseAction::Break { seconds };
        let (present, mismatch, absent) =
            ("AlreadyPresent", "IdMismatchWithLeaseOperation", "NotPresentWithLeaseOperation");
        let (no_change, no_renewal) = ("IsBreakingAndCannotBeChanged", "IsBrokenAndCannotBeRenewed");
        let breaking = "IsBreakingAndCannotBeAcquired";
        // available, leased for 20 s more of 30, leased for ever, breaking in 10 s, broken, expired
        for (action, expected) in [
            (acquire(None, Some(15)), ["leased f 15", present, present, present, "leased f 15", "leased f 15"]),
            (acquire(None, None), ["leased f ever", present, present, present, "leased f ever", "leased f ever"]),
            (
                acquire(Some("a"), Some(60)),
                ["leased a 60", "leased a 60", "leased a 60", breaking, "leased a 60", "leased a 60"],
            ),
            (
                acquire(Some("a"), None),
                ["leased a ever", "leased a ever", "leased a ever", breaking, "leased a ever", "leased a ever"],
            ),
            (acquire(Some("b"), Some(15)), ["leased b 15", present, present, present, "leased b 15", "leased b 15"]),
            (renew("a"), [mismatch, "leased a 30", "leased a ever", no_renewal, no_renewal, "leased a 30"]),
            (renew("b"), [mismatch; 6]),
            (change("a", "b"), [absent, "leased b 20", "leased b ever", no_change, absent, absent]),
            (change("b", "a"), [absent, "leased a 20", "leased a ever", mismatch, absent, absent]),
            (change("b", "c"), [absent, mismatch, mismatch, mismatch, absent, absent]),
            (release("a"), [mismatch, "available", "available", "available", "available", "available"]),
            (release("b"), [mismatch; 6]),
            (end(None), [absent, "breaking 20", "broken 0", "breaking 10", "broken 0", "broken 0"]),
            (end(Some(0)), [absent, "broken 0", "broken 0", "broken 0", "broken 0", "broken 0"]),
            (end(Some(5)), [absent, "breaking 5", "breaking 5", "breaking 5", "broken 0", "broken 0"]),
            (end(Some(60)), [absent, "breaking 20", "breaking 60", "breaking 10", "broken 0", "broken 0"]),
        ] {
            assert_eq!(states().map(|lease| outcome(&lease, &action)), expected, "{action:?}");
        }
    }

    #[test]
    fn uses_cell_by_cell() {
        let code = |result: Result<(), StorageError>| result.map_or_else(|error| error.code(), |()| "yes");
        let absent = "LeaseNotPresentWithBlobOperation";
        let (missing, wrong, lost) = ("LeaseIdMissing", "LeaseIdMismatchWithBlobOperation", "LeaseLost");
        for (given, write, read) in [
            (None, ["yes", missing, missing, missing, "yes", "yes"], ["yes"; 6]),
            (Some("a"), [absent, "yes", "yes", "yes", lost, lost], [absent, "yes", "yes", "yes", lost, lost]),
            (Some("b"), [absent, wrong, wrong, wrong, lost, lost], [absent, wrong, wrong, wrong, lost, lost]),
        ] {
            assert_eq!(states().map(|lease| code(lease.check_write(Leased::Blob, given, NOW))), write, "{given:?}");
            assert_eq!(states().map(|lease| code(lease.check_read(Leased::Blob, given, NOW))), read, "{given:?}");
        }
        let container = |lease: Lease| code(lease.check_write(Leased::Container, Some("b"), NOW));
        assert_eq!(container(Lease::Available), "LeaseNotPresentWithContainerOperation");
        assert_eq!(container(fixed(30, 20)), "LeaseIdMismatchWithContainerOperation");
        assert_eq!(
            states().map(|lease| lease.after_write(NOW).state()),
            ["available", "leased", "leased", "breaking", "available", "available"]
        );
    }

    #[test]
    fn time_turns_leases_on() {
        let lease = fixed(30, 20);
        assert_eq!(lease.at(after(19)).state(), "leased");
        assert_eq!(lease.at(after(20)), Lease::Expired { id: "a".into(), seconds: 30 });
        let breaking = Lease::Breaking { id: "a".into(), until: after(10) };
        assert_eq!(breaking.at(after(9)), breaking);
        assert_eq!(breaking.at(after(10)), Lease::Broken { id: "a".into() });
        assert_eq!(Lease::Leased { id: "a".into(), term: None }.at(after(1_000_000_000)).state(), "leased");
        // What is left is rounded up: nobody is told that it is over too early.
        let (_, answer) =
            lease.apply(&LeaseAction::Break { seconds: None }, NOW.plus(Duration::from_millis(500))).unwrap();
        assert_eq!(answer, LeaseAnswer::BreaksIn(20));
    }

    #[test]
    fn words() {
        assert_eq!(
            states().map(|lease| (lease.status(), lease.duration())),
            [
                ("unlocked", ""),
                ("locked", "fixed"),
                ("locked", "infinite"),
                ("locked", ""),
                ("unlocked", ""),
                ("unlocked", "")
            ]
        );
    }
}
