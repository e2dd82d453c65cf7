//! The aggregation of a table into sliding windows: one ends with every record, and one begins right behind every record, if there is
//! something in it (Kafka's sliding windows).
//!
//! Each window has a state of its own, so a record costs as many folds as there are windows around it; a new window takes over the state
//! of one that held the same records before. What must always hold: a window's state is that of the records from its start to its
//! end, both included.

use std::sync::Arc;

use super::{
    key_of, row_of,
    table::{Clocks, TableSpec},
    table_state::TableState,
};
use crate::streams::{
    error::Result,
    file::window::Windows,
    processor::{AnyProcessor, DropReason, NodeContext, StoreId},
    record::{AnyRecord, ByteKey, Timestamp},
    state::{Order, ValueAndTimestamp, WindowRow},
};

/// See the module's documentation.
pub(super) struct SlidingProcessor {
    spec: Arc<TableSpec>,
    size_ms: i64,
    ready: Option<(StoreId, Clocks)>,
}

/// A state, and the time of the newest record in it.
type Held = (Arc<TableState>, Timestamp);

fn held(row: &WindowRow) -> Option<Held> {
    let state = row.value.value.clone().downcast::<TableState>().ok()?;
    Some((state, row.value.timestamp))
}

impl SlidingProcessor {
    /// Runs a table in one task.
    pub(super) fn new(spec: Arc<TableSpec>, size_ms: i64) -> Self {
        Self { spec, size_ms, ready: None }
    }

    /// The windows that change, by their start: the state before, and whether the record is in it. In the order in which they are
    /// found, which is that of Kafka Streams.
    fn changes(&self, rows: &[WindowRow], time: Timestamp) -> Vec<(Timestamp, Option<Held>, bool)> {
        let size = self.size_ms;
        let mut changes = Vec::new();
        // The record before this one, as far as it is in reach.
        let mut previous: Option<Timestamp> = None;
        let (mut left, mut right): (Option<Held>, Option<Held>) = (None, None);
        let (mut left_exists, mut right_exists, mut here_before) = (false, false, false);
        for row in rows.iter().rev() {
            let Some(window) = held(row) else { continue };
            let (end, newest) = (row.start.saturating_add(size), window.1);
            if row.start == time + 1 {
                right_exists = true;
            } else if end > time {
                right.get_or_insert_with(|| window.clone());
                changes.push((row.start, Some(window), true));
            } else if end == time {
                left_exists = true;
                here_before = newest == time;
                if newest < time {
                    previous = Some(newest);
                }
                changes.push((row.start, Some(window), true));
                if here_before {
                    break;
                }
            } else {
                previous = Some(newest);
                left = Some(window);
                break;
            }
        }
        if here_before {
            // There was a record at this very time: every window there can be exists.
            return changes;
        }
        let exists = |start: Timestamp| rows.iter().any(|row| row.start == start);
        if let Some(behind) = previous.map(|previous| previous + 1)
            && !exists(behind)
            && behind.saturating_add(size) >= time
        {
            changes.push((behind, None, true));
        }
        let start = time.saturating_sub(size);
        if !left_exists {
            let reaches = previous.is_some_and(|previous| previous >= start);
            changes.push((start, left.filter(|_| reaches), true));
        }
        // What comes behind the record was in the newest window around it.
        if !right_exists && let Some(right) = right.filter(|(_, newest)| *newest > time) {
            changes.push((time + 1, Some(right), false));
        }
        changes
    }

    fn add(&self, context: NodeContext<'_>, key: &[u8], record: &AnyRecord, clock: Timestamp) -> Result<()> {
        let (store, _) = super::ready(self.ready)?;
        let time = record.timestamp;
        let from = time.saturating_sub(self.size_ms.saturating_mul(2));
        let rows = context
            .with_window(store, |rows| rows.fetch_range(key, from, time.saturating_add(1), Order::Forward))?;
        // First everything that may fail: a record is in all of its windows or in none.
        let mut changed = Vec::new();
        for (start, before, takes) in self.changes(&rows, time) {
            if self.spec.is_late(start, clock) {
                continue;
            }
            let (mut state, mut newest) = match &before {
                Some((state, newest)) => ((**state).clone(), *newest),
                None => (self.spec.empty(), time),
            };
            if takes {
                self.spec.add(&mut state, row_of(record)?, time)?;
                newest = newest.max(time);
            }
            changed.push((start, before, Arc::new(state), newest));
        }
        if changed.is_empty() {
            context.drop_record(DropReason::Late);
        }
        let at = context.record_context();
        for (start, before, state, newest) in changed {
            let value = ValueAndTimestamp { value: state.clone(), timestamp: newest };
            context.with_window(store, |rows| rows.put(ByteKey::new(key), Some(value), start, &at))?;
            // A state that was taken over from another window is nothing that this window had.
            let known = rows.iter().any(|row| row.start == start);
            let before = before.as_ref().filter(|_| known).map(|(state, _)| state.as_ref());
            let place = self.spec.place(key, start);
            self.spec.send_update(context, place, before, (&state, newest), record.headers.clone())?;
        }
        Ok(())
    }
}

impl AnyProcessor for SlidingProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.ready = Some((context.store(&self.spec.store)?, Clocks::register(context)));
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (_, clocks) = super::ready(self.ready)?;
        let row = row_of(&record)?;
        let Some(key) = key_of(self.spec.group_by.iter().map(|slot| &row[*slot])) else {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        };
        let clock = clocks.observe(context, record.timestamp);
        self.add(context, &key, &record, clock)?;
        if context.watermark().is_none() { self.watermark_advanced(context, clock) } else { Ok(()) }
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let windows = Windows::Sliding { size_ms: self.size_ms };
        self.spec.close(context, &windows, super::ready(self.ready)?, watermark)
    }
}
