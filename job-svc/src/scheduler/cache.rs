//! Tasks whose text is at hand when they are placed.
//!
//! Filled by whoever adds tasks, so that a task placed at once needs no read.
//! When it is full, newcomers stay out: those that are in it run earlier.
//! Tasks that come back to the queue are kept in any case until the commit that
//! brought them back is durable: until then the store has their past.

use std::collections::{HashMap, VecDeque};

use super::core::Row;
use crate::store::TaskRow;

/// What a row costs beside its spec, about.
const ROW_BYTES: usize = 400;

/// See the module.
#[derive(Debug)]
pub struct Cache {
    rows: HashMap<Row, TaskRow>,
    bytes: usize,
    limit: usize,
    /// Rows that came back, by the number of the commit.
    held: VecDeque<(u64, Row)>,
}

impl Cache {
    /// A cache for about this many bytes.
    pub fn new(limit: usize) -> Self {
        Self { rows: HashMap::new(), bytes: 0, limit, held: VecDeque::new() }
    }

    fn cost(row: &TaskRow) -> usize {
        row.spec.len() + ROW_BYTES
    }

    /// Keeps a row if there is room.
    pub fn offer(&mut self, row: TaskRow) {
        let cost = Self::cost(&row);
        if self.bytes + cost > self.limit {
            return;
        }
        if let Some(old) = self.rows.insert(row.row, row) {
            self.bytes -= Self::cost(&old);
        }
        self.bytes += cost;
    }

    /// Keeps a row until commit `commit` is durable, and after that if there is room.
    pub fn hold(&mut self, row: TaskRow, commit: u64) {
        self.held.push_back((commit, row.row));
        self.bytes += Self::cost(&row);
        if let Some(old) = self.rows.insert(row.row, row) {
            self.bytes -= Self::cost(&old);
        }
    }

    /// Takes a row out.
    pub fn take(&mut self, row: Row) -> Option<TaskRow> {
        let row = self.rows.remove(&row)?;
        self.bytes -= Self::cost(&row);
        Some(row)
    }

    /// Changes a row that is here.
    pub fn update(&mut self, row: Row, change: impl FnOnce(&mut TaskRow)) {
        if let Some(mut found) = self.take(row) {
            change(&mut found);
            self.bytes += Self::cost(&found);
            self.rows.insert(row, found);
        }
    }

    /// Commits up to this one are durable.
    pub fn durable(&mut self, commit: u64) {
        while let Some((number, row)) = self.held.front().copied() {
            if number > commit {
                return;
            }
            self.held.pop_front();
            if self.bytes > self.limit && !self.held.iter().any(|(_, held)| *held == row) {
                self.take(row);
            }
        }
    }
}
