//! Versions of records as clients see them.
//!
//! The ETag is made of the moment of the last client write, which moves by at
//! least a microsecond with each. State transitions by the service do not touch
//! it: a client that read a task can still say "delete it if it is unchanged".

use kiln_etag::{Conditions, Version};
use kiln_time::Timestamp;

use super::Error;

/// The ETag of a record last written at `last_modified`, without quotes.
pub fn of(last_modified: Timestamp) -> String {
    kiln_etag::text(kiln_etag::number(last_modified))
}

/// The moment of a client write at `now` to a record last written at `before`.
pub fn next(before: Timestamp, now: Timestamp) -> Timestamp {
    now.max(Timestamp::from_micros(before.as_micros().saturating_add(1)))
}

/// Whether the record last written at `last_modified` fits.
///
/// # Errors
/// [`Error::ConditionNotMet`] names the condition that does not hold.
pub fn check(conditions: &Conditions, last_modified: Timestamp) -> Result<(), Error> {
    let etag = of(last_modified);
    conditions.check(Version { etag: &etag, last_modified }).map_err(Error::ConditionNotMet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_writes_in_one_microsecond_differ() {
        let at = Timestamp::from_micros(7);
        assert_ne!(of(next(at, at)), of(at));
    }

    #[test]
    fn the_etag_is_the_moment_of_the_write() {
        let at = Timestamp::from_micros(1_769_860_800_500_000);
        let wants = |etag: &str| {
            let if_match = Some(kiln_etag::EtagSet::parse(etag));
            check(&Conditions { if_match, ..Conditions::default() }, at)
        };
        assert!(wants(&of(at)).is_ok());
        assert!(matches!(wants("0x8D1"), Err(Error::ConditionNotMet(kiln_etag::NotMet::IfMatch))));
    }
}
