//! The state file: what is refused and how, what anyone can read in it, and that it is closed cleanly.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use rusqlite::Connection;
use tempfile::TempDir;

use super::{SavePolicy, SaveTiming, SaveUnderWay};
use crate::streams::{
    error::{ProcessingError, Result, StreamsError},
    record::{AnyValue, ByteKey, TopicPartition},
    serdes::{AnySerde, ColumnSerde, HasSerde, Serde, SqlValue},
    state::{
        SavedOffsets, Store, StoreBuilder, StoreEnvironment, StoreKind, TaskDb, ValueAndTimestamp,
        tests::{at, db_options, text},
    },
};

fn open(folder: &TempDir) -> Result<(TaskDb, SavedOffsets)> {
    TaskDb::open(db_options(folder.path(), 1 << 20))
}

fn error(folder: &TempDir) -> StreamsError {
    let Err(error) = open(folder) else { panic!("the file must be refused") };
    error
}

/// A store `clicks` in a file.
fn clicks(db: &TaskDb) -> Store {
    let builder =
        StoreBuilder::new("clicks", StoreKind::KeyValue { timestamped: true }, String::serde(), i64::serde());
    builder
        .build(&StoreEnvironment { cache: None, db: Some(db.clone()), ..StoreEnvironment::default() })
        .unwrap()
}

fn click(store: &mut Store, user: usize) {
    let Store::KeyValue(kv) = store else { panic!("a key-value store was asked for") };
    let value = ValueAndTimestamp { value: Arc::new(user as i64), timestamp: user as i64 };
    kv.put(ByteKey::from(format!("user-{user}").into_bytes()), Some(value), &at(0)).unwrap();
}

/// A closed file with one store and a few thousand rows.
fn filled(folder: &TempDir, rows: usize) -> SavedOffsets {
    let (db, _) = open(folder).unwrap();
    let mut store = clicks(&db);
    (0..rows).for_each(|row| click(&mut store, row));
    let mut offsets = SavedOffsets::default();
    offsets.changelog.insert("clicks".to_owned(), rows as i64);
    offsets.inputs.insert(TopicPartition::new("in", 3), 17);
    offsets.clocks.insert("agg/stream-time".to_owned(), -1);
    db.save_now(&mut [store.as_state_store()], offsets.clone()).unwrap();
    offsets
}

#[test]
fn offsets_and_rows_come_back_after_a_clean_close() {
    let folder = tempfile::tempdir().unwrap();
    let offsets = filled(&folder, 3000);
    let wal = fs::metadata(folder.path().join("0_0.db-wal")).map_or(0, |file| file.len());
    assert_eq!(wal, 0, "a clean close folds the log into the file");
    let (db, saved) = open(&folder).unwrap();
    assert_eq!(saved, offsets);
    let mut store = clicks(&db);
    let Store::KeyValue(kv) = &mut store else { panic!("a key-value store was asked for") };
    let row = kv.get(b"user-2999").unwrap().unwrap();
    assert_eq!((row.value.downcast_ref(), row.timestamp), (Some(&2999i64), 2999));
    assert_eq!(kv.prefix_scan(b"user-29").unwrap().len(), 111);
    assert_eq!(kv.approximate_num_entries(), 3000);
}

#[test]
fn a_store_is_saved_when_it_was_written_to_twice_as_often_as_it_has_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = db_options(folder.path(), 1 << 20);
    options.policy = SavePolicy { min_rows: 3, timing: SaveTiming::AtCommit, ..SavePolicy::default() };
    let (db, _) = TaskDb::open(options).unwrap();
    let mut store = clicks(&db);
    for user in [0, 1, 2, 0, 1, 2] {
        assert!(!db.after_commit(&mut [store.as_state_store()], SavedOffsets::default, 0).unwrap());
        click(&mut store, user);
    }
    assert!(db.after_commit(&mut [store.as_state_store()], SavedOffsets::default, 0).unwrap());
    [0, 1].repeat(4).into_iter().for_each(|user| click(&mut store, user));
    assert!(!db.wants_save(&[store.as_state_store()], 0), "fewer rows than are worth a save");
    assert!(db.wants_save(&[store.as_state_store()], 60_000), "they have waited long enough");
}

#[test]
fn of_the_files_of_an_application_one_is_saved_at_a_time_unless_another_has_waited_long() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = db_options(folder.path(), 1 << 20);
    options.policy = SavePolicy { min_rows: 1, ..SavePolicy::default() };
    let (db, _) = TaskDb::open(options).unwrap();
    let mut store = clicks(&db);
    [0, 0].into_iter().for_each(|user| click(&mut store, user));
    let another = SaveUnderWay::new(&db.shared().memory);
    assert!(!db.wants_save(&[store.as_state_store()], 0));
    assert!(db.wants_save(&[store.as_state_store()], 60_000));
    drop(another);
    assert!(db.wants_save(&[store.as_state_store()], 60_000 - 1));
}

#[test]
fn a_save_is_waited_for_when_rows_come_in_faster_than_they_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = db_options(folder.path(), 10_000);
    options.policy = SavePolicy { min_rows: 1, ..SavePolicy::default() };
    let (db, _) = TaskDb::open(options).unwrap();
    let mut store = clicks(&db);
    [0, 0].into_iter().for_each(|user| click(&mut store, user));
    let disk = db.shared().write();
    assert!(db.after_commit(&mut [store.as_state_store()], SavedOffsets::default, 0).unwrap());
    assert!(!db.wants_settling(), "it is under way, and there is room");
    (0..1_000).for_each(|user| click(&mut store, user));
    store.as_state_store().unsaved();
    assert!(db.wants_settling());
    drop(disk);
    db.settle_save(&mut [store.as_state_store()]).unwrap();
    assert!(db.after_commit(&mut [store.as_state_store()], SavedOffsets::default, 0).unwrap());
    db.settle_save(&mut [store.as_state_store()]).unwrap();
    let used = db.shared().memory().used();
    assert!(used <= 10_000, "what is saved has gone: {used}");
    assert!(!db.wants_settling(), "there is no save any more");
}

#[test]
fn anyone_can_read_the_store_under_its_name() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder, 3);
    let file = Connection::open(folder.path().join("0_0.db")).unwrap();
    let mut query = file.prepare("select key, value, timestamp from clicks order by key").unwrap();
    let rows: Vec<(String, i64, i64)> = query
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    assert_eq!(rows, [("user-0".into(), 0, 0), ("user-1".into(), 1, 1), ("user-2".into(), 2, 2)]);
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(&folder).unwrap();
    assert!(matches!(error(&folder), StreamsError::Retriable(message) if message.contains("in use")));
    drop(first);
    open(&folder).unwrap();
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0_0.db");
    fs::write(&path, "my diary").unwrap();
    assert!(matches!(error(&folder), StreamsError::Fatal(message) if message.contains("left untouched")));
    assert_eq!(fs::read_to_string(&path).unwrap(), "my diary");

    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("create table diary (day, text)").unwrap();
    assert!(matches!(error(&folder), StreamsError::Fatal(message) if message.contains("another program")));
}

#[test]
fn a_newer_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder, 1);
    let path = folder.path().join("0_0.db");
    Connection::open(&path).unwrap().execute_batch("pragma user_version = 99").unwrap();
    assert!(matches!(error(&folder), StreamsError::Fatal(message) if message.contains("format 99")));
}

#[test]
fn only_the_stores_that_are_gone_leave_the_file() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder, 3);
    let (db, saved) = open(&folder).unwrap();
    assert_eq!(saved.changelog.keys().collect::<Vec<_>>(), ["clicks"]);
    db.keep_only(&["clicks", "new"].into()).unwrap();
    assert_eq!(db.saved(), saved);
    let rows = "select count(*) from clicks";
    let file = Connection::open(folder.path().join("0_0.db")).unwrap();
    assert_eq!(file.query_row(rows, [], |row| row.get::<_, i64>(0)).unwrap(), 3);
    db.keep_only(&["new"].into()).unwrap();
    assert_eq!(db.saved().changelog.len(), 0);
    drop(db);
    assert!(file.query_row(rows, [], |row| row.get::<_, i64>(0)).is_err(), "the table is gone");
    assert_eq!(open(&folder).unwrap().1.changelog.len(), 0);
}

#[test]
fn a_damaged_file_is_to_be_discarded_never_trusted() {
    let whole = tempfile::tempdir().unwrap();
    filled(&whole, 5000);
    let bytes = fs::read(whole.path().join("0_0.db")).unwrap();
    let pages = bytes.len() / 16384;
    assert!(pages > 5, "enough pages to damage, {pages}");
    // Cut anywhere in the file, at a page or inside one.
    for length in [1, 15, 100, 16384, 16384 * 2 + 77, 16384 * (pages - 1), bytes.len() - 1] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("0_0.db"), &bytes[..length]).unwrap();
        let refused = error(&folder);
        assert!(matches!(refused, StreamsError::TaskCorrupted { .. }), "cut to {length}: {refused}");
    }
    // As long as it was, and never written out: what a power cut leaves.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0_0.db"), vec![0; bytes.len()]).unwrap();
    let refused = error(&folder);
    assert!(matches!(refused, StreamsError::TaskCorrupted { .. }), "zeros: {refused}");
    // Zeroed in the middle, after a crash (so that pages are checked).
    let folder = tempfile::tempdir().unwrap();
    filled(&folder, 5000);
    let path = folder.path().join("0_0.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("update sluice_meta set value = '0' where name = 'clean'")
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 16384 / 2 * 16384;
    bytes[middle..middle + 16384].fill(0);
    fs::write(&path, bytes).unwrap();
    let refused = error(&folder);
    assert!(matches!(refused, StreamsError::TaskCorrupted { .. }), "{refused}");
}

#[test]
fn a_store_that_changed_is_dropped_and_the_others_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    filled(&folder, 3);
    let (db, _) = open(&folder).unwrap();
    let environment = StoreEnvironment { cache: None, db: Some(db.clone()), ..StoreEnvironment::default() };
    let kind = StoreKind::KeyValue { timestamped: true };
    let other = StoreBuilder::new("other", kind.clone(), String::serde(), i64::serde());
    let mut store = other.build(&environment).unwrap();
    let Store::KeyValue(rows) = &mut store else { panic!("a key-value store was asked for") };
    let row = ValueAndTimestamp { value: Arc::new(7_i64), timestamp: 1 };
    rows.put(ByteKey::new(b"k"), Some(row), &at(1)).unwrap();
    let changelog = BTreeMap::from([("clicks".to_owned(), 9), ("other".to_owned(), 5)]);
    db.save_now(&mut [store.as_state_store()], SavedOffsets { changelog, ..SavedOffsets::default() })
        .unwrap();
    drop((store, environment, db));

    let (db, saved) = open(&folder).unwrap();
    assert_eq!(saved.changelog["clicks"], 9);
    let environment = StoreEnvironment { cache: None, db: Some(db.clone()), ..StoreEnvironment::default() };
    let session = StoreKind::Session { retention: Duration::from_secs(1), time_ordered: false };
    let changed = StoreBuilder::new("clicks", session, String::serde(), i64::serde());
    let store = changed.build(&environment).unwrap();
    assert_eq!(db.saved().changelog, BTreeMap::from([("other".to_owned(), 5)]), "clicks is to be restored");
    drop(store);
    let mut store = other.build(&environment).unwrap();
    let Store::KeyValue(rows) = &mut store else { panic!("a key-value store was asked for") };
    assert_eq!(rows.get(b"k").unwrap().unwrap().value.downcast_ref::<i64>(), Some(&7));
}

#[test]
fn expired_segments_leave_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (db, _) = open(&folder).unwrap();
    let kind = StoreKind::Session { retention: Duration::from_secs(60), time_ordered: false };
    let builder = StoreBuilder::new("sessions", kind, String::serde(), String::serde());
    let mut store = builder
        .build(&StoreEnvironment { cache: None, db: Some(db.clone()), ..StoreEnvironment::default() })
        .unwrap();
    for (minute, left) in [(0, 1), (1, 2), (2, 2), (10, 1)] {
        let Store::Session(sessions) = &mut store else { panic!("a session store was asked for") };
        let end = minute * 60_000 + 1;
        sessions.put(ByteKey::new(b"k"), end, end, Some(text("v")), &at(end)).unwrap();
        db.save_now(&mut [store.as_state_store()], SavedOffsets::default()).unwrap();
        let file = Connection::open(folder.path().join("0_0.db")).unwrap();
        let rows: i64 = file.query_row("select count(*) from sessions", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, left, "after minute {minute}");
    }
}

/// A value with natural columns.
#[derive(Clone, Debug, PartialEq)]
struct Stats {
    issued: i64,
    last: Option<String>,
}

struct StatsSerde;

impl Serde<Stats> for StatsSerde {
    fn serialize(&self, value: &Stats, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(format!("{}|{}", value.issued, value.last.as_deref().unwrap_or("")).as_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Stats, ProcessingError> {
        let text =
            std::str::from_utf8(bytes).map_err(|error| ProcessingError::new("Stats", error.to_string()))?;
        let (issued, last) = text.split_once('|').ok_or_else(|| ProcessingError::new("Stats", "no |"))?;
        let issued = issued.parse().map_err(|_| ProcessingError::new("Stats", "not a number"))?;
        Ok(Stats { issued, last: (!last.is_empty()).then(|| last.to_owned()) })
    }

    fn columns(&self) -> Option<Arc<dyn ColumnSerde>> {
        Some(Arc::new(StatsSerde))
    }
}

impl ColumnSerde for StatsSerde {
    fn columns(&self) -> Vec<(String, &'static str)> {
        vec![("issued".to_owned(), "INTEGER"), ("last \"user\"".to_owned(), "TEXT")]
    }

    fn to_columns(&self, value: &AnyValue) -> Vec<SqlValue> {
        let stats = value.downcast_ref::<Stats>().expect("this serde is given Stats");
        vec![SqlValue::Integer(stats.issued), stats.last.clone().map_or(SqlValue::Null, SqlValue::Text)]
    }

    fn from_columns(&self, columns: &[SqlValue]) -> Result<AnyValue, ProcessingError> {
        match columns {
            [SqlValue::Integer(issued), SqlValue::Null] => {
                Ok(Arc::new(Stats { issued: *issued, last: None }))
            }
            [SqlValue::Integer(issued), SqlValue::Text(last)] => {
                Ok(Arc::new(Stats { issued: *issued, last: Some(last.clone()) }))
            }
            other => Err(ProcessingError::new("Stats", format!("{other:?}"))),
        }
    }
}

#[test]
fn windows_with_natural_columns_can_be_queried_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (db, _) = open(&folder).unwrap();
    let kind = StoreKind::Window {
        retention: Duration::from_secs(90),
        window_size: Duration::from_secs(60),
        duplicates: false,
        timestamped: true,
        time_ordered: false,
    };
    let builder =
        StoreBuilder::new("stats_minute", kind, String::serde(), AnySerde::new::<Stats>(StatsSerde));
    let environment = StoreEnvironment { cache: None, db: Some(db.clone()), ..StoreEnvironment::default() };
    let mut store = builder.build(&environment).unwrap();
    let Store::Window(windows) = &mut store else { panic!("a window store was asked for") };
    let stats = Stats { issued: 5, last: Some("mia".to_owned()) };
    let row = ValueAndTimestamp { value: Arc::new(stats.clone()), timestamp: 61_000 };
    windows.put(ByteKey::new(b"SUMMER"), Some(row), 60_000, &at(61_000)).unwrap();
    db.save_now(&mut [store.as_state_store()], SavedOffsets::default()).unwrap();
    drop((store, environment, db));

    let file = Connection::open(folder.path().join("0_0.db")).unwrap();
    let query =
        "select key, window_start, window_end, issued, \"last \"\"user\"\"\", timestamp from stats_minute";
    let row = file.query_row(query, [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
    });
    let wanted: (String, i64, i64, i64, String, i64) =
        ("SUMMER".into(), 60_000, 120_000, 5, "mia".into(), 61_000);
    assert_eq!(row.unwrap(), wanted);
    drop(file);

    let (db, _) = open(&folder).unwrap();
    let mut store = builder
        .build(&StoreEnvironment { cache: None, db: Some(db), ..StoreEnvironment::default() })
        .unwrap();
    let Store::Window(windows) = &mut store else { panic!("a window store was asked for") };
    assert_eq!(windows.observed_stream_time(), 60_000);
    let found = windows.fetch(b"SUMMER", 60_000).unwrap().unwrap();
    assert_eq!(found.value.downcast_ref::<Stats>(), Some(&stats));
}
