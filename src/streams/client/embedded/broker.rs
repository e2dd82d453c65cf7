//! The broker's state behind one lock: topics, partitions, groups, transactions, and what the file does not have yet.
//!
//! Every change happens in memory here first, whole, under the lock; the file follows by [`Broker::take_snapshot`].
//! A snapshot takes everything that is decided, so the file can only ever be at an earlier moment of the same history.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    group::Group,
    partition::Partition,
    storage::{LoadedTopic, MetaChange, PartitionChange, Snapshot},
    transaction::{OpenTransaction, Transactions},
};
use crate::streams::{
    client::{GroupMetadata, NewTopic, OffsetAndMetadata},
    error::{ProcessingError, RefusedRecord, Result, StreamsError},
    record::{ProducerRecord, Timestamp, TopicPartition},
};

/// A topic.
pub(super) struct Topic {
    pub topic_id: u32,
    pub config: BTreeMap<String, String>,
    /// Partition ids by number.
    pub partitions: Vec<u32>,
}

/// What the file does not have yet.
#[derive(Default)]
struct Unsaved {
    meta: Vec<MetaChange>,
    partitions: BTreeSet<u32>,
    offsets: BTreeSet<(String, TopicPartition)>,
    records: usize,
}

/// See the module.
pub(super) struct Broker {
    pub topics: BTreeMap<Arc<str>, Topic>,
    /// By partition id; `None` where the topic was deleted.
    partitions: Vec<Option<Box<Partition>>>,
    pub groups: HashMap<String, Group>,
    pub transactions: Transactions,
    next_topic_id: u32,
    /// Whether there is a file to follow.
    has_file: bool,
    unsaved: Unsaved,
    /// Grows with every change that the file must follow.
    pub changes: u64,
    /// Null-keyed records go round the partitions.
    round_robin: usize,
}

impl Broker {
    /// A broker with what a file holds; `has_file` false for a log in memory.
    pub(super) fn new(
        has_file: bool,
        loaded: Vec<LoadedTopic>,
        offsets: Vec<(String, TopicPartition, OffsetAndMetadata)>,
    ) -> Self {
        let mut broker = Self {
            topics: BTreeMap::new(),
            partitions: Vec::new(),
            groups: HashMap::new(),
            transactions: Transactions::default(),
            next_topic_id: 0,
            has_file,
            unsaved: Unsaved::default(),
            changes: 0,
            round_robin: 0,
        };
        for topic in loaded {
            broker.next_topic_id = broker.next_topic_id.max(topic.topic_id + 1);
            let name: Arc<str> = topic.name.into();
            let mut ids = Vec::new();
            for (id, start, next) in topic.partitions {
                if broker.partitions.len() <= id as usize {
                    broker.partitions.resize_with(id as usize + 1, || None);
                }
                broker.partitions[id as usize] = Some(Box::new(Partition::new(start, next)));
                ids.push(id);
            }
            let topic = Topic { topic_id: topic.topic_id, config: topic.config, partitions: ids };
            broker.topics.insert(name, topic);
        }
        for (group, partition, offset) in offsets {
            broker.groups.entry(group).or_default().committed.insert(partition, offset);
        }
        broker
    }

    // -- topics ------------------------------------------------------------------------------------------------

    pub(super) fn create_topic(&mut self, topic: &NewTopic) -> Result<()> {
        if self.topics.contains_key(topic.name.as_str()) {
            return Ok(());
        }
        check_topic(topic)?;
        let topic_id = self.next_topic_id;
        self.next_topic_id += 1;
        let name: Arc<str> = topic.name.as_str().into();
        let first = self.partitions.len() as u32;
        self.partitions.extend((0..topic.partitions).map(|_| Some(Box::new(Partition::new(0, 0)))));
        let partitions: Vec<u32> = (first..first + topic.partitions as u32).collect();
        self.change_meta(|| MetaChange::CreateTopic {
            topic_id,
            name: topic.name.clone(),
            config: serde_json::json!(topic.config).to_string(),
            partition_ids: partitions.clone(),
        });
        self.topics.insert(name, Topic { topic_id, config: topic.config.clone(), partitions });
        self.topics_changed(&topic.name);
        Ok(())
    }

    pub(super) fn delete_topic(&mut self, name: &str) {
        let Some(topic) = self.topics.remove(name) else { return };
        for id in &topic.partitions {
            if let Some(mut partition) = self.partitions[*id as usize].take() {
                partition.append_waiters.wake_all();
                partition.stable_waiters.wake_all();
            }
            self.unsaved.partitions.remove(id);
        }
        for group in self.groups.values_mut() {
            group.committed.retain(|tp, _| &*tp.topic != name);
        }
        self.change_meta(|| MetaChange::DeleteTopic {
            topic_id: topic.topic_id,
            name: name.to_owned(),
            partition_ids: topic.partitions.clone(),
        });
        self.topics_changed(name);
    }

    fn topics_changed(&mut self, name: &str) {
        let topics = &self.topics;
        for group in self.groups.values_mut() {
            group.topics_changed(&[name], &|t| partitions_of(topics, t));
        }
    }

    pub(super) fn topic(&self, name: &str) -> Result<&Topic> {
        self.topics.get(name).ok_or_else(|| {
            StreamsError::Fatal(format!("embedded log: topic {name:?} does not exist: create it before use"))
        })
    }

    pub(super) fn partition_id(&self, tp: &TopicPartition) -> Result<u32> {
        let topic = self.topic(&tp.topic)?;
        let id = usize::try_from(tp.partition).ok().and_then(|number| topic.partitions.get(number));
        id.copied().ok_or_else(|| {
            StreamsError::Fatal(format!(
                "embedded log: topic {:?} has {} partitions, there is no partition {}",
                tp.topic,
                topic.partitions.len(),
                tp.partition
            ))
        })
    }

    /// A partition by id; an error when its topic was deleted meanwhile.
    pub(super) fn partition(&mut self, id: u32) -> Result<&mut Partition> {
        self.partitions
            .get_mut(id as usize)
            .and_then(|slot| slot.as_deref_mut())
            .ok_or_else(|| StreamsError::fatal("embedded log: the topic was deleted while it was in use"))
    }

    // -- records -----------------------------------------------------------------------------------------------

    /// Appends a record, as part of the open transaction of producer `slot` if it is transactional.
    pub(super) fn append(
        &mut self,
        record: ProducerRecord,
        now: Timestamp,
        slot: Option<usize>,
    ) -> Result<()> {
        let topic = self.topic(&record.topic)?;
        if let Some(limit) = topic.config.get("max.message.bytes").and_then(|limit| limit.parse().ok())
            && size_of_record(&record) > limit
        {
            let message = format!("{} bytes, the topic takes {limit}", size_of_record(&record));
            let error = ProcessingError::new("RecordTooLargeException", message);
            return Err(StreamsError::RecordRefused(Box::new(RefusedRecord { record, error })));
        }
        let count = topic.partitions.len();
        let number = match (record.partition, &record.key) {
            (Some(number), _) => number as usize,
            (None, Some(key)) => crate::streams::client::partition_for_key(key, count as i32) as usize,
            (None, None) => self.round_robin % count,
        };
        let Some(id) = topic.partitions.get(number).copied() else {
            return Err(StreamsError::Fatal(format!(
                "embedded log: topic {:?} has {count} partitions, a record names partition {number}",
                record.topic
            )));
        };
        if record.partition.is_none() && record.key.is_none() {
            self.round_robin = self.round_robin.wrapping_add(1);
        }
        let has_file = self.has_file;
        match slot {
            None => {
                self.partition(id)?.append(record, now, None, has_file);
                self.unsaved.records += 1;
                self.touch(id);
            }
            Some(slot) => {
                let serial = self.transactions.open(slot, now).serial;
                let offset = self.partition(id)?.append(record, now, Some(serial), has_file);
                self.transactions.open(slot, now).add_written(id, offset);
            }
        }
        Ok(())
    }

    /// Records that only memory has.
    pub(super) fn unsaved_records(&self) -> usize {
        if self.has_file { self.unsaved.records } else { 0 }
    }

    pub(super) fn delete_records(&mut self, tp: &TopicPartition, before: i64) -> Result<()> {
        let id = self.partition_id(tp)?;
        let partition = self.partition(id)?;
        let before = if before < 0 { partition.next } else { before };
        if before > partition.next {
            return Err(StreamsError::Fatal(format!(
                "embedded log: cannot delete records of {tp} before {before}: it ends at {}",
                partition.next
            )));
        }
        self.advance_start(id, before)
    }

    /// Drops records below `before`, in memory and in the file.
    pub(super) fn advance_start(&mut self, id: u32, before: i64) -> Result<()> {
        self.partition(id)?.advance_start(before);
        self.change_meta(|| MetaChange::DeleteRecords { partition_id: id, before });
        self.touch(id);
        Ok(())
    }

    // -- transactions ------------------------------------------------------------------------------------------

    /// Aborts what is over its time. Called wherever time may have passed.
    pub(super) fn expire_transactions(&mut self, now: Timestamp) {
        for open in self.transactions.take_expired(now) {
            self.end_transaction(open, false);
        }
    }

    /// Decides a transaction: its records and offsets become visible together, or not at all.
    pub(super) fn end_transaction(&mut self, open: OpenTransaction, commit: bool) {
        let has_file = self.has_file;
        for (id, runs) in &open.written {
            // A deleted topic takes its part of the transaction with it.
            if let Ok(partition) = self.partition(*id) {
                partition.end_transaction(open.serial, runs, commit, has_file);
                self.unsaved.records += runs.iter().map(|(a, b)| (b - a + 1) as usize).sum::<usize>();
                self.touch(*id);
            }
        }
        for (group, offsets) in open.offsets {
            if commit {
                self.commit_offsets(&group, &offsets);
            }
            // Waiting for the decision, even when it was an abort.
            self.groups.entry(group).or_default().waiters.wake_all();
        }
    }

    // -- groups ------------------------------------------------------------------------------------------------

    /// Stores offsets of a group without asking who commits them.
    pub(super) fn commit_offsets(
        &mut self,
        group_id: &str,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    ) {
        let group = self.groups.entry(group_id.to_owned()).or_default();
        for (tp, offset) in offsets {
            group.committed.insert(tp.clone(), offset.clone());
            if self.has_file {
                self.unsaved.offsets.insert((group_id.to_owned(), tp.clone()));
            }
        }
        self.changes += 1;
    }

    /// Refuses a commit under a stale identity as `TaskMigrated`.
    pub(super) fn check_member(&self, metadata: &GroupMetadata) -> Result<()> {
        let verdict = match self.groups.get(&metadata.group_id) {
            Some(group) => group.check(metadata),
            None => Group::default().check(metadata),
        };
        verdict.map_err(|stale| {
            StreamsError::TaskMigrated(format!(
                "offsets of member {:?} of group {:?} at generation {} are refused: {stale}",
                metadata.member_id, metadata.group_id, metadata.generation_id
            ))
        })
    }

    /// Removes members whose session has expired.
    pub(super) fn expire_sessions(&mut self, group_id: &str, now: Timestamp) {
        let topics = &self.topics;
        if let Some(group) = self.groups.get_mut(group_id) {
            group.expire(now, &|t| partitions_of(topics, t));
        }
    }

    /// Works on a group together with the partition counts it assigns by.
    pub(super) fn with_group<T>(
        &mut self,
        group_id: &str,
        work: impl FnOnce(&mut Group, super::group::PartitionsOf<'_>) -> T,
    ) -> T {
        let topics = &self.topics;
        let group = self.groups.entry(group_id.to_owned()).or_default();
        work(group, &|t| partitions_of(topics, t))
    }

    pub(super) fn delete_group(&mut self, group_id: &str) {
        self.groups.remove(group_id);
        self.unsaved.offsets.retain(|(group, _)| group != group_id);
        self.change_meta(|| MetaChange::DeleteGroup { group_id: group_id.to_owned() });
    }

    // -- the file ----------------------------------------------------------------------------------------------

    fn touch(&mut self, partition_id: u32) {
        if self.has_file {
            self.unsaved.partitions.insert(partition_id);
        }
        self.changes += 1;
    }

    fn change_meta(&mut self, change: impl FnOnce() -> MetaChange) {
        if self.has_file {
            self.unsaved.meta.push(change());
        }
        self.changes += 1;
    }

    /// Takes everything decided that the file does not have.
    pub(super) fn take_snapshot(&mut self) -> Snapshot {
        let unsaved = std::mem::take(&mut self.unsaved);
        let partitions = unsaved.partitions.into_iter().filter_map(|id| {
            let partition = self.partitions.get_mut(id as usize)?.as_deref_mut()?;
            let records = if partition.has_unsaved() { partition.take_unsaved() } else { Vec::new() };
            Some(PartitionChange { partition_id: id, start: partition.start, next: partition.next, records })
        });
        let partitions = partitions.collect();
        let offsets = unsaved.offsets.into_iter().filter_map(|(group, tp)| {
            let offset = self.groups.get(&group)?.committed.get(&tp)?.clone();
            Some((group, tp, offset))
        });
        Snapshot { meta: unsaved.meta, partitions, offsets: offsets.collect() }
    }

    /// Gives memory back down to `bytes_max`, the fullest partition first; only what the file has.
    pub(super) fn evict(&mut self, bytes_max: usize) {
        let held = |p: &Option<Box<Partition>>| p.as_ref().map_or(0, |p| p.memory_bytes());
        let mut total: usize = self.partitions.iter().map(held).sum();
        while total > bytes_max {
            let fullest = self.partitions.iter_mut().flatten().max_by_key(|p| p.memory_bytes());
            match fullest.map_or(0, |p| p.evict_oldest()) {
                0 => return,
                freed => total -= freed,
            }
        }
    }
}

fn partitions_of(topics: &BTreeMap<Arc<str>, Topic>, name: &str) -> i32 {
    topics.get(name).map_or(0, |t| t.partitions.len() as i32)
}

/// Bytes of a record in a batch of its own, roughly as Kafka counts them.
fn size_of_record(record: &ProducerRecord) -> usize {
    let bytes = |part: &Option<bytes::Bytes>| part.as_ref().map_or(0, bytes::Bytes::len);
    let headers: usize =
        record.headers.iter().map(|header| header.key.len() + bytes(&header.value) + 2).sum();
    bytes(&record.key) + bytes(&record.value) + headers + 70
}

/// Refuses what Kafka would refuse, and what this log would silently not do.
fn check_topic(topic: &NewTopic) -> Result<()> {
    let refuse =
        |why: String| Err(StreamsError::Fatal(format!("cannot create topic {:?}: {why}", topic.name)));
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.name.is_empty() || topic.name.len() > 249 || !topic.name.chars().all(legal) {
        return refuse("a name has 1 to 249 of the characters a-z A-Z 0-9 . _ -".to_owned());
    }
    if !(1..=10_000).contains(&topic.partitions) {
        return refuse(format!("partitions is {}, must be 1 to 10000", topic.partitions));
    }
    for (key, value) in &topic.config {
        let fits = match key.as_str() {
            "cleanup.policy" => value.split(',').all(|p| matches!(p.trim(), "delete" | "compact")),
            _ if key.ends_with(".ms") || key.ends_with(".bytes") => value.parse::<i64>().is_ok(),
            _ => true,
        };
        if !fits {
            return refuse(format!("{key} = {value:?} is not a value Kafka takes"));
        }
    }
    Ok(())
}
