//! [`Supervisor`]: keeps one stream thread going: errors that may pass start it anew within `task_timeout`, others end the application.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::stream_thread::{StreamThread, ThreadParts};
use crate::streams::error::StreamsError;

/// See the module's documentation.
pub(super) struct Supervisor {
    pub parts: ThreadParts,
    pub stop: Arc<AtomicBool>,
    pub error: Arc<Mutex<Option<String>>>,
}

impl Supervisor {
    /// Runs until stopped. Retriable errors start the thread anew within `task_timeout`; others end the application.
    pub(super) fn run(self, first: StreamThread) {
        let mut thread = Some(first);
        let mut failing_since: Option<Instant> = None;
        let app = self.parts.options.config.application_id.clone();
        while !self.stop.load(Ordering::Relaxed) {
            let result = match &mut thread {
                Some(live) => live.run_once().map(|_| ()),
                None => StreamThread::new(self.parts.clone()).map(|new| thread = Some(new)),
            };
            match result {
                Ok(()) => {
                    if failing_since.is_some_and(|since| since.elapsed() > Duration::from_secs(10)) {
                        failing_since = None;
                    }
                }
                Err(StreamsError::Retriable(reason))
                    if failing_since.get_or_insert_with(Instant::now).elapsed()
                        < self.parts.options.config.task_timeout =>
                {
                    tracing::warn!(application_id = app, reason, "stream thread starts again");
                    self.parts.metrics.thread_restarts.with_label_values(&[app.as_str()]).inc();
                    drop(thread.take());
                    std::thread::park_timeout(Duration::from_millis(500));
                }
                Err(error) => {
                    tracing::error!(application_id = app, %error, "stream thread stopped");
                    *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    self.stop.store(true, Ordering::Relaxed);
                    return; // Dropped as it is: nothing uncommitted may become visible.
                }
            }
        }
        if let Some(mut thread) = thread
            && let Err(error) = thread.close()
        {
            tracing::warn!(application_id = app, %error, "last commit failed; the records since the one before are read again");
        }
    }
}
