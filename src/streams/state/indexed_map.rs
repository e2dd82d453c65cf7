//! [`IndexedMap`]: a hash map that can also be walked in key order.
//!
//! Most stores are only ever asked for single keys, where a hash table is ten times cheaper than an ordered map. The
//! first bounded scan builds an ordered index of the keys, and from then on it is kept up to date; a store that is
//! never scanned never pays for it.

use std::{
    collections::BTreeSet,
    hash::Hash,
    ops::{Bound, RangeBounds},
};

use hashbrown::{HashMap, hash_map::Entry};

/// Hash map with an ordered index of its keys, built on the first bounded scan.
pub(super) struct IndexedMap<K, V> {
    rows: HashMap<K, V, foldhash::fast::RandomState>,
    /// Holds exactly the keys of `rows` when present.
    index: Option<BTreeSet<K>>,
}

impl<K, V> Default for IndexedMap<K, V> {
    fn default() -> Self {
        Self { rows: HashMap::default(), index: None }
    }
}

impl<K: Ord + Hash + Clone, V> IndexedMap<K, V> {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        Q: Hash + Eq + ?Sized,
        K: std::borrow::Borrow<Q>,
    {
        self.rows.get(key)
    }

    pub(super) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        Q: Hash + Eq + ?Sized,
        K: std::borrow::Borrow<Q>,
    {
        self.rows.get_mut(key)
    }

    /// Sets a row and returns the one it replaces.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(index) = &mut self.index
            && !self.rows.contains_key(&key)
        {
            index.insert(key.clone());
        }
        self.rows.insert(key, value)
    }

    pub(super) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        Q: Hash + Eq + Ord + ?Sized,
        K: std::borrow::Borrow<Q>,
    {
        if let Some(index) = &mut self.index {
            index.remove(key);
        }
        self.rows.remove(key)
    }

    /// Takes a row out, key and all, if it is there and `choose` takes it.
    pub(super) fn take_if(&mut self, key: K, choose: impl FnOnce(&V) -> bool) -> Option<(K, V)> {
        let Entry::Occupied(entry) = self.rows.entry(key) else { return None };
        if !choose(entry.get()) {
            return None;
        }
        let (key, value) = entry.remove_entry();
        if let Some(index) = &mut self.index {
            index.remove(&key);
        }
        Some((key, value))
    }

    /// All rows, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.index = None;
    }

    /// Removes rows that `choose` takes, at most `excess` of them, and lowers `excess` by their number.
    pub(super) fn evict(&mut self, excess: &mut usize, mut choose: impl FnMut(&mut V) -> bool) {
        let index = &mut self.index;
        self.rows.retain(|key, value| {
            let goes = *excess > 0 && choose(value);
            if goes {
                *excess -= 1;
                if let Some(index) = index {
                    index.remove(key);
                }
            }
            !goes
        });
    }

    /// Rows of a key range in ascending key order.
    pub(super) fn range(&mut self, range: impl RangeBounds<K>) -> Vec<(K, &V)> {
        if matches!((range.start_bound(), range.end_bound()), (Bound::Unbounded, Bound::Unbounded)) {
            // A full scan sorts once: it must not make every later write maintain an index.
            let mut rows: Vec<(K, &V)> = self.rows.iter().map(|(key, value)| (key.clone(), value)).collect();
            rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            return rows;
        }
        if is_empty(&range) {
            return Vec::new();
        }
        let index = self.index.get_or_insert_with(|| self.rows.keys().cloned().collect());
        index.range(range).filter_map(|key| self.rows.get(key).map(|value| (key.clone(), value))).collect()
    }
}

/// Whether a range holds nothing; `BTreeSet::range` panics on such ranges.
fn is_empty<K: Ord>(range: &impl RangeBounds<K>) -> bool {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to))
        | (Bound::Excluded(from), Bound::Included(to)) => from >= to,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_follows_inserts_and_removes() {
        let mut map = IndexedMap::default();
        map.insert(2, "b");
        map.insert(1, "a");
        assert_eq!(map.range(1..2), [(1, &"a")]);
        map.insert(0, "z");
        map.remove(&1);
        assert_eq!(map.range(..=2), [(0, &"z"), (2, &"b")]);
        assert_eq!(map.range(..), [(0, &"z"), (2, &"b")]);
        #[expect(clippy::reversed_empty_ranges, reason = "a reversed range must be empty, not a panic")]
        let reversed = map.range(5..1);
        assert!(reversed.is_empty());
    }
}
