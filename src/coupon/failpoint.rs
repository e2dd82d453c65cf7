//! The places of the coupon service where a test may kill the process; how, says the engine's
//! [`failpoint`](crate::streams::failpoint), which has the runner's.

pub use crate::streams::failpoint::hit;

/// The names of the coupon service, in the order an issue meets them, then the relay's.
pub const NAMES: [&str; 7] = [
    "after_gate",
    "before_insert",
    "before_commit",
    "after_commit",
    "before_confirm",
    "relay_after_send",
    "relay_before_mark",
];
