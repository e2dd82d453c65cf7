//! `group_by_key`, `group_by`: [`KGroupedStream`], a stream on its way to an aggregation.
//!
//! Where the key was changed the aggregation puts a hop through a topic first; grouping itself adds no node but the one that
//! selects the key.

use std::{cell::Cell, marker::PhantomData, rc::Rc};

use super::{
    functions::{Data, UserResult, value_mapper},
    graph::{GraphNode, GraphNodeId, NodeKind},
    kstream::{KStream, StreamCore},
    named::Named,
    options::Grouped,
    repartition::Repartition,
    table::{KTable, TableCore, TableProcessor},
};
use crate::streams::{serdes::AnySerde, state::StoreBuilder};

/// A grouped stream without its types; also where its aggregations are added (Kafka's `GroupedStreamAggregateBuilder`).
#[derive(Clone)]
pub(crate) struct GroupedCore {
    pub stream: StreamCore,
    /// Serdes as given for the grouping, or inherited.
    pub key_serde: Option<AnySerde>,
    pub value_serde: Option<AnySerde>,
    /// The name given to the repartition topic.
    pub name: Option<String>,
    /// The hop, once an aggregation made it; shared by later ones when it is named.
    pub repartition: Rc<Cell<Option<GraphNodeId>>>,
}

/// What an aggregation of a grouped stream adds to the graph.
pub(crate) struct Aggregation {
    /// Name of the node.
    pub name: String,
    /// Its store.
    pub store: StoreBuilder,
    /// Its descriptor.
    pub processor: Rc<dyn TableProcessor>,
    /// Store to query by name, when the user named one.
    pub queryable_store: Option<String>,
    /// Serdes of the result (for windowed results, of the windowed key).
    pub key_serde: Option<AnySerde>,
    pub value_serde: Option<AnySerde>,
    /// How long a result may still change, for suppress; `None` without windows.
    pub window_grace_ms: Option<i64>,
}

impl GroupedCore {
    /// The stream an aggregation reads: behind a hop where the key was changed. `K`, `V` are the stream's types; `store` names
    /// the topic where the grouping does not.
    pub(crate) fn aggregated_stream<K: Data, V: Data>(&self, store: &str) -> StreamCore {
        if !self.stream.repartition_required {
            return self.stream.clone();
        }
        let mut graph = self.stream.graph.borrow_mut();
        let prefix = self.name.as_deref().unwrap_or(store);
        let place = format!("repartition topic {prefix}");
        let key_serde = graph.serde::<K>(self.key_serde.clone(), &place);
        let value_serde = graph.serde::<V>(self.value_serde.clone(), &place);
        let hop = Repartition::named(&mut graph, prefix, key_serde, value_serde, None, true);
        let source = hop.source_name.clone();
        let node = match (self.repartition.get(), &self.name) {
            (Some(node), Some(_)) => {
                graph.link(self.stream.node, node);
                node
            }
            _ => {
                let node = GraphNode::new(source.clone(), NodeKind::Repartition(hop));
                graph.add(self.stream.node, node)
            }
        };
        drop(graph);
        self.repartition.set(Some(node));
        StreamCore {
            sources: super::table_source::single_source(&source),
            name: source,
            repartition_required: false,
            node,
            ..self.stream.clone()
        }
    }

    /// Adds an aggregation and returns its table.
    pub(crate) fn aggregate<K: Data, V: Data, KR: Data, VR: Data>(
        &self,
        aggregation: Aggregation,
    ) -> KTable<KR, VR> {
        let stream = self.aggregated_stream::<K, V>(&aggregation.store.name);
        let versioned = matches!(aggregation.store.kind, crate::streams::state::StoreKind::Versioned { .. });
        let at_build = aggregation.processor.clone();
        let node = GraphNode {
            output_versioned: Some(versioned),
            window_grace_ms: aggregation.window_grace_ms,
            ..GraphNode::stateful(
                &aggregation.name,
                move || at_build.supplier(),
                Vec::new(),
                Some(aggregation.store),
            )
        };
        let node = stream.graph.borrow_mut().add(stream.node, node);
        KTable::new(TableCore {
            name: aggregation.name,
            key_serde: aggregation.key_serde,
            value_serde: aggregation.value_serde,
            sources: stream.sources,
            queryable_store: aggregation.queryable_store,
            processor: aggregation.processor,
            sends_old_values: Rc::default(),
            node,
            graph: stream.graph,
        })
    }
}

/// A stream grouped by key. What groups a stream does nothing yet: an aggregation follows.
pub struct KGroupedStream<K, V> {
    pub(crate) core: GroupedCore,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> Clone for KGroupedStream<K, V> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), types: PhantomData }
    }
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Groups by the key as it is.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, i64>("in").group_by_key().reduce(|a, b| Some(a? + b?)).to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, i64>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(Some("ann".into()), Some(3), 0)?;
    /// input.pipe_input(Some("ann".into()), Some(4), 1)?;
    /// assert_eq!(output.read_key_values()?, [(Some("ann".into()), Some(3)), (Some("ann".into()), Some(7))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn group_by_key(&self) -> KGroupedStream<K, V> {
        self.group_by_key_with(Grouped::default())
    }

    /// As [`group_by_key`](Self::group_by_key), with serdes and a name for the repartition topic.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Grouped, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// // The key was changed, so grouping goes through a topic, and that has a name.
    /// let by_value = builder.stream::<String, String>("in").select_key(|_, v| v.cloned());
    /// by_value.group_by_key_with(Grouped::named("by-value")).count().to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, i64>("out");
    /// input.pipe_input(None, Some("x".into()), 0)?;
    /// assert_eq!(driver.read_records("app-by-value-repartition").len(), 1);
    /// assert_eq!(output.read_key_values()?, [(Some("x".into()), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn group_by_key_with(&self, grouped: Grouped<K, V>) -> KGroupedStream<K, V> {
        grouped_stream(&self.core, grouped)
    }

    /// Groups by a key that `f` selects.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("words").group_by(|_, word| word.cloned()).count().to_stream().to("counts");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("words", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, i64>("counts", String::serde(), i64::serde());
    /// for word in ["a", "b", "a"] {
    ///     input.pipe_input(None, Some(word.into()), 0)?;
    /// }
    /// assert_eq!(output.read_key_values()?.last(), Some(&(Some("a".into()), Some(2))));
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn group_by<KR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> Option<KR> + Send + Sync + 'static,
    ) -> KGroupedStream<KR, V> {
        self.group_by_with(move |key, value| Ok(f(key, value)), Grouped::default())
    }

    /// As [`group_by`](Self::group_by), with serdes and a name, and a function that may fail.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Grouped, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let words = builder.stream::<String, String>("in");
    /// let lengths = words.group_by_with(|_, word| Ok(word.map(|word| word.len() as i64)), Grouped::named("by-length"));
    /// lengths.count().to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<i64, i64>("out");
    /// input.pipe_input(None, Some("tea".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some(3), Some(1))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn group_by_with<KR: Data>(
        &self,
        f: impl Fn(Option<&K>, Option<&V>) -> UserResult<Option<KR>> + Send + Sync + 'static,
        grouped: Grouped<KR, V>,
    ) -> KGroupedStream<KR, V> {
        let named = grouped.name.clone().map_or_else(Named::default, Named::new);
        let selected = self.core.select_key(value_mapper(f), &named);
        grouped_stream(&selected, grouped)
    }
}

fn grouped_stream<K, V>(stream: &StreamCore, grouped: Grouped<K, V>) -> KGroupedStream<K, V> {
    if let Some(name) = &grouped.name {
        stream.graph.borrow_mut().checked_name(name.clone());
    }
    KGroupedStream {
        core: GroupedCore {
            stream: stream.clone(),
            key_serde: grouped.key_serde.or(stream.key_serde.clone()),
            value_serde: grouped.value_serde.or(stream.value_serde.clone()),
            name: grouped.name,
            repartition: Rc::default(),
        },
        types: PhantomData,
    }
}
