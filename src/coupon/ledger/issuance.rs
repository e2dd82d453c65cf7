//! Issuances: many requests, one transaction, one outcome each.
//!
//! [`Ledger::record_issuances`] writes user coupon, history line and outbox row of every issuance that can be, in
//! one transaction, and says of the others why not. The order inside:
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

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{
    Ledger,
    rows::{self, StoredUserCoupon, user_coupon_columns},
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbError, DbResult, Param, Tx},
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
        let mut answers: Vec<Option<Recorded>> = self.judge(&mut tx, batch).await?;
        let mut open: Vec<usize> = (0..batch.len()).filter(|&index| answers[index].is_none()).collect();
        // One order in every transaction, so that two that want the same rows queue instead of deadlocking.
        open.sort_by_key(|&index| (batch[index].coupon_id, batch[index].user_id));

        for index in self.claim_keys(&mut tx, batch, &open, now).await? {
            answers[index] = Some(Recorded::KeyTaken);
        }
        open.retain(|&index| answers[index].is_none());

        failpoint::hit("before_insert");
        let rows: Vec<&Issuance> = open.iter().map(|&index| &batch[index]).collect();
        let inserted = if rows.is_empty() {
            HashSet::new()
        } else if self.db.is_postgres() {
            insert_postgres(&mut tx, &rows).await?
        } else {
            insert_sqlite(&mut tx, &rows).await?
        };
        let missing: Vec<usize> = open
            .into_iter()
            .filter(|&index| {
                let went_in = inserted.contains(&batch[index].user_coupon_id.get());
                if went_in {
                    answers[index] = Some(Recorded::Inserted);
                }
                !went_in
            })
            .collect();
        if !missing.is_empty() {
            self.explain(&mut tx, batch, &missing, &mut answers, now).await?;
        }
        tx.commit().await?;
        if !inserted.is_empty() {
            self.outbox_written.notify_one();
        }
        Ok(answers.into_iter().map(|answer| answer.expect("every row was sorted into one outcome")).collect())
    }

    /// Step 1: what the campaign itself refuses.
    async fn judge(&self, tx: &mut Tx, batch: &[Issuance]) -> DbResult<Vec<Option<Recorded>>> {
        let mut coupons: Vec<i64> = batch.iter().map(|row| row.coupon_id.get()).collect();
        coupons.sort_unstable();
        coupons.dedup();
        let sql = self.db.pick(
            "select coupon_id, epoch, max_issue_count from coupons where coupon_id = any($1) order by coupon_id for share",
            "select coupon_id, epoch, max_issue_count from coupons where coupon_id in (select value from json_each($1))",
        );
        let mut campaigns = HashMap::new();
        for row in tx.fetch(sql, &[Param::Ints(coupons)]).await? {
            campaigns.insert(row.int("coupon_id")?, (row.int("epoch")?, row.int("max_issue_count")?));
        }
        Ok(batch
            .iter()
            .map(|row| match campaigns.get(&row.coupon_id.get()) {
                None => Some(Recorded::NoSuchCoupon),
                Some((epoch, _)) if *epoch != row.epoch => Some(Recorded::EpochOver),
                Some((_, limit)) if row.slot_no > *limit => Some(Recorded::AboveLimit),
                Some(_) => None,
            })
            .collect())
    }

    /// Step 2: claims the keys of the rows at `open`; returns the rows whose key another request has.
    async fn claim_keys(
        &self,
        tx: &mut Tx,
        batch: &[Issuance],
        open: &[usize],
        now: UtcMicros,
    ) -> DbResult<Vec<usize>> {
        let mut taken = Vec::new();
        for &index in open {
            let Some(keyed) = &batch[index].idempotency else { continue };
            if !super::idempotency::claim(tx, keyed, now).await? {
                taken.push(index);
            }
        }
        Ok(taken)
    }

    /// Step 4: why rows were skipped. The conflict that skipped a row is committed by now (the insert waited for
    /// it), so this statement sees it.
    async fn explain(
        &self,
        tx: &mut Tx,
        batch: &[Issuance],
        missing: &[usize],
        answers: &mut [Option<Recorded>],
        now: UtcMicros,
    ) -> DbResult<()> {
        let sql = self.db.pick(
            concat!(
                "select ",
                user_coupon_columns!(),
                " from unnest($1::bigint[], $2::bigint[]) as wanted (coupon, owner)
                  join user_coupons on user_coupons.coupon_id = wanted.coupon and user_coupons.user_id = wanted.owner
                  join coupons on coupons.coupon_id = user_coupons.coupon_id"
            ),
            concat!(
                "select ",
                user_coupon_columns!(),
                " from json_each($1) as coupon join json_each($2) as owner on owner.key = coupon.key
                  join user_coupons on user_coupons.coupon_id = coupon.value and user_coupons.user_id = owner.value
                  join coupons on coupons.coupon_id = user_coupons.coupon_id"
            ),
        );
        let coupons = missing.iter().map(|&index| batch[index].coupon_id.get()).collect();
        let users = missing.iter().map(|&index| batch[index].user_id.get()).collect();
        let mut owned = HashMap::new();
        for row in tx.fetch(sql, &[Param::Ints(coupons), Param::Ints(users)]).await? {
            let stored = rows::user_coupon(&row, now)?;
            owned.insert((stored.shown.coupon_id, stored.shown.user_id), stored);
        }
        let tokens: Vec<String> = missing.iter().map(|&index| batch[index].token.to_string()).collect();
        let sql = self.db.pick(
            "select admission_token from issuance_fence where admission_token = any($1)",
            "select admission_token from issuance_fence where admission_token in (select value from json_each($1))",
        );
        let mut fenced = HashSet::new();
        for row in tx.fetch(sql, &[Param::Texts(tokens.iter().map(String::as_str).collect())]).await? {
            fenced.insert(row.text("admission_token")?);
        }
        for (&index, token) in missing.iter().zip(tokens) {
            let row = &batch[index];
            let answer = match owned.get(&(row.coupon_id, row.user_id)) {
                // A repeat of an admission whose first answer was lost.
                Some(stored) if stored.admission_token == token => Recorded::Inserted,
                Some(stored) => Recorded::AlreadyIssued(Box::new(stored.clone())),
                None if fenced.contains(&token) => Recorded::Fenced,
                None => Recorded::SlotTaken,
            };
            if let Some(keyed) = row.idempotency.as_ref().filter(|_| answer != Recorded::Inserted) {
                super::idempotency::give_back(tx, keyed).await?;
            }
            answers[index] = Some(answer);
        }
        Ok(())
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

async fn insert_postgres(tx: &mut Tx, rows: &[&Issuance]) -> DbResult<HashSet<i64>> {
    let tokens: Vec<String> = rows.iter().map(|row| row.token.to_string()).collect();
    let ints = |of: fn(&Issuance) -> i64| Param::Ints(rows.iter().map(|row| of(row)).collect());
    let params = [
        ints(|row| row.user_coupon_id.get()),
        ints(|row| row.coupon_id.get()),
        ints(|row| row.user_id.get()),
        ints(|row| row.slot_no),
        ints(|row| row.epoch),
        Param::Texts(tokens.iter().map(String::as_str).collect()),
        ints(|row| row.issued_at.micros()),
        Param::Texts(rows.iter().map(|row| row.request_id.as_str()).collect()),
        Param::Texts(rows.iter().map(|row| row.event.event_id.as_str()).collect()),
        ints(|row| row.event.lane),
        Param::Texts(rows.iter().map(|row| row.event.topic.as_str()).collect()),
        Param::Texts(rows.iter().map(|row| row.event.key.as_str()).collect()),
        Param::Texts(rows.iter().map(|row| row.event.headers.as_str()).collect()),
        Param::BytesList(rows.iter().map(|row| row.event.payload.as_slice()).collect()),
    ];
    let inserted = tx
        .fetch(
            "with wanted as materialized (
                 select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[],
                     $7::bigint[], $8::text[], $9::text[], $10::bigint[], $11::text[], $12::text[], $13::text[],
                     $14::bytea[])
                 as wanted (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, request_id,
                     event_id, lane, topic, key, headers, payload)
             ), inserted as (
                 insert into user_coupons
                     (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
                 select user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, issued_at
                 from wanted
                 where not exists (
                     select from issuance_fence where issuance_fence.admission_token = wanted.admission_token)
                 on conflict do nothing
                 returning user_coupon_id
             ), told as (
                 insert into coupon_history
                     (user_coupon_id, seq, coupon_id, user_id, slot_no, to_status, event_id, request_id, at)
                 select user_coupon_id, 1, coupon_id, user_id, slot_no, 'ACTIVE', event_id, request_id, issued_at
                 from wanted join inserted using (user_coupon_id)
             ), queued as (
                 insert into outbox (event_id, lane, topic, key, headers, payload, created_at)
                 select event_id, lane, topic, key, headers, payload, issued_at
                 from wanted join inserted using (user_coupon_id)
             )
             select user_coupon_id from inserted",
            &params,
        )
        .await?;
    inserted.iter().map(|row| row.int("user_coupon_id")).collect()
}

/// SQLite has no arrays and no inserts inside `with`: the same in three statements over one JSON text.
async fn insert_sqlite(tx: &mut Tx, rows: &[&Issuance]) -> DbResult<HashSet<i64>> {
    let wanted = json_rows(rows.iter().copied())?;
    let inserted = tx
        .fetch(
            "insert into user_coupons
                 (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
             select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 6
             from json_each($1)
             where not exists (select 1 from issuance_fence where admission_token = value ->> 5)
             on conflict do nothing
             returning user_coupon_id",
            &[Param::Text(&wanted)],
        )
        .await?;
    let inserted: HashSet<i64> =
        inserted.iter().map(|row| row.int("user_coupon_id")).collect::<DbResult<_>>()?;
    if inserted.is_empty() {
        return Ok(inserted);
    }
    let went_in = if inserted.len() == rows.len() {
        wanted
    } else {
        json_rows(rows.iter().copied().filter(|row| inserted.contains(&row.user_coupon_id.get())))?
    };
    tx.execute(
        "insert into coupon_history
             (user_coupon_id, seq, coupon_id, user_id, slot_no, to_status, event_id, request_id, at)
         select value ->> 0, 1, value ->> 1, value ->> 2, value ->> 3, 'ACTIVE', value ->> 8, value ->> 7, value ->> 6
         from json_each($1)",
        &[Param::Text(&went_in)],
    )
    .await?;
    tx.execute(
        "insert into outbox (event_id, lane, topic, key, headers, payload, created_at)
         select value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, cast(value ->> 13 as blob), value ->> 6
         from json_each($1)",
        &[Param::Text(&went_in)],
    )
    .await?;
    Ok(inserted)
}

fn json_rows<'a>(rows: impl Iterator<Item = &'a Issuance>) -> DbResult<String> {
    let rows: Vec<serde_json::Value> = rows
        .map(|row| {
            let event = &row.event;
            let payload = std::str::from_utf8(&event.payload)
                .map_err(|_| DbError::Refused("an event's payload is not UTF-8".into()))?;
            Ok(serde_json::json!([
                row.user_coupon_id,
                row.coupon_id,
                row.user_id,
                row.slot_no,
                row.epoch,
                row.token,
                row.issued_at.micros(),
                row.request_id,
                event.event_id,
                event.lane,
                event.topic,
                event.key,
                event.headers,
                payload,
            ]))
        })
        .collect::<DbResult<_>>()?;
    Ok(serde_json::Value::from(rows).to_string())
}
