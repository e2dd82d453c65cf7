//! The format of topology files as a whole: the contract's example as it stands there, and the listings of the guide.

mod guide;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sluice::streams::{
    error::Result,
    file::{Processors, Row, load},
    internals::{Store, with_store},
    processor::{Processor, ProcessorContext, processor_supplier},
    record::{Headers, ProducerRecord, Record},
    test_utils::{DriverOptions, Partitions, TopologyTestDriver, run_test_file},
};

/// Counts what it sees in the table's state, and passes the record on.
struct Score(Arc<AtomicU64>);

impl Processor<Vec<u8>, Row, Vec<u8>, Row> for Score {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, Vec<u8>, Row>,
        record: Record<Vec<u8>, Row>,
    ) -> Result<()> {
        let store = context.state_store("coupon_stats_minute")?;
        let rows = with_store(context, store, |store| match store {
            Store::Window(rows) => rows.all(),
            _ => unreachable!("a window keeps a window store"),
        })?;
        assert!(record.value.is_some());
        self.0.fetch_add(1 + rows.len() as u64, Ordering::Relaxed);
        context.forward(record)
    }
}

fn record(topic: &str, key: Option<&str>, value: Option<&str>, at: i64) -> ProducerRecord {
    ProducerRecord {
        topic: topic.into(),
        partition: None,
        key: key.map(|key| key.to_owned().into()),
        value: value.map(|value| value.to_owned().into()),
        timestamp: Some(at),
        headers: Headers::EMPTY,
    }
}

#[test]
fn the_example_of_the_contract_loads_as_it_is_written() {
    let text = concat!(include_str!("contract.toml"), include_str!("contract_rest.toml"));
    let seen = Arc::new(AtomicU64::new(0));
    let mut processors = Processors::default();
    let counter = seen.clone();
    processors.register("coupon.score", processor_supplier(move || Score(counter.clone())));
    let loaded = load("contract.toml", text, &processors).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.group, "coupon-statistics-group");
    assert_eq!(loaded.idle_close_ms, Some(30_000));
    let driver = TopologyTestDriver::new(loaded.topology).unwrap();
    let issued =
        r#"{"eventId":"e1","userCouponId":1,"userId":3,"couponId":7,"couponName":"x","issuedAt":5000}"#;
    driver.pipe_record(record("coupon-issued", None, Some(issued), 5_000)).unwrap();
    assert_eq!(driver.read_records("coupon-stats-minute").len(), 1);
    assert!(seen.load(Ordering::Relaxed) > 0, "the processor ran");
}

#[test]
fn the_test_of_the_contract_holds_as_it_is_written() {
    let topology = include_str!("../../../topologies/coupon-statistics.toml");
    let tests = include_str!("contract.test.toml");
    let outcomes = run_test_file(
        ("coupon-statistics.toml", topology),
        ("contract.test.toml", tests),
        &Processors::default(),
    );
    for outcome in outcomes.unwrap_or_else(|error| panic!("{error}")) {
        assert!(outcome.failures.is_empty(), "{}: {:?}", outcome.name, outcome.failures);
    }
}

/// Rows meet over partitions: by the stream's key, by a column that is none, by a table's key and by a foreign one.
#[test]
fn joins_find_their_partners_over_partitions() {
    let text = include_str!("../../../topologies/examples/enrichment.toml");
    let loaded =
        load("enrichment.toml", text, &Processors::default()).unwrap_or_else(|error| panic!("{error}"));
    // The statistics are about which partition has what: a table and a stream of one key, joined, have equal counts; others need not.
    let options = DriverOptions {
        partitions: Some(Partitions::each(3).topic("shops", 2).topic("towns", 1)),
        ..DriverOptions::default()
    };
    let driver =
        TopologyTestDriver::with_options(loaded.topology, options).unwrap_or_else(|error| panic!("{error}"));
    let pipe = |topic: &str, key: String, value: String| {
        driver.pipe_record(record(topic, Some(&key), Some(&value), 1_000)).unwrap();
    };
    for town in ["Seoul", "Ulm"] {
        pipe("towns", town.into(), format!(r#"{{"country":"of {town}"}}"#));
    }
    for user in 0..20 {
        let town = if user % 2 == 0 { "Seoul" } else { "Ulm" };
        let row = format!(r#"{{"name":"user {user}","town":"{town}","shopId":{}}}"#, user % 5);
        pipe("users", user.to_string(), row);
    }
    for shop in 0..5 {
        pipe("shops", shop.to_string(), format!(r#"{{"shop":"shop {shop}"}}"#));
    }
    for order in 0..60 {
        let user = order % 20;
        let row = format!(r#"{{"orderId":"o-{order}","userId":{user},"amount":10,"orderedAt":2000}}"#);
        pipe("orders", user.to_string(), row);
    }
    let read = |topic: &str| -> Vec<(String, serde_json::Value)> {
        let records = driver.read_records(topic).into_iter();
        records
            .map(|record| {
                let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
                (key, serde_json::from_slice(&record.value.unwrap_or_else(|| "null".into())).unwrap())
            })
            .collect()
    };
    let enriched = read("enriched-orders");
    assert_eq!(enriched.len(), 60);
    for (user, row) in enriched {
        let town = if row["userId"].as_i64().unwrap() % 2 == 0 { "Seoul" } else { "Ulm" };
        assert_eq!(row["name"], format!("user {user}"));
        assert_eq!(row["country"], format!("of {town}"));
    }
    let customers = read("customers");
    for user in 0..20 {
        let last = customers.iter().rev().find(|(key, _)| *key == user.to_string()).unwrap();
        assert_eq!((&last.1["orders"], &last.1["spent"]), (&3.into(), &30.into()), "user {user}");
    }
    let neighbours = read("neighbours");
    for user in 0..20 {
        let last = neighbours.iter().rev().find(|(key, _)| *key == user.to_string()).unwrap();
        assert_eq!(last.1["shop"], format!("shop {}", user % 5));
    }
    assert_eq!(driver.dropped_records(), 0);
}
