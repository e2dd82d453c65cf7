//! Telling the gate what the ledger says: after a change of a campaign, and from scratch when it has forgotten or
//! was found behind.
//!
//! The order of a rebuild is what makes it safe: first the epoch rises in the ledger, which waits for every issuing
//! transaction and refuses those admitted before; then the rows are read, now complete; then the gate is given both.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    correlation,
    db::DbResult,
    gate::{
        Amendment, CampaignChange, CampaignMeta, CampaignState, GateError, GateState, GateStock, IssueWindow,
    },
    ids::CouponId,
    model::{Coupon, CouponStatus},
    service::CouponService,
};

/// One rebuild per campaign at a time in a process; who comes second finds the work done.
#[derive(Default)]
pub(super) struct Rebuilds {
    locks: Mutex<HashMap<CouponId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Rebuilds {
    fn lock_of(&self, id: CouponId) -> Arc<tokio::sync::Mutex<()>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }
}

/// Whether the gate now knows the campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It does (or it is a draft, which it need not).
    Current,
    /// It does not; the sweeper tries again.
    Stale,
}

/// How long another process's rebuild may stand still before it counts as abandoned.
const STANDSTILL_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks at another process's rebuild.
const STANDSTILL_POLL: Duration = Duration::from_millis(20);

/// Rounds of "the campaign changed meanwhile" before leaving it to the next repair.
const ROUNDS_MAX: usize = 5;

impl CouponService {
    /// Tells the gate a campaign's state, limit and window after a change, and rebuilds it where it does not know
    /// the campaign. Failing leaves the campaign marked stale.
    pub(super) async fn tell_gate(&self, mut coupon: Coupon) -> DbResult<Told> {
        for _ in 0..ROUNDS_MAX {
            let Some(meta) = meta(&coupon) else { return Ok(Told::Current) };
            let change = CampaignChange {
                state: Some(meta.state),
                limit: Some(meta.limit),
                window: Some(meta.window),
            };
            match self.gate.amend(coupon.coupon_id, change).await {
                Ok(Amendment::Amended) => {}
                Ok(Amendment::NotReady) => {
                    return self.rebuild_gate(coupon.coupon_id, Because::Unknown).await;
                }
                Err(error) => {
                    self.gate_failed("amend", &error);
                    return Ok(Told::Stale);
                }
            }
            // Two changes at once may reach the gate in either order: whoever finds the ledger ahead tells again.
            if self.ledger.mark_gate_current(&coupon).await? {
                return Ok(Told::Current);
            }
            match self.ledger.campaign(coupon.coupon_id, self.clock.now()).await? {
                Some(newer) => coupon = newer,
                None => return Ok(Told::Current),
            }
        }
        Ok(Told::Stale)
    }

    /// Replaces what the gate knows of a campaign by the ledger's rows, under a new epoch.
    pub(super) async fn rebuild_gate(&self, id: CouponId, because: Because) -> DbResult<Told> {
        let lock = self.rebuilds.lock_of(id);
        let _alone = lock.lock().await;
        let mut epoch_at_least = 1;
        if let Because::Unknown = because {
            // Somebody may have rebuilt it while this caller waited, or be at it.
            match self.settled(id).await {
                Ok(stock) if decides(&stock) => return Ok(Told::Current),
                Ok(stock) => epoch_at_least = stock.epoch + 1,
                Err(error) => {
                    self.gate_failed("stock", &error);
                    return Ok(Told::Stale);
                }
            }
        }
        if let Because::Collision { epoch } = because
            && let Some(now) = self.ledger.campaign(id, self.clock.now()).await?
            && now.epoch > epoch
            && !now.gate_stale
        {
            return Ok(Told::Current);
        }
        for _ in 0..ROUNDS_MAX {
            let Some(coupon) = self.ledger.raise_epoch(id, epoch_at_least, self.clock.now()).await? else {
                return Ok(Told::Current);
            };
            let Some(meta) = meta(&coupon) else { return Ok(Told::Current) };
            let members = self.ledger.members(id).await?;
            tracing::warn!(
                coupon = id.get(),
                epoch = coupon.epoch,
                members = members.len(),
                "rebuilding the gate"
            );
            self.metrics.gate_rebuilds_requested.inc();
            match self.gate.rebuild(meta, members).await {
                Ok(()) => {}
                Err(GateError::Stale { epoch, .. }) => {
                    // Another process raised the epoch after this one: its rebuild is as good, so it is left to it.
                    // Otherwise the gate remembers another life of this id, and its epoch is outdone.
                    let newer = self.ledger.campaign(id, self.clock.now()).await?;
                    if newer.is_some_and(|newer| newer.epoch > coupon.epoch)
                        && self.settled(id).await.is_ok_and(|stock| decides(&stock))
                    {
                        return Ok(Told::Current);
                    }
                    epoch_at_least = epoch + 1;
                    continue;
                }
                Err(error) => {
                    self.gate_failed("rebuild", &error);
                    return Ok(Told::Stale);
                }
            }
            if self.ledger.mark_gate_current(&coupon).await? {
                return Ok(Told::Current);
            }
        }
        Ok(Told::Stale)
    }

    /// What the gate holds of a campaign once no rebuild of it makes progress any more.
    async fn settled(&self, id: CouponId) -> Result<GateStock, GateError> {
        let mut last = self.gate.stock(id).await?;
        let mut since = Instant::now();
        while last.state == GateState::Rebuilding && since.elapsed() < STANDSTILL_MAX {
            tokio::time::sleep(STANDSTILL_POLL).await;
            let stock = self.gate.stock(id).await?;
            if stock != last {
                (last, since) = (stock, Instant::now());
            }
        }
        Ok(last)
    }

    /// Logs and counts a failed call of the gate, where its handling ends.
    pub(super) fn gate_failed(&self, call: &str, error: &GateError) {
        let kind = if error.outcome_unknown() { "unknown" } else { "definite" };
        self.metrics.dependency_errors.with_label_values(&["gate", kind]).inc();
        tracing::warn!(call, %error, request_id = %correlation::current(), "the gate failed");
    }
}

fn decides(stock: &GateStock) -> bool {
    !matches!(stock.state, GateState::NotReady | GateState::Rebuilding)
}

/// Why the gate is rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// It said that it does not know the campaign.
    Unknown,
    /// In this epoch it gave a seat that the ledger has given already, or it may have missed a change.
    Collision {
        /// The epoch of the wrong answer: a higher one has been rebuilt since.
        epoch: i64,
    },
}

/// What the gate must know of a campaign; nothing of a draft.
pub(super) fn meta(coupon: &Coupon) -> Option<CampaignMeta> {
    Some(CampaignMeta {
        coupon: coupon.coupon_id,
        state: match coupon.status {
            CouponStatus::Draft => return None,
            CouponStatus::Open => CampaignState::Open,
            CouponStatus::Paused => CampaignState::Paused,
            CouponStatus::Closed => CampaignState::Closed,
        },
        limit: coupon.max_issue_count,
        window: IssueWindow {
            from_us: coupon.issue_from.map(|at| at.micros()),
            until_us: coupon.issue_until.map(|at| at.micros()),
        },
        epoch: coupon.epoch,
    })
}
