//! `sluice dlq` by the real binary on the embedded log: what failed is listed, shown and sent back once.

use std::{collections::BTreeMap, path::Path, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use sluice::streams::{
    client::{ClientSupplier, NewTopic, ProducerConfig, embedded::EmbeddedLog, read_topic},
    record::{ConsumerRecord, Headers, ProducerRecord},
};

use crate::binary;

/// Counts orders; refuses an amount that is no number.
const FILE: &str = r#"version = 1
app = "orders"

[source.orders]
topic  = "orders"
bad    = { dlq = "orders-dlq" }
fields = { eventId = "text", amount = "int" }

[dedupe.once]
from   = "orders"
by     = "eventId"
within = "1h"

[table.totals]
from     = "once"
group_by = ["eventId"]
select   = { times = "count(amount)" }
to       = { topic = "totals", key = "eventId" }
"#;

/// The same input, but amounts may be anything: what reads the letters once they are back.
fn lenient() -> String {
    FILE.replace("amount = \"int\"", "amount = \"json\"")
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(folder.path().join("data")).expect("made");
        let place = Self { folder };
        let topic = |name: &str| NewTopic {
            name: name.into(),
            partitions: 2,
            replication_factor: 1,
            config: BTreeMap::new(),
        };
        let admin = place.log().admin().expect("an admin");
        admin.create_topics(&["orders", "totals", "orders-dlq"].map(topic)).expect("made");
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn log(&self) -> EmbeddedLog {
        EmbeddedLog::open(self.path().join("data/log.sqlite")).expect("the log")
    }

    /// Writes orders, alternating between the partitions.
    fn order(&self, values: &[&str]) {
        let log = self.log();
        let mut producer = log.producer(&ProducerConfig::default()).expect("a producer");
        for (n, value) in values.iter().enumerate() {
            let mut headers = Headers::EMPTY;
            headers.add("shop", Some("north"));
            let record = ProducerRecord {
                topic: "orders".into(),
                partition: Some((n % 2) as i32),
                key: Some(Bytes::from(format!("customer {n}"))),
                value: Some(Bytes::from((*value).to_owned())),
                timestamp: Some(1_700_000_000_000 + n as i64),
                headers,
            };
            producer.send(record).expect("taken");
        }
        producer.flush().expect("kept");
    }

    fn read(&self, topic: &str) -> Vec<ConsumerRecord> {
        let mut records = Vec::new();
        read_topic(&self.log(), topic, |record| {
            records.push(record);
            Ok(())
        })
        .expect("readable");
        records
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> (i32, String) {
        let output = binary::sluice(args)
            .current_dir(self.path())
            .env("SLUICE__DATA_DIR", "data")
            .output()
            .expect("it starts");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), said)
    }

    #[track_caller]
    fn check(&self, args: &[&str], code: i32, parts: &[&str]) {
        let (found, said) = self.run(args);
        assert_eq!(found, code, "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
    }

    fn process(&self, file: &str) {
        std::fs::write(self.path().join("orders.toml"), file).expect("written");
        self.check(&["streams", "run", "--until-caught-up", "orders.toml"], 0, &[]);
    }

    /// How often each event was counted.
    fn totals(&self) -> BTreeMap<String, i64> {
        let mut totals = BTreeMap::new();
        for record in self.read("totals") {
            let value: Value = serde_json::from_slice(&record.value.expect("a value")).expect("JSON");
            totals.insert(value["eventId"].as_str().unwrap().to_owned(), value["times"].as_i64().unwrap());
        }
        totals
    }
}

const REDRIVE: &[&str] = &["dlq", "redrive", "orders-dlq", "--execute"];

#[test]
fn letters_are_listed_shown_and_sent_back_once() {
    let place = Place::new();
    place.order(&[
        r#"{"eventId":"a","amount":1}"#,
        r#"{"eventId":"b","amount":"two"}"#,
        r#"{"eventId":"c","amount":"three"}"#,
        "{",
    ]);
    place.check(&["dlq", "list"], 0, &["0 dead letters in 1 topics (orders-dlq)"]);
    place.process(FILE);
    place.check(&["dlq", "list"], 0, &["3 dead letters in 1 topics", "orders-dlq", "SerializationException"]);
    let (code, said) = place.run(&["dlq", "list", "--json"]);
    let listed: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert!(code == 0 && listed["letters"] == 3, "{said}");

    place.check(
        &["dlq", "show", "orders-dlq"],
        0,
        &["orders-1@0", "customer 1", "two", "shop: north", "3 letters"],
    );
    place.check(&["dlq", "show", "orders-dlq", "--limit", "1"], 0, &["3 letters, the 2 oldest not shown"]);
    let (_, said) = place.run(&["dlq", "show", "orders-dlq", "--event", "c", "--json"]);
    let shown: Value = serde_json::from_str(said.trim()).expect("one line");
    assert_eq!(
        (&shown["origin"], &shown["key"], &shown["attempts"], &shown["value"]["amount"]),
        (&"orders-0@1".into(), &"customer 2".into(), &1.into(), &"three".into())
    );
    let at = shown["at"].as_str().unwrap().trim_start_matches("orders-dlq-");
    place.check(&["dlq", "show", "orders-dlq", "--at", at], 0, &["three", "1 letters"]);

    // Looking changes nothing.
    place.check(&["dlq", "redrive", "orders-dlq"], 0, &["3 of 3 letters would be sent back", "--execute"]);
    assert_eq!(place.read("orders").len(), 4);
    place.check(&[REDRIVE, &["--event", "b"]].concat(), 0, &["1 of 1 letters sent back"]);
    place.check(REDRIVE, 0, &["2 of 3 letters sent back", "sent before"]);
    place.check(REDRIVE, 0, &["0 of 3 letters sent back"]);
    let orders = place.read("orders");
    assert_eq!(orders.len(), 7);
    let back = orders.iter().filter(|record| record.headers.last("__sluice.redriven.from").is_some());
    for record in back {
        let first = orders.iter().find(|first| first.value == record.value).unwrap();
        assert_eq!(
            (first.partition, &first.key, first.timestamp),
            (record.partition, &record.key, record.timestamp)
        );
        assert!(
            record.headers.last("shop").is_some()
                && record.headers.last("__streams.errors.message").is_none()
        );
    }

    // What fails again is a new letter, tried twice, and may be sent again; once.
    place.process(FILE);
    place.check(&["dlq", "show", "orders-dlq"], 0, &["6 letters", "attempt 2"]);
    place.check(REDRIVE, 0, &["3 of 6 letters sent back"]);
    place.check(REDRIVE, 0, &["0 of 6 letters sent back"]);

    place.process(&lenient());
    assert_eq!(
        place.totals(),
        BTreeMap::from([("a", 1), ("b", 1), ("c", 1)].map(|(e, n)| (e.to_owned(), n)))
    );
}

#[test]
fn a_run_that_died_in_the_middle_is_repeated_as_a_whole() {
    let place = Place::new();
    place.order(&[r#"{"eventId":"a","amount":"one"}"#, r#"{"eventId":"b","amount":"two"}"#]);
    place.process(FILE);
    {
        // As a run that sent one letter and died before it committed: nothing is aborted when a producer is dropped.
        let log = place.log();
        let config = ProducerConfig {
            transactional_id: Some("sluice-redrive-orders-dlq".into()),
            transaction_timeout: Some(Duration::from_secs(600)),
        };
        let mut producer = log.producer(&config).unwrap();
        producer.init_transactions().unwrap();
        producer.begin_transaction().unwrap();
        let mut headers = Headers::EMPTY;
        headers.add("__sluice.redriven.from", Some("orders-0@0"));
        producer
            .send(ProducerRecord {
                topic: "orders".into(),
                partition: Some(0),
                key: None,
                value: Some(Bytes::from_static(br#"{"eventId":"a","amount":"one"}"#)),
                timestamp: Some(1_700_000_000_000),
                headers,
            })
            .unwrap();
        producer.flush().unwrap();
    }
    place.check(REDRIVE, 0, &["2 of 2 letters sent back"]);
    assert_eq!(place.read("orders").len(), 4);
}

#[test]
fn one_event_that_failed_in_two_applications_is_sent_once() {
    let place = Place::new();
    place.order(&[r#"{"eventId":"a","amount":"one"}"#]);
    place.process(FILE);
    place.process(&FILE.replace("app = \"orders\"", "app = \"others\""));
    place.check(REDRIVE, 0, &["1 of 2 letters sent back", "same event as another letter"]);
    // A corrected record of the same event is enough: nothing is sent on top of it.
    let place = Place::new();
    place.order(&[r#"{"eventId":"a","amount":"one"}"#]);
    place.process(FILE);
    place.order(&[r#"{"eventId":"a","amount":1}"#]);
    place.check(REDRIVE, 0, &["0 of 1 letters sent back", "sent before"]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let place = Place::new();
    place.check(&["dlq", "show", "nowhere-dlq"], 1, &["no topic nowhere-dlq", "dlq list"]);
    place.check(&["dlq", "show", "orders-dlq", "--at", "first"], 2, &["0@42"]);
    let log = place.log();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    producer
        .send(ProducerRecord {
            topic: "orders-dlq".into(),
            partition: Some(0),
            key: None,
            value: Some(Bytes::from_static(b"stray")),
            timestamp: Some(0),
            headers: Headers::EMPTY,
        })
        .unwrap();
    producer.flush().unwrap();
    drop((producer, log));
    place.check(REDRIVE, 1, &["0 of 1 letters sent back", "not known"]);
}
