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
    commit_metadata::CommitMetadata,
    commit_step::StepHook,
    input_hold::InputHold,
    partition_group::PartitionGroup,
    record_queue::{Head, RecordQueue},
    standby::StandbyRole,
    task_graph::{GlobalStores, GraphParts, TaskGraph},
    task_id::TaskId,
    watermark::{self, InputClock},
};
use crate::streams::{
    client::OffsetAndMetadata,
    config::StreamsConfig,
    error::{Result, StreamsError},
    processor::{DropReason, ErrorHandlers, NodeId, StoreId, TaskContext},
    record::{ConsumerRecord, ProducerRecord, Timestamp, TopicPartition},
    state::{SavedOffsets, StateMemory, Store, TaskDb},
    topology::{NodeKind, SinkTopic, TimestampExtractor, Topology, fail_on_invalid_timestamp},
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
    /// Asked at each step of a commit; none outside tests.
    pub steps: Option<StepHook>,
    /// Who keeps copies of tasks that run elsewhere.
    pub standby: StandbyRole,
    /// How far external inputs may be read; shared by all threads.
    pub hold: Arc<InputHold>,
    /// What the stores of all tasks may take; shared by all threads.
    pub memory: Arc<StateMemory>,
}

impl TaskOptions {
    /// Options with the default extractor (FailOnInvalidTimestamp) and handlers, no global stores.
    pub fn new(topology: Arc<Topology>, config: Arc<StreamsConfig>) -> Self {
        let memory = StateMemory::new(config.buffer_bytes_max as u64);
        Self {
            topology,
            config,
            handlers: ErrorHandlers::default(),
            timestamp_extractor: fail_on_invalid_timestamp(),
            globals: GlobalStores::default(),
            partition_counts: Arc::new(|topic| {
                Err(StreamsError::fatal(format!("the number of partitions of {topic} is not known here")))
            }),
            steps: None,
            standby: StandbyRole::default(),
            hold: Arc::default(),
            memory,
        }
    }
}

/// The clock of a repartition topic: one entry per partition of the sub-topology that writes it.
fn repartition_clock(options: &TaskOptions, nodes: &[NodeId], topic: &Arc<str>) -> Result<InputClock> {
    let topology = &options.topology;
    if written_repartition_topics(topology, nodes).contains(topic) {
        return Ok(InputClock::Own);
    }
    let mut upstream = 0;
    for subtopology in topology.subtopologies.iter().filter(|sub| sub.sink_topics.contains(topic)) {
        for source in &subtopology.source_topics {
            upstream = upstream.max((options.partition_counts)(source)?);
        }
    }
    Ok(InputClock::Vouched(vec![-1; upstream as usize]))
}

fn written_repartition_topics(topology: &Topology, nodes: &[NodeId]) -> Vec<Arc<str>> {
    let mut topics = Vec::new();
    for node in nodes {
        if let NodeKind::Sink(sink) = &topology.nodes[*node].kind
            && let SinkTopic::Fixed(topic) = &sink.topic
            && sink.internal
            && !topics.contains(topic)
        {
            topics.push(topic.clone());
        }
    }
    topics
}

/// A repartition topic a task vouches to.
struct Downstream {
    topic: Arc<str>,
    partitions: i32,
    sinks: Vec<NodeId>,
    /// The watermark last written; `None` = not since the task started.
    vouched: Option<Timestamp>,
}

fn writes(topology: &Topology, node: NodeId, topic: &str) -> bool {
    matches!(&topology.nodes[node].kind, NodeKind::Sink(sink) if matches!(&sink.topic, SinkTopic::Fixed(fixed) if **fixed == *topic))
}

/// See the module's documentation.
pub(crate) struct StreamTask {
    id: TaskId,
    graph: TaskGraph,
    group: PartitionGroup,
    /// Next offset per partition, as far as known. All are committed each time: the clocks go with them, and a clock may move
    /// without a record (watermarks, punctuation).
    positions: BTreeMap<TopicPartition, i64>,
    /// What was last committed, as this task knows it.
    committed: BTreeMap<TopicPartition, OffsetAndMetadata>,
    commit_needed: bool,
    idle_close_ms: Option<i64>,
    /// What all inputs have vouched for, as the processors were last told.
    watermark: Timestamp,
    /// Repartition topics written, where watermarks are on.
    downstream: Vec<Downstream>,
    /// Drops that [`newly_dropped`](Self::newly_dropped) has told of.
    dropped_told: BTreeMap<(NodeId, DropReason), u64>,
    /// The state file, where a store is persistent.
    db: Option<TaskDb>,
    /// Number of the last commit, so that the newest of several committed metadata is known.
    commits: u64,
}

impl StreamTask {
    /// A task over the given nodes and partitions. `stores` are in flush order, already restored.
    pub(crate) fn new(
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
            let clock = match (options.config.idle_close_ms, source.internal) {
                (None, _) | (_, false) => {
                    let writer_at = options.config.progress.contains_key(&*partition.topic).then_some(0);
                    InputClock::External { last_activity: 0, writer_at }
                }
                (Some(_), true) => repartition_clock(options, &nodes, &partition.topic)?,
            };
            let queue = RecordQueue::new(node, source.decoder.clone(), extractor, source.max_future_ms);
            queues.push((partition.clone(), queue, clock));
        }
        let mut downstream = Vec::new();
        if options.config.idle_close_ms.is_some() {
            for topic in written_repartition_topics(topology, &nodes) {
                // A task that reads its own repartition topics (the test driver's) has nobody to vouch to.
                if !partitions.iter().any(|partition| partition.topic == topic) {
                    let partitions = (options.partition_counts)(&topic)?;
                    let sinks =
                        nodes.iter().copied().filter(|node| writes(topology, *node, &topic)).collect();
                    downstream.push(Downstream { topic, partitions, sinks, vouched: None });
                }
            }
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
            positions: BTreeMap::new(),
            committed: BTreeMap::new(),
            commit_needed: false,
            idle_close_ms: options.config.idle_close_ms,
            watermark: -1,
            downstream,
            dropped_told: BTreeMap::new(),
            db: None,
            commits: 0,
        })
    }

    /// Initialises processors with the clocks committed earlier.
    pub(crate) fn init(&mut self, clocks: HashMap<String, i64>, now: Timestamp) -> Result<()> {
        for index in 0..self.group.partitions().count() {
            self.group.touch(index, now);
        }
        self.graph.init(clocks, now)
    }

    /// Takes over what an earlier owner committed with the offsets: partition times, vouched times, operator clocks.
    /// Call before [`init`](Self::init), and give it the clocks returned.
    pub(crate) fn restore_metadata(
        &mut self,
        committed: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    ) -> HashMap<String, i64> {
        self.committed = committed.clone();
        let mut newest: Option<CommitMetadata> = None;
        for (partition, OffsetAndMetadata { offset, metadata }) in committed {
            self.positions.insert(partition.clone(), *offset);
            let Some(metadata) = CommitMetadata::decode(metadata) else { continue };
            if let Some(index) = self.group.index_of(&partition.topic, partition.partition) {
                self.group.set_partition_time(index, metadata.partition_time);
                for (upstream, time) in metadata.vouched.iter().enumerate() {
                    self.group.vouch(index, upstream as i32, *time);
                }
            }
            if newest.as_ref().is_none_or(|known| known.commit < metadata.commit) {
                newest = Some(metadata);
            }
        }
        let Some(newest) = newest else { return HashMap::new() };
        self.commits = newest.commit;
        newest.clocks.into_iter().collect()
    }

    /// The task's id.
    pub(crate) fn id(&self) -> TaskId {
        self.id
    }

    /// The living nodes and stores.
    pub(crate) fn graph(&self) -> &TaskGraph {
        &self.graph
    }

    /// Partitions the task reads.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.group.partitions()
    }

    /// Buffers records of one partition, in offset order.
    pub(crate) fn add_records(
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

    /// Keeps of records to be restored what this task itself would have taken, where their topic is one it reads: a source topic that
    /// serves as changelog holds bad records, too. `time` is the partition time of the replay, -1 at its start.
    pub(crate) fn retain_rows(
        &self,
        partition: &TopicPartition,
        records: &mut Vec<ConsumerRecord>,
        time: &mut Timestamp,
    ) {
        if let Some(index) = self.group.index_of(&partition.topic, partition.partition) {
            self.group.retain_rows(index, records, time);
        }
    }

    /// As [`add_records`](Self::add_records) with the wall clock of the arrival.
    pub(crate) fn add_records_at(
        &mut self,
        partition: &TopicPartition,
        records: impl IntoIterator<Item = ConsumerRecord>,
        now: Timestamp,
    ) -> Result<()> {
        self.graph.set_now(now);
        if let Some(index) = self.group.index_of(&partition.topic, partition.partition) {
            self.group.touch(index, now);
        }
        self.add_records(partition, records)
    }

    /// Tells how many records the log still holds behind what was added, and how far the topic's writer was *before* the log
    /// was asked, where it says so: with a lag of zero everything up to there has been added.
    pub(crate) fn set_lag(&mut self, partition: &TopicPartition, lag: i64, writer_at: Option<Timestamp>) {
        if let Some(index) = self.group.index_of(&partition.topic, partition.partition) {
            self.group.set_lag(index, lag, writer_at);
        }
    }

    /// Records buffered for a partition.
    pub(crate) fn buffered(&self, partition: &TopicPartition) -> usize {
        self.group
            .index_of(&partition.topic, partition.partition)
            .map_or(0, |index| self.group.buffered(index))
    }

    /// Whether [`process`](Self::process) would take a record at `now`.
    pub(crate) fn is_processable(&mut self, now: Timestamp) -> bool {
        self.group.ready(now)
    }

    /// Processes the next record, if there is one. The caller asks [`is_processable`](Self::is_processable) first.
    pub(crate) fn process(&mut self, now: Timestamp) -> Result<bool> {
        let Some((index, head)) = self.group.next(&self.graph)? else { return Ok(false) };
        let offset = match head {
            Head::Corrupted(offset) => offset,
            Head::Watermark { offset, upstream, time } => {
                self.group.vouch(index, upstream, time);
                offset
            }
            Head::Record(raw, decoded, timestamp) => {
                let offset = raw.offset;
                let source = self.group.source(index);
                self.graph.process(source, *raw, decoded, timestamp, self.group.stream_time, now)?;
                if self.graph.wants_flush() {
                    self.graph.flush_caches()?;
                }
                offset
            }
        };
        let partition = self.group.partition(index);
        match self.positions.get_mut(partition) {
            Some(next) => *next = offset + 1,
            None => {
                self.positions.insert(partition.clone(), offset + 1);
            }
        }
        self.commit_needed = true;
        Ok(true)
    }

    /// Calls stream-time schedules that fell due.
    pub(crate) fn punctuate_stream_time(&mut self, now: Timestamp) -> Result<bool> {
        let called = self.graph.punctuate_stream_time(self.group.stream_time, now)?;
        self.commit_needed |= called;
        Ok(called)
    }

    /// Calls wall-clock schedules that fell due.
    pub(crate) fn punctuate_wall_clock(&mut self, now: Timestamp) -> Result<bool> {
        let called = self.graph.punctuate_wall_clock(now)?;
        self.commit_needed |= called;
        Ok(called)
    }

    /// Tells the processors when the inputs vouch for more than before (only where watermarks are on).
    pub(crate) fn advance_watermark(&mut self, now: Timestamp) -> Result<bool> {
        let Some(idle_close_ms) = self.idle_close_ms else { return Ok(false) };
        let watermark = self.group.watermark(idle_close_ms, now);
        if watermark <= self.watermark && !self.graph.is_watermark_behind() {
            return Ok(false);
        }
        self.watermark = self.watermark.max(watermark);
        self.graph.advance_watermark(self.watermark, now)?;
        self.commit_needed = true;
        Ok(true)
    }

    /// Whether there is anything to commit.
    pub(crate) fn commit_needed(&self) -> bool {
        self.commit_needed
    }

    /// Makes the next commit include this task.
    pub(crate) fn request_commit(&mut self) {
        self.commit_needed = true;
    }

    /// First step of a commit: flushes caches, which may produce records.
    /// Then vouches downstream for what is now written: the watermark follows the data it covers.
    pub(crate) fn prepare_commit(&mut self) -> Result<()> {
        self.graph.flush_caches()?;
        // What was waiting held the watermark of those behind it: they learn of it in this commit, not after the next. Each round
        // reaches at least one node more.
        while self.graph.is_watermark_released() {
            self.graph.advance_watermark(self.watermark, self.graph.now())?;
            self.graph.flush_caches()?;
        }
        for Downstream { topic, partitions, sinks, vouched } in &mut self.downstream {
            let watermark = sinks.iter().map(|sink| self.graph.watermark_of(*sink)).min().unwrap_or(-1);
            if watermark >= 0 && vouched.is_none_or(|vouched| vouched < watermark) {
                for partition in 0..*partitions {
                    self.graph.emit(watermark::record(topic, partition, self.id.partition, watermark));
                }
                *vouched = Some(watermark);
            }
        }
        Ok(())
    }

    /// Takes records written since the last call.
    pub(crate) fn drain_output(&mut self, out: &mut Vec<ProducerRecord>) -> Result<()> {
        self.graph.drain_output(out)
    }

    /// Offsets to commit, with the clocks that go with them and the transactional id that commits. One call per commit.
    pub(crate) fn committable_offsets(
        &mut self,
        committer: Option<&str>,
    ) -> BTreeMap<TopicPartition, OffsetAndMetadata> {
        self.commits += 1;
        let clocks = self.graph.clocks();
        self.committed = self
            .positions
            .iter()
            .filter_map(|(partition, offset)| {
                let index = self.group.index_of(&partition.topic, partition.partition)?;
                let metadata = CommitMetadata {
                    commit: self.commits,
                    partition_time: self.group.partition_time(index),
                    vouched: self.group.vouched(index).to_vec(),
                    clocks: clocks.clone(),
                    expired: self.graph.expired(),
                    committer: committer.map(str::to_owned),
                };
                let metadata = metadata.encode();
                Some((partition.clone(), OffsetAndMetadata { offset: *offset, metadata }))
            })
            .collect();
        self.committed.clone()
    }

    /// Whether nobody has committed for this task since it did itself. Each commit is numbered, so even one that consumed
    /// nothing shows.
    pub(crate) fn is_current(&self, committed: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> bool {
        self.partitions().all(|partition| self.committed.get(partition) == committed.get(partition))
    }

    /// Last step of a commit: everything written is visible.
    pub(crate) fn post_commit(&mut self) {
        self.commit_needed = false;
    }

    /// See [`TaskDb::settle_save`].
    pub(crate) fn settle_save(&self) -> Result<()> {
        let Some(db) = self.db.as_ref().filter(|db| db.wants_settling()) else { return Ok(()) };
        self.graph.with_stores(|stores| db.settle_save(stores))
    }

    /// Gives the task the file its stores live in.
    pub(crate) fn set_db(&mut self, db: Option<TaskDb>) {
        self.db = db;
    }

    /// Whether the stores should be saved after the next commit.
    pub(crate) fn wants_save(&self, now: Timestamp) -> bool {
        self.db.as_ref().is_some_and(|db| self.graph.with_stores(|stores| db.wants_save(stores, now)))
    }

    /// Whether what has been replayed of the changelogs must be saved before more is.
    pub(crate) fn wants_save_while_restoring(&self) -> bool {
        let wants = |db: &TaskDb| self.graph.with_stores(|stores| db.wants_save_while_restoring(stores));
        self.db.as_ref().is_some_and(wants)
    }

    /// Whether anything would be lost to a restart but for the changelog.
    pub(crate) fn has_unsaved(&self) -> bool {
        self.db.is_some()
            && self.graph.with_stores(|stores| stores.iter().any(|store| store.unsaved().changed > 0))
    }

    /// Saves if it is time to. `changelog`: by store, the offset behind the last record the stores reflect, read before the commit
    /// that made it true: had anybody else written since, that commit would have been refused.
    pub(crate) fn after_commit(&mut self, changelog: BTreeMap<String, i64>, now: Timestamp) -> Result<bool> {
        let Some(db) = &self.db else { return Ok(false) };
        let offsets = self.saved_offsets(changelog);
        self.graph.with_stores(|stores| db.after_commit(stores, || offsets, now))
    }

    /// Saves everything and waits for it: at a clean close.
    pub(crate) fn save_now(&mut self, changelog: BTreeMap<String, i64>) -> Result<()> {
        let Some(db) = &self.db else { return Ok(()) };
        let offsets = self.saved_offsets(changelog);
        self.graph.with_stores(|stores| db.save_now(stores, offsets))
    }

    /// Marks the state file as whole, when there is nothing to save.
    pub(crate) fn close_file(&self) -> Result<()> {
        let Some(db) = &self.db else { return Ok(()) };
        self.graph.with_stores(|stores| db.close(stores))
    }

    fn saved_offsets(&self, changelog: BTreeMap<String, i64>) -> SavedOffsets {
        SavedOffsets {
            changelog,
            inputs: self.positions.clone(),
            clocks: self.graph.clocks().into_iter().collect(),
        }
    }

    /// Changelog topics by store name.
    pub(crate) fn changelogs(&self) -> Vec<(String, TopicPartition)> {
        self.graph
            .store_ids()
            .iter()
            .filter_map(|id| {
                let topic = self.graph.changelog(*id)?.clone();
                let name = self.graph.topology().stores[id.0].builder.name.clone();
                Some((name, TopicPartition { topic, partition: self.id.partition }))
            })
            .collect()
    }

    /// Forgets buffered records (the caller rewinds the consumer). Everything processed is committed: positions and clocks stand.
    pub(crate) fn clear_buffers(&mut self) {
        self.group.clear();
        self.commit_needed = false;
    }

    /// Input partitions of which nothing has been read and nothing committed yet: where reading them begins is not known here.
    pub(crate) fn without_position(&self) -> Vec<TopicPartition> {
        let unread = |partition: &&TopicPartition| {
            !self.positions.contains_key(*partition) && self.buffered(partition) == 0
        };
        self.partitions().filter(unread).cloned().collect()
    }

    /// Where reading a partition begins. Committing it makes every commit of the task one that a later owner fences.
    pub(crate) fn begins_at(&mut self, partition: TopicPartition, offset: i64) {
        self.positions.entry(partition).or_insert(offset);
    }

    /// Records dropped so far, by node and reason.
    pub(crate) fn dropped(&self) -> BTreeMap<(NodeId, DropReason), u64> {
        self.graph.dropped()
    }

    /// Drops since the last call.
    pub(crate) fn newly_dropped(&mut self) -> Vec<((NodeId, DropReason), u64)> {
        let mut new = Vec::new();
        for (what, count) in self.graph.dropped() {
            let told = self.dropped_told.entry(what).or_default();
            if count > *told {
                new.push((what, count - *told));
                *told = count;
            }
        }
        new
    }

    /// Name of a node, for metrics.
    pub(crate) fn node_name(&self, node: NodeId) -> Arc<str> {
        self.graph.node_name(node)
    }

    /// Closes processors.
    pub(crate) fn close(&mut self) {
        self.graph.close();
    }
}
