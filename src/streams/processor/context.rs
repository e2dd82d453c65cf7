//! [`NodeContext`]: what a node may do, and [`TaskContext`]: who does it.

use std::sync::Arc;

use super::{NodeId, PunctuationType};
use crate::streams::{
    config::{Semantics, StreamsConfig},
    error::{ProcessingError, Result, StreamsError},
    record::{AnyRecord, RecordContext, Timestamp},
    state::{
        CacheFlush, ChangeBuffer, KeyValueStore, SessionStore, Store, StoreBuilder, VersionedStore,
        WindowStore,
    },
};

/// A store of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub usize);

/// A schedule of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScheduleId(pub usize);

/// An operator clock of the task: a number that is committed with the state and rewound with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClockId(pub usize);

/// Why a record was dropped; a label of `streams_dropped_records_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// A key was needed and is null.
    NullKey,
    /// A value was needed and is null.
    NullValue,
    /// The window is closed.
    Late,
    /// A store refused the row: older than it keeps.
    Expired,
    /// Bytes could not be read.
    Deserialization,
    /// The timestamp extractor gave a negative time.
    InvalidTimestamp,
    /// User code failed and the handler said continue.
    ProcessingError,
    /// A record could not be written and the handler said continue.
    ProductionError,
    /// A partitioner chose no partition for a record.
    NoPartition,
    /// A foreign-key response was overtaken by a newer left value.
    Overtaken,
    /// Seen before (deduplication).
    Duplicate,
}

impl DropReason {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::NullKey => "null_key",
            DropReason::NullValue => "null_value",
            DropReason::Late => "late",
            DropReason::Expired => "expired",
            DropReason::Deserialization => "deserialization",
            DropReason::InvalidTimestamp => "invalid_timestamp",
            DropReason::ProcessingError => "processing_error",
            DropReason::ProductionError => "production_error",
            DropReason::NoPartition => "no_partition",
            DropReason::Overtaken => "overtaken",
            DropReason::Duplicate => "duplicate",
        }
    }
}

/// Turns a flushed cache entry into the record its operator forwards; `None` forwards nothing.
pub(crate) type FlushConverter = Box<dyn Fn(CacheFlush) -> Result<Option<AnyRecord>> + Send>;

/// The task, as its nodes see it.
///
/// # Contract
/// `forward` is synchronous and depth first, children in the order they were attached; the record context is
/// switched for the children and restored afterwards. A store must not be borrowed (`with_store`) across a `forward`.
pub trait TaskContext {
    /// Sends a record from `node` to all its children, or to the one named.
    fn forward(&self, node: NodeId, child: Option<&str>, record: AnyRecord) -> Result<()>;
    /// Runs `f` on a store.
    fn with_store(&self, store: StoreId, f: &mut dyn FnMut(&mut Store) -> Result<()>) -> Result<()>;
    /// Finds a store connected to `node`, or a global one.
    fn store_id(&self, node: NodeId, name: &str) -> Option<StoreId>;
    /// Whether `node` may only read a store: a global one that it does not fill.
    fn is_read_only(&self, node: NodeId, store: StoreId) -> bool;
    /// How a store was described: its serdes, layers and kind.
    fn store_builder(&self, store: StoreId) -> &StoreBuilder;
    /// Where the current record came from.
    fn record_context(&self) -> RecordContext;
    /// Runs what follows in another record's context (a buffered record going on), until it is set again.
    fn set_record_context(&self, context: RecordContext);
    /// Puts another record context in place and returns the one before; put it back.
    fn replace_record_context(&self, context: RecordContext) -> RecordContext;
    /// Timestamp of the current record.
    fn context_timestamp(&self) -> Timestamp;
    /// Makes `node` forward what the cache of `store` flushes.
    fn forward_on_flush(&self, node: NodeId, store: StoreId, send_old_values: bool, convert: FlushConverter);
    /// Registers a schedule for `node`.
    fn schedule(&self, node: NodeId, interval_ms: i64, kind: PunctuationType) -> ScheduleId;
    /// Ends a schedule.
    fn cancel(&self, schedule: ScheduleId);
    /// Registers an operator clock; its committed value, or `initial`, is its first reading.
    fn register_clock(&self, node: NodeId, name: &str, initial: i64) -> ClockId;
    /// Registers an operator clock that several nodes share under the name of one operator.
    fn register_shared_clock(&self, owner: &str, name: &str, initial: i64) -> ClockId;
    /// Reads an operator clock.
    fn clock(&self, clock: ClockId) -> i64;
    /// Sets an operator clock.
    fn set_clock(&self, clock: ClockId, value: i64);
    /// Task stream time: the largest timestamp taken, -1 before the first.
    fn stream_time(&self) -> Timestamp;
    /// Wall clock, as given to the task.
    fn now(&self) -> Timestamp;
    /// What every input before `node` has vouched for, less what the nodes before it hold back: no older record is to come, disorder within
    /// a partition aside. `None` where watermarks are off (`StreamsConfig::idle_close_ms`): then an operator judges by its own stream time.
    fn watermark(&self, node: NodeId) -> Option<Timestamp>;
    /// Says that `node` may still send records as old as `until` (but none older), whatever the watermark is: what is behind it is told
    /// no later watermark. Nothing where watermarks are off.
    fn hold_watermark(&self, node: NodeId, until: Timestamp);
    /// Asks for a commit soon.
    fn request_commit(&self);
    /// Counts a dropped record.
    fn drop_record(&self, node: NodeId, reason: DropReason);
    /// Gives a failure on one of several records to the handlers, as if the node had returned it for that record; `Ok` goes on with the
    /// others. The record context tells which one it is.
    fn failed(&self, node: NodeId, error: ProcessingError) -> Result<()>;
    /// The task's id as text, `0_1`.
    fn task_id(&self) -> Arc<str>;
    /// A node's name.
    fn node_name(&self, node: NodeId) -> Arc<str>;
    /// Application id.
    fn application_id(&self) -> Arc<str>;
    /// Settings of the application.
    fn config(&self) -> &StreamsConfig;
}

/// What one node may do. Copyable; lives for one call.
#[derive(Clone, Copy)]
pub struct NodeContext<'a> {
    task: &'a dyn TaskContext,
    node: NodeId,
}

impl<'a> NodeContext<'a> {
    /// The context of a node of a task.
    pub fn new(task: &'a dyn TaskContext, node: NodeId) -> Self {
        Self { task, node }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The task behind the context.
    pub fn task(&self) -> &'a dyn TaskContext {
        self.task
    }

    /// Sends a record to all children, in the order they were attached.
    pub fn forward(&self, record: AnyRecord) -> Result<()> {
        self.task.forward(self.node, None, record)
    }

    /// Sends a record to the child of that name.
    pub fn forward_to(&self, child: &str, record: AnyRecord) -> Result<()> {
        self.task.forward(self.node, Some(child), record)
    }

    /// Finds a store; a topology without it was refused earlier, so absence is a bug of the operator.
    pub fn store(&self, name: &str) -> Result<StoreId> {
        self.task.store_id(self.node, name).ok_or_else(|| {
            StreamsError::Topology(format!(
                "processor {} has no access to store {name}: connect it where the processor is added",
                self.task.node_name(self.node)
            ))
        })
    }

    /// Runs `f` on a store and returns its result. Do not forward inside.
    pub fn with_store<R>(&self, store: StoreId, f: impl FnOnce(&mut Store) -> Result<R>) -> Result<R> {
        let mut f = Some(f);
        let mut result = None;
        self.task.with_store(store, &mut |store| {
            if let Some(f) = f.take() {
                result = Some(f(store)?);
            }
            Ok(())
        })?;
        result.ok_or_else(|| StreamsError::fatal("store call did not run"))
    }

    /// Runs `f` on a key-value store.
    pub fn with_key_value<R>(
        &self,
        store: StoreId,
        f: impl FnOnce(&mut dyn KeyValueStore) -> Result<R>,
    ) -> Result<R> {
        self.with_store(store, |store| match store {
            Store::KeyValue(store) => f(store.as_mut()),
            _ => Err(wrong_kind("key-value")),
        })
    }

    /// Runs `f` on a window store.
    pub fn with_window<R>(
        &self,
        store: StoreId,
        f: impl FnOnce(&mut dyn WindowStore) -> Result<R>,
    ) -> Result<R> {
        self.with_store(store, |store| match store {
            Store::Window(store) => f(store.as_mut()),
            _ => Err(wrong_kind("window")),
        })
    }

    /// Runs `f` on a session store.
    pub fn with_session<R>(
        &self,
        store: StoreId,
        f: impl FnOnce(&mut dyn SessionStore) -> Result<R>,
    ) -> Result<R> {
        self.with_store(store, |store| match store {
            Store::Session(store) => f(store.as_mut()),
            _ => Err(wrong_kind("session")),
        })
    }

    /// Runs `f` on a versioned store.
    pub fn with_versioned<R>(
        &self,
        store: StoreId,
        f: impl FnOnce(&mut dyn VersionedStore) -> Result<R>,
    ) -> Result<R> {
        self.with_store(store, |store| match store {
            Store::Versioned(store) => f(store.as_mut()),
            _ => Err(wrong_kind("versioned")),
        })
    }

    /// Runs `f` on a suppress buffer.
    pub fn with_buffer<R>(
        &self,
        store: StoreId,
        f: impl FnOnce(&mut dyn ChangeBuffer) -> Result<R>,
    ) -> Result<R> {
        self.with_store(store, |store| match store {
            Store::Buffer(store) => f(store.as_mut()),
            _ => Err(wrong_kind("buffer")),
        })
    }

    /// Where the current record came from.
    pub fn record_context(&self) -> RecordContext {
        self.task.record_context()
    }

    /// Forwards what the cache of `store` flushes from this node; `convert` is told old values only if it asks for them, because each
    /// costs a read of the store.
    pub fn forward_on_flush(
        &self,
        store: StoreId,
        send_old_values: bool,
        convert: impl Fn(CacheFlush) -> Result<Option<AnyRecord>> + Send + 'static,
    ) {
        self.task.forward_on_flush(self.node, store, send_old_values, Box::new(convert));
    }

    /// Calls [`AnyProcessor::punctuate`](super::AnyProcessor::punctuate) at intervals (streams-semantics 2.18).
    pub fn schedule(&self, interval_ms: i64, kind: PunctuationType) -> ScheduleId {
        self.task.schedule(self.node, interval_ms, kind)
    }

    /// Ends a schedule.
    pub fn cancel(&self, schedule: ScheduleId) {
        self.task.cancel(schedule);
    }

    /// Registers an operator clock (observed stream time, last emit, …), committed and rewound with the state.
    pub fn register_clock(&self, name: &str, initial: i64) -> ClockId {
        self.task.register_clock(self.node, name, initial)
    }

    /// Registers an operator clock that all nodes naming the same operator share.
    pub fn register_shared_clock(&self, owner: &str, name: &str, initial: i64) -> ClockId {
        self.task.register_shared_clock(owner, name, initial)
    }

    /// Reads an operator clock.
    pub fn clock(&self, clock: ClockId) -> i64 {
        self.task.clock(clock)
    }

    /// Sets an operator clock.
    pub fn set_clock(&self, clock: ClockId, value: i64) {
        self.task.set_clock(clock, value);
    }

    /// Task stream time.
    pub fn stream_time(&self) -> Timestamp {
        self.task.stream_time()
    }

    /// Wall clock.
    pub fn now(&self) -> Timestamp {
        self.task.now()
    }

    /// Kafka's faults, or ours corrected.
    pub fn semantics(&self) -> Semantics {
        self.task.config().semantics
    }

    /// What every input before this node has vouched for, where watermarks are on.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.task.watermark(self.node)
    }

    /// This node may still send records as old as `until`: an operator that holds results back says so whenever its watermark moves.
    pub fn hold_watermark(&self, until: Timestamp) {
        self.task.hold_watermark(self.node, until);
    }

    /// Counts a dropped record.
    pub fn drop_record(&self, reason: DropReason) {
        self.task.drop_record(self.node, reason);
    }

    /// Goes on after a failure that concerns one of several records only, if the handlers say so. Other errors pass.
    pub fn handled(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(StreamsError::Processing(error)) => self.task.failed(self.node, error),
            other => other,
        }
    }
}

fn wrong_kind(kind: &str) -> StreamsError {
    StreamsError::Topology(format!("the store is not a {kind} store"))
}
