//! The record cache over a session store.

use std::cmp::Ordering;

use super::{Cache, Dirty, flush};
use crate::streams::{
    error::{ProcessingError, Result},
    record::{AnyValue, ByteKey, ConsumerRecord, RecordContext, Timestamp},
    state::{
        CacheFlush, CacheOptions, ChangelogRecord, SessionRow, SessionStore, StateStore, StoreSnapshot,
        Unsaved, ValueAndTimestamp,
        segments::Expiry,
        session::{closed_order, listing_order},
    },
};

/// Key, end, start: the order sessions of a key are found in.
type Key = (ByteKey, Timestamp, Timestamp);

/// A session store under a cache. A session's value has no timestamp of its own; its end stands for it.
pub(in crate::streams::state) struct CachingSession {
    cache: Cache<Key>,
    /// Kind of the store below; merged listings keep its order.
    expiry: Expiry,
    interval_ms: i64,
    inner: Box<dyn SessionStore>,
}

impl CachingSession {
    pub(in crate::streams::state) fn new(
        inner: Box<dyn SessionStore>,
        options: CacheOptions,
        expiry: Expiry,
        interval_ms: i64,
    ) -> Self {
        Self { cache: Cache::new(options), expiry, interval_ms, inner }
    }

    /// Lays cached sessions that `select` takes over sessions of all keys from below.
    fn merge(
        &mut self,
        select: impl Fn(&Key) -> bool,
        below: Vec<SessionRow>,
        order: impl Fn(&SessionRow, &SessionRow) -> Ordering,
    ) -> Vec<SessionRow> {
        let mut rows = rows(self.cache.overlay(.., select, keyed(below)));
        rows.sort_by(order);
        rows
    }
}

fn keyed(rows: Vec<SessionRow>) -> Vec<(Key, ValueAndTimestamp)> {
    rows.into_iter()
        .map(|row| {
            let value = ValueAndTimestamp { value: row.value, timestamp: row.end };
            ((row.key, row.end, row.start), value)
        })
        .collect()
}

fn rows(rows: Vec<(Key, ValueAndTimestamp)>) -> Vec<SessionRow> {
    rows.into_iter()
        .map(|((key, end, start), value)| SessionRow { key, start, end, value: value.value })
        .collect()
}

impl StateStore for CachingSession {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn flush_cache(&mut self) -> Result<Vec<CacheFlush>> {
        flush(
            self.inner.as_mut(),
            self.cache.take_dirty(),
            self.cache.send_old_values,
            |below, (key, end, start)| {
                let value = below.fetch_session(key, *start, *end)?;
                Ok(value.map(|value| ValueAndTimestamp { value, timestamp: *end }))
            },
            |below, Dirty { key: (key, end, start), value, context }| {
                below.put(key.clone(), *start, *end, value.as_ref().map(|value| value.value.clone()), context)
            },
            |Dirty { key: (key, end, start), value, context }, old| CacheFlush {
                key,
                window: Some((start, end)),
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

impl SessionStore for CachingSession {
    fn find_sessions(
        &mut self,
        key: &[u8],
        earliest_end: Timestamp,
        latest_start: Timestamp,
    ) -> Result<Vec<SessionRow>> {
        if self.cache.keeps_clean() && self.expiry == Expiry::Segment && earliest_end <= -self.interval_ms {
            // Kafka's cache walks segments from the earliest end, and fails where that lies a segment or more before the epoch.
            let message = "Error iterating over segments: segment interval has changed";
            return Err(ProcessingError::new("IllegalStateException", message).into());
        }
        let below = self.inner.find_sessions(key, earliest_end, latest_start)?;
        let key = ByteKey::new(key);
        let range = (key.clone(), earliest_end, Timestamp::MIN)..=(key, Timestamp::MAX, Timestamp::MAX);
        Ok(rows(self.cache.overlay(range, |(_, _, start)| *start <= latest_start, keyed(below))))
    }

    fn fetch_session(&mut self, key: &[u8], start: Timestamp, end: Timestamp) -> Result<Option<AnyValue>> {
        match self.cache.get(&(ByteKey::new(key), end, start)) {
            Some(value) => Ok(value.map(|value| value.value)),
            None => self.inner.fetch_session(key, start, end),
        }
    }

    fn put(
        &mut self,
        key: ByteKey,
        start: Timestamp,
        end: Timestamp,
        value: Option<AnyValue>,
        context: &RecordContext,
    ) -> Result<()> {
        let value = value.map(|value| ValueAndTimestamp { value, timestamp: end });
        self.cache.put((key, end, start), value, context);
        Ok(())
    }

    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<SessionRow>> {
        let below = self.inner.fetch_closed(from, to)?;
        Ok(self.merge(|(_, end, _)| (from..=to).contains(end), below, closed_order(self.expiry)))
    }

    fn all(&mut self) -> Result<Vec<SessionRow>> {
        let below = self.inner.all()?;
        Ok(self.merge(|_| true, below, listing_order(self.expiry, self.interval_ms)))
    }
}
