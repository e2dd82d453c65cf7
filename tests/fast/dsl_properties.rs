//! Random streams through the DSL against naive oracles: plain loops over maps that say what each operator means.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice::streams::{
    kstream::{StreamsBuilder, TopologyConfig},
    serdes::HasSerde,
    test_utils::TopologyTestDriver,
};

/// A record: key, value or null, timestamp. Few keys, so that records meet; times out of order.
type Input = Vec<(u8, Option<i64>, i64)>;

fn inputs() -> impl Strategy<Value = Input> {
    prop::collection::vec((0..4_u8, prop::option::weighted(0.8, -20..20_i64), 0..100_i64), 0..40)
}

fn builder(caching: bool) -> StreamsBuilder {
    StreamsBuilder::with_config(TopologyConfig { caching, ..TopologyConfig::default() })
}

fn key(number: u8) -> String {
    format!("k{number}")
}

/// Feeds `in` and reads `out`, as (key, value, timestamp).
fn run(builder: &StreamsBuilder, input: &Input) -> Vec<(String, Option<i64>, i64)> {
    let driver = TopologyTestDriver::new(builder.build("app").unwrap()).unwrap();
    let topic = driver.create_input_topic::<String, i64>("in", String::serde(), i64::serde());
    let output = driver.create_output_topic::<String, i64>("out", String::serde(), i64::serde());
    for (number, value, timestamp) in input {
        topic.pipe_input(Some(key(*number)), *value, *timestamp).unwrap();
    }
    let records = output.read_records().unwrap();
    records.into_iter().map(|record| (record.key.unwrap(), record.value, record.timestamp)).collect()
}

/// What a reader of the output holds: the last value of each key.
fn last(outputs: &[(String, Option<i64>, i64)]) -> BTreeMap<String, i64> {
    let mut table = BTreeMap::new();
    for (key, value, _) in outputs {
        match value {
            Some(value) => drop(table.insert(key.clone(), *value)),
            None => drop(table.remove(key)),
        }
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every record with a value updates its key's sum; the result's time is the largest seen for the key.
    #[test]
    fn an_aggregate_is_a_fold(input in inputs(), caching: bool) {
        let builder = builder(caching);
        builder
            .stream::<String, i64>("in")
            .group_by_key()
            .aggregate(|| Some(0_i64), |_, n, sum| Some(sum? + n?))
            .to_stream()
            .to("out");
        let mut sums: BTreeMap<u8, (i64, i64)> = BTreeMap::new();
        let mut expected = Vec::new();
        for (number, value, timestamp) in &input {
            let Some(value) = value else { continue };
            let entry = sums.entry(*number).or_insert((0, i64::MIN));
            *entry = (entry.0 + value, entry.1.max(*timestamp));
            expected.push((key(*number), Some(entry.0), entry.1));
        }
        prop_assert_eq!(run(&builder, &input), expected);
    }

    #[test]
    fn a_reduce_starts_with_the_first_value(input in inputs(), caching: bool) {
        let builder = builder(caching);
        let numbers = builder.stream::<String, i64>("in");
        numbers.group_by_key().reduce(|a, b| a.max(b).copied()).to_stream().to("out");
        let mut largest: BTreeMap<u8, i64> = BTreeMap::new();
        let mut expected = Vec::new();
        for (number, value, _) in &input {
            let Some(value) = value else { continue };
            let entry = largest.entry(*number).or_insert(*value);
            *entry = (*entry).max(*value);
            expected.push((key(*number), Some(*entry)));
        }
        let found: Vec<_> = run(&builder, &input).into_iter().map(|(key, value, _)| (key, value)).collect();
        prop_assert_eq!(found, expected);
    }

    /// The total over all groups is the sum over the rows of the table, whatever was replaced or deleted.
    #[test]
    fn a_regrouped_table_sums_its_rows(input in inputs(), caching: bool) {
        let builder = builder(caching);
        builder
            .table::<String, i64>("in")
            .group_by(|_, n| (n.map(|n| format!("g{}", n.rem_euclid(3))), n.copied()))
            .aggregate(|| Some(0_i64), |_, n, sum| Some(sum? + n?), |_, n, sum| Some(sum? - n?))
            .to_stream()
            .to("out");
        let mut table = BTreeMap::new();
        for (number, value, _) in &input {
            match value {
                Some(value) => drop(table.insert(*number, *value)),
                None => drop(table.remove(number)),
            }
        }
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        for value in table.values() {
            *expected.entry(format!("g{}", value.rem_euclid(3))).or_default() += value;
        }
        let mut found = last(&run(&builder, &input));
        // A group everyone has left stands at 0.
        found.retain(|group, sum| *sum != 0 || expected.contains_key(group));
        prop_assert_eq!(found, expected);
    }

    /// Counting regrouped counts: two aggregations and a hop, judged by the first in a plain map.
    #[test]
    fn a_histogram_of_counts_is_consistent(input in inputs(), caching: bool) {
        let builder = builder(caching);
        builder
            .stream::<String, i64>("in")
            .group_by_key()
            .count()
            .group_by(|_, n| (n.map(i64::to_string), n.copied()))
            .count()
            .to_stream()
            .to("out");
        let mut counts: BTreeMap<u8, i64> = BTreeMap::new();
        for (number, value, _) in &input {
            if value.is_some() {
                *counts.entry(*number).or_default() += 1;
            }
        }
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        for count in counts.values() {
            *expected.entry(count.to_string()).or_default() += 1;
        }
        let mut found = last(&run(&builder, &input));
        found.retain(|_, keys| *keys != 0);
        prop_assert_eq!(found, expected);
    }

    /// Whether the rows are stored on the way or not, a reader of a filtered, mapped table holds the same.
    #[test]
    fn table_operators_keep_the_table(input in inputs(), caching: bool, stored: bool) {
        use sluice::streams::kstream::{Materialized, Named};
        let builder = builder(caching);
        let table = builder.table::<String, i64>("in");
        let even = |_: Option<&String>, n: Option<&i64>| Ok(n.is_some_and(|n| n % 2 == 0));
        let kept = table.filter_with(even, Named::default(), stored.then(|| Materialized::named("kept")));
        kept.map_values(|_, n| n.map(|n| n * 10)).to_stream().to("out");
        let mut expected = BTreeMap::new();
        for (number, value, _) in &input {
            match value.filter(|value| value % 2 == 0) {
                Some(value) => drop(expected.insert(key(*number), value * 10)),
                None => drop(expected.remove(&key(*number))),
            }
        }
        prop_assert_eq!(last(&run(&builder, &input)), expected);
    }
}
