//! The file under the embedded log: SQLite in WAL mode, written in whole snapshots, read where memory has no records.
//!
//! One [`Snapshot`] is one SQLite transaction, and a snapshot is everything decided since the last one; so the file
//! always holds a prefix of the log's history: what was flushed or committed, and nothing of an open transaction.
//! `synchronous=NORMAL`: a killed process loses nothing that was acknowledged; a power cut may lose the last moments,
//! as a single Kafka broker would.
//!
//! Only one process may have the file: a lock is held on `<file>.lock` for as long as the log is open.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, TryLockError},
    io::Write,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, OptionalExtension, params};

use super::{batch, partition::Stored};
use crate::streams::{
    client::OffsetAndMetadata,
    error::{Result, StreamsError},
    record::TopicPartition,
};

/// Bounds of one blob: enough to make rows rare, few enough that a reader in the middle decodes little in vain.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 256 << 10;

/// Batches compacted in one SQLite transaction: a commit waits for that many at most.
const COMPACTED_TOGETHER: usize = 64;

const SCHEMA: &str = "
-- Written by sluice's embedded log. Records are in batch.data (see batch.rs); offsets have gaps.
create table if not exists meta (
    key text primary key,
    value text not null
) without rowid;
create table if not exists topic (
    topic_id integer primary key,
    name text not null unique,
    config text not null            -- JSON object of Kafka's topic settings
);
create table if not exists partition (
    partition_id integer primary key,
    topic_id integer not null,
    number integer not null,
    start_offset integer not null,  -- first offset kept
    next_offset integer not null    -- offset of the next record; never given twice
);
create table if not exists batch (
    partition_id integer not null,
    base_offset integer not null,
    last_offset integer not null,
    record_count integer not null,
    max_timestamp integer not null,
    data blob not null,
    primary key (partition_id, base_offset)
) without rowid;
create table if not exists committed_offset (
    group_id text not null,
    topic text not null,
    partition integer not null,
    next_offset integer not null,   -- the next offset to read
    metadata text not null,
    primary key (group_id, topic, partition)
) without rowid;
insert or ignore into meta values ('version', '1');
";

/// A change that is not records or offsets; applied first and in order.
pub(super) enum MetaChange {
    CreateTopic { topic_id: u32, name: String, config: String, partition_ids: Vec<u32> },
    DeleteTopic { topic_id: u32, name: String, partition_ids: Vec<u32> },
    DeleteRecords { partition_id: u32, before: i64 },
    DeleteGroup { group_id: String },
}

/// New state of one partition: its bounds and the records to add.
pub(super) struct PartitionChange {
    pub partition_id: u32,
    pub start: i64,
    pub next: i64,
    pub records: Vec<Stored>,
}

/// Everything decided since the last snapshot.
#[derive(Default)]
pub(super) struct Snapshot {
    pub meta: Vec<MetaChange>,
    pub partitions: Vec<PartitionChange>,
    pub offsets: Vec<(String, TopicPartition, OffsetAndMetadata)>,
}

/// A topic as the file has it.
pub(super) struct LoadedTopic {
    pub topic_id: u32,
    pub name: String,
    pub config: BTreeMap<String, String>,
    /// `(partition_id, start, next)` by partition number.
    pub partitions: Vec<(u32, i64, i64)>,
}

/// The file's connections and the lock that makes it ours.
pub(super) struct Storage {
    writer: Mutex<Writer>,
    reader: Mutex<Connection>,
    /// Reads for compaction, which takes long: neither readers nor the writer wait for it.
    scanner: Mutex<Connection>,
    _lock: File,
}

/// The writing side; holding it means that no one else writes.
pub(super) struct Writer {
    connection: Connection,
    /// Changes of the broker up to this number are in the file.
    pub durable: u64,
}

fn failed(what: &str, error: rusqlite::Error) -> StreamsError {
    StreamsError::Fatal(format!("embedded log: {what}: {error}"))
}

impl Storage {
    /// Opens or creates the file; an error when another log has it open.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let lock = lock_file(path)?;
        let cannot = |e| failed(&format!("cannot open {}", path.display()), e);
        let connection = Connection::open(path).map_err(cannot)?;
        // Big pages: a batch is one blob of tens of kilobytes. Both settings come before the first table.
        let pragmas = "pragma page_size=16384; pragma journal_mode=wal; pragma synchronous=normal; pragma wal_autocheckpoint=2000;";
        connection.execute_batch(pragmas).map_err(cannot)?;
        connection.execute_batch(SCHEMA).map_err(cannot)?;
        let version: String = connection
            .query_row("select value from meta where key = 'version'", [], |r| r.get(0))
            .map_err(cannot)?;
        if version != "1" {
            return Err(StreamsError::Fatal(format!(
                "embedded log: {} has format version {version}, this build reads version 1: use the build that wrote it, \
                 or another file",
                path.display()
            )));
        }
        let reading = || {
            let reader = Connection::open(path)?;
            reader.execute_batch("pragma query_only=on; pragma mmap_size=268435456;")?;
            Ok(Mutex::new(reader))
        };
        Ok(Self {
            writer: Mutex::new(Writer { connection, durable: 0 }),
            reader: reading().map_err(cannot)?,
            scanner: reading().map_err(cannot)?,
            _lock: lock,
        })
    }

    /// Takes the writing side. A panic of another writer leaves at worst an open SQLite transaction, which the next
    /// `begin` reports, so its poison is not ours.
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All topics, and the committed offsets by group.
    pub(super) fn load(
        &self,
    ) -> Result<(Vec<LoadedTopic>, Vec<(String, TopicPartition, OffsetAndMetadata)>)> {
        let writer = self.writer();
        load(&writer.connection).map_err(|e| failed("cannot read the topics", e))
    }

    /// Records of `[from, end)`, at most `limit`, in offset order.
    pub(super) fn read(&self, partition_id: u32, from: i64, end: i64, limit: usize) -> Result<Vec<Stored>> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let batches = read_batches(&reader, partition_id, from, end, |records| {
            let records = records.map_err(|damaged| damaged_batch(partition_id, damaged))?;
            let wanted = records.into_iter().filter(|r| r.offset >= from && r.offset < end);
            found.extend(wanted.take(limit - found.len()));
            Ok(found.len() < limit)
        });
        batches.map(|()| found)
    }
}

impl Storage {
    /// Walks over all records below `end` in order and returns the base offsets of their batches.
    pub(super) fn scan(
        &self,
        partition_id: u32,
        end: i64,
        mut each: impl FnMut(&Stored),
    ) -> Result<Vec<i64>> {
        let scanner = self.scanner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bases = Vec::new();
        read_batches(&scanner, partition_id, i64::MIN, end, |records| {
            let records = records.map_err(|base| damaged_batch(partition_id, base))?;
            bases.extend(records.first().map(|r| r.offset));
            records.iter().filter(|r| r.offset < end).for_each(&mut each);
            Ok(true)
        })?;
        Ok(bases)
    }

    /// Drops the records below `end` that `keep` does not want, and joins what is left of small batches. `bases` are the
    /// batches of a scan with the same `end`; commits go on between groups of them.
    pub(super) fn compact(
        &self,
        partition_id: u32,
        end: i64,
        bases: &[i64],
        keep: impl Fn(&Stored) -> bool,
    ) -> Result<()> {
        for group in bases.chunks(COMPACTED_TOGETHER) {
            let mut damaged = None;
            let written = self.writer().in_transaction(|connection| {
                compact_batches(connection, partition_id, end, group, &keep, &mut damaged)
            });
            match damaged {
                Some(base) => return Err(damaged_batch(partition_id, base)),
                None => written?,
            }
        }
        Ok(())
    }
}

fn compact_batches(
    connection: &Connection,
    partition_id: u32,
    end: i64,
    bases: &[i64],
    keep: &impl Fn(&Stored) -> bool,
    damaged: &mut Option<i64>,
) -> rusqlite::Result<()> {
    let mut read =
        connection.prepare_cached("select data from batch where partition_id = ? and base_offset = ?")?;
    let mut delete =
        connection.prepare_cached("delete from batch where partition_id = ? and base_offset = ?")?;
    let mut pending: Vec<Stored> = Vec::new();
    for base in bases {
        // Gone meanwhile: the records were deleted, or the topic was.
        let Some(blob) = read.query_row(params![partition_id, base], |r| r.get(0)).optional()? else {
            continue;
        };
        let Ok(mut records) = batch::decode(*base, blob) else {
            *damaged = Some(*base);
            return Err(rusqlite::Error::QueryReturnedNoRows);
        };
        let before = records.len();
        records.retain(|r| r.offset >= end || keep(r));
        if records.len() == before && pending.is_empty() && before >= BATCH_RECORDS / 2 {
            continue;
        }
        delete.execute(params![partition_id, base])?;
        pending.append(&mut records);
        if pending.len() >= BATCH_RECORDS {
            write_records(connection, partition_id, &pending, Gaps::Decided)?;
            pending.clear();
        }
    }
    write_records(connection, partition_id, &pending, Gaps::Decided)
}

fn damaged_batch(partition_id: u32, base: i64) -> StreamsError {
    StreamsError::Fatal(format!(
        "embedded log: batch {base} of partition_id {partition_id} is damaged; restore the file from a copy"
    ))
}

fn lock_file(path: &Path) -> Result<File> {
    let lock_path = path.with_added_extension("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&lock_path);
    let mut file = open.map_err(|e| {
        StreamsError::Fatal(format!("embedded log: cannot open {}: {e}", lock_path.display()))
    })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = std::fs::read_to_string(&lock_path).unwrap_or_default();
            return Err(StreamsError::Fatal(format!(
                "embedded log: {} is in use by process {}: one process at a time; stop it, or use another file",
                path.display(),
                holder.trim()
            )));
        }
        Err(TryLockError::Error(e)) => {
            return Err(StreamsError::Fatal(format!(
                "embedded log: cannot lock {}: {e}",
                lock_path.display()
            )));
        }
    }
    // The number is only for the message above; failing to write it changes nothing.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn load(
    connection: &Connection,
) -> rusqlite::Result<(Vec<LoadedTopic>, Vec<(String, TopicPartition, OffsetAndMetadata)>)> {
    let mut topics = Vec::new();
    let mut statement = connection.prepare("select topic_id, name, config from topic order by topic_id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let config: String = row.get(2)?;
        let topic_id: u32 = row.get(0)?;
        let mut of_topic = connection.prepare_cached(
            "select partition_id, start_offset, next_offset from partition where topic_id = ? order by number",
        )?;
        let partitions = of_topic
            .query_map([topic_id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let config = serde_json::from_str(&config).map_err(|e| {
            rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(e))
        })?;
        topics.push(LoadedTopic { topic_id, name: row.get(1)?, config, partitions });
    }
    let mut statement = connection
        .prepare("select group_id, topic, partition, next_offset, metadata from committed_offset")?;
    let offsets = statement
        .query_map([], |r| {
            let topic: String = r.get(1)?;
            let value = OffsetAndMetadata { offset: r.get(3)?, metadata: r.get(4)? };
            Ok((r.get(0)?, TopicPartition::new(topic, r.get(2)?), value))
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok((topics, offsets))
}

/// Hands batches that may hold offsets of `[from, end)` to `each`, in order, until it says `false`.
/// `each` gets the records, or the base offset of a batch that does not decode.
fn read_batches(
    connection: &Connection,
    partition_id: u32,
    from: i64,
    end: i64,
    mut each: impl FnMut(std::result::Result<Vec<Stored>, i64>) -> Result<bool>,
) -> Result<()> {
    let cannot = |e| failed("cannot read records", e);
    let mut statement = connection
        .prepare_cached(
            "select base_offset, data from batch
             where partition_id = ?1 and base_offset < ?3 and base_offset >= coalesce(
                 (select max(base_offset) from batch where partition_id = ?1 and base_offset <= ?2), ?2)
             order by base_offset",
        )
        .map_err(cannot)?;
    let mut rows = statement.query(params![partition_id, from, end]).map_err(cannot)?;
    while let Some(row) = rows.next().map_err(cannot)? {
        let base: i64 = row.get(0).map_err(cannot)?;
        let blob: Vec<u8> = row.get(1).map_err(cannot)?;
        if !each(batch::decode(base, blob).map_err(|_| base))? {
            break;
        }
    }
    Ok(())
}

impl Writer {
    /// Makes a snapshot durable, all or nothing.
    pub(super) fn write(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.in_transaction(|connection| {
            for change in &snapshot.meta {
                write_meta(connection, change)?;
            }
            for change in &snapshot.partitions {
                write_records(connection, change.partition_id, &change.records, Gaps::MayFill)?;
                connection
                    .prepare_cached(
                        "update partition set start_offset = ?, next_offset = ? where partition_id = ?",
                    )?
                    .execute(params![change.start, change.next, change.partition_id])?;
            }
            let mut upsert = connection
                .prepare_cached("insert or replace into committed_offset values (?, ?, ?, ?, ?)")?;
            for (group, tp, offset) in &snapshot.offsets {
                upsert.execute(params![group, &*tp.topic, tp.partition, offset.offset, offset.metadata])?;
            }
            Ok(())
        })
    }

    fn in_transaction(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<()> {
        let begin_to_commit = || {
            let transaction =
                self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            work(&transaction)?;
            transaction.commit()
        };
        begin_to_commit().map_err(|e| failed("cannot write the file", e))
    }

    /// The first offset of the first batch with a record at or after `cutoff`; `end` when there is none.
    pub(super) fn first_batch_since(&self, partition_id: u32, cutoff: i64, end: i64) -> Result<i64> {
        let cannot = |e| failed("cannot find expired records", e);
        let first_kept: Option<i64> = self
            .connection
            .query_row(
                "select min(base_offset) from batch where partition_id = ? and max_timestamp >= ?",
                params![partition_id, cutoff],
                |r| r.get(0),
            )
            .map_err(cannot)?;
        Ok(first_kept.unwrap_or(end))
    }
}

fn write_meta(connection: &Connection, change: &MetaChange) -> rusqlite::Result<()> {
    match change {
        MetaChange::CreateTopic { topic_id, name, config, partition_ids } => {
            connection.execute("insert into topic values (?, ?, ?)", params![topic_id, name, config])?;
            for (number, id) in partition_ids.iter().enumerate() {
                connection
                    .prepare_cached("insert into partition values (?, ?, ?, 0, 0)")?
                    .execute(params![id, topic_id, number as i64])?;
            }
        }
        MetaChange::DeleteTopic { topic_id, name, partition_ids } => {
            for id in partition_ids {
                connection.execute("delete from batch where partition_id = ?", [id])?;
                connection.execute("delete from partition where partition_id = ?", [id])?;
            }
            connection.execute("delete from topic where topic_id = ?", [topic_id])?;
            connection.execute("delete from committed_offset where topic = ?", [name])?;
        }
        MetaChange::DeleteRecords { partition_id, before } => {
            connection
                .prepare_cached("delete from batch where partition_id = ? and last_offset < ?")?
                .execute(params![partition_id, before])?;
        }
        MetaChange::DeleteGroup { group_id } => {
            connection.execute("delete from committed_offset where group_id = ?", [group_id])?;
        }
    }
    Ok(())
}

/// What gaps between offsets mean.
#[derive(Clone, Copy, PartialEq)]
enum Gaps {
    /// A transaction that commits later may fill them: a batch must not span one, or batches would overlap.
    MayFill,
    /// Nothing comes there any more.
    Decided,
}

/// Writes records as batches. Always: the offset ranges of two batches of a partition never overlap.
fn write_records(
    connection: &Connection,
    partition_id: u32,
    records: &[Stored],
    gaps: Gaps,
) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached("insert into batch values (?, ?, ?, ?, ?, ?)")?;
    let mut rest = records;
    while let Some(first) = rest.first() {
        let (mut count, mut bytes) = (0, 0);
        while let Some(record) = rest.get(count)
            && (gaps == Gaps::Decided || record.offset == first.offset + count as i64)
            && count < BATCH_RECORDS
            && bytes < BATCH_BYTES
        {
            bytes +=
                record.key.as_ref().map_or(0, |b| b.len()) + record.value.as_ref().map_or(0, |b| b.len());
            count += 1;
        }
        let (run, others) = rest.split_at(count);
        insert.execute(params![
            partition_id,
            first.offset,
            run.last().map_or(first.offset, |r| r.offset),
            count as i64,
            run.iter().map(|r| r.timestamp).max().unwrap_or(-1),
            batch::encode(run)
        ])?;
        rest = others;
    }
    Ok(())
}
