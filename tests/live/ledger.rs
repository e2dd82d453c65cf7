//! The Postgres ledger under the contract of every ledger. Each case gets a database of its own.

mod faults;
#[path = "../common/ledger_contract.rs"]
pub mod ledger_contract;
#[path = "../common/relay_contract.rs"]
pub mod relay_contract;

use ledger_contract::Fixture;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::service;

/// A database of a test's own on the server of `SLUICE_TEST_POSTGRES`: its url.
pub async fn own_database() -> Option<String> {
    let url = service("SLUICE_TEST_POSTGRES")?;
    let (server, _) =
        url.rsplit_once('/').expect("SLUICE_TEST_POSTGRES is postgres://user@host:port/database");
    let name = format!("sluice_test_{}", uuid::Uuid::new_v4().simple());
    let mut admin = PgConnection::connect(&url).await.unwrap();
    // The name is ours, letters and digits; a database name cannot be a parameter.
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
    Some(format!("{server}/{name}"))
}

async fn postgres() -> Option<Fixture> {
    Some(Fixture::new(&own_database().await?, None).await)
}

crate::ledger_contract_tests!(postgres);
crate::relay_contract_tests!(postgres);
crate::ledger_contract_tests! { postgres relay_contract: a_slower_transaction_is_not_skipped }

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_schema_is_brought_up_with_its_data_in_place() {
    let Some(url) = own_database().await else { return };
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let first = ledger_contract::first_migrations("postgres");
    sqlx::migrate::Migrator::new(first.path()).await.unwrap().run(&pool).await.unwrap();
    for sql in ledger_contract::FIRST_RELEASE {
        sqlx::query(sql).execute(&pool).await.unwrap();
    }
    // As its ids were taken: a block of 256.
    sqlx::query("select nextval('user_coupon_id_seq')").execute(&pool).await.unwrap();
    pool.close().await;
    ledger_contract::goes_on_after_an_upgrade(Fixture::new(&url, None).await).await;
}
