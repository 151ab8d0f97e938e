//! What `/metrics` shows of the gateway. Labels have few values: methods are
//! known ones or "other".

use std::time::Duration;

use kiln_telemetry::prometheus::{self, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// Handles of the metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    open: IntGauge,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// If two metrics had one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("kiln_gateway_requests_total", "Requests answered"),
            &["front", "method", "code"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new("kiln_gateway_answer_seconds", "Time until the head of the answer")
                .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0]),
            &["front"],
        )?;
        let open = IntGauge::new("kiln_gateway_open_grpc_calls", "gRPC calls whose answer has not ended")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(open.clone()))?;
        Ok(Self { registry, requests, duration, open })
    }

    /// For `/metrics`.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Counts an answered request.
    pub fn answered(&self, front: &str, method: &str, code: &str) {
        self.requests.with_label_values(&[front, method, code]).inc();
    }

    /// Records how long the head of an answer took.
    pub fn took(&self, front: &str, duration: Duration) {
        self.duration.with_label_values(&[front]).observe(duration.as_secs_f64());
    }

    /// Calls whose answer has not ended.
    pub fn open(&self) -> &IntGauge {
        &self.open
    }
}
