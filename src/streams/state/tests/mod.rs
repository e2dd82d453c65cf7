//! The contract every store and every stack of layers is held to.
//!
//! [`Rig`] drives one store as a task would: write, flush, commit, save, crash, abort. Its changelog is a list standing for
//! the committed topic. Each kind's tests run the same random steps over every stack in [`STACKS`] and over a naive
//! model; random steps shrink, and a failure prints the steps.

mod buffer;
mod caching;
mod key_value;
mod replay;
mod session;
mod versioned;
mod window;

use std::{sync::Arc, time::Duration};

use proptest::test_runner::Config;
use tempfile::TempDir;

use super::*;
use crate::streams::{
    config::Semantics,
    record::{AnyValue, ByteKey, RecordContext},
    serdes::HasSerde,
};

/// How a store is layered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    backend: Backend,
    logging: bool,
    caching: bool,
    /// Over a state file, with this budget in bytes (small: rows are evicted; large: they stay).
    file: Option<u64>,
}

const PLAIN: Stack = Stack { backend: Backend::Persistent, logging: false, caching: false, file: None };
const LOGGED: Stack = Stack { logging: true, ..PLAIN };

/// Every stack that must behave alike. Only those with a changelog can crash.
pub(super) const STACKS: &[Stack] = &[
    PLAIN,
    LOGGED,
    Stack { caching: true, ..LOGGED },
    Stack { file: Some(1 << 20), ..LOGGED },
    Stack { file: Some(0), ..LOGGED },
    Stack { file: Some(0), caching: true, ..LOGGED },
];

/// Few cases, many steps: most of the time goes to opening files.
pub(super) fn config() -> Config {
    Config { cases: 48, failure_persistence: None, ..Config::default() }
}

pub(super) fn text(value: &str) -> AnyValue {
    Arc::new(value.to_owned())
}

pub(super) fn plain(value: &AnyValue) -> String {
    value.downcast_ref::<String>().expect("tests store text").clone()
}

pub(super) fn at(timestamp: Timestamp) -> RecordContext {
    RecordContext { topic: Some("in".into()), partition: 0, offset: 7, timestamp, headers: Headers::EMPTY }
}

/// A value with its timestamp.
pub(super) fn stamped(value: &str, timestamp: Timestamp) -> ValueAndTimestamp {
    ValueAndTimestamp { value: text(value), timestamp }
}

/// One store, driven as a task drives it.
pub(super) struct Rig {
    pub store: Store,
    builder: StoreBuilder,
    stack: Stack,
    folder: TempDir,
    db: Option<TaskDb>,
    /// The committed changelog.
    pub log: Vec<ConsumerRecord>,
    now: Timestamp,
    /// Saves started.
    pub saves: u32,
}

impl Rig {
    pub(super) fn new(stack: Stack, kind: StoreKind) -> Self {
        Self::of(stack, kind, None)
    }

    pub(super) fn of(stack: Stack, kind: StoreKind, segment_interval: Option<Duration>) -> Self {
        let mut builder = StoreBuilder::new("clicks", kind, String::serde(), String::serde());
        builder.backend = stack.backend;
        builder.logging = stack.logging;
        builder.caching = stack.caching;
        builder.segment_interval = segment_interval;
        let folder = tempfile::tempdir().expect("a folder for the state file");
        let (store, db, saved) = build(&builder, stack, &folder);
        assert_eq!(saved, SavedOffsets::default(), "a new file reflects nothing");
        Self { store, builder, stack, folder, db, log: Vec::new(), now: 0, saves: 0 }
    }

    /// What the store says it has in memory, bytes.
    pub(super) fn memory_used(&mut self) -> u64 {
        let _ = self.store.as_state_store().unsaved();
        self.db.as_ref().map_or(0, |db| db.shared().memory().used())
    }

    pub(super) fn can_crash(&self) -> bool {
        self.stack.logging
    }

    /// Flushes, sends the changelog, commits; `save` lets so much time pass that a save is due.
    pub(super) fn commit(&mut self, save: bool) -> Vec<CacheFlush> {
        let store = self.store.as_state_store();
        let flushed = store.flush_cache().unwrap();
        let mut changes = Vec::new();
        store.drain_changelog(&mut changes).unwrap();
        for change in changes {
            self.log.push(ConsumerRecord {
                topic: "app-clicks-changelog".into(),
                partition: 0,
                offset: self.log.len() as i64,
                timestamp: change.timestamp.unwrap_or(0),
                key: Some(bytes::Bytes::copy_from_slice(&change.key)),
                value: change.value,
                headers: change.headers,
            });
        }
        let end = self.log.len() as i64;
        let Some(db) = &self.db else { return flushed };
        // The first call sees that something waits; after a long time it is due.
        let mut saved =
            db.after_commit(&mut [self.store.as_state_store()], || offsets(end), self.now).unwrap();
        if save {
            self.now += 100_000;
            saved |= db.after_commit(&mut [self.store.as_state_store()], || offsets(end), self.now).unwrap();
        }
        self.saves += u32::from(saved);
        flushed
    }

    /// Waits until a running save is durable.
    pub(super) fn finish_save(&mut self) {
        if let Some(db) = &self.db {
            db.finish_save(&mut [self.store.as_state_store()]).unwrap();
        }
    }

    /// The process dies without warning and starts again: what was not committed is gone, the rest must be as before.
    pub(super) fn crash(&mut self, chunk: usize) {
        let saved = match self.db.take() {
            Some(db) => {
                // A save that runs may or may not reach the disk; the copy below is one of the two.
                let copy = copy_of(&db);
                drop(db);
                // Drops the old store and with it the last use of the old file.
                self.store = self.builder.build(&StoreEnvironment::default()).unwrap();
                restore_copy(self.folder.path(), copy);
                let (store, db, saved) = build(&self.builder, self.stack, &self.folder);
                (self.store, self.db) = (store, db);
                saved
            }
            None => {
                let (store, _, saved) = build(&self.builder, self.stack, &self.folder);
                self.store = store;
                saved
            }
        };
        self.replay(&saved, chunk);
    }

    /// The open transaction is aborted.
    pub(super) fn abort(&mut self, chunk: usize) {
        self.store.as_state_store().discard_uncommitted().unwrap();
        let saved = self.db.as_ref().map(TaskDb::saved).unwrap_or_default();
        self.replay(&saved, chunk);
    }

    fn replay(&mut self, saved: &SavedOffsets, chunk: usize) {
        let from = saved.changelog.get("clicks").copied().unwrap_or(0) as usize;
        assert!(from <= self.log.len(), "the file must never be ahead of the committed changelog");
        for records in self.log[from..].chunks(chunk.max(1)) {
            self.store.as_state_store().restore(records).unwrap();
        }
    }
}

fn offsets(end: i64) -> SavedOffsets {
    SavedOffsets { changelog: [("clicks".to_owned(), end)].into(), ..SavedOffsets::default() }
}

fn build(builder: &StoreBuilder, stack: Stack, folder: &TempDir) -> (Store, Option<TaskDb>, SavedOffsets) {
    let (db, saved) = match stack.file {
        None => (None, SavedOffsets::default()),
        Some(budget_bytes) => {
            let (db, saved) = TaskDb::open(db_options(folder.path(), budget_bytes)).unwrap();
            (Some(db), saved)
        }
    };
    let environment = StoreEnvironment {
        cache: Some(CacheOptions { max_bytes: 1 << 20, keep_clean: false }),
        db: db.clone(),
        semantics: Semantics::Sluice,
    };
    (builder.build(&environment).unwrap(), db, saved)
}

pub(super) fn db_options(folder: &std::path::Path, budget_bytes: u64) -> TaskDbOptions {
    TaskDbOptions {
        path: folder.join("0_0.db"),
        task: "0_0".to_owned(),
        policy: SavePolicy::default(),
        memory: StateMemory::new(budget_bytes),
    }
}

type Files = Vec<(String, Vec<u8>)>;

/// The bytes of the state file and its log as they are now: what a power cut would leave, except for what a running
/// save writes meanwhile (a torn copy of the log is cut at its last whole transaction when opened).
fn copy_of(db: &TaskDb) -> Files {
    ["0_0.db", "0_0.db-wal"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::fs::read(db.path().with_file_name(name)).ok()?)))
        .collect()
}

fn restore_copy(folder: &std::path::Path, files: Files) {
    for name in ["0_0.db", "0_0.db-wal", "0_0.db-shm"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
