//! How a blocking `poll` sleeps: each consumer has one [`Waiter`]; what it waits for keeps it in a [`WaitList`].
//!
//! A list is emptied when it wakes its waiters, so that a producer pays for a sleeping reader once and not per record.
//! Both sides hold the broker's lock, therefore no wake-up falls between a reader's look and its sleep.

use std::{
    sync::{
        Arc, Condvar, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The place where one consumer sleeps.
#[derive(Default)]
pub(super) struct Waiter {
    signal: Condvar,
    woken: AtomicBool,
}

impl Waiter {
    /// Call before entering lists.
    pub(super) fn arm(&self) {
        self.woken.store(false, Ordering::Relaxed);
    }

    /// Gives the lock away until woken or `timeout`.
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        let asleep = |_: &mut T| !self.woken.load(Ordering::Relaxed);
        let result = self.signal.wait_timeout_while(guard, timeout, asleep);
        result.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wake(&self) {
        if !self.woken.swap(true, Ordering::Relaxed) {
            self.signal.notify_all();
        }
    }
}

/// Who waits for one thing.
#[derive(Default)]
pub(super) struct WaitList(Vec<Arc<Waiter>>);

impl WaitList {
    pub(super) fn enter(&mut self, waiter: &Arc<Waiter>) {
        if !self.0.iter().any(|w| Arc::ptr_eq(w, waiter)) {
            self.0.push(waiter.clone());
        }
    }

    pub(super) fn wake_all(&mut self) {
        for waiter in self.0.drain(..) {
            waiter.wake();
        }
    }
}
