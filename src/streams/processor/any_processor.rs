//! [`AnyProcessor`]: a node's code, types erased. Users write a typed [`Processor`](super::Processor); this is what the runtime calls.

use super::{NodeContext, ScheduleId};
use crate::streams::{
    error::Result,
    record::{AnyRecord, Timestamp},
    state::StoreBuilder,
};

/// A node's code, types erased: what the operators of the DSL implement and what the runtime calls.
pub trait AnyProcessor: Send {
    /// Called once before the first record: resolve stores, register clocks and schedules.
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// One record. Errors of user code are [`StreamsError::Processing`](crate::streams::error::StreamsError::Processing): the handler decides.
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()>;

    /// A schedule fell due. `timestamp` is the stream time or wall clock now.
    fn punctuate(
        &mut self,
        context: NodeContext<'_>,
        schedule: ScheduleId,
        timestamp: Timestamp,
    ) -> Result<()> {
        let _ = (context, schedule, timestamp);
        Ok(())
    }

    /// The task's watermark moved (only where watermarks are on, see `TaskContext::watermark`): no record older than it is
    /// still to come, grace aside. May forward. Called in the order nodes were added.
    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let _ = (context, watermark);
        Ok(())
    }

    /// The task is about to commit: forward what is held back, so that it is in the transaction of the records it came from.
    /// Called in the order nodes were added, before record caches are flushed.
    fn prepare_commit(&mut self, context: NodeContext<'_>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// Whether a record forwarded unchanged is, to Kafka, the very object that came in (see `runtime::raw_record`). Most of Kafka's
    /// operators make a new one, `filter` and `peek` among them.
    fn passes_records(&self) -> bool {
        false
    }

    /// Stores that come with the processor.
    fn stores(&self) -> Vec<StoreBuilder> {
        Vec::new()
    }

    /// Called once at the end of the task's life.
    fn close(&mut self) {}
}
