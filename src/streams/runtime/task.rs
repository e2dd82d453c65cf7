//! [`StreamTask`]: one sub-topology over one partition of each of its topics; plain synchronous code that is given the time.
//!
//! The caller (stream thread, test driver, simulation) adds records, calls [`process`](StreamTask::process) until it says no,
//! and commits: [`prepare_commit`](StreamTask::prepare_commit) -> [`drain_output`](StreamTask::drain_output) to the producer ->
//! offsets and transaction -> [`post_commit`](StreamTask::post_commit).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    partition_group::PartitionGroup,
    record_queue::{Head, RecordQueue},
    task_graph::{GlobalStores, GraphParts, TaskGraph},
    task_id::TaskId,
};
use crate::streams::{
    config::StreamsConfig,
    error::{ProcessingError, Result, StreamsError},
    processor::{DropReason, ErrorHandlers, NodeId, StoreId, TaskContext},
    record::{ConsumerRecord, ProducerRecord, Timestamp, TopicPartition},
    state::Store,
    topology::{NodeKind, TimestampExtractor, Topology},
};

/// What all tasks of an application share.
#[derive(Clone)]
pub struct TaskOptions {
    /// The topology.
    pub topology: Arc<Topology>,
    /// Settings.
    pub config: Arc<StreamsConfig>,
    /// Error handlers.
    pub handlers: ErrorHandlers,
    /// Extractor of sources that name none.
    pub timestamp_extractor: TimestampExtractor,
    /// Filled before any task starts.
    pub globals: GlobalStores,
    /// Number of partitions of a topic.
    pub partition_counts: Arc<dyn Fn(&str) -> Result<i32> + Send + Sync>,
}

impl TaskOptions {
    /// Options with the default extractor (FailOnInvalidTimestamp) and handlers, no global stores.
    pub fn new(topology: Arc<Topology>, config: Arc<StreamsConfig>) -> Self {
        Self {
            topology,
            config,
            handlers: ErrorHandlers::default(),
            timestamp_extractor: fail_on_invalid_timestamp(),
            globals: GlobalStores::default(),
            partition_counts: Arc::new(|topic| {
                Err(StreamsError::fatal(format!("the number of partitions of {topic} is not known here")))
            }),
        }
    }
}

/// The record's own timestamp; a negative one stops the task (Kafka's `FailOnInvalidTimestamp`).
pub fn fail_on_invalid_timestamp() -> TimestampExtractor {
    Arc::new(|record, _, _| {
        if record.timestamp < 0 {
            return Err(ProcessingError::new(
                "StreamsException",
                format!(
                    "record at {}-{} offset {} has an invalid (negative) timestamp {}: choose another timestamp extractor",
                    record.topic, record.partition, record.offset, record.timestamp
                ),
            ));
        }
        Ok(record.timestamp)
    })
}

/// See the module's documentation.
pub struct StreamTask {
    id: TaskId,
    graph: TaskGraph,
    group: PartitionGroup,
    /// Next offset to commit per partition; only partitions something was consumed of.
    consumed: BTreeMap<TopicPartition, i64>,
    commit_needed: bool,
}

impl StreamTask {
    /// A task over the given nodes and partitions. `stores` are in flush order, already restored.
    pub fn new(
        id: TaskId,
        options: &TaskOptions,
        nodes: Vec<NodeId>,
        stores: Vec<(StoreId, Store)>,
        partitions: &[TopicPartition],
    ) -> Result<Self> {
        let topology = &options.topology;
        let mut queues = Vec::new();
        for partition in partitions {
            let source = nodes.iter().find_map(|node| match &topology.nodes[*node].kind {
                NodeKind::Source(source) if source.topics.contains(&partition.topic) => Some((*node, source)),
                _ => None,
            });
            let Some((node, source)) = source else {
                return Err(StreamsError::fatal(format!("task {id} has no source for {partition}")));
            };
            let extractor = match (&source.timestamp_extractor, source.internal) {
                (Some(extractor), _) => extractor.clone(),
                (None, true) => fail_on_invalid_timestamp(),
                (None, false) => options.timestamp_extractor.clone(),
            };
            queues.push((partition.clone(), RecordQueue::new(node, source.decoder.clone(), extractor)));
        }
        let graph = TaskGraph::new(GraphParts {
            topology: topology.clone(),
            config: options.config.clone(),
            handlers: options.handlers.clone(),
            task_id: id,
            nodes,
            stores,
            globals: options.globals.clone(),
            partition_counts: options.partition_counts.clone(),
        });
        Ok(Self {
            id,
            graph,
            group: PartitionGroup::new(queues, options.config.max_task_idle_ms),
            consumed: BTreeMap::new(),
            commit_needed: false,
        })
    }

    /// Initialises processors with the clocks committed earlier.
    pub fn init(&mut self, clocks: HashMap<String, i64>, now: Timestamp) -> Result<()> {
        self.graph.init(clocks, now)
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The living nodes and stores.
    pub fn graph(&self) -> &TaskGraph {
        &self.graph
    }

    /// Partitions the task reads.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.group.partitions()
    }

    /// Buffers records of one partition, in offset order.
    pub fn add_records(
        &mut self,
        partition: &TopicPartition,
        records: impl IntoIterator<Item = ConsumerRecord>,
    ) -> Result<()> {
        let index = self
            .group
            .index_of(&partition.topic, partition.partition)
            .ok_or_else(|| StreamsError::fatal(format!("task {} does not read {partition}", self.id)))?;
        self.group.add(index, records, &self.graph)
    }

    /// Tells how many records the log still holds behind what was added.
    pub fn set_lag(&mut self, partition: &TopicPartition, lag: i64) {
        if let Some(index) = self.group.index_of(&partition.topic, partition.partition) {
            self.group.set_lag(index, lag);
        }
    }

    /// Records buffered for a partition.
    pub fn buffered(&self, partition: &TopicPartition) -> usize {
        self.group
            .index_of(&partition.topic, partition.partition)
            .map_or(0, |index| self.group.buffered(index))
    }

    /// Records buffered in all.
    pub fn num_buffered(&self) -> usize {
        self.group.num_buffered()
    }

    /// Whether [`process`](Self::process) would take a record at `now`.
    pub fn is_processable(&mut self, now: Timestamp) -> bool {
        self.group.ready(now)
    }

    /// Processes the next record, if there is one. The caller asks [`is_processable`](Self::is_processable) first.
    pub fn process(&mut self, now: Timestamp) -> Result<bool> {
        let Some((index, head)) = self.group.next(&self.graph)? else { return Ok(false) };
        let offset = match head {
            Head::Corrupted(offset) => offset,
            Head::Record(raw, decoded, timestamp) => {
                let offset = raw.offset;
                let source = self.group.source(index);
                self.graph.process(source, *raw, decoded, timestamp, self.group.stream_time, now)?;
                offset
            }
        };
        let partition = self.group.partition(index);
        match self.consumed.get_mut(partition) {
            Some(next) => *next = offset + 1,
            None => {
                self.consumed.insert(partition.clone(), offset + 1);
            }
        }
        self.commit_needed = true;
        Ok(true)
    }

    /// Calls stream-time schedules that fell due.
    pub fn punctuate_stream_time(&mut self, now: Timestamp) -> Result<bool> {
        let called = self.graph.punctuate_stream_time(self.group.stream_time, now)?;
        self.commit_needed |= called;
        Ok(called)
    }

    /// Calls wall-clock schedules that fell due.
    pub fn punctuate_wall_clock(&mut self, now: Timestamp) -> Result<bool> {
        let called = self.graph.punctuate_wall_clock(now)?;
        self.commit_needed |= called;
        Ok(called)
    }

    /// Whether there is anything to commit.
    pub fn commit_needed(&self) -> bool {
        self.commit_needed
    }

    /// First step of a commit: flushes caches, which may produce records.
    pub fn prepare_commit(&mut self) -> Result<()> {
        self.graph.flush_caches()
    }

    /// Takes records written since the last call.
    pub fn drain_output(&mut self, out: &mut Vec<ProducerRecord>) -> Result<()> {
        self.graph.drain_output(out)
    }

    /// Offsets to commit: next offset per partition, with its partition time.
    pub fn committable_offsets(&self) -> BTreeMap<TopicPartition, (i64, Timestamp)> {
        self.consumed
            .iter()
            .map(|(partition, offset)| {
                let time = self
                    .group
                    .index_of(&partition.topic, partition.partition)
                    .map_or(-1, |index| self.group.partition_time(index));
                (partition.clone(), (*offset, time))
            })
            .collect()
    }

    /// Restores a partition time committed earlier.
    pub fn set_partition_time(&mut self, partition: &TopicPartition, time: Timestamp) {
        if let Some(index) = self.group.index_of(&partition.topic, partition.partition) {
            self.group.set_partition_time(index, time);
        }
    }

    /// Task stream time.
    pub fn stream_time(&self) -> Timestamp {
        self.group.stream_time
    }

    /// Last step of a commit: everything written is visible.
    pub fn post_commit(&mut self) {
        self.consumed.clear();
        self.commit_needed = false;
    }

    /// Forgets buffered records (the caller rewinds the consumer).
    pub fn clear_buffers(&mut self) {
        self.group.clear();
        self.consumed.clear();
        self.commit_needed = false;
    }

    /// Records dropped so far, by node and reason.
    pub fn dropped(&self) -> BTreeMap<(NodeId, DropReason), u64> {
        self.graph.dropped()
    }

    /// Name of a node, for metrics.
    pub fn node_name(&self, node: NodeId) -> Arc<str> {
        self.graph.node_name(node)
    }

    /// Closes processors.
    pub fn close(&mut self) {
        self.graph.close();
    }
}
