//! [`TaskManager`]: the tasks of one thread: creating, restoring, suspending, closing.
//!
//! ```text
//!   assigned ──> Restoring ──(changelog replayed, init)──> Running
//!                    │                                      │ ^
//!                    └──────────> closed <── (lost) ── Suspended   (revoked: committed, waiting to hear who gets it)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    changelog_reader::{ChangelogReader, RestoreProgress},
    internal_topics::PartitionPlan,
    task::{StreamTask, TaskOptions},
    task_files,
    task_id::TaskId,
};
use crate::streams::{
    client::{ClientSupplier, OffsetAndMetadata},
    error::{Result, StreamsError},
    record::{ConsumerRecord, Timestamp, TopicPartition},
    state::{Backend, CacheOptions, SavedOffsets, StoreEnvironment, TaskDb},
};

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Its stores are being replayed.
    Restoring,
    /// Processing.
    Running,
    /// Revoked and committed; resumes unless it is assigned elsewhere.
    Suspended,
}

struct Life {
    state: TaskState,
    /// Changelog offsets of stores that were complete from the start or are by now.
    restored: BTreeMap<String, i64>,
    /// Clocks to initialise with once restored.
    clocks: HashMap<String, i64>,
}

/// A task to create as soon as its file is free.
struct Waiting {
    partitions: BTreeSet<TopicPartition>,
    committed: BTreeMap<TopicPartition, OffsetAndMetadata>,
    since: Timestamp,
}

pub(super) struct TaskManager {
    options: TaskOptions,
    plan: Arc<PartitionPlan>,
    /// Which sub-topology reads a topic.
    readers: HashMap<Arc<str>, usize>,
    tasks: BTreeMap<TaskId, StreamTask>,
    lives: BTreeMap<TaskId, Life>,
    owners: HashMap<TopicPartition, TaskId>,
    reader: ChangelogReader,
    /// Tasks whose state file another thread has not let go of yet.
    waiting: BTreeMap<TaskId, Waiting>,
    /// Whether the group has said what is ours. Between a revocation and that, restoring goes on but no task starts.
    assigned: bool,
}

impl TaskManager {
    pub(super) fn new(
        options: TaskOptions,
        plan: Arc<PartitionPlan>,
        clients: Arc<dyn ClientSupplier>,
    ) -> Self {
        let mut readers = HashMap::new();
        for subtopology in &options.topology.subtopologies {
            for topic in &subtopology.source_topics {
                readers.insert(topic.clone(), subtopology.id);
            }
        }
        Self {
            options,
            plan,
            readers,
            tasks: BTreeMap::new(),
            lives: BTreeMap::new(),
            owners: HashMap::new(),
            reader: ChangelogReader::new(clients),
            waiting: BTreeMap::new(),
            assigned: false,
        }
    }

    /// The tasks these partitions make up. Refuses an assignment that tears a task apart.
    pub(super) fn tasks_of(
        &self,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TaskId, BTreeSet<TopicPartition>>> {
        let mut tasks: BTreeMap<TaskId, BTreeSet<TopicPartition>> = BTreeMap::new();
        for partition in partitions {
            let Some(subtopology) = self.readers.get(&partition.topic) else { continue };
            let id = TaskId { subtopology: *subtopology, partition: partition.partition };
            tasks.entry(id).or_default().insert(partition.clone());
        }
        for (id, have) in &tasks {
            for topic in &self.options.topology.subtopologies[id.subtopology].source_topics {
                let exists = self.plan.partitions.get(topic).is_some_and(|count| id.partition < *count);
                if exists && !have.contains(&TopicPartition { topic: topic.clone(), partition: id.partition })
                {
                    return Err(StreamsError::Fatal(format!(
                        "the group assigned task {id} without {topic}-{}: inputs of one task must go together. All members must \
                         run the same topology, and its input topics need equal partition counts",
                        id.partition
                    )));
                }
            }
        }
        Ok(tasks)
    }

    /// Takes over an assignment: suspended tasks that stay resume, new ones begin to restore, the others are closed.
    pub(super) fn assign(
        &mut self,
        assigned: BTreeMap<TaskId, BTreeSet<TopicPartition>>,
        committed: &BTreeMap<TopicPartition, OffsetAndMetadata>,
        now: Timestamp,
    ) -> Result<()> {
        self.waiting.clear();
        let gone: Vec<TaskId> = self.tasks.keys().filter(|id| !assigned.contains_key(id)).copied().collect();
        for id in gone {
            self.close(id);
        }
        // A member that was away for a generation is given back tasks that somebody else worked on meanwhile.
        let stale: Vec<TaskId> =
            self.tasks.iter().filter(|(_, task)| !task.is_current(committed)).map(|(id, _)| *id).collect();
        for id in stale {
            self.close(id);
        }
        for (id, partitions) in assigned {
            match self.lives.get_mut(&id) {
                Some(life) if life.state == TaskState::Suspended => life.state = TaskState::Running,
                Some(_) => {}
                None => {
                    let waiting = Waiting { partitions, committed: committed.clone(), since: now };
                    self.waiting.insert(id, waiting);
                }
            }
        }
        self.assigned = true;
        self.create_waiting(now)?;
        self.complete_restoration(now)
    }

    /// Creates tasks that wait for their file. It is another thread's until that one has heard of the new assignment.
    fn create_waiting(&mut self, now: Timestamp) -> Result<()> {
        for (id, waiting) in std::mem::take(&mut self.waiting) {
            match self.create_anew_if_corrupted(id, &waiting) {
                Ok(()) => {}
                Err(StreamsError::Retriable(reason)) => {
                    if now - waiting.since > self.options.config.task_timeout.as_millis() as i64 {
                        return Err(StreamsError::Fatal(format!("task {id} cannot start: {reason}")));
                    }
                    self.waiting.insert(id, waiting);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A file that cannot be used is discarded, once: the changelog has everything.
    fn create_anew_if_corrupted(&mut self, id: TaskId, waiting: &Waiting) -> Result<()> {
        match self.create(id, waiting.partitions.clone(), &waiting.committed) {
            Err(StreamsError::TaskCorrupted { reason, .. }) => {
                tracing::warn!(task = %id, reason, "state file discarded; restoring from the changelog");
                self.close(id);
                task_files::discard(&self.options, id)?;
                self.create(id, waiting.partitions.clone(), &waiting.committed)
            }
            other => other,
        }
    }

    fn create(
        &mut self,
        id: TaskId,
        partitions: BTreeSet<TopicPartition>,
        committed: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    ) -> Result<()> {
        let topology = self.options.topology.clone();
        let subtopology = &topology.subtopologies[id.subtopology];
        let db = task_files::open(&self.options, id)?;
        let config = &self.options.config;
        let cache = CacheOptions::new(config.buffer_bytes_max / 4, config.semantics);
        let environment =
            StoreEnvironment { cache: Some(cache), db: db.clone(), semantics: config.semantics };
        let mut stores = Vec::new();
        for store in &subtopology.stores {
            stores.push((*store, topology.stores[store.0].builder.build(&environment)?));
        }
        // After the stores are built: one that changed has been dropped from the file, and only that one.
        let saved = db.as_ref().map_or_else(SavedOffsets::default, TaskDb::saved);
        // In the order of the topology's sources: ties between partitions follow from it.
        let ordered: Vec<TopicPartition> = subtopology
            .source_topics
            .iter()
            .map(|topic| TopicPartition { topic: topic.clone(), partition: id.partition })
            .filter(|partition| partitions.contains(partition))
            .collect();
        let mut task = StreamTask::new(id, &self.options, subtopology.nodes.clone(), stores, &ordered)?;
        task.set_db(db);
        let own: BTreeMap<_, _> = committed
            .iter()
            .filter(|(partition, _)| partitions.contains(partition))
            .map(|(partition, offset)| (partition.clone(), offset.clone()))
            .collect();
        let clocks = task.restore_metadata(&own);
        for store in &subtopology.stores {
            let spec = &topology.stores[store.0];
            let name = &spec.builder.name;
            if let Some(topic) = &spec.source_topic {
                let source = TopicPartition { topic: topic.clone(), partition: id.partition };
                let until = committed.get(&source).map_or(0, |offset| offset.offset);
                self.reader.register(id, *store, name, source, None, Some(until))?;
            } else if let Some(changelog) = task.graph().changelog(*store) {
                let changelog = TopicPartition { topic: changelog.clone(), partition: id.partition };
                let from = (spec.builder.backend == Backend::Persistent)
                    .then(|| saved.changelog.get(name).copied())
                    .flatten();
                self.reader.register(id, *store, name, changelog, from, None)?;
            }
        }
        for partition in partitions {
            self.owners.insert(partition, id);
        }
        self.tasks.insert(id, task);
        self.lives.insert(id, Life { state: TaskState::Restoring, restored: saved.changelog, clocks });
        Ok(())
    }

    /// Replays one batch; tasks whose stores are complete start running. Returns records replayed.
    pub(super) fn restore(&mut self, timeout: Duration, now: Timestamp) -> Result<usize> {
        self.create_waiting(now)?;
        let before: BTreeMap<TaskId, BTreeMap<String, i64>> =
            self.tasks.keys().map(|id| (*id, self.reader.positions(*id))).collect();
        let count = self.reader.restore(&mut self.tasks, timeout)?;
        for (id, names) in before {
            self.save_restored(id, names, now)?;
        }
        self.complete_restoration(now)?;
        Ok(count)
    }

    /// Saves what has been replayed when enough of it has gathered: memory stays bounded, and a crash here loses little.
    fn save_restored(&mut self, id: TaskId, before: BTreeMap<String, i64>, now: Timestamp) -> Result<()> {
        let (Some(task), Some(life)) = (self.tasks.get_mut(&id), self.lives.get_mut(&id)) else {
            return Ok(());
        };
        if before.is_empty() || life.state != TaskState::Restoring {
            return Ok(());
        }
        let positions = self.reader.positions(id);
        for (name, position) in before {
            // A store that is complete is no longer listed; where it ended up at least is where it was.
            let position = positions.get(&name).copied().unwrap_or(position);
            life.restored.insert(name, position);
        }
        if task.wants_save_while_restoring() {
            task.after_commit(life.restored.clone(), now)?;
        }
        Ok(())
    }

    fn complete_restoration(&mut self, now: Timestamp) -> Result<()> {
        if !self.assigned {
            return Ok(());
        }
        for (id, life) in &mut self.lives {
            if life.state == TaskState::Restoring && !self.reader.is_restoring(*id) {
                if let Some(task) = self.tasks.get_mut(id) {
                    task.init(std::mem::take(&mut life.clocks), now)?;
                }
                life.state = TaskState::Running;
            }
        }
        Ok(())
    }

    /// Suspends all tasks: the group is about to say who owns them. Buffered records are read again from the committed offsets.
    pub(super) fn suspend_all(&mut self) {
        self.assigned = false;
        for (id, life) in &mut self.lives {
            if life.state == TaskState::Running {
                life.state = TaskState::Suspended;
                if let Some(task) = self.tasks.get_mut(id) {
                    task.clear_buffers();
                }
            }
        }
    }

    /// Closes all tasks without keeping anything of them.
    pub(super) fn close_all(&mut self) {
        self.assigned = false;
        self.waiting.clear();
        let ids: Vec<TaskId> = self.tasks.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
    }

    fn close(&mut self, id: TaskId) {
        self.waiting.remove(&id);
        self.reader.unregister(id);
        if let Some(mut task) = self.tasks.remove(&id) {
            task.close();
        }
        self.lives.remove(&id);
        self.owners.retain(|_, owner| *owner != id);
    }

    /// Buffers polled records at their tasks.
    pub(super) fn add_records(&mut self, records: Vec<ConsumerRecord>, now: Timestamp) -> Result<()> {
        let mut records = records.into_iter().peekable();
        while let Some(first) = records.next() {
            let partition = TopicPartition { topic: first.topic.clone(), partition: first.partition };
            let mut run = vec![first];
            while let Some(next) =
                records.next_if(|next| next.partition == partition.partition && next.topic == partition.topic)
            {
                run.push(next);
            }
            let Some(task) = self.owners.get(&partition).and_then(|id| self.tasks.get_mut(id)) else {
                continue; // Fetched before the partition was taken away.
            };
            task.add_records_at(&partition, run, now)?;
        }
        Ok(())
    }

    /// Tasks that process.
    pub(super) fn running(&mut self) -> impl Iterator<Item = &mut StreamTask> {
        let lives = &self.lives;
        self.tasks
            .iter_mut()
            .filter(|(id, _)| lives.get(id).is_some_and(|life| life.state == TaskState::Running))
            .map(|(_, task)| task)
    }

    /// Partitions of tasks that process (or not).
    pub(super) fn partitions(&self, running: bool) -> Vec<TopicPartition> {
        let mut partitions: Vec<TopicPartition> = self
            .owners
            .iter()
            .filter(|(_, id)| {
                self.lives.get(id).is_some_and(|life| (life.state == TaskState::Running) == running)
            })
            .map(|(partition, _)| partition.clone())
            .collect();
        if !running {
            partitions.extend(self.waiting.values().flat_map(|waiting| waiting.partitions.iter().cloned()));
        }
        partitions
    }

    /// State of every task.
    pub(super) fn states(&self) -> BTreeMap<TaskId, TaskState> {
        let waiting = self.waiting.keys().map(|id| (*id, TaskState::Restoring));
        self.lives.iter().map(|(id, life)| (*id, life.state)).chain(waiting).collect()
    }

    /// Whether the group has said what is ours.
    pub(super) fn is_assigned(&self) -> bool {
        self.assigned
    }

    pub(super) fn is_restoring(&self) -> bool {
        !self.reader.is_idle() || !self.waiting.is_empty()
    }

    /// The ends of all changelogs of a task, to be read before the commit that makes them true.
    pub(super) fn changelog_ends(&mut self, id: TaskId) -> Result<BTreeMap<String, i64>> {
        let Some(task) = self.tasks.get(&id) else { return Ok(BTreeMap::new()) };
        let mut ends = BTreeMap::new();
        for (name, partition) in task.changelogs() {
            ends.insert(name, self.reader.end_offset(&partition)?);
        }
        Ok(ends)
    }

    /// A task by id.
    pub(super) fn task(&mut self, id: TaskId) -> Option<&mut StreamTask> {
        self.tasks.get_mut(&id)
    }

    pub(super) fn restore_progress(&self) -> RestoreProgress {
        self.reader.progress()
    }

    pub(super) fn restore_remaining(&self) -> impl Iterator<Item = (TaskId, &str, i64)> {
        self.reader.remaining()
    }
}
