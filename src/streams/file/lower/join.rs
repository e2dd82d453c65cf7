//! The stream-stream join: two sides with their rows in state, partners within a stretch of event time.
//!
//! Each side is a processor; both use two stores: the rows of each side by key and time. A row is due when no partner can come any more:
//! then, if its side is kept, it leaves without one. What must always hold: a row leaves without partner at most once, and never when it
//! had one; everything due before the clock is gone from the state.
//!
//! A row costs one record of the changelog when it comes and one when it goes: that it has met a partner is noted only where its side is
//! kept.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    codec::{Input, malformed, write, write_sized},
    evaluated, key_of, row_of,
};
use crate::streams::{
    error::{ProcessingError, Result},
    file::{
        expression::{Expression, Predicate},
        value::{Datum, Row},
    },
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, StoreId},
    record::{AnyRecord, ByteKey, Headers, Timestamp},
    serdes::{AnySerde, BytesSerde, Serde},
    state::{StoreBuilder, StoreKind, ValueAndTimestamp, WindowRow},
};

/// Event time between two looks for rows that are due, ms.
const LOOK_AGAIN_MS: i64 = 1_000;

/// Segments of the state that a record's partners may be in.
const SEGMENTS_OF_REACH: u64 = 8;

/// A join, compiled; shared by both sides and all tasks.
pub(super) struct JoinSpec {
    /// The name from which the stores have theirs.
    pub name: String,
    /// Slots of the key on each side.
    pub on: [Vec<usize>; 2],
    /// Columns of each side.
    pub columns: [usize; 2],
    /// How much older and younger a right record may be, ms.
    pub before_ms: i64,
    /// See `before_ms`.
    pub after_ms: i64,
    /// Waiting time for late partners, ms.
    pub grace_ms: i64,
    /// Which sides are kept without partner.
    pub kept: [bool; 2],
    /// Joined rows to keep.
    pub filter: Option<Predicate>,
    /// Result columns.
    pub select: Vec<Expression>,
}

impl JoinSpec {
    /// Names of the stores: left rows, right rows.
    pub(super) fn store_names(&self) -> [String; 2] {
        ["left", "right"].map(|part| format!("{}-{part}-rows", self.name))
    }

    /// The stores.
    pub(super) fn stores(&self) -> [StoreBuilder; 2] {
        let keys = || AnySerde::new::<Vec<u8>>(BytesSerde);
        // Rows are taken out by the join itself, when they are due by its clock.
        let kind = StoreKind::Window {
            retention: super::FOREVER,
            window_size: Duration::ZERO,
            duplicates: false,
            timestamped: true,
            time_ordered: true,
        };
        let rows = |side: usize| AnySerde::new::<SideRows>(SideRowsSerde { columns: self.columns[side] });
        // A probe looks into a few of them, and what is due is in one.
        let reach = self.before_ms.saturating_add(self.after_ms);
        let segment_interval = Some(Duration::from_millis(reach.unsigned_abs() / SEGMENTS_OF_REACH));
        let [left, right] = self.store_names();
        [(left, 0), (right, 1)].map(|(name, side)| StoreBuilder {
            segment_interval,
            ..StoreBuilder::new(name, kind.clone(), keys(), rows(side))
        })
    }

    /// How far before and after a row of the side its partners may be.
    fn reach(&self, side: usize) -> (i64, i64) {
        if side == 0 { (self.before_ms, self.after_ms) } else { (self.after_ms, self.before_ms) }
    }

    /// When no partner can come any more.
    fn due(&self, side: usize, time: Timestamp) -> Timestamp {
        time.saturating_add(self.reach(side).1).saturating_add(self.grace_ms)
    }
}

/// A row that waits for partners, read from [`SideRows`].
struct SideRow {
    time: Timestamp,
    matched: bool,
    row: Row,
}

/// The rows of one key and time on one side, in the order in which they came; nearly always one.
///
/// Held as the bytes that changelog and state file have of them: there are as many of these as the join's window has records, most
/// of them are never looked at again or once, and decoded they take three times the room.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SideRows(SmallVec<[u8; 64]>);

/// Of one row among the bytes: its time and its length (four bytes), then whether it has met a partner (0 or 1), then its columns.
const MATCHED_AT: usize = 12;

impl SideRows {
    /// These and one more; `scratch` is room to write in.
    fn with(&self, time: Timestamp, matched: bool, row: &Row, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        scratch.extend_from_slice(&self.0);
        scratch.extend_from_slice(&time.to_be_bytes());
        write_sized(scratch, |out| {
            out.push(u8::from(matched));
            row.iter().for_each(|datum| write(datum, out));
        });
        Self(SmallVec::from_slice(scratch))
    }

    /// The rows. Their bytes were looked at when they were read, so an error is one of this program.
    fn rows(&self, columns: usize) -> impl Iterator<Item = Result<SideRow>> {
        self.places().map(move |at| {
            let row = read_row(&mut Input(&self.0[at..]), |row| row.row(columns));
            row.map(|(time, matched, row)| SideRow { time, matched, row })
                .ok_or_else(|| malformed("the rows of a join").into())
        })
    }

    fn all_matched(&self) -> bool {
        self.places().all(|at| self.0[at + MATCHED_AT] == 1)
    }

    fn set_matched(&mut self) {
        let places: SmallVec<[usize; 1]> = self.places().collect();
        places.into_iter().for_each(|at| self.0[at + MATCHED_AT] = 1);
    }

    /// Where each row begins.
    fn places(&self) -> impl Iterator<Item = usize> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let at = next;
            let length = self.0.get(at + 8..at + MATCHED_AT)?.try_into().ok()?;
            next = at + MATCHED_AT + u32::from_be_bytes(length) as usize;
            Some(at)
        })
    }
}

/// Takes a row from the input: its time, whether it has met a partner, and what `columns` makes of the rest, all of it.
fn read_row<T>(
    input: &mut Input<'_>,
    columns: impl FnOnce(&mut Input<'_>) -> Option<T>,
) -> Option<(Timestamp, bool, T)> {
    let time = input.number()?;
    let (matched, row) = input.bytes()?.split_first()?;
    let mut row = Input(row);
    let columns = columns(&mut row)?;
    (*matched <= 1 && row.0.is_empty()).then_some((time, *matched == 1, columns))
}

struct SideRowsSerde {
    columns: usize,
}

impl SideRowsSerde {
    /// The time of the first row, when the bytes are rows from beginning to end.
    fn time_of(&self, bytes: &[u8]) -> Result<Option<Timestamp>, ProcessingError> {
        let mut input = Input(bytes);
        let mut first = None;
        while !input.0.is_empty() {
            let row = read_row(&mut input, |row| (0..self.columns).try_for_each(|_| row.skip()));
            let (time, ..) = row.ok_or_else(|| malformed("the rows of a join"))?;
            first.get_or_insert(time);
        }
        Ok(first)
    }
}

impl Serde<SideRows> for SideRowsSerde {
    fn serialize(&self, rows: &SideRows, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        out.extend_from_slice(&rows.0);
        Ok(())
    }

    fn carries_time(&self) -> bool {
        true
    }

    fn deserialize_timed(&self, bytes: &[u8]) -> Result<(SideRows, Option<Timestamp>), ProcessingError> {
        // All of them have it; none are never put.
        let time = self.time_of(bytes)?;
        Ok((SideRows(SmallVec::from_slice(bytes)), time))
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<SideRows, ProcessingError> {
        Ok(self.deserialize_timed(bytes)?.0)
    }
}

#[derive(Clone, Copy)]
struct Ready {
    rows: [StoreId; 2],
    /// Newest time seen on this side; the clock where watermarks are off.
    seen: ClockId,
    /// Nothing is due before this.
    next_due: ClockId,
    /// Rows of both sides that were due before this are gone; both sides see it.
    gone: ClockId,
}

/// One side of a join.
pub(super) struct JoinSide {
    spec: Arc<JoinSpec>,
    side: usize,
    ready: Option<Ready>,
    scratch: Vec<u8>,
}

impl JoinSide {
    /// The left (0) or right (1) side.
    pub(super) fn new(spec: Arc<JoinSpec>, side: usize) -> Self {
        Self { spec, side, ready: None, scratch: Vec::new() }
    }

    fn emit(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        sides: [&[Datum]; 2],
        time: Timestamp,
        headers: Headers,
    ) -> Result<()> {
        let [left, right] = sides;
        if let Some(filter) = &self.spec.filter
            && !evaluated(filter.holds(left, right))?
        {
            return Ok(());
        }
        let mut row = Row::with_capacity(self.spec.select.len());
        for expression in &self.spec.select {
            row.push(evaluated(expression.evaluate(left, right))?);
        }
        context.forward(AnyRecord::new(Some(Arc::new(key.to_vec())), Some(Arc::new(row)), time, headers))
    }

    /// A row of a side beside the NULLs of the other.
    fn emit_alone(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        (side, row): (usize, &Row),
        time: Timestamp,
        headers: Headers,
    ) -> Result<()> {
        let nulls = Row::nulls(self.spec.columns[1 - side]);
        let sides: [&[Datum]; 2] = if side == 0 { [row, &nulls] } else { [&nulls, row] };
        self.emit(context, key, sides, time, headers)
    }

    fn rows_at(
        &self,
        context: NodeContext<'_>,
        store: StoreId,
        key: &[u8],
        time: Timestamp,
    ) -> Result<Option<Arc<SideRows>>> {
        let held = context.with_window(store, |rows| rows.fetch(key, time))?;
        Ok(held.and_then(|held| held.value.downcast::<SideRows>().ok()))
    }

    fn put(
        &self,
        context: NodeContext<'_>,
        store: StoreId,
        key: ByteKey,
        time: Timestamp,
        rows: Option<SideRows>,
    ) -> Result<()> {
        let at = context.record_context();
        let value = rows.map(|rows| ValueAndTimestamp { value: Arc::new(rows), timestamp: time });
        context.with_window(store, |store| store.put(key, value, time, &at))
    }

    /// Lets go of everything that is due before the clock; both sides.
    fn advance(&self, context: NodeContext<'_>, clock: Timestamp) -> Result<()> {
        let ready = super::ready(self.ready)?;
        // A row of this side without a partner leaves when it is due, dated as it is; both sides send rows of both.
        let wait = |side: usize| if self.spec.kept[side] { self.spec.due(side, 0) } else { 0 };
        let looked = context.clock(ready.next_due).saturating_sub(LOOK_AGAIN_MS).min(clock);
        context.hold_watermark(looked.saturating_sub(wait(0).max(wait(1))));
        if context.clock(ready.next_due) >= clock {
            return Ok(());
        }
        let gone = context.clock(ready.gone);
        for side in [0, 1] {
            // The times of rows due at `gone`, and at the clock: a row due at the clock itself is still open.
            let time_of = |due: Timestamp| due.saturating_sub(self.spec.due(side, 0));
            let (first, last) = (time_of(gone), time_of(clock).saturating_sub(1));
            let due = context.with_window(ready.rows[side], |rows| rows.fetch_closed(first, last))?;
            for WindowRow { key, start, value, .. } in due {
                self.put(context, ready.rows[side], key.clone(), start, None)?;
                let Some(held) = value.value.downcast_ref::<SideRows>().filter(|_| self.spec.kept[side])
                else {
                    continue;
                };
                for row in held.rows(self.spec.columns[side]) {
                    let SideRow { time, matched, row } = row?;
                    if !matched {
                        self.emit_alone(context, &key, (side, &row), time, Headers::EMPTY)?;
                    }
                }
            }
        }
        context.set_clock(ready.gone, clock.max(gone));
        // Looking costs a scan, and the clock moves with every record: look again a second of event time later, or when a row
        // comes that is due before.
        context.set_clock(ready.next_due, clock.saturating_add(LOOK_AGAIN_MS));
        Ok(())
    }
}

impl AnyProcessor for JoinSide {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let [left, right] = self.spec.store_names();
        self.ready = Some(Ready {
            rows: [context.store(&left)?, context.store(&right)?],
            seen: context.register_clock("seen", -1),
            next_due: context.register_clock("next-due", i64::MIN),
            gone: context.register_shared_clock(&self.spec.name, "gone", i64::MIN),
        });
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let ready = super::ready(self.ready)?;
        let (side, time) = (self.side, record.timestamp);
        let row = row_of(&record)?;
        let seen = context.clock(ready.seen).max(time);
        context.set_clock(ready.seen, seen);
        let Some(key) = key_of(self.spec.on[side].iter().map(|slot| &row[*slot])) else {
            if self.spec.kept[side] {
                return self.emit_alone(context, &[], (side, row), time, record.headers.clone());
            }
            context.drop_record(DropReason::NullKey);
            return Ok(());
        };
        let clock = context.watermark().unwrap_or(seen).max(context.clock(ready.gone));
        let (before, after) = self.spec.reach(side);
        let (from, to) = (time.saturating_sub(before).max(0), time.saturating_add(after));
        let found = context.with_window(ready.rows[1 - side], |rows| {
            rows.fetch_range(&key, from, to, crate::streams::state::Order::Forward)
        })?;
        let mut partners: SmallVec<[Arc<SideRows>; 1]> = SmallVec::new();
        for held in found {
            let Ok(rows) = held.value.value.downcast::<SideRows>() else { continue };
            if self.spec.kept[1 - side] && !rows.all_matched() {
                let mut marked = (*rows).clone();
                marked.set_matched();
                self.put(context, ready.rows[1 - side], held.key, held.start, Some(marked))?;
            }
            partners.push(rows);
        }
        let due = self.spec.due(side, time);
        if due >= clock {
            let own = self.rows_at(context, ready.rows[side], &key, time)?;
            let none = SideRows::default();
            let before = own.as_deref().unwrap_or(&none);
            let own = before.with(time, !partners.is_empty(), row, &mut self.scratch);
            self.put(context, ready.rows[side], ByteKey::new(&key), time, Some(own))?;
            if due < context.clock(ready.next_due) {
                context.set_clock(ready.next_due, due);
            }
        } else if partners.is_empty() {
            // Too late for any partner that is still to come.
            if self.spec.kept[side] {
                self.emit_alone(context, &key, (side, row), time, record.headers.clone())?;
            } else {
                context.drop_record(DropReason::Late);
            }
        }
        for partner in partners.iter().flat_map(|rows| rows.rows(self.spec.columns[1 - side])) {
            let partner = partner?;
            let sides: [&[Datum]; 2] = if side == 0 { [row, &partner.row] } else { [&partner.row, row] };
            self.emit(context, &key, sides, time.max(partner.time), record.headers.clone())?;
        }
        if context.watermark().is_none() { self.advance(context, seen) } else { Ok(()) }
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        self.advance(context, watermark)
    }
}
