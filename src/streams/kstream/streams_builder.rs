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
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// use sluice::streams::serdes::{AnySerde, HasSerde, JsonSerde};
    ///
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Order {
    ///     amount: i64,
    /// }
    ///
    /// impl HasSerde for Order {
    ///     fn serde() -> AnySerde {
    ///         AnySerde::new::<Order>(JsonSerde)
    ///     }
    /// }
    ///
    /// let builder = StreamsBuilder::new();
    /// builder.register_serde::<Order>();
    /// builder.stream::<String, Order>("orders").map_values(|_, order| order.map(|order| order.amount)).to("amounts");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let orders = driver.input_topic::<String, Order>("orders");
    /// # let amounts = driver.output_topic::<String, i64>("amounts");
    /// orders.pipe_input(None, Some(Order { amount: 5 }), 0)?;
    /// assert_eq!(amounts.read_key_values()?, [(None, Some(5))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn register_serde<T: HasSerde>(&self) -> &Self {
        self.graph.borrow_mut().register_serde::<T>();
        self
    }

    /// Reads a topic as a stream.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("in").map_values(|_, n| n.map(|n| n * 2)).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some(4), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some(8))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn stream<K: Data, V: Data>(&self, topic: &str) -> KStream<K, V> {
        self.stream_with(&[topic], Consumed::default())
    }

    /// Reads topics as one stream, with serdes, extractor, offset reset and name.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Consumed, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// use sluice::streams::topology::log_and_skip_on_invalid_timestamp;
    /// let consumed = Consumed::default().with_name("read").with_timestamp_extractor(log_and_skip_on_invalid_timestamp());
    /// builder.stream_with::<String, i64>(&["web", "app"], consumed).to("all");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let web = driver.input_topic::<String, i64>("web");
    /// # let app = driver.input_topic::<String, i64>("app");
    /// # let output = driver.output_topic::<String, i64>("all");
    /// web.pipe_input(None, Some(1), 0)?;
    /// app.pipe_input(None, Some(2), 0)?;
    /// app.pipe_input(None, Some(3), -1)?; // dropped, and counted
    /// assert_eq!(output.read_key_values()?, [(None, Some(1)), (None, Some(2))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
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
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.table::<String, i64>("in").map_values(|_, n| n.map(|n| n * 2)).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("k".into()), Some(4), 0)?;
    /// input.pipe_input(Some("k".into()), None, 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some(8)), (Some("k".into()), None)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn table<K: Data, V: Data>(&self, topic: &str) -> KTable<K, V> {
        self.table_with(topic, Consumed::default(), Materialized::default())
    }

    /// As [`table`](Self::table), with serdes, extractor and name, and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Consumed, Materialized, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// # use std::time::Duration;
    /// let builder = StreamsBuilder::new();
    /// // Ten minutes of history: what the value was at a time can be asked.
    /// let stored = Materialized::named("prices").versioned(Duration::from_secs(600));
    /// builder.table_with::<String, i64>("in", Consumed::default(), stored);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("tea".into()), Some(3), 1_000)?;
    /// input.pipe_input(Some("tea".into()), Some(4), 2_000)?;
    /// let then = driver.versioned_store::<String, i64, _>("prices", |rows| rows.get_as_of(&"tea".to_owned(), 1_500))?;
    /// assert_eq!(then.map(|then| *then.value), Some(3));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
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
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let cities = builder.global_table::<String, String>("cities");
    /// let orders = builder.stream::<String, String>("orders");
    /// orders
    ///     .join_global(&cities, |_, city| city.cloned(), |_, name| name.cloned(), Named::default())
    ///     .to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let cities = driver.input_topic::<String, String>("cities");
    /// # let orders = driver.input_topic::<String, String>("orders");
    /// # let output = driver.output_topic::<String, String>("out");
    /// cities.pipe_input(Some("UL".into()), Some("Ulm".into()), 0)?;
    /// orders.pipe_input(Some("1".into()), Some("UL".into()), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("1".into()), Some("Ulm".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn global_table<K: Data, V: Data>(&self, topic: &str) -> GlobalKTable<K, V> {
        self.global_table_with(topic, Consumed::default(), Materialized::default())
    }

    /// As [`global_table`](Self::global_table), with serdes, extractor and name, and stored as said.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Consumed, Materialized, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.global_table_with::<String, String>("in", Consumed::default(), Materialized::named("cities"));
    /// # builder.stream::<String, String>("other").to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// input.pipe_input(Some("UL".into()), Some("Ulm".into()), 0)?;
    /// let name = driver.key_value_store("cities", |cities| cities.get(&"UL".to_owned()))?;
    /// assert_eq!(name.as_deref(), Some(&"Ulm".to_owned()));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
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
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Named, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// use sluice::streams::{
    ///     error::Result,
    ///     processor::{Processor, ProcessorContext},
    ///     record::Record,
    ///     serdes::HasSerde,
    ///     stores::{StoreBuilder, StoreKind},
    /// };
    ///
    /// /// Keeps the last value of each key.
    /// struct Keep;
    /// impl Processor<String, i64, (), ()> for Keep {
    ///     fn process(&mut self, context: &ProcessorContext<'_, (), ()>, record: Record<String, i64>) -> Result<()> {
    ///         let last = context.key_value_store::<String, i64>("last")?;
    ///         last.put(&record.key.unwrap_or_default(), record.value.as_deref().copied())
    ///     }
    /// }
    ///
    /// let builder = StreamsBuilder::new();
    /// let kind = StoreKind::KeyValue { timestamped: true };
    /// builder.add_state_store(StoreBuilder::new("last", kind, String::serde(), i64::serde()));
    /// builder.stream::<String, i64>("in").process(|| Keep, Named::default(), &["last"]);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// input.pipe_input(Some("k".into()), Some(7), 0)?;
    /// let last = driver.key_value_store("last", |last| last.get(&"k".to_owned()))?;
    /// assert_eq!(last.as_deref(), Some(&7_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn add_state_store(&self, store: StoreBuilder) -> &Self {
        let node = GraphNode::other(store.name.clone(), move |topology, _| {
            topology.add_state_store(store.clone(), &[]).map(drop)
        });
        self.graph.borrow_mut().add(ROOT, node);
        self
    }

    /// Adds a store of which every instance keeps a full copy, filled from a topic by a processor.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Consumed, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// use sluice::streams::{
    ///     error::Result,
    ///     processor::{Processor, ProcessorContext},
    ///     record::Record,
    ///     serdes::HasSerde,
    ///     stores::{StoreBuilder, StoreKind},
    /// };
    ///
    /// /// Puts what it is given: a restart replays the topic into the store as it is.
    /// struct Fill;
    /// impl Processor<String, i64, (), ()> for Fill {
    ///     fn process(&mut self, context: &ProcessorContext<'_, (), ()>, record: Record<String, i64>) -> Result<()> {
    ///         let rates = context.key_value_store::<String, i64>("rates")?;
    ///         rates.put(&record.key.unwrap_or_default(), record.value.as_deref().copied())
    ///     }
    /// }
    ///
    /// let builder = StreamsBuilder::new();
    /// let kind = StoreKind::KeyValue { timestamped: true };
    /// let store = StoreBuilder::new("rates", kind, String::serde(), i64::serde());
    /// builder.add_global_store(store, "rates", Consumed::default(), || Fill);
    /// # builder.stream::<String, i64>("other").to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("rates");
    /// input.pipe_input(Some("usd".into()), Some(110), 0)?;
    /// let rate = driver.key_value_store("rates", |rates| rates.get(&"usd".to_owned()))?;
    /// assert_eq!(rate.as_deref(), Some(&110_i64));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
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
