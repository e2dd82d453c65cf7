//! Transitions of a user coupon: used, its use taken back, revoked.
//!
//! [`Ledger::transition`] reads the row, lets the caller's pure function decide, and writes with one conditional
//! UPDATE: only when the row still is what the decision was made on (its `last_seq`). A lost race reads and decides
//! again. History, outbox and idempotency key follow in the same transaction.

use super::{
    Ledger,
    issuance::KeyedResponse,
    rows::{self, StoredUserCoupon},
    user_coupons::BY_ID,
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbError, DbResult, Param, Tx},
    error::Refusal,
    ids::UserCouponId,
    model::{UserCoupon, UserCouponStatus},
    outbox::{self, OutboxRow},
};

/// A transition that has been decided: what the row becomes and what is told of it.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The user coupon afterwards; status, order, discount and time of use are written.
    pub after: UserCoupon,
    /// Amount of the order, kept beside a use.
    pub order_amount: Option<i64>,
    /// When: never before the row's last change.
    pub at: UtcMicros,
    /// The order in the history line (a cancelled use keeps it there).
    pub history_order: Option<(String, i64, i64)>,
    /// The reason in the history line.
    pub reason: Option<String>,
    /// Correlation id.
    pub request_id: String,
    /// The event.
    pub event: OutboxRow,
    /// The idempotency key to claim, and what to answer under it.
    pub idempotency: Option<KeyedResponse>,
}

/// What a decision may be, and what became of it.
#[derive(Clone, Debug)]
pub enum Transitioned<T> {
    /// To be done, or done.
    Do(T),
    /// It is so already: the answer, nothing to write.
    Already(UserCoupon),
    /// No.
    Refuse(Refusal),
}

/// What is known of the row's last use, for decisions about repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastLine {
    /// Status before the last line.
    pub from_status: Option<String>,
    /// Order of the last line.
    pub order_id: Option<String>,
}

/// Lost races in a row before giving up as a conflict.
const ATTEMPTS_MAX: usize = 8;

impl Ledger {
    /// Decides and writes one transition. `None`: there is no such row. [`Refusal::IdempotencyKeyReused`] when the
    /// key went to another request meanwhile.
    pub async fn transition(
        &self,
        id: UserCouponId,
        now: UtcMicros,
        decide: impl Fn(&StoredUserCoupon, &LastLine) -> Transitioned<Transition>,
    ) -> DbResult<Option<Transitioned<UserCoupon>>> {
        let mut attempts_left = ATTEMPTS_MAX;
        loop {
            attempts_left -= 1;
            match self.try_transition(id, now, &decide).await {
                // Another transaction got in between; it is over now.
                Ok(Attempt::LostRace) if attempts_left > 0 => {}
                Err(DbError::Conflict(_)) if attempts_left > 0 => {}
                Ok(Attempt::LostRace) => {
                    return Err(DbError::Conflict(format!(
                        "user coupon {id} changed {ATTEMPTS_MAX} times meanwhile"
                    )));
                }
                Ok(Attempt::Settled(answer)) => return Ok(answer),
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_transition(
        &self,
        id: UserCouponId,
        now: UtcMicros,
        decide: &impl Fn(&StoredUserCoupon, &LastLine) -> Transitioned<Transition>,
    ) -> DbResult<Attempt> {
        let mut tx = self.db.begin().await?;
        let found = tx.fetch(BY_ID, &[Param::Int(id.get())]).await?;
        let Some(row) = found.first() else {
            tx.rollback().await;
            return Ok(Attempt::Settled(None));
        };
        let before = rows::user_coupon(row, now)?;
        let last = last_line(&mut tx, &before).await?;
        let transition = match decide(&before, &last) {
            Transitioned::Do(transition) => transition,
            Transitioned::Already(answer) => {
                tx.rollback().await;
                return Ok(Attempt::Settled(Some(Transitioned::Already(answer))));
            }
            Transitioned::Refuse(refusal) => {
                tx.rollback().await;
                return Ok(Attempt::Settled(Some(Transitioned::Refuse(refusal))));
            }
        };
        assert!(
            before.status.can_become(transition.after.status),
            "the decision follows the transition table"
        );
        assert!(transition.at >= before.changed_at, "history never goes back in time");
        if !update(&mut tx, &before, &transition).await? {
            tx.rollback().await;
            return Ok(Attempt::LostRace);
        }
        append_history(&mut tx, &before, &transition).await?;
        outbox::append(&mut tx, &transition.event).await?;
        if let Some(keyed) = &transition.idempotency
            && !super::idempotency::claim(&mut tx, keyed, now).await?
        {
            tx.rollback().await;
            return Ok(Attempt::Settled(Some(Transitioned::Refuse(Refusal::IdempotencyKeyReused))));
        }
        tx.commit().await?;
        self.outbox_written.notify_one();
        Ok(Attempt::Settled(Some(Transitioned::Do(transition.after))))
    }
}

enum Attempt {
    Settled(Option<Transitioned<UserCoupon>>),
    LostRace,
}

async fn last_line(tx: &mut Tx, before: &StoredUserCoupon) -> DbResult<LastLine> {
    // A row that was only issued has nothing to repeat.
    if before.last_seq == 1 {
        return Ok(LastLine::default());
    }
    let lines = tx
        .fetch(
            "select from_status, order_id from coupon_history where user_coupon_id = $1 and seq = $2",
            &[Param::Int(before.shown.user_coupon_id.get()), Param::Int(before.last_seq)],
        )
        .await?;
    let line = super::only(&lines)?;
    Ok(LastLine { from_status: line.opt_text("from_status")?, order_id: line.opt_text("order_id")? })
}

/// The one conditional UPDATE; false when the row is no longer what was decided on.
async fn update(tx: &mut Tx, before: &StoredUserCoupon, transition: &Transition) -> DbResult<bool> {
    let after = &transition.after;
    let used = after.status == UserCouponStatus::Used;
    let updated = tx
        .execute(
            "update user_coupons set status = $4, order_id = $5, order_amount = $6, discount_amount = $7, used_at = $8,
                    changed_at = $9, last_seq = last_seq + 1
             where user_coupon_id = $1 and last_seq = $2 and status = $3",
            &[
                Param::Int(after.user_coupon_id.get()),
                Param::Int(before.last_seq),
                Param::Text(before.status.as_str()),
                Param::Text(after.status.as_str()),
                Param::OptText(after.order_id.as_deref()),
                Param::OptInt(transition.order_amount.filter(|_| used)),
                Param::OptInt(after.discount_amount),
                Param::OptInt(after.used_at.map(UtcMicros::micros)),
                Param::Int(transition.at.micros()),
            ],
        )
        .await?;
    Ok(updated == 1)
}

async fn append_history(tx: &mut Tx, before: &StoredUserCoupon, transition: &Transition) -> DbResult<()> {
    let after = &transition.after;
    let order = transition.history_order.as_ref();
    tx.execute(
        "insert into coupon_history (user_coupon_id, seq, coupon_id, user_id, slot_no, from_status, to_status, event_id,
             request_id, order_id, order_amount, discount_amount, reason, at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        &[
            Param::Int(after.user_coupon_id.get()),
            Param::Int(before.last_seq + 1),
            Param::Int(after.coupon_id.get()),
            Param::Int(after.user_id.get()),
            Param::Int(after.slot_no),
            Param::Text(before.status.as_str()),
            Param::Text(after.status.as_str()),
            Param::Text(&transition.event.event_id),
            Param::Text(&transition.request_id),
            Param::OptText(order.map(|(id, _, _)| id.as_str())),
            Param::OptInt(order.map(|(_, amount, _)| *amount)),
            Param::OptInt(order.map(|(_, _, discount)| *discount)),
            Param::OptText(transition.reason.as_deref()),
            Param::Int(transition.at.micros()),
        ],
    )
    .await
    .map(drop)
}
