//! What the fleets process: orders, summed up by shop and window behind a repartition topic, and by user. The load, and the
//! verdict, which works everything out again from the input alone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, Producer, ThreadedProducer},
};
use serde_json::json;

use super::fleet::{Fleet, PARTITIONS, PATIENCE};
use crate::{
    deployment::eventually,
    topic::{self, Read},
};

const WINDOW_MS: i64 = 5_000;

/// A windowed table behind a repartition, with final results, and a running total.
///
/// `grace` and `idle_close` are longer together than a broker is ever away: an event that the load could not write meanwhile is
/// not late.
pub const TOPOLOGY: &str = r#"version = 1
app     = "APP"

[source.orders]
topic  = "APP-in"
key    = "user"
time   = "at"
fields = { id = "int", user = "int", shop = "int", amount = "int", at = "timestamp" }

[table.by_shop]
from     = "orders"
group_by = ["shop"]
window   = { tumbling = "5s", grace = "30s" }
emit     = { on = "update", final = true, idle_close = "10s" }
select   = { orders = "count(*)", amount = "sum(amount)" }
to       = { topic = "APP-by-shop", key = "shop || '@' || window_start" }

[table.by_user]
from     = "orders"
group_by = ["user"]
select   = { orders = "count(*)", amount = "sum(amount)" }
to       = { topic = "APP-by-user", key = "user" }
"#;

/// Users where nothing else is said.
const USERS: i64 = 400;
/// Users and shops below this are not real: their events only let time pass.
const CLOSER: i64 = 0;

fn event(id: i64, user: i64, shop: i64, at: Timestamp) -> (String, String) {
    let at = at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    let value = json!({ "id": id, "user": user, "shop": shop, "amount": id * 7919 % 100, "at": at });
    (user.to_string(), value.to_string())
}

/// The order of this number, now: neighbours are of different users and shops.
fn order(id: i64, users: i64) -> (String, String) {
    event(id, 1 + id * 31 % users, 1 + id * 17 % 23, Timestamp::now())
}

fn producer(bootstrap: &str) -> ThreadedProducer<rdkafka::producer::DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", "0")
        .set("reconnect.backoff.max.ms", "500")
        .create()
        .expect("a producer")
}

/// Orders at a steady rate, dated by the wall clock, until told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    running: JoinHandle<i64>,
}

impl Load {
    pub fn start(fleet: &Fleet, per_second: i64) -> Self {
        Self::among(fleet, per_second, USERS)
    }

    /// Of so many users.
    pub fn among(fleet: &Fleet, per_second: i64, users: i64) -> Self {
        let (bootstrap, topic) = (fleet.services.kafka.clone(), fleet.topic("in"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let running = std::thread::spawn(move || {
            let producer = producer(&bootstrap);
            let began = Instant::now();
            let (mut sent, deadline) = (0, began + Duration::from_secs(3_600));
            while !stopped.load(Ordering::Relaxed) && Instant::now() < deadline {
                let due = began.elapsed().as_millis() as i64 * per_second / 1_000;
                while sent < due {
                    let (key, value) = order(sent, users);
                    producer
                        .send(BaseRecord::to(&topic).key(&key).payload(&value))
                        .map_err(|(error, _)| error)
                        .expect("there is room in the queue");
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            producer.flush(Duration::from_secs(60)).expect("everything is written");
            sent
        });
        Self { stop, running }
    }

    /// No more orders; how many there were, all of them written.
    pub fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join().expect("the load ran")
    }
}

/// One order of each of so many users, as fast as it goes; how many that is.
pub fn fill(fleet: &Fleet, users: i64) -> i64 {
    write(&fleet.services.kafka, &fleet.topic("in"), users, users);
    users
}

/// So many orders of so many users.
pub fn write(bootstrap: &str, topic: &str, orders: i64, users: i64) {
    let producer = producer(bootstrap);
    for id in 0..orders {
        let (key, value) = order(id, users);
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err((error, _)) = producer.send(BaseRecord::to(topic).key(&key).payload(&value)) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    producer.flush(Duration::from_secs(120)).expect("everything is written");
}

/// Lets an hour pass on every partition, so that every window of the load closes.
pub fn close_windows(fleet: &Fleet) {
    let producer = producer(&fleet.services.kafka);
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    for partition in 0..PARTITIONS {
        let (key, value) = event(0, CLOSER - i64::from(partition), CLOSER, later);
        let topic = fleet.topic("in");
        producer
            .send(BaseRecord::to(&topic).partition(partition).key(&key).payload(&value))
            .map_err(|(error, _)| error)
            .expect("queued");
    }
    producer.flush(Duration::from_secs(60)).expect("acknowledged");
}

/// The end of a test: everything is processed, every process stops as it should, nothing is undecided, and the output is what the input
/// says. The windows have been closed.
pub async fn holds(fleet: &mut Fleet, orders: i64, what: &[&str]) {
    fleet.catch_up("the end").await;
    let complete = eventually(PATIENCE, || {
        let verdict = judge(fleet);
        async move { (verdict.finals >= verdict.windows).then_some(()) }
    })
    .await;
    fleet.all_live();
    fleet.stop();
    let kafka = fleet.services.kafka.clone();
    let decided = || async { topic::undecided(&kafka).is_empty().then_some(()) };
    let decided = eventually(Duration::from_secs(30), decided).await;
    let verdict = judge(fleet);
    println!("{} orders, {} windows, {} of them final", verdict.orders, verdict.windows, verdict.finals);
    let (count, first) = (verdict.mistakes.len(), &verdict.mistakes[..verdict.mistakes.len().min(20)]);
    assert!(count == 0, "{what:?}: {count} mistakes, the first: {first:#?}\n{}", fleet.logs());
    assert!(complete.is_some(), "{what:?}: {} of {} windows are final", verdict.finals, verdict.windows);
    assert_eq!(verdict.orders as i64, orders, "{what:?}: the input has every order once");
    assert!(decided.is_some(), "{what:?}: undecided: {:?}", topic::undecided(&kafka));
}

/// Orders and their sum.
type Tally = (i64, i64);

/// What was found; [`Verdict::mistakes`] is empty when all of it is right.
#[derive(Debug, Default)]
pub struct Verdict {
    pub orders: usize,
    pub windows: usize,
    pub finals: usize,
    pub mistakes: Vec<String>,
}

/// Holds all committed output against the input.
pub fn judge(fleet: &Fleet) -> Verdict {
    let kafka = &fleet.services.kafka;
    let mut users: BTreeMap<i64, Tally> = BTreeMap::new();
    let mut windows: BTreeMap<(i64, i64), Tally> = BTreeMap::new();
    let mut verdict = Verdict::default();
    for record in topic::read_all(kafka, &fleet.topic("in")) {
        let order = record.json();
        let number = |name: &str| order[name].as_i64().unwrap_or_else(|| panic!("no {name} in {order}"));
        if number("user") <= CLOSER {
            continue;
        }
        verdict.orders += 1;
        let at: Timestamp = order["at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
        let start = at.as_millisecond().div_euclid(WINDOW_MS) * WINDOW_MS;
        for tally in
            [users.entry(number("user")).or_default(), windows.entry((number("shop"), start)).or_default()]
        {
            tally.0 += 1;
            tally.1 += number("amount");
        }
    }
    verdict.windows = windows.len();

    let totals = topic::read_all(kafka, &fleet.topic("by-user"));
    let newest = follow("by-user", &totals, &mut verdict.mistakes, |record| {
        let total = record.json();
        Some((total["user"].as_i64()?, tally(&total)?))
    });
    compare("by-user", &users, &newest, &mut verdict.mistakes);

    let results = topic::read_all(kafka, &fleet.topic("by-shop"));
    let mut finals: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    let row = |record: &Read| {
        let result = record.json();
        let start: Timestamp = result["windowStart"].as_str()?.parse().ok()?;
        Some(((result["shop"].as_i64()?, start.as_millisecond()), tally(&result)?))
    };
    let (last, updates): (Vec<Read>, Vec<Read>) =
        results.into_iter().partition(|record| record.json()["final"] == true);
    for record in &last {
        let Some((window, found)) = row(record) else { continue };
        if window.0 <= CLOSER {
            continue;
        }
        *finals.entry(window).or_default() += 1;
        if windows.get(&window) != Some(&found) {
            let expected = windows.get(&window);
            verdict.mistakes.push(format!("final of {window:?} is {found:?}, the input says {expected:?}"));
        }
    }
    let twice = finals.iter().filter(|(_, count)| **count > 1);
    verdict.mistakes.extend(twice.map(|(window, count)| format!("{window:?} is final {count} times")));
    verdict.finals = finals.len();
    let newest = follow("by-shop", &updates, &mut verdict.mistakes, row);
    compare("by-shop", &windows, &newest, &mut verdict.mistakes);
    verdict
}

fn tally(value: &serde_json::Value) -> Option<Tally> {
    Some((value["orders"].as_i64()?, value["amount"].as_i64()?))
}

/// The newest tally of each row; a count that does not grow was written twice, or is of a state that had gone back.
fn follow<K: Ord + std::fmt::Debug>(
    what: &str,
    records: &[Read],
    mistakes: &mut Vec<String>,
    row: impl Fn(&Read) -> Option<(K, Tally)>,
) -> BTreeMap<K, Tally> {
    let mut newest: BTreeMap<K, Tally> = BTreeMap::new();
    for record in records {
        let Some((key, found)) = row(record) else {
            mistakes.push(format!("{what}: {record:?} is no result"));
            continue;
        };
        if let Some(known) = newest.get(&key)
            && known.0 >= found.0
        {
            mistakes.push(format!(
                "{what}: {key:?} goes from {known:?} to {found:?} at {}-{}",
                record.partition, record.offset
            ));
        }
        newest.insert(key, found);
    }
    newest
}

fn compare<K: Ord + std::fmt::Debug + AsClosers>(
    what: &str,
    expected: &BTreeMap<K, Tally>,
    found: &BTreeMap<K, Tally>,
    mistakes: &mut Vec<String>,
) {
    for (key, tally) in expected {
        if found.get(key) != Some(tally) {
            mistakes.push(format!("{what}: {key:?} is {:?}, the input says {tally:?}", found.get(key)));
        }
    }
    for key in found.keys().filter(|key| !expected.contains_key(key) && !key.is_closer()) {
        mistakes.push(format!("{what}: {key:?} is not in the input"));
    }
}

/// Rows of events that only let time pass.
trait AsClosers {
    fn is_closer(&self) -> bool;
}

impl AsClosers for i64 {
    fn is_closer(&self) -> bool {
        *self <= CLOSER
    }
}

impl AsClosers for (i64, i64) {
    fn is_closer(&self) -> bool {
        self.0 <= CLOSER
    }
}
