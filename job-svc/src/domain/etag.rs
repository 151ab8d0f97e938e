//! Versions of records as clients see them.
//!
//! The ETag is made of the moment of the last client write, which moves by at
//! least a microsecond with each. State transitions by the service do not touch
//! it: a client that read a task can still say "delete it if it is unchanged".

use kiln_time::Timestamp;

use super::Error;

/// Conditions a caller puts on the version of a record; all given ones must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Precondition {
    /// ETag the record must have; empty for none, `*` for any.
    pub if_match: String,
    /// ETag the record must not have; empty for none.
    pub if_none_match: String,
    /// The record must have changed after this.
    pub if_modified_since: Option<Timestamp>,
    /// The record must not have changed after this.
    pub if_unmodified_since: Option<Timestamp>,
}

/// The ETag of a record last written at `last_modified`, without quotes.
pub fn of(last_modified: Timestamp) -> String {
    format!("0x8D{:013X}", last_modified.as_micros())
}

/// The moment of a client write at `now` to a record last written at `before`.
pub fn next(before: Timestamp, now: Timestamp) -> Timestamp {
    now.max(Timestamp::from_micros(before.as_micros().saturating_add(1)))
}

impl Precondition {
    /// Whether the record with this moment of last write fits.
    ///
    /// # Errors
    /// [`Error::ConditionNotMet`] names the condition that does not.
    pub fn check(&self, last_modified: Timestamp) -> Result<(), Error> {
        let etag = of(last_modified);
        let same = |given: &str| given == "*" || given.trim_start_matches("W/").trim_matches('"') == etag;
        if !self.if_match.is_empty() && !same(&self.if_match) {
            return Err(Error::ConditionNotMet("If-Match"));
        }
        if !self.if_none_match.is_empty() && same(&self.if_none_match) {
            return Err(Error::ConditionNotMet("If-None-Match"));
        }
        // Dates of HTTP headers count whole seconds.
        let second = last_modified.truncate_to_second();
        if self.if_modified_since.is_some_and(|since| second <= since.truncate_to_second()) {
            return Err(Error::ConditionNotMet("If-Modified-Since"));
        }
        if self.if_unmodified_since.is_some_and(|since| second > since.truncate_to_second()) {
            return Err(Error::ConditionNotMet("If-Unmodified-Since"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_checked() {
        let at = Timestamp::from_micros(1_769_860_800_500_000);
        let (before, after) = (at.minus(std::time::Duration::from_secs(5)), at.plus(std::time::Duration::from_secs(5)));
        let etag = of(at);
        assert!(etag.starts_with("0x8D") && etag.len() == 17, "{etag}");
        let none = Precondition::default;
        for (condition, fits) in [
            (none(), true),
            (Precondition { if_match: format!("\"{etag}\""), ..none() }, true),
            (Precondition { if_match: "*".into(), ..none() }, true),
            (Precondition { if_match: "0x8D1".into(), ..none() }, false),
            (Precondition { if_none_match: etag, ..none() }, false),
            (Precondition { if_none_match: "\"0x8D1\"".into(), ..none() }, true),
            (Precondition { if_modified_since: Some(before), ..none() }, true),
            (Precondition { if_modified_since: Some(at), ..none() }, false),
            (Precondition { if_unmodified_since: Some(after), ..none() }, true),
            (Precondition { if_unmodified_since: Some(at), ..none() }, true),
            (Precondition { if_unmodified_since: Some(before), ..none() }, false),
        ] {
            assert_eq!(condition.check(at).is_ok(), fits, "{condition:?}");
        }
    }

    #[test]
    fn two_writes_in_one_microsecond_differ() {
        let at = Timestamp::from_micros(7);
        assert_ne!(of(next(at, at)), of(at));
    }
}
