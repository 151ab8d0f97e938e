//! Versions of records as clients see them, and conditions on them.
//!
//! An ETag is `0x8D...`: ticks of 100 ns since the year 1 in hexadecimal, as
//! Azure's look. It stands for the moment of the last write by a client and
//! grows with each, even if the clock stands still or goes back. Clients may put
//! it in quotes or not.
//!
//! [`Conditions::check`] is the rule of records on which all conditions that are
//! given must hold. Blobs have rules of their own, which storage-svc builds from
//! [`EtagSet::contains`] and [`Version::is_newer_than`].

use kiln_error::{Error, Kind};
use kiln_time::Timestamp;

/// Microseconds from the year 1 to 1970.
const YEAR_ONE_MICROS: i64 = 62_135_596_800_000_000;

/// The number of a write at `now`.
pub fn number(now: Timestamp) -> u64 {
    u64::try_from(now.as_micros().saturating_add(YEAR_ONE_MICROS)).unwrap_or(0).saturating_mul(10)
}

/// The number of a write at `now` to a record with the number `previous`.
pub fn next(previous: u64, now: Timestamp) -> u64 {
    number(now).max(previous.saturating_add(1))
}

/// A number as ETag, without quotes.
pub fn text(number: u64) -> String {
    format!("0x{number:X}")
}

/// Which versions a condition names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagSet {
    /// `*`: any version.
    Any,
    /// These, without quotes.
    These(Vec<String>),
}

impl EtagSet {
    /// Reads the value of If-Match or If-None-Match: `*`, or one or several with
    /// commas between them; quotes and the mark of weak ones are optional.
    pub fn parse(text: &str) -> Self {
        let parts = text.split(',').map(|part| part.trim().trim_start_matches("W/").trim_matches('"'));
        let etags: Vec<String> = parts.filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if etags.iter().any(|etag| etag == "*") { Self::Any } else { Self::These(etags) }
    }

    /// Whether `etag` (without quotes) is one of them.
    pub fn contains(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(etags) => etags.iter().any(|known| known == etag),
        }
    }
}

/// What a record is compared by.
#[derive(Debug, Clone, Copy)]
pub struct Version<'a> {
    /// Without quotes.
    pub etag: &'a str,
    /// Of the last write by a client.
    pub last_modified: Timestamp,
}

impl Version<'_> {
    /// Whether it was written after `since`. Dates of HTTP headers count whole
    /// seconds.
    pub fn is_newer_than(&self, since: Timestamp) -> bool {
        self.last_modified.truncate_to_second() > since.truncate_to_second()
    }
}

/// Conditions of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Only this version.
    pub if_match: Option<EtagSet>,
    /// Not this version.
    pub if_none_match: Option<EtagSet>,
    /// Only if it changed since.
    pub if_modified_since: Option<Timestamp>,
    /// Only if it did not change since.
    pub if_unmodified_since: Option<Timestamp>,
}

/// A condition that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the condition {} does not hold for the current version of the record", self.header())]
pub enum NotMet {
    /// Other versions are wanted.
    IfMatch,
    /// This version is not wanted.
    IfNoneMatch,
    /// It did not change.
    IfModifiedSince,
    /// It changed.
    IfUnmodifiedSince,
}

impl NotMet {
    /// Name of the header.
    pub fn header(self) -> &'static str {
        match self {
            Self::IfMatch => "If-Match",
            Self::IfNoneMatch => "If-None-Match",
            Self::IfModifiedSince => "If-Modified-Since",
            Self::IfUnmodifiedSince => "If-Unmodified-Since",
        }
    }
}

impl From<NotMet> for Error {
    fn from(not_met: NotMet) -> Self {
        Self::new(Kind::ConditionNotMet, "ConditionNotMet", not_met.to_string())
            .with_detail("Condition", not_met.header())
    }
}

impl Conditions {
    /// The record must not exist yet.
    pub fn absent() -> Self {
        Self { if_none_match: Some(EtagSet::Any), ..Self::default() }
    }

    /// Whether all that are given hold for an existing record.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self, current: Version<'_>) -> Result<(), NotMet> {
        let names = |set: &EtagSet| set.contains(current.etag);
        if !self.if_match.as_ref().is_none_or(names) {
            return Err(NotMet::IfMatch);
        }
        if self.if_none_match.as_ref().is_some_and(names) {
            return Err(NotMet::IfNoneMatch);
        }
        if self.if_modified_since.is_some_and(|since| !current.is_newer_than(since)) {
            return Err(NotMet::IfModifiedSince);
        }
        if self.if_unmodified_since.is_some_and(|since| current.is_newer_than(since)) {
            return Err(NotMet::IfUnmodifiedSince);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const AT: Timestamp = Timestamp::from_micros(1_769_860_800_500_000);

    #[test]
    fn etags_look_like_azures_and_grow() {
        let first = number(AT);
        assert!(text(first).starts_with("0x8D") && text(first).len() == 17, "{}", text(first));
        assert!(next(first, AT) > first, "two writes in one microsecond differ");
        assert!(next(first, Timestamp::from_micros(0)) > first, "the clock went back");
        assert_eq!(next(0, AT), first);
        assert_eq!(number(Timestamp::from_micros(i64::MIN)), 0);
    }

    #[test]
    fn sets_of_etags() {
        for (text, contains) in [
            ("0x8D1", true),
            ("\"0x8D1\"", true),
            ("W/\"0x8D1\"", true),
            ("\"0x8D2\", \"0x8D1\"", true),
            ("*", true),
            (" * ", true),
            ("\"0x8D2\"", false),
            ("", false),
            (",", false),
        ] {
            assert_eq!(EtagSet::parse(text).contains("0x8D1"), contains, "{text:?}");
        }
    }

    #[test]
    fn every_condition_is_checked() {
        let (before, after) = (AT.minus(Duration::from_secs(5)), AT.plus(Duration::from_secs(5)));
        let same_second = AT.plus(Duration::from_millis(400));
        let etag = text(number(AT));
        let current = Version { etag: &etag, last_modified: AT };
        let none = Conditions::default;
        let set = |text: &str| Some(EtagSet::parse(text));
        for (condition, outcome) in [
            (none(), Ok(())),
            (Conditions { if_match: set(&format!("\"{etag}\"")), ..none() }, Ok(())),
            (Conditions { if_match: set("*"), ..none() }, Ok(())),
            (Conditions { if_match: set("0x8D1"), ..none() }, Err(NotMet::IfMatch)),
            (Conditions { if_none_match: set(&etag), ..none() }, Err(NotMet::IfNoneMatch)),
            (Conditions { if_none_match: set("\"0x8D1\""), ..none() }, Ok(())),
            (Conditions::absent(), Err(NotMet::IfNoneMatch)),
            (Conditions { if_modified_since: Some(before), ..none() }, Ok(())),
            (Conditions { if_modified_since: Some(same_second), ..none() }, Err(NotMet::IfModifiedSince)),
            (Conditions { if_unmodified_since: Some(after), ..none() }, Ok(())),
            (Conditions { if_unmodified_since: Some(same_second), ..none() }, Ok(())),
            (Conditions { if_unmodified_since: Some(before), ..none() }, Err(NotMet::IfUnmodifiedSince)),
            (
                Conditions { if_match: set("*"), if_unmodified_since: Some(before), ..none() },
                Err(NotMet::IfUnmodifiedSince),
            ),
        ] {
            assert_eq!(condition.check(current), outcome, "{condition:?}");
        }
    }
}
