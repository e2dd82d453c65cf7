//! [`Graft`]: the operators of this DSL on nodes that something else (a topology file) adds to a [`TopologyBuilder`].
//!
//! Such a node is named as a stream or a table of the graph; operators on it are added to the graph as ever, and
//! [`write`](Graft::write) adds what is new to the same topology. What must always hold: a grafted node is in the topology before what
//! reads it is written, and it sends old values with its changes where it is a table.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use super::{
    functions::Data,
    global_table::GlobalKTable,
    graph::{Graph, GraphNode, GraphNodeId, ROOT, SharedGraph, TopologyConfig},
    kstream::{KStream, StreamCore},
    table::{KTable, TableCore, TableProcessor},
    value_getter::ValueGetterSupplier,
};
use crate::streams::{
    error::Result, processor::ProcessorSupplier, serdes::AnySerde, topology::TopologyBuilder,
};

/// See the module's documentation.
pub(crate) struct Graft {
    graph: SharedGraph,
}

/// A node of the topology that is none of the graph's.
pub(crate) struct GraftedNode<'a> {
    /// Its name.
    pub name: &'a str,
    /// Source nodes of its sub-topology.
    pub sources: &'a [String],
    /// Serde of its keys.
    pub key: AnySerde,
    /// Serde of its values.
    pub value: AnySerde,
}

impl Graft {
    /// An empty graph.
    pub(crate) fn new() -> Self {
        Self { graph: Rc::new(RefCell::new(Graph::new(TopologyConfig::default()))) }
    }

    fn node(&self, name: &str) -> GraphNodeId {
        self.graph.borrow_mut().add(ROOT, GraphNode::other(name, |_, _| Ok(())))
    }

    /// The node as a stream.
    pub(crate) fn stream<K: Data, V: Data>(&self, node: GraftedNode<'_>) -> KStream<K, V> {
        KStream::new(StreamCore {
            name: node.name.to_owned(),
            key_serde: Some(node.key),
            value_serde: Some(node.value),
            sources: node.sources.iter().cloned().collect(),
            repartition_required: false,
            node: self.node(node.name),
            graph: self.graph.clone(),
        })
    }

    /// The node as a table, read through the getter.
    pub(crate) fn table<K: Data, V: Data>(
        &self,
        node: GraftedNode<'_>,
        getter: ValueGetterSupplier,
    ) -> KTable<K, V> {
        KTable::new(TableCore {
            name: node.name.to_owned(),
            key_serde: Some(node.key),
            value_serde: Some(node.value),
            sources: node.sources.iter().cloned().collect(),
            queryable_store: None,
            processor: Rc::new(Grafted(getter)),
            sends_old_values: Rc::default(),
            node: self.node(node.name),
            graph: self.graph.clone(),
        })
    }

    /// A global store as a global table.
    pub(crate) fn global_table<K: Data, V: Data>(&self, store: &str) -> GlobalKTable<K, V> {
        GlobalKTable::new(store.to_owned(), false)
    }

    /// Adds to the topology what has come to the graph since the last time.
    pub(crate) fn write(&self, topology: &mut TopologyBuilder) -> Result<()> {
        self.graph.borrow_mut().write_new(topology)
    }
}

/// Where an operator's result stands: its node, and the sources of its sub-topology.
pub(crate) fn place_of_stream<K: Data, V: Data>(stream: &KStream<K, V>) -> (String, BTreeSet<String>) {
    (stream.core.name.clone(), stream.core.sources.clone())
}

/// As [`place_of_stream`]; the table sends old values with its changes from now on. Call before [`Graft::write`].
pub(crate) fn place_of_table<K: Data, V: Data>(table: &KTable<K, V>) -> (String, BTreeSet<String>) {
    table.core.enable_sending_old_values(true);
    (table.core.name.clone(), table.core.sources.clone())
}

/// The table with the serdes of its keys and rows, which an operator that keeps nothing does not know.
pub(crate) fn with_serdes<K: Data, V: Data>(
    mut table: KTable<K, V>,
    key: AnySerde,
    value: AnySerde,
) -> KTable<K, V> {
    table.core.key_serde = Some(key);
    table.core.value_serde = Some(value);
    table
}

struct Grafted(ValueGetterSupplier);

impl TableProcessor for Grafted {
    fn supplier(&self) -> ProcessorSupplier {
        unreachable!("a grafted node is in the topology already")
    }

    fn view(&self) -> ValueGetterSupplier {
        self.0.clone()
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        true
    }
}
