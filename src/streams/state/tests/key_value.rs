//! Key-value stores against an ordered map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<Vec<u8>, (String, Timestamp)>;

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, Option<u32>, Timestamp),
    Get(Vec<u8>),
    Range(Option<Vec<u8>>, Option<Vec<u8>>, bool),
    Prefix(Vec<u8>),
    Commit { save: bool },
    FinishSave,
    Crash(usize),
    Abort(usize),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few, so that they meet; some share prefixes and reach 0xff.
    prop::sample::select(vec![
        vec![],
        vec![0],
        b"a".to_vec(),
        b"ab".to_vec(),
        vec![b'a', 0xff],
        vec![0xff, 0xff],
    ])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (key(), prop::option::weighted(0.75, 0..100u32), 0..1000i64).prop_map(|(k, v, t)| Step::Put(k, v, t)),
        4 => key().prop_map(Step::Get),
        2 => (prop::option::of(key()), prop::option::of(key()), any::<bool>()).prop_map(|(a, b, o)| Step::Range(a, b, o)),
        2 => key().prop_map(Step::Prefix),
        2 => any::<bool>().prop_map(|save| Step::Commit { save }),
        1 => Just(Step::FinishSave),
        1 => (1..5usize).prop_map(Step::Crash),
        1 => (1..5usize).prop_map(Step::Abort),
    ]
}

fn rows(found: Vec<(ByteKey, ValueAndTimestamp)>) -> Vec<(Vec<u8>, (String, Timestamp))> {
    found.into_iter().map(|(key, row)| (key.to_vec(), (plain(&row.value), row.timestamp))).collect()
}

fn run(stack: Stack, steps: &[Step]) {
    let mut rig = Rig::new(stack, StoreKind::KeyValue { timestamped: true });
    let mut model = Model::new();
    let mut committed = Model::new();
    for step in steps {
        let Store::KeyValue(store) = &mut rig.store else { panic!("a key-value store was asked for") };
        match step {
            Step::Put(key, value, time) => {
                let row = value.map(|value| stamped(&value.to_string(), *time));
                store.put(ByteKey::new(key), row, &at(*time)).unwrap();
                match value {
                    Some(value) => drop(model.insert(key.clone(), (value.to_string(), *time))),
                    None => drop(model.remove(key)),
                }
            }
            Step::Get(key) => {
                let found = store.get(key).unwrap().map(|row| (plain(&row.value), row.timestamp));
                assert_eq!(found.as_ref(), model.get(key), "get {key:?}");
            }
            Step::Range(from, to, forward) => {
                let order = if *forward { Order::Forward } else { Order::Backward };
                let found = rows(store.range(from.as_deref(), to.as_deref(), order).unwrap());
                let inside = |key: &Vec<u8>| {
                    from.as_ref().is_none_or(|from| key >= from) && to.as_ref().is_none_or(|to| key <= to)
                };
                let mut wanted: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| inside(key))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                if !forward {
                    wanted.reverse();
                }
                assert_eq!(found, wanted, "range {from:?}..={to:?}");
            }
            Step::Prefix(prefix) => {
                let found = rows(store.prefix_scan(prefix).unwrap());
                let wanted: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| key.starts_with(prefix))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                assert_eq!(found, wanted, "prefix {prefix:?}");
            }
            Step::Commit { save } => {
                rig.commit(*save);
                committed = model.clone();
            }
            Step::FinishSave => rig.finish_save(),
            Step::Crash(chunk) if rig.can_crash() => {
                rig.crash(*chunk);
                model = committed.clone();
            }
            Step::Abort(chunk) if rig.can_crash() => {
                rig.abort(*chunk);
                model = committed.clone();
            }
            Step::Crash(_) | Step::Abort(_) => {}
        }
    }
    let Store::KeyValue(store) = &mut rig.store else { panic!("a key-value store was asked for") };
    let found = rows(store.range(None, None, Order::Forward).unwrap());
    assert_eq!(found, model.into_iter().collect::<Vec<_>>(), "all rows at the end");
}

/// `Bytes.increment` has nothing to count up to there: Kafka's stores in memory and its caches fail, its persistent ones list.
#[test]
fn a_prefix_that_no_other_follows_fails_where_kafkas_stores_fail() {
    let scan = |backend, caching, semantics, prefix: &[u8]| -> Result<usize, String> {
        let kind = StoreKind::KeyValue { timestamped: true };
        let mut builder = StoreBuilder::new("rows", kind, String::serde(), String::serde());
        (builder.backend, builder.caching) = (backend, caching);
        let cache = Some(CacheOptions::new(1 << 20, semantics));
        let Store::KeyValue(mut store) =
            builder.build(&StoreEnvironment { cache, db: None, semantics }).unwrap()
        else {
            panic!("a key-value store was asked for")
        };
        for key in [&b"a"[..], &[0xff, 0xff, 1]] {
            store.put(ByteKey::new(key), Some(stamped("x", 1)), &at(1)).unwrap();
        }
        store.prefix_scan(prefix).map(|rows| rows.len()).map_err(|error| error.to_string())
    };
    for (prefix, found) in [(&[][..], 2), (&[0xff, 0xff][..], 1), (&b"a"[..], 1)] {
        let endless = prefix != b"a";
        for (backend, caching, fails) in [
            (Backend::Persistent, false, false),
            (Backend::Persistent, true, endless),
            (Backend::InMemory, false, endless),
            (Backend::Lru(9), false, endless),
        ] {
            assert_eq!(
                scan(backend, caching, Semantics::Sluice, prefix),
                Ok(found),
                "{backend:?} {prefix:?}"
            );
            let kafkas = scan(backend, caching, Semantics::Kafka43, prefix);
            match fails {
                true => assert!(
                    kafkas.as_ref().is_err_and(|error| error.starts_with("IndexOutOfBoundsException")),
                    "{backend:?} caching {caching} {prefix:?}: {kafkas:?}"
                ),
                false => assert_eq!(kafkas, Ok(found), "{backend:?} caching {caching} {prefix:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn every_stack_is_an_ordered_map(steps in prop::collection::vec(step(), 1..80)) {
        for stack in STACKS {
            run(*stack, &steps);
        }
        run(Stack { backend: Backend::InMemory, ..LOGGED }, &steps);
    }
}

#[test]
fn a_plain_store_logs_the_contexts_timestamp_and_a_timestamped_one_the_values() {
    for (timestamped, wanted) in [(true, 5), (false, 9)] {
        let mut rig = Rig::new(LOGGED, StoreKind::KeyValue { timestamped });
        let Store::KeyValue(store) = &mut rig.store else { panic!("a key-value store was asked for") };
        store.put(ByteKey::new(b"k"), Some(stamped("v", 5)), &at(9)).unwrap();
        store.put(ByteKey::new(b"k"), None, &at(11)).unwrap();
        rig.commit(false);
        let logged: Vec<_> =
            rig.log.iter().map(|record| (record.timestamp, record.value.as_deref())).collect();
        assert_eq!(logged, [(wanted, Some(b"v".as_slice())), (11, None)]);
    }
}

#[test]
fn a_full_lru_store_evicts_the_least_recently_used_and_logs_its_tombstone_first() {
    let mut rig =
        Rig::new(Stack { backend: Backend::Lru(2), ..LOGGED }, StoreKind::KeyValue { timestamped: true });
    let Store::KeyValue(store) = &mut rig.store else { panic!("a key-value store was asked for") };
    for (key, time) in [("a", 1), ("b", 2)] {
        store.put(ByteKey::new(key.as_bytes()), Some(stamped(key, time)), &at(time)).unwrap();
    }
    assert!(store.get(b"a").unwrap().is_some(), "reading makes a the most recent");
    store.put(ByteKey::new(b"c"), Some(stamped("c", 3)), &at(3)).unwrap();
    assert!(store.get(b"b").unwrap().is_none());
    let left: Vec<_> =
        rows(store.range(None, None, Order::Forward).unwrap()).into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, [b"a".to_vec(), b"c".to_vec()]);
    rig.commit(false);
    let logged: Vec<_> = rig
        .log
        .iter()
        .skip(2)
        .map(|record| (record.key.as_deref().unwrap(), record.value.is_some()))
        .collect();
    assert_eq!(logged, [(b"b".as_slice(), false), (b"c".as_slice(), true)]);
}
