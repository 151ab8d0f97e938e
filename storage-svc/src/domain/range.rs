//! Byte ranges of reads.

use super::StorageError;

/// What a reader asks for: from `start` to `end`, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedRange {
    /// First byte.
    pub start: u64,
    /// Last byte; to the end if absent.
    pub end: Option<u64>,
}

/// A part of a blob that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
}

impl WantedRange {
    /// Reads `bytes=a-b` and `bytes=a-`. Anything else (several ranges, the last
    /// n bytes, a > b) is not a range Azure knows and counts as none.
    pub fn parse(text: &str) -> Option<Self> {
        let (start, end) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        let start = number(start)?;
        let end = if end.is_empty() { None } else { Some(number(end)?) };
        if end.is_some_and(|end| end < start) {
            return None;
        }
        Some(Self { start, end })
    }

    /// Cuts the range to a blob of `length` bytes.
    ///
    /// # Errors
    /// [`StorageError::InvalidRange`] if it begins behind the end.
    pub fn within(self, length: u64) -> Result<Span, StorageError> {
        if self.start >= length {
            return Err(StorageError::InvalidRange { length });
        }
        let last = self.end.map_or(length - 1, |end| end.min(length - 1));
        Ok(Span { start: self.start, length: last - self.start + 1 })
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_or_count_as_none() {
        let range = |start, end| Some(WantedRange { start, end });
        assert_eq!(WantedRange::parse("bytes=0-33554431"), range(0, Some(33_554_431)));
        assert_eq!(WantedRange::parse("bytes=5-"), range(5, None));
        for none in ["", "bytes=-5", "bytes=5-4", "bytes=1-2,4-5", "bytes=a-b", "items=0-1", "bytes=+1-2"] {
            assert_eq!(WantedRange::parse(none), None, "{none}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_blob() {
        let wanted = |start, end| WantedRange { start, end };
        assert_eq!(wanted(0, Some(99)).within(10).unwrap(), Span { start: 0, length: 10 });
        assert_eq!(wanted(9, None).within(10).unwrap(), Span { start: 9, length: 1 });
        assert_eq!(wanted(2, Some(2)).within(10).unwrap(), Span { start: 2, length: 1 });
        assert_eq!(wanted(10, None).within(10).unwrap_err().status(), 416);
        assert_eq!(wanted(0, None).within(0).unwrap_err().status(), 416);
        assert_eq!(wanted(0, Some(u64::MAX)).within(1).unwrap(), Span { start: 0, length: 1 });
    }
}
