//! Sets of numbers, and ranges that wait for all of their numbers.
//!
//! A range is cut into at most 62 aligned pieces (a segment tree, of which only
//! the pieces exist that some range has). A number belongs to at most 33 pieces,
//! so it is told to them in a few steps, however many ranges there are and
//! however wide they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A number, moved so that the smallest is 0.
pub type Number = u32;
/// Both ends included.
pub type Range = (Number, Number);
/// Numbers that share all bits above the level.
pub type PieceKey = (u8, u32);

/// The place of a number.
pub fn place(number: i32) -> Number {
    (number as u32) ^ (1 << 31)
}

/// The number at a place.
pub fn number_at(place: Number) -> i32 {
    (place ^ (1 << 31)) as i32
}

/// A set that takes little room where its numbers are close together.
#[derive(Debug, Default)]
pub struct NumberSet {
    words: BTreeMap<u32, u64>,
}

impl NumberSet {
    /// Whether it is in.
    pub fn contains(&self, number: Number) -> bool {
        self.words.get(&(number >> 6)).is_some_and(|word| word & (1 << (number & 63)) != 0)
    }

    /// Puts it in; `false` if it was.
    pub fn insert(&mut self, number: Number) -> bool {
        let word = self.words.entry(number >> 6).or_default();
        let bit = 1 << (number & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes it out; `false` if it was not in.
    pub fn remove(&mut self, number: Number) -> bool {
        let Some(word) = self.words.get_mut(&(number >> 6)) else { return false };
        let bit = 1 << (number & 63);
        let was = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            self.words.remove(&(number >> 6));
        }
        was
    }

    /// The words that have numbers of a range, with those outside cut off.
    fn words(&self, (start, end): Range) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.words.range(start >> 6..=end >> 6).map(move |(at, word)| {
            let low = if *at == start >> 6 { u64::MAX << (start & 63) } else { u64::MAX };
            let high = if *at == end >> 6 { u64::MAX >> (63 - (end & 63)) } else { u64::MAX };
            (*at, word & low & high)
        })
    }

    /// How many numbers of a range are in.
    pub fn count(&self, range: Range) -> u64 {
        self.words(range).map(|(_, word)| u64::from(word.count_ones())).sum()
    }

    /// The numbers of a range that are in.
    pub fn iter(&self, range: Range) -> impl Iterator<Item = Number> + '_ {
        self.words(range)
            .flat_map(|(at, word)| (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |b| at << 6 | b))
    }

    /// The first numbers of a range that are not in.
    pub fn gaps(&self, (start, end): Range, limit: usize) -> Vec<Number> {
        let mut found = Vec::new();
        let mut next = u64::from(start);
        while found.len() < limit && next <= u64::from(end) {
            let number = next as u32;
            if self.words.get(&(number >> 6)) == Some(&u64::MAX) {
                next = (u64::from(number >> 6) + 1) << 6;
                continue;
            }
            if !self.contains(number) {
                found.push(number);
            }
            next += 1;
        }
        found
    }
}

/// Cuts a range into aligned pieces.
pub fn cut((start, end): Range) -> Vec<PieceKey> {
    let (mut low, mut high) = (u64::from(start), u64::from(end) + 1);
    let mut found = Vec::new();
    let mut level = 0;
    while low < high {
        if low & 1 == 1 {
            found.push((level, low as u32));
            low += 1;
        }
        if high & 1 == 1 {
            high -= 1;
            found.push((level, high as u32));
        }
        low >>= 1;
        high >>= 1;
        level += 1;
    }
    found
}

/// The numbers of a piece.
fn span((level, at): PieceKey) -> Range {
    let start = u64::from(at) << level;
    (start as u32, (start + (1 << level) - 1) as u32)
}

#[derive(Debug)]
struct Piece {
    /// Numbers that are not satisfied.
    missing: u64,
    ranges: BTreeSet<Range>,
}

/// Ranges by their pieces, and the numbers that are satisfied.
#[derive(Debug, Default)]
pub struct Ranges {
    pieces: HashMap<PieceKey, Piece>,
    /// Pieces of each level.
    levels: BTreeMap<u8, u32>,
    /// Pieces of a range that miss a number.
    open: HashMap<Range, u32>,
    satisfied: NumberSet,
}

impl Ranges {
    /// Whether nobody waits for this range.
    pub fn is_new(&self, range: Range) -> bool {
        !self.open.contains_key(&range)
    }

    /// Whether all its numbers are satisfied.
    pub fn is_complete(&self, range: Range) -> bool {
        self.open.get(&range) == Some(&0)
    }

    /// The numbers that are satisfied, as far as ranges cover them.
    pub fn satisfied(&self) -> &NumberSet {
        &self.satisfied
    }

    /// Begins to watch a range whose numbers were learned.
    pub fn add(&mut self, range: Range) {
        if !self.is_new(range) {
            return;
        }
        let mut open = 0;
        for key in cut(range) {
            let (satisfied, levels) = (&self.satisfied, &mut self.levels);
            let piece = self.pieces.entry(key).or_insert_with(|| {
                *levels.entry(key.0).or_default() += 1;
                let (start, end) = span(key);
                let size = u64::from(end) - u64::from(start) + 1;
                Piece { missing: size - satisfied.count((start, end)), ranges: BTreeSet::new() }
            });
            piece.ranges.insert(range);
            open += u32::from(piece.missing > 0);
        }
        self.open.insert(range, open);
    }

    /// Nobody waits for a range any more.
    pub fn remove(&mut self, range: Range) {
        if self.open.remove(&range).is_none() {
            return;
        }
        for key in cut(range) {
            if let Some(piece) = self.pieces.get_mut(&key) {
                piece.ranges.remove(&range);
                if piece.ranges.is_empty() {
                    self.pieces.remove(&key);
                    if let Some(pieces) = self.levels.get_mut(&key.0) {
                        *pieces -= 1;
                        if *pieces == 0 {
                            self.levels.remove(&key.0);
                        }
                    }
                }
            }
        }
        if self.open.is_empty() {
            self.satisfied = NumberSet::default();
        }
    }

    /// The pieces a number belongs to.
    pub fn pieces_of(&self, number: Number) -> impl Iterator<Item = PieceKey> + '_ {
        let keys = self.levels.keys().map(move |level| (*level, (u64::from(number) >> level) as u32));
        keys.filter(|key| self.pieces.contains_key(key))
    }

    /// The ranges a piece belongs to.
    pub fn ranges_of(&self, key: PieceKey) -> impl Iterator<Item = Range> + '_ {
        self.pieces.get(&key).into_iter().flat_map(|piece| piece.ranges.iter().copied())
    }

    /// Whether some range has this number.
    pub fn watches(&self, number: Number) -> bool {
        self.pieces_of(number).next().is_some()
    }

    /// A number is satisfied; gives the ranges that are complete by it.
    pub fn satisfy(&mut self, number: Number) -> Vec<Range> {
        let mut complete = Vec::new();
        if !self.satisfied.insert(number) {
            return complete;
        }
        for key in self.pieces_of(number).collect::<Vec<_>>() {
            let Some(piece) = self.pieces.get_mut(&key) else { continue };
            piece.missing -= 1;
            if piece.missing > 0 {
                continue;
            }
            for range in &piece.ranges {
                if let Some(open) = self.open.get_mut(range) {
                    *open -= 1;
                    if *open == 0 {
                        complete.push(*range);
                    }
                }
            }
        }
        complete
    }

    /// A number is no longer satisfied; gives the ranges that were complete.
    pub fn reopen(&mut self, number: Number) -> Vec<Range> {
        let mut opened = Vec::new();
        if !self.satisfied.remove(number) {
            return opened;
        }
        for key in self.pieces_of(number).collect::<Vec<_>>() {
            let Some(piece) = self.pieces.get_mut(&key) else { continue };
            piece.missing += 1;
            if piece.missing > 1 {
                continue;
            }
            for range in &piece.ranges {
                if let Some(open) = self.open.get_mut(range) {
                    *open += 1;
                    if *open == 1 {
                        opened.push(*range);
                    }
                }
            }
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_numbers_is_kept() {
        let numbers = [i32::MIN, -1, 0, 1, i32::MAX];
        assert!(numbers.windows(2).all(|pair| place(pair[0]) < place(pair[1])));
        assert!(numbers.iter().all(|number| number_at(place(*number)) == *number));
    }

    #[test]
    fn the_widest_range_is_few_pieces() {
        assert_eq!(cut((0, u32::MAX)), [(32, 0)]);
        assert!(cut((1, u32::MAX - 1)).len() <= 62);
        let mut ranges = Ranges::default();
        ranges.add((0, u32::MAX));
        assert!(!ranges.is_complete((0, u32::MAX)) && ranges.watches(77));
    }

    proptest::proptest! {
        #[test]
        fn ranges_are_complete_when_all_their_numbers_are_in(
            ranges in proptest::collection::vec((0_u32..200, 0_u32..80), 1..8),
            changes in proptest::collection::vec((0_u32..300, proptest::bool::ANY), 1..400),
            late in 0_usize..300,
        ) {
            let ranges: Vec<Range> = ranges.into_iter().map(|(start, length)| (start, start + length)).collect();
            let mut watched = Ranges::default();
            let mut model = BTreeSet::new();
            let (early, later) = ranges.split_at(ranges.len() / 2);
            early.iter().for_each(|range| watched.add(*range));
            for (at, (number, satisfied)) in changes.into_iter().enumerate() {
                if at == late {
                    later.iter().for_each(|range| watched.add(*range));
                }
                let whole = |model: &BTreeSet<u32>, (start, end): Range| (start..=end).all(|n| model.contains(&n));
                let before: Vec<Range> = watched.open.keys().copied().filter(|range| whole(&model, *range)).collect();
                let mut changed = if satisfied {
                    model.insert(number);
                    watched.satisfy(number)
                } else {
                    model.remove(&number);
                    watched.reopen(number)
                };
                changed.sort_unstable();
                let mut expected: Vec<Range> = watched.open.keys().copied()
                    .filter(|range| whole(&model, *range) != before.contains(range)).collect();
                expected.sort_unstable();
                proptest::prop_assert_eq!(changed, expected);
                for range in watched.open.keys() {
                    proptest::prop_assert_eq!(watched.is_complete(*range), whole(&model, *range));
                    let gaps: Vec<u32> = (range.0..=range.1).filter(|n| !model.contains(n)).take(3).collect();
                    proptest::prop_assert_eq!(watched.satisfied.gaps(*range, 3), gaps);
                    let inside: Vec<u32> = model.range(range.0..=range.1).copied().collect();
                    proptest::prop_assert_eq!(watched.satisfied.iter(*range).collect::<Vec<_>>(), inside);
                }
            }
            for range in &ranges {
                watched.remove(*range);
            }
            proptest::prop_assert!(watched.pieces.is_empty() && watched.levels.is_empty());
        }
    }
}
