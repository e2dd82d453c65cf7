//! [`KafkaStreams`]: an application: its internal topics, its global stores, its stream threads, its state.
//!
//! ```text
//!   Created ──> Rebalancing <──> Running ──> PendingShutdown ──> NotRunning
//!                    └──────────────┴──────> Error
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    call_watch::{CallWatch, WatchedClients},
    changelog_reader::RestoreProgress,
    global_thread::{self, GlobalThread},
    input_hold::{Hold, InputHold},
    internal_topics, state_layout,
    stream_thread::{Clock, StreamThread, ThreadParts, ThreadStatus},
    supervisor::Supervisor,
    task::TaskOptions,
    task_manager::TaskState,
    watchdog::{Charge, Leash, Watchdog},
};
use crate::streams::{
    client::{ClientSupplier, ConsumerConfig},
    config::StreamsConfig,
    error::{Result, StreamsError},
    metrics::StreamsMetrics,
    processor::{DropReason, ErrorHandlers},
    record::{ConsumerRecord, Timestamp, TopicPartition},
    topology::{TimestampExtractor, Topology, fail_on_invalid_timestamp},
};

/// How long it is looked at a time how far the other processes are.
const OTHERS_LOOKED_AT_FOR: Duration = Duration::from_secs(2);

/// How long threads that have started may take to end, when another could not start.
const START_UNDONE_WITHIN: Duration = Duration::from_secs(30);

/// Where an application is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not started.
    Created,
    /// Waiting for an assignment, or restoring.
    Rebalancing,
    /// All assigned tasks process.
    Running,
    /// Closing.
    PendingShutdown,
    /// Closed.
    NotRunning,
    /// A thread stopped for good; see [`KafkaStreams::error`].
    Error,
}

/// What an application is run with, beside topology and log.
#[derive(Clone)]
pub struct RunOptions {
    /// Settings.
    pub config: StreamsConfig,
    /// Error handlers.
    pub handlers: ErrorHandlers,
    /// Extractor of sources that name none.
    pub timestamp_extractor: TimestampExtractor,
    /// Metrics.
    pub metrics: StreamsMetrics,
    /// Wall clock.
    pub clock: Clock,
}

impl RunOptions {
    /// Default handlers, extractor and metrics; the system's clock.
    pub fn new(config: StreamsConfig) -> Self {
        Self {
            config,
            handlers: ErrorHandlers::default(),
            timestamp_extractor: fail_on_invalid_timestamp(),
            metrics: StreamsMetrics::default(),
            clock: Arc::new(system_clock),
        }
    }
}

/// Milliseconds since the epoch by the system's clock.
pub(crate) fn system_clock() -> Timestamp {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as Timestamp)
}

/// A sum over all threads of an application.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Records processed.
    pub processed: u64,
    /// Records dropped, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Changelog records replayed.
    pub restored: u64,
    /// Commits.
    pub commits: u64,
}

struct Worker {
    /// Taken when it has ended; what it said of itself stays.
    handle: Option<JoinHandle<()>>,
    status: Arc<Mutex<ThreadStatus>>,
}

impl Worker {
    fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// See the module's documentation.
pub struct KafkaStreams {
    application_id: String,
    topology: Arc<Topology>,
    options: RunOptions,
    clients: Arc<dyn ClientSupplier>,
    workers: Vec<Worker>,
    global: Option<GlobalThread>,
    watchdog: Option<Watchdog>,
    stop: Arc<AtomicBool>,
    error: Arc<Mutex<Option<String>>>,
    hold: Arc<InputHold>,
    started: bool,
}

impl KafkaStreams {
    /// An application over a log. Nothing happens before [`start`](Self::start).
    pub fn new(topology: Topology, clients: Arc<dyn ClientSupplier>, mut options: RunOptions) -> Self {
        options.config.application_id = topology.application_id.to_string();
        Self {
            application_id: topology.application_id.to_string(),
            topology: Arc::new(topology),
            options,
            clients,
            workers: Vec::new(),
            global: None,
            watchdog: None,
            stop: Arc::new(AtomicBool::new(false)),
            error: Arc::default(),
            hold: Arc::default(),
            started: false,
        }
    }

    /// The application id.
    pub fn application_id(&self) -> &str {
        &self.application_id
    }

    /// The topology.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Creates internal topics, fills global stores, starts the threads. Returns before tasks run; see [`state`](Self::state). After an
    /// error nothing of it runs, and it may be started again.
    pub fn start(&mut self) -> Result<()> {
        let started = self.start_all();
        if started.is_err() {
            // A thread that stayed would fence, and be fenced by, the one of its name at the next try.
            self.close(START_UNDONE_WITHIN);
            self.workers.clear();
            self.stop = Arc::new(AtomicBool::new(false));
        }
        started
    }

    fn start_all(&mut self) -> Result<()> {
        let admin = self.clients.admin()?;
        let config = Arc::new(self.options.config.clone());
        let plan = Arc::new(internal_topics::plan(&self.topology, admin.as_ref())?);
        internal_topics::create(&self.topology, &plan, config.replication_factor, admin.as_ref())?;
        state_layout::adopt(&config.state_dir.join(&config.application_id), &self.topology)?;
        let counts = partition_counts(plan.partitions.clone(), admin);
        let mut options = TaskOptions::new(self.topology.clone(), config.clone());
        options.handlers = self.options.handlers.clone();
        options.timestamp_extractor = self.options.timestamp_extractor.clone();
        options.partition_counts = counts;
        options.hold = self.hold.clone();
        options.globals = global_thread::build_stores(&self.topology, options.config.semantics)?;
        if !self.topology.global_nodes.is_empty() {
            self.global = Some(GlobalThread::start(
                options.clone(),
                self.clients.clone(),
                plan.clone(),
                self.options.clock.clone(),
                self.stop.clone(),
                self.error.clone(),
            )?);
        }
        let mut charges = Vec::new();
        for index in 0..config.num_stream_threads.max(1) {
            let status = Arc::new(Mutex::new(ThreadStatus::default()));
            let name = format!("{}-{index}", config.instance_id);
            let mut options = options.clone();
            if index > 0 {
                options.standby = options.standby.of_other_threads();
            }
            let watch = Arc::new(CallWatch::default());
            let clients = Arc::new(WatchedClients { clients: self.clients.clone(), watch: watch.clone() });
            charges.push(Charge { thread: name.clone(), watch });
            let parts = ThreadParts {
                name: name.clone(),
                options,
                plan: plan.clone(),
                clients,
                clock: self.options.clock.clone(),
                metrics: self.options.metrics.clone(),
                status: status.clone(),
            };
            // The first connection is made here, so that a wrong address is an error of `start`.
            let first = StreamThread::new(parts.clone())?;
            let worker = Supervisor { parts, stop: self.stop.clone(), error: self.error.clone() };
            let handle = std::thread::Builder::new()
                .name(format!("{}-{name}", self.application_id))
                .spawn(move || worker.run(first))
                .map_err(|error| StreamsError::fatal(format!("cannot start a stream thread: {error}")))?;
            self.workers.push(Worker { handle: Some(handle), status });
        }
        let leash = Leash {
            config,
            metrics: self.options.metrics.clone(),
            stop: self.stop.clone(),
            error: self.error.clone(),
        };
        self.watchdog = Some(Watchdog::start(charges, leash)?);
        self.started = true;
        Ok(())
    }

    /// Where the application is in its life.
    pub fn state(&self) -> State {
        if self.error().is_some() {
            return State::Error;
        }
        if !self.started {
            return State::Created;
        }
        if self.workers.iter().all(|worker| worker.has_ended()) {
            return State::NotRunning;
        }
        if self.stop.load(Ordering::Relaxed) {
            return State::PendingShutdown;
        }
        let running = self
            .statuses()
            .iter()
            .all(|status| status.assigned && status.tasks.values().all(|state| *state == TaskState::Running));
        if running { State::Running } else { State::Rebalancing }
    }

    /// Why the application is in [`State::Error`].
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which thread is in a call to the log that does not return, while one is (`stuck_after`).
    pub fn stuck(&self) -> Option<String> {
        self.watchdog.as_ref().and_then(Watchdog::stuck)
    }

    /// What each thread says of itself.
    pub fn statuses(&self) -> Vec<ThreadStatus> {
        self.workers
            .iter()
            .map(|worker| worker.status.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect()
    }

    /// Restoring over all threads.
    pub fn restore_progress(&self) -> RestoreProgress {
        self.statuses().iter().fold(RestoreProgress::default(), |sum, status| RestoreProgress {
            stores: sum.stores + status.restoring.stores,
            restored: sum.restored + status.restoring.restored,
            total: sum.total + status.restoring.total,
            elapsed: sum.elapsed.max(status.restoring.elapsed),
        })
    }

    /// Counters over all threads.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for status in self.statuses() {
            totals.processed += status.processed;
            totals.restored += status.restored;
            totals.commits += status.commits;
            for (reason, count) in status.dropped {
                *totals.dropped.entry(reason).or_default() += count;
            }
        }
        totals
    }

    /// End offsets of all external inputs now: the target of [`is_caught_up`](Self::is_caught_up).
    pub fn input_end_offsets(&self) -> Result<BTreeMap<TopicPartition, i64>> {
        self.end_offsets(|topic| !self.topology.repartition_topics.contains_key(topic))
    }

    /// Whether everything up to `targets` is processed and committed, and repartition topics are drained: by this process, and, of
    /// partitions that it does not have, by whoever has them.
    pub fn is_caught_up(&self, targets: &BTreeMap<TopicPartition, i64>) -> Result<bool> {
        self.hold.wait_for_settlement();
        if !self.have_reached(targets)? {
            return Ok(false);
        }
        // Ends of repartition topics are read after the inputs were found done: what is upstream of them is complete.
        self.have_reached(&self.end_offsets(|topic| self.topology.repartition_topics.contains_key(topic))?)
    }

    fn have_reached(&self, ends: &BTreeMap<TopicPartition, i64>) -> Result<bool> {
        let statuses = self.statuses();
        let open = unsettled(&statuses, ends);
        let here = |partition: &TopicPartition| {
            statuses.iter().flat_map(|status| status.tasks.keys()).any(|task| {
                task.partition == partition.partition
                    && self.topology.subtopologies[task.subtopology].source_topics.contains(&partition.topic)
            })
        };
        if open.is_empty() || open.keys().any(|partition| here(partition)) {
            return Ok(open.is_empty());
        }
        self.others_have_reached(&open)
    }

    /// Whether nothing is left to read between what the group has committed and these ends. A committed offset alone does not tell:
    /// behind the last record there are markers of transactions.
    fn others_have_reached(&self, ends: &BTreeMap<&TopicPartition, i64>) -> Result<bool> {
        let config = &self.options.config;
        let group = config.group_id();
        let committed = self.clients.admin()?.group_offsets(group)?;
        let mut consumer =
            self.clients.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() })?;
        let mut from = Vec::new();
        for partition in ends.keys() {
            let Some(offset) = committed.get(partition) else { return Ok(false) };
            from.push(((*partition).clone(), Some(offset.offset)));
        }
        consumer.assign(&from)?;
        let deadline = Instant::now() + OTHERS_LOOKED_AT_FOR;
        while Instant::now() < deadline {
            let records = consumer.poll(Duration::from_millis(20))?.records;
            let left = |record: &ConsumerRecord| {
                let partition = TopicPartition { topic: record.topic.clone(), partition: record.partition };
                ends.get(&partition).is_some_and(|end| record.offset < *end)
            };
            if records.iter().any(left) {
                return Ok(false);
            }
            let mut all = true;
            for (partition, end) in ends {
                all &= consumer.position(partition)?.is_some_and(|position| position >= *end);
            }
            if all {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets external inputs be read no further than this; see [`Hold`].
    pub fn hold_inputs(&self, hold: Hold) {
        self.hold.set(hold);
    }

    /// Whether everything that [`hold_inputs`](Self::hold_inputs) lets through is processed and committed, and repartition topics are
    /// drained. Answers for this process: with others in the group it stays `false` while their partitions have records.
    pub fn is_drained(&self) -> Result<bool> {
        self.hold.wait_for_settlement();
        let version = self.hold.version();
        let statuses = self.statuses();
        if statuses.iter().any(|status| status.held != Some(version)) {
            return Ok(false);
        }
        // Ends are read after the positions: a position that has reached the end of now had nothing upstream of it any more.
        let ends = self.end_offsets(|topic| self.topology.repartition_topics.contains_key(topic))?;
        Ok(unsettled(&statuses, &ends).is_empty())
    }

    fn end_offsets(&self, wanted: impl Fn(&Arc<str>) -> bool) -> Result<BTreeMap<TopicPartition, i64>> {
        let admin = self.clients.admin()?;
        let mut consumer =
            self.clients.consumer(&ConsumerConfig { read_committed: true, ..ConsumerConfig::default() })?;
        let topics: Vec<String> = self
            .topology
            .subtopologies
            .iter()
            .flat_map(|subtopology| &subtopology.source_topics)
            .filter(|topic| wanted(topic))
            .map(ToString::to_string)
            .collect();
        let mut ends = BTreeMap::new();
        for (name, topic) in admin.describe(&topics)? {
            for partition in 0..topic.partitions {
                let partition = TopicPartition::new(name.as_str(), partition);
                let (first, end) = consumer.watermarks(&partition)?;
                // An empty log has nothing to reach.
                ends.insert(partition, if first == end { 0 } else { end });
            }
        }
        Ok(ends)
    }

    /// Stops the threads after a last commit. Whether all ended in time.
    pub fn close(&mut self, timeout: Duration) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline && self.workers.iter().any(|worker| !worker.has_ended()) {
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let ended = self.workers.iter().all(|worker| worker.has_ended());
        if ended {
            for handle in self.workers.iter_mut().filter_map(|worker| worker.handle.take()) {
                let _ = handle.join();
            }
        }
        if let Some(global) = self.global.take() {
            global.join();
        }
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.join();
        }
        ended
    }
}

impl Drop for KafkaStreams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Partitions that no thread of this process has processed and committed up to these ends.
fn unsettled<'a>(
    statuses: &[ThreadStatus],
    ends: &'a BTreeMap<TopicPartition, i64>,
) -> BTreeMap<&'a TopicPartition, i64> {
    let settled = |partition: &TopicPartition, end: i64| {
        statuses.iter().any(|status| status.settled.get(partition).is_some_and(|at| *at >= end))
    };
    let open = ends.iter().filter(|(partition, end)| **end > 0 && !settled(partition, **end));
    open.map(|(partition, end)| (partition, *end)).collect()
}

/// Known partition counts first; a topic met later (dynamic sinks) is asked for once.
fn partition_counts(
    known: BTreeMap<Arc<str>, i32>,
    admin: Arc<dyn crate::streams::client::Admin>,
) -> Arc<dyn Fn(&str) -> Result<i32> + Send + Sync> {
    let known = Mutex::new(known);
    Arc::new(move |topic| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get(topic) {
            return Ok(*count);
        }
        let described = admin.describe(&[topic.to_owned()])?;
        let count = described
            .get(topic)
            .ok_or_else(|| StreamsError::fatal(format!("topic {topic} does not exist: create it first")))?
            .partitions;
        known.insert(topic.into(), count);
        Ok(count)
    })
}
