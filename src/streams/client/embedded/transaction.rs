//! Transactional producers as the broker knows them: epochs that fence, and what an open transaction holds.
//!
//! Always: a transactional id has at most one open transaction; only the newest epoch may touch it; an open transaction
//! ends by commit, by abort, by a newer `init_transactions`, or by its timeout, which also fences its producer.

use std::collections::{BTreeMap, HashMap};

use super::partition::{Run, extend_runs};
use crate::streams::{
    client::OffsetAndMetadata,
    error::{Result, StreamsError},
    record::{Timestamp, TopicPartition},
};

/// What a transaction has done so far.
pub(super) struct OpenTransaction {
    /// Never used twice; partitions name the transaction by it.
    pub serial: u64,
    started_at: Timestamp,
    /// Offsets written, by partition id.
    pub written: Vec<(u32, Vec<Run>)>,
    /// Consumed offsets to commit with it, by group.
    pub offsets: BTreeMap<String, BTreeMap<TopicPartition, OffsetAndMetadata>>,
}

impl OpenTransaction {
    pub(super) fn add_written(&mut self, partition_id: u32, offset: i64) {
        match self.written.iter_mut().find(|(id, _)| *id == partition_id) {
            Some((_, runs)) => extend_runs(runs, offset),
            None => self.written.push((partition_id, vec![(offset, offset)])),
        }
    }
}

struct Registered {
    transactional_id: String,
    epoch: i32,
    timeout_ms: i64,
    open: Option<OpenTransaction>,
}

/// The registry. Producers are named by their place in it, so that a send looks nothing up by text.
#[derive(Default)]
pub(super) struct Transactions {
    producers: Vec<Registered>,
    by_id: HashMap<String, usize>,
    serials: u64,
}

impl Transactions {
    /// A producer (re)starts: older epochs are fenced. Returns its place and epoch, and what the predecessor left open.
    pub(super) fn init(
        &mut self,
        transactional_id: &str,
        timeout_ms: i64,
    ) -> (usize, i32, Option<OpenTransaction>) {
        let slot = *self.by_id.entry(transactional_id.to_owned()).or_insert_with(|| {
            self.producers.push(Registered {
                transactional_id: transactional_id.to_owned(),
                epoch: -1,
                timeout_ms,
                open: None,
            });
            self.producers.len() - 1
        });
        let producer = &mut self.producers[slot];
        producer.epoch += 1;
        producer.timeout_ms = timeout_ms;
        (slot, producer.epoch, producer.open.take())
    }

    /// `TaskMigrated` unless the epoch is the newest.
    pub(super) fn check(&self, slot: usize, epoch: i32) -> Result<()> {
        let producer = &self.producers[slot];
        if producer.epoch == epoch {
            return Ok(());
        }
        Err(StreamsError::TaskMigrated(format!(
            "producer {:?} at epoch {epoch} is fenced by epoch {}: a newer producer uses its transactional id, or its \
             transaction timed out",
            producer.transactional_id, producer.epoch
        )))
    }

    /// The open transaction of a producer; the first use opens it on the broker's side.
    pub(super) fn open(&mut self, slot: usize, now: Timestamp) -> &mut OpenTransaction {
        let serials = &mut self.serials;
        self.producers[slot].open.get_or_insert_with(|| {
            *serials += 1;
            OpenTransaction {
                serial: *serials,
                started_at: now,
                written: Vec::new(),
                offsets: BTreeMap::new(),
            }
        })
    }

    pub(super) fn take(&mut self, slot: usize) -> Option<OpenTransaction> {
        self.producers[slot].open.take()
    }

    /// Takes transactions that are older than their timeout and fences their producers.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<OpenTransaction> {
        let mut expired = Vec::new();
        for producer in &mut self.producers {
            let timeout_ms = producer.timeout_ms;
            if let Some(open) = producer.open.take_if(|open| now - open.started_at > timeout_ms) {
                producer.epoch += 1;
                expired.push(open);
            }
        }
        expired
    }

    /// Whether an undecided transaction holds an offset of this group and partition.
    pub(super) fn has_pending_offset(&self, group: &str, partition: &TopicPartition) -> bool {
        let holds =
            |open: &OpenTransaction| open.offsets.get(group).is_some_and(|o| o.contains_key(partition));
        self.producers.iter().any(|p| p.open.as_ref().is_some_and(holds))
    }
}
