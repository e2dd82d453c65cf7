//! [`NodeWatermarks`]: what each node of a task may rely on, which is less than what the inputs vouch for where a node before it
//! holds records back.
//!
//! An operator that lets results go when their windows close sends records older than the watermark that closed them. Whatever is behind
//! it, in this task or beyond a repartition topic, must not be told that watermark before: it would take them for late. So an operator
//! says how old what it still may send can be ([`hold`](NodeWatermarks::hold)), and a node's watermark is the least of what its parents
//! have reached and hold. A record cache holds back, too: what is behind it is told when it has been flushed.

use std::cell::Cell;

use crate::streams::{
    processor::NodeId,
    record::Timestamp,
    topology::{NodeKind, SinkTopic, Topology},
};

pub(super) struct NodeWatermarks {
    /// By node: the nodes before it in this task.
    parents: Vec<Vec<NodeId>>,
    /// By node, for sources of a repartition topic that this very task writes: its sinks.
    feeders: Vec<Vec<NodeId>>,
    /// By node, -1 before the first.
    reached: Vec<Cell<Timestamp>>,
    /// By node, `MAX` where nothing is held.
    held: Vec<Cell<Timestamp>>,
    /// By node: what it had reached when its record cache was last flushed; `MAX` where there is none.
    flushed: Vec<Cell<Timestamp>>,
    /// Something was let go that a pass has not passed on.
    changed: Cell<bool>,
    /// A pass is under way: what a node lets go now is passed on by it.
    passing: Cell<bool>,
    /// By node, for sources with feeders: what those had reached when the pass began. Their records are read by now.
    fed: Vec<Cell<Timestamp>>,
}

impl NodeWatermarks {
    pub(super) fn new(topology: &Topology, nodes: &[NodeId]) -> Self {
        let count = topology.nodes.len();
        let mut parents = vec![Vec::new(); count];
        let mut feeders = vec![Vec::new(); count];
        for node in nodes {
            for child in &topology.nodes[*node].children {
                parents[*child].push(*node);
            }
            let NodeKind::Source(source) = &topology.nodes[*node].kind else { continue };
            for sink in nodes {
                if source.internal
                    && let NodeKind::Sink(spec) = &topology.nodes[*sink].kind
                    && let SinkTopic::Fixed(topic) = &spec.topic
                    && source.topics.contains(topic)
                {
                    feeders[*node].push(*sink);
                }
            }
        }
        let cells = |value: Timestamp| (0..count).map(|_| Cell::new(value)).collect();
        Self {
            parents,
            feeders,
            reached: cells(-1),
            held: cells(Timestamp::MAX),
            flushed: cells(Timestamp::MAX),
            changed: Cell::new(false),
            passing: Cell::new(false),
            fed: cells(-1),
        }
    }

    /// What a node has been told.
    pub(super) fn reached(&self, node: NodeId) -> Timestamp {
        self.reached[node].get()
    }

    /// A node may still send records as old as `until`, and none older.
    pub(super) fn hold(&self, node: NodeId, until: Timestamp) {
        let passed = self.passed(node);
        self.held[node].set(until);
        if !self.passing.get() && self.passed(node) > passed {
            self.changed.set(true);
        }
    }

    /// The records a node sends come out of a cache.
    pub(super) fn cached(&self, node: NodeId) {
        self.flushed[node].set(-1);
    }

    /// The cache of a node has been flushed.
    pub(super) fn cache_flushed(&self, node: NodeId) {
        let reached = self.reached[node].get();
        if self.flushed[node].replace(reached) != reached {
            self.changed.set(true);
        }
    }

    /// What a node's stores have seen the last of: what is in its cache is still to be written to them.
    pub(super) fn stored(&self, node: NodeId) -> Timestamp {
        self.reached[node].get().min(self.flushed[node].get())
    }

    /// What is behind a node may rely on this.
    fn passed(&self, node: NodeId) -> Timestamp {
        self.reached[node].get().min(self.held[node].get()).min(self.flushed[node].get())
    }

    fn least(&self, nodes: &[NodeId]) -> Timestamp {
        nodes.iter().map(|node| self.passed(*node)).min().unwrap_or(Timestamp::MAX)
    }

    /// Begins a pass over all nodes, in the order they were added: parents come first.
    pub(super) fn begin(&self) {
        self.changed.set(false);
        self.passing.set(true);
        for (feeders, fed) in self.feeders.iter().zip(&self.fed) {
            if !feeders.is_empty() {
                fed.set(self.least(feeders));
            }
        }
    }

    /// Ends the pass.
    pub(super) fn end(&self) {
        self.passing.set(false);
    }

    /// Whether something was let go since the last pass.
    pub(super) fn is_released(&self) -> bool {
        self.changed.get()
    }

    /// Moves a node to what it may rely on when the inputs vouch for `inputs`; `None` when that is nothing new.
    pub(super) fn advance(&self, node: NodeId, inputs: Timestamp) -> Option<Timestamp> {
        let limit = if self.feeders[node].is_empty() { Timestamp::MAX } else { self.fed[node].get() };
        let next = inputs.min(self.least(&self.parents[node])).min(limit);
        if next <= self.reached[node].get() {
            return None;
        }
        self.reached[node].set(next);
        Some(next)
    }

    /// Whether another pass may tell a node more: a cache was flushed, or this task's own sinks have gone on since the last pass began.
    pub(super) fn is_behind(&self) -> bool {
        if self.changed.get() {
            return true;
        }
        let behind = |(node, feeders): (usize, &Vec<NodeId>)| {
            !feeders.is_empty() && self.least(feeders) > self.fed[node].get()
        };
        self.feeders.iter().enumerate().any(behind)
    }
}
