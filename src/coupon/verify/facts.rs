//! Gathers what the rules judge: rows of the ledger, seats of the gate, records of the log.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    answers::Answers,
    log::{self, LogEvent, LogFacts},
};
use crate::{
    coupon::{
        db::{Db, DbResult, Param, Row},
        gate::{Gate, GateError},
        ids::CouponId,
    },
    streams::client::ClientSupplier,
};

/// Rows read at once.
const PAGE_ROWS: i64 = 10_000;

/// A campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns of `coupons`")]
pub struct CouponRow {
    pub max_issue_count: i64,
    pub status: String,
}

/// A user coupon.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns of `user_coupons`")]
pub struct UserCouponRow {
    pub user_coupon_id: i64,
    pub coupon_id: i64,
    pub user_id: i64,
    pub slot_no: i64,
    pub status: String,
    pub issued_at: i64,
    pub order_id: Option<String>,
    pub order_amount: Option<i64>,
    pub discount_amount: Option<i64>,
    pub used_at: Option<i64>,
    pub last_seq: i64,
    pub changed_at: i64,
}

/// One line of history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the columns of `coupon_history`")]
pub struct HistoryRow {
    pub user_coupon_id: i64,
    pub seq: i64,
    pub coupon_id: i64,
    pub user_id: i64,
    pub slot_no: i64,
    pub from_status: Option<String>,
    pub to_status: String,
    pub event_id: String,
    pub order_id: Option<String>,
    pub order_amount: Option<i64>,
    pub discount_amount: Option<i64>,
    pub at: i64,
}

impl HistoryRow {
    /// The topic its event belongs to.
    pub fn topic(&self) -> &'static str {
        match (self.from_status.as_deref(), self.to_status.as_str()) {
            (None, _) => log::TOPIC_ISSUED,
            (_, "USED") => log::TOPIC_USED,
            (_, "REVOKED") => log::TOPIC_REVOKED,
            _ => log::TOPIC_USE_CANCELLED,
        }
    }
}

/// A seat as the gate holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateSeat {
    /// Which slot.
    pub slot: i64,
    /// Not confirmed.
    pub pending: bool,
}

/// Everything the rules look at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Campaigns by id.
    pub coupons: BTreeMap<i64, CouponRow>,
    /// User coupons in id order.
    pub user_coupons: Vec<UserCouponRow>,
    /// History in (user coupon, seq) order.
    pub history: Vec<HistoryRow>,
    /// Events still in the outbox unsent or parked: event id -> whether it is parked.
    pub outbox_waiting: BTreeMap<String, bool>,
    /// Members of each campaign the gate knows; none where no gate was asked.
    pub gate: Option<BTreeMap<i64, HashMap<i64, GateSeat>>>,
    /// What is in the log; none where no log was read.
    pub log: Option<LogFacts>,
    /// What clients were told; none where nobody wrote it down.
    pub answers: Option<Answers>,
}

impl Facts {
    /// The events of a topic, repeats included; empty when no log was read.
    pub fn events(&self, topic: &str) -> &[LogEvent] {
        self.log.as_ref().and_then(|log| log.events.get(topic)).map_or(&[], Vec::as_slice)
    }
}

/// Why facts could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The ledger did not answer.
    #[error("reading the ledger: {0}")]
    Ledger(#[from] crate::coupon::db::DbError),
    /// The gate did not answer.
    #[error("reading the gate: {0}")]
    Gate(#[from] GateError),
    /// The log did not answer.
    #[error("reading the log: {0}")]
    Log(#[from] crate::streams::error::StreamsError),
    /// The reading task was ended.
    #[error("reading the log was broken off: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// Reads everything: the ledger always, gate and log where they are given.
pub async fn gather(
    db: &Db,
    gate: Option<&Arc<dyn Gate>>,
    supplier: Option<Arc<dyn ClientSupplier>>,
    answers: Option<Answers>,
) -> Result<Facts, GatherError> {
    let mut facts = Facts { answers, ..Facts::default() };
    for row in
        db.read("select coupon_id, max_issue_count, status from coupons order by coupon_id", &[]).await?
    {
        let coupon = CouponRow { max_issue_count: row.int("max_issue_count")?, status: row.text("status")? };
        facts.coupons.insert(row.int("coupon_id")?, coupon);
    }
    facts.user_coupons = read_user_coupons(db).await?;
    facts.history = read_history(db).await?;
    let waiting = "select event_id, (parked_at is not null) as parked from outbox where sent_at is null";
    for row in db.read(waiting, &[]).await? {
        facts.outbox_waiting.insert(row.text("event_id")?, row.bool("parked")?);
    }
    if let Some(gate) = gate {
        facts.gate = Some(read_gate(gate, &facts.coupons).await?);
    }
    if let Some(supplier) = supplier {
        // Consumers block; this is the edge where they may.
        facts.log = Some(tokio::task::spawn_blocking(move || log::read(&*supplier)).await??);
    }
    Ok(facts)
}

async fn read_user_coupons(db: &Db) -> DbResult<Vec<UserCouponRow>> {
    let mut rows = Vec::new();
    loop {
        let after = rows.last().map_or(0, |row: &UserCouponRow| row.user_coupon_id);
        let page = db
            .read(
                "select user_coupon_id, coupon_id, user_id, slot_no, status, issued_at, order_id, order_amount, \
                 discount_amount, used_at, last_seq, changed_at from user_coupons where user_coupon_id > $1 \
                 order by user_coupon_id limit $2",
                &[Param::Int(after), Param::Int(PAGE_ROWS)],
            )
            .await?;
        let count = page.len();
        for row in &page {
            rows.push(user_coupon(row)?);
        }
        if count < PAGE_ROWS as usize {
            return Ok(rows);
        }
    }
}

fn user_coupon(row: &Row) -> DbResult<UserCouponRow> {
    Ok(UserCouponRow {
        user_coupon_id: row.int("user_coupon_id")?,
        coupon_id: row.int("coupon_id")?,
        user_id: row.int("user_id")?,
        slot_no: row.int("slot_no")?,
        status: row.text("status")?,
        issued_at: row.int("issued_at")?,
        order_id: row.opt_text("order_id")?,
        order_amount: row.opt_int("order_amount")?,
        discount_amount: row.opt_int("discount_amount")?,
        used_at: row.opt_int("used_at")?,
        last_seq: row.int("last_seq")?,
        changed_at: row.int("changed_at")?,
    })
}

async fn read_history(db: &Db) -> DbResult<Vec<HistoryRow>> {
    let mut rows = Vec::new();
    loop {
        let (id, seq) = rows.last().map_or((0, 0), |row: &HistoryRow| (row.user_coupon_id, row.seq));
        let page = db
            .read(
                "select user_coupon_id, seq, coupon_id, user_id, slot_no, from_status, to_status, event_id, order_id, \
                 order_amount, discount_amount, at from coupon_history \
                 where user_coupon_id > $1 or (user_coupon_id = $1 and seq > $2) \
                 order by user_coupon_id, seq limit $3",
                &[Param::Int(id), Param::Int(seq), Param::Int(PAGE_ROWS)],
            )
            .await?;
        let count = page.len();
        for row in &page {
            rows.push(HistoryRow {
                user_coupon_id: row.int("user_coupon_id")?,
                seq: row.int("seq")?,
                coupon_id: row.int("coupon_id")?,
                user_id: row.int("user_id")?,
                slot_no: row.int("slot_no")?,
                from_status: row.opt_text("from_status")?,
                to_status: row.text("to_status")?,
                event_id: row.text("event_id")?,
                order_id: row.opt_text("order_id")?,
                order_amount: row.opt_int("order_amount")?,
                discount_amount: row.opt_int("discount_amount")?,
                at: row.int("at")?,
            });
        }
        if count < PAGE_ROWS as usize {
            return Ok(rows);
        }
    }
}

async fn read_gate(
    gate: &Arc<dyn Gate>,
    coupons: &BTreeMap<i64, CouponRow>,
) -> Result<BTreeMap<i64, HashMap<i64, GateSeat>>, GateError> {
    let mut known = BTreeMap::new();
    for (id, coupon) in coupons {
        // Drafts are unknown to the gate, and what is closed may be forgotten by it.
        if coupon.status == "DRAFT" || coupon.status == "CLOSED" {
            continue;
        }
        let Some(coupon) = CouponId::new(*id) else { continue };
        let mut members = HashMap::new();
        let mut after_us = 0;
        loop {
            let page = gate.members(coupon, after_us, PAGE_ROWS as usize).await?;
            let Some(last) = page.last() else { break };
            after_us = last.seat.admitted_at_us;
            for member in page {
                let seat = GateSeat { slot: member.seat.slot, pending: member.pending };
                members.insert(member.user.get(), seat);
            }
        }
        known.insert(*id, members);
    }
    Ok(known)
}
