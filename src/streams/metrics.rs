//! Metrics of the engine: one grammar, Kafka's nouns (`streams_task_process_total{application_id,task_id}`).

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector};

/// All metrics of the applications of a process. Cheap to clone.
#[derive(Clone)]
pub struct StreamsMetrics {
    /// Records processed.
    pub processed: IntCounterVec,
    /// Records dropped, by node and reason.
    pub dropped: IntCounterVec,
    /// Commits done.
    pub commits: IntCounterVec,
    /// Duration of commits, seconds.
    pub commit_seconds: HistogramVec,
    /// Records written: sinks, repartition topics, changelogs.
    pub produced: IntCounterVec,
    /// Records not yet read of an input partition.
    pub lag: IntGaugeVec,
    /// Rows held by a store.
    pub store_entries: IntGaugeVec,
    /// Changelog records still to be replayed.
    pub restore_remaining: IntGaugeVec,
    /// Changelog records replayed.
    pub restored: IntCounterVec,
    /// What the inputs of a task vouch for, milliseconds since the epoch.
    pub watermark: IntGaugeVec,
    /// Tasks owned, by state.
    pub tasks: IntGaugeVec,
    /// How long a call of a thread to the log has not returned; 0 while calls return.
    pub stuck_seconds: IntGaugeVec,
    /// Copies kept of tasks that run elsewhere.
    pub standby_tasks: IntGaugeVec,
    /// Committed changelog records that those copies do not have yet.
    pub standby_lag: IntGaugeVec,
    /// Assignments that the group has given a thread.
    pub rebalances: IntCounterVec,
    /// Threads started again after an error.
    pub thread_restarts: IntCounterVec,
}

impl StreamsMetrics {
    /// Creates the metrics and registers them; a second set in one registry is an error.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        const TASK: &[&str] = &["application_id", "task_id"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        Ok(Self {
            processed: counter("streams_task_process_total", "Records processed", TASK)?,
            dropped: counter(
                "streams_task_dropped_records_total",
                "Records dropped, by node and reason",
                &["application_id", "task_id", "processor_node_id", "reason"],
            )?,
            commits: counter("streams_thread_commit_total", "Commits", &["application_id", "thread_id"])?,
            commit_seconds: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new("streams_thread_commit_seconds", "Duration of a commit")
                        .buckets(prometheus::exponential_buckets(0.0005, 2.0, 14)?),
                    &["application_id", "thread_id"],
                )?,
            )?,
            produced: counter(
                "streams_thread_produce_total",
                "Records written: sinks, repartition topics, changelogs",
                &["application_id", "thread_id"],
            )?,
            lag: gauge(
                "streams_task_input_lag_records",
                "Records not yet read of an input partition",
                &["application_id", "topic", "partition"],
            )?,
            store_entries: gauge(
                "streams_store_entries",
                "Rows held by a store",
                &["application_id", "task_id", "store"],
            )?,
            restore_remaining: gauge(
                "streams_store_restore_remaining_records",
                "Changelog records still to be replayed",
                &["application_id", "task_id", "store"],
            )?,
            restored: counter(
                "streams_store_restore_total",
                "Changelog records replayed",
                &["application_id"],
            )?,
            watermark: gauge(
                "streams_task_watermark_ms",
                "What the inputs of a task vouch for, milliseconds since the epoch",
                TASK,
            )?,
            tasks: gauge(
                "streams_thread_tasks",
                "Tasks owned, by state",
                &["application_id", "thread_id", "state"],
            )?,
            stuck_seconds: gauge(
                "streams_thread_stuck_seconds",
                "How long a call to the log has not returned; 0 while calls return",
                &["application_id", "thread_id"],
            )?,
            standby_tasks: gauge(
                "streams_standby_tasks",
                "Copies kept of tasks that run elsewhere",
                &["application_id", "thread_id"],
            )?,
            standby_lag: gauge(
                "streams_standby_lag_records",
                "Committed changelog records that copies do not have yet",
                &["application_id", "thread_id"],
            )?,
            rebalances: counter(
                "streams_thread_rebalance_total",
                "Assignments that the group has given a thread",
                &["application_id", "thread_id"],
            )?,
            thread_restarts: counter(
                "streams_thread_restart_total",
                "Threads started again after an error",
                &["application_id"],
            )?,
        })
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Default for StreamsMetrics {
    /// Metrics of a registry of their own, for tests and tools that expose none.
    fn default() -> Self {
        Self::register(&Registry::new()).expect("an empty registry accepts every name")
    }
}
