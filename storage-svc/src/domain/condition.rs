//! If-Match, If-None-Match and the dates.
//!
//! | | read | write |
//! |---|---|---|
//! | If-Match, If-Unmodified-Since fail | 412 | 412 |
//! | If-None-Match matches, not modified since | 304 | 412 |
//! | If-None-Match: *, exists | 400 | creating: 409 `BlobAlreadyExists`; others: ignored |
//! | the blob is missing, If-Match given | 412 | 412 |
//!
//! Dates count whole seconds. They are judged in the same transaction as the write.

use kiln_time::Timestamp;

use super::StorageError;

/// Which versions an ETag header names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagSet {
    /// `*`: any version.
    Any,
    /// These, without quotes.
    These(Vec<String>),
}

impl EtagSet {
    /// Reads the value of If-Match or If-None-Match; quotes are optional.
    pub fn parse(text: &str) -> Self {
        if text.trim() == "*" {
            return Self::Any;
        }
        let strip = |part: &str| part.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        Self::These(text.split(',').map(strip).filter(|part| !part.is_empty()).collect())
    }

    fn contains(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(etags) => etags.iter().any(|known| known == etag),
        }
    }
}

/// All conditions of one request.
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

/// The version a condition is compared with.
#[derive(Debug, Clone, Copy)]
pub struct Version<'a> {
    /// Without quotes.
    pub etag: &'a str,
    /// Of the last write.
    pub last_modified: Timestamp,
}

impl Conditions {
    /// The record must not exist yet.
    pub fn absent() -> Self {
        Self { if_none_match: Some(EtagSet::Any), ..Self::default() }
    }

    /// Whether a read may answer `current`.
    ///
    /// # Errors
    /// 412, 304 or 400 as the table above says.
    pub fn check_read(&self, current: Version<'_>) -> Result<(), StorageError> {
        self.check_required(Some(current))?;
        if self.if_none_match == Some(EtagSet::Any) {
            return Err(StorageError::UnsatisfiableCondition);
        }
        // Either of the two is reason enough to send it again.
        let different = self.if_none_match.as_ref().map(|set| !set.contains(current.etag));
        let newer = self.if_modified_since.map(|since| is_newer(current, since));
        match (different, newer) {
            (None, None) => Ok(()),
            (a, b) if a == Some(true) || b == Some(true) => Ok(()),
            _ => Err(StorageError::NotModified),
        }
    }

    /// Whether a write that makes or replaces the whole record may happen.
    ///
    /// # Errors
    /// 412 or 409 as the table above says.
    pub fn check_create(&self, current: Option<Version<'_>>) -> Result<(), StorageError> {
        if self.if_none_match == Some(EtagSet::Any) && current.is_some() {
            return Err(StorageError::BlobAlreadyExists);
        }
        self.check_write(current)
    }

    /// Whether any other write may happen.
    ///
    /// # Errors
    /// 412 as the table above says.
    pub fn check_write(&self, current: Option<Version<'_>>) -> Result<(), StorageError> {
        self.check_required(current)?;
        let Some(current) = current else { return Ok(()) };
        let same = match &self.if_none_match {
            Some(EtagSet::These(_)) => self.if_none_match.as_ref().is_some_and(|set| set.contains(current.etag)),
            Some(EtagSet::Any) | None => false,
        };
        // With both given, the ETag decides.
        let old = self.if_none_match.is_none() && self.if_modified_since.is_some_and(|since| !is_newer(current, since));
        if same || old { Err(StorageError::ConditionNotMet) } else { Ok(()) }
    }

    /// Writes take one condition, or an ETag with its date.
    ///
    /// # Errors
    /// Too many, or a list of ETags.
    pub fn check_write_combination(&self) -> Result<(), StorageError> {
        let list = |set: &Option<EtagSet>| matches!(set, Some(EtagSet::These(etags)) if etags.len() > 1);
        let matching = self.if_match.is_some() || self.if_unmodified_since.is_some();
        let changing = self.if_none_match.is_some() || self.if_modified_since.is_some();
        if (matching && changing) || list(&self.if_match) || list(&self.if_none_match) {
            return Err(StorageError::MultipleConditionHeadersNotSupported);
        }
        Ok(())
    }

    fn check_required(&self, current: Option<Version<'_>>) -> Result<(), StorageError> {
        let Some(current) = current else {
            return if self.if_match.is_some() { Err(StorageError::ConditionNotMet) } else { Ok(()) };
        };
        let matches = self.if_match.as_ref().is_none_or(|set| set.contains(current.etag));
        let unchanged = self.if_unmodified_since.is_none_or(|since| !is_newer(current, since));
        if matches && unchanged { Ok(()) } else { Err(StorageError::ConditionNotMet) }
    }
}

fn is_newer(current: Version<'_>, since: Timestamp) -> bool {
    current.last_modified.truncate_to_second() > since.truncate_to_second()
}

#[cfg(test)]
mod tests {
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
            let got = (
                outcome(conditions.check_read(CURRENT)),
                outcome(conditions.check_create(Some(CURRENT))),
                outcome(conditions.check_write(Some(CURRENT))),
                outcome(conditions.check_create(None)),
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
            assert_eq!(outcome(modified.check_read(CURRENT)), modified_read);
            assert_eq!(outcome(modified.check_write(Some(CURRENT))), modified_write);
            let conditions = Conditions { if_unmodified_since: Some(since), ..Conditions::default() };
            assert_eq!(outcome(conditions.check_read(CURRENT)), unmodified);
            assert_eq!(outcome(conditions.check_write(Some(CURRENT))), unmodified);
        }
    }

    #[test]
    fn reads_combine_and_writes_do_not() {
        let both = Conditions {
            if_none_match: Some(EtagSet::parse("\"0x1\"")),
            if_modified_since: Some(seconds(9)),
            ..Conditions::default()
        };
        assert_eq!(outcome(both.check_read(CURRENT)), 200);
        assert_eq!(outcome(both.check_write_combination()), 200);
        let mixed = Conditions { if_match: Some(EtagSet::Any), ..both };
        assert_eq!(outcome(mixed.check_write_combination()), 400);
        let list = Conditions { if_match: Some(EtagSet::parse("\"a\", \"b\"")), ..Conditions::default() };
        assert_eq!(outcome(list.check_write_combination()), 400);
    }
}
