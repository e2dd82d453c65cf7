//! [`StoreBuilder`]: the description of a store, from which each task builds its own.

use std::time::Duration;

use super::Store;
use crate::streams::{
    error::{Result, StreamsError},
    serdes::AnySerde,
};

/// Where the rows of a store live below cache and change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// Write buffer over the task's SQLite file.
    #[default]
    Persistent,
    /// Memory only; rebuilt from the changelog.
    InMemory,
    /// Memory, at most this many rows, least recently used evicted.
    Lru(usize),
}

/// The kind of a store and what only that kind has.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreKind {
    /// Key to value. A timestamped store keeps the value's own timestamp; a plain one has only the context's.
    KeyValue {
        /// Whether values carry their own timestamp.
        timestamped: bool,
    },
    /// (key, window start) to value.
    Window {
        /// How long rows are kept behind the largest start seen.
        retention: Duration,
        /// Window length, for listings and the state file; inclusive or exclusive as the operator says.
        window_size: Duration,
        /// Several rows per (key, start), with a sequence number: join stores.
        duplicates: bool,
        /// Whether values carry their own timestamp (aggregates do; join stores do not).
        timestamped: bool,
        /// Rows ordered by time first, for emission on close.
        time_ordered: bool,
    },
    /// (key, end, start) to value.
    Session {
        /// How long sessions are kept behind the largest end seen.
        retention: Duration,
        /// Rows ordered by time first, for emission on close.
        time_ordered: bool,
    },
    /// Key to versions of a value.
    Versioned {
        /// How far back versions are kept and writes accepted.
        history: Duration,
    },
    /// The buffer of a suppress operator.
    Buffer,
}

/// Describes a store: name, kind, serdes, layers.
#[derive(Clone, Debug)]
pub struct StoreBuilder {
    /// The store's name; its changelog topic is `<application_id>-<name>-changelog`.
    pub name: String,
    /// Kind and its parameters.
    pub kind: StoreKind,
    /// Serde of the (inner) key.
    pub key_serde: AnySerde,
    /// Serde of the value.
    pub value_serde: AnySerde,
    /// Whether a record cache sits on top.
    pub caching: bool,
    /// Whether changes go to a changelog topic.
    pub logging: bool,
    /// Where rows live.
    pub backend: Backend,
}

impl StoreBuilder {
    /// A persistent, logged, uncached store.
    pub fn new(name: impl Into<String>, kind: StoreKind, key_serde: AnySerde, value_serde: AnySerde) -> Self {
        Self {
            name: name.into(),
            kind,
            key_serde,
            value_serde,
            caching: false,
            logging: true,
            backend: Backend::Persistent,
        }
    }

    /// Builds the store with its layers.
    pub fn build(&self) -> Result<Store> {
        Err(StreamsError::Topology(format!("no backend for store {}", self.name)))
    }
}
