//! `repartition`: a hop through a topic of the application, so that records of one key meet in one task.
//!
//! Operators that group or join by a changed key make such a hop of their own; those may be merged by the optimiser
//! (`optimizable`). Before the hop records with a null key are dropped, silently, unless a join below wants them (KIP-962).

use std::{collections::BTreeSet, sync::Arc};

use super::{
    filter::filter_processor,
    functions::Data,
    graph::{Graph, GraphNode, NodeKind},
    kstream::{KStream, StreamCore},
    options::Repartitioned,
};
use crate::streams::{
    error::Result,
    serdes::AnySerde,
    topology::{
        Partitioner, RecordDecoder, RecordEncoder, SinkSpec, SinkTopic, SourceSpec, TopologyBuilder,
        serde_decoder, serde_encoder,
    },
};

/// Ending of repartition topics.
pub(crate) const REPARTITION_SUFFIX: &str = "-repartition";

/// A hop: filter, sink, topic, source.
pub(crate) struct Repartition {
    pub topic: String,
    /// Whether the optimiser may merge this hop with others below the same key change.
    pub optimizable: bool,
    /// `None` for regrouped tables, which have no filter.
    pub filter_name: Option<String>,
    pub sink_name: String,
    pub source_name: String,
    pub key_serde: AnySerde,
    pub value_serde: AnySerde,
    pub encoder: RecordEncoder,
    pub decoder: RecordDecoder,
    pub partitioner: Option<Partitioner>,
    pub partitions: Option<i32>,
    /// Decided by the optimiser: whether the filter drops null keys.
    pub drop_null_keys: bool,
}

impl Repartition {
    /// Names the parts of a hop (Kafka's `createRepartitionedSource`): three numbers are used whether names are given or not.
    pub(crate) fn named(
        graph: &mut Graph,
        prefix: &str,
        key_serde: AnySerde,
        value_serde: AnySerde,
        partitioner: Option<Partitioner>,
        optimizable: bool,
    ) -> Self {
        let topic = if prefix.ends_with(REPARTITION_SUFFIX) {
            prefix.to_owned()
        } else {
            format!("{prefix}{REPARTITION_SUFFIX}")
        };
        let sink = graph.new_processor_name("KSTREAM-SINK-");
        let filter = graph.new_processor_name("KSTREAM-FILTER-");
        let source = graph.new_processor_name("KSTREAM-SOURCE-");
        let (sink_name, filter_name, source_name) = if is_generated(prefix) {
            (sink, filter, source)
        } else {
            (format!("{topic}-sink"), format!("{topic}-filter"), format!("{topic}-source"))
        };
        Self {
            topic,
            optimizable,
            filter_name: Some(filter_name),
            sink_name,
            source_name,
            encoder: serde_encoder(key_serde.clone(), value_serde.clone()),
            decoder: serde_decoder(key_serde.clone(), value_serde.clone()),
            key_serde,
            value_serde,
            partitioner,
            partitions: None,
            drop_null_keys: true,
        }
    }

    /// Writes filter, sink and source.
    pub(crate) fn write(&self, topology: &mut TopologyBuilder, parents: &[&str]) -> Result<()> {
        topology.add_repartition_topic(&self.topic, self.partitions);
        let sink = SinkSpec {
            topic: SinkTopic::Fixed(self.topic.as_str().into()),
            encoder: self.encoder.clone(),
            partitioner: self.partitioner.clone(),
            internal: true,
        };
        match &self.filter_name {
            Some(filter) => {
                let drop_null_keys = self.drop_null_keys;
                let keep =
                    Arc::new(move |key: Option<&_>, _: Option<&_>| Ok(!drop_null_keys || key.is_some()));
                topology.add_processor(filter, filter_processor(keep, false), parents)?;
                topology.add_sink(&self.sink_name, sink, &[filter])?;
            }
            None => {
                topology.add_sink(&self.sink_name, sink, parents)?;
            }
        }
        // An internal source takes the timestamp the record was sent with, whatever the application's extractor is.
        let source =
            SourceSpec { internal: true, ..SourceSpec::new([self.topic.as_str()], self.decoder.clone()) };
        topology.add_source(&self.source_name, source).map(drop)
    }
}

/// Whether a prefix is a generated operator or store name: `KSTREAM.*-[0-9]{10}`.
fn is_generated(prefix: &str) -> bool {
    prefix.len() > 11 && prefix.starts_with("KSTREAM") && {
        let (head, digits) = prefix.split_at(prefix.len() - 10);
        head.ends_with('-') && digits.bytes().all(|byte| byte.is_ascii_digit())
    }
}

impl StreamCore {
    /// Adds a hop below this stream and returns the stream behind it.
    pub(crate) fn repartitioned(&self, repartition: Repartition) -> Self {
        let source = repartition.source_name.clone();
        let (key_serde, value_serde) = (repartition.key_serde.clone(), repartition.value_serde.clone());
        let node = self
            .graph
            .borrow_mut()
            .add(self.node, GraphNode::new(source.clone(), NodeKind::Repartition(repartition)));
        StreamCore {
            sources: BTreeSet::from([source.clone()]),
            name: source,
            key_serde: Some(key_serde),
            value_serde: Some(value_serde),
            repartition_required: false,
            node,
            ..self.clone()
        }
    }
}

impl<K: Data, V: Data> KStream<K, V> {
    /// Sends the stream through a topic of the application, partitioned by key.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").select_key(|_, v| v.cloned()).repartition().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, String>("out");
    /// input.pipe_input(None, Some("x".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("x".into()), Some("x".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn repartition(&self) -> KStream<K, V> {
        self.repartition_with(Repartitioned::default())
    }

    /// As [`repartition`](Self::repartition), with the topic's name, partitions and partitioner.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Repartitioned, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// let options = Repartitioned::named("spread").with_number_of_partitions(12);
    /// builder.stream::<String, String>("in").repartition_with(options).to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, String>("out");
    /// input.pipe_input(Some("k".into()), Some("x".into()), 0)?;
    /// assert_eq!(driver.read_records("app-spread-repartition").len(), 1);
    /// assert_eq!(output.read_key_values()?.len(), 1);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn repartition_with(&self, options: Repartitioned<K, V>) -> KStream<K, V> {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let name = match options.name {
            Some(name) => graph.checked_name(name),
            None => graph.new_processor_name("KSTREAM-REPARTITION-"),
        };
        let place = format!("repartition {name}");
        let key_serde = graph.serde::<K>(options.key_serde.or(core.key_serde.clone()), &place);
        let value_serde = graph.serde::<V>(options.value_serde.or(core.value_serde.clone()), &place);
        let mut hop =
            Repartition::named(&mut graph, &name, key_serde, value_serde, options.partitioner, false);
        hop.partitions = options.number_of_partitions;
        drop(graph);
        KStream::new(core.repartitioned(hop))
    }
}
