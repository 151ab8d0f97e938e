//! Times, sizes and states in words.

use std::time::Duration;

use kiln_time::Timestamp;

/// An instant of the API; empty if absent.
pub fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.map(|time| Timestamp::from_micros(kiln_proto::time::micros(time)).truncate_to_second().to_rfc3339())
        .unwrap_or_default()
}

/// Time between two instants; empty if one is absent.
pub fn between(start: Option<&prost_types::Timestamp>, end: Option<&prost_types::Timestamp>) -> String {
    match (start, end) {
        (Some(start), Some(end)) => {
            let micros = kiln_proto::time::micros(end).saturating_sub(kiln_proto::time::micros(start));
            duration(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
        }
        _ => String::new(),
    }
}

/// A duration with three useful digits.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        _ if seconds < 100.0 => format!("{seconds:.2} s"),
        _ => {
            let whole = duration.as_secs();
            let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
            if hours > 0 { format!("{hours} h {minutes} min") } else { format!("{minutes} min {seconds} s") }
        }
    }
}

/// The word of an enum value: `TASK_STATE_RUNNING` is `running`.
pub fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).map(|rest| rest.trim_start_matches('_')) {
        Some("UNSPECIFIED") | None => String::new(),
        Some(rest) => rest.to_lowercase(),
    }
}

/// Bytes with a unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_well() {
        assert_eq!(word("TASK_STATE_RUNNING", "TASK_STATE"), "running");
        assert_eq!(word("NODE_STATE_WAITING_FOR_START_TASK", "NODE_STATE"), "waiting_for_start_task");
        assert_eq!(word("TASK_STATE_UNSPECIFIED", "TASK_STATE"), "");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(duration(Duration::from_millis(12)), "12 ms");
        assert_eq!(duration(Duration::from_millis(1234)), "1.23 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(duration(Duration::from_secs(7300)), "2 h 1 min");
        assert_eq!(time(Some(&kiln_proto::time::timestamp(1_500_000))), "1970-01-01T00:00:01Z");
        assert_eq!(time(None), "");
    }
}
