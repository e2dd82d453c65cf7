//! Deterministic simulation: several instances of the real engine on the in-memory log, one seeded scheduler, a virtual
//! clock and faults. A model computes the truth from the input; committed output, changelog and state must equal it.
//!
//! One seed is one history: `SLUICE_SIM_SEED=7 cargo test --test simulation` replays it. `SLUICE_SIM_SEEDS=10000` runs more than
//! the fixed budget, `SLUICE_SIM_FROM` starts elsewhere.

mod random;
mod word_count;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")))
}

/// Every seed of the budget, each history checked against the model.
#[test]
fn committed_output_changelog_and_state_equal_the_model() {
    let seeds: Vec<u64> = match number("SLUICE_SIM_SEED") {
        Some(seed) => vec![seed],
        None => {
            let from = number("SLUICE_SIM_FROM").unwrap_or(0);
            (from..from + number("SLUICE_SIM_SEEDS").unwrap_or(100)).collect()
        }
    };
    let count = seeds.len();
    let mut totals = world::Tally::default();
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| world::run(seed))) {
            Ok(tally) => totals.add(&tally),
            Err(_) => panic!("seed {seed} failed; replay it with SLUICE_SIM_SEED={seed}"),
        }
    }
    println!("{count} histories hold: {totals:?}");
    if count >= 100 {
        assert!(totals.covers_every_fault(), "the budget must meet every kind of fault: {totals:?}");
    }
}
