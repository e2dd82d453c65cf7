//! Final results of final results, two repartitions deep: what one hop holds back until its windows close must not be late at the next.

use std::collections::BTreeMap;

use serde_json::json;
use sluice::streams::topology::Topology;

use crate::{
    random::Random,
    scenario::{Event, Outputs, Scenario, from_file, integer, json, same},
    statistics::parse_time,
};

const FILE: &str = r#"
version = 1
app     = "hops"

[source.events]
topic  = "events"
key    = "user"
time   = "at"
bad    = { dlq = "events-dlq" }
fields = { user = "int", coupon = "int", at = "timestamp" }

[table.seconds]
from     = "events"
group_by = ["coupon"]
window   = { tumbling = "1s", grace = "1s" }
emit     = { on = "close", idle_close = "2s" }
select   = { n = "count(*)" }
to       = { topic = "seconds", key = "coupon || '@' || window_start" }

[stream.by_kind]
from   = "seconds"
select = { kind = "coupon % 3", n = "n" }

[table.spans]
from     = "by_kind"
group_by = ["kind"]
window   = { tumbling = "4s", grace = "0s" }
emit     = { on = "close", idle_close = "2s" }
select   = { n = "sum(n)" }
to       = { topic = "spans", key = "kind || '@' || window_start" }
"#;

/// Counts by (coupon, second) and by (kind, four seconds).
#[derive(Default)]
pub struct Hops {
    seconds: BTreeMap<(i64, i64), i64>,
    spans: BTreeMap<(i64, i64), i64>,
}

impl Scenario for Hops {
    fn name(&self) -> &'static str {
        "hops"
    }

    fn topology(&self) -> Topology {
        from_file(FILE)
    }

    fn topics(&self) -> &'static [&'static str] {
        &["events", "events-dlq", "seconds", "spans"]
    }

    fn outputs(&self) -> &'static [&'static str] {
        &["events-dlq", "seconds", "spans"]
    }

    fn happen(&mut self, random: &mut Random, time: i64) -> Vec<Event> {
        let (user, coupon) = (random.below(12) as i64, random.below(7) as i64);
        *self.seconds.entry((coupon, time - time.rem_euclid(1_000))).or_default() += 1;
        *self.spans.entry((coupon % 3, time - time.rem_euclid(4_000))).or_default() += 1;
        let value = json!({ "user": user, "coupon": coupon, "at": time }).to_string().into_bytes();
        vec![Event { topic: "events", key: user.to_string(), value, time }]
    }

    fn check(&self, outputs: &Outputs) -> Result<(), String> {
        if let Some(bad) = outputs["events-dlq"].first() {
            return Err(format!("a dead letter: {bad:?}"));
        }
        for (topic, key, expected) in [("seconds", "coupon", &self.seconds), ("spans", "kind", &self.spans)] {
            let mut found: BTreeMap<(i64, i64), i64> = BTreeMap::new();
            for row in outputs[topic].iter().map(json) {
                let window = (integer(&row, key), parse_time(&row["windowStart"]).expect("a window's start"));
                if found.insert(window, integer(&row, "n")).is_some() {
                    return Err(format!("{topic}: window {window:?} is final twice"));
                }
            }
            same(topic, &found, expected)?;
        }
        Ok(())
    }
}
