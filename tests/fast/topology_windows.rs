//! Windows of topology files against what they mean: random records in any order, a restart anywhere, and for every window exactly the
//! records that lie in it.
//!
//! Each record carries a power of two, so that a sum tells which records a window holds. `SLUICE_WINDOW_CASES` sets how many histories
//! are tried (default 150).

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, test_runner::TestRunner};
use sluice::streams::{
    file::{Processors, load},
    internals::parse_timestamp,
    record::{Headers, ProducerRecord},
    test_utils::{DriverOptions, TopologyTestDriver},
};

const START_MS: i64 = 1_772_323_200_000;

/// Grace is longer than all records are apart: nothing is late.
const TOPOLOGY: &str = r#"
version = 1
app     = "windows"

[source.records]
topic  = "records"
fields = { user = "int", bit = "int" }

[table.hops]
from     = "records"
group_by = ["user"]
window   = { hopping = ["5s", "2s"], grace = "1h" }
emit     = { on = "update", final = true, idle_close = "1s" }
select   = { bits = "sum(bit)" }
to       = { topic = "hops", key = "user || '@' || window_start || '@' || window_end" }

[table.slides]
from     = "records"
group_by = ["user"]
window   = { sliding = "5s", grace = "1h" }
emit     = { on = "update", final = true }
select   = { bits = "sum(bit)" }
to       = { topic = "slides", key = "user || '@' || window_start || '@' || window_end" }

[table.visits]
from     = "records"
group_by = ["user"]
window   = { session = "3s", grace = "1h" }
emit     = { on = "update", final = true }
select   = { bits = "sum(bit)" }
to       = { topic = "visits", key = "user || '@' || window_start || '@' || window_end" }
"#;

/// Windows by (user, start, shown end), with the records in them.
type Windows = BTreeMap<(i64, i64, i64), i64>;

/// Time and user; the position is the bit.
type History = [(i64, i64)];

fn bits(history: &History, user: i64, from: i64, to: i64) -> i64 {
    let within = |(at, of): &(i64, i64)| *of == user && (from..=to).contains(at);
    history.iter().enumerate().filter(|(_, record)| within(record)).map(|(bit, _)| 1 << bit).sum()
}

fn hops(history: &History) -> Windows {
    let mut windows = Windows::new();
    for (at, user) in history {
        let newest = (START_MS + at).div_euclid(2_000) * 2_000 - START_MS;
        for start in (0..3).map(|back| newest - back * 2_000).filter(|start| start + 5_000 > *at) {
            windows.insert((*user, start, start + 5_000), bits(history, *user, start, start + 4_999));
        }
    }
    windows
}

fn slides(history: &History) -> Windows {
    let mut windows = Windows::new();
    for (at, user) in history {
        for start in [at - 5_000, at + 1] {
            let found = bits(history, *user, start, start + 5_000);
            if found != 0 {
                windows.insert((*user, start, start + 5_000), found);
            }
        }
    }
    windows
}

fn visits(history: &History) -> Windows {
    let mut windows = Windows::new();
    for user in history.iter().map(|(_, user)| *user).collect::<BTreeSet<_>>() {
        let times: BTreeSet<i64> = history.iter().filter(|(_, of)| *of == user).map(|(at, _)| *at).collect();
        let mut session: Option<(i64, i64)> = None;
        for at in times.into_iter().map(Some).chain([None]) {
            session = match (session, at) {
                (Some((start, end)), Some(at)) if at - end <= 3_000 => Some((start, at)),
                (ended, at) => {
                    if let Some((start, end)) = ended {
                        windows.insert((user, start, end), bits(history, user, start, end));
                    }
                    at.map(|at| (at, at))
                }
            };
        }
    }
    windows
}

/// Final rows, each once, and what a reader of the topic that keeps the newest record of each key sees.
fn read(driver: &TopologyTestDriver, topic: &str) -> (Windows, Windows) {
    let (mut finals, mut shown) = (Windows::new(), Windows::new());
    for record in driver.read_records(topic) {
        let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
        let parts: Vec<&str> = key.split('@').collect();
        let ms = |text: &str| parse_timestamp(text).unwrap() - START_MS;
        let window = (parts[0].parse().unwrap(), ms(parts[1]), ms(parts[2]));
        let Some(value) = record.value else {
            shown.remove(&window);
            continue;
        };
        let row: serde_json::Value = serde_json::from_slice(&value).unwrap();
        let bits = row["bits"].as_i64().unwrap();
        shown.insert(window, bits);
        if row["final"] == true {
            assert_eq!(finals.insert(window, bits), None, "{topic} {key} is final twice");
        } else {
            assert!(!finals.contains_key(&window), "{topic} {key}: a running result after the final one");
        }
    }
    (finals, shown)
}

fn check(history: &History, restart_at: usize) {
    let loaded =
        load("windows.toml", TOPOLOGY, &Processors::default()).unwrap_or_else(|error| panic!("{error}"));
    let mut options = DriverOptions { wall_clock_ms: START_MS, ..DriverOptions::default() };
    options.config.idle_close_ms = Some(0);
    let driver = TopologyTestDriver::with_options(loaded.topology, options).unwrap();
    for (bit, (at, user)) in history.iter().enumerate() {
        if bit == restart_at {
            driver.restart().unwrap();
        }
        driver
            .pipe_record(ProducerRecord {
                topic: "records".into(),
                partition: None,
                key: None,
                value: Some(format!(r#"{{"user":{user},"bit":{}}}"#, 1_i64 << bit).into()),
                timestamp: Some(START_MS + at),
                headers: Headers::EMPTY,
            })
            .unwrap();
    }
    driver.advance_wall_clock_to(START_MS + 2 * 3_600_000).unwrap();
    assert_eq!(driver.dropped_records(), 0);
    for (topic, expected) in
        [("hops", hops(history)), ("slides", slides(history)), ("visits", visits(history))]
    {
        let (finals, shown) = read(&driver, topic);
        assert_eq!(finals, expected, "final windows of {topic}, {history:?}, restart at {restart_at}");
        assert_eq!(shown, expected, "what {topic} shows, {history:?}, restart at {restart_at}");
    }
}

#[test]
fn every_window_holds_the_records_that_lie_in_it() {
    let cases = std::env::var("SLUICE_WINDOW_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150);
    let mut runner =
        TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    // Coarse times make equal ones, and ones just at the edges of windows, likely.
    let time = prop_oneof![
        (0..15_i64).prop_map(|second| second * 1_000),
        (0..15_i64, -1..=1_i64).prop_map(|(second, off)| second * 1_000 + off),
        0..15_000_i64,
    ];
    let history = proptest::collection::vec((time, 0..2_i64), 1..24);
    runner
        .run(&(history, 0..24_usize), |(history, restart_at)| {
            check(&history, restart_at);
            Ok(())
        })
        .unwrap();
}
