//! The embedded [`Consumer`]: a member of a group, and a position per assigned partition.
//!
//! One poll: expire what timed out -> group event, if one is due -> records from memory, or from the file when the
//! position is older -> sleep until a producer or the group wakes it. Always: while a rebalance is in the caller's hands
//! no record is handed out.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use super::{LogCall, Shared, broker::Broker, waiter::Waiter};
use crate::streams::{
    client::{Consumer, ConsumerConfig, GroupMetadata, OffsetAndMetadata, OffsetReset, Polled, Rebalance},
    error::{Result, StreamsError},
    record::{ConsumerRecord, TopicPartition},
};

/// Longest sleep before time is looked at again: sessions and transactions expire without anybody waking us.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

struct Assigned {
    tp: TopicPartition,
    partition_id: u32,
    /// The next offset to read; `None` until the committed offset is decided.
    position: Option<i64>,
    paused: bool,
}

/// A rebalance the caller has not acknowledged.
#[derive(Clone, Copy, PartialEq)]
enum Handed {
    Nothing,
    Assigned,
    Revoked,
    Lost,
}

struct Membership {
    topics: Vec<String>,
    /// `None` before joining and after the group has forgotten us.
    member_id: Option<String>,
    generation: i32,
}

/// A stretch of records that only the file has.
struct ColdRead {
    index: usize,
    partition_id: u32,
    from: i64,
    end: i64,
}

/// See the module.
pub(super) struct EmbeddedConsumer {
    shared: Arc<Shared>,
    config: ConsumerConfig,
    membership: Option<Membership>,
    assigned: Vec<Assigned>,
    handed: Handed,
    /// Where the next poll begins to look, so that no partition starves.
    turn: usize,
    waiter: Arc<Waiter>,
}

impl EmbeddedConsumer {
    pub(super) fn new(shared: Arc<Shared>, config: ConsumerConfig) -> Self {
        Self {
            shared,
            config,
            membership: None,
            assigned: Vec::new(),
            handed: Handed::Nothing,
            turn: 0,
            waiter: Arc::default(),
        }
    }

    fn group_id(&self) -> Result<&str> {
        self.config.group_id.as_deref().ok_or_else(|| {
            StreamsError::fatal("this consumer has no group_id: it can assign, not subscribe or commit")
        })
    }

    fn max_records(&self) -> usize {
        if self.config.max_poll_records == 0 { 1000 } else { self.config.max_poll_records }
    }

    fn find(&self, tp: &TopicPartition) -> Result<usize> {
        self.assigned
            .iter()
            .position(|a| a.tp == *tp)
            .ok_or_else(|| StreamsError::Fatal(format!("{tp} is not assigned to this consumer")))
    }

    /// Joins, beats and takes the event that is due.
    fn group_event(&mut self, broker: &mut Broker) -> Result<Option<Rebalance>> {
        let (Some(membership), Some(group_id)) = (&mut self.membership, &self.config.group_id) else {
            return Ok(None);
        };
        let now = self.shared.now();
        broker.expire_sessions(group_id, now);
        let instance_id = self.config.group_instance_id.as_deref();
        let timeout = self.config.session_timeout.unwrap_or(self.shared.options.session_timeout);
        let (handed, assigned) = (&mut self.handed, &self.assigned);
        broker.with_group(group_id, |group, partitions_of| {
            let known = membership.member_id.as_deref().is_some_and(|id| group.knows(id));
            if !known && membership.member_id.is_some() {
                if let Some(name) = instance_id.filter(|name| group.has_instance(name)) {
                    return Err(StreamsError::Displaced(format!(
                        "group {group_id:?}: a newer member took group_instance_id {name:?}"
                    )));
                }
                membership.member_id = None;
                let owned: Vec<_> = assigned.iter().map(|a| a.tp.clone()).collect();
                if *handed != Handed::Nothing || !owned.is_empty() {
                    // Also an assignment in the caller's hands is void: it must let go of it.
                    *handed = Handed::Lost;
                    return Ok(Some(Rebalance::Lost(owned)));
                }
            }
            if *handed != Handed::Nothing {
                if let Some(id) = &membership.member_id {
                    group.heartbeat(id, now);
                }
                return Ok(None);
            }
            if membership.member_id.is_none() {
                let timeout_ms = timeout.as_millis() as i64;
                let id =
                    group.join(group_id, instance_id, &membership.topics, timeout_ms, now, partitions_of);
                membership.member_id = Some(id);
            }
            let Some(id) = &membership.member_id else { return Ok(None) };
            group.heartbeat(id, now);
            let event = group.next_event(id);
            match &event {
                Some(Rebalance::Assigned(_)) => {
                    membership.generation = group.generation();
                    *handed = Handed::Assigned;
                }
                Some(Rebalance::Revoked(_)) => *handed = Handed::Revoked,
                Some(Rebalance::Lost(_)) | None => {}
            }
            Ok(event)
        })
    }

    /// Tells the group that the rebalance in hand is done.
    fn acknowledge(&mut self, taken: bool) -> Result<()> {
        let handed = std::mem::replace(&mut self.handed, Handed::Nothing);
        let (Some(membership), Some(group_id)) = (&self.membership, &self.config.group_id) else {
            return Ok(());
        };
        let Some(member_id) = &membership.member_id else { return Ok(()) };
        let mut broker = self.shared.lock()?;
        broker.with_group(group_id, |group, partitions_of| match (handed, taken) {
            (Handed::Assigned, _) => group.acknowledge_assigned(member_id, partitions_of),
            (Handed::Revoked, _) => group.acknowledge_revoked(member_id, partitions_of),
            (Handed::Nothing | Handed::Lost, _) => {}
        });
        Ok(())
    }

    /// Where to start: the committed offset, else the reset policy; `None` while a transaction holds the answer.
    fn resolve(&self, broker: &mut Broker, tp: &TopicPartition, id: u32) -> Result<Option<i64>> {
        if let Some(group_id) = &self.config.group_id {
            if broker.transactions.has_pending_offset(group_id, tp) {
                return Ok(None);
            }
            if let Some(committed) = broker.groups.get(group_id).and_then(|g| g.committed.get(tp)) {
                return Ok(Some(committed.offset));
            }
        }
        self.reset(broker, tp, id, "there is no committed offset").map(Some)
    }

    fn reset(&self, broker: &mut Broker, tp: &TopicPartition, id: u32, why: &str) -> Result<i64> {
        let partition = broker.partition(id)?;
        match self.config.offset_reset {
            OffsetReset::Earliest => Ok(partition.start),
            OffsetReset::Latest | OffsetReset::ByDuration(_) => {
                Ok(partition.end_for(self.config.read_committed))
            }
            OffsetReset::None => Err(StreamsError::OffsetOutOfRange {
                partition: tp.to_string(),
                reason: format!("{why}; the log has {} to {}", partition.start, partition.next),
            }),
        }
    }

    /// Takes what memory has; says what must be read from the file first.
    fn fetch(&mut self, broker: &mut Broker, out: &mut Vec<ConsumerRecord>) -> Result<Option<ColdRead>> {
        let (count, max) = (self.assigned.len(), self.max_records());
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Assigned { tp, partition_id, position, paused } = &self.assigned[index];
            if *paused {
                continue;
            }
            let (tp, id) = (tp.clone(), *partition_id);
            let Some(mut position) = (match position {
                Some(position) => Some(*position),
                None => self.resolve(broker, &tp, id)?,
            }) else {
                continue;
            };
            let partition = broker.partition(id)?;
            if position < partition.start || position > partition.next {
                position = self.reset(broker, &tp, id, &format!("offset {position} is out of range"))?;
            }
            let partition = broker.partition(id)?;
            let end = partition.end_for(self.config.read_committed);
            if position < partition.memory_start.min(end) {
                self.assigned[index].position = Some(position);
                if out.is_empty() {
                    self.turn = index + 1;
                    let end = partition.memory_start.min(end);
                    return Ok(Some(ColdRead { index, partition_id: id, from: position, end }));
                }
                continue;
            }
            let before = out.len();
            let room = max - before;
            let records = partition.memory_range(position, end).take(room);
            out.extend(records.map(|r| r.to_consumer_record(&tp.topic, tp.partition)));
            position = match out.last() {
                Some(last) if out.len() - before == room => last.offset + 1,
                // All there is was taken, so markers and gaps up to the end are behind us too.
                _ => position.max(end),
            };
            self.assigned[index].position = Some(position);
            if out.len() == max {
                self.turn = index + 1;
                break;
            }
        }
        Ok(None)
    }

    /// Reads from the file without the broker's lock.
    fn read_cold(&mut self, cold: &ColdRead, out: &mut Vec<ConsumerRecord>) -> Result<()> {
        let Some(storage) = &self.shared.storage else {
            return Err(StreamsError::fatal("embedded log in memory: a record it should hold is not there"));
        };
        let limit = self.max_records();
        let records = storage.read(cold.partition_id, cold.from, cold.end, limit)?;
        let assigned = &mut self.assigned[cold.index];
        assigned.position = match records.last() {
            Some(last) if records.len() == limit => Some(last.offset + 1),
            _ => Some(cold.end),
        };
        let tp = &assigned.tp;
        out.extend(records.iter().map(|r| r.to_consumer_record(&tp.topic, tp.partition)));
        Ok(())
    }

    /// Enters the lists of everything that may end the wait.
    fn enter_lists(&self, broker: &mut Broker) -> Result<()> {
        self.waiter.arm();
        for assigned in self.assigned.iter().filter(|a| !a.paused) {
            let partition = broker.partition(assigned.partition_id)?;
            match self.config.read_committed {
                true => partition.stable_waiters.enter(&self.waiter),
                false => partition.append_waiters.enter(&self.waiter),
            }
        }
        if let Some(group_id) = &self.config.group_id {
            broker.with_group(group_id, |group, _| group.waiters.enter(&self.waiter));
        }
        Ok(())
    }

    fn wait<'a>(&self, mut broker: MutexGuard<'a, Broker>, until: Instant) -> Result<MutexGuard<'a, Broker>> {
        self.enter_lists(&mut broker)?;
        let rest = until.saturating_duration_since(Instant::now());
        Ok(self.waiter.wait(broker, rest.min(LOOK_AGAIN)))
    }
}

impl Consumer for EmbeddedConsumer {
    fn subscribe(&mut self, topics: &[String]) -> Result<()> {
        let group_id = self.group_id()?.to_owned();
        match &mut self.membership {
            Some(membership) => {
                membership.topics = topics.to_vec();
                if let Some(id) = &membership.member_id {
                    let mut broker = self.shared.lock()?;
                    broker.with_group(&group_id, |group, of| group.resubscribe(id, topics, of));
                }
            }
            None => {
                self.membership =
                    Some(Membership { topics: topics.to_vec(), member_id: None, generation: -1 });
            }
        }
        Ok(())
    }

    fn assign(&mut self, partitions: &[(TopicPartition, Option<i64>)]) -> Result<()> {
        {
            let shared = self.shared.clone();
            let mut broker = shared.lock()?;
            broker.expire_transactions(shared.now());
            let mut assigned = Vec::with_capacity(partitions.len());
            for (tp, offset) in partitions {
                let partition_id = broker.partition_id(tp)?;
                let position = match offset {
                    Some(offset) => Some(*offset),
                    None => match self.resolve(&mut broker, tp, partition_id) {
                        // Told by the next poll, as Kafka does; the assignment itself stands.
                        Err(StreamsError::OffsetOutOfRange { .. }) => None,
                        resolved => resolved?,
                    },
                };
                assigned.push(Assigned { tp: tp.clone(), partition_id, position, paused: false });
            }
            self.assigned = assigned;
            self.turn = 0;
        }
        self.acknowledge(true)
    }

    fn unassign(&mut self) -> Result<()> {
        self.assigned.clear();
        self.acknowledge(false)
    }

    fn poll(&mut self, timeout: Duration) -> Result<Polled> {
        self.shared.fault(LogCall::Poll, false)?;
        let shared = self.shared.clone();
        let until = Instant::now() + timeout;
        let mut polled = Polled::default();
        let mut broker = shared.lock()?;
        loop {
            broker.expire_transactions(shared.now());
            polled.rebalance = self.group_event(&mut broker)?;
            if polled.rebalance.is_some() {
                return Ok(polled);
            }
            if self.handed == Handed::Nothing {
                match self.fetch(&mut broker, &mut polled.records)? {
                    Some(cold) => {
                        drop(broker);
                        self.read_cold(&cold, &mut polled.records)?;
                        if !polled.records.is_empty() {
                            return Ok(polled);
                        }
                        // Nothing was left there (retention, compaction): the position has moved on.
                        broker = shared.lock()?;
                        continue;
                    }
                    None if !polled.records.is_empty() => return Ok(polled),
                    None => {}
                }
            }
            if timeout.is_zero() || Instant::now() >= until {
                return Ok(polled);
            }
            broker = self.wait(broker, until)?;
        }
    }

    fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<()> {
        let index = self.find(partition)?;
        self.assigned[index].position = Some(offset);
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for tp in partitions {
            let index = self.find(tp)?;
            self.assigned[index].paused = true;
        }
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for tp in partitions {
            let index = self.find(tp)?;
            self.assigned[index].paused = false;
        }
        Ok(())
    }

    fn position(&mut self, partition: &TopicPartition) -> Result<Option<i64>> {
        let Ok(index) = self.find(partition) else { return Ok(None) };
        let shared = self.shared.clone();
        let mut broker = shared.lock()?;
        broker.expire_transactions(shared.now());
        let id = self.assigned[index].partition_id;
        if self.assigned[index].position.is_none() {
            self.assigned[index].position = self.resolve(&mut broker, partition, id)?;
        }
        let Some(position) = self.assigned[index].position else { return Ok(None) };
        let log = broker.partition(id)?;
        let end = log.end_for(self.config.read_committed);
        if position < log.memory_start || position >= end {
            return Ok(Some(position));
        }
        let next = log.memory_range(position, end).next().map_or(end, |r| r.offset);
        Ok(Some(next))
    }

    fn commit(&mut self, offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>) -> Result<()> {
        self.shared.fault(LogCall::Commit, false)?;
        let group_id = self.group_id()?;
        let metadata = self.group_metadata();
        let changes = {
            let mut broker = self.shared.lock()?;
            broker.expire_sessions(group_id, self.shared.now());
            if let Some(metadata) = &metadata {
                broker.check_member(metadata)?;
            }
            offsets.keys().try_for_each(|tp| broker.partition_id(tp).map(|_| ()))?;
            broker.commit_offsets(group_id, offsets);
            broker.changes
        };
        self.shared.persist(changes)?;
        self.shared.fault(LogCall::Commit, true)
    }

    fn committed(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        let group_id = self.group_id()?;
        let until = Instant::now() + self.shared.options.request_timeout;
        let mut broker = self.shared.lock()?;
        loop {
            broker.expire_transactions(self.shared.now());
            let pending = partitions.iter().find(|tp| broker.transactions.has_pending_offset(group_id, tp));
            let Some(pending) = pending.filter(|_| self.config.read_committed) else { break };
            if Instant::now() >= until {
                return Err(StreamsError::Retriable(format!(
                    "the committed offset of {pending} is in an undecided transaction"
                )));
            }
            broker = self.wait(broker, until)?;
        }
        let group = broker.groups.get(group_id);
        let committed =
            partitions.iter().filter_map(|tp| Some((tp.clone(), group?.committed.get(tp)?.clone())));
        Ok(committed.collect())
    }

    fn watermarks(&mut self, partition: &TopicPartition) -> Result<(i64, i64)> {
        let mut broker = self.shared.lock()?;
        broker.expire_transactions(self.shared.now());
        let id = broker.partition_id(partition)?;
        let log = broker.partition(id)?;
        Ok((log.start, log.end_for(self.config.read_committed)))
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        let group_id = self.config.group_id.clone()?;
        let member = self.membership.as_ref().and_then(|m| Some((m.generation, m.member_id.clone()?)));
        let (generation_id, member_id) = member.unwrap_or((-1, String::new()));
        Some(GroupMetadata {
            group_id,
            generation_id,
            member_id,
            group_instance_id: self.config.group_instance_id.clone(),
        })
    }

    fn close(&mut self) {
        self.assigned.clear();
        self.handed = Handed::Nothing;
        let (Some(membership), Some(group_id)) = (self.membership.take(), &self.config.group_id) else {
            return;
        };
        // A static member only goes silent, so that its restart finds its place.
        if let (Some(member_id), None) = (membership.member_id, &self.config.group_instance_id)
            && let Ok(mut broker) = self.shared.lock()
        {
            broker.with_group(group_id, |group, of| group.leave(&member_id, of));
        }
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.close();
    }
}
