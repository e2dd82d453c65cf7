//! Folding before the repartition: records of one key, window and commit become one partial result.
//!
//! Only for tables whose aggregates all merge. The parts wait in memory and leave before the commit, so they need no changelog. What must
//! always hold: what a rewound task had folded is forgotten before its records come again.

use std::{collections::BTreeMap, sync::Arc};

use super::{key_of, row_of, table::TableSpec, table_state::PartialState};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, ClockId, DropReason, NodeContext},
    record::{AnyRecord, Headers, Timestamp},
};

/// Parts that may wait before they leave early.
const PARTS_MAX: usize = 10_000;

/// See the module's documentation.
pub(super) struct PartialProcessor {
    spec: Arc<TableSpec>,
    /// Slots that make the carried row.
    carried: Arc<[usize]>,
    /// By window, then key, which is the order in which they leave; the headers are those of the newest record.
    parts: BTreeMap<(Timestamp, Vec<u8>), (PartialState, Headers)>,
    /// Counts folds. The task rewinds it with its state, so that a difference to `folds` tells that the parts are not of this life.
    clock: Option<ClockId>,
    folds: i64,
}

impl PartialProcessor {
    /// Folds for a table, of rows with these slots.
    pub(super) fn new(spec: Arc<TableSpec>, carried: Arc<[usize]>) -> Self {
        Self { spec, carried, parts: BTreeMap::new(), clock: None, folds: 0 }
    }

    fn emit(&mut self, context: NodeContext<'_>) -> Result<()> {
        for ((_, key), (partial, headers)) in std::mem::take(&mut self.parts) {
            let time = partial.time;
            context.forward(AnyRecord::new(Some(Arc::new(key)), Some(Arc::new(partial)), time, headers))?;
        }
        Ok(())
    }

    fn forget_if_rewound(&mut self, context: NodeContext<'_>) -> Result<ClockId> {
        let clock = super::ready(self.clock)?;
        let folds = context.clock(clock);
        if folds != self.folds {
            self.parts.clear();
            self.folds = folds;
        }
        Ok(clock)
    }
}

impl AnyProcessor for PartialProcessor {
    fn init(&mut self, context: NodeContext<'_>) -> Result<()> {
        let clock = context.register_clock("folds", 0);
        self.clock = Some(clock);
        self.folds = context.clock(clock);
        self.parts.clear();
        Ok(())
    }

    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let clock = self.forget_if_rewound(context)?;
        let input = row_of(&record)?;
        let row = self.carried.iter().map(|slot| input[*slot].clone()).collect();
        let Some(key) = key_of(self.spec.group_by.iter().map(|slot| &input[self.carried[*slot]])) else {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        };
        let time = record.timestamp;
        let starts = self.spec.starts_of(time);
        // First everything that may fail: a record is in all of its windows or in none.
        if let [start] = starts[..] {
            let fresh = || (PartialState { start, time, state: self.spec.empty() }, Headers::EMPTY);
            let (partial, headers) = self.parts.entry((start, key)).or_insert_with(fresh);
            self.spec.add(&mut partial.state, &row, time)?;
            (partial.time, *headers) = (partial.time.max(time), record.headers);
        } else {
            let mut changed = Vec::with_capacity(starts.len());
            for start in starts {
                let place = (start, key.clone());
                let held = self.parts.get(&place).map(|(partial, _)| partial.clone());
                let fresh = || PartialState { start, time, state: self.spec.empty() };
                let mut partial = held.unwrap_or_else(fresh);
                self.spec.add(&mut partial.state, &row, time)?;
                partial.time = partial.time.max(time);
                changed.push((place, (partial, record.headers.clone())));
            }
            self.parts.extend(changed);
        }
        self.folds += 1;
        context.set_clock(clock, self.folds);
        if self.parts.len() >= PARTS_MAX { self.emit(context) } else { Ok(()) }
    }

    fn prepare_commit(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.forget_if_rewound(context)?;
        self.emit(context)
    }
}
