//! The record cache: the layer on top of a store (Kafka's `Caching…Store` over `NamedCache`).
//!
//! A write stays here until the flush. The flush takes the entries in order of their *last* write, one per key with
//! its latest value; reads the old value from the store below, if it is wanted; skips an entry whose new and old values are both null;
//! else writes it below and hands it out for forwarding. Reads look here first.
//!
//! With `keep_clean` (Kafka Streams' behaviour) flushed entries stay readable, *even after the store below has expired
//! them* (conformance README 6.2); without it they leave, and a cache changes no result. When the entries outgrow the
//! budget the store asks for a flush ([`StateStore::wants_flush`](super::StateStore::wants_flush)), which as in Kafka
//! Streams takes all dirty entries, and then clean ones go, those not used since the last round first.

mod key_value;
mod session;
mod window;

use std::{collections::BTreeMap, hash::Hash, mem};

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
    /// Read or written since the last eviction round.
    used: bool,
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
    /// Whether flushes tell the values they replace.
    send_old_values: bool,
    entries: IndexedMap<K, Entry>,
    /// Every write in order. Only that whose place its entry names is the last one of its key; the others are skipped.
    writes: Vec<(u64, K)>,
    /// Entries that are dirty.
    dirty: usize,
    tick: u64,
}

impl<K: Ord + Hash + Clone> Cache<K> {
    fn new(options: CacheOptions) -> Self {
        Self {
            options,
            send_old_values: true,
            entries: IndexedMap::default(),
            writes: Vec::new(),
            dirty: 0,
            tick: 0,
        }
    }

    /// Whether flushed entries stay readable, as in Kafka Streams.
    fn keeps_clean(&self) -> bool {
        self.options.keep_clean
    }

    /// Entries that fit the budget.
    fn capacity(&self) -> usize {
        self.options.max_bytes / (size_of::<K>() + ENTRY_BYTES)
    }

    /// Over budget with something to flush.
    fn wants_flush(&self) -> bool {
        self.dirty > 0 && self.entries.len() > self.capacity()
    }

    /// `Some(None)`: known to be deleted. `None`: ask below.
    fn get(&mut self, key: &K) -> Option<Option<ValueAndTimestamp>> {
        let entry = self.entries.get_mut(key)?;
        entry.used = true;
        Some(entry.value.clone())
    }

    fn put(&mut self, key: K, value: Option<ValueAndTimestamp>, context: &RecordContext) {
        self.tick += 1;
        let written = self.tick;
        let entry = Entry { value, context: context.clone(), written, used: true };
        match self.entries.get_mut(&key) {
            Some(known) => {
                self.dirty += usize::from(known.written == 0);
                *known = entry;
            }
            None => {
                self.dirty += 1;
                self.entries.insert(key.clone(), entry);
            }
        }
        self.writes.push((written, key));
        if self.writes.len() > 2 * self.dirty + 1024 {
            // Mostly rewrites of the same keys: keep the last of each.
            let entries = &self.entries;
            self.writes
                .retain(|(written, key)| entries.get(key).is_some_and(|entry| entry.written == *written));
        }
        self.evict_clean();
    }

    /// Takes the dirty entries in order of their last write and leaves them clean, or gone.
    fn take_dirty(&mut self) -> Vec<Dirty<K>> {
        let mut out = Vec::with_capacity(self.dirty);
        let writes = mem::take(&mut self.writes);
        self.dirty = 0;
        if !self.options.keep_clean {
            for (written, key) in writes {
                if let Some((key, entry)) = self.entries.take_if(key, |entry| entry.written == written) {
                    out.push(Dirty { key, value: entry.value, context: entry.context });
                }
            }
            return out;
        }
        for (written, key) in writes {
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.written == written) else {
                continue;
            };
            entry.written = 0;
            let value = entry.value.clone();
            let context = entry.context.clone();
            if value.is_none() {
                self.entries.remove(&key);
            }
            out.push(Dirty { key, value, context });
        }
        self.evict_clean();
        out
    }

    /// Over the budget drops clean entries until a tenth of it is free again, so that this is rare: those not used
    /// since the last round first.
    fn evict_clean(&mut self) {
        let capacity = self.capacity();
        let (entries, clean) = (self.entries.len(), self.entries.len() - self.dirty);
        // With few clean entries a round would cost more than it frees; the flush asked for makes all clean.
        if entries <= capacity || clean < entries / 10 {
            return;
        }
        let mut excess = entries - capacity / 10 * 9;
        for round in 0..2 {
            self.entries.evict(&mut excess, |entry| {
                let goes = entry.written == 0 && (round == 1 || !entry.used);
                entry.used = false;
                goes
            });
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.writes.clear();
        self.dirty = 0;
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

/// Flushes: see the module. `read` gives the old value from below, `write` writes below. A value that replaces another is not asked for
/// that other unless `send_old_values`.
fn flush<K, S: ?Sized>(
    below: &mut S,
    dirty: Vec<Dirty<K>>,
    send_old_values: bool,
    read: impl Fn(&mut S, &K) -> Result<Option<ValueAndTimestamp>>,
    write: impl Fn(&mut S, &Dirty<K>) -> Result<()>,
    describe: impl Fn(Dirty<K>, Option<ValueAndTimestamp>) -> super::CacheFlush,
) -> Result<Vec<super::CacheFlush>> {
    let mut flushed = Vec::with_capacity(dirty.len());
    for entry in dirty {
        let old = match &entry.value {
            Some(_) if !send_old_values => None,
            _ => read(below, &entry.key)?,
        };
        if entry.value.is_none() && old.is_none() {
            continue;
        }
        write(below, &entry)?;
        flushed.push(describe(entry, old));
    }
    Ok(flushed)
}
