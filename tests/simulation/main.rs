//! Deterministic simulation: several instances of the real engine on the in-memory log, one seeded scheduler, a virtual
//! clock and faults. A model computes the truth from the input; committed output, changelog and state must equal it.
//!
//! One seed is one history, whatever runs beside it: it chooses the topology, the settings, the events and the faults.
//!
//! | variable | |
//! |---|---|
//! | `SLUICE_SIM_SEED=7` | replays that history |
//! | `SLUICE_SIM_SEEDS=10000` | runs as many (500 where nothing is said) |
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
    collections::BTreeSet,
    num::NonZero,
    panic::catch_unwind,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")))
}

/// Seeds of a test run where nothing else is said.
const SEEDS: u64 = 500;

/// What the workers share.
#[derive(Default)]
struct Progress {
    histories: u64,
    totals: world::Tally,
    failed: BTreeSet<u64>,
}

/// Takes one seed after the other until all are taken, the time is over, or one has failed anywhere.
fn work(next: &AtomicU64, end: u64, deadline: Option<Instant>, progress: &Mutex<Progress>) {
    while deadline.is_none_or(|deadline| Instant::now() < deadline) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end || !progress.lock().expect("not poisoned").failed.is_empty() {
            return;
        }
        let result = catch_unwind(|| world::run(seed));
        let mut progress = progress.lock().expect("not poisoned");
        match result {
            Ok(tally) => {
                progress.histories += 1;
                if progress.histories.is_multiple_of(50) {
                    println!("{} histories hold", progress.histories);
                }
                for (what, times) in tally {
                    *progress.totals.entry(what).or_default() += times;
                }
            }
            Err(_) => drop(progress.failed.insert(seed)),
        }
    }
}

/// Every seed of the budget, each history checked against the model. Histories share nothing, so each core runs its own.
#[test]
fn committed_output_changelog_and_state_equal_the_model() {
    let from = number("SLUICE_SIM_FROM").unwrap_or(0);
    let (from, end) = match number("SLUICE_SIM_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (from, from + number("SLUICE_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let started = Instant::now();
    let deadline = number("SLUICE_SIM_SECONDS").map(|seconds| started + Duration::from_secs(seconds));
    let (next, progress) = (AtomicU64::new(from), Mutex::new(Progress::default()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| work(&next, end, deadline, &progress));
        }
    });
    let Progress { histories: count, totals, failed } = progress.into_inner().expect("not poisoned");
    if let Some(seed) = failed.first() {
        panic!("seed {seed} failed, and all of {failed:?}; replay it with SLUICE_SIM_SEED={seed}");
    }
    println!("{count} histories hold in {:.1} s: {totals:#?}", started.elapsed().as_secs_f64());
    if count >= SEEDS {
        for fault in FAULTS {
            assert!(
                totals.contains_key(*fault),
                "the budget must meet every kind of fault: no {fault} in {totals:?}"
            );
        }
    }
}

/// Histories in which a mistake was found once, and which a budget from 0 does not reach. They mean less with each change of the simulation,
/// and cost next to nothing.
const ONCE_FAILED: &[u64] = &[1_611, 2_820, 4_531, 4_738, 5_416, 5_445, 7_004, 7_325, 8_285, 8_441, 8_701];

#[test]
fn histories_that_once_failed_hold() {
    for seed in ONCE_FAILED {
        let held = catch_unwind(|| world::run(*seed));
        assert!(held.is_ok(), "replay it with SLUICE_SIM_SEED={seed}");
    }
}

/// What a whole budget of histories must have met, so that a fault that no longer happens is noticed.
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
