//! Members come, go, die and stand still, step by step on the embedded log: who runs what, what is replayed, and that counts stay exact.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        Admin, ClientSupplier, Consumer, ConsumerConfig, NewTopic, Producer, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    config::{ProcessingGuarantee, SaveTiming, StreamsConfig},
    error::{Result, StreamsError},
    internals::{
        CommitStep, PartitionPlan, StepHook, StreamThread, TaskOptions, ThreadParts, create_internal_topics,
        plan_partitions,
    },
    kstream::{KGroupedStream, StreamsBuilder, TimeWindows, TopologyConfig, Windowed},
    metrics::StreamsMetrics,
    record::{Headers, ProducerRecord, TopicPartition},
    runtime::{TaskId, TaskState, ThreadStatus},
    topology::Topology,
};

const PARTITIONS: i32 = 6;
const WORDS: usize = 600;
const SESSION: Duration = Duration::from_secs(10);
/// So long that nobody gets over a session's end by waiting for it.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

struct Member {
    thread: Option<StreamThread>,
    status: Arc<Mutex<ThreadStatus>>,
}

/// A group of members, each with a disk of its own.
struct Cluster {
    log: EmbeddedLog,
    /// What members that start from now on have of the log, and which guarantee.
    clients: Arc<dyn ClientSupplier>,
    guarantee: ProcessingGuarantee,
    topology: Arc<Topology>,
    plan: Arc<PartitionPlan>,
    disks: tempfile::TempDir,
    now: Arc<AtomicI64>,
    standbys: usize,
    idle_close_ms: Option<i64>,
    members: Vec<Member>,
    written: usize,
}

impl Cluster {
    /// Words counted behind a repartition topic.
    fn new(standbys: usize) -> Self {
        let idle_close_ms = StreamsConfig::default().idle_close_ms;
        Self::of(standbys, idle_close_ms, |words| words.count().to_stream().to("counts"))
    }

    /// Words grouped behind a repartition topic.
    fn of(
        standbys: usize,
        idle_close_ms: Option<i64>,
        build: impl FnOnce(KGroupedStream<String, String>),
    ) -> Self {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let clock = now.clone();
        let log = EmbeddedLog::in_memory_with(EmbeddedOptions {
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            session_timeout: SESSION,
            request_timeout: Duration::ZERO,
            ..EmbeddedOptions::default()
        });
        let topic = |name: &str| NewTopic {
            name: name.into(),
            partitions: PARTITIONS,
            replication_factor: 1,
            config: BTreeMap::new(),
        };
        let admin = log.admin().unwrap();
        admin.create_topics(&[topic("words"), topic("counts")]).unwrap();
        let builder =
            StreamsBuilder::with_config(TopologyConfig { caching: false, ..TopologyConfig::default() });
        let words = builder.stream::<String, String>("words");
        build(words.group_by(|_, word| word.cloned()));
        let topology = Arc::new(builder.build("cluster").unwrap());
        let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).unwrap());
        create_internal_topics(&topology, &plan, -1, admin.as_ref()).unwrap();
        let disks = tempfile::tempdir().unwrap();
        Self {
            clients: Arc::new(log.clone()),
            guarantee: ProcessingGuarantee::ExactlyOnce,
            log,
            topology,
            plan,
            disks,
            now,
            standbys,
            idle_close_ms,
            members: Vec::new(),
            written: 0,
        }
    }

    /// Starts a member under the name of its place, with the disk of that place.
    fn start(&mut self, place: usize, steps: Option<StepHook>) {
        let config = StreamsConfig {
            application_id: "cluster".into(),
            instance_id: place.to_string(),
            state_dir: self.disks.path().join(place.to_string()),
            poll: Duration::ZERO,
            processing_guarantee: self.guarantee,
            transaction_timeout: TRANSACTION_TIMEOUT,
            commit_interval: Duration::from_millis(20),
            save_rows_min: 1,
            save_age_max: Duration::from_millis(100),
            save_timing: SaveTiming::AtCommit,
            num_standby_replicas: self.standbys,
            idle_close_ms: self.idle_close_ms,
            ..StreamsConfig::default()
        };
        let mut options = TaskOptions::new(self.topology.clone(), Arc::new(config));
        let counts = self.plan.partitions.clone();
        options.partition_counts =
            Arc::new(move |topic| Ok(counts.get(topic).copied().unwrap_or(PARTITIONS)));
        options.steps = steps;
        let now = self.now.clone();
        let status = Arc::new(Mutex::new(ThreadStatus::default()));
        let thread = StreamThread::new(ThreadParts {
            name: format!("{place}-0"),
            options,
            plan: self.plan.clone(),
            clients: self.clients.clone(),
            clock: Arc::new(move || now.load(Ordering::Relaxed)),
            metrics: StreamsMetrics::default(),
            status: status.clone(),
        })
        .unwrap();
        let member = Member { thread: Some(thread), status };
        match self.members.get_mut(place) {
            Some(known) => *known = member,
            None => self.members.push(member),
        }
    }

    fn write(&mut self) {
        let from = self.written;
        self.send((from..from + WORDS).map(|n| (None, format!("w{}", n % 60), n as i64)));
        self.written += WORDS;
    }

    /// Writes words: partition, word, time.
    fn send(&self, words: impl IntoIterator<Item = (Option<i32>, String, i64)>) {
        let mut producer = self.log.producer(&ProducerConfig::default()).unwrap();
        for (n, (partition, word, time)) in words.into_iter().enumerate() {
            producer
                .send(ProducerRecord {
                    topic: "words".into(),
                    partition,
                    key: Some(Bytes::from(format!("k{}", self.written + n))),
                    value: Some(Bytes::from(word)),
                    timestamp: Some(time),
                    headers: Headers::EMPTY,
                })
                .unwrap();
        }
        producer.flush().unwrap();
    }

    fn step(&mut self) {
        self.now.fetch_add(5, Ordering::Relaxed);
        for member in &mut self.members {
            if let Some(thread) = &mut member.thread {
                thread.run_once().unwrap();
            }
        }
    }

    fn steps(&mut self, count: usize) {
        (0..count).for_each(|_| self.step());
    }

    /// The session of whoever is silent ends; the others have been heard of.
    fn let_sessions_end(&mut self) {
        for _ in 0..12 {
            self.now.fetch_add(SESSION.as_millis() as i64 / 10, Ordering::Relaxed);
            self.step();
        }
    }

    fn status(&self, place: usize) -> ThreadStatus {
        self.members[place].status.lock().unwrap().clone()
    }

    fn tasks(&self, place: usize) -> BTreeSet<TaskId> {
        self.status(place).tasks.into_keys().collect()
    }

    /// Runs until all is counted, then checks it.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.steps(10);
            if self.counts() == self.expected() {
                break;
            }
        }
        self.steps(30);
        assert_eq!(self.counts(), self.expected());
        let all: Vec<TaskId> = (0..self.members.len()).flat_map(|place| self.tasks(place)).collect();
        assert_eq!(all.len(), 2 * PARTITIONS as usize, "each task has one owner: {all:?}");
    }

    /// The counts of all that is written.
    fn expected(&self) -> BTreeMap<String, Vec<i64>> {
        (0..60).map(|n| (format!("w{n}"), (1..=(self.written / 60) as i64).collect())).collect()
    }

    fn counts(&self) -> BTreeMap<String, Vec<i64>> {
        let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
        let mut consumer = self.log.consumer(&config).unwrap();
        let all: Vec<_> = (0..PARTITIONS).map(|p| (TopicPartition::new("counts", p), Some(0))).collect();
        consumer.assign(&all).unwrap();
        let mut counts: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        loop {
            let records = consumer.poll(Duration::ZERO).unwrap().records;
            if records.is_empty() {
                return counts;
            }
            for record in records {
                let word = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
                let count = i64::from_be_bytes(record.value.unwrap().as_ref().try_into().unwrap());
                counts.entry(word).or_default().push(count);
            }
        }
    }

    fn close(&mut self, place: usize) {
        self.members[place].thread.take().unwrap().close().unwrap();
        *self.members[place].status.lock().unwrap() = ThreadStatus::default();
    }

    fn crash(&mut self, place: usize) {
        self.members[place].thread.take().unwrap().abandon();
        *self.members[place].status.lock().unwrap() = ThreadStatus::default();
    }
}

#[test]
fn scaling_from_one_to_three_to_two_moves_tasks_and_keeps_what_stays() {
    let mut cluster = Cluster::new(0);
    cluster.start(0, None);
    cluster.write();
    cluster.settle();
    let before = cluster.tasks(0);
    assert_eq!(before.len(), 12);
    cluster.start(1, None);
    cluster.start(2, None);
    cluster.write();
    cluster.settle();
    let sizes: Vec<usize> = (0..3).map(|place| cluster.tasks(place).len()).collect();
    assert_eq!(sizes, [4, 4, 4]);
    assert_eq!(cluster.status(0).restored, 0, "what stays is not restored");
    assert!(cluster.status(1).restored > 0, "what moves is");
    // One leaves for good: a static member is missed when its session ends.
    cluster.close(2);
    cluster.let_sessions_end();
    cluster.write();
    cluster.settle();
    assert_eq!((cluster.tasks(0).len(), cluster.tasks(1).len()), (6, 6));
}

#[test]
fn a_rolling_restart_moves_nothing_and_replays_nothing() {
    let mut cluster = Cluster::new(0);
    (0..3).for_each(|place| cluster.start(place, None));
    cluster.write();
    cluster.settle();
    let before: Vec<_> = (0..3).map(|place| cluster.tasks(place)).collect();
    for place in 0..3 {
        cluster.close(place);
        cluster.write();
        // The others go on meanwhile, not suspended for a moment.
        for _ in 0..40 {
            cluster.step();
            for other in (0..3).filter(|other| *other != place) {
                let states: Vec<TaskState> = cluster.status(other).tasks.into_values().collect();
                assert_eq!(states, [TaskState::Running; 4], "member {other} while {place} is away");
            }
        }
        cluster.start(place, None);
        cluster.settle();
        assert_eq!(cluster.status(place).restored, 0, "a clean close left nothing to replay");
    }
    let after: Vec<_> = (0..3).map(|place| cluster.tasks(place)).collect();
    assert_eq!(after, before);
}

#[test]
fn failover_with_a_standby_replays_only_the_tail() {
    let mut replayed = Vec::new();
    for standbys in [0, 1] {
        let mut cluster = Cluster::new(standbys);
        (0..2).for_each(|place| cluster.start(place, None));
        for _ in 0..5 {
            cluster.write();
            cluster.settle();
        }
        let before = cluster.status(1).restored;
        let owned = cluster.tasks(0);
        cluster.crash(0);
        cluster.let_sessions_end();
        cluster.steps(50);
        assert!(cluster.tasks(1).is_superset(&owned), "the tasks are taken over");
        replayed.push(cluster.status(1).restored - before);
        cluster.write();
        cluster.settle();
        // The dead one comes back under its name, with its old disk.
        let folder = cluster.disks.path().join("0");
        std::fs::rename(&folder, cluster.disks.path().join("dead")).unwrap();
        cluster.start(0, None);
        cluster.write();
        cluster.settle();
    }
    let [cold, warm] = replayed[..] else { panic!("two runs") };
    assert!(cold > 1_000, "without a copy the whole changelog is replayed: {cold}");
    assert_eq!(warm, 0, "the copy had everything: all of it was committed before the crash");
}

#[test]
fn a_copy_lets_go_of_what_its_owner_has_let_go_of_and_of_nothing_else() {
    const LATE: i64 = 10_000_000;
    let words = || (0..60).map(|n| format!("w{n}"));
    let windows = TimeWindows::of_size_and_grace(Duration::from_secs(1), Duration::from_millis(500));
    let mut cluster = Cluster::of(1, Some(3_600_000), |words| {
        let counts = words.windowed_by(windows).count().to_stream();
        counts
            .select_key(|window: Option<&Windowed<String>>, _| {
                window.map(|window| format!("{}@{}", window.key, window.window.start))
            })
            .to("counts");
    });
    (0..2).for_each(|place| cluster.start(place, None));
    // One partition is hours ahead of the others: by its times the first windows have expired, by the watermark they are open.
    cluster.send(words().map(|word| (Some(0), word, 100)));
    cluster.send(words().map(|word| (Some(1), word, LATE)));
    cluster.steps(300);
    let owned = cluster.tasks(0);
    assert!(owned.iter().any(|task| task.subtopology == 1), "a task that counts: {owned:?}");
    cluster.crash(0);
    cluster.let_sessions_end();
    cluster.steps(50);
    assert!(cluster.tasks(1).is_superset(&owned), "the tasks are taken over");
    cluster.send(words().map(|word| (Some(0), word, 200)));
    cluster.steps(300);
    let expected = |late: Vec<i64>| -> BTreeMap<String, Vec<i64>> {
        let first = words().map(|word| (format!("{word}@0"), vec![1, 2]));
        first.chain(words().map(|word| (format!("{word}@{LATE}"), late.clone()))).collect()
    };
    assert_eq!(cluster.counts(), expected(vec![1]));

    // The dead one comes back with a new disk. Its copies hold two windows of each word, and one when the watermark has passed.
    std::fs::rename(cluster.disks.path().join("0"), cluster.disks.path().join("dead")).unwrap();
    cluster.start(0, None);
    cluster.steps(300);
    let all: BTreeSet<TaskId> =
        (0..PARTITIONS).map(|partition| TaskId { subtopology: 1, partition }).collect();
    let rows = |cluster: &mut Cluster| -> i64 {
        let copies: Vec<TaskId> = all.difference(&cluster.tasks(0)).copied().collect();
        cluster.close(0);
        let rows_of = |task: &TaskId| {
            let file = cluster.disks.path().join(format!("0/cluster/{task}.sqlite"));
            let file = rusqlite::Connection::open(file).unwrap();
            let store = &sluice::streams::internals::stores(&cluster.topology)[0].1.name;
            file.query_row(&format!("select count(*) from \"{store}\""), [], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        copies.iter().map(rows_of).sum()
    };
    let before = rows(&mut cluster);
    cluster.start(0, None);
    cluster.send(
        (0..PARTITIONS).flat_map(|partition| words().map(move |word| (Some(partition), word, LATE + 1))),
    );
    cluster.steps(3_000);
    let after = rows(&mut cluster);
    assert_eq!((after > 0, before), (true, after * 2), "one of two windows has expired");
    let late = (1..=1 + i64::from(PARTITIONS)).collect();
    assert_eq!(cluster.counts(), expected(late));
}

#[test]
fn a_zombies_late_commit_is_refused() {
    // Its records are written, and its offsets, too.
    for stands_at in [CommitStep::Sent, CommitStep::OffsetsAdded] {
        let mut cluster = Cluster::new(0);
        // Before the group hears of the second member: it is made while the first one commits.
        let successor: Arc<Mutex<Option<StreamThread>>> = Arc::default();
        let (armed, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let hook: StepHook = {
            let (successor, armed, taken, now) =
                (successor.clone(), armed.clone(), taken.clone(), cluster.now.clone());
            Arc::new(move |step| {
                if step != stands_at || !armed.swap(false, Ordering::Relaxed) {
                    return Ok(());
                }
                // The process stands still here, long enough for its session to end and for another to do its work.
                now.fetch_add(SESSION.as_millis() as i64 + 1, Ordering::Relaxed);
                let mut successor = successor.lock().unwrap();
                let thread = successor.as_mut().unwrap();
                for _ in 0..200 {
                    now.fetch_add(100, Ordering::Relaxed);
                    thread.run_once()?;
                }
                taken.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        cluster.start(0, Some(hook));
        cluster.write();
        cluster.settle();
        cluster.start(1, None);
        *successor.lock().unwrap() = cluster.members[1].thread.take();
        cluster.write();
        armed.store(true, Ordering::Relaxed);
        let commits = cluster.status(0).commits;
        for _ in 0..100 {
            cluster.step();
            if taken.load(Ordering::Relaxed) > 0 {
                break;
            }
        }
        assert_eq!(taken.load(Ordering::Relaxed), 1, "the zombie was stopped in the middle of a commit");
        assert_eq!(cluster.status(0).commits, commits, "and that commit did not happen");
        cluster.members[1].thread = successor.lock().unwrap().take();
        let done = cluster.members[1].status.lock().unwrap().processed;
        assert!(done >= WORDS as u64, "the successor did its work meanwhile: {done} records");
        cluster.settle();
    }
}

/// A log that lets nobody have the transactional id of another.
struct Guarded {
    log: EmbeddedLog,
    own: &'static str,
}

impl ClientSupplier for Guarded {
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
        self.log.consumer(config)
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
        match &config.transactional_id {
            Some(id) if id != self.own => {
                Err(StreamsError::fatal("not authorized for this transactional id"))
            }
            _ => self.log.producer(config),
        }
    }

    fn admin(&self) -> Result<Arc<dyn Admin>> {
        self.log.admin()
    }
}

#[test]
fn what_a_dead_thread_left_open_is_ended_by_its_successor() {
    use ProcessingGuarantee::{AtLeastOnce, ExactlyOnce};
    let check = |dies_at: CommitStep, guarantee: ProcessingGuarantee, may_fence: bool| {
        let mut cluster = Cluster::new(0);
        let armed = Arc::new(AtomicBool::new(false));
        let hook: StepHook = {
            let armed = armed.clone();
            Arc::new(move |step| match step == dies_at && armed.load(Ordering::Relaxed) {
                true => Err(StreamsError::fatal("killed")),
                false => Ok(()),
            })
        };
        cluster.start(0, Some(hook));
        cluster.write();
        cluster.settle();
        cluster.write();
        armed.store(true, Ordering::Relaxed);
        let mut dead = cluster.members[0].thread.take().unwrap();
        let killed = (0..100).any(|_| {
            cluster.now.fetch_add(5, Ordering::Relaxed);
            dead.run_once().is_err()
        });
        assert!(killed, "it dies in a transaction");
        dead.abandon();
        *cluster.members[0].status.lock().unwrap() = ThreadStatus::default();
        let died = cluster.now.load(Ordering::Relaxed);

        cluster.guarantee = guarantee;
        if !may_fence {
            cluster.clients = Arc::new(Guarded { log: cluster.log.clone(), own: "cluster-1-0" });
        }
        cluster.start(1, None);
        let deadline = died + 3 * TRANSACTION_TIMEOUT.as_millis() as i64;
        while cluster.counts() != cluster.expected() && cluster.now.load(Ordering::Relaxed) < deadline {
            let now = cluster.now.fetch_add(50, Ordering::Relaxed);
            match cluster.members[1].thread.as_mut().unwrap().run_once() {
                Ok(_) => {}
                // The offsets are not decided: the thread starts again, as under its supervisor.
                Err(StreamsError::Retriable(_)) => cluster.start(1, None),
                Err(error) => panic!("at {now}: {error}"),
            }
        }
        let took = Duration::from_millis((cluster.now.load(Ordering::Relaxed) - died) as u64);
        cluster.settle();
        took
    };
    for dies_at in [CommitStep::Sent, CommitStep::OffsetsAdded] {
        let took = check(dies_at, ExactlyOnce, true);
        assert!(
            took < SESSION + Duration::from_secs(1),
            "{dies_at:?}: taken over when the session ends: {took:?}"
        );
        for (guarantee, may_fence) in [(ExactlyOnce, false), (AtLeastOnce, true)] {
            let took = check(dies_at, guarantee, may_fence);
            let waited = took > TRANSACTION_TIMEOUT && took < TRANSACTION_TIMEOUT + SESSION;
            assert!(
                waited,
                "{dies_at:?}, {guarantee:?}, may fence: {may_fence}: waits for the timeout: {took:?}"
            );
        }
    }
}
