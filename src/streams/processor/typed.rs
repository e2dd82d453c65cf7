//! The typed face of processors: [`Processor`], [`FixedKeyProcessor`] and their context.

use std::{marker::PhantomData, sync::Arc};

use super::{AnyProcessor, NodeContext, PunctuationType, ScheduleId, StoreId};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    record::{AnyRecord, AnyValue, Headers, Record, RecordContext, Timestamp},
};

/// A processor with types: one instance per task, called by one thread at a time.
pub trait Processor<KIn, VIn, KOut, VOut>: Send {
    /// Once before the first record.
    fn init(&mut self, context: &ProcessorContext<'_, KOut, VOut>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// One record.
    fn process(&mut self, context: &ProcessorContext<'_, KOut, VOut>, record: Record<KIn, VIn>)
    -> Result<()>;

    /// A schedule made with [`ProcessorContext::schedule`] fell due (Kafka's `Punctuator`).
    fn punctuate(
        &mut self,
        context: &ProcessorContext<'_, KOut, VOut>,
        schedule: ScheduleId,
        timestamp: Timestamp,
    ) -> Result<()> {
        let _ = (context, schedule, timestamp);
        Ok(())
    }

    /// Once at the end.
    fn close(&mut self) {}
}

/// A record whose key cannot be changed.
pub struct FixedKeyRecord<K, V> {
    key: Option<Arc<K>>,
    /// The value, or null.
    pub value: Option<Arc<V>>,
    /// Event time.
    pub timestamp: Timestamp,
    /// Headers.
    pub headers: Headers,
}

impl<K, V> FixedKeyRecord<K, V> {
    /// The key, or null.
    pub fn key(&self) -> Option<&K> {
        self.key.as_deref()
    }

    /// The same record with another value.
    pub fn with_value<V2>(self, value: Option<V2>) -> FixedKeyRecord<K, V2> {
        FixedKeyRecord {
            key: self.key,
            value: value.map(Arc::new),
            timestamp: self.timestamp,
            headers: self.headers,
        }
    }
}

/// A processor that cannot change keys, so nothing downstream must be repartitioned (KIP-820).
pub trait FixedKeyProcessor<K, VIn, VOut>: Send {
    /// Once before the first record.
    fn init(&mut self, context: &ProcessorContext<'_, K, VOut>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// One record; what it returns is forwarded, in order.
    fn process(
        &mut self,
        context: &ProcessorContext<'_, K, VOut>,
        record: FixedKeyRecord<K, VIn>,
    ) -> Result<Vec<FixedKeyRecord<K, VOut>>>;

    /// Once at the end.
    fn close(&mut self) {}
}

/// What a typed processor may do.
pub struct ProcessorContext<'a, KOut, VOut> {
    node: NodeContext<'a>,
    types: PhantomData<fn(KOut, VOut)>,
}

impl<'a, KOut: Send + Sync + 'static, VOut: Send + Sync + 'static> ProcessorContext<'a, KOut, VOut> {
    /// The typed face of a node's context.
    pub(in crate::streams) fn new(node: NodeContext<'a>) -> Self {
        Self { node, types: PhantomData }
    }

    /// Sends a record to all children.
    pub fn forward(&self, record: Record<KOut, VOut>) -> Result<()> {
        self.node.forward(erase_record(record)?)
    }

    /// Sends a record to the child of that name.
    pub fn forward_to(&self, child: &str, record: Record<KOut, VOut>) -> Result<()> {
        self.node.forward_to(child, erase_record(record)?)
    }

    /// Topic, partition, offset, timestamp and headers of the input record; no topic inside a punctuation.
    pub fn record_metadata(&self) -> RecordContext {
        self.node.record_context()
    }

    /// Task stream time.
    pub fn current_stream_time_ms(&self) -> Timestamp {
        self.node.stream_time()
    }

    /// Wall clock.
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

    /// Finds a connected store by name.
    pub fn state_store(&self, name: &str) -> Result<StoreId> {
        self.node.store(name)
    }

    /// The task's id, `0_1`.
    pub fn task_id(&self) -> Arc<str> {
        self.node.task().task_id()
    }

    /// The application id.
    pub fn application_id(&self) -> Arc<str> {
        self.node.task().application_id()
    }

    /// The untyped context: stores, clocks.
    pub fn node(&self) -> NodeContext<'a> {
        self.node
    }
}

fn erase_record<K: Send + Sync + 'static, V: Send + Sync + 'static>(
    record: Record<K, V>,
) -> Result<AnyRecord> {
    if record.timestamp < 0 {
        let message = format!("Timestamp may not be negative. Got: {}", record.timestamp);
        return Err(ProcessingError::new("StreamsException", message).into());
    }
    Ok(AnyRecord::new(
        record.key.map(|key| key as AnyValue),
        record.value.map(|value| value as AnyValue),
        record.timestamp,
        record.headers,
    ))
}

fn typed<T: Send + Sync + 'static>(value: Option<AnyValue>) -> Result<Option<Arc<T>>> {
    match value {
        None => Ok(None),
        Some(value) => value.downcast::<T>().map(Some).map_err(|_| {
            StreamsError::Processing(ProcessingError::new(
                "ClassCastException",
                format!("the record does not carry a {}", std::any::type_name::<T>()),
            ))
        }),
    }
}

struct Erase<P, KIn, VIn, KOut, VOut>(P, PhantomData<fn(KIn, VIn, KOut, VOut)>);

impl<P, KIn, VIn, KOut, VOut> AnyProcessor for Erase<P, KIn, VIn, KOut, VOut>
where
    P: Processor<KIn, VIn, KOut, VOut>,
    KIn: Send + Sync + 'static,
    VIn: Send + Sync + 'static,
    KOut: Send + Sync + 'static,
    VOut: Send + Sync + 'static,
{
    fn passes_records(&self) -> bool {
        true
    }

    fn init(&mut self, node: NodeContext<'_>) -> Result<()> {
        self.0.init(&ProcessorContext { node, types: PhantomData })
    }

    fn process(&mut self, node: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let record = Record {
            key: typed(record.key)?,
            value: typed(record.value)?,
            timestamp: record.timestamp,
            headers: record.headers,
        };
        self.0.process(&ProcessorContext { node, types: PhantomData }, record)
    }

    fn punctuate(&mut self, node: NodeContext<'_>, schedule: ScheduleId, timestamp: Timestamp) -> Result<()> {
        self.0.punctuate(&ProcessorContext { node, types: PhantomData }, schedule, timestamp)
    }

    fn close(&mut self) {
        self.0.close();
    }
}

/// Erases the types of a processor.
pub fn erase<KIn, VIn, KOut, VOut>(
    processor: impl Processor<KIn, VIn, KOut, VOut> + 'static,
) -> Box<dyn AnyProcessor>
where
    KIn: Send + Sync + 'static,
    VIn: Send + Sync + 'static,
    KOut: Send + Sync + 'static,
    VOut: Send + Sync + 'static,
{
    Box::new(Erase(processor, PhantomData))
}

struct EraseFixed<P, K, VIn, VOut>(P, PhantomData<fn(K, VIn, VOut)>);

impl<P, K, VIn, VOut> AnyProcessor for EraseFixed<P, K, VIn, VOut>
where
    P: FixedKeyProcessor<K, VIn, VOut>,
    K: Send + Sync + 'static,
    VIn: Send + Sync + 'static,
    VOut: Send + Sync + 'static,
{
    fn init(&mut self, node: NodeContext<'_>) -> Result<()> {
        self.0.init(&ProcessorContext { node, types: PhantomData })
    }

    fn process(&mut self, node: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let context = ProcessorContext { node, types: PhantomData };
        let record = FixedKeyRecord {
            key: typed(record.key)?,
            value: typed(record.value)?,
            timestamp: record.timestamp,
            headers: record.headers,
        };
        for out in self.0.process(&context, record)? {
            context.forward(Record {
                key: out.key,
                value: out.value,
                timestamp: out.timestamp,
                headers: out.headers,
            })?;
        }
        Ok(())
    }

    fn close(&mut self) {
        self.0.close();
    }
}

/// Erases the types of a fixed-key processor.
pub fn erase_fixed_key<K, VIn, VOut>(
    processor: impl FixedKeyProcessor<K, VIn, VOut> + 'static,
) -> Box<dyn AnyProcessor>
where
    K: Send + Sync + 'static,
    VIn: Send + Sync + 'static,
    VOut: Send + Sync + 'static,
{
    Box::new(EraseFixed(processor, PhantomData))
}
