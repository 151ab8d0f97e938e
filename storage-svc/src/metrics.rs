//! What storage-svc counts.

use std::time::Duration;

use kiln_telemetry::prometheus::{
    self, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// All counters of the service; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Events that wait for the bus.
    pub outbox_lag: IntGauge,
    /// Bytes of blobs received.
    pub bytes_in: IntCounter,
    /// Bytes of blobs sent.
    pub bytes_out: IntCounter,
    /// Objects whose bytes were removed after their last row.
    pub collected: IntCounter,
    /// Objects of interrupted uploads that were removed at start.
    pub orphans: IntCounter,
    requests: IntCounterVec,
    duration: HistogramVec,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    ///
    /// # Errors
    /// If two metrics have one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let bytes_in = counter("kiln_storage_received_bytes_total", "Bytes of blobs received.")?;
        let bytes_out = counter("kiln_storage_sent_bytes_total", "Bytes of blobs sent.")?;
        let collected = counter("kiln_storage_collected_objects_total", "Objects removed after their last use.")?;
        let orphans = counter("kiln_storage_orphan_objects_total", "Objects of interrupted uploads removed.")?;
        let outbox_lag = IntGauge::new("kiln_storage_outbox_rows", "Batches of events that wait for the bus.")?;
        registry.register(Box::new(outbox_lag.clone()))?;
        let requests = IntCounterVec::new(
            Opts::new("kiln_storage_requests_total", "Data plane requests by operation and HTTP status."),
            &["operation", "status"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        let duration = HistogramVec::new(
            HistogramOpts::new("kiln_storage_request_seconds", "Time to the head of the answer, by operation.")
                .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0]),
            &["operation"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self { registry, outbox_lag, bytes_in, bytes_out, collected, orphans, requests, duration })
    }

    /// Counts a request of the data plane.
    pub fn request(&self, operation: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[operation, &status.to_string()]).inc();
        let histogram: Histogram = self.duration.with_label_values(&[operation]);
        histogram.observe(took.as_secs_f64());
    }
}
