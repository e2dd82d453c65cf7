//! Aggregation into tumbling, hopping and unlimited windows (Kafka's `KStreamWindowAggregate`).
//!
//! A record with a null key is dropped; a null value is handed to the aggregator. A window is updated while
//! `end > stream time - grace`; each window that is not is counted as dropped.

use std::{cell::Cell, sync::Arc};

use super::{
    functions::{Aggregator, Initializer},
    table::TableProcessor,
    table_store::key_bytes,
    value_getter::ValueGetterSupplier,
    window::{EmitStrategy, Windows},
    window_emit::{EmitOnClose, ResultTime, WindowForwarder, old_value},
    window_getter,
    windowed::{UnwindowKey, Window, WindowKey},
};
use crate::streams::{
    config::Semantics,
    error::Result,
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, ProcessorSupplier},
    record::{AnyRecord, Headers, Timestamp},
    state::ValueAndTimestamp,
};

/// Descriptor of a time-windowed aggregation.
#[derive(Clone)]
pub(crate) struct WindowAggregate {
    pub windows: Windows,
    pub strategy: EmitStrategy,
    pub store: String,
    pub initializer: Initializer,
    pub aggregator: Aggregator,
    pub window_key: WindowKey,
    pub unwindow_key: UnwindowKey,
    pub send_old_values: Cell<bool>,
}

impl TableProcessor for WindowAggregate {
    fn supplier(&self) -> ProcessorSupplier {
        let windows = self.windows;
        let parts = Parts {
            strategy: self.strategy,
            store: self.store.clone(),
            initializer: self.initializer.clone(),
            aggregator: self.aggregator.clone(),
            window_key: self.window_key,
            send_old_values: self.send_old_values.get(),
        };
        match windows {
            Windows::Sliding(sliding) => super::sliding_aggregate::supplier(sliding, parts),
            Windows::Time(_) | Windows::Unlimited(_) => Arc::new(move || {
                Box::new(WindowAggregateProcessor { windows, parts: parts.clone(), live: None })
            }),
        }
    }

    fn view(&self) -> ValueGetterSupplier {
        window_getter::of_window_store(&self.store, self.unwindow_key)
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        self.send_old_values.set(true);
        true
    }
}

/// What both kinds of processors are made from.
#[derive(Clone)]
pub(crate) struct Parts {
    pub strategy: EmitStrategy,
    pub store: String,
    pub initializer: Initializer,
    pub aggregator: Aggregator,
    pub window_key: WindowKey,
    pub send_old_values: bool,
}

/// A processor's connections, made at init.
pub(crate) struct Live {
    pub forwarder: WindowForwarder,
    pub emit: EmitOnClose,
    observed: ClockId,
}

impl Live {
    pub(super) fn new(context: NodeContext<'_>, parts: &Parts) -> Result<Self> {
        let Parts { store, window_key, send_old_values, strategy, .. } = parts;
        let forwarder = WindowForwarder::new(
            context,
            store,
            *window_key,
            *send_old_values,
            *strategy,
            ResultTime::Value,
        )?;
        Ok(Self { forwarder, emit: EmitOnClose::new(context), observed: observed_stream_time(context) })
    }

    /// The results of windows that are not closed are still to come, dated in them.
    pub(super) fn hold_open_windows(&self, context: NodeContext<'_>, size_ms: i64) {
        if self.forwarder.emits_on_close() {
            context.hold_watermark(self.emit.last(context).saturating_sub(size_ms));
        }
    }

    /// Moves the operator's stream time and returns it: the largest timestamp seen, or where watermarks are on, what the inputs vouch for.
    pub(super) fn observe(&self, context: NodeContext<'_>, timestamp: Timestamp) -> Timestamp {
        observe(context, self.observed, timestamp)
    }
}

/// The operator's stream time. Kafka forgets it at a restart; sluice does not.
pub(crate) fn observed_stream_time(context: NodeContext<'_>) -> ClockId {
    let clock = context.register_clock("observed_stream_time", -1);
    if context.semantics() == Semantics::Kafka43 {
        context.set_clock(clock, -1);
    }
    clock
}

/// See [`Live::observe`].
pub(crate) fn observe(context: NodeContext<'_>, clock: ClockId, timestamp: Timestamp) -> Timestamp {
    let observed = context.watermark().unwrap_or(timestamp).max(context.clock(clock));
    context.set_clock(clock, observed);
    observed
}

struct WindowAggregateProcessor {
    windows: Windows,
    parts: Parts,
    live: Option<Live>,
}

impl AnyProcessor for WindowAggregateProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.live = Some(Live::new(context, &self.parts)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        let live = self.live.as_mut().expect("init runs before the first record");
        let close_time = live.observe(context, record.timestamp).saturating_sub(self.windows.grace_ms());
        // Sluice emits before the record is stored: storing it may hide windows that have just closed (conformance §6.4).
        if context.semantics() == Semantics::Sluice {
            emit_closed(context, live, &self.windows, close_time, &record.headers)?;
        }
        let key = key_bytes(&live.forwarder.key_serde, record.key.as_ref())?;
        for window in self.windows.windows_for(record.timestamp) {
            if window.end <= close_time {
                context.drop_record(DropReason::Late);
                continue;
            }
            let store = live.forwarder.store;
            let row = context.with_window(store, |rows| rows.fetch(&key, window.start))?;
            let (stored, aggregate, timestamp) = match row {
                Some(row) => {
                    let timestamp = record.timestamp.max(row.timestamp);
                    (Some(row.value.clone()), Some(row.value), timestamp)
                }
                None => (None, (self.parts.initializer)()?, record.timestamp),
            };
            let new =
                (self.parts.aggregator)(record.key.as_ref(), record.value.as_ref(), aggregate.as_ref())?;
            let row = new.clone().map(|value| ValueAndTimestamp { value, timestamp });
            let at = context.record_context();
            context.with_window(store, |rows| rows.put(key.clone(), row, window.start, &at))?;
            let old = old_value(context, stored.as_ref(), aggregate.as_ref());
            let change = AnyRecord::change(record.key.clone(), new, old, timestamp, record.headers.clone());
            live.forwarder.update(context, window, change)?;
        }
        if context.semantics() == Semantics::Kafka43 {
            emit_closed(context, live, &self.windows, close_time, &record.headers)?;
        }
        Ok(())
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let close_time = live.observe(context, watermark).saturating_sub(self.windows.grace_ms());
        emit_closed(context, live, &self.windows, close_time, &Headers::EMPTY)?;
        live.hold_open_windows(context, self.windows.size_ms());
        Ok(())
    }
}

fn emit_closed(
    context: NodeContext<'_>,
    live: &mut Live,
    windows: &Windows,
    close_time: Timestamp,
    headers: &Headers,
) -> Result<()> {
    if !live.forwarder.emits_on_close() || !live.emit.is_due(context, close_time) {
        return Ok(());
    }
    let size = windows.size_ms();
    let upper = close_time.saturating_sub(size);
    if upper < 0 {
        return Ok(());
    }
    let last = live.emit.last(context);
    let lower = if last == -1 { 0 } else { (last - size).max(0) + 1 };
    // No window starts between what was read last and this: nothing to read, and the last close stays.
    if last != -1 && windows.windows_for(lower - 1) == windows.windows_for(upper) {
        return Ok(());
    }
    emit_range(context, live, (lower, upper), close_time, size, headers)
}

/// Forwards the rows whose windows start in the range, and notes how far that was.
pub(crate) fn emit_range(
    context: NodeContext<'_>,
    live: &Live,
    (lower, upper): (Timestamp, Timestamp),
    close_time: Timestamp,
    size: i64,
    headers: &Headers,
) -> Result<()> {
    for row in context.with_window(live.forwarder.store, |rows| rows.fetch_closed(lower, upper))? {
        let window = Window { start: row.start, end: row.start.saturating_add(size) };
        let result =
            AnyRecord::change(None, Some(row.value.value), None, row.value.timestamp, headers.clone());
        live.forwarder.close(context, &row.key, window, result)?;
    }
    live.emit.emitted(context, close_time);
    Ok(())
}
