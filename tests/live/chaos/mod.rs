//! Real processes of a stateful topology on real Kafka, and everything that happens to them in a long life.
//!
//! | file | what |
//! |---|---|
//! | `rounds` | random faults, round after round |
//! | `scaling` | one process, three, two; restarts in turn |
//! | `brokers` | three brokers, and leaders that are killed |
//! | `recovery` | kill -9: how long, how much is replayed |
//! | `backlog` | a backlog, one reader and several |
//! | `fleet` | the processes, and what a test does to them |
//! | `orders` | what they process; the load; the verdict |
//! | `progress` | how long a partition stood still |

mod backlog;
mod brokers;
mod fleet;
mod orders;
mod progress;
mod recovery;
mod rounds;
mod scaling;

pub use fleet::Fleet;
pub use orders::{Load, close_windows, holds};

/// Each of these takes the machine for minutes, and what runs beside it gets late: `./dev chaos` runs them, one after another; the
/// suite says that it does not.
fn is_asked_for() -> bool {
    let asked = std::env::var("SLUICE_CHAOS").is_ok_and(|value| value == "1");
    if !asked {
        println!("left to ./dev chaos");
    }
    asked
}
