//! What the service knows about events, without clock, network or database.
//!
//! - [`fact`]: an event as the log keeps it, and what it adds to the counters;
//! - [`counts`]: counters over time, folded into points;
//! - [`timeline`]: the story of one task, folded from its events.

pub mod counts;
pub mod fact;
pub mod timeline;
