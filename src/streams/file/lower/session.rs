//! The aggregation of a table into sessions: records of a key without a longer silence between them than the gap.
//!
//! A record joins the open sessions within reach into one; the rows of those are taken back. What must always hold: a session that has
//! left as final takes nothing any more (a record beside it begins one of its own, or is late); sessions that are open are further apart
//! than the gap.

use std::sync::Arc;

use super::{
    key_of, row_of,
    table::{Clocks, Place, TableSpec, send},
    table_state::TableState,
};
use crate::streams::{
    error::{Result, StreamsError},
    processor::{AnyProcessor, DropReason, NodeContext, StoreId},
    record::{AnyRecord, ByteKey, Timestamp},
    state::SessionRow,
};

/// See the module's documentation.
pub(super) struct SessionProcessor {
    spec: Arc<TableSpec>,
    gap_ms: i64,
    ready: Option<(StoreId, Clocks)>,
}

impl SessionProcessor {
    /// Runs a table in one task.
    pub(super) fn new(spec: Arc<TableSpec>, gap_ms: i64) -> Self {
        Self { spec, gap_ms, ready: None }
    }

    /// Sessions that end before this are closed.
    fn first_open_end(&self, clock: Timestamp) -> Timestamp {
        clock.saturating_sub(self.spec.grace_ms).saturating_sub(self.gap_ms)
    }

    fn add(
        &self,
        context: NodeContext<'_>,
        key: &[u8],
        record: &AnyRecord,
        first_open_end: Timestamp,
    ) -> Result<()> {
        let (store, _) = super::ready(self.ready)?;
        let time = record.timestamp;
        let (earliest, latest) = (time.saturating_sub(self.gap_ms), time.saturating_add(self.gap_ms));
        let reached = context
            .with_session(store, |rows| rows.find_sessions(key, earliest.max(first_open_end), latest))?;
        let (mut start, mut end) = (time, time);
        for session in &reached {
            (start, end) = (start.min(session.start), end.max(session.end));
        }
        if end < first_open_end {
            context.drop_record(DropReason::Late);
            return Ok(());
        }
        let mut state = self.spec.empty();
        for session in &reached {
            self.spec.merge(&mut state, held(session)?.clone())?;
        }
        self.spec.add(&mut state, row_of(record)?, time)?;
        let at = context.record_context();
        let put = state.clone();
        context.with_session(store, |rows| {
            for session in &reached {
                rows.put(session.key.clone(), session.start, session.end, None, &at)?;
            }
            rows.put(ByteKey::new(key), start, end, Some(Arc::new(put)), &at)
        })?;
        if self.spec.on_update {
            self.send_change(context, Place { key, start, end }, &state, &reached, record)?;
        }
        Ok(())
    }

    /// The new row, and the rows that it stands for instead: of one of them it is the change, the others go.
    fn send_change(
        &self,
        context: NodeContext<'_>,
        place: Place<'_>,
        state: &TableState,
        reached: &[SessionRow],
        record: &AnyRecord,
    ) -> Result<()> {
        let mut replaced = None;
        for session in reached {
            let old = Place { start: session.start, end: session.end, ..place };
            let Some(row) = self.spec.result(old, held(session)?, false)? else { continue };
            if session.start == place.start {
                replaced = Some(row);
            } else {
                send(context, place.key, (None, Some(row)), session.end, record.headers.clone())?;
            }
        }
        let new = self.spec.result(place, state, false)?;
        if new.is_none() && replaced.is_none() {
            return Ok(());
        }
        send(context, place.key, (new, replaced), place.end, record.headers.clone())
    }

    /// Emits and forgets what the clock has passed.
    fn advance(&self, context: NodeContext<'_>, clock: Timestamp) -> Result<()> {
        let (store, clocks) = super::ready(self.ready)?;
        let open = self.first_open_end(clock);
        let closed = context.clock(clocks.closed);
        if open > closed {
            if self.spec.on_close {
                let rows = context.with_session(store, |rows| rows.fetch_closed(closed, open - 1))?;
                for session in rows {
                    let place = Place { key: &session.key, start: session.start, end: session.end };
                    self.spec.send_final(context, place, held(&session)?, session.end)?;
                }
            }
            context.set_clock(clocks.closed, open);
        }
        if self.spec.on_close {
            // The results of open sessions are still to come.
            context.hold_watermark(context.clock(clocks.closed));
        }
        let kept = open.saturating_sub(self.spec.retention_ms);
        let forgotten = context.clock(clocks.forgotten);
        if kept > forgotten {
            let at = context.record_context();
            context.with_session(store, |rows| {
                for session in rows.fetch_closed(forgotten, kept - 1)? {
                    rows.put(session.key, session.start, session.end, None, &at)?;
                }
                Ok(())
            })?;
            context.set_clock(clocks.forgotten, kept);
        }
        Ok(())
    }
}

fn held(session: &SessionRow) -> Result<&TableState> {
    session
        .value
        .downcast_ref::<TableState>()
        .ok_or_else(|| StreamsError::fatal("a session store holds something else than states"))
}

impl AnyProcessor for SessionProcessor {
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
        self.add(context, &key, &record, self.first_open_end(clock))?;
        if context.watermark().is_none() { self.advance(context, clock) } else { Ok(()) }
    }

    fn watermark_advanced(&mut self, context: NodeContext<'_>, watermark: Timestamp) -> Result<()> {
        self.advance(context, watermark)
    }
}
