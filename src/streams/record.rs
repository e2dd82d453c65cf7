//! Records, headers and where they came from: the words every other file of the engine uses.
//!
//! A record on the wire is bytes ([`ConsumerRecord`], [`ProducerRecord`]); inside a topology it is a typed
//! [`Record`] for a user's processor, and an [`AnyRecord`] between nodes. Timestamps are milliseconds since the
//! Unix epoch everywhere.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

/// Milliseconds since the Unix epoch. Negative means "invalid", as in Kafka.
pub type Timestamp = i64;

/// A key or value travelling between nodes. Shared, never changed in place.
pub type AnyValue = Arc<dyn Any + Send + Sync>;

/// What the name of every header that a dead letter adds begins with (KIP-1034).
pub const ERROR_HEADERS: &str = "__streams.errors.";

/// Header of a record that was a dead letter and is sent again: where it was read before, `topic-partition@offset`.
pub const REDRIVEN_FROM: &str = "__sluice.redriven.from";

/// Header of such a record: how often it was tried before.
pub const REDRIVE_ATTEMPTS: &str = "__sluice.redriven.attempts";

/// One header: a name and optional bytes. Names may repeat; order is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header's name.
    pub key: String,
    /// The header's value; Kafka allows a null.
    pub value: Option<Bytes>,
}

/// The headers of a record. Cloning is cheap; the empty list allocates nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<Arc<Vec<Header>>>);

impl Headers {
    /// No headers.
    pub const EMPTY: Headers = Headers(None);

    /// The headers in order.
    pub fn iter(&self) -> impl Iterator<Item = &Header> {
        self.0.iter().flat_map(|list| list.iter())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a header; other holders of the list do not see it.
    pub fn add(&mut self, key: impl Into<String>, value: Option<impl Into<Bytes>>) {
        let header = Header { key: key.into(), value: value.map(Into::into) };
        Arc::make_mut(self.0.get_or_insert_default()).push(header);
    }

    /// The value of the *last* header of that name, as `Headers.lastHeader` in Kafka.
    pub fn last(&self, key: &str) -> Option<&Header> {
        self.0.as_ref().and_then(|list| list.iter().rev().find(|header| header.key == key))
    }
}

impl FromIterator<Header> for Headers {
    fn from_iter<I: IntoIterator<Item = Header>>(iter: I) -> Self {
        let list: Vec<Header> = iter.into_iter().collect();
        if list.is_empty() { Headers::EMPTY } else { Headers(Some(Arc::new(list))) }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|h| (&h.key, &h.value))).finish()
    }
}

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A record as a consumer hands it over.
#[derive(Clone, Debug)]
pub struct ConsumerRecord {
    /// Topic it was read from.
    pub topic: Arc<str>,
    /// Partition it was read from.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// The record's timestamp (CreateTime).
    pub timestamp: Timestamp,
    /// Key bytes, or null.
    pub key: Option<Bytes>,
    /// Value bytes, or null (a tombstone).
    pub value: Option<Bytes>,
    /// Headers in order.
    pub headers: Headers,
}

/// A record on its way to a producer.
#[derive(Clone, Debug)]
pub struct ProducerRecord {
    /// Topic to write to.
    pub topic: Arc<str>,
    /// Partition to write to; `None` lets the producer partition by key (murmur2, as Java clients do).
    pub partition: Option<i32>,
    /// Key bytes, or null.
    pub key: Option<Bytes>,
    /// Value bytes, or null (a tombstone).
    pub value: Option<Bytes>,
    /// CreateTime; `None` stamps the time of the call.
    pub timestamp: Option<Timestamp>,
    /// Headers in order.
    pub headers: Headers,
}

/// A typed record, as a user's [`Processor`](crate::streams::processor::Processor) receives and forwards it.
#[derive(Debug)]
pub struct Record<K, V> {
    /// The key, or null.
    pub key: Option<Arc<K>>,
    /// The value, or null.
    pub value: Option<Arc<V>>,
    /// Event time in milliseconds.
    pub timestamp: Timestamp,
    /// Headers in order.
    pub headers: Headers,
}

impl<K, V> Record<K, V> {
    /// A record without headers.
    pub fn new(key: Option<K>, value: Option<V>, timestamp: Timestamp) -> Self {
        Self { key: key.map(Arc::new), value: value.map(Arc::new), timestamp, headers: Headers::EMPTY }
    }

    /// The same record with another key.
    pub fn with_key<K2>(self, key: Option<K2>) -> Record<K2, V> {
        Record { key: key.map(Arc::new), value: self.value, timestamp: self.timestamp, headers: self.headers }
    }

    /// The same record with another value.
    pub fn with_value<V2>(self, value: Option<V2>) -> Record<K, V2> {
        Record { key: self.key, value: value.map(Arc::new), timestamp: self.timestamp, headers: self.headers }
    }
}

impl<K, V> Clone for Record<K, V> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            value: self.value.clone(),
            timestamp: self.timestamp,
            headers: self.headers.clone(),
        }
    }
}

/// A record between two nodes, its types erased.
///
/// Between table nodes the record is a *change*: `value` is the new value and `old` the one it replaces, when the
/// receiver asked for it (Kafka's `Change<V>`). Stream nodes ignore `old` and `is_latest`.
#[derive(Clone)]
pub struct AnyRecord {
    /// The key, or null.
    pub key: Option<AnyValue>,
    /// The value; for a table the new value, null = deleted.
    pub value: Option<AnyValue>,
    /// For a table the value before, where it is known.
    pub old: Option<AnyValue>,
    /// For a versioned table: whether `value` is the newest version. True for everything else.
    pub is_latest: bool,
    /// Event time in milliseconds.
    pub timestamp: Timestamp,
    /// Headers in order.
    pub headers: Headers,
}

impl AnyRecord {
    /// A stream record.
    pub fn new(
        key: Option<AnyValue>,
        value: Option<AnyValue>,
        timestamp: Timestamp,
        headers: Headers,
    ) -> Self {
        Self { key, value, old: None, is_latest: true, timestamp, headers }
    }

    /// A table change.
    pub fn change(
        key: Option<AnyValue>,
        value: Option<AnyValue>,
        old: Option<AnyValue>,
        timestamp: Timestamp,
        headers: Headers,
    ) -> Self {
        Self { key, value, old, is_latest: true, timestamp, headers }
    }
}

/// Where the record being processed came from (Kafka's `ProcessorRecordContext`).
///
/// `timestamp` and `headers` follow the record as nodes restamp it; topic, partition and offset stay those of the
/// input record that started the work. In a punctuation there is no topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordContext {
    /// Input topic; `None` inside a punctuation.
    pub topic: Option<Arc<str>>,
    /// Input partition, -1 inside a punctuation.
    pub partition: i32,
    /// Input offset, -1 inside a punctuation.
    pub offset: i64,
    /// Timestamp of the record now being processed.
    pub timestamp: Timestamp,
    /// Headers of the record now being processed.
    pub headers: Headers,
}

/// A serialized key as stores hold it: inline up to 24 bytes, ordered as unsigned bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ByteKey(SmallVec<[u8; 24]>);

impl ByteKey {
    /// Copies the bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::Deref for ByteKey {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for ByteKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for ByteKey {
    fn from(bytes: Vec<u8>) -> Self {
        Self(SmallVec::from_vec(bytes))
    }
}

impl From<&[u8]> for ByteKey {
    fn from(bytes: &[u8]) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for ByteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}
