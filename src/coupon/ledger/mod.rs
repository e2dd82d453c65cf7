//! The ledger: the truth of what was issued and used, in Postgres or SQLite.
//!
//! Below the service, above [`Db`]. Each concern is a file: campaigns, issuances (many requests, one
//! transaction), the batch they share, redemptions, reads of user coupons, the query that looks at them share, idempotency
//! keys. What must always hold:
//! a row, its history line and its outbox row are written in one transaction; one conditional statement whose row
//! count is checked decides each transition.

mod batch;
mod campaign;
mod holders;
mod idempotency;
mod issuance;
mod redemption;
pub(crate) mod rows;
mod user_coupons;

use std::{ops::Range, sync::Arc};

use tokio::sync::{Mutex, Notify};

pub use batch::{IssuanceQueue, QueueFull};
pub use campaign::{CampaignChanged, NewCoupon};
pub use holders::HolderQueue;
pub use idempotency::KeyLookup;
pub use issuance::{Issuance, KeyedResponse, Recorded};
pub use redemption::{LastLine, Transition, Transitioned};
pub use rows::StoredUserCoupon;
pub use user_coupons::Held;

use super::db::{Db, DbConfig, DbError, DbResult, Row};

/// The ledger. Cheap to clone; clones share the connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    db: Db,
    /// Ids taken from the database and not given out yet.
    ids: Arc<Mutex<Range<i64>>>,
    /// Rung after every commit that wrote to the outbox: the relay of this process need not wait for its timer.
    outbox_written: Arc<Notify>,
}

impl Ledger {
    /// Opens the database of `postgres://…` or `sqlite://<file>`; the schema is brought up to date by
    /// [`Ledger::migrate`].
    pub async fn open(url: &str, config: DbConfig) -> DbResult<Self> {
        Ok(Self {
            db: Db::open(url, config).await?,
            ids: Arc::new(Mutex::new(0..0)),
            outbox_written: Arc::new(Notify::new()),
        })
    }

    /// Brings the schema up to date; repeating it changes nothing. Returns how many migrations it has.
    pub async fn migrate(&self) -> DbResult<usize> {
        self.db.migrate().await
    }

    /// One round trip.
    pub async fn ping(&self) -> DbResult<()> {
        self.db.read("select 1", &[]).await.map(drop)
    }

    /// The database below, for the files of the ledger's side that ask their own questions.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Rung after every commit of this process that wrote to the outbox.
    pub fn outbox_written(&self) -> Arc<Notify> {
        self.outbox_written.clone()
    }

    /// Closes the connections; running transactions finish first.
    pub async fn close(&self) {
        self.db.close().await;
    }
}

/// The one row of a query that always has one.
fn only(rows: &[Row]) -> DbResult<&Row> {
    rows.first().ok_or_else(|| DbError::Corrupt("a query that always has a row had none".into()))
}

fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}
