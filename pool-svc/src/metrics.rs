//! What `/metrics` shows of this service.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::store::StateCounts;

/// All metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Everything below.
    pub registry: Registry,
    /// Nodes by state.
    pub nodes: IntGaugeVec,
    /// Control streams that are open.
    pub agents_connected: IntGauge,
    /// Time of one pool's reconciliation.
    pub reconcile_seconds: Histogram,
    /// Reconciliations that failed.
    pub reconcile_errors: IntCounter,
    /// Calls to the provider that failed, by call.
    pub provider_errors: IntCounterVec,
    /// Rows of the outbox that wait.
    pub outbox_lag: IntGauge,
    /// File transfers that are open.
    pub transfers: IntGauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// If a name is taken, which would be a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Self {
            nodes: IntGaugeVec::new(Opts::new("kiln_pool_nodes", "Nodes by state"), &["state"])?,
            agents_connected: IntGauge::new("kiln_pool_agents_connected", "Open control streams")?,
            reconcile_seconds: Histogram::with_opts(
                HistogramOpts::new("kiln_pool_reconcile_seconds", "Time of one pool's reconciliation")
                    .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
            )?,
            reconcile_errors: IntCounter::new("kiln_pool_reconcile_errors_total", "Reconciliations that failed")?,
            provider_errors: IntCounterVec::new(
                Opts::new("kiln_pool_provider_errors_total", "Calls to the provider that failed"),
                &["call"],
            )?,
            outbox_lag: IntGauge::new("kiln_pool_outbox_rows", "Batches of events that wait for the bus")?,
            transfers: IntGauge::new("kiln_pool_file_transfers", "Open transfers of node files")?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.nodes.clone()))?;
        registry.register(Box::new(metrics.agents_connected.clone()))?;
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.reconcile_errors.clone()))?;
        registry.register(Box::new(metrics.provider_errors.clone()))?;
        registry.register(Box::new(metrics.outbox_lag.clone()))?;
        registry.register(Box::new(metrics.transfers.clone()))?;
        Ok(metrics)
    }

    /// Shows the nodes of all pools as counted.
    pub fn show_nodes(&self, counts: &StateCounts) {
        self.nodes.reset();
        for (state, count) in counts {
            self.nodes.with_label_values(&[state.as_str()]).set(i64::from(*count));
        }
    }
}
