//! The topology under test, and its truth: counts words behind a repartition topic. Each count is written once as `n`, so
//! the outputs of a word must read 1, 2, 3, … without a gap or a repeat.

use std::{collections::BTreeMap, sync::Arc};

use sluice::streams::{
    error::Result,
    processor::{Processor, ProcessorContext, StoreId, erase},
    record::Record,
    serdes::HasSerde,
    state::{Backend, StoreBuilder, StoreKind, ValueAndTimestamp},
    topology::{SinkSpec, SinkTopic, SourceSpec, Topology, TopologyBuilder, serde_decoder, serde_encoder},
};

pub const APPLICATION: &str = "word-count";
pub const INPUT: &str = "words";
pub const OUTPUT: &str = "counted";
pub const STORE: &str = "counts";

struct ByValue;

impl Processor<String, String, String, String> for ByValue {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, String>,
        record: Record<String, String>,
    ) -> Result<()> {
        let key = record.value.clone();
        context.forward(Record { key, ..record })
    }
}

#[derive(Default)]
struct Count {
    store: Option<StoreId>,
}

impl Processor<String, String, String, i64> for Count {
    fn init(&mut self, context: &ProcessorContext<'_, String, i64>) -> Result<()> {
        self.store = Some(context.state_store(STORE)?);
        Ok(())
    }

    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, i64>,
        record: Record<String, String>,
    ) -> Result<()> {
        let (Some(store), Some(key)) = (self.store, record.key.clone()) else { return Ok(()) };
        let at = context.record_metadata();
        let count = context.node().with_key_value(store, |counts| {
            let before = counts.get(key.as_bytes())?;
            let count = before.and_then(|known| known.value.downcast_ref::<i64>().copied()).unwrap_or(0) + 1;
            let value = ValueAndTimestamp { value: Arc::new(count), timestamp: record.timestamp };
            counts.put(key.as_bytes().into(), Some(value), &at)?;
            Ok(count)
        })?;
        context.forward(record.with_value(Some(count)))
    }
}

/// `backend`: where the counts live below the changelog.
pub fn topology(backend: Backend) -> Topology {
    let text = serde_decoder(String::serde(), String::serde());
    let sink = |topic: &str, encoder, internal| SinkSpec {
        topic: SinkTopic::Fixed(topic.into()),
        encoder,
        partitioner: None,
        internal,
    };
    let build = || -> Result<Topology> {
        let mut builder = TopologyBuilder::new();
        builder.add_source("words", SourceSpec::new([INPUT], text.clone()))?;
        builder.add_processor("by-value", Arc::new(|| erase(ByValue)), &["words"])?;
        builder.add_repartition_topic("by-value-repartition", None);
        let encoder = serde_encoder(String::serde(), String::serde());
        builder.add_sink("to-repartition", sink("by-value-repartition", encoder, true), &["by-value"])?;
        let mut source = SourceSpec::new(["by-value-repartition"], text.clone());
        source.internal = true;
        builder.add_source("from-repartition", source)?;
        builder.add_processor("count", Arc::new(|| erase(Count::default())), &["from-repartition"])?;
        let kind = StoreKind::KeyValue { timestamped: true };
        builder.add_state_store(
            StoreBuilder { backend, ..StoreBuilder::new(STORE, kind, String::serde(), i64::serde()) },
            &["count"],
        )?;
        builder.add_sink(
            "out",
            sink(OUTPUT, serde_encoder(String::serde(), i64::serde()), false),
            &["count"],
        )?;
        builder.build(APPLICATION)
    };
    build().expect("the topology is valid")
}

/// How often each word was written.
#[derive(Default)]
pub struct Model {
    counts: BTreeMap<String, i64>,
}

impl Model {
    pub fn wrote(&mut self, word: &str) {
        *self.counts.entry(word.to_owned()).or_default() += 1;
    }

    /// Outputs by word, in partition order.
    pub fn check_outputs(&self, found: &BTreeMap<String, Vec<i64>>) {
        let expected: BTreeMap<String, Vec<i64>> =
            self.counts.iter().map(|(word, n)| (word.clone(), (1..=*n).collect())).collect();
        assert_eq!(found, &expected, "committed output");
    }

    /// Last value per word, of the changelog or of the stores.
    pub fn check_counts(&self, found: &BTreeMap<String, i64>, what: &str) {
        assert_eq!(found, &self.counts, "{what}");
    }
}
