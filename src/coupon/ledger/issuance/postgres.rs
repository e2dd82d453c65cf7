//! The same on Postgres, in one statement: the function `record_issuances` of the schema does steps 1 to 4 beside the
//! data. Only what a user already holds is read afterwards.

use super::{super::user_coupons::held, Issuance, Recorded};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbError, DbResult, Param, Row, Tx},
};

/// Steps 1 to 4; the answers are in the batch's order.
pub(super) async fn record(tx: &mut Tx, batch: &[Issuance], now: UtcMicros) -> DbResult<Vec<Recorded>> {
    // One order in every transaction, so that two that want the same rows queue instead of deadlocking.
    let mut order: Vec<usize> = (0..batch.len()).collect();
    order.sort_unstable_by_key(|&index| (batch[index].coupon_id, batch[index].user_id));
    let refused = call(tx, &order.iter().map(|&index| &batch[index]).collect::<Vec<_>>(), now).await?;

    let mut answers = vec![Recorded::Inserted; batch.len()];
    let mut owners = Vec::new();
    for line in &refused {
        let place = usize::try_from(line.int("place")? - 1).ok().and_then(|place| order.get(place));
        let &index = place.ok_or_else(|| DbError::Corrupt("a place outside of the batch".into()))?;
        answers[index] = match line.text("outcome")?.as_str() {
            "INSERTED" => Recorded::Inserted,
            "SLOT_TAKEN" => Recorded::SlotTaken,
            "ABOVE_LIMIT" => Recorded::AboveLimit,
            "EPOCH_OVER" => Recorded::EpochOver,
            "FENCED" => Recorded::Fenced,
            "KEY_TAKEN" => Recorded::KeyTaken,
            "NO_SUCH_COUPON" => Recorded::NoSuchCoupon,
            "ALREADY_ISSUED" => {
                owners.push(index);
                continue;
            }
            other => return Err(DbError::Corrupt(format!("record_issuances answered `{other}`"))),
        };
    }
    if !owners.is_empty() {
        explain(tx, batch, &owners, &mut answers, now).await?;
    }
    Ok(answers)
}

/// The statement; one line for each row that did not go in.
async fn call(tx: &mut Tx, rows: &[&Issuance], now: UtcMicros) -> DbResult<Vec<Row>> {
    let tokens: Vec<String> = rows.iter().map(|row| row.token.to_string()).collect();
    let ints = |of: fn(&Issuance) -> i64| Param::Ints(rows.iter().map(|row| of(row)).collect());
    // Most batches have no key at all; three empty lists then stand for it.
    let keyed = rows.iter().any(|row| row.idempotency.is_some());
    let keys = |of: fn(&super::KeyedResponse) -> &str| {
        let all = rows.iter().map(|row| row.idempotency.as_ref().map(of));
        Param::OptTexts(if keyed { all.collect() } else { Vec::new() })
    };
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
        keys(|keyed| &keyed.key),
        keys(|keyed| &keyed.fingerprint),
        keys(|keyed| &keyed.response),
        Param::Int(now.micros()),
    ];
    tx.fetch(
        "select place, outcome from record_issuances($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
             $17, $18)",
        &params,
    )
    .await
}

/// What the users of the rows at `owners` hold already.
async fn explain(
    tx: &mut Tx,
    batch: &[Issuance],
    owners: &[usize],
    answers: &mut [Recorded],
    now: UtcMicros,
) -> DbResult<()> {
    let holders = owners.iter().map(|&index| (batch[index].coupon_id, batch[index].user_id));
    let held = held(tx, holders, now).await?;
    for &index in owners {
        let stored = held.get(&(batch[index].coupon_id, batch[index].user_id));
        let stored = stored.ok_or_else(|| DbError::Corrupt("a user coupon was there and is gone".into()))?;
        answers[index] = Recorded::AlreadyIssued(Box::new(stored.clone()));
    }
    Ok(())
}
