//! Retention and compaction, as an explicit step: nothing is dropped unless somebody calls [`EmbeddedLog::maintain`].
//!
//! * `cleanup.policy` with `delete`: the oldest records go while they are older than `retention.ms` (record time, as in
//!   Kafka; not set = kept for ever, unlike Kafka's seven days: records carry event time, and a demo replays old ones).
//!   The file gives up whole batches only, as Kafka gives up whole segments.
//! * with `compact`: of each key only the last record stays. A tombstone stays until a compaction that ran at least
//!   `delete.retention.ms` (one day) ago has passed over it, so that a slow reader still sees it.
//!
//! A partition is compacted when at least half of it is new since the last time (all of it is, after a restart), or
//! when tombstones may go. Compaction runs beside readers and writers: each waits for it a few milliseconds at a time.
//!
//! Only what is decided (below the last stable offset) is touched. Offsets never change.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use bytes::Bytes;

use super::{
    EmbeddedLog, Shared,
    partition::{Partition, Stored},
};
use crate::streams::{error::Result, record::Timestamp};

const DELETE_RETENTION_MS: i64 = 24 * 60 * 60 * 1000;

/// Offsets compacted in memory under one lock.
const MEMORY_STEP: i64 = 16 * 1024;

/// What one maintenance did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Partitions from whose front records were dropped by age.
    pub partitions_expired: usize,
    /// Partitions that were compacted.
    pub partitions_compacted: usize,
}

/// What is to be done with one partition.
struct Plan {
    partition_id: u32,
    retention_ms: Option<i64>,
    tombstones_ms: Option<i64>,
}

/// Maintains a log for as long as somebody else holds it: what a background job keeps.
pub struct Maintenance(Weak<Shared>);

impl Maintenance {
    /// Applies retention and compaction as of the log's own clock; `None` when the log is closed.
    pub fn run(&self) -> Option<Result<Maintained>> {
        let log = EmbeddedLog(self.0.upgrade()?);
        Some(log.maintain(log.0.now()))
    }
}

impl EmbeddedLog {
    /// A handle for a background job that does not keep the log open.
    pub fn maintenance(&self) -> Maintenance {
        Maintenance(Arc::downgrade(&self.0))
    }

    /// Applies `retention.ms` and `cleanup.policy=compact` as of `now`.
    pub fn maintain(&self, now: Timestamp) -> Result<Maintained> {
        let mut done = Maintained::default();
        for plan in self.0.plans()? {
            if let Some(age) = plan.retention_ms {
                done.partitions_expired += usize::from(self.0.expire(plan.partition_id, now - age)?);
            }
            if let Some(age) = plan.tombstones_ms {
                done.partitions_compacted += usize::from(self.0.compact(plan.partition_id, now, age)?);
            }
        }
        let changes = self.0.lock()?.changes;
        self.0.persist(changes)?;
        Ok(done)
    }
}

impl Shared {
    fn plans(&self) -> Result<Vec<Plan>> {
        let broker = self.lock()?;
        let mut plans = Vec::new();
        for topic in broker.topics.values() {
            let policy = topic.config.get("cleanup.policy").map_or("delete", String::as_str);
            let number = |key: &str| topic.config.get(key).and_then(|v| v.parse::<i64>().ok());
            let retention_ms = number("retention.ms").filter(|ms| *ms >= 0 && policy.contains("delete"));
            let tombstones_ms = policy
                .contains("compact")
                .then(|| number("delete.retention.ms").unwrap_or(DELETE_RETENTION_MS));
            if retention_ms.is_some() || tombstones_ms.is_some() {
                plans.extend(topic.partitions.iter().map(|id| Plan {
                    partition_id: *id,
                    retention_ms,
                    tombstones_ms,
                }));
            }
        }
        Ok(plans)
    }

    /// Drops the oldest records while they are before `cutoff`.
    fn expire(&self, id: u32, cutoff: Timestamp) -> Result<bool> {
        let memory_start = self.lock()?.partition(id)?.memory_start;
        let from_file = match &self.storage {
            Some(storage) => storage.writer().first_batch_since(id, cutoff, memory_start)?.min(memory_start),
            None => memory_start,
        };
        let mut broker = self.lock()?;
        let partition = broker.partition(id)?;
        if partition.memory_start != memory_start {
            // Memory was given back meanwhile, so `from_file` looked at too little: the next maintenance does it.
            return Ok(false);
        }
        let before = if from_file < memory_start {
            from_file
        } else {
            let stable = partition.stable_end();
            let young = partition.memory_range(partition.start, stable).find(|r| r.timestamp >= cutoff);
            young.map_or(stable, |r| r.offset)
        };
        if before <= partition.start {
            return Ok(false);
        }
        broker.advance_start(id, before)?;
        Ok(true)
    }

    /// Keeps the last record of each key.
    fn compact(&self, id: u32, now: Timestamp, tombstones_ms: i64) -> Result<bool> {
        let (changes, end, horizon) = {
            let mut broker = self.lock()?;
            let changes = broker.changes;
            let partition = broker.partition(id)?;
            let end = partition.stable_end();
            let tombstones_may_go =
                partition.cleanings.front().is_some_and(|(at, _)| now - at >= tombstones_ms);
            let (reached, kept) = partition.cleaned.unwrap_or((partition.start, 0));
            let mostly_new = end > reached && end - reached >= kept as i64;
            if !mostly_new && !tombstones_may_go {
                return Ok(false);
            }
            (changes, end, tombstone_horizon(partition, now, tombstones_ms))
        };
        self.persist(changes)?;
        // From here the file has all that is decided below `end`, and nothing is added to it there any more.
        let mut latest: HashMap<Bytes, i64> = HashMap::new();
        let mut note = |record: &Stored| {
            if let Some(key) = &record.key {
                // A copy: a slice would hold its whole batch.
                match latest.get_mut(key) {
                    Some(offset) => *offset = record.offset,
                    None => drop(latest.insert(Bytes::copy_from_slice(key), record.offset)),
                }
            }
        };
        let bases = match &self.storage {
            Some(storage) => storage.scan(id, end, note)?,
            None => {
                let mut broker = self.lock()?;
                let partition = broker.partition(id)?;
                partition.memory_range(partition.start, end).for_each(&mut note);
                Vec::new()
            }
        };
        // A record without a key has no place in a compacted topic; Kafka refuses it at the door, here it stays.
        let keep = |record: &Stored| {
            let last = record.key.as_ref().is_none_or(|key| latest.get(key) == Some(&record.offset));
            last && (record.value.is_some() || record.key.is_none() || record.offset >= horizon)
        };
        if let Some(storage) = &self.storage {
            storage.compact(id, end, &bases, keep)?;
        }
        let mut from = self.lock()?.partition(id)?.start;
        while from < end {
            let to = (from + MEMORY_STEP).min(end);
            self.lock()?.partition(id)?.retain_in(from, to, keep);
            from = to;
        }
        let mut broker = self.lock()?;
        let partition = broker.partition(id)?;
        partition.cleanings.push_back((now, end));
        partition.cleaned = Some((end, latest.len()));
        Ok(true)
    }
}

/// Tombstones below it have been there long enough. Older marks that tell nothing more are dropped.
fn tombstone_horizon(partition: &mut Partition, now: Timestamp, tombstones_ms: i64) -> i64 {
    let mut horizon = i64::MIN;
    while let Some((at, reached)) = partition.cleanings.front().copied()
        && now - at >= tombstones_ms
    {
        horizon = reached;
        partition.cleanings.pop_front();
    }
    horizon
}
