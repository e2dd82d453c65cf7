//! `merge`: two streams become one, in the order records arrive (Kafka's `PassThrough`). Serdes are not inherited.

use std::sync::Arc;

use super::{
    functions::Data,
    graph::GraphNode,
    kstream::{KStream, StreamCore},
    named::Named,
};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, NodeContext, ProcessorSupplier},
    record::AnyRecord,
};

struct PassThrough;

impl AnyProcessor for PassThrough {
    fn passes_records(&self) -> bool {
        true
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        context.forward(record)
    }
}

/// A processor that changes nothing.
pub(crate) fn pass_through() -> ProcessorSupplier {
    Arc::new(|| Box::new(PassThrough))
}

impl<K: Data, V: Data> KStream<K, V> {
    /// This stream and another as one.
    ///
    /// ```
    /// # use sluice::streams::{kstream::StreamsBuilder, test_utils::TopologyTestDriver, serdes::HasSerde};
    /// let builder = StreamsBuilder::new();
    /// let web = builder.stream::<String, String>("web");
    /// web.merge(&builder.stream("app")).to("all");
    /// # let driver = TopologyTestDriver::new(builder.build("app")?)?;
    /// # let input = driver.create_input_topic::<String, String>("app", String::serde(), String::serde());
    /// # let output = driver.create_output_topic::<String, String>("all", String::serde(), String::serde());
    /// input.pipe_input(None, Some("x".into()), 0)?;
    /// assert_eq!(output.read_records()?.len(), 1);
    /// # Ok::<(), sluice::streams::error::StreamsError>(())
    /// ```
    pub fn merge(&self, other: &KStream<K, V>) -> KStream<K, V> {
        self.merge_named(other, Named::default())
    }

    /// As [`merge`](Self::merge), named.
    pub fn merge_named(&self, other: &KStream<K, V>, named: impl Into<Named>) -> KStream<K, V> {
        let mut graph = self.core.graph.borrow_mut();
        let name = named.into().or_generate(&mut graph, "KSTREAM-MERGE-");
        let node = GraphNode { merge: true, ..GraphNode::processor(&name, pass_through()) };
        let node = graph.add(self.core.node, node);
        graph.link(other.core.node, node);
        drop(graph);
        KStream::new(StreamCore {
            name,
            key_serde: None,
            value_serde: None,
            sources: self.core.sources.union(&other.core.sources).cloned().collect(),
            repartition_required: self.core.repartition_required || other.core.repartition_required,
            node,
            graph: self.core.graph.clone(),
        })
    }
}
