//! A left join of two streams by a key neither is partitioned by, and its misses: every pair once, every left record without a
//! partner once.

use std::collections::BTreeMap;

use serde_json::json;
use sluice::streams::topology::Topology;

use crate::{
    random::Random,
    scenario::{Event, Outputs, Scenario, from_file, json, same},
};

const FILE: &str = r#"
version = 1
app     = "join"

[source.offers]
topic  = "offers"
key    = "user"
time   = "at"
bad    = { dlq = "join-dlq" }
fields = { id = "text", user = "int", item = "int", at = "timestamp" }

[source.bids]
topic  = "bids"
key    = "user"
time   = "at"
bad    = { dlq = "join-dlq" }
fields = { id = "text", user = "int", item = "int", at = "timestamp" }

[dedupe.bids_once]
from   = "bids"
by     = "id"
within = "1h"

[join.pairs]
left   = "offers"
right  = "bids_once"
on     = "item"
kind   = "left"
within = { before = "300ms", after = "1s", grace = "1s" }
select = { offer = "offers.id", bid = "bids_once.id" }
to     = { topic = "pairs", key = "offer" }
"#;

struct Row {
    id: String,
    item: i64,
    time: i64,
}

/// Everything that happened.
#[derive(Default)]
pub struct Join {
    offers: Vec<Row>,
    bids: Vec<Row>,
    written: Vec<Event>,
}

impl Scenario for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn topology(&self) -> Topology {
        from_file(FILE)
    }

    fn topics(&self) -> &'static [&'static str] {
        &["offers", "bids", "join-dlq", "pairs"]
    }

    fn outputs(&self) -> &'static [&'static str] {
        &["join-dlq", "pairs"]
    }

    fn happen(&mut self, random: &mut Random, time: i64) -> Vec<Event> {
        let (user, item) = (random.below(12) as i64, random.below(15) as i64);
        let (topic, rows, letter) = match random.chance(500) {
            true => ("offers", &mut self.offers, 'o'),
            false => ("bids", &mut self.bids, 'b'),
        };
        let id = format!("{letter}{}", rows.len());
        let value = json!({ "id": id, "user": user, "item": item, "at": time }).to_string().into_bytes();
        rows.push(Row { id, item, time });
        let mut events = vec![Event { topic, key: user.to_string(), value, time }];
        if topic == "bids" {
            self.written.extend(events.clone());
            if random.chance(200) {
                events.push(self.written[random.below(self.written.len() as u64) as usize].clone());
            }
        }
        events
    }

    fn check(&self, outputs: &Outputs) -> Result<(), String> {
        if let Some(bad) = outputs["join-dlq"].first() {
            return Err(format!("a dead letter: {bad:?}"));
        }
        let mut expected: BTreeMap<(String, Option<String>), u32> = BTreeMap::new();
        for offer in &self.offers {
            let mut alone = true;
            for bid in self.bids.iter().filter(|bid| bid.item == offer.item) {
                if bid.time >= offer.time - 300 && bid.time <= offer.time + 1_000 {
                    alone = false;
                    expected.insert((offer.id.clone(), Some(bid.id.clone())), 1);
                }
            }
            if alone {
                expected.insert((offer.id.clone(), None), 1);
            }
        }
        let mut found: BTreeMap<(String, Option<String>), u32> = BTreeMap::new();
        for row in outputs["pairs"].iter().map(json) {
            let offer = row["offer"].as_str().unwrap_or_default().to_owned();
            *found.entry((offer, row["bid"].as_str().map(str::to_owned))).or_default() += 1;
        }
        same("pairs and misses", &found, &expected)
    }
}
