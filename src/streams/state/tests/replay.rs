//! The changelog is the store: replaying it gives what the live store has, and replaying it in pieces, cut anywhere, gives what
//! replaying it at once does. For every kind of store, in memory and over a file, with and without a cache.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const RETENTION: Duration = Duration::from_millis(150_000);
/// Times are on this grid, over several times the retention, so that rows meet, come late and expire.
const STEP_MS: i64 = 12_500;
const TIMES: i64 = 40;

/// One write: key, time, a second time (end of a session, buffer time), value.
type Write = (u8, i64, i64, Option<u8>);

fn write() -> impl Strategy<Value = Write> {
    (0..4u8, 0..TIMES, 0..3i64, prop::option::weighted(0.8, 0..9u8))
}

/// Every kind, named for messages.
fn kinds() -> Vec<(&'static str, Stack, StoreKind)> {
    let window = |duplicates, time_ordered| StoreKind::Window {
        retention: RETENTION,
        window_size: Duration::from_millis(50_000),
        duplicates,
        timestamped: true,
        time_ordered,
    };
    let session = |time_ordered| StoreKind::Session { retention: RETENTION, time_ordered };
    let kinds = [
        ("timestamped", StoreKind::KeyValue { timestamped: true }),
        ("plain", StoreKind::KeyValue { timestamped: false }),
        ("window", window(false, false)),
        ("window in order of time", window(false, true)),
        ("window with duplicates", window(true, false)),
        ("session", session(false)),
        ("session in order of time", session(true)),
        ("versioned", StoreKind::Versioned { history: RETENTION }),
        ("buffer", StoreKind::Buffer),
    ];
    let stacks = [
        LOGGED,
        Stack { caching: true, ..LOGGED },
        Stack { backend: Backend::InMemory, ..LOGGED },
        Stack { file: Some(0), ..LOGGED },
    ];
    let each = |(name, kind): (&'static str, StoreKind)| stacks.map(|stack| (name, stack, kind.clone()));
    let mut all: Vec<_> = kinds.into_iter().flat_map(each).collect();
    let bounded = Stack { backend: Backend::Lru(2), ..LOGGED };
    all.push(("least recently used", bounded, StoreKind::KeyValue { timestamped: true }));
    all
}

fn apply(store: &mut Store, (key, time, more, value): Write) {
    let (key, time) = (ByteKey::new(&[b'a' + key]), time * STEP_MS);
    let later = time + more * STEP_MS;
    let text_of = value.map(|value| value.to_string());
    let row = text_of.as_deref().map(|value| stamped(value, later));
    match store {
        Store::KeyValue(store) => store.put(key, row, &at(later)).unwrap(),
        Store::Window(store) => store.put(key, row, time, &at(later)).unwrap(),
        Store::Session(store) => {
            store.put(key, time, later, text_of.as_deref().map(text), &at(later)).unwrap();
        }
        Store::Versioned(store) => {
            store.put(key, text_of.as_deref().map(text), time, &at(time)).unwrap();
        }
        Store::Buffer(store) => match &text_of {
            Some(new) => {
                let change =
                    BufferedChange { prior: None, old: None, new: Some(text(new)), context: at(time) };
                store.put(later, key, change).unwrap();
            }
            None => drop(store.pop_first().unwrap()),
        },
    }
}

/// All that can be read out of a store. Takes a buffer apart.
fn content(store: &mut Store) -> Vec<String> {
    match store {
        Store::KeyValue(store) => {
            let rows = store.range(None, None, Order::Forward).unwrap().into_iter();
            rows.map(|(key, row)| format!("{key:?}={}@{}", plain(&row.value), row.timestamp)).collect()
        }
        Store::Window(store) => {
            let rows = store.all().unwrap().into_iter();
            let show = |row: WindowRow| {
                let (value, at) = (plain(&row.value.value), row.value.timestamp);
                format!("{:?} {} {}={value}@{at}", row.key, row.start, row.seq)
            };
            rows.map(show).collect()
        }
        Store::Session(store) => {
            let rows = store.all().unwrap().into_iter();
            rows.map(|row| format!("{:?} {}..{}={}", row.key, row.start, row.end, plain(&row.value)))
                .collect()
        }
        Store::Versioned(store) => {
            let times = (0..4u8).flat_map(|key| (0..=TIMES).map(move |time| ([b'a' + key], time * STEP_MS)));
            let mut found = Vec::new();
            for (key, time) in times {
                let version = store.get_as_of(&key, time).unwrap();
                found.extend(version.map(|v| format!("{key:?} {time}: {}@{}", plain(&v.value), v.timestamp)));
            }
            found
        }
        Store::Buffer(store) => {
            let mut found = vec![format!("{} rows, {} bytes", store.num_records(), store.buffer_bytes())];
            while let Some((time, key, change)) = store.pop_first().unwrap() {
                let shown = [change.prior, change.old, change.new].map(|value| value.as_ref().map(plain));
                found.push(format!("{time} {key:?} {shown:?} {:?}", change.context));
            }
            found
        }
    }
}

/// A new store of the same kind, filled from a changelog cut into pieces of these sizes.
fn replayed(stack: Stack, kind: &StoreKind, log: &[ConsumerRecord], pieces: &[usize]) -> Vec<String> {
    let mut rig = Rig::new(stack, kind.clone());
    let mut rest = log;
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).clamp(1, rest.len()));
        let (piece, after) = rest.split_at(size);
        rig.store.as_state_store().restore(piece).unwrap();
        rest = after;
    }
    content(&mut rig.store)
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn a_replayed_changelog_is_the_store_however_it_is_cut(
        writes in prop::collection::vec((write(), any::<bool>()), 1..80),
        pieces in prop::collection::vec(1..9usize, 1..5),
    ) {
        for (name, stack, kind) in kinds() {
            let mut rig = Rig::new(stack, kind.clone());
            for (write, commit) in &writes {
                apply(&mut rig.store, *write);
                if *commit || stack.caching {
                    rig.commit(false);
                }
            }
            rig.commit(false);
            let log = std::mem::take(&mut rig.log);
            let live = content(&mut rig.store);
            let at_once = replayed(stack, &kind, &log, &[]);
            prop_assert_eq!(&at_once, &live, "{} {:?}: the changelog is not the store", name, stack);
            let in_pieces = replayed(stack, &kind, &log, &pieces);
            prop_assert_eq!(&in_pieces, &at_once, "{} {:?}: pieces of {:?} give another store", name, stack, pieces);
        }
    }
}
