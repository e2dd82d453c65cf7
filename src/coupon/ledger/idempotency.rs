//! Idempotency keys: the answer of a request, kept under the client's key in the request's own transaction.
//!
//! Only answers that changed something are kept: a refusal may be another one the next time. What must always hold:
//! a key names one request for ever (as long as it is kept), and a half answer is never seen, because key and change
//! commit together.

use super::{Ledger, issuance::KeyedResponse};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbResult, Param, Tx},
};

/// What a key is known for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLookup {
    /// Nothing yet.
    Unknown,
    /// This very request: its answer.
    Answered(String),
    /// Another request.
    Other,
}

impl Ledger {
    /// Looks a key up for the request of this fingerprint.
    pub async fn look_up_key(&self, key: &str, fingerprint: &str) -> DbResult<KeyLookup> {
        let rows = self
            .db
            .read("select fingerprint, response from idempotency_keys where key = $1", &[Param::Text(key)])
            .await?;
        Ok(match rows.first() {
            None => KeyLookup::Unknown,
            Some(row) if row.text("fingerprint")? == fingerprint => {
                KeyLookup::Answered(row.text("response")?)
            }
            Some(_) => KeyLookup::Other,
        })
    }

    /// Forgets up to `max` keys claimed before `before`; returns how many.
    pub async fn purge_keys(&self, before: UtcMicros, max: usize) -> DbResult<u64> {
        let mut tx = self.db.begin().await?;
        let purged = tx
            .execute(
                "delete from idempotency_keys where key in
                     (select key from idempotency_keys where created_at < $1 order by created_at limit $2)",
                &[Param::Int(before.micros()), Param::Int(super::limit(max))],
            )
            .await?;
        tx.commit().await?;
        Ok(purged)
    }
}

/// Claims a key; false when it is taken. Waits for a transaction that is just claiming it.
pub(super) async fn claim(tx: &mut Tx, keyed: &KeyedResponse, now: UtcMicros) -> DbResult<bool> {
    let written = tx
        .execute(
            "insert into idempotency_keys (key, fingerprint, response, created_at) values ($1, $2, $3, $4)
             on conflict do nothing",
            &[
                Param::Text(&keyed.key),
                Param::Text(&keyed.fingerprint),
                Param::Text(&keyed.response),
                Param::Int(now.micros()),
            ],
        )
        .await?;
    Ok(written == 1)
}

/// Gives a key claimed in this transaction back: the request came to nothing.
pub(super) async fn give_back(tx: &mut Tx, keyed: &KeyedResponse) -> DbResult<()> {
    tx.execute("delete from idempotency_keys where key = $1", &[Param::Text(&keyed.key)]).await.map(drop)
}
