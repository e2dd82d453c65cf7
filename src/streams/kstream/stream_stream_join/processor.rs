//! One side of a stream-stream join as it runs: probe what the other side has kept, or wait for it.

use std::sync::Arc;

use crate::streams::{
    config::Semantics,
    error::Result,
    kstream::{
        functions::{Joiner, UserResult},
        join_windows::JoinWindows,
        pending_rows::PendingRows,
        table_store::key_bytes,
        window_aggregate::observe,
    },
    processor::{AnyProcessor, ClockId, DropReason, NodeContext, ProcessorSupplier, StoreId},
    record::{AnyRecord, AnyValue, Headers, Timestamp},
    serdes::AnySerde,
    state::{Order, ValueAndTimestamp, WindowRow},
};

/// A kept record's store: its id and the serde of its keys.
pub(super) struct JoinStore {
    id: StoreId,
    pub(super) key_serde: AnySerde,
}

impl JoinStore {
    pub(super) fn new(context: NodeContext<'_>, name: &str) -> Result<Self> {
        let id = context.store(name)?;
        Ok(Self { id, key_serde: context.task().store_builder(id).key_serde.clone() })
    }

    /// Records of a key with `from <= time <= to`, oldest first.
    pub(super) fn fetch(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<WindowRow>> {
        context.with_window(self.id, |store| store.fetch_range(key, from, to, Order::Forward))
    }
}

/// Passes a record to the join, then keeps it for the other side.
struct JoinWindow {
    name: String,
    store: Option<JoinStore>,
}

impl AnyProcessor for JoinWindow {
    fn passes_records(&self) -> bool {
        true
    }

    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.store = Some(JoinStore::new(context, &self.name)?);
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let (key, value, timestamp) = (record.key.clone(), record.value.clone(), record.timestamp);
        context.forward(record)?;
        if key.is_none() {
            return Ok(());
        }
        let store = self.store.as_ref().expect("init runs before the first record");
        let key = key_bytes(&store.key_serde, key.as_ref())?;
        let value = value.map(|value| ValueAndTimestamp { value, timestamp });
        let record_context = context.record_context();
        context.with_window(store.id, |store| store.put(key, value, timestamp, &record_context))
    }
}

pub(super) fn join_window(store: &str) -> ProcessorSupplier {
    let store = store.to_owned();
    Arc::new(move || Box::new(JoinWindow { name: store.clone(), store: None }))
}

/// What both sides know of time, in clocks they share.
struct TimeTracker {
    /// The largest timestamp of either side.
    stream_time: ClockId,
    /// The oldest waiting record, as far as known; `i64::MAX` when none waits.
    min_time: ClockId,
    /// The wall clock before which waiting records are not looked through again.
    next_time_to_emit: ClockId,
}

impl TimeTracker {
    fn new(context: NodeContext<'_>, join: &str) -> Self {
        let clock = |name: &str, initial: i64| {
            let clock = context.register_shared_clock(join, name, initial);
            // Kafka forgets its clocks at a restart; sluice does not.
            if context.semantics() == Semantics::Kafka43 {
                context.set_clock(clock, initial);
            }
            clock
        };
        Self {
            stream_time: clock("stream-time", -1),
            min_time: clock("min-time", i64::MAX),
            next_time_to_emit: clock("next-time-to-emit", 0),
        }
    }

    /// Moves the join's stream time and returns it.
    fn observe(&self, context: NodeContext<'_>, timestamp: Timestamp) -> Timestamp {
        observe(context, self.stream_time, timestamp)
    }
}

/// What a side of a join is made with.
#[derive(Clone)]
pub(super) struct JoinSide {
    /// Name of the join, under which both sides share their clocks.
    pub(super) join: String,
    pub(super) left: bool,
    pub(super) windows: JoinWindows,
    /// Whether this side's records are wanted without a partner.
    pub(super) outer: bool,
    /// Store of the other side's records.
    pub(super) other_store: String,
    /// Store of waiting records; `None` in an inner join.
    pub(super) pending_store: Option<String>,
    /// `(key, left, right)`
    pub(super) joiner: Joiner,
}

impl JoinSide {
    pub(super) fn supplier(&self) -> ProcessorSupplier {
        let side = self.clone();
        Arc::new(move || Box::new(JoinProcessor { side: side.clone(), live: None }))
    }

    /// How much earlier and later the partner may be.
    fn bounds(&self) -> (i64, i64) {
        let JoinWindows { before_ms, after_ms, .. } = self.windows;
        if self.left { (before_ms, after_ms) } else { (after_ms, before_ms) }
    }
}

struct Live {
    other: JoinStore,
    pending: Option<PendingRows>,
    tracker: TimeTracker,
}

struct JoinProcessor {
    side: JoinSide,
    live: Option<Live>,
}

impl AnyProcessor for JoinProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let other = JoinStore::new(context, &self.side.other_store)?;
        let pending = match &self.side.pending_store {
            Some(name) => Some(PendingRows::new(context, name, other.key_serde.clone())?),
            None => None,
        };
        self.live = Some(Live { other, pending, tracker: TimeTracker::new(context, &self.side.join) });
        Ok(())
    }

    /// 1. Stream time advances, by records that are dropped, too.
    /// 2. The waiting records whose window closed are given up; in Kafka only by a record that is not behind stream time.
    /// 3. The record joins with what the other side has kept.
    /// 4. Without a partner it waits, or is sent alone when its window is over already.
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let live = self.live.as_ref().expect("init runs before the first record");
        let side = &self.side;
        let now = live.tracker.observe(context, record.timestamp);
        if side.outer && record.key.is_none() && record.value.is_some() {
            let value = side.joined(None, record.value.as_ref(), None)?;
            return context.forward(AnyRecord { value, ..record });
        }
        let Some(value) = record.value.clone().filter(|_| record.key.is_some()) else {
            let reason = if record.key.is_none() { DropReason::NullKey } else { DropReason::NullValue };
            context.drop_record(reason);
            return Ok(());
        };
        if let Some(pending) = &live.pending {
            match context.semantics() {
                Semantics::Kafka43 if record.timestamp == now => {
                    side.give_up_as_kafka(context, live, pending, &record.headers)?;
                }
                Semantics::Kafka43 => {}
                Semantics::Sluice => side.give_up_closed(context, live, pending, &record.headers)?,
            }
        }
        let key = record.key.as_ref();
        let bytes = key_bytes(&live.other.key_serde, key)?;
        let (before_ms, after_ms) = side.bounds();
        let from = record.timestamp.saturating_sub(before_ms).max(0);
        let to = record.timestamp.saturating_add(after_ms).max(0);
        let partners = live.other.fetch(context, &bytes, from, to)?;
        let alone = partners.is_empty();
        for partner in partners {
            if let Some(pending) = &live.pending {
                pending.remove_if_present(context, partner.start, !side.left, &bytes)?;
            }
            let joined = side.joined(key, Some(&value), Some(&partner.value.value))?;
            context.forward(AnyRecord {
                value: joined,
                timestamp: record.timestamp.max(partner.start),
                ..record.clone()
            })?;
        }
        if !alone || !side.outer {
            return Ok(());
        }
        // Kafka forgets the grace here (KAFKA-19536): it gives a record up that may still find a partner.
        let grace_ms = match context.semantics() {
            Semantics::Kafka43 => 0,
            Semantics::Sluice => side.windows.grace_ms,
        };
        match &live.pending {
            Some(pending) if to.saturating_add(grace_ms) >= now => {
                let min_time = context.clock(live.tracker.min_time).min(record.timestamp);
                context.set_clock(live.tracker.min_time, min_time);
                pending.add(context, record.timestamp, side.left, &bytes, value)
            }
            _ => {
                let value = side.joined(key, Some(&value), None)?;
                context.forward(AnyRecord { value, ..record })
            }
        }
    }

    /// Gives up what has closed though no record came. The left side does it for both: whoever has waiting records has a left side.
    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        let Some(live) = self.live.as_ref().filter(|_| self.side.left) else { return Ok(()) };
        live.tracker.observe(context, watermark);
        let Some(pending) = &live.pending else { return Ok(()) };
        // Records without a partner leave when their windows close, dated as they are.
        let wait = self.side.wait_ms(true).max(self.side.wait_ms(false));
        context.hold_watermark(watermark.saturating_sub(wait));
        self.side.give_up_closed(context, live, pending, &Headers::EMPTY)
    }
}

impl JoinSide {
    /// Joins a value of this side with one of the other.
    fn joined(
        &self,
        key: Option<&AnyValue>,
        this: Option<&AnyValue>,
        other: Option<&AnyValue>,
    ) -> UserResult<Option<AnyValue>> {
        if self.left { (self.joiner)(key, this, other) } else { (self.joiner)(key, other, this) }
    }

    /// How long a waiting record of a side may still find a partner.
    fn wait_ms(&self, left: bool) -> i64 {
        let JoinWindows { before_ms, after_ms, grace_ms } = self.windows;
        (if left { after_ms } else { before_ms }).saturating_add(grace_ms)
    }

    /// As Kafka does it: the quick test takes the bound of the side of the *current* record, and wraps around when nothing waits; the scan
    /// ends when an open record of either side was seen, and the last one looked at becomes the oldest known. In a left join
    /// that is the youngest of all, so later misses come out late.
    fn give_up_as_kafka(
        &self,
        context: NodeContext<'_>,
        live: &Live,
        pending: &PendingRows,
        headers: &Headers,
    ) -> Result<()> {
        let tracker = &live.tracker;
        let now = context.clock(tracker.stream_time);
        let (_, after_ms) = self.bounds();
        let min_time = context.clock(tracker.min_time);
        if min_time.wrapping_add(after_ms).wrapping_add(self.windows.grace_ms) >= now {
            return Ok(());
        }
        if !self.emit_is_due(context, tracker) {
            return Ok(());
        }
        context.set_clock(tracker.min_time, i64::MAX);
        let (mut left_open, mut right_open) = (false, false);
        for row in pending.rows(context, None)? {
            context.set_clock(tracker.min_time, row.timestamp);
            if left_open && right_open {
                break;
            }
            if row.timestamp.wrapping_add(self.wait_ms(row.left)) >= now {
                *(if row.left { &mut left_open } else { &mut right_open }) = true;
                // Kafka meets each of a row's values: with both sides open the second one ends the scan.
                if left_open && right_open && row.values.len() > 1 {
                    break;
                }
                continue;
            }
            self.send_alone(context, pending, headers, row)?;
        }
        Ok(())
    }

    /// Every record whose own window has closed, and no other, as soon as time says so; what is left is remembered by the time nothing
    /// older waits.
    fn give_up_closed(
        &self,
        context: NodeContext<'_>,
        live: &Live,
        pending: &PendingRows,
        headers: &Headers,
    ) -> Result<()> {
        let tracker = &live.tracker;
        let now = context.clock(tracker.stream_time);
        let shortest = self.wait_ms(true).min(self.wait_ms(false));
        let closed_until = now.saturating_sub(shortest).saturating_sub(1);
        if context.clock(tracker.min_time) > closed_until {
            return Ok(());
        }
        let mut oldest = i64::MAX;
        for row in pending.rows(context, Some(closed_until))? {
            if row.timestamp.saturating_add(self.wait_ms(row.left)) >= now {
                oldest = oldest.min(row.timestamp);
            } else {
                self.send_alone(context, pending, headers, row)?;
            }
        }
        context.set_clock(tracker.min_time, oldest.min(closed_until.saturating_add(1)));
        Ok(())
    }

    fn emit_is_due(&self, context: NodeContext<'_>, tracker: &TimeTracker) -> bool {
        let now = context.now();
        if now < context.clock(tracker.next_time_to_emit) {
            return false;
        }
        let interval_ms = context.task().config().emit_interval_ms;
        context.set_clock(tracker.next_time_to_emit, now.saturating_add(interval_ms));
        true
    }

    /// Sends a waiting row without a partner: its own time, the headers of the record that closed its window.
    fn send_alone(
        &self,
        context: NodeContext<'_>,
        pending: &PendingRows,
        headers: &Headers,
        row: crate::streams::kstream::pending_rows::PendingRow,
    ) -> Result<()> {
        for value in &row.values {
            let (left, right) = if row.left { (Some(value), None) } else { (None, Some(value)) };
            let value = (self.joiner)(Some(&row.key), left, right)?;
            context.forward(AnyRecord::new(Some(row.key.clone()), value, row.timestamp, headers.clone()))?;
        }
        pending.remove(context, row.row)
    }
}
