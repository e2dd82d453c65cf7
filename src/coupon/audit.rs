//! Auditing the history: what every user coupon was at a moment, and whether the history explains the tables.
//!
//! Beside the flow; reads only. What must always hold: [`as_of`] at any moment is the last transition dated at or
//! before it, by (at, seq); [`replay`] of everything equals `user_coupons`, row by row, and names what differs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    clock::UtcMicros,
    db::{Db, DbResult, Param, Row},
    ids::{CouponId, UserCouponId, UserId},
    ledger::rows,
    model::UserCouponStatus,
};

/// Which user coupons are looked at; nothing set means all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this campaign.
    pub coupon: Option<CouponId>,
    /// Of this user.
    pub user: Option<UserId>,
}

/// A user coupon as it was at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AsOf {
    /// Which.
    pub user_coupon_id: UserCouponId,
    /// Of which campaign.
    pub coupon_id: CouponId,
    /// Whose.
    pub user_id: UserId,
    /// Its seat.
    pub slot_no: i64,
    /// Its status then; active past its validity is expired.
    pub status: UserCouponStatus,
    /// The order it was used for then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The discount it gave then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discount_amount: Option<i64>,
    /// Number of the transition that made it so.
    pub seq: i64,
    /// When that was.
    pub at: UtcMicros,
    /// The event that told of it.
    pub event_id: String,
    /// The request that caused it.
    pub request_id: String,
}

/// One thing in which table and history do not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Which user coupon.
    pub user_coupon_id: i64,
    /// Which field, or what kind of disagreement.
    pub field: &'static str,
    /// What the history says.
    pub history: String,
    /// What the table says.
    pub table: String,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// History lines read.
    pub lines: u64,
    /// Rows of the table read.
    pub rows: u64,
    /// Where they do not agree; at most [`DIFFERENCES_MAX`] are listed.
    pub differences: Vec<Difference>,
    /// How many there are in all.
    pub differences_total: u64,
}

/// Differences listed; the rest is counted.
pub const DIFFERENCES_MAX: usize = 1_000;
/// Ids of one page.
const PAGE_IDS: i64 = 5_000;

/// Every user coupon that existed at `at`, as it was then, by id.
pub async fn as_of(db: &Db, at: UtcMicros, filter: AuditFilter) -> DbResult<Vec<AsOf>> {
    let rows = db
        .read(
            "select line.user_coupon_id, line.coupon_id, line.user_id, line.slot_no, line.to_status, line.order_id,
                    line.discount_amount, line.seq, line.at, line.event_id, line.request_id, coupons.valid_to
             from coupon_history as line join coupons on coupons.coupon_id = line.coupon_id
             where line.at <= $1
               and ($2 = 0 or line.coupon_id = $2)
               and ($3 = 0 or line.user_id = $3)
               and not exists (
                   select 1 from coupon_history as later
                   where later.user_coupon_id = line.user_coupon_id and later.at <= $1
                     and (later.at > line.at or (later.at = line.at and later.seq > line.seq)))
             order by line.user_coupon_id",
            &[
                Param::Int(at.micros()),
                Param::Int(filter.coupon.map_or(0, CouponId::get)),
                Param::Int(filter.user.map_or(0, UserId::get)),
            ],
        )
        .await?;
    rows.iter().map(|row| as_it_was(row, at)).collect()
}

fn as_it_was(row: &Row, at: UtcMicros) -> DbResult<AsOf> {
    let stored: UserCouponStatus = row.parsed("to_status")?;
    let expired = stored == UserCouponStatus::Active && row.int("valid_to")? <= at.micros();
    let used = stored == UserCouponStatus::Used;
    Ok(AsOf {
        user_coupon_id: rows::id(row, "user_coupon_id")?,
        coupon_id: rows::id(row, "coupon_id")?,
        user_id: rows::id(row, "user_id")?,
        slot_no: row.int("slot_no")?,
        status: if expired { UserCouponStatus::Expired } else { stored },
        // A cancelled use keeps its order in the history line, but the coupon no longer has it.
        order_id: row.opt_text("order_id")?.filter(|_| used),
        discount_amount: row.opt_int("discount_amount")?.filter(|_| used),
        seq: row.int("seq")?,
        at: UtcMicros::clamped(row.int("at")?),
        event_id: row.text("event_id")?,
        request_id: row.text("request_id")?,
    })
}

/// Replays the whole history and compares it with the table, a page of ids at a time.
pub async fn replay(db: &Db) -> DbResult<Replay> {
    let mut replay = Replay::default();
    let mut after = 0;
    while let Some(first) = next_id(db, after).await? {
        let last = first + PAGE_IDS - 1;
        let page = [Param::Int(first), Param::Int(last)];
        let lines = db
            .read(
                "select user_coupon_id, seq, coupon_id, user_id, slot_no, from_status, to_status, order_id, order_amount,
                        discount_amount, at
                 from coupon_history where user_coupon_id between $1 and $2 order by user_coupon_id, seq",
                &page,
            )
            .await?;
        let table = db
            .read(
                "select user_coupon_id, last_seq as seq, coupon_id, user_id, slot_no, status, order_id, order_amount,
                        discount_amount, issued_at, used_at, changed_at
                 from user_coupons where user_coupon_id between $1 and $2",
                &page,
            )
            .await?;
        let mut replayed = BTreeMap::new();
        for line in &lines {
            apply(line, &mut replayed, &mut replay)?;
        }
        for row in &table {
            let id = row.int("user_coupon_id")?;
            compare(id, replayed.remove(&id), State::of_table(row)?, &mut replay);
        }
        for id in replayed.keys() {
            replay.differ(*id, "row", "issued", "missing");
        }
        replay.lines += lines.len() as u64;
        replay.rows += table.len() as u64;
        after = last;
    }
    Ok(replay)
}

/// The smallest id above `after` that either side knows.
async fn next_id(db: &Db, after: i64) -> DbResult<Option<i64>> {
    let rows = db
        .read(
            "select min(id) as id from (
                 select min(user_coupon_id) as id from coupon_history where user_coupon_id > $1
                 union all
                 select min(user_coupon_id) as id from user_coupons where user_coupon_id > $1) as both_sides",
            &[Param::Int(after)],
        )
        .await?;
    rows.first().map_or(Ok(None), |row| row.opt_int("id"))
}

/// A user coupon as the history adds up to, or as the table has it. The fields that both sides know.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    coupon_id: i64,
    user_id: i64,
    slot_no: i64,
    status: String,
    order_id: Option<String>,
    order_amount: Option<i64>,
    discount_amount: Option<i64>,
    issued_at: i64,
    used_at: Option<i64>,
    changed_at: i64,
    seq: i64,
}

impl State {
    fn of_table(row: &Row) -> DbResult<Self> {
        Ok(Self {
            coupon_id: row.int("coupon_id")?,
            user_id: row.int("user_id")?,
            slot_no: row.int("slot_no")?,
            status: row.text("status")?,
            order_id: row.opt_text("order_id")?,
            order_amount: row.opt_int("order_amount")?,
            discount_amount: row.opt_int("discount_amount")?,
            issued_at: row.int("issued_at")?,
            used_at: row.opt_int("used_at")?,
            changed_at: row.int("changed_at")?,
            seq: row.int("seq")?,
        })
    }
}

/// One transition of the history.
fn apply(line: &Row, states: &mut BTreeMap<i64, State>, replay: &mut Replay) -> DbResult<()> {
    let id = line.int("user_coupon_id")?;
    let (seq, at) = (line.int("seq")?, line.int("at")?);
    let before = states.get(&id);
    let expected_seq = before.map_or(1, |state| state.seq + 1);
    if seq != expected_seq {
        replay.differ(id, "seq", &format!("line {seq} follows"), &format!("line {expected_seq} expected"));
    }
    let from = line.opt_text("from_status")?;
    if from.as_deref() != before.map(|state| state.status.as_str()) {
        let was = before.map_or("nothing", |state| state.status.as_str());
        replay.differ(id, "from_status", from.as_deref().unwrap_or("nothing"), was);
    }
    if let Some(state) = before.filter(|state| state.changed_at > at) {
        replay.differ(id, "at", &at.to_string(), &format!("not before {}", state.changed_at));
    }
    let status = line.text("to_status")?;
    let used = status == UserCouponStatus::Used.as_str();
    let state = State {
        coupon_id: line.int("coupon_id")?,
        user_id: line.int("user_id")?,
        slot_no: line.int("slot_no")?,
        order_id: line.opt_text("order_id")?.filter(|_| used),
        order_amount: line.opt_int("order_amount")?.filter(|_| used),
        discount_amount: line.opt_int("discount_amount")?.filter(|_| used),
        issued_at: before.map_or(at, |state| state.issued_at),
        used_at: used.then_some(at),
        changed_at: at,
        seq,
        status,
    };
    states.insert(id, state);
    Ok(())
}

fn compare(id: i64, history: Option<State>, table: State, replay: &mut Replay) {
    let Some(history) = history else {
        replay.differ(id, "row", "missing", "issued");
        return;
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    let number = |value: Option<i64>| value.map_or_else(|| "none".into(), |value| value.to_string());
    for (field, history, table) in [
        ("coupon_id", history.coupon_id.to_string(), table.coupon_id.to_string()),
        ("user_id", history.user_id.to_string(), table.user_id.to_string()),
        ("slot_no", history.slot_no.to_string(), table.slot_no.to_string()),
        ("status", history.status, table.status),
        ("order_id", text(&history.order_id), text(&table.order_id)),
        ("order_amount", number(history.order_amount), number(table.order_amount)),
        ("discount_amount", number(history.discount_amount), number(table.discount_amount)),
        ("issued_at", history.issued_at.to_string(), table.issued_at.to_string()),
        ("used_at", number(history.used_at), number(table.used_at)),
        ("changed_at", history.changed_at.to_string(), table.changed_at.to_string()),
        ("last_seq", history.seq.to_string(), table.seq.to_string()),
    ] {
        if history != table {
            replay.differ(id, field, &history, &table);
        }
    }
}

impl Replay {
    /// Does the history explain the tables?
    pub fn is_equal(&self) -> bool {
        self.differences_total == 0
    }

    fn differ(&mut self, user_coupon_id: i64, field: &'static str, history: &str, table: &str) {
        self.differences_total += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(Difference {
                user_coupon_id,
                field,
                history: history.into(),
                table: table.into(),
            });
        }
    }
}
