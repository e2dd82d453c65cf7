//! Topologies exchanged under continuous load on the embedded log: the totals are those of the input, whatever was reloaded when.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::{Config, Layers},
    streams::{
        client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
        file::time::format_timestamp,
        metrics::StreamsMetrics,
        record::{Headers, ProducerRecord},
    },
};

const PARTITIONS: i32 = 3;
const START_MS: i64 = 1_772_323_200_000;
const HOUR_MS: i64 = 3_600_000;

/// Each issued coupon once, however often it is told, per campaign.
const STATISTICS: &str = r#"version = 1
app     = "statistics"

[source.issued]
topic  = "issued"
key    = "userId"
time   = "issuedAt"
fields = { eventId = "text", userId = "int", couponId = "int", issuedAt = "timestamp", maxIssueCount = "int" }

[source.told_elsewhere]
topic  = "elsewhere"
key    = "userId"
time   = "issuedAt"
fields = { eventId = "text", userId = "int", couponId = "int", issuedAt = "timestamp", maxIssueCount = "int" }

[merge.told]
from = ["issued", "told_elsewhere"]

[dedupe.once]
from   = "told"
by     = "eventId"
within = "24h"

[table.totals]
from     = "once"
group_by = ["couponId"]
select   = { issued = "count(*)" }
to       = { topic = "totals", key = "couponId" }
"#;

/// Distinct users per coupon and hour, of campaigns with more than 100 seats.
const NEWCOMER: &str = r#"
[table.users_hour]
from     = "once"
where    = "maxIssueCount > 100"
group_by = ["couponId"]
window   = { tumbling = "1h", grace = "24h" }
select   = { users = "count(distinct userId)", issued = "count(*)" }
to       = { topic = "users-hour", key = "couponId || '@' || window_start" }
"#;

/// A node in front of all others: it shifts the numbers of the tasks behind it.
const IN_FRONT: &str = r#"
[table.by_user]
from     = "once"
group_by = ["userId"]
select   = { issued = "count(*)" }
to       = { topic = "by-user", key = "userId" }

[table.totals]"#;

/// An event: its number decides everything.
struct Event {
    topic: &'static str,
    partition: i32,
    offset: i64,
    id: i64,
}

fn coupon(id: i64) -> i64 {
    id % 5
}

fn user(id: i64) -> i64 {
    id * 7 % 300
}

fn seats(id: i64) -> i64 {
    if coupon(id) < 2 { 50 } else { 500 }
}

fn time(id: i64) -> i64 {
    START_MS + id * 1_000
}

struct World {
    folder: tempfile::TempDir,
    log: EmbeddedLog,
    applications: Arc<Applications>,
    sent: Arc<Mutex<Vec<Event>>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::in_memory();
        let topics =
            ["issued", "elsewhere", "issued-dlq", "elsewhere-dlq", "totals", "users-hour", "by-user"].map(
                |name| NewTopic {
                    name: name.to_owned(),
                    partitions: PARTITIONS,
                    replication_factor: 1,
                    config: BTreeMap::new(),
                },
            );
        log.admin().unwrap().create_topics(&topics).unwrap();
        let file = folder.path().join("statistics.toml");
        std::fs::write(&file, STATISTICS).unwrap();
        let layers = Layers::defaults().set("data_dir", folder.path().to_str().unwrap(), "test").set(
            "streams.commit_interval_ms",
            "20",
            "test",
        );
        let config = Config::from_layers(layers).unwrap();
        let files = files::load_named(&[file.to_str().unwrap().to_owned()]).unwrap();
        let applications =
            Applications::new(files, &config, Arc::new(log.clone()), &StreamsMetrics::default()).unwrap();
        assert!(applications.start().unwrap());
        Self { folder, log, applications: Arc::new(applications), sent: Arc::default() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("statistics.toml")
    }

    fn reload(&self, text: &str) -> Result<Vec<Reloaded>, ReloadError> {
        std::fs::write(self.file(), text).unwrap();
        self.applications.reload()
    }

    /// Writes until told to stop, always a little ahead of what is processed; every fourth event is told again much later.
    fn load(&self, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
        let (log, sent, applications) = (self.log.clone(), self.sent.clone(), self.applications.clone());
        std::thread::spawn(move || {
            let mut producer = log.producer(&ProducerConfig::default()).unwrap();
            let mut offsets: BTreeMap<(&str, i32), i64> = BTreeMap::new();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    let ids = if number % 4 == 0 && number >= 2_000 {
                        vec![number, number - 2_000]
                    } else {
                        vec![number]
                    };
                    for id in ids {
                        let event = json!({
                            "eventId": format!("e{id}"), "userId": user(id), "couponId": coupon(id),
                            "issuedAt": format_timestamp(time(id)), "maxIssueCount": seats(id),
                        });
                        let topic = if id % 3 == 0 { "elsewhere" } else { "issued" };
                        let partition = (user(id) % i64::from(PARTITIONS)) as i32;
                        producer
                            .send(ProducerRecord {
                                topic: topic.into(),
                                partition: Some(partition),
                                key: Some(Bytes::from(user(id).to_string())),
                                value: Some(Bytes::from(event.to_string())),
                                timestamp: Some(time(id)),
                                headers: Headers::EMPTY,
                            })
                            .unwrap();
                        let offset = offsets.entry((topic, partition)).or_default();
                        sent.lock().unwrap().push(Event { topic, partition, offset: *offset, id });
                        *offset += 1;
                    }
                    number += 1;
                }
                producer.flush().unwrap();
                let ahead = || {
                    number as u64
                        > applications.list.try_lock().map_or(u64::MAX, |list| list[0].totals().processed) / 2
                            + 1_000
                };
                while ahead() && !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        })
    }

    fn read(&self, topic: &str) -> Vec<(String, Value)> {
        let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
        let mut consumer = self.log.consumer(&config).unwrap();
        let all: Vec<_> = (0..PARTITIONS).map(|p| (TopicPartition::new(topic, p), Some(0))).collect();
        consumer.assign(&all).unwrap();
        let mut found = Vec::new();
        loop {
            let records = consumer.poll(Duration::ZERO).unwrap().records;
            if records.is_empty() {
                return found;
            }
            found.extend(records.into_iter().map(|record| {
                let key = String::from_utf8(record.key.unwrap_or_default().to_vec()).unwrap();
                (key, serde_json::from_slice(&record.value.unwrap()).unwrap())
            }));
        }
    }

    fn totals(&self) -> BTreeMap<i64, i64> {
        let latest: BTreeMap<String, Value> = self.read("totals").into_iter().collect();
        latest
            .into_iter()
            .map(|(key, value)| (key.parse().unwrap(), value["issued"].as_i64().unwrap()))
            .collect()
    }

    /// Each event once.
    fn expected_totals(&self) -> BTreeMap<i64, i64> {
        let ids: BTreeSet<i64> = self.sent.lock().unwrap().iter().map(|event| event.id).collect();
        let mut totals = BTreeMap::new();
        ids.into_iter().for_each(|id| *totals.entry(coupon(id)).or_default() += 1);
        totals
    }

    /// By window: users and events first told at or behind these offsets.
    fn expected_users(&self, from: &BTreeMap<TopicPartition, i64>) -> BTreeMap<String, (i64, i64)> {
        let mut seen = HashSet::new();
        let mut windows: BTreeMap<String, (HashSet<i64>, i64)> = BTreeMap::new();
        for event in self.sent.lock().unwrap().iter() {
            let first = seen.insert(event.id);
            let since = from.get(&TopicPartition::new(event.topic, event.partition)).copied().unwrap_or(0);
            if first && event.offset >= since && seats(event.id) > 100 {
                let start = time(event.id) - time(event.id).rem_euclid(HOUR_MS);
                let window =
                    windows.entry(format!("{}@{}", coupon(event.id), format_timestamp(start))).or_default();
                window.0.insert(user(event.id));
                window.1 += 1;
            }
        }
        windows.into_iter().map(|(key, (users, issued))| (key, (users.len() as i64, issued))).collect()
    }

    fn users(&self) -> BTreeMap<String, (i64, i64)> {
        let latest: BTreeMap<String, Value> = self.read("users-hour").into_iter().collect();
        let pair = |value: &Value| (value["users"].as_i64().unwrap(), value["issued"].as_i64().unwrap());
        latest.into_iter().map(|(key, value)| (key, pair(&value))).collect()
    }

    /// Waits until so many more records are processed.
    fn goes_on(&self, more: u64) {
        let processed = || self.applications.each(Application::totals)[0].processed;
        let target = processed() + more;
        self.until("records are processed", || processed() >= target);
    }

    fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(180);
        while !condition() {
            assert!(Instant::now() < deadline, "waited for long: {what}; {:?}", self.applications.failure());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn exchanged(outcome: Result<Vec<Reloaded>, ReloadError>) -> Exchanged {
    let outcomes = outcome.unwrap_or_else(|error| panic!("{error}"));
    outcomes[0].exchanged.clone().unwrap_or_else(|| panic!("nothing changed: {outcomes:?}"))
}

#[test]
fn under_load_nothing_is_lost_and_nothing_counts_twice() {
    let world = World::new();
    let stop = Arc::new(AtomicBool::new(false));
    let load = world.load(stop.clone());
    world.goes_on(3_000);

    // The newcomer's statistic.
    let with_newcomer = format!("{STATISTICS}{NEWCOMER}");
    let newcomer = exchanged(world.reload(&with_newcomer));
    assert!(
        newcomer.from.values().sum::<i64>() > 0 && newcomer.paused < Duration::from_secs(10),
        "{newcomer:?}"
    );
    world.goes_on(1_000);
    // Nothing changed: nothing happens.
    assert!(world.applications.reload().unwrap()[0].exchanged.is_none());
    // Forward-only, twice; the second with a node that shifts the others.
    let headers = with_newcomer.replace(
        "to       = { topic = \"totals\",",
        "to       = { topic = \"totals\", headers = { coupon = \"couponId\" },",
    );
    exchanged(world.reload(&headers));
    world.goes_on(1_000);
    let shifted = headers.replace("\n[table.totals]", IN_FRONT);
    exchanged(world.reload(&shifted));
    world.goes_on(1_000);
    // A broken file, a change of what is kept, another application: what runs goes on.
    let broken = shifted.replace("count(distinct userId)", "count(distinct usrId)");
    let error = world.reload(&broken).unwrap_err();
    assert!(
        matches!(&error, ReloadError::Broken(text) if text.contains("statistics.toml:") && text.contains("usrId")),
        "{error}"
    );
    let error = world
        .reload(&shifted.replace(
            "issued = \"count(*)\" }\nto       = { topic = \"totals\"",
            "issued = \"count(userId)\" }\nto       = { topic = \"totals\"",
        ))
        .unwrap_err();
    assert!(
        matches!(&error, ReloadError::Refused(_)) && error.to_string().contains("state_version = 2"),
        "{error}"
    );
    assert!(matches!(
        world.reload(&shifted.replace("app     = \"statistics\"", "app = \"other\"")),
        Err(ReloadError::Refused(_))
    ));
    world.goes_on(1_000);
    // Out with the node in front: the numbers shift back.
    exchanged(world.reload(&headers));
    world.goes_on(1_000);

    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    let expected = world.expected_totals();
    assert!(expected.values().sum::<i64>() > 5_000, "{expected:?}");
    world.until("all is counted", || world.totals().values().sum::<i64>() >= expected.values().sum());
    assert_eq!(world.totals(), expected);
    let expected = world.expected_users(&newcomer.from);
    world.until("all users are counted", || {
        world.users().values().map(|users| users.1).sum::<i64>()
            >= expected.values().map(|users| users.1).sum()
    });
    assert_eq!(world.users(), expected);
    // What was kept was kept: only the node in front had nothing to begin with, and nothing was restored from a changelog.
    assert_eq!(world.applications.each(Application::totals)[0].restored, 0);
    world.applications.close();
}

#[test]
fn a_node_that_comes_back_begins_empty() {
    let world = World::new();
    let stop = Arc::new(AtomicBool::new(false));
    let load = world.load(stop.clone());
    let with_newcomer = format!("{STATISTICS}{NEWCOMER}");
    exchanged(world.reload(&with_newcomer));
    world.goes_on(1_000);
    exchanged(world.reload(STATISTICS));
    world.goes_on(1_000);
    let again = exchanged(world.reload(&with_newcomer));
    world.goes_on(1_000);
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    let expected = world.expected_users(&again.from);
    let newest = |windows: &BTreeMap<String, (i64, i64)>| {
        windows
            .iter()
            .filter(|(key, _)| expected.contains_key(*key))
            .map(|(k, v)| (k.clone(), *v))
            .collect::<BTreeMap<_, _>>()
    };
    world.until("all users are counted", || newest(&world.users()) == expected);
    world.applications.close();
}

#[test]
fn a_start_with_a_file_that_does_not_fit_the_state_is_refused() {
    let world = World::new();
    world.applications.close();
    let changed = STATISTICS.replace("count(*)", "count(userId)");
    std::fs::write(world.file(), changed).unwrap();
    let files = files::load_named(&[world.file().to_str().unwrap().to_owned()]).unwrap();
    let layers = Layers::defaults().set("data_dir", world.folder.path().to_str().unwrap(), "test");
    let config = Config::from_layers(layers).unwrap();
    let refused = Applications::new(files, &config, Arc::new(world.log.clone()), &StreamsMetrics::default())
        .err()
        .unwrap();
    assert!(matches!(&refused, Failure::Usage(text) if text.contains("state_version = 2")), "{refused}");
}

/// Totals by another rule, from the first record on, while records flow.
#[test]
fn a_new_state_version_counts_everything_anew_and_takes_over() {
    let world = World::new();
    let stop = Arc::new(AtomicBool::new(false));
    let load = world.load(stop.clone());
    world.goes_on(3_000);
    let anew = STATISTICS
        .replace("group_by = [\"couponId\"]", "group_by = [\"couponId\"]\nstate_version = 2")
        .replace("issued = \"count(*)\"", "issued = \"count(*)\", users = \"count(distinct userId)\"");
    let taken = exchanged(world.reload(&anew));
    assert!(taken.from.values().sum::<i64>() > 1_000, "{taken:?}");
    world.goes_on(1_000);
    // It counts up only, and a state that was left behind is not taken up again.
    assert!(matches!(world.reload(STATISTICS), Err(ReloadError::Refused(_))));
    std::fs::write(world.file(), &anew).unwrap();
    assert!(world.applications.reload().unwrap()[0].exchanged.is_none());
    world.goes_on(500);
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();

    let expected = world.expected_totals();
    world.until("all is counted", || world.totals().values().sum::<i64>() >= expected.values().sum());
    assert_eq!(world.totals(), expected);
    let mut users: BTreeMap<i64, HashSet<i64>> = BTreeMap::new();
    for event in world.sent.lock().unwrap().iter() {
        users.entry(coupon(event.id)).or_default().insert(user(event.id));
    }
    let latest: BTreeMap<String, Value> = world.read("totals").into_iter().collect();
    for (coupon, users) in users {
        // From the first record on, not from the exchange.
        assert_eq!(latest[&coupon.to_string()]["users"], users.len(), "{coupon}");
    }
    let topics = world.log.admin().unwrap().list_topics().unwrap();
    assert!(topics.contains(&"statistics-totals-v2-changelog".to_owned()), "{topics:?}");
    let left: Vec<&String> = topics
        .iter()
        .filter(|name| name.contains("rebuild") || *name == "statistics-totals-changelog")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    world.applications.close();
}
