//! The Processor API beyond the DSL's operators: stores that come with processors, typed handles, and records the log refuses.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    config::{ProcessingGuarantee, StreamsConfig},
    error::{ProcessingError, Result, StreamsError},
    kstream::{Consumed, Materialized, Named, Produced, StreamsBuilder},
    processor::{
        DropReason, ErrorHandlers, Processor, ProcessorContext, ProductionResponse, processor_supplier,
    },
    record::{Headers, ProducerRecord, Record, TopicPartition},
    runtime::{KafkaStreams, RunOptions, State},
    serdes::{AnySerde, HasSerde, Serde},
    stores::{StoreBuilder, StoreKind, VersionedPut},
    test_utils::TopologyTestDriver,
    topology::{SourceSpec, TopologyBuilder, serde_decoder},
};

fn numbers(name: &str, timestamped: bool) -> StoreBuilder {
    StoreBuilder::new(name, StoreKind::KeyValue { timestamped }, String::serde(), i64::serde())
}

/// Adds what it is given to a store that it brings.
struct Add(StoreBuilder);

impl Processor<String, i64, String, i64> for Add {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, i64>,
        record: Record<String, i64>,
    ) -> Result<()> {
        let (Some(key), Some(value)) = (record.key.clone(), record.value.clone()) else { return Ok(()) };
        let sums = context.key_value_store::<String, i64>(&self.0.name)?;
        let sum = sums.get(&key)?.map_or(0, |sum| *sum) + *value;
        sums.put(&key, sum)?;
        context.forward(record.with_value(Some(sum)))
    }

    fn stores(&self) -> Vec<StoreBuilder> {
        vec![self.0.clone()]
    }
}

#[test]
fn processors_that_bring_the_same_store_share_it() {
    let builder = StreamsBuilder::new();
    for topic in ["left", "right"] {
        let stream = builder.stream::<String, i64>(topic);
        stream.process(|| Add(numbers("sums", true)), Named::default(), &[]).to("out");
    }
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    driver.input_topic::<String, i64>("left").pipe_input(Some("k".into()), Some(3), 0).unwrap();
    driver.input_topic::<String, i64>("right").pipe_input(Some("k".into()), Some(4), 0).unwrap();
    let sums: Vec<_> = driver.output_topic::<String, i64>("out").read_key_values().unwrap();
    assert_eq!(sums, [(Some("k".into()), Some(3)), (Some("k".into()), Some(7))]);
}

#[test]
fn processors_that_describe_a_store_differently_are_refused() {
    let builder = StreamsBuilder::new();
    for (topic, timestamped) in [("left", true), ("right", false)] {
        let stream = builder.stream::<String, i64>(topic);
        stream.process(move || Add(numbers("sums", timestamped)), Named::default(), &[]).to("out");
    }
    let error = builder.build("app").err().unwrap().to_string();
    assert!(error.contains("a different store sums is already added"), "{error}");
}

#[test]
fn a_topology_without_the_dsl_brings_stores_too() {
    let mut builder = TopologyBuilder::new();
    let source = SourceSpec::new(["in"], serde_decoder(String::serde(), i64::serde()));
    builder.add_source("read", source).unwrap();
    let add = processor_supplier(|| Add(numbers("sums", true)));
    builder.add_processor("add", add, &["read"]).unwrap();
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    driver.input_topic::<String, i64>("in").pipe_input(Some("k".into()), Some(5), 9).unwrap();
    let row =
        driver.key_value_store("sums", |sums| sums.get_with_timestamp(&"k".to_owned())).unwrap().unwrap();
    assert_eq!((*row.value, row.timestamp), (5_i64, 9));
}

/// Does what it is told with stores of each kind.
struct Tour(Arc<Mutex<Vec<String>>>);

const SECOND: Duration = Duration::from_secs(1);

impl Processor<String, i64, (), ()> for Tour {
    fn process(&mut self, context: &ProcessorContext<'_, (), ()>, record: Record<String, i64>) -> Result<()> {
        let (key, n) = (record.key.unwrap(), *record.value.unwrap());
        let mut said = self.0.lock().unwrap();
        let mut say = |what: String| said.push(what);

        let rows = context.key_value_store::<String, i64>("rows")?;
        rows.put_with_timestamp(&"b".to_owned(), n, 5)?;
        rows.put(&"a".to_owned(), n + 1)?;
        say(format!("absent {:?}", rows.put_if_absent(&"a".to_owned(), 9)?));
        let list = |rows: Vec<(Arc<String>, Arc<i64>)>| -> Vec<String> {
            rows.into_iter().map(|(key, n)| format!("{key}{n}")).collect()
        };
        say(format!("all {:?}, back {:?}", list(rows.all()?), list(rows.reverse_all()?)));
        say(format!("range {:?}", list(rows.range(Some(&"b".to_owned()), None)?)));
        say(format!("prefix {:?}", list(rows.prefix_scan(b"a")?)));
        say(format!("deleted {:?}, left {}", rows.delete(&"a".to_owned())?, rows.approximate_num_entries()?));

        let windows = context.window_store::<String, i64>("windows")?;
        windows.put(&key, n, 1_000)?;
        windows.put(&key, n + 1, 2_000)?;
        say(format!("window {:?}", windows.fetch(&key, 1_000)?));
        let starts: Vec<_> =
            windows.backward_fetch(&key, 0, 5_000)?.into_iter().map(|row| row.start).collect();
        say(format!("backward {starts:?} of {}", windows.all()?.len()));

        let sessions = context.session_store::<String, i64>("sessions")?;
        sessions.put(&key, 0, 10, n)?;
        sessions.put(&key, 20, 30, n)?;
        sessions.remove(&key, 0, 10)?;
        let ends: Vec<_> = sessions.fetch(&key)?.into_iter().map(|row| row.end).collect();
        say(format!("sessions {ends:?}, found {}", sessions.find_sessions(&key, 25, 100)?.len()));

        let versions = context.versioned_store::<String, i64>("versions")?;
        assert_eq!(versions.put(&key, n, 100)?, VersionedPut::Latest);
        assert_eq!(versions.put(&key, n + 1, 200)?, VersionedPut::Latest);
        let then = versions.get_as_of(&key, 150)?.unwrap();
        say(format!("then {} until {:?}", then.value, then.valid_to));

        // Another kind, other types, a store that is not connected.
        let message = |error: StreamsError| error.to_string();
        say(message(context.window_store::<String, i64>("rows")?.all().err().unwrap()));
        say(message(
            context.key_value_store::<String, String>("rows")?.put(&key, "x".to_owned()).err().unwrap(),
        ));
        say(message(context.key_value_store::<i64, i64>("rows")?.get(&1).err().unwrap()));
        say(message(context.key_value_store::<String, i64>("strange").err().unwrap()));
        let rates = context.key_value_store::<String, i64>("rates")?;
        say(format!("rate {:?}", rates.get(&"usd".to_owned())?));
        say(message(rates.put(&"usd".to_owned(), 1).err().unwrap()));
        Ok(())
    }

    fn stores(&self) -> Vec<StoreBuilder> {
        let of = |name: &str, kind| StoreBuilder::new(name, kind, String::serde(), i64::serde());
        let window = StoreKind::Window {
            retention: 100 * SECOND,
            window_size: SECOND,
            duplicates: false,
            timestamped: true,
            time_ordered: false,
        };
        vec![
            numbers("rows", true),
            of("windows", window),
            of("sessions", StoreKind::Session { retention: 100 * SECOND, time_ordered: false }),
            of("versions", StoreKind::Versioned { history: 100 * SECOND }),
        ]
    }
}

#[test]
fn handles_speak_the_types_of_their_stores() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let builder = StreamsBuilder::new();
    builder.global_table_with::<String, i64>("rates", Consumed::default(), Materialized::named("rates"));
    let tour = said.clone();
    builder.stream::<String, i64>("in").process(move || Tour(tour.clone()), "tour", &[]);
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    driver.input_topic::<String, i64>("rates").pipe_input(Some("usd".into()), Some(110), 0).unwrap();
    driver.input_topic::<String, i64>("in").pipe_input(Some("k".into()), Some(7), 50).unwrap();
    let expected = [
        "absent Some(8)",
        r#"all ["a8", "b7"], back ["b7", "a8"]"#,
        r#"range ["b7"]"#,
        r#"prefix ["a8"]"#,
        "deleted Some(8), left 1",
        "window Some(7)",
        "backward [2000, 1000] of 2",
        "sessions [30], found 1",
        "then 7 until Some(200)",
        "invalid topology: store rows is not a window store",
        "ClassCastException: store rows does not hold a alloc::string::String",
        "ClassCastException: the serde for alloc::string::String was given a value of another type",
        "invalid topology: processor tour has no access to store strange: connect it where the processor is added",
        "rate Some(110)",
        "UnsupportedOperationException: Global store rates is read only",
    ];
    assert_eq!(*said.lock().unwrap(), expected);
    let row =
        driver.key_value_store("rows", |rows| rows.get_with_timestamp(&"b".to_owned())).unwrap().unwrap();
    assert_eq!((*row.value, row.timestamp), (7_i64, 5));
}

/// Refuses numbers below zero.
struct Positive;

impl Serde<i64> for Positive {
    fn serialize(&self, value: &i64, out: &mut Vec<u8>) -> std::result::Result<(), ProcessingError> {
        if *value < 0 {
            return Err(ProcessingError::new("SerializationException", "below zero"));
        }
        out.extend(value.to_be_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> std::result::Result<i64, ProcessingError> {
        Ok(i64::from_be_bytes(bytes.try_into().unwrap_or_default()))
    }
}

fn continuing(letters: Option<&str>) -> ErrorHandlers {
    ErrorHandlers {
        production: Arc::new(|_, _| ProductionResponse::Continue),
        dead_letter_topic: letters.map(Arc::from),
        ..ErrorHandlers::default()
    }
}

#[test]
fn what_does_not_become_bytes_is_left_out_where_the_handler_says_so() {
    let run = |handlers: ErrorHandlers| {
        let builder = StreamsBuilder::new();
        let produced = Produced::default().with_value_serde(AnySerde::new::<i64>(Positive));
        builder.stream::<String, i64>("in").to_with("out", produced);
        let options = sluice::streams::test_utils::DriverOptions { handlers, ..Default::default() };
        let driver = TopologyTestDriver::with_options(builder.build("app").unwrap(), options).unwrap();
        let input = driver.input_topic::<String, i64>("in");
        let results: Vec<bool> = [1, -2, 3].map(|n| input.pipe_input(None, Some(n), 0).is_ok()).into();
        (results, driver)
    };
    let (results, driver) = run(continuing(Some("letters")));
    assert_eq!(results, [true, true, true]);
    assert_eq!(driver.read_records("out").len(), 2);
    assert_eq!(driver.dropped_by("KSTREAM-SINK-0000000001", "production_error"), 1);
    let letter = driver.read_record("letters").unwrap();
    assert_eq!(letter.value.as_deref(), Some(&(-2_i64).to_be_bytes()[..]), "the record as it was read");
    let header = |name: &str| letter.headers.last(name).and_then(|header| header.value.clone());
    assert_eq!(header("__streams.errors.exception").as_deref(), Some(&b"SerializationException"[..]));

    let (results, _) = run(ErrorHandlers::default());
    assert!(results[0] && !results[1], "the default stops");
    let retry = Arc::new(|_: &ProducerRecord, _: &ProcessingError| ProductionResponse::Retry);
    let (results, _) = run(ErrorHandlers { production: retry, ..ErrorHandlers::default() });
    assert!(results[0] && !results[1], "trying again what cannot end differently is stopping");
}

#[test]
fn a_record_for_no_partition_is_counted_as_dropped() {
    let builder = StreamsBuilder::new();
    let produced = Produced::default().with_partitioner(Arc::new(|_, _, _| Some(Vec::new())));
    builder.stream::<String, i64>("in").to_with("out", produced);
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    driver.input_topic::<String, i64>("in").pipe_input(None, Some(1), 0).unwrap();
    assert_eq!(driver.read_records("out").len(), 0);
    assert_eq!(driver.dropped_by("KSTREAM-SINK-0000000001", "no_partition"), 1);
}

/// A log whose topic `out` and the changelog take small records only.
fn narrow_log() -> Arc<EmbeddedLog> {
    let log = Arc::new(EmbeddedLog::in_memory());
    let topic = |name: &str, limit: Option<&str>| NewTopic {
        name: name.into(),
        partitions: 1,
        replication_factor: 1,
        config: limit.map(|limit| ("max.message.bytes".to_owned(), limit.to_owned())).into_iter().collect(),
    };
    let narrow = Some("150");
    let topics = [
        topic("in", None),
        topic("out", narrow),
        topic("letters", None),
        topic("app-kept-changelog", narrow),
    ];
    log.admin().unwrap().create_topics(&topics).unwrap();
    log
}

fn read(log: &EmbeddedLog, topic: &str) -> Vec<(Option<Bytes>, Option<Bytes>)> {
    let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).unwrap();
    consumer.assign(&[(TopicPartition::new(topic, 0), Some(0))]).unwrap();
    let records = consumer.poll(Duration::ZERO).unwrap().records;
    records.into_iter().map(|record| (record.key, record.value)).collect()
}

/// Runs `in` to `out` (with `keep`, through a table that is stored) over three records, of which the second is too large.
fn run_narrow(
    guarantee: ProcessingGuarantee,
    handlers: ErrorHandlers,
    keep: bool,
) -> (Arc<EmbeddedLog>, KafkaStreams) {
    let log = narrow_log();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for (key, size) in [("a", 1), ("b", 500), ("c", 1)] {
        let record = ProducerRecord {
            topic: "in".into(),
            partition: None,
            key: Some(Bytes::from(key)),
            value: Some(Bytes::from("x".repeat(size))),
            timestamp: Some(1),
            headers: Headers::EMPTY,
        };
        producer.send(record).unwrap();
    }
    producer.flush().unwrap();
    let builder = StreamsBuilder::new();
    let stream = builder.stream::<String, String>("in");
    match keep {
        true => drop(stream.to_table_with(Named::default(), Materialized::named("kept"))),
        false => stream.to("out"),
    }
    let state = tempfile::tempdir().unwrap();
    let config = StreamsConfig {
        state_dir: state.keep(),
        commit_interval: Duration::from_millis(5),
        processing_guarantee: guarantee,
        ..StreamsConfig::default()
    };
    let options = RunOptions { handlers, ..RunOptions::new(config) };
    let mut streams = KafkaStreams::new(builder.build("app").unwrap(), log.clone(), options);
    streams.start().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let targets = streams.input_end_offsets().unwrap();
    while streams.state() != State::Error && !streams.is_caught_up(&targets).unwrap() {
        assert!(Instant::now() < deadline, "{:?}", streams.statuses());
        std::thread::park_timeout(Duration::from_millis(2));
    }
    (log, streams)
}

#[test]
fn a_record_too_large_for_its_topic_is_judged_by_the_production_handler() {
    for guarantee in [ProcessingGuarantee::ExactlyOnce, ProcessingGuarantee::AtLeastOnce] {
        let (log, mut streams) = run_narrow(guarantee, continuing(Some("letters")), false);
        assert!(streams.close(Duration::from_secs(10)));
        let keys: Vec<_> = read(&log, "out").into_iter().map(|(key, _)| key.unwrap()).collect();
        assert_eq!(keys, ["a", "c"], "{guarantee:?}");
        assert_eq!(read(&log, "letters"), [(Some(Bytes::from("b")), None)], "{guarantee:?}");
        assert_eq!(streams.totals().dropped, BTreeMap::from([(DropReason::ProductionError, 1)]));

        let (log, mut streams) = run_narrow(guarantee, ErrorHandlers::default(), false);
        let error = streams.error().unwrap();
        assert!(error.contains("a record for topic out was not written: RecordTooLargeException"), "{error}");
        streams.close(Duration::from_secs(10));
        if guarantee == ProcessingGuarantee::ExactlyOnce {
            assert_eq!(read(&log, "out"), [], "nothing of the commit is visible");
        }

        // Without a record of the changelog the state could not be restored, whatever the handler says.
        let (_, mut streams) = run_narrow(guarantee, continuing(None), true);
        let error = streams.error().unwrap();
        assert!(error.contains("it belongs to a changelog"), "{error}");
        streams.close(Duration::from_secs(10));
    }
}
