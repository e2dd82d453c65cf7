//! The typed DSL: regrouped, counted by window, held back until each window closes.

use std::{collections::BTreeMap, time::Duration};

use sluice::streams::{
    kstream::{BufferConfig, StreamsBuilder, Suppressed as Until, TimeWindows, TopologyConfig, Windowed},
    topology::Topology,
};

use crate::{
    random::Random,
    scenario::{Event, Outputs, Scenario, same},
};

const WINDOW_MS: i64 = 2_000;

/// How often each word came in each window.
#[derive(Default)]
pub struct Suppressed {
    counts: BTreeMap<String, i64>,
    written: u64,
    caching: bool,
}

impl Suppressed {
    /// With a record cache between the counts and what holds them back, or without.
    pub fn new(caching: bool) -> Self {
        Self { caching, ..Self::default() }
    }
}

impl Scenario for Suppressed {
    fn name(&self) -> &'static str {
        "suppress"
    }

    fn topology(&self) -> Topology {
        let builder = StreamsBuilder::with_config(TopologyConfig {
            caching: self.caching,
            ..TopologyConfig::default()
        });
        let windows =
            TimeWindows::of_size_and_grace(Duration::from_millis(WINDOW_MS as u64), Duration::from_secs(1));
        builder
            .stream::<String, String>("words")
            .group_by(|_, word| word.cloned())
            .windowed_by(windows)
            .count()
            .suppress_windows(Until::until_window_closes(BufferConfig::unbounded()))
            .to_stream()
            .select_key(|window: Option<&Windowed<String>>, _| {
                window.map(|window| format!("{}@{}", window.key, window.window.start))
            })
            .to("counts");
        builder.build("suppress").expect("the topology is valid")
    }

    fn topics(&self) -> &'static [&'static str] {
        &["words", "counts"]
    }

    fn outputs(&self) -> &'static [&'static str] {
        &["counts"]
    }

    fn happen(&mut self, random: &mut Random, time: i64) -> Vec<Event> {
        let word = format!("w{}", random.below(7));
        *self.counts.entry(format!("{word}@{}", time - time.rem_euclid(WINDOW_MS))).or_default() += 1;
        self.written += 1;
        vec![Event { topic: "words", key: format!("k{}", self.written), value: word.into_bytes(), time }]
    }

    fn check(&self, outputs: &Outputs) -> Result<(), String> {
        let mut found: BTreeMap<String, i64> = BTreeMap::new();
        for record in &outputs["counts"] {
            let window = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
            let count: [u8; 8] = record.value.as_deref().unwrap_or_default().try_into().expect("a number");
            if found.insert(window.clone(), i64::from_be_bytes(count)).is_some() {
                return Err(format!("window {window} is final twice"));
            }
        }
        same("final counts", &found, &self.counts)
    }
}
