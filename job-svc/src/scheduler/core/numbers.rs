//! Maps by numbers that this service gave out itself.
//!
//! Rows and streams are counted, not chosen by others, so they need no hash
//! that withstands choices; this one costs a multiplication.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by such numbers.
pub type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct NumberHasher(u64);

/// An odd number with its bits well spread (2^64 by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        // Maps look at both ends of the hash; the product is good at its upper.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(SPREAD);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn neighbours_are_spread() {
        let hash = |number: u64| {
            let mut hasher = NumberHasher::default();
            hasher.write_u64(number);
            hasher.finish()
        };
        // The places in a table of 4096, and the marks beside them.
        let low: HashSet<u64> = (0..4096).map(|number| hash(number) & 4095).collect();
        let high: HashSet<u64> = (0..128).map(|number| hash(number) >> 57).collect();
        assert!(low.len() > 2000 && high.len() > 60, "{} {}", low.len(), high.len());
    }
}
