//! Aggregation into sliding windows (Kafka's `KStreamSlidingWindowAggregate`): windows are made by the records in them.
//!
//! Each record has a *left* window that ends with it and may have a *right* one that starts right behind it; a record updates the
//! windows it falls into and creates those that its coming makes different from what exists. The order of writes is Kafka's.

use std::{collections::HashSet, sync::Arc};

use super::{
    table_store::key_bytes,
    window::SlidingWindows,
    window_aggregate::{Live, Parts, emit_range},
    window_emit::old_value,
    windowed::Window,
};
use crate::streams::{
    config::Semantics,
    error::{ProcessingError, Result},
    processor::{AnyProcessor, DropReason, NodeContext, ProcessorSupplier},
    record::{AnyRecord, ByteKey, Headers, Timestamp},
    state::{Order, ValueAndTimestamp, WindowRow},
};

pub(crate) fn supplier(windows: SlidingWindows, parts: Parts) -> ProcessorSupplier {
    Arc::new(move || Box::new(SlidingAggregateProcessor { windows, parts: parts.clone(), live: None }))
}

struct SlidingAggregateProcessor {
    windows: SlidingWindows,
    parts: Parts,
    live: Option<Live>,
}

impl AnyProcessor for SlidingAggregateProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.live = Some(Live::new(context, &self.parts)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() || record.value.is_none() {
            let reason = if record.key.is_none() { DropReason::NullKey } else { DropReason::NullValue };
            context.drop_record(reason);
            return Ok(());
        }
        let live = self.live.as_mut().expect("init runs before the first record");
        let close_time = live.observe(context, record.timestamp).saturating_sub(self.windows.grace_ms);
        let sluice = context.semantics() == Semantics::Sluice;
        // Sluice emits before the record is stored: storing it may hide windows that have just closed (conformance §6.4).
        if sluice {
            emit_closed(context, live, &self.windows, close_time, &record.headers)?;
        }
        let difference = self.windows.difference_ms;
        // The last window the record could be in is its right one.
        if record.timestamp.saturating_add(1).saturating_add(difference) <= close_time {
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let key = key_bytes(&live.forwarder.key_serde, record.key.as_ref())?;
        let headers = record.headers.clone();
        let arrival = Arrival { context, live, parts: &self.parts, difference, close_time, key, record };
        if arrival.record.timestamp < difference {
            return arrival.early();
        }
        arrival.usual()?;
        if !sluice {
            emit_closed(context, live, &self.windows, close_time, &headers)?;
        }
        Ok(())
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let close_time = live.observe(context, watermark).saturating_sub(self.windows.grace_ms);
        emit_closed(context, live, &self.windows, close_time, &Headers::EMPTY)?;
        live.hold_open_windows(context, self.windows.difference_ms);
        Ok(())
    }
}

fn emit_closed(
    context: NodeContext<'_>,
    live: &mut Live,
    windows: &SlidingWindows,
    close_time: Timestamp,
    headers: &Headers,
) -> Result<()> {
    if !live.forwarder.emits_on_close() || !live.emit.is_due(context, close_time) {
        return Ok(());
    }
    let size = windows.difference_ms;
    // Ends are inclusive: a window is closed when its end lies before the close time.
    let upper = close_time.saturating_sub(size) - 1;
    if upper < 0 {
        return Ok(());
    }
    let last = live.emit.last(context);
    let lower = if last == -1 { 0 } else { (last - size).max(0) };
    emit_range(context, live, (lower, upper), close_time, size, headers)
}

/// One record on its way into the windows of its key.
struct Arrival<'a> {
    context: NodeContext<'a>,
    live: &'a Live,
    parts: &'a Parts,
    difference: i64,
    close_time: Timestamp,
    key: ByteKey,
    record: AnyRecord,
}

impl Arrival<'_> {
    fn at(&self) -> Timestamp {
        self.record.timestamp
    }

    fn fetch(&self, order: Order) -> Result<Vec<WindowRow>> {
        let from = (self.at() - 2 * self.difference).max(0);
        // One more than the record's time, to meet its right window without another read.
        let to = self.at() + 1;
        self.context
            .with_window(self.live.forwarder.store, |rows| rows.fetch_range(&self.key, from, to, order))
    }

    /// A record later than the first `difference` milliseconds: scans the windows around it, newest first.
    fn usual(&self) -> Result<()> {
        let mut starts = HashSet::new();
        let mut left: Option<ValueAndTimestamp> = None;
        let mut right: Option<ValueAndTimestamp> = None;
        let mut left_exists = false;
        let mut right_exists = false;
        let mut previous: Option<Timestamp> = None;
        for row in self.fetch(Order::Backward)? {
            starts.insert(row.start);
            let end = row.start + self.difference;
            let newest = row.value.timestamp;
            if row.start == self.at() + 1 {
                right_exists = true;
            } else if end > self.at() {
                right.get_or_insert_with(|| row.value.clone());
                self.put(row.start, Some(row.value), true)?;
            } else if end == self.at() {
                left_exists = true;
                if newest < self.at() {
                    previous = Some(newest);
                }
                self.put(row.start, Some(row.value), true)?;
                if newest == self.at() {
                    return Ok(()); // An equal timestamp was here before: every window there can be exists.
                }
            } else {
                left = Some(row.value);
                previous = Some(newest);
                break;
            }
        }
        if let Some(previous) = previous
            && !starts.contains(&(previous + 1))
            && previous + 1 + self.difference >= self.at()
        {
            self.put_new(previous + 1)?;
        }
        if !left_exists {
            if self.difference == 0 && self.context.semantics() == Semantics::Kafka43 {
                // Kafka makes windows of no length, and cannot make a window object of them.
                let message = "Window endMs must be greater than window startMs.";
                return Err(ProcessingError::new("IllegalArgumentException", message).into());
            }
            let start = self.at() - self.difference;
            match left {
                Some(left) if previous.is_some_and(|previous| previous >= start) => {
                    self.put(start, Some(ValueAndTimestamp { timestamp: self.at(), ..left }), false)?;
                }
                _ => self.put_new(start)?,
            }
        }
        if !right_exists {
            self.put_right_window(right)?;
        }
        Ok(())
    }

    /// A record in the first `difference` milliseconds: its left window would start before the epoch, so one window `[0, difference]`
    /// holds all such records.
    fn early(&self) -> Result<()> {
        let mut starts = HashSet::new();
        let mut combined: Option<ValueAndTimestamp> = None;
        let mut right: Option<ValueAndTimestamp> = None;
        let mut right_exists = false;
        let mut previous: Option<Timestamp> = None;
        for row in self.fetch(Order::Forward)? {
            starts.insert(row.start);
            if row.start == 0 {
                if row.value.timestamp < self.at() {
                    previous = Some(row.value.timestamp);
                }
                combined = Some(row.value);
            } else if row.start <= self.at() {
                right = Some(row.value.clone());
                self.put(row.start, Some(row.value), true)?;
            } else if row.start == self.at() + 1 {
                right_exists = true;
            }
        }
        // What is in the combined window and behind the record is exactly what its right window holds.
        if right.is_none() {
            right = combined.clone().filter(|combined| combined.timestamp > self.at());
        }
        if !right_exists {
            self.put_right_window(right)?;
        }
        if let Some(previous) = previous
            && !starts.contains(&(previous + 1))
        {
            self.put_new(previous + 1)?;
        }
        match combined {
            None => self.put_new(0),
            Some(combined) => self.put(0, Some(combined), true),
        }
    }

    /// The window that starts right behind the record, holding what was there before it came.
    fn put_right_window(&self, source: Option<ValueAndTimestamp>) -> Result<()> {
        let Some(source) = source.filter(|source| source.timestamp > self.at()) else { return Ok(()) };
        let start = self.at() + 1;
        let at = self.context.record_context();
        let row = Some(source.clone());
        self.context
            .with_window(self.live.forwarder.store, |rows| rows.put(self.key.clone(), row, start, &at))?;
        let change = AnyRecord::change(
            self.record.key.clone(),
            Some(source.value),
            None,
            source.timestamp,
            self.record.headers.clone(),
        );
        self.live.forwarder.update(self.context, self.window(start), change)
    }

    fn put_new(&self, start: Timestamp) -> Result<()> {
        let initial = (self.parts.initializer)()?;
        let row = initial.map(|value| ValueAndTimestamp { value, timestamp: self.at() });
        self.put(start, row, false)
    }

    fn window(&self, start: Timestamp) -> Window {
        Window { start, end: start + self.difference }
    }

    /// Adds the record to a window that holds `row` so far. `stored`: the row is in the store, not made for this record.
    fn put(&self, start: Timestamp, row: Option<ValueAndTimestamp>, stored: bool) -> Result<()> {
        let (context, record) = (self.context, &self.record);
        let window = self.window(start);
        if window.end < self.close_time {
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let aggregate = row.as_ref().map(|row| row.value.clone());
        let new = (self.parts.aggregator)(record.key.as_ref(), record.value.as_ref(), aggregate.as_ref())?;
        let timestamp = row.as_ref().map_or(self.at(), |row| row.timestamp.max(self.at()));
        let put = new.clone().map(|value| ValueAndTimestamp { value, timestamp });
        let at = context.record_context();
        context.with_window(self.live.forwarder.store, |rows| rows.put(self.key.clone(), put, start, &at))?;
        let known = aggregate.as_ref().filter(|_| stored);
        let old = old_value(context, known, aggregate.as_ref());
        let change = AnyRecord::change(record.key.clone(), new, old, timestamp, record.headers.clone());
        self.live.forwarder.update(context, window, change)
    }
}
