//! A topology: sources, processors and sinks, the edges between them, the stores they use, the topics inside.
//!
//! Files and the typed DSL both lower to a [`TopologyBuilder`] (Kafka's `InternalTopologyBuilder`); the runtime and
//! the test driver run the [`Topology`] it builds. Nothing here processes a record.

mod builder;
mod describe;
mod drawing;
mod java_tree_set;
mod node;
mod subtopology;
mod timestamp_extractor;

pub use builder::TopologyBuilder;
pub use node::{
    BadRecordPolicy, DecodedRecord, EncodedRecord, Partitioner, RecordDecoder, RecordEncoder, SinkSpec,
    SinkTopic, SourceSpec, TimestampExtractor, serde_decoder, serde_encoder,
};
pub(crate) use node::{NodeKind, NodeSpec};
pub use subtopology::changelog_topic;
pub(crate) use subtopology::{Subtopology, repartition_topic};
pub use timestamp_extractor::{
    fail_on_invalid_timestamp, log_and_skip_on_invalid_timestamp, use_partition_time_on_invalid_timestamp,
    wallclock_timestamp,
};

use std::{collections::BTreeMap, sync::Arc};

use super::{
    processor::{NodeId, StoreId},
    state::StoreBuilder,
};

/// A store of a topology and who uses it.
#[derive(Clone)]
pub(crate) struct StoreSpec {
    /// How to build it.
    pub builder: StoreBuilder,
    /// Processors connected to it.
    pub users: Vec<NodeId>,
    /// A source topic that is itself the changelog of this store (`reuse.ktable.source.topics`, read-only and global stores).
    pub source_topic: Option<Arc<str>>,
    /// Whether the store is global: one full copy per instance, filled from its topic before anything starts.
    pub global: bool,
}

/// A built, valid topology. Immutable and shared by all tasks.
pub struct Topology {
    /// Application id: prefix of internal topics, name of the consumer group.
    pub(crate) application_id: Arc<str>,
    /// All nodes, in the order they were added; [`NodeId`] is the position.
    pub(crate) nodes: Vec<NodeSpec>,
    /// All stores, in the order they were added; [`StoreId`] is the position.
    pub(crate) stores: Vec<StoreSpec>,
    /// Connected components, by number.
    pub(crate) subtopologies: Vec<Subtopology>,
    /// Nodes of the global component (global tables and stores); they run in no task.
    pub(crate) global_nodes: Vec<NodeId>,
    /// Repartition topics: full name to the partition count asked for, if one was.
    pub(crate) repartition_topics: BTreeMap<Arc<str>, Option<i32>>,
    /// Groups of topics that must have equal partition counts.
    pub(crate) copartition_groups: Vec<Vec<Arc<str>>>,
    /// Changelogs that are not named after the application, by store.
    pub(crate) changelog_names: BTreeMap<String, Arc<str>>,
}

impl Topology {
    /// The application id: prefix of internal topics, name of the consumer group.
    pub fn application_id(&self) -> &str {
        &self.application_id
    }

    /// The changelog of a store.
    pub(crate) fn changelog_topic(&self, store: &str) -> Arc<str> {
        let named = self.changelog_names.get(store).cloned();
        named.unwrap_or_else(|| changelog_topic(&self.application_id, store))
    }

    /// Gives the processors that use a store clocks under other names, so that they begin without those committed before.
    pub(crate) fn scope_clocks_of(&mut self, store: &str, scope: &str) {
        let Some(id) = self.store_id(store) else { return };
        for node in self.nodes.iter_mut().filter(|node| node.stores.contains(&id)) {
            node.clock_scope = Some(scope.into());
        }
    }

    /// Finds a store by name.
    pub(crate) fn store_id(&self, name: &str) -> Option<StoreId> {
        self.stores.iter().position(|store| store.builder.name == name).map(StoreId)
    }

    /// All source topics outside the application, in node order, global ones left out.
    pub(crate) fn external_source_topics(&self) -> Vec<Arc<str>> {
        let mut topics = Vec::new();
        for subtopology in &self.subtopologies {
            for topic in &subtopology.source_topics {
                if !self.repartition_topics.contains_key(topic) && !topics.contains(topic) {
                    topics.push(topic.clone());
                }
            }
        }
        topics
    }

    /// Topics that fill global stores.
    pub(crate) fn global_topics(&self) -> Vec<Arc<str>> {
        self.global_nodes
            .iter()
            .filter_map(|id| match &self.nodes[*id].kind {
                NodeKind::Source(source) => Some(source.topics.clone()),
                _ => None,
            })
            .flatten()
            .collect()
    }
}
