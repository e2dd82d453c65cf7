//! [`StoreBuilder`]: the description of a store, from which each task builds its own.

use std::time::Duration;

use super::{
    KeyValueStore, SessionStore, Store, VersionedStore, WindowStore,
    caching::{CachingKeyValue, CachingSession, CachingWindow},
    change_buffer::SuppressBuffer,
    change_logging::ChangeLogging,
    key_value::KeyValueTable,
    lru::LruTable,
    segments::{Expiry, Listing, SEGMENT_INTERVAL_MIN_MS, Segments, millis, segment_interval},
    session::SessionTable,
    sqlite::{SqlTable, TableShape, TaskDb},
    versioned::VersionedTable,
    window::WindowTable,
};
use crate::streams::{
    config::Semantics,
    error::{Result, StreamsError},
    serdes::AnySerde,
};

/// The record cache of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Entries beyond this many bytes (estimated) are flushed early.
    pub max_bytes: usize,
    /// Whether flushed entries stay readable, as in Kafka Streams, even when the store below has expired them.
    pub keep_clean: bool,
}

impl CacheOptions {
    /// A cache of this size. Kafka keeps flushed entries readable in it, which changes results; ours are in the store's own memory.
    pub fn new(max_bytes: usize, semantics: Semantics) -> Self {
        Self { max_bytes, keep_clean: semantics == Semantics::Kafka43 }
    }
}

/// What the task gives a store besides its description. The default is Kafka Streams': a cache of 10 MiB.
#[derive(Clone, Debug)]
pub struct StoreEnvironment {
    /// The record cache of stores that ask for one; `None` turns caching off everywhere.
    pub cache: Option<CacheOptions>,
    /// The task's state file, for persistent stores; without one they live in memory, with the same semantics.
    pub db: Option<TaskDb>,
    /// Whose rules hold where Kafka's stores have a fault.
    pub semantics: Semantics,
}

impl Default for StoreEnvironment {
    fn default() -> Self {
        let cache = CacheOptions { max_bytes: 10 * 1024 * 1024, keep_clean: true };
        Self { cache: Some(cache), db: None, semantics: Semantics::Kafka43 }
    }
}

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
    /// Window and session stores: how much time the rows have that are loaded, let go of and expire together, a minute at least; `None` = half
    /// of the retention, as in Kafka Streams. For stores whose operator removes the rows itself.
    pub segment_interval: Option<Duration>,
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
            segment_interval: None,
        }
    }

    /// Whether another description is of the same store (serdes are compared by their types).
    pub(in crate::streams) fn is_same(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }

    /// Builds the store: rows, then change logging, then cache, as the description asks.
    pub fn build(&self, environment: &StoreEnvironment) -> Result<Store> {
        let in_memory = self.backend != Backend::Persistent;
        let expiry = if in_memory { Expiry::Row } else { Expiry::Segment };
        let listing = |time_ordered: bool| {
            if time_ordered || in_memory { Listing::Time } else { Listing::SegmentThenKey }
        };
        let cache = environment.cache.filter(|_| self.caching);
        if let Backend::Lru(_) = self.backend
            && !matches!(self.kind, StoreKind::KeyValue { .. })
        {
            return Err(StreamsError::Topology(format!(
                "store {}: the lru backend holds key-value rows only; choose persistent or in memory",
                self.name
            )));
        }
        let serde = || self.value_serde.clone();
        let interval = |retention: &Duration| match self.segment_interval {
            Some(interval) => millis(interval).max(SEGMENT_INTERVAL_MIN_MS),
            None => segment_interval(millis(*retention)),
        };
        let counts_prefixes = in_memory && environment.semantics == Semantics::Kafka43;
        let table = |shape: TableShape| match &environment.db {
            Some(db) if !in_memory => SqlTable::open(db.shared().clone(), self, shape).map(Some),
            _ => Ok(None),
        };
        Ok(match &self.kind {
            StoreKind::KeyValue { timestamped } => {
                let mut store: Box<dyn KeyValueStore> = match self.backend {
                    Backend::Lru(capacity) => {
                        Box::new(LruTable::new(&self.name, serde(), capacity, counts_prefixes))
                    }
                    Backend::Persistent | Backend::InMemory => {
                        let table = table(TableShape::KeyValue)?;
                        Box::new(KeyValueTable::new(&self.name, serde(), table, counts_prefixes)?)
                    }
                };
                if self.logging {
                    store = Box::new(ChangeLogging::new(store, serde(), *timestamped));
                }
                if let Some(options) = cache {
                    store = Box::new(CachingKeyValue::new(store, options));
                }
                Store::KeyValue(store)
            }
            StoreKind::Window { retention, window_size, duplicates, timestamped, time_ordered } => {
                let listing = listing(*time_ordered);
                let table = table(TableShape::Window { size_ms: millis(*window_size) })?;
                let inclusive = *time_ordered && !in_memory;
                let interval = interval(retention);
                let rows = Segments::new(*retention, interval, expiry, listing, inclusive, table)?;
                let mut store: Box<dyn WindowStore> =
                    Box::new(WindowTable::new(&self.name, serde(), *duplicates, rows)?);
                if self.logging {
                    store = Box::new(ChangeLogging::new(store, serde(), *timestamped));
                }
                if let (Some(options), false) = (cache, *duplicates) {
                    let size = millis(*window_size);
                    store = Box::new(CachingWindow::new(store, options, size, listing, interval));
                }
                Store::Window(store)
            }
            StoreKind::Session { retention, time_ordered } => {
                let listing = listing(*time_ordered);
                let interval = interval(retention);
                let table = table(TableShape::Session)?;
                let rows = Segments::new(*retention, interval, expiry, listing, false, table)?;
                let mut store: Box<dyn SessionStore> = Box::new(SessionTable::new(&self.name, serde(), rows));
                if self.logging {
                    store = Box::new(ChangeLogging::new(store, serde(), false));
                }
                if let Some(options) = cache {
                    store = Box::new(CachingSession::new(store, options, expiry, interval));
                }
                Store::Session(store)
            }
            StoreKind::Versioned { history } => {
                let mut store: Box<dyn VersionedStore> = Box::new(VersionedTable::new(
                    &self.name,
                    serde(),
                    *history,
                    table(TableShape::Versioned)?,
                )?);
                if self.logging {
                    store = Box::new(ChangeLogging::new(store, serde(), false));
                }
                Store::Versioned(store)
            }
            StoreKind::Buffer => {
                Store::Buffer(Box::new(SuppressBuffer::new(&self.name, serde(), self.logging)))
            }
        })
    }
}
