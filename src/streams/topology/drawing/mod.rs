//! Drawings of a topology: [`Topology::dot`] for Graphviz, [`Topology::svg`] to look at.
//!
//! Both are made from one [`Picture`]: sub-topologies are boxes, in them processors with their stores; topics stand between them, because
//! that is where records wait. Sinks and the sources behind repartition topics are left out: an edge to or from the topic says the same.

mod dot;
mod layered;
mod svg;

use super::{NodeKind, SinkTopic, Topology};
use crate::streams::processor::NodeId;

/// What a shape stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A topic outside of the application.
    Topic,
    /// A topic inside.
    Repartition,
    /// A source node.
    Source,
    /// A processor node.
    Processor,
}

/// A shape.
#[derive(Debug)]
struct Shape {
    label: String,
    kind: Kind,
    /// Stores of a processor.
    stores: Vec<String>,
    /// Number of the box it stands in; topics stand in none.
    group: Option<usize>,
}

/// A box around shapes.
#[derive(Debug)]
struct Group {
    title: String,
}

/// What is drawn.
#[derive(Debug, Default)]
struct Picture {
    shapes: Vec<Shape>,
    edges: Vec<(usize, usize)>,
    groups: Vec<Group>,
}

impl Topology {
    /// The graph in Graphviz' language.
    pub fn dot(&self) -> String {
        dot::write(&self.picture())
    }

    /// The graph as a picture.
    pub fn svg(&self) -> String {
        svg::write(&self.picture())
    }

    fn picture(&self) -> Picture {
        let mut painter =
            Painter { topology: self, picture: Picture::default(), shape_of: vec![None; self.nodes.len()] };
        for subtopology in &self.subtopologies {
            painter.group(format!("sub-topology {}", subtopology.id), &subtopology.nodes);
        }
        if !self.global_nodes.is_empty() {
            painter.group("global, one full copy per process".to_owned(), &self.global_nodes);
        }
        painter.connect();
        painter.take_in();
        painter.picture
    }
}

struct Painter<'a> {
    topology: &'a Topology,
    picture: Picture,
    /// The shape that stands for a node, where one does.
    shape_of: Vec<Option<usize>>,
}

impl Painter<'_> {
    fn group(&mut self, title: String, nodes: &[NodeId]) {
        let group = self.picture.groups.len();
        self.picture.groups.push(Group { title });
        for id in nodes {
            let node = &self.topology.nodes[*id];
            let kind = match &node.kind {
                NodeKind::Source(source) if !source.internal => Kind::Source,
                NodeKind::Processor(_) => Kind::Processor,
                NodeKind::Source(_) | NodeKind::Sink(_) => continue,
            };
            let stores = node.stores.iter().map(|id| self.topology.stores[id.0].builder.name.clone());
            let stores = stores.collect();
            self.shape_of[*id] = Some(self.picture.shapes.len());
            self.picture.shapes.push(Shape {
                label: node.name.to_string(),
                kind,
                stores,
                group: Some(group),
            });
        }
    }

    fn connect(&mut self) {
        let topology = self.topology;
        for (id, node) in topology.nodes.iter().enumerate() {
            let parents: Vec<usize> = node.parents.iter().flat_map(|parent| self.origins(*parent)).collect();
            match (&node.kind, self.shape_of[id]) {
                (NodeKind::Source(source), Some(shape)) => {
                    for topic in &source.topics {
                        let topic = self.topic(topic);
                        self.edge(topic, shape);
                    }
                }
                (NodeKind::Sink(sink), _) => {
                    let topic = match &sink.topic {
                        SinkTopic::Fixed(topic) => self.topic(topic),
                        SinkTopic::Dynamic(_) => self.topic("a topic chosen per record"),
                    };
                    parents.into_iter().for_each(|parent| self.edge(parent, topic));
                }
                (_, Some(shape)) => parents.into_iter().for_each(|parent| self.edge(parent, shape)),
                _ => {}
            }
        }
    }

    /// The shapes a node's records come from: itself, or the topics of a source that is left out.
    fn origins(&mut self, id: NodeId) -> Vec<usize> {
        match (&self.topology.nodes[id].kind, self.shape_of[id]) {
            (_, Some(shape)) => vec![shape],
            (NodeKind::Source(source), None) => source.topics.iter().map(|topic| self.topic(topic)).collect(),
            _ => Vec::new(),
        }
    }

    /// A repartition topic that one sub-topology writes for itself stands in its box: outside, the way to it and back would cross it.
    fn take_in(&mut self) {
        for topic in 0..self.picture.shapes.len() {
            if self.picture.shapes[topic].kind != Kind::Repartition {
                continue;
            }
            let edges = self.picture.edges.iter().filter(|(from, to)| *from == topic || *to == topic);
            let mut groups: Vec<Option<usize>> = edges
                .map(|(from, to)| self.picture.shapes[if *from == topic { *to } else { *from }].group)
                .collect();
            groups.dedup();
            if let [Some(group)] = groups[..] {
                self.picture.shapes[topic].group = Some(group);
            }
        }
    }

    fn topic(&mut self, name: &str) -> usize {
        let known = self.picture.shapes.iter().position(|shape| shape.group.is_none() && shape.label == name);
        known.unwrap_or_else(|| {
            let internal = self.topology.repartition_topics.contains_key(name);
            let kind = if internal { Kind::Repartition } else { Kind::Topic };
            self.picture.shapes.push(Shape { label: name.to_owned(), kind, stores: Vec::new(), group: None });
            self.picture.shapes.len() - 1
        })
    }

    fn edge(&mut self, from: usize, to: usize) {
        if !self.picture.edges.contains(&(from, to)) {
            self.picture.edges.push((from, to));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::streams::{
        processor::{AnyProcessor, NodeContext, ProcessorSupplier},
        record::AnyRecord,
        serdes::{AnySerde, HasSerde},
        state::{StoreBuilder, StoreKind},
        topology::{
            SinkSpec, SinkTopic, SourceSpec, Topology, TopologyBuilder, serde_decoder, serde_encoder,
        },
    };

    struct Nothing;

    impl AnyProcessor for Nothing {
        fn process(&mut self, _: NodeContext<'_>, _: AnyRecord) -> crate::streams::error::Result<()> {
            Ok(())
        }
    }

    /// in -> parse -> (repartition) -> count -> out
    fn counted() -> Topology {
        let text = || String::serde();
        let source = |topic: &str| SourceSpec::new([topic], serde_decoder(text(), text()));
        let sink = |topic: &str, internal| SinkSpec {
            topic: SinkTopic::Fixed(topic.into()),
            encoder: serde_encoder(text(), text()),
            partitioner: None,
            internal,
        };
        let nothing: ProcessorSupplier = std::sync::Arc::new(|| Box::new(Nothing));
        let mut builder = TopologyBuilder::new();
        builder.add_source("read", source("in & out")).unwrap();
        builder.add_processor("parse", nothing.clone(), &["read"]).unwrap();
        builder.add_repartition_topic("count-repartition", None);
        builder.add_sink("to", sink("count-repartition", true), &["parse"]).unwrap();
        let mut again = source("count-repartition");
        again.internal = true;
        builder.add_source("from", again).unwrap();
        builder.add_processor("count", nothing, &["from"]).unwrap();
        let kind = StoreKind::KeyValue { timestamped: true };
        let serde: AnySerde = i64::serde();
        builder.add_state_store(StoreBuilder::new("counts", kind, text(), serde), &["count"]).unwrap();
        builder.add_sink("write", sink("out", false), &["count"]).unwrap();
        builder.build("app").unwrap()
    }

    #[test]
    fn sub_topologies_are_boxes_and_records_wait_in_topics() {
        let picture = counted().picture();
        let labels: Vec<(&str, Option<usize>)> =
            picture.shapes.iter().map(|shape| (shape.label.as_str(), shape.group)).collect();
        let group = |label: &str| {
            labels.iter().find(|(known, _)| *known == label).unwrap_or_else(|| panic!("{labels:?}")).1
        };
        assert_eq!((group("read"), group("parse"), group("count")), (Some(0), Some(0), Some(1)));
        assert_eq!((group("in & out"), group("app-count-repartition"), group("out")), (None, None, None));
        let named: Vec<(&str, &str)> =
            picture.edges.iter().map(|(a, b)| (labels[*a].0, labels[*b].0)).collect();
        for edge in [
            ("in & out", "read"),
            ("read", "parse"),
            ("parse", "app-count-repartition"),
            ("app-count-repartition", "count"),
            ("count", "out"),
        ] {
            assert!(named.contains(&edge), "{edge:?} is not among {named:?}");
        }
        assert_eq!(named.len(), 5, "{named:?}");
    }

    #[test]
    fn drawings_have_everything_and_escape_what_they_must() {
        let (svg, dot) = (counted().svg(), counted().dot());
        for part in ["in &amp; out", "app-count-repartition", ">counts<", "sub-topology 1"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        for part in ["in & out", "subgraph cluster_1", "count\\n[counts]"] {
            assert!(dot.contains(part), "no {part} in {dot}");
        }
    }
}
