//! What a store operation costs: `cargo bench --bench state`. Times are per operation.
//!
//! Keys are 7 digits over a hundred thousand rows, values numbers with a timestamp: the shape of an aggregate. The stacks
//! are those the engine runs: plain, with a changelog, with a record cache above, over a state file.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sluice::streams::{
    internals::{
        CacheOptions, KeyValueStore, Order, SavePolicy, SavedOffsets, SessionStore, StateMemory, Store,
        StoreEnvironment, TaskDb, TaskDbOptions, ValueAndTimestamp, WindowStore,
    },
    record::{ByteKey, ConsumerRecord, Headers, RecordContext},
    serdes::HasSerde,
    stores::{Backend, StoreBuilder, StoreKind},
};

const ROWS: u64 = 100_000;

/// Uniform keys, the same in every run.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> ByteKey {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        key((self.0 >> 33) % ROWS)
    }
}

fn key(number: u64) -> ByteKey {
    ByteKey::new(format!("{number:07}").as_bytes())
}

fn context() -> RecordContext {
    RecordContext {
        topic: Some("in".into()),
        timestamp: 1,
        headers: Headers::EMPTY,
        ..RecordContext::default()
    }
}

fn count(value: i64) -> ValueAndTimestamp {
    ValueAndTimestamp { value: Arc::new(value), timestamp: value }
}

fn build(kind: StoreKind, logging: bool, cached: bool, db: Option<&TaskDb>) -> Store {
    let mut builder = StoreBuilder::new("bench", kind, String::serde(), i64::serde());
    builder.logging = logging;
    builder.caching = cached;
    builder.backend = Backend::Persistent;
    let cache = Some(CacheOptions { max_bytes: 64 << 20, keep_clean: true });
    builder
        .build(&StoreEnvironment { cache, db: db.cloned(), ..StoreEnvironment::default() })
        .expect("the store can be built")
}

fn open(folder: &tempfile::TempDir, budget_bytes: u64) -> TaskDb {
    let options = TaskDbOptions {
        path: folder.path().join("0_0.db"),
        task: "0_0".to_owned(),
        policy: SavePolicy::default(),
        memory: StateMemory::new(budget_bytes),
    };
    TaskDb::open(options).expect("the state file can be opened").0
}

fn key_value(store: &mut Store) -> &mut dyn KeyValueStore {
    match store {
        Store::KeyValue(store) => store.as_mut(),
        _ => unreachable!("a key-value store was built"),
    }
}

fn window(store: &mut Store) -> &mut dyn WindowStore {
    match store {
        Store::Window(store) => store.as_mut(),
        _ => unreachable!("a window store was built"),
    }
}

fn session(store: &mut Store) -> &mut dyn SessionStore {
    match store {
        Store::Session(store) => store.as_mut(),
        _ => unreachable!("a session store was built"),
    }
}

const KEY_VALUE: StoreKind = StoreKind::KeyValue { timestamped: true };

/// Reads the count of a key and writes it back plus one, as an aggregation does.
fn update(store: &mut dyn KeyValueStore, key: ByteKey, context: &RecordContext) {
    let stored = store.get(&key).expect("a read").and_then(|row| row.value.downcast_ref::<i64>().copied());
    store.put(key, Some(count(stored.unwrap_or(0) + 1)), context).expect("a write");
}

fn key_values(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let db = open(&folder, 1 << 30);
    let context = context();
    let mut group = criterion.benchmark_group("key_value");
    group.bench_function("key_only", |bencher| {
        let mut keys = Keys(1);
        bencher.iter(|| black_box(keys.next()));
    });
    for (name, logging, cached, db) in [
        ("update_memory", false, false, None),
        ("update_logged", true, false, None),
        ("update_logged_over_file", true, false, Some(&db)),
        ("update_cached_flush_each_1000", true, true, None),
    ] {
        let mut store = build(KEY_VALUE, logging, cached, db);
        for row in 0..ROWS {
            update(key_value(&mut store), key(row), &context);
        }
        let (mut keys, mut written, mut log) = (Keys(1), 0u64, Vec::new());
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                update(key_value(&mut store), keys.next(), &context);
                written += 1;
                if written.is_multiple_of(1000) {
                    black_box(key_value(&mut store).flush_cache().expect("a flush"));
                    key_value(&mut store).drain_changelog(&mut log).expect("the changes");
                    log.clear();
                }
            });
        });
    }
    group.finish();
}

fn files(criterion: &mut Criterion) {
    let context = context();
    let mut group = criterion.benchmark_group("file");
    group.sample_size(10).measurement_time(Duration::from_secs(5));

    let folder = tempfile::tempdir().expect("a folder");
    let db = open(&folder, 1 << 30);
    let mut store = build(KEY_VALUE, false, false, Some(&db));
    let mut round = 0;
    group.bench_function("save_100k_rows", |bencher| {
        bencher.iter_batched(
            || (),
            |()| {
                round += 1;
                for row in 0..ROWS {
                    key_value(&mut store).put(key(row), Some(count(round)), &context).expect("a write");
                }
                db.save_now(&mut [store.as_state_store()], SavedOffsets::default()).expect("a save");
            },
            BatchSize::PerIteration,
        );
    });
    drop((store, db));

    let db = open(&folder, 0);
    let mut store = build(KEY_VALUE, false, false, Some(&db));
    let mut keys = Keys(1);
    group.bench_function("get_cold", |bencher| {
        bencher.iter(|| black_box(key_value(&mut store).get(&keys.next()).expect("a read")));
    });
    group.bench_function("prefix_of_10_cold", |bencher| {
        bencher.iter(|| black_box(key_value(&mut store).prefix_scan(&keys.next()[..6]).expect("a scan")));
    });

    let records: Vec<ConsumerRecord> = (0..ROWS)
        .map(|row| ConsumerRecord {
            topic: "app-bench-changelog".into(),
            partition: 0,
            offset: row as i64,
            timestamp: 1,
            key: Some(bytes::Bytes::copy_from_slice(&key(row * 7 % ROWS))),
            value: Some(bytes::Bytes::copy_from_slice(&(row as i64).to_be_bytes())),
            headers: Headers::EMPTY,
        })
        .collect();
    group.bench_function("restore_100k_records", |bencher| {
        bencher.iter_batched(
            || build(KEY_VALUE, true, false, None),
            |mut store| {
                store.as_state_store().restore(&records).expect("a restore");
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn windows(criterion: &mut Criterion) {
    let context = context();
    let mut group = criterion.benchmark_group("window");
    let kind = |duplicates, retention| StoreKind::Window {
        retention: Duration::from_secs(retention),
        window_size: Duration::from_secs(60),
        duplicates,
        timestamped: true,
        time_ordered: false,
    };
    // One-minute windows, one record a millisecond: fetch, add one, put.
    for (name, cached) in [("tumbling_update_logged", false), ("tumbling_update_cached", true)] {
        let mut store = build(kind(false, 90), true, cached, None);
        let (mut keys, mut time, mut log) = (Keys(1), 0i64, Vec::new());
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                time += 1;
                let (key, start) = (keys.next(), time / 60_000 * 60_000);
                let store = window(&mut store);
                let stored = store.fetch(&key, start).expect("a read");
                let stored = stored.and_then(|row| row.value.downcast_ref::<i64>().copied()).unwrap_or(0);
                store.put(key, Some(count(stored + 1)), start, &context).expect("a write");
                if time % 1000 == 0 {
                    black_box(store.flush_cache().expect("a flush"));
                    store.drain_changelog(&mut log).expect("the changes");
                    log.clear();
                }
            });
        });
    }
    // Both sides of a join over 30 minutes: probe for a key, then put a row.
    let mut store = build(kind(true, 1800), true, false, None);
    let (mut keys, mut time, mut log) = (Keys(1), 0i64, Vec::new());
    group.bench_function("join_probe_and_put", |bencher| {
        bencher.iter(|| {
            time += 1;
            let key = keys.next();
            let store = window(&mut store);
            black_box(
                store.fetch_range(&key, time - 900_000, time + 900_000, Order::Forward).expect("a probe"),
            );
            store.put(key, Some(count(time)), time, &context).expect("a write");
            if time % 1000 == 0 {
                store.drain_changelog(&mut log).expect("the changes");
                log.clear();
            }
        });
    });
    let kind = StoreKind::Session { retention: Duration::from_secs(90), time_ordered: false };
    let mut store = build(kind, true, false, None);
    let (mut keys, mut time, mut log) = (Keys(1), 0i64, Vec::new());
    group.bench_function("session_find_and_put", |bencher| {
        bencher.iter(|| {
            time += 1;
            let key = keys.next();
            let store = session(&mut store);
            black_box(store.find_sessions(&key, time - 10_000, time + 10_000).expect("a search"));
            store.put(key, time, time, Some(Arc::new(time)), &context).expect("a write");
            if time % 1000 == 0 {
                store.drain_changelog(&mut log).expect("the changes");
                log.clear();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, key_values, files, windows);
criterion_main!(benches);
