//! The different needs of tasks that wait, each under a small number.
//!
//! A million tasks have a handful of different needs. Slots alone are their own
//! number and cost nothing here. Other needs are kept while a task with them
//! waits, together with what is known of the nodes they fit, so that a task
//! that fits nowhere is not tried again before some node has gained room.
//!
//! At most [`MAX_SHAPES`] such needs are considered at once: what the scheduler
//! does for each placement and each end grows with them.

use std::collections::HashMap;

use crate::domain::needs::Needs;

/// Needs beyond slots that are considered at once.
pub const MAX_SHAPES: usize = 1000;
/// Nodes that are remembered to be all that fit; with more, one looks again.
const MAX_ONLY: usize = 32;
/// Numbers below are slots.
const FIRST: u32 = 1 << 16;

/// The number of some needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape(u32);

/// What is known of the nodes that needs fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// Nothing: look at all nodes.
    Unknown,
    /// No node but these can have room.
    Only(Vec<u32>),
}

#[derive(Debug)]
struct Entry {
    needs: Needs,
    waiting: u32,
    room: Room,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Shapes {
    entries: Vec<Option<Entry>>,
    unused: Vec<u32>,
    by_needs: HashMap<Needs, Shape>,
}

impl Shape {
    /// Of tasks that need slots alone.
    pub const fn plain(slots: u16) -> Self {
        Self(slots as u32)
    }

    /// The first that is not plain.
    pub const fn first_rich() -> Self {
        Self(FIRST)
    }

    /// The slots, if that is all.
    pub fn as_plain(self) -> Option<u16> {
        u16::try_from(self.0).ok()
    }
}

impl Shapes {
    /// The number of these needs, if tasks with them are considered.
    pub fn find(&self, needs: &Needs) -> Option<Shape> {
        if needs.is_plain() {
            return Some(Shape::plain(needs.slots));
        }
        self.by_needs.get(needs).copied()
    }

    /// One more task with these needs waits; `None` if there are too many
    /// different ones.
    pub fn enter(&mut self, needs: &Needs) -> Option<Shape> {
        if let Some(shape) = self.find(needs) {
            if let Some(entry) = self.entry(shape) {
                entry.waiting += 1;
            }
            return Some(shape);
        }
        if self.by_needs.len() >= MAX_SHAPES {
            return None;
        }
        let entry = Entry { needs: *needs, waiting: 1, room: Room::Unknown };
        let at = match self.unused.pop() {
            Some(at) => {
                self.entries[at as usize] = Some(entry);
                at
            }
            None => {
                self.entries.push(Some(entry));
                u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let shape = Shape(FIRST + at);
        self.by_needs.insert(*needs, shape);
        Some(shape)
    }

    /// One task less; `true` if it was the last and its needs are forgotten.
    pub fn leave(&mut self, shape: Shape) -> bool {
        let Some(entry) = self.entry(shape) else { return false };
        entry.waiting -= 1;
        if entry.waiting > 0 {
            return false;
        }
        let at = shape.0 - FIRST;
        if let Some(entry) = self.entries[at as usize].take() {
            self.by_needs.remove(&entry.needs);
        }
        self.unused.push(at);
        true
    }

    fn entry(&mut self, shape: Shape) -> Option<&mut Entry> {
        let at = shape.0.checked_sub(FIRST)?;
        self.entries.get_mut(at as usize)?.as_mut()
    }

    fn get(&self, shape: Shape) -> Option<&Entry> {
        let at = shape.0.checked_sub(FIRST)?;
        self.entries.get(at as usize)?.as_ref()
    }

    /// What the number stands for.
    pub fn needs(&self, shape: Shape) -> Option<Needs> {
        match shape.as_plain() {
            Some(slots) => Some(Needs::slots(slots)),
            None => self.get(shape).map(|entry| entry.needs),
        }
    }

    /// Whether a node may have room, of which one has at most `most` free slots.
    pub fn may_fit(&self, shape: Shape, most: u16) -> bool {
        match shape.as_plain() {
            Some(slots) => slots <= most,
            None => self.get(shape).is_some_and(|entry| {
                entry.needs.slots <= most
                    && match &entry.room {
                        Room::Unknown => true,
                        Room::Only(nodes) => nodes.len() >= usize::from(entry.needs.instances),
                    }
            }),
        }
    }

    /// What is known of the nodes that needs fit.
    pub fn room(&mut self, shape: Shape) -> Option<&mut Room> {
        self.entry(shape).map(|entry| &mut entry.room)
    }

    /// Remembers the nodes that fit after looking at all of them.
    pub fn limit(&mut self, shape: Shape, fitting: Vec<u32>) {
        if let Some(entry) = self.entry(shape) {
            let most = MAX_ONLY.max(usize::from(entry.needs.instances));
            entry.room = if fitting.len() <= most { Room::Only(fitting) } else { Room::Unknown };
        }
    }

    /// How many fitting nodes are worth finding.
    pub fn enough(needs: &Needs) -> usize {
        MAX_ONLY.max(usize::from(needs.instances)) + 1
    }

    /// A node has gained room: it may fit what fitted nowhere.
    pub fn gained(&mut self, node: u32, fits: impl Fn(&Needs) -> bool) {
        if self.by_needs.is_empty() {
            return;
        }
        for entry in self.entries.iter_mut().flatten() {
            let Room::Only(nodes) = &mut entry.room else { continue };
            if nodes.contains(&node) || !fits(&entry.needs) {
                continue;
            }
            if nodes.len() >= MAX_ONLY.max(usize::from(entry.needs.instances)) {
                entry.room = Room::Unknown;
            } else {
                nodes.push(node);
            }
        }
    }

    /// Needs that are considered, with the number of tasks that have them.
    pub fn counts(&self) -> impl Iterator<Item = (Shape, u32)> + '_ {
        self.by_needs.values().filter_map(|shape| Some((*shape, self.get(*shape)?.waiting)))
    }
}
