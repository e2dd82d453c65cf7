//! [`CommitStep`]: the named places of a commit at which a process may die, and the hook that lets a test kill it there.

use std::sync::Arc;

use crate::streams::error::Result;

/// What has just been done. In this order within a commit; `Sent` also between commits, when output is handed over early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitStep {
    /// Caches are flushed; what they wrote is not sent yet.
    Flushed,
    /// Outputs and changelog records are with the producer.
    Sent,
    /// The consumed offsets are in the transaction.
    OffsetsAdded,
    /// The transaction (at-least-once: the offsets) is committed; no task knows yet.
    Committed,
    /// The tasks know.
    Clean,
    /// A save of a task has been started, or was found finished.
    Saved,
}

/// Asked at each step; an error ends the thread there, as a crash would.
pub type StepHook = Arc<dyn Fn(CommitStep) -> Result<()> + Send + Sync>;
