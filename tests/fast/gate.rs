//! The in-process gate under the contract of every gate, plain and behind the memory of refusals.

#[path = "../common/gate_contract.rs"]
mod gate_contract;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use gate_contract::Fixture;
use sluice::coupon::gate::embedded::{ClockUs, EmbeddedGate};

async fn embedded() -> Option<Fixture> {
    // Each look at the clock is ten microseconds later than the one before.
    let now_us = AtomicI64::new(1_700_000_000_000_000);
    let clock: ClockUs = Arc::new(move || now_us.fetch_add(10, Ordering::Relaxed));
    let gate = Arc::new(EmbeddedGate::with_clock(Duration::from_secs(3600), clock));
    let hasty = Arc::new(gate.with_lease(Duration::from_micros(1)));
    Some(Fixture { gate, hasty, next_coupon: AtomicI64::new(1) })
}

crate::gate_contract_tests!(embedded);

mod behind_a_memo {
    use super::*;
    use sluice::coupon::gate::memo::{MEMORY_MAX, SoldOutMemo};

    async fn remembering() -> Option<Fixture> {
        let Fixture { gate, hasty, next_coupon } = embedded().await?;
        Some(Fixture { gate: Arc::new(SoldOutMemo::new(gate, MEMORY_MAX)), hasty, next_coupon })
    }

    crate::gate_contract_tests!(remembering);
}
