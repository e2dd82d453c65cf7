//! What becomes of an application whose state files or changelogs are not as it left them: a clear message and the right act each, and
//! counts that are exact afterwards.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sluice::streams::{
    client::{ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig, embedded::EmbeddedLog},
    config::{SaveTiming, StreamsConfig},
    error::{Result, StreamsError},
    internals::{
        PartitionPlan, StreamThread, TaskOptions, ThreadParts, create_internal_topics, plan_partitions,
    },
    kstream::{StreamsBuilder, TopologyConfig},
    metrics::StreamsMetrics,
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::{TaskState, ThreadStatus},
    topology::Topology,
};

const CHANGELOG: &str = "survival-KSTREAM-AGGREGATE-STATE-STORE-0000000001-changelog";

struct App {
    log: EmbeddedLog,
    topology: Arc<Topology>,
    plan: Arc<PartitionPlan>,
    folder: tempfile::TempDir,
    now: Arc<AtomicI64>,
    written: usize,
}

impl App {
    /// Counts by key, one partition.
    fn new() -> Self {
        let log = EmbeddedLog::in_memory();
        let admin = log.admin().unwrap();
        let topic = |name: &str| NewTopic {
            name: name.into(),
            partitions: 1,
            replication_factor: 1,
            config: BTreeMap::new(),
        };
        admin.create_topics(&[topic("in"), topic("out")]).unwrap();
        let builder =
            StreamsBuilder::with_config(TopologyConfig { caching: false, ..TopologyConfig::default() });
        builder.stream::<String, String>("in").group_by_key().count().to_stream().to("out");
        let topology = Arc::new(builder.build("survival").unwrap());
        let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).unwrap());
        create_internal_topics(&topology, &plan, -1, admin.as_ref()).unwrap();
        let now = Arc::new(AtomicI64::new(1_000_000));
        Self { log, topology, plan, folder: tempfile::tempdir().unwrap(), now, written: 0 }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("survival/0_0.sqlite")
    }

    fn thread(&self) -> (StreamThread, Arc<Mutex<ThreadStatus>>) {
        let config = StreamsConfig {
            application_id: "survival".into(),
            state_dir: self.folder.path().to_owned(),
            poll: Duration::ZERO,
            commit_interval: Duration::from_millis(1),
            save_rows_min: 1,
            save_age_max: Duration::ZERO,
            save_timing: SaveTiming::AtCommit,
            ..StreamsConfig::default()
        };
        let mut options = TaskOptions::new(self.topology.clone(), Arc::new(config));
        options.partition_counts = Arc::new(|_| Ok(1));
        let status = Arc::new(Mutex::new(ThreadStatus::default()));
        let now = self.now.clone();
        let thread = StreamThread::new(ThreadParts {
            name: "0-0".into(),
            options,
            plan: self.plan.clone(),
            clients: Arc::new(self.log.clone()),
            clock: Arc::new(move || now.fetch_add(7, Ordering::Relaxed)),
            metrics: StreamsMetrics::default(),
            status: status.clone(),
        });
        (thread.unwrap(), status)
    }

    fn write(&mut self, count: usize) {
        let mut producer = self.log.producer(&ProducerConfig::default()).unwrap();
        for n in self.written..self.written + count {
            producer
                .send(ProducerRecord {
                    topic: "in".into(),
                    partition: None,
                    key: Some(Bytes::from(format!("k{}", n % 10))),
                    value: Some(Bytes::from_static(b"x")),
                    timestamp: Some(n as i64),
                    headers: Headers::EMPTY,
                })
                .unwrap();
        }
        producer.flush().unwrap();
        self.written += count;
    }

    /// Runs until there is nothing to do.
    fn run(&self, thread: &mut StreamThread) -> Result<()> {
        let mut idle = 0;
        while idle < 30 {
            idle = if thread.run_once()? { 0 } else { idle + 1 };
        }
        Ok(())
    }

    /// A first life: counts `count` records, saves, closes. The second one begins with twice as many to do.
    fn lived(count: usize) -> Self {
        let mut app = Self::new();
        app.write(count);
        let (mut thread, _) = app.thread();
        app.run(&mut thread).unwrap();
        thread.close().unwrap();
        assert!(app.file().exists(), "the state file is where it is expected");
        app.write(count);
        app
    }

    /// Runs another life to its end: records replayed.
    fn live_on(&self) -> u64 {
        let (mut thread, status) = self.thread();
        self.run(&mut thread).unwrap();
        thread.close().unwrap();
        status.lock().unwrap().restored
    }

    /// Every count of every key once, in order.
    fn assert_exact(&self) {
        let mut consumer =
            self.log.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() }).unwrap();
        consumer.assign(&[(TopicPartition::new("out", 0), Some(0))]).unwrap();
        let mut found: BTreeMap<Bytes, Vec<i64>> = BTreeMap::new();
        loop {
            let records = consumer.poll(Duration::ZERO).unwrap().records;
            if records.is_empty() {
                break;
            }
            for record in records {
                let count = i64::from_be_bytes(record.value.unwrap().as_ref().try_into().unwrap());
                found.entry(record.key.unwrap()).or_default().push(count);
            }
        }
        assert_eq!(found.len(), 10);
        let each: Vec<i64> = (1..=(self.written / 10) as i64).collect();
        for (key, counts) in found {
            assert_eq!(counts, each, "{key:?}");
        }
    }
}

#[test]
fn a_clean_restart_replays_nothing() {
    let app = App::lived(100);
    assert_eq!(app.live_on(), 0);
    app.assert_exact();
}

#[test]
fn a_deleted_state_directory_is_restored() {
    let app = App::lived(100);
    fs::remove_dir_all(app.folder.path().join("survival")).unwrap();
    assert_eq!(app.live_on(), 100);
    app.assert_exact();
}

#[test]
fn a_truncated_or_damaged_file_is_discarded_and_restored() {
    for keep in [0.1, 0.5, 0.95] {
        let app = App::lived(100);
        let bytes = fs::read(app.file()).unwrap();
        fs::write(app.file(), &bytes[..(bytes.len() as f64 * keep) as usize]).unwrap();
        assert_eq!(app.live_on(), 100, "cut to {keep}");
        app.assert_exact();
    }
}

#[test]
fn a_foreign_or_newer_file_stops_the_application_and_is_left_alone() {
    let app = App::lived(100);
    fs::write(app.file(), "my diary").unwrap();
    let (mut thread, _) = app.thread();
    let error = app.run(&mut thread).unwrap_err();
    assert!(matches!(&error, StreamsError::Fatal(why) if why.contains("left untouched")), "{error}");
    assert_eq!(fs::read_to_string(app.file()).unwrap(), "my diary");

    let app = App::lived(100);
    // Where SQLite keeps `user_version`.
    let mut bytes = fs::read(app.file()).unwrap();
    bytes[60..64].copy_from_slice(&99_i32.to_be_bytes());
    fs::write(app.file(), bytes).unwrap();
    let (mut thread, _) = app.thread();
    let error = app.run(&mut thread).unwrap_err();
    assert!(matches!(&error, StreamsError::Fatal(why) if why.contains("format 99")), "{error}");
}

#[test]
fn a_locked_file_is_waited_for_and_no_work_is_done_meanwhile() {
    let app = App::lived(100);
    let lock = fs::File::open(app.folder.path().join("survival/0_0.sqlite.lock")).unwrap();
    lock.lock().unwrap();
    let (mut thread, status) = app.thread();
    (0..50).for_each(|_| assert!(thread.run_once().is_ok()));
    let waiting = status.lock().unwrap().clone();
    assert_eq!(waiting.tasks.values().collect::<Vec<_>>(), [&TaskState::Restoring]);
    assert_eq!(waiting.processed, 0);
    drop(lock);
    app.run(&mut thread).unwrap();
    thread.close().unwrap();
    app.assert_exact();
}

/// The changelog was deleted and made anew while the file remembers the old one: what it holds has no proof any more.
#[test]
fn a_changelog_that_ends_before_the_file_stands_discards_the_file() {
    let app = App::lived(100);
    let admin = app.log.admin().unwrap();
    admin.delete_topics(&[CHANGELOG.to_owned()]).unwrap();
    create_internal_topics(&app.topology, &app.plan, -1, admin.as_ref()).unwrap();
    let (mut thread, _) = app.thread();
    app.run(&mut thread).unwrap();
    let kept = thread.with_store(
        sluice::streams::runtime::TaskId { subtopology: 0, partition: 0 },
        store_name(),
        |store| store.as_state_store().approximate_num_entries(),
    );
    assert_eq!(kept, Some(10), "only what came after it is counted, by the new changelog");
    thread.close().unwrap();
    assert_eq!(app.live_on(), 0, "the file goes with the new changelog now");
}

fn store_name() -> &'static str {
    CHANGELOG.strip_prefix("survival-").and_then(|name| name.strip_suffix("-changelog")).unwrap()
}

/// Retention or a person removed the records between the file and the first one kept: it cannot be completed, only rebuilt.
#[test]
fn a_changelog_that_begins_behind_the_file_discards_the_file() {
    let app = App::lived(100);
    let saved = fs::read(app.file()).unwrap();
    assert_eq!(app.live_on(), 0);
    // An old copy of the file comes back, and what it would need is gone.
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(app.file().with_extension(format!("sqlite{suffix}")));
    }
    fs::write(app.file(), saved).unwrap();
    let admin = app.log.admin().unwrap();
    let before = BTreeMap::from([(TopicPartition::new(CHANGELOG, 0), 150)]);
    admin.delete_records(&before).unwrap();
    let restored = app.live_on();
    assert!((40..=60).contains(&restored), "rebuilt from what is kept, not from the old file: {restored}");
}

/// The disk is full when the state is saved: the thread stops and says so; what is committed stays true, and with room again it goes on.
#[test]
fn a_full_disk_stops_the_thread_not_the_truth() {
    let app = App::lived(100);
    let log = app.file().with_extension("sqlite-wal");
    let _ = fs::remove_file(&log);
    // The write-ahead log of the file is on a device that is always full.
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let (mut thread, _) = app.thread();
    let error = app.run(&mut thread).unwrap_err();
    assert!(matches!(&error, StreamsError::Fatal(why) if why.contains("disk full")), "{error}");
    drop(thread);
    fs::remove_file(&log).unwrap();
    app.live_on();
    app.assert_exact();
}
