//! The topology under test, and its truth: counts words behind a repartition topic. Each count is written once as `n`, so
//! the outputs of a word must read 1, 2, 3, … without a gap or a repeat. At-least-once promises less: no word is ever forgotten.

use std::collections::BTreeMap;

use sluice::streams::{
    error::Result,
    processor::{Processor, ProcessorContext, StoreId, processor_supplier},
    record::Record,
    serdes::HasSerde,
    stores::{StoreBuilder, StoreKind},
    topology::{SinkSpec, SinkTopic, SourceSpec, Topology, TopologyBuilder, serde_decoder, serde_encoder},
};

use crate::{
    random::Random,
    scenario::{Event, Outputs, Scenario, same},
};

const APPLICATION: &str = "word-count";
const INPUT: &str = "words";
const OUTPUT: &str = "counted";
const STORE: &str = "counts";

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
        let counts = context.key_value_store::<String, i64>(store)?;
        let count = counts.get(&key)?.map_or(1, |before| *before + 1);
        counts.put(&key, count)?;
        context.forward(record.with_value(Some(count)))
    }
}

fn topology() -> Topology {
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
        builder.add_processor("by-value", processor_supplier(|| ByValue), &["words"])?;
        builder.add_repartition_topic("by-value-repartition", None);
        let encoder = serde_encoder(String::serde(), String::serde());
        builder.add_sink("to-repartition", sink("by-value-repartition", encoder, true), &["by-value"])?;
        let mut source = SourceSpec::new(["by-value-repartition"], text.clone());
        source.internal = true;
        builder.add_source("from-repartition", source)?;
        builder.add_processor("count", processor_supplier(Count::default), &["from-repartition"])?;
        let kind = StoreKind::KeyValue { timestamped: true };
        builder.add_state_store(StoreBuilder::new(STORE, kind, String::serde(), i64::serde()), &["count"])?;
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
pub struct WordCount {
    counts: BTreeMap<String, i64>,
    written: u64,
    at_least_once: bool,
}

impl WordCount {
    pub fn new(at_least_once: bool) -> Self {
        Self { counts: BTreeMap::new(), written: 0, at_least_once }
    }
}

impl Scenario for WordCount {
    fn name(&self) -> &'static str {
        if self.at_least_once { "word count, at least once" } else { "word count" }
    }

    fn topology(&self) -> Topology {
        topology()
    }

    fn topics(&self) -> &'static [&'static str] {
        &[INPUT, OUTPUT]
    }

    fn outputs(&self) -> &'static [&'static str] {
        &[OUTPUT]
    }

    fn idle_close_ms(&self) -> Option<i64> {
        None
    }

    fn at_least_once(&self) -> bool {
        self.at_least_once
    }

    fn happen(&mut self, random: &mut Random, time: i64) -> Vec<Event> {
        let word = format!("w{}", random.below(7));
        *self.counts.entry(word.clone()).or_default() += 1;
        self.written += 1;
        vec![Event { topic: INPUT, key: format!("k{}", self.written), value: word.into_bytes(), time }]
    }

    fn check(&self, outputs: &Outputs) -> Result<(), String> {
        let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for record in &outputs[OUTPUT] {
            let word = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
            let count: [u8; 8] = record.value.as_deref().unwrap_or_default().try_into().expect("a number");
            found.entry(word).or_default().push(i64::from_be_bytes(count));
        }
        if self.at_least_once {
            for (word, n) in &self.counts {
                let largest = found.get(word).and_then(|counts| counts.iter().max()).copied().unwrap_or(0);
                if largest < *n {
                    return Err(format!("{word} was counted {largest} times, it came {n} times"));
                }
            }
            return Ok(());
        }
        let expected: BTreeMap<String, Vec<i64>> =
            self.counts.iter().map(|(word, n)| (word.clone(), (1..=*n).collect())).collect();
        same("counts", &found, &expected)
    }
}
