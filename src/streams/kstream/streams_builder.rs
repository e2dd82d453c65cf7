//! [`StreamsBuilder`]: where a topology in code begins: sources, stores, and the build.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::{
    functions::Data,
    global_table::GlobalKTable,
    graph::{Graph, GraphNode, NodeKind, ROOT, SharedGraph, TopologyConfig},
    kstream::{KStream, StreamCore},
    options::{Consumed, Materialized},
    source::StreamSource,
    table::{KTable, MaterializedStore, TableCore, TableProcessor},
    table_source::{TableSource, single_source, table_source_processor},
};
use crate::streams::{
    error::{Result, StreamsError},
    processor::{Processor, erase},
    serdes::HasSerde,
    state::StoreBuilder,
    topology::Topology,
};

/// Builds a topology from streams and tables.
///
/// ```
/// use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
///
/// let builder = StreamsBuilder::new();
/// builder
///     .stream::<String, String>("lines")
///     .flat_map_values(|_, line| {
///         line.map_or(vec![], |line| line.split_whitespace().map(|word| Some(word.to_owned())).collect())
///     })
///     .group_by(|_, word| word.cloned())
///     .count()
///     .to_stream()
///     .to("word-counts");
/// let topology = builder.build("word-count")?;
///
/// let driver = TopologyTestDriver::new(topology)?;
/// let input = driver.create_input_topic::<String, String>("lines", String::serde(), String::serde());
/// let output = driver.create_output_topic::<String, i64>("word-counts", String::serde(), i64::serde());
/// input.pipe_input(None, Some("to be or not to be".into()), 0)?;
/// assert_eq!(output.read_records()?.len(), 6);
/// # Ok::<(), sluice::streams::error::StreamsError>(())
/// ```
#[derive(Clone)]
pub struct StreamsBuilder {
    graph: SharedGraph,
}

impl Default for StreamsBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamsBuilder {
    /// An empty builder with default settings.
    pub fn new() -> Self {
        Self::with_config(TopologyConfig::default())
    }

    /// An empty builder.
    pub fn with_config(config: TopologyConfig) -> Self {
        Self { graph: Rc::new(RefCell::new(Graph::new(config))) }
    }

    /// Makes the serde of a type of one's own known, so that no operator need name it.
    pub fn register_serde<T: HasSerde>(&self) -> &Self {
        self.graph.borrow_mut().register_serde::<T>();
        self
    }

    /// Reads a topic as a stream.
    pub fn stream<K: Data, V: Data>(&self, topic: &str) -> KStream<K, V> {
        self.stream_with(&[topic], Consumed::default())
    }

    /// Reads topics as one stream, with serdes, extractor, offset reset and name.
    pub fn stream_with<K: Data, V: Data>(&self, topics: &[&str], consumed: Consumed<K, V>) -> KStream<K, V> {
        let mut graph = self.graph.borrow_mut();
        let name = consumed.name.or_generate(&mut graph, "KSTREAM-SOURCE-");
        if topics.is_empty() {
            graph.fail(StreamsError::Topology(format!("source {name} reads no topic: name at least one")));
        }
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let source = StreamSource::new(&mut graph, topics, &consumed);
        let serdes = (source.key_serde.clone(), source.value_serde.clone());
        let node = graph.add(ROOT, GraphNode::new(name.clone(), NodeKind::StreamSource(source)));
        drop(graph);
        KStream::new(StreamCore {
            sources: single_source(&name),
            name,
            key_serde: Some(serdes.0),
            value_serde: Some(serdes.1),
            repartition_required: false,
            node,
            graph: self.graph.clone(),
        })
    }

    /// Reads a topic as a table.
    pub fn table<K: Data, V: Data>(&self, topic: &str) -> KTable<K, V> {
        self.table_with(topic, Consumed::default(), Materialized::default())
    }

    /// As [`table`](Self::table), with serdes, extractor and name, and stored as said.
    pub fn table_with<K: Data, V: Data>(
        &self,
        topic: &str,
        consumed: Consumed<K, V>,
        materialized: Materialized<K, V>,
    ) -> KTable<K, V> {
        let mut graph = self.graph.borrow_mut();
        let (source, store, materialized) = table_parts(&mut graph, topic, &consumed, materialized);
        let source_name = consumed.name.suffixed_or_generate("-source", &mut graph, "KSTREAM-SOURCE-");
        let name = consumed.name.or_generate(&mut graph, "KTABLE-SOURCE-");
        let processor = TableSource::new(&store.name, materialized.queryable_name());
        let reuse_source_topic: Rc<std::cell::Cell<bool>> = Rc::default();
        let node = {
            let (node, source_name, processor) = (name.clone(), source_name.clone(), processor.clone());
            let (store, topic, reuse) = (store.clone(), topic.to_owned(), reuse_source_topic.clone());
            GraphNode::other(name.clone(), move |topology, _| {
                topology.add_source(&source_name, source.spec())?;
                topology.add_processor(&node, processor.supplier(), &[&source_name])?;
                if processor.is_materialized() {
                    let mut store = store.clone();
                    store.logging &= !reuse.get();
                    topology.add_state_store(store.clone(), &[&node])?;
                    if reuse.get() {
                        topology.connect_source_store_and_topic(&store.name, &topic)?;
                    }
                }
                Ok(())
            })
        };
        let node = graph.add(
            ROOT,
            GraphNode {
                output_versioned: Some(materialized.versioned.is_some()),
                reuse_source_topic: Some(reuse_source_topic),
                ..node
            },
        );
        drop(graph);
        KTable::new(TableCore {
            name,
            key_serde: Some(store.key_serde),
            value_serde: Some(store.value_serde),
            sources: single_source(&source_name),
            queryable_store: materialized.queryable_name(),
            processor,
            sends_old_values: Rc::default(),
            node,
            graph: self.graph.clone(),
        })
    }

    /// Reads a topic as a global table.
    pub fn global_table<K: Data, V: Data>(&self, topic: &str) -> GlobalKTable<K, V> {
        self.global_table_with(topic, Consumed::default(), Materialized::default())
    }

    /// As [`global_table`](Self::global_table), with serdes, extractor and name, and stored as said.
    pub fn global_table_with<K: Data, V: Data>(
        &self,
        topic: &str,
        consumed: Consumed<K, V>,
        materialized: Materialized<K, V>,
    ) -> GlobalKTable<K, V> {
        let mut graph = self.graph.borrow_mut();
        let (source, mut store, materialized) = table_parts(&mut graph, topic, &consumed, materialized);
        if materialized.versioned.is_some() {
            graph.fail(StreamsError::Topology(format!("global table {topic} cannot keep versions")));
        }
        // A global store is filled by one thread and read by others: a cache would hide updates from them.
        store.caching = false;
        let source_name = consumed.name.suffixed_or_generate("-source", &mut graph, "KSTREAM-SOURCE-");
        let name = consumed.name.or_generate(&mut graph, "KTABLE-SOURCE-");
        let table = GlobalKTable::new(store.name.clone(), materialized.queryable);
        let node_name = name.clone();
        let node = GraphNode::other(name, move |topology, _| {
            let processor = table_source_processor(Some(store.name.clone()), false);
            topology
                .add_global_store(store.clone(), &source_name, source.spec(), &node_name, processor)
                .map(drop)
        });
        graph.add(ROOT, node);
        table
    }

    /// Adds a store for processors to connect to by name.
    pub fn add_state_store(&self, store: StoreBuilder) -> &Self {
        let node = GraphNode::other(store.name.clone(), move |topology, _| {
            topology.add_state_store(store.clone(), &[]).map(drop)
        });
        self.graph.borrow_mut().add(ROOT, node);
        self
    }

    /// Adds a store of which every instance keeps a full copy, filled from a topic by a processor.
    pub fn add_global_store<K: Data, V: Data, P: Processor<K, V, (), ()> + 'static>(
        &self,
        store: StoreBuilder,
        topic: &str,
        consumed: Consumed<K, V>,
        supplier: impl Fn() -> P + Send + Sync + 'static,
    ) -> &Self {
        let mut graph = self.graph.borrow_mut();
        let source = StreamSource::new(&mut graph, vec![topic.to_owned()], &consumed);
        let source_name = consumed.name.suffixed_or_generate("-source", &mut graph, "KSTREAM-SOURCE-");
        let name = consumed.name.or_generate(&mut graph, "KTABLE-SOURCE-");
        let supplier: crate::streams::processor::ProcessorSupplier = Arc::new(move || erase(supplier()));
        let node_name = name.clone();
        let node = GraphNode::other(name, move |topology, _| {
            topology
                .add_global_store(store.clone(), &source_name, source.spec(), &node_name, supplier.clone())
                .map(drop)
        });
        graph.add(ROOT, node);
        drop(graph);
        self
    }

    /// Checks, optimises and builds the topology. Building again gives the same topology again.
    ///
    /// # Errors
    /// The first mistake made in any operator; operators added after an earlier build.
    pub fn build(&self, application_id: &str) -> Result<Topology> {
        self.graph.borrow_mut().build(application_id)
    }
}

/// Source, store and options of a table read from a topic: serdes given for either serve both.
fn table_parts<K: Data, V: Data>(
    graph: &mut Graph,
    topic: &str,
    consumed: &Consumed<K, V>,
    materialized: Materialized<K, V>,
) -> (StreamSource, StoreBuilder, MaterializedStore) {
    let mut materialized = MaterializedStore::new(materialized, graph, &format!("{topic}-"));
    let mut consumed = consumed.clone();
    consumed.key_serde = consumed.key_serde.or(materialized.key_serde.clone());
    consumed.value_serde = consumed.value_serde.or(materialized.value_serde.clone());
    let source = StreamSource::new(graph, vec![topic.to_owned()], &consumed);
    materialized.key_serde.get_or_insert_with(|| source.key_serde.clone());
    materialized.value_serde.get_or_insert_with(|| source.value_serde.clone());
    let store = materialized.key_value_store::<K, V>(graph);
    (source, store, materialized)
}
