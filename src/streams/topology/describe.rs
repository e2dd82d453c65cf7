//! [`Topology::describe`]: the topology as text, equal to Kafka's `TopologyDescription` character for character.
//!
//! Nodes are listed by the size of what hangs below them, largest first, then by name. Within one node's lists Kafka orders by the sizes
//! known *while* it links nodes, and it links them in the order of a Java hash map; both are reproduced here.

use std::{cmp::Ordering, fmt::Write};

use super::{NodeKind, NodeSpec, SinkTopic, Topology, java_tree_set::JavaTreeSet};
use crate::streams::processor::NodeId;

impl Topology {
    /// The text of Kafka's `Topology.describe()`. Internal topics stand without the application's prefix.
    pub fn describe(&self) -> String {
        let mut text = String::from("Topologies:\n ");
        for (number, component) in self.components().iter().enumerate() {
            if component.iter().any(|node| self.global_nodes.contains(node)) {
                self.describe_global(number, component, &mut text);
            } else {
                self.describe_subtopology(number, component, &mut text);
            }
        }
        text
    }

    /// Connected components, global ones included, numbered by their first node.
    fn components(&self) -> Vec<Vec<NodeId>> {
        let mut components: Vec<Vec<NodeId>> =
            self.subtopologies.iter().map(|subtopology| subtopology.nodes.clone()).collect();
        for source in &self.global_nodes {
            if matches!(self.nodes[*source].kind, NodeKind::Source(_)) {
                let mut nodes = vec![*source];
                nodes.extend(&self.nodes[*source].children);
                components.push(nodes);
            }
        }
        components.sort_by_key(|nodes| nodes.iter().min().copied());
        components
    }

    fn describe_subtopology(&self, number: usize, nodes: &[NodeId], text: &mut String) {
        let mut sizes = vec![1; self.nodes.len()];
        let empty = || self.nodes.iter().map(|_| JavaTreeSet::new()).collect::<Vec<_>>();
        let (mut predecessors, mut successors) = (empty(), empty());
        for node in self.hash_order(nodes) {
            for parent in &self.nodes[node].parents {
                predecessors[node].insert(*parent, |a, b| self.order(&sizes, a, b));
                successors[*parent].insert(node, |a, b| self.order(&sizes, a, b));
                let size = sizes[node];
                grow(&mut sizes, &predecessors, *parent, size);
            }
        }
        let mut order = nodes.to_vec();
        order.sort_by(|a, b| self.order(&sizes, *a, *b));
        let _ = writeln!(text, "  Sub-topology: {number}");
        for node in order {
            let (to, from) = (successors[node].items(), predecessors[node].items());
            let _ = writeln!(text, "    {}", self.describe_node(node, &to, &from));
        }
        text.push('\n');
    }

    fn describe_global(&self, number: usize, nodes: &[NodeId], text: &mut String) {
        let _ = writeln!(text, "  Sub-topology: {number} for global store (will not generate tasks)");
        for node in nodes {
            let NodeSpec { children, parents, .. } = &self.nodes[*node];
            let _ = writeln!(text, "    {}", self.describe_node(*node, children, parents));
        }
    }

    fn describe_node(&self, id: NodeId, to: &[NodeId], from: &[NodeId]) -> String {
        let node = &self.nodes[id];
        let name = &node.name;
        let (to, from) = (self.names(to), self.names(from));
        match &node.kind {
            NodeKind::Source(source) => {
                let mut topics: Vec<String> =
                    source.topics.iter().map(|topic| self.undecorated(topic)).collect();
                java_hash_order(&mut topics, |topic| topic);
                format!("Source: {name} (topics: [{}])\n      --> {to}", topics.join(", "))
            }
            NodeKind::Processor(_) => {
                let mut stores: Vec<&str> =
                    node.stores.iter().map(|id| self.stores[id.0].builder.name.as_str()).collect();
                java_hash_order(&mut stores, |store| store);
                format!(
                    "Processor: {name} (stores: [{}])\n      --> {to}\n      <-- {from}",
                    stores.join(", ")
                )
            }
            NodeKind::Sink(sink) => match &sink.topic {
                SinkTopic::Fixed(topic) => {
                    format!("Sink: {name} (topic: {})\n      <-- {from}", self.undecorated(topic))
                }
                SinkTopic::Dynamic(_) => {
                    format!("Sink: {name} (extractor class: a function)\n      <-- {from}")
                }
            },
        }
    }

    fn names(&self, nodes: &[NodeId]) -> String {
        if nodes.is_empty() {
            return "none".to_owned();
        }
        nodes.iter().map(|id| &*self.nodes[*id].name).collect::<Vec<_>>().join(", ")
    }

    fn undecorated(&self, topic: &str) -> String {
        let internal = self.repartition_topics.keys().any(|name| &**name == topic);
        let prefix = format!("{}-", self.application_id);
        match topic.strip_prefix(&prefix) {
            Some(rest) if internal => rest.to_owned(),
            _ => topic.to_owned(),
        }
    }

    /// The order of nodes by the sizes known now: larger first, then by name.
    fn order(&self, sizes: &[usize], a: NodeId, b: NodeId) -> Ordering {
        sizes[b].cmp(&sizes[a]).then_with(|| self.nodes[a].name.cmp(&self.nodes[b].name))
    }

    fn hash_order(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let mut named: Vec<_> = nodes.iter().map(|id| (*id, &*self.nodes[*id].name)).collect();
        java_hash_order(&mut named, |(_, name)| name);
        named.into_iter().map(|(id, _)| id).collect()
    }
}

/// Adds to the size of a node and of all above it.
fn grow(sizes: &mut [usize], predecessors: &[JavaTreeSet<NodeId>], node: NodeId, by: usize) {
    sizes[node] += by;
    for parent in predecessors[node].items() {
        grow(sizes, predecessors, parent, by);
    }
}

/// Sorts items as a `java.util.HashMap` with these keys, inserted in this order, iterates: by bucket, then by insertion.
fn java_hash_order<T>(items: &mut [T], key: impl Fn(&T) -> &str) {
    let mut buckets = 16;
    while items.len() * 4 > buckets * 3 {
        buckets *= 2;
    }
    items.sort_by_key(|item| {
        let hash = key(item)
            .encode_utf16()
            .fold(0_u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(u32::from(unit)));
        ((hash ^ (hash >> 16)) as usize) & (buckets - 1)
    });
}
