//! Deterministic simulation: several instances of the real engine on the in-memory log, one seeded scheduler, a virtual
//! clock and faults. A model computes the truth from the input; committed output, changelog and state must equal it.
//!
//! One seed is one history: it chooses the topology, the settings, the events and the faults.
//!
//! | variable | |
//! |---|---|
//! | `SLUICE_SIM_SEED=7` | replays that history |
//! | `SLUICE_SIM_SEEDS=10000` | runs as many (150 where nothing is said) |
//! | `SLUICE_SIM_FROM=300` | starts there |
//! | `SLUICE_SIM_SECONDS=60` | stops after this time, whatever was asked for |

mod faults;
mod hops;
mod join;
mod random;
mod scenario;
mod state;
mod statistics;
mod suppress;
mod word_count;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")))
}

/// Every seed of the budget, each history checked against the model.
#[test]
fn committed_output_changelog_and_state_equal_the_model() {
    let from = number("SLUICE_SIM_FROM").unwrap_or(0);
    let seeds = match number("SLUICE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("SLUICE_SIM_SEEDS").unwrap_or(150),
    };
    let limit = number("SLUICE_SIM_SECONDS").map(Duration::from_secs);
    let (started, mut told) = (Instant::now(), Instant::now());
    let mut totals = world::Tally::new();
    let mut count = 0;
    for seed in seeds {
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        match catch_unwind(AssertUnwindSafe(|| world::run(seed))) {
            Ok(tally) => {
                for (what, times) in tally {
                    *totals.entry(what).or_default() += times;
                }
            }
            Err(_) => panic!("seed {seed} failed; replay it with SLUICE_SIM_SEED={seed}"),
        }
        count += 1;
        if told.elapsed() >= Duration::from_secs(10) {
            told = Instant::now();
            println!("{count} histories hold, up to seed {seed}, {:.0} s", started.elapsed().as_secs_f64());
        }
    }
    println!("{count} histories hold in {:.1} s: {totals:#?}", started.elapsed().as_secs_f64());
    if count >= 100 {
        for fault in FAULTS {
            assert!(
                totals.contains_key(*fault),
                "the budget must meet every kind of fault: no {fault} in {totals:?}"
            );
        }
    }
}

/// What a hundred histories must have met, so that a fault that no longer happens is noticed.
const FAULTS: &[&str] = &[
    "CommitTransaction answer lost",
    "CommitTransaction refused",
    "Poll refused",
    "Send refused",
    "SendOffsets refused",
    "clock jumps",
    "closes",
    "crashes",
    "death after Clean",
    "death after Committed",
    "death after Flushed",
    "death after OffsetsAdded",
    "death after Saved",
    "death after Sent",
    "death at CommitTransaction, done true",
    "disks lost",
    "files lost",
    "files torn",
    "history in memory",
    "history with standbys",
    "history with state files",
    "history: hops",
    "history: join",
    "history: statistics",
    "history: suppress",
    "history: word count",
    "history: word count, at least once",
    "log stuck",
    "stalls",
    "stores compared",
    "threads started anew",
    "zombies",
    "zombies refused",
];
