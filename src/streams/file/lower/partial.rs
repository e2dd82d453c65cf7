//! Folding before the repartition: records of one key, window and commit become one partial result.
//!
//! Only for tables whose aggregates all merge. The parts wait in memory and leave before the commit, so they need no changelog. A task that
//! is rewound is built again, so what it had folded is forgotten before its records come again.

use std::sync::Arc;

use hashbrown::HashMap;

use super::{codec::write_key, row_of, table::TableSpec, table_state::PartialState};
use crate::streams::{
    error::Result,
    processor::{AnyProcessor, DropReason, NodeContext},
    record::{AnyRecord, ByteKey, Headers, Timestamp},
};

/// Parts that may wait before they leave early.
const PARTS_MAX: usize = 10_000;

/// Of one window and key.
type Place = (Timestamp, ByteKey);

/// A part on its way, with the headers of its newest record.
type Part = (PartialState, Headers);

/// See the module's documentation.
pub(super) struct PartialProcessor {
    spec: Arc<TableSpec>,
    /// Slots that make the carried row.
    carried: Arc<[usize]>,
    parts: HashMap<Place, Part, foldhash::fast::RandomState>,
    /// The key of the record at hand.
    key: Vec<u8>,
}

impl PartialProcessor {
    /// Folds for a table, of rows with these slots.
    pub(super) fn new(spec: Arc<TableSpec>, carried: Arc<[usize]>) -> Self {
        Self { spec, carried, parts: HashMap::default(), key: Vec::new() }
    }

    /// Parts leave by window, then key: what is sent does not depend on a hash.
    fn emit(&mut self, context: NodeContext<'_>) -> Result<()> {
        let mut parts: Vec<(Place, Part)> = self.parts.drain().collect();
        parts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        // A record that could not be folded in leaves an empty part, which says nothing.
        for ((_, key), (partial, headers)) in parts.into_iter().filter(|(_, part)| part.0.state.revision > 0)
        {
            let (key, time) = (Arc::new(key.to_vec()), partial.time);
            context.forward(AnyRecord::new(Some(key), Some(Arc::new(partial)), time, headers))?;
        }
        Ok(())
    }
}

impl AnyProcessor for PartialProcessor {
    fn process(&mut self, context: NodeContext<'_>, record: AnyRecord) -> Result<()> {
        let input = row_of(&record)?;
        let row = self.carried.iter().map(|slot| input[*slot].clone()).collect();
        self.key.clear();
        let grouped = self.spec.group_by.iter().map(|slot| &input[self.carried[*slot]]);
        if !write_key(grouped, &mut self.key) {
            context.drop_record(DropReason::NullKey);
            return Ok(());
        }
        let time = record.timestamp;
        let starts = self.spec.starts_of(time);
        // First everything that may fail: a record is in all of its windows or in none.
        if let [start] = starts[..] {
            let fresh = || (PartialState { start, time, state: self.spec.empty() }, Headers::EMPTY);
            let place = (start, ByteKey::new(&self.key));
            let (partial, headers) = self.parts.entry(place).or_insert_with(fresh);
            self.spec.add(&mut partial.state, &row, time)?;
            (partial.time, *headers) = (partial.time.max(time), record.headers);
        } else {
            let mut changed = Vec::with_capacity(starts.len());
            for start in starts {
                let place = (start, ByteKey::new(&self.key));
                let held = self.parts.get(&place).map(|(partial, _)| partial.clone());
                let fresh = || PartialState { start, time, state: self.spec.empty() };
                let mut partial = held.unwrap_or_else(fresh);
                self.spec.add(&mut partial.state, &row, time)?;
                partial.time = partial.time.max(time);
                changed.push((place, (partial, record.headers.clone())));
            }
            self.parts.extend(changed);
        }
        if self.parts.len() >= PARTS_MAX { self.emit(context) } else { Ok(()) }
    }

    fn prepare_commit(&mut self, context: NodeContext<'_>) -> Result<()> {
        self.emit(context)
    }
}
