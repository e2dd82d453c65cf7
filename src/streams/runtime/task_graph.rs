//! [`TaskGraph`]: the living nodes and stores of one task, and the only way from one node to the next.
//!
//! Takes a record at a source and runs it down, depth first. What comes out (sink records, changelog records) is
//! collected here and drained by the task: the graph itself talks to no log.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};

use super::{
    node_watermarks::NodeWatermarks, punctuation_queue::PunctuationQueue, raw_record::RawRecord,
    record_queue::BadRecords, task_id::TaskId,
};
use crate::streams::{
    config::{Semantics, StreamsConfig},
    error::{ProcessingError, Result, StreamsError},
    processor::{
        AnyProcessor, ClockId, DropReason, ErrorHandlers, ErrorResponse, FlushConverter, NodeContext, NodeId,
        ProductionResponse, PunctuationType, ScheduleId, StoreId, TaskContext,
    },
    record::{
        AnyRecord, ConsumerRecord, ERROR_HEADERS, Headers, ProducerRecord, REDRIVE_ATTEMPTS, RecordContext,
        Timestamp,
    },
    state::{ChangelogRecord, StateStore, Store, StoreBuilder},
    topology::{BadRecordPolicy, DecodedRecord, NodeKind, SinkSpec, SinkTopic, Topology},
};

/// Global stores of the process, shared by all tasks.
pub(crate) type GlobalStores = Arc<BTreeMap<usize, Mutex<Store>>>;

/// Output records share blocks of this size.
const OUTPUT_BLOCK_BYTES: usize = 32 << 10;

enum Run {
    Source,
    Processor(RefCell<Box<dyn AnyProcessor>>),
    Sink(SinkSpec),
}

struct Node {
    name: Arc<str>,
    run: Run,
    children: Vec<NodeId>,
    /// See [`AnyProcessor::passes_records`].
    passes: bool,
}

struct LocalStore {
    store: RefCell<Store>,
    changelog: Option<Arc<str>>,
    listener: RefCell<Option<(NodeId, FlushConverter)>>,
}

/// A named operator clock.
struct Clock {
    name: String,
    value: i64,
}

/// See the module's documentation.
pub(crate) struct TaskGraph {
    topology: Arc<Topology>,
    config: Arc<StreamsConfig>,
    handlers: ErrorHandlers,
    task_id: TaskId,
    task_name: Arc<str>,
    /// By [`NodeId`]; `None` for nodes of other sub-topologies.
    nodes: Vec<Option<Node>>,
    node_order: Vec<NodeId>,
    /// By [`StoreId`]; `None` for stores of other sub-topologies.
    stores: Vec<Option<LocalStore>>,
    store_order: Vec<StoreId>,
    globals: GlobalStores,
    partition_counts: Arc<dyn Fn(&str) -> Result<i32> + Send + Sync>,
    context: RefCell<RecordContext>,
    raw: RawRecord,
    clocks: RefCell<Vec<Clock>>,
    restored_clocks: RefCell<HashMap<String, i64>>,
    stream_schedules: RefCell<PunctuationQueue>,
    wall_schedules: RefCell<PunctuationQueue>,
    next_schedule: Cell<usize>,
    stream_time: Cell<Timestamp>,
    /// `None` where watermarks are off.
    watermarks: Option<NodeWatermarks>,
    /// Every store's rows have expired by at least this watermark.
    expired: Cell<Timestamp>,
    now: Cell<Timestamp>,
    commit_requested: Cell<bool>,
    dropped: RefCell<BTreeMap<(NodeId, DropReason), u64>>,
    output: RefCell<Vec<ProducerRecord>>,
    /// Where the bytes of output records go next.
    block: RefCell<BytesMut>,
    /// Stores that have a record cache.
    cached: Vec<StoreId>,
}

/// What a graph is made from.
pub(crate) struct GraphParts {
    pub topology: Arc<Topology>,
    pub config: Arc<StreamsConfig>,
    pub handlers: ErrorHandlers,
    pub task_id: TaskId,
    /// Nodes to run, in the order they were added to the topology.
    pub nodes: Vec<NodeId>,
    /// Stores of those nodes, in the order caches are flushed.
    pub stores: Vec<(StoreId, Store)>,
    pub globals: GlobalStores,
    /// Number of partitions of a topic, for custom partitioners.
    pub partition_counts: Arc<dyn Fn(&str) -> Result<i32> + Send + Sync>,
}

impl TaskGraph {
    /// Builds the nodes; [`init`](Self::init) must follow before the first record.
    pub(crate) fn new(parts: GraphParts) -> Self {
        let topology = parts.topology;
        let watermarks = parts.config.idle_close_ms.map(|_| NodeWatermarks::new(&topology, &parts.nodes));
        let mut nodes: Vec<Option<Node>> = topology.nodes.iter().map(|_| None).collect();
        for id in &parts.nodes {
            let spec = &topology.nodes[*id];
            let (run, passes) = match &spec.kind {
                NodeKind::Source(_) => (Run::Source, false),
                NodeKind::Processor(supplier) => {
                    let processor = supplier();
                    let passes = processor.passes_records();
                    (Run::Processor(RefCell::new(processor)), passes)
                }
                NodeKind::Sink(sink) => (Run::Sink(sink.clone()), false),
            };
            let children = spec.children.clone();
            nodes[*id] = Some(Node { name: spec.name.clone(), run, children, passes });
        }
        let mut stores: Vec<Option<LocalStore>> = topology.stores.iter().map(|_| None).collect();
        let mut store_order = Vec::new();
        let mut cached = Vec::new();
        for (id, mut store) in parts.stores {
            if watermarks.is_some() {
                // Nothing expires before a watermark says so: what is replayed may be far ahead of it.
                store.as_state_store().expire_by(-1);
            }
            let spec = &topology.stores[id.0];
            if spec.builder.caching {
                cached.push(id);
            }
            let changelog = (spec.builder.logging && spec.source_topic.is_none())
                .then(|| topology.changelog_topic(&spec.builder.name));
            stores[id.0] =
                Some(LocalStore { store: RefCell::new(store), changelog, listener: RefCell::new(None) });
            store_order.push(id);
        }
        let forgets_raw =
            parts.config.semantics == Semantics::Kafka43 && parts.handlers.dead_letter_topic.is_some();
        Self {
            config: parts.config,
            handlers: parts.handlers,
            task_id: parts.task_id,
            task_name: parts.task_id.to_string().into(),
            nodes,
            node_order: parts.nodes,
            stores,
            store_order,
            globals: parts.globals,
            partition_counts: parts.partition_counts,
            context: RefCell::default(),
            raw: RawRecord::new(forgets_raw),
            clocks: RefCell::default(),
            restored_clocks: RefCell::default(),
            stream_schedules: RefCell::new(PunctuationQueue::new()),
            wall_schedules: RefCell::new(PunctuationQueue::new()),
            next_schedule: Cell::new(0),
            stream_time: Cell::new(-1),
            watermarks,
            expired: Cell::new(-1),
            now: Cell::new(0),
            commit_requested: Cell::new(false),
            dropped: RefCell::default(),
            output: RefCell::default(),
            block: RefCell::default(),
            cached,
            topology,
        }
    }

    /// The topology the graph is a part of.
    pub(crate) fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Initialises processors, in the order they were added. Clocks committed earlier are given first.
    pub(crate) fn init(&self, clocks: HashMap<String, i64>, now: Timestamp) -> Result<()> {
        *self.restored_clocks.borrow_mut() = clocks;
        self.now.set(now);
        for id in &self.node_order {
            if let Run::Processor(processor) = &self.live(*id).run {
                processor.borrow_mut().init(NodeContext::new(self, *id))?;
            }
        }
        Ok(())
    }

    /// Closes processors.
    pub(crate) fn close(&self) {
        for id in &self.node_order {
            if let Run::Processor(processor) = &self.live(*id).run {
                processor.borrow_mut().close();
            }
        }
    }

    /// Runs one record from its source down to the leaves.
    pub(crate) fn process(
        &self,
        source: NodeId,
        raw: ConsumerRecord,
        decoded: DecodedRecord,
        timestamp: Timestamp,
        stream_time: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        self.now.set(now);
        self.stream_time.set(stream_time);
        let headers = raw.headers.clone();
        *self.context.borrow_mut() = RecordContext {
            topic: Some(raw.topic.clone()),
            partition: raw.partition,
            offset: raw.offset,
            timestamp,
            headers: headers.clone(),
        };
        self.raw.begin(raw);
        let record = AnyRecord::change(decoded.key, decoded.value, decoded.old, timestamp, headers);
        self.forward(source, None, record)
    }

    /// Calls the stream-time schedules due at `stream_time`. Whether any was called.
    pub(crate) fn punctuate_stream_time(&self, stream_time: Timestamp, now: Timestamp) -> Result<bool> {
        self.now.set(now);
        self.stream_time.set(stream_time);
        if stream_time < 0 {
            return Ok(false);
        }
        self.punctuate(&self.stream_schedules, stream_time)
    }

    /// Calls the wall-clock schedules due at `now`. Whether any was called.
    pub(crate) fn punctuate_wall_clock(&self, now: Timestamp) -> Result<bool> {
        self.now.set(now);
        self.punctuate(&self.wall_schedules, now)
    }

    /// Moves the watermark to what the inputs vouch for and tells the processors, in the order they were added, what of it they may
    /// rely on.
    pub(crate) fn advance_watermark(&self, inputs: Timestamp, now: Timestamp) -> Result<()> {
        let Some(watermarks) = &self.watermarks else { return Ok(()) };
        self.now.set(now);
        *self.context.borrow_mut() = RecordContext {
            topic: None,
            partition: -1,
            offset: -1,
            timestamp: inputs,
            headers: Headers::EMPTY,
        };
        watermarks.begin();
        for id in &self.node_order {
            let Some(watermark) = watermarks.advance(*id, inputs) else { continue };
            if let Run::Processor(processor) = &self.live(*id).run {
                let result =
                    processor.borrow_mut().watermark_advanced(NodeContext::new(self, *id), watermark);
                self.handle(*id, result)?;
            }
        }
        watermarks.end();
        // After the operators have read what closes now.
        let mut expired = Timestamp::MAX;
        for id in &self.store_order {
            let users = self.topology.stores[id.0].users.iter();
            if let Some(least) = users.map(|user| watermarks.stored(*user)).min() {
                self.local(*id).store.borrow_mut().as_state_store().expire_by(least);
                expired = expired.min(least);
            }
        }
        if expired < Timestamp::MAX {
            self.expired.set(expired);
        }
        Ok(())
    }

    /// Whether [`advance_watermark`](Self::advance_watermark) has more to tell although the inputs vouch for nothing new.
    pub(crate) fn is_watermark_behind(&self) -> bool {
        self.watermarks.as_ref().is_some_and(NodeWatermarks::is_behind)
    }

    /// Whether a node has let go of what it held back, so that those behind it may be told more at once.
    pub(super) fn is_watermark_released(&self) -> bool {
        self.watermarks.as_ref().is_some_and(NodeWatermarks::is_released)
    }

    /// What a node has been told; -1 before the first, and where watermarks are off.
    pub(crate) fn watermark_of(&self, node: NodeId) -> Timestamp {
        self.watermarks.as_ref().map_or(-1, |watermarks| watermarks.reached(node))
    }

    /// The watermark by which rows of every store have expired; -1 where none have, and where watermarks are off.
    pub(crate) fn expired(&self) -> Timestamp {
        self.expired.get()
    }

    /// Gives the wall clock to what happens outside of processing (buffering, commits).
    pub(crate) fn set_now(&self, now: Timestamp) {
        self.now.set(now);
    }

    /// When the next wall-clock schedule is due.
    pub(crate) fn next_wall_clock_punctuation(&self) -> Option<Timestamp> {
        self.wall_schedules.borrow().next_due()
    }

    fn punctuate(&self, queue: &RefCell<PunctuationQueue>, time: Timestamp) -> Result<bool> {
        let mut called = false;
        loop {
            let Some((at, index, schedule, node)) = queue.borrow_mut().take_due(time) else {
                return Ok(called);
            };
            called = true;
            *self.context.borrow_mut() = RecordContext {
                topic: None,
                partition: -1,
                offset: -1,
                timestamp: time,
                headers: Headers::EMPTY,
            };
            if let Run::Processor(processor) = &self.live(node).run {
                let result = processor.borrow_mut().punctuate(NodeContext::new(self, node), schedule, time);
                self.handle(node, result)?;
            }
            queue.borrow_mut().reschedule(index, at, time);
        }
    }

    /// Lets processors forward what they hold back, then flushes record caches, store by store, forwarding what comes out. May produce
    /// records.
    pub(crate) fn flush_caches(&self) -> Result<()> {
        for id in &self.node_order {
            if let Run::Processor(processor) = &self.live(*id).run {
                let result = processor.borrow_mut().prepare_commit(NodeContext::new(self, *id));
                self.handle(*id, result)?;
            }
        }
        for id in &self.store_order {
            let local = self.local(*id);
            let flushed = local.store.borrow_mut().as_state_store().flush_cache()?;
            let listener = local.listener.borrow();
            let Some((node, convert)) = listener.as_ref() else { continue };
            for entry in flushed {
                let context = entry.context.clone();
                if let Some(record) = convert(entry)? {
                    *self.context.borrow_mut() = context;
                    self.forward(*node, None, record)?;
                }
            }
            if let Some(watermarks) = &self.watermarks {
                watermarks.cache_flushed(*node);
            }
        }
        Ok(())
    }

    /// Writes a record beside the sinks (control records).
    pub(super) fn emit(&self, record: ProducerRecord) {
        self.output.borrow_mut().push(record);
    }

    /// Takes what sinks wrote, then what stores logged, in write order.
    pub(crate) fn drain_output(&self, out: &mut Vec<ProducerRecord>) -> Result<()> {
        out.append(&mut self.output.borrow_mut());
        let mut changes: Vec<ChangelogRecord> = Vec::new();
        for id in &self.store_order {
            let local = self.local(*id);
            local.store.borrow_mut().as_state_store().drain_changelog(&mut changes)?;
            let Some(topic) = &local.changelog else {
                changes.clear();
                continue;
            };
            // All keys in one allocation, shared out as slices.
            let mut keys = Vec::with_capacity(changes.iter().map(|change| change.key.len()).sum());
            changes.iter().for_each(|change| keys.extend_from_slice(&change.key));
            let mut keys = Bytes::from(keys);
            out.extend(changes.drain(..).map(|change| ProducerRecord {
                topic: topic.clone(),
                partition: Some(self.task_id.partition),
                key: Some(keys.split_to(change.key.len())),
                value: change.value,
                timestamp: change.timestamp,
                headers: change.headers,
            }));
        }
        Ok(())
    }

    /// Runs `f` on a store of the task, by id.
    pub(crate) fn store<R>(&self, id: StoreId, f: impl FnOnce(&mut Store) -> R) -> Option<R> {
        if let Some(global) = self.globals.get(&id.0) {
            return Some(f(&mut global.lock().unwrap_or_else(std::sync::PoisonError::into_inner)));
        }
        let local = self.stores.get(id.0)?.as_ref()?;
        Some(f(&mut local.store.borrow_mut()))
    }

    /// Runs `f` on all local stores at once, in flush order.
    pub(super) fn with_stores<R>(&self, f: impl FnOnce(&mut [&mut dyn StateStore]) -> R) -> R {
        let mut borrowed: Vec<_> =
            self.store_order.iter().map(|id| self.local(*id).store.borrow_mut()).collect();
        let mut stores: Vec<&mut dyn StateStore> =
            borrowed.iter_mut().map(|store| store.as_state_store()).collect();
        f(&mut stores)
    }

    /// Whether a record cache is over its budget.
    pub(crate) fn wants_flush(&self) -> bool {
        self.cached.iter().any(|id| self.local(*id).store.borrow_mut().as_state_store().wants_flush())
    }

    /// Local stores in flush order.
    pub(crate) fn store_ids(&self) -> &[StoreId] {
        &self.store_order
    }

    /// Changelog topic of a local store, if it has one.
    pub(crate) fn changelog(&self, id: StoreId) -> Option<&Arc<str>> {
        self.local(id).changelog.as_ref()
    }

    /// Operator clocks by name, to be committed with the offsets.
    pub(crate) fn clocks(&self) -> Vec<(String, i64)> {
        self.clocks.borrow().iter().map(|clock| (clock.name.clone(), clock.value)).collect()
    }

    /// Records dropped so far, by node and reason, stores included.
    pub(crate) fn dropped(&self) -> BTreeMap<(NodeId, DropReason), u64> {
        for id in &self.store_order {
            let refused = self.local(*id).store.borrow_mut().as_state_store().take_dropped();
            if refused > 0 {
                let user = self.topology.stores[id.0].users.first().copied().unwrap_or_default();
                *self.dropped.borrow_mut().entry((user, DropReason::Expired)).or_default() += refused;
            }
        }
        self.dropped.borrow().clone()
    }

    /// Whether a node asked for a commit since the last call.
    pub(crate) fn take_commit_request(&self) -> bool {
        self.commit_requested.take()
    }

    fn live(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("edges never leave a sub-topology")
    }

    fn local(&self, id: StoreId) -> &LocalStore {
        self.stores[id.0].as_ref().expect("store_order lists local stores only")
    }

    fn run_all(&self, nodes: &[NodeId], record: AnyRecord) -> Result<()> {
        let Some((last, rest)) = nodes.split_last() else { return Ok(()) };
        for id in rest {
            self.run(*id, record.clone())?;
        }
        self.run(*last, record)
    }

    /// Runs one node on a record, in the record's own context; the caller's context is restored afterwards.
    fn run(&self, id: NodeId, record: AnyRecord) -> Result<()> {
        let node = self.live(id);
        let before = {
            let mut context = self.context.borrow_mut();
            let timestamp = std::mem::replace(&mut context.timestamp, record.timestamp);
            let headers = std::mem::replace(&mut context.headers, record.headers.clone());
            (timestamp, headers)
        };
        let outer = self.raw.enter(&record);
        let result = match &node.run {
            Run::Processor(processor) => {
                let result = processor.borrow_mut().process(NodeContext::new(self, id), record);
                self.handle(id, result)
            }
            Run::Sink(sink) => self.write(id, sink, record),
            Run::Source => self.forward(id, None, record),
        };
        self.raw.leave(outer);
        let mut context = self.context.borrow_mut();
        (context.timestamp, context.headers) = before;
        result
    }

    /// Asks the processing handler about a failure of user code at `node`; other errors pass.
    fn handle(&self, node: NodeId, result: Result<()>) -> Result<()> {
        let error = match result {
            Err(StreamsError::Processing(error)) => error,
            other => return other,
        };
        let context = self.context.borrow().clone();
        let name = &self.live(node).name;
        let policy = context.topic.as_deref().and_then(|topic| self.source_policy(topic));
        let response = match policy {
            None => (self.handlers.processing)(&context, name, &error),
            Some(policy) => policy_response(policy),
        };
        if let Some(topic) = self.dead_letter_topic(policy) {
            let (key, value) = self.raw.bytes(&context);
            let letter = dead_letter(topic, key, value, &context, &error, name, policy.is_some());
            self.output.borrow_mut().push(letter);
        }
        match response {
            ErrorResponse::Continue => {
                self.drop_record(node, DropReason::ProcessingError);
                Ok(())
            }
            ErrorResponse::Fail => Err(StreamsError::Fatal(format!(
                "processor {name} of task {} failed on {}-{} at offset {}: {error}",
                self.task_id,
                context.topic.as_deref().unwrap_or("(punctuation)"),
                context.partition,
                context.offset,
            ))),
        }
    }

    /// The bad-record policy of the source that reads a topic, where it names one.
    fn source_policy(&self, topic: &str) -> Option<&BadRecordPolicy> {
        self.node_order.iter().find_map(|id| match &self.topology.nodes[*id].kind {
            NodeKind::Source(source) if source.topics.iter().any(|known| &**known == topic) => {
                source.bad.as_ref()
            }
            _ => None,
        })
    }

    /// Where dead letters go: the source's topic, else the application's.
    fn dead_letter_topic<'a>(&'a self, policy: Option<&'a BadRecordPolicy>) -> Option<&'a Arc<str>> {
        match policy {
            None => self.handlers.dead_letter_topic.as_ref(),
            Some(BadRecordPolicy::DeadLetter(topic)) => Some(topic),
            Some(BadRecordPolicy::Skip | BadRecordPolicy::Fail) => None,
        }
    }

    /// Bytes of an output record, moved into a block that many records share: their buffers are freed at once, on this thread.
    fn in_block(&self, bytes: &[u8]) -> Bytes {
        if bytes.len() > OUTPUT_BLOCK_BYTES / 8 {
            return Bytes::copy_from_slice(bytes);
        }
        let mut block = self.block.borrow_mut();
        if block.capacity() < bytes.len() {
            *block = BytesMut::with_capacity(OUTPUT_BLOCK_BYTES);
        }
        block.extend_from_slice(bytes);
        block.split().freeze()
    }

    fn write(&self, node: NodeId, sink: &SinkSpec, record: AnyRecord) -> Result<()> {
        let failed = |error: ProcessingError| {
            StreamsError::Fatal(format!("sink {} could not write a record: {error}", self.live(node).name))
        };
        let topic = match &sink.topic {
            SinkTopic::Fixed(topic) => topic.clone(),
            SinkTopic::Dynamic(choose) => choose(&record, &self.context.borrow()).map_err(failed)?,
        };
        if record.timestamp < 0 {
            return Err(failed(ProcessingError::new(
                "StreamsException",
                format!("invalid (negative) timestamp of {} for output record", record.timestamp),
            )));
        }
        let partitions = match &sink.partitioner {
            Some(partitioner) => partitioner(&topic, &record, (self.partition_counts)(&topic)?),
            None => None,
        };
        if partitions.as_ref().is_some_and(Vec::is_empty) {
            self.drop_record(node, DropReason::NoPartition);
            return Ok(());
        }
        let encoded = match (sink.encoder)(&record) {
            Ok(encoded) => encoded,
            // A serde of another type than the records have is a mistake in the topology, no bad record.
            Err(error) if error.class == "ClassCastException" => return Err(failed(error)),
            Err(error) => return self.not_encoded(node, topic, record, error),
        };
        let out = ProducerRecord {
            topic,
            partition: None,
            key: encoded.key.map(|key| self.in_block(&key)),
            value: encoded.value.map(|value| self.in_block(&value)),
            timestamp: Some(record.timestamp),
            headers: record.headers,
        };
        self.raw.sent();
        let mut output = self.output.borrow_mut();
        match partitions {
            None => output.push(out),
            Some(partitions) => output
                .extend(partitions.into_iter().map(|p| ProducerRecord { partition: Some(p), ..out.clone() })),
        }
        Ok(())
    }

    /// Asks the production handler about a value that does not become bytes.
    fn not_encoded(
        &self,
        node: NodeId,
        topic: Arc<str>,
        record: AnyRecord,
        error: ProcessingError,
    ) -> Result<()> {
        let name = &self.live(node).name;
        let (timestamp, headers) = (Some(record.timestamp), record.headers);
        let attempt = ProducerRecord { topic, partition: None, key: None, value: None, timestamp, headers };
        let response = (self.handlers.production)(&attempt, &error);
        if let Some(topic) = self.handlers.dead_letter_topic.as_ref() {
            let context = self.context.borrow().clone();
            let (key, value) = self.raw.bytes(&context);
            let letter = dead_letter(topic, key, value, &context, &error, name, false);
            self.output.borrow_mut().push(letter);
        }
        match response {
            ProductionResponse::Continue => {
                self.drop_record(node, DropReason::ProductionError);
                Ok(())
            }
            // Encoding the same value again cannot end differently.
            ProductionResponse::Retry | ProductionResponse::Fail => {
                Err(StreamsError::Fatal(format!("sink {name} could not write a record: {error}")))
            }
        }
    }
}

/// A dead letter as Kafka's handlers write it (KIP-1034).
pub(super) fn dead_letter(
    topic: &Arc<str>,
    key: Option<Bytes>,
    value: Option<Bytes>,
    context: &RecordContext,
    error: &ProcessingError,
    node: &str,
    whole_story: bool,
) -> ProducerRecord {
    let mut headers = context.headers.clone();
    // Inside a punctuation there is no topic.
    let topic_read = context.topic.as_deref().map(str::to_owned);
    let mut add_any = |name: &str, text: Option<String>| headers.add(format!("{ERROR_HEADERS}{name}"), text);
    add_any("exception", Some(error.class.clone()));
    add_any("message", Some(error.message.clone()));
    add_any("stacktrace", Some(format!("{error} (at {node})")));
    add_any("topic", topic_read);
    let mut add = |name: &str, text: String| add_any(name, Some(text));
    add("partition", context.partition.to_string());
    add("offset", context.offset.to_string());
    if whole_story {
        // Beyond Kafka's headers, for sources with a dead-letter topic of their own.
        add("node", node.to_owned());
        add("timestamp", context.timestamp.to_string());
        add("attempts", (attempts_before(&context.headers) + 1).to_string());
    }
    ProducerRecord {
        topic: topic.clone(),
        partition: None,
        key,
        value,
        // A record may have come with a time no record can be written with.
        timestamp: (context.timestamp >= 0).then_some(context.timestamp),
        headers,
    }
}

/// How often a record was tried before it was sent again; 0 for one that never failed.
fn attempts_before(headers: &Headers) -> u32 {
    let header = headers.last(REDRIVE_ATTEMPTS).and_then(|header| header.value.as_deref());
    header.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0)
}

fn policy_response(policy: &BadRecordPolicy) -> ErrorResponse {
    match policy {
        BadRecordPolicy::DeadLetter(_) | BadRecordPolicy::Skip => ErrorResponse::Continue,
        BadRecordPolicy::Fail => ErrorResponse::Fail,
    }
}

impl BadRecords for TaskGraph {
    fn not_decoded(&self, source: NodeId, record: &ConsumerRecord, error: ProcessingError) -> Result<()> {
        let policy = self.source_policy(&record.topic);
        let response = match policy {
            None => (self.handlers.deserialization)(record, &error),
            Some(policy) => policy_response(policy),
        };
        if let Some(topic) = self.dead_letter_topic(policy) {
            let context = RecordContext {
                topic: Some(record.topic.clone()),
                partition: record.partition,
                offset: record.offset,
                timestamp: record.timestamp,
                headers: record.headers.clone(),
            };
            if record.timestamp < 0 && self.config.semantics == Semantics::Kafka43 {
                // Kafka's handlers cannot make a dead letter of that time, and fail.
                return Err(StreamsError::Fatal(format!(
                    "no dead letter can be dated {}: {error}",
                    record.timestamp
                )));
            }
            let letter = dead_letter(
                topic,
                record.key.clone(),
                record.value.clone(),
                &context,
                &error,
                &self.live(source).name,
                policy.is_some(),
            );
            self.output.borrow_mut().push(letter);
        }
        match response {
            ErrorResponse::Continue => Ok(()),
            ErrorResponse::Fail => Err(StreamsError::Fatal(format!(
                "cannot read the record at {}-{} offset {}: {error}. Choose a dead-letter topic or a handler that \
                 continues to get past it",
                record.topic, record.partition, record.offset
            ))),
        }
    }

    fn dropped(&self, source: NodeId, reason: DropReason) {
        self.drop_record(source, reason);
    }

    fn now(&self) -> Timestamp {
        self.now.get()
    }
}

impl TaskContext for TaskGraph {
    fn forward(&self, node: NodeId, child: Option<&str>, record: AnyRecord) -> Result<()> {
        let Node { children, passes, name, .. } = self.live(node);
        let scope = self.raw.open(*passes, &record);
        let result = match child {
            Some(child) => match children.iter().find(|id| &*self.live(**id).name == child) {
                Some(id) => self.run(*id, record),
                None => Err(StreamsError::Topology(format!(
                    "{name} has no child named {child}: connect it or forward to all"
                ))),
            },
            None => self.run_all(children, record),
        };
        self.raw.close(scope);
        result
    }

    fn with_store(&self, store: StoreId, f: &mut dyn FnMut(&mut Store) -> Result<()>) -> Result<()> {
        self.store(store, f).unwrap_or_else(|| {
            Err(StreamsError::fatal(format!("store {} is not in task {}", store.0, self.task_id)))
        })
    }

    fn store_id(&self, node: NodeId, name: &str) -> Option<StoreId> {
        let id = self.topology.store_id(name)?;
        let spec = &self.topology.stores[id.0];
        (spec.global || spec.users.contains(&node)).then_some(id)
    }

    fn is_read_only(&self, node: NodeId, store: StoreId) -> bool {
        self.topology.stores[store.0].global && !self.topology.global_nodes.contains(&node)
    }

    fn store_builder(&self, store: StoreId) -> &StoreBuilder {
        &self.topology.stores[store.0].builder
    }

    fn record_context(&self) -> RecordContext {
        self.context.borrow().clone()
    }

    fn set_record_context(&self, context: RecordContext) {
        *self.context.borrow_mut() = context;
    }

    fn replace_record_context(&self, context: RecordContext) -> RecordContext {
        self.context.replace(context)
    }

    fn context_timestamp(&self) -> Timestamp {
        self.context.borrow().timestamp
    }

    fn forward_on_flush(&self, node: NodeId, store: StoreId, send_old_values: bool, convert: FlushConverter) {
        if let Some(Some(local)) = self.stores.get(store.0) {
            local.store.borrow_mut().as_state_store().send_old_values(send_old_values);
            *local.listener.borrow_mut() = Some((node, convert));
            if let Some(watermarks) = self.watermarks.as_ref().filter(|_| self.store_builder(store).caching) {
                watermarks.cached(node);
            }
        }
    }

    fn schedule(&self, node: NodeId, interval_ms: i64, kind: PunctuationType) -> ScheduleId {
        let id = ScheduleId(self.next_schedule.replace(self.next_schedule.get() + 1));
        match kind {
            PunctuationType::StreamTime => {
                self.stream_schedules.borrow_mut().schedule(id, node, 0, interval_ms);
            }
            PunctuationType::WallClockTime => {
                let first = self.now.get() + interval_ms;
                self.wall_schedules.borrow_mut().schedule(id, node, first, interval_ms);
            }
        }
        id
    }

    fn cancel(&self, schedule: ScheduleId) {
        self.stream_schedules.borrow_mut().cancel(schedule);
        self.wall_schedules.borrow_mut().cancel(schedule);
    }

    fn register_clock(&self, node: NodeId, name: &str, initial: i64) -> ClockId {
        let scope = self.topology.nodes[node].clock_scope.as_deref();
        let scope = scope.map(|scope| format!("{scope}/")).unwrap_or_default();
        let name = format!("{}/{scope}{name}", self.live(node).name);
        let value = self.restored_clocks.borrow().get(&name).copied().unwrap_or(initial);
        let mut clocks = self.clocks.borrow_mut();
        clocks.push(Clock { name, value });
        ClockId(clocks.len() - 1)
    }

    fn register_shared_clock(&self, owner: &str, name: &str, initial: i64) -> ClockId {
        let name = format!("{owner}/{name}");
        if let Some(known) = self.clocks.borrow().iter().position(|clock| clock.name == name) {
            return ClockId(known);
        }
        let value = self.restored_clocks.borrow().get(&name).copied().unwrap_or(initial);
        let mut clocks = self.clocks.borrow_mut();
        clocks.push(Clock { name, value });
        ClockId(clocks.len() - 1)
    }

    fn clock(&self, clock: ClockId) -> i64 {
        self.clocks.borrow()[clock.0].value
    }

    fn set_clock(&self, clock: ClockId, value: i64) {
        self.clocks.borrow_mut()[clock.0].value = value;
    }

    fn stream_time(&self) -> Timestamp {
        self.stream_time.get()
    }

    fn now(&self) -> Timestamp {
        self.now.get()
    }

    fn watermark(&self, node: NodeId) -> Option<Timestamp> {
        self.watermarks.as_ref().map(|watermarks| watermarks.reached(node))
    }

    fn hold_watermark(&self, node: NodeId, until: Timestamp) {
        if let Some(watermarks) = &self.watermarks {
            watermarks.hold(node, until);
        }
    }

    fn request_commit(&self) {
        self.commit_requested.set(true);
    }

    fn drop_record(&self, node: NodeId, reason: DropReason) {
        *self.dropped.borrow_mut().entry((node, reason)).or_default() += 1;
    }

    fn failed(&self, node: NodeId, error: ProcessingError) -> Result<()> {
        self.handle(node, Err(error.into()))
    }

    fn task_id(&self) -> Arc<str> {
        self.task_name.clone()
    }

    fn node_name(&self, node: NodeId) -> Arc<str> {
        self.topology.nodes[node].name.clone()
    }

    fn application_id(&self) -> Arc<str> {
        self.topology.application_id.clone()
    }

    fn config(&self) -> &StreamsConfig {
        &self.config
    }
}
