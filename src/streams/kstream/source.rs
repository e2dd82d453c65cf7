//! The stream source of the logical graph, and how a [`Consumed`] becomes a [`SourceSpec`].

use super::{graph::Graph, options::Consumed};
use crate::streams::{
    client::OffsetReset,
    error::Result,
    serdes::AnySerde,
    topology::{SourceSpec, TimestampExtractor, TopologyBuilder, serde_decoder},
};

/// A source node and what it reads.
pub(crate) struct StreamSource {
    pub topics: Vec<String>,
    pub key_serde: AnySerde,
    pub value_serde: AnySerde,
    pub timestamp_extractor: Option<TimestampExtractor>,
    pub offset_reset: Option<OffsetReset>,
}

impl StreamSource {
    /// Resolves the serdes of a source.
    pub(crate) fn new<K: Send + Sync + 'static, V: Send + Sync + 'static>(
        graph: &mut Graph,
        topics: Vec<String>,
        consumed: &Consumed<K, V>,
    ) -> Self {
        let place = topics.join(", ");
        Self {
            key_serde: graph.serde::<K>(consumed.key_serde.clone(), &format!("the keys of topic {place}")),
            value_serde: graph
                .serde::<V>(consumed.value_serde.clone(), &format!("the values of topic {place}")),
            timestamp_extractor: consumed.timestamp_extractor.clone(),
            offset_reset: consumed.offset_reset,
            topics,
        }
    }

    /// The node's specification.
    pub(crate) fn spec(&self) -> SourceSpec {
        SourceSpec {
            timestamp_extractor: self.timestamp_extractor.clone(),
            offset_reset: self.offset_reset,
            ..SourceSpec::new(
                self.topics.iter().map(String::as_str),
                serde_decoder(self.key_serde.clone(), self.value_serde.clone()),
            )
        }
    }

    /// Writes the node.
    pub(crate) fn write(&self, name: &str, topology: &mut TopologyBuilder) -> Result<()> {
        topology.add_source(name, self.spec()).map(drop)
    }
}
