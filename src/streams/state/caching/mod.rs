//! The record cache: the layer on top of a store (Kafka's `Caching…Store` over `NamedCache`).
//!
//! A write stays here until the flush. The flush takes the entries in order of their *last* write, one per key with
//! its latest value; reads the old value from the store below; skips an entry whose new and old values are both null;
//! else writes it below and hands it out for forwarding. Reads look here first.
//!
//! With `keep_clean` (Kafka Streams' behaviour) flushed entries stay readable, *even after the store below has expired
//! them* (conformance README 6.2); without it they leave, and a cache changes no result. When the entries outgrow the
//! budget the store asks for a flush ([`StateStore::wants_flush`](super::StateStore::wants_flush)), which as in Kafka
//! Streams takes all dirty entries, and then the least recently used clean ones go.

mod key_value;
mod session;
mod window;

use std::{collections::BTreeMap, hash::Hash};

pub(super) use key_value::CachingKeyValue;
pub(super) use session::CachingSession;
pub(super) use window::CachingWindow;

use super::{CacheOptions, ValueAndTimestamp, indexed_map::IndexedMap};
use crate::streams::{error::Result, record::RecordContext};

/// Rough bytes of an entry besides its key: value, context, table, order.
const ENTRY_BYTES: usize = 200;

struct Entry {
    /// `None` = deleted.
    value: Option<ValueAndTimestamp>,
    /// Context of the last write.
    context: RecordContext,
    /// Place in the order of last writes while dirty, 0 when clean.
    written: u64,
    /// Place in the order of last uses.
    used: u64,
}

/// A dirty entry on its way out.
struct Dirty<K> {
    key: K,
    value: Option<ValueAndTimestamp>,
    context: RecordContext,
}

/// The entries of one store's cache.
struct Cache<K> {
    options: CacheOptions,
    entries: IndexedMap<K, Entry>,
    /// Dirty keys by their last write.
    dirty: BTreeMap<u64, K>,
    tick: u64,
}

impl<K: Ord + Hash + Clone> Cache<K> {
    fn new(options: CacheOptions) -> Self {
        Self { options, entries: IndexedMap::default(), dirty: BTreeMap::new(), tick: 0 }
    }

    fn bytes(&self) -> usize {
        self.entries.len() * (size_of::<K>() + ENTRY_BYTES)
    }

    /// Over budget with something to flush.
    fn wants_flush(&self) -> bool {
        !self.dirty.is_empty() && self.bytes() > self.options.max_bytes
    }

    /// `Some(None)`: known to be deleted. `None`: ask below.
    fn get(&mut self, key: &K) -> Option<Option<ValueAndTimestamp>> {
        let entry = self.entries.get_mut(key)?;
        self.tick += 1;
        entry.used = self.tick;
        Some(entry.value.clone())
    }

    fn put(&mut self, key: K, value: Option<ValueAndTimestamp>, context: &RecordContext) {
        self.tick += 1;
        let tick = self.tick;
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.written != 0 {
                self.dirty.remove(&entry.written);
            }
            *entry = Entry { value, context: context.clone(), written: tick, used: tick };
        } else {
            let entry = Entry { value, context: context.clone(), written: tick, used: tick };
            self.entries.insert(key.clone(), entry);
        }
        self.dirty.insert(tick, key);
        if self.bytes() > self.options.max_bytes {
            self.evict_clean();
        }
    }

    /// Takes the dirty entries in order of their last write and leaves them clean, or gone.
    fn take_dirty(&mut self) -> Vec<Dirty<K>> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut out = Vec::with_capacity(dirty.len());
        for key in dirty.into_values() {
            // The key of a dirty mark is always in the table: a dirty entry never leaves it.
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.written = 0;
            let value = entry.value.clone();
            let context = entry.context.clone();
            if value.is_none() {
                self.entries.remove(&key);
            }
            out.push(Dirty { key, value, context });
        }
        if !self.options.keep_clean {
            self.entries.clear();
        } else if self.bytes() > self.options.max_bytes {
            self.evict_clean();
        }
        out
    }

    /// Drops least recently used clean entries until a tenth of the budget is free again, so that this is rare.
    fn evict_clean(&mut self) {
        let entry_bytes = size_of::<K>() + ENTRY_BYTES;
        let keep = (self.options.max_bytes / 10 * 9) / entry_bytes;
        let mut clean: Vec<(u64, K)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.written == 0)
            .map(|(key, entry)| (entry.used, key.clone()))
            .collect();
        if clean.is_empty() {
            return;
        }
        clean.sort_unstable();
        for (_, key) in clean.into_iter().take(self.entries.len().saturating_sub(keep)) {
            self.entries.remove(&key);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.dirty.clear();
    }

    /// Lays the entries of a key range over rows from below: replaced, removed or added. Returns rows in the order of `K`.
    fn overlay(
        &mut self,
        range: impl std::ops::RangeBounds<K>,
        select: impl Fn(&K) -> bool,
        below: Vec<(K, ValueAndTimestamp)>,
    ) -> Vec<(K, ValueAndTimestamp)> {
        let cached = self.entries.range(range);
        if cached.is_empty() {
            return below;
        }
        let mut rows: BTreeMap<K, ValueAndTimestamp> = below.into_iter().collect();
        for (key, entry) in cached {
            if !select(&key) {
                continue;
            }
            match &entry.value {
                Some(value) => rows.insert(key, value.clone()),
                None => rows.remove(&key),
            };
        }
        rows.into_iter().collect()
    }
}

/// Flushes: see the module. `read` gives the old value from below, `write` writes below.
fn flush<K, S: ?Sized>(
    below: &mut S,
    dirty: Vec<Dirty<K>>,
    read: impl Fn(&mut S, &K) -> Result<Option<ValueAndTimestamp>>,
    write: impl Fn(&mut S, &Dirty<K>) -> Result<()>,
    describe: impl Fn(Dirty<K>, Option<ValueAndTimestamp>) -> super::CacheFlush,
) -> Result<Vec<super::CacheFlush>> {
    let mut flushed = Vec::with_capacity(dirty.len());
    for entry in dirty {
        let old = read(below, &entry.key)?;
        if entry.value.is_none() && old.is_none() {
            continue;
        }
        write(below, &entry)?;
        flushed.push(describe(entry, old));
    }
    Ok(flushed)
}
