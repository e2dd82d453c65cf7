//! Errors of the engine, named by what the receiver does next.

use thiserror::Error;

use super::record::ProducerRecord;

/// What went wrong, named by what to do about it (architecture: "errors, named by what the receiver does").
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamsError {
    /// Another member owns the task now (fenced, or the group moved on): drop all tasks and rejoin.
    #[error("task migrated: {0}")]
    TaskMigrated(String),
    /// The group gave this member's static name to another one: a process that was given the same name, or a join of this
    /// member's own whose answer was lost. The member is of no use any more; another can be made when nobody has the name.
    #[error("displaced: {0}")]
    Displaced(String),
    /// The local file of this task is not usable: discard it and restore from the changelog.
    #[error("task {task} corrupted: {reason}")]
    TaskCorrupted {
        /// The task, as `0_1`.
        task: String,
        /// What was found.
        reason: String,
    },
    /// The log does not have the position any more (and the reset policy is to refuse): a store discards its content and
    /// restores from the first offset kept; an input is a configuration for a person to decide.
    #[error("offset out of range for {partition}: {reason}")]
    OffsetOutOfRange {
        /// The partition, as `topic-0`.
        partition: String,
        /// The position asked for and what the log has.
        reason: String,
    },
    /// Try the same call again; after `task_timeout` it becomes fatal.
    #[error("retriable: {0}")]
    Retriable(String),
    /// The open transaction must be aborted, inputs and state rewound; then work goes on.
    #[error("transaction must be aborted: {0}")]
    AbortTransaction(String),
    /// A user's function failed on a record; the processing handler decides what happens.
    #[error("{0}")]
    Processing(#[from] ProcessingError),
    /// The log refuses this one record and would refuse it again (too large, for instance), while others can be written: the production
    /// handler decides what happens.
    #[error("record for topic {} refused: {}", .0.record.topic, .0.error)]
    RecordRefused(Box<RefusedRecord>),
    /// The topology is not valid.
    #[error("invalid topology: {0}")]
    Topology(String),
    /// Nothing here can repair it: stop with a non-zero exit.
    #[error("{0}")]
    Fatal(String),
}

impl StreamsError {
    /// A fatal error with a message.
    pub fn fatal(message: impl std::fmt::Display) -> Self {
        Self::Fatal(message.to_string())
    }
}

/// A failure of user code (or of a serde) on one record: a class, as Kafka names exceptions, and a message.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{class}: {message}")]
pub struct ProcessingError {
    /// A short class name, for dead letters and metrics.
    pub class: String,
    /// What happened, for a person.
    pub message: String,
}

impl ProcessingError {
    /// A failure of the given class.
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        Self { class: class.into(), message: message.into() }
    }
}

/// A record that the log refuses, and why.
#[derive(Debug)]
pub struct RefusedRecord {
    /// The record as it was to be written.
    pub record: ProducerRecord,
    /// The class Kafka gives the refusal (`RecordTooLargeException`), and the text.
    pub error: ProcessingError,
}

/// Result of engine calls.
pub type Result<T, E = StreamsError> = std::result::Result<T, E>;
