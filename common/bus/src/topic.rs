//! Topic patterns, as AMQP 0-9-1 defines them for topic exchanges.

/// Whether `key` (words separated by dots) fits `pattern`, in which `*` stands
/// for exactly one word and `#` for any number of words, also none.
pub fn matches(pattern: &str, key: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    // An empty key has no words; `split` would make one empty word of it.
    let key: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    // reachable[i]: the words read so far fit the first i parts of the pattern.
    let mut reachable = vec![false; pattern.len() + 1];
    reachable[0] = true;
    skip_hashes(&pattern, &mut reachable);
    for word in key {
        let mut next = vec![false; pattern.len() + 1];
        for (at, part) in pattern.iter().enumerate() {
            match *part {
                // A `#` that was reached takes the word and stays.
                "#" => next[at + 1] |= reachable[at + 1] || reachable[at],
                "*" => next[at + 1] |= reachable[at],
                literal => next[at + 1] |= reachable[at] && literal == word,
            }
        }
        reachable = next;
        skip_hashes(&pattern, &mut reachable);
    }
    reachable[pattern.len()]
}

/// A `#` may stand for no word at all.
fn skip_hashes(pattern: &[&str], reachable: &mut [bool]) {
    for (at, part) in pattern.iter().enumerate() {
        if *part == "#" && reachable[at] {
            reachable[at + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_amqp() {
        for (pattern, key, expected) in [
            ("job.task.finished", "job.task.finished", true),
            ("job.task.finished", "job.task.started", false),
            ("job.task.*", "job.task.started", true),
            ("job.task.*", "job.task", false),
            ("job.task.*", "job.task.a.b", false),
            ("job.#", "job", true),
            ("job.#", "job.task.started", true),
            ("job.#", "pool.node.state", false),
            ("#", "a.b.c", true),
            ("#", "", true),
            ("*", "", false),
            ("#.state", "pool.node.state", true),
            ("#.state", "state", true),
            ("#.state", "pool.state.x", false),
            ("*.node.#", "pool.node.state", true),
            ("a.#.z", "a.z", true),
            ("a.#.z", "a.b.z.c.z", true),
            ("#.#", "a", true),
            ("#.*", "", false),
            ("#.*.#", "a", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} against {key}");
        }
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_its_length_times_the_key() {
        let pattern = vec!["#"; 2000].join(".") + ".x";
        let key = vec!["a"; 2000].join(".");
        assert!(!matches(&pattern, &key));
    }
}
