//! Issuances: many requests, one transaction, one outcome each.
//!
//! [`Ledger::record_issuances`] writes user coupon, history line and outbox row of every issuance that can be, in
//! one transaction, and says of the others why not. The order inside, the same on both engines (`postgres.rs` has it
//! in one statement, `sqlite.rs` in a few):
//!
//! 1. lock the campaigns against change (shared: issuing transactions do not wait for each other) and sort out what
//!    their epoch, limit or absence refuses;
//! 2. claim the idempotency keys, where there are any;
//! 3. insert, skipping what is fenced and what collides, and learn which rows went in; history and outbox follow
//!    exactly those;
//! 4. read why the others did not;
//! 5. commit.
//!
//! Step 3 must be a statement of its own after step 1: its snapshot is then younger than the lock, so it sees every
//! fence written before the lock was granted.

mod postgres;
mod sqlite;

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    Ledger,
    rows::{self, StoredUserCoupon},
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbError, DbResult, Param},
    failpoint,
    ids::{CouponId, UserCouponId, UserId},
    outbox::OutboxRow,
};

/// One coupon to record for one user: the gate's seat, and the event's bytes.
#[derive(Clone, Debug)]
pub struct Issuance {
    /// Id of the row, from [`Ledger::next_user_coupon_id`].
    pub user_coupon_id: UserCouponId,
    /// The campaign.
    pub coupon_id: CouponId,
    /// Who gets it.
    pub user_id: UserId,
    /// The seat.
    pub slot_no: i64,
    /// The gate's epoch at admission.
    pub epoch: i64,
    /// What the seat was admitted with.
    pub token: Uuid,
    /// When.
    pub issued_at: UtcMicros,
    /// Correlation id.
    pub request_id: String,
    /// The event.
    pub event: OutboxRow,
    /// The idempotency key to claim, and what to answer under it.
    pub idempotency: Option<KeyedResponse>,
}

/// An answer to be kept under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedResponse {
    /// The key.
    pub key: String,
    /// Operation, ids and body of the request.
    pub fingerprint: String,
    /// The answer, JSON.
    pub response: String,
}

/// What became of one issuance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The row is written (or was, by the same admission).
    Inserted,
    /// The user has one already.
    AlreadyIssued(Box<StoredUserCoupon>),
    /// Somebody else has the seat: the gate is behind the ledger.
    SlotTaken,
    /// The seat is above the limit, which was lowered meanwhile.
    AboveLimit,
    /// The gate was rebuilt since the admission.
    EpochOver,
    /// The sweeper decided that this admission never became a row.
    Fenced,
    /// Another request has used the idempotency key.
    KeyTaken,
    /// There is no such campaign.
    NoSuchCoupon,
}

impl Ledger {
    /// Records a batch in one transaction; the answers are in its order. An `Err` is about all of them.
    ///
    /// # Contract
    /// Rows do not disturb each other. `DbError::is_unknown` means that any of them may have been written.
    pub async fn record_issuances(&self, batch: &[Issuance], now: UtcMicros) -> DbResult<Vec<Recorded>> {
        let mut tx = self.db.begin().await?;
        failpoint::hit("before_insert");
        let answers = if self.db.is_postgres() {
            postgres::record(&mut tx, batch, now).await?
        } else {
            sqlite::record(&mut tx, batch, now).await?
        };
        if answers.contains(&Recorded::Inserted) {
            tx.commit().await?;
            self.outbox_written.notify_one();
        } else {
            // Nothing was written, so there is nothing to wait for the disk for.
            tx.rollback().await;
        }
        Ok(answers)
    }

    /// Decides that these admissions never become rows, unless they already have: afterwards a late transaction that
    /// carries one of the tokens inserts nothing. Returns those that already have.
    pub async fn fence_issuances(
        &self,
        coupon: CouponId,
        admissions: &[(UserId, Uuid)],
        now: UtcMicros,
    ) -> DbResult<HashMap<UserId, StoredUserCoupon>> {
        let mut tx = self.db.begin().await?;
        // Waits for the campaign's issuing transactions, and makes later ones begin after this one.
        let sql = self.db.pick(
            "select coupon_id from coupons where coupon_id = $1 for no key update",
            "select coupon_id from coupons where coupon_id = $1",
        );
        tx.fetch(sql, &[Param::Int(coupon.get())]).await?;
        let mut issued = HashMap::new();
        for (user, token) in admissions {
            let rows = tx
                .fetch(super::user_coupons::OF_USER, &[Param::Int(coupon.get()), Param::Int(user.get())])
                .await?;
            let stored = rows.first().map(|row| rows::user_coupon(row, now)).transpose()?;
            let token = token.to_string();
            match stored {
                Some(stored) if stored.admission_token == token => {
                    issued.insert(*user, stored);
                }
                _ => {
                    tx.execute(
                        "insert into issuance_fence (admission_token, coupon_id, user_id, fenced_at)
                         values ($1, $2, $3, $4) on conflict do nothing",
                        &[
                            Param::Text(&token),
                            Param::Int(coupon.get()),
                            Param::Int(user.get()),
                            Param::Int(now.micros()),
                        ],
                    )
                    .await?;
                }
            }
        }
        tx.commit().await?;
        Ok(issued)
    }

    /// Forgets fences older than `before`; a transaction cannot be late by more than its time limit.
    pub async fn purge_fences(&self, before: UtcMicros) -> DbResult<u64> {
        let mut tx = self.db.begin().await?;
        let purged = tx
            .execute("delete from issuance_fence where fenced_at < $1", &[Param::Int(before.micros())])
            .await?;
        tx.commit().await?;
        Ok(purged)
    }

    /// The next id of a user coupon. Ids are taken from the database in blocks of 256.
    pub async fn next_user_coupon_id(&self) -> DbResult<UserCouponId> {
        let mut block = self.ids.lock().await;
        let id = match block.next() {
            Some(id) => id,
            None => {
                let start = self.take_id_block().await?;
                *block = start..start + ID_BLOCK;
                block.next().expect("a block just taken is not empty")
            }
        };
        UserCouponId::new(id).ok_or_else(|| DbError::Corrupt(format!("id block begins at {id}")))
    }

    async fn take_id_block(&self) -> DbResult<i64> {
        let mut tx = self.db.begin().await?;
        let rows = if self.db.is_postgres() {
            tx.fetch("select nextval('user_coupon_id_seq') as start", &[]).await?
        } else {
            tx.fetch(
                "update id_blocks set next = next + $1 where name = 'user_coupon_id' returning next - $1 as start",
                &[Param::Int(ID_BLOCK)],
            )
            .await?
        };
        let start = super::only(&rows)?.int("start")?;
        tx.commit().await?;
        Ok(start)
    }
}

/// Ids of one block; the Postgres sequence rises by as many.
const ID_BLOCK: i64 = 256;
