//! Reconciling on demand: gate, outbox and history held against the ledger, campaign by campaign.
//!
//! Beside the flow, for an operator; the sweeper does the same kind of thing by itself all the time. What must always
//! hold: the ledger is the truth, so fixing only ever tells the gate again; a missing history line or a parked event
//! is reported and never invented or dropped.

use std::collections::HashMap;

use serde::Serialize;

use super::{
    db::{DbError, DbResult, Param},
    gate::{GateError, GateState},
    ids::CouponId,
    model::{Coupon, CouponStatus},
    rebuild::{Because, Told, meta},
    service::CouponService,
};

/// Users listed per kind of drift; the rest is counted.
pub const USERS_LISTED_MAX: usize = 100;
/// Members read from the gate at once.
const PAGE: usize = 10_000;

/// One campaign, seen from all sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CampaignDrift {
    /// Which.
    pub coupon_id: i64,
    /// Its status in the ledger.
    pub status: String,
    /// Rows in the ledger.
    pub rows: u64,
    /// The gate's side; none where no gate was asked.
    pub gate: Option<GateDrift>,
    /// Rows without exactly one issued history line.
    pub rows_without_history: i64,
    /// Issued history lines without a row.
    pub history_without_row: i64,
    /// Events waiting to be sent.
    pub outbox_waiting: i64,
    /// Events the log refused for good.
    pub outbox_parked: i64,
}

/// How a gate differs from the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GateDrift {
    /// Members, pending ones included.
    pub members: u64,
    /// Seats on their way to the ledger, or waiting for the sweeper: not drift.
    pub pending: u64,
    /// What of state, limit and epoch differs, in words; empty when nothing does.
    pub terms: Vec<String>,
    /// Users with a row whom the gate does not know.
    pub missing: Users,
    /// Users the gate holds as confirmed who have no row.
    pub unknown: Users,
    /// Users whose seat is another one at the gate.
    pub misplaced: Users,
}

/// Users of one kind of drift.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Users {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first: Vec<i64>,
}

impl Users {
    fn add(&mut self, user: i64) {
        self.count += 1;
        if self.first.len() < USERS_LISTED_MAX {
            self.first.push(user);
        }
    }
}

impl GateDrift {
    /// Does the gate know what the ledger knows?
    pub fn is_zero(&self) -> bool {
        self.terms.is_empty() && self.missing.count + self.unknown.count + self.misplaced.count == 0
    }
}

impl CampaignDrift {
    /// Is everything as the ledger says? Events on their way are.
    pub fn is_zero(&self) -> bool {
        self.gate.as_ref().is_none_or(GateDrift::is_zero)
            && self.rows_without_history + self.history_without_row + self.outbox_parked == 0
    }
}

/// Why it could not be told.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The ledger's side.
    #[error(transparent)]
    Ledger(#[from] DbError),
    /// The gate's side.
    #[error(transparent)]
    Gate(#[from] GateError),
}

impl CouponService {
    /// Holds every campaign's gate (when `ask_gate`), history and outbox against its rows. Changes nothing.
    pub async fn reconcile(&self, ask_gate: bool) -> Result<Vec<CampaignDrift>, ReconcileError> {
        let mut drifts = Vec::new();
        let mut before = i64::MAX;
        loop {
            let page = self.ledger.coupons(None, before, 100, self.clock.now()).await?;
            for coupon in &page {
                before = coupon.coupon_id.get();
                drifts.push(self.drift_of(coupon, ask_gate).await?);
            }
            if page.is_empty() {
                drifts.reverse();
                return Ok(drifts);
            }
        }
    }

    async fn drift_of(&self, coupon: &Coupon, ask_gate: bool) -> Result<CampaignDrift, ReconcileError> {
        let id = coupon.coupon_id;
        // The gate first: what it has confirmed by now is a row by the time the ledger is read.
        let gate = if ask_gate && coupon.status != CouponStatus::Draft {
            Some(self.gate_side(id).await?)
        } else {
            None
        };
        let members = self.ledger.members(id).await?;
        let gate = gate.map(|(stock, mut seats)| {
            let mut drift = GateDrift {
                members: seats.len() as u64,
                pending: seats.values().filter(|(_, pending)| *pending).count() as u64,
                terms: terms(coupon, &stock),
                ..GateDrift::default()
            };
            for member in &members {
                match seats.remove(&member.user.get()) {
                    None => drift.missing.add(member.user.get()),
                    Some((slot, _)) if slot != member.slot => drift.misplaced.add(member.user.get()),
                    Some(_) => {}
                }
            }
            let mut unknown: Vec<i64> =
                seats.into_iter().filter(|(_, (_, pending))| !pending).map(|(user, _)| user).collect();
            unknown.sort_unstable();
            unknown.into_iter().for_each(|user| drift.unknown.add(user));
            drift
        });
        let counts = self.counts(id).await?;
        Ok(CampaignDrift {
            coupon_id: id.get(),
            status: coupon.status.to_string(),
            rows: members.len() as u64,
            gate,
            rows_without_history: counts[0],
            history_without_row: counts[1],
            outbox_waiting: counts[2],
            outbox_parked: counts[3],
        })
    }

    async fn gate_side(
        &self,
        id: CouponId,
    ) -> Result<(super::gate::GateStock, HashMap<i64, (i64, bool)>), ReconcileError> {
        let stock = self.gate.stock(id).await?;
        let (mut seats, mut after_us) = (HashMap::new(), 0);
        loop {
            let page = self.gate.members(id, after_us, PAGE).await?;
            let Some(last) = page.last() else { return Ok((stock, seats)) };
            after_us = last.seat.admitted_at_us;
            seats.extend(page.iter().map(|view| (view.user.get(), (view.seat.slot, view.pending))));
        }
    }

    /// Rows without history, history without rows, events waiting, events parked. An event is of the campaign when a
    /// history line of it has the event's id.
    async fn counts(&self, id: CouponId) -> DbResult<[i64; 4]> {
        let rows = self
            .ledger
            .db()
            .read(
                "select
                    (select count(*) from user_coupons where coupon_id = $1 and not exists (
                        select 1 from coupon_history
                        where coupon_history.user_coupon_id = user_coupons.user_coupon_id and seq = 1)) as lost,
                    (select count(*) from coupon_history where coupon_id = $1 and seq = 1 and not exists (
                        select 1 from user_coupons
                        where user_coupons.user_coupon_id = coupon_history.user_coupon_id)) as orphaned,
                    (select count(*) from outbox join coupon_history on coupon_history.event_id = outbox.event_id
                        where coupon_id = $1 and sent_at is null and parked_at is null) as waiting,
                    (select count(*) from outbox join coupon_history on coupon_history.event_id = outbox.event_id
                        where coupon_id = $1 and parked_at is not null) as parked",
                &[Param::Int(id.get())],
            )
            .await?;
        let Some(row) = rows.first() else { return Ok([0; 4]) };
        Ok([row.int("lost")?, row.int("orphaned")?, row.int("waiting")?, row.int("parked")?])
    }

    /// Tells the gate again what the ledger says of a campaign. False when it could not be told.
    pub async fn fix_gate(&self, coupon: CouponId) -> DbResult<bool> {
        let Some(now) = self.ledger.campaign(coupon, self.clock.now()).await? else { return Ok(false) };
        let told = self.rebuild_gate(coupon, Because::Collision { epoch: now.epoch }).await?;
        Ok(told == Told::Current)
    }
}

/// What of state, limit and epoch differs.
fn terms(coupon: &Coupon, stock: &super::gate::GateStock) -> Vec<String> {
    let Some(meta) = meta(coupon) else { return Vec::new() };
    if matches!(stock.state, GateState::NotReady | GateState::Rebuilding) {
        return vec![format!("the gate is {:?}", stock.state)];
    }
    let state = format!("{:?}", meta.state);
    [
        ("state", state, format!("{:?}", stock.state)),
        ("limit", meta.limit.to_string(), stock.limit.to_string()),
        ("epoch", meta.epoch.to_string(), stock.epoch.to_string()),
    ]
    .into_iter()
    .filter(|(_, ledger, gate)| ledger != gate)
    .map(|(what, ledger, gate)| format!("{what} is {gate} at the gate and {ledger} in the ledger"))
    .collect()
}
