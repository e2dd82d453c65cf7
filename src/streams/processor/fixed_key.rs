//! [`FixedKeyProcessor`] and its context: a node of one's own that cannot change keys (KIP-820).

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use super::{
    AnyProcessor, NodeContext, ProcessingContext, ScheduleId,
    typed::{erase_record, typed},
};
use crate::streams::{
    error::Result,
    record::{AnyRecord, Headers, Record, Timestamp},
    state::StoreBuilder,
};

/// A record whose key cannot be changed. There is no way to make one: a processor is given them and may keep them.
pub struct FixedKeyRecord<K, V> {
    key: Option<Arc<K>>,
    /// The value, or null.
    pub value: Option<Arc<V>>,
    /// Event time, milliseconds.
    pub timestamp: Timestamp,
    /// Headers in order.
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

impl<K, V> Clone for FixedKeyRecord<K, V> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            value: self.value.clone(),
            timestamp: self.timestamp,
            headers: self.headers.clone(),
        }
    }
}

/// A processor that cannot change keys, so nothing downstream must be repartitioned. One instance per task, called by one thread at a
/// time.
pub trait FixedKeyProcessor<K, VIn, VOut>: Send {
    /// Once before the first record.
    fn init(&mut self, context: &FixedKeyProcessorContext<'_, K, VOut>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// One record.
    fn process(
        &mut self,
        context: &FixedKeyProcessorContext<'_, K, VOut>,
        record: FixedKeyRecord<K, VIn>,
    ) -> Result<()>;

    /// A schedule made with [`schedule`](ProcessingContext::schedule) fell due (Kafka's `Punctuator`). What is forwarded then is a record
    /// that was kept.
    fn punctuate(
        &mut self,
        context: &FixedKeyProcessorContext<'_, K, VOut>,
        schedule: ScheduleId,
        timestamp: Timestamp,
    ) -> Result<()> {
        let _ = (context, schedule, timestamp);
        Ok(())
    }

    /// Stores that come with the processor: see [`Processor::stores`](super::Processor::stores).
    fn stores(&self) -> Vec<StoreBuilder> {
        Vec::new()
    }

    /// Once at the end.
    fn close(&mut self) {}
}

/// What a [`FixedKeyProcessor`] may do: forward what keeps its key, and all that [`ProcessingContext`] offers.
pub struct FixedKeyProcessorContext<'a, K, VOut> {
    shared: ProcessingContext<'a>,
    types: PhantomData<fn(K, VOut)>,
}

impl<'a, K: Send + Sync + 'static, VOut: Send + Sync + 'static> FixedKeyProcessorContext<'a, K, VOut> {
    fn new(node: NodeContext<'a>) -> Self {
        Self { shared: ProcessingContext::new(node), types: PhantomData }
    }

    /// Sends a record to all children, in the order they were attached; returns when they are done with it.
    pub fn forward(&self, record: FixedKeyRecord<K, VOut>) -> Result<()> {
        self.node().forward(erased(record)?)
    }

    /// Sends a record to the child of that name.
    pub fn forward_to(&self, child: &str, record: FixedKeyRecord<K, VOut>) -> Result<()> {
        self.node().forward_to(child, erased(record)?)
    }
}

impl<'a, K, VOut> Deref for FixedKeyProcessorContext<'a, K, VOut> {
    type Target = ProcessingContext<'a>;

    fn deref(&self) -> &ProcessingContext<'a> {
        &self.shared
    }
}

fn erased<K: Send + Sync + 'static, V: Send + Sync + 'static>(
    record: FixedKeyRecord<K, V>,
) -> Result<AnyRecord> {
    let FixedKeyRecord { key, value, timestamp, headers } = record;
    erase_record(Record { key, value, timestamp, headers })
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
        self.0.init(&FixedKeyProcessorContext::new(node))
    }

    fn process(&mut self, node: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let record = FixedKeyRecord {
            key: typed(record.key)?,
            value: typed(record.value)?,
            timestamp: record.timestamp,
            headers: record.headers,
        };
        self.0.process(&FixedKeyProcessorContext::new(node), record)
    }

    fn punctuate(&mut self, node: NodeContext<'_>, schedule: ScheduleId, timestamp: Timestamp) -> Result<()> {
        self.0.punctuate(&FixedKeyProcessorContext::new(node), schedule, timestamp)
    }

    fn stores(&self) -> Vec<StoreBuilder> {
        self.0.stores()
    }

    fn close(&mut self) {
        self.0.close();
    }
}

/// Erases the types of a fixed-key processor.
pub(crate) fn erase_fixed_key<K, VIn, VOut>(
    processor: impl FixedKeyProcessor<K, VIn, VOut> + 'static,
) -> Box<dyn AnyProcessor>
where
    K: Send + Sync + 'static,
    VIn: Send + Sync + 'static,
    VOut: Send + Sync + 'static,
{
    Box::new(EraseFixed(processor, PhantomData))
}
