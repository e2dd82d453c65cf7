//! Sub-topologies: the connected components of a topology, and the names of the topics inside the application.
//!
//! Derived names are computed here and nowhere else. Numbering follows Kafka's `makeNodeGroups`: by the first node added.

use std::sync::Arc;

use super::{NodeKind, NodeSpec, SinkTopic, StoreSpec};
use crate::streams::processor::{NodeId, StoreId};

/// `<application_id>-<store>-changelog`
pub fn changelog_topic(application_id: &str, store: &str) -> Arc<str> {
    format!("{application_id}-{store}-changelog").into()
}

/// `<application_id>-<name>`, where the name already ends in `-repartition` (or is one of the foreign-key topics).
pub(crate) fn repartition_topic(application_id: &str, name: &str) -> Arc<str> {
    format!("{application_id}-{name}").into()
}

/// A connected component: what one task runs.
#[derive(Clone, Debug)]
pub(crate) struct Subtopology {
    /// Number; first half of a task id.
    pub id: usize,
    /// Nodes, in the order they were added.
    pub nodes: Vec<NodeId>,
    /// Stores, in the order their first user was added: the order caches are flushed in.
    pub stores: Vec<StoreId>,
    /// Topics read, repartition topics included.
    pub source_topics: Vec<Arc<str>>,
    /// Fixed topics written.
    pub sink_topics: Vec<Arc<str>>,
}

/// Splits nodes into sub-topologies.
pub(super) fn split(
    nodes: &[NodeSpec],
    stores: &[StoreSpec],
    groups: &mut UnionFind,
    global: &[NodeId],
) -> Vec<Subtopology> {
    let mut roots: Vec<NodeId> = Vec::new();
    for id in (0..nodes.len()).filter(|id| !global.contains(id)) {
        let root = groups.root(id);
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
        .into_iter()
        .enumerate()
        .map(|(id, root)| {
            let members: Vec<NodeId> = (0..nodes.len())
                .filter(|node| !global.contains(node) && groups.root(*node) == root)
                .collect();
            component(id, members, nodes, stores)
        })
        .collect()
}

fn component(id: usize, members: Vec<NodeId>, nodes: &[NodeSpec], stores: &[StoreSpec]) -> Subtopology {
    let mut used: Vec<StoreId> = Vec::new();
    let mut source_topics = Vec::new();
    let mut sink_topics = Vec::new();
    for node in &members {
        for store in &nodes[*node].stores {
            if !used.contains(store) && !stores[store.0].global {
                used.push(*store);
            }
        }
        match &nodes[*node].kind {
            NodeKind::Source(source) => source_topics.extend(source.topics.iter().cloned()),
            NodeKind::Sink(sink) => {
                if let SinkTopic::Fixed(topic) = &sink.topic {
                    sink_topics.push(topic.clone());
                }
            }
            NodeKind::Processor(_) => {}
        }
    }
    Subtopology { id, nodes: members, stores: used, source_topics, sink_topics }
}

/// Disjoint sets of nodes (Kafka's `QuickUnion`).
#[derive(Default)]
pub(super) struct UnionFind(Vec<NodeId>);

impl UnionFind {
    /// Adds a node of its own; nodes are added in order.
    pub(super) fn add(&mut self, id: NodeId) {
        debug_assert_eq!(self.0.len(), id);
        self.0.push(id);
    }

    /// The representative of a node's set.
    pub(super) fn root(&mut self, id: NodeId) -> NodeId {
        let mut at = id;
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    /// Joins two sets.
    pub(super) fn unite(&mut self, a: NodeId, b: NodeId) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[b.max(a)] = a.min(b);
    }
}
