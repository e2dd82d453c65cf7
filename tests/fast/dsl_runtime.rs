//! The DSL in the real runtime: three partitions, two threads, a restart in the middle. The test driver, with its single partition, is the
//! oracle: what it gives each key in order, the runtime must give, too.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    config::StreamsConfig,
    kstream::{KStream, StreamsBuilder, TopologyConfig},
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::{KafkaStreams, RunOptions},
    test_utils::{DriverOptions, TopologyTestDriver},
    topology::Topology,
};

const PARTITIONS: i32 = 3;

/// Values by key, in order.
type Outputs = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

fn records(range: std::ops::Range<i64>) -> impl Iterator<Item = ProducerRecord> {
    range.map(|n| ProducerRecord {
        topic: "in".into(),
        partition: None,
        key: Some(Bytes::from(format!("k{}", n % 13))),
        value: Some(Bytes::copy_from_slice(&((n * 7919) % 101).to_be_bytes())),
        timestamp: Some(n),
        headers: Headers::EMPTY,
    })
}

fn add(outputs: &mut Outputs, key: Option<Bytes>, value: Option<Bytes>) {
    let key = key.map(|key| key.to_vec()).unwrap_or_default();
    outputs.entry(key).or_default().push(value.map(|value| value.to_vec()));
}

fn in_driver(topology: Topology, count: i64) -> Outputs {
    let driver = TopologyTestDriver::with_options(topology, DriverOptions::default()).unwrap();
    for record in records(0..count) {
        driver.pipe_record(record).unwrap();
    }
    let mut outputs = Outputs::new();
    for record in driver.read_records("out") {
        add(&mut outputs, record.key, record.value);
    }
    outputs
}

fn in_runtime(topology: &dyn Fn() -> Topology, count: i64) -> Outputs {
    let log = Arc::new(EmbeddedLog::in_memory());
    let topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: PARTITIONS,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    log.admin().unwrap().create_topics(&[topic("in"), topic("out")]).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for range in [0..count / 2, count / 2..count] {
        for record in records(range) {
            producer.send(record).unwrap();
        }
        producer.flush().unwrap();
        let config = StreamsConfig {
            state_dir: state.path().to_owned(),
            num_stream_threads: 2,
            commit_interval: Duration::from_millis(10),
            ..StreamsConfig::default()
        };
        let mut streams = KafkaStreams::new(topology(), log.clone(), RunOptions::new(config));
        streams.start().unwrap();
        let targets = streams.input_end_offsets().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !streams.is_caught_up(&targets).unwrap() {
            assert!(Instant::now() < deadline, "not caught up: {:?}", streams.error());
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert!(streams.close(Duration::from_secs(10)), "closes in time");
    }
    let mut consumer =
        log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
    let partitions: Vec<_> = (0..PARTITIONS).map(|p| (TopicPartition::new("out", p), Some(0))).collect();
    consumer.assign(&partitions).unwrap();
    let mut outputs = Outputs::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        if records.is_empty() {
            return outputs;
        }
        for record in records {
            add(&mut outputs, record.key, record.value);
        }
    }
}

/// What must agree between driver and runtime.
#[derive(Clone, Copy)]
enum Agree {
    /// Every output of a key, in order.
    Everything,
    /// The last output of a key: between them the partitions' order decides.
    Last,
}

fn check(agree: Agree, build: impl Fn(&StreamsBuilder, KStream<String, i64>)) {
    let topology = || {
        let builder =
            StreamsBuilder::with_config(TopologyConfig { caching: false, ..TopologyConfig::default() });
        build(&builder, builder.stream("in"));
        builder.build("dsl").unwrap()
    };
    let (expected, found) = (in_driver(topology(), 600), in_runtime(&topology, 600));
    assert!(!expected.is_empty(), "the topology writes something");
    match agree {
        Agree::Everything => assert_eq!(found, expected),
        Agree::Last => {
            let last = |outputs: &Outputs| -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
                outputs.iter().map(|(key, values)| (key.clone(), values.last().cloned().flatten())).collect()
            };
            assert_eq!(last(&found), last(&expected));
        }
    }
}

#[test]
fn stateless_operators() {
    check(Agree::Everything, |_, stream| {
        stream
            .filter(|_, n| n.is_some_and(|n| n % 3 != 0))
            .map_values(|_, n| n.map(|n| n * 2))
            .flat_map_values(|_, n| [n.copied(), n.map(|n| -n)])
            .peek(|_, _| {})
            .to("out");
    });
}

#[test]
fn branches_merge_again() {
    check(Agree::Everything, |_, stream| {
        let branches =
            stream.split("by-").branch(|_, n| n.is_some_and(|n| n % 2 == 0), "even").default_branch("odd");
        branches["by-even"].merge(&branches["by-odd"].map_values(|_, n| n.map(|n| n + 1_000))).to("out");
    });
}

#[test]
fn aggregates_continue_after_a_restart() {
    check(Agree::Everything, |_, stream| stream.group_by_key().count().to_stream().to("out"));
    check(Agree::Everything, |_, stream| {
        stream.group_by_key().reduce(|a, b| Some(a? + b?)).to_stream().to("out");
    });
    check(Agree::Everything, |_, stream| {
        let sum = |_: Option<&String>, n: Option<&i64>, sum: Option<&i64>| Some(sum? * 3 + n?);
        let sum =
            move |key: Option<&String>, n: Option<&i64>, s: Option<&i64>| sum(key, n, s).map(|s| s % 1_009);
        stream.group_by_key().aggregate(|| Some(1_i64), sum).to_stream().to("out");
    });
}

#[test]
fn groups_by_another_key_meet_behind_a_topic() {
    check(Agree::Everything, |_, stream| {
        let by_value = stream.group_by(|_, n| n.map(|n| format!("v{}", n % 10)));
        by_value.count().to_stream().to("out");
    });
    check(Agree::Last, |_, stream| {
        let by_value = stream.group_by(|_, n| n.map(|n| format!("v{}", n % 10)));
        by_value.reduce(|a, b| a.max(b).copied()).to_stream().to("out");
    });
}

#[test]
fn tables_are_filtered_mapped_and_regrouped() {
    check(Agree::Everything, |_, stream| {
        let table = stream.to_table().filter(|_, n| n.is_some_and(|n| n % 2 == 0));
        table.map_values(|_, n| n.map(|n| n + 1)).to_stream().to("out");
    });
    check(Agree::Last, |_, stream| {
        stream
            .to_table()
            .group_by(|_, n| (n.map(|n| format!("g{}", n % 4)), n.copied()))
            .aggregate(|| Some(0_i64), |_, n, sum| Some(sum? + n?), |_, n, sum| Some(sum? - n?))
            .to_stream()
            .to("out");
    });
}

#[test]
fn a_repartitioned_stream_is_read_by_key() {
    check(Agree::Everything, |_, stream| {
        let by_value = stream.select_key(|_, n| n.map(|n| format!("v{}", n % 5)));
        by_value.repartition().group_by_key().count().to_stream().to("out");
    });
}

#[test]
fn joins_continue_after_a_restart() {
    use sluice::streams::kstream::JoinWindows;
    check(Agree::Everything, |_, stream| {
        let table = stream.filter(|_, n| n.is_some_and(|n| n % 4 == 0)).to_table();
        stream.left_join_table(&table, |n, row| Some(n? * 1_000 + row.unwrap_or(&0))).to("out");
    });
    check(Agree::Everything, |_, stream| {
        let other = stream.filter(|_, n| n.is_some_and(|n| n % 2 == 0));
        let windows = JoinWindows::of_time_difference_with_no_grace(Duration::from_millis(20));
        stream.join(&other, |a, b| Some(a? * 1_000 + b?), windows).to("out");
    });
    check(Agree::Last, |_, stream| {
        let even = stream.filter(|_, n| n.is_some_and(|n| n % 2 == 0)).to_table();
        let odd = stream.filter(|_, n| n.is_some_and(|n| n % 2 == 1)).to_table();
        even.outer_join(&odd, |a, b| Some(a.unwrap_or(&-1) * 1_000 + b.unwrap_or(&-1))).to_stream().to("out");
    });
}
