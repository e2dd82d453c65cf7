//! State stores: what a task remembers.
//!
//! Layers, outermost first, as in Kafka Streams: caching over change-logging over an inner store
//! that is memory, or memory over SQLite ("write buffer over SQLite"). Order matters: what the cache collapses is
//! logged once.
//!
//! # Contract
//! * Keys are serialized bytes, compared as unsigned bytes. Values are typed, shared, never changed in place.
//! * A store never calls a node. What it wants sent ([`StateStore::drain_changelog`]) and forwarded
//!   ([`StateStore::flush_cache`]) it hands out when asked; the task acts.
//! * There is one write path. Restore uses it without logging and without cache.
//! * Every write is given the [`RecordContext`] it happens in; nothing here reads a clock.

pub(crate) mod buffer_format;
mod builder;
mod caching;
mod change_buffer;
mod change_logging;
mod changed;
mod indexed_map;
mod key_value;
pub(crate) mod layout;
mod lru;
mod memory;
mod segment;
mod segments;
mod session;
mod sqlite;
mod time_index;
mod versioned;
mod window;

#[cfg(test)]
mod tests;

pub use builder::{Backend, CacheOptions, StoreBuilder, StoreEnvironment, StoreKind};
pub use memory::StateMemory;
pub use sqlite::{SavePolicy, SavedOffsets, TaskDb, TaskDbOptions};
pub(crate) use sqlite::{StoreSnapshot, Unsaved};

use super::{
    error::Result,
    record::{AnyValue, ByteKey, ConsumerRecord, Headers, RecordContext, Timestamp},
};

/// A value and the timestamp it was last updated with.
#[derive(Clone)]
pub struct ValueAndTimestamp {
    /// The value.
    pub value: AnyValue,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

/// A dirty cache entry on its way downstream.
#[derive(Clone)]
pub struct CacheFlush {
    /// The key; for windowed stores the inner key.
    pub key: ByteKey,
    /// Window start and end; `None` for key-value stores.
    pub window: Option<(Timestamp, Timestamp)>,
    /// The new value; `None` = deleted.
    pub new: Option<ValueAndTimestamp>,
    /// The value in the store below before this flush, where it is wanted or `new` is `None`.
    pub old: Option<ValueAndTimestamp>,
    /// The context of the last write to the entry.
    pub context: RecordContext,
}

/// A record for the changelog topic, already serialized in the store's changelog layout.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangelogRecord {
    /// Key bytes in the changelog layout of the store kind (streams-semantics part C).
    pub key: ByteKey,
    /// Value bytes; `None` = delete.
    pub value: Option<bytes::Bytes>,
    /// Record time; `None` leaves it to the producer (suppress).
    pub timestamp: Option<Timestamp>,
    /// Headers (suppress marks its version).
    pub headers: Headers,
}

/// What all stores have in common: how the task drives them.
pub trait StateStore: Send {
    /// The store's name.
    fn name(&self) -> &str;

    /// Hands out dirty cache entries in order of their last write, after writing each below. Empty without a cache.
    /// Called on every store before a commit: a suppress buffer logs its changes here.
    fn flush_cache(&mut self) -> Result<Vec<CacheFlush>> {
        Ok(Vec::new())
    }

    /// Whether [`flush_cache`](Self::flush_cache) is to tell the old value of a new one, too, which costs a read below; it does until it
    /// is told otherwise (Kafka's `CachedStateStore::setFlushListener`).
    fn send_old_values(&mut self, wanted: bool) {
        let _ = wanted;
    }

    /// Whether the cache is over its budget: the task should call [`flush_cache`](Self::flush_cache) after the current
    /// record and forward what it hands out.
    fn wants_flush(&self) -> bool {
        false
    }

    /// Moves what is to be sent to the changelog topic into `out`, in write order.
    fn drain_changelog(&mut self, out: &mut Vec<ChangelogRecord>) -> Result<()>;

    /// Applies changelog records, in order, bypassing cache and logging.
    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()>;

    /// Forgets everything that is not saved in the state file: cache, rows, pending changelog records. Called after an
    /// abort; the store then needs the changelog replayed from where its file stands (from the beginning without one).
    fn discard_uncommitted(&mut self) -> Result<()>;

    /// Writes refused since the last call (expired), for the dropped-records metric.
    fn take_dropped(&mut self) -> u64 {
        0
    }

    /// Rows now held (approximate where counting is dear).
    fn approximate_num_entries(&self) -> u64;

    /// How much is not in the state file yet; nothing where there is no file.
    fn unsaved(&self) -> Unsaved {
        Unsaved::default()
    }

    /// Takes what has changed since the last snapshot. Called by [`TaskDb`] right after a commit, never with changes of an
    /// open transaction in the store.
    fn snapshot(&mut self) -> Result<Option<StoreSnapshot>> {
        Ok(None)
    }

    /// The last snapshot is durable: what it took may leave memory.
    fn mark_saved(&mut self) {}

    /// From now on rows expire by this time where it is behind the largest one put: with watermarks a row is wanted until its readers
    /// are told that nothing of its time is to come, however far other inputs are ahead. Window and session stores.
    fn expire_by(&mut self, watermark: Timestamp) {
        let _ = watermark;
    }
}

/// Which way an iteration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest first.
    Forward,
    /// Largest first.
    Backward,
}

/// A key-value store, timestamped or plain (a plain one reports the context's timestamp of the write).
pub trait KeyValueStore: StateStore {
    /// The value of a key.
    fn get(&mut self, key: &[u8]) -> Result<Option<ValueAndTimestamp>>;
    /// Sets or, with `None`, deletes.
    fn put(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>, context: &RecordContext) -> Result<()>;
    /// Rows with `from <= key <= to` (either end open when `None`).
    fn range(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        order: Order,
    ) -> Result<Vec<(ByteKey, ValueAndTimestamp)>>;
    /// Rows whose key starts with `prefix`.
    fn prefix_scan(&mut self, prefix: &[u8]) -> Result<Vec<(ByteKey, ValueAndTimestamp)>>;
    /// Keys a bounded store pushed out since the last call; the change-logging layer logs tombstones for them.
    fn take_evicted(&mut self) -> Vec<ByteKey> {
        Vec::new()
    }
}

/// A row of a window store.
#[derive(Clone)]
pub struct WindowRow {
    /// The inner key.
    pub key: ByteKey,
    /// Window start.
    pub start: Timestamp,
    /// Sequence number among duplicates; 0 in stores without duplicates.
    pub seq: u32,
    /// The value.
    pub value: ValueAndTimestamp,
}

/// A window store. A row is visible iff `start > observed - retention` (`>=` in persistent time-ordered stores), where observed is the
/// largest start put so far; writes are refused only when the row's segment is gone (conformance README §6.3). In-memory stores refuse at once.
pub trait WindowStore: StateStore {
    /// The value of one window.
    fn fetch(&mut self, key: &[u8], start: Timestamp) -> Result<Option<ValueAndTimestamp>>;
    /// Sets or deletes the row of a window; a store with duplicates appends (and ignores `None`).
    fn put(
        &mut self,
        key: ByteKey,
        value: Option<ValueAndTimestamp>,
        start: Timestamp,
        context: &RecordContext,
    ) -> Result<()>;
    /// Rows of a key with `from <= start <= to`, by start (then sequence).
    fn fetch_range(
        &mut self,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
        order: Order,
    ) -> Result<Vec<WindowRow>>;
    /// Rows of all keys with `from <= start <= to`, in the store's listing order.
    fn fetch_all(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>>;
    /// All visible rows, in the store's listing order.
    fn all(&mut self) -> Result<Vec<WindowRow>>;
    /// Rows whose window closes, for emission on close: visible rows with `from <= start <= to` ordered by (start, key).
    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>>;
    /// The largest start put so far, -1 when none.
    fn observed_stream_time(&self) -> Timestamp;
    /// The sequence number of the last row put, in a store with duplicates; the change-logging layer logs it.
    fn last_seq(&self) -> u32 {
        0
    }
}

/// A row of a session store.
#[derive(Clone)]
pub struct SessionRow {
    /// The inner key.
    pub key: ByteKey,
    /// First record of the session.
    pub start: Timestamp,
    /// Last record of the session (inclusive).
    pub end: Timestamp,
    /// The aggregate.
    pub value: AnyValue,
}

/// A session store; visible iff `end > observed - retention`.
pub trait SessionStore: StateStore {
    /// Sessions of a key with `end >= earliest_end` and `start <= latest_start`, by end, then start.
    fn find_sessions(
        &mut self,
        key: &[u8],
        earliest_end: Timestamp,
        latest_start: Timestamp,
    ) -> Result<Vec<SessionRow>>;
    /// One session.
    fn fetch_session(&mut self, key: &[u8], start: Timestamp, end: Timestamp) -> Result<Option<AnyValue>>;
    /// Sets a session, or removes it with `None`.
    fn put(
        &mut self,
        key: ByteKey,
        start: Timestamp,
        end: Timestamp,
        value: Option<AnyValue>,
        context: &RecordContext,
    ) -> Result<()>;
    /// Sessions of all keys with `from <= end <= to`, ordered by (end, start, key), for emission on close. Limited only by
    /// segment expiry. In-memory stores are strict and order by (end, key, start).
    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<SessionRow>>;
    /// All visible sessions, in listing order.
    fn all(&mut self) -> Result<Vec<SessionRow>>;
}

/// A version of a value.
#[derive(Clone)]
pub struct VersionedRecord {
    /// The value.
    pub value: AnyValue,
    /// Valid from (inclusive).
    pub timestamp: Timestamp,
    /// Valid to (exclusive); `None` = still valid.
    pub valid_to: Option<Timestamp>,
}

/// What a versioned put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionedPut {
    /// The version is the latest one.
    Latest,
    /// A newer version exists; this one ends there.
    ValidTo(Timestamp),
    /// Older than the history kept: refused.
    TooOld,
}

/// A versioned key-value store (KIP-889).
pub trait VersionedStore: StateStore {
    /// Adds a version; `None` is a tombstone at that time.
    fn put(
        &mut self,
        key: ByteKey,
        value: Option<AnyValue>,
        timestamp: Timestamp,
        context: &RecordContext,
    ) -> Result<VersionedPut>;
    /// Deletes at a time; returns the version that was valid there.
    fn delete(
        &mut self,
        key: ByteKey,
        timestamp: Timestamp,
        context: &RecordContext,
    ) -> Result<Option<VersionedRecord>>;
    /// The latest version.
    fn get(&mut self, key: &[u8]) -> Result<Option<VersionedRecord>>;
    /// The version valid at a time.
    fn get_as_of(&mut self, key: &[u8], as_of: Timestamp) -> Result<Option<VersionedRecord>>;
}

/// The suppress buffer: changes ordered by (buffer time, key), at most one per key
/// (Kafka's `InMemoryTimeOrderedKeyValueChangeBuffer`).
pub trait ChangeBuffer: StateStore {
    /// Puts a change. A key already buffered keeps its buffer time and prior value.
    fn put(&mut self, time: Timestamp, key: ByteKey, change: BufferedChange) -> Result<()>;
    /// The value of a key before its first buffered change: `Some(prior)` when the key is buffered.
    fn prior_value(&mut self, key: &[u8]) -> Option<Option<ValueAndTimestamp>>;
    /// The oldest row.
    fn first(&self) -> Option<(ByteKey, BufferedChange)>;
    /// Removes and returns the oldest row.
    fn pop_first(&mut self) -> Result<Option<(Timestamp, ByteKey, BufferedChange)>>;
    /// The smallest buffer time, `i64::MAX` when empty.
    fn min_timestamp(&self) -> Timestamp;
    /// Rows buffered.
    fn num_records(&self) -> u64;
    /// Estimated bytes, as Kafka counts them (streams-semantics 2.9).
    fn buffer_bytes(&self) -> u64;
}

/// A change held back by suppress.
#[derive(Clone)]
pub struct BufferedChange {
    /// The value downstream last saw, as far as known.
    pub prior: Option<AnyValue>,
    /// Old value of the change.
    pub old: Option<AnyValue>,
    /// New value of the change.
    pub new: Option<AnyValue>,
    /// Where and when the change happened; its timestamp is the change's.
    pub context: RecordContext,
}

/// A store of any kind, as a task holds it.
pub enum Store {
    /// Key-value.
    KeyValue(Box<dyn KeyValueStore>),
    /// Window.
    Window(Box<dyn WindowStore>),
    /// Session.
    Session(Box<dyn SessionStore>),
    /// Versioned.
    Versioned(Box<dyn VersionedStore>),
    /// Suppress buffer.
    Buffer(Box<dyn ChangeBuffer>),
}

impl Store {
    /// What all kinds share.
    pub fn as_state_store(&mut self) -> &mut dyn StateStore {
        match self {
            Store::KeyValue(store) => store.as_mut(),
            Store::Window(store) => store.as_mut(),
            Store::Session(store) => store.as_mut(),
            Store::Versioned(store) => store.as_mut(),
            Store::Buffer(store) => store.as_mut(),
        }
    }
}
