//! Places in the event log, as callers see them: opaque texts.
//!
//! A cursor names the log it belongs to. If a log was lost and begun anew, old
//! cursors are refused instead of silently passing over events.

use kiln_error::{Error, Kind};

use crate::store::LogState;

/// The text for a position.
pub fn write(log_id: &str, position: i64) -> String {
    format!("c{log_id}-{position:x}")
}

/// The position of a cursor; 0, before the first event, if there is none.
///
/// # Errors
/// `field` is wrong: not a cursor, one of another log, or of a part of the log
/// that was deleted.
pub fn read(log: &LogState, field: &str, text: &str) -> Result<i64, Error> {
    if text.is_empty() {
        return Ok(0);
    }
    let invalid = || Error::invalid_property(field, text, "is not a cursor this service gave out");
    let (id, position) = text.strip_prefix('c').and_then(|rest| rest.split_once('-')).ok_or_else(invalid)?;
    let position = i64::from_str_radix(position, 16).ok().filter(|position| *position >= 0).ok_or_else(invalid)?;
    let expired = |why: &str| {
        Error::new(Kind::OutOfRange, "CursorExpired", format!("{field}: {why}; begin again without one"))
            .with_detail("PropertyName", field)
            .with_detail("PropertyValue", text)
    };
    if id != log.id || position > log.last {
        return Err(expired("the cursor belongs to an event log that is gone"));
    }
    if position > 0 && position < log.floor {
        return Err(expired("events behind the cursor were deleted because of their age"));
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_and_foreign_or_expired_ones_are_refused() {
        let log = LogState { id: "ab12".into(), events: 5, floor: 10, last: 300 };
        for position in [10, 255, 300] {
            assert_eq!(read(&log, "cursor", &write("ab12", position)).unwrap(), position);
        }
        assert_eq!(read(&log, "cursor", "").unwrap(), 0);
        for (text, reason) in [
            ("x", "InvalidPropertyValue"),
            ("cab12", "InvalidPropertyValue"),
            ("cab12--5", "InvalidPropertyValue"),
            ("cab12-zz", "InvalidPropertyValue"),
            ("cab12-9", "CursorExpired"),
            ("cab12-12d", "CursorExpired"),
            ("cff-ff", "CursorExpired"),
            ("cä-1", "CursorExpired"),
        ] {
            assert_eq!(read(&log, "cursor", text).unwrap_err().reason(), reason, "{text}");
        }
    }
}
