//! ISO 8601 durations as the REST front reads and writes them.
//!
//! Read: `PT15M`, `PT15M00S`, `P7D`, `P1Y2M3DT4H5M6.7S` (a year is 365 days, a
//! month 30, as the service that programs expect counts them). Written: days,
//! hours, minutes, seconds. [`INFINITE`] stands for "no limit".

use std::time::Duration;

/// How "no limit" is written.
pub const INFINITE: &str = "P10675199DT2H48M5.4775807S";

/// Durations of at least this many days are "no limit".
const INFINITE_DAYS: u64 = 10_675_199;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an ISO 8601 duration such as PT15M or P1DT2H")]
pub struct InvalidDuration {
    text: String,
}

/// A duration, or `None` for "no limit".
///
/// # Errors
/// [`InvalidDuration`] for anything that is not a non-negative duration.
pub fn parse(text: &str) -> Result<Option<Duration>, InvalidDuration> {
    read(text.trim()).ok_or_else(|| InvalidDuration { text: text.to_owned() })
}

fn read(text: &str) -> Option<Option<Duration>> {
    let mut rest = text.strip_prefix('P')?;
    let mut in_time = false;
    let mut any = false;
    let mut total = Duration::ZERO;
    // Units must come in this order; each at most once.
    let mut last_rank = 0;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T') {
            if in_time || after.is_empty() {
                return None;
            }
            in_time = true;
            rest = after;
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit = tail.chars().next()?;
        rest = &tail[unit.len_utf8()..];
        let (rank, seconds) = match (in_time, unit) {
            (false, 'Y') => (1, 365 * 86_400),
            (false, 'M') => (2, 30 * 86_400),
            (false, 'W') => (3, 7 * 86_400),
            (false, 'D') => (4, 86_400),
            (true, 'H') => (5, 3_600),
            (true, 'M') => (6, 60),
            (true, 'S') => (7, 1),
            _ => return None,
        };
        if rank <= last_rank {
            return None;
        }
        last_rank = rank;
        any = true;
        total = total.checked_add(component(number, seconds)?)?;
    }
    if !any {
        return None;
    }
    Some((total.as_secs() / 86_400 < INFINITE_DAYS).then_some(total))
}

fn component(number: &str, seconds: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut nanos: u64 = 0;
    let mut scale: u64 = 100_000_000;
    for digit in fraction.bytes().take(9) {
        nanos += u64::from(digit.checked_sub(b'0')?) * scale;
        scale /= 10;
    }
    let main = Duration::from_secs(whole.checked_mul(seconds)?);
    let part = Duration::from_nanos(nanos).checked_mul(u32::try_from(seconds).ok()?)?;
    main.checked_add(part)
}

/// The duration in its shortest usual form; `PT0S` for zero.
pub fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes, secs) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let ticks = duration.subsec_nanos() / 100;
    let mut text = String::from("P");
    if days > 0 {
        text.push_str(&format!("{days}D"));
    }
    if hours == 0 && minutes == 0 && secs == 0 && ticks == 0 {
        return if days > 0 { text } else { "PT0S".to_owned() };
    }
    text.push('T');
    if hours > 0 {
        text.push_str(&format!("{hours}H"));
    }
    if minutes > 0 {
        text.push_str(&format!("{minutes}M"));
    }
    if ticks > 0 {
        let fraction = format!("{ticks:07}");
        text.push_str(&format!("{secs}.{}S", fraction.trim_end_matches('0')));
    } else if secs > 0 {
        text.push_str(&format!("{secs}S"));
    }
    text
}

/// As [`format()`], with [`INFINITE`] for `None`.
pub fn format_limit(limit: Option<Duration>) -> String {
    limit.map_or_else(|| INFINITE.to_owned(), format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_clients_send() {
        let cases = [
            ("PT15M", 900.0),
            ("PT15M00S", 900.0),
            ("PT01H00M00S", 3600.0),
            ("P7D", 604_800.0),
            ("P1DT2H", 93_600.0),
            ("PT0.5S", 0.5),
            ("PT1.5H", 5400.0),
            ("P3Y6M4DT12H30M5S", (1279.0 * 24.0 + 12.0) * 3600.0 + 1805.0),
        ];
        for (text, seconds) in cases {
            assert_eq!(parse(text).unwrap().unwrap().as_secs_f64(), seconds, "{text}");
        }
        assert_eq!(parse(INFINITE), Ok(None));
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in [
            "",
            "P",
            "PT",
            "15M",
            "PT5",
            "PTM",
            "P1H",
            "PT1M1H",
            "PT1..5S",
            "-PT5S",
            "P1DT",
            "PT99999999999999999999S",
            "Pä",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn writes_the_usual_form() {
        for text in ["PT15M", "P7D", "P1DT2H", "PT0S", "PT1.5S", "P1279DT12H30M5S", "PT0.0000001S"] {
            assert_eq!(format(parse(text).unwrap().unwrap()), text);
        }
        assert_eq!(format_limit(None), INFINITE);
    }
}
