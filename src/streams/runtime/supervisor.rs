//! [`Supervisor`]: keeps one stream thread going: errors that may pass start it anew within `task_timeout`, others end the application.
//!
//! A thread whose static name the group gave to somebody else cannot tell whether that is a process of the same name or itself: when the
//! answer to a join is lost, the join made again is refused as an impostor's. The group tells: a member that nobody speaks for is forgotten
//! when its session ends, one that lives is not.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::stream_thread::{StreamThread, ThreadParts, static_name};
use crate::streams::error::StreamsError;

/// How often the group is asked whether a name is free.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Who has a name for so long is alive: more than a session takes to end, if no other is configured.
const HELD_MAX: Duration = Duration::from_secs(60);

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
                Err(StreamsError::Displaced(reason)) => {
                    drop(thread.take());
                    if let Err(why) = self.wait_for_name(&reason) {
                        self.end(&format!("{reason}: {why}"));
                        return;
                    }
                    self.parts.metrics.thread_restarts.with_label_values(&[app.as_str()]).inc();
                }
                Err(error) => {
                    self.end(&error.to_string());
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

    /// Ends the application.
    fn end(&self, error: &str) {
        let application_id = self.parts.options.config.application_id.as_str();
        tracing::error!(application_id, error, "stream thread stopped");
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_owned());
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until nobody in the group has this thread's name. An error when somebody keeps it for longer than a session takes to end, or
    /// the group does not say within `task_timeout`.
    fn wait_for_name(&self, reason: &str) -> Result<(), String> {
        let config = &self.parts.options.config;
        let name = static_name(config, &self.parts.name);
        tracing::warn!(name, reason, "displaced; waits whether the group forgets who has the name");
        let begun = Instant::now();
        let mut held_since: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            match self.parts.clients.admin().and_then(|admin| admin.group_members(config.group_id())) {
                Ok(members) => {
                    if !members.iter().any(|member| member.group_instance_id.as_ref() == Some(&name)) {
                        tracing::info!(name, "nobody has the name: the thread starts again");
                        return Ok(());
                    }
                    let held = held_since.get_or_insert_with(Instant::now).elapsed();
                    if held >= HELD_MAX.min(config.task_timeout) {
                        return Err("another process runs with this instance_id; give each its own".into());
                    }
                }
                Err(error) if begun.elapsed() >= config.task_timeout => {
                    return Err(format!("and the members of the group cannot be asked for: {error}"));
                }
                Err(_) => {}
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
        Ok(())
    }
}
