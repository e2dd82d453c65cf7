//! The global thread: full copies of global topics, complete before any task starts, kept up to date afterwards
//! (Kafka's `GlobalStreamThread`). No time synchronisation with tasks.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    internal_topics::PartitionPlan,
    stream_thread::Clock,
    task::{StreamTask, TaskOptions},
    task_graph::GlobalStores,
    task_id::TaskId,
};
use crate::streams::{
    client::{ClientSupplier, Consumer, ConsumerConfig},
    config::Semantics,
    error::{Result, StreamsError},
    record::TopicPartition,
    state::StoreEnvironment,
    topology::Topology,
};

/// Builds the global stores of a topology, empty.
pub(super) fn build_stores(topology: &Topology, semantics: Semantics) -> Result<GlobalStores> {
    let environment = StoreEnvironment { semantics, ..StoreEnvironment::default() };
    let mut stores = BTreeMap::new();
    for (index, spec) in topology.stores.iter().enumerate() {
        if spec.global {
            stores.insert(index, Mutex::new(spec.builder.build(&environment)?));
        }
    }
    Ok(Arc::new(stores))
}

pub(super) struct GlobalThread(JoinHandle<()>);

impl GlobalThread {
    /// Reads every global topic to its end, then goes on in a thread of its own.
    pub(super) fn start(
        options: TaskOptions,
        clients: Arc<dyn ClientSupplier>,
        plan: Arc<PartitionPlan>,
        clock: Clock,
        stop: Arc<AtomicBool>,
        failure: Arc<Mutex<Option<String>>>,
    ) -> Result<Self> {
        let topology = options.topology.clone();
        let partitions: Vec<TopicPartition> = topology
            .global_topics()
            .into_iter()
            .flat_map(|topic| {
                let count = plan.partitions.get(&topic).copied().unwrap_or(1);
                (0..count).map(move |partition| TopicPartition { topic: topic.clone(), partition })
            })
            .collect();
        let id = TaskId { subtopology: topology.subtopologies.len(), partition: 0 };
        let mut task = StreamTask::new(id, &options, topology.global_nodes.clone(), Vec::new(), &partitions)?;
        task.init(HashMap::new(), clock())?;
        let mut consumer = clients.consumer(&ConsumerConfig {
            read_committed: true,
            max_poll_records: options.config.max_poll_records,
            ..ConsumerConfig::default()
        })?;
        let mut ends = BTreeMap::new();
        let mut assignment = Vec::new();
        for partition in &partitions {
            let (first, end) = consumer.watermarks(partition)?;
            assignment.push((partition.clone(), Some(first)));
            ends.insert(partition.clone(), end);
        }
        consumer.assign(&assignment)?;
        while !reached(consumer.as_mut(), &ends)? {
            step(consumer.as_mut(), &mut task, &clock, Duration::from_millis(100))?;
        }
        let handle = std::thread::Builder::new()
            .name(format!("{}-global", topology.application_id))
            .spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = step(consumer.as_mut(), &mut task, &clock, Duration::from_millis(100))
                    {
                        tracing::error!(%error, "global stores no longer follow their topics");
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                consumer.close();
            })
            .map_err(|error| StreamsError::fatal(format!("cannot start the global thread: {error}")))?;
        Ok(Self(handle))
    }

    pub(super) fn join(self) {
        let _ = self.0.join();
    }
}

fn reached(consumer: &mut dyn Consumer, ends: &BTreeMap<TopicPartition, i64>) -> Result<bool> {
    for (partition, end) in ends {
        if consumer.position(partition)?.unwrap_or(0) < *end {
            return Ok(false);
        }
    }
    Ok(true)
}

fn step(consumer: &mut dyn Consumer, task: &mut StreamTask, clock: &Clock, timeout: Duration) -> Result<()> {
    let now = clock();
    for record in consumer.poll(timeout)?.records {
        let partition = TopicPartition { topic: record.topic.clone(), partition: record.partition };
        task.add_records_at(&partition, [record], now)?;
    }
    while task.process(now)? {}
    task.post_commit();
    Ok(())
}
