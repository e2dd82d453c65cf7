//! The Processor API: what a node of a topology may do.
//!
//! [`Processor`] is what users write, typed. [`AnyProcessor`] is the same with types erased: what the DSL's operators
//! implement and what the runtime calls. A processor sees the world through its context only: forwarding, stores,
//! clocks, schedules. It never blocks, spawns or reads a clock.

mod context;
mod error_handler;
mod typed;

pub use context::{ClockId, DropReason, FlushConverter, NodeContext, ScheduleId, StoreId, TaskContext};
pub use error_handler::{
    DeserializationHandler, ErrorHandlers, ErrorResponse, ProcessingHandler, ProductionHandler,
    ProductionResponse,
};
pub use typed::{FixedKeyProcessor, FixedKeyRecord, Processor, ProcessorContext, erase, erase_fixed_key};

use super::{
    error::Result,
    record::{AnyRecord, Timestamp},
};

/// Position of a node in its topology.
pub type NodeId = usize;

/// What drives a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PunctuationType {
    /// The task's stream time: the largest timestamp taken so far. Stands still without input.
    StreamTime,
    /// The wall clock.
    WallClockTime,
}

/// A node's code, types erased.
pub trait AnyProcessor: Send {
    /// Called once before the first record: resolve stores, register clocks and schedules.
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// One record. Errors of user code are [`StreamsError::Processing`](super::error::StreamsError::Processing): the handler decides.
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

    /// The task's watermark moved (only where watermarks are on, see [`TaskContext::watermark`]): no record older than it is
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

    /// Called once at the end of the task's life.
    fn close(&mut self) {}
}

/// Makes one processor per task.
pub type ProcessorSupplier = std::sync::Arc<dyn Fn() -> Box<dyn AnyProcessor> + Send + Sync>;
