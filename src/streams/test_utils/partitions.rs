//! [`Partitions`]: how many partitions the topics of a driver have, and who reads them.
//!
//! Decides what tasks a driver is made of. Counts of repartition topics and co-partitioning follow the same rules as in production
//! ([`plan_partitions_from`]); only the counts of the topics outside the application are the test's to say.

use std::{collections::BTreeMap, sync::Arc};

use crate::streams::{
    error::{Result, StreamsError},
    processor::NodeId,
    record::TopicPartition,
    runtime::{TaskId, plan_partitions_from},
    topology::{NodeKind, Topology, changelog_topic},
};

/// How many partitions the topics outside the application have. Repartition topics take theirs from them, as in production.
///
/// ```
/// use sluice::streams::test_utils::Partitions;
///
/// let partitions = Partitions::each(3).topic("currencies", 1);
/// # let _ = partitions;
/// ```
#[derive(Clone, Debug)]
pub struct Partitions {
    each: i32,
    topics: BTreeMap<Arc<str>, i32>,
}

impl Partitions {
    /// This many (> 0) for every topic.
    pub fn each(count: i32) -> Self {
        Self { each: count, topics: BTreeMap::new() }
    }

    /// Another count (> 0) for one topic.
    pub fn topic(mut self, topic: &str, count: i32) -> Self {
        self.topics.insert(topic.into(), count);
        self
    }

    fn count(&self, topic: &str) -> i32 {
        self.topics.get(topic).copied().unwrap_or(self.each)
    }
}

/// A task of the driver: what it runs and reads.
pub(super) struct TaskPlan {
    pub id: TaskId,
    pub nodes: Vec<NodeId>,
    pub partitions: Vec<TopicPartition>,
}

/// The partition counts of all topics of a driver.
#[derive(Clone)]
pub(super) enum Layout {
    /// Kafka's harness: one partition each, one task for everything.
    Single,
    /// As in production.
    Apart { asked: Partitions, known: BTreeMap<Arc<str>, i32> },
}

impl Layout {
    pub(super) fn new(topology: &Topology, partitions: Option<Partitions>) -> Result<Self> {
        let Some(asked) = partitions else { return Ok(Layout::Single) };
        let external = topology.external_source_topics().into_iter().chain(topology.global_topics());
        let external: BTreeMap<Arc<str>, i32> =
            external.map(|topic| (topic.clone(), asked.count(&topic))).collect();
        if let Some((topic, count)) = external.iter().find(|(_, count)| **count < 1) {
            return Err(StreamsError::Topology(format!(
                "topic {topic} of the driver would have {count} partitions: give it at least 1"
            )));
        }
        let plan = plan_partitions_from(topology, external)?;
        let mut known = plan.partitions;
        for subtopology in &topology.subtopologies {
            for store in &subtopology.stores {
                let name = &topology.stores[store.0].builder.name;
                // A changelog has one partition per task.
                known.insert(changelog_topic(&topology.application_id, name), plan.tasks[subtopology.id]);
            }
        }
        Ok(Layout::Apart { asked, known })
    }

    /// How many partitions a topic has.
    pub(super) fn count(&self, topic: &str) -> i32 {
        match self {
            Layout::Single => 1,
            Layout::Apart { asked, known } => {
                known.get(topic).copied().unwrap_or_else(|| asked.count(topic)).max(1)
            }
        }
    }

    /// The tasks, in the order they have their turns.
    pub(super) fn tasks(&self, topology: &Topology) -> Vec<TaskPlan> {
        if matches!(self, Layout::Single) {
            let nodes: Vec<NodeId> =
                (0..topology.nodes.len()).filter(|id| !topology.global_nodes.contains(id)).collect();
            let partitions = self.source_partitions(topology, &nodes);
            let id = TaskId { subtopology: 0, partition: 0 };
            return if partitions.is_empty() { vec![] } else { vec![TaskPlan { id, nodes, partitions }] };
        }
        let mut tasks = Vec::new();
        for subtopology in &topology.subtopologies {
            let all = self.source_partitions(topology, &subtopology.nodes);
            let count = all.iter().map(|partition| partition.partition + 1).max().unwrap_or(0);
            for partition in 0..count {
                tasks.push(TaskPlan {
                    id: TaskId { subtopology: subtopology.id, partition },
                    nodes: subtopology.nodes.clone(),
                    partitions: all.iter().filter(|p| p.partition == partition).cloned().collect(),
                });
            }
        }
        tasks
    }

    /// Every partition that these nodes read, in the order of the sources.
    pub(super) fn source_partitions(&self, topology: &Topology, nodes: &[NodeId]) -> Vec<TopicPartition> {
        nodes
            .iter()
            .filter_map(|id| match &topology.nodes[*id].kind {
                NodeKind::Source(source) => Some(source.topics.iter().cloned()),
                _ => None,
            })
            .flatten()
            .flat_map(|topic| {
                (0..self.count(&topic))
                    .map(move |partition| TopicPartition { topic: topic.clone(), partition })
            })
            .collect()
    }
}
