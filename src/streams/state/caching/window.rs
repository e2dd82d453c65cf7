//! The record cache over a window store. Never used over stores that keep duplicates.

use super::{Cache, Dirty, flush};
use crate::streams::{
    error::Result,
    record::{ByteKey, ConsumerRecord, RecordContext, Timestamp},
    state::{
        CacheFlush, CacheOptions, ChangelogRecord, Order, StateStore, StoreSnapshot, Unsaved,
        ValueAndTimestamp, WindowRow, WindowStore, segments::Listing,
    },
};

type Key = (ByteKey, Timestamp);

/// A window store under a cache.
pub(in crate::streams::state) struct CachingWindow {
    cache: Cache<Key>,
    window_size_ms: i64,
    /// How the store below lists rows; merged listings keep that order.
    listing: Listing,
    interval_ms: i64,
    inner: Box<dyn WindowStore>,
}

impl CachingWindow {
    pub(in crate::streams::state) fn new(
        inner: Box<dyn WindowStore>,
        options: CacheOptions,
        window_size_ms: i64,
        listing: Listing,
        interval_ms: i64,
    ) -> Self {
        Self { cache: Cache::new(options), window_size_ms, listing, interval_ms, inner }
    }

    /// Lays cached rows with `from <= start <= to` over rows of all keys from below.
    fn merge(
        &mut self,
        from: Timestamp,
        to: Timestamp,
        below: Vec<WindowRow>,
        listing: Listing,
    ) -> Vec<WindowRow> {
        let select = |(_, start): &Key| (from..=to).contains(start);
        let mut rows = rows(self.cache.overlay(.., select, keyed(below)));
        match listing {
            Listing::Time => rows.sort_by(|a, b| (a.start, &a.key).cmp(&(b.start, &b.key))),
            Listing::SegmentThenKey => rows.sort_by(|a, b| {
                let segment = |row: &WindowRow| row.start / self.interval_ms;
                (segment(a), &a.key, a.start).cmp(&(segment(b), &b.key, b.start))
            }),
        }
        rows
    }
}

fn keyed(rows: Vec<WindowRow>) -> Vec<(Key, ValueAndTimestamp)> {
    rows.into_iter().map(|row| ((row.key, row.start), row.value)).collect()
}

fn rows(rows: Vec<(Key, ValueAndTimestamp)>) -> Vec<WindowRow> {
    rows.into_iter().map(|((key, start), value)| WindowRow { key, start, seq: 0, value }).collect()
}

impl StateStore for CachingWindow {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn flush_cache(&mut self) -> Result<Vec<CacheFlush>> {
        let size = self.window_size_ms;
        flush(
            self.inner.as_mut(),
            self.cache.take_dirty(),
            self.cache.send_old_values,
            |below, (key, start)| below.fetch(key, *start),
            |below, entry| below.put(entry.key.0.clone(), entry.value.clone(), entry.key.1, &entry.context),
            |Dirty { key: (key, start), value, context }, old| CacheFlush {
                key,
                window: Some((start, start.saturating_add(size))),
                new: value,
                old,
                context,
            },
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

impl WindowStore for CachingWindow {
    fn fetch(&mut self, key: &[u8], start: Timestamp) -> Result<Option<ValueAndTimestamp>> {
        match self.cache.get(&(ByteKey::new(key), start)) {
            Some(value) => Ok(value),
            None => self.inner.fetch(key, start),
        }
    }

    fn put(
        &mut self,
        key: ByteKey,
        value: Option<ValueAndTimestamp>,
        start: Timestamp,
        context: &RecordContext,
    ) -> Result<()> {
        self.cache.put((key, start), value, context);
        Ok(())
    }

    fn fetch_range(
        &mut self,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
        order: Order,
    ) -> Result<Vec<WindowRow>> {
        let below = self.inner.fetch_range(key, from, to, Order::Forward)?;
        let key = ByteKey::new(key);
        let mut rows = rows(self.cache.overlay((key.clone(), from)..=(key, to), |_| true, keyed(below)));
        if order == Order::Backward {
            rows.reverse();
        }
        Ok(rows)
    }

    fn fetch_all(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>> {
        let below = self.inner.fetch_all(from, to)?;
        Ok(self.merge(from, to, below, self.listing))
    }

    fn all(&mut self) -> Result<Vec<WindowRow>> {
        let below = self.inner.all()?;
        Ok(self.merge(Timestamp::MIN, Timestamp::MAX, below, self.listing))
    }

    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>> {
        let below = self.inner.fetch_closed(from, to)?;
        Ok(self.merge(from, to, below, Listing::Time))
    }

    fn observed_stream_time(&self) -> Timestamp {
        self.inner.observed_stream_time()
    }
}
