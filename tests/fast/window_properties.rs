//! Random streams out of order through windows and joins against naive oracles: loops over all records that say what a window or a
//! join holds in the end, whatever the order was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use sluice::streams::{
    kstream::{
        EmitStrategy, JoinWindows, KStream, KTable, SessionWindowedSerde, SessionWindows, SlidingWindows,
        StreamsBuilder, TimeWindowedSerde, TimeWindows, TopologyConfig, UnlimitedWindows, Windowed,
    },
    serdes::{AnySerde, HasSerde},
    test_utils::TopologyTestDriver,
};

/// Key and time of a record; its value is its place in the stream.
type Times = Vec<(u8, i64)>;

/// A window of a key: key, start, end.
type At = (String, i64, i64);

/// Behind everything: closes all windows.
const LATE: i64 = 1_000_000;

fn times() -> impl Strategy<Value = Times> {
    prop::collection::vec((0..3_u8, 50..250_i64), 0..40)
}

fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms as u64)
}

fn key(number: u8) -> String {
    format!("k{number}")
}

fn builder(caching: bool) -> StreamsBuilder {
    StreamsBuilder::with_config(TopologyConfig { caching, ..TopologyConfig::default() })
}

/// Feeds `in` and then one record of another key at [`LATE`]; reads what is told of the windows of all other keys.
fn run(builder: &StreamsBuilder, times: &Times, key_serde: AnySerde) -> Vec<(At, Option<i64>)> {
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    let input = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    let output = driver.create_output_topic::<Windowed<String>, i64>("out", key_serde, i64::serde());
    for (number, time) in times {
        input.pipe_input(Some(key(*number)), Some(1), *time).unwrap();
    }
    input.pipe_input(Some("late".into()), Some(1), LATE).unwrap();
    let results = output.read_records().unwrap().into_iter().map(|record| {
        let window = record.key.unwrap();
        ((window.key.to_string(), window.window.start, window.window.end), record.value)
    });
    results.filter(|((key, ..), _)| key != "late").collect()
}

/// What a reader holds after the last result.
fn table(results: &[(At, Option<i64>)]) -> BTreeMap<At, i64> {
    let mut table = BTreeMap::new();
    for (at, value) in results {
        match value {
            Some(value) => drop(table.insert(at.clone(), *value)),
            None => drop(table.remove(at)),
        }
    }
    table
}

/// Every window once, as final results must come.
fn once(results: &[(At, Option<i64>)]) -> BTreeMap<At, i64> {
    let mut table = BTreeMap::new();
    for (at, value) in results {
        assert!(table.insert(at.clone(), value.expect("a final result")).is_none(), "{at:?} came twice");
    }
    table
}

/// Records per hopping window, those too late for a window left out.
fn hopping(times: &Times, size: i64, advance: i64, grace: i64) -> BTreeMap<At, i64> {
    let mut counts = BTreeMap::new();
    let mut now = i64::MIN;
    for (number, time) in times {
        now = now.max(*time);
        for start in (0..=*time).filter(|start| start % advance == 0 && start + size > *time) {
            if start + size > now - grace {
                *counts.entry((key(*number), start, start + size)).or_default() += 1;
            }
        }
    }
    counts
}

/// Sessions of each key: runs of records no more than `gap` apart.
fn sessions(times: &Times, gap: i64) -> BTreeMap<At, i64> {
    let mut sessions = BTreeMap::new();
    for number in 0..3 {
        let mut times: Vec<i64> = times.iter().filter(|(k, _)| *k == number).map(|(_, time)| *time).collect();
        times.sort_unstable();
        for run in times.chunk_by(|a, b| b - a <= gap) {
            sessions.insert((key(number), run[0], run[run.len() - 1]), run.len() as i64);
        }
    }
    sessions
}

/// Sliding windows: each record's own, which ends with it, and the one right behind it where there are records.
fn sliding(times: &Times, difference: i64) -> BTreeMap<At, i64> {
    let mut windows = BTreeMap::new();
    for (number, time) in times {
        for start in [time - difference, time + 1] {
            let end = start + difference;
            let held = times.iter().filter(|(k, t)| k == number && (start..=end).contains(t)).count() as i64;
            if held > 0 {
                windows.insert((key(*number), start, end), held);
            }
        }
    }
    windows
}

/// A record of either side: whether it is a left one, its key and time.
type Sides = Vec<(bool, u8, i64)>;

fn sides() -> impl Strategy<Value = Sides> {
    prop::collection::vec((any::<bool>(), 0..3_u8, 0..200_i64), 0..40)
}

fn pair(left: Option<&i64>, right: Option<&i64>) -> Option<(Option<i64>, Option<i64>)> {
    Some((left.copied(), right.copied()))
}

/// Feeds `left` and `right`, with `close` one late record to each, and reads pairs from `out`.
fn run_sides(
    builder: &StreamsBuilder,
    sides: &[(bool, u8, i64, Option<i64>)],
    close: bool,
) -> Vec<(String, Option<String>)> {
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    let topic = |name| driver.create_input_topic::<String, i64>(name, String::serde(), i64::serde());
    let (left, right) = (topic("left"), topic("right"));
    let output = driver.create_output_topic::<String, String>("out", String::serde(), String::serde());
    for (is_left, number, time, value) in sides {
        let topic = if *is_left { &left } else { &right };
        topic.pipe_input(Some(key(*number)), *value, *time).unwrap();
    }
    if close {
        left.pipe_input(Some("late-left".into()), Some(0), LATE).unwrap();
        right.pipe_input(Some("late-right".into()), Some(0), LATE).unwrap();
    }
    let results = output.read_records().unwrap().into_iter().map(|r| (r.key.unwrap(), r.value));
    results.filter(|(key, _)| !key.starts_with("late")).collect()
}

fn text((left, right): (Option<i64>, Option<i64>)) -> String {
    format!("{left:?} {right:?}")
}

fn joined(left: Option<&i64>, right: Option<&i64>) -> Option<String> {
    pair(left, right).map(text)
}

/// The stream-stream join of all records: pairs close in time, and with `left`/`right` those of a side that met nobody.
fn pairs(sides: &Sides, before: i64, after: i64, keep: (bool, bool)) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let close =
        |l: &(bool, u8, i64), r: &(bool, u8, i64)| l.1 == r.1 && (l.2 - before..=l.2 + after).contains(&r.2);
    let place = |at: usize| Some(at as i64);
    for (i, l) in sides.iter().enumerate().filter(|(_, side)| side.0) {
        for (j, r) in sides.iter().enumerate().filter(|(_, side)| !side.0) {
            if close(l, r) {
                out.push((key(l.1), text((place(i), place(j)))));
            }
        }
    }
    for (i, side) in sides.iter().enumerate() {
        let met = sides
            .iter()
            .any(|other| other.0 != side.0 && if side.0 { close(side, other) } else { close(other, side) });
        match (met, side.0) {
            (false, true) if keep.0 => out.push((key(side.1), text((place(i), None)))),
            (false, false) if keep.1 => out.push((key(side.1), text((None, place(i))))),
            _ => {}
        }
    }
    out.sort();
    out
}

/// A side's rows after all changes.
fn rows(sides: &[(bool, u8, i64, Option<i64>)], is_left: bool) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::new();
    for (_, number, _, value) in sides.iter().filter(|side| side.0 == is_left) {
        match value {
            Some(value) => drop(rows.insert(key(*number), *value)),
            None => drop(rows.remove(&key(*number))),
        }
    }
    rows
}

fn last(results: Vec<(String, Option<String>)>) -> BTreeMap<String, String> {
    let mut table = BTreeMap::new();
    for (key, value) in results {
        match value {
            Some(value) => drop(table.insert(key, value)),
            None => drop(table.remove(&key)),
        }
    }
    table
}

fn streams(builder: &StreamsBuilder) -> (KStream<String, i64>, KStream<String, i64>) {
    (builder.stream("left"), builder.stream("right"))
}

fn tables(builder: &StreamsBuilder) -> (KTable<String, i64>, KTable<String, i64>) {
    (builder.table("left"), builder.table("right"))
}

fn changes() -> impl Strategy<Value = Vec<(bool, u8, i64, Option<i64>)>> {
    prop::collection::vec((any::<bool>(), 0..4_u8, 0..200_i64, prop::option::weighted(0.8, 0..5_i64)), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48),
    ))]

    /// Tumbling (one hop) and hopping windows, at each update and at their close: the same counts, and nothing late.
    #[test]
    fn hopping_windows_count_what_falls_into_them(
        times in times(), caching: bool, close: bool, hops in 1..4_i64, advance in 1..30_i64, grace in 0..60_i64,
    ) {
        let (size, builder) = (hops * advance, builder(caching));
        let windows = TimeWindows::of_size_and_grace(ms(size), ms(grace)).advance_by(ms(advance));
        let strategy = if close { EmitStrategy::OnWindowClose } else { EmitStrategy::OnWindowUpdate };
        let group = builder.stream::<String, i64>("in").group_by_key().windowed_by(windows);
        group.emit_strategy(strategy).count().to_stream().to("out");
        let results = run(&builder, &times, TimeWindowedSerde::of::<String>(String::serde(), size));
        let found = if close { once(&results) } else { table(&results) };
        prop_assert_eq!(found, hopping(&times, size, advance, grace));
    }

    #[test]
    fn sessions_are_runs_of_records(times in times(), caching: bool, close: bool, gap in 1..30_i64) {
        let builder = builder(caching);
        let windows = SessionWindows::of_inactivity_gap_and_grace(ms(gap), ms(500));
        let strategy = if close { EmitStrategy::OnWindowClose } else { EmitStrategy::OnWindowUpdate };
        let group = builder.stream::<String, i64>("in").group_by_key().windowed_by_session(windows);
        group.emit_strategy(strategy).count().to_stream().to("out");
        let results = run(&builder, &times, SessionWindowedSerde::of::<String>(String::serde()));
        let found = if close { once(&results) } else { table(&results) };
        prop_assert_eq!(found, sessions(&times, gap));
    }

    #[test]
    fn sliding_windows_hold_what_is_within_reach(
        times in times(), caching: bool, close: bool, difference in 1..50_i64,
    ) {
        let builder = builder(caching);
        let windows = SlidingWindows::of_time_difference_and_grace(ms(difference), ms(500));
        let strategy = if close { EmitStrategy::OnWindowClose } else { EmitStrategy::OnWindowUpdate };
        let group = builder.stream::<String, i64>("in").group_by_key().windowed_by(windows);
        group.emit_strategy(strategy).count().to_stream().to("out");
        let results = run(&builder, &times, TimeWindowedSerde::of::<String>(String::serde(), difference));
        let found = if close { once(&results) } else { table(&results) };
        prop_assert_eq!(found, sliding(&times, difference));
    }

    #[test]
    fn an_unlimited_window_counts_from_its_start(times in times(), caching: bool, start in 0..250_i64) {
        let builder = builder(caching);
        let group = builder.stream::<String, i64>("in").group_by_key();
        group.windowed_by(UnlimitedWindows::of().start_on(start)).count().to_stream().to("out");
        let results = run(&builder, &times, TimeWindowedSerde::of::<String>(String::serde(), i64::MAX));
        let mut expected: BTreeMap<At, i64> = BTreeMap::new();
        for (number, _) in times.iter().filter(|(_, time)| *time >= start) {
            *expected.entry((key(*number), start, i64::MAX)).or_default() += 1;
        }
        prop_assert_eq!(table(&results), expected);
    }

    /// Inner, left and outer: every pair within reach once, and what met nobody once, whatever the order.
    #[test]
    fn a_stream_join_finds_all_pairs(
        sides in sides(), before in 0..60_i64, after in 0..60_i64, kind in 0..3_u8,
    ) {
        let builder = StreamsBuilder::new();
        let (left, right) = streams(&builder);
        let windows =
            JoinWindows::of_time_difference_and_grace(ms(0), ms(500)).before_ms(before).after_ms(after);
        match kind {
            0 => left.join(&right, joined, windows),
            1 => left.left_join(&right, joined, windows),
            _ => left.outer_join(&right, joined, windows),
        }
        .to("out");
        let fed: Vec<_> =
            sides.iter().enumerate().map(|(at, (l, k, t))| (*l, *k, *t, Some(at as i64))).collect();
        let mut found: Vec<_> =
            run_sides(&builder, &fed, true).into_iter().map(|(key, value)| (key, value.unwrap())).collect();
        found.sort();
        prop_assert_eq!(found, pairs(&sides, before, after, (kind > 0, kind > 1)));
    }

    /// Each stream record meets the row that is in the table then.
    #[test]
    fn a_stream_meets_the_table_of_the_moment(changes in changes(), outer: bool, caching: bool) {
        let builder = builder(caching);
        let (left, right) = (builder.stream::<String, i64>("left"), builder.table::<String, i64>("right"));
        if outer { left.left_join_table(&right, joined) } else { left.join_table(&right, joined) }.to("out");
        let mut table: BTreeMap<u8, i64> = BTreeMap::new();
        let mut expected = Vec::new();
        for (is_left, number, _, value) in &changes {
            match (is_left, value) {
                (false, Some(value)) => drop(table.insert(*number, *value)),
                (false, None) => drop(table.remove(number)),
                (true, None) => {}
                (true, Some(value)) => {
                    let row = table.get(number).copied();
                    if outer || row.is_some() {
                        expected.push((key(*number), Some(text((Some(*value), row)))));
                    }
                }
            }
        }
        prop_assert_eq!(run_sides(&builder, &changes, false), expected);
    }

    /// Inner, left and outer: the joined table is the join of what the tables hold in the end.
    #[test]
    fn joined_tables_are_the_join_of_their_rows(changes in changes(), kind in 0..3_u8, caching: bool) {
        let builder = builder(caching);
        let (left, right) = tables(&builder);
        match kind {
            0 => left.join(&right, joined),
            1 => left.left_join(&right, joined),
            _ => left.outer_join(&right, joined),
        }
        .to_stream()
        .to("out");
        let (left, right) = (rows(&changes, true), rows(&changes, false));
        let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        let mut expected = BTreeMap::new();
        for key in keys {
            let row = (left.get(key).copied(), right.get(key).copied());
            let wanted = match kind {
                0 => row.0.is_some() && row.1.is_some(),
                1 => row.0.is_some(),
                _ => true,
            };
            if wanted {
                expected.insert(key.clone(), text(row));
            }
        }
        prop_assert_eq!(last(run_sides(&builder, &changes, false)), expected);
    }

    /// The value of a left row names the right row it joins.
    #[test]
    fn a_foreign_key_join_follows_its_keys(changes in changes(), outer: bool, caching: bool) {
        let builder = builder(caching);
        let (left, right) = tables(&builder);
        let select = |_: Option<&String>, value: Option<&i64>| value.map(|value| format!("k{value}"));
        if outer { left.left_join_on(&right, select, joined) } else { left.join_on(&right, select, joined) }
            .to_stream()
            .to("out");
        let (left, right) = (rows(&changes, true), rows(&changes, false));
        let mut expected = BTreeMap::new();
        for (key, value) in left {
            let row = right.get(&format!("k{value}")).copied();
            if outer || row.is_some() {
                expected.insert(key, text((Some(value), row)));
            }
        }
        prop_assert_eq!(last(run_sides(&builder, &changes, false)), expected);
    }
}
