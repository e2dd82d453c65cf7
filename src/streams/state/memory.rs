//! [`StateMemory`]: how much memory the rows of stores over state files may take, shared by all tasks of an application.
//!
//! Each store says what it holds ([`Share`]). While all of them together are over the budget, each store that looks lets go of saved rows
//! until it is down to three quarters of its part; rows that are not saved yet cannot go, so tasks are saved when those take more than
//! half of it, and wait for that when a quarter more than the budget is taken. What a row takes is learned from the rows ([`RowSize`]).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::streams::{record::AnyValue, serdes::AnySerde};

/// See the module's documentation.
#[derive(Debug)]
pub struct StateMemory {
    max_bytes: u64,
    /// Bytes of all rows in memory.
    used: AtomicU64,
    /// Bytes of those that are not saved.
    unsaved: AtomicU64,
    /// State files open.
    files: AtomicU64,
    /// Saves under way.
    saves: AtomicU64,
}

impl StateMemory {
    /// A budget of so many bytes.
    pub fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            max_bytes,
            used: AtomicU64::new(0),
            unsaved: AtomicU64::new(0),
            files: AtomicU64::new(0),
            saves: AtomicU64::new(0),
        })
    }

    /// Whether the rows of some file are being saved.
    pub(super) fn is_saving(&self) -> bool {
        self.saves.load(Relaxed) > 0
    }

    /// Whether rows take far more than they may: they come in faster than they are saved.
    pub(super) fn is_far_over(&self) -> bool {
        self.used.load(Relaxed) > self.max_bytes.saturating_add(self.max_bytes / 4)
    }

    /// Bytes of all rows in memory.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }
}

/// What one store takes of the budget.
pub(super) struct Share {
    memory: Arc<StateMemory>,
    bytes: AtomicU64,
}

impl Share {
    pub(super) fn new(memory: &Arc<StateMemory>) -> Self {
        Self { memory: memory.clone(), bytes: AtomicU64::new(0) }
    }

    /// What all stores together may take.
    pub(super) fn max_bytes(&self) -> u64 {
        self.memory.max_bytes
    }

    /// The store holds so many bytes now.
    pub(super) fn note(&self, bytes: u64) {
        replace(&self.memory.used, &self.bytes, bytes);
    }

    /// As [`note`](Self::note). `Some`: there is too much in memory, and the store should keep so many bytes of its own.
    pub(super) fn excess(&self, bytes: u64) -> Option<u64> {
        self.note(bytes);
        let (used, max) = (self.memory.used.load(Relaxed), self.memory.max_bytes);
        // In floating point: the product may be beyond 64 bits, and a byte more or less is nothing.
        (used > max).then(|| (bytes as f64 * (max as f64 * 0.75 / used as f64)) as u64)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.note(0);
    }
}

/// The unsaved rows of one state file.
pub(super) struct UnsavedShare {
    memory: Arc<StateMemory>,
    bytes: AtomicU64,
}

impl UnsavedShare {
    pub(super) fn new(memory: &Arc<StateMemory>) -> Self {
        memory.files.fetch_add(1, Relaxed);
        Self { memory: memory.clone(), bytes: AtomicU64::new(0) }
    }

    /// The file lacks rows of so many bytes. Whether it must be saved for their sake: there is too much in memory, all files together lack
    /// more than half of the budget, and this one is not better than the others.
    pub(super) fn is_too_much(&self, bytes: u64) -> bool {
        replace(&self.memory.unsaved, &self.bytes, bytes);
        let unsaved = self.memory.unsaved.load(Relaxed);
        self.memory.used.load(Relaxed) > self.memory.max_bytes
            && unsaved > self.memory.max_bytes / 2
            && bytes.saturating_mul(self.memory.files.load(Relaxed)) >= unsaved
    }
}

impl Drop for UnsavedShare {
    fn drop(&mut self) {
        replace(&self.memory.unsaved, &self.bytes, 0);
        self.memory.files.fetch_sub(1, Relaxed);
    }
}

/// A save that is under way until this is dropped.
pub(super) struct SaveUnderWay(Arc<StateMemory>);

impl SaveUnderWay {
    pub(super) fn new(memory: &Arc<StateMemory>) -> Self {
        memory.saves.fetch_add(1, Relaxed);
        Self(memory.clone())
    }
}

impl Drop for SaveUnderWay {
    fn drop(&mut self) {
        self.0.saves.fetch_sub(1, Relaxed);
    }
}

/// Replaces one's part of a sum.
fn replace(sum: &AtomicU64, part: &AtomicU64, bytes: u64) {
    let before = part.swap(bytes, Relaxed);
    // Wraps for less than before; the sum does not, as every part is in it.
    sum.fetch_add(bytes.wrapping_sub(before), Relaxed);
}

/// One value in so many is weighed.
const WEIGHED: u32 = 64;

/// What a row of a store takes in memory, estimated from the bytes of some of its rows.
pub(super) struct RowSize {
    /// What every row takes: its slots in tables and lists.
    fixed: u64,
    /// What keys and values take beyond it, smoothed.
    content: u64,
    /// Values until the next is weighed.
    wait: u32,
    scratch: Vec<u8>,
}

impl RowSize {
    pub(super) fn new(fixed: u64) -> Self {
        // Until the first row tells better.
        Self { fixed, content: 100, wait: 0, scratch: Vec::new() }
    }

    /// A value is put.
    pub(super) fn weigh(&mut self, key: &[u8], value: &AnyValue, serde: &AnySerde) {
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        self.wait = WEIGHED - 1;
        self.scratch.clear();
        // What cannot be written is somebody else's to tell.
        if serde.serialize(value, &mut self.scratch).is_ok() {
            // Decoded, a value takes about twice what its bytes do: pointers, lengths, and blocks larger than what is in them.
            let content = 2 * self.scratch.len() as u64 + key.len().saturating_sub(24) as u64;
            self.content = (3 * self.content + content) / 4;
        }
    }

    /// Estimated bytes of a row.
    pub(super) fn bytes(&self) -> u64 {
        self.fixed + self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_share_a_budget() {
        let memory = StateMemory::new(1_000);
        let (first, second) = (Share::new(&memory), Share::new(&memory));
        assert_eq!((first.excess(600), second.excess(400)), (None, None));
        assert_eq!(second.excess(1_400), Some(525), "three quarters of 1400 in 2000 for 1000");
        assert_eq!(first.excess(600), Some(225));
        first.note(100);
        assert_eq!(second.excess(900), None);
        drop(second);
        assert_eq!(first.excess(1_000), None, "what is closed takes nothing");
    }

    #[test]
    fn the_files_that_lack_most_are_saved() {
        let memory = StateMemory::new(1_000);
        let rows = Share::new(&memory);
        let (first, second) = (UnsavedShare::new(&memory), UnsavedShare::new(&memory));
        rows.note(1_000);
        assert!(!first.is_too_much(200) && !second.is_too_much(800), "all of it has room");
        rows.note(1_001);
        assert!(!first.is_too_much(200) && !second.is_too_much(300));
        assert!(second.is_too_much(301));
        assert!(!first.is_too_much(200) && first.is_too_much(400));
        drop(second);
        assert!(!first.is_too_much(500) && first.is_too_much(501), "alone it may lack half");
    }

    #[test]
    fn a_save_is_under_way_until_it_ends() {
        let memory = StateMemory::new(1_000);
        let (first, second) = (SaveUnderWay::new(&memory), SaveUnderWay::new(&memory));
        drop(first);
        assert!(memory.is_saving());
        drop(second);
        assert!(!memory.is_saving());
    }

    #[test]
    fn rows_are_weighed_now_and_then() {
        let serde = AnySerde::new::<String>(crate::streams::serdes::StringSerde);
        let mut size = RowSize::new(50);
        let value: AnyValue = Arc::new("x".repeat(1_000));
        (0..64 * 40).for_each(|_| size.weigh(b"key", &value, &serde));
        assert!((1_950..=2_060).contains(&size.bytes()), "{}", size.bytes());
    }
}
