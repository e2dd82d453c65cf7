//! Deduplication, a repartition with partial aggregates, final results of windows, and totals: the shape of the shipped statistics.

use std::collections::BTreeMap;

use serde_json::json;
use sluice::streams::topology::Topology;

use crate::{
    random::Random,
    scenario::{Event, Outputs, Scenario, from_file, integer, json, same},
};

const FILE: &str = r#"
version = 1
app     = "statistics"

[source.events]
topic  = "events"
key    = "user"
time   = "at"
bad    = { dlq = "events-dlq" }
fields = { id = "text", user = "int", coupon = "int", amount = "int", at = "timestamp" }

[dedupe.once]
from   = "events"
by     = "id"
within = "1h"

[table.windows]
from     = "once"
group_by = ["coupon"]
window   = { tumbling = "2s", grace = "1s" }
emit     = { on = "close", idle_close = "2s" }
select   = { n = "count(*)", total = "coalesce(sum(amount), 0)" }
to       = { topic = "windows", key = "coupon || '@' || window_start" }

[table.totals]
from     = "once"
group_by = ["coupon"]
select   = { n = "count(*)", total = "coalesce(sum(amount), 0)" }
to       = { topic = "totals", key = "coupon" }
"#;

const WINDOW_MS: i64 = 2_000;

/// Counts and sums: by (coupon, window), by coupon.
#[derive(Default)]
pub struct Statistics {
    windows: BTreeMap<(i64, i64), (i64, i64)>,
    totals: BTreeMap<i64, (i64, i64)>,
    written: Vec<Event>,
}

impl Scenario for Statistics {
    fn name(&self) -> &'static str {
        "statistics"
    }

    fn topology(&self) -> Topology {
        from_file(FILE)
    }

    fn topics(&self) -> &'static [&'static str] {
        &["events", "events-dlq", "windows", "totals"]
    }

    fn outputs(&self) -> &'static [&'static str] {
        &["events-dlq", "windows", "totals"]
    }

    fn happen(&mut self, random: &mut Random, time: i64) -> Vec<Event> {
        let (user, coupon) = (random.below(12) as i64, random.below(5) as i64);
        let amount = random.below(100) as i64;
        let id = self.written.len();
        let event = Event {
            topic: "events",
            key: user.to_string(),
            value: json!({ "id": format!("e{id}"), "user": user, "coupon": coupon, "amount": amount, "at": time })
                .to_string()
                .into_bytes(),
            time,
        };
        for sums in [
            self.windows.entry((coupon, time - time.rem_euclid(WINDOW_MS))).or_default(),
            self.totals.entry(coupon).or_default(),
        ] {
            sums.0 += 1;
            sums.1 += amount;
        }
        self.written.push(event.clone());
        let mut events = vec![event];
        if random.chance(250) {
            // The relay sends some event again, an old one as likely as a new one.
            events.push(self.written[random.below(self.written.len() as u64) as usize].clone());
        }
        events
    }

    fn check(&self, outputs: &Outputs) -> Result<(), String> {
        if let Some(bad) = outputs["events-dlq"].first() {
            return Err(format!("a dead letter: {bad:?}"));
        }
        let mut windows: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
        for row in outputs["windows"].iter().map(json) {
            let start = parse_time(&row["windowStart"]).expect("a window's start");
            let window = (integer(&row, "coupon"), start);
            if windows.insert(window, (integer(&row, "n"), integer(&row, "total"))).is_some() {
                return Err(format!("window {window:?} is final twice"));
            }
        }
        same("final windows", &windows, &self.windows)?;
        let mut totals: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for row in outputs["totals"].iter().map(json) {
            let (coupon, n) = (integer(&row, "coupon"), integer(&row, "n"));
            if totals.get(&coupon).is_some_and(|known| known.0 >= n) {
                return Err(format!("the total of coupon {coupon} went from {:?} to {n}", totals[&coupon]));
            }
            totals.insert(coupon, (n, integer(&row, "total")));
        }
        same("totals", &totals, &self.totals)
    }
}

/// Times leave as text.
pub fn parse_time(value: &serde_json::Value) -> Option<i64> {
    Some(value.as_str()?.parse::<jiff::Timestamp>().ok()?.as_millisecond())
}
