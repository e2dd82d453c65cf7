//! Opening a state file: what is checked, in which order, and what each finding means.
//!
//! 1. The lock: one process at a time.
//! 2. What the file is. Not SQLite, or SQLite of somebody else: fatal, and nothing is touched. Ours but newer: fatal.
//!    Ours but damaged or cut short: the task's file is discarded and restored. Single stores that changed are dropped later.
//! 3. Its pages, unless it was closed cleanly.
//!
//! `page_size` must be set before the first table and before WAL mode.

use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::{SavedOffsets, TaskDbOptions};
use crate::streams::{
    error::{Result, StreamsError},
    record::TopicPartition,
};

/// Marks a SQLite file as ours (`PRAGMA application_id`): the letters "sluc".
const APPLICATION_ID: i32 = 0x736c_7563;
/// Version of the tables below (`PRAGMA user_version`).
const FORMAT_VERSION: i32 = 1;
/// The first bytes of every SQLite file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The write-ahead log is folded into the file when it is larger.
const WAL_BYTES_MAX: u64 = 256 << 20;

pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) reader: Connection,
    pub(super) saved: SavedOffsets,
    pub(super) lock: File,
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn open(options: &TaskDbOptions) -> Result<Opened> {
    let path = &options.path;
    let lock = take_lock(path)?;
    let exists = is_sqlite_file(options)?;
    let broken = |error: rusqlite::Error| classify(&options.task, path, "open", &error);
    let writer = Connection::open(path).map_err(broken)?;
    if exists {
        check(options, &writer)?;
    } else {
        create(&writer).map_err(broken)?;
    }
    configure(&writer).map_err(broken)?;
    let saved = read_offsets(&writer).map_err(broken)?;
    // From here on only a clean close says that the pages need no check.
    writer.execute("update sluice_meta set value = '0' where name = 'clean'", []).map_err(broken)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(path, flags).map_err(broken)?;
    configure_reads(&reader).map_err(broken)?;
    Ok(Opened { writer, reader, saved, lock })
}

fn take_lock(path: &Path) -> Result<File> {
    let file = with_suffix(path, ".lock");
    let lock = File::create(&file).map_err(|error| {
        StreamsError::fatal(format!(
            "cannot create lock file {}: {error}; is state_dir a writable folder?",
            file.display()
        ))
    })?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StreamsError::Retriable(format!(
            "state file {} is in use by another process; stop it, or give this one another state_dir",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => {
            Err(StreamsError::fatal(format!("cannot lock {}: {error}", file.display())))
        }
    }
}

/// Whether there is a SQLite file; something else in its place is refused. An empty file is a new one, a beginning of the
/// head or zeros are what a crash of the machine leaves of a file.
fn is_sqlite_file(options: &TaskDbOptions) -> Result<bool> {
    let path = &options.path;
    let cannot_read = |error: std::io::Error| {
        StreamsError::fatal(format!("cannot read state file {}: {error}", path.display()))
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(cannot_read(error)),
    };
    let mut head = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut head).map_err(cannot_read)?;
    match head.as_slice() {
        [] => Ok(false),
        head if head == MAGIC => Ok(true),
        head if MAGIC.starts_with(head) || head.iter().all(|byte| *byte == 0) => {
            Err(StreamsError::TaskCorrupted {
                task: options.task.clone(),
                reason: format!("state file {}: not even its head is whole", path.display()),
            })
        }
        _ => Err(foreign(path, "it is not a SQLite file")),
    }
}

fn foreign(path: &Path, why: &str) -> StreamsError {
    StreamsError::fatal(format!(
        "{} is not a state file of this engine: {why}. It was left untouched; move it away or choose another state_dir",
        path.display()
    ))
}

fn create(writer: &Connection) -> rusqlite::Result<()> {
    writer.execute_batch(&format!(
        "pragma page_size = 16384;
         pragma journal_mode = wal;
         begin;
         pragma application_id = {APPLICATION_ID};
         pragma user_version = {FORMAT_VERSION};
         -- what this file is
         create table sluice_meta (name text primary key, value text) without rowid;
         -- what the rows reflect; written in the transaction that writes the rows
         create table sluice_offset (kind text, name text, part integer, next integer, primary key (kind, name, part)) without rowid;
         -- one line per store: its clock, its counter of duplicates, its rows (approximate)
         create table sluice_store (name text primary key, shape text, observed integer, seq integer, row_count integer) without rowid;
         insert into sluice_meta values ('clean', '0');
         commit;"
    ))
}

fn check(options: &TaskDbOptions, writer: &Connection) -> Result<()> {
    let path = &options.path;
    let broken = |error: rusqlite::Error| classify(&options.task, path, "open", &error);
    let corrupted = |reason: String| StreamsError::TaskCorrupted {
        task: options.task.clone(),
        reason: format!("state file {}: {reason}", path.display()),
    };
    let number = |pragma: &str| writer.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let application_id = number("application_id").map_err(broken)?;
    if application_id != i64::from(APPLICATION_ID) {
        let objects = "select count(*) from sqlite_master";
        let objects: i64 = writer.query_row(objects, [], |row| row.get(0)).map_err(broken)?;
        if application_id == 0 && objects == 0 {
            // The marks are in the first transaction: a crash can leave the file without it, or lose the log it was in.
            return Err(corrupted("nothing is in it: it was not written to the end".to_owned()));
        }
        return Err(foreign(path, "another program wrote it"));
    }
    let version = number("user_version").map_err(broken)?;
    if version > i64::from(FORMAT_VERSION) {
        return Err(StreamsError::fatal(format!(
            "state file {} has format {version}, this program knows {FORMAT_VERSION}: run the newer version, \
             or delete the file and its state is restored from the changelog",
            path.display()
        )));
    }
    if version < i64::from(FORMAT_VERSION) {
        return Err(corrupted(format!("format {version} is older than {FORMAT_VERSION}")));
    }
    let meta = |name: &str| -> rusqlite::Result<Option<String>> {
        let query = "select value from sluice_meta where name = ?";
        writer.query_row(query, [name], |row| row.get(0)).optional()
    };
    let clean = meta("clean").map_err(broken)?.as_deref() == Some("1");
    let pages = number("page_count").map_err(broken)? * number("page_size").map_err(broken)?;
    let length = std::fs::metadata(path).map_or(0, |file| file.len() as i64);
    if clean && length != pages {
        return Err(corrupted(format!("{length} bytes long, {pages} expected")));
    }
    if !clean {
        let found = "quick_check(1)";
        let found: String =
            writer.query_row(&format!("pragma {found}"), [], |row| row.get(0)).map_err(broken)?;
        if found != "ok" {
            return Err(corrupted(found));
        }
    }
    Ok(())
}

fn configure(writer: &Connection) -> rusqlite::Result<()> {
    writer.busy_timeout(std::time::Duration::from_secs(10))?;
    writer.execute_batch(
        "pragma journal_mode = wal;
         pragma synchronous = normal;
         pragma wal_autocheckpoint = 0;
         pragma cache_size = -16384;
         pragma temp_store = memory;",
    )
}

fn configure_reads(reader: &Connection) -> rusqlite::Result<()> {
    reader.busy_timeout(std::time::Duration::from_secs(10))?;
    // As large as SQLite allows: reads then skip a system call.
    reader.execute_batch("pragma mmap_size = 2147418112; pragma cache_size = -4096;")?;
    reader.set_prepared_statement_cache_capacity(128);
    Ok(())
}

fn read_offsets(writer: &Connection) -> rusqlite::Result<SavedOffsets> {
    let mut saved = SavedOffsets::default();
    let mut query = writer.prepare("select kind, name, part, next from sluice_offset")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (name, next): (String, i64) = (row.get(1)?, row.get(3)?);
        match row.get_ref(0)?.as_str()? {
            "changelog" => drop(saved.changelog.insert(name, next)),
            "input" => {
                let input = TopicPartition::new(Arc::<str>::from(name), row.get(2)?);
                saved.inputs.insert(input, next);
            }
            _ => drop(saved.clocks.insert(name, next)),
        }
    }
    Ok(saved)
}

/// Folds the write-ahead log into the file when it has grown large.
pub(super) fn checkpoint_if_large(writer: &Connection, path: &Path) -> rusqlite::Result<()> {
    let log = std::fs::metadata(with_suffix(path, "-wal")).map_or(0, |file| file.len());
    if log > WAL_BYTES_MAX { checkpoint(writer) } else { Ok(()) }
}

fn checkpoint(writer: &Connection) -> rusqlite::Result<()> {
    writer.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))
}

/// Everything is in the file: say so, and fold the log.
pub(super) fn close(writer: &Connection) -> rusqlite::Result<()> {
    writer.execute("update sluice_meta set value = '1' where name = 'clean'", [])?;
    checkpoint(writer)
}

/// What an error of SQLite means: damage is the task's, the rest (disk full, no permission) is for a person.
pub(super) fn classify(task: &str, path: &Path, doing: &str, error: &rusqlite::Error) -> StreamsError {
    let damaged =
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            || matches!(
                error,
                rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::QueryReturnedNoRows
                    | rusqlite::Error::SqlInputError { .. }
            );
    let message = format!("cannot {doing} state file {}: {error}", path.display());
    if damaged {
        StreamsError::TaskCorrupted { task: task.to_owned(), reason: message }
    } else {
        StreamsError::fatal(format!("{message}; is the disk full or read-only?"))
    }
}
