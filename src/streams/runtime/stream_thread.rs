//! [`StreamThread`]: one consumer, one producer, the tasks assigned to it, and the loop over them.
//!
//! `run_once`: poll -> restore -> process -> punctuate -> commit if due. All branching is there, straight lines below.
//! It is a bounded step that is given the clock, so the simulation steps it too; the loop is only its caller.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    changelog_reader::RestoreProgress,
    commit_step::CommitStep,
    fencing::Fencing,
    input_hold::Hold,
    internal_topics::PartitionPlan,
    refused_records::RefusedRecords,
    standby::Standbys,
    standstill::Standstills,
    task::TaskOptions,
    task_files,
    task_id::TaskId,
    task_manager::{TaskManager, TaskState},
};
use crate::streams::{
    client::{
        ClientSupplier, Consumer, ConsumerConfig, OffsetAndMetadata, OffsetReset, Producer, ProducerConfig,
        Rebalance,
    },
    config::{ProcessingGuarantee, StreamsConfig},
    error::{Result, StreamsError},
    failpoint,
    metrics::StreamsMetrics,
    processor::DropReason,
    record::{ConsumerRecord, ProducerRecord, Timestamp, TopicPartition},
    topology::NodeKind,
};

/// Milliseconds since the epoch.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Most records a task processes before the others have their turn.
const RECORDS_PER_TURN: usize = 1_000;
/// Output is handed to the producer when this much has gathered: the commit finds little left to send (performance.md §5).
const EARLY_SEND_RECORDS: usize = 1_000;
/// How old the known lag of a silent partition may be.
const LAG_MAX_AGE_MS: i64 = 200;
/// A thread without records for so long has run dry; where somebody waits for that, it also is the time between its commits.
const RUN_DRY_MS: i64 = 200;

/// What a thread tells the outside about itself, updated at each commit and change of tasks.
#[derive(Clone, Debug, Default)]
pub struct ThreadStatus {
    /// Tasks and where they are in their lives.
    pub tasks: BTreeMap<TaskId, TaskState>,
    /// Next offset committed per input partition.
    pub committed: BTreeMap<TopicPartition, i64>,
    /// Input partitions: everything before this offset is processed and committed, and nothing is buffered.
    pub settled: BTreeMap<TopicPartition, i64>,
    /// Restoring, while it lasts.
    pub restoring: RestoreProgress,
    /// Records processed since the start.
    pub processed: u64,
    /// Records dropped since the start, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Changelog records replayed since the start.
    pub restored: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Whether the group has assigned something, be it nothing.
    pub assigned: bool,
    /// Version of the [`InputHold`](super::input_hold::InputHold) that all inputs have come up to, with everything read processed and committed.
    pub held: Option<u64>,
}

/// See the module's documentation.
pub struct StreamThread {
    name: String,
    options: TaskOptions,
    plan: Arc<PartitionPlan>,
    clients: Arc<dyn ClientSupplier>,
    clock: Clock,
    metrics: StreamsMetrics,
    status: Arc<Mutex<ThreadStatus>>,
    consumer: Box<dyn Consumer>,
    producer: Box<dyn Producer>,
    tasks: TaskManager,
    standbys: Standbys,
    fencing: Fencing,
    /// The group counted this thread as dead since it was last given anything.
    was_lost: bool,
    in_transaction: bool,
    last_commit: Timestamp,
    output: Vec<ProducerRecord>,
    refused: RefusedRecords,
    /// Input partitions that are paused: their tasks restore.
    paused: bool,
    lag_asked: BTreeMap<TopicPartition, (Timestamp, i64)>,
    standstills: Standstills,
    /// External partitions that are paused because they may not be read further.
    held: BTreeSet<TopicPartition>,
    /// Version of the hold that `held` follows.
    hold_seen: u64,
    /// Whether the hold says that watermarks do not advance.
    watermark_stands: bool,
    /// When a poll last brought records.
    last_records: Timestamp,
}

/// What a thread is made from.
#[derive(Clone)]
pub struct ThreadParts {
    /// `<instance>-<index>`; part of the transactional id, so it must be stable and unique in the application.
    pub name: String,
    /// Topology, settings, handlers.
    pub options: TaskOptions,
    /// Partition counts.
    pub plan: Arc<PartitionPlan>,
    /// The log.
    pub clients: Arc<dyn ClientSupplier>,
    /// Wall clock.
    pub clock: Clock,
    /// Metrics.
    pub metrics: StreamsMetrics,
    /// Where the thread reports.
    pub status: Arc<Mutex<ThreadStatus>>,
}

impl StreamThread {
    /// Connects and joins the group. Fences what an earlier thread of the same name left open.
    pub fn new(parts: ThreadParts) -> Result<Self> {
        let ThreadParts { name, options, plan, clients, clock, metrics, status } = parts;
        let producer = new_producer(&name, &options.config, clients.as_ref())?;
        let consumer = new_consumer(&name, &options, clients.as_ref())?;
        let last_commit = clock();
        let topology = &options.topology;
        let changelogs = topology.stores.iter().map(|store| topology.changelog_topic(&store.builder.name));
        let refused = RefusedRecords::new(options.handlers.clone(), changelogs.collect());
        let mut thread = Self {
            tasks: TaskManager::new(options.clone(), plan.clone(), clients.clone()),
            standbys: Standbys::new(options.clone(), plan.clone(), clients.clone()),
            fencing: Fencing::new(
                clients.clone(),
                options.config.clone(),
                static_name(&options.config, &name),
            ),
            was_lost: false,
            name,
            options,
            plan,
            clients,
            clock,
            metrics,
            status,
            consumer,
            producer,
            in_transaction: false,
            last_commit,
            output: Vec::new(),
            refused,
            paused: false,
            lag_asked: BTreeMap::new(),
            standstills: Standstills::default(),
            held: BTreeSet::new(),
            hold_seen: 0,
            watermark_stands: false,
            last_records: 0,
        };
        thread.report();
        Ok(thread)
    }

    /// One turn of the loop. Returns whether there was anything to do. Errors that a rebuild of the tasks can heal are healed here; what
    /// comes out is for the thread's owner.
    pub fn run_once(&mut self) -> Result<bool> {
        match self.turn() {
            Err(StreamsError::AbortTransaction(reason)) => {
                tracing::warn!(
                    thread = self.name,
                    reason,
                    "transaction aborted; rewinding to the last commit"
                );
                self.abort_and_rewind()?;
                Ok(true)
            }
            Err(StreamsError::TaskMigrated(reason)) => {
                tracing::warn!(thread = self.name, reason, "tasks migrated; joining the group again");
                self.rejoin()?;
                Ok(true)
            }
            Err(StreamsError::TaskCorrupted { task, reason }) => {
                tracing::warn!(
                    thread = self.name,
                    task,
                    reason,
                    "state discarded; restoring from the changelog"
                );
                self.abort_and_rewind()?;
                if let Ok(id) = task.parse() {
                    task_files::discard(&self.options, id)?;
                }
                Ok(true)
            }
            other => other,
        }
    }

    fn turn(&mut self) -> Result<bool> {
        let timeout = self.poll_timeout();
        let mut polled = self.consumer.poll(timeout)?;
        let now = (self.clock)();
        let mut worked = !polled.records.is_empty() || polled.rebalance.is_some();
        if let Some(rebalance) = polled.rebalance {
            self.rebalance(rebalance, now)?;
        }
        if !polled.records.is_empty() {
            self.last_records = now;
        }
        self.hold_inputs(&mut polled.records)?;
        self.tasks.add_records(polled.records, now)?;
        if self.tasks.is_restoring() {
            worked |= self.restore(now)?;
        }
        self.refresh_lags(now)?;
        worked |= self.process(now)?;
        worked |= self.commit_if_due(now)?;
        if self.tasks.is_assigned() {
            self.standbys.look_around(now)?;
            self.report_standbys(now)?;
            // Copies are kept warm when there is nothing better to do, and now and then where there always is.
            if !worked || self.standbys.is_starved(now) {
                worked |= self.standbys.step(now)? > 0;
            }
        }
        self.report_hold();
        Ok(worked)
    }

    /// Pauses external inputs that may not be read further, and drops what was read too far.
    fn hold_inputs(&mut self, records: &mut Vec<ConsumerRecord>) -> Result<()> {
        if self.options.hold.version() == 0 {
            return Ok(());
        }
        let (version, hold) = self.options.hold.get();
        let partitions = self.external_partitions();
        let mut stop: Vec<(TopicPartition, Option<i64>)> = Vec::new();
        let mut go_on: Vec<TopicPartition> = Vec::new();
        for partition in partitions {
            let held = self.held.contains(&partition);
            match &hold {
                Hold::Free if held => go_on.push(partition),
                Hold::Free => {}
                Hold::Here if held => {}
                Hold::Here => stop.push((partition, None)),
                Hold::Before(limits) | Hold::LastBefore(limits) => {
                    let limit = limits.get(&partition).copied().unwrap_or(0);
                    let position = self.consumer.position(&partition)?.unwrap_or(0);
                    match (position >= limit, held) {
                        // Reading may have gone beyond: it continues at the limit when that is raised.
                        (true, false) => stop.push((partition, Some(limit).filter(|_| position > limit))),
                        (false, true) => go_on.push(partition),
                        _ => {}
                    }
                }
            }
        }
        self.watermark_stands = matches!(hold, Hold::LastBefore(_));
        if let Some(limits) = hold.limits() {
            let topology = self.options.topology.clone();
            records.retain(|record| {
                let partition = TopicPartition { topic: record.topic.clone(), partition: record.partition };
                topology.repartition_topics.contains_key(&record.topic)
                    || record.offset < limits.get(&partition).copied().unwrap_or(0)
            });
        }
        for (partition, back_to) in stop {
            if let Some(offset) = back_to {
                self.consumer.seek(&partition, offset)?;
            }
            self.consumer.pause(std::slice::from_ref(&partition))?;
            self.held.insert(partition);
        }
        for partition in &go_on {
            self.held.remove(partition);
        }
        let running = self.tasks.partitions(true);
        go_on.retain(|partition| running.contains(partition));
        if !go_on.is_empty() {
            self.consumer.resume(&go_on)?;
        }
        if self.hold_seen != version {
            self.hold_seen = version;
            self.lag_asked.clear();
            if let Ok(mut status) = self.status.lock() {
                status.settled.clear();
                status.held = None;
            }
        }
        Ok(())
    }

    fn report_standbys(&mut self, now: Timestamp) -> Result<()> {
        if let Some(lag) = self.standbys.lag(now)? {
            let labels = [self.options.config.application_id.as_str(), self.name.as_str()];
            self.metrics.standby_tasks.with_label_values(&labels).set(self.standbys.count() as i64);
            self.metrics.standby_lag.with_label_values(&labels).set(lag);
        }
        Ok(())
    }

    /// Says when everything that may be read has been read, processed and committed.
    fn report_hold(&mut self) {
        if self.hold_seen == 0 || self.tasks.is_restoring() {
            return;
        }
        let external = self.external_partitions();
        let mut done = external.iter().all(|partition| self.held.contains(partition));
        for task in self.tasks.running() {
            let reads = |partition: &TopicPartition| task.partitions().any(|own| own == partition);
            if external.iter().any(reads) {
                done &=
                    !task.commit_needed() && external.iter().all(|partition| task.buffered(partition) == 0);
            }
        }
        if let Ok(mut status) = self.status.lock() {
            let known = status.assigned && done;
            status.held = known.then_some(self.hold_seen);
        }
    }

    /// Assigned partitions of topics outside of the application.
    fn external_partitions(&self) -> Vec<TopicPartition> {
        let mut partitions = self.tasks.partitions(true);
        partitions.extend(self.tasks.partitions(false));
        partitions
            .retain(|partition| !self.options.topology.repartition_topics.contains_key(&partition.topic));
        partitions
    }

    /// Zero while there is work, else until the next thing that time brings.
    fn poll_timeout(&mut self) -> Duration {
        let now = (self.clock)();
        let config = &self.options.config;
        let mut timeout = config.poll;
        if self.tasks.is_restoring() {
            return Duration::ZERO;
        }
        for task in self.tasks.running() {
            if task.is_processable(now) {
                return Duration::ZERO;
            }
            if task.commit_needed() {
                timeout =
                    timeout.min(until(self.last_commit + config.commit_interval.as_millis() as i64, now));
            }
            if let Some(due) = task.graph().next_wall_clock_punctuation() {
                timeout = timeout.min(until(due, now));
            }
        }
        timeout
    }

    fn rebalance(&mut self, rebalance: Rebalance, now: Timestamp) -> Result<()> {
        match rebalance {
            Rebalance::Revoked(_) => {
                // Commit first: whoever gets the partitions starts where this thread stopped.
                self.commit(now)?;
                self.tasks.suspend_all();
                self.consumer.unassign()?;
            }
            Rebalance::Lost(_) => {
                self.was_lost = true;
                self.abort_open_transaction()?;
                self.tasks.close_all();
                self.consumer.unassign()?;
            }
            Rebalance::Assigned(partitions) => {
                let labels = [self.options.config.application_id.as_str(), self.name.as_str()];
                self.metrics.rebalances.with_label_values(&labels).inc();
                self.take_over(partitions, now)?;
            }
        }
        self.report();
        Ok(())
    }

    fn take_over(&mut self, partitions: Vec<TopicPartition>, now: Timestamp) -> Result<()> {
        let assigned = self.tasks.tasks_of(&partitions)?;
        let ids = assigned.keys().copied().collect();
        self.standbys.hand_over(&ids)?;
        self.options.standby.runs(&self.name, ids);
        if std::mem::take(&mut self.was_lost) {
            // Who has the tasks may have fenced the producer: its next commit would be refused, be it the last before a clean close.
            self.producer = new_producer(&self.name, &self.options.config, self.clients.as_ref())?;
        }
        self.fencing.fence_the_dead(&partitions);
        let committed = self.consumer.committed(&partitions)?;
        let mut wanted = Vec::new();
        for partition in &partitions {
            let start = match committed.get(partition) {
                Some(offset) => Some(offset.offset),
                None => self.reset_offset(partition, now)?,
            };
            wanted.push((partition.clone(), start));
        }
        self.consumer.assign(&wanted)?;
        self.held.clear();
        self.lag_asked.clear();
        self.standstills.clear();
        self.tasks.assign(assigned, &committed, now)?;
        let waiting = self.tasks.partitions(false);
        self.paused = !waiting.is_empty();
        if self.paused {
            self.consumer.pause(&waiting)?;
        }
        if let Ok(mut status) = self.status.lock() {
            status.assigned = true;
            status.settled.clear();
            status.committed = committed.into_iter().map(|(partition, o)| (partition, o.offset)).collect();
        }
        Ok(())
    }

    /// Where a source says that it starts without a committed offset; `None` leaves it to the application's policy. A topic inside the
    /// application is read from its beginning always: what upstream wrote before this thread came is input like any other.
    fn reset_offset(&mut self, partition: &TopicPartition, now: Timestamp) -> Result<Option<i64>> {
        let reset = self.options.topology.nodes.iter().find_map(|node| match &node.kind {
            NodeKind::Source(source) if source.topics.contains(&partition.topic) => {
                Some(if source.internal { Some(OffsetReset::Earliest) } else { source.offset_reset })
            }
            _ => None,
        });
        // The log's clients know every policy of the application but one.
        let default = Some(self.options.config.offset_reset);
        let default = default.filter(|reset| matches!(reset, OffsetReset::ByDuration(_)));
        let Some(reset) = reset.flatten().or(default) else { return Ok(None) };
        let (first, end) = self.consumer.watermarks(partition)?;
        match reset {
            OffsetReset::Earliest => Ok(Some(first)),
            OffsetReset::Latest => Ok(Some(end)),
            OffsetReset::ByDuration(age) => {
                // A consumer of its own: looking reads, and gives up what is assigned.
                let config = ConsumerConfig { read_committed: true, ..ConsumerConfig::default() };
                let since = now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
                let found = self.clients.consumer(&config)?.offset_for_time(partition, since)?;
                Ok(Some(found.unwrap_or(end)))
            }
            OffsetReset::None => Err(StreamsError::Fatal(format!(
                "{partition} has no committed offset and its source has offset reset `none`: commit one for the group, or choose \
                 earliest or latest"
            ))),
        }
    }

    fn restore(&mut self, now: Timestamp) -> Result<bool> {
        let count = self.tasks.restore(Duration::from_millis(20), now)?;
        self.metrics.restored.with_label_values(&[&self.options.config.application_id]).inc_by(count as u64);
        if let Ok(mut status) = self.status.lock() {
            status.restored += count as u64;
        }
        let mut running = self.tasks.partitions(true);
        running.retain(|partition| !self.held.contains(partition));
        if self.paused && !running.is_empty() {
            self.consumer.resume(&running)?;
            self.paused = !self.tasks.partitions(false).is_empty();
        }
        self.report();
        Ok(count > 0)
    }

    /// Asks how far behind silent partitions are: tasks wait for those that lag (`max_task_idle_ms`), and watermarks pass those that do not.
    fn refresh_lags(&mut self, now: Timestamp) -> Result<()> {
        let mut silent = Vec::new();
        for task in self.tasks.running() {
            let partitions: Vec<TopicPartition> = task.partitions().cloned().collect();
            for partition in partitions {
                if task.buffered(&partition) == 0 {
                    let known = self.lag_asked.get(&partition);
                    let old =
                        known.is_none_or(|(at, lag)| now - at >= if *lag == 0 { LAG_MAX_AGE_MS } else { 5 });
                    if old {
                        silent.push((task.id(), partition, !task.commit_needed()));
                    }
                } else {
                    self.lag_asked.remove(&partition);
                    self.standstills.forget(&partition);
                }
            }
        }
        for (id, partition, committed) in silent {
            // Before the log is asked: what the writer vouched for is then behind the end that is told.
            let progress = self.options.config.progress.get(&*partition.topic);
            let writer_at = progress.map(|progress| progress.load(Ordering::Acquire));
            let (_, end) = self.consumer.watermarks(&partition)?;
            let position = self.consumer.position(&partition)?.unwrap_or(0);
            let lag = (end - position).max(0);
            self.lag_asked.insert(partition.clone(), (now, lag));
            if committed && let Ok(mut status) = self.status.lock() {
                status.settled.insert(partition.clone(), position);
            }
            self.metrics
                .lag
                .with_label_values(&[
                    &self.options.config.application_id,
                    &*partition.topic,
                    &partition.partition.to_string(),
                ])
                .set(lag);
            // What may not be read is not waited for.
            let lag = if self.held.contains(&partition) { 0 } else { lag };
            let consumer = &self.consumer;
            self.standstills.look(&partition, position, lag, now, || consumer.client_view(&partition))?;
            if let Some(task) = self.tasks.running().find(|task| task.id() == id) {
                task.set_lag(&partition, lag, writer_at);
            }
        }
        Ok(())
    }

    fn process(&mut self, now: Timestamp) -> Result<bool> {
        let mut worked = false;
        let mut processed = 0;
        for task in self.tasks.running() {
            let mut count = 0;
            while count < RECORDS_PER_TURN && task.is_processable(now) && task.process(now)? {
                count += 1;
            }
            task.punctuate_stream_time(now)?;
            task.punctuate_wall_clock(now)?;
            if !self.watermark_stands {
                worked |= task.advance_watermark(now)?;
            }
            if count > 0 {
                worked = true;
                processed += count as u64;
                self.metrics
                    .processed
                    .with_label_values(&[&self.options.config.application_id, &task.id().to_string()])
                    .inc_by(count as u64);
            }
            task.drain_output(&mut self.output)?;
        }
        if processed > 0
            && let Ok(mut status) = self.status.lock()
        {
            status.processed += processed;
        }
        if self.output.len() >= EARLY_SEND_RECORDS {
            self.send_output()?;
        }
        Ok(worked)
    }

    fn commit_if_due(&mut self, now: Timestamp) -> Result<bool> {
        let mut interval = self.options.config.commit_interval.as_millis() as i64;
        if self.options.hold.is_awaited() && now - self.last_records >= RUN_DRY_MS {
            interval = interval.min(RUN_DRY_MS);
        }
        let mut needed = false;
        let mut requested = false;
        for task in self.tasks.running() {
            needed |= task.commit_needed();
            requested |= task.graph().take_commit_request();
        }
        // A clock that stepped back must not put commits off.
        let due = requested || now - self.last_commit >= interval || now < self.last_commit;
        if !needed || !due {
            return Ok(false);
        }
        self.commit(now)?;
        Ok(true)
    }

    /// Commits all running tasks at once.
    ///
    /// 1. flush caches, which may write records; vouch downstream for what is now written
    /// 2. hand everything to the producer
    /// 3. exactly-once: offsets into the transaction, commit it. At-least-once: flush, then commit offsets
    /// 4. only now is anything of it true
    fn commit(&mut self, now: Timestamp) -> Result<()> {
        let started = Instant::now();
        let mut offsets: BTreeMap<TopicPartition, OffsetAndMetadata> = BTreeMap::new();
        let mut any = false;
        let committer = transactional_id(&self.options.config, &self.name);
        for task in self.tasks.running() {
            if !task.commit_needed() {
                continue;
            }
            any = true;
            for partition in task.without_position() {
                // Offsets in the transaction are what a zombie is told from its successor by: a task that has read nothing yet has some, too.
                if let Some(offset) = self.consumer.position(&partition)? {
                    task.begins_at(partition, offset);
                }
            }
            task.prepare_commit()?;
            task.drain_output(&mut self.output)?;
            offsets.append(&mut task.committable_offsets(committer.as_deref()));
        }
        self.reached(CommitStep::Flushed)?;
        let to_save = self.saves_due(now);
        self.last_commit = now;
        if !any && !self.in_transaction && self.output.is_empty() {
            return Ok(());
        }
        self.send_output()?;
        let saves = self.changelog_ends(to_save)?;
        failpoint::hit("runner_before_commit");
        match self.options.config.processing_guarantee {
            ProcessingGuarantee::ExactlyOnce => self.commit_transaction(&offsets)?,
            ProcessingGuarantee::AtLeastOnce => {
                self.producer.flush()?;
                if !offsets.is_empty() {
                    self.consumer.commit(&offsets)?;
                }
            }
        }
        failpoint::hit("runner_after_commit");
        self.reached(CommitStep::Committed)?;
        for task in self.tasks.running() {
            task.post_commit();
        }
        self.reached(CommitStep::Clean)?;
        self.tasks.running().try_for_each(|task| task.settle_save())?;
        for (id, ends) in saves {
            if let Some(task) = self.tasks.task(id) {
                task.after_commit(ends, now)?;
                self.reached(CommitStep::Saved)?;
            }
        }
        let labels = [self.options.config.application_id.as_str(), self.name.as_str()];
        self.metrics.commits.with_label_values(&labels).inc();
        self.metrics.commit_seconds.with_label_values(&labels).observe(started.elapsed().as_secs_f64());
        if let Ok(mut status) = self.status.lock() {
            status.commits += 1;
            status.committed.extend(offsets.into_iter().map(|(partition, o)| (partition, o.offset)));
        }
        self.report();
        Ok(())
    }

    /// Tasks whose stores should be saved after this commit.
    fn saves_due(&mut self, now: Timestamp) -> Vec<TaskId> {
        self.tasks.running().filter(|task| task.wants_save(now)).map(|task| task.id()).collect()
    }

    /// Ends of the changelogs of these tasks, with everything of this commit in them. Read *before* the commit: when it
    /// succeeds, nobody else has written to them. Read afterwards, a successor's records could be among them.
    fn changelog_ends(&mut self, tasks: Vec<TaskId>) -> Result<Vec<(TaskId, BTreeMap<String, i64>)>> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        self.producer.flush()?;
        tasks.into_iter().map(|id| Ok((id, self.tasks.changelog_ends(id)?))).collect()
    }

    fn commit_transaction(&mut self, offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<()> {
        self.begin_if_needed()?;
        let deadline = Instant::now() + self.options.config.task_timeout;
        if !offsets.is_empty() {
            let group = self
                .consumer
                .group_metadata()
                .ok_or_else(|| StreamsError::TaskMigrated("not a member of the group any more".to_owned()))?;
            retry(deadline, || self.producer.send_offsets_to_transaction(offsets, &group))?;
        }
        self.reached(CommitStep::OffsetsAdded)?;
        // An unknown outcome is asked for again, never aborted: the transaction may be committed.
        retry(deadline, || self.producer.commit_transaction())?;
        self.in_transaction = false;
        Ok(())
    }

    fn begin_if_needed(&mut self) -> Result<()> {
        if self.options.config.processing_guarantee == ProcessingGuarantee::ExactlyOnce
            && !self.in_transaction
        {
            self.producer.begin_transaction()?;
            self.in_transaction = true;
        }
        Ok(())
    }

    fn send_output(&mut self) -> Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        self.begin_if_needed()?;
        self.metrics
            .produced
            .with_label_values(&[self.options.config.application_id.as_str(), self.name.as_str()])
            .inc_by(self.output.len() as u64);
        for record in self.output.drain(..) {
            let refused = match self.producer.send(record) {
                Ok(()) => continue,
                Err(StreamsError::RecordRefused(refused)) => *refused,
                Err(error) => return Err(error),
            };
            if let Some(letter) = self.refused.judge(refused)? {
                self.producer.send(letter)?;
            }
        }
        self.reached(CommitStep::Sent)
    }

    /// Where a test may kill the thread.
    fn reached(&self, step: CommitStep) -> Result<()> {
        self.options.steps.as_ref().map_or(Ok(()), |hook| hook(step))
    }

    fn abort_open_transaction(&mut self) -> Result<()> {
        self.output.clear();
        if self.in_transaction {
            self.in_transaction = false;
            self.producer.abort_transaction()?;
        }
        Ok(())
    }

    /// Everything since the last commit never happened: tasks are built again from what is committed, as after a crash.
    fn abort_and_rewind(&mut self) -> Result<()> {
        if let Err(error) = self.abort_open_transaction() {
            tracing::warn!(thread = self.name, %error, "abort failed; starting a new producer");
            self.producer = new_producer(&self.name, &self.options.config, self.clients.as_ref())?;
        }
        self.tasks.close_all();
        // Leaving and joining again is the one path on which the group tells us what is ours now.
        self.rejoin_consumer()
    }

    fn rejoin(&mut self) -> Result<()> {
        self.in_transaction = false;
        self.output.clear();
        self.tasks.close_all();
        self.producer = new_producer(&self.name, &self.options.config, self.clients.as_ref())?;
        self.rejoin_consumer()
    }

    fn rejoin_consumer(&mut self) -> Result<()> {
        self.consumer.close();
        self.consumer = new_consumer(&self.name, &self.options, self.clients.as_ref())?;
        self.report();
        Ok(())
    }

    /// Commits and leaves. Tasks are closed whatever happens.
    pub fn close(&mut self) -> Result<()> {
        let result = self.commit_and_save();
        if result.is_err() {
            let _ = self.abort_open_transaction();
        }
        self.tasks.close_all();
        self.options.standby.runs(&self.name, BTreeSet::new());
        let copies = self.standbys.close_all();
        self.consumer.close();
        self.report();
        result.and(copies)
    }

    /// The last commit, and state files that need no replay at the next start.
    fn commit_and_save(&mut self) -> Result<()> {
        let now = (self.clock)();
        let mut unsaved = Vec::new();
        for task in self.tasks.running() {
            if task.has_unsaved() || task.commit_needed() {
                // Committing, even the same offsets again, is what proves that the state is still ours to save.
                task.request_commit();
                unsaved.push(task.id());
            }
        }
        self.send_all_output()?;
        let ends = self.changelog_ends(unsaved)?;
        self.commit(now)?;
        let saved: BTreeSet<TaskId> = ends.iter().map(|(id, _)| *id).collect();
        for (id, ends) in ends {
            if let Some(task) = self.tasks.task(id) {
                task.save_now(ends)?;
            }
        }
        self.tasks.running().filter(|task| !saved.contains(&task.id())).try_for_each(|task| task.close_file())
    }

    /// Everything the next commit will write, so that it writes nothing more.
    fn send_all_output(&mut self) -> Result<()> {
        for task in self.tasks.running() {
            task.prepare_commit()?;
            task.drain_output(&mut self.output)?;
        }
        self.send_output()
    }

    /// Dies where it stands: nothing is committed, the group hears nothing. For crash tests.
    pub fn abandon(self) {
        std::mem::forget(self);
    }

    /// Runs `f` on a store of a task of this thread.
    pub fn with_store<R>(
        &mut self,
        task: TaskId,
        store: &str,
        f: impl FnOnce(&mut crate::streams::state::Store) -> R,
    ) -> Option<R> {
        let id = self.options.topology.store_id(store)?;
        self.tasks.running().find(|running| running.id() == task)?.graph().store(id, f)
    }

    fn report(&mut self) {
        let states = self.tasks.states();
        let app = self.options.config.application_id.as_str();
        for (label, state) in [
            ("restoring", TaskState::Restoring),
            ("running", TaskState::Running),
            ("suspended", TaskState::Suspended),
        ] {
            let count = states.values().filter(|known| **known == state).count();
            self.metrics.tasks.with_label_values(&[app, &self.name, label]).set(count as i64);
        }
        for (task, store, remaining) in self.tasks.restore_remaining() {
            self.metrics.restore_remaining.with_label_values(&[app, &task.to_string(), store]).set(remaining);
        }
        let mut dropped_now: Vec<(DropReason, u64)> = Vec::new();
        let refused = self.refused.take_dropped();
        if refused > 0 {
            let reason = DropReason::ProductionError;
            dropped_now.push((reason, refused));
            // Which task wrote a record is not known any more when the log refuses it.
            self.metrics.dropped.with_label_values(&[app, "", "", reason.as_str()]).inc_by(refused);
        }
        for task in self.tasks.running() {
            let id = task.id();
            for ((node, reason), more) in task.newly_dropped() {
                dropped_now.push((reason, more));
                self.metrics
                    .dropped
                    .with_label_values(&[app, &id.to_string(), &task.node_name(node), reason.as_str()])
                    .inc_by(more);
            }
            for store in task.graph().store_ids().to_vec() {
                let name = self.options.topology.stores[store.0].builder.name.as_str();
                let rows =
                    task.graph().store(store, |store| store.as_state_store().approximate_num_entries());
                self.metrics
                    .store_entries
                    .with_label_values(&[app, &id.to_string(), name])
                    .set(rows.unwrap_or_default() as i64);
                self.metrics.restore_remaining.with_label_values(&[app, &id.to_string(), name]).set(0);
            }
        }
        if let Ok(mut status) = self.status.lock() {
            status.tasks = states;
            status.restoring = self.tasks.restore_progress();
            for (reason, count) in dropped_now {
                *status.dropped.entry(reason).or_default() += count;
            }
        }
    }

    /// Partition counts this thread works with.
    pub fn plan(&self) -> &PartitionPlan {
        &self.plan
    }
}

fn until(due: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis((due - now).clamp(0, 60_000) as u64)
}

/// Repeats a call whose outcome is retriable until the deadline; then it is fatal.
fn retry(deadline: Instant, mut call: impl FnMut() -> Result<()>) -> Result<()> {
    loop {
        match call() {
            Err(StreamsError::Retriable(reason)) if Instant::now() < deadline => {
                tracing::warn!(reason, "retrying");
            }
            Err(StreamsError::Retriable(reason)) => {
                return Err(StreamsError::Fatal(format!("still failing after task_timeout: {reason}")));
            }
            other => return other,
        }
    }
}

fn new_producer(
    name: &str,
    config: &StreamsConfig,
    clients: &dyn ClientSupplier,
) -> Result<Box<dyn Producer>> {
    let transactional_id = transactional_id(config, name);
    let transactional = transactional_id.is_some();
    let transaction_timeout = Some(config.transaction_timeout);
    let mut producer = clients.producer(&ProducerConfig { transactional_id, transaction_timeout })?;
    if transactional {
        producer.init_transactions()?;
    }
    Ok(producer)
}

/// The id of a thread's transactions, where it has some: its static name, so that the group can be asked whether the thread lives.
fn transactional_id(config: &StreamsConfig, thread: &str) -> Option<String> {
    let transactional = config.processing_guarantee == ProcessingGuarantee::ExactlyOnce;
    transactional.then(|| static_name(config, thread))
}

/// The name by which the group knows a thread, whatever process it is in.
pub(super) fn static_name(config: &StreamsConfig, thread: &str) -> String {
    format!("{}-{thread}", config.application_id)
}

fn new_consumer(
    name: &str,
    options: &TaskOptions,
    clients: &dyn ClientSupplier,
) -> Result<Box<dyn Consumer>> {
    let config = &options.config;
    let mut consumer = clients.consumer(&ConsumerConfig {
        group_id: Some(config.group_id().to_owned()),
        group_instance_id: Some(static_name(config, name)),
        read_committed: true,
        offset_reset: config.offset_reset,
        max_poll_records: config.max_poll_records,
        session_timeout: None,
    })?;
    let mut topics: Vec<String> = options
        .topology
        .subtopologies
        .iter()
        .flat_map(|subtopology| subtopology.source_topics.iter().map(ToString::to_string))
        .collect();
    topics.sort();
    topics.dedup();
    consumer.subscribe(&topics)?;
    Ok(consumer)
}
