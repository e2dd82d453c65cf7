//! One application of this process: the file it came from, and its running [`KafkaStreams`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{accepted, reload::Exchanged};
use crate::{
    config::TopicsConfig,
    streams::{
        client::ClientSupplier,
        config::StreamsConfig,
        error::StreamsError,
        file::LoadedFile,
        metrics::StreamsMetrics,
        runtime::{Hold, KafkaStreams, RunOptions, State, Totals},
    },
};

/// How long an application may take for its last commit.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often it is looked whether an application has run dry.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// What the applications of a process have in common.
pub(super) struct Shared {
    /// Settings; application and group are the file's.
    pub runtime: StreamsConfig,
    /// The log.
    pub log: Arc<dyn ClientSupplier>,
    /// How topics that topologies write are created.
    pub topics: TopicsConfig,
    /// Metrics.
    pub metrics: StreamsMetrics,
}

impl Shared {
    /// An application that has not started.
    pub fn streams(&self, file: LoadedFile) -> KafkaStreams {
        let mut options = RunOptions::new(self.runtime.clone());
        options.config.group_id = Some(file.group);
        options.config.idle_close_ms = file.idle_close_ms;
        options.metrics = self.metrics.clone();
        KafkaStreams::new(file.topology, self.log.clone(), options)
    }
}

/// See the module's documentation.
pub struct Application {
    /// The file: a path, or `builtin:NAME`.
    pub name: String,
    /// Its plan in canonical form.
    pub plan: Value,
    /// The consumer group.
    pub group: String,
    /// Topics it writes, dead letters included.
    pub sink_topics: Vec<String>,
    /// It.
    pub streams: KafkaStreams,
    /// Why it has not started, where it has not.
    pub start_error: Option<String>,
    /// Whether that may pass by itself: a log that is away, a partition whose leader moves.
    pub(super) start_may_pass: bool,
    /// How it came in the place of another, since the process started.
    pub exchanged: Option<Exchanged>,
    /// Its text, to load it again.
    pub(super) text: String,
    /// Of what ran here before the last reload.
    past: Totals,
}

impl Application {
    pub(super) fn new(file: LoadedFile, shared: &Shared) -> Self {
        Self {
            name: file.name.clone(),
            plan: file.plan.clone(),
            group: file.group.clone(),
            sink_topics: file.sink_topics.clone(),
            start_error: None,
            start_may_pass: false,
            exchanged: None,
            text: file.text.clone(),
            past: Totals::default(),
            streams: shared.streams(file),
        }
    }

    /// Puts another topology in the place of one that is closed. What was counted stays counted.
    pub(super) fn replace(&mut self, file: LoadedFile, shared: &Shared) {
        let past = self.totals();
        *self = Self { past, ..Self::new(file, shared) };
    }

    /// Notes that this is what the state belongs to from now on.
    pub(super) fn note(&self, shared: &Shared) {
        let application_id = self.streams.application_id();
        let noted = accepted::Noted { plan: &self.plan, text: &self.text };
        if let Err(error) = accepted::write(&shared.runtime.state_dir, application_id, &noted) {
            tracing::warn!(application_id, %error, "what runs cannot be noted in streams.state_dir");
        }
    }

    /// Starts it and notes what runs. An error is kept for `/readyz`, told once, and returned.
    pub(super) fn start(&mut self, shared: &Shared) -> Result<(), StreamsError> {
        let application_id = self.streams.application_id().to_owned();
        match self.streams.start() {
            Ok(()) => {
                self.start_error = None;
                tracing::info!(application_id, "the topology starts");
                self.note(shared);
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                self.start_may_pass = matches!(error, StreamsError::Retriable(_));
                if self.start_error.as_ref() != Some(&reason) {
                    tracing::warn!(application_id, reason, "the topology cannot start yet");
                }
                self.start_error = Some(reason);
                Err(error)
            }
        }
    }

    /// Reads no further and lets what is inside run dry. `false` when that took too long; then it reads on.
    pub(super) fn drain(&self, timeout: Duration) -> Result<bool, StreamsError> {
        self.streams.hold_inputs(Hold::Here);
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline && self.streams.state() != State::Error {
            match self.streams.is_drained() {
                Ok(true) => return Ok(true),
                Ok(false) | Err(StreamsError::Retriable(_)) => {}
                Err(error) => {
                    self.streams.hold_inputs(Hold::Free);
                    return Err(error);
                }
            }
            std::thread::park_timeout(DRAIN_POLL);
        }
        self.streams.hold_inputs(Hold::Free);
        Ok(false)
    }

    /// Stops it after a last commit.
    pub(super) fn close(&mut self) {
        if !self.streams.close(CLOSE_TIMEOUT) {
            tracing::warn!(
                application_id = self.streams.application_id(),
                "the last commit took too long; the records since the one before are read again"
            );
        }
    }

    /// Counters since the process started, whatever was reloaded meanwhile.
    pub fn totals(&self) -> Totals {
        let mut totals = self.streams.totals();
        totals.processed += self.past.processed;
        totals.restored += self.past.restored;
        totals.commits += self.past.commits;
        for (reason, count) in &self.past.dropped {
            *totals.dropped.entry(*reason).or_default() += count;
        }
        totals
    }

    /// For `/readyz`.
    pub(super) fn ready(&self) -> Result<(), String> {
        if let Some(error) = self.start_error.clone().or_else(|| self.streams.error()) {
            return Err(error);
        }
        if let Some(stuck) = self.streams.stuck() {
            return Err(stuck);
        }
        match self.streams.state() {
            State::Running => Ok(()),
            State::Rebalancing => {
                let progress = self.streams.restore_progress();
                match progress.total {
                    0 => Err("waiting for its partitions".into()),
                    total => Err(format!(
                        "restoring {} stores: {} of {total} records ({} %{})",
                        progress.stores,
                        progress.restored,
                        progress.restored * 100 / total,
                        match progress.remaining() {
                            Some(left) => format!(", {} s left", left.as_secs() + 1),
                            None => String::new(),
                        }
                    )),
                }
            }
            state => Err(format!("{state:?}")),
        }
    }
}
