//! The runtime over the embedded log: repartitioning, exactly-once across restarts, crashes and moving tasks.
//!
//! The topology counts words; each count is written once as `n`, so the outputs of a word must read 1, 2, 3, … without
//! a gap or a repeat, whatever happened in between.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{ClientSupplier, Consumer, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    config::{ProcessingGuarantee, StreamsConfig},
    error::Result,
    internals::{StreamThread, TaskOptions, ThreadParts, create_internal_topics, plan_partitions},
    metrics::StreamsMetrics,
    processor::{Processor, ProcessorContext, StoreId, processor_supplier},
    record::{Headers, ProducerRecord, Record, TopicPartition},
    runtime::{KafkaStreams, RunOptions, State, ThreadStatus},
    serdes::HasSerde,
    stores::{StoreBuilder, StoreKind},
    topology::{SinkSpec, SinkTopic, SourceSpec, Topology, TopologyBuilder, serde_decoder, serde_encoder},
};

struct ByValue;

impl Processor<String, String, String, String> for ByValue {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, String>,
        record: Record<String, String>,
    ) -> Result<()> {
        let key = record.value.clone();
        context.forward(Record { key, ..record })
    }
}

#[derive(Default)]
struct Count {
    store: Option<StoreId>,
}

impl Processor<String, String, String, i64> for Count {
    fn init(&mut self, context: &ProcessorContext<'_, String, i64>) -> Result<()> {
        self.store = Some(context.state_store("counts")?);
        Ok(())
    }

    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, i64>,
        record: Record<String, String>,
    ) -> Result<()> {
        let (Some(store), Some(key)) = (self.store, record.key.clone()) else { return Ok(()) };
        let counts = context.key_value_store::<String, i64>(store)?;
        let count = counts.get(&key)?.map_or(1, |before| *before + 1);
        counts.put(&key, count)?;
        context.forward(record.with_value(Some(count)))
    }
}

fn topology() -> Topology {
    let mut builder = TopologyBuilder::new();
    let text = serde_decoder(String::serde(), String::serde());
    builder.add_source("words", SourceSpec::new(["words"], text.clone())).unwrap();
    builder.add_processor("by-value", processor_supplier(|| ByValue), &["words"]).unwrap();
    builder.add_repartition_topic("by-value-repartition", None);
    let internal = SinkSpec {
        topic: SinkTopic::Fixed("by-value-repartition".into()),
        encoder: serde_encoder(String::serde(), String::serde()),
        partitioner: None,
        internal: true,
    };
    builder.add_sink("to-repartition", internal, &["by-value"]).unwrap();
    let mut source = SourceSpec::new(["by-value-repartition"], text);
    source.internal = true;
    builder.add_source("from-repartition", source).unwrap();
    builder.add_processor("count", processor_supplier(Count::default), &["from-repartition"]).unwrap();
    let kind = StoreKind::KeyValue { timestamped: true };
    builder
        .add_state_store(StoreBuilder::new("counts", kind, String::serde(), i64::serde()), &["count"])
        .unwrap();
    let out = SinkSpec {
        topic: SinkTopic::Fixed("counted".into()),
        encoder: serde_encoder(String::serde(), i64::serde()),
        partitioner: None,
        internal: false,
    };
    builder.add_sink("out", out, &["count"]).unwrap();
    builder.build("word-count").unwrap()
}

fn log() -> Arc<EmbeddedLog> {
    let log = Arc::new(EmbeddedLog::in_memory());
    let topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: 3,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    log.admin().unwrap().create_topics(&[topic("words"), topic("counted")]).unwrap();
    log
}

fn write_words(log: &EmbeddedLog, range: std::ops::Range<usize>) {
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for n in range {
        producer
            .send(ProducerRecord {
                topic: "words".into(),
                partition: None,
                key: Some(Bytes::from(format!("k{n}"))),
                value: Some(Bytes::from(format!("w{}", n % 17))),
                timestamp: Some(n as i64),
                headers: Headers::EMPTY,
            })
            .unwrap();
    }
    producer.flush().unwrap();
}

/// Every output, by word, in the order of its partition.
fn outputs(log: &EmbeddedLog) -> BTreeMap<String, Vec<i64>> {
    let mut consumer =
        log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
    let partitions: Vec<TopicPartition> = (0..3).map(|p| TopicPartition::new("counted", p)).collect();
    consumer.assign(&partitions.iter().map(|p| (p.clone(), Some(0))).collect::<Vec<_>>()).unwrap();
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        if records.is_empty() {
            return found;
        }
        for record in records {
            let word = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
            let count = i64::from_be_bytes(record.value.unwrap().as_ref().try_into().unwrap());
            found.entry(word).or_default().push(count);
        }
    }
}

fn assert_exactly_once(log: &EmbeddedLog, words: usize) {
    let found = outputs(log);
    for word in 0..17 {
        let expected: Vec<i64> = (1..=((words + 16 - word) / 17) as i64).collect();
        assert_eq!(found.get(&format!("w{word}")), Some(&expected), "word w{word}");
    }
}

fn run_until_caught_up(streams: &mut KafkaStreams) {
    let targets = streams.input_end_offsets().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !streams.is_caught_up(&targets).unwrap() {
        assert!(Instant::now() < deadline, "not caught up: {:?} {:?}", streams.error(), streams.statuses());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn config(threads: usize, state: &tempfile::TempDir) -> StreamsConfig {
    StreamsConfig {
        state_dir: state.path().to_owned(),
        save_rows_min: 1,
        save_age_max: Duration::from_millis(20),
        num_stream_threads: threads,
        commit_interval: Duration::from_millis(10),
        ..StreamsConfig::default()
    }
}

#[test]
fn counts_through_a_repartition_topic_across_a_restart() {
    for (threads, guarantee) in [
        (1, ProcessingGuarantee::ExactlyOnce),
        (3, ProcessingGuarantee::ExactlyOnce),
        (2, ProcessingGuarantee::AtLeastOnce),
    ] {
        let log = log();
        let state = tempfile::tempdir().unwrap();
        write_words(&log, 0..1_000);
        for upto in [1_000, 3_000] {
            write_words(&log, if upto == 1_000 { 0..0 } else { 1_000..upto });
            let mut config = config(threads, &state);
            config.processing_guarantee = guarantee;
            let mut streams = KafkaStreams::new(topology(), log.clone(), RunOptions::new(config));
            streams.start().unwrap();
            run_until_caught_up(&mut streams);
            assert_eq!(streams.state(), State::Running);
            assert!(streams.close(Duration::from_secs(10)), "closes in time");
            assert_eq!(streams.state(), State::NotRunning);
            assert!(streams.totals().processed > 0, "what was done is known after the close");
            assert_exactly_once(&log, upto);
        }
    }
}

/// A join of the group under the name of the application's thread, as by another process, or as by a join of its own whose answer was lost.
fn displace(log: &EmbeddedLog, session: Duration) -> Box<dyn Consumer> {
    let config = ConsumerConfig {
        group_id: Some("word-count".into()),
        group_instance_id: Some("word-count-0-0".into()),
        session_timeout: Some(session),
        ..ConsumerConfig::default()
    };
    let mut other = log.consumer(&config).unwrap();
    other.subscribe(&["words".to_owned(), "word-count-by-value-repartition".to_owned()]).unwrap();
    other.poll(Duration::from_millis(50)).unwrap();
    other
}

#[test]
fn a_thread_whose_name_nobody_has_after_all_goes_on() {
    let (log, state) = (log(), tempfile::tempdir().unwrap());
    write_words(&log, 0..1_000);
    let mut streams = KafkaStreams::new(topology(), log.clone(), RunOptions::new(config(1, &state)));
    streams.start().unwrap();
    run_until_caught_up(&mut streams);
    // Nobody speaks for the member: its session ends.
    let _other = displace(&log, Duration::from_millis(400));
    write_words(&log, 1_000..2_000);
    run_until_caught_up(&mut streams);
    assert!(streams.close(Duration::from_secs(10)), "closes in time");
    assert_exactly_once(&log, 2_000);
}

#[test]
fn a_thread_whose_name_another_process_has_ends_the_application() {
    let (log, state) = (log(), tempfile::tempdir().unwrap());
    // With something to count, having caught up means having joined.
    write_words(&log, 0..1_000);
    let config = StreamsConfig { task_timeout: Duration::from_secs(1), ..config(1, &state) };
    let mut streams = KafkaStreams::new(topology(), log.clone(), RunOptions::new(config));
    streams.start().unwrap();
    run_until_caught_up(&mut streams);
    let mut other = displace(&log, Duration::from_secs(20));
    let deadline = Instant::now() + Duration::from_secs(30);
    while streams.state() != State::Error {
        assert!(Instant::now() < deadline, "it goes on beside the other: {:?}", streams.statuses());
        other.poll(Duration::from_millis(20)).unwrap();
    }
    let error = streams.error().unwrap();
    assert!(error.contains("word-count-0-0") && error.contains("give each its own"), "{error}");
}

#[test]
fn a_missing_source_topic_is_named() {
    let log = Arc::new(EmbeddedLog::in_memory());
    let state = tempfile::tempdir().unwrap();
    let mut streams = KafkaStreams::new(topology(), log, RunOptions::new(config(1, &state)));
    let error = streams.start().unwrap_err().to_string();
    assert!(error.contains("source topics do not exist: words"), "{error}");
}

/// A thread dies between any two steps, without a word; its successor of the same name goes on.
#[test]
fn a_thread_that_dies_anywhere_is_continued_exactly_once() {
    let log = log();
    let topology = Arc::new(topology());
    let admin = log.admin().unwrap();
    let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).unwrap());
    create_internal_topics(&topology, &plan, -1, admin.as_ref()).unwrap();
    let counts = plan.partitions.clone();
    let now = Arc::new(AtomicI64::new(1_000));
    let spawn = |state: &tempfile::TempDir| {
        let config = Arc::new(StreamsConfig {
            application_id: "word-count".into(),
            poll: Duration::ZERO,
            max_poll_records: 50,
            ..config(1, state)
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
            clock: Arc::new(move || now.fetch_add(3, Ordering::Relaxed)),
            metrics: StreamsMetrics::default(),
            status: Arc::new(Mutex::new(ThreadStatus::default())),
        })
        .unwrap()
    };
    let mut written = 0;
    let mut random = HashMap::<(), ()>::new().capacity() as u64 + 0x9e37_79b9;
    for life in 0..30 {
        write_words(&log, written..written + 100);
        written += 100;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(life);
        // Its disk dies with it.
        let mut thread = spawn(&tempfile::tempdir().unwrap());
        for _ in 0..random >> 33 & 31 {
            thread.run_once().unwrap();
        }
        thread.abandon();
    }
    let state = tempfile::tempdir().unwrap();
    let mut thread = spawn(&state);
    let mut idle = 0;
    while idle < 50 {
        idle = if thread.run_once().unwrap() { 0 } else { idle + 1 };
    }
    thread.close().unwrap();
    assert_exactly_once(&log, written);
}
