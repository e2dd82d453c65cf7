//! [`TimeIndex`]: the keys of a store's rows by time.
//!
//! Rows come in far more often than they are listed, and mostly near the newest time. So keys are appended to short stretches of time, and
//! a stretch is put in order when it is listed. An entry whose row is gone stays until its stretch is tidied: whoever lists must look
//! whether there is a row. What must always hold: every (time, key) with a row is here.

use std::collections::BTreeMap;

use crate::streams::record::{ByteKey, Timestamp};

/// Length of a stretch, ms. Final results and joins look once in a second of event time, so they read what they need and little else.
const STRETCH_MS: i64 = 1_000;
/// Entries without rows that a stretch may have beyond as many as have some.
const STALE_MAX: usize = 64;

#[derive(Default)]
struct Stretch {
    entries: Vec<(Timestamp, ByteKey)>,
    /// Entries that have rows, each counted once.
    live: usize,
    /// Whether the entries are in order, each once.
    sorted: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct TimeIndex {
    stretches: BTreeMap<i64, Stretch>,
}

impl TimeIndex {
    /// Adds a key that had no row of that time and has one now. `has` tells of any other whether it has.
    pub(super) fn add(&mut self, time: Timestamp, key: ByteKey, has: impl Fn(&ByteKey, Timestamp) -> bool) {
        let stretch = self.stretches.entry(time.div_euclid(STRETCH_MS)).or_default();
        stretch.sorted = match stretch.entries.last() {
            None => true,
            Some(last) => stretch.sorted && (last.0, &last.1) < (time, &key),
        };
        stretch.entries.push((time, key));
        stretch.live += 1;
        if stretch.entries.len() > 2 * stretch.live + STALE_MAX {
            stretch.sort();
            stretch.entries.retain(|(time, key)| has(key, *time));
        }
    }

    /// A key has lost its last row of that time.
    pub(super) fn remove(&mut self, time: Timestamp) {
        let at = time.div_euclid(STRETCH_MS);
        if let Some(stretch) = self.stretches.get_mut(&at) {
            stretch.live -= 1;
            if stretch.live == 0 {
                self.stretches.remove(&at);
            }
        }
    }

    /// Keys with `from <= time <= to` by time, then key. Some may have no row any more.
    pub(super) fn between(
        &mut self,
        from: Timestamp,
        to: Timestamp,
    ) -> impl Iterator<Item = &(Timestamp, ByteKey)> {
        let stretches = self.stretches.range_mut(from.div_euclid(STRETCH_MS)..=to.div_euclid(STRETCH_MS));
        stretches.flat_map(move |(_, stretch)| {
            stretch.sort();
            let first = stretch.entries.partition_point(|(time, _)| *time < from);
            stretch.entries[first..].iter().take_while(move |(time, _)| *time <= to)
        })
    }

    /// Forgets entries that `has` knows no rows of.
    pub(super) fn retain(&mut self, has: impl Fn(&ByteKey, Timestamp) -> bool) {
        self.stretches.retain(|_, stretch| {
            stretch.sort();
            stretch.entries.retain(|(time, key)| has(key, *time));
            stretch.live = stretch.entries.len();
            stretch.live > 0
        });
    }
}

impl Stretch {
    fn sort(&mut self) {
        if !self.sorted {
            self.entries.sort_unstable();
            self.entries.dedup();
            self.sorted = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn listings_are_those_of_an_ordered_set(
            steps in proptest::collection::vec((any::<bool>(), -3_000i64..3_000, 0u8..3), 0..400),
            from in -4_000i64..4_000,
            length in 0i64..4_000,
        ) {
            let (mut index, mut rows) = (TimeIndex::default(), BTreeSet::new());
            for (add, time, key) in steps {
                // Few times, so that the same come and go again and again.
                let (time, key) = (time / 300 * 300, ByteKey::new(&[key]));
                if add && rows.insert((time, key.clone())) {
                    index.add(time, key, |key, time| rows.contains(&(time, key.clone())));
                } else if !add && rows.remove(&(time, key)) {
                    index.remove(time);
                }
                let kept: usize = index.stretches.values().map(|stretch| stretch.entries.len()).sum();
                prop_assert!(kept <= 2 * rows.len() + index.stretches.len() * STALE_MAX + 1);
            }
            let to = from + length;
            let listed: Vec<_> = index.between(from, to).filter(|entry| rows.contains(entry)).cloned().collect();
            let expected: Vec<_> = rows.iter().filter(|(time, _)| (from..=to).contains(time)).cloned().collect();
            prop_assert_eq!(listed, expected);
            index.retain(|key, time| rows.contains(&(time, key.clone())));
            let all: Vec<_> = index.between(-5_000, 5_000).cloned().collect();
            prop_assert_eq!(all, rows.into_iter().collect::<Vec<_>>());
        }
    }
}
