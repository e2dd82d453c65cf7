//! [`KeyValueTable`]: the rows of a key-value store, decoded, in memory, over the state file where there is one.
//!
//! The innermost layer: no logging, no cache. Rows are in unsigned byte order of the key when listed.
//!
//! With a state file the table is a write buffer over it:
//! * a write goes to the table and is *unsaved* until a save that took it is durable; a delete stays as a row without a
//!   value until then;
//! * a read looks in the table, then in the file, unless the table is known to hold every row;
//! * only saved rows may be evicted, those not used since the last round first.

use std::{ops::Bound, sync::Arc};

use super::{
    ChangelogRecord, KeyValueStore, Order, StateStore, ValueAndTimestamp,
    changed::Changed,
    indexed_map::IndexedMap,
    layout::{restored_key, restored_value},
    memory::{RowSize, Share},
    sqlite::{SqlRow, SqlTable, StoreMeta, StoreSnapshot, TableSnapshot, Unsaved},
};
use crate::streams::{
    error::{ProcessingError, Result},
    record::{ByteKey, ConsumerRecord, RecordContext},
    serdes::AnySerde,
};

/// What a row takes besides its content: key, slot, table, lists.
const ROW_BYTES: u64 = 150;

struct Slot {
    /// `None`: deleted, and the file does not know yet.
    value: Option<ValueAndTimestamp>,
    /// The save that takes the last change; 0 = loaded from the file.
    save: u32,
    /// Read or written since the last eviction round.
    used: bool,
}

/// What a table with a state file keeps besides its rows.
struct Durable {
    table: Arc<SqlTable>,
    /// Whether every row of the store is in memory, so that a miss needs no read of the file.
    complete: bool,
    /// Number of the next save. A row is unsaved iff its `save` is larger than `durable`.
    next_save: u32,
    /// The last save known to be durable.
    durable: u32,
    /// Keys changed since the last snapshot.
    changed: Changed<ByteKey>,
    /// Keys that the snapshot being saved deletes.
    deleting: Vec<ByteKey>,
    /// Rows of the store, approximate.
    rows: u64,
    share: Share,
    row_size: RowSize,
}

/// Key-value rows in memory.
pub(super) struct KeyValueTable {
    name: String,
    value_serde: AnySerde,
    rows: IndexedMap<ByteKey, Slot>,
    durable: Option<Durable>,
    /// See [`count_up`].
    counts_prefixes: bool,
}

impl KeyValueTable {
    pub(super) fn new(
        name: &str,
        value_serde: AnySerde,
        table: Option<Arc<SqlTable>>,
        counts_prefixes: bool,
    ) -> Result<Self> {
        let durable = table.map(Durable::open).transpose()?;
        let (name, rows) = (name.to_owned(), IndexedMap::default());
        Ok(Self { name, value_serde, rows, durable, counts_prefixes })
    }

    fn set(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>) {
        let Some(durable) = &mut self.durable else {
            match value {
                Some(value) => {
                    self.rows.insert(key, Slot { value: Some(value), save: 0, used: true });
                }
                None => drop(self.rows.remove(key.as_slice())),
            }
            return;
        };
        durable.changed.count_write();
        if let Some(value) = &value {
            durable.row_size.weigh(&key, &value.value, &self.value_serde);
        }
        let rows = self.rows.len();
        match self.rows.get_mut(key.as_slice()) {
            Some(slot) => {
                durable.rows += u64::from(value.is_some() && slot.value.is_none());
                durable.rows -= u64::from(value.is_none() && slot.value.is_some()).min(durable.rows);
                if slot.save != durable.next_save {
                    slot.save = durable.next_save;
                    durable.changed.note(rows, || key);
                }
                slot.value = value;
                slot.used = true;
            }
            None => {
                if value.is_none() && durable.complete {
                    return;
                }
                durable.rows += u64::from(value.is_some());
                durable.changed.note(rows, || key.clone());
                self.rows.insert(key, Slot { value, save: durable.next_save, used: true });
            }
        }
    }

    /// Rows of a range from memory and file, ascending.
    fn scan(&mut self, range: (Bound<ByteKey>, Bound<ByteKey>)) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        let file = match &self.durable {
            Some(durable) if !durable.complete => durable.table.range(&range)?,
            _ => Vec::new(),
        };
        let mut memory = self.rows.range(range).into_iter().peekable();
        let mut found = Vec::new();
        let mut push = |key: ByteKey, value: Option<ValueAndTimestamp>| {
            found.extend(value.map(|value| (key, value)));
        };
        for row in file {
            while let Some((key, slot)) = memory.next_if(|(key, _)| *key < row.key) {
                push(key, slot.value.clone());
            }
            // What memory holds is newer than the file.
            match memory.next_if(|(key, _)| *key == row.key) {
                Some((key, slot)) => push(key, slot.value.clone()),
                None => push(row.key, row.value),
            }
        }
        for (key, slot) in memory {
            push(key, slot.value.clone());
        }
        Ok(found)
    }

    /// Drops saved rows while there is too much in memory. Two rounds: those not used since the last time, then any.
    fn evict(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        let (rows, row) = (self.rows.len(), durable.row_size.bytes());
        let Some(keep) = durable.share.excess(rows as u64 * row) else { return };
        let mut excess = rows.saturating_sub((keep / row) as usize);
        let saved = durable.durable;
        for round in 0..2 {
            let before = self.rows.len();
            self.rows.evict(&mut excess, |slot| {
                let evict = slot.save <= saved && (round == 1 || !slot.used);
                slot.used = false;
                evict
            });
            durable.complete &= self.rows.len() == before;
        }
        durable.share.note(self.rows.len() as u64 * row);
    }
}

impl Durable {
    fn open(table: Arc<SqlTable>) -> Result<Self> {
        Ok(Self {
            complete: table.is_empty()?,
            rows: table.meta()?.rows,
            share: table.shared().share(),
            row_size: RowSize::new(ROW_BYTES),
            table,
            next_save: 1,
            durable: 0,
            changed: Changed::default(),
            deleting: Vec::new(),
        })
    }
}

impl StateStore for KeyValueTable {
    fn name(&self) -> &str {
        &self.name
    }

    fn drain_changelog(&mut self, _: &mut Vec<ChangelogRecord>) -> Result<()> {
        Ok(())
    }

    fn restore(&mut self, records: &[ConsumerRecord]) -> Result<()> {
        for record in records {
            let key = ByteKey::new(restored_key(&self.name, record)?);
            let value = restored_value(&self.name, &self.value_serde, record)?;
            self.set(key, value);
        }
        Ok(())
    }

    fn discard_uncommitted(&mut self) -> Result<()> {
        self.rows.clear();
        if let Some(durable) = &mut self.durable {
            // A save under way holds only what was committed; it is part of what the file reflects.
            durable.table.shared().finish_save()?;
            *durable = Durable::open(durable.table.clone())?;
        }
        Ok(())
    }

    fn approximate_num_entries(&self) -> u64 {
        self.durable.as_ref().map_or(self.rows.len() as u64, |durable| durable.rows)
    }

    fn unsaved(&self) -> Unsaved {
        self.durable.as_ref().map_or_else(Unsaved::default, |durable| {
            let (changed, row) = (durable.changed.count(), durable.row_size.bytes());
            durable.share.note(self.rows.len() as u64 * row);
            Unsaved { changed, writes: durable.changed.writes(), rows: durable.rows, bytes: changed * row }
        })
    }

    fn snapshot(&mut self) -> Result<Option<StoreSnapshot>> {
        let Some(durable) = &mut self.durable else { return Ok(None) };
        let taken = durable.next_save;
        durable.next_save += 1;
        let row = |key: &ByteKey, slot: Option<&Slot>| SqlRow {
            segment: 0,
            key: key.clone(),
            time: 0,
            sub: 0,
            value: slot.and_then(|slot| slot.value.clone()),
        };
        let count = durable.changed.count();
        let rows: Vec<SqlRow> = match durable.changed.take() {
            None => {
                // As large as it will be: growing would copy it, and touch new memory, several times.
                let mut rows = Vec::with_capacity(count as usize);
                let changed = self.rows.iter().filter(|(_, slot)| slot.save == taken);
                rows.extend(changed.map(|(key, slot)| row(key, Some(slot))));
                rows
            }
            Some(changed) => changed.iter().map(|key| row(key, self.rows.get(key.as_slice()))).collect(),
        };
        durable.deleting = rows.iter().filter(|row| row.value.is_none()).map(|row| row.key.clone()).collect();
        let snapshot = TableSnapshot {
            rows,
            replaced: Vec::new(),
            first_segment: None,
            meta: StoreMeta { observed: -1, seq: 0, rows: durable.rows },
        };
        Ok(Some(StoreSnapshot::new(durable.table.clone(), snapshot)))
    }

    fn mark_saved(&mut self) {
        let Some(durable) = &mut self.durable else { return };
        durable.durable = durable.next_save - 1;
        for key in std::mem::take(&mut durable.deleting) {
            // A delete that the file knows needs no row, unless it was written again meanwhile.
            if self
                .rows
                .get(key.as_slice())
                .is_some_and(|slot| slot.value.is_none() && slot.save <= durable.durable)
            {
                self.rows.remove(key.as_slice());
            }
        }
        self.evict();
    }
}

impl KeyValueStore for KeyValueTable {
    fn get(&mut self, key: &[u8]) -> Result<Option<ValueAndTimestamp>> {
        if let Some(slot) = self.rows.get_mut(key) {
            slot.used = true;
            return Ok(slot.value.clone());
        }
        match &self.durable {
            Some(durable) if !durable.complete => {
                let found = durable.table.get(key)?;
                if let Some(value) = &found {
                    let slot = Slot { value: Some(value.clone()), save: 0, used: true };
                    self.rows.insert(ByteKey::new(key), slot);
                    if self.rows.len().is_multiple_of(1024) {
                        self.evict();
                    }
                }
                Ok(found)
            }
            _ => Ok(None),
        }
    }

    fn put(&mut self, key: ByteKey, value: Option<ValueAndTimestamp>, _: &RecordContext) -> Result<()> {
        self.set(key, value);
        Ok(())
    }

    fn range(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        order: Order,
    ) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        let mut rows = self.scan((
            from.map_or(Bound::Unbounded, |from| Bound::Included(ByteKey::new(from))),
            to.map_or(Bound::Unbounded, |to| Bound::Included(ByteKey::new(to))),
        ))?;
        if order == Order::Backward {
            rows.reverse();
        }
        Ok(rows)
    }

    fn prefix_scan(&mut self, prefix: &[u8]) -> Result<Vec<(ByteKey, ValueAndTimestamp)>> {
        if self.counts_prefixes {
            count_up(prefix)?;
        }
        self.scan(prefix_range(prefix))
    }
}

/// Kafka finds the end of a range of prefixes by counting the prefix up (`Bytes.increment`), and fails where there is none: an empty
/// prefix, or 0xff throughout. Its persistent stores know better, those in memory and the cache do not.
pub(super) fn count_up(prefix: &[u8]) -> Result<()> {
    if prefix.iter().all(|byte| *byte == 0xff) {
        let message = "no prefix comes after this one";
        return Err(ProcessingError::new("IndexOutOfBoundsException", message).into());
    }
    Ok(())
}

/// The range of all keys that start with `prefix`.
pub(super) fn prefix_range(prefix: &[u8]) -> (Bound<ByteKey>, Bound<ByteKey>) {
    if prefix.is_empty() {
        return (Bound::Unbounded, Bound::Unbounded);
    }
    // The smallest key after all those with the prefix: drop trailing 0xff, add one to what is then last.
    let end = prefix.iter().rposition(|byte| *byte != 0xff).map(|last| {
        let mut end = prefix[..=last].to_vec();
        end[last] += 1;
        ByteKey::from(end)
    });
    (Bound::Included(ByteKey::new(prefix)), end.map_or(Bound::Unbounded, Bound::Excluded))
}
