//! [`SessionTable`]: the rows of a session store, decoded, in memory, over the state file where there is one.
//!
//! Rules of visibility, refusal and listing stand in [`segments`](super::segments); this file maps sessions onto them:
//! the row's time is the session's *end*, the second number its start.

use std::cmp::Ordering;

use super::{
    ChangelogRecord, SessionRow, SessionStore, StateStore, ValueAndTimestamp,
    layout::{malformed, parse_session_key, restored_key, restored_value},
    segments::{Expiry, Row, Segments},
    sqlite::{StoreSnapshot, Unsaved},
};
use crate::streams::{
    error::Result,
    record::{AnyValue, ByteKey, ConsumerRecord, RecordContext, Timestamp},
    serdes::AnySerde,
};

/// Session rows in memory.
pub(super) struct SessionTable {
    name: String,
    value_serde: AnySerde,
    rows: Segments,
    dropped: u64,
}

impl SessionTable {
    pub(super) fn new(name: &str, value_serde: AnySerde, rows: Segments) -> Self {
        Self { name: name.to_owned(), value_serde, rows, dropped: 0 }
    }

    fn set(&mut self, key: ByteKey, start: Timestamp, end: Timestamp, value: Option<AnyValue>) {
        match (self.rows.admit(end), value) {
            // A session's value has no timestamp of its own; its end stands for it.
            (true, Some(value)) => {
                self.rows.weigh(&key, &value, &self.value_serde);
                self.rows.put(key, end, start, ValueAndTimestamp { value, timestamp: end });
            }
            // Removing a session that is gone already is no loss, so it is not counted.
            (_, None) => self.rows.remove(&key, end, start),
            (false, Some(_)) => self.dropped += 1,
        }
    }
}

/// The order of an emission scan: by end, then start, then key; in memory by end, key, start.
pub(super) fn closed_order(expiry: Expiry) -> fn(&SessionRow, &SessionRow) -> Ordering {
    match expiry {
        Expiry::Segment => |a, b| (a.end, a.start, &a.key).cmp(&(b.end, b.start, &b.key)),
        Expiry::Row => |a, b| (a.end, &a.key, a.start).cmp(&(b.end, &b.key, b.start)),
    }
}

/// The order of a listing: by segment, then key, end, start; in memory by end, key, start.
pub(super) fn listing_order(
    expiry: Expiry,
    interval_ms: i64,
) -> impl Fn(&SessionRow, &SessionRow) -> Ordering {
    move |a, b| match expiry {
        Expiry::Segment => {
            let segment = |row: &SessionRow| row.end / interval_ms;
            (segment(a), &a.key, a.end, a.start).cmp(&(segment(b), &b.key, b.end, b.start))
        }
        Expiry::Row => (a.end, &a.key, a.start).cmp(&(b.end, &b.key, b.start)),
    }
}

fn session_row(key: ByteKey, row: Row) -> SessionRow {
    SessionRow { key, start: row.sub, end: row.time, value: row.value.value }
}

impl StateStore for SessionTable {
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
            let Some((key, start, end)) = parse_session_key(bytes) else {
                return Err(malformed(&self.name, record, "its key is shorter than a session key"));
            };
            let value = restored_value(&self.name, &self.value_serde, record)?;
            self.set(ByteKey::new(key), start, end, value.map(|value| value.value));
        }
        // They were counted when they were first refused.
        self.dropped = dropped;
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.dropped = 0;
        self.rows.discard_uncommitted()
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
        Ok(self.rows.snapshot(0))
    }

    fn mark_saved(&mut self) {
        self.rows.mark_saved();
    }

    fn expire_by(&mut self, watermark: Timestamp) {
        self.rows.expire_by(watermark);
    }
}

impl SessionStore for SessionTable {
    fn find_sessions(
        &mut self,
        key: &[u8],
        earliest_end: Timestamp,
        latest_start: Timestamp,
    ) -> Result<Vec<SessionRow>> {
        let rows = self.rows.of_key(key, earliest_end, Timestamp::MAX)?.into_iter();
        let rows = rows.filter(|row| row.sub <= latest_start);
        Ok(rows.map(|row| session_row(ByteKey::new(key), row)).collect())
    }

    fn fetch_session(&mut self, key: &[u8], start: Timestamp, end: Timestamp) -> Result<Option<AnyValue>> {
        Ok(self.rows.get(key, end, start)?.map(|value| value.value))
    }

    fn put(
        &mut self,
        key: ByteKey,
        start: Timestamp,
        end: Timestamp,
        value: Option<AnyValue>,
        _: &RecordContext,
    ) -> Result<()> {
        self.set(key, start, end, value);
        Ok(())
    }

    fn fetch_closed(&mut self, from: Timestamp, to: Timestamp) -> Result<Vec<SessionRow>> {
        let from = match self.rows.expiry() {
            // Only whole segments are gone for this scan (conformance README 6.4).
            Expiry::Segment => from,
            Expiry::Row => from.max(self.rows.visible_from()),
        };
        let rows = self.rows.list(from.max(0), to)?.into_iter();
        let mut rows: Vec<_> = rows.map(|(key, row)| session_row(key, row)).collect();
        rows.sort_by(closed_order(self.rows.expiry()));
        Ok(rows)
    }

    fn all(&mut self) -> Result<Vec<SessionRow>> {
        let from = self.rows.visible_from().max(0);
        let rows = self.rows.list(from, Timestamp::MAX)?.into_iter();
        let mut rows: Vec<_> = rows.map(|(key, row)| session_row(key, row)).collect();
        rows.sort_by(listing_order(self.rows.expiry(), self.rows.interval_ms()));
        Ok(rows)
    }
}
