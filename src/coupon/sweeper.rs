//! The sweeper: brings gate and ledger back together after whatever was cut off between them.
//!
//! A timer's step beside the API, in every process that issues. An issue that died, or whose ledger did not answer,
//! leaves a seat *pending* at the gate; a flushed Redis leaves a campaign unknown there; a replica that missed writes
//! leaves fewer members than rows; a gate that could not be told of a change leaves a mark in the ledger. Each step asks the ledger, which is the truth, and tells the gate.
//!
//! What must always hold:
//! * A seat is given back only after its token is **fenced** in the ledger: a transaction that is still on its way
//!   then inserts nothing, so nobody who is told yes later loses the seat to another.
//! * Steps are bounded and may be repeated or run in several processes at once: a claimed seat is one sweeper's for
//!   a lease, and what another sweeper did is found done.

use std::collections::HashMap;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    clock::UtcMicros,
    db::DbError,
    gate::{GateError, GateState, GateStock, Pending},
    ids::{CouponId, UserId},
    ledger::StoredUserCoupon,
    model::{Coupon, CouponStatus},
    rebuild::{Because, Told},
    service::CouponService,
};

/// Seats looked at together.
const CLAIM_MAX: usize = 256;
/// Claims of one campaign in one step; the rest has its turn in the next.
const CLAIMS_MAX: usize = 40;
/// Lookups in the ledger at once.
const LOOKUPS_MAX: usize = 8;
/// A closed campaign is looked at for this long, for the issues that were under way when it closed.
const CLOSED_SWEPT_FOR: Duration = Duration::from_secs(24 * 3_600);
/// How often gate and ledger are counted against each other.
const DRIFT_INTERVAL: Duration = Duration::from_secs(30);
/// How often what is past its time is deleted from the ledger, and how much at once.
const PURGE_INTERVAL: Duration = Duration::from_secs(60);
const PURGE_MAX: usize = 10_000;

/// What one step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Pending seats whose row the ledger has.
    pub confirmed: usize,
    /// Pending seats that never became a row: fenced and given back.
    pub released: usize,
    /// Campaigns whose gate was rebuilt.
    pub rebuilt: usize,
    /// Campaigns left for the next step because a dependency failed.
    pub failed: usize,
}

/// Looks after every campaign that issues, one bounded step at a time.
pub struct Sweeper {
    service: CouponService,
    /// Campaigns found in need of a rebuild by the step before. What looks wrong may be another process at work, so
    /// only what still looks exactly the same one step later is taken in hand.
    suspects: HashMap<CouponId, Suspicion>,
    drift_counted_at: Option<UtcMicros>,
}

/// What a campaign that needs a rebuild looks like; any progress changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspicion {
    stock: GateStock,
    epoch: i64,
    updated_at: UtcMicros,
}

/// Why a campaign was left for the next step.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Ledger(#[from] DbError),
}

impl Sweeper {
    /// A sweeper of the service's gate and ledger.
    pub fn new(service: CouponService) -> Self {
        Self { service, suspects: HashMap::new(), drift_counted_at: None }
    }

    /// Steps at once and then every `interval`, until `stop` is true.
    pub async fn run(mut self, interval: Duration, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut purge_due = tokio::time::Instant::now() + PURGE_INTERVAL;
        loop {
            tokio::select! {
                // An error means that whoever stops us is gone, which is a stop too.
                _ = stop.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => {}
            }
            self.sweep_once().await;
            if tokio::time::Instant::now() >= purge_due {
                purge_due += PURGE_INTERVAL;
                if let Err(error) = self.service.purge(PURGE_MAX).await {
                    tracing::warn!(%error, "purging the ledger failed; the next round tries again");
                }
            }
        }
    }

    /// One step over every campaign that issues or did so lately.
    pub async fn sweep_once(&mut self) -> Swept {
        let mut swept = Swept::default();
        let now = self.service.clock.now();
        let closed_since = now.plus_micros(-(CLOSED_SWEPT_FOR.as_micros() as i64));
        let campaigns = match self.service.ledger.campaigns_to_sweep(closed_since, now).await {
            Ok(campaigns) => campaigns,
            Err(error) => {
                tracing::warn!(%error, "the sweeper cannot read the campaigns");
                return Swept { failed: 1, ..swept };
            }
        };
        self.suspects.retain(|id, _| campaigns.iter().any(|campaign| campaign.coupon_id == *id));
        let since_counted = self.drift_counted_at.map(|at| now.micros() - at.micros());
        let count_drift = since_counted.is_none_or(|us| us >= DRIFT_INTERVAL.as_micros() as i64);
        let (mut pending, mut drift) = (0, 0);
        for campaign in &campaigns {
            match self.sweep_campaign(campaign, &mut swept).await {
                Ok(left) => pending += left,
                Err(error) => {
                    tracing::warn!(coupon = campaign.coupon_id.get(), %error, "a campaign could not be swept");
                    swept.failed += 1;
                    continue;
                }
            }
            if count_drift && !self.suspects.contains_key(&campaign.coupon_id) {
                match self.drift(campaign.coupon_id).await {
                    Ok(seats) => drift += seats,
                    Err(error) => {
                        tracing::warn!(coupon = campaign.coupon_id.get(), %error, "drift could not be counted");
                    }
                }
            }
        }
        let metrics = &self.service.metrics;
        if count_drift {
            self.drift_counted_at = Some(now);
            metrics.gate_drift.set(drift);
        }
        metrics.gate_pending.set(pending);
        metrics.sweeper_seats.with_label_values(&["confirmed"]).inc_by(swept.confirmed as u64);
        metrics.sweeper_seats.with_label_values(&["released"]).inc_by(swept.released as u64);
        swept
    }

    /// Rebuilds the gate where it must be, else resolves its overdue seats. Returns how many are pending still.
    async fn sweep_campaign(&mut self, campaign: &Coupon, swept: &mut Swept) -> Result<i64, Interrupted> {
        let id = campaign.coupon_id;
        let stock = self.service.gate.stock(id).await?;
        let needed = match stock.state {
            // Nobody asks a closed campaign's gate: the ledger says that it is closed.
            GateState::NotReady if campaign.status == CouponStatus::Closed => None,
            GateState::NotReady => Some((Because::Unknown, true)),
            GateState::Rebuilding => Some((Because::Unknown, false)),
            _ if campaign.gate_stale || stock.epoch != campaign.epoch => {
                Some((Because::Collision { epoch: campaign.epoch }, false))
            }
            _ => None,
        };
        let Some((because, at_once)) = needed else {
            self.suspects.remove(&id);
            return match stock.pending {
                0 => Ok(0),
                _ => self.resolve_overdue(id, stock.pending, swept).await,
            };
        };
        let suspicion = Suspicion { stock, epoch: campaign.epoch, updated_at: campaign.updated_at };
        if (at_once || self.suspects.insert(id, suspicion) == Some(suspicion))
            && self.service.rebuild_gate(id, because).await? == Told::Current
        {
            self.suspects.remove(&id);
            swept.rebuilt += 1;
        }
        Ok(stock.pending)
    }

    /// By how many seats gate and ledger differ although nothing is under way; marks the campaign when they do.
    ///
    /// Issues go on meanwhile, so the order of the reads matters: a row counted *before* the gate is asked has a
    /// member there, and a confirmed member has a row when rows are counted *after*.
    async fn drift(&self, id: CouponId) -> Result<i64, Interrupted> {
        let rows_before = self.rows(id).await?;
        let stock = self.service.gate.stock(id).await?;
        if matches!(stock.state, GateState::NotReady | GateState::Rebuilding) {
            return Ok(0);
        }
        let rows_after = self.rows(id).await?;
        let without_member = (rows_before - stock.admitted).max(0);
        let without_row = (stock.admitted - stock.pending - rows_after).max(0);
        if without_member + without_row > 0 {
            tracing::warn!(coupon = id.get(), without_member, without_row, "gate and ledger differ");
            self.service.ledger.mark_gate_stale(id, stock.epoch).await?;
        }
        Ok(without_member + without_row)
    }

    async fn rows(&self, id: CouponId) -> Result<i64, Interrupted> {
        let coupon = self.service.ledger.coupon(id, self.service.clock.now()).await?;
        Ok(coupon.map_or(0, |coupon| coupon.issued_count))
    }

    async fn resolve_overdue(
        &self,
        id: CouponId,
        mut pending: i64,
        swept: &mut Swept,
    ) -> Result<i64, Interrupted> {
        for _ in 0..CLAIMS_MAX {
            let claimed = self.service.gate.pending_expired(id, CLAIM_MAX).await?;
            if claimed.is_empty() {
                break;
            }
            let count = claimed.len();
            self.resolve(id, claimed, swept).await?;
            pending -= count as i64;
        }
        Ok(pending.max(0))
    }

    /// 1 ask the ledger 2 fence what has no row 3 confirm what has one after all 4 give the rest back.
    async fn resolve(
        &self,
        id: CouponId,
        claimed: Vec<Pending>,
        swept: &mut Swept,
    ) -> Result<(), Interrupted> {
        // 1
        let looked_up: Vec<(Pending, Option<StoredUserCoupon>)> = stream::iter(claimed)
            .map(|seat| async move {
                let now = self.service.clock.now();
                let row = self.service.ledger.user_coupon_of(id, seat.user, now).await?;
                Ok::<_, DbError>((seat, row))
            })
            .buffered(LOOKUPS_MAX)
            .try_collect()
            .await?;
        let mut without_row = Vec::new();
        for (pending, row) in looked_up {
            match row {
                Some(row) => {
                    // Another admission's row: the gate knows the user now, but holds the wrong slot for them.
                    if row.shown.slot_no != pending.seat.slot {
                        self.service.ledger.mark_gate_stale(id, pending.seat.epoch).await?;
                    }
                    self.confirm(id, &pending, swept).await?;
                }
                None => without_row.push(pending),
            }
        }
        if without_row.is_empty() {
            return Ok(());
        }
        // 2
        let admissions: Vec<(UserId, Uuid)> =
            without_row.iter().map(|pending| (pending.user, pending.seat.token)).collect();
        let now = self.service.clock.now();
        let issued = self.service.ledger.fence_issuances(id, &admissions, now).await?;
        for pending in &without_row {
            if issued.contains_key(&pending.user) {
                // 3
                self.confirm(id, pending, swept).await?;
            } else {
                // 4
                self.service.gate.release(id, pending.user, pending.seat.token).await?;
                swept.released += 1;
            }
        }
        Ok(())
    }

    async fn confirm(&self, id: CouponId, pending: &Pending, swept: &mut Swept) -> Result<(), Interrupted> {
        self.service.gate.confirm(id, pending.user, pending.seat.token).await?;
        swept.confirmed += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
