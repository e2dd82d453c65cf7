//! One history: instances, the log, the clock, and what chance does to them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sluice::streams::{
    client::{
        ClientSupplier, NewTopic, ProducerConfig,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    config::{ProcessingGuarantee, SaveTiming, StreamsConfig},
    error::StreamsError,
    internals::{
        PartitionPlan, StreamThread, TaskOptions, ThreadParts, create_internal_topics, plan_partitions,
    },
    metrics::StreamsMetrics,
    processor::DropReason,
    record::{Headers, ProducerRecord},
    runtime::{TaskState, ThreadStatus},
    topology::Topology,
};

use crate::{
    faults::{DEATH, Faults},
    random::Random,
    scenario::{DISORDER_MS, Outputs, Scenario, choose},
    state,
};

const PARTITIONS: i32 = 3;
const INSTANCES: usize = 3;
const ACTIONS: usize = 400;

/// What happened in the histories, by name, to know that every fault was met.
pub type Tally = BTreeMap<String, u64>;

struct Instance {
    thread: Option<StreamThread>,
    /// Its disk. A successor gets a copy as one of its own: what a process has locked in its folder, be it a zombie's, is in nobody's way.
    folder: PathBuf,
    status: Arc<Mutex<ThreadStatus>>,
    stalled: bool,
}

/// Settings that chance chooses once per history.
struct Settings {
    save_timing: SaveTiming,
    save_age: Duration,
    max_poll_records: usize,
    commit_interval: Duration,
    guarantee: ProcessingGuarantee,
    idle_close_ms: Option<i64>,
    standbys: usize,
    transaction_timeout: Duration,
}

struct World {
    log: EmbeddedLog,
    scenario: Box<dyn Scenario>,
    topology: Arc<Topology>,
    settings: Settings,
    /// Died where they stood. Dropping a thread says goodbye to the log and finishes its saves, which the dead do not: that waits until
    /// the history has been judged.
    dead: Vec<StreamThread>,
    disks: tempfile::TempDir,
    plan: Arc<PartitionPlan>,
    now: Arc<AtomicI64>,
    /// The newest moment any clock has shown. Events are never much older than that.
    newest: i64,
    faults: Arc<Faults>,
    random: Random,
    instances: Vec<Instance>,
    /// Processes that were taken for dead, stood still, and have a successor of the same name.
    zombies: Vec<StreamThread>,
    moves: u64,
    tally: Tally,
}

/// Runs one history to its end and checks it.
pub fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..ACTIONS {
        world.act();
    }
    world.calm_down();
    for (fault, count) in world.faults.met() {
        world.count(&fault, count);
    }
    world.count(&format!("history: {}", world.scenario.name()), 1);
    world.tally
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let scenario = choose(seed);
        // A moment whose windows are easily recognised.
        let newest = 1_700_000_000_000;
        let now = Arc::new(AtomicI64::new(newest));
        let faults = Arc::new(Faults::new(seed ^ 0xfa17));
        let (clock, hook) = (now.clone(), faults.clone());
        let log = EmbeddedLog::in_memory_with(EmbeddedOptions {
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            request_timeout: Duration::ZERO,
            session_timeout: Duration::from_secs(10),
            faults: Some(Arc::new(move |call, done| hook.call(call, done))),
            ..EmbeddedOptions::default()
        });
        let topics: Vec<NewTopic> = scenario
            .topics()
            .iter()
            .map(|name| NewTopic {
                name: (*name).into(),
                partitions: PARTITIONS,
                replication_factor: 1,
                config: BTreeMap::new(),
            })
            .collect();
        let admin = log.admin().expect("the embedded log has an admin");
        admin.create_topics(&topics).expect("topics are new");
        let mut topology = scenario.topology();
        // Files are slow: a third of the histories has them.
        let in_memory = random.below(3) != 0;
        if in_memory {
            sluice::streams::internals::keep_in_memory(&mut topology);
        }
        let settings = Settings {
            save_timing: match random.below(3) {
                0 => SaveTiming::AtCommit,
                _ => SaveTiming::Later(random.below(8) as u32),
            },
            save_age: Duration::from_millis([0, 100, 400][random.below(3) as usize]),
            max_poll_records: [2, 10, 50][random.below(3) as usize],
            commit_interval: Duration::from_millis([5, 30, 100][random.below(3) as usize]),
            guarantee: match scenario.at_least_once() {
                true => ProcessingGuarantee::AtLeastOnce,
                false => ProcessingGuarantee::ExactlyOnce,
            },
            idle_close_ms: scenario.idle_close_ms(),
            standbys: usize::from(!in_memory && random.chance(500)),
            // In every other eight histories, which are of all kinds, a session ends before the transaction does: who takes over must end it.
            transaction_timeout: Duration::from_secs(if (seed / 8).is_multiple_of(2) { 5 } else { 20 }),
        };
        let standbys = settings.standbys > 0;
        let plan = Arc::new(plan_partitions(&topology, admin.as_ref()).expect("topics exist"));
        create_internal_topics(&topology, &plan, -1, admin.as_ref()).expect("internal topics are new");
        let disks = tempfile::tempdir().expect("a temporary folder");
        let instances = (0..INSTANCES)
            .map(|which| Instance {
                thread: None,
                folder: disks.path().join(which.to_string()),
                status: Arc::default(),
                stalled: false,
            })
            .collect();
        let mut world = Self {
            log,
            scenario,
            topology: Arc::new(topology),
            settings,
            dead: Vec::new(),
            disks,
            plan,
            now,
            newest,
            faults,
            random,
            instances,
            zombies: Vec::new(),
            moves: 0,
            tally: Tally::new(),
        };
        world.count(if in_memory { "history in memory" } else { "history with state files" }, 1);
        if standbys {
            world.count("history with standbys", 1);
        }
        world.write_backlog();
        world.faults.switch(true);
        world
    }

    fn count(&mut self, what: &str, times: u64) {
        *self.tally.entry(what.to_owned()).or_default() += times;
    }

    /// One thing happens.
    fn act(&mut self) {
        let which = self.random.below(INSTANCES as u64) as usize;
        match self.random.below(1_000) {
            0..680 => self.step(which),
            680..690 if !self.zombies.is_empty() => self.step_zombie(),
            680..840 => {
                let by = self.random.below(40) as i64;
                self.pass(by);
            }
            840..850 => {
                // Past session and transaction timeouts, or back.
                self.count("clock jumps", 1);
                let jump = [-5_000, 4_000, 11_000, 20_000][self.random.below(4) as usize];
                self.pass(jump);
            }
            850..915 => self.write(),
            915..930 => self.crash(which),
            930..945 => self.close(which),
            945..962 => {
                // A process that stands still and comes back later, believing it still owns its tasks.
                self.count("stalls", 1);
                self.instances[which].stalled = true;
            }
            962..972 if self.instances[which].stalled => self.replace(which),
            962..976 => self.faults.get_stuck(),
            _ => {
                for instance in &mut self.instances {
                    instance.stalled = false;
                }
            }
        }
    }

    /// Time passes, or the clock is set back.
    fn pass(&mut self, by_ms: i64) {
        let now = self.now.fetch_add(by_ms, Ordering::Relaxed) + by_ms;
        self.newest = self.newest.max(now);
    }

    /// The process dies. Its disk stays, is lost, or is torn.
    fn crash(&mut self, which: usize) {
        let Some(thread) = self.instances[which].thread.take() else { return };
        self.count("crashes", 1);
        self.instances[which].stalled = false;
        self.dead.push(thread);
        self.move_disk(which);
    }

    /// A process that stands still is taken for dead and another one is started in its name, on a copy of its disk.
    fn replace(&mut self, which: usize) {
        let Some(thread) = self.instances[which].thread.take() else { return };
        self.count("zombies", 1);
        self.instances[which].stalled = false;
        self.zombies.push(thread);
        self.move_disk(which);
    }

    /// What the next process of the name finds is a copy: the one before may stand still and write later.
    fn move_disk(&mut self, which: usize) {
        self.moves += 1;
        let next = self.disks.path().join(format!("{which}-{}", self.moves));
        let last = std::mem::replace(&mut self.instances[which].folder, next.clone());
        if !last.exists() {
            return;
        }
        if self.random.chance(200) {
            self.count("disks lost", 1);
            return;
        }
        let application = self.topology.application_id();
        let (from, to) = (last.join(application), next.join(application));
        std::fs::create_dir_all(&to).expect("a folder");
        let mut files: Vec<_> = std::fs::read_dir(&from).into_iter().flatten().flatten().collect();
        // As the disk lists them is no order that a seed knows.
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            let mut bytes = std::fs::read(file.path()).expect("a file");
            if self.random.chance(60) && !bytes.is_empty() {
                self.count("files torn", 1);
                bytes.truncate(self.random.below(bytes.len() as u64) as usize);
            } else if self.random.chance(20) {
                self.count("files lost", 1);
                continue;
            }
            std::fs::write(to.join(file.file_name()), bytes).expect("space");
        }
    }

    fn close(&mut self, which: usize) {
        let Some(mut thread) = self.instances[which].thread.take() else { return };
        self.count("closes", 1);
        if let Err(error) = thread.close()
            && error.to_string().contains(DEATH)
        {
            self.instances[which].thread = Some(thread);
            self.crash(which);
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
                self.count("threads started anew", 1);
                self.instances[which].thread = None;
            }
            Err(StreamsError::Fatal(reason)) if reason.contains(DEATH) => self.crash(which),
            Err(StreamsError::Displaced(_)) => {
                // A zombie of the same name woke up and joined. Whoever supervises the process starts it again.
                self.count("displaced by a zombie", 1);
                self.instances[which].thread = None;
            }
            Err(error) => panic!("instance {which}: {error}"),
        }
    }

    /// A zombie may do what it likes; sooner or later it is told that it is one.
    fn step_zombie(&mut self) {
        let which = self.random.below(self.zombies.len() as u64) as usize;
        if let Err(error) = self.zombies[which].run_once() {
            self.count("zombies refused", 1);
            let zombie = self.zombies.swap_remove(which);
            if !error.to_string().contains(DEATH) {
                drop(zombie);
            } else {
                self.dead.push(zombie);
            }
        }
    }

    fn spawn(&mut self, which: usize) -> Option<StreamThread> {
        let settings = &self.settings;
        let config = Arc::new(StreamsConfig {
            application_id: self.topology.application_id().to_owned(),
            instance_id: which.to_string(),
            poll: Duration::ZERO,
            state_dir: self.instances[which].folder.clone(),
            save_rows_min: 5,
            save_timing: settings.save_timing,
            save_age_max: settings.save_age,
            max_poll_records: settings.max_poll_records,
            commit_interval: settings.commit_interval,
            processing_guarantee: settings.guarantee,
            idle_close_ms: settings.idle_close_ms,
            num_standby_replicas: settings.standbys,
            transaction_timeout: settings.transaction_timeout,
            task_timeout: Duration::from_secs(300),
            ..StreamsConfig::default()
        });
        let mut options = TaskOptions::new(self.topology.clone(), config);
        let counts = self.plan.partitions.clone();
        options.partition_counts =
            Arc::new(move |topic| Ok(counts.get(topic).copied().unwrap_or(PARTITIONS)));
        let faults = self.faults.clone();
        options.steps = Some(Arc::new(move |step| faults.step(step)));
        let now = self.now.clone();
        let status = Arc::new(Mutex::new(ThreadStatus::default()));
        self.instances[which].status = status.clone();
        let thread = StreamThread::new(ThreadParts {
            name: format!("{which}-0"),
            options,
            plan: self.plan.clone(),
            clients: Arc::new(self.log.clone()),
            clock: Arc::new(move || now.load(Ordering::Relaxed)),
            metrics: StreamsMetrics::default(),
            status,
        });
        match thread {
            Ok(thread) => Some(thread),
            Err(StreamsError::Retriable(_)) => None,
            Err(error) => panic!("instance {which} cannot start: {error}"),
        }
    }

    /// A stretch of the past, of which one partition may be read long before another.
    fn write_backlog(&mut self) {
        let count = self.random.below(120) as i64;
        let from = self.newest - 20_000;
        self.send((0..count).map(|n| from + n * 20_000 / count).collect());
    }

    fn write(&mut self) {
        let (count, by) = (self.random.below(20) + 1, self.random.below(300) as i64);
        self.pass(by);
        self.send(vec![self.newest; count as usize]);
    }

    fn send(&mut self, times: Vec<i64>) {
        let faults = self.faults.switch(false);
        let mut producer = self.log.producer(&ProducerConfig::default()).expect("a producer");
        for time in times {
            let time = time - self.random.below(DISORDER_MS) as i64;
            for event in self.scenario.happen(&mut self.random, time) {
                let record = ProducerRecord {
                    topic: event.topic.into(),
                    partition: None,
                    key: Some(Bytes::from(event.key)),
                    value: Some(Bytes::from(event.value)),
                    timestamp: Some(event.time),
                    headers: Headers::EMPTY,
                };
                producer.send(record).expect("faults are off");
                *self.tally.entry("events".to_owned()).or_default() += 1;
            }
        }
        producer.flush().expect("faults are off");
        self.faults.switch(faults);
    }

    fn all_step(&mut self, by_ms: i64) {
        self.pass(by_ms);
        for which in 0..INSTANCES {
            self.step(which);
        }
    }

    /// Faults end; everybody runs until the truth is reached, then a while longer: it must stay the truth.
    fn calm_down(&mut self) {
        self.faults.switch(false);
        for instance in &mut self.instances {
            instance.stalled = false;
        }
        // What a zombie does now, it does with a log that does not fail.
        for _ in 0..20 {
            if !self.zombies.is_empty() {
                self.step_zombie();
            }
        }
        self.dead.append(&mut self.zombies);
        for round in 0.. {
            (0..20).for_each(|_| self.all_step(30));
            match self.scenario.check(&self.outputs()) {
                Ok(()) => break,
                Err(difference) if round == 100 => {
                    panic!("{}: {difference}; {}", self.scenario.name(), self.situation())
                }
                Err(_) => {}
            }
        }
        (0..60).for_each(|_| self.all_step(150));
        // Nothing waits for a commit when its interval has passed at a standing clock.
        self.let_commits_pass();
        let verdict = self.scenario.check(&self.outputs());
        verdict.unwrap_or_else(|difference| panic!("{}: {difference}", self.scenario.name()));
        self.check_drops();
        let mut difference = self.compare_state();
        for _ in 0..5 {
            // But for a task that had just committed when it was told of another's commit: that waits for the next.
            if difference.is_ok() {
                break;
            }
            self.let_commits_pass();
            difference = self.compare_state();
        }
        difference.unwrap_or_else(|difference| panic!("{}: state: {difference}", self.scenario.name()));
        self.restart();
    }

    fn let_commits_pass(&mut self) {
        self.pass(1_000);
        (0..4).for_each(|_| self.all_step(0));
    }

    /// Where everybody is, for the message of a standstill.
    fn situation(&self) -> String {
        let of = |(which, instance): (usize, &Instance)| {
            let status = instance.status.lock().expect("one thread");
            format!("instance {which}: tasks {:?}, dropped {:?}", status.tasks, status.dropped)
        };
        self.instances.iter().enumerate().map(of).collect::<Vec<_>>().join("; ")
    }

    /// Nothing that arrived in time may be dropped.
    fn check_drops(&self) {
        for instance in &self.instances {
            let status = instance.status.lock().expect("one thread");
            for reason in [DropReason::Late, DropReason::Expired] {
                assert_eq!(status.dropped.get(&reason), None, "{}: {status:?}", self.scenario.name());
            }
        }
    }

    /// What differs between the stores and the committed changelogs.
    fn compare_state(&mut self) -> Result<(), String> {
        if self.scenario.at_least_once() {
            return Ok(()); // A zombie may write to a changelog that its successor has read.
        }
        let watermarks = self.settings.idle_close_ms.is_some();
        let mut compared = 0;
        for instance in &mut self.instances {
            let Some(thread) = &mut instance.thread else { continue };
            compared += state::check(&self.log, &self.topology, thread, &self.plan.tasks, watermarks)?;
        }
        assert!(compared >= PARTITIONS as usize, "only {compared} stores live somewhere");
        self.count("stores compared", compared as u64);
        Ok(())
    }

    /// Everybody closes and comes back: from state files that are whole, with nothing to do and nothing to say.
    fn restart(&mut self) {
        for instance in &mut self.instances {
            if let Some(mut thread) = instance.thread.take() {
                thread.close().expect("nothing stands in the way");
            }
        }
        let before = self.outputs();
        for _ in 0..200 {
            self.all_step(5);
            let running = self.instances.iter().all(|instance| {
                let status = instance.status.lock().expect("one thread");
                status.assigned && status.tasks.values().all(|state| *state == TaskState::Running)
            });
            if running {
                break;
            }
        }
        let difference = self.compare_state();
        difference.unwrap_or_else(|difference| panic!("{}: state: {difference}", self.scenario.name()));
        for (topic, records) in self.outputs() {
            assert_eq!(
                records.len(),
                before[&topic].len(),
                "{}: a restart wrote to {topic}",
                self.scenario.name()
            );
        }
        for instance in &mut self.instances {
            if let Some(mut thread) = instance.thread.take() {
                thread.close().expect("nothing stands in the way");
            }
        }
    }

    fn outputs(&self) -> Outputs {
        let read = |topic: &str| {
            (0..PARTITIONS).flat_map(|partition| state::read(&self.log, topic, partition)).collect()
        };
        self.scenario.outputs().iter().map(|topic| ((*topic).to_owned(), read(topic))).collect()
    }
}
