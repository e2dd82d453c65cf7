//! [`Standbys`]: copies of the state of tasks that run elsewhere, kept warm from their changelogs (Kafka's standby tasks).
//!
//! A copy is the task's own state file, filled by replaying committed changelog records and saved with the offset it reflects. When
//! the task comes here the copy lets go of the file, and the task opens it and replays only what is behind that offset: there is nothing
//! else to hand over. Always: a copy never holds what is not committed, and never the file of a task that runs in this process.
//!
//! The group's protocol decides who gets a task, not we, so every instance keeps copies of all tasks it does not run.
//!
//! Where watermarks are on, rows expire by them, and a changelog does not tell the watermark: by the times in it alone a copy would let go
//! of rows that its owner still has. A copy lets nothing go but by what the owner has committed beside its offsets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    commit_metadata::CommitMetadata, internal_topics::PartitionPlan, task::TaskOptions, task_files,
    task_id::TaskId,
};
use crate::streams::{
    client::{ClientSupplier, Consumer, ConsumerConfig, OffsetReset},
    error::{Result, StreamsError},
    record::{ConsumerRecord, Timestamp, TopicPartition},
    state::{Backend, SavedOffsets, StateStore, Store, StoreEnvironment, TaskDb},
};

/// How often tasks that need a copy are looked for.
const LOOK_MS: i64 = 200;
/// How often it is asked how far copies are behind.
const MEASURE_MS: i64 = 2_000;
/// How often it is asked what the owners have let go of.
const EXPIRE_MS: i64 = 5_000;
/// Copies of a thread that is never idle are fed after this time all the same.
const STARVED_MS: i64 = 100;

/// The tasks that the threads of this process run, and which of its threads keeps the copies of the others.
#[derive(Clone, Default)]
pub struct StandbyRole {
    active: Arc<Mutex<BTreeMap<String, BTreeSet<TaskId>>>>,
    elsewhere: bool,
}

impl StandbyRole {
    /// The role of the process's other threads: they say what they run and keep no copies.
    #[must_use]
    pub fn of_other_threads(&self) -> Self {
        Self { active: self.active.clone(), elsewhere: true }
    }

    /// A thread says what it runs from now on.
    pub(super) fn runs(&self, thread: &str, tasks: BTreeSet<TaskId>) {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).insert(thread.to_owned(), tasks);
    }

    fn active(&self) -> BTreeSet<TaskId> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.values().flatten().copied().collect()
    }
}

struct CopiedStore {
    name: String,
    changelog: TopicPartition,
    store: Store,
    position: i64,
}

struct WarmCopy {
    db: TaskDb,
    stores: Vec<CopiedStore>,
}

impl WarmCopy {
    fn offsets(&self) -> SavedOffsets {
        let changelog = self.stores.iter().map(|copied| (copied.name.clone(), copied.position)).collect();
        SavedOffsets { changelog, ..SavedOffsets::default() }
    }

    fn with_stores<R>(
        &mut self,
        f: impl FnOnce(&TaskDb, &mut [&mut dyn StateStore], SavedOffsets) -> R,
    ) -> R {
        let offsets = self.offsets();
        let mut stores: Vec<&mut dyn StateStore> =
            self.stores.iter_mut().map(|copied| copied.store.as_state_store()).collect();
        f(&self.db, &mut stores, offsets)
    }
}

pub(super) struct Standbys {
    options: TaskOptions,
    plan: Arc<PartitionPlan>,
    clients: Arc<dyn ClientSupplier>,
    consumer: Option<Box<dyn Consumer>>,
    /// Asks for what the owners have committed, and reads nothing.
    asking: Option<Box<dyn Consumer>>,
    copies: BTreeMap<TaskId, WarmCopy>,
    owners: BTreeMap<TopicPartition, (TaskId, usize)>,
    /// Whether the consumer reads what `owners` lists.
    assigned: bool,
    looked_at: Option<Timestamp>,
    measured_at: Option<Timestamp>,
    expired_at: Option<Timestamp>,
    stepped_at: Option<Timestamp>,
}

impl Standbys {
    pub(super) fn new(
        options: TaskOptions,
        plan: Arc<PartitionPlan>,
        clients: Arc<dyn ClientSupplier>,
    ) -> Self {
        Self {
            options,
            plan,
            clients,
            consumer: None,
            asking: None,
            copies: BTreeMap::new(),
            owners: BTreeMap::new(),
            assigned: true,
            looked_at: None,
            measured_at: None,
            expired_at: None,
            stepped_at: None,
        }
    }

    fn is_keeper(&self) -> bool {
        self.options.config.num_standby_replicas > 0 && !self.options.standby.elsewhere
    }

    /// Copies kept.
    pub(super) fn count(&self) -> usize {
        self.copies.len()
    }

    /// Committed changelog records that the copies do not have yet; asked for every few seconds, `None` between.
    pub(super) fn lag(&mut self, now: Timestamp) -> Result<Option<i64>> {
        if !self.is_keeper() || self.measured_at.is_some_and(|at| now >= at && now - at < MEASURE_MS) {
            return Ok(None);
        }
        self.measured_at = Some(now);
        let Some(consumer) = &mut self.consumer else { return Ok(Some(0)) };
        let mut lag = 0;
        for copied in self.copies.values().flat_map(|copy| &copy.stores) {
            lag += (consumer.watermarks(&copied.changelog)?.1 - copied.position).max(0);
        }
        Ok(Some(lag))
    }

    /// Lets go of the files of these tasks: they come here.
    pub(super) fn hand_over(&mut self, tasks: &BTreeSet<TaskId>) -> Result<()> {
        let here: Vec<TaskId> = self.copies.keys().filter(|id| tasks.contains(id)).copied().collect();
        here.into_iter().try_for_each(|id| self.close(id))
    }

    /// Lets go of everything, saved.
    pub(super) fn close_all(&mut self) -> Result<()> {
        let all = self.copies.keys().copied().collect();
        self.hand_over(&all)
    }

    fn close(&mut self, id: TaskId) -> Result<()> {
        let Some(mut copy) = self.copies.remove(&id) else { return Ok(()) };
        self.owners.retain(|_, (owner, _)| *owner != id);
        self.assigned = false;
        copy.with_stores(|db, stores, offsets| db.save_now(stores, offsets))
    }

    /// Copies begin and end: a thread of this process may wait for a file.
    pub(super) fn look_around(&mut self, now: Timestamp) -> Result<()> {
        if !self.is_keeper() || self.looked_at.is_some_and(|at| now >= at && now - at < LOOK_MS) {
            return Ok(());
        }
        self.looked_at = Some(now);
        self.look()?;
        self.expire(now)
    }

    /// Lets go of rows that the tasks' owners have let go of.
    fn expire(&mut self, now: Timestamp) -> Result<()> {
        let asked_lately = self.expired_at.is_some_and(|at| now >= at && now - at < EXPIRE_MS);
        if !self.has_watermarks() || self.copies.is_empty() || asked_lately {
            return Ok(());
        }
        self.expired_at = Some(now);
        if self.asking.is_none() {
            // Not `read_committed`: that waits for offsets in undecided transactions, and the last decided ones do.
            let group_id = Some(self.options.config.group_id().to_owned());
            let config = ConsumerConfig { group_id, ..ConsumerConfig::default() };
            self.asking = Some(self.clients.consumer(&config)?);
        }
        let Some(asking) = &mut self.asking else { return Ok(()) };
        let inputs_of = |id: &TaskId| -> Vec<TopicPartition> {
            let topics = self.options.topology.subtopologies[id.subtopology].source_topics.iter();
            let has = |topic: &&Arc<str>| {
                self.plan.partitions.get(*topic).is_some_and(|partitions| id.partition < *partitions)
            };
            let of = |topic: &Arc<str>| TopicPartition { topic: topic.clone(), partition: id.partition };
            topics.filter(has).map(of).collect()
        };
        let all: Vec<TopicPartition> = self.copies.keys().flat_map(inputs_of).collect();
        let committed = match asking.committed(&all) {
            Ok(committed) => committed,
            Err(StreamsError::Retriable(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        for (id, copy) in &mut self.copies {
            let inputs = inputs_of(id);
            let own =
                inputs.iter().filter_map(|input| CommitMetadata::decode(&committed.get(input)?.metadata));
            let Some(newest) = own.max_by_key(|metadata| metadata.commit) else { continue };
            for copied in &mut copy.stores {
                copied.store.as_state_store().expire_by(newest.expired);
            }
        }
        Ok(())
    }

    fn has_watermarks(&self) -> bool {
        self.options.config.idle_close_ms.is_some()
    }

    /// Whether the copies have not been fed for so long that they must be, whatever else there is to do.
    pub(super) fn is_starved(&self, now: Timestamp) -> bool {
        self.stepped_at.is_none_or(|at| now < at || now - at >= STARVED_MS)
    }

    /// One bounded step: one poll is applied. Records replayed.
    pub(super) fn step(&mut self, now: Timestamp) -> Result<usize> {
        if self.copies.is_empty() {
            return Ok(0);
        }
        self.stepped_at = Some(now);
        match self.replay(now) {
            Err(StreamsError::OffsetOutOfRange { partition, reason }) => {
                // What a copy would need is gone: it begins anew.
                tracing::warn!(partition, reason, "standby copies begin anew");
                let all: Vec<TaskId> = self.copies.keys().copied().collect();
                for id in all {
                    self.copies.remove(&id);
                    task_files::discard(&self.options, id)?;
                }
                self.owners.clear();
                self.assigned = false;
                Ok(0)
            }
            other => other,
        }
    }

    fn look(&mut self) -> Result<()> {
        let active = self.options.standby.active();
        self.hand_over(&active)?;
        for subtopology in &self.options.topology.clone().subtopologies {
            for partition in 0..self.plan.tasks[subtopology.id] {
                let id = TaskId { subtopology: subtopology.id, partition };
                if active.contains(&id) || self.copies.contains_key(&id) {
                    continue;
                }
                match self.begin(id) {
                    // Another process has the file, or the log is away: later.
                    Ok(()) | Err(StreamsError::Retriable(_)) => {}
                    Err(StreamsError::TaskCorrupted { reason, .. }) => {
                        tracing::warn!(task = %id, reason, "standby copy discarded; it begins anew");
                        task_files::discard(&self.options, id)?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, id: TaskId) -> Result<()> {
        let Some(db) = task_files::open(&self.options, id)? else { return Ok(()) };
        let (topology, has_watermarks) = (self.options.topology.clone(), self.has_watermarks());
        let environment =
            StoreEnvironment { db: Some(db.clone()), cache: None, ..StoreEnvironment::default() };
        if self.consumer.is_none() {
            let config = ConsumerConfig {
                read_committed: true,
                offset_reset: OffsetReset::None,
                max_poll_records: 10_000,
                ..ConsumerConfig::default()
            };
            self.consumer = Some(self.clients.consumer(&config)?);
        }
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let mut stores = Vec::new();
        for store in &topology.subtopologies[id.subtopology].stores {
            let spec = &topology.stores[store.0];
            let builder = &spec.builder;
            if builder.backend != Backend::Persistent || !builder.logging || spec.source_topic.is_some() {
                continue;
            }
            let mut store = builder.build(&environment)?;
            if has_watermarks {
                store.as_state_store().expire_by(-1);
            }
            // After it is built: one that changed has been dropped from the file.
            let saved = db.saved();
            let changelog =
                TopicPartition { topic: topology.changelog_topic(&builder.name), partition: id.partition };
            let (first, end) = consumer.watermarks(&changelog)?;
            let position = saved.changelog.get(&builder.name).copied().unwrap_or(first);
            if position > end {
                // An undecided transaction, or a changelog that was made anew: who opens the file for work will tell.
                return Ok(());
            }
            if position < first {
                return Err(StreamsError::TaskCorrupted {
                    task: id.to_string(),
                    reason: format!(
                        "it reflects offset {position} of {changelog}, which has {first} to {end}"
                    ),
                });
            }
            stores.push(CopiedStore { name: builder.name.clone(), changelog, store, position });
        }
        for (place, copied) in stores.iter().enumerate() {
            self.owners.insert(copied.changelog.clone(), (id, place));
        }
        self.copies.insert(id, WarmCopy { db, stores });
        self.assigned = false;
        Ok(())
    }

    fn replay(&mut self, now: Timestamp) -> Result<usize> {
        let Some(consumer) = &mut self.consumer else { return Ok(0) };
        if !self.assigned {
            let mut wanted = Vec::new();
            for copied in self.copies.values().flat_map(|copy| &copy.stores) {
                wanted.push((copied.changelog.clone(), Some(copied.position)));
            }
            consumer.assign(&wanted)?;
            self.assigned = true;
        }
        let mut records = consumer.poll(Duration::ZERO)?.records.into_iter().peekable();
        let mut count = 0;
        while let Some(first) = records.next() {
            let changelog = TopicPartition { topic: first.topic.clone(), partition: first.partition };
            let mut run: Vec<ConsumerRecord> = vec![first];
            while let Some(next) =
                records.next_if(|next| next.partition == changelog.partition && next.topic == changelog.topic)
            {
                run.push(next);
            }
            count += run.len();
            let Some((id, place)) = self.owners.get(&changelog) else { continue };
            let Some(copied) = self.copies.get_mut(id).and_then(|copy| copy.stores.get_mut(*place)) else {
                continue;
            };
            copied.store.as_state_store().restore(&run)?;
            copied.position = run.last().map_or(copied.position, |last| last.offset + 1);
        }
        for copy in self.copies.values_mut() {
            for copied in &mut copy.stores {
                if let Some(position) = consumer.position(&copied.changelog)? {
                    copied.position = copied.position.max(position);
                }
            }
            copy.with_stores(|db, stores, offsets| db.after_commit(stores, || offsets, now))?;
        }
        Ok(count)
    }
}
