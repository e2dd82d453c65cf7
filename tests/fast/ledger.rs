//! The embedded ledger (SQLite) under the contract of every ledger.

#[path = "../common/ledger_contract.rs"]
mod ledger_contract;
#[path = "../common/relay_contract.rs"]
mod relay_contract;

use ledger_contract::Fixture;

async fn sqlite() -> Option<Fixture> {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/ledger.db", directory.path().display());
    Some(Fixture::new(&url, Some(Box::new(directory))).await)
}

crate::ledger_contract_tests!(sqlite);
crate::relay_contract_tests!(sqlite);
