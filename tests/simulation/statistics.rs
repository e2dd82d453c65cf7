//! Deduplication, a repartition with partial aggregates, final results of windows, and totals: the shape of the shipped statistics. Beside
//! them what is folded before a commit without a repartition, and what is made of its running results.

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

[table.users]
from     = "once"
group_by = ["user"]
window   = { tumbling = "2s", grace = "1s" }
emit     = { on = "update", final = true, idle_close = "2s" }
select   = { n = "count(*)", total = "coalesce(sum(amount), 0)" }
to       = { topic = "users", key = "user || '@' || window_start" }

[stream.running]
from   = "users"
where  = "not final"
select = { kind = "user % 3", n = "n" }

[table.peaks]
from     = "running"
group_by = ["kind"]
window   = { tumbling = "2s", grace = "1s" }
emit     = { on = "close", idle_close = "2s" }
select   = { n = "max(n)" }
to       = { topic = "peaks", key = "kind || '@' || window_start" }
"#;

const WINDOW_MS: i64 = 2_000;

/// Counts and sums: by (coupon, window), by (user, window), by coupon.
#[derive(Default)]
pub struct Statistics {
    windows: BTreeMap<(i64, i64), (i64, i64)>,
    users: BTreeMap<(i64, i64), (i64, i64)>,
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
        &["events", "events-dlq", "windows", "totals", "users", "peaks"]
    }

    fn outputs(&self) -> &'static [&'static str] {
        &["events-dlq", "windows", "totals", "users", "peaks"]
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
            self.users.entry((user, time - time.rem_euclid(WINDOW_MS))).or_default(),
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
        same("totals", &totals, &self.totals)?;
        self.check_users(outputs)
    }
}

impl Statistics {
    /// The counts of a window only grow, and after its final result comes none.
    fn check_users(&self, outputs: &Outputs) -> Result<(), String> {
        let mut users: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
        let mut finals: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
        for row in outputs["users"].iter().map(json) {
            let window = (integer(&row, "user"), parse_time(&row["windowStart"]).expect("a window's start"));
            let sums = (integer(&row, "n"), integer(&row, "total"));
            if finals.contains_key(&window) {
                return Err(format!("window {window:?} of users goes on after its final result"));
            }
            if row["final"] == true {
                finals.insert(window, sums);
            } else if users.insert(window, sums).is_some_and(|known| known.0 >= sums.0) {
                return Err(format!("window {window:?} of users went back to {sums:?}"));
            }
        }
        same("running windows of users", &users, &self.users)?;
        same("final windows of users", &finals, &self.users)?;
        let mut expected: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        for ((user, start), (n, _)) in &self.users {
            let peak = expected.entry((user % 3, *start)).or_default();
            *peak = (*peak).max(*n);
        }
        let mut peaks: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        for row in outputs["peaks"].iter().map(json) {
            let window = (integer(&row, "kind"), parse_time(&row["windowStart"]).expect("a window's start"));
            if peaks.insert(window, integer(&row, "n")).is_some() {
                return Err(format!("window {window:?} of peaks is final twice"));
            }
        }
        same("peaks", &peaks, &expected)
    }
}

/// Times leave as text.
pub fn parse_time(value: &serde_json::Value) -> Option<i64> {
    Some(value.as_str()?.parse::<jiff::Timestamp>().ok()?.as_millisecond())
}
