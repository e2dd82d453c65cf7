//! Versioned stores: the recorded case of Kafka Streams, and a naive list of all versions.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;

const HISTORY: i64 = 100_000;

fn versioned(rig: &mut Rig) -> &mut dyn VersionedStore {
    match &mut rig.store {
        Store::Versioned(store) => store.as_mut(),
        _ => panic!("a versioned store was asked for"),
    }
}

fn kind(history_ms: i64) -> StoreKind {
    StoreKind::Versioned { history: Duration::from_millis(history_ms as u64) }
}

#[test]
fn the_recorded_store_api_case_comes_out_as_in_kafka_streams() {
    let mut rig = Rig::new(LOGGED, kind(1000));
    let store = versioned(&mut rig);
    let key = || ByteKey::new(b"a");
    let put = |store: &mut dyn VersionedStore, value: Option<&str>, time| {
        store.put(key(), value.map(text), time, &at(time)).unwrap()
    };
    let show = |found: Option<VersionedRecord>| {
        found.map_or("null".to_owned(), |found| format!("{}@{}", plain(&found.value), found.timestamp))
    };
    assert_eq!(put(store, Some("a"), 100), VersionedPut::Latest);
    assert_eq!(put(store, Some("c"), 300), VersionedPut::Latest);
    assert_eq!(put(store, Some("b"), 200), VersionedPut::ValidTo(300));
    for (as_of, wanted) in
        [(99, "null"), (100, "a@100"), (199, "a@100"), (200, "b@200"), (250, "b@200"), (300, "c@300")]
    {
        assert_eq!(show(store.get_as_of(b"a", as_of).unwrap()), wanted, "as of {as_of}");
    }
    assert_eq!(show(store.delete(key(), 250, &at(250)).unwrap()), "b@200");
    assert_eq!(show(store.get_as_of(b"a", 299).unwrap()), "null");
    assert_eq!(show(store.get_as_of(b"a", 300).unwrap()), "c@300");
    assert_eq!(put(store, None, 400), VersionedPut::Latest);
    assert_eq!(show(store.get(b"a").unwrap()), "null");
    assert_eq!(show(store.get_as_of(b"a", 399).unwrap()), "c@300");
    assert_eq!(show(store.delete(key(), 100, &at(100)).unwrap()), "a@100");
    assert_eq!(show(store.get_as_of(b"a", 150).unwrap()), "null");
    assert_eq!(put(store, Some("z"), 2500), VersionedPut::Latest);
    assert_eq!(show(store.get_as_of(b"a", 250).unwrap()), "null");
    assert_eq!(show(store.get_as_of(b"a", 1500).unwrap()), "null");
    assert_eq!(put(store, Some("late"), 1499), VersionedPut::TooOld);
    assert_eq!(put(store, Some("edge"), 1500), VersionedPut::ValidTo(2500));
    assert_eq!(show(store.get_as_of(b"a", 1500).unwrap()), "edge@1500");
    assert_eq!(show(store.get_as_of(b"a", 1499).unwrap()), "null");
    assert_eq!(put(store, Some("same"), 2500), VersionedPut::Latest);
    assert_eq!(show(store.get(b"a").unwrap()), "same@2500");
    assert_eq!(store.take_dropped(), 1);
    rig.commit(false);
    let logged: Vec<_> = rig.log.iter().map(|record| record.timestamp).collect();
    assert_eq!(logged, [100, 300, 200, 250, 400, 100, 2500, 1499, 1500, 2500], "also what the store refused");
}

#[test]
fn a_tombstone_over_the_only_value_at_its_time_leaves_no_trace() {
    // Kafka Streams keeps the latest value apart: deleting it in place forgets the key, so an older version that
    // arrives afterwards is the latest.
    let mut rig = Rig::new(LOGGED, kind(1000));
    let store = versioned(&mut rig);
    store.put(ByteKey::new(b"a"), Some(text("b")), 200, &at(200)).unwrap();
    assert_eq!(store.put(ByteKey::new(b"a"), None, 200, &at(200)).unwrap(), VersionedPut::Latest);
    assert_eq!(store.put(ByteKey::new(b"a"), Some(text("c")), 150, &at(150)).unwrap(), VersionedPut::Latest);
    assert_eq!(plain(&store.get(b"a").unwrap().unwrap().value), "c");
}

#[test]
fn a_version_that_was_removed_is_not_left_in_the_file() {
    let mut rig = Rig::new(Stack { file: Some(0), ..LOGGED }, kind(1000));
    for value in [Some(text("b")), None] {
        versioned(&mut rig).put(ByteKey::new(b"a"), value, 200, &at(200)).unwrap();
        rig.commit(true);
        rig.finish_save();
    }
    assert_eq!(rig.saves, 2);
    rig.crash(1);
    let store = versioned(&mut rig);
    assert_eq!(store.put(ByteKey::new(b"a"), Some(text("c")), 150, &at(150)).unwrap(), VersionedPut::Latest);
}

#[derive(Clone, Default)]
struct Model {
    observed: Timestamp,
    dropped: u64,
    rows: BTreeMap<(u8, Timestamp), Option<String>>,
}

impl Model {
    fn put(&mut self, key: u8, value: Option<String>, time: Timestamp) -> VersionedPut {
        if time < self.observed - HISTORY {
            self.dropped += 1;
            return VersionedPut::TooOld;
        }
        self.observed = self.observed.max(time);
        let next = self.rows.range((key, time + 1)..=(key, i64::MAX)).next().map(|((_, next), _)| *next);
        let before = self.rows.range((key, 0)..(key, time)).next_back();
        let value_before = before.is_some_and(|(_, value)| value.is_some());
        let replaces_value = self.rows.get(&(key, time)).is_some_and(Option::is_some);
        if value.is_none() && next.is_none() && replaces_value && !value_before {
            self.rows.remove(&(key, time));
        } else {
            self.rows.insert((key, time), value);
        }
        next.map_or(VersionedPut::Latest, VersionedPut::ValidTo)
    }

    fn get(&self, key: u8, as_of: Timestamp) -> Option<(String, Timestamp, Option<Timestamp>)> {
        let ((_, from), value) = self.rows.range((key, 0)..=(key, as_of)).next_back()?;
        let next = self.rows.range((key, from + 1)..=(key, i64::MAX)).next().map(|((_, next), _)| *next);
        if next.is_some() && as_of < self.observed - HISTORY {
            return None;
        }
        Some((value.clone()?, *from, next))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Option<u32>, Timestamp),
    Delete(u8, Timestamp),
    Get(u8),
    AsOf(u8, Timestamp),
    Commit { save: bool },
    FinishSave,
    Crash(usize),
    Abort(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let time = || (0..60i64).prop_map(|slot| slot * 9_000);
    let key = || prop::sample::select(b"abc".to_vec());
    prop_oneof![
        8 => (key(), prop::option::weighted(0.7, 0..100u32), time()).prop_map(|(k, v, t)| Step::Put(k, v, t)),
        1 => (key(), time()).prop_map(|(k, t)| Step::Delete(k, t)),
        2 => key().prop_map(Step::Get),
        5 => (key(), time()).prop_map(|(k, t)| Step::AsOf(k, t)),
        2 => any::<bool>().prop_map(|save| Step::Commit { save }),
        1 => Just(Step::FinishSave),
        1 => (1..5usize).prop_map(Step::Crash),
        1 => (1..5usize).prop_map(Step::Abort),
    ]
}

fn shown(found: Option<VersionedRecord>) -> Option<(String, Timestamp, Option<Timestamp>)> {
    found.map(|found| (plain(&found.value), found.timestamp, found.valid_to))
}

fn run(stack: Stack, steps: &[Step]) {
    let mut rig = Rig::new(stack, kind(HISTORY));
    let mut model = Model { observed: -1, ..Model::default() };
    let mut committed = model.clone();
    for step in steps {
        let store = versioned(&mut rig);
        match step {
            Step::Put(key, value, time) => {
                let value = value.map(|value| value.to_string());
                let put =
                    store.put(ByteKey::new(&[*key]), value.as_deref().map(text), *time, &at(*time)).unwrap();
                assert_eq!(put, model.put(*key, value, *time), "{stack:?} put at {time}");
            }
            Step::Delete(key, time) => {
                let found = shown(store.delete(ByteKey::new(&[*key]), *time, &at(*time)).unwrap());
                let before = model.get(*key, *time);
                let wanted = if model.put(*key, None, *time) == VersionedPut::TooOld { None } else { before };
                assert_eq!(found, wanted, "{stack:?} delete at {time}");
            }
            Step::Get(key) => {
                assert_eq!(shown(store.get(&[*key]).unwrap()), model.get(*key, i64::MAX), "{stack:?} get");
            }
            Step::AsOf(key, time) => {
                let found = shown(store.get_as_of(&[*key], *time).unwrap());
                assert_eq!(found, model.get(*key, *time), "{stack:?} as of {time}");
            }
            Step::Commit { save } => {
                rig.commit(*save);
                committed = model.clone();
            }
            Step::FinishSave => rig.finish_save(),
            Step::Crash(chunk) if rig.can_crash() => {
                rig.crash(*chunk);
                committed.dropped = 0;
                model = committed.clone();
            }
            Step::Abort(chunk) if rig.can_crash() => {
                rig.abort(*chunk);
                committed.dropped = 0;
                model = committed.clone();
            }
            Step::Crash(_) | Step::Abort(_) => {}
        }
    }
    assert_eq!(versioned(&mut rig).take_dropped(), model.dropped, "{stack:?} dropped");
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn every_stack_answers_as_of_any_time(steps in prop::collection::vec(step(), 1..80)) {
        for stack in STACKS {
            run(*stack, &steps);
        }
    }
}
