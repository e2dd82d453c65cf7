//! Session stores against a list of sessions and the expiry rules written out (conformance README 6.3).

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;

const RETENTION: i64 = 150_000;
const SEGMENT: i64 = 75_000;

#[derive(Clone)]
struct Model {
    in_memory: bool,
    observed: Timestamp,
    dropped: u64,
    /// (key, end, start) to value
    rows: BTreeMap<(Vec<u8>, Timestamp, Timestamp), String>,
}

impl Model {
    fn put(&mut self, key: &[u8], start: Timestamp, end: Timestamp, value: Option<String>) {
        self.observed = self.observed.max(end);
        let accepted = if self.in_memory { end > self.observed - RETENTION } else { self.alive(end) };
        let key = (key.to_vec(), end, start);
        match (accepted, value) {
            (true, Some(value)) => drop(self.rows.insert(key, value)),
            (_, None) => drop(self.rows.remove(&key)),
            (false, Some(_)) => self.dropped += 1,
        }
    }

    fn alive(&self, end: Timestamp) -> bool {
        end / SEGMENT >= (self.observed - RETENTION) / SEGMENT
    }

    fn visible(&self, end: Timestamp) -> bool {
        end > self.observed - RETENTION
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Timestamp, Timestamp, Option<u32>),
    Fetch(u8, Timestamp, Timestamp),
    Find(u8, Timestamp, Timestamp),
    Closed(Timestamp, Timestamp),
    Commit { save: bool },
    FinishSave,
    Crash(usize),
    Abort(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let time = || (0..60i64).prop_map(|slot| slot * 12_500);
    let session = || (time(), 0..3i64).prop_map(|(start, length)| (start, start + length * 12_500));
    let key = || prop::sample::select(b"abc".to_vec());
    prop_oneof![
        10 => (key(), session(), prop::option::weighted(0.8, 0..100u32))
            .prop_map(|(k, (s, e), v)| Step::Put(k, s, e, v)),
        3 => (key(), session()).prop_map(|(k, (s, e))| Step::Fetch(k, s, e)),
        4 => (key(), time(), time()).prop_map(|(k, a, b)| Step::Find(k, a, b)),
        2 => (time(), time()).prop_map(|(a, b)| Step::Closed(a, b)),
        2 => any::<bool>().prop_map(|save| Step::Commit { save }),
        1 => Just(Step::FinishSave),
        1 => (1..5usize).prop_map(Step::Crash),
        1 => (1..5usize).prop_map(Step::Abort),
    ]
}

fn rows(found: Vec<SessionRow>) -> Vec<(Vec<u8>, Timestamp, Timestamp, String)> {
    found.into_iter().map(|row| (row.key.to_vec(), row.end, row.start, plain(&row.value))).collect()
}

fn run(stack: Stack, time_ordered: bool, steps: &[Step]) {
    let in_memory = stack.backend == Backend::InMemory;
    let kind = StoreKind::Session { retention: Duration::from_millis(RETENTION as u64), time_ordered };
    let mut rig = Rig::new(stack, kind);
    let mut model = Model { in_memory, observed: -1, dropped: 0, rows: BTreeMap::new() };
    let mut committed = model.clone();
    for step in steps {
        let Store::Session(store) = &mut rig.store else { panic!("a session store was asked for") };
        match step {
            Step::Put(key, start, end, value) => {
                let value = value.map(|value| value.to_string());
                if stack.caching
                    && value.is_none()
                    && store.fetch_session(&[*key], *start, *end).unwrap().is_none()
                {
                    // A cache swallows the removal of an absent session, so the store below never hears of its time.
                    continue;
                }
                store
                    .put(ByteKey::new(&[*key]), *start, *end, value.as_deref().map(text), &at(*end))
                    .unwrap();
                store.flush_cache().unwrap();
                model.put(&[*key], *start, *end, value);
            }
            Step::Fetch(key, start, end) => {
                let found = store.fetch_session(&[*key], *start, *end).unwrap().map(|value| plain(&value));
                let wanted = model.rows.get(&(vec![*key], *end, *start)).filter(|_| model.visible(*end));
                assert_eq!(found.as_ref(), wanted, "{stack:?} fetch_session {start}..{end}");
            }
            Step::Find(key, earliest_end, latest_start) => {
                let found = rows(store.find_sessions(&[*key], *earliest_end, *latest_start).unwrap());
                let wanted: Vec<_> = model
                    .rows
                    .iter()
                    .filter(|((k, end, start), _)| {
                        k == &[*key] && end >= earliest_end && start <= latest_start && model.visible(*end)
                    })
                    .map(|((key, end, start), value)| (key.clone(), *end, *start, value.clone()))
                    .collect();
                assert_eq!(found, wanted, "{stack:?} find {earliest_end} {latest_start}");
            }
            Step::Closed(from, to) => {
                let found = rows(store.fetch_closed(*from, *to).unwrap());
                let seen = |end: Timestamp| if in_memory { model.visible(end) } else { model.alive(end) };
                let mut wanted: Vec<_> = model
                    .rows
                    .iter()
                    .filter(|((_, end, _), _)| end >= from && end <= to && seen(*end))
                    .map(|((key, end, start), value)| (key.clone(), *end, *start, value.clone()))
                    .collect();
                if in_memory {
                    wanted.sort_by_key(|row| (row.1, row.0.clone(), row.2));
                } else {
                    wanted.sort_by_key(|row| (row.1, row.2, row.0.clone()));
                }
                assert_eq!(found, wanted, "{stack:?} fetch_closed {from}..={to}");
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
    let Store::Session(store) = &mut rig.store else { panic!("a session store was asked for") };
    assert_eq!(store.take_dropped(), model.dropped, "{stack:?} dropped");
    let found = rows(store.all().unwrap());
    let visible = model.rows.iter().filter(|((_, end, _), _)| model.visible(*end));
    let mut wanted: Vec<_> =
        visible.map(|((key, end, start), value)| (key.clone(), *end, *start, value.clone())).collect();
    if in_memory {
        wanted.sort_by_key(|row| (row.1, row.0.clone(), row.2));
    } else {
        wanted.sort_by_key(|row| (row.1 / SEGMENT, row.0.clone(), row.1, row.2));
    }
    assert_eq!(found, wanted, "{stack:?} all");
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn every_stack_follows_the_expiry_rules(steps in prop::collection::vec(step(), 1..60), time_ordered: bool) {
        for stack in STACKS {
            run(*stack, time_ordered, &steps);
        }
        run(Stack { backend: Backend::InMemory, ..LOGGED }, time_ordered, &steps);
    }
}
