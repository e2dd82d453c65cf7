//! Windows and suppress where Kafka Streams has a fault, both modes on the input of the recorded cases: `kafka-4.3` gives what was recorded,
//! the default gives each closed window once and whole. The operators' clocks: what each mode knows after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    config::{Semantics, StreamsConfig},
    kstream::{
        BufferConfig, EmitStrategy, KTable, Materialized, Named, SessionWindowedSerde, SessionWindows,
        SlidingWindows, StreamsBuilder, Suppressed, TimeWindowedSerde, TimeWindows, TopologyConfig, Windowed,
        Windows,
    },
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::{KafkaStreams, RunOptions},
    serdes::HasSerde,
    test_utils::{DriverOptions, TopologyTestDriver},
};

/// A result: `key@start..end = value`.
type Results = Vec<String>;

const ON_CLOSE: &str = include_str!("../conformance/emit_final.json");
const SUPPRESS: &str = include_str!("../conformance/suppress.json");

fn case(file: &str, name: &str) -> Json {
    let cases: Json = serde_json::from_str(file).unwrap();
    let cases = cases.as_array().or_else(|| cases["cases"].as_array()).unwrap();
    cases.iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("no case {name}")).clone()
}

/// What was recorded from Java.
fn recorded(case: &Json) -> Results {
    let records = case["output"]["out"].as_array().unwrap();
    let shown = |r: &Json| {
        let value = r["value"].as_str().map_or_else(|| r["value"].to_string(), str::to_owned);
        format!("{}@{}..{} = {value}", r["key"]["key"].as_str().unwrap(), r["key"]["start"], r["key"]["end"])
    };
    records.iter().map(shown).collect()
}

/// Runs the recorded input through the window of the case, `on_close` or behind a suppress.
fn run(case: &Json, semantics: Semantics, on_close: bool) -> Results {
    let builder = StreamsBuilder::with_config(TopologyConfig { caching: false, ..TopologyConfig::default() });
    let window =
        case["topology"].as_array().unwrap().iter().find(|step| step["op"] == "windowed_by").unwrap();
    let window = &window["window"];
    let ms = |name: &str| Duration::from_millis(window[name].as_u64().unwrap());
    let grouped = builder.stream::<String, String>("in").group_by_key();
    let concat = |_: Option<&String>, value: Option<&String>, sum: Option<&String>| {
        Some(format!("{}{}", sum?, value?))
    };
    let finish = |counts: KTable<Windowed<String>, i64>, texts: KTable<Windowed<String>, String>| {
        if on_close {
            counts.to_stream().map_values(|_, n| n.map(i64::to_string)).to("out");
        } else {
            let last = Suppressed::until_window_closes(BufferConfig::unbounded());
            texts.suppress_windows(last).to_stream().to("out");
        }
    };
    let strategy = if on_close { EmitStrategy::OnWindowClose } else { EmitStrategy::OnWindowUpdate };
    let key_serde = if window["type"] == "session" {
        let windows = SessionWindows::of_inactivity_gap_and_grace(ms("gap_ms"), ms("grace_ms"));
        let windowed = grouped.windowed_by_session(windows).emit_strategy(strategy);
        let merge =
            |_: Option<&String>, a: Option<&String>, b: Option<&String>| Some(format!("({}&{})", a?, b?));
        finish(windowed.count(), windowed.aggregate(|| Some(String::new()), concat, merge));
        SessionWindowedSerde::of::<String>(String::serde())
    } else {
        let (windows, size) = match window["type"].as_str().unwrap() {
            "sliding" => {
                let difference = ms("difference_ms");
                (
                    Windows::from(SlidingWindows::of_time_difference_and_grace(difference, ms("grace_ms"))),
                    difference,
                )
            }
            kind => {
                let windows = TimeWindows::of_size_and_grace(ms("size_ms"), ms("grace_ms"));
                let windows = if kind == "hopping" { windows.advance_by(ms("advance_ms")) } else { windows };
                (windows.into(), ms("size_ms"))
            }
        };
        let windowed = grouped.windowed_by(windows).emit_strategy(strategy);
        let mut kept = Materialized::named("counts");
        if semantics == Semantics::Sluice && window["type"] == "sliding" {
            // A late record that is still accepted looks back two lengths from its own time: Kafka's least retention is one length short.
            kept = kept.with_retention(3 * ms("difference_ms") + ms("grace_ms") + Duration::from_millis(1));
        }
        finish(
            windowed.count_with(Named::default(), kept),
            windowed.aggregate(|| Some(String::new()), concat),
        );
        TimeWindowedSerde::of::<String>(String::serde(), size.as_millis() as i64)
    };
    let config = StreamsConfig { semantics, emit_interval_ms: 0, ..StreamsConfig::default() };
    let options = DriverOptions { config, ..DriverOptions::default() };
    let driver = TopologyTestDriver::with_options(builder.build("app").unwrap(), options).unwrap();
    let input = driver.create_input_topic::<String, String>("in", String::serde(), String::serde());
    for record in case["input"].as_array().unwrap() {
        let text = |name: &str| record[name].as_str().map(str::to_owned);
        input.pipe_input(text("key"), text("value"), record["ts"].as_i64().unwrap()).unwrap();
    }
    let output = driver.create_output_topic::<Windowed<String>, String>("out", key_serde, String::serde());
    let records = output.read_key_values().unwrap();
    let shown = |(key, value): (Option<Windowed<String>>, Option<String>)| {
        let key = key.unwrap();
        format!("{}@{}..{} = {}", key.key, key.window.start, key.window.end, value.unwrap())
    };
    records.into_iter().map(shown).collect()
}

/// Windows that have more than one result.
fn twice(results: &Results) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let windows = results.iter().map(|result| result.split(" = ").next().unwrap().to_owned());
    windows.filter(|window| !seen.insert(window.clone())).collect()
}

/// `emit_final/*_close_0`: the closed rows are read back after retention has hidden some of them. The twins with a long retention show what
/// Java emits when nothing is hidden: the default emits that with any retention.
#[test]
fn emission_on_close_loses_no_window() {
    for window in ["tumbling", "hopping", "sliding", "session"] {
        let short = case(ON_CLOSE, &format!("{window}_close_0"));
        let java = run(&short, Semantics::Kafka43, true);
        assert_eq!(java, recorded(&short), "{window}, as Java");
        let whole = recorded(&case(ON_CLOSE, &format!("{window}_close_long_retention_0")));
        let ours = run(&short, Semantics::Sluice, true);
        let lost = whole.len() - java.len();
        assert_eq!(lost > 0, window != "session", "{window}: Java loses {lost}");
        let set = |results: &Results| results.iter().cloned().collect::<BTreeSet<_>>();
        // A closed session stays closed: with a long retention Java adds late records to one whose result is out.
        let expected = if window == "session" { &java } else { &whole };
        assert_eq!(set(&ours), set(expected), "{window}: every closed window");
        assert_eq!(twice(&ours), BTreeSet::new(), "{window}: once");
    }
}

/// `suppress/*_double_final_0`: a record exactly on the boundary. Java's sliding windows and sessions take it after suppress has let the final
/// result go, and a second "final" result follows; a session even starts anew.
#[test]
fn suppress_gives_one_final_result_per_window() {
    let (mut java_twice, mut ours_all) = (Vec::new(), BTreeMap::new());
    for window in ["tumbling", "hopping", "sliding", "session"] {
        let case = case(SUPPRESS, &format!("{window}_double_final_0"));
        let java = run(&case, Semantics::Kafka43, false);
        assert_eq!(java, recorded(&case), "{window}, as Java");
        if !twice(&java).is_empty() {
            java_twice.push(window);
        }
        let ours = run(&case, Semantics::Sluice, false);
        assert_eq!(twice(&ours), BTreeSet::new(), "{window}: one final result, but {ours:?}");
        ours_all.insert(window, ours);
    }
    assert_eq!(java_twice, ["sliding", "session"]);
    // Whole or refused, never begun again: Java ends with "d" alone for the session of a.
    assert_eq!(ours_all["session"][0], "a@400..400 = a");
    assert_eq!(ours_all["sliding"][0], "a@500..550 = a");
}

/// Counts in windows of 100 ms without grace, over a restart, of a record that is late by what was seen before it.
fn late_after_a_restart(semantics: Semantics) -> usize {
    let log = Arc::new(EmbeddedLog::in_memory());
    let topic = |name: &str| NewTopic {
        name: name.into(),
        partitions: 1,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    log.admin().unwrap().create_topics(&[topic("in"), topic("out")]).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    for times in [vec![10, 250], vec![90]] {
        for timestamp in times {
            let record = ProducerRecord {
                topic: "in".into(),
                partition: Some(0),
                key: Some("k".into()),
                value: Some("v".into()),
                timestamp: Some(timestamp),
                headers: Headers::EMPTY,
            };
            producer.send(record).unwrap();
        }
        producer.flush().unwrap();
        let builder =
            StreamsBuilder::with_config(TopologyConfig { caching: false, ..TopologyConfig::default() });
        let windows = TimeWindows::of_size_with_no_grace(Duration::from_millis(100));
        let kept = Materialized::named("kept").with_retention(Duration::from_secs(3_600));
        let stream = builder.stream::<String, String>("in").group_by_key();
        stream.windowed_by(windows).count_with(Named::default(), kept).to_stream().to("out");
        let config =
            StreamsConfig { semantics, state_dir: state.path().to_owned(), ..StreamsConfig::default() };
        let mut streams =
            KafkaStreams::new(builder.build("app").unwrap(), log.clone(), RunOptions::new(config));
        streams.start().unwrap();
        let targets = streams.input_end_offsets().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !streams.is_caught_up(&targets).unwrap() {
            assert!(Instant::now() < deadline, "not caught up: {:?}", streams.error());
            std::thread::park_timeout(Duration::from_millis(2));
        }
        assert!(streams.close(Duration::from_secs(10)), "closes in time");
    }
    let mut consumer =
        log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
    consumer.assign(&[(TopicPartition::new("out", 0), Some(0))]).unwrap();
    consumer.poll(Duration::ZERO).unwrap().records.len()
}

/// Restarts are not recorded; Java keeps an operator's stream time in memory only, so that whoever restarts accepts what was late before.
#[test]
fn an_operator_knows_what_is_late_after_a_restart() {
    assert_eq!(late_after_a_restart(Semantics::Kafka43), 3, "Java counts the late record");
    assert_eq!(late_after_a_restart(Semantics::Sluice), 2, "late is late");
}
