//! Confirming seats after the answer: the row is committed, so the gate may be told when it suits.
//!
//! Last step of an issue, off its path. Confirmations that are lost (a full queue, a gate that is away, a crash) do
//! no harm: the seat stays pending until the sweeper asks the ledger and confirms it.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    failpoint,
    gate::Gate,
    ids::{CouponId, UserId},
    metrics::CouponMetrics,
};

/// Most confirmations waiting.
const QUEUE_MAX: usize = 65_536;
/// Most confirmations under way at once; they share the gate's calls.
const BATCH_MAX: usize = 1024;
/// Rest after each batch: nobody waits for a confirmation, and a gathered one costs a tenth of a single one.
const REST: Duration = Duration::from_millis(25);

#[derive(Clone)]
pub(super) struct Confirmer {
    seats: mpsc::Sender<(CouponId, UserId, Uuid)>,
    metrics: CouponMetrics,
}

impl Confirmer {
    /// Starts the task that confirms; call inside a tokio runtime.
    pub(super) fn start(gate: Arc<dyn Gate>, metrics: CouponMetrics) -> Self {
        let (seats, mut queue) = mpsc::channel(QUEUE_MAX);
        let errors = metrics.dependency_errors.with_label_values(&["gate", "confirm"]);
        let seconds = metrics.dependency_seconds.with_label_values(&["gate", "confirm"]);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
                failpoint::hit("before_confirm");
                let timer = seconds.start_timer();
                let confirmations =
                    batch.drain(..).map(|(coupon, user, token)| gate.confirm(coupon, user, token));
                for result in join_all(confirmations).await {
                    if result.is_err() {
                        errors.inc();
                    }
                }
                timer.observe_duration();
                tokio::time::sleep(REST).await;
            }
        });
        Self { seats, metrics }
    }

    /// Has the seat confirmed soon; never waits.
    pub(super) fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) {
        if self.seats.try_send((coupon, user, token)).is_err() {
            self.metrics.confirms_dropped.inc();
        }
    }
}
