//! One history: instances, the log, the clock, and what chance does to them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        ClientSupplier, ConsumerConfig, NewTopic, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions, LogCall},
    },
    config::StreamsConfig,
    error::StreamsError,
    metrics::StreamsMetrics,
    record::{ConsumerRecord, Headers, ProducerRecord, TopicPartition},
    runtime::{
        PartitionPlan, StreamThread, TaskId, TaskOptions, ThreadParts, ThreadStatus, create_internal_topics,
        plan_partitions,
    },
    state::{Backend, Order, Store},
    topology::Topology,
};

use crate::{
    random::Random,
    word_count::{APPLICATION, INPUT, Model, OUTPUT, STORE, topology},
};

const PARTITIONS: i32 = 3;
const INSTANCES: usize = 3;
const ACTIONS: usize = 400;
const WORDS: u64 = 7;

/// What happened in the histories, to know that every fault was met.
#[derive(Debug, Default)]
pub struct Tally {
    pub crashes: u64,
    pub closes: u64,
    pub stalls: u64,
    pub clock_jumps: u64,
    pub faults_before: u64,
    pub answers_lost: u64,
    pub thread_errors: u64,
    pub records: u64,
    pub disks_lost: u64,
    pub files_torn: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.crashes += other.crashes;
        self.closes += other.closes;
        self.stalls += other.stalls;
        self.clock_jumps += other.clock_jumps;
        self.faults_before += other.faults_before;
        self.answers_lost += other.answers_lost;
        self.thread_errors += other.thread_errors;
        self.records += other.records;
        self.disks_lost += other.disks_lost;
        self.files_torn += other.files_torn;
    }

    pub fn covers_every_fault(&self) -> bool {
        [
            self.crashes,
            self.closes,
            self.stalls,
            self.clock_jumps,
            self.faults_before,
            self.answers_lost,
            self.thread_errors,
            self.disks_lost,
            self.files_torn,
        ]
        .iter()
        .all(|count| *count > 0)
    }
}

/// Faults of the log, shared with its hook.
struct Faults {
    on: AtomicBool,
    random: Mutex<Random>,
    before: AtomicU64,
    after: AtomicU64,
}

impl Faults {
    /// Refuses a call, or loses its answer.
    fn strike(&self, call: LogCall, done: bool) -> Result<(), StreamsError> {
        if !self.on.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut random = self.random.lock().expect("one thread");
        if !random.chance(8) {
            return Ok(());
        }
        let counter = if done { &self.after } else { &self.before };
        counter.fetch_add(1, Ordering::Relaxed);
        Err(match call {
            // The outcome is unknown to the caller: it may or may not have happened.
            LogCall::CommitTransaction | LogCall::Commit => {
                StreamsError::Retriable(format!("simulated: {call:?}, done {done}"))
            }
            LogCall::SendOffsets if random.chance(500) => {
                StreamsError::Retriable(format!("simulated: {call:?}, done {done}"))
            }
            LogCall::Send | LogCall::Flush | LogCall::SendOffsets => {
                StreamsError::AbortTransaction(format!("simulated: {call:?}, done {done}"))
            }
            LogCall::Poll | LogCall::AbortTransaction => {
                StreamsError::Retriable(format!("simulated: {call:?}, done {done}"))
            }
        })
    }
}

struct Instance {
    thread: Option<StreamThread>,
    stalled: bool,
}

struct World {
    log: EmbeddedLog,
    topology: Arc<Topology>,
    /// One folder per instance: each is a machine of its own.
    disks: tempfile::TempDir,
    plan: Arc<PartitionPlan>,
    now: Arc<AtomicI64>,
    faults: Arc<Faults>,
    random: Random,
    instances: Vec<Instance>,
    model: Model,
    written: u64,
    tally: Tally,
}

/// Runs one history to its end and checks it.
pub fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..ACTIONS {
        world.act();
    }
    world.calm_down();
    world.check();
    world.tally.faults_before = world.faults.before.load(Ordering::Relaxed);
    world.tally.answers_lost = world.faults.after.load(Ordering::Relaxed);
    world.tally.records = world.written;
    world.tally
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let faults = Arc::new(Faults {
            on: AtomicBool::new(false),
            random: Mutex::new(Random::new(seed ^ 0xfa17)),
            before: AtomicU64::new(0),
            after: AtomicU64::new(0),
        });
        let clock = now.clone();
        let hook = faults.clone();
        let log = EmbeddedLog::in_memory_with(EmbeddedOptions {
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            request_timeout: Duration::ZERO,
            session_timeout: Duration::from_secs(10),
            faults: Some(Arc::new(move |call, done| hook.strike(call, done))),
            ..EmbeddedOptions::default()
        });
        let topic = |name: &str| NewTopic {
            name: name.into(),
            partitions: PARTITIONS,
            replication_factor: 1,
            config: BTreeMap::new(),
        };
        let admin = log.admin().expect("the embedded log has an admin");
        admin.create_topics(&[topic(INPUT), topic(OUTPUT)]).expect("topics are new");
        // Files are slow: a quarter of the histories has them.
        let backend = if seed.is_multiple_of(4) { Backend::Persistent } else { Backend::InMemory };
        let topology = Arc::new(topology(backend));
        let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).expect("topics exist"));
        create_internal_topics(&topology, &plan, -1, admin.as_ref()).expect("internal topics are new");
        let instances = (0..INSTANCES).map(|_| Instance { thread: None, stalled: false }).collect();
        let mut world = Self {
            log,
            topology,
            disks: tempfile::tempdir().expect("a temporary folder"),
            plan,
            now,
            faults,
            random: Random::new(seed),
            instances,
            model: Model::default(),
            written: 0,
            tally: Tally::default(),
        };
        world.write();
        world.faults.on.store(true, Ordering::Relaxed);
        world
    }

    /// One thing happens.
    fn act(&mut self) {
        let which = self.random.below(INSTANCES as u64) as usize;
        match self.random.below(1_000) {
            0..700 => self.step(which),
            700..850 => {
                let by = self.random.below(40) as i64;
                self.now.fetch_add(by, Ordering::Relaxed);
            }
            850..860 => {
                // Past session and transaction timeouts, or back.
                self.tally.clock_jumps += 1;
                let jump = [-5_000, 4_000, 11_000, 20_000][self.random.below(4) as usize];
                self.now.fetch_add(jump, Ordering::Relaxed);
            }
            860..920 => self.write(),
            920..945 => self.crash(which),
            945..960 => {
                if let Some(mut thread) = self.instances[which].thread.take() {
                    self.tally.closes += 1;
                    let _ = thread.close();
                }
            }
            960..980 => {
                // A process that stands still and comes back later, believing it still owns its tasks.
                self.tally.stalls += 1;
                self.instances[which].stalled = true;
            }
            _ => {
                for instance in &mut self.instances {
                    instance.stalled = false;
                }
            }
        }
    }

    /// The process dies. Its disk stays, is lost, or is torn.
    fn crash(&mut self, which: usize) {
        let Some(thread) = self.instances[which].thread.take() else { return };
        self.tally.crashes += 1;
        self.instances[which].stalled = false;
        thread.abandon();
        let folder = self.disks.path().join(which.to_string());
        // The dead process's descriptors still hold its locks here; a copy of the files is what the next process finds.
        let moved = self.disks.path().join(format!("{which}-{}", self.tally.crashes));
        if !folder.exists() {
            return;
        }
        std::fs::rename(&folder, &moved).expect("same disk");
        if self.random.chance(200) {
            self.tally.disks_lost += 1;
            return;
        }
        let from = moved.join(APPLICATION);
        let to = folder.join(APPLICATION);
        std::fs::create_dir_all(&to).expect("a folder");
        for file in std::fs::read_dir(&from).into_iter().flatten().flatten() {
            let mut bytes = std::fs::read(file.path()).expect("a file");
            if self.random.chance(60) && !bytes.is_empty() {
                self.tally.files_torn += 1;
                bytes.truncate(self.random.below(bytes.len() as u64) as usize);
            }
            std::fs::write(to.join(file.file_name()), bytes).expect("space");
        }
    }

    fn step(&mut self, which: usize) {
        if self.instances[which].stalled {
            return;
        }
        if self.instances[which].thread.is_none() {
            let thread = self.spawn(which);
            self.instances[which].thread = thread;
        }
        let Some(thread) = &mut self.instances[which].thread else { return };
        match thread.run_once() {
            Ok(_) => {}
            Err(StreamsError::Retriable(_)) => {
                // As the supervisor does: the thread starts anew.
                self.tally.thread_errors += 1;
                self.instances[which].thread = None;
            }
            Err(error) => panic!("instance {which}: {error}"),
        }
    }

    fn spawn(&mut self, which: usize) -> Option<StreamThread> {
        let config = Arc::new(StreamsConfig {
            application_id: APPLICATION.into(),
            instance_id: which.to_string(),
            poll: Duration::ZERO,
            state_dir: self.disks.path().join(which.to_string()),
            save_rows_min: 1,
            save_in_background: false,
            save_age_max: Duration::from_millis(100),
            max_poll_records: 20,
            commit_interval: Duration::from_millis(30),
            transaction_timeout: Duration::from_secs(5),
            task_timeout: Duration::from_secs(5),
            ..StreamsConfig::default()
        });
        let mut options = TaskOptions::new(self.topology.clone(), config);
        let counts = self.plan.partitions.clone();
        options.partition_counts =
            Arc::new(move |topic| Ok(counts.get(topic).copied().unwrap_or(PARTITIONS)));
        let now = self.now.clone();
        let thread = StreamThread::new(ThreadParts {
            name: format!("{which}-0"),
            options,
            plan: self.plan.clone(),
            clients: Arc::new(self.log.clone()),
            clock: Arc::new(move || now.load(Ordering::Relaxed)),
            metrics: StreamsMetrics::default(),
            status: Arc::new(Mutex::new(ThreadStatus::default())),
        });
        match thread {
            Ok(thread) => Some(thread),
            Err(StreamsError::Retriable(_)) => None,
            Err(error) => panic!("instance {which} cannot start: {error}"),
        }
    }

    fn write(&mut self) {
        let faults = self.faults.on.swap(false, Ordering::Relaxed);
        let mut producer = self.log.producer(&ProducerConfig::default()).expect("a producer");
        for _ in 0..self.random.below(30) + 1 {
            let word = format!("w{}", self.random.below(WORDS));
            self.model.wrote(&word);
            let record = ProducerRecord {
                topic: INPUT.into(),
                partition: None,
                key: Some(Bytes::from(format!("k{}", self.written))),
                value: Some(Bytes::from(word)),
                timestamp: Some(self.now.load(Ordering::Relaxed)),
                headers: Headers::EMPTY,
            };
            producer.send(record).expect("faults are off");
            self.written += 1;
        }
        producer.flush().expect("faults are off");
        self.faults.on.store(faults, Ordering::Relaxed);
    }

    /// Faults end; everybody runs until nothing is left to do.
    fn calm_down(&mut self) {
        self.faults.on.store(false, Ordering::Relaxed);
        for instance in &mut self.instances {
            instance.stalled = false;
        }
        let mut quiet = 0;
        for _ in 0..20_000 {
            self.now.fetch_add(17, Ordering::Relaxed);
            for which in 0..INSTANCES {
                self.step(which);
            }
            quiet = if self.settled() { quiet + 1 } else { 0 };
            if quiet > 5 {
                return;
            }
        }
        panic!("the instances do not come to rest");
    }

    /// Whether the group has committed everything there is.
    fn settled(&self) -> bool {
        let admin = self.log.admin().expect("an admin");
        let committed = admin.group_offsets(APPLICATION).expect("offsets");
        let mut ends = self
            .log
            .consumer(&ConsumerConfig { read_committed: false, ..ConsumerConfig::default() })
            .expect("a consumer");
        self.plan.partitions.iter().all(|(topic, count)| {
            (0..*count).all(|partition| {
                let partition = TopicPartition { topic: topic.clone(), partition };
                let (first, _) = ends.watermarks(&partition).expect("known partition");
                let last = self.read(topic, partition.partition).last().map(|record| record.offset + 1);
                let at = committed.get(&partition).map_or(first, |offset| offset.offset);
                at >= last.unwrap_or(first)
            })
        })
    }

    /// Committed records of a partition.
    fn read(&self, topic: &str, partition: i32) -> Vec<ConsumerRecord> {
        let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
        let mut consumer = self.log.consumer(&config).expect("a consumer");
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

    fn check(&mut self) {
        let mut outputs: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        let mut changelog: BTreeMap<String, i64> = BTreeMap::new();
        for partition in 0..PARTITIONS {
            for record in self.read(OUTPUT, partition) {
                let (word, count) = word_and_count(&record);
                outputs.entry(word).or_default().push(count);
            }
            for record in self.read(&format!("{APPLICATION}-{STORE}-changelog"), partition) {
                let (word, count) = word_and_count(&record);
                changelog.insert(word, count);
            }
        }
        self.model.check_outputs(&outputs);
        self.model.check_counts(&changelog, "changelog");
        let mut live = BTreeMap::new();
        for instance in &mut self.instances {
            let Some(thread) = &mut instance.thread else { continue };
            for partition in 0..PARTITIONS {
                let task = TaskId { subtopology: 0, partition };
                for task in [task, TaskId { subtopology: 1, partition }] {
                    thread.with_store(task, STORE, |store| {
                        let Store::KeyValue(store) = store else { panic!("{STORE} is a key-value store") };
                        for (key, row) in store.range(None, None, Order::Forward).expect("in memory") {
                            let count = *row.value.downcast_ref::<i64>().expect("a count");
                            live.insert(String::from_utf8_lossy(&key).into_owned(), count);
                        }
                    });
                }
            }
        }
        self.model.check_counts(&live, "live state");
        for instance in &mut self.instances {
            if let Some(mut thread) = instance.thread.take() {
                thread.close().expect("nothing stands in the way");
            }
        }
    }
}

fn word_and_count(record: &ConsumerRecord) -> (String, i64) {
    let word = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
    let bytes: [u8; 8] = record.value.as_deref().unwrap_or_default().try_into().expect("eight bytes");
    (word, i64::from_be_bytes(bytes))
}
