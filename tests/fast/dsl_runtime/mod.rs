//! Every operator of the DSL in the real runtime: three partitions, two threads, a thread that dies in the middle, a restart after that.
//!
//! The oracle is the test driver with the same partitions, which runs the same tasks without threads, commits to a log, restoring or
//! dying. Each case writes to a topic of its own, `out-<case>`; [`Agree`] says how much of that must be equal. A last test holds the
//! tables to the sources: an operator without a case fails it.

mod aggregates;
mod compare;
mod joins;
mod stateless;
mod tables;
mod windows;

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    config::StreamsConfig,
    error::StreamsError,
    internals::LogCall,
    internals::input_topics,
    kstream::{GlobalKTable, KStream, KTable, StreamsBuilder, TopologyConfig},
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::{KafkaStreams, RunOptions, State},
    test_utils::{DriverOptions, Partitions, TopologyTestDriver},
    topology::Topology,
};

use self::compare::{Agree, Output, Outputs, difference};

const PARTITIONS: i32 = 3;
/// Records per input topic; half of them before the restart.
const RECORDS: i64 = 240;

/// An operator, what it is built of, and how much of its output is fixed.
pub struct Case {
    name: &'static str,
    agree: Agree,
    build: fn(&Inputs, &str),
}

/// The topics a case may read. A topic is read once, however many cases ask for it.
pub struct Inputs {
    builder: StreamsBuilder,
    table: OnceCell<KTable<String, i64>>,
    rows: OnceCell<KTable<String, i64>>,
    global: OnceCell<GlobalKTable<String, i64>>,
}

impl Inputs {
    fn new(config: TopologyConfig) -> Self {
        Self {
            builder: StreamsBuilder::with_config(config),
            table: OnceCell::new(),
            rows: OnceCell::new(),
            global: OnceCell::new(),
        }
    }

    /// Keys `k0` to `k12` or null, numbers from 0 to 100 or null.
    fn stream(&self) -> KStream<String, i64> {
        self.builder.stream("in")
    }

    /// Another stream of the same kind.
    fn other(&self) -> KStream<String, i64> {
        self.builder.stream("other")
    }

    /// A table of the same kind.
    fn table(&self) -> &KTable<String, i64> {
        self.table.get_or_init(|| self.builder.table("table"))
    }

    /// Another table of the same kind.
    fn rows(&self) -> &KTable<String, i64> {
        self.rows.get_or_init(|| self.builder.table("rows"))
    }

    /// A global table, complete before anything starts.
    fn global(&self) -> &GlobalKTable<String, i64> {
        self.global.get_or_init(|| self.builder.global_table("global"))
    }
}

const INPUTS: [&str; 4] = ["in", "other", "table", "rows"];

/// The records of all inputs with numbers in `range`. No two topics share a timestamp: which of them goes first must not be chance. Within
/// a topic times are out of order by up to 50.
fn records(range: std::ops::Range<i64>) -> Vec<ProducerRecord> {
    let mut records = Vec::new();
    for n in range {
        for (index, topic) in INPUTS.iter().enumerate() {
            let mixed = (n * 7_919 + index as i64 * 104_729) % 1_009;
            let key = (n % 41 != 40).then(|| format!("k{}", mixed % 13));
            let partition = match &key {
                Some(key) => sluice::streams::client::partition_for_key(key.as_bytes(), PARTITIONS),
                None => (n % i64::from(PARTITIONS)) as i32,
            };
            let mut headers = Headers::EMPTY;
            if n % 7 == 0 {
                headers.add("n", Some(n.to_string()));
            }
            records.push(ProducerRecord {
                topic: (*topic).into(),
                partition: Some(partition),
                key: key.map(Bytes::from),
                value: (n % 17 != 16).then(|| Bytes::copy_from_slice(&(mixed % 101).to_be_bytes())),
                timestamp: Some(4 * (100 + n * 10 - mixed % 5 * 10) + index as i64),
                headers,
            });
        }
    }
    records
}

fn global_records() -> Vec<ProducerRecord> {
    let record = |n: i64| {
        let key = format!("k{n}");
        ProducerRecord {
            topic: "global".into(),
            partition: Some(sluice::streams::client::partition_for_key(key.as_bytes(), PARTITIONS)),
            key: Some(key.into()),
            value: Some(Bytes::copy_from_slice(&(n * 1_000).to_be_bytes())),
            timestamp: Some(0),
            headers: Headers::EMPTY,
        }
    };
    (0..9).map(record).collect()
}

fn topology(cases: &[Case], config: &TopologyConfig) -> Topology {
    let inputs = Inputs::new(config.clone());
    for case in cases {
        (case.build)(&inputs, &format!("out-{}", case.name));
    }
    inputs.builder.build("dsl").unwrap()
}

fn only_inputs_of(topology: &Topology, records: Vec<ProducerRecord>) -> Vec<ProducerRecord> {
    let topics = input_topics(topology);
    records.into_iter().filter(|record| topics.contains(&record.topic)).collect()
}

fn in_driver(topology: Topology, topics: &[String]) -> Outputs {
    let batches = [global_records(), records(0..RECORDS / 2), records(RECORDS / 2..RECORDS)]
        .map(|batch| only_inputs_of(&topology, batch));
    let options =
        DriverOptions { partitions: Some(Partitions::each(PARTITIONS)), ..DriverOptions::default() };
    let driver = TopologyTestDriver::with_options(topology, options).unwrap();
    for batch in batches {
        driver.pipe_records(batch).unwrap();
    }
    let mut outputs = Outputs::new();
    for topic in topics {
        for record in driver.read_records(topic) {
            let partition = TopicPartition::new(record.topic, record.partition.unwrap());
            outputs.entry(partition).or_default().push(Output {
                key: record.key,
                value: record.value,
                timestamp: record.timestamp.unwrap(),
                headers: record.headers,
            });
        }
    }
    outputs
}

/// A log whose n-th commit from when the fuse is lit kills the thread that asked for it: before it is done, or after, so that only the
/// answer is lost.
fn log_with_fuse(fuse: Arc<AtomicI64>, answer_lost: bool) -> Arc<EmbeddedLog> {
    let faults = move |call: LogCall, done: bool| {
        if call == LogCall::CommitTransaction
            && done == answer_lost
            && fuse.fetch_sub(1, Ordering::SeqCst) == 1
        {
            return Err(StreamsError::Fatal("the thread dies here".to_owned()));
        }
        Ok(())
    };
    let options = EmbeddedOptions { faults: Some(Arc::new(faults)), ..EmbeddedOptions::default() };
    Arc::new(EmbeddedLog::in_memory_with(options))
}

fn wait_until(streams: &KafkaStreams, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not {what}: {:?} {:?}", streams.error(), streams.statuses());
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn in_runtime(build: &dyn Fn() -> Topology, topics: &[String], answer_lost: bool) -> Outputs {
    let fuse = Arc::new(AtomicI64::new(0));
    let log = log_with_fuse(fuse.clone(), answer_lost);
    let new_topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: PARTITIONS,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    let names = INPUTS.into_iter().chain(["global"]).chain(topics.iter().map(String::as_str));
    log.admin().unwrap().create_topics(&names.map(new_topic).collect::<Vec<_>>()).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    let mut write = |records: Vec<ProducerRecord>| {
        records.into_iter().for_each(|record| producer.send(record).unwrap());
        producer.flush().unwrap();
    };
    let start = || {
        let config = StreamsConfig {
            state_dir: state.path().to_owned(),
            num_stream_threads: 2,
            commit_interval: Duration::from_millis(1),
            max_poll_records: 10,
            save_rows_min: 1,
            save_age_max: Duration::from_millis(5),
            emit_interval_ms: 0,
            ..StreamsConfig::default()
        };
        let mut streams = KafkaStreams::new(build(), log.clone(), RunOptions::new(config));
        streams.start().unwrap();
        streams
    };
    let finish = |mut streams: KafkaStreams| {
        let targets = streams.input_end_offsets().unwrap();
        wait_until(&streams, "caught up", || streams.is_caught_up(&targets).unwrap());
        assert!(streams.close(Duration::from_secs(20)), "closes in time");
    };
    write(global_records());
    write(records(0..RECORDS / 2));
    fuse.store(2, Ordering::SeqCst);
    let mut dies = start();
    wait_until(&dies, "dead", || dies.state() == State::Error);
    dies.close(Duration::from_secs(20));
    finish(start());
    write(records(RECORDS / 2..RECORDS));
    finish(start());
    read(&log, topics)
}

fn read(log: &EmbeddedLog, topics: &[String]) -> Outputs {
    let mut consumer =
        log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
    let partitions: Vec<_> = topics
        .iter()
        .flat_map(|topic| (0..PARTITIONS).map(move |p| (TopicPartition::new(topic.as_str(), p), Some(0))))
        .collect();
    consumer.assign(&partitions).unwrap();
    let mut outputs = Outputs::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        if records.is_empty() {
            return outputs;
        }
        for record in records {
            outputs.entry(TopicPartition::new(record.topic, record.partition)).or_default().push(Output {
                key: record.key,
                value: record.value,
                timestamp: record.timestamp,
                headers: record.headers,
            });
        }
    }
}

fn check_with(cases: &[Case], config: TopologyConfig, answer_lost: bool) {
    let topics: Vec<String> = cases.iter().map(|case| format!("out-{}", case.name)).collect();
    let expected = in_driver(topology(cases, &config), &topics);
    let found = in_runtime(&|| topology(cases, &config), &topics, answer_lost);
    let mut wrong = Vec::new();
    for (case, topic) in cases.iter().zip(&topics) {
        let of_topic = |outputs: &Outputs| -> Outputs {
            outputs.iter().filter(|(p, _)| *p.topic == **topic).map(|(p, o)| (p.clone(), o.clone())).collect()
        };
        // With record caches a row is forwarded once per commit, and when that is, is chance.
        let agree = if config.caching { Agree::Last } else { case.agree };
        if let Some(difference) = difference(agree, &of_topic(&found), &of_topic(&expected)) {
            wrong.push(format!("{}: {difference}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs the cases without record caches, output for output; the thread dies before its commit.
fn check(cases: &[Case]) {
    check_with(cases, TopologyConfig { caching: false, ..TopologyConfig::default() }, false);
}

/// Runs the cases with record caches and all optimisations; the thread dies after its commit, not knowing of it.
fn check_cached(cases: &[Case]) {
    check_with(cases, TopologyConfig::default().optimized(), true);
}

/// Whoever adds an operator adds a case.
#[test]
fn every_operator_has_a_case() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read_all = |folder: &str| -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                text += &std::fs::read_to_string(path).unwrap();
            }
        }
        text
    };
    let cases = read_all("tests/fast/dsl_runtime");
    let sources = read_all("src/streams/kstream") + &read_all("src/streams/kstream/foreign_key_join");
    let handles =
        ["KStream", "KTable", "KGroupedStream", "KGroupedTable", "CogroupedKStream", "BranchedKStream"];
    let mut operators = Vec::new();
    let mut of_handle = false;
    for line in sources.lines() {
        if line.starts_with("impl<") || line.starts_with("impl ") {
            let receiver = line.split("> ").nth(1).unwrap_or_default();
            of_handle = !line.contains(" for ")
                && handles
                    .iter()
                    .any(|handle| receiver.split('<').next().unwrap_or_default().ends_with(handle));
        }
        if let Some(rest) = line.strip_prefix("    pub fn ")
            && of_handle
        {
            let name = rest.split(['(', '<']).next().unwrap();
            // The forms of one operator: with options, with a name, with functions that may fail.
            let name = name.trim_start_matches("try_").trim_end_matches("_with").trim_end_matches("_named");
            operators.push(name.to_owned());
        }
    }
    operators.sort();
    operators.dedup();
    operators.retain(|name| name != "queryable_store_name");
    assert!(operators.len() > 40, "{operators:?}");
    let missing: Vec<&String> = operators
        .iter()
        .filter(|name| {
            !["", "_with", "_named"].iter().any(|form| cases.contains(&format!(".{name}{form}(")))
                && !cases.contains(&format!(".try_{name}("))
        })
        .collect();
    assert!(missing.is_empty(), "operators without a case in tests/fast/dsl_runtime: {missing:?}");
}
