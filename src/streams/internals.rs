//! Doors to the inside for this repository's own tests, simulation and benches, which are programs of their own. No part of the API:
//! what is here may change or go at any time.

use super::{
    config::StreamsConfig,
    error::Result,
    processor::{ProcessingContext, StoreId},
    record::{ConsumerRecord, ProducerRecord, TopicPartition},
    runtime::StreamTask,
    state::{Backend, StoreBuilder},
    test_utils::lone_task,
    topology::{NodeKind, RecordDecoder, SinkTopic, Topology},
};

pub use super::{
    client::embedded::{FaultHook, LogCall},
    failpoint::NAMES as FAILPOINTS,
    file::{
        expression::{Expression, Predicate, Scope, check, check_boolean},
        test_file::parse_tests,
        time::{format_timestamp, parse_timestamp},
        value::{Column, ColumnType, DataType, Datum},
    },
    runtime::{
        CommitStep, PartitionPlan, StepHook, StreamThread, TaskOptions, TaskState, ThreadParts, ThreadStatus,
        create_internal_topics, plan_partitions,
    },
    state::{
        CacheOptions, KeyValueStore, Order, SavePolicy, SavedOffsets, SessionStore, StateMemory, Store,
        StoreEnvironment, TaskDb, TaskDbOptions, ValueAndTimestamp, VersionedRecord, VersionedStore,
        WindowStore,
    },
    topology::changelog_topic,
};

/// Runs `f` on a store whose types are known at run time only.
pub fn with_store<R>(
    context: &ProcessingContext<'_>,
    store: StoreId,
    f: impl FnOnce(&mut Store) -> Result<R>,
) -> Result<R> {
    context.node().with_store(store, f)
}

/// All stores of a topology, global ones included.
pub fn store_builders(topology: &Topology) -> Vec<StoreBuilder> {
    topology.stores.iter().map(|store| store.builder.clone()).collect()
}

/// The stores of a topology's tasks, each with the number of its sub-topology.
pub fn stores(topology: &Topology) -> Vec<(usize, StoreBuilder)> {
    let of = |part: &super::topology::Subtopology| {
        let id = part.id;
        part.stores.iter().map(|store| (id, topology.stores[store.0].builder.clone())).collect::<Vec<_>>()
    };
    topology.subtopologies.iter().flat_map(of).collect()
}

/// Moves every persistent store of a topology to memory.
pub fn keep_in_memory(topology: &mut Topology) {
    for store in &mut topology.stores {
        if store.builder.backend == Backend::Persistent {
            store.builder.backend = Backend::InMemory;
        }
    }
}

/// Topics outside the application that a topology reads, those of global tables included.
pub fn input_topics(topology: &Topology) -> Vec<std::sync::Arc<str>> {
    let mut topics = topology.external_source_topics();
    topics.extend(topology.global_topics());
    topics
}

/// How the records of a source topic are read.
pub fn decoder(topology: &Topology, topic: &str) -> Option<RecordDecoder> {
    topology.nodes.iter().find_map(|node| match &node.kind {
        NodeKind::Source(source) if source.topics.iter().any(|known| &**known == topic) => {
            Some(source.decoder.clone())
        }
        _ => None,
    })
}

/// One task with all of a topology, stores in memory, no log: for measuring operators alone.
pub struct LoneTask(StreamTask);

impl LoneTask {
    /// A task for partition 0 of every topic.
    pub fn new(topology: Topology, config: StreamsConfig) -> Result<Self> {
        let topology = std::sync::Arc::new(topology);
        let options = TaskOptions {
            partition_counts: std::sync::Arc::new(|_| Ok(1)),
            ..TaskOptions::new(topology.clone(), std::sync::Arc::new(config))
        };
        Ok(Self(lone_task(&topology, &options)?))
    }

    /// Processes records of one topic, then commits: caches are flushed. What was written, changelogs included, is added to `out`.
    pub fn process(
        &mut self,
        topic: &TopicPartition,
        records: Vec<ConsumerRecord>,
        out: &mut Vec<ProducerRecord>,
    ) -> Result<()> {
        self.0.add_records(topic, records)?;
        while self.0.process(0)? {}
        self.0.prepare_commit()?;
        self.0.drain_output(out)?;
        self.0.post_commit();
        Ok(())
    }
}

/// A topic between two sub-topologies.
pub struct Hop {
    /// Its full name.
    pub topic: String,
    /// How its records are read.
    pub decoder: RecordDecoder,
    /// Names of the nodes above the sinks that write it.
    pub writers: Vec<String>,
}

/// The topics inside a topology that carry records.
pub fn hops(topology: &Topology) -> Vec<Hop> {
    let mut hops = Vec::new();
    for node in &topology.nodes {
        let NodeKind::Source(source) = &node.kind else { continue };
        for topic in source.topics.iter().filter(|_| source.internal) {
            let writes = |kind: &NodeKind| matches!(kind, NodeKind::Sink(sink) if matches!(&sink.topic, SinkTopic::Fixed(t) if t == topic));
            let sinks = topology.nodes.iter().filter(|node| writes(&node.kind));
            let writers = sinks.flat_map(|sink| &sink.parents).map(|id| topology.nodes[*id].name.to_string());
            let (topic, decoder) = (topic.to_string(), source.decoder.clone());
            hops.push(Hop { topic, decoder, writers: writers.collect() });
        }
    }
    hops
}
