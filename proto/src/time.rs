//! Between protobuf's instants and durations and the plain numbers that
//! services count in: microseconds since the Unix epoch, and [`Duration`].

use std::time::Duration;

/// An instant from microseconds since the Unix epoch.
pub fn timestamp(micros: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: (micros.rem_euclid(1_000_000) * 1_000) as i32,
    }
}

/// Microseconds since the Unix epoch; saturates at the ends of `i64`.
pub fn micros(timestamp: &prost_types::Timestamp) -> i64 {
    timestamp.seconds.saturating_mul(1_000_000).saturating_add(i64::from(timestamp.nanos) / 1_000)
}

/// A protobuf duration; saturates at the largest one protobuf can hold.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

/// The duration, or `None` if it is negative.
pub fn std_duration(duration: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok()?;
    if nanos >= 1_000_000_000 {
        return None;
    }
    Some(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_before_the_epoch_survive_the_round_trip() {
        for value in [0, 1, -1, 1_700_000_000_123_456, -1_700_000_000_123_456] {
            assert_eq!(micros(&timestamp(value)), value);
        }
    }

    #[test]
    fn negative_durations_are_refused() {
        assert_eq!(std_duration(&prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert_eq!(std_duration(&duration(Duration::from_millis(1500))), Some(Duration::from_millis(1500)));
    }
}
