//! The test driver with several partitions: tasks apart as in production, keys that really travel, stores in parts, one order.

use std::collections::BTreeMap;

use sluice::streams::{
    client::partition_for_key,
    config::StreamsConfig,
    error::Result,
    kstream::{Materialized, Named, Produced, StreamsBuilder, TimeWindows, TopologyConfig},
    processor::{DropReason, Processor, ProcessorContext},
    record::{Headers, ProducerRecord, Record},
    runtime::TaskId,
    serdes::HasSerde,
    test_utils::{DriverOptions, Partitions, TestInputTopic, TestOutputTopic, TopologyTestDriver},
};
use std::{sync::Arc, time::Duration};

fn builder() -> StreamsBuilder {
    StreamsBuilder::with_config(TopologyConfig { caching: false, ..TopologyConfig::default() })
}

fn driver(builder: &StreamsBuilder, partitions: Partitions) -> TopologyTestDriver {
    let options = DriverOptions { partitions: Some(partitions), ..DriverOptions::default() };
    TopologyTestDriver::with_options(builder.build("app").unwrap(), options).unwrap()
}

fn texts(driver: &TopologyTestDriver, topic: &str) -> TestInputTopic<String, String> {
    driver.create_input_topic(topic, String::serde(), String::serde())
}

fn text_output(driver: &TopologyTestDriver, topic: &str) -> TestOutputTopic<String, String> {
    driver.create_output_topic(topic, String::serde(), String::serde())
}

/// Says where a record was processed: `task topic-partition@offset`.
struct Whereabouts;

impl Processor<String, String, String, String> for Whereabouts {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, String>,
        record: Record<String, String>,
    ) -> Result<()> {
        let at = context.record_metadata();
        let topic = at.topic.unwrap_or_default();
        let place = format!("{} {topic}-{}@{}", context.task_id(), at.partition, at.offset);
        context.forward(record.with_value(Some(place)))
    }
}

fn count_by_value(builder: &StreamsBuilder) {
    builder
        .stream::<String, String>("in")
        .group_by(|_, value| value.cloned())
        .count_with(Named::default(), Materialized::named("counts"))
        .to_stream()
        .to("out");
}

#[test]
fn a_key_travels_to_the_partition_it_hashes_to() {
    let builder = builder();
    count_by_value(&builder);
    let driver = driver(&builder, Partitions::each(4));
    let input = texts(&driver, "in");
    for n in 0..40 {
        input.pipe_input_to(n % 4, Some(format!("k{n}")), Some(format!("v{}", n % 10)), n.into()).unwrap();
    }
    let repartitioned = driver.read_records("app-counts-repartition");
    assert_eq!(repartitioned.len(), 40);
    for record in &repartitioned {
        let key = record.key.as_deref().unwrap();
        assert_eq!(record.partition, Some(partition_for_key(key, 4)), "{key:?}");
    }
    assert_eq!(driver.store_partitions("counts"), [0, 1, 2, 3]);
    for partition in 0..4 {
        let rows =
            driver.key_value_store::<String, i64, _>(("counts", partition), |counts| counts.all()).unwrap();
        let keys: Vec<String> = rows.into_iter().map(|(key, _)| (*key).clone()).collect();
        let belong: Vec<String> = (0..10)
            .map(|n| format!("v{n}"))
            .filter(|key| driver.partition_of("app-counts-repartition", key.as_bytes()) == partition)
            .collect();
        assert_eq!(keys, belong, "partition {partition}");
        // The changelog of a task goes to the task's own partition.
        let logged = driver.read_partition("app-counts-changelog", partition);
        assert_eq!(logged.len(), belong.len() * 4);
    }
}

#[test]
fn each_sub_topology_has_a_task_per_partition_and_each_partition_its_offsets() {
    let builder = builder();
    let stream = builder.stream::<String, String>("in").process(|| Whereabouts, Named::default(), &[]);
    stream.repartition().process(|| Whereabouts, Named::default(), &[]).to("out");
    stream.to("first");
    let driver = driver(&builder, Partitions::each(2).topic("in", 3));
    let ids: Vec<String> = driver.tasks().iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["0_0", "0_1", "0_2", "1_0", "1_1", "1_2"]);
    let input = texts(&driver, "in");
    for partition in [2, 0, 2] {
        input.pipe_input_to(partition, Some("k".into()), Some("x".into()), 0).unwrap();
    }
    let values = |topic: &str| -> Vec<String> {
        let records = text_output(&driver, topic).read_key_values().unwrap();
        records.into_iter().map(|(_, value)| value.unwrap()).collect()
    };
    assert_eq!(values("first"), ["0_2 in-2@0", "0_0 in-0@0", "0_2 in-2@1"]);
    let home = partition_for_key(b"k", 3);
    let hop = "app-KSTREAM-REPARTITION-0000000002-repartition";
    let expected: Vec<String> = (0..3).map(|offset| format!("1_{home} {hop}-{home}@{offset}")).collect();
    assert_eq!(values("out"), expected);
    assert_eq!(driver.partition_count("first"), 2, "an output topic has what the driver was told");
}

/// Everything a driver writes, all topics, in order.
fn everything(records: &[ProducerRecord]) -> Vec<String> {
    let builder = builder();
    let stream = builder.stream::<String, String>("in");
    let table = builder.table::<String, String>("table");
    stream.group_by(|_, value| value.cloned()).count().to_stream().to("counts");
    stream.left_join_table(&table, |a, b| Some(format!("{}{}", a?, b.map_or("-", |b| b)))).to("joined");
    let driver = driver(&builder, Partitions::each(3));
    for record in records {
        driver.pipe_record(record.clone()).unwrap();
    }
    let mut all = Vec::new();
    for topic in driver.produced_topic_names() {
        all.extend(driver.read_records(&topic).into_iter().map(|record| format!("{record:?}")));
    }
    all
}

#[test]
fn the_same_input_gives_the_same_output_in_the_same_order() {
    let records: Vec<ProducerRecord> = (0..200)
        .map(|n: i64| ProducerRecord {
            topic: if n % 3 == 0 { "table".into() } else { "in".into() },
            partition: None,
            key: (n % 5 != 0).then(|| format!("k{}", n % 7).into()),
            value: Some(format!("v{}", n % 11).into()),
            timestamp: Some((n * 37) % 100),
            headers: Headers::EMPTY,
        })
        .collect();
    let first = everything(&records);
    assert!(first.len() > 300, "{}", first.len());
    assert_eq!(everything(&records), first);
}

#[test]
fn records_without_a_key_go_to_each_partition_in_turn() {
    let builder = builder();
    builder.stream::<String, String>("in").process(|| Whereabouts, Named::default(), &[]).to("out");
    let driver = driver(&builder, Partitions::each(3));
    for n in 0..6 {
        texts(&driver, "in").pipe_input(None, Some("x".into()), n).unwrap();
    }
    let places = text_output(&driver, "out").read_key_values().unwrap();
    let places: Vec<&str> = places.iter().map(|(_, place)| place.as_deref().unwrap()).collect();
    assert_eq!(places, ["0_0 in-0@0", "0_1 in-1@0", "0_2 in-2@0", "0_0 in-0@1", "0_1 in-1@1", "0_2 in-2@1"]);
}

#[test]
fn a_partitioner_of_a_sink_sends_to_several_partitions_or_to_none() {
    let builder = builder();
    let choose = |topic: &str, record: &sluice::streams::record::AnyRecord, count: i32| {
        assert_eq!((topic, count), ("out", 3));
        match record.value.as_ref()?.downcast_ref::<String>()?.as_str() {
            "all" => Some((0..count).collect()),
            "none" => Some(vec![]),
            _ => None,
        }
    };
    let produced = Produced::default().with_partitioner(Arc::new(choose));
    builder.stream::<String, String>("in").to_with("out", produced);
    let driver = driver(&builder, Partitions::each(3));
    for value in ["all", "none", "by key"] {
        texts(&driver, "in").pipe_input(Some("k".into()), Some(value.into()), 0).unwrap();
    }
    let output = text_output(&driver, "out");
    let home = partition_for_key(b"k", 3);
    for partition in 0..3 {
        let records = output.read_records_of(partition).unwrap();
        let values: Vec<&str> = records.iter().map(|record| record.value.as_deref().unwrap()).collect();
        assert_eq!(values, if partition == home { vec!["all", "by key"] } else { vec!["all"] });
    }
}

#[test]
fn a_global_table_is_whole_in_every_task() {
    let builder = builder();
    let names = builder.global_table::<String, String>("names");
    let stream = builder.stream::<String, String>("in");
    stream
        .join_global(
            &names,
            |_, value| value.cloned(),
            |value, name| Some(format!("{}={}", value?, name?)),
            Named::default(),
        )
        .to("out");
    let driver = driver(&builder, Partitions::each(3));
    for name in ["x", "y", "z"] {
        texts(&driver, "names").pipe_input(Some(name.into()), Some(name.to_uppercase()), 0).unwrap();
    }
    for partition in 0..3 {
        for name in ["x", "y", "z"] {
            texts(&driver, "in").pipe_input_to(partition, None, Some(name.into()), 0).unwrap();
        }
    }
    let joined = text_output(&driver, "out").read_key_values().unwrap();
    let joined: Vec<&str> = joined.iter().map(|(_, value)| value.as_deref().unwrap()).collect();
    assert_eq!(joined, ["x=X", "y=Y", "z=Z"].repeat(3));
}

/// A foreign-key join asks another partition and is answered in its own, whatever the two keys hash to.
#[test]
fn a_foreign_key_join_finds_its_way_back() {
    let builder = builder();
    let orders = builder.table::<String, String>("orders");
    let users = builder.table::<String, String>("users");
    orders
        .join_on(&users, |_, order| order.cloned(), |order, user| Some(format!("{}:{}", order?, user?)))
        .to_stream()
        .process(|| Whereabouts, Named::default(), &[])
        .to("out");
    let driver = driver(&builder, Partitions::each(3).topic("users", 5));
    for n in 0..12 {
        texts(&driver, "orders").pipe_input(Some(format!("o{n}")), Some(format!("u{}", n % 4)), n).unwrap();
    }
    for n in 0..4 {
        texts(&driver, "users").pipe_input(Some(format!("u{n}")), Some("name".into()), 100).unwrap();
    }
    let joined = text_output(&driver, "out").read_records().unwrap();
    assert_eq!(joined.len(), 12);
    for record in joined {
        let (key, place) = (record.key.unwrap(), record.value.unwrap());
        let home = partition_for_key(key.as_bytes(), 3);
        assert!(place.contains(&format!("-topic-{home}@")), "{key} came out at {place}");
    }
}

/// One upstream partition is a minute behind. By the largest time seen its records would be late; by what each partition has vouched for
/// they are not, and the control records that say so are seen by nobody.
#[test]
fn watermarks_travel_between_tasks() {
    let counts = [None, Some(1_000)].map(|idle_close_ms| {
        let builder = builder();
        builder
            .stream::<String, String>("in")
            .group_by(|_, value| value.cloned())
            .windowed_by(TimeWindows::of_size_with_no_grace(Duration::from_millis(10_000)))
            .count_with(Named::default(), Materialized::named("counts"))
            .to_stream()
            .to("out");
        let config = StreamsConfig { emit_interval_ms: 0, idle_close_ms, ..StreamsConfig::default() };
        let partitions = Some(Partitions::each(2));
        let options = DriverOptions { config, partitions, ..DriverOptions::default() };
        let driver = TopologyTestDriver::with_options(builder.build("app").unwrap(), options).unwrap();
        let input = texts(&driver, "in");
        for (partition, timestamp) in [(0, 1_000), (0, 61_000), (1, 1_500), (1, 62_000), (0, 2_000)] {
            input.pipe_input_to(partition, Some("k".into()), Some("v".into()), timestamp).unwrap();
        }
        let records = driver.read_records("app-counts-repartition");
        assert!(records.iter().all(|record| record.value.is_some()), "control records are not shown");
        assert_eq!(records.len(), 5);
        let dropped = driver.dropped_by_task().into_iter();
        let late = dropped.filter(|((_, _, reason), _)| *reason == DropReason::Late).map(|(_, count)| count);
        (driver.read_records("out").len(), late.sum::<u64>())
    });
    assert_eq!(counts[0], (3, 2), "without watermarks the fast partition decides");
    assert_eq!(counts[1], (4, 1), "with them only what came after both had passed is late");
}

/// Records written before the task starts are taken by their time, records written one by one as they come.
#[test]
fn a_late_start_reads_by_time() {
    let records = [("in", "k", "a", 20), ("table", "k", "row", 10)].map(|(topic, key, value, timestamp)| {
        ProducerRecord {
            topic: topic.into(),
            partition: None,
            key: Some(key.into()),
            value: Some(value.into()),
            timestamp: Some(timestamp),
            headers: Headers::EMPTY,
        }
    });
    let joined = |at_once: bool| {
        let builder = builder();
        let table = builder.table::<String, String>("table");
        let stream = builder.stream::<String, String>("in");
        stream.left_join_table(&table, |a, b| Some(format!("{}{}", a?, b.map_or("-", |b| b)))).to("out");
        let driver = driver(&builder, Partitions::each(3));
        if at_once {
            driver.pipe_records(records.clone()).unwrap();
        } else {
            records.clone().into_iter().for_each(|record| driver.pipe_record(record).unwrap());
        }
        text_output(&driver, "out").read_key_values().unwrap()
    };
    assert_eq!(joined(true), [(Some("k".into()), Some("arow".into()))]);
    assert_eq!(joined(false), [(Some("k".into()), Some("a-".into()))]);
}

#[test]
fn dropped_records_are_counted_by_task_and_reason() {
    let builder = builder();
    builder.stream::<String, String>("in").group_by_key().count().to_stream().to("out");
    let driver = driver(&builder, Partitions::each(2));
    let input = texts(&driver, "in");
    for (partition, key, value) in [(0, None, Some("x")), (1, Some("k"), None), (1, None, None)] {
        input.pipe_input_to(partition, key.map(str::to_owned), value.map(str::to_owned), 0).unwrap();
    }
    let node: Arc<str> = "KSTREAM-AGGREGATE-0000000002".into();
    let task = |partition| TaskId { subtopology: 0, partition };
    let expected = BTreeMap::from([
        ((task(0), node.clone(), DropReason::NullKey), 1),
        ((task(1), node.clone(), DropReason::NullKey), 1),
        ((task(1), node.clone(), DropReason::NullValue), 1),
    ]);
    assert_eq!(driver.dropped_by_task(), expected);
    assert_eq!(driver.dropped_records(), 3);
}

#[test]
fn mistakes_are_named() {
    let joined = builder();
    let table = joined.table::<String, String>("table");
    joined.stream::<String, String>("in").join_table(&table, |a, _| a.cloned()).to("out");
    let refused = |partitions| {
        let options = DriverOptions { partitions: Some(partitions), ..DriverOptions::default() };
        let topology = joined.build("app").unwrap();
        TopologyTestDriver::with_options(topology, options).err().map(|error| error.to_string())
    };
    let counts = refused(Partitions::each(3).topic("table", 2)).unwrap();
    assert!(counts.contains("in has 3, table has 2") || counts.contains("table has 2, in has 3"), "{counts}");
    let none = refused(Partitions::each(3).topic("table", 0)).unwrap();
    assert!(none.contains("topic table of the driver would have 0 partitions"), "{none}");

    let builder = builder();
    count_by_value(&builder);
    let driver = driver(&builder, Partitions::each(3));
    let error = |result: Result<()>| result.unwrap_err().to_string();
    let several = error(driver.key_value_store::<String, i64, _>("counts", |_| Ok(())));
    assert!(several.contains("store counts has partitions [0, 1, 2]: choose one"), "{several}");
    let unknown = error(driver.key_value_store::<String, i64, _>(("counts", 3), |_| Ok(())));
    assert!(unknown.contains("store counts has no partition 3"), "{unknown}");
    let beyond = error(texts(&driver, "in").pipe_input_to(3, None, Some("x".into()), 0));
    assert!(
        beyond.contains("topic in has 3 partitions in this driver, a record names partition 3"),
        "{beyond}"
    );
}

#[test]
fn a_builder_builds_the_same_topology_again_until_operators_are_added() {
    let builder = StreamsBuilder::with_config(TopologyConfig::default().optimized());
    count_by_value(&builder);
    let first = builder.build("app").unwrap().describe();
    assert!(first.contains("Sub-topology: 1"), "{first}");
    assert_eq!(builder.build("app").unwrap().describe(), first);
    builder.stream::<String, String>("in").to("late");
    let refused = builder.build("app").err().unwrap().to_string();
    assert!(refused.contains("operators were added after the topology was built"), "{refused}");
}
