//! The embedded log under the contract of the ports, in memory and in a file, and what only a file can do: survive.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        ClientSupplier, Consumer, ConsumerConfig, NewTopic, OffsetAndMetadata, ProducerConfig, Rebalance,
        embedded::{EmbeddedLog, EmbeddedOptions, LogCall},
    },
    error::StreamsError,
    record::{ConsumerRecord, Headers, ProducerRecord, TopicPartition},
};

mod in_memory {
    use super::*;
    macro_rules! tests {
        ($($case:ident)*) => { $(
            #[test]
            fn $case() {
                crate::contract::$case(&EmbeddedLog::in_memory());
            }
        )* };
    }
    crate::for_each_case!(tests);
}

mod in_file {
    use super::*;
    macro_rules! tests {
        ($($case:ident)*) => { $(
            #[test]
            fn $case() {
                let directory = tempfile::tempdir().unwrap();
                // So little memory that readers of anything old go to the file.
                let options = EmbeddedOptions { memory_bytes_max: 0, ..EmbeddedOptions::default() };
                crate::contract::$case(&EmbeddedLog::open_with(directory.path().join("log.db"), options).unwrap());
            }
        )* };
    }
    crate::for_each_case!(tests);
}

fn create(log: &EmbeddedLog, topic: &str, config: &[(&str, &str)]) {
    let config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let topic = NewTopic { name: topic.to_owned(), partitions: 1, replication_factor: 1, config };
    log.admin().unwrap().create_topics(&[topic]).unwrap();
}

fn record(topic: &str, key: &str, value: Option<&str>, timestamp: i64) -> ProducerRecord {
    ProducerRecord {
        topic: topic.into(),
        partition: Some(0),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: value.map(|v| Bytes::copy_from_slice(v.as_bytes())),
        timestamp: Some(timestamp),
        headers: Headers::EMPTY,
    }
}

fn read(log: &EmbeddedLog, topic: &str) -> Vec<ConsumerRecord> {
    let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).unwrap();
    consumer.assign(&[(TopicPartition::new(topic, 0), Some(0))]).unwrap();
    let mut records = Vec::new();
    loop {
        let polled = consumer.poll(Duration::ZERO).unwrap().records;
        if polled.is_empty() {
            return records;
        }
        records.extend(polled);
    }
}

fn texts(records: &[ConsumerRecord]) -> Vec<(i64, String)> {
    let text =
        |b: &Option<Bytes>| b.as_ref().map_or("null".to_owned(), |b| String::from_utf8_lossy(b).into_owned());
    records.iter().map(|r| (r.offset, format!("{}={}", text(&r.key), text(&r.value)))).collect()
}

/// Set for the process that `a_killed_process_keeps_what_it_was_promised` starts from this same binary: the file, and
/// after how many promises it kills itself.
const CRASH_FILE: &str = "SLUICE_TEST_CRASH_FILE";
const CRASH_AFTER: &str = "SLUICE_TEST_CRASH_AFTER";

/// The part that is killed. Each `promised` is a moment at which a call has returned that promises durability.
#[test]
fn crash_child() {
    let (Ok(path), Ok(after)) = (std::env::var(CRASH_FILE), std::env::var(CRASH_AFTER)) else { return };
    let mut left: u32 = after.parse().unwrap();
    let mut promised = || {
        left -= 1;
        if left == 0 {
            std::process::abort();
        }
    };
    let log = EmbeddedLog::open(path).unwrap();
    create(&log, "t", &[]);
    promised();
    let mut plain = log.producer(&ProducerConfig::default()).unwrap();
    let tx = ProducerConfig { transactional_id: Some("tx".into()), ..ProducerConfig::default() };
    let mut transactional = log.producer(&tx).unwrap();
    transactional.init_transactions().unwrap();
    let config = ConsumerConfig { group_id: Some("g".into()), ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).unwrap();
    let group = consumer.group_metadata().unwrap();
    let offsets = |offset, text: &str| {
        let value = OffsetAndMetadata { offset, metadata: text.to_owned() };
        BTreeMap::from([(TopicPartition::new("t", 0), value)])
    };

    transactional.begin_transaction().unwrap();
    transactional.send(record("t", "tx", Some("committed"), 1)).unwrap();
    plain.send(record("t", "plain", Some("flushed"), 2)).unwrap();
    plain.flush().unwrap();
    promised();
    transactional.send_offsets_to_transaction(&offsets(1, "in transaction"), &group).unwrap();
    transactional.commit_transaction().unwrap();
    promised();
    consumer.commit(&offsets(2, "kept")).unwrap();
    promised();

    transactional.begin_transaction().unwrap();
    transactional.send(record("t", "tx", Some("open"), 3)).unwrap();
    transactional.send_offsets_to_transaction(&offsets(9, "open"), &group).unwrap();
    plain.send(record("t", "plain", Some("over an open transaction"), 4)).unwrap();
    plain.flush().unwrap();
    promised();
    log.admin().unwrap().delete_records(&BTreeMap::from([(TopicPartition::new("t", 0), 1)])).unwrap();
    promised();
    unreachable!("the parent asks for at most six promises");
}

#[test]
fn a_killed_process_keeps_what_it_was_promised() {
    // Offset 2 is the commit marker, 3 the open transaction.
    let (committed, flushed, over) =
        ((0, "tx=committed"), (1, "plain=flushed"), (4, "plain=over an open transaction"));
    let after: [(&[(i64, &str)], Option<(i64, &str)>); 6] = [
        (&[], None),
        (&[flushed], None),
        (&[committed, flushed], Some((1, "in transaction"))),
        (&[committed, flushed], Some((2, "kept"))),
        (&[committed, flushed, over], Some((2, "kept"))),
        (&[flushed, over], Some((2, "kept"))),
    ];
    for (promises, (records, offset)) in (1..).zip(after) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.db");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedded_contract::crash_child", "--test-threads=1"])
            .env(CRASH_FILE, &path)
            .env(CRASH_AFTER, promises.to_string())
            .output()
            .unwrap();
        assert!(!child.status.success(), "the child must be killed: {child:?}");

        let log = EmbeddedLog::open(&path).unwrap();
        let survived = texts(&read(&log, "t"));
        let survived: Vec<_> = survived.iter().map(|(offset, text)| (*offset, text.as_str())).collect();
        assert_eq!(survived, records, "after {promises} promises");
        let kept = offset.map(|(offset, metadata)| {
            (TopicPartition::new("t", 0), OffsetAndMetadata { offset, metadata: metadata.to_owned() })
        });
        let offsets = log.admin().unwrap().group_offsets("g").unwrap();
        assert_eq!(offsets, BTreeMap::from_iter(kept), "after {promises} promises");

        // And it goes on: no offset is given twice.
        let end = log
            .consumer(&ConsumerConfig::default())
            .unwrap()
            .watermarks(&TopicPartition::new("t", 0))
            .unwrap()
            .1;
        assert!(records.last().is_none_or(|(last, _)| end > *last));
        let mut producer = log.producer(&ProducerConfig::default()).unwrap();
        producer.send(record("t", "k", Some("again"), 5)).unwrap();
        assert_eq!(texts(&read(&log, "t")).last(), Some(&(end, "k=again".to_owned())));
    }
}

#[test]
fn a_file_has_one_user_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let first = EmbeddedLog::open(&path).unwrap();
    let error = EmbeddedLog::open(&path).err().expect("the second must be refused").to_string();
    assert!(error.contains("in use by process") && error.contains("log.db"), "{error}");
    drop(first);
    EmbeddedLog::open(&path).unwrap();
}

#[test]
fn a_reopened_log_reads_on_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    {
        let log = EmbeddedLog::open(&path).unwrap();
        create(&log, "t", &[("retention.ms", "1000")]);
        let mut producer = log.producer(&ProducerConfig::default()).unwrap();
        for i in 0..5000 {
            producer.send(record("t", "k", Some(&i.to_string()), i)).unwrap();
        }
        // Not flushed: closing an open log in good order writes it too.
    }
    let log = EmbeddedLog::open(&path).unwrap();
    assert_eq!(log.admin().unwrap().topic_config("t").unwrap()["retention.ms"], "1000");
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    producer.send(record("t", "k", Some("5000"), 5000)).unwrap();
    let records = read(&log, "t");
    assert_eq!(records.len(), 5001);
    for (i, record) in records.iter().enumerate() {
        assert_eq!((record.offset, record.timestamp), (i as i64, i as i64));
        assert_eq!(record.value.as_deref(), Some(i.to_string().as_bytes()));
    }
}

/// Both kinds of log, opened on the same manual clock.
fn both_kinds(test: impl Fn(&EmbeddedLog, &AtomicI64)) {
    for kind in ["memory", "file", "file, nothing in memory"] {
        println!("{kind}");
        let time = Arc::new(AtomicI64::new(0));
        let clock = time.clone();
        let options = EmbeddedOptions {
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            memory_bytes_max: if kind == "file" { 1 << 20 } else { 0 },
            request_timeout: Duration::ZERO,
            ..EmbeddedOptions::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let log = match kind {
            "memory" => EmbeddedLog::in_memory_with(options),
            _ => EmbeddedLog::open_with(directory.path().join("log.db"), options).unwrap(),
        };
        test(&log, &time);
    }
}

#[test]
fn retention_drops_what_is_too_old() {
    both_kinds(|log, _| {
        create(log, "t", &[("retention.ms", "1000")]);
        create(log, "kept", &[]);
        let mut producer = log.producer(&ProducerConfig::default()).unwrap();
        for i in 0..4000 {
            producer.send(record("t", "k", Some("v"), i)).unwrap();
            producer.send(record("kept", "k", Some("v"), i)).unwrap();
        }
        producer.flush().unwrap();
        log.maintain(4000).unwrap();
        let left = read(log, "t");
        let first = left.first().map(|r| r.offset).unwrap();
        // A file gives up whole batches of 512, memory single records.
        assert!((3000 - 512..=3000).contains(&first), "the first record left is {first}");
        assert_eq!(left.len() as i64, 4000 - first);
        assert_eq!(read(log, "kept").len(), 4000);
        let mut consumer = log.consumer(&ConsumerConfig::default()).unwrap();
        assert_eq!(consumer.watermarks(&TopicPartition::new("t", 0)).unwrap(), (first, 4000));
    });
}

#[test]
fn compaction_keeps_the_last_of_each_key() {
    const DAY: i64 = 24 * 60 * 60 * 1000;
    both_kinds(|log, _| {
        create(log, "t", &[("cleanup.policy", "compact")]);
        let mut producer = log.producer(&ProducerConfig::default()).unwrap();
        for i in 0..3000 {
            producer.send(record("t", &format!("k{}", i % 3), Some(&i.to_string()), i)).unwrap();
        }
        producer.send(record("t", "k0", None, 3000)).unwrap();
        producer.flush().unwrap();
        let tx = ProducerConfig { transactional_id: Some("tx".into()), ..ProducerConfig::default() };
        let mut open = log.producer(&tx).unwrap();
        open.init_transactions().unwrap();
        open.begin_transaction().unwrap();
        open.send(record("t", "k1", Some("open"), 3001)).unwrap();
        producer.send(record("t", "k2", Some("after the open one"), 3002)).unwrap();
        producer.flush().unwrap();

        log.maintain(0).unwrap();
        let expected = [(2998, "k1=2998".into()), (2999, "k2=2999".into()), (3000, "k0=null".into())];
        assert_eq!(texts(&read(log, "t")), expected);
        log.maintain(DAY - 1).unwrap();
        assert_eq!(texts(&read(log, "t")), expected, "a tombstone stays for a day");

        open.commit_transaction().unwrap();
        log.maintain(DAY).unwrap();
        let expected = [(3001, "k1=open".into()), (3002, "k2=after the open one".into())];
        assert_eq!(texts(&read(log, "t")), expected);
        assert_eq!(log.maintain(DAY).unwrap().partitions_compacted, 0, "nothing new: nothing to do");
    });
}

#[test]
fn a_background_job_does_not_keep_the_log_open() {
    let log = EmbeddedLog::in_memory();
    create(&log, "t", &[("retention.ms", "0")]);
    let mut producer = log.producer(&ProducerConfig::default()).unwrap();
    producer.send(record("t", "k", Some("v"), 0)).unwrap();
    let maintenance = log.maintenance();
    assert_eq!(maintenance.run().unwrap().unwrap().partitions_expired, 1);
    assert!(read(&log, "t").is_empty());
    drop((log, producer));
    assert!(maintenance.run().is_none());
}

#[test]
fn a_member_that_falls_silent_loses_its_partitions() {
    both_kinds(|log, time| {
        create(log, "t", &[]);
        let config = ConsumerConfig {
            group_id: Some("g".into()),
            session_timeout: Some(Duration::from_millis(100)),
            ..ConsumerConfig::default()
        };
        let mut silent = log.consumer(&config).unwrap();
        silent.subscribe(&["t".to_owned()]).unwrap();
        let tp = TopicPartition::new("t", 0);
        let polled = |consumer: &mut Box<dyn Consumer>| consumer.poll(Duration::ZERO).unwrap().rebalance;
        assert_eq!(polled(&mut silent), Some(Rebalance::Assigned(vec![tp.clone()])));
        silent.assign(&[(tp.clone(), None)]).unwrap();

        time.store(101, Ordering::Relaxed);
        let mut heir = log.consumer(&config).unwrap();
        heir.subscribe(&["t".to_owned()]).unwrap();
        assert_eq!(polled(&mut heir), Some(Rebalance::Assigned(vec![tp.clone()])));
        heir.assign(&[(tp.clone(), None)]).unwrap();
        let late = OffsetAndMetadata { offset: 0, metadata: String::new() };
        assert!(silent.commit(&BTreeMap::from([(tp.clone(), late)])).is_err());
        assert_eq!(polled(&mut silent), Some(Rebalance::Lost(vec![tp.clone()])));
        assert_eq!(polled(&mut silent), None, "nothing until it lets go");
        silent.unassign().unwrap();
        assert_eq!(polled(&mut silent), None, "it has joined again and waits for the heir");
        assert_eq!(polled(&mut heir), Some(Rebalance::Revoked(vec![tp])));
    });
}

#[test]
fn committed_does_not_answer_while_a_transaction_is_undecided() {
    both_kinds(|log, time| {
        create(log, "t", &[]);
        let tp = TopicPartition::new("t", 0);
        let config =
            ConsumerConfig { group_id: Some("g".into()), read_committed: true, ..ConsumerConfig::default() };
        let mut consumer = log.consumer(&config).unwrap();
        let tx = ProducerConfig { transactional_id: Some("tx".into()), ..ProducerConfig::default() };
        let mut producer = log.producer(&tx).unwrap();
        producer.init_transactions().unwrap();
        producer.begin_transaction().unwrap();
        let offset = OffsetAndMetadata { offset: 0, metadata: String::new() };
        let offsets = BTreeMap::from([(tp.clone(), offset)]);
        producer.send_offsets_to_transaction(&offsets, &consumer.group_metadata().unwrap()).unwrap();
        let tps = [tp.clone()];
        assert!(matches!(
            consumer.committed(&tps),
            Err(sluice::streams::error::StreamsError::Retriable(why)) if why.contains("t-0")
        ));
        consumer.assign(&[(tp.clone(), None)]).unwrap();
        assert_eq!(consumer.position(&tp).unwrap(), None, "where to start is not decided either");
        // The transaction times out: its offsets never were.
        time.store(15_001, Ordering::Relaxed);
        assert_eq!(consumer.committed(&tps).unwrap(), BTreeMap::new());
        assert_eq!(consumer.position(&tp).unwrap(), Some(0));
    });
}

#[test]
fn an_unknown_commit_is_asked_for_again() {
    let loses = Arc::new(AtomicBool::new(false));
    let lost = loses.clone();
    let log = EmbeddedLog::in_memory_with(EmbeddedOptions {
        faults: Some(Arc::new(move |call, done| {
            match call == LogCall::CommitTransaction && done && lost.load(Ordering::Relaxed) {
                true => Err(StreamsError::Retriable("the answer is lost".to_owned())),
                false => Ok(()),
            }
        })),
        ..EmbeddedOptions::default()
    });
    let set = |on| loses.store(on, Ordering::Relaxed);
    crate::contract::an_unknown_commit_is_asked_for_again(&log, || set(true), || set(false));
}
