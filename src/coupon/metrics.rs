//! What the domain counts and measures. One struct of prometheus metrics, registered where metrics are served.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    core::Collector,
};

/// Counters and histograms of requests, the gate and the ledger.
#[derive(Clone)]
pub struct CouponMetrics {
    /// Answers by operation and outcome (`issued`, `sold_out`, …).
    pub decisions: IntCounterVec,
    /// Seconds of a dependency's call, by dependency and call.
    pub dependency_seconds: HistogramVec,
    /// Failed calls by dependency and kind (`unavailable`, `unknown`, …).
    pub dependency_errors: IntCounterVec,
    /// Issues sharing one ledger transaction.
    pub batch_rows: Histogram,
    /// Issues waiting for a ledger transaction.
    pub issue_queue: IntGauge,
    /// Confirmations given up because too many waited; the sweeper does them.
    pub confirms_dropped: IntCounter,
    /// Campaigns marked for a rebuild of the gate, because a seat collided or the gate forgot.
    pub gate_rebuilds_requested: IntCounter,
    /// Seats pending at the gate, over all campaigns, as the sweeper last saw.
    pub gate_pending: IntGauge,
    /// Seats by which gate and ledger differ, over all campaigns, as the sweeper last counted.
    pub gate_drift: IntGauge,
    /// Overdue seats the sweeper resolved, by what became of them (`confirmed`, `released`).
    pub sweeper_seats: IntCounterVec,
}

impl CouponMetrics {
    /// All at zero.
    pub fn new() -> Self {
        let seconds =
            HistogramOpts::new("coupon_dependency_seconds", "Seconds of one call of the gate or the ledger.")
                .buckets(vec![
                    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
                ]);
        let rows = HistogramOpts::new("coupon_ledger_batch_rows", "Issues sharing one ledger transaction.")
            .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]);
        Self {
            decisions: made(IntCounterVec::new(
                Opts::new("coupon_decisions_total", "Answers of the coupon service."),
                &["operation", "outcome"],
            )),
            dependency_seconds: made(HistogramVec::new(seconds, &["dependency", "call"])),
            dependency_errors: made(IntCounterVec::new(
                Opts::new("coupon_dependency_errors_total", "Failed calls of the gate or the ledger."),
                &["dependency", "kind"],
            )),
            batch_rows: made(Histogram::with_opts(rows)),
            issue_queue: made(IntGauge::new(
                "coupon_issue_queue",
                "Issues waiting for a ledger transaction.",
            )),
            confirms_dropped: made(IntCounter::new(
                "coupon_confirms_dropped_total",
                "Gate confirmations left to the sweeper because too many waited.",
            )),
            gate_rebuilds_requested: made(IntCounter::new(
                "coupon_gate_rebuilds_requested_total",
                "Times a campaign was marked for a rebuild of the gate.",
            )),
            gate_pending: made(IntGauge::new(
                "coupon_gate_pending",
                "Seats pending at the gate, as the sweeper last saw.",
            )),
            gate_drift: made(IntGauge::new(
                "coupon_gate_drift",
                "Seats by which gate and ledger differ, as the sweeper last counted.",
            )),
            sweeper_seats: made(IntCounterVec::new(
                Opts::new("coupon_sweeper_seats_total", "Overdue seats the sweeper resolved."),
                &["outcome"],
            )),
        }
    }

    /// Registers everything.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 10] = [
            Box::new(self.decisions.clone()),
            Box::new(self.dependency_seconds.clone()),
            Box::new(self.dependency_errors.clone()),
            Box::new(self.batch_rows.clone()),
            Box::new(self.issue_queue.clone()),
            Box::new(self.confirms_dropped.clone()),
            Box::new(self.gate_rebuilds_requested.clone()),
            Box::new(self.gate_pending.clone()),
            Box::new(self.gate_drift.clone()),
            Box::new(self.sweeper_seats.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))
    }
}

impl Default for CouponMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Metrics are made of constant, valid names.
pub(super) fn made<T>(metric: prometheus::Result<T>) -> T {
    metric.expect("the metric's name and labels are constant and valid")
}
