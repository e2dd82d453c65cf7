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
