//! [`Processor`] and its context: a node of one's own, with types.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use super::{AnyProcessor, NodeContext, ProcessingContext, ScheduleId};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    record::{AnyRecord, AnyValue, Record, Timestamp},
    state::StoreBuilder,
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

    /// A schedule made with [`schedule`](ProcessingContext::schedule) fell due (Kafka's `Punctuator`). `timestamp` is the stream time or
    /// the wall clock now.
    fn punctuate(
        &mut self,
        context: &ProcessorContext<'_, KOut, VOut>,
        schedule: ScheduleId,
        timestamp: Timestamp,
    ) -> Result<()> {
        let _ = (context, schedule, timestamp);
        Ok(())
    }

    /// Stores that come with the processor and are connected to it (Kafka's `ConnectedStoreProvider`); asked of one instance when the
    /// topology is built. Processors that share a store all name it, alike.
    fn stores(&self) -> Vec<StoreBuilder> {
        Vec::new()
    }

    /// Once at the end.
    fn close(&mut self) {}
}

/// What a [`Processor`] may do: forward, and all that [`ProcessingContext`] offers.
pub struct ProcessorContext<'a, KOut, VOut> {
    shared: ProcessingContext<'a>,
    types: PhantomData<fn(KOut, VOut)>,
}

impl<'a, KOut: Send + Sync + 'static, VOut: Send + Sync + 'static> ProcessorContext<'a, KOut, VOut> {
    /// The typed face of a node's context.
    pub(in crate::streams) fn new(node: NodeContext<'a>) -> Self {
        Self { shared: ProcessingContext::new(node), types: PhantomData }
    }

    /// Sends a record to all children, in the order they were attached; returns when they are done with it.
    pub fn forward(&self, record: Record<KOut, VOut>) -> Result<()> {
        self.node().forward(erase_record(record)?)
    }

    /// Sends a record to the child of that name.
    pub fn forward_to(&self, child: &str, record: Record<KOut, VOut>) -> Result<()> {
        self.node().forward_to(child, erase_record(record)?)
    }
}

impl<'a, KOut, VOut> Deref for ProcessorContext<'a, KOut, VOut> {
    type Target = ProcessingContext<'a>;

    fn deref(&self) -> &ProcessingContext<'a> {
        &self.shared
    }
}

pub(super) fn erase_record<K: Send + Sync + 'static, V: Send + Sync + 'static>(
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

pub(super) fn typed<T: Send + Sync + 'static>(value: Option<AnyValue>) -> Result<Option<Arc<T>>> {
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
        self.0.init(&ProcessorContext::new(node))
    }

    fn process(&mut self, node: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let record = Record {
            key: typed(record.key)?,
            value: typed(record.value)?,
            timestamp: record.timestamp,
            headers: record.headers,
        };
        self.0.process(&ProcessorContext::new(node), record)
    }

    fn punctuate(&mut self, node: NodeContext<'_>, schedule: ScheduleId, timestamp: Timestamp) -> Result<()> {
        self.0.punctuate(&ProcessorContext::new(node), schedule, timestamp)
    }

    fn stores(&self) -> Vec<StoreBuilder> {
        self.0.stores()
    }

    fn close(&mut self) {
        self.0.close();
    }
}

/// Erases the types of a processor.
pub(crate) fn erase<KIn, VIn, KOut, VOut>(
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
