//! [`TopologyBuilder`]: nodes, edges and stores by name (Kafka's `Topology` / `InternalTopologyBuilder`).
//!
//! Every mistake is refused where it is made, with the names involved.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    NodeKind, NodeSpec, SinkSpec, SinkTopic, SourceSpec, StoreSpec, Topology,
    subtopology::{self, UnionFind, repartition_topic},
};
use crate::streams::{
    error::{Result, StreamsError},
    processor::{NodeId, ProcessorSupplier, StoreId},
    state::StoreBuilder,
};

/// Collects the parts of a topology.
#[derive(Default)]
pub struct TopologyBuilder {
    nodes: Vec<NodeSpec>,
    stores: Vec<StoreSpec>,
    node_ids: BTreeMap<Arc<str>, NodeId>,
    store_ids: BTreeMap<String, StoreId>,
    repartition_topics: BTreeMap<Arc<str>, Option<i32>>,
    copartition_groups: Vec<Vec<NodeId>>,
    groups: UnionFind,
    global_nodes: Vec<NodeId>,
}

impl TopologyBuilder {
    /// An empty topology.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source.
    pub fn add_source(&mut self, name: &str, source: SourceSpec) -> Result<()> {
        if source.topics.is_empty() {
            return Err(StreamsError::Topology(format!("source {name} reads no topic: name at least one")));
        }
        for other in &self.nodes {
            if let NodeKind::Source(known) = &other.kind
                && let Some(topic) = source.topics.iter().find(|topic| known.topics.contains(topic))
            {
                return Err(StreamsError::Topology(format!(
                    "topic {topic} is already read by source {}: read it once and use that stream twice",
                    other.name
                )));
            }
        }
        self.add_node(name, NodeKind::Source(source), &[]).map(drop)
    }

    /// Adds a processor below `parents`, made anew for each task (see [`processor_supplier`](crate::streams::processor::processor_supplier)),
    /// with the stores it brings ([`Processor::stores`](crate::streams::processor::Processor::stores)).
    ///
    /// # Errors
    /// A name that is taken, a parent that is not there or is a sink, a store that is already there and another one.
    pub fn add_processor(&mut self, name: &str, supplier: ProcessorSupplier, parents: &[&str]) -> Result<()> {
        self.add_connected_processor(name, supplier, parents, &[])
    }

    /// As [`add_processor`](Self::add_processor), connected to stores that are there already, before those it brings.
    pub(crate) fn add_connected_processor(
        &mut self,
        name: &str,
        supplier: ProcessorSupplier,
        parents: &[&str],
        stores: &[String],
    ) -> Result<()> {
        let parents = self.parents(name, parents)?;
        let brought = supplier().stores();
        self.add_node(name, NodeKind::Processor(supplier), &parents)?;
        for store in stores {
            self.connect_processor_and_state_store(name, store)?;
        }
        for store in brought {
            let store_name = store.name.clone();
            self.add_shared_state_store(store)?;
            self.connect_processor_and_state_store(name, &store_name)?;
        }
        Ok(())
    }

    /// Adds a store unless it is there already: one that several processors bring.
    fn add_shared_state_store(&mut self, builder: StoreBuilder) -> Result<()> {
        match self.store_builder(&builder.name) {
            None => self.add_state_store(builder, &[]).map(drop),
            Some(known) if known.is_same(&builder) => Ok(()),
            Some(_) => Err(StreamsError::Topology(format!(
                "a different store {} is already added: processors that share a store must describe it alike",
                builder.name
            ))),
        }
    }

    /// Adds a sink below `parents`.
    pub fn add_sink(&mut self, name: &str, sink: SinkSpec, parents: &[&str]) -> Result<()> {
        let parents = self.parents(name, parents)?;
        self.add_node(name, NodeKind::Sink(sink), &parents).map(drop)
    }

    /// Adds a store and connects it to processors.
    pub fn add_state_store(&mut self, builder: StoreBuilder, processors: &[&str]) -> Result<()> {
        if self.store_ids.contains_key(&builder.name) {
            return Err(StreamsError::Topology(format!("store {} is already added", builder.name)));
        }
        let id = StoreId(self.stores.len());
        self.store_ids.insert(builder.name.clone(), id);
        let name = builder.name.clone();
        self.stores.push(StoreSpec { builder, users: Vec::new(), source_topic: None, global: false });
        for processor in processors {
            self.connect_processor_and_state_store(processor, &name)?;
        }
        Ok(())
    }

    /// Whether a store of that name exists.
    pub fn has_store(&self, name: &str) -> bool {
        self.store_ids.contains_key(name)
    }

    /// How a store was described.
    pub fn store_builder(&self, name: &str) -> Option<&StoreBuilder> {
        self.store_ids.get(name).map(|id| &self.stores[id.0].builder)
    }

    /// Whether a node of that name exists.
    pub fn has_node(&self, name: &str) -> bool {
        self.node_ids.contains_key(name)
    }

    /// Takes record caches off all stores.
    pub fn disable_caching(&mut self) {
        for store in &mut self.stores {
            store.builder.caching = false;
        }
    }

    /// Refuses topics and logged stores with generated names: they would change with the topology (KIP-1111).
    pub fn refuse_generated_names(&self) -> Result<()> {
        let generated = |name: &str| {
            name.len() > 11 && {
                let digits = name.trim_end_matches("-repartition").trim_end_matches("-topic");
                let (head, tail) = digits.split_at(digits.len().saturating_sub(10));
                head.ends_with('-') && tail.len() == 10 && tail.bytes().all(|byte| byte.is_ascii_digit())
            }
        };
        let topics = self.repartition_topics.keys().map(|name| ("repartition topic", &**name));
        let stores = self.stores.iter().map(|store| ("store", store.builder.name.as_str()));
        match topics.chain(stores).find(|(_, name)| generated(name)) {
            Some((kind, name)) => Err(StreamsError::Topology(format!(
                "{kind} {name} has a generated name, which changes with the topology: name it (Grouped, Repartitioned, \
                 Joined or Materialized), or allow generated names"
            ))),
            None => Ok(()),
        }
    }

    /// Gives a processor access to a store. All users of a store run in one sub-topology.
    pub fn connect_processor_and_state_store(&mut self, processor: &str, store: &str) -> Result<()> {
        let node = self.node(processor)?;
        let id = *self.store_ids.get(store).ok_or_else(|| {
            StreamsError::Topology(format!(
                "store {store} is not added: add it before processor {processor} uses it"
            ))
        })?;
        let spec = &mut self.stores[id.0];
        if spec.global {
            return Ok(()); // Every processor may read a global store; connecting is not needed.
        }
        if !matches!(self.nodes[node].kind, NodeKind::Processor(_)) {
            return Err(StreamsError::Topology(format!(
                "{processor} is not a processor: it cannot use store {store}"
            )));
        }
        if !spec.users.contains(&node) {
            if let Some(first) = spec.users.first() {
                self.groups.unite(*first, node);
            }
            spec.users.push(node);
            self.nodes[node].stores.push(id);
        }
        Ok(())
    }

    /// Makes a source topic the changelog of a store (an optimised table source, or a read-only store).
    pub fn connect_source_store_and_topic(&mut self, store: &str, topic: &str) -> Result<()> {
        let id = *self
            .store_ids
            .get(store)
            .ok_or_else(|| StreamsError::Topology(format!("store {store} is not added")))?;
        self.stores[id.0].source_topic = Some(topic.into());
        Ok(())
    }

    /// Adds a store that is filled from a topic of its own by a processor, and by nobody else (KIP-813, Kafka's `addReadOnlyStateStore`): a
    /// source, the processor, and the store. Other processors may be connected to read it. The topic is its changelog, so a restart
    /// replays the topic into the store without the processor, which must therefore put what it is given as it is.
    ///
    /// # Errors
    /// A name that is taken; a topic that another source reads.
    pub fn add_read_only_state_store(
        &mut self,
        mut store: StoreBuilder,
        source_name: &str,
        source: SourceSpec,
        processor_name: &str,
        supplier: ProcessorSupplier,
    ) -> Result<()> {
        let [topic] = source.topics.as_slice() else {
            return Err(StreamsError::Topology(format!(
                "store {} must be filled from exactly one topic: it is the store's changelog",
                store.name
            )));
        };
        let topic = topic.clone();
        store.logging = false; // The topic is the log.
        self.add_source(source_name, source)?;
        self.add_processor(processor_name, supplier, &[source_name])?;
        let name = store.name.clone();
        self.add_state_store(store, &[processor_name])?;
        self.connect_source_store_and_topic(&name, &topic)
    }

    /// Adds a global store: a source and the processor that fills it. It belongs to no task.
    pub fn add_global_store(
        &mut self,
        mut store: StoreBuilder,
        source_name: &str,
        source: SourceSpec,
        processor_name: &str,
        supplier: ProcessorSupplier,
    ) -> Result<()> {
        store.logging = false; // The topic is the log.
        let topic = source.topics.first().cloned();
        self.add_source(source_name, source)?;
        self.add_processor(processor_name, supplier, &[source_name])?;
        let id = StoreId(self.stores.len());
        self.add_state_store(store, &[processor_name])?;
        self.stores[id.0].global = true;
        self.stores[id.0].source_topic = topic;
        self.global_nodes.extend([self.node(source_name)?, self.node(processor_name)?]);
        Ok(())
    }

    /// Declares a repartition topic (name without prefix), with a fixed partition count or as many as its inputs need.
    pub fn add_repartition_topic(&mut self, name: &str, partitions: Option<i32>) {
        let entry = self.repartition_topics.entry(name.into()).or_insert(partitions);
        if entry.is_none() {
            *entry = partitions;
        }
    }

    /// Requires the topics of these sources to have equal partition counts.
    pub fn copartition_sources(&mut self, sources: &[&str]) -> Result<()> {
        let group = sources.iter().map(|name| self.node(name)).collect::<Result<Vec<_>>>()?;
        self.copartition_groups.push(group);
        Ok(())
    }

    /// Checks the whole and builds it. Internal topics get their prefix here and nowhere else.
    pub fn build(mut self, application_id: &str) -> Result<Topology> {
        let prefix = |topic: &Arc<str>| repartition_topic(application_id, topic);
        for node in &mut self.nodes {
            match &mut node.kind {
                NodeKind::Source(source) if source.internal => {
                    source.topics = source.topics.iter().map(prefix).collect();
                }
                NodeKind::Sink(SinkSpec { topic: SinkTopic::Fixed(topic), internal: true, .. }) => {
                    *topic = prefix(topic);
                }
                _ => {}
            }
        }
        let repartition_topics =
            self.repartition_topics.iter().map(|(name, n)| (prefix(name), *n)).collect::<BTreeMap<_, _>>();
        for node in &self.nodes {
            if let NodeKind::Source(source) = &node.kind
                && source.internal
                && let Some(topic) =
                    source.topics.iter().find(|topic| !repartition_topics.contains_key(*topic))
            {
                return Err(StreamsError::Topology(format!(
                    "internal topic {topic} is read but not declared"
                )));
            }
        }
        let copartition_groups = self
            .copartition_groups
            .iter()
            .map(|group| {
                group
                    .iter()
                    .filter_map(|id| match &self.nodes[*id].kind {
                        NodeKind::Source(source) => Some(source.topics.clone()),
                        _ => None,
                    })
                    .flatten()
                    .collect()
            })
            .collect();
        let subtopologies =
            subtopology::split(&self.nodes, &self.stores, &mut self.groups, &self.global_nodes);
        Ok(Topology {
            application_id: application_id.into(),
            nodes: self.nodes,
            stores: self.stores,
            subtopologies,
            global_nodes: self.global_nodes,
            repartition_topics,
            copartition_groups,
            changelog_names: BTreeMap::new(),
        })
    }

    fn add_node(&mut self, name: &str, kind: NodeKind, parents: &[NodeId]) -> Result<NodeId> {
        let name: Arc<str> = name.into();
        if self.node_ids.contains_key(&name) {
            return Err(StreamsError::Topology(format!("node {name} is already added: names are unique")));
        }
        let id = self.nodes.len();
        self.groups.add(id);
        for parent in parents {
            self.nodes[*parent].children.push(id);
            self.groups.unite(*parent, id);
        }
        self.node_ids.insert(name.clone(), id);
        self.nodes.push(NodeSpec {
            name,
            kind,
            parents: parents.to_vec(),
            children: vec![],
            stores: vec![],
            clock_scope: None,
        });
        Ok(id)
    }

    fn parents(&self, name: &str, parents: &[&str]) -> Result<Vec<NodeId>> {
        if parents.is_empty() {
            return Err(StreamsError::Topology(format!("node {name} has no parent: name at least one")));
        }
        let parents = parents.iter().map(|parent| self.node(parent)).collect::<Result<Vec<_>>>()?;
        match parents.iter().find(|parent| matches!(self.nodes[**parent].kind, NodeKind::Sink(_))) {
            Some(sink) => Err(StreamsError::Topology(format!(
                "{} is a sink and cannot be the parent of {name}",
                self.nodes[*sink].name
            ))),
            None => Ok(parents),
        }
    }

    fn node(&self, name: &str) -> Result<NodeId> {
        self.node_ids
            .get(name)
            .copied()
            .ok_or_else(|| StreamsError::Topology(format!("node {name} is not added: add it first")))
    }
}
