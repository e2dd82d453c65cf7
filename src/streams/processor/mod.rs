//! The Processor API: what a node of a topology may do.
//!
//! | for | use |
//! |---|---|
//! | a node that may do anything | [`Processor`], with its [`ProcessorContext`] |
//! | a node that keeps keys, so that nothing must be repartitioned | [`FixedKeyProcessor`] |
//! | what has been stored | [`ProcessingContext`], with the handles in [`stores`](super::stores) |
//! | what happens to bad records | [`ErrorHandlers`] |
//!
//! In the DSL processors are placed with [`process`](super::kstream::KStream::process) and
//! [`process_values`](super::kstream::KStream::process_values), in a [`TopologyBuilder`](super::topology::TopologyBuilder) with
//! [`processor_supplier`]. A processor sees the world through its context only: forwarding, stores, clocks, schedules. It never blocks,
//! spawns or reads a clock.

mod any_processor;
mod context;
mod error_handler;
mod fixed_key;
mod processing_context;
pub(crate) mod store;
mod typed;

pub(crate) use any_processor::AnyProcessor;
pub(crate) use context::{ClockId, FlushConverter, NodeContext, TaskContext};
pub use context::{DropReason, ScheduleId, StoreId};
pub use error_handler::{
    DeserializationHandler, ErrorHandlers, ErrorResponse, ProcessingHandler, ProductionHandler,
    ProductionResponse,
};
pub(crate) use fixed_key::erase_fixed_key;
pub use fixed_key::{FixedKeyProcessor, FixedKeyProcessorContext, FixedKeyRecord};
pub use processing_context::ProcessingContext;
pub(crate) use store::{KeyValueStore, SessionStore, StoreName, VersionedKeyValueStore, WindowStore};
pub(crate) use typed::erase;
pub use typed::{Processor, ProcessorContext};

use std::sync::Arc;

/// Position of a node in its topology.
pub(crate) type NodeId = usize;

/// What drives a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PunctuationType {
    /// The task's stream time: the largest timestamp taken so far. Stands still without input.
    StreamTime,
    /// The wall clock.
    WallClockTime,
}

/// Makes one processor per task.
pub type ProcessorSupplier = Arc<dyn Fn() -> Box<dyn AnyProcessor> + Send + Sync>;

/// A supplier from a function that makes a [`Processor`].
pub fn processor_supplier<KIn, VIn, KOut, VOut, P>(
    make: impl Fn() -> P + Send + Sync + 'static,
) -> ProcessorSupplier
where
    P: Processor<KIn, VIn, KOut, VOut> + 'static,
    KIn: Send + Sync + 'static,
    VIn: Send + Sync + 'static,
    KOut: Send + Sync + 'static,
    VOut: Send + Sync + 'static,
{
    Arc::new(move || erase(make()))
}
