//! [`Harness`]: tasks, topics in memory, and the loop between them.
//!
//! Written records go to their topic's outputs and, where a source reads the topic, into the queue of the task that owns the partition.
//! What must always hold: of the tasks that have work the one with the smallest id takes one record, commits, and the choice is made
//! again. So upstream tasks finish before downstream ones begin, and the same input gives the same output.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use super::{
    driver::DriverOptions,
    partitions::{Layout, TaskPlan},
};
use crate::streams::{
    client::partition_for_key,
    config::Semantics,
    error::{Result, StreamsError},
    processor::{DropReason, ErrorHandlers, ErrorResponse, NodeContext, StoreId},
    record::{ConsumerRecord, ProducerRecord, Timestamp, TopicPartition},
    runtime::{GlobalStores, StreamTask, TaskId, TaskOptions, read_control_record},
    state::{CacheOptions, Store, StoreEnvironment},
    topology::Topology,
};

/// Kafka Streams' default record cache.
const CACHE_BYTES: usize = 10 * 1024 * 1024;

pub(super) struct Harness {
    pub(super) topology: Arc<Topology>,
    pub layout: Layout,
    /// Everything but global stores, in the order the tasks have their turns.
    pub tasks: Vec<StreamTask>,
    /// Fills global stores.
    global_task: Option<StreamTask>,
    globals: GlobalStores,
    pub(super) options: TaskOptions,
    pub now: Timestamp,
    /// Next offset per input partition.
    offsets: HashMap<TopicPartition, i64>,
    /// How many records without a key were written to a topic: they go to each partition in turn.
    keyless: HashMap<Arc<str>, i32>,
    pub outputs: BTreeMap<Arc<str>, VecDeque<ProducerRecord>>,
    /// All that was written to changelog topics, for a restart.
    pub(super) changelogs: BTreeMap<Arc<str>, Vec<ProducerRecord>>,
    /// Records dropped before the last restart.
    pub(super) dropped_before: Dropped,
}

/// Counts of dropped records by task, node and reason.
pub(super) type Dropped = BTreeMap<(TaskId, Arc<str>, DropReason), u64>;

impl Harness {
    pub(super) fn new(topology: Topology, options: DriverOptions) -> Result<Self> {
        let topology = Arc::new(topology);
        let layout = Layout::new(&topology, options.partitions)?;
        let semantics = options.config.semantics;
        let mut globals = BTreeMap::new();
        for (index, spec) in topology.stores.iter().enumerate().filter(|(_, spec)| spec.global) {
            globals.insert(
                index,
                Mutex::new(
                    spec.builder.build(&StoreEnvironment { semantics, ..StoreEnvironment::default() })?,
                ),
            );
        }
        let mut task_options = TaskOptions::new(topology.clone(), Arc::new(options.config));
        task_options.handlers = options.handlers;
        if let Some(extractor) = options.timestamp_extractor {
            task_options.timestamp_extractor = extractor;
        }
        let counts = layout.clone();
        task_options.partition_counts = Arc::new(move |topic| Ok(counts.count(topic)));
        task_options.globals = Arc::new(globals);
        let mut tasks = Vec::new();
        for plan in layout.tasks(&topology) {
            let stores = build_stores(&topology, &plan, task_options.config.semantics)?;
            tasks.push(make_task(plan, stores, &task_options)?);
        }
        let mut global_task = None;
        let partitions = layout.source_partitions(&topology, &topology.global_nodes);
        if !partitions.is_empty() {
            // As in Kafka's driver, a global table leaves out what it cannot read, whatever the handlers say, and writes no dead letters.
            let global_options = TaskOptions {
                handlers: ErrorHandlers {
                    deserialization: ErrorHandlers::always(ErrorResponse::Continue).deserialization,
                    ..ErrorHandlers::default()
                },
                ..task_options.clone()
            };
            let id = TaskId { subtopology: topology.subtopologies.len(), partition: 0 };
            let plan = TaskPlan { id, nodes: topology.global_nodes.clone(), partitions };
            global_task = Some(make_task(plan, Vec::new(), &global_options)?);
        }
        for task in global_task.iter_mut().chain(&mut tasks) {
            task.init(HashMap::new(), options.wall_clock_ms)?;
        }
        Ok(Self {
            topology,
            layout,
            tasks,
            global_task,
            globals: task_options.globals.clone(),
            options: task_options,
            now: options.wall_clock_ms,
            offsets: HashMap::new(),
            keyless: HashMap::new(),
            outputs: BTreeMap::new(),
            changelogs: BTreeMap::new(),
            dropped_before: Dropped::new(),
        })
    }

    /// Writes records to input topics, then processes until nothing is left to do.
    pub(super) fn pipe(&mut self, records: Vec<ProducerRecord>) -> Result<()> {
        let mut piped = Vec::with_capacity(records.len());
        for mut record in records {
            let known = self.tasks.iter().chain(&self.global_task);
            if !known.flat_map(StreamTask::partitions).any(|partition| partition.topic == record.topic) {
                return Err(StreamsError::Topology(format!("no source reads topic {}", record.topic)));
            }
            self.place(&mut record)?;
            self.enqueue(&record)?;
            piped.push(record);
        }
        self.complete_all_processable_work()?;
        piped.iter().try_for_each(|record| self.update_global(record))
    }

    /// Moves the wall clock; every task has one pass of wall-clock schedules.
    pub(super) fn advance(&mut self, by_ms: i64) -> Result<()> {
        self.now += by_ms;
        for index in 0..self.tasks.len() {
            self.tasks[index].punctuate_wall_clock(self.now)?;
            self.tasks[index].advance_watermark(self.now)?;
            self.commit_and_capture(index)?;
        }
        self.complete_all_processable_work()
    }

    fn complete_all_processable_work(&mut self) -> Result<()> {
        let now = self.now;
        loop {
            while let Some(index) = self.tasks.iter_mut().position(|task| task.is_processable(now)) {
                let task = &mut self.tasks[index];
                if !task.process(now)? {
                    break;
                }
                task.punctuate_stream_time(now)?;
                task.advance_watermark(now)?;
                self.commit_and_capture(index)?;
            }
            // What came out of the topology's own topics is read, so their readers may be told more.
            let mut told = false;
            for index in 0..self.tasks.len() {
                if self.tasks[index].advance_watermark(now)? {
                    self.commit_and_capture(index)?;
                    told = true;
                }
            }
            if !told {
                break;
            }
        }
        // Dead letters of records that were dropped while buffering.
        (0..self.tasks.len()).try_for_each(|index| self.commit_and_capture(index))
    }

    /// Flushes, collects everything a task wrote, and feeds back what a source reads.
    pub(super) fn commit_and_capture(&mut self, index: usize) -> Result<()> {
        let mut written = Vec::new();
        let task = &mut self.tasks[index];
        task.prepare_commit()?;
        task.drain_output(&mut written)?;
        task.post_commit();
        for mut record in written {
            self.place(&mut record)?;
            // Other topics may end alike; what is kept for nothing is only kept.
            if record.topic.ends_with("-changelog") {
                self.changelogs.entry(record.topic.clone()).or_default().push(record.clone());
            }
            // Control records travel between tasks as in production; nobody outside sees them.
            if read_control_record(&consumed(&record, 0, 0, self.now)).is_none() {
                self.outputs.entry(record.topic.clone()).or_default().push_back(record.clone());
            }
            self.enqueue(&record)?;
            self.update_global(&record)?;
        }
        Ok(())
    }

    /// Gives a record its partition, as a producer would. Kafka's harness knows none and keeps what the record says.
    fn place(&mut self, record: &mut ProducerRecord) -> Result<()> {
        if matches!(self.layout, Layout::Single) {
            return Ok(());
        }
        let count = self.layout.count(&record.topic);
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, count),
            (None, None) => {
                let written = self.keyless.entry(record.topic.clone()).or_default();
                *written = written.wrapping_add(1);
                (*written - 1).rem_euclid(count)
            }
        };
        if !(0..count).contains(&partition) {
            return Err(StreamsError::Fatal(format!(
                "topic {} has {count} partitions in this driver, a record names partition {partition}",
                record.topic
            )));
        }
        record.partition = Some(partition);
        Ok(())
    }

    pub(super) fn partition(&self, record: &ProducerRecord) -> TopicPartition {
        let partition = match self.layout {
            Layout::Single => 0,
            Layout::Apart { .. } => record.partition.unwrap_or(0),
        };
        TopicPartition { topic: record.topic.clone(), partition }
    }

    fn enqueue(&mut self, record: &ProducerRecord) -> Result<()> {
        let partition = self.partition(record);
        let Some(task) =
            self.tasks.iter_mut().find(|task| task.partitions().any(|known| *known == partition))
        else {
            return Ok(());
        };
        let offset = self.offsets.entry(partition.clone()).or_default();
        let record = consumed(record, partition.partition, *offset, self.now);
        *offset += 1;
        task.add_records_at(&partition, [record], self.now)
    }

    fn update_global(&mut self, record: &ProducerRecord) -> Result<()> {
        let partition = self.partition(record);
        let Some(task) = &mut self.global_task else { return Ok(()) };
        if !task.partitions().any(|known| *known == partition) {
            return Ok(());
        }
        let offset = self.offsets.entry(partition.clone()).or_default();
        task.add_records(&partition, [consumed(record, partition.partition, *offset, self.now)])?;
        *offset += 1;
        while task.process(self.now)? {}
        task.post_commit();
        Ok(())
    }

    /// Runs `f` on a store, raw; `partition` chooses among the tasks that have a part of it.
    pub(super) fn with_store<R>(
        &self,
        name: &str,
        partition: Option<i32>,
        f: impl FnOnce(&mut Store) -> R,
    ) -> Result<R> {
        let id = self.store_id(name)?;
        if let Some(global) = self.globals.get(&id.0) {
            return Ok(f(&mut global.lock().unwrap_or_else(std::sync::PoisonError::into_inner)));
        }
        let task = self.owner(id, name, partition)?;
        task.graph()
            .store(id, f)
            .ok_or_else(|| StreamsError::fatal(format!("store {name} is not in {}", task.id())))
    }

    /// Runs `f` in the place of the first processor that uses a store; `partition` chooses among the tasks that have a part of it.
    pub(super) fn at_store<R>(
        &self,
        name: &str,
        partition: Option<i32>,
        f: impl FnOnce(NodeContext<'_>, StoreId) -> Result<R>,
    ) -> Result<R> {
        let id = self.store_id(name)?;
        let task = match &self.global_task {
            Some(task) if self.topology.stores[id.0].global => task,
            _ => self.owner(id, name, partition)?,
        };
        let user = self.topology.stores[id.0].users.first().copied().unwrap_or_default();
        f(NodeContext::new(task.graph(), user), id)
    }

    fn store_id(&self, name: &str) -> Result<StoreId> {
        let unknown = || StreamsError::Topology(format!("there is no store {name}"));
        self.topology.store_id(name).ok_or_else(unknown)
    }

    fn owner(&self, id: StoreId, name: &str, partition: Option<i32>) -> Result<&StreamTask> {
        let mut owners = self.owners(id).filter(|task| partition.is_none_or(|p| task.id().partition == p));
        if let (Some(task), None) = (owners.next(), owners.next()) {
            return Ok(task);
        }
        let partitions = self.store_partitions(name);
        Err(StreamsError::Topology(match (partition, partitions.len()) {
            (_, 0) => format!("no processor uses store {name}"),
            (Some(p), _) => format!("store {name} has no partition {p}: it has {partitions:?}"),
            (None, _) => {
                format!("store {name} has partitions {partitions:?}: choose one, as (\"{name}\", 0)")
            }
        }))
    }

    /// Partitions of a store, ascending.
    pub(super) fn store_partitions(&self, name: &str) -> Vec<i32> {
        match self.topology.store_id(name) {
            Some(id) => self.owners(id).map(|task| task.id().partition).collect(),
            None => Vec::new(),
        }
    }

    fn owners(&self, store: StoreId) -> impl Iterator<Item = &StreamTask> {
        self.tasks.iter().filter(move |task| task.graph().store_ids().contains(&store))
    }

    /// Records dropped so far, the global task's included.
    pub(super) fn dropped(&self) -> Dropped {
        let mut all = self.dropped_before.clone();
        for task in self.tasks.iter().chain(&self.global_task) {
            for ((node, reason), count) in task.dropped() {
                *all.entry((task.id(), task.node_name(node), reason)).or_default() += count;
            }
        }
        all
    }
}

/// The task that Kafka's harness runs: everything in one.
pub(crate) fn lone_task(topology: &Topology, options: &TaskOptions) -> Result<StreamTask> {
    let layout = Layout::new(topology, None)?;
    let Some(plan) = layout.tasks(topology).into_iter().next() else {
        return Err(StreamsError::Topology("there is no task in this topology".to_owned()));
    };
    let stores = build_stores(topology, &plan, options.config.semantics)?;
    let mut task = make_task(plan, stores, options)?;
    task.init(HashMap::new(), 0)?;
    Ok(task)
}

/// The stores of a task. Caches are flushed in the order stores were first used by a processor, not in the order they were added.
pub(super) fn build_stores(
    topology: &Topology,
    plan: &TaskPlan,
    semantics: Semantics,
) -> Result<Vec<(StoreId, Store)>> {
    let environment =
        StoreEnvironment { cache: Some(CacheOptions::new(CACHE_BYTES, semantics)), db: None, semantics };
    let mut stores: Vec<(StoreId, Store)> = Vec::new();
    for id in plan.nodes.iter().flat_map(|node| &topology.nodes[*node].stores) {
        let spec = &topology.stores[id.0];
        if !spec.global && !stores.iter().any(|(known, _)| known == id) {
            stores.push((*id, spec.builder.build(&environment)?));
        }
    }
    Ok(stores)
}

pub(super) fn make_task(
    plan: TaskPlan,
    stores: Vec<(StoreId, Store)>,
    options: &TaskOptions,
) -> Result<StreamTask> {
    let mut task = StreamTask::new(plan.id, options, plan.nodes, stores, &plan.partitions)?;
    for partition in &plan.partitions {
        task.set_lag(partition, 0, None);
    }
    Ok(task)
}

pub(super) fn consumed(
    record: &ProducerRecord,
    partition: i32,
    offset: i64,
    now: Timestamp,
) -> ConsumerRecord {
    ConsumerRecord {
        topic: record.topic.clone(),
        partition,
        offset,
        timestamp: record.timestamp.unwrap_or(now),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
    }
}
