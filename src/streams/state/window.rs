//! [`WindowTable`]: the rows of a window store, decoded, in memory, over the state file where there is one.
//!
//! Rules of visibility, refusal and listing stand in [`segments`](super::segments); this file maps windows onto them:
//! the row's time is the window start, the second number the sequence number of duplicates.

use super::{
    ChangelogRecord, Order, StateStore, ValueAndTimestamp, WindowRow, WindowStore,
    layout::{malformed, parse_window_key, restored_key, restored_value},
    segments::{Expiry, Row, Segments},
    sqlite::{StoreSnapshot, Unsaved},
};
use crate::streams::{
    error::Result,
    record::{ByteKey, ConsumerRecord, RecordContext, Timestamp},
    serdes::AnySerde,
};

/// Window rows in memory.
pub(super) struct WindowTable {
    name: String,
    value_serde: AnySerde,
    duplicates: bool,
    /// Sequence number of the last row put, where duplicates are kept; the first row has 1, as in Kafka Streams.
    seq: u32,
    rows: Segments,
    dropped: u64,
}

impl WindowTable {
    pub(super) fn new(name: &str, value_serde: AnySerde, duplicates: bool, rows: Segments) -> Result<Self> {
        let seq = rows.saved_seq()?;
        Ok(Self { name: name.to_owned(), value_serde, duplicates, seq, rows, dropped: 0 })
    }

    /// A null value where duplicates are kept: logged, but never put. In memory it counts as any other for observed time and expiry;
    /// a persistent store does not look at it.
    fn pass(&mut self, start: Timestamp) {
        if self.rows.expiry() == Expiry::Row && !self.rows.admit(start) {
            self.dropped += 1;
        }
    }

    fn set(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>, start: Timestamp, seq: u32) {
        if !self.rows.admit(start) {
            self.dropped += 1;
            return;
        }
        match value {
            Some(value) => {
                self.rows.weigh(&key, &value.value, &self.value_serde);
                self.rows.put(key, start, seq.into(), value);
            }
            None => self.rows.remove(&key, start, seq.into()),
        }
    }
}

fn window_row(key: ByteKey, row: Row) -> WindowRow {
    // Sequence numbers have 31 bits, so the cast loses nothing.
    WindowRow { key, start: row.time, seq: row.sub as u32, value: row.value }
}

impl StateStore for WindowTable {
    fn name(&self) -> &str {
        &self.name
    }

    fn drain_changelog(&mut self, _: &mut Vec<ChangelogRecord>) -> Result<()> {
        Ok(())
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        let dropped = self.dropped;
        for record in records {
            let bytes = restored_key(&self.name, record)?;
            let Some((key, start, seq)) = parse_window_key(bytes) else {
                return Err(malformed(&self.name, record, "its key is shorter than a window key"));
            };
            let value = restored_value(&self.name, &self.value_serde, record)?;
            if self.duplicates {
                self.seq = self.seq.max(seq);
                if value.is_none() {
                    self.pass(start);
                    continue;
                }
            }
            self.set(ByteKey::new(key), value, start, seq);
        }
        // They were counted when they were first refused.
        self.dropped = dropped;
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.discard_uncommitted()?;
        self.seq = self.rows.saved_seq()?;
        self.dropped = 0;
        Ok(())
    }

    fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn approximate_num_entries(&self) -> u64 {
        self.rows.len()
    }

    fn unsaved(&self) -> Unsaved {
        self.rows.unsaved()
    }

    fn snapshot(&mut self) -> Result<Option<StoreSnapshot>> {
        self.rows.drop_empty()?;
        Ok(self.rows.snapshot(self.seq))
    }

    fn mark_saved(&mut self) {
        self.rows.mark_saved();
    }

    fn expire_by(&mut self, watermark: Timestamp) {
        self.rows.expire_by(watermark);
    }
}

impl WindowStore for WindowTable {
    fn fetch(&mut self, key: &[u8], start: Timestamp) -> Result<Option<ValueAndTimestamp>> {
        self.rows.get(key, start, 0)
    }

    fn put(
        &mut self,
        key: ByteKey,
        value: Option<ValueAndTimestamp>,
        start: Timestamp,
        _: &RecordContext,
    ) -> Result<()> {
        if self.duplicates {
            // 31 bits, as Java counts it. A null takes a number, too: it is logged, though nothing is stored.
            self.seq = (self.seq + 1) & 0x7fff_ffff;
            if value.is_none() {
                self.pass(start);
                return Ok(());
            }
        }
        self.set(key, value, start, self.seq);
        Ok(())
    }

    fn fetch_range(
        &mut self,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
        order: Order,
    ) -> Result<Vec<WindowRow>> {
        let rows = self.rows.of_key(key, from, to)?.into_iter();
        let mut rows: Vec<_> = rows.map(|row| window_row(ByteKey::new(key), row)).collect();
        if order == Order::Backward {
            rows.reverse();
        }
        Ok(rows)
    }

    fn fetch_all(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>> {
        let from = from.max(self.rows.visible_from());
        Ok(self.rows.list(from, to)?.into_iter().map(|(key, row)| window_row(key, row)).collect())
    }

    fn all(&mut self) -> Result<Vec<WindowRow>> {
        self.fetch_all(0, Timestamp::MAX)
    }

    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<WindowRow>> {
        let from = from.max(self.rows.visible_from());
        let rows = self.rows.list(from, to)?.into_iter();
        let mut rows: Vec<_> = rows.map(|(key, row)| window_row(key, row)).collect();
        // In order already where the store lists by time; the sort is stable and keeps sequence numbers in order.
        rows.sort_by(|a, b| (a.start, &a.key).cmp(&(b.start, &b.key)));
        Ok(rows)
    }

    fn observed_stream_time(&self) -> Timestamp {
        self.rows.observed()
    }

    fn last_seq(&self) -> u32 {
        self.seq
    }
}
