//! [`TopologyTestDriver`]: the production task over topics in memory and a clock that stands still.
//!
//! Reproduces the harness of Kafka's own driver (streams-semantics 2.1): one task holds all sub-topologies, every topic has one
//! partition, one input record drains completely before the next, and only
//! [`advance_wall_clock_time`](TopologyTestDriver::advance_wall_clock_time) moves the wall clock.

mod file_test;
mod topics;

pub use file_test::{TestOutcome, run_test_file};
pub use topics::{TestInputTopic, TestOutputTopic, TestRecord};

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, VecDeque},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    config::StreamsConfig,
    error::{Result, StreamsError},
    processor::{ErrorHandlers, ErrorResponse, NodeId, StoreId},
    record::{ConsumerRecord, ProducerRecord, Timestamp, TopicPartition},
    runtime::{GlobalStores, StreamTask, TaskId, TaskOptions},
    serdes::AnySerde,
    state::{Store, StoreEnvironment},
    topology::{NodeKind, TimestampExtractor, Topology},
};

/// Drives a topology record by record. Cloning gives another handle to the same driver.
#[derive(Clone)]
pub struct TopologyTestDriver(Rc<RefCell<Driver>>);

/// What a driver is made with, beside the topology.
#[derive(Clone)]
pub struct DriverOptions {
    /// Settings; `emit_interval_ms` is 0 here by default, as in Kafka's driver.
    pub config: StreamsConfig,
    /// Error handlers.
    pub handlers: ErrorHandlers,
    /// Default timestamp extractor; `None` = FailOnInvalidTimestamp.
    pub timestamp_extractor: Option<TimestampExtractor>,
    /// Wall clock at the start, milliseconds.
    pub wall_clock_ms: Timestamp,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            config: StreamsConfig { emit_interval_ms: 0, ..StreamsConfig::default() },
            handlers: ErrorHandlers::default(),
            timestamp_extractor: None,
            wall_clock_ms: 0,
        }
    }
}

struct Driver {
    topology: Arc<Topology>,
    /// Runs everything but global stores; `None` when the topology has nothing else.
    task: Option<StreamTask>,
    /// Fills global stores.
    global_task: Option<StreamTask>,
    globals: GlobalStores,
    now: Timestamp,
    /// Next offset per input topic.
    offsets: HashMap<Arc<str>, i64>,
    outputs: BTreeMap<Arc<str>, VecDeque<ProducerRecord>>,
}

impl TopologyTestDriver {
    /// A driver with default options.
    pub fn new(topology: Topology) -> Result<Self> {
        Self::with_options(topology, DriverOptions::default())
    }

    /// A driver with the given settings.
    pub fn with_options(topology: Topology, options: DriverOptions) -> Result<Self> {
        let topology = Arc::new(topology);
        let mut globals = BTreeMap::new();
        let mut stores = Vec::new();
        for (index, spec) in topology.stores.iter().enumerate() {
            let store = spec.builder.build(&StoreEnvironment::default())?;
            if spec.global {
                globals.insert(index, Mutex::new(store));
            } else {
                stores.push((StoreId(index), store));
            }
        }
        // Caches are flushed in the order stores were first used by a processor, not in the order they were added.
        let nodes: Vec<usize> =
            (0..topology.nodes.len()).filter(|id| !topology.global_nodes.contains(id)).collect();
        let mut order: Vec<StoreId> = Vec::new();
        for node in &nodes {
            for store in &topology.nodes[*node].stores {
                if !order.contains(store) {
                    order.push(*store);
                }
            }
        }
        stores.retain(|(id, _)| order.contains(id));
        stores.sort_by_key(|(id, _)| order.iter().position(|known| known == id));

        let mut task_options = TaskOptions::new(topology.clone(), Arc::new(options.config));
        task_options.handlers = options.handlers;
        if let Some(extractor) = options.timestamp_extractor {
            task_options.timestamp_extractor = extractor;
        }
        task_options.partition_counts = Arc::new(|_| Ok(1));
        task_options.globals = Arc::new(globals);
        let make = |nodes: Vec<usize>, stores, options: &TaskOptions| -> Result<Option<StreamTask>> {
            let partitions = source_partitions(&topology, &nodes);
            if partitions.is_empty() {
                return Ok(None);
            }
            let id = TaskId { subtopology: 0, partition: 0 };
            let mut task = StreamTask::new(id, options, nodes, stores, &partitions)?;
            for partition in &partitions {
                task.set_lag(partition, 0);
            }
            Ok(Some(task))
        };
        let mut task = make(nodes, stores, &task_options)?;
        // As in Kafka's driver, a global table leaves out what it cannot read, whatever the handlers say, and writes no dead letters.
        let global_options = TaskOptions {
            handlers: ErrorHandlers {
                deserialization: ErrorHandlers::always(ErrorResponse::Continue).deserialization,
                ..ErrorHandlers::default()
            },
            ..task_options.clone()
        };
        let mut global_task = make(topology.global_nodes.clone(), Vec::new(), &global_options)?;
        for task in [&mut global_task, &mut task].into_iter().flatten() {
            task.init(HashMap::new(), options.wall_clock_ms)?;
        }
        Ok(Self(Rc::new(RefCell::new(Driver {
            topology,
            task,
            global_task,
            globals: task_options.globals,
            now: options.wall_clock_ms,
            offsets: HashMap::new(),
            outputs: BTreeMap::new(),
        }))))
    }

    /// A typed handle that writes to an input topic.
    pub fn create_input_topic<K, V>(
        &self,
        topic: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
    ) -> TestInputTopic<K, V> {
        TestInputTopic::new(self.clone(), topic, key_serde, value_serde)
    }

    /// A typed handle that reads what was written to a topic: output, repartition or changelog.
    pub fn create_output_topic<K, V>(
        &self,
        topic: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
    ) -> TestOutputTopic<K, V> {
        TestOutputTopic::new(self.clone(), topic, key_serde, value_serde)
    }

    /// Writes raw bytes to an input topic and processes until nothing is left to do.
    pub fn pipe_record(&self, record: ProducerRecord) -> Result<()> {
        self.0.borrow_mut().pipe(record)
    }

    /// Moves the wall clock, calls wall-clock schedules once, commits, and processes what they wrote.
    pub fn advance_wall_clock_time(&self, by: Duration) -> Result<()> {
        self.0.borrow_mut().advance(by.as_millis() as i64)
    }

    /// The wall clock.
    pub fn now(&self) -> Timestamp {
        self.0.borrow().now
    }

    /// Takes everything written to a topic since the last call, oldest first.
    pub fn read_records(&self, topic: &str) -> Vec<ProducerRecord> {
        self.0.borrow_mut().outputs.get_mut(topic).map(|queue| queue.drain(..).collect()).unwrap_or_default()
    }

    /// Takes the oldest record written to a topic.
    pub fn read_record(&self, topic: &str) -> Option<ProducerRecord> {
        self.0.borrow_mut().outputs.get_mut(topic)?.pop_front()
    }

    /// Topics something was written to.
    pub fn produced_topic_names(&self) -> Vec<Arc<str>> {
        self.0.borrow().outputs.keys().cloned().collect()
    }

    /// Runs `f` on a store, global ones included.
    pub fn with_store<R>(&self, name: &str, f: impl FnOnce(&mut Store) -> R) -> Result<R> {
        let driver = self.0.borrow();
        let id = driver
            .topology
            .store_id(name)
            .ok_or_else(|| StreamsError::Topology(format!("there is no store {name}")))?;
        if let Some(global) = driver.globals.get(&id.0) {
            return Ok(f(&mut global.lock().unwrap_or_else(std::sync::PoisonError::into_inner)));
        }
        driver
            .task
            .as_ref()
            .and_then(|task| task.graph().store(id, f))
            .ok_or_else(|| StreamsError::Topology(format!("no processor uses store {name}")))
    }

    /// Records dropped so far, all nodes and reasons together (the `dropped-records-total` metric).
    pub fn dropped_records(&self) -> u64 {
        let driver = self.0.borrow();
        [&driver.task, &driver.global_task]
            .into_iter()
            .flatten()
            .map(|task| task.dropped().values().sum::<u64>())
            .sum()
    }

    /// Records dropped so far by one node for one reason (a label of the `dropped-records` metric).
    pub fn dropped_by(&self, node: &str, reason: &str) -> u64 {
        let driver = self.0.borrow();
        let Some(task) = &driver.task else { return 0 };
        let of_node = |id: NodeId| *task.node_name(id) == *node;
        let dropped = task.dropped().into_iter();
        dropped.filter(|((id, why), _)| of_node(*id) && why.as_str() == reason).map(|(_, count)| count).sum()
    }

    /// Sets the wall clock forward, if it is behind, as [`advance_wall_clock_time`](Self::advance_wall_clock_time) does.
    pub fn advance_wall_clock_to(&self, now: Timestamp) -> Result<()> {
        let behind = now - self.now();
        if behind > 0 { self.0.borrow_mut().advance(behind) } else { Ok(()) }
    }

    /// Closes the processors. Nothing is emitted.
    pub fn close(&self) {
        let mut driver = self.0.borrow_mut();
        if let Some(task) = &mut driver.task {
            task.close();
        }
    }
}

impl Driver {
    fn pipe(&mut self, record: ProducerRecord) -> Result<()> {
        let known = [&self.task, &self.global_task]
            .into_iter()
            .flatten()
            .any(|task| task.partitions().any(|partition| partition.topic == record.topic));
        if !known {
            return Err(StreamsError::Topology(format!("no source reads topic {}", record.topic)));
        }
        self.enqueue(&record)?;
        self.complete_all_processable_work()?;
        self.update_global(&record)
    }

    fn advance(&mut self, by_ms: i64) -> Result<()> {
        self.now += by_ms;
        if let Some(task) = &mut self.task {
            task.punctuate_wall_clock(self.now)?;
            task.advance_watermark(self.now)?;
        }
        self.commit_and_capture()?;
        self.complete_all_processable_work()
    }

    fn complete_all_processable_work(&mut self) -> Result<()> {
        loop {
            let now = self.now;
            let Some(task) = &mut self.task else { return Ok(()) };
            if !task.is_processable(now) || !task.process(now)? {
                break;
            }
            task.punctuate_stream_time(now)?;
            task.advance_watermark(now)?;
            self.commit_and_capture()?;
        }
        // Dead letters of records that were dropped while buffering.
        self.commit_and_capture()
    }

    /// Flushes, collects everything written, and feeds back what a source reads.
    fn commit_and_capture(&mut self) -> Result<()> {
        let mut written = Vec::new();
        if let Some(task) = &mut self.task {
            task.prepare_commit()?;
            task.drain_output(&mut written)?;
            task.post_commit();
        }
        for record in written {
            self.outputs.entry(record.topic.clone()).or_default().push_back(record.clone());
            self.enqueue(&record)?;
            self.update_global(&record)?;
        }
        Ok(())
    }

    fn enqueue(&mut self, record: &ProducerRecord) -> Result<()> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let partition = TopicPartition { topic: record.topic.clone(), partition: 0 };
        if !task.partitions().any(|known| *known == partition) {
            return Ok(());
        }
        let offset = self.offsets.entry(record.topic.clone()).or_default();
        let record = consumed(record, *offset, self.now);
        *offset += 1;
        task.add_records_at(&partition, [record], self.now)
    }

    fn update_global(&mut self, record: &ProducerRecord) -> Result<()> {
        let Some(task) = &mut self.global_task else { return Ok(()) };
        let partition = TopicPartition { topic: record.topic.clone(), partition: 0 };
        if !task.partitions().any(|known| *known == partition) {
            return Ok(());
        }
        let offset = self.offsets.entry(record.topic.clone()).or_default();
        task.add_records(&partition, [consumed(record, *offset, self.now)])?;
        *offset += 1;
        while task.process(self.now)? {}
        task.post_commit();
        Ok(())
    }
}

fn consumed(record: &ProducerRecord, offset: i64, now: Timestamp) -> ConsumerRecord {
    ConsumerRecord {
        topic: record.topic.clone(),
        partition: 0,
        offset,
        timestamp: record.timestamp.unwrap_or(now),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
    }
}

fn source_partitions(topology: &Topology, nodes: &[usize]) -> Vec<TopicPartition> {
    nodes
        .iter()
        .filter_map(|id| match &topology.nodes[*id].kind {
            NodeKind::Source(source) => Some(source.topics.iter().cloned()),
            _ => None,
        })
        .flatten()
        .map(|topic| TopicPartition { topic, partition: 0 })
        .collect()
}
