//! The `api-version` of a request, and what differs between versions.

use kiln_error::{Error, Kind};

/// Date of a version as one number, for example 20240201.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// The version this server writes when nobody asks for another form.
    pub const LATEST: Self = Self::of(2025, 6, 1);

    const fn of(year: u32, month: u32, day: u32) -> Self {
        Self(year * 10_000 + month * 100 + day)
    }

    /// Reads `2024-02-01.19.0`; only the date counts.
    ///
    /// # Errors
    /// `InvalidQueryParameterValue` for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).ok_or_else(|| {
            Error::new(
                Kind::InvalidArgument,
                "InvalidQueryParameterValue",
                format!("api-version {text:?} is not known"),
            )
            .with_detail("QueryParameterName", "api-version")
            .with_detail("QueryParameterValue", text)
            .with_detail("Reason", "must be a date of 2016 or later, such as 2024-02-01.19.0")
        })
    }

    fn read(text: &str) -> Option<Self> {
        let date = text.get(..10)?;
        let rest = &text[10..];
        if !(rest.is_empty() || rest.starts_with('.')) {
            return None;
        }
        let mut parts = date.split('-');
        let mut number = |low: u32, high: u32| {
            let part = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?;
            part.parse().ok().filter(|value| (low..=high).contains(value))
        };
        let (year, month, day) = (number(2016, 2099)?, number(1, 12)?, number(1, 31)?);
        Some(Self::of(year, month, day))
    }

    /// `runElevated` instead of `userIdentity`.
    pub fn has_run_elevated(self) -> bool {
        self < Self::of(2017, 1, 1)
    }

    /// `targetDedicated`, `resizeError` instead of `targetDedicatedNodes`, ...
    pub fn has_one_target(self) -> bool {
        self < Self::of(2017, 5, 1)
    }

    /// `failureInfo` and `result` of executions; before, `schedulingError`.
    pub fn has_failure_info(self) -> bool {
        self >= Self::of(2017, 5, 1)
    }

    /// `validationStatus` in task counts.
    pub fn has_validation_status(self) -> bool {
        self <= Self::of(2018, 3, 1)
    }

    /// `blobSource` instead of `httpUrl`.
    pub fn has_blob_source(self) -> bool {
        self < Self::of(2018, 12, 1)
    }

    /// `maxTasksPerNode` instead of `taskSlotsPerNode`, flat task counts.
    pub fn has_no_slots(self) -> bool {
        self < Self::of(2020, 9, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_generations_are_known() {
        for text in ["2016-07-01.3.1", "2017-01-01.4.0", "2018-03-01.6.1", "2024-02-01.19.0", "2025-06-01"] {
            assert!(Version::parse(text).is_ok(), "{text}");
        }
        for text in ["", "2015-01-01", "2024-13-01", "latest", "2024-02-01x", "2024-0a-01", "+024-02-01", "ä"] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn generations_differ() {
        let first = Version::parse("2016-07-01.3.1").unwrap();
        let second = Version::parse("2017-01-01.4.0").unwrap();
        assert!(first.has_run_elevated() && !second.has_run_elevated());
        assert!(second.has_one_target() && !second.has_failure_info());
        assert!(!Version::LATEST.has_no_slots() && Version::LATEST.has_failure_info());
    }
}
