//! What `/metrics` shows of monitor-svc.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The service's metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// By outcome: `new`, `duplicate`, `unusable`.
    pub events: IntCounterVec,
    /// Age of the newest event when it was stored.
    pub lag_seconds: Gauge,
    /// Open watch streams.
    pub watchers: IntGauge,
    /// Events in the log.
    pub log_events: IntGauge,
    /// Sources of which events are missing.
    pub gaps: IntGauge,
    /// Gaps that are not waited for any more.
    pub gaps_accepted: IntCounter,
    /// Events that retention deleted.
    pub pruned: IntCounter,
}

impl Metrics {
    /// Registers everything in `registry`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            events: IntCounterVec::new(
                Opts::new("kiln_monitor_events_total", "Events taken from the bus, by outcome"),
                &["outcome"],
            )?,
            lag_seconds: Gauge::new("kiln_monitor_lag_seconds", "Age of the newest event when it was stored")?,
            watchers: IntGauge::new("kiln_monitor_watchers", "Open watch streams")?,
            log_events: IntGauge::new("kiln_monitor_log_events", "Events in the log")?,
            gaps: IntGauge::new("kiln_monitor_gaps", "Sources of which events are missing for a while")?,
            gaps_accepted: IntCounter::new(
                "kiln_monitor_gaps_accepted_total",
                "Gaps in the sequence of a source that never closed",
            )?,
            pruned: IntCounter::new("kiln_monitor_pruned_events_total", "Events deleted by retention")?,
        };
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.lag_seconds.clone()))?;
        for gauge in [&metrics.watchers, &metrics.log_events, &metrics.gaps] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for counter in [&metrics.gaps_accepted, &metrics.pruned] {
            registry.register(Box::new(counter.clone()))?;
        }
        Ok(metrics)
    }
}
