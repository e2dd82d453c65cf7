//! [`TaskDb`]: the state file of one task, a SQLite database anyone can open.
//!
//! Stores hold their rows in memory and hand out what changed ([`StoreSnapshot`]) right after a commit; a saver thread
//! writes the snapshots of all stores of the task in **one transaction together with the offsets they reflect**. So:
//!
//! * the file may be behind the committed changelog (a restart replays the tail), it is never ahead of it;
//! * nothing of an aborted transaction is ever in the file, and there is nothing to wipe after a crash.
//!
//! Saves are rare and dense because a sparse save costs a page image per row (performance.md §1): [`SavePolicy`].
//! Each store is a table `<store>__rows` and a view named as the store: `sqlite3 file 'select * from "clicks"'`.

mod open;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use rusqlite::{Connection, Transaction};
pub(super) use table::{SqlRow, SqlTable, StoreMeta, TOMBSTONE, TableShape, TableSnapshot};

use super::{
    StateStore,
    memory::{SaveUnderWay, Share, StateMemory, UnsavedShare},
};
use crate::streams::{
    config::SaveTiming,
    error::{Result, StreamsError},
    failpoint,
    record::{Timestamp, TopicPartition},
};

/// What a state file reflects: how far each log had been read when its rows were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedOffsets {
    /// Next changelog offset to replay, by store name. A store that is not named is restored from the beginning.
    pub changelog: BTreeMap<String, i64>,
    /// Next input offset.
    pub inputs: BTreeMap<TopicPartition, i64>,
    /// Operator clocks, by name.
    pub clocks: BTreeMap<String, i64>,
}

/// When a task's stores are saved. All limits are about what has changed since the last save. Of the tasks of an application one is saved at
/// a time, but for those that have waited for `max_age_ms`: each save keeps what it takes twice in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePolicy {
    /// Never because of density before this many rows.
    pub min_rows: u64,
    /// Save when a store has been written to this many times its rows. The more often a row has changed, the fewer writes of the file a
    /// change costs; what is not saved yet costs its part of the changelog at the next start after a crash.
    pub writes_per_row: u64,
    /// Save what has been waiting this long.
    pub max_age_ms: i64,
    /// Who does the work, and when.
    pub timing: SaveTiming,
}

impl Default for SavePolicy {
    fn default() -> Self {
        Self { min_rows: 50_000, writes_per_row: 2, max_age_ms: 60_000, timing: SaveTiming::Background }
    }
}

/// Where a state file is and what it must be.
#[derive(Clone, Debug)]
pub struct TaskDbOptions {
    /// The file; its folder must exist.
    pub path: PathBuf,
    /// The task, as `0_1`, for messages.
    pub task: String,
    /// When to save.
    pub policy: SavePolicy,
    /// What the rows of all stores may take; unsaved rows at most half of it.
    pub memory: Arc<StateMemory>,
}

/// What one store has to save, taken right after a commit.
pub struct StoreSnapshot {
    table: Arc<SqlTable>,
    rows: TableSnapshot,
}

impl StoreSnapshot {
    pub(super) fn new(table: Arc<SqlTable>, rows: TableSnapshot) -> Self {
        Self { table, rows }
    }
}

/// A save on its way to the disk.
struct Saving {
    work: Work,
    offsets: SavedOffsets,
}

/// Who writes it.
enum Work {
    Thread(JoinHandle<Result<()>>),
    /// Whoever asks when it has been asked for often enough.
    Held {
        snapshots: Vec<StoreSnapshot>,
        asks_left: u32,
    },
}

#[derive(Default)]
struct SaveState {
    running: Option<Saving>,
    /// What the file reflects.
    saved: SavedOffsets,
    /// When a change was first seen waiting; `None` when nothing waits.
    waiting_since: Option<Timestamp>,
}

pub(super) struct Shared {
    task: String,
    path: PathBuf,
    policy: SavePolicy,
    memory: Arc<StateMemory>,
    unsaved: UnsavedShare,
    /// Used while stores are built and by the saver thread.
    writer: Mutex<Connection>,
    /// Used by the task's thread, so a running save never blocks a read.
    reader: Mutex<Connection>,
    state: Mutex<SaveState>,
    /// Held while the file is open, so that no second process takes it.
    _lock: File,
}

/// The state file of one task. Clones are the same file. Dropping the last one waits for a running save; the file is
/// free for another process when the stores built over it are gone too.
#[derive(Clone)]
pub struct TaskDb {
    shared: Arc<Shared>,
    _close: Arc<WaitForSave>,
}

/// Waits for a running save when dropped: a thread that still writes would keep the file locked after its task is gone.
struct WaitForSave(Arc<Shared>);

impl Drop for WaitForSave {
    fn drop(&mut self) {
        if let Err(error) = self.0.finish_save() {
            // Nobody is left to handle it. The file is behind, as after a crash, and is replayed from there.
            tracing::warn!(task = self.0.task, %error, "the last save before the task was dropped failed");
        }
    }
}

impl fmt::Debug for TaskDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskDb({})", self.shared.path.display())
    }
}

/// A poisoned lock means a panic elsewhere; what it guards is still whole, as each holder leaves it so at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskDb {
    /// Opens or creates the file. What is known of its stores after they are built is in [`saved`](Self::saved): a store that
    /// changed in kind or columns is dropped when it is built, and only that one.
    ///
    /// # Errors
    /// * `TaskCorrupted`: damaged or truncated: [`discard`](Self::discard) it and restore.
    /// * `Retriable`: another process holds it.
    /// * `Fatal`: not a state file, or written by a newer version: nothing is touched, a person must look.
    pub fn open(options: TaskDbOptions) -> Result<(Self, SavedOffsets)> {
        let opened = open::open(&options)?;
        let saved = opened.saved.clone();
        let shared = Shared {
            task: options.task,
            path: options.path,
            policy: options.policy,
            unsaved: UnsavedShare::new(&options.memory),
            memory: options.memory,
            writer: Mutex::new(opened.writer),
            reader: Mutex::new(opened.reader),
            state: Mutex::new(SaveState { saved: opened.saved, ..SaveState::default() }),
            _lock: opened.lock,
        };
        let shared = Arc::new(shared);
        Ok((Self { _close: Arc::new(WaitForSave(shared.clone())), shared }, saved))
    }

    /// Deletes the file and what belongs to it. No [`TaskDb`] may have it open.
    pub fn discard(path: &Path) -> Result<()> {
        for suffix in ["", "-wal", "-shm"] {
            let file = open::with_suffix(path, suffix);
            match std::fs::remove_file(&file) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(StreamsError::fatal(format!(
                        "cannot delete state file {}: {error}",
                        file.display()
                    )));
                }
            }
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Drops the stores that are not named: the topology does not have them any more, or has them in another task. Call before
    /// stores are built.
    pub fn keep_only(&self, stores: &BTreeSet<&str>) -> Result<()> {
        let writer = self.shared.write();
        let kept = (|| -> rusqlite::Result<Vec<String>> {
            let mut query = writer.prepare("select name from sluice_store")?;
            query.query_map([], |row| row.get(0))?.collect()
        })();
        let kept = kept.map_err(|error| self.shared.broken("look at the stores of", &error))?;
        for name in kept.iter().filter(|name| !stores.contains(name.as_str())) {
            self.shared.forget(&writer, name)?;
        }
        Ok(())
    }

    /// What the file reflects now.
    pub fn saved(&self) -> SavedOffsets {
        lock(&self.shared.state).saved.clone()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Call right after each commit (and each restored batch), before the next record: learns whether a running save
    /// is durable, and starts the next one when it is due. Returns whether one was started.
    ///
    /// `offsets` is called only then; it must give what the stores reflect at this moment.
    pub fn after_commit(
        &self,
        stores: &mut [&mut dyn StateStore],
        offsets: impl FnOnce() -> SavedOffsets,
        now: Timestamp,
    ) -> Result<bool> {
        if self.is_saving() {
            return Ok(false);
        }
        self.finish_save(stores)?;
        if !self.is_due(stores, now) {
            return Ok(false);
        }
        self.start_save(stores, offsets())?;
        if self.shared.policy.timing == SaveTiming::AtCommit {
            self.finish_save(stores)?;
        }
        Ok(true)
    }

    /// Whether [`settle_save`](Self::settle_save) has something to do: a saver thread has ended, or must be waited for because memory holds
    /// far more than it may: rows come in faster than the disk takes them.
    pub fn wants_settling(&self) -> bool {
        match lock(&self.shared.state).running.as_ref().map(|saving| &saving.work) {
            Some(Work::Thread(thread)) => thread.is_finished() || self.shared.memory.is_far_over(),
            Some(Work::Held { .. }) | None => false,
        }
    }

    /// Tells the stores of a save that has ended, so that they let go of what memory has no room for. Call right after a commit.
    pub fn settle_save(&self, stores: &mut [&mut dyn StateStore]) -> Result<()> {
        if self.wants_settling() { self.finish_save(stores) } else { Ok(()) }
    }

    /// Saves everything and waits until it is durable: at a clean close, right after the last commit. The file then
    /// needs no check at the next start.
    pub fn save_now(&self, stores: &mut [&mut dyn StateStore], offsets: SavedOffsets) -> Result<()> {
        self.finish_save(stores)?;
        self.start_save(stores, offsets)?;
        self.close(stores)
    }

    /// Waits until what is being saved is durable, and marks the file as whole: nothing else is to be saved. A clean close of a task
    /// that has nothing new.
    pub fn close(&self, stores: &mut [&mut dyn StateStore]) -> Result<()> {
        self.finish_save(stores)?;
        open::close(&lock(&self.shared.writer)).map_err(|error| self.shared.broken("close", &error))
    }

    /// Whether [`after_commit`](Self::after_commit) would start a save now. Ask before the commit: the offsets the save will
    /// carry must be read before it.
    pub fn wants_save(&self, stores: &[&mut dyn StateStore], now: Timestamp) -> bool {
        !self.is_saving() && self.is_due(stores, now)
    }

    /// As [`wants_save`](Self::wants_save) while a changelog is replayed: only memory forces a save then. Rows are still
    /// replaced by later records, and what has been replayed can be replayed again.
    pub fn wants_save_while_restoring(&self, stores: &[&mut dyn StateStore]) -> bool {
        let bytes = stores.iter().map(|store| store.unsaved().bytes).sum();
        self.shared.unsaved.is_too_much(bytes) && !self.is_saving()
    }

    fn is_saving(&self) -> bool {
        match lock(&self.shared.state).running.as_mut().map(|saving| &mut saving.work) {
            None => false,
            Some(Work::Thread(thread)) => !thread.is_finished(),
            Some(Work::Held { asks_left, .. }) => {
                let wait = *asks_left > 0;
                *asks_left = asks_left.saturating_sub(1);
                wait
            }
        }
    }

    /// Waits for a running save and tells the stores that it is durable.
    pub fn finish_save(&self, stores: &mut [&mut dyn StateStore]) -> Result<()> {
        if self.shared.finish_save()? {
            for store in stores {
                store.mark_saved();
            }
        }
        Ok(())
    }

    fn is_due(&self, stores: &[&mut dyn StateStore], now: Timestamp) -> bool {
        let policy = &self.shared.policy;
        let unsaved: Vec<Unsaved> = stores.iter().map(|store| store.unsaved()).collect();
        let too_much = self.shared.unsaved.is_too_much(unsaved.iter().map(|unsaved| unsaved.bytes).sum());
        let mut state = lock(&self.shared.state);
        if unsaved.iter().all(|unsaved| unsaved.changed == 0) {
            state.waiting_since = None;
            return false;
        }
        let since = *state.waiting_since.get_or_insert(now);
        let dense = |unsaved: &Unsaved| {
            let enough = unsaved.rows.saturating_mul(policy.writes_per_row);
            unsaved.changed >= policy.min_rows && unsaved.writes >= enough
        };
        let worth = too_much || unsaved.iter().any(dense);
        now - since >= policy.max_age_ms || (worth && !self.shared.memory.is_saving())
    }

    fn start_save(&self, stores: &mut [&mut dyn StateStore], offsets: SavedOffsets) -> Result<()> {
        let mut snapshots = Vec::new();
        for store in stores {
            snapshots.extend(store.snapshot()?);
        }
        let mut state = lock(&self.shared.state);
        state.waiting_since = None;
        let work = match self.shared.policy.timing {
            SaveTiming::Background => {
                let (shared, to_save) = (self.shared.clone(), offsets.clone());
                let saving = SaveUnderWay::new(&self.shared.memory);
                let thread = std::thread::Builder::new()
                    .name(format!("saver-{}", self.shared.task))
                    .spawn(move || {
                        let _saving = saving;
                        shared.save(snapshots, &to_save)
                    })
                    .map_err(|error| StreamsError::fatal(format!("cannot start a saver thread: {error}")))?;
                Work::Thread(thread)
            }
            SaveTiming::AtCommit => Work::Held { snapshots, asks_left: 0 },
            SaveTiming::Later(asks) => Work::Held { snapshots, asks_left: asks },
        };
        state.running = Some(Saving { work, offsets });
        Ok(())
    }
}

/// How much of a store is not in the state file yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// Rows changed since the last save.
    pub changed: u64,
    /// Writes since then, of which a row may have had several.
    pub writes: u64,
    /// Rows of the store.
    pub rows: u64,
    /// Estimated memory of the changed rows.
    pub bytes: u64,
}

impl Shared {
    /// Waits for a running save; `true` when there was one and it is durable now.
    pub(super) fn finish_save(&self) -> Result<bool> {
        let Some(saving) = lock(&self.state).running.take() else { return Ok(false) };
        match saving.work {
            Work::Held { snapshots, .. } => self.save(snapshots, &saving.offsets)?,
            Work::Thread(thread) => match thread.join() {
                Ok(result) => result?,
                Err(_) => {
                    return Err(StreamsError::fatal(format!(
                        "the saver thread of task {} panicked: a bug, see the message above; state is intact",
                        self.task
                    )));
                }
            },
        }
        lock(&self.state).saved = saving.offsets;
        Ok(true)
    }

    fn save(&self, snapshots: Vec<StoreSnapshot>, offsets: &SavedOffsets) -> Result<()> {
        failpoint::hit("runner_before_save");
        let mut writer = lock(&self.writer);
        let written = (|| {
            let transaction = writer.transaction()?;
            for StoreSnapshot { table, rows } in snapshots {
                if let Err(error) = table.write(&transaction, rows)? {
                    return Ok(Err(error));
                }
            }
            write_offsets(&transaction, offsets)?;
            transaction.commit()?;
            Ok(Ok(()))
        })();
        written.map_err(|error| self.broken("save", &error))??;
        open::checkpoint_if_large(&writer, &self.path).map_err(|error| self.broken("checkpoint", &error))
    }

    /// What an error of SQLite means for the task.
    pub(super) fn broken(&self, doing: &str, error: &rusqlite::Error) -> StreamsError {
        open::classify(&self.task, &self.path, doing, error)
    }

    /// Drops a store and everything the file says of it: it is restored from the beginning of its changelog, if it comes back.
    pub(super) fn forget(&self, writer: &Connection, store: &str) -> Result<()> {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let dropped = (|| -> rusqlite::Result<()> {
            writer.execute_batch(&format!(
                "begin immediate; drop view if exists {}; drop table if exists {};",
                quoted(store),
                quoted(&format!("{store}__rows"))
            ))?;
            writer.execute("delete from sluice_store where name = ?", [store])?;
            writer.execute("delete from sluice_offset where kind = 'changelog' and name = ?", [store])?;
            writer.execute_batch("commit")
        })();
        dropped.map_err(|error| {
            // Nothing to roll back is no second mistake.
            let _ = writer.execute_batch("rollback");
            self.broken("drop a store from", &error)
        })?;
        tracing::info!(
            task = self.task,
            store,
            "the state file had a store of this name that is no longer as it was"
        );
        lock(&self.state).saved.changelog.remove(store);
        Ok(())
    }

    /// A row that cannot be read back.
    pub(super) fn unreadable(&self, what: impl fmt::Display) -> StreamsError {
        StreamsError::TaskCorrupted {
            task: self.task.clone(),
            reason: format!("state file {}: {what}", self.path.display()),
        }
    }

    pub(super) fn read(&self) -> MutexGuard<'_, Connection> {
        lock(&self.reader)
    }

    pub(super) fn write(&self) -> MutexGuard<'_, Connection> {
        lock(&self.writer)
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> &StateMemory {
        &self.memory
    }

    /// A store's part of the memory.
    pub(super) fn share(&self) -> Share {
        Share::new(&self.memory)
    }
}

fn write_offsets(transaction: &Transaction<'_>, offsets: &SavedOffsets) -> rusqlite::Result<()> {
    transaction.execute("delete from sluice_offset", [])?;
    let mut insert = transaction.prepare_cached("insert into sluice_offset values (?, ?, ?, ?)")?;
    for (store, offset) in &offsets.changelog {
        insert.execute(("changelog", store, 0, offset))?;
    }
    for (input, offset) in &offsets.inputs {
        insert.execute(("input", &*input.topic, input.partition, offset))?;
    }
    for (clock, reading) in &offsets.clocks {
        insert.execute(("clock", clock, 0, reading))?;
    }
    Ok(())
}
