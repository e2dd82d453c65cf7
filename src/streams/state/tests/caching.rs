//! What the record cache does that no model of rows shows: order, collapse, old values, clean entries, budget.

use std::time::Duration;

use super::*;

fn cached(kind: StoreKind, options: CacheOptions) -> Store {
    let mut builder = StoreBuilder::new("clicks", kind, String::serde(), String::serde());
    builder.caching = true;
    builder
        .build(&StoreEnvironment { cache: Some(options), db: None, ..StoreEnvironment::default() })
        .unwrap()
}

const KAFKA: CacheOptions = CacheOptions { max_bytes: 1 << 20, keep_clean: true };

fn shown(flushed: &[CacheFlush]) -> Vec<(String, Option<String>, Option<String>, Timestamp)> {
    let plain = |row: &Option<ValueAndTimestamp>| row.as_ref().map(|row| super::plain(&row.value));
    flushed
        .iter()
        .map(|entry| {
            (format!("{:?}", entry.key), plain(&entry.old), plain(&entry.new), entry.context.timestamp)
        })
        .collect()
}

fn row(
    key: &str,
    old: Option<&str>,
    new: Option<&str>,
    time: Timestamp,
) -> (String, Option<String>, Option<String>, Timestamp) {
    (format!("{key:?}"), old.map(str::to_owned), new.map(str::to_owned), time)
}

#[test]
fn a_flush_is_in_order_of_last_write_and_collapses() {
    let mut store = cached(StoreKind::KeyValue { timestamped: true }, KAFKA);
    let Store::KeyValue(kv) = &mut store else { panic!("a key-value store was asked for") };
    let mut put = |key: &str, value: Option<&str>, time| {
        kv.put(ByteKey::new(key.as_bytes()), value.map(|value| stamped(value, time)), &at(time)).unwrap();
    };
    put("a", Some("1"), 1);
    put("b", Some("2"), 2);
    put("a", Some("3"), 3);
    put("gone", Some("x"), 4);
    put("gone", None, 5);
    assert_eq!(
        shown(&kv.flush_cache().unwrap()),
        [row("b", None, Some("2"), 2), row("a", None, Some("3"), 3)]
    );
    let mut log = Vec::new();
    kv.drain_changelog(&mut log).unwrap();
    let keys: Vec<_> = log.iter().map(|record| record.key.to_vec()).collect();
    assert_eq!(
        keys,
        [b"b".to_vec(), b"a".to_vec()],
        "what collapsed is logged once, what came and went not at all"
    );

    kv.put(ByteKey::new(b"a"), None, &at(6)).unwrap();
    assert!(kv.get(b"a").unwrap().is_none());
    assert_eq!(shown(&kv.flush_cache().unwrap()), [row("a", Some("3"), None, 6)]);
    assert!(kv.flush_cache().unwrap().is_empty());
}

#[test]
fn a_cached_session_outlives_the_store_below_only_with_clean_entries() {
    for (keep_clean, survives) in [(true, true), (false, false)] {
        let kind = StoreKind::Session { retention: Duration::from_millis(15), time_ordered: false };
        let mut store = cached(kind, CacheOptions { keep_clean, ..KAFKA });
        let Store::Session(sessions) = &mut store else { panic!("a session store was asked for") };
        sessions.put(ByteKey::new(b"a"), 200, 201, Some(text("2")), &at(201)).unwrap();
        sessions.flush_cache().unwrap();
        sessions.put(ByteKey::new(b"a"), 220, 220, Some(text("1")), &at(220)).unwrap();
        sessions.flush_cache().unwrap();
        let found = sessions.find_sessions(b"a", 200, 220).unwrap();
        assert_eq!(found.len(), if survives { 2 } else { 1 }, "keep_clean {keep_clean}");
    }
}

#[test]
fn closed_windows_are_also_found_in_the_cache() {
    let kind = StoreKind::Window {
        retention: Duration::from_millis(100),
        window_size: Duration::from_millis(100),
        duplicates: false,
        timestamped: true,
        time_ordered: true,
    };
    let mut store = cached(kind, KAFKA);
    let Store::Window(windows) = &mut store else { panic!("a window store was asked for") };
    windows.put(ByteKey::new(b"b"), Some(stamped("0", 5)), 0, &at(5)).unwrap();
    windows.put(ByteKey::new(b"a"), Some(stamped("0", 6)), 0, &at(6)).unwrap();
    let flushed = windows.flush_cache().unwrap();
    assert_eq!(flushed[0].window, Some((0, 100)));
    windows.put(ByteKey::new(b"a"), Some(stamped("1", 500)), 500, &at(500)).unwrap();
    windows.flush_cache().unwrap();
    let closed = windows.fetch_closed(0, 400).unwrap();
    let keys: Vec<_> = closed.iter().map(|row| (row.key.to_vec(), row.start)).collect();
    assert_eq!(keys, [(b"a".to_vec(), 0), (b"b".to_vec(), 0)], "by start, then key");
}

#[test]
fn over_the_budget_the_cache_asks_for_a_flush_and_drops_clean_entries() {
    let options = CacheOptions { max_bytes: 10_000, keep_clean: true };
    let mut store = cached(StoreKind::KeyValue { timestamped: true }, options);
    let Store::KeyValue(kv) = &mut store else { panic!("a key-value store was asked for") };
    let mut written = 0;
    while !kv.wants_flush() {
        let key = ByteKey::from(format!("{written}").into_bytes());
        kv.put(key, Some(stamped("v", written)), &at(written)).unwrap();
        written += 1;
        assert!(written < 1000, "a cache of 10 kB cannot hold a thousand entries");
    }
    assert_eq!(kv.flush_cache().unwrap().len(), written as usize, "all dirty entries go");
    assert!(!kv.wants_flush());
    assert_eq!(kv.range(None, None, Order::Forward).unwrap().len(), written as usize, "nothing is lost");
    for key in 0..written {
        assert!(kv.get(key.to_string().as_bytes()).unwrap().is_some());
    }
}
