//! The same on SQLite, which has no arrays and no inserts inside `with`: a few statements over JSON texts. There is one
//! writer, so nobody is waited for between them.

use std::collections::{HashMap, HashSet};

use super::{
    super::{idempotency, user_coupons::held},
    Issuance, Recorded,
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbError, DbResult, Param, Tx},
};

/// Steps 1 to 4; the answers are in the batch's order.
pub(super) async fn record(tx: &mut Tx, batch: &[Issuance], now: UtcMicros) -> DbResult<Vec<Recorded>> {
    let mut answers = judge(tx, batch).await?;
    let mut open: Vec<usize> = (0..batch.len()).filter(|&index| answers[index].is_none()).collect();
    for index in claim_keys(tx, batch, &open, now).await? {
        answers[index] = Some(Recorded::KeyTaken);
    }
    open.retain(|&index| answers[index].is_none());

    let rows: Vec<&Issuance> = open.iter().map(|&index| &batch[index]).collect();
    let inserted = if rows.is_empty() { HashSet::new() } else { insert(tx, &rows).await? };
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
        explain(tx, batch, &missing, &mut answers, now).await?;
    }
    Ok(answers.into_iter().map(|answer| answer.expect("every row was sorted into one outcome")).collect())
}

/// Step 1: what the campaign itself refuses.
async fn judge(tx: &mut Tx, batch: &[Issuance]) -> DbResult<Vec<Option<Recorded>>> {
    let mut coupons: Vec<i64> = batch.iter().map(|row| row.coupon_id.get()).collect();
    coupons.sort_unstable();
    coupons.dedup();
    let found = tx
        .fetch(
            "select coupon_id, epoch, max_issue_count from coupons where coupon_id in (select value from json_each($1))",
            &[Param::Ints(coupons)],
        )
        .await?;
    let mut campaigns = HashMap::new();
    for row in found {
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
async fn claim_keys(tx: &mut Tx, batch: &[Issuance], open: &[usize], now: UtcMicros) -> DbResult<Vec<usize>> {
    let mut taken = Vec::new();
    for &index in open {
        let Some(keyed) = &batch[index].idempotency else { continue };
        if !idempotency::claim(tx, keyed, now).await? {
            taken.push(index);
        }
    }
    Ok(taken)
}

/// Step 4: why rows were skipped.
async fn explain(
    tx: &mut Tx,
    batch: &[Issuance],
    missing: &[usize],
    answers: &mut [Option<Recorded>],
    now: UtcMicros,
) -> DbResult<()> {
    let holders = missing.iter().map(|&index| (batch[index].coupon_id, batch[index].user_id));
    let owned = held(tx, holders, now).await?;
    let tokens: Vec<String> = missing.iter().map(|&index| batch[index].token.to_string()).collect();
    let mut fenced = HashSet::new();
    let found = tx
        .fetch(
            "select admission_token from issuance_fence where admission_token in (select value from json_each($1))",
            &[Param::Texts(tokens.iter().map(String::as_str).collect())],
        )
        .await?;
    for row in found {
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
            idempotency::give_back(tx, keyed).await?;
        }
        answers[index] = Some(answer);
    }
    Ok(())
}

/// Step 3: the ids of the rows that went in.
async fn insert(tx: &mut Tx, rows: &[&Issuance]) -> DbResult<HashSet<i64>> {
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
