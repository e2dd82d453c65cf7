//! Where sources begin, and stores that are filled from a topic of their own.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, OffsetReset, ProducerConfig, embedded::EmbeddedLog},
    config::StreamsConfig,
    error::Result,
    kstream::{Consumed, KStream, StreamsBuilder},
    processor::{Processor, ProcessorContext, processor_supplier},
    record::{Headers, ProducerRecord, Record, TopicPartition},
    runtime::{KafkaStreams, RunOptions, State},
    serdes::HasSerde,
    stores::{StoreBuilder, StoreKind},
    topology::{SinkSpec, SinkTopic, SourceSpec, Topology, TopologyBuilder, serde_decoder, serde_encoder},
};

fn log(topics: &[&str]) -> Arc<EmbeddedLog> {
    let log = Arc::new(EmbeddedLog::in_memory());
    let topic = |name: &&str| NewTopic {
        name: (*name).into(),
        partitions: 2,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    log.admin().unwrap().create_topics(&topics.iter().map(topic).collect::<Vec<_>>()).unwrap();
    log
}

fn write(log: &EmbeddedLog, topic: &str, rows: &[(&str, &str)]) {
    // Prices are there before the orders that need them.
    let at = if topic == "orders" { 2 } else { 1 };
    send(log, topic, rows.iter().map(|(key, value)| (*key, *value, at)));
}

/// Records whose keys are their values, at times.
fn write_at(log: &EmbeddedLog, topic: &str, rows: &[(&str, i64)]) {
    send(log, topic, rows.iter().map(|(value, at)| (*value, *value, *at)));
}

fn send<'a>(log: &EmbeddedLog, topic: &str, rows: impl Iterator<Item = (&'a str, &'a str, i64)>) {
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for (key, value, at) in rows {
        let record = ProducerRecord {
            topic: topic.into(),
            partition: None,
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            timestamp: Some(at),
            headers: Headers::EMPTY,
        };
        producer.send(record).unwrap();
    }
    producer.flush().unwrap();
}

/// Values written to `out`, sorted.
fn outputs(log: &EmbeddedLog) -> Vec<String> {
    let mut consumer =
        log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
    consumer.assign(&[0, 1].map(|p| (TopicPartition::new("out", p), Some(0)))).unwrap();
    let records = consumer.poll(Duration::ZERO).unwrap().records;
    let mut values: Vec<String> = records
        .iter()
        .map(|r| String::from_utf8_lossy(r.value.as_deref().unwrap_or_default()).into_owned())
        .collect();
    values.sort();
    values
}

fn start(
    log: &Arc<EmbeddedLog>,
    topology: Topology,
    offset_reset: OffsetReset,
    state: &tempfile::TempDir,
) -> KafkaStreams {
    let config = StreamsConfig {
        state_dir: state.path().to_owned(),
        commit_interval: Duration::from_millis(5),
        offset_reset,
        ..StreamsConfig::default()
    };
    let mut streams = KafkaStreams::new(topology, log.clone(), RunOptions::new(config));
    streams.start().unwrap();
    streams
}

fn wait_until(streams: &KafkaStreams, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{:?} {:?}", streams.error(), streams.statuses());
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn wait_until_caught_up(streams: &KafkaStreams) {
    let targets = streams.input_end_offsets().unwrap();
    wait_until(streams, || streams.is_caught_up(&targets).unwrap());
}

#[test]
fn each_source_starts_where_it_says() {
    let log = log(&["early", "late", "default", "out"]);
    for topic in ["early", "late", "default"] {
        write(&log, topic, &[("k", &format!("{topic} before"))]);
    }
    let builder = StreamsBuilder::new();
    let read = |topic: &str, reset: Option<OffsetReset>| -> KStream<String, String> {
        let consumed = Consumed::default();
        builder.stream_with(
            &[topic],
            reset.into_iter().fold(consumed, |consumed, reset| consumed.with_offset_reset(reset)),
        )
    };
    let streams =
        [("early", Some(OffsetReset::Earliest)), ("late", Some(OffsetReset::Latest)), ("default", None)]
            .map(|(topic, reset)| read(topic, reset));
    streams.iter().for_each(|stream| stream.to("out"));
    let state = tempfile::tempdir().unwrap();
    let mut streams = start(&log, builder.build("resets").unwrap(), OffsetReset::Latest, &state);
    wait_until(&streams, || streams.state() == State::Running);
    for topic in ["early", "late", "default"] {
        write(&log, topic, &[("k", &format!("{topic} after"))]);
    }
    let expected = ["default after", "early after", "early before", "late after"];
    wait_until(&streams, || outputs(&log).len() >= expected.len());
    assert!(streams.close(Duration::from_secs(10)));
    assert_eq!(outputs(&log), expected);
}

/// An application that begins at the end still reads its own repartition topics from the beginning.
#[test]
fn topics_inside_the_application_are_read_from_their_beginning() {
    let log = log(&["in", "out"]);
    write(&log, "in", &[("a", "x"), ("b", "x"), ("c", "x")]);
    let builder = StreamsBuilder::new();
    let consumed = Consumed::default().with_offset_reset(OffsetReset::Earliest);
    let stream: KStream<String, String> = builder.stream_with(&["in"], consumed);
    let counts = stream.group_by(|_, value| value.cloned()).count();
    counts.to_stream().map_values(|_, n| n.map(i64::to_string)).to("out");
    let state = tempfile::tempdir().unwrap();
    let mut streams = start(&log, builder.build("inside").unwrap(), OffsetReset::Latest, &state);
    wait_until(&streams, || outputs(&log).last().is_some_and(|last| last == "3"));
    assert!(streams.close(Duration::from_secs(10)));
}

/// KIP-1106: a source that starts an hour ago leaves out what is older, and one that finds nothing younger starts at the end.
#[test]
fn a_source_starts_as_long_ago_as_it_says() {
    let log = log(&["in", "old", "out"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let hours_ago = |hours: i64| now - hours * 3_600_000;
    write_at(&log, "in", &[("ancient", hours_ago(48)), ("recent", hours_ago(1)), ("new", now)]);
    write_at(&log, "old", &[("forgotten", hours_ago(48))]);
    let builder = StreamsBuilder::new();
    let day = OffsetReset::ByDuration(Duration::from_secs(86_400));
    let consumed = Consumed::default().with_offset_reset(day);
    builder.stream_with::<String, String>(&["in"], consumed).to("out");
    // The other one has it from the application.
    builder.stream::<String, String>("old").to("out");
    let state = tempfile::tempdir().unwrap();
    let mut streams = start(&log, builder.build("ages").unwrap(), day, &state);
    wait_until(&streams, || streams.state() == State::Running);
    write_at(&log, "old", &[("fresh", now)]);
    wait_until(&streams, || outputs(&log).len() >= 3);
    assert!(streams.close(Duration::from_secs(10)));
    assert_eq!(outputs(&log), ["fresh", "new", "recent"]);
}

#[test]
fn a_source_without_a_policy_refuses_to_guess() {
    let log = log(&["in", "out"]);
    let builder = StreamsBuilder::new();
    let consumed = Consumed::default().with_offset_reset(OffsetReset::None);
    let stream: KStream<String, String> = builder.stream_with(&["in"], consumed);
    stream.to("out");
    let state = tempfile::tempdir().unwrap();
    let mut streams = start(&log, builder.build("none").unwrap(), OffsetReset::Earliest, &state);
    wait_until(&streams, || streams.state() == State::Error);
    let error = streams.error().unwrap();
    assert!(error.contains("in-0 has no committed offset and its source has offset reset `none`"), "{error}");
    streams.close(Duration::from_secs(10));
}

/// Puts what it is given.
struct Fill;

impl Processor<String, String, (), ()> for Fill {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, (), ()>,
        record: Record<String, String>,
    ) -> Result<()> {
        let prices = context.key_value_store::<String, String>("prices")?;
        prices.put(&record.key.unwrap_or_default(), record.value.as_deref().cloned())
    }
}

/// Looks the price of each record's key up.
struct Price;

impl Processor<String, String, String, String> for Price {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, String>,
        record: Record<String, String>,
    ) -> Result<()> {
        let prices = context.key_value_store::<String, String>("prices")?;
        let price = prices.get(&record.key.clone().unwrap_or_default())?;
        let price = price.as_deref().map_or("?", String::as_str);
        let name = record.value.as_deref().cloned().unwrap_or_default();
        context.forward(record.with_value(Some(format!("{name} at {price}"))))
    }
}

fn priced() -> Topology {
    let mut builder = TopologyBuilder::new();
    let texts = || serde_decoder(String::serde(), String::serde());
    let store = StoreBuilder::new(
        "prices",
        StoreKind::KeyValue { timestamped: true },
        String::serde(),
        String::serde(),
    );
    builder
        .add_read_only_state_store(
            store,
            "price-source",
            SourceSpec::new(["prices"], texts()),
            "fill",
            processor_supplier(|| Fill),
        )
        .unwrap();
    builder.add_source("orders", SourceSpec::new(["orders"], texts())).unwrap();
    builder.add_processor("price", processor_supplier(|| Price), &["orders"]).unwrap();
    builder.connect_processor_and_state_store("price", "prices").unwrap();
    let out = SinkSpec {
        topic: SinkTopic::Fixed("out".into()),
        encoder: serde_encoder(String::serde(), String::serde()),
        partitioner: None,
        internal: false,
    };
    builder.add_sink("out", out, &["price"]).unwrap();
    builder.build("priced").unwrap()
}

/// The store of KIP-813: no changelog of its own; with its state files gone it is complete again after a restart.
#[test]
fn a_read_only_store_is_filled_from_its_topic() {
    let log = log(&["prices", "orders", "out"]);
    for (price, order) in [(Some("3"), "first"), (None, "second")] {
        if let Some(price) = price {
            write(&log, "prices", &[("tea", price), ("rum", "9")]);
        }
        write(&log, "orders", &[("tea", order)]);
        let state = tempfile::tempdir().unwrap();
        let mut streams = start(&log, priced(), OffsetReset::Earliest, &state);
        wait_until_caught_up(&streams);
        assert!(streams.close(Duration::from_secs(10)));
    }
    assert_eq!(outputs(&log), ["first at 3", "second at 3"]);
    let topics = log.admin().unwrap().list_topics().unwrap();
    assert!(!topics.iter().any(|topic| topic.ends_with("-changelog")), "{topics:?}");
}
