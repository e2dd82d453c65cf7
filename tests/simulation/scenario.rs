//! What is run and what must come of it: a topology, a source of events, and the truth computed from those events.

use std::collections::BTreeMap;

use serde_json::Value;
use sluice::streams::{
    file::{Processors, load},
    record::ConsumerRecord,
    topology::Topology,
};

use crate::{
    hops::Hops, join::Join, random::Random, statistics::Statistics, suppress::Suppressed,
    word_count::WordCount,
};

/// An event is at most this much older than the newest moment any clock has shown: less than every grace here.
pub const DISORDER_MS: u64 = 900;
/// Silence after which an input no longer holds the clock back; more than [`DISORDER_MS`].
pub const IDLE_CLOSE_MS: i64 = 2_000;

/// One record to write.
#[derive(Clone)]
pub struct Event {
    pub topic: &'static str,
    pub key: String,
    pub value: Vec<u8>,
    pub time: i64,
}

/// Committed records by topic, in the order of each partition.
pub type Outputs = BTreeMap<String, Vec<ConsumerRecord>>;

/// A topology and its truth.
pub trait Scenario {
    /// For messages.
    fn name(&self) -> &'static str;
    /// What is run. Stores are persistent; the world decides otherwise.
    fn topology(&self) -> Topology;
    /// Topics to create.
    fn topics(&self) -> &'static [&'static str];
    /// Topics to check.
    fn outputs(&self) -> &'static [&'static str];
    /// The runtime's setting.
    fn idle_close_ms(&self) -> Option<i64> {
        Some(IDLE_CLOSE_MS)
    }
    /// Whether repeats are allowed.
    fn at_least_once(&self) -> bool {
        false
    }
    /// Something happened at `time`; the truth takes note of it.
    fn happen(&mut self, random: &mut Random, time: i64) -> Vec<Event>;
    /// What differs from the truth.
    fn check(&self, outputs: &Outputs) -> Result<(), String>;
}

/// The scenario of a seed.
pub fn choose(seed: u64) -> Box<dyn Scenario> {
    match seed % 8 {
        0 if seed.is_multiple_of(16) => Box::new(WordCount::new(true)),
        0 | 1 => Box::new(WordCount::new(false)),
        2 | 3 => Box::new(Statistics::default()),
        4 => Box::new(Suppressed::new((seed / 8).is_multiple_of(2))),
        5 => Box::new(Join::default()),
        _ => Box::new(Hops::default()),
    }
}

/// A topology file that is known to be right.
pub fn from_file(text: &str) -> Topology {
    load("simulation.toml", text, &Processors::default()).unwrap_or_else(|error| panic!("{error}")).topology
}

pub fn json(record: &ConsumerRecord) -> Value {
    serde_json::from_slice(record.value.as_deref().unwrap_or(b"null")).expect("outputs are JSON")
}

pub fn integer(value: &Value, field: &str) -> i64 {
    value[field].as_i64().unwrap_or_else(|| panic!("{field} is not a whole number in {value}"))
}

/// Says where two maps differ, briefly.
pub fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) -> Result<(), String> {
    let mut differences = Vec::new();
    for (key, value) in expected {
        if found.get(key) != Some(value) {
            differences.push(format!("{key:?}: {:?}, must be {value:?}", found.get(key)));
        }
    }
    for (key, value) in found {
        if !expected.contains_key(key) {
            differences.push(format!("{key:?}: {value:?}, must not be there"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let count = differences.len();
    differences.truncate(5);
    Err(format!("{what}: {count} differences, first of all {}", differences.join("; ")))
}
