//! The aggregation of a table: records (or partial results) into state, state into results.
//!
//! A window takes records until its end and grace are behind the clock. The clock is what all inputs vouch for where watermarks are on,
//! else the newest time seen here. What must always hold: a record counts in its window or is counted as late; a window's
//! final result leaves once, after everything that counts in it, and no running result follows it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    evaluated, key_of, row_of,
    table_state::{PartialState, TableState},
};
use crate::streams::{
    error::{Result, StreamsError},
    file::{
        expression::{Aggregate, Expression, Predicate},
        value::{DataType, Datum, Row},
        window::Windows,
    },
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, StoreId},
    record::{AnyRecord, ByteKey, Headers, Timestamp},
    state::ValueAndTimestamp,
};

/// A table, compiled; shared by the processors of all tasks.
pub struct TableSpec {
    /// Its store.
    pub store: String,
    /// Slots of the group key in the records.
    pub group_by: Vec<usize>,
    /// Types of the group key.
    pub key_types: Vec<DataType>,
    /// Windows; `None` aggregates over all time.
    pub windows: Option<Windows>,
    /// After a window's end, ms.
    pub grace_ms: i64,
    /// How long closed windows stay readable, ms.
    pub retention_ms: i64,
    /// Running results leave.
    pub on_update: bool,
    /// Final results leave.
    pub on_close: bool,
    /// Aggregates.
    pub aggregates: Arc<[Aggregate]>,
    /// Result columns.
    pub select: Vec<Expression>,
    /// Results to let through.
    pub having: Option<Predicate>,
}

impl TableSpec {
    /// The state before any record.
    pub fn empty(&self) -> TableState {
        TableState { revision: 0, states: self.aggregates.iter().map(Aggregate::init).collect() }
    }

    /// The window's start of a moment; 0 without windows.
    pub fn start_of(&self, time: Timestamp) -> Timestamp {
        self.windows.as_ref().map_or(0, |windows| windows.start_of(time))
    }

    /// Folds a record in. After an error the state is as before: first everything that may fail, then the rest.
    pub fn add(&self, state: &mut TableState, row: &Row, time: Timestamp) -> Result<()> {
        let mut values: SmallVec<[Option<Datum>; 8]> = SmallVec::new();
        for (aggregate, held) in self.aggregates.iter().zip(&state.states) {
            let value = evaluated(aggregate.value(row))?;
            if let Some(value) = &value {
                evaluated(aggregate.check(held, value))?;
            }
            values.push(value);
        }
        state.revision += 1;
        for ((aggregate, held), value) in self.aggregates.iter().zip(&mut state.states).zip(values) {
            if let Some(value) = value {
                aggregate.take(held, value, time);
            }
        }
        Ok(())
    }

    /// Folds a partial result in.
    fn merge(&self, state: &mut TableState, part: TableState) -> Result<()> {
        state.revision += part.revision;
        for ((aggregate, held), more) in self.aggregates.iter().zip(&mut state.states).zip(part.states) {
            evaluated(aggregate.merge(held, more))?;
        }
        Ok(())
    }

    /// The result row; `None` when `having` keeps it back.
    fn result(&self, key: &[u8], start: Timestamp, state: &TableState, last: bool) -> Result<Option<Row>> {
        let mut row = Row::with_capacity(self.key_types.len() + self.select.len() + 4);
        super::codec::read_key(&self.key_types, key, &mut row).ok_or_else(|| {
            StreamsError::fatal(format!("store {} holds a key of another shape", self.store))
        })?;
        if let Some(windows) = &self.windows {
            row.push(Datum::Timestamp(start));
            row.push(Datum::Timestamp(windows.end_of(start)));
        }
        let results: Row = self
            .aggregates
            .iter()
            .zip(&state.states)
            .map(|(aggregate, held)| aggregate.result(held))
            .collect();
        let before = row.clone();
        for expression in &self.select {
            row.push(evaluated(expression.evaluate(&before, &results))?);
        }
        if self.windows.is_some() {
            row.push(Datum::Bool(last));
            row.push(Datum::Int(state.revision));
        }
        match &self.having {
            Some(having) if !evaluated(having.holds(&row, &[]))? => Ok(None),
            _ => Ok(Some(row)),
        }
    }
}

/// The clocks of a table in one task, committed and rewound with its state.
#[derive(Clone, Copy)]
struct Clocks {
    /// Newest time seen here; the clock where watermarks are off.
    seen: ClockId,
    /// Windows that begin before this have left as final.
    closed: ClockId,
    /// Windows that begin before this are no longer kept.
    forgotten: ClockId,
}

/// See the module's documentation.
pub struct TableProcessor {
    spec: Arc<TableSpec>,
    ready: Option<(StoreId, Clocks)>,
}

impl TableProcessor {
    /// Runs a table in one task.
    pub fn new(spec: Arc<TableSpec>) -> Self {
        Self { spec, ready: None }
    }

    /// Emits and forgets what the clock has passed.
    fn advance(&self, context: NodeContext<'_>, clock: Timestamp) -> Result<()> {
        let Some(windows) = &self.spec.windows else { return Ok(()) };
        let (store, clocks) = super::ready(self.ready)?;
        // The window that holds this moment is the first that is still open.
        let open = windows.start_of(clock.saturating_sub(self.spec.grace_ms));
        let closed = context.clock(clocks.closed);
        if open > closed {
            if self.spec.on_close {
                let rows = context.with_window(store, |rows| rows.fetch_closed(closed, open - 1))?;
                for row in rows {
                    let Some(state) = row.value.value.downcast_ref::<TableState>() else { continue };
                    if let Some(result) = self.spec.result(&row.key, row.start, state, true)? {
                        self.forward(context, &row.key, result, row.value.timestamp, Headers::EMPTY)?;
                    }
                }
            }
            context.set_clock(clocks.closed, open);
        }
        let kept = windows.start_of(open.saturating_sub(self.spec.retention_ms));
        let forgotten = context.clock(clocks.forgotten);
        if kept > forgotten {
            let at = context.record_context();
            context.with_window(store, |rows| {
                for row in rows.fetch_closed(forgotten, kept - 1)? {
                    rows.put(row.key, None, row.start, &at)?;
                }
                Ok(())
            })?;
            context.set_clock(clocks.forgotten, kept);
        }
        Ok(())
    }

    fn forward(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        row: Row,
        timestamp: Timestamp,
        headers: Headers,
    ) -> Result<()> {
        context.forward(AnyRecord::new(Some(Arc::new(key.to_vec())), Some(Arc::new(row)), timestamp, headers))
    }

    /// Folds what came into the state at (key, start); returns the new state and its time.
    fn update(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        start: Timestamp,
        fold: impl FnOnce(&mut TableState) -> Result<()>,
        time: Timestamp,
    ) -> Result<(Arc<TableState>, Timestamp)> {
        let (store, _) = super::ready(self.ready)?;
        let at = context.record_context();
        let step = |held: Option<ValueAndTimestamp>| -> Result<(Arc<TableState>, ValueAndTimestamp)> {
            let time = held.as_ref().map_or(time, |held| held.timestamp.max(time));
            let mut state = held
                .and_then(|held| held.value.downcast::<TableState>().ok())
                .map_or_else(|| self.spec.empty(), Arc::unwrap_or_clone);
            fold(&mut state)?;
            let state = Arc::new(state);
            Ok((state.clone(), ValueAndTimestamp { value: state, timestamp: time }))
        };
        if self.spec.windows.is_some() {
            context.with_window(store, |rows| {
                let (state, value) = step(rows.fetch(key, start)?)?;
                let time = value.timestamp;
                rows.put(ByteKey::new(key), Some(value), start, &at)?;
                Ok((state, time))
            })
        } else {
            context.with_key_value(store, |rows| {
                let (state, value) = step(rows.get(key)?)?;
                let time = value.timestamp;
                rows.put(ByteKey::new(key), Some(value), &at)?;
                Ok((state, time))
            })
        }
    }

    fn is_late(&self, start: Timestamp, clock: Timestamp) -> bool {
        let Some(windows) = &self.spec.windows else { return false };
        windows.end_of(start).saturating_add(self.spec.grace_ms) <= clock
    }
}

impl AnyProcessor for TableProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let clocks = Clocks {
            seen: context.register_clock("seen", -1),
            closed: context.register_clock("closed", i64::MIN),
            forgotten: context.register_clock("forgotten", i64::MIN),
        };
        self.ready = Some((context.store(&self.spec.store)?, clocks));
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (_, clocks) = super::ready(self.ready)?;
        let partial = record.value.as_ref().and_then(|value| value.downcast_ref::<PartialState>());
        let (key, start, time, records) = match partial {
            Some(partial) => {
                let Some(key) = record.key.as_ref().and_then(|key| key.downcast_ref::<Vec<u8>>()) else {
                    return Err(StreamsError::fatal("a partial result has no key"));
                };
                (key.clone(), partial.start, partial.time, partial.state.revision)
            }
            None => {
                let row = row_of(&record)?;
                let Some(key) = key_of(self.spec.group_by.iter().map(|slot| &row[*slot])) else {
                    context.drop_record(DropReason::NullKey);
                    return Ok(());
                };
                (key, self.spec.start_of(record.timestamp), record.timestamp, 1)
            }
        };
        let seen = context.clock(clocks.seen).max(time);
        context.set_clock(clocks.seen, seen);
        let watermark = context.watermark();
        if self.is_late(start, watermark.unwrap_or(seen)) {
            for _ in 0..records {
                context.drop_record(DropReason::Late);
            }
        } else {
            let fold = |state: &mut TableState| match partial {
                Some(partial) => self.spec.merge(state, partial.state.clone()),
                None => self.spec.add(state, row_of(&record)?, time),
            };
            let (state, time) = self.update(context, &key, start, fold, time)?;
            if self.spec.on_update
                && let Some(result) = self.spec.result(&key, start, &state, false)?
            {
                self.forward(context, &key, result, time, record.headers)?;
            }
        }
        if watermark.is_none() { self.advance(context, seen) } else { Ok(()) }
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        self.advance(context, watermark)
    }
}
