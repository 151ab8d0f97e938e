//! Conditions on the version of a pool.

use kiln_error::{Error, Kind};
use kiln_proto::common::v1::Precondition;
use kiln_time::Timestamp;

use crate::domain::Pool;

/// Checks all conditions that are given. Times count whole seconds, as the
/// headers they come from do.
///
/// # Errors
/// `ConditionNotMet` names the one that does not hold.
pub fn check(condition: Option<&Precondition>, pool: &Pool) -> Result<(), Error> {
    let Some(condition) = condition else { return Ok(()) };
    let etag = pool.etag_text();
    let matches = |given: &str| {
        given.split(',').any(|one| {
            let one = one.trim().trim_start_matches("W/").trim_matches('"');
            one == "*" || one.eq_ignore_ascii_case(&etag)
        })
    };
    let failed = |name: &str, given: &str| {
        Err(Error::new(Kind::ConditionNotMet, "ConditionNotMet", format!("{name} does not hold: the ETag is {etag}"))
            .with_detail("Condition", name)
            .with_detail("ConditionValue", given))
    };
    if !condition.if_match.is_empty() && !matches(&condition.if_match) {
        return failed("If-Match", &condition.if_match);
    }
    if !condition.if_none_match.is_empty() && matches(&condition.if_none_match) {
        return failed("If-None-Match", &condition.if_none_match);
    }
    let modified = pool.modified.truncate_to_second();
    let time = |stamp: &prost_types::Timestamp| Timestamp::from_micros(kiln_proto::time::micros(stamp));
    if let Some(since) = condition.if_modified_since.as_ref().map(time)
        && modified <= since
    {
        return failed("If-Modified-Since", &since.to_rfc3339());
    }
    if let Some(since) = condition.if_unmodified_since.as_ref().map(time)
        && modified > since
    {
        return failed("If-Unmodified-Since", &since.to_rfc3339());
    }
    Ok(())
}
