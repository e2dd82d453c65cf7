//! Operators that keep no state, and the Processor API inside the DSL.

use std::sync::{Arc, Mutex};

use sluice::streams::{
    error::Result,
    kstream::{Named, Produced, Repartitioned},
    processor::{
        FixedKeyProcessor, FixedKeyProcessorContext, FixedKeyRecord, Processor, ProcessorContext,
        PunctuationType, ScheduleId,
    },
    record::{Headers, Record, Timestamp},
    serdes::HasSerde,
    stores::{StoreBuilder, StoreKind},
};

use super::{
    Case, check, check_cached,
    compare::Agree::{Bag, Everything, Last},
    in_driver, in_runtime, topology,
};

fn even(n: Option<&i64>) -> bool {
    n.is_some_and(|n| n % 2 == 0)
}

fn by_value(n: Option<&i64>) -> Option<String> {
    n.map(|n| format!("v{}", n % 10))
}

/// Numbers the records of each key, in a store.
struct Numbered;

impl Processor<String, i64, String, i64> for Numbered {
    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, i64>,
        record: Record<String, i64>,
    ) -> Result<()> {
        let key = record.key.as_deref().cloned().unwrap_or_default();
        let numbers = context.key_value_store::<String, i64>("numbers")?;
        let number = numbers.get(&key)?.map_or(1, |before| *before + 1);
        numbers.put(&key, number)?;
        context.forward(record.with_value(Some(number)))
    }
}

/// Adds one to each number.
struct AddOne;

impl FixedKeyProcessor<String, i64, i64> for AddOne {
    fn process(
        &mut self,
        context: &FixedKeyProcessorContext<'_, String, i64>,
        record: FixedKeyRecord<String, i64>,
    ) -> Result<()> {
        let value = record.value.as_deref().map(|n| n + 1);
        context.forward(record.with_value(value))
    }
}

/// Keeps the last value of each key and forwards all of them at each punctuation.
struct Batched;

impl Processor<String, i64, String, i64> for Batched {
    fn init(&mut self, context: &ProcessorContext<'_, String, i64>) -> Result<()> {
        context.schedule(500, PunctuationType::StreamTime);
        Ok(())
    }

    fn process(
        &mut self,
        context: &ProcessorContext<'_, String, i64>,
        record: Record<String, i64>,
    ) -> Result<()> {
        let (Some(key), Some(value)) = (record.key, record.value) else { return Ok(()) };
        context.key_value_store::<String, i64>("batches")?.put(&key, *value)?;
        context.commit();
        Ok(())
    }

    fn punctuate(
        &mut self,
        context: &ProcessorContext<'_, String, i64>,
        _: ScheduleId,
        _: Timestamp,
    ) -> Result<()> {
        let batches = context.key_value_store::<String, i64>("batches")?;
        for (key, _) in batches.all()? {
            let Some(row) = batches.get_with_timestamp(&key)? else { continue };
            context.forward(Record {
                key: Some(key),
                value: Some(row.value),
                timestamp: row.timestamp,
                headers: Headers::EMPTY,
            })?;
        }
        Ok(())
    }
}

fn numbers_store(name: &str) -> StoreBuilder {
    StoreBuilder::new(name, StoreKind::KeyValue { timestamped: true }, String::serde(), i64::serde())
}

const CASES: &[Case] = &[
    Case { name: "filter", agree: Everything, build: |i, out| i.stream().filter(|_, n| even(n)).to(out) },
    Case {
        name: "filter_not",
        agree: Everything,
        build: |i, out| i.stream().filter_not(|_, n| even(n)).to(out),
    },
    Case {
        name: "map",
        agree: Bag,
        build: |i, out| i.stream().map(|key, n| (by_value(n), key.cloned())).to(out),
    },
    Case {
        name: "map_values",
        agree: Everything,
        build: |i, out| i.stream().map_values(|key, n| Some(format!("{key:?}{n:?}"))).to(out),
    },
    Case {
        name: "flat_map",
        agree: Bag,
        build: |i, out| {
            i.stream().flat_map(|key, n| [(by_value(n), n.copied()), (key.cloned(), n.map(|n| -n))]).to(out);
        },
    },
    Case {
        name: "flat_map_values",
        agree: Everything,
        build: |i, out| {
            i.stream().flat_map_values(|_, n| vec![n.copied(); n.map_or(0, |n| n % 3) as usize]).to(out)
        },
    },
    Case {
        name: "select_key",
        agree: Bag,
        build: |i, out| i.stream().select_key(|_, n| by_value(n)).to(out),
    },
    Case { name: "peek", agree: Everything, build: |i, out| i.stream().peek(|_, _| {}).to(out) },
    Case {
        name: "merge",
        agree: Everything,
        build: |i, out| i.stream().merge(&i.other().map_values(|_, n| n.map(|n| -n))).to(out),
    },
    Case {
        name: "split",
        agree: Everything,
        build: |i, out| {
            let branches = i
                .stream()
                .split("by-")
                .branch(|_, n| even(n), "even")
                .branch(|_, n| n.is_none(), "null")
                .default_branch("odd");
            branches["by-even"].map_values(|_, n| n.map(|n| n + 1_000)).to(out);
            let others = branches["by-odd"].merge(&branches["by-null"]);
            others
                .map_values(|_, n| Some(n.map_or(-1, |n| -n)))
                .process_values(|| AddOne, "others", &[])
                .to(out);
        },
    },
    Case {
        name: "split_without_default",
        agree: Everything,
        build: |i, out| {
            let branches = i.stream().split("some-").branch(|_, n| even(n), "even").no_default_branch();
            branches["some-even"].to(out);
        },
    },
    Case {
        name: "repartition",
        agree: Bag,
        build: |i, out| {
            let by_key = |_: &str, record: &sluice::streams::record::AnyRecord, count: i32| {
                let key = record.key.as_ref()?.downcast_ref::<String>()?;
                Some(vec![key.len() as i32 % count])
            };
            let options = Repartitioned::named("five").with_number_of_partitions(5);
            i.stream().repartition_with(options.with_partitioner(Arc::new(by_key))).to(out);
        },
    },
    Case {
        name: "repartition_again",
        agree: Bag,
        build: |i, out| i.stream().select_key(|_, n| by_value(n)).repartition().to(out),
    },
    Case {
        name: "to_many",
        agree: Bag,
        build: |i, out| {
            let choose = |_: &str, record: &sluice::streams::record::AnyRecord, count: i32| {
                let n = record.value.as_ref()?.downcast_ref::<i64>()?;
                match n % 3 {
                    0 => Some((0..count).collect()),
                    1 => Some(vec![]),
                    _ => None,
                }
            };
            i.stream()
                .filter(|key, _| key.is_some())
                .to_with(out, Produced::default().with_partitioner(Arc::new(choose)));
        },
    },
    Case {
        name: "to_dynamic",
        agree: Everything,
        build: |i, out| {
            let out = out.to_owned();
            let choose =
                move |_: Option<&String>, n: Option<&i64>, _: &sluice::streams::record::RecordContext| {
                    if even(n) { out.clone() } else { "out-peek".to_owned() }
                };
            i.stream().filter(|_, n| even(n)).to_dynamic(choose, Produced::default());
        },
    },
    Case {
        name: "process",
        agree: Everything,
        build: |i, out| {
            i.builder.add_state_store(numbers_store("numbers"));
            i.stream().process(|| Numbered, Named::default(), &["numbers"]).to(out);
        },
    },
    Case {
        name: "process_values",
        agree: Everything,
        build: |i, out| i.stream().process_values(|| AddOne, Named::default(), &[]).to(out),
    },
];

#[test]
fn stateless_operators() {
    check(CASES);
}

/// `for_each` has no output: what it was shown is compared, without regard to repeats (a record is shown again after a crash).
#[test]
fn for_each_is_shown_every_record() {
    static SEEN: Mutex<std::collections::BTreeSet<(Option<String>, Option<i64>)>> =
        Mutex::new(std::collections::BTreeSet::new());
    const CASES: &[Case] = &[Case {
        name: "for_each",
        agree: Everything,
        build: |i, out| {
            i.stream().for_each(|key, n| {
                SEEN.lock().unwrap().insert((key.cloned(), n.copied()));
            });
            i.stream().to(out);
        },
    }];
    let config = sluice::streams::kstream::TopologyConfig::default();
    let topics = ["out-for_each".to_owned()];
    let seen = [true, false].map(|driver| {
        SEEN.lock().unwrap().clear();
        match driver {
            true => drop(in_driver(topology(CASES, &config), &topics)),
            false => drop(in_runtime(&|| topology(CASES, &config), &topics, true)),
        }
        SEEN.lock().unwrap().clone()
    });
    assert!(seen[0].len() > 100);
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn stateless_operators_with_caches() {
    check_cached(&[Case {
        name: "process_cached",
        agree: Everything,
        build: |i, out| {
            i.builder.add_state_store(StoreBuilder { caching: true, ..numbers_store("numbers") });
            i.stream().process(|| Numbered, Named::default(), &["numbers"]).to(out);
        },
    }]);
}

/// When a punctuation comes, between which records, depends on the thread. What it forwards does not: rows that were put, and after the
/// restart those of both lives.
#[test]
fn schedules_are_kept_up_after_a_restart() {
    const CASES: &[Case] = &[Case {
        name: "punctuate",
        agree: Last,
        build: |i, out| {
            i.builder.add_state_store(numbers_store("batches"));
            i.stream().process(|| Batched, Named::default(), &["batches"]).to(out);
        },
    }];
    let config = sluice::streams::kstream::TopologyConfig::default();
    let topics = ["out-punctuate".to_owned()];
    let put: Vec<_> =
        super::records(0..super::RECORDS).into_iter().filter(|record| &*record.topic == "in").collect();
    let restart = put[put.len() / 2].timestamp.unwrap() + 200;
    let found = in_runtime(&|| topology(CASES, &config), &topics, false);
    assert_eq!(found.len(), 3, "every partition");
    for (partition, outputs) in found {
        assert!(outputs.iter().any(|output| output.timestamp > restart), "{partition} after the restart");
        for output in outputs {
            assert!(
                put.iter().any(|row| {
                    (&row.key, &row.value, row.timestamp)
                        == (&output.key, &output.value, Some(output.timestamp))
                }),
                "{partition}: a row that was never put"
            );
        }
    }
}
