//! The record cache over a key-value store.

use std::ops::Bound;

use super::{Cache, Dirty, flush};
use crate::streams::{
    error::Result,
    record::{ByteKey, ConsumerRecord, RecordContext, Timestamp},
    state::{
        CacheFlush, CacheOptions, ChangelogRecord, KeyValueStore, Order, StateStore, StoreSnapshot, Unsaved,
        ValueAndTimestamp,
        key_value::{count_up, prefix_range},
    },
};

/// A key-value store under a cache.
pub(in crate::streams::state) struct CachingKeyValue {
    cache: Cache<ByteKey>,
    inner: Box<dyn KeyValueStore>,
}

impl CachingKeyValue {
    pub(in crate::streams::state) fn new(inner: Box<dyn KeyValueStore>, options: CacheOptions) -> Self {
        Self { cache: Cache::new(options), inner }
    }
}

impl StateStore for CachingKeyValue {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn flush_cache(&mut self) -> Result<Vec<CacheFlush>> {
        flush(
            self.inner.as_mut(),
            self.cache.take_dirty(),
            self.cache.send_old_values,
            |below, key| below.get(key),
            |below, entry| below.put(entry.key.clone(), entry.value.clone(), &entry.context),
            |Dirty { key, value, context }, old| CacheFlush { key, window: None, new: value, old, context },
        )
    }

    fn send_old_values(&mut self, wanted: bool) {
        self.cache.send_old_values = wanted;
    }

    fn wants_flush(&self) -> bool {
        self.cache.wants_flush()
    }

    fn drain_changelog(&mut self, out: &mut Vec<ChangelogRecord>) -> Result<()> {
        self.inner.drain_changelog(out)
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        self.inner.restore(records)
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.cache.clear();
        self.inner.discard_uncommitted()
    }

    fn take_dropped(&mut self) -> u64 {
        self.inner.take_dropped()
    }

    fn approximate_num_entries(&self) -> u64 {
        self.inner.approximate_num_entries()
    }

    fn unsaved(&self) -> Unsaved {
        self.inner.unsaved()
    }

    fn snapshot(&mut self) -> Result<Option<StoreSnapshot>> {
        self.inner.snapshot()
    }

    fn mark_saved(&mut self) {
        self.inner.mark_saved();
    }

    fn expire_by(&mut self, watermark: Timestamp) {
        self.inner.expire_by(watermark);
    }
}

impl KeyValueStore for CachingKeyValue {
    fn get(&mut self, key: &[u8]) -> Result<Option<ValueAndTimestamp>> {
        match self.cache.get(&ByteKey::new(key)) {
            Some(value) => Ok(value),
            None => self.inner.get(key),
        }
    }

    fn put(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>, context: &RecordContext) -> Result<()> {
        self.cache.put(key, value, context);
        Ok(())
    }

    fn range(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        order: Order,
    ) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        let below = self.inner.range(from, to, Order::Forward)?;
        let range = (
            from.map_or(Bound::Unbounded, |from| Bound::Included(ByteKey::new(from))),
            to.map_or(Bound::Unbounded, |to| Bound::Included(ByteKey::new(to))),
        );
        let mut rows = self.cache.overlay(range, |_| true, below);
        if order == Order::Backward {
            rows.reverse();
        }
        Ok(rows)
    }

    fn prefix_scan(&mut self, prefix: &[u8]) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        if self.cache.keeps_clean() {
            count_up(prefix)?;
        }
        let below = self.inner.prefix_scan(prefix)?;
        Ok(self.cache.overlay(prefix_range(prefix), |_| true, below))
    }
}
