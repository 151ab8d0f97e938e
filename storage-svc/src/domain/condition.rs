//! What If-Match, If-None-Match and the dates mean for containers and blobs.
//!
//! | | read | write |
//! |---|---|---|
//! | If-Match, If-Unmodified-Since fail | 412 | 412 |
//! | If-None-Match matches, not modified since | 304 | 412 |
//! | If-None-Match: *, exists | 400 | creating: 409 `BlobAlreadyExists`; others: ignored |
//! | the blob is missing, If-Match given | 412 | 412 |
//!
//! They are judged in the same transaction as the write.

use kiln_etag::{Conditions, EtagSet, Version};

use super::StorageError;

/// Whether a read may answer `current`.
///
/// # Errors
/// 412, 304 or 400 as the table above says.
pub fn check_read(conditions: &Conditions, current: Version<'_>) -> Result<(), StorageError> {
    check_required(conditions, Some(current))?;
    if conditions.if_none_match == Some(EtagSet::Any) {
        return Err(StorageError::UnsatisfiableCondition);
    }
    // Either of the two is reason enough to send it again.
    let different = conditions.if_none_match.as_ref().map(|set| !set.contains(current.etag));
    let newer = conditions.if_modified_since.map(|since| current.is_newer_than(since));
    match (different, newer) {
        (None, None) => Ok(()),
        (a, b) if a == Some(true) || b == Some(true) => Ok(()),
        _ => Err(StorageError::NotModified),
    }
}

/// Whether a source may be copied.
///
/// # Errors
/// 412 whichever condition it is that does not hold.
pub fn check_source(conditions: &Conditions, current: Version<'_>) -> Result<(), StorageError> {
    check_read(conditions, current).map_err(|_| StorageError::SourceConditionNotMet)
}

/// Whether a write that makes or replaces the whole record may happen.
///
/// # Errors
/// 412 or 409 as the table above says.
pub fn check_create(conditions: &Conditions, current: Option<Version<'_>>) -> Result<(), StorageError> {
    if conditions.if_none_match == Some(EtagSet::Any) && current.is_some() {
        return Err(StorageError::BlobAlreadyExists);
    }
    check_write(conditions, current)
}

/// Whether any other write may happen.
///
/// # Errors
/// 412 as the table above says.
pub fn check_write(conditions: &Conditions, current: Option<Version<'_>>) -> Result<(), StorageError> {
    check_required(conditions, current)?;
    let Some(current) = current else { return Ok(()) };
    let same = match &conditions.if_none_match {
        Some(EtagSet::These(_)) => conditions.if_none_match.as_ref().is_some_and(|set| set.contains(current.etag)),
        Some(EtagSet::Any) | None => false,
    };
    // With both given, the ETag decides.
    let old = conditions.if_none_match.is_none()
        && conditions.if_modified_since.is_some_and(|since| !current.is_newer_than(since));
    if same || old { Err(StorageError::ConditionNotMet) } else { Ok(()) }
}

/// Writes take one condition, or an ETag with its date.
///
/// # Errors
/// Too many, or a list of ETags.
pub fn check_write_combination(conditions: &Conditions) -> Result<(), StorageError> {
    let list = |set: &Option<EtagSet>| matches!(set, Some(EtagSet::These(etags)) if etags.len() > 1);
    let matching = conditions.if_match.is_some() || conditions.if_unmodified_since.is_some();
    let changing = conditions.if_none_match.is_some() || conditions.if_modified_since.is_some();
    if (matching && changing) || list(&conditions.if_match) || list(&conditions.if_none_match) {
        return Err(StorageError::MultipleConditionHeadersNotSupported);
    }
    Ok(())
}

fn check_required(conditions: &Conditions, current: Option<Version<'_>>) -> Result<(), StorageError> {
    let Some(current) = current else {
        return if conditions.if_match.is_some() { Err(StorageError::ConditionNotMet) } else { Ok(()) };
    };
    let matches = conditions.if_match.as_ref().is_none_or(|set| set.contains(current.etag));
    let unchanged = conditions.if_unmodified_since.is_none_or(|since| !current.is_newer_than(since));
    if matches && unchanged { Ok(()) } else { Err(StorageError::ConditionNotMet) }
}

#[cfg(test)]
mod tests {
    use kiln_time::Timestamp;

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(10_500_000);
    const CURRENT: Version<'static> = Version { etag: "0x1", last_modified: NOW };

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn outcome(result: Result<(), StorageError>) -> u16 {
        result.map_or_else(|error| error.status(), |()| 200)
    }

    #[test]
    fn table_of_etags() {
        // (header, value, read, create, write, create when missing)
        for (header, value, read, create, write, missing) in [
            ("if-match", "\"0x1\"", 200, 200, 200, 412),
            ("if-match", "0x1", 200, 200, 200, 412),
            ("if-match", "\"0x2\"", 412, 412, 412, 412),
            ("if-match", "*", 200, 200, 200, 412),
            ("if-none-match", "\"0x1\"", 304, 412, 412, 200),
            ("if-none-match", "\"0x2\"", 200, 200, 200, 200),
            ("if-none-match", "*", 400, 409, 200, 200),
        ] {
            let set = Some(EtagSet::parse(value));
            let conditions = match header {
                "if-match" => Conditions { if_match: set, ..Conditions::default() },
                _ => Conditions { if_none_match: set, ..Conditions::default() },
            };
            assert_eq!(outcome(check_source(&conditions, CURRENT)), if read == 200 { 200 } else { 412 }, "{value}");
            let got = (
                outcome(check_read(&conditions, CURRENT)),
                outcome(check_create(&conditions, Some(CURRENT))),
                outcome(check_write(&conditions, Some(CURRENT))),
                outcome(check_create(&conditions, None)),
            );
            assert_eq!(got, (read, create, write, missing), "{header}: {value}");
        }
    }

    #[test]
    fn table_of_dates() {
        for (since, modified_read, modified_write, unmodified) in
            [(seconds(9), 200, 200, 412), (seconds(10), 304, 412, 200), (seconds(11), 304, 412, 200)]
        {
            let modified = Conditions { if_modified_since: Some(since), ..Conditions::default() };
            assert_eq!(outcome(check_read(&modified, CURRENT)), modified_read);
            assert_eq!(outcome(check_write(&modified, Some(CURRENT))), modified_write);
            let conditions = Conditions { if_unmodified_since: Some(since), ..Conditions::default() };
            assert_eq!(outcome(check_read(&conditions, CURRENT)), unmodified);
            assert_eq!(outcome(check_write(&conditions, Some(CURRENT))), unmodified);
        }
    }

    #[test]
    fn reads_combine_and_writes_do_not() {
        let both = Conditions {
            if_none_match: Some(EtagSet::parse("\"0x1\"")),
            if_modified_since: Some(seconds(9)),
            ..Conditions::default()
        };
        assert_eq!(outcome(check_read(&both, CURRENT)), 200);
        assert_eq!(outcome(check_write_combination(&both)), 200);
        let mixed = Conditions { if_match: Some(EtagSet::Any), ..both };
        assert_eq!(outcome(check_write_combination(&mixed)), 400);
        let list = Conditions { if_match: Some(EtagSet::parse("\"a\", \"b\"")), ..Conditions::default() };
        assert_eq!(outcome(check_write_combination(&list)), 400);
    }
}
