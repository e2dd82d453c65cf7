//! `to_stream`: a table's changes as a stream of new values, deletions included.

use std::sync::Arc;

use super::{
    functions::Data,
    graph::GraphNode,
    kstream::{KStream, StreamCore},
    map::map_values_processor,
    named::Named,
    table::KTable,
};

impl<K: Data, V: Data> KTable<K, V> {
    /// The table's changes; a deletion is a null value.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// builder.table::<String, i64>("in").to_stream().to("out");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    /// # let output = driver.create_output_topic::<String, i64>("out", String::serde(), i64::serde());
    /// input.pipe_input(Some("a".into()), None, 0)?;
    /// assert_eq!(output.read_key_values()?, [(Some("a".into()), None)]);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn to_stream(&self) -> KStream<K, V> {
        self.to_stream_named(Named::default())
    }

    /// As [`to_stream`](Self::to_stream), named.
    pub fn to_stream_named(&self, named: impl Into<Named>) -> KStream<K, V> {
        let core = &self.core;
        let mut graph = core.graph.borrow_mut();
        let name = named.into().or_generate(&mut graph, "KTABLE-TOSTREAM-");
        let supplier = map_values_processor(Arc::new(|_, value| Ok(value.cloned())));
        let node = graph.add(core.node, GraphNode::processor(&name, supplier));
        drop(graph);
        KStream::new(StreamCore {
            name,
            key_serde: core.key_serde.clone(),
            value_serde: core.value_serde.clone(),
            sources: core.sources.clone(),
            repartition_required: false,
            node,
            graph: core.graph.clone(),
        })
    }
}
