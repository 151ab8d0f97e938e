//! Ranges of indices: `1-10`, `0-100:5`, `1,4,7-9`.

/// Indices of one array.
const MAX_INDICES: usize = 1_000_000;

/// The indices that `text` names, in order, each once.
///
/// # Errors
/// What is wrong, in words.
pub fn parse(text: &str) -> Result<Vec<u64>, String> {
    let mut indices = Vec::new();
    for part in text.split(',') {
        let (range, step) = match part.split_once(':') {
            Some((range, step)) => (range, number(step, text)?),
            None => (part, 1),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first, text)?, number(last, text)?),
            None => (number(range, text)?, number(range, text)?),
        };
        if step == 0 {
            return Err(format!("{text:?}: the step cannot be 0"));
        }
        if last < first {
            return Err(format!("{text:?}: {last} is less than {first}"));
        }
        if (last - first) / step >= MAX_INDICES as u64 || indices.len() > MAX_INDICES {
            return Err(format!("{text:?} has more than {MAX_INDICES} indices"));
        }
        let mut index = Some(first);
        while let Some(value) = index.filter(|value| *value <= last) {
            indices.push(value);
            index = value.checked_add(step);
        }
    }
    let count = indices.len();
    indices.sort_unstable();
    indices.dedup();
    if indices.len() != count {
        return Err(format!("{text:?} names an index twice"));
    }
    if count > MAX_INDICES {
        return Err(format!("{text:?} has more than {MAX_INDICES} indices"));
    }
    Ok(indices)
}

fn number(text: &str, whole: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    if trimmed.is_empty() || !trimmed.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{whole:?} is not a range such as 1-10 or 1-10:2"));
    }
    trimmed.parse().map_err(|_| format!("{whole:?}: {trimmed} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive() {
        assert_eq!(parse("1-3"), Ok(vec![1, 2, 3]));
        assert_eq!(parse("0-10:5"), Ok(vec![0, 5, 10]));
        assert_eq!(parse("7"), Ok(vec![7]));
        assert_eq!(parse("7-8,1"), Ok(vec![1, 7, 8]));
        assert_eq!(parse("18446744073709551615"), Ok(vec![u64::MAX]));
    }

    #[test]
    fn bad_ranges_say_why() {
        for (text, why) in [
            ("", "not a range"),
            ("a", "not a range"),
            ("-5", "not a range"),
            ("3-1", "less than"),
            ("1-3:0", "step"),
            ("1-2,2", "twice"),
            ("0-18446744073709551615", "more than"),
            ("99999999999999999999", "too large"),
        ] {
            assert!(parse(text).is_err_and(|message| message.contains(why)), "{text}: {:?}", parse(text));
        }
    }
}
