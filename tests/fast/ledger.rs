//! The embedded ledger (SQLite) under the contract of every ledger.

#[path = "../common/ledger_contract.rs"]
pub mod ledger_contract;
#[path = "../common/relay_contract.rs"]
mod relay_contract;

use ledger_contract::Fixture;

/// A service over `ledger.db` in this directory.
pub async fn sqlite_at(directory: &std::path::Path) -> Fixture {
    Fixture::new(&format!("sqlite://{}/ledger.db", directory.display()), None).await
}

async fn sqlite() -> Option<Fixture> {
    let directory = tempfile::tempdir().unwrap();
    let fixture = sqlite_at(directory.path()).await;
    Some(Fixture { keep: Some(Box::new(directory)), ..fixture })
}

crate::ledger_contract_tests!(sqlite);
crate::relay_contract_tests!(sqlite);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_schema_is_brought_up_with_its_data_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ledger.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let first = ledger_contract::first_migrations("sqlite");
    sqlx::migrate::Migrator::new(first.path()).await.unwrap().run(&pool).await.unwrap();
    for sql in ledger_contract::FIRST_RELEASE {
        sqlx::query(sql).execute(&pool).await.unwrap();
    }
    // As its ids were taken: a block of 256.
    sqlx::query("update id_blocks set next = next + 256").execute(&pool).await.unwrap();
    pool.close().await;
    ledger_contract::goes_on_after_an_upgrade(sqlite_at(directory.path()).await).await;
}
