//! What job-svc shows at `/metrics`.

use kiln_telemetry::prometheus::{
    self, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The metrics of one service.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// All of them.
    pub registry: Registry,
    /// Tasks by what happened to them.
    pub transitions: IntCounterVec,
    /// Tasks that wait and attempts that hold slots, by pool.
    pub depth: IntGaugeVec,
    /// Duration of a scheduler's step.
    pub step: Histogram,
    /// Duration of a scheduler's commit.
    pub commit: Histogram,
    /// Rows in the outbox.
    pub outbox: IntGauge,
    /// Nodes that were silent for too long.
    pub lease_expiries: IntCounter,
    /// Kinds of tasks that were found to fit no node.
    pub unschedulable: IntCounter,
    /// Times a scheduler had to read everything again.
    pub rebuilds: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// If a name is taken, which the names below are not.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let bounds = vec![0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];
        let metrics = Self {
            transitions: IntCounterVec::new(
                Opts::new("kiln_task_transitions_total", "Tasks by what happened to them"),
                &["what"],
            )?,
            depth: IntGaugeVec::new(
                Opts::new("kiln_scheduler_tasks", "Tasks that wait and attempts that hold slots"),
                &["pool", "state"],
            )?,
            step: Histogram::with_opts(
                HistogramOpts::new("kiln_scheduler_step_seconds", "Duration of a step").buckets(bounds.clone()),
            )?,
            commit: Histogram::with_opts(
                HistogramOpts::new("kiln_scheduler_commit_seconds", "Duration of a commit").buckets(bounds),
            )?,
            outbox: IntGauge::new("kiln_job_outbox_rows", "Rows that wait to be published")?,
            lease_expiries: IntCounter::new("kiln_node_lease_expiries_total", "Nodes that were silent for too long")?,
            unschedulable: IntCounter::new(
                "kiln_unschedulable_tasks_total",
                "Kinds of tasks of a job that no node of the pool could run",
            )?,
            rebuilds: IntCounter::new("kiln_scheduler_rebuilds_total", "Times a scheduler read everything again")?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.transitions.clone()))?;
        registry.register(Box::new(metrics.depth.clone()))?;
        registry.register(Box::new(metrics.step.clone()))?;
        registry.register(Box::new(metrics.commit.clone()))?;
        registry.register(Box::new(metrics.outbox.clone()))?;
        registry.register(Box::new(metrics.lease_expiries.clone()))?;
        registry.register(Box::new(metrics.rebuilds.clone()))?;
        registry.register(Box::new(metrics.unschedulable.clone()))?;
        Ok(metrics)
    }
}
