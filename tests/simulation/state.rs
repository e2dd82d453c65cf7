//! The state of a task against its changelog: a store built anew from what is committed must hold the same rows.

use std::time::Duration;

use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, embedded::EmbeddedLog},
    internals::{Order, Store, StoreEnvironment, StreamThread, changelog_topic, stores},
    record::{ConsumerRecord, TopicPartition},
    runtime::TaskId,
    stores::{StoreBuilder, StoreKind},
    topology::Topology,
};

/// Key, start, end, value, timestamp.
type Row = (Vec<u8>, i64, i64, Vec<u8>, i64);

fn rows(store: &mut Store, builder: &StoreBuilder) -> Vec<Row> {
    // Where the state file has columns, two states are the same when those are.
    let bytes = |value| match builder.value_serde.columns() {
        Some(columns) => format!("{:?}", columns.to_columns(value)).into_bytes(),
        None => builder.value_serde.to_bytes(value).expect("what was stored can be written"),
    };
    let mut rows: Vec<Row> = match store {
        Store::KeyValue(store) => {
            let all = store.range(None, None, Order::Forward).expect("readable");
            all.iter().map(|(key, row)| (key.to_vec(), 0, 0, bytes(&row.value), row.timestamp)).collect()
        }
        Store::Window(store) => {
            let timestamped = matches!(builder.kind, StoreKind::Window { timestamped: true, .. });
            let all = store.all().expect("readable");
            let time = |at: i64| if timestamped { at } else { 0 };
            all.iter()
                .map(|row| {
                    let (seq, at) = (i64::from(row.seq), time(row.value.timestamp));
                    (row.key.to_vec(), row.start, seq, bytes(&row.value.value), at)
                })
                .collect()
        }
        Store::Session(store) => {
            let all = store.all().expect("readable");
            all.iter().map(|row| (row.key.to_vec(), row.start, row.end, bytes(&row.value), 0)).collect()
        }
        // Neither can be listed without changing it; the outputs tell.
        Store::Buffer(store) => {
            vec![(Vec::new(), store.min_timestamp(), store.num_records() as i64, Vec::new(), 0)]
        }
        Store::Versioned(_) => Vec::new(),
    };
    rows.sort();
    rows
}

/// Committed records of a partition, from its first.
pub fn read(log: &EmbeddedLog, topic: &str, partition: i32) -> Vec<ConsumerRecord> {
    let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).expect("a consumer");
    consumer.assign(&[(TopicPartition::new(topic, partition), Some(0))]).expect("known partition");
    let mut all = Vec::new();
    loop {
        let records = consumer.poll(Duration::ZERO).expect("faults are off").records;
        if records.is_empty() {
            return all;
        }
        all.extend(records);
    }
}

/// What differs between the stores of the thread's running tasks and the committed changelogs; how many stores were compared.
pub fn check(
    log: &EmbeddedLog,
    topology: &Topology,
    thread: &mut StreamThread,
    tasks: &[i32],
    watermarks: bool,
) -> Result<usize, String> {
    let mut compared = 0;
    for (subtopology, described) in stores(topology) {
        for partition in 0..tasks[subtopology] {
            let task = TaskId { subtopology, partition };
            let Some(live) = thread.with_store(task, &described.name, |store| rows(store, &described)) else {
                continue;
            };
            let changelog = changelog_topic(topology.application_id(), &described.name);
            let builder = StoreBuilder { logging: false, caching: false, ..described.clone() };
            let environment = StoreEnvironment { cache: None, db: None, ..StoreEnvironment::default() };
            let records = read(log, &changelog, partition);
            // Where watermarks are on, rows may live longer than by the largest time alone, but not for ever.
            let replayed = |watermark: Option<i64>| {
                let mut anew = builder.build(&environment).expect("a store");
                if let Some(watermark) = watermark {
                    anew.as_state_store().expire_by(watermark);
                }
                anew.as_state_store().restore(&records).expect("a changelog can be replayed");
                rows(&mut anew, &described)
            };
            let (least, most) = (replayed(None), replayed(watermarks.then_some(-1)));
            compared += 1;
            let within = |some: &[Row], all: &[Row]| some.iter().all(|row| all.contains(row));
            if !within(&least, &live) || !within(&live, &most) {
                let only = |a: &[Row], b: &[Row]| -> Vec<String> {
                    let lost = a.iter().filter(|row| !b.contains(row)).take(4);
                    lost.map(|(key, start, end, value, at)| {
                        format!("{:?} {start} {end} {value:?} @{at}", String::from_utf8_lossy(key))
                    })
                    .collect()
                };
                return Err(format!(
                    "store {} of task {task}: {} rows live, {} by the changelog; live only: {:?}; changelog only: {:?}",
                    described.name,
                    live.len(),
                    least.len(),
                    only(&live, &most),
                    only(&least, &live)
                ));
            }
        }
    }
    Ok(compared)
}
