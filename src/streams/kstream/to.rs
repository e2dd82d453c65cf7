//! `to`: writes a stream to a topic, fixed or chosen per record.

use std::sync::Arc;

use super::{
    functions::{Data, UserResult, typed},
    graph::GraphNode,
    kstream::KStream,
    options::Produced,
    windowed::windowed_partitioner,
};
use crate::streams::{
    record::RecordContext,
    topology::{SinkSpec, SinkTopic, serde_encoder},
};

impl<K: Data, V: Data> KStream<K, V> {
    /// Writes the stream to a topic.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// builder.stream::<String, String>("in").to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, String>("out");
    /// input.pipe_input(Some("k".into()), Some("x".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some("x".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn to(&self, topic: &str) {
        self.to_with(topic, Produced::default());
    }

    /// As [`to`](Self::to), with serdes, partitioner and name.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{Produced, StreamsBuilder}, test_utils::TopologyTestDriver};
    /// let builder = StreamsBuilder::new();
    /// // To partition 0, whatever the key.
    /// let produced = Produced::default().with_partitioner(std::sync::Arc::new(|_, _, _| Some(vec![0])));
    /// builder.stream::<String, String>("in").to_with("out", produced);
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.input_topic::<String, String>("in");
    /// # let output = driver.output_topic::<String, String>("out");
    /// input.pipe_input(Some("k".into()), Some("x".into()), 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("k".into()), Some("x".into()))]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn to_with(&self, topic: &str, produced: Produced<K, V>) {
        self.sink(SinkTopic::Fixed(topic.into()), topic, produced);
    }

    /// Writes each record to the topic `f` names (Kafka's `TopicNameExtractor`). The topics must exist.
    ///
    /// ```
    /// # use sluice::streams::{kstream::{StreamsBuilder, Produced}, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder
    ///     .stream::<String, String>("in")
    ///     .to_dynamic(|key, _, _| format!("out-{}", key.map_or("none", String::as_str)), Produced::default());
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("out-a", String::serde(), String::serde());
    /// input.pipe_input(Some("a".into()), Some("x".into()), 0)?;
    /// assert_eq!(output.read_records()?.len(), 1);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn to_dynamic(
        &self,
        f: impl Fn(Option<&K>, Option<&V>, &RecordContext) -> String + Send + Sync + 'static,
        produced: Produced<K, V>,
    ) {
        let choose = move |record: &crate::streams::record::AnyRecord, context: &RecordContext| {
            let topic: UserResult<String> =
                Ok(f(typed(record.key.as_ref())?, typed(record.value.as_ref())?, context));
            topic.map(Arc::from)
        };
        self.sink(SinkTopic::Dynamic(Arc::new(choose)), "topics chosen per record", produced);
    }

    fn sink(&self, topic: SinkTopic, place: &str, produced: Produced<K, V>) {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let name = produced.name.or_generate(&mut graph, "KSTREAM-SINK-");
        let key_serde = graph
            .serde::<K>(produced.key_serde.or(core.key_serde.clone()), &format!("the keys of topic {place}"));
        let value_serde = graph.serde::<V>(
            produced.value_serde.or(core.value_serde.clone()),
            &format!("the values of topic {place}"),
        );
        let sink = SinkSpec {
            topic,
            partitioner: produced.partitioner.or_else(|| windowed_partitioner(&key_serde)),
            encoder: serde_encoder(key_serde, value_serde),
            internal: false,
        };
        let node = name.clone();
        graph.add(
            core.node,
            GraphNode::other(name, move |topology, parents| {
                topology.add_sink(&node, sink.clone(), parents).map(drop)
            }),
        );
    }
}
