//! [`Changed`]: which rows of a table have changed since the last snapshot.
//!
//! Each is listed while they are few. Once they are a good part of the table a walk over it finds them as cheaply as a look-up in
//! cold memory for each, and the list, which takes as much memory as the rows' keys, goes.

/// Never walk a table for fewer.
const LISTED_MIN: u64 = 4_096;
/// Walk for at least one row in this many.
const WALKED_SHARE: u64 = 8;

/// Rows of a table by their names, each once.
pub(super) struct Changed<T> {
    count: u64,
    /// Writes, of which a row may have had several.
    writes: u64,
    /// `None`: too many to list.
    listed: Option<Vec<T>>,
}

impl<T> Default for Changed<T> {
    fn default() -> Self {
        Self { count: 0, writes: 0, listed: Some(Vec::new()) }
    }
}

impl<T> Changed<T> {
    /// Notes a row that has not changed before, in a table that holds so many in memory.
    pub(super) fn note(&mut self, rows: usize, row: impl FnOnce() -> T) {
        self.count += 1;
        if let Some(listed) = &mut self.listed {
            if self.count >= LISTED_MIN && self.count * WALKED_SHARE >= rows as u64 {
                self.listed = None;
            } else {
                listed.push(row());
            }
        }
    }

    /// Counts a write, of a row that has changed before or not.
    pub(super) fn count_write(&mut self) {
        self.writes += 1;
    }

    /// How many writes there were.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// How many rows.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The rows; `None` when the table is to be walked. None are left.
    pub(super) fn take(&mut self) -> Option<Vec<T>> {
        std::mem::take(self).listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_listed_and_many_are_walked_for() {
        let mut changed = Changed::default();
        (0..LISTED_MIN).for_each(|row| changed.note(100_000, || row));
        assert_eq!(changed.take(), Some((0..LISTED_MIN).collect()));
        assert_eq!(changed.count(), 0);
        (0..LISTED_MIN).for_each(|row| changed.note((LISTED_MIN * WALKED_SHARE) as usize, || row));
        assert_eq!(changed.count(), LISTED_MIN);
        assert_eq!(changed.take(), None);
        assert_eq!(changed.take(), Some(Vec::new()));
    }
}
