//! [`ProcessingContext`]: what every typed processor may do besides forwarding (Kafka's `ProcessingContext`).

use std::sync::Arc;

use super::{
    KeyValueStore, NodeContext, PunctuationType, ScheduleId, SessionStore, StoreId, StoreName,
    VersionedKeyValueStore, WindowStore,
};
use crate::streams::{
    error::Result,
    record::{RecordContext, Timestamp},
};

/// Stores, clocks, schedules and where the record came from. [`ProcessorContext`](super::ProcessorContext) and
/// [`FixedKeyProcessorContext`](super::FixedKeyProcessorContext) lead here and add `forward`.
///
/// Stores are found by name, among those the processor is connected to and the global ones:
///
/// ```
/// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver, serdes::HasSerde};
/// use sluice::streams::{
///     error::Result,
///     processor::{Processor, ProcessorContext},
///     record::Record,
///     stores::{StoreBuilder, StoreKind},
/// };
///
/// /// Numbers the records of each key.
/// struct Number;
///
/// impl Processor<String, String, String, i64> for Number {
///     fn process(
///         &mut self,
///         context: &ProcessorContext<'_, String, i64>,
///         record: Record<String, String>,
///     ) -> Result<()> {
///         let Some(key) = record.key.clone() else { return Ok(()) };
///         let numbers = context.key_value_store::<String, i64>("numbers")?;
///         let number = numbers.get(&key)?.map_or(1, |last| *last + 1);
///         numbers.put(&key, number)?;
///         context.forward(record.with_value(Some(number)))
///     }
///
///     fn stores(&self) -> Vec<StoreBuilder> {
///         let kind = StoreKind::KeyValue { timestamped: false };
///         vec![StoreBuilder::new("numbers", kind, String::serde(), i64::serde())]
///     }
/// }
///
/// let builder = StreamsBuilder::new();
/// builder.stream::<String, String>("in").process(|| Number, Named::default(), &[]).to("out");
/// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
/// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
/// # let output = driver.create_output_topic::<String, i64>("out", String::serde(), i64::serde());
/// input.pipe_input(Some("k".into()), Some("x".into()), 0)?;
/// input.pipe_input(Some("k".into()), Some("y".into()), 0)?;
/// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some(1)), (Some("k".into()), Some(2))]);
/// # Ok::<(), sluice::streams::error::StreamsError>(())
/// ```
pub struct ProcessingContext<'a> {
    node: NodeContext<'a>,
}

impl<'a> ProcessingContext<'a> {
    pub(in crate::streams) fn new(node: NodeContext<'a>) -> Self {
        Self { node }
    }

    /// The untyped context.
    pub(in crate::streams) fn node(&self) -> NodeContext<'a> {
        self.node
    }

    /// A connected key-value store, timestamped or plain, or a global one.
    ///
    /// # Errors
    /// The processor is not connected to a store of that name. The kind and the types are checked at each use.
    pub fn key_value_store<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        &self,
        store: impl StoreName,
    ) -> Result<KeyValueStore<'a, K, V>> {
        KeyValueStore::new(self.node, store)
    }

    /// A connected window store. Errors as [`key_value_store`](Self::key_value_store).
    pub fn window_store<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        &self,
        store: impl StoreName,
    ) -> Result<WindowStore<'a, K, V>> {
        WindowStore::new(self.node, store)
    }

    /// A connected session store. Errors as [`key_value_store`](Self::key_value_store).
    pub fn session_store<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        &self,
        store: impl StoreName,
    ) -> Result<SessionStore<'a, K, V>> {
        SessionStore::new(self.node, store)
    }

    /// A connected versioned store. Errors as [`key_value_store`](Self::key_value_store).
    pub fn versioned_store<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        &self,
        store: impl StoreName,
    ) -> Result<VersionedKeyValueStore<'a, K, V>> {
        VersionedKeyValueStore::new(self.node, store)
    }

    /// Finds a connected store by name, for a processor that keeps what was found in `init` instead of asking by name each time.
    pub fn state_store(&self, name: &str) -> Result<StoreId> {
        self.node.store(name)
    }

    /// Topic, partition, offset, timestamp and headers of the input record; no topic inside a punctuation.
    pub fn record_metadata(&self) -> RecordContext {
        self.node.record_context()
    }

    /// Task stream time: the largest timestamp taken so far, -1 before the first record.
    pub fn current_stream_time_ms(&self) -> Timestamp {
        self.node.stream_time()
    }

    /// Wall clock, milliseconds since the epoch.
    pub fn current_system_time_ms(&self) -> Timestamp {
        self.node.now()
    }

    /// Asks for a commit soon.
    pub fn commit(&self) {
        self.node.task().request_commit();
    }

    /// Calls `punctuate` every `interval_ms` (> 0).
    pub fn schedule(&self, interval_ms: i64, kind: PunctuationType) -> ScheduleId {
        self.node.schedule(interval_ms, kind)
    }

    /// Ends a schedule.
    pub fn cancel(&self, schedule: ScheduleId) {
        self.node.cancel(schedule);
    }

    /// The task's id, `0_1`.
    pub fn task_id(&self) -> Arc<str> {
        self.node.task().task_id()
    }

    /// The application id.
    pub fn application_id(&self) -> Arc<str> {
        self.node.task().application_id()
    }
}
