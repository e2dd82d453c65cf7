//! What operators cost, as a task runs them: `cargo bench --bench operators`. Times are per record.
//!
//! A record is read from its bytes, runs through the operator, what comes out is written to bytes, changelogs included, and every
//! thousandth record is followed by a commit, which flushes caches. There is no log and no file below: those have benches of their own
//! (`log`, `state`). Keys are 5 digits over ten thousand, one record a millisecond.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use sluice::streams::{
    config::StreamsConfig,
    file::{Processors, load},
    internals::{LoneTask, decoder},
    kstream::{JoinWindows, KStream, SessionWindows, SlidingWindows, StreamsBuilder, TimeWindows},
    record::{ConsumerRecord, Headers, TopicPartition},
    topology::Topology,
};

const KEYS: u64 = 10_000;
const BATCH: u64 = 1_000;

/// Records of a topic, each a millisecond after the one before, with uniform keys, the same in every run.
struct Records {
    topic: TopicPartition,
    random: u64,
    offset: i64,
}

impl Records {
    fn of(topic: &str) -> Self {
        Self { topic: TopicPartition::new(topic, 0), random: 1, offset: 0 }
    }

    fn next(&mut self) -> ConsumerRecord {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.offset += 1;
        ConsumerRecord {
            topic: self.topic.topic.clone(),
            partition: 0,
            offset: self.offset,
            timestamp: self.offset,
            key: Some(Bytes::from(format!("{:05}", (self.random >> 33) % KEYS))),
            value: Some(Bytes::copy_from_slice(&self.offset.to_be_bytes())),
            headers: Headers::EMPTY,
        }
    }
}

/// Runs records through a topology that reads these topics in turn; the time they take.
fn run(task: &mut LoneTask, topics: &mut [Records], records: u64) -> Duration {
    let mut spent = Duration::ZERO;
    let mut out = Vec::new();
    let mut left = records;
    let mut turn = 0;
    while left > 0 {
        let count = left.min(BATCH);
        left -= count;
        turn = (turn + 1) % topics.len();
        let (topic, batch) = (topics[turn].topic.clone(), (0..count).map(|_| topics[turn].next()).collect());
        let start = Instant::now();
        task.process(&topic, batch, &mut out).expect("records that can be processed");
        out.clear();
        spent += start.elapsed();
    }
    spent
}

fn topology(build: impl Fn(&StreamsBuilder)) -> Topology {
    let builder = StreamsBuilder::new();
    build(&builder);
    builder.build("bench").expect("a valid topology")
}

fn operators(criterion: &mut Criterion) {
    let stream = |builder: &StreamsBuilder, topic: &str| -> KStream<String, i64> { builder.stream(topic) };
    let minute = Duration::from_secs(60);
    let second = Duration::from_secs(1);
    let sum = |a: Option<&i64>, b: Option<&i64>| Some(a? + b.copied().unwrap_or(0));
    let cases: Vec<(&str, &[&str], Topology)> = vec![
        ("pass", &["in"], topology(|b| stream(b, "in").to("out"))),
        (
            "filter_and_map",
            &["in"],
            topology(|b| {
                let odd = stream(b, "in").filter(|_, n| n.is_some_and(|n| n % 2 == 1));
                odd.map_values(|_, n| n.map(|n| n + 1)).to("out");
            }),
        ),
        ("count", &["in"], topology(|b| stream(b, "in").group_by_key().count().to_stream().to("out"))),
        (
            "window_aggregate_tumbling",
            &["in"],
            topology(move |b| {
                let windows = TimeWindows::of_size_and_grace(minute, minute);
                stream(b, "in").group_by_key().windowed_by(windows).count().to_stream().to("out");
            }),
        ),
        (
            "window_aggregate_hopping_of_4",
            &["in"],
            topology(move |b| {
                let windows = TimeWindows::of_size_and_grace(minute, minute).advance_by(minute / 4);
                stream(b, "in").group_by_key().windowed_by(windows).count().to_stream().to("out");
            }),
        ),
        (
            "window_aggregate_sliding",
            &["in"],
            topology(move |b| {
                let windows = SlidingWindows::of_time_difference_and_grace(second, second);
                stream(b, "in").group_by_key().windowed_by(windows).count().to_stream().to("out");
            }),
        ),
        (
            "session_aggregate",
            &["in"],
            topology(move |b| {
                let windows = SessionWindows::of_inactivity_gap_and_grace(second, second);
                stream(b, "in").group_by_key().windowed_by_session(windows).count().to_stream().to("out");
            }),
        ),
        (
            "join_probe_stream_stream",
            &["left", "right"],
            topology(move |b| {
                let windows = JoinWindows::of_time_difference_and_grace(second, second);
                stream(b, "left").join(&stream(b, "right"), sum, windows).to("out");
            }),
        ),
        (
            "join_probe_stream_stream_left",
            &["left", "right"],
            topology(move |b| {
                let windows = JoinWindows::of_time_difference_and_grace(second, second);
                stream(b, "left").left_join(&stream(b, "right"), sum, windows).to("out");
            }),
        ),
        (
            "join_probe_stream_table",
            &["table", "in"],
            topology(move |b| {
                stream(b, "in").left_join_table(&b.table::<String, i64>("table"), sum).to("out")
            }),
        ),
    ];
    let mut group = criterion.benchmark_group("operator");
    group.sample_size(20).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    for (name, topics, topology) in cases {
        let mut task = LoneTask::new(topology, StreamsConfig::default()).expect("a task");
        let mut topics: Vec<Records> = topics.iter().map(|topic| Records::of(topic)).collect();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|records| run(&mut task, &mut topics, records));
        });
    }
    group.finish();
}

const FILE: &str = r#"
version = 1
app     = "bench"
group   = "bench"

[source.orders]
topic  = "orders"
key    = "id"
time   = "at"
bad    = "skip"
fields = { id = "text", customer = "int", amount = "float", kind = "text", at = "timestamp" }

[stream.copies]
from = "orders"
to   = { topic = "copies", key = "id" }
"#;

fn decoding(criterion: &mut Criterion) {
    let loaded = load("bench.toml", FILE, &Processors::default()).unwrap_or_else(|error| panic!("{error}"));
    let decode = decoder(&loaded.topology, "orders").expect("the source of the file");
    let value = r#"{"id":"order-000017","customer":4711,"note":"not asked for","amount":17.25,"kind":"web","at":1772323200000}"#;
    let record = ConsumerRecord {
        topic: "orders".into(),
        partition: 0,
        offset: 0,
        timestamp: 0,
        key: Some(Bytes::from("order-000017")),
        value: Some(Bytes::from(value)),
        headers: Headers::EMPTY,
    };
    criterion.bench_function("decode/json_5_of_6_fields", |bencher| {
        bencher.iter(|| decode(black_box(&record)).expect("a record that can be read"));
    });
}

criterion_group!(benches, operators, decoding);
criterion_main!(benches);
