//! Instants and durations as Kiln counts them.
//!
//! [`Timestamp`] is microseconds since the Unix epoch, the form stores and
//! state machines use. [`iso`] reads and writes the ISO 8601 durations of the
//! REST front, including the "infinite" one.

pub mod iso;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An instant: microseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// Why a text is not an instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a date and time such as 2026-01-31T12:00:00Z")]
pub struct InvalidTimestamp {
    text: String,
}

impl Timestamp {
    /// The clock on the wall. Only the outermost loops call this; everything
    /// below takes the time as an argument.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Later by `duration`; saturates.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Earlier by `duration`; saturates.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this instant; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The second this instant is in, for protocols that count whole seconds.
    #[must_use]
    pub fn truncate_to_second(self) -> Self {
        Self(self.0.div_euclid(1_000_000) * 1_000_000)
    }

    /// `2026-01-31T12:00:00.123456Z`, trailing zeros of the fraction dropped.
    pub fn to_rfc3339(self) -> String {
        let text = self.zoned().strftime("%Y-%m-%dT%H:%M:%S").to_string();
        let micros = self.0.rem_euclid(1_000_000);
        if micros == 0 {
            return format!("{text}Z");
        }
        let fraction = format!("{micros:06}");
        format!("{text}.{}Z", fraction.trim_end_matches('0'))
    }

    /// `2026-01-31T12:00:00.1234560Z`, always seven digits.
    pub fn to_rfc3339_ticks(self) -> String {
        let text = self.zoned().strftime("%Y-%m-%dT%H:%M:%S").to_string();
        format!("{text}.{:06}0Z", self.0.rem_euclid(1_000_000))
    }

    /// `Sat, 31 Jan 2026 12:00:00 GMT`, the form of HTTP headers.
    pub fn to_http_date(self) -> String {
        self.zoned().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    /// Reads RFC 3339 with 0 to 9 fraction digits, also without seconds
    /// (`2026-01-31T12:00Z`) and a bare date.
    ///
    /// # Errors
    /// [`InvalidTimestamp`] if the text is none of these.
    pub fn parse_rfc3339(text: &str) -> Result<Self, InvalidTimestamp> {
        let error = || InvalidTimestamp { text: text.to_owned() };
        let trimmed = text.trim();
        let full = match trimmed.len() {
            10 => format!("{trimmed}T00:00:00Z"),
            17 if trimmed.ends_with('Z') => format!("{}:00Z", &trimmed[..16]),
            _ => trimmed.to_owned(),
        };
        let instant: jiff::Timestamp = full.parse().map_err(|_| error())?;
        Ok(Self(instant.as_microsecond()))
    }

    /// Reads the date of an HTTP header (RFC 1123).
    ///
    /// # Errors
    /// [`InvalidTimestamp`] if the text is not such a date.
    pub fn parse_http_date(text: &str) -> Result<Self, InvalidTimestamp> {
        let instant = jiff::fmt::rfc2822::parse(text.trim()).map_err(|_| InvalidTimestamp { text: text.to_owned() })?;
        Ok(Self(instant.timestamp().as_microsecond()))
    }

    fn zoned(self) -> jiff::Zoned {
        // Instants outside jiff's years (-9999..9999) print as the nearest end.
        jiff::Timestamp::from_microsecond(self.0)
            .unwrap_or(if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX })
            .to_zoned(jiff::tz::TimeZone::UTC)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_print_and_parse() {
        let t = Timestamp::from_micros(1_769_860_800_120_000);
        assert_eq!(t.to_rfc3339(), "2026-01-31T12:00:00.12Z");
        assert_eq!(t.to_rfc3339_ticks(), "2026-01-31T12:00:00.1200000Z");
        assert_eq!(t.to_http_date(), "Sat, 31 Jan 2026 12:00:00 GMT");
        assert_eq!(Timestamp::parse_rfc3339("2026-01-31T12:00:00.1200000Z"), Ok(t));
        assert_eq!(Timestamp::parse_http_date("Sat, 31 Jan 2026 12:00:00 GMT"), Ok(t.truncate_to_second()));
        assert_eq!(Timestamp::parse_rfc3339("2026-01-31T12:00Z"), Ok(t.truncate_to_second()));
        assert!(Timestamp::parse_rfc3339("yesterday").is_err());
        assert!(Timestamp::parse_rfc3339("äääääääääZ").is_err());
    }
}
