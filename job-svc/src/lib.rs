//! Jobs, tasks and the scheduler.
