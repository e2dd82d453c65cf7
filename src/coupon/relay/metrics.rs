//! What the relay shows of itself: how much waits, for how long, what was sent, what failed, what is parked.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry, core::Collector};

use crate::coupon::metrics::made;

/// Counters and gauges of one relay.
#[derive(Clone)]
pub struct RelayMetrics {
    /// Rows not sent and not parked.
    pub backlog: IntGauge,
    /// Age of the oldest of them, in seconds.
    pub oldest_unsent_seconds: Gauge,
    /// Everything that happened before this moment (seconds since 1970) is in the log, as this relay last said.
    pub progress_seconds: Gauge,
    /// Rows parked: the log refuses them for good. Anything above 0 wants an operator.
    pub parked: IntGauge,
    /// Lanes this relay holds.
    pub lanes: IntGauge,
    /// Rows acknowledged by the log.
    pub sent: IntCounter,
    /// Steps that failed, on either side.
    pub failed: IntCounter,
    /// Rows acknowledged whose mark did not reach the ledger: they are sent again.
    pub unmarked: IntCounter,
    /// Seconds from reading rows to marking them.
    pub step_seconds: Histogram,
}

impl RelayMetrics {
    /// All at zero.
    pub fn new() -> Self {
        let seconds =
            HistogramOpts::new("relay_step_seconds", "Seconds from reading outbox rows to marking them.")
                .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0]);
        Self {
            backlog: made(IntGauge::new("relay_backlog_rows", "Outbox rows waiting to be sent.")),
            oldest_unsent_seconds: made(Gauge::new(
                "relay_oldest_unsent_seconds",
                "Age of the oldest outbox row waiting to be sent.",
            )),
            progress_seconds: made(Gauge::new(
                "relay_progress_seconds",
                "Everything that happened before this moment (Unix time) is in the log, as this relay last said.",
            )),
            parked: made(IntGauge::new("relay_parked_rows", "Outbox rows the log refuses for good.")),
            lanes: made(IntGauge::new("relay_lanes_held", "Lanes this relay holds the lease of.")),
            sent: made(IntCounter::new("relay_sent_total", "Outbox rows acknowledged by the log.")),
            failed: made(IntCounter::new("relay_failed_total", "Relay steps that failed.")),
            unmarked: made(IntCounter::new(
                "relay_unmarked_total",
                "Outbox rows acknowledged by the log whose mark failed; they are sent again.",
            )),
            step_seconds: made(Histogram::with_opts(seconds)),
        }
    }

    /// Registers everything.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 9] = [
            Box::new(self.backlog.clone()),
            Box::new(self.oldest_unsent_seconds.clone()),
            Box::new(self.progress_seconds.clone()),
            Box::new(self.parked.clone()),
            Box::new(self.lanes.clone()),
            Box::new(self.sent.clone()),
            Box::new(self.failed.clone()),
            Box::new(self.unmarked.clone()),
            Box::new(self.step_seconds.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))
    }
}

impl Default for RelayMetrics {
    fn default() -> Self {
        Self::new()
    }
}
