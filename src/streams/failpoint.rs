//! Named places where a test may kill the process: `SLUICE_FAILPOINT=runner_before_commit` aborts at the first passage of
//! `hit("runner_before_commit")`, `SLUICE_FAILPOINT=runner_before_commit:100` at the hundredth.
//!
//! Compiled in only with the feature `failpoints`; without it every call is nothing. Aborting (no destructors, no
//! flush) is what `kill -9` looks like from inside, at an exact place.

/// The names of the runner, in the order in which a commit meets them: the transaction is filled and not committed; it is
/// committed and the thread does not know it yet; a state file is about to be written.
pub const NAMES: [&str; 3] = ["runner_before_commit", "runner_after_commit", "runner_before_save"];

/// A place where the process may be told to die.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("SLUICE_FAILPOINT").ok()?;
        let (name, passage) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), passage.parse().expect("SLUICE_FAILPOINT is <name> or <name>:<passage>")))
    });
    if let Some((armed_name, passage)) = armed
        && armed_name == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *passage
    {
        eprintln!("failpoint {name}: aborting");
        std::process::abort();
    }
}

/// A place where the process may be told to die; nothing in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) {}
