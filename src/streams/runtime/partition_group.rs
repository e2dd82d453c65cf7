//! [`PartitionGroup`]: the queues of a task and which record comes next.
//!
//! Next is the head with the smallest timestamp (Kafka's `PartitionGroup`; ties as Java's heap has them). Whether the task may go
//! on while a partition is empty is decided by `max_task_idle_ms` (streams-semantics 2.16).

use super::{
    java_priority_queue::JavaPriorityQueue,
    record_queue::{BadRecords, Head, RecordQueue},
    watermark::InputClock,
};
use crate::streams::{
    error::Result,
    record::{ConsumerRecord, Timestamp, TopicPartition},
};

struct Partition {
    id: TopicPartition,
    queue: RecordQueue,
    /// Records the log still has behind what was fetched; `None` = not known yet.
    lag: Option<i64>,
    /// When waiting for this empty, caught-up partition ends.
    idle_until: Option<Timestamp>,
    clock: InputClock,
}

pub(super) struct PartitionGroup {
    partitions: Vec<Partition>,
    non_empty: JavaPriorityQueue<usize>,
    max_task_idle_ms: i64,
    /// Largest timestamp taken, -1 before the first: the task's stream time.
    pub stream_time: Timestamp,
}

impl PartitionGroup {
    pub(super) fn new(queues: Vec<(TopicPartition, RecordQueue, InputClock)>, max_task_idle_ms: i64) -> Self {
        let partitions = queues
            .into_iter()
            .map(|(id, queue, clock)| Partition { id, queue, lag: None, idle_until: None, clock })
            .collect();
        Self { partitions, non_empty: JavaPriorityQueue::new(), max_task_idle_ms, stream_time: -1 }
    }

    pub(super) fn index_of(&self, topic: &str, partition: i32) -> Option<usize> {
        self.partitions.iter().position(|p| p.id.partition == partition && &*p.id.topic == topic)
    }

    pub(super) fn partition(&self, index: usize) -> &TopicPartition {
        &self.partitions[index].id
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.partitions.iter().map(|partition| &partition.id)
    }

    pub(super) fn buffered(&self, index: usize) -> usize {
        self.partitions[index].queue.len()
    }

    pub(super) fn partition_time(&self, index: usize) -> Timestamp {
        self.partitions[index].queue.partition_time
    }

    pub(super) fn set_partition_time(&mut self, index: usize, time: Timestamp) {
        self.partitions[index].queue.partition_time = time;
        self.stream_time = self.stream_time.max(time);
    }

    pub(super) fn set_lag(&mut self, index: usize, lag: i64, now_at: Option<Timestamp>) {
        let partition = &mut self.partitions[index];
        partition.lag = Some(lag);
        if let InputClock::External { writer_at: Some(writer_at), .. } = &mut partition.clock {
            *writer_at = now_at.unwrap_or(*writer_at);
        }
    }

    /// See [`RecordQueue::retain_rows`].
    pub(super) fn retain_rows(&self, index: usize, records: &mut Vec<ConsumerRecord>, time: &mut Timestamp) {
        self.partitions[index].queue.retain_rows(records, time);
    }

    /// Appends records of one partition, in offset order.
    pub(super) fn add(
        &mut self,
        index: usize,
        records: impl IntoIterator<Item = ConsumerRecord>,
        bad: &dyn BadRecords,
    ) -> Result<()> {
        let partition = &mut self.partitions[index];
        let was_empty = partition.queue.len() == 0;
        for record in records {
            partition.queue.add(record);
        }
        partition.queue.update_head(bad)?;
        if was_empty && let Some(timestamp) = partition.queue.head_timestamp() {
            partition.idle_until = None;
            self.non_empty.offer(timestamp, index);
        }
        Ok(())
    }

    /// Whether the next record may be taken although some partitions are empty.
    pub(super) fn ready(&mut self, now: Timestamp) -> bool {
        if self.non_empty.len() == 0 {
            return false;
        }
        if self.max_task_idle_ms < 0 || self.non_empty.len() == self.partitions.len() {
            return true;
        }
        let idle = self.max_task_idle_ms;
        self.partitions.iter_mut().filter(|partition| partition.queue.len() == 0).all(|partition| {
            match partition.lag {
                None => false,
                Some(lag) if lag > 0 => {
                    partition.idle_until = None;
                    false
                }
                Some(_) => now >= *partition.idle_until.get_or_insert(now + idle),
            }
        })
    }

    /// Takes the next record, and says of which partition.
    pub(super) fn next(&mut self, bad: &dyn BadRecords) -> Result<Option<(usize, Head)>> {
        let Some((_, index)) = self.non_empty.poll() else { return Ok(None) };
        let queue = &mut self.partitions[index].queue;
        let head = queue.take_head();
        queue.update_head(bad)?;
        if let Some(timestamp) = queue.head_timestamp() {
            self.non_empty.offer(timestamp, index);
        }
        if let Some(head) = &head {
            self.stream_time = self.stream_time.max(head.timestamp());
        }
        Ok(head.map(|head| (index, head)))
    }

    /// Notes that records of a partition arrived at `now`.
    pub(super) fn touch(&mut self, index: usize, now: Timestamp) {
        if let InputClock::External { last_activity, .. } = &mut self.partitions[index].clock {
            *last_activity = now;
        }
    }

    /// Notes what an upstream partition vouched for.
    pub(super) fn vouch(&mut self, index: usize, upstream: i32, time: Timestamp) {
        if let InputClock::Vouched(times) = &mut self.partitions[index].clock
            && let Some(known) = times.get_mut(upstream as usize)
        {
            *known = time.max(*known);
        }
    }

    /// What is vouched for by each upstream partition, to be committed.
    pub(super) fn vouched(&self, index: usize) -> &[Timestamp] {
        match &self.partitions[index].clock {
            InputClock::Vouched(times) => times,
            InputClock::External { .. } | InputClock::Own => &[],
        }
    }

    /// What all inputs together vouch for at `now`, -1 before all did.
    pub(super) fn watermark(&self, idle_close_ms: i64, now: Timestamp) -> Timestamp {
        self.partitions
            .iter()
            .map(|p| {
                let caught_up = p.queue.len() == 0 && p.lag == Some(0);
                p.clock.time(p.queue.partition_time, caught_up, idle_close_ms, now)
            })
            .min()
            .unwrap_or(-1)
    }

    /// Source node of a partition.
    pub(super) fn source(&self, index: usize) -> usize {
        self.partitions[index].queue.source
    }

    /// Forgets buffered records (after a rewind); clocks stay for the caller to set.
    pub(super) fn clear(&mut self) {
        self.non_empty.clear();
        for partition in &mut self.partitions {
            partition.queue.clear();
            partition.idle_until = None;
        }
    }
}
