//! Random histories on the embedded log: a log in memory and one in a file, with hardly any memory, must show the same;
//! and a copy of the file taken at any moment, which is what a killed process leaves, must hold everything promised and
//! nothing undecided. A failure prints its seed; `SLUICE_TEST_SEED=n` repeats it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sluice::streams::{
    client::{
        ClientSupplier, ConsumerConfig, NewTopic, OffsetAndMetadata, Producer, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    record::{Headers, ProducerRecord, TopicPartition},
};

const PARTITIONS: i32 = 2;
const STEPS: usize = 250;
const DAY: i64 = 24 * 60 * 60 * 1000;

/// One record as a reader sees it: partition, offset, text.
type Seen = (i32, i64, String);

fn see(log: &EmbeddedLog, read_committed: bool) -> Vec<Seen> {
    let config = ConsumerConfig { read_committed, max_poll_records: 97, ..ConsumerConfig::default() };
    let mut consumer = log.consumer(&config).unwrap();
    let start: Vec<_> = (0..PARTITIONS).map(|p| (TopicPartition::new("t", p), Some(0))).collect();
    consumer.assign(&start).unwrap();
    let mut seen = Vec::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap().records;
        if records.is_empty() {
            break;
        }
        seen.extend(records.into_iter().map(|r| {
            let text = r.value.map_or("null".to_owned(), |v| String::from_utf8_lossy(&v).into_owned());
            (r.partition, r.offset, text)
        }));
    }
    seen.sort();
    seen
}

/// A log and the producers at work on it.
struct Rig {
    log: EmbeddedLog,
    plain: Box<dyn Producer>,
    transactional: Vec<Box<dyn Producer>>,
}

impl Rig {
    fn new(log: EmbeddedLog, policy: &str) -> Self {
        let config = BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
        let topic = NewTopic { name: "t".into(), partitions: PARTITIONS, replication_factor: 1, config };
        log.admin().unwrap().create_topics(&[topic]).unwrap();
        let transactional = (0..2).map(|i| {
            let config =
                ProducerConfig { transactional_id: Some(format!("tx{i}")), transaction_timeout: None };
            let mut producer = log.producer(&config).unwrap();
            producer.init_transactions().unwrap();
            producer
        });
        Self {
            plain: log.producer(&ProducerConfig::default()).unwrap(),
            transactional: transactional.collect(),
            log,
        }
    }
}

/// What has been promised, kept beside the logs.
#[derive(Default)]
struct Promises {
    /// Texts that must survive, until something deletes or compacts them away.
    durable: BTreeSet<String>,
    /// Sent by the plain producer since its last flush.
    unflushed: BTreeSet<String>,
    /// Sent in the open transaction of each transactional producer, and the offset sent with it.
    open: [Option<(BTreeSet<String>, i64)>; 2],
    committed_offset: i64,
}

fn record(partition: i32, key: u32, text: &str, timestamp: i64) -> ProducerRecord {
    ProducerRecord {
        topic: "t".into(),
        partition: Some(partition),
        key: Some(Bytes::from(key.to_string())),
        value: Some(Bytes::copy_from_slice(text.as_bytes())),
        timestamp: Some(timestamp),
        headers: Headers::EMPTY,
    }
}

fn run(seed: u64, policy: &str) {
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.db");
    let options = |memory_bytes_max| EmbeddedOptions {
        clock: Arc::new(|| 0),
        memory_bytes_max,
        request_timeout: Duration::ZERO,
        ..EmbeddedOptions::default()
    };
    let mut rigs = [
        Rig::new(EmbeddedLog::in_memory_with(options(0)), policy),
        Rig::new(EmbeddedLog::open_with(&path, options(0)).unwrap(), policy),
    ];
    let group = ConsumerConfig { group_id: Some("g".into()), ..ConsumerConfig::default() };
    let identity = rigs[0].log.consumer(&group).unwrap().group_metadata().unwrap();
    let mut promises = Promises::default();
    let (mut texts, mut crashes) = (0, 0);

    for step in 0..STEPS {
        let who = random.random_range(0..2usize);
        match random.random_range(0..100) {
            0..40 => {
                let (partition, key) = (random.random_range(0..PARTITIONS), random.random_range(0..20));
                for _ in 0..random.random_range(1..120) {
                    texts += 1;
                    let text = format!("v{texts}");
                    let in_transaction = promises.open[who].is_some() && random.random_bool(0.5);
                    for rig in &mut rigs {
                        let producer =
                            if in_transaction { &mut rig.transactional[who] } else { &mut rig.plain };
                        producer.send(record(partition, key, &text, step as i64)).unwrap();
                    }
                    match &mut promises.open[who] {
                        Some((sent, _)) if in_transaction => sent.insert(text),
                        _ => promises.unflushed.insert(text),
                    };
                }
            }
            40..50 => {
                rigs.iter_mut().for_each(|rig| rig.plain.flush().unwrap());
                promises.durable.append(&mut promises.unflushed);
            }
            50..85 => match promises.open[who].take() {
                None => {
                    rigs.iter_mut().for_each(|rig| rig.transactional[who].begin_transaction().unwrap());
                    promises.open[who] = Some((BTreeSet::new(), -1));
                }
                Some((sent, _)) if random.random_bool(0.3) => {
                    rigs.iter_mut().for_each(|rig| rig.transactional[who].abort_transaction().unwrap());
                    drop(sent);
                }
                Some((mut sent, mut offset)) => {
                    if random.random_bool(0.5) {
                        offset = step as i64;
                        let value = OffsetAndMetadata { offset, metadata: String::new() };
                        let offsets = BTreeMap::from([(TopicPartition::new("t", 0), value)]);
                        for rig in &mut rigs {
                            rig.transactional[who].send_offsets_to_transaction(&offsets, &identity).unwrap();
                        }
                    }
                    rigs.iter_mut().for_each(|rig| rig.transactional[who].commit_transaction().unwrap());
                    promises.durable.append(&mut sent);
                    // A commit writes everything decided, so what the plain producer sent before is in the file too,
                    // but that was not promised.
                    promises.committed_offset = promises.committed_offset.max(offset);
                }
            },
            85..90 if policy == "compact" => {
                let day = step as i64 * DAY;
                for rig in &rigs {
                    rig.log.maintain(day).unwrap();
                }
                forget_what_is_gone(&mut promises, &rigs[0].log);
            }
            85..90 => {
                let partition = TopicPartition::new("t", random.random_range(0..PARTITIONS));
                let (start, end) =
                    rigs[0].log.consumer(&ConsumerConfig::default()).unwrap().watermarks(&partition).unwrap();
                let before = BTreeMap::from([(partition, start + (end - start) / 3)]);
                rigs.iter().for_each(|rig| rig.log.admin().unwrap().delete_records(&before).unwrap());
                forget_what_is_gone(&mut promises, &rigs[0].log);
            }
            _ => {
                crashes += 1;
                check_crash(&path, &rigs[1].log, &promises);
            }
        }
        if step % 20 == 0 {
            assert_eq!(
                see(&rigs[0].log, true),
                see(&rigs[1].log, true),
                "step {step}: committed records differ"
            );
            assert_eq!(see(&rigs[0].log, false), see(&rigs[1].log, false), "step {step}: records differ");
        }
    }
    assert!(crashes > 3 && texts > 1000, "a history too poor to tell anything");
}

fn forget_what_is_gone(promises: &mut Promises, log: &EmbeddedLog) {
    let kept: BTreeSet<String> = see(log, false).into_iter().map(|(_, _, text)| text).collect();
    // What is not promised yet is deleted and compacted just the same.
    let open = promises.open.iter_mut().flatten().map(|(sent, _)| sent);
    for sent in open.chain([&mut promises.durable, &mut promises.unflushed]) {
        sent.retain(|text| kept.contains(text));
    }
}

/// Opens a copy of the file as a restarted process would.
fn check_crash(path: &std::path::Path, live: &EmbeddedLog, promises: &Promises) {
    let directory = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = |p: &std::path::Path| {
            let mut name = p.as_os_str().to_owned();
            name.push(suffix);
            std::path::PathBuf::from(name)
        };
        let _ = std::fs::copy(name(path), name(&directory.path().join("copy.db")));
    }
    let reopened = EmbeddedLog::open(directory.path().join("copy.db")).unwrap();
    let after = see(&reopened, true);
    assert_eq!(after, see(&reopened, false), "nothing is open after a restart");
    let texts: BTreeSet<String> = after.iter().map(|(_, _, text)| text.clone()).collect();
    let lost: Vec<_> = promises.durable.difference(&texts).collect();
    assert!(
        lost.is_empty(),
        "promised and lost {} of {}, {} there: {:?}",
        lost.len(),
        promises.durable.len(),
        texts.len(),
        &lost[..lost.len().min(20)]
    );
    let undecided = promises.open.iter().flatten().flat_map(|(sent, _)| sent);
    for text in undecided {
        assert!(!texts.contains(text), "{text} of an open transaction survived");
    }
    let before: BTreeSet<Seen> = see(live, false).into_iter().collect();
    for seen in &after {
        assert!(before.contains(seen), "{seen:?} was never in the log, or not there");
    }
    let offsets = reopened.admin().unwrap().group_offsets("g").unwrap();
    let offset = offsets.values().next().map_or(0, |o| o.offset);
    assert_eq!(offset, promises.committed_offset);
    for partition in 0..PARTITIONS {
        let partition = TopicPartition::new("t", partition);
        let end = reopened.consumer(&ConsumerConfig::default()).unwrap().watermarks(&partition).unwrap().1;
        let last =
            after.iter().filter(|(p, ..)| *p == partition.partition).map(|(_, offset, _)| *offset).max();
        assert!(last.is_none_or(|last| end > last), "offset {end} would be given twice");
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("SLUICE_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("SLUICE_TEST_SEED is a number")],
        Err(_) => (1..=3).collect(),
    }
}

#[test]
fn random_histories_with_deletion() {
    for seed in seeds() {
        println!("SLUICE_TEST_SEED={seed}");
        run(seed, "delete");
    }
}

#[test]
fn random_histories_with_compaction() {
    for seed in seeds() {
        println!("SLUICE_TEST_SEED={seed}");
        run(seed, "compact");
    }
}
