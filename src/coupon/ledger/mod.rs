//! The ledger: the truth of what was issued and used, in Postgres or SQLite.
//!
//! Below the service, above [`Db`](super::db::Db). Each concern is a file: campaigns, issuances (many requests, one
//! transaction), redemptions, user coupons. What must always hold: a row, its history line and its outbox row are
//! written in one transaction; one conditional statement whose row count is checked decides each transition.

use super::db::{Db, DbConfig, DbResult};

/// The ledger. Cheap to clone; clones share the connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    db: Db,
}

impl Ledger {
    /// Opens the database of `postgres://…` or `sqlite://<file>`; the schema is brought up to date by
    /// [`Ledger::migrate`].
    pub async fn open(url: &str, config: DbConfig) -> DbResult<Self> {
        Ok(Self { db: Db::open(url, config).await? })
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

    /// Closes the connections; running transactions finish first.
    pub async fn close(&self) {
        self.db.close().await;
    }
}
