//! The suppress buffer: order, prior values, Kafka's byte estimate and changelog format, and replay.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn buffer(rig: &mut Rig) -> &mut dyn ChangeBuffer {
    match &mut rig.store {
        Store::Buffer(buffer) => buffer.as_mut(),
        _ => panic!("a buffer was asked for"),
    }
}

fn change(old: Option<&str>, new: Option<&str>, timestamp: Timestamp) -> BufferedChange {
    BufferedChange { prior: None, old: old.map(text), new: new.map(text), context: at(timestamp) }
}

fn shown(value: &Option<AnyValue>) -> Option<String> {
    value.as_ref().map(plain)
}

#[test]
fn a_later_change_keeps_the_slot_and_the_prior_value() {
    let mut rig = Rig::new(LOGGED, StoreKind::Buffer);
    let store = buffer(&mut rig);
    assert_eq!(store.min_timestamp(), i64::MAX);
    store.put(10, ByteKey::new(b"k"), change(Some("p"), Some("x"), 10)).unwrap();
    store.put(20, ByteKey::new(b"k"), change(Some("x"), Some("y"), 20)).unwrap();
    store.put(10, ByteKey::new(b"a"), change(None, Some("z"), 10)).unwrap();
    assert_eq!((store.min_timestamp(), store.num_records()), (10, 2));
    assert_eq!(
        store.prior_value(b"k").unwrap().map(|row| (plain(&row.value), row.timestamp)),
        Some(("p".into(), -1))
    );
    assert!(store.prior_value(b"a").unwrap().is_none() && store.prior_value(b"b").is_none());
    let (time, key, first) = store.pop_first().unwrap().unwrap();
    assert_eq!(
        (time, key.as_slice(), shown(&first.new)),
        (10, b"a".as_slice(), Some("z".into())),
        "equal times: by key"
    );
    let (time, _, second) = store.pop_first().unwrap().unwrap();
    assert_eq!((time, shown(&second.old), shown(&second.new)), (10, Some("x".into()), Some("y".into())));
    assert_eq!(second.context.timestamp, 20);
    assert!(store.pop_first().unwrap().is_none());
    assert_eq!(store.buffer_bytes(), 0);
}

#[test]
fn bytes_are_estimated_as_kafka_does() {
    let mut rig = Rig::new(LOGGED, StoreKind::Buffer);
    let store = buffer(&mut rig);
    // 8 buffer time + 1 key + 2 prior (the equal old value counts once) + 3 new + 8 + 8 + 4 + 2 topic
    store.put(1, ByteKey::new(b"k"), change(Some("pp"), Some("new"), 1)).unwrap();
    assert_eq!(store.buffer_bytes(), 8 + 1 + 2 + 3 + 20 + 2);
    // The old value now differs from the prior one and counts.
    store.put(1, ByteKey::new(b"k"), change(Some("new"), Some("n"), 1)).unwrap();
    assert_eq!(store.buffer_bytes(), 8 + 1 + 2 + 3 + 1 + 20 + 2);
}

#[test]
fn the_changelog_has_kafkas_format_3_once_per_changed_key() {
    let mut rig = Rig::new(LOGGED, StoreKind::Buffer);
    let store = buffer(&mut rig);
    store.put(4, ByteKey::new(b"b"), change(Some("o"), Some("1"), 3)).unwrap();
    store.put(5, ByteKey::new(b"b"), change(Some("o"), None, 3)).unwrap();
    store.put(6, ByteKey::new(b"a"), change(None, Some("2"), 6)).unwrap();
    let mut early = Vec::new();
    store.drain_changelog(&mut early).unwrap();
    assert!(early.is_empty(), "nothing is logged before the flush");
    rig.commit(false);
    let mut wanted = Vec::new();
    wanted.extend_from_slice(&3i64.to_be_bytes()); // timestamp
    wanted.extend_from_slice(&7i64.to_be_bytes()); // offset
    wanted.extend_from_slice(b"\0\0\0\x02in"); // topic
    wanted.extend_from_slice(&[0; 8]); // partition, no headers
    wanted.extend_from_slice(b"\0\0\0\x01o"); // prior
    wanted.extend_from_slice(&(-2i32).to_be_bytes()); // old: as prior
    wanted.extend_from_slice(&(-1i32).to_be_bytes()); // new: null
    wanted.extend_from_slice(&4i64.to_be_bytes()); // buffer time
    assert_eq!(rig.log.len(), 2);
    assert_eq!(rig.log[1].key.as_deref(), Some(b"b".as_slice()));
    assert_eq!(rig.log[1].value.as_deref(), Some(wanted.as_slice()));
    assert_eq!(rig.log[1].headers.last("v").and_then(|header| header.value.as_deref()), Some([3].as_slice()));

    buffer(&mut rig).pop_first().unwrap();
    rig.commit(false);
    assert_eq!((rig.log[2].key.as_deref(), rig.log[2].value.as_deref()), (Some(b"b".as_slice()), None));
}

#[test]
fn a_damaged_changelog_record_is_an_error_that_names_it() {
    let mut rig = Rig::new(LOGGED, StoreKind::Buffer);
    buffer(&mut rig).put(1, ByteKey::new(b"k"), change(None, Some("v"), 1)).unwrap();
    rig.commit(false);
    let whole = rig.log[0].value.clone().unwrap();
    for length in 0..whole.len() {
        let mut record = rig.log[0].clone();
        record.value = Some(whole.slice(..length));
        let error = rig.store.as_state_store().restore(&[record]).unwrap_err().to_string();
        assert!(error.contains("clicks") && error.contains("offset 0"), "{error}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(Timestamp, u8, Option<u32>, Option<u32>),
    Pop,
    Commit,
    Crash(usize),
    Abort(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let value = || prop::option::weighted(0.8, 0..50u32);
    prop_oneof![
        6 => (0..30i64, prop::sample::select(b"abcdef".to_vec()), value(), value())
            .prop_map(|(t, k, o, n)| Step::Put(t, k, o, n)),
        3 => Just(Step::Pop),
        2 => Just(Step::Commit),
        1 => (1..5usize).prop_map(Step::Crash),
        1 => (1..5usize).prop_map(Step::Abort),
    ]
}

/// Buffer time, prior, old, new.
type ModelRow = (Timestamp, Option<String>, Option<String>, Option<String>);

proptest! {
    #![proptest_config(config())]
    #[test]
    fn replay_gives_back_the_buffer(steps in prop::collection::vec(step(), 1..80)) {
        let mut rig = Rig::new(LOGGED, StoreKind::Buffer);
        let mut model = BTreeMap::<u8, ModelRow>::new();
        let mut committed = model.clone();
        for step in steps {
            match step {
                Step::Put(time, key, old, new) => {
                    let [old, new] = [old, new].map(|value| value.map(|value| value.to_string()));
                    let put = change(old.as_deref(), new.as_deref(), time);
                    buffer(&mut rig).put(time, ByteKey::new(&[key]), put).unwrap();
                    let (time, prior) = model
                        .get(&key)
                        .map_or_else(|| (time, old.clone()), |(time, prior, ..)| (*time, prior.clone()));
                    model.insert(key, (time, prior, old, new));
                }
                Step::Pop => {
                    let first = model.iter().map(|(key, row)| (row.0, *key)).min();
                    let found = buffer(&mut rig).pop_first().unwrap();
                    match (first, found) {
                        (None, None) => {}
                        (Some((time, key)), Some((found_time, found_key, change))) => {
                            let (_, prior, old, new) = model.remove(&key).unwrap();
                            prop_assert_eq!((found_time, found_key), (time, ByteKey::new(&[key])));
                            let found = (shown(&change.prior), shown(&change.old), shown(&change.new));
                            prop_assert_eq!(found, (prior, old, new));
                        }
                        (wanted, found) => prop_assert!(false, "{wanted:?} but {:?}", found.map(|row| row.0)),
                    }
                }
                Step::Commit => {
                    rig.commit(false);
                    committed = model.clone();
                }
                Step::Crash(chunk) => {
                    rig.crash(chunk);
                    model = committed.clone();
                }
                Step::Abort(chunk) => {
                    rig.abort(chunk);
                    model = committed.clone();
                }
            }
            prop_assert_eq!(buffer(&mut rig).num_records(), model.len() as u64);
            let bytes: u64 = model
                .values()
                .map(|(_, prior, old, new)| {
                    let length = |value: &Option<String>| value.as_ref().map_or(0, String::len);
                    let old = if old == prior { 0 } else { length(old) };
                    (8 + 1 + length(prior) + old + length(new) + 20 + 2) as u64
                })
                .sum();
            prop_assert_eq!(buffer(&mut rig).buffer_bytes(), bytes);
        }
    }
}
