//! Aggregation into sessions (Kafka's `KStreamSessionWindowAggregate`).
//!
//! A record joins the sessions of its key within the gap into one: they are removed (a tombstone each) and the merged session is put.
//! Where nothing is merged but a session of the record's own time is found, it is overwritten without a tombstone.

use std::{cell::Cell, sync::Arc};

use super::{
    functions::{Aggregator, Initializer, Joiner},
    table::TableProcessor,
    table_store::key_bytes,
    value_getter::ValueGetterSupplier,
    window::{EmitStrategy, SessionWindows},
    window_aggregate::{observe, observed_stream_time},
    window_emit::{EmitOnClose, ResultTime, WindowForwarder},
    window_getter,
    windowed::{UnwindowKey, Window, WindowKey},
};
use crate::streams::{
    config::Semantics,
    error::Result,
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, ProcessorSupplier},
    record::{AnyRecord, Headers, Timestamp},
};

/// Descriptor of a session aggregation.
#[derive(Clone)]
pub(crate) struct SessionAggregate {
    pub windows: SessionWindows,
    pub strategy: EmitStrategy,
    pub store: String,
    pub initializer: Initializer,
    pub aggregator: Aggregator,
    /// `(key, aggregate, aggregate of a session) -> aggregate`
    pub merger: Joiner,
    pub window_key: WindowKey,
    pub unwindow_key: UnwindowKey,
    pub send_old_values: Cell<bool>,
}

impl TableProcessor for SessionAggregate {
    fn supplier(&self) -> ProcessorSupplier {
        let parts = SessionAggregateParts {
            windows: self.windows,
            strategy: self.strategy,
            store: self.store.clone(),
            initializer: self.initializer.clone(),
            aggregator: self.aggregator.clone(),
            merger: self.merger.clone(),
            window_key: self.window_key,
            send_old_values: self.send_old_values.get(),
        };
        Arc::new(move || Box::new(SessionAggregateProcessor { parts: parts.clone(), live: None }))
    }

    fn view(&self) -> ValueGetterSupplier {
        window_getter::of_session_store(&self.store, self.unwindow_key)
    }

    fn enable_sending_old_values(&self, _: bool) -> bool {
        self.send_old_values.set(true);
        true
    }
}

#[derive(Clone)]
struct SessionAggregateParts {
    windows: SessionWindows,
    strategy: EmitStrategy,
    store: String,
    initializer: Initializer,
    aggregator: Aggregator,
    merger: Joiner,
    window_key: WindowKey,
    send_old_values: bool,
}

struct Live {
    forwarder: WindowForwarder,
    emit: EmitOnClose,
    observed: ClockId,
}

struct SessionAggregateProcessor {
    parts: SessionAggregateParts,
    live: Option<Live>,
}

impl SessionAggregateProcessor {
    fn close_time(&self, observed: Timestamp) -> Timestamp {
        let SessionWindows { gap_ms, grace_ms } = self.parts.windows;
        observed.saturating_sub(grace_ms).saturating_sub(gap_ms)
    }
}

impl AnyProcessor for SessionAggregateProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let SessionAggregateParts { store, window_key, send_old_values, strategy, .. } = &self.parts;
        let time = ResultTime::WindowEnd;
        let forwarder = WindowForwarder::new(context, store, *window_key, *send_old_values, *strategy, time)?;
        let emit = EmitOnClose::new(context);
        self.live = Some(Live { forwarder, emit, observed: observed_stream_time(context) });
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        if record.key.is_none() {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        let live = self.live.as_ref().expect("init runs before the first record");
        let close_time = self.close_time(observe(context, live.observed, record.timestamp));
        let sluice = context.semantics() == Semantics::Sluice;
        // Sluice emits before the record is stored: storing it may hide sessions that have just closed (conformance §6.4).
        if sluice {
            self.emit_closed(context, close_time, &record.headers)?;
        }
        self.merge(context, &record, close_time)?;
        if !sluice {
            self.emit_closed(context, close_time, &record.headers)?;
        }
        Ok(())
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let close_time = self.close_time(observe(context, live.observed, watermark));
        self.emit_closed(context, close_time, &Headers::EMPTY)?;
        if let Some(live) = self.live.as_ref().filter(|live| live.forwarder.emits_on_close()) {
            // A session's result is dated at its end, and what ended before the last close has left.
            context.hold_watermark(live.emit.last(context));
        }
        Ok(())
    }
}

impl SessionAggregateProcessor {
    fn merge(&self, context: NodeContext<'_>, record: &AnyRecord, close_time: Timestamp) -> Result<()> {
        let live = self.live.as_ref().expect("init runs before the first record");
        let (store, at, gap) = (live.forwarder.store, record.timestamp, self.parts.windows.gap_ms);
        let key = key_bytes(&live.forwarder.key_serde, record.key.as_ref())?;
        let found = context.with_session(store, |rows| rows.find_sessions(&key, at - gap, at + gap))?;
        let mut merged = Window { start: at, end: at };
        let mut aggregate = (self.parts.initializer)()?;
        for session in &found {
            aggregate = (self.parts.merger)(record.key.as_ref(), aggregate.as_ref(), Some(&session.value))?;
            merged = Window { start: merged.start.min(session.start), end: merged.end.max(session.end) };
        }
        if merged.end < close_time || (context.semantics() == Semantics::Sluice && merged.end == close_time) {
            // Exactly on the boundary Kafka accepts the record although the session's earlier content is out of sight, and so
            // starts it anew; sluice refuses it: its final result is out.
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let record_context = context.record_context();
        if merged != (Window { start: at, end: at }) {
            for session in found {
                let Window { start, end } = Window { start: session.start, end: session.end };
                context
                    .with_session(store, |rows| rows.put(key.clone(), start, end, None, &record_context))?;
                let gone =
                    AnyRecord::change(record.key.clone(), None, Some(session.value), end, Headers::EMPTY);
                live.forwarder.update(context, Window { start, end }, gone)?;
            }
        }
        let new = (self.parts.aggregator)(record.key.as_ref(), record.value.as_ref(), aggregate.as_ref())?;
        context.with_session(store, |rows| {
            rows.put(key.clone(), merged.start, merged.end, new.clone(), &record_context)
        })?;
        // Kafka makes a fresh record here: its headers are empty.
        let change = AnyRecord::change(record.key.clone(), new, None, merged.end, Headers::EMPTY);
        live.forwarder.update(context, merged, change)
    }

    fn emit_closed(
        &mut self,
        context: NodeContext<'_>,
        close_time: Timestamp,
        headers: &Headers,
    ) -> Result<()> {
        let Some(live) = &mut self.live else { return Ok(()) };
        if !live.forwarder.emits_on_close() || !live.emit.is_due(context, close_time) {
            return Ok(());
        }
        // Ends are inclusive: a session is closed when its end lies before the close time.
        let upper = close_time - 1;
        if upper < 0 {
            return Ok(());
        }
        let lower = live.emit.last(context).max(0);
        for row in context.with_session(live.forwarder.store, |rows| rows.fetch_closed(lower, upper))? {
            let window = Window { start: row.start, end: row.end };
            let result = AnyRecord::change(None, Some(row.value), None, row.end, headers.clone());
            live.forwarder.close(context, &row.key, window, result)?;
        }
        live.emit.emitted(context, close_time);
        Ok(())
    }
}
