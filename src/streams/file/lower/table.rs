//! The aggregation of a table: records (or partial results) into state, state into results.
//!
//! A window takes records until its end and grace are behind the clock. The clock is what all inputs vouch for where watermarks are on,
//! else the newest time seen here. What must always hold: a record counts in its window or is counted as late; a window's
//! final result leaves once, after everything that counts in it, and no running result follows it.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{
    codec::write_key,
    evaluated, key_of,
    pending::{Pending, PendingRow},
    row_of,
    table_state::{PartialState, TableState},
};
use crate::streams::{
    error::{Result, StreamsError},
    file::{
        expression::{Aggregate, Expression, Predicate, Taken},
        value::{DataType, Datum, Row},
        window::{Starts, Windows},
    },
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, StoreId},
    record::{AnyRecord, AnyValue, ByteKey, Headers, Timestamp},
    state::ValueAndTimestamp,
};

/// A table, compiled; shared by the processors of all tasks.
pub(super) struct TableSpec {
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
    /// Whether changes say what they replace.
    pub with_old: bool,
    /// Whether records of one row and commit are folded in memory first.
    pub folds: bool,
}

/// What of a table is in one place: a key, and a window's start and shown end (0 without windows).
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The group key.
    pub key: &'a [u8],
    /// The window's start.
    pub start: Timestamp,
    /// The window's end as results show it.
    pub end: Timestamp,
}

impl TableSpec {
    /// The state before any record.
    pub(super) fn empty(&self) -> TableState {
        TableState { revision: 0, states: self.aggregates.iter().map(Aggregate::init).collect() }
    }

    /// The starts of the aligned windows that a moment is in; 0 without windows.
    pub(super) fn starts_of(&self, time: Timestamp) -> Starts {
        self.windows.as_ref().map_or_else(|| smallvec![0], |windows| windows.starts_of(time))
    }

    /// A key and an aligned or sliding window by its start.
    pub(super) fn place<'a>(&self, key: &'a [u8], start: Timestamp) -> Place<'a> {
        let end = self.windows.as_ref().map_or(0, |windows| windows.shown_end(start));
        Place { key, start, end }
    }

    /// Folds a record in. After an error the state is as before: first everything that may fail, then the rest.
    pub(super) fn add(&self, state: &mut TableState, row: &Row, time: Timestamp) -> Result<()> {
        let mut values: SmallVec<[Option<Taken>; 8]> = SmallVec::new();
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

    /// Folds another state in.
    pub(super) fn merge(&self, state: &mut TableState, part: TableState) -> Result<()> {
        state.revision += part.revision;
        for ((aggregate, held), more) in self.aggregates.iter().zip(&mut state.states).zip(part.states) {
            evaluated(aggregate.merge(held, more))?;
        }
        Ok(())
    }

    /// The result row; `None` when `having` keeps it back.
    pub(super) fn result(&self, place: Place<'_>, state: &TableState, last: bool) -> Result<Option<Row>> {
        let mut row = Row::with_capacity(self.key_types.len() + self.select.len() + 4);
        super::codec::read_key(&self.key_types, place.key, &mut row).ok_or_else(|| {
            StreamsError::fatal(format!("store {} holds a key of another shape", self.store))
        })?;
        if self.windows.is_some() {
            row.push(Datum::Timestamp(place.start));
            row.push(Datum::Timestamp(place.end));
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

    /// The row that a join finds under a key.
    pub(super) fn looked_up(
        &self,
        key: Option<&AnyValue>,
        held: Option<ValueAndTimestamp>,
    ) -> Result<Option<ValueAndTimestamp>> {
        let key = key.and_then(|key| key.downcast_ref::<Vec<u8>>());
        let (Some(key), Some(held)) = (key, held) else { return Ok(None) };
        let Some(state) = held.value.downcast_ref::<TableState>() else { return Ok(None) };
        let row = self.result(self.place(key, 0), state, false)?;
        Ok(row.map(|row| ValueAndTimestamp { value: Arc::new(row), timestamp: held.timestamp }))
    }

    /// Sends the running result after a change of the state; `before` is the state that it had.
    pub(super) fn send_update(
        &self,
        context: NodeContext<'_>,
        place: Place<'_>,
        before: Option<&TableState>,
        (state, time): (&TableState, Timestamp),
        headers: Headers,
    ) -> Result<()> {
        if !self.on_update {
            return Ok(());
        }
        let new = self.result(place, state, false)?;
        let old = match before {
            // What is no longer let through is taken back.
            Some(before) if self.with_old || new.is_none() => self.result(place, before, false)?,
            _ => None,
        };
        if new.is_none() && old.is_none() {
            return Ok(());
        }
        send(context, place.key, (new, old), time, headers)
    }

    /// Sends the last result of a window.
    pub(super) fn send_final(
        &self,
        context: NodeContext<'_>,
        place: Place<'_>,
        state: &TableState,
        time: Timestamp,
    ) -> Result<()> {
        match self.result(place, state, true)? {
            Some(result) => send(context, place.key, (Some(result), None), time, Headers::EMPTY),
            None => Ok(()),
        }
    }

    /// Sends the last results of what the clock has passed in a window store, and forgets what nobody may ask for any more.
    pub(super) fn close(
        &self,
        context: NodeContext<'_>,
        windows: &Windows,
        (store, clocks): (StoreId, Clocks),
        clock: Timestamp,
    ) -> Result<()> {
        let open = windows.first_open(clock.saturating_sub(self.grace_ms));
        let closed = context.clock(clocks.closed);
        if open > closed {
            if self.on_close {
                for row in context.with_window(store, |rows| rows.fetch_closed(closed, open - 1))? {
                    let Some(state) = row.value.value.downcast_ref::<TableState>() else { continue };
                    self.send_final(context, self.place(&row.key, row.start), state, row.value.timestamp)?;
                }
            }
            context.set_clock(clocks.closed, open);
        }
        if self.on_close {
            // The results of open windows are still to come, dated in them.
            context.hold_watermark(context.clock(clocks.closed));
        }
        let kept = windows.first_open(open.saturating_sub(self.retention_ms));
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

    /// Whether the window that begins there takes nothing any more.
    pub(super) fn is_late(&self, start: Timestamp, clock: Timestamp) -> bool {
        let Some(windows) = &self.windows else { return false };
        windows.end_of(start).saturating_add(self.grace_ms) <= clock
    }
}

/// Sends a change of a row.
pub(super) fn send(
    context: NodeContext<'_>,
    key: &[u8],
    (new, old): (Option<Row>, Option<Row>),
    time: Timestamp,
    headers: Headers,
) -> Result<()> {
    let erased = |row: Option<Row>| row.map(|row| Arc::new(row) as AnyValue);
    context.forward(AnyRecord::change(Some(Arc::new(key.to_vec())), erased(new), erased(old), time, headers))
}

/// The clocks of a table in one task, committed and rewound with its state.
#[derive(Clone, Copy)]
pub(super) struct Clocks {
    /// Newest time seen here; the clock where watermarks are off.
    pub seen: ClockId,
    /// Windows that begin (sessions: end) before this have left as final.
    pub closed: ClockId,
    /// Windows that begin (sessions: end) before this are no longer kept.
    pub forgotten: ClockId,
}

impl Clocks {
    /// Registers them.
    pub(super) fn register(context: NodeContext<'_>) -> Self {
        Clocks {
            seen: context.register_clock("seen", -1),
            closed: context.register_clock("closed", i64::MIN),
            forgotten: context.register_clock("forgotten", i64::MIN),
        }
    }

    /// Notes a record's time; returns the clock by which it is judged.
    pub(super) fn observe(&self, context: NodeContext<'_>, time: Timestamp) -> Timestamp {
        let seen = context.clock(self.seen).max(time);
        context.set_clock(self.seen, seen);
        context.watermark().unwrap_or(seen)
    }
}

/// See the module's documentation.
pub(super) struct TableProcessor {
    spec: Arc<TableSpec>,
    ready: Option<(StoreId, Clocks)>,
    /// Rows changed since the last commit, where they are folded.
    pending: Option<Pending>,
    /// Bytes of the record's key.
    key: Vec<u8>,
}

impl TableProcessor {
    /// Runs a table in one task.
    pub(super) fn new(spec: Arc<TableSpec>) -> Self {
        let pending = spec.folds.then(Pending::default);
        Self { spec, ready: None, pending, key: Vec::new() }
    }

    /// Emits and forgets what the clock has passed. What is pending leaves first: it may be in a window that closes.
    fn advance(&mut self, context: NodeContext<'_>, clock: Timestamp) -> Result<()> {
        let Some(windows) = &self.spec.windows else { return Ok(()) };
        let (store, clocks) = super::ready(self.ready)?;
        if windows.first_open(clock.saturating_sub(self.spec.grace_ms)) > context.clock(clocks.closed) {
            self.flush(context)?;
        }
        let Some(windows) = &self.spec.windows else { return Ok(()) };
        let held = self.pending.as_ref().and_then(|pending| pending.held());
        self.spec.close(context, windows, (store, clocks), clock)?;
        if let Some(held) = held {
            self.hold(context, held)?;
        }
        Ok(())
    }

    /// What is behind the table is told no later watermark than `until`, nor one that a final result to come is older than.
    fn hold(&self, context: NodeContext<'_>, until: Timestamp) -> Result<()> {
        let (_, clocks) = super::ready(self.ready)?;
        let finals = if self.spec.on_close && self.spec.windows.is_some() {
            context.clock(clocks.closed)
        } else {
            Timestamp::MAX
        };
        context.hold_watermark(until.min(finals));
        Ok(())
    }

    /// Changes rows in memory only; [`flush`](Self::flush) does the rest.
    fn fold(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (_, clocks) = super::ready(self.ready)?;
        let row = row_of(&record)?;
        self.key.clear();
        if !write_key(self.spec.group_by.iter().map(|slot| &row[*slot]), &mut self.key) {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        let time = record.timestamp;
        let clock = clocks.observe(context, time);
        let mut places: SmallVec<[usize; 1]> = SmallVec::new();
        for start in self.spec.starts_of(time) {
            if self.spec.is_late(start, clock) {
                context.drop_record(DropReason::Late);
                continue;
            }
            places.push(self.pending_row(context, start)?);
        }
        let Some(pending) = &mut self.pending else { return Ok(()) };
        if let [place] = places[..] {
            let held = pending.row(place);
            self.spec.add(&mut held.state, row, time)?;
            held.take(time, record.headers);
        } else {
            // First everything that may fail: a record is in all of its windows or in none.
            let mut changed: SmallVec<[TableState; 1]> = SmallVec::new();
            for place in &places {
                let mut state = pending.row(*place).state.clone();
                self.spec.add(&mut state, row, time)?;
                changed.push(state);
            }
            for (place, state) in places.iter().zip(changed) {
                let held = pending.row(*place);
                held.state = state;
                held.take(time, record.headers.clone());
            }
        }
        if pending.is_full() { self.flush(context) } else { Ok(()) }
    }

    /// The place of the row that is in memory from now on.
    fn pending_row(&mut self, context: NodeContext<'_>, start: Timestamp) -> Result<usize> {
        let found = self.pending.as_ref().and_then(|pending| pending.find(start, &self.key));
        if let Some(place) = found {
            return Ok(place);
        }
        let (before, time) = self.held(context, self.spec.place(&self.key, start))?;
        let state = before.as_deref().cloned().unwrap_or_else(|| self.spec.empty());
        let key = ByteKey::new(&self.key);
        let at = context.record_context();
        let row = PendingRow {
            key,
            start,
            before,
            state,
            time,
            headers: Headers::EMPTY,
            context: at,
            changed: false,
        };
        let watermark = context.watermark().unwrap_or(-1);
        let Some(pending) = &mut self.pending else {
            return Err(StreamsError::fatal("the table does not fold"));
        };
        let (first, place) = (pending.is_empty(), pending.add(row, watermark));
        if first {
            // What waits may be as old as what has been vouched for by now.
            self.hold(context, watermark)?;
        }
        Ok(place)
    }

    /// Writes what is pending and sends the running results.
    fn flush(&mut self, context: NodeContext<'_>) -> Result<()> {
        let Some(pending) = self.pending.as_mut().filter(|pending| !pending.is_empty()) else {
            return Ok(());
        };
        let rows = pending.take();
        let outer = context.record_context();
        for row in rows.into_iter().filter(|row| row.changed) {
            let PendingRow { key, start, before, state, time, headers, context: at, .. } = row;
            context.task().set_record_context(at);
            let change = Change { before, state: Arc::new(state), time };
            // One row that cannot be shown must not keep the others.
            context.handled(self.update(context, self.spec.place(&key, start), change, headers))?;
        }
        context.task().set_record_context(outer);
        self.hold(context, Timestamp::MAX)
    }

    /// What the store has in a place, and the time of it; -1 where there is nothing.
    fn held(
        &self,
        context: NodeContext<'_>,
        place: Place<'_>,
    ) -> Result<(Option<Arc<TableState>>, Timestamp)> {
        let (store, _) = super::ready(self.ready)?;
        let held = if self.spec.windows.is_some() {
            context.with_window(store, |rows| rows.fetch(place.key, place.start))?
        } else {
            context.with_key_value(store, |rows| rows.get(place.key))?
        };
        let time = held.as_ref().map_or(-1, |held| held.timestamp);
        Ok((held.and_then(|held| held.value.downcast::<TableState>().ok()), time))
    }

    /// A row with more folded in; nothing is written yet.
    fn folded(
        &self,
        context: NodeContext<'_>,
        place: Place<'_>,
        fold: impl FnOnce(&mut TableState) -> Result<()>,
        time: Timestamp,
    ) -> Result<Change> {
        let (before, held) = self.held(context, place)?;
        let mut state = before.as_deref().cloned().unwrap_or_else(|| self.spec.empty());
        fold(&mut state)?;
        Ok(Change { before, state: Arc::new(state), time: held.max(time) })
    }

    /// Keeps a changed state and sends the running result.
    fn update(
        &self,
        context: NodeContext<'_>,
        place: Place<'_>,
        change: Change,
        headers: Headers,
    ) -> Result<()> {
        let (store, _) = super::ready(self.ready)?;
        let at = context.record_context();
        let value = Some(ValueAndTimestamp { value: change.state.clone(), timestamp: change.time });
        let key = ByteKey::new(place.key);
        if self.spec.windows.is_some() {
            context.with_window(store, |rows| rows.put(key, value, place.start, &at))?;
        } else {
            context.with_key_value(store, |rows| rows.put(key, value, &at))?;
        }
        let now = (change.state.as_ref(), change.time);
        self.spec.send_update(context, place, change.before.as_deref(), now, headers)
    }

    /// Writes and sends at once: partial results, and tables whose every record is to be seen.
    fn apply(&mut self, context: NodeContext<'_>, record: &AnyRecord) -> Result<Timestamp> {
        let (_, clocks) = super::ready(self.ready)?;
        let partial = record.value.as_ref().and_then(|value| value.downcast_ref::<PartialState>());
        let (key, starts, time, records) = match partial {
            Some(partial) => {
                let Some(key) = record.key.as_ref().and_then(|key| key.downcast_ref::<Vec<u8>>()) else {
                    return Err(StreamsError::fatal("a partial result has no key"));
                };
                (key.clone(), smallvec![partial.start], partial.time, partial.state.revision)
            }
            None => {
                let row = row_of(record)?;
                let Some(key) = key_of(self.spec.group_by.iter().map(|slot| &row[*slot])) else {
                    context.drop_record(DropReason::NullKey);
                    return Ok(context.clock(clocks.seen));
                };
                (key, self.spec.starts_of(record.timestamp), record.timestamp, 1)
            }
        };
        let clock = clocks.observe(context, time);
        // First everything that may fail: a record is in all of its windows or in none.
        let mut changes: SmallVec<[(Timestamp, Change); 1]> = SmallVec::new();
        for start in starts {
            if self.spec.is_late(start, clock) {
                for _ in 0..records {
                    context.drop_record(DropReason::Late);
                }
                continue;
            }
            let fold = |state: &mut TableState| match partial {
                Some(partial) => self.spec.merge(state, partial.state.clone()),
                None => self.spec.add(state, row_of(record)?, time),
            };
            changes.push((start, self.folded(context, self.spec.place(&key, start), fold, time)?));
        }
        for (start, change) in changes {
            self.update(context, self.spec.place(&key, start), change, record.headers.clone())?;
        }
        Ok(clock)
    }
}

/// A state on its way into the store.
struct Change {
    before: Option<Arc<TableState>>,
    state: Arc<TableState>,
    time: Timestamp,
}

impl AnyProcessor for TableProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.ready = Some((context.store(&self.spec.store)?, Clocks::register(context)));
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let without_watermark = context.watermark().is_none();
        // Without watermarks windows close with the record that passes them: nothing may wait.
        let may_wait = !without_watermark || self.spec.windows.is_none();
        if may_wait && self.pending.as_mut().is_some_and(Pending::folds_next) {
            return self.fold(context, record);
        }
        let clock = self.apply(context, &record)?;
        if without_watermark { self.advance(context, clock) } else { Ok(()) }
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        self.advance(context, watermark)
    }

    fn prepare_commit(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.flush(context)
    }
}
