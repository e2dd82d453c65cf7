//! The change-logging layer: every write that reaches a store is also queued for its changelog topic.
//!
//! It stands below the cache, so what the cache collapses is logged once, and above the rows. The write goes down
//! first, then it is logged, refused or not: Kafka Streams does not ask the store either, and a replay refuses the
//! same rows again. Values are serialized here and nowhere else on the write path.

use std::{mem, ops::Range};

use bytes::Bytes;

use super::{
    CacheFlush, ChangelogRecord, KeyValueStore, Order, SessionRow, SessionStore, StateStore,
    ValueAndTimestamp, VersionedPut, VersionedRecord, VersionedStore, WindowRow, WindowStore,
    layout::{session_key, window_key},
    sqlite::{StoreSnapshot, Unsaved},
};
use crate::streams::{
    error::Result,
    record::{AnyValue, ByteKey, ConsumerRecord, Headers, RecordContext, Timestamp},
    serdes::AnySerde,
};

/// What is still to be sent, and how values become bytes.
struct Log {
    value_serde: AnySerde,
    pending: Vec<Pending>,
    /// The bytes of all pending values, one after the other: they are sent as slices of one allocation.
    values: Vec<u8>,
}

/// A change that is still to be sent.
struct Pending {
    key: ByteKey,
    /// Where its value lies; `None` = delete.
    value: Option<Range<usize>>,
    /// `None`: the value tells it.
    timestamp: Option<Timestamp>,
}

impl Log {
    fn serialize(&mut self, value: Option<&AnyValue>) -> Result<Option<Range<usize>>> {
        let Some(value) = value else { return Ok(None) };
        let start = self.values.len();
        if let Err(error) = self.value_serde.serialize(value, &mut self.values) {
            // What it wrote before it failed belongs to no change.
            self.values.truncate(start);
            return Err(error.into());
        }
        Ok(Some(start..self.values.len()))
    }

    /// As [`serialize`](Self::serialize), with the value's time in the bytes where the serde writes it.
    fn serialize_timed(&mut self, value: Option<&ValueAndTimestamp>) -> Result<Option<Range<usize>>> {
        let Some(ValueAndTimestamp { value, timestamp }) = value else { return Ok(None) };
        let start = self.values.len();
        if let Err(error) = self.value_serde.serialize_timed(value, *timestamp, &mut self.values) {
            self.values.truncate(start);
            return Err(error.into());
        }
        Ok(Some(start..self.values.len()))
    }

    fn append(&mut self, key: ByteKey, value: Option<Range<usize>>, timestamp: Option<Timestamp>) {
        self.pending.push(Pending { key, value, timestamp });
    }

    fn drain(&mut self, out: &mut Vec<ChangelogRecord>) {
        let size = self.values.len();
        let values = Bytes::from(mem::replace(&mut self.values, Vec::with_capacity(size)));
        out.extend(self.pending.drain(..).map(|Pending { key, value, timestamp }| ChangelogRecord {
            key,
            value: value.map(|value| values.slice(value)),
            timestamp,
            headers: Headers::EMPTY,
        }));
    }

    fn clear(&mut self) {
        self.pending.clear();
        self.values.clear();
    }
}

/// A store whose writes are logged.
pub(super) struct ChangeLogging<S: ?Sized> {
    log: Log,
    /// Whether a value's own timestamp becomes the record's; else the context's does.
    timestamped: bool,
    inner: Box<S>,
}

impl<S: ?Sized> ChangeLogging<S> {
    pub(super) fn new(inner: Box<S>, value_serde: AnySerde, timestamped: bool) -> Self {
        Self { log: Log { value_serde, pending: Vec::new(), values: Vec::new() }, timestamped, inner }
    }

    /// The bytes of a value, and the time of the record that logs it: none where the value tells it.
    fn logged(
        &mut self,
        value: Option<&ValueAndTimestamp>,
        context: &RecordContext,
    ) -> Result<(Option<Range<usize>>, Option<Timestamp>)> {
        if self.timestamped && self.log.value_serde.carries_time() {
            return Ok((self.log.serialize_timed(value)?, None));
        }
        let bytes = self.log.serialize(value.map(|value| &value.value))?;
        let own = value.filter(|_| self.timestamped).map(|value| value.timestamp);
        Ok((bytes, Some(own.unwrap_or(context.timestamp))))
    }
}

impl<S: StateStore + ?Sized> StateStore for ChangeLogging<S> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn flush_cache(&mut self) -> Result<Vec<CacheFlush>> {
        self.inner.flush_cache()
    }

    fn drain_changelog(&mut self, out: &mut Vec<ChangelogRecord>) -> Result<()> {
        self.log.drain(out);
        Ok(())
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        self.inner.restore(records)
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.log.clear();
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

impl KeyValueStore for ChangeLogging<dyn KeyValueStore> {
    fn get(&mut self, key: &[u8]) -> Result<Option<ValueAndTimestamp>> {
        self.inner.get(key)
    }

    fn put(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>, context: &RecordContext) -> Result<()> {
        // Serialized first: a value that cannot be logged must not be stored either.
        let (bytes, timestamp) = self.logged(value.as_ref(), context)?;
        self.inner.put(key.clone(), value, context)?;
        for evicted in self.inner.take_evicted() {
            self.log.append(evicted, None, Some(context.timestamp));
        }
        self.log.append(key, bytes, timestamp);
        Ok(())
    }

    fn range(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        order: Order,
    ) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        self.inner.range(from, to, order)
    }

    fn prefix_scan(&mut self, prefix: &[u8]) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        self.inner.prefix_scan(prefix)
    }
}

impl WindowStore for ChangeLogging<dyn WindowStore> {
    fn fetch(&mut self, key: &[u8], start: Timestamp) -> Result<Option<ValueAndTimestamp>> {
        self.inner.fetch(key, start)
    }

    fn put(
        &mut self,
        key: ByteKey,
        value: Option<ValueAndTimestamp>,
        start: Timestamp,
        context: &RecordContext,
    ) -> Result<()> {
        let (bytes, timestamp) = self.logged(value.as_ref(), context)?;
        self.inner.put(key.clone(), value, start, context)?;
        self.log.append(window_key(&key, start, self.inner.last_seq()), bytes, timestamp);
        Ok(())
    }

    fn fetch_range(
        &mut self,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
        order: Order,
    ) -> Result<Vec<WindowRow>> {
        self.inner.fetch_range(key, from, to, order)
    }

    fn fetch_all(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>> {
        self.inner.fetch_all(from, to)
    }

    fn all(&mut self) -> Result<Vec<WindowRow>> {
        self.inner.all()
    }

    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>> {
        self.inner.fetch_closed(from, to)
    }

    fn observed_stream_time(&self) -> Timestamp {
        self.inner.observed_stream_time()
    }

    fn last_seq(&self) -> u32 {
        self.inner.last_seq()
    }
}

impl SessionStore for ChangeLogging<dyn SessionStore> {
    fn find_sessions(
        &mut self,
        key: &[u8],
        earliest_end: Timestamp,
        latest_start: Timestamp,
    ) -> Result<Vec<SessionRow>> {
        self.inner.find_sessions(key, earliest_end, latest_start)
    }

    fn fetch_session(&mut self, key: &[u8], start: Timestamp, end: Timestamp) -> Result<Option<AnyValue>> {
        self.inner.fetch_session(key, start, end)
    }

    fn put(
        &mut self,
        key: ByteKey,
        start: Timestamp,
        end: Timestamp,
        value: Option<AnyValue>,
        context: &RecordContext,
    ) -> Result<()> {
        let bytes = self.log.serialize(value.as_ref())?;
        let logged = session_key(&key, start, end);
        self.inner.put(key, start, end, value, context)?;
        self.log.append(logged, bytes, Some(context.timestamp));
        Ok(())
    }

    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<SessionRow>> {
        self.inner.fetch_closed(from, to)
    }

    fn all(&mut self) -> Result<Vec<SessionRow>> {
        self.inner.all()
    }
}

impl VersionedStore for ChangeLogging<dyn VersionedStore> {
    fn put(
        &mut self,
        key: ByteKey,
        value: Option<AnyValue>,
        timestamp: Timestamp,
        context: &RecordContext,
    ) -> Result<VersionedPut> {
        let bytes = self.log.serialize(value.as_ref())?;
        let put = self.inner.put(key.clone(), value, timestamp, context)?;
        self.log.append(key, bytes, Some(timestamp));
        Ok(put)
    }

    fn delete(
        &mut self,
        key: ByteKey,
        timestamp: Timestamp,
        context: &RecordContext,
    ) -> Result<Option<VersionedRecord>> {
        let before = self.inner.delete(key.clone(), timestamp, context)?;
        self.log.append(key, None, Some(timestamp));
        Ok(before)
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<VersionedRecord>> {
        self.inner.get(key)
    }

    fn get_as_of(&mut self, key: &[u8], as_of: Timestamp) -> Result<Option<VersionedRecord>> {
        self.inner.get_as_of(key, as_of)
    }
}
