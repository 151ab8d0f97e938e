//! Event log, timelines and watches.
