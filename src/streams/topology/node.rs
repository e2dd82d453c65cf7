//! The specifications of nodes: what a source reads, a processor runs, a sink writes.

use std::sync::Arc;

use crate::streams::{
    client::OffsetReset,
    error::ProcessingError,
    processor::{NodeId, ProcessorSupplier, StoreId},
    record::{AnyRecord, AnyValue, ConsumerRecord, RecordContext, Timestamp},
    serdes::AnySerde,
};

/// A record read from bytes.
#[derive(Clone, Default)]
pub struct DecodedRecord {
    /// The key.
    pub key: Option<AnyValue>,
    /// The value (for a table's repartition topic the new value).
    pub value: Option<AnyValue>,
    /// The old value, in a table's repartition topic.
    pub old: Option<AnyValue>,
}

/// A record as bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodedRecord {
    /// Key bytes.
    pub key: Option<Vec<u8>>,
    /// Value bytes.
    pub value: Option<Vec<u8>>,
}

/// Reads records of a source.
pub type RecordDecoder = Arc<dyn Fn(&ConsumerRecord) -> Result<DecodedRecord, ProcessingError> + Send + Sync>;

/// Writes records of a sink.
pub type RecordEncoder = Arc<dyn Fn(&AnyRecord) -> Result<EncodedRecord, ProcessingError> + Send + Sync>;

/// Event time of a record: given the raw record, the decoded one and the partition time (largest timestamp so far, -1 before).
/// A negative result drops the record; an error stops the task.
pub type TimestampExtractor = Arc<
    dyn Fn(&ConsumerRecord, &DecodedRecord, Timestamp) -> Result<Timestamp, ProcessingError> + Send + Sync,
>;

/// Chooses partitions of a record among `n` (KIP-837): `None` = by key as Java does, an empty list drops it, several multicast.
pub type Partitioner = Arc<dyn Fn(&str, &AnyRecord, i32) -> Option<Vec<i32>> + Send + Sync>;

/// Where a sink writes.
#[derive(Clone)]
pub enum SinkTopic {
    /// One topic. Repartition topics are named without prefix here and prefixed when the topology is built.
    Fixed(Arc<str>),
    /// Chosen per record (Kafka's `TopicNameExtractor`); the topic must exist.
    Dynamic(Arc<dyn Fn(&AnyRecord, &RecordContext) -> Result<Arc<str>, ProcessingError> + Send + Sync>),
}

/// A source node.
#[derive(Clone)]
pub struct SourceSpec {
    /// Topics read; internal ones without prefix until the topology is built.
    pub topics: Vec<Arc<str>>,
    /// Bytes to values.
    pub decoder: RecordDecoder,
    /// Event time; `None` = the application's default extractor.
    pub timestamp_extractor: Option<TimestampExtractor>,
    /// Where to start without a committed offset; `None` = the application's default.
    pub offset_reset: Option<OffsetReset>,
    /// Whether the topics are internal (repartition): always FailOnInvalidTimestamp, named with prefix at build.
    pub internal: bool,
    /// What happens to records of this source that cannot be read or processed; `None` = the application's handlers.
    pub bad: Option<BadRecordPolicy>,
    /// A record dated more than this ahead of the wall clock is bad: it must not close everyone's windows.
    pub max_future_ms: Option<i64>,
}

impl SourceSpec {
    /// A source of these topics with everything else at its default.
    pub fn new(topics: impl IntoIterator<Item = impl Into<Arc<str>>>, decoder: RecordDecoder) -> Self {
        Self {
            topics: topics.into_iter().map(Into::into).collect(),
            decoder,
            timestamp_extractor: None,
            offset_reset: None,
            internal: false,
            bad: None,
            max_future_ms: None,
        }
    }
}

/// What happens to a bad record of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadRecordPolicy {
    /// It goes to this topic with its story in headers; processing continues.
    DeadLetter(Arc<str>),
    /// It is counted and dropped.
    Skip,
    /// The task stops.
    Fail,
}

/// A sink node.
#[derive(Clone)]
pub struct SinkSpec {
    /// Where to.
    pub topic: SinkTopic,
    /// Values to bytes.
    pub encoder: RecordEncoder,
    /// Which partition.
    pub partitioner: Option<Partitioner>,
    /// Whether the topic is internal (repartition).
    pub internal: bool,
}

/// What a node is.
#[derive(Clone)]
pub(crate) enum NodeKind {
    /// Reads topics.
    Source(SourceSpec),
    /// Runs code.
    Processor(ProcessorSupplier),
    /// Writes a topic.
    Sink(SinkSpec),
}

/// A node and its place.
#[derive(Clone)]
pub(crate) struct NodeSpec {
    /// Unique name.
    pub name: Arc<str>,
    /// What it is.
    pub kind: NodeKind,
    /// Parents, in the order given.
    pub parents: Vec<NodeId>,
    /// Children, in the order attached: the order records are forwarded in.
    pub children: Vec<NodeId>,
    /// Stores connected, in the order connected.
    pub stores: Vec<StoreId>,
    /// Part of its clocks' names, where they must not be taken for those of an earlier version.
    pub clock_scope: Option<Arc<str>>,
}

/// A decoder from two serdes; null bytes are null values.
pub fn serde_decoder(key: AnySerde, value: AnySerde) -> RecordDecoder {
    Arc::new(move |record| {
        let key = record.key.as_deref().map(|bytes| key.deserialize(bytes)).transpose()?;
        let value = record.value.as_deref().map(|bytes| value.deserialize(bytes)).transpose()?;
        Ok(DecodedRecord { key, value, old: None })
    })
}

/// An encoder from two serdes; null values are null bytes.
pub fn serde_encoder(key: AnySerde, value: AnySerde) -> RecordEncoder {
    Arc::new(move |record| {
        Ok(EncodedRecord {
            key: record.key.as_ref().map(|value| key.to_bytes(value)).transpose()?,
            value: record.value.as_ref().map(|v| value.to_bytes(v)).transpose()?,
        })
    })
}
