//! [`KStream`]: a stream of records, each a fact of its own.
//!
//! The struct only says where in the logical graph a stream stands; every operator has a file of its own.

use std::{cell::Cell, collections::BTreeSet, marker::PhantomData, rc::Rc};

use super::{
    graph::{GraphNode, GraphNodeId, SharedGraph},
    named::Named,
};
use crate::streams::{processor::ProcessorSupplier, serdes::AnySerde};

/// A stream without its types.
#[derive(Clone)]
pub(crate) struct StreamCore {
    /// Name of the node that produces the stream.
    pub name: String,
    pub key_serde: Option<AnySerde>,
    pub value_serde: Option<AnySerde>,
    /// Source nodes of the sub-topology the stream runs in.
    pub sources: BTreeSet<String>,
    /// Whether the key was changed since the last hop: grouping and joining need one.
    pub repartition_required: bool,
    pub node: GraphNodeId,
    pub graph: SharedGraph,
}

impl StreamCore {
    /// Adds a stateless processor below this stream; the result keeps key, serdes and all.
    pub(crate) fn processor(&self, named: &Named, prefix: &str, supplier: ProcessorSupplier) -> Self {
        let mut graph = self.graph.borrow_mut();
        let name = named.or_generate(&mut graph, prefix);
        let node = GraphNode::processor(&name, supplier);
        let node = graph.add(self.node, node);
        drop(graph);
        StreamCore { name, node, ..self.clone() }
    }

    /// As [`processor`](Self::processor), for an operator that changes values only.
    pub(crate) fn value_changing(&self, named: &Named, prefix: &str, supplier: ProcessorSupplier) -> Self {
        let mut graph = self.graph.borrow_mut();
        let name = named.or_generate(&mut graph, prefix);
        let node = GraphNode { value_changing: true, ..GraphNode::processor(&name, supplier) };
        let node = graph.add(self.node, node);
        drop(graph);
        StreamCore { name, node, value_serde: None, ..self.clone() }
    }

    /// As [`processor`](Self::processor), for an operator that changes keys.
    pub(crate) fn key_changing(&self, named: &Named, prefix: &str, supplier: ProcessorSupplier) -> Self {
        let mut graph = self.graph.borrow_mut();
        let name = named.or_generate(&mut graph, prefix);
        let node = GraphNode { key_changing: true, ..GraphNode::processor(&name, supplier) };
        let node = graph.add(self.node, node);
        drop(graph);
        StreamCore {
            name,
            node,
            key_serde: None,
            value_serde: None,
            repartition_required: true,
            ..self.clone()
        }
    }

    /// Requires the topics behind this and another stream or table to have equal partition counts; the union of their sources.
    pub(crate) fn copartitioned_with(&self, other: &BTreeSet<String>) -> BTreeSet<String> {
        let all: BTreeSet<String> = self.sources.union(other).cloned().collect();
        self.graph.borrow_mut().copartitioned.push(all.clone());
        all
    }
}

/// A stream of records with keys `K` and values `V`.
///
/// Handles are cheap; cloning one names the same stream. Operators are called on `&self` and add to the builder the stream
/// came from.
pub struct KStream<K, V> {
    pub(crate) core: StreamCore,
    /// The hop made for joins of this stream, shared by joins that name none.
    pub(crate) join_repartition: Rc<Cell<Option<GraphNodeId>>>,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> KStream<K, V> {
    pub(crate) fn new(core: StreamCore) -> Self {
        Self { core, join_repartition: Rc::default(), types: PhantomData }
    }
}

impl<K, V> Clone for KStream<K, V> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), join_repartition: self.join_repartition.clone(), types: PhantomData }
    }
}
