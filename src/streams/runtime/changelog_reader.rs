//! [`ChangelogReader`]: replays changelogs into the stores of tasks that are not running yet (Kafka's `StoreChangelogReader`).
//!
//! Reads committed records only. A store is restored when the reader's position has reached the end the changelog had
//! when restoring began; the thread's producer has been initialised and dead owners are fenced before, so nothing of its predecessors is
//! still open, as a rule.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{task::StreamTask, task_id::TaskId};
use crate::streams::{
    client::{ClientSupplier, Consumer, ConsumerConfig, OffsetReset},
    error::{Result, StreamsError},
    processor::StoreId,
    record::{ConsumerRecord, Timestamp, TopicPartition},
};

/// How long no position may move before the consumer is taken for stuck and another one tried.
const STANDSTILL: Duration = Duration::from_secs(20);

struct Restoring {
    task: TaskId,
    store: StoreId,
    name: String,
    start: i64,
    position: i64,
    end: i64,
    /// Partition time of the replay; of use where the topic is a source of the task.
    time: Timestamp,
}

/// How far restoring is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Stores still restoring.
    pub stores: usize,
    /// Records replayed since restoring began, those of finished stores included.
    pub restored: i64,
    /// Records to replay in all.
    pub total: i64,
    /// How long it has been going on; zero when nothing is restored.
    pub elapsed: Duration,
}

impl RestoreProgress {
    /// How long the rest takes at the pace so far; `None` while there is no pace yet.
    pub fn remaining(&self) -> Option<Duration> {
        let left = u32::try_from(self.total - self.restored).ok()?;
        let pace = self.elapsed.checked_div(u32::try_from(self.restored).ok()?)?;
        pace.checked_mul(left)
    }
}

pub(super) struct ChangelogReader {
    clients: Arc<dyn ClientSupplier>,
    consumer: Option<Box<dyn Consumer>>,
    /// Sees the real end of a topic, beyond open transactions.
    ends: Option<Box<dyn Consumer>>,
    restoring: BTreeMap<TopicPartition, Restoring>,
    assigned: bool,
    /// When the first of what is restoring was registered.
    began: Instant,
    /// Records of stores that are finished since then.
    finished: i64,
    /// When a position last moved, or another consumer was tried.
    moved: Instant,
    standstill: Duration,
    last_report: Instant,
}

impl ChangelogReader {
    pub(super) fn new(clients: Arc<dyn ClientSupplier>) -> Self {
        Self {
            clients,
            consumer: None,
            ends: None,
            restoring: BTreeMap::new(),
            assigned: false,
            began: Instant::now(),
            finished: 0,
            moved: Instant::now(),
            standstill: STANDSTILL,
            last_report: Instant::now(),
        }
    }

    /// Starts restoring a store from `from` (or the beginning) to `until` (or the end).
    pub(super) fn register(
        &mut self,
        task: TaskId,
        store: StoreId,
        name: &str,
        changelog: TopicPartition,
        from: Option<i64>,
        until: Option<i64>,
    ) -> Result<()> {
        if self.ends.is_none() {
            self.ends = Some(self.clients.consumer(&ConsumerConfig::default())?);
        }
        let Some(ends) = &mut self.ends else { return Ok(()) };
        let (first, high) = ends.watermarks(&changelog)?;
        let end = until.unwrap_or(high);
        let start = from.unwrap_or(first);
        if start > high {
            return Err(StreamsError::TaskCorrupted {
                task: task.to_string(),
                reason: format!(
                    "store {name} reflects offset {start} of {changelog}, which ends at {high}: the changelog was recreated or truncated"
                ),
            });
        }
        if from.is_some() && start < first {
            return Err(StreamsError::TaskCorrupted {
                task: task.to_string(),
                reason: format!(
                    "store {name} reflects offset {start} of {changelog}, which begins at {first}: records in between are gone"
                ),
            });
        }
        if start >= end {
            return Ok(());
        }
        if self.restoring.is_empty() {
            (self.began, self.finished, self.moved) = (Instant::now(), 0, Instant::now());
        }
        let name = name.to_owned();
        self.restoring
            .insert(changelog, Restoring { task, store, name, start, position: start, end, time: -1 });
        self.assigned = false;
        Ok(())
    }

    /// The end of a log, open transactions included.
    pub(super) fn end_offset(&mut self, partition: &TopicPartition) -> Result<i64> {
        if self.ends.is_none() {
            self.ends = Some(self.clients.consumer(&ConsumerConfig::default())?);
        }
        match &mut self.ends {
            Some(ends) => Ok(ends.watermarks(partition)?.1),
            None => Ok(0),
        }
    }

    /// How far each store of a task is, of those still restoring.
    pub(super) fn positions(&self, task: TaskId) -> BTreeMap<String, i64> {
        self.restoring
            .values()
            .filter(|restoring| restoring.task == task)
            .map(|restoring| (restoring.name.clone(), restoring.position))
            .collect()
    }

    /// Whether a task still has stores to restore.
    pub(super) fn is_restoring(&self, task: TaskId) -> bool {
        self.restoring.values().any(|restoring| restoring.task == task)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.restoring.is_empty()
    }

    /// Forgets a task.
    pub(super) fn unregister(&mut self, task: TaskId) {
        self.restoring.retain(|_, restoring| restoring.task != task);
        self.assigned = false;
    }

    pub(super) fn progress(&self) -> RestoreProgress {
        if self.restoring.is_empty() {
            return RestoreProgress::default();
        }
        RestoreProgress {
            stores: self.restoring.len(),
            restored: self.finished + self.restoring.values().map(|r| r.position - r.start).sum::<i64>(),
            total: self.finished + self.restoring.values().map(|r| r.end - r.start).sum::<i64>(),
            elapsed: self.began.elapsed(),
        }
    }

    /// Remaining records by task and store, for the metric.
    pub(super) fn remaining(&self) -> impl Iterator<Item = (TaskId, &str, i64)> {
        self.restoring.values().map(|r| (r.task, r.name.as_str(), r.end - r.position))
    }

    /// One bounded step: one poll, applied. Returns the number of records replayed.
    pub(super) fn restore(
        &mut self,
        tasks: &mut BTreeMap<TaskId, StreamTask>,
        timeout: Duration,
    ) -> Result<usize> {
        if self.restoring.is_empty() {
            return Ok(0);
        }
        if self.consumer.is_none() {
            let config = ConsumerConfig {
                read_committed: true,
                offset_reset: OffsetReset::None,
                max_poll_records: 10_000,
                ..ConsumerConfig::default()
            };
            self.consumer = Some(self.clients.consumer(&config)?);
            self.assigned = false;
        }
        let Some(consumer) = &mut self.consumer else { return Ok(0) };
        if !self.assigned {
            let wanted: Vec<_> =
                self.restoring.iter().map(|(partition, r)| (partition.clone(), Some(r.position))).collect();
            consumer.assign(&wanted)?;
            self.assigned = true;
        }
        let records = consumer.poll(timeout)?.records;
        let count = records.len();
        let mut by_partition: BTreeMap<TopicPartition, Vec<ConsumerRecord>> = BTreeMap::new();
        for record in records {
            let partition = TopicPartition { topic: record.topic.clone(), partition: record.partition };
            by_partition.entry(partition).or_default().push(record);
        }
        for (partition, mut records) in by_partition {
            let Some(restoring) = self.restoring.get_mut(&partition) else { continue };
            records.retain(|record| record.offset < restoring.end);
            let Some(task) = tasks.get_mut(&restoring.task) else { continue };
            if let Some(last) = records.last() {
                restoring.position = last.offset + 1;
                self.moved = Instant::now();
            }
            task.retain_rows(&partition, &mut records, &mut restoring.time);
            task.graph()
                .store(restoring.store, |store| store.as_state_store().restore(&records))
                .unwrap_or_else(|| Err(StreamsError::fatal("restoring a store the task does not have")))?;
        }
        let mut done = Vec::new();
        for (partition, restoring) in &mut self.restoring {
            // Control records and compacted gaps hold no data: the consumer's position steps over them, the last record does not.
            if let Some(position) = consumer.position(partition)?.map(|position| position.min(restoring.end))
                && position > restoring.position
            {
                restoring.position = position;
                self.moved = Instant::now();
            }
            if restoring.position >= restoring.end {
                done.push(partition.clone());
            }
        }
        for restoring in done.iter().filter_map(|partition| self.restoring.remove(partition)) {
            self.finished += restoring.end - restoring.start;
        }
        if !done.is_empty() {
            self.assigned = false;
        }
        if self.restoring.is_empty() {
            consumer.unassign()?;
        } else if self.moved.elapsed() >= self.standstill {
            self.read_anew();
        }
        self.report();
        Ok(count)
    }

    /// A new consumer knows nothing of brokers that are gone. What it cannot help against, a transaction that stays open, it tells.
    fn read_anew(&mut self) {
        self.moved = Instant::now();
        // One stands for all: each may have to wait long for a leader that is away.
        if let Some((partition, restoring)) = self.restoring.first_key_value() {
            let stable = self.consumer.as_mut().map(|consumer| consumer.watermarks(partition));
            tracing::warn!(
                %partition,
                position = restoring.position,
                end = restoring.end,
                stable = ?stable.and_then(Result::ok).map(|(_, stable)| stable),
                stores = self.restoring.len(),
                "restoring stands still; reading with a new consumer"
            );
        }
        self.consumer = None;
    }

    fn report(&mut self) {
        if self.last_report.elapsed() >= Duration::from_secs(5) && !self.restoring.is_empty() {
            self.last_report = Instant::now();
            let progress = self.progress();
            tracing::info!(
                stores = progress.stores,
                restored = progress.restored,
                total = progress.total,
                seconds_left = progress.remaining().map(|left| left.as_secs()),
                "restoring state"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::streams::{
        client::{Admin, NewTopic, Producer, ProducerConfig, embedded::EmbeddedLog},
        record::{Headers, ProducerRecord},
    };

    /// A log whose first reader of committed records reads another one, where nothing ever comes.
    struct FirstReaderDeaf {
        log: EmbeddedLog,
        silent: EmbeddedLog,
        given: AtomicBool,
    }

    impl ClientSupplier for FirstReaderDeaf {
        fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
            let deaf = config.read_committed && !self.given.swap(true, Ordering::Relaxed);
            if deaf { self.silent.consumer(config) } else { self.log.consumer(config) }
        }

        fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
            self.log.producer(config)
        }

        fn admin(&self) -> Result<Arc<dyn Admin>> {
            self.log.admin()
        }
    }

    #[test]
    fn a_reader_that_stands_still_is_exchanged() {
        let (log, silent) = (EmbeddedLog::in_memory(), EmbeddedLog::in_memory());
        let config = BTreeMap::new();
        let topic = NewTopic { name: "changelog".into(), partitions: 1, replication_factor: 1, config };
        for log in [&log, &silent] {
            log.admin().unwrap().create_topics(std::slice::from_ref(&topic)).unwrap();
        }
        let mut producer = log.producer(&ProducerConfig::default()).unwrap();
        for _ in 0..4 {
            let record = ProducerRecord {
                topic: "changelog".into(),
                partition: Some(0),
                timestamp: Some(0),
                key: Some(Bytes::from_static(b"key")),
                value: None,
                headers: Headers::EMPTY,
            };
            producer.send(record).unwrap();
        }
        producer.flush().unwrap();

        let clients = FirstReaderDeaf { log, silent, given: AtomicBool::new(false) };
        let mut reader = ChangelogReader::new(Arc::new(clients));
        let task = TaskId { subtopology: 0, partition: 0 };
        let changelog = TopicPartition::new("changelog", 0);
        reader.register(task, StoreId(0), "store", changelog, None, None).unwrap();
        let steps = |reader: &mut ChangelogReader| {
            for _ in 0..5 {
                reader.restore(&mut BTreeMap::new(), Duration::ZERO).unwrap();
            }
        };
        steps(&mut reader);
        assert_eq!(reader.progress().restored, 0);
        reader.standstill = Duration::ZERO;
        steps(&mut reader);
        assert!(reader.is_idle(), "{:?}", reader.progress());
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_is_done() {
        let progress =
            |restored| RestoreProgress { stores: 1, restored, total: 100, elapsed: Duration::from_secs(10) };
        assert_eq!(progress(25).remaining(), Some(Duration::from_secs(30)));
        assert_eq!(progress(100).remaining(), Some(Duration::ZERO));
        assert_eq!(progress(0).remaining(), None);
        assert_eq!(RestoreProgress::default().remaining(), None);
    }
}
