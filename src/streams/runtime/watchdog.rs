//! [`Watchdog`]: sees stream threads whose calls to the log do not return, tells of them, and in the end gives up on them.
//!
//! | a call has not returned for | what happens |
//! |---|---|
//! | `stuck_after` | one line in the log, `streams_thread_stuck_seconds`, and the application says it of itself ([`Watchdog::stuck`]) until the call returns |
//! | `task_timeout` | the application stops for good, so that whoever supervises the process starts it again |
//!
//! A call into a client cannot be cut off, so the thread is left as it is: what it has not committed the log aborts, what it may
//! still try is refused once a successor has its transactional id or its partitions.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::call_watch::CallWatch;
use crate::streams::{
    config::StreamsConfig,
    error::{Result, StreamsError},
    metrics::StreamsMetrics,
};

/// A stream thread that is looked after.
pub(super) struct Charge {
    pub thread: String,
    pub watch: Arc<CallWatch>,
}

/// What the watchdog may do to the application.
pub(super) struct Leash {
    pub config: Arc<StreamsConfig>,
    pub metrics: StreamsMetrics,
    pub stop: Arc<AtomicBool>,
    pub error: Arc<Mutex<Option<String>>>,
}

/// See the module's documentation.
pub(super) struct Watchdog {
    handle: JoinHandle<()>,
    stuck: Arc<Mutex<Option<String>>>,
}

impl Watchdog {
    /// Looks until the application stops.
    pub(super) fn start(charges: Vec<Charge>, leash: Leash) -> Result<Self> {
        let stuck = Arc::new(Mutex::new(None));
        let told = stuck.clone();
        let handle = std::thread::Builder::new()
            .name(format!("{}-watchdog", leash.config.application_id))
            .spawn(move || {
                let mut known = vec![false; charges.len()];
                let pause =
                    (leash.config.stuck_after / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
                while !leash.stop.load(Ordering::Relaxed) {
                    let found = leash.look(&charges, &mut known);
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = found;
                    std::thread::park_timeout(pause);
                }
            })
            .map_err(|error| StreamsError::fatal(format!("cannot start the watchdog: {error}")))?;
        Ok(Self { handle, stuck })
    }

    /// Which thread is stuck where, while one is.
    pub(super) fn stuck(&self) -> Option<String> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, once the application has been told to stop.
    pub(super) fn join(self) {
        self.handle.thread().unpark();
        let _ = self.handle.join();
    }
}

impl Leash {
    /// One look at all threads. `known`: which of them are known to be stuck.
    fn look(&self, charges: &[Charge], known: &mut [bool]) -> Option<String> {
        let config = &self.config;
        let mut found = None;
        for (Charge { thread, watch }, known) in charges.iter().zip(known) {
            let late = watch.waiting_for().filter(|(_, waited)| *waited >= config.stuck_after);
            let labels = [config.application_id.as_str(), thread.as_str()];
            let seconds = late.map_or(0, |(_, waited)| waited.as_secs().max(1));
            self.metrics.stuck_seconds.with_label_values(&labels).set(seconds as i64);
            let Some((call, waited)) = late else {
                if std::mem::take(known) {
                    tracing::warn!(thread, "the call to the log has returned; the thread goes on");
                }
                continue;
            };
            if !std::mem::replace(known, true) {
                tracing::error!(thread, call, ?waited, "a call to the log does not return");
            }
            let what = format!("thread {thread}: {call} has not returned for {} s", waited.as_secs());
            if waited >= config.task_timeout.max(config.stuck_after) {
                tracing::error!(thread, call, ?waited, "giving up");
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.clone());
                self.stop.store(true, Ordering::Relaxed);
            }
            found.get_or_insert(what);
        }
        found
    }
}
