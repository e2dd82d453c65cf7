//! [`InputHold`]: how far the threads of an application may read its external inputs.
//!
//! Set from outside while threads run, looked at by each thread in every turn. Holding the inputs lets everything inside the
//! application (repartition topics) run dry, after which its topology may be exchanged; limits let a second application reach exactly
//! the offsets of the first. What must always hold: with a limit, no record at or behind it is processed.
//!
//! Whoever asks whether all is settled waits for commits, and a commit can bring what the next has to settle (a watermark written
//! downstream): once somebody has asked, a thread that has run dry commits sooner than its interval says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::streams::record::TopicPartition;

/// How far inputs may be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// As far as they go.
    #[default]
    Free,
    /// Not beyond what has been read already.
    Here,
    /// Up to these offsets, which are not read themselves; partitions that are not named are not read at all.
    Before(Arc<BTreeMap<TopicPartition, i64>>),
    /// As `Before`, and the watermark stands: silence while nothing may be read says nothing of the inputs.
    LastBefore(Arc<BTreeMap<TopicPartition, i64>>),
}

impl Hold {
    /// The offsets, where there are some.
    pub fn limits(&self) -> Option<&BTreeMap<TopicPartition, i64>> {
        match self {
            Hold::Before(limits) | Hold::LastBefore(limits) => Some(limits),
            Hold::Free | Hold::Here => None,
        }
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct InputHold {
    version: AtomicU64,
    awaited: AtomicBool,
    hold: Mutex<Hold>,
}

impl InputHold {
    /// Changes it, for all threads. Whoever waited for what held before asks again.
    pub fn set(&self, hold: Hold) {
        self.awaited.store(false, Ordering::Relaxed);
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = hold;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Somebody waits until what may be read is settled.
    pub fn wait_for_settlement(&self) {
        self.awaited.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked since it was last set.
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    /// Counts changes; 0 before the first.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What holds now, and its version. Read in this order so that a change in between is seen by the next look.
    pub fn get(&self) -> (u64, Hold) {
        let version = self.version();
        (version, self.hold.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
