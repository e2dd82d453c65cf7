//! The shipped statistics on the real runtime: three partitions, repeats, disorder, threads that die anywhere with their disks.
//!
//! What must hold: totals and final windows are those of a plain count over the events, and no window is final twice.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    config::StreamsConfig,
    file::{LoadedFile, Processors, load},
    internals::{
        StreamThread, TaskOptions, ThreadParts, create_internal_topics, format_timestamp, plan_partitions,
    },
    metrics::StreamsMetrics,
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::ThreadStatus,
};

/// 2026-03-01T00:00:00Z.
const START_MS: i64 = 1_772_323_200_000;
const MINUTE_MS: i64 = 60_000;

fn statistics() -> LoadedFile {
    let text = include_str!("../../topologies/coupon-statistics.toml");
    load("coupon-statistics.toml", text, &Processors::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Events per (coupon, minute) and per coupon: issued, used.
#[derive(Default)]
struct Model {
    minutes: BTreeMap<(i64, i64), (i64, i64)>,
    totals: BTreeMap<i64, (i64, i64)>,
    written: i64,
}

impl Model {
    /// Writes events number `range`, a few seconds out of order, some of them twice.
    fn write(&mut self, log: &EmbeddedLog, count: i64) -> i64 {
        let mut producer = log.producer(&ProducerConfig::default()).unwrap();
        let mut newest = 0;
        for n in self.written..self.written + count {
            let coupon = n % 7;
            // A step of 200 ms each, up to 5 s back.
            let time = START_MS + n * 200 - (n * 7919 % 5_000);
            newest = newest.max(time);
            let minute = (time - time.rem_euclid(MINUTE_MS), time);
            let used = n % 3 == 0;
            let per_minute = self.minutes.entry((coupon, minute.0)).or_default();
            let total = self.totals.entry(coupon).or_default();
            for counter in [per_minute, total] {
                if used { counter.1 += 1 } else { counter.0 += 1 }
            }
            let mut event = json!({
                "eventId": format!("event-{n}"), "userCouponId": n, "userId": n % 50, "couponId": coupon,
                "couponName": "x", "orderId": "o", "discountAmount": 10,
            });
            event[if used { "usedAt" } else { "issuedAt" }] = json!(format_timestamp(time));
            for _ in 0..if n % 5 == 0 { 2 } else { 1 } {
                producer
                    .send(ProducerRecord {
                        topic: if used { "coupon-used" } else { "coupon-issued" }.into(),
                        partition: None,
                        key: Some(Bytes::from((n % 50).to_string())),
                        value: Some(Bytes::from(event.to_string())),
                        timestamp: Some(time),
                        headers: Headers::EMPTY,
                    })
                    .unwrap();
            }
        }
        producer.flush().unwrap();
        self.written += count;
        newest
    }
}

fn read(log: &EmbeddedLog, topic: &str) -> Vec<(String, Value)> {
    let mut consumer =
        log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
    let partitions: Vec<_> = (0..3).map(|p| (TopicPartition::new(topic, p), Some(0))).collect();
    consumer.assign(&partitions).unwrap();
    let mut found = Vec::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        if records.is_empty() {
            return found;
        }
        for record in records {
            let key = String::from_utf8(record.key.unwrap_or_default().to_vec()).unwrap();
            found.push((key, serde_json::from_slice(&record.value.unwrap()).unwrap()));
        }
    }
}

#[test]
fn statistics_are_exact_though_threads_die_with_their_disks() {
    let file = statistics();
    let log = Arc::new(EmbeddedLog::in_memory());
    let admin = log.admin().unwrap();
    let topics: Vec<NewTopic> = file
        .source_topics
        .iter()
        .chain(&file.sink_topics)
        .map(|name| NewTopic {
            name: name.clone(),
            partitions: 3,
            replication_factor: 1,
            config: BTreeMap::new(),
        })
        .collect();
    admin.create_topics(&topics).unwrap();
    let topology = Arc::new(file.topology);
    let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).unwrap());
    create_internal_topics(&topology, &plan, -1, admin.as_ref()).unwrap();
    let counts = plan.partitions.clone();
    let now = Arc::new(AtomicI64::new(START_MS));
    let spawn = |state: &tempfile::TempDir| {
        let config = Arc::new(StreamsConfig {
            application_id: topology.application_id().to_owned(),
            group_id: Some(file.group.clone()),
            state_dir: state.path().to_owned(),
            save_rows_min: 1,
            save_age_max: Duration::from_millis(20),
            commit_interval: Duration::from_millis(10),
            poll: Duration::ZERO,
            max_poll_records: 50,
            idle_close_ms: file.idle_close_ms,
            ..StreamsConfig::default()
        });
        let mut options = TaskOptions::new(topology.clone(), config);
        let counts = counts.clone();
        options.partition_counts = Arc::new(move |topic| Ok(counts.get(topic).copied().unwrap_or(3)));
        let now = now.clone();
        StreamThread::new(ThreadParts {
            name: "0".into(),
            options,
            plan: plan.clone(),
            clients: log.clone(),
            clock: Arc::new(move || now.fetch_add(1, Ordering::Relaxed)),
            metrics: StreamsMetrics::default(),
            status: Arc::new(Mutex::new(ThreadStatus::default())),
        })
        .unwrap()
    };
    let mut model = Model::default();
    let mut random = 0x9e37_79b9_u64;
    for life in 0..20 {
        let newest = model.write(&log, 150);
        now.fetch_max(newest, Ordering::Relaxed);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(life);
        let mut thread = spawn(&tempfile::tempdir().unwrap());
        for _ in 0..random >> 33 & 31 {
            thread.run_once().unwrap();
        }
        thread.abandon();
    }
    let state = tempfile::tempdir().unwrap();
    let mut thread = spawn(&state);
    let mut drain = || {
        let mut idle = 0;
        while idle < 50 {
            idle = if thread.run_once().unwrap() { 0 } else { idle + 1 };
        }
    };
    drain();
    let finals_before = finals(&log).len();
    let minutes = model.minutes.len();
    assert!(finals_before < minutes, "the newest window is still open: {finals_before} of {minutes}");
    // Nothing more comes. Silence closes what is open, and the day after the day.
    now.fetch_add(2 * 86_400_000, Ordering::Relaxed);
    drain();
    thread.close().unwrap();

    let mut totals = BTreeMap::new();
    for (key, value) in read(&log, "coupon-totals") {
        totals.insert(
            key.parse::<i64>().unwrap(),
            (value["issuedTotal"].as_i64().unwrap(), value["usedTotal"].as_i64().unwrap()),
        );
    }
    assert_eq!(totals, model.totals);
    let finals = finals(&log);
    let expected: BTreeMap<String, (i64, i64)> = model
        .minutes
        .iter()
        .map(|((coupon, start), counts)| (format!("{coupon}@{}", format_timestamp(*start)), *counts))
        .collect();
    assert_eq!(finals, expected);
    assert!(read(&log, "coupon-issued-dlq").is_empty() && read(&log, "coupon-used-dlq").is_empty());
}

/// Final minutes by key; a key that is final twice is a failure, and so is a result after the final one.
fn finals(log: &EmbeddedLog) -> BTreeMap<String, (i64, i64)> {
    let mut finals = BTreeMap::new();
    for (key, value) in read(log, "coupon-stats-minute") {
        assert!(!finals.contains_key(&key), "{key} has {value} after its final result");
        if value["final"] == true {
            finals.insert(key, (value["issued"].as_i64().unwrap(), value["used"].as_i64().unwrap()));
        }
    }
    finals
}
