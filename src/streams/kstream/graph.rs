//! [`Graph`]: the logical graph of a [`StreamsBuilder`](super::StreamsBuilder), written to a [`TopologyBuilder`] at build
//! (Kafka's `InternalStreamsBuilder` and its `GraphNode`s).
//!
//! Operators add nodes here as they are called; the numbers in generated names and the order of building are fixed then.
//! What an operator is told later (send old values, be materialised, follow versions) it keeps in its own descriptor,
//! which is read when the node is written. Mistakes are kept and returned by [`Graph::build`].

use std::{
    any::TypeId,
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    rc::Rc,
};

use super::{named, optimize, repartition::Repartition, source::StreamSource, table::TableProcessor};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    processor::ProcessorSupplier,
    record::AnyValue,
    serdes::{AnySerde, HasSerde, Serde},
    state::{Backend, StoreBuilder},
    topology::{Topology, TopologyBuilder},
};

/// Position of a node in the logical graph. 0 is the root.
pub(crate) type GraphNodeId = usize;
/// The root: parent of sources and stores.
pub(crate) const ROOT: GraphNodeId = 0;

/// Handle to the graph that the streams of one builder share.
pub(crate) type SharedGraph = Rc<RefCell<Graph>>;

/// Settings that shape a topology (Kafka's `TopologyConfig`).
#[derive(Clone, Debug)]
pub struct TopologyConfig {
    /// A materialised source table uses its topic as changelog (`reuse.ktable.source.topics`).
    pub reuse_ktable_source_topics: bool,
    /// Repartition topics below one key change become one (`merge.repartition.topics`).
    pub merge_repartition_topics: bool,
    /// A stream joined with itself keeps one store (`single.store.self.join`).
    pub single_store_self_join: bool,
    /// Refuses topics and stores whose name would be generated (`ensure.explicit.internal.resource.naming`).
    pub ensure_explicit_internal_resource_naming: bool,
    /// Record caches on stores that ask for them; `false` forwards and logs every update.
    pub caching: bool,
    /// Where stores live that do not say so (`default.dsl.store`).
    pub default_backend: Backend,
}

impl Default for TopologyConfig {
    fn default() -> Self {
        Self {
            reuse_ktable_source_topics: false,
            merge_repartition_topics: false,
            single_store_self_join: false,
            ensure_explicit_internal_resource_naming: false,
            caching: true,
            default_backend: Backend::Persistent,
        }
    }
}

impl TopologyConfig {
    /// Turns all optimisations on (`topology.optimization = all`).
    pub fn optimized(mut self) -> Self {
        self.reuse_ktable_source_topics = true;
        self.merge_repartition_topics = true;
        self.single_store_self_join = true;
        self
    }
}

/// Writes a node and its stores, given the names of its parents.
pub(crate) type Writer = Box<dyn Fn(&mut TopologyBuilder, &[&str]) -> Result<()>>;

/// What a node is, as far as optimisations must know.
pub(crate) enum NodeKind {
    /// Parent of sources.
    Root,
    /// Reads topics; equal ones are merged.
    StreamSource(StreamSource),
    /// A hop through a topic.
    Repartition(Repartition),
    /// Anything else.
    Other(Writer),
}

/// A self-join candidate: what the optimiser needs to rewrite it.
pub(crate) struct StreamJoinNode {
    /// Name of the node that stores left records.
    pub this_windowed: String,
    /// Name of the node that stores right records.
    pub other_windowed: String,
    /// Set when the join is rewritten to one store.
    pub self_join: Rc<Cell<bool>>,
}

/// A node of the logical graph.
pub(crate) struct GraphNode {
    pub name: String,
    pub kind: NodeKind,
    pub parents: Vec<GraphNodeId>,
    pub children: Vec<GraphNodeId>,
    pub build_priority: usize,
    pub key_changing: bool,
    pub value_changing: bool,
    pub merge: bool,
    /// Whether the table here is versioned; `None` = as upstream.
    pub output_versioned: Option<bool>,
    /// A join that wants records with null keys.
    pub null_key_relaxed_join: bool,
    /// The descriptor to tell when a parent is versioned.
    pub versioned_semantics: Option<Rc<dyn TableProcessor>>,
    pub suppress: bool,
    /// Set for source tables: whether the source topic serves as changelog.
    pub reuse_source_topic: Option<Rc<Cell<bool>>>,
    pub stream_join: Option<StreamJoinNode>,
    /// How long results of this node may still change: grace of windows (and gap of sessions), for suppress.
    pub window_grace_ms: Option<i64>,
    pub written: bool,
}

impl GraphNode {
    pub(crate) fn new(name: impl Into<String>, kind: NodeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            parents: Vec::new(),
            children: Vec::new(),
            build_priority: 0,
            key_changing: false,
            value_changing: false,
            merge: false,
            output_versioned: None,
            null_key_relaxed_join: false,
            versioned_semantics: None,
            suppress: false,
            reuse_source_topic: None,
            stream_join: None,
            window_grace_ms: None,
            written: false,
        }
    }

    /// A node with a writer of its own.
    pub(crate) fn other(
        name: impl Into<String>,
        write: impl Fn(&mut TopologyBuilder, &[&str]) -> Result<()> + 'static,
    ) -> Self {
        Self::new(name, NodeKind::Other(Box::new(write)))
    }

    /// A stateless processor.
    pub(crate) fn processor(name: &str, supplier: ProcessorSupplier) -> Self {
        Self::stateful(name, move || supplier.clone(), Vec::new(), None)
    }

    /// A processor connected to stores, with at most one store of its own. The supplier is made when the node is written.
    pub(crate) fn stateful(
        name: &str,
        supplier: impl Fn() -> ProcessorSupplier + 'static,
        store_names: Vec<String>,
        store: Option<StoreBuilder>,
    ) -> Self {
        let node = name.to_owned();
        Self::other(name, move |topology, parents| {
            topology.add_connected_processor(&node, supplier(), parents, &store_names)?;
            match &store {
                Some(store) => topology.add_state_store(store.clone(), &[&node]).map(drop),
                None => Ok(()),
            }
        })
    }
}

/// See the module's documentation.
pub(crate) struct Graph {
    pub nodes: Vec<GraphNode>,
    pub config: TopologyConfig,
    index: usize,
    next_build_priority: usize,
    /// Names of source nodes whose topics must have equal partition counts.
    pub copartitioned: Vec<BTreeSet<String>>,
    /// Internal topics declared beside repartition nodes.
    pub internal_topics: Vec<String>,
    /// Generated names of stores that were not named, whether or not they are made in the end.
    pub unnamed_stores: Vec<String>,
    /// Key-changing nodes and the repartition nodes below each that may be merged, in the order added.
    pub key_changers: Vec<(GraphNodeId, Vec<GraphNodeId>)>,
    pub merge_nodes: Vec<GraphNodeId>,
    serdes: HashMap<TypeId, AnySerde>,
    errors: Vec<StreamsError>,
    /// How many nodes the first build rewrote; builds that follow write the same graph again.
    optimized: Option<usize>,
}

impl Graph {
    pub(crate) fn new(config: TopologyConfig) -> Self {
        let mut graph = Self {
            nodes: vec![GraphNode::new("root", NodeKind::Root)],
            config,
            index: 0,
            next_build_priority: 0,
            copartitioned: Vec::new(),
            internal_topics: Vec::new(),
            unnamed_stores: Vec::new(),
            key_changers: Vec::new(),
            merge_nodes: Vec::new(),
            serdes: HashMap::new(),
            errors: Vec::new(),
            optimized: None,
        };
        macro_rules! register {
            ($($type:ty),*) => { $(graph.register_serde::<$type>();)* };
        }
        register!(String, Vec<u8>, bool, uuid::Uuid, (), i16, i32, i64, u16, u32, u64, f32, f64);
        graph
    }

    /// The next generated name.
    pub(crate) fn new_processor_name(&mut self, prefix: &str) -> String {
        self.index += 1;
        format!("{prefix}{:010}", self.index - 1)
    }

    /// The next generated store name.
    pub(crate) fn new_store_name(&mut self, prefix: &str) -> String {
        self.new_processor_name(&format!("{prefix}STATE-STORE-"))
    }

    /// A given name; an illegal one makes the build fail.
    pub(crate) fn checked_name(&mut self, name: String) -> String {
        if let Err(error) = named::validate(&name) {
            self.fail(error);
        }
        name
    }

    /// Remembers a mistake; [`build`](Self::build) returns the first.
    pub(crate) fn fail(&mut self, error: StreamsError) {
        self.errors.push(error);
    }

    /// Makes the serde of a type known.
    pub(crate) fn register_serde<T: HasSerde>(&mut self) {
        self.serdes.insert(TypeId::of::<T>(), T::serde());
    }

    /// The serde given, else that of the type; a type without one makes the build fail.
    pub(crate) fn serde<T: Send + Sync + 'static>(
        &mut self,
        given: Option<AnySerde>,
        place: &str,
    ) -> AnySerde {
        if let Some(serde) = given.or_else(|| self.serdes.get(&TypeId::of::<T>()).cloned()) {
            return serde;
        }
        let name = std::any::type_name::<T>();
        self.fail(StreamsError::Topology(format!(
            "there is no serde for {name}, needed at {place}: name one there, or register_serde::<{name}>() on the builder"
        )));
        AnySerde::new::<T>(NoSerde)
    }

    /// Adds a node below a parent. A node added below several parents is added once and linked again.
    pub(crate) fn add(&mut self, parent: GraphNodeId, node: GraphNode) -> GraphNodeId {
        let id = self.nodes.len();
        self.nodes.push(node);
        self.link(parent, id);
        id
    }

    /// Links a node below a parent, and gives it its turn in the order of building.
    pub(crate) fn link(&mut self, parent: GraphNodeId, child: GraphNodeId) {
        self.add_child(parent, child);
        self.nodes[child].build_priority = self.next_build_priority;
        self.next_build_priority += 1;
        self.note_for_optimization(child);
    }

    pub(crate) fn add_child(&mut self, parent: GraphNodeId, child: GraphNodeId) {
        if !self.nodes[parent].children.contains(&child) {
            self.nodes[parent].children.push(child);
        }
        if !self.nodes[child].parents.contains(&parent) {
            self.nodes[child].parents.push(parent);
        }
    }

    pub(crate) fn remove_child(&mut self, parent: GraphNodeId, child: GraphNodeId) {
        self.nodes[parent].children.retain(|id| *id != child);
        self.nodes[child].parents.retain(|id| *id != parent);
    }

    fn note_for_optimization(&mut self, id: GraphNodeId) {
        let node = &self.nodes[id];
        if node.key_changing {
            match self.key_changers.iter_mut().find(|(known, _)| *known == id) {
                Some((_, below)) => below.clear(),
                None => self.key_changers.push((id, Vec::new())),
            }
        } else if matches!(&node.kind, NodeKind::Repartition(repartition) if repartition.optimizable) {
            let key_changer = optimize::key_changing_parent(self, id);
            let entry = self.key_changers.iter_mut().find(|(known, _)| Some(*known) == key_changer);
            if let Some((_, below)) = entry
                && !below.contains(&id)
            {
                below.push(id);
            }
        } else if node.merge && !self.merge_nodes.contains(&id) {
            self.merge_nodes.push(id);
        }
    }

    /// Optimises and writes everything.
    pub(crate) fn build(&mut self, application_id: &str) -> Result<Topology> {
        if let Some(error) = self.errors.first() {
            return Err(StreamsError::Topology(match error {
                StreamsError::Topology(reason) => reason.clone(),
                other => other.to_string(),
            }));
        }
        match self.optimized {
            None => optimize::optimize(self)?,
            Some(nodes) if nodes == self.nodes.len() => {}
            Some(_) => {
                return Err(StreamsError::Topology(
                    "operators were added after the topology was built: build it when all are there"
                        .to_owned(),
                ));
            }
        }
        self.optimized = Some(self.nodes.len());
        self.nodes.iter_mut().for_each(|node| node.written = false);
        let mut topology = TopologyBuilder::new();
        self.write_nodes(&mut topology)?;
        self.write_topics(&mut topology)?;
        if !self.config.caching {
            topology.disable_caching();
        }
        if self.config.ensure_explicit_internal_resource_naming {
            if let Some(store) = self.unnamed_stores.first() {
                return Err(StreamsError::Topology(format!(
                    "store {store} has a generated name, which changes with the topology: name it (Materialized), or allow \
                     generated names"
                )));
            }
            topology.refuse_generated_names()?;
        }
        topology.build(application_id)
    }

    /// Adds to a topology what has come since the last time.
    pub(crate) fn write_new(&mut self, topology: &mut TopologyBuilder) -> Result<()> {
        if let Some(error) = self.errors.drain(..).next() {
            return Err(error);
        }
        self.write_nodes(topology)?;
        self.write_topics(topology)?;
        self.internal_topics.clear();
        self.copartitioned.clear();
        Ok(())
    }

    /// Writes nodes that are not written yet, parents first.
    fn write_nodes(&mut self, topology: &mut TopologyBuilder) -> Result<()> {
        // A node that an optimisation has cut off has no parent, and is none of the topology's.
        let ready = |(id, node): &(usize, &GraphNode)| {
            let hangs = *id == ROOT || !node.parents.is_empty();
            !node.written && hangs && node.parents.iter().all(|parent| self.nodes[*parent].written)
        };
        let first = self.nodes.iter().enumerate().filter(ready);
        let mut queue: BinaryHeap<_> = first.map(|(id, node)| Reverse((node.build_priority, id))).collect();
        while let Some(Reverse((_, id))) = queue.pop() {
            let node = &self.nodes[id];
            if node.written || !node.parents.iter().all(|parent| self.nodes[*parent].written) {
                continue;
            }
            let parents: Vec<&str> = node
                .parents
                .iter()
                .filter(|parent| **parent != ROOT)
                .map(|parent| self.nodes[*parent].name.as_str())
                .collect();
            match &node.kind {
                NodeKind::Root => {}
                NodeKind::StreamSource(source) => source.write(&node.name, topology)?,
                NodeKind::Repartition(repartition) => repartition.write(topology, &parents)?,
                NodeKind::Other(write) => write(topology, &parents)?,
            }
            self.nodes[id].written = true;
            for child in &self.nodes[id].children {
                queue.push(Reverse((self.nodes[*child].build_priority, *child)));
            }
        }
        Ok(())
    }

    /// Declares internal topics, and which sources must have equal partition counts.
    fn write_topics(&self, topology: &mut TopologyBuilder) -> Result<()> {
        for name in &self.internal_topics {
            topology.add_repartition_topic(name, None);
        }
        for group in &self.copartitioned {
            let sources: Vec<&str> =
                group.iter().map(String::as_str).filter(|name| topology.has_node(name)).collect();
            topology.copartition_sources(&sources)?;
        }
        Ok(())
    }
}

/// Stands in where no serde is known; the build has failed already.
struct NoSerde;

impl<T> Serde<T> for NoSerde {
    fn serialize(&self, _: &T, _: &mut Vec<u8>) -> Result<(), ProcessingError> {
        Err(ProcessingError::new("SerializationException", "there is no serde here"))
    }

    fn deserialize(&self, _: &[u8]) -> Result<T, ProcessingError> {
        Err(ProcessingError::new("SerializationException", "there is no serde here"))
    }
}

/// Compares two erased keys of one type.
pub(crate) type KeyEq = fn(&AnyValue, &AnyValue) -> bool;

/// The comparison of a type's values; values of another type are never equal.
pub(crate) fn key_eq<T: PartialEq + Send + Sync + 'static>() -> KeyEq {
    |a, b| match (a.downcast_ref::<T>(), b.downcast_ref::<T>()) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}
