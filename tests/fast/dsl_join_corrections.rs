//! Joins of streams where Kafka Streams has a fault, both modes on one input: `kafka-4.3` as Java does it, the default corrected. And what
//! only the default has: a join's time is what every input has vouched for.

use std::{sync::Arc, time::Duration};

use sluice::streams::{
    config::{Semantics, StreamsConfig},
    error::ProcessingError,
    internals::store_builders,
    kstream::{Consumed, JoinWindows, KStream, StreamsBuilder},
    record::AnyValue,
    serdes::{AnySerde, ColumnSerde, HasSerde, Serde, SqlValue, StringSerde},
    stores::StoreKind,
    test_utils::{DriverOptions, TopologyTestDriver},
};

/// Side, key, value, time of a record.
type Input = (&'static str, &'static str, &'static str, i64);
/// Key, value and time of a result, as text, behind the number of the input that made it.
type Output = (usize, String);

/// 100 ms either way, 50 ms of grace.
fn windows() -> JoinWindows {
    JoinWindows::of_time_difference_and_grace(Duration::from_millis(100), Duration::from_millis(50))
}

fn left_join(left: &KStream<String, String>, right: &KStream<String, String>) -> KStream<String, String> {
    left.left_join(right, |l, r| Some(format!("{}|{}", l?, r.map_or("null", String::as_str))), windows())
}

fn driver(semantics: Semantics, idle_close_ms: Option<i64>) -> TopologyTestDriver {
    let builder = StreamsBuilder::new();
    left_join(&builder.stream("left"), &builder.stream("right")).to("out");
    let config = StreamsConfig { semantics, emit_interval_ms: 0, idle_close_ms, ..StreamsConfig::default() };
    let options = DriverOptions { config, ..DriverOptions::default() };
    TopologyTestDriver::with_options(builder.build("app").unwrap(), options).unwrap()
}

/// Feeds the inputs and says at which of them each result came.
fn feed(driver: &TopologyTestDriver, inputs: &[Input]) -> Vec<Output> {
    let mut outputs = Vec::new();
    for (at, (topic, key, value, timestamp)) in inputs.iter().enumerate() {
        let input = driver.create_input_topic::<String, String>(topic, String::serde(), String::serde());
        input.pipe_input(Some((*key).into()), Some((*value).into()), *timestamp).unwrap();
        outputs.extend(results(driver).into_iter().map(|result| (at, result)));
    }
    outputs
}

fn results(driver: &TopologyTestDriver) -> Vec<String> {
    let output = driver.create_output_topic::<String, String>("out", String::serde(), String::serde());
    let records = output.read_records().unwrap();
    records
        .into_iter()
        .map(|record| format!("{} {} {}", record.key.unwrap(), record.value.unwrap(), record.timestamp))
        .collect()
}

fn expected(outputs: &[(usize, &str)]) -> Vec<Output> {
    outputs.iter().map(|(at, result)| (*at, (*result).to_owned())).collect()
}

/// `stream_stream_left/late_immediate_0`: a left record whose window is behind stream time, but not by the grace. Java sends it alone at once and
/// joined later (KAFKA-19536); here it waits for the grace.
#[test]
fn a_miss_waits_for_the_grace() {
    let inputs = [
        ("right", "b", "r0", 2000),
        ("left", "a", "l1", 1899),
        ("right", "a", "r1", 1960),
        ("left", "a", "l2", 1855),
        ("right", "b", "r2", 2005),
        ("right", "b", "r3", 2006),
    ];
    let java = feed(&driver(Semantics::Kafka43, None), &inputs);
    let java_says = [(1, "a l1|null 1899"), (2, "a l1|r1 1960"), (3, "a l2|null 1855")];
    assert_eq!(java, expected(&java_says));
    let ours = feed(&driver(Semantics::Sluice, None), &inputs);
    assert_eq!(ours, expected(&[(2, "a l1|r1 1960"), (5, "a l2|null 1855")]));
}

/// `stream_stream_left/min_time_delay_0`: three left records wait. After the first is given up Java believes that the oldest waiting record is the
/// youngest, and gives the second up 60 ms late; here each goes as soon as its window and the grace are over.
#[test]
fn a_miss_is_not_delayed_by_younger_ones() {
    let inputs = [
        ("left", "a", "l1", 1000),
        ("left", "b", "l2", 1060),
        ("left", "c", "l3", 1120),
        ("right", "z", "r1", 1151),
        ("right", "z", "r2", 1180),
        ("right", "z", "r3", 1211),
        ("right", "z", "r4", 1271),
    ];
    let java = feed(&driver(Semantics::Kafka43, None), &inputs);
    assert_eq!(java, expected(&[(3, "a l1|null 1000"), (6, "b l2|null 1060"), (6, "c l3|null 1120")]));
    let ours = feed(&driver(Semantics::Sluice, None), &inputs);
    assert_eq!(ours, expected(&[(3, "a l1|null 1000"), (5, "b l2|null 1060"), (6, "c l3|null 1120")]));
}

/// The left input runs ahead of the right one. Java closes a left record's window by the left input's time, and then joins it after all.
/// The lead is within what the join's stores keep: their retention follows each side's own time, in both modes.
#[test]
fn an_input_that_is_ahead_closes_no_window_of_the_one_behind() {
    let inputs = [("left", "a", "l1", 1000), ("left", "b", "l2", 1200), ("right", "a", "r1", 1050)];
    let java = feed(&driver(Semantics::Kafka43, None), &inputs);
    assert_eq!(java, expected(&[(1, "a l1|null 1000"), (2, "a l1|r1 1050")]));
    let ours = feed(&driver(Semantics::Sluice, Some(1_000)), &inputs);
    assert_eq!(ours, expected(&[(2, "a l1|r1 1050")]));
}

/// Nothing comes any more. In Java the last misses are never sent.
#[test]
fn misses_come_out_when_the_inputs_fall_silent() {
    let last = [Semantics::Kafka43, Semantics::Sluice].map(|semantics| {
        let idle_close_ms = (semantics == Semantics::Sluice).then_some(1_000);
        let driver = driver(semantics, idle_close_ms);
        assert_eq!(feed(&driver, &[("right", "b", "r0", 900), ("left", "a", "l1", 1000)]), []);
        for _ in 0..10 {
            driver.advance_wall_clock_time(Duration::from_millis(1_000)).unwrap();
        }
        results(&driver)
    });
    assert_eq!(last[0], Vec::<String>::new());
    assert_eq!(last[1], ["a l1|null 1000"]);
}

/// A text that has a column of its own in state files.
struct OneColumn;

impl Serde<String> for OneColumn {
    fn serialize(&self, value: &String, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        StringSerde.serialize(value, out)
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<String, ProcessingError> {
        StringSerde.deserialize(bytes)
    }

    fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        Some(Arc::new(OneColumn))
    }
}

impl ColumnSerde for OneColumn {
    fn columns(&self) -> Vec<(String, &'static str)> {
        vec![("name".into(), "TEXT")]
    }

    fn to_columns(&self, value: &AnyValue) -> Vec<SqlValue> {
        vec![SqlValue::Text(value.downcast_ref::<String>().cloned().unwrap_or_default())]
    }

    fn from_columns(&self, _: &[SqlValue]) -> Result<AnyValue, ProcessingError> {
        Ok(Arc::new(String::new()))
    }
}

/// The keys of waiting rows begin with their time: the state file must not take them apart as the records' keys.
#[test]
fn the_keys_of_waiting_rows_are_only_bytes_to_the_state_file() {
    let builder = StreamsBuilder::new();
    let key = || AnySerde::new::<String>(OneColumn);
    let stream = |topic| builder.stream_with(&[topic], Consumed::with(key(), String::serde()));
    left_join(&stream("left"), &stream("right")).to("out");
    let topology = builder.build("app").unwrap();
    let columns = |kind: fn(&StoreKind) -> bool| -> Vec<bool> {
        let stores = store_builders(&topology).into_iter().filter(|store| kind(&store.kind));
        stores.map(|store| store.key_serde.columns().is_some()).collect()
    };
    assert_eq!(columns(|kind| matches!(kind, StoreKind::KeyValue { .. })), [false], "waiting rows");
    assert_eq!(columns(|kind| matches!(kind, StoreKind::Window { .. })), [true, true], "kept records");
}
