//! The stream-stream join: two sides with their rows in state, partners within a stretch of event time.
//!
//! Each side is a processor; both use three stores: the rows of each side by key, and the times at which rows are due to be forgotten. A row
//! is due when no partner can come any more: then, if its side is kept, it leaves without one. What must always hold: a row leaves without
//! partner at most once, and never when it had one; everything due before the clock is gone from the state.

use std::sync::Arc;

use super::{
    codec::{Input, malformed, write, write_bytes},
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
    serdes::{AnySerde, BytesSerde, Serde, VoidSerde},
    state::{StoreBuilder, StoreKind, ValueAndTimestamp},
};

/// Event time between two looks for rows that are due, ms.
const LOOK_AGAIN_MS: i64 = 1_000;

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
    /// Names of the stores: left rows, right rows, due times.
    pub(super) fn store_names(&self) -> [String; 3] {
        ["left", "right", "due"].map(|part| format!("{}-{part}", self.name))
    }

    /// The stores.
    pub(super) fn stores(&self) -> [StoreBuilder; 3] {
        let [left, right, due] = self.store_names();
        let keys = || AnySerde::new::<Vec<u8>>(BytesSerde);
        let kind = || StoreKind::KeyValue { timestamped: true };
        let rows = |side: usize| AnySerde::new::<SideRows>(SideRowsSerde { columns: self.columns[side] });
        [
            StoreBuilder::new(left, kind(), keys(), rows(0)),
            StoreBuilder::new(right, kind(), keys(), rows(1)),
            StoreBuilder::new(due, kind(), keys(), AnySerde::new::<()>(VoidMark)),
        ]
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

/// A row that waits for partners.
#[derive(Clone, Debug, PartialEq)]
struct SideRow {
    time: Timestamp,
    matched: bool,
    row: Row,
}

/// The rows of one key on one side, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SideRows(Vec<SideRow>);

struct SideRowsSerde {
    columns: usize,
}

impl Serde<SideRows> for SideRowsSerde {
    fn serialize(&self, rows: &SideRows, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        for held in &rows.0 {
            let mut row = vec![u8::from(held.matched)];
            held.row.iter().for_each(|datum| write(datum, &mut row));
            out.extend_from_slice(&held.time.to_be_bytes());
            write_bytes(&row, out);
        }
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<SideRows, ProcessingError> {
        let mut input = Input(bytes);
        let mut rows = Vec::new();
        let mut read = || {
            let time = input.number()?;
            let (matched, row) = input.bytes()?.split_first()?;
            let mut row = Input(row);
            rows.push(SideRow { time, matched: *matched == 1, row: row.row(self.columns)? });
            Some(input.0.is_empty())
        };
        if bytes.is_empty() {
            return Ok(SideRows::default());
        }
        loop {
            match read() {
                Some(false) => {}
                Some(true) => return Ok(SideRows(rows)),
                None => return Err(malformed("the rows of a join")),
            }
        }
    }
}

/// A mark that something is due: no content, but not a deletion.
struct VoidMark;

impl Serde<()> for VoidMark {
    fn serialize(&self, mark: &(), out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        VoidSerde.serialize(mark, out)
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<(), ProcessingError> {
        VoidSerde.deserialize(bytes)
    }
}

/// The key of a due mark: ordered by time, then side, then key.
fn due_key(due: Timestamp, side: usize, key: &[u8]) -> ByteKey {
    // Flipping the sign bit orders negative times first.
    let mut bytes = (due as u64 ^ (1 << 63)).to_be_bytes().to_vec();
    bytes.push(side as u8);
    bytes.extend_from_slice(key);
    ByteKey::from(bytes)
}

/// Due time, side and key of a mark.
fn read_due(mark: &[u8]) -> Option<(Timestamp, usize, &[u8])> {
    let (due, rest) = mark.split_first_chunk::<8>()?;
    let (side, key) = rest.split_first()?;
    Some(((u64::from_be_bytes(*due) ^ (1 << 63)) as i64, usize::from(*side).min(1), key))
}

#[derive(Clone, Copy)]
struct Ready {
    rows: [StoreId; 2],
    due: StoreId,
    /// Newest time seen on this side; the clock where watermarks are off.
    seen: ClockId,
    /// Nothing is due before this.
    next_due: ClockId,
}

/// One side of a join.
pub(super) struct JoinSide {
    spec: Arc<JoinSpec>,
    side: usize,
    ready: Option<Ready>,
}

impl JoinSide {
    /// The left (0) or right (1) side.
    pub(super) fn new(spec: Arc<JoinSpec>, side: usize) -> Self {
        Self { spec, side, ready: None }
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

    fn rows(&self, context: NodeContext<'_>, store: StoreId, key: &[u8]) -> Result<Arc<SideRows>> {
        let held = context.with_key_value(store, |rows| rows.get(key))?;
        Ok(held.and_then(|held| held.value.downcast::<SideRows>().ok()).unwrap_or_default())
    }

    fn put(&self, context: NodeContext<'_>, store: StoreId, key: &[u8], rows: SideRows) -> Result<()> {
        let at = context.record_context();
        let timestamp = rows.0.last().map_or(at.timestamp, |newest| newest.time);
        let value = (!rows.0.is_empty()).then(|| ValueAndTimestamp { value: Arc::new(rows), timestamp });
        context.with_key_value(store, |store| store.put(ByteKey::new(key), value, &at))
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
        let at = context.record_context();
        let until = due_key(clock, 0, &[]);
        // The mark of a row due at the clock itself sorts behind `until`: that row is still open.
        let marks = context.with_key_value(ready.due, |marks| {
            marks.range(None, Some(&until), crate::streams::state::Order::Forward)
        })?;
        for (mark, _) in marks {
            context.with_key_value(ready.due, |marks| marks.put(mark.clone(), None, &at))?;
            let Some((due, side, key)) = read_due(&mark) else { continue };
            let held = self.rows(context, ready.rows[side], key)?;
            let (gone, kept): (Vec<SideRow>, Vec<SideRow>) =
                held.0.iter().cloned().partition(|row| self.spec.due(side, row.time) <= due);
            self.put(context, ready.rows[side], key, SideRows(kept))?;
            for row in gone.iter().filter(|row| !row.matched && self.spec.kept[side]) {
                self.emit_alone(context, key, (side, &row.row), row.time, Headers::EMPTY)?;
            }
        }
        // Looking costs a scan, and the clock moves with every record: look again a second of event time later, or when a row
        // comes that is due before.
        context.set_clock(ready.next_due, clock.saturating_add(LOOK_AGAIN_MS));
        Ok(())
    }
}

impl AnyProcessor for JoinSide {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let [left, right, due] = self.spec.store_names();
        self.ready = Some(Ready {
            rows: [context.store(&left)?, context.store(&right)?],
            due: context.store(&due)?,
            seen: context.register_clock("seen", -1),
            next_due: context.register_clock("next-due", i64::MIN),
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
        let clock = context.watermark().unwrap_or(seen);
        let (before, after) = self.spec.reach(side);
        let others = self.rows(context, ready.rows[1 - side], &key)?;
        let is_partner = |other: &SideRow| {
            other.time >= time.saturating_sub(before) && other.time <= time.saturating_add(after)
        };
        let partners: Vec<SideRow> = others.0.iter().filter(|other| is_partner(other)).cloned().collect();
        if partners.iter().any(|partner| !partner.matched) {
            let mut marked = (*others).clone();
            for other in marked.0.iter_mut().filter(|other| is_partner(other)) {
                other.matched = true;
            }
            self.put(context, ready.rows[1 - side], &key, marked)?;
        }
        let due = self.spec.due(side, time);
        if due >= clock {
            let mut own = (*self.rows(context, ready.rows[side], &key)?).clone();
            let at = own.0.partition_point(|held| held.time <= time);
            own.0.insert(at, SideRow { time, matched: !partners.is_empty(), row: row.clone() });
            self.put(context, ready.rows[side], &key, own)?;
            let at = context.record_context();
            let mark = ValueAndTimestamp { value: Arc::new(()), timestamp: time };
            context
                .with_key_value(ready.due, |marks| marks.put(due_key(due, side, &key), Some(mark), &at))?;
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
        for partner in &partners {
            let sides: [&[Datum]; 2] = if side == 0 { [row, &partner.row] } else { [&partner.row, row] };
            self.emit(context, &key, sides, time.max(partner.time), record.headers.clone())?;
        }
        if context.watermark().is_none() { self.advance(context, seen) } else { Ok(()) }
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        self.advance(context, watermark)
    }
}
