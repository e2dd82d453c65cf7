//! Rows of a table that have changed since they were last written: records of one row and commit change it in memory, and the row is
//! written, logged and sent on once, as with Kafka Streams' record caches.
//!
//! The rows leave before every commit, so they need no changelog, and before any window closes. What must always hold: a row leaves with
//! everything that came for it, in the order in which the rows first changed.

use std::{hash::BuildHasher, sync::Arc};

use hashbrown::HashTable;

use super::table_state::TableState;
use crate::streams::record::{ByteKey, Headers, RecordContext, Timestamp};

/// Rows that may wait before they leave early.
const ROWS_MAX: usize = 10_000;
/// Folding costs more than it spares where fewer records than this, in percent of the rows, come for the rows that wait.
const WORTHWHILE_PERCENT: usize = 125;
/// Records that are not folded then, before it is tried again.
const RECORDS_UNFOLDED: usize = 20 * ROWS_MAX;

/// A row on its way into the store.
pub(super) struct PendingRow {
    /// The group key.
    pub key: ByteKey,
    /// The window's start; 0 without windows.
    pub start: Timestamp,
    /// What the store has.
    pub before: Option<Arc<TableState>>,
    /// What it is to have.
    pub state: TableState,
    /// The row's newest record.
    pub time: Timestamp,
    /// Headers of the record that came last.
    pub headers: Headers,
    /// Where the first record came from: what goes wrong with the row is told of it.
    pub context: RecordContext,
    /// Whether a record is in; one that could not be folded in leaves the row as it was.
    pub changed: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Pending {
    rows: Vec<PendingRow>,
    /// Places in `rows`.
    index: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    /// Records that came for them.
    records: usize,
    /// Records that are still not to be folded.
    unfolded: usize,
    /// What had been vouched for when the first of the rows changed: none of them sends anything that is older to what is behind it.
    held: Timestamp,
}

impl PendingRow {
    /// Notes that a record has been folded in.
    pub(super) fn take(&mut self, time: Timestamp, headers: Headers) {
        self.time = self.time.max(time);
        self.headers = headers;
        self.changed = true;
    }
}

impl Pending {
    fn hash(hasher: &foldhash::fast::RandomState, start: Timestamp, key: &[u8]) -> u64 {
        hasher.hash_one((start, key))
    }

    /// The place of a row.
    pub(super) fn find(&self, start: Timestamp, key: &[u8]) -> Option<usize> {
        let hash = Self::hash(&self.hasher, start, key);
        let same = |at: &u32| {
            let row = &self.rows[*at as usize];
            row.start == start && row.key.as_slice() == key
        };
        self.index.find(hash, same).map(|at| *at as usize)
    }

    /// Adds a row that is not here yet, while `watermark` is vouched for; returns its place.
    pub(super) fn add(&mut self, row: PendingRow, watermark: Timestamp) -> usize {
        let at = self.rows.len();
        if at == 0 {
            self.held = watermark;
        }
        let (rows, hasher) = (&self.rows, &self.hasher);
        let rehash = |at: &u32| Self::hash(hasher, rows[*at as usize].start, &rows[*at as usize].key);
        // No more than `ROWS_MAX` and the windows of one record: 32 bits hold the place.
        self.index.insert_unique(Self::hash(hasher, row.start, &row.key), at as u32, rehash);
        self.rows.push(row);
        at
    }

    /// Whether the next record is to be folded: not for a while, where hardly two records met in a row.
    pub(super) fn folds_next(&mut self) -> bool {
        if self.unfolded > 0 {
            self.unfolded -= 1;
            return false;
        }
        self.records += 1;
        true
    }

    /// A row by its place.
    pub(super) fn row(&mut self, at: usize) -> &mut PendingRow {
        &mut self.rows[at]
    }

    /// How far what is behind the table may be told that time has gone, while rows wait.
    pub(super) fn held(&self) -> Option<Timestamp> {
        (!self.rows.is_empty()).then_some(self.held)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether rows should leave before the commit: memory is bounded.
    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= ROWS_MAX
    }

    /// All rows, in the order in which they first changed; none are left.
    pub(super) fn take(&mut self) -> Vec<PendingRow> {
        self.index.clear();
        let records = std::mem::take(&mut self.records);
        // Few rows tell nothing yet, and cost nothing.
        if self.rows.len() >= ROWS_MAX / 10 && records * 100 < self.rows.len() * WORTHWHILE_PERCENT {
            self.unfolded = RECORDS_UNFOLDED;
        }
        std::mem::take(&mut self.rows)
    }
}
