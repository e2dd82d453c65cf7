//! Window stores against a list of rows and the expiry rules written out (conformance README 6.3).

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;

const RETENTION: i64 = 150_000;
/// max(retention / 2, 60 s)
const SEGMENT: i64 = 75_000;
/// As the stores of operators that take their rows out themselves.
const FOREVER: i64 = 100 * 365 * 86_400_000;

#[derive(Clone, Default)]
struct Model {
    in_memory: bool,
    retention: i64,
    /// Persistent and time-ordered: one millisecond more is visible.
    inclusive: bool,
    duplicates: bool,
    observed: Timestamp,
    seq: u32,
    dropped: u64,
    /// (key, start, seq) to (value, timestamp)
    rows: BTreeMap<(Vec<u8>, Timestamp, u32), (String, Timestamp)>,
}

impl Model {
    fn put(&mut self, key: &[u8], value: Option<(String, Timestamp)>, start: Timestamp) {
        if self.duplicates {
            self.seq += 1;
            if value.is_none() {
                // Logged, never put. In memory its time counts all the same.
                if self.in_memory {
                    self.observed = self.observed.max(start);
                    self.dropped += u64::from(start <= self.observed - self.retention);
                }
                return;
            }
        }
        self.observed = self.observed.max(start);
        let accepted = if self.in_memory {
            start > self.observed - self.retention
        } else {
            start / SEGMENT >= (self.observed - self.retention) / SEGMENT
        };
        let key = (key.to_vec(), start, self.seq);
        match (accepted, value) {
            (true, Some(value)) => drop(self.rows.insert(key, value)),
            (true, None) => drop(self.rows.remove(&key)),
            (false, _) => self.dropped += 1,
        }
    }

    /// Visible rows as (key, start, seq, value, timestamp).
    fn visible(&self, from: Timestamp) -> Vec<(Vec<u8>, Timestamp, u32, String, Timestamp)> {
        let visible = self.rows.iter().filter(|((_, start, _), _)| *start >= from);
        visible
            .map(|((key, start, seq), (value, time))| (key.clone(), *start, *seq, value.clone(), *time))
            .collect()
    }

    fn oldest(&self) -> Timestamp {
        self.observed - self.retention + i64::from(!self.inclusive)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Option<u32>, Timestamp),
    Fetch(u8, Timestamp),
    FetchRange(u8, Timestamp, Timestamp, bool),
    FetchAll(Timestamp, Timestamp),
    Closed(Timestamp, Timestamp),
    Commit { save: bool },
    FinishSave,
    Crash(usize),
    Abort(usize),
}

fn step() -> impl Strategy<Value = Step> {
    // Starts on a coarse grid, so that rows meet, over several times the retention.
    let time = || (0..24i64).prop_map(|slot| slot * 25_000);
    let key = || prop::sample::select(b"ab".to_vec());
    prop_oneof![
        10 => (key(), prop::option::weighted(0.7, 0..100u32), time()).prop_map(|(k, v, t)| Step::Put(k, v, t)),
        3 => (key(), time()).prop_map(|(k, t)| Step::Fetch(k, t)),
        3 => (key(), time(), time(), any::<bool>()).prop_map(|(k, a, b, o)| Step::FetchRange(k, a, b, o)),
        2 => (time(), time()).prop_map(|(a, b)| Step::FetchAll(a, b)),
        2 => (time(), time()).prop_map(|(a, b)| Step::Closed(a, b)),
        2 => (time(), 0..2i64).prop_map(|(from, more)| Step::Closed(from, from + 25_000 * more)),
        2 => any::<bool>().prop_map(|save| Step::Commit { save }),
        1 => Just(Step::FinishSave),
        1 => (1..5usize).prop_map(Step::Crash),
        1 => (1..5usize).prop_map(Step::Abort),
    ]
}

type Listed = Vec<(Vec<u8>, Timestamp, u32, String, Timestamp)>;

fn rows(found: Vec<WindowRow>) -> Listed {
    found
        .into_iter()
        .map(|row| (row.key.to_vec(), row.start, row.seq, plain(&row.value.value), row.value.timestamp))
        .collect()
}

fn run(stack: Stack, retention: i64, duplicates: bool, time_ordered: bool, steps: &[Step]) {
    let in_memory = stack.backend == Backend::InMemory;
    let kind = StoreKind::Window {
        retention: Duration::from_millis(retention as u64),
        window_size: Duration::from_millis(50_000),
        duplicates,
        timestamped: true,
        time_ordered,
    };
    let segment_interval = (retention == FOREVER).then_some(Duration::from_millis(SEGMENT as u64));
    let mut rig = Rig::of(stack, kind, segment_interval);
    let mut model = Model {
        retention,
        in_memory,
        inclusive: time_ordered && !in_memory,
        duplicates,
        observed: -1,
        ..Model::default()
    };
    let mut committed = model.clone();
    for step in steps {
        let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
        match step {
            Step::Put(key, value, start) => {
                let row = value.map(|value| (value.to_string(), start + 1));
                let stored = row.as_ref().map(|(value, time)| stamped(value, *time));
                store.put(ByteKey::new(&[*key]), stored, *start, &at(start + 2)).unwrap();
                if stack.caching && !duplicates {
                    // As the test driver does after each record; in between, a cache sees more than the store below.
                    store.flush_cache().unwrap();
                    if row.is_none() && store.fetch(&[*key], *start).unwrap().is_none() {
                        // The cache swallows the delete of an absent row; the store below never hears of its time.
                        model.observed = store.observed_stream_time().max(model.observed);
                        if model.rows.contains_key(&(vec![*key], *start, 0)) && *start >= model.oldest() {
                            model.put(&[*key], None, *start);
                        }
                        continue;
                    }
                }
                model.put(&[*key], row, *start);
            }
            Step::Fetch(key, start) if !duplicates => {
                let found =
                    store.fetch(&[*key], *start).unwrap().map(|row| (plain(&row.value), row.timestamp));
                let wanted = model.rows.get(&(vec![*key], *start, 0)).filter(|_| *start >= model.oldest());
                assert_eq!(found.as_ref(), wanted, "{stack:?} fetch {start}");
            }
            Step::Fetch(..) => {}
            Step::FetchRange(key, from, to, forward) => {
                let order = if *forward { Order::Forward } else { Order::Backward };
                let found = rows(store.fetch_range(&[*key], *from, *to, order).unwrap());
                let mut wanted = model.visible(model.oldest().max(*from));
                wanted.retain(|row| row.0 == [*key] && row.1 <= *to);
                if !forward {
                    wanted.reverse();
                }
                assert_eq!(found, wanted, "{stack:?} fetch_range {from}..={to}");
            }
            Step::FetchAll(from, to) => {
                let found = rows(store.fetch_all(*from, *to).unwrap());
                let mut wanted = model.visible(model.oldest().max(*from));
                wanted.retain(|row| row.1 <= *to);
                if in_memory || time_ordered {
                    wanted.sort_by_key(|row| (row.1, row.0.clone(), row.2));
                } else {
                    wanted.sort_by_key(|row| (row.1 / SEGMENT, row.0.clone(), row.1, row.2));
                }
                assert_eq!(found, wanted, "{stack:?} fetch_all {from}..={to}");
            }
            Step::Closed(from, to) => {
                let found = rows(store.fetch_closed(*from, *to).unwrap());
                let mut wanted = model.visible(model.oldest().max(*from));
                wanted.retain(|row| row.1 <= *to);
                wanted.sort_by_key(|row| (row.1, row.0.clone(), row.2));
                assert_eq!(found, wanted, "{stack:?} fetch_closed {from}..={to}");
            }
            Step::Commit { save } => {
                rig.commit(*save);
                committed = model.clone();
            }
            Step::FinishSave => rig.finish_save(),
            Step::Crash(chunk) if rig.can_crash() => {
                rig.crash(*chunk);
                model = Model { dropped: 0, ..committed.clone() };
                committed.dropped = 0;
            }
            Step::Abort(chunk) if rig.can_crash() => {
                rig.abort(*chunk);
                model = Model { dropped: 0, ..committed.clone() };
                committed.dropped = 0;
            }
            Step::Crash(_) | Step::Abort(_) => {}
        }
    }
    let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
    assert_eq!(store.observed_stream_time(), model.observed, "{stack:?} observed");
    assert_eq!(store.take_dropped(), model.dropped, "{stack:?} dropped");
    let mut found = rows(store.all().unwrap());
    found.sort();
    assert_eq!(found, model.visible(model.oldest()), "{stack:?} all");
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn every_stack_follows_the_expiry_rules(steps in prop::collection::vec(step(), 1..60), time_ordered: bool) {
        for stack in STACKS {
            run(*stack, RETENTION, false, time_ordered, &steps);
        }
        run(Stack { backend: Backend::InMemory, ..LOGGED }, RETENTION, false, time_ordered, &steps);
    }

    #[test]
    fn stores_that_let_nothing_expire_have_segments_all_the_same(steps in prop::collection::vec(step(), 1..120), time_ordered: bool) {
        for stack in STACKS {
            run(*stack, FOREVER, false, time_ordered, &steps);
        }
    }

    #[test]
    fn stores_of_duplicates_number_their_rows(steps in prop::collection::vec(step(), 1..60)) {
        for stack in STACKS {
            run(*stack, RETENTION, true, false, &steps);
        }
        run(Stack { backend: Backend::InMemory, ..LOGGED }, RETENTION, true, false, &steps);
    }
}

#[test]
fn without_retention_nothing_is_visible() {
    // A join window of before + after + grace = 0 joins nothing, not even equal timestamps.
    let kind = StoreKind::Window {
        retention: Duration::ZERO,
        window_size: Duration::ZERO,
        duplicates: true,
        timestamped: false,
        time_ordered: false,
    };
    let mut rig = Rig::new(LOGGED, kind);
    let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
    store.put(ByteKey::new(b"a"), Some(stamped("v", 5)), 5, &at(5)).unwrap();
    assert!(store.fetch_range(b"a", 0, 10, Order::Forward).unwrap().is_empty());
    assert_eq!(store.take_dropped(), 0);
    rig.commit(false);
    assert_eq!(rig.log[0].key.as_deref(), Some(layout::window_key(b"a", 5, 1).as_slice()));
}

/// A store over a file whose memory budget is nothing: what is saved leaves memory.
fn evicting() -> Rig {
    let kind = StoreKind::Window {
        retention: Duration::from_millis(RETENTION as u64),
        window_size: Duration::from_millis(50_000),
        duplicates: false,
        timestamped: true,
        time_ordered: false,
    };
    Rig::new(Stack { file: Some(0), ..LOGGED }, kind)
}

fn put(rig: &mut Rig, key: &[u8], value: Option<&str>, start: Timestamp) {
    let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
    store.put(ByteKey::new(key), value.map(|value| stamped(value, start)), start, &at(start)).unwrap();
}

fn starts(rig: &mut Rig, key: &[u8]) -> Vec<Timestamp> {
    let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
    let found = store.fetch_range(key, 0, 100_000, Order::Forward).unwrap();
    found.into_iter().map(|row| row.start).collect()
}

#[test]
fn a_row_removed_during_the_save_that_wrote_it_stays_removed() {
    let mut rig = evicting();
    put(&mut rig, b"a", Some("1"), 1);
    put(&mut rig, b"b", Some("1"), 1);
    rig.commit(true);
    put(&mut rig, b"a", None, 1);
    rig.finish_save();
    assert_eq!(rig.saves, 1);
    assert!(starts(&mut rig, b"a").is_empty());
    assert_eq!(starts(&mut rig, b"b"), [1]);
}

#[test]
fn a_key_written_again_in_a_segment_out_of_memory_keeps_its_older_rows() {
    let mut rig = evicting();
    put(&mut rig, b"a", Some("1"), 1);
    rig.commit(true);
    rig.finish_save();
    put(&mut rig, b"b", Some("1"), 1);
    rig.commit(true);
    put(&mut rig, b"a", Some("2"), 2);
    rig.finish_save();
    assert_eq!(rig.saves, 2);
    assert_eq!(starts(&mut rig, b"a"), [1, 2]);
}

/// A store whose operator takes rows out by time, as that of a join.
fn taken_out_by_time(memory: u64, segment_interval: Duration) -> Rig {
    let kind = StoreKind::Window {
        retention: Duration::from_millis(FOREVER as u64),
        window_size: Duration::ZERO,
        duplicates: false,
        timestamped: true,
        time_ordered: true,
    };
    Rig::of(Stack { file: Some(memory), ..LOGGED }, kind, Some(segment_interval))
}

#[test]
fn rows_that_were_listed_and_have_left_memory_are_listed_again() {
    let mut rig = taken_out_by_time(0, Duration::from_secs(60));
    for (key, start) in [(b"a", 100_000), (b"b", 200_000), (b"c", 300_000)] {
        put(&mut rig, key, Some("1"), start);
        rig.commit(true);
        rig.finish_save();
        let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
        assert_eq!(store.fetch_closed(100_000, 100_000).unwrap().len(), 1, "after a save of {start}");
    }
}

/// Rows of a key each, one a second, taken out by time, a second after the other, as a join does: what is in memory stays near the budget,
/// however much is in the file.
#[test]
fn rows_that_are_taken_out_by_time_are_loaded_in_pieces() {
    const ROWS: i64 = 20_000;
    const MEMORY: u64 = 1 << 20;
    // Two segments, each of which would not fit.
    let interval = Duration::from_secs(10_000);
    let mut rig = taken_out_by_time(MEMORY, interval);
    let key = |at: i64| ByteKey::new(format!("key-{}", at * 7_919 % ROWS).as_bytes());
    let time = |at: i64| 10_000_000 + at * 1_000;
    for at in 0..ROWS {
        put(&mut rig, &key(at), Some("some value of a row"), time(at));
        if at % 1_000 == 999 {
            rig.commit(true);
            rig.finish_save();
        }
    }
    let in_memory = |rig: &mut Rig| rig.memory_used();
    assert!(in_memory(&mut rig) <= MEMORY, "what is saved leaves memory");
    for at in 0..ROWS {
        let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
        let found = store.fetch_closed(time(at), time(at)).unwrap();
        assert_eq!(found.len(), 1, "{at}");
        assert_eq!(found[0].key, key(at));
        store.put(found[0].key.clone(), None, time(at), &super::at(at)).unwrap();
        let used = in_memory(&mut rig);
        assert!(used <= 2 * MEMORY, "after {at} rows: {used} bytes");
        if at % 1_000 == 999 {
            rig.commit(true);
            rig.finish_save();
        }
    }
    rig.commit(true);
    rig.finish_save();
    let Store::Window(store) = &mut rig.store else { panic!("a window store was asked for") };
    assert!(store.all().unwrap().is_empty());
}
