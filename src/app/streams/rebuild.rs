//! State built anew beside the old: what `state_version` + 1 asks for.
//!
//! ```text
//!   the application   ───────────── runs on ───────────── hold ─ dry ─ last commit at B ┐   ┌─ runs the new file from B
//!   the rebuild         earliest ──> never beyond what the application committed ──> B ──┴───┘
//! ```
//!
//! The rebuild is an application of its own: the nodes concerned and what they read, from the earliest record on, without sinks and dead
//! letters, under internal names of its own. Only the new state is where it belongs from the start: its changelog is the application's.
//! So there is nothing to copy; the new topology restores it from there. What must always hold: the new state reflects exactly the
//! records before B; whatever goes wrong before the exchange, the application runs on as it was, and the next attempt begins anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Application, Applications, Shared, files,
    reload::{self, Exchanged},
};
use crate::streams::{
    client::Admin,
    error::{Result, StreamsError},
    file::{LoadedFile, load_rebuild},
    metrics::StreamsMetrics,
    record::TopicPartition,
    runtime::{Hold, KafkaStreams, RunOptions, State, create_internal_topics, plan_partitions, system_clock},
};

/// Behind the application by no more than this is close enough to stop it for the rest.
const CLOSE_BEHIND: Duration = Duration::from_secs(5);
/// How long the rebuild may take for what is left when the application has stopped.
const LAST_STEP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// How often progress is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A rebuild that runs.
struct Rebuild {
    id: String,
    streams: KafkaStreams,
}

impl Applications {
    /// Builds the state of these nodes anew and exchanges the topology when it has caught up. Blocks for as long as that takes.
    pub(super) fn rebuild(
        &self,
        index: usize,
        file: LoadedFile,
        nodes: &BTreeSet<String>,
    ) -> Result<Exchanged> {
        let (application, group) = {
            let list = self.lock();
            let Some(app) = list.get(index) else { return Ok(Exchanged::default()) };
            reload::refuse_others(app, &self.shared)?;
            prepare(app, &file, nodes, &self.shared)?;
            (app.streams.application_id().to_owned(), app.group.clone())
        };
        let admin = self.shared.log.admin()?;
        let mut rebuild = Rebuild::start(&application, &file, nodes, &self.shared)?;
        tracing::info!(application, rebuild = rebuild.id, ?nodes, "state is built anew beside the old");
        let result = self
            .follow(index, &group, &rebuild, &*admin)
            .and_then(|()| self.exchange(index, file, &mut rebuild, &*admin));
        rebuild.streams.close(LAST_STEP_TIMEOUT);
        if let Err(error) = clean_up(&application, &self.shared) {
            tracing::warn!(application, %error, "what the rebuild left behind is deleted by the next one");
        }
        result
    }

    /// Until it is where the application was a moment ago.
    fn follow(&self, index: usize, group: &str, rebuild: &Rebuild, admin: &dyn Admin) -> Result<()> {
        let mut reported = Instant::now();
        loop {
            let limits = committed(&rebuild.streams, group, admin)?;
            rebuild.streams.hold_inputs(Hold::Before(Arc::new(limits.clone())));
            let taken = Instant::now();
            while !rebuild.is_drained()? {
                std::thread::park_timeout(POLL);
                let running =
                    |app: &Application| matches!(app.streams.state(), State::Running | State::Rebalancing);
                if !self.each(running).get(index).copied().unwrap_or(false) {
                    let reason = "the application stopped while its state was built anew";
                    return Err(StreamsError::Retriable(reason.into()));
                }
                if reported.elapsed() >= REPORT_INTERVAL {
                    reported = Instant::now();
                    let all: i64 = limits.values().sum();
                    let done = rebuild.streams.totals().processed;
                    tracing::info!(
                        rebuild = rebuild.id,
                        processed = done,
                        offsets = all,
                        "building state anew"
                    );
                }
            }
            if taken.elapsed() <= CLOSE_BEHIND {
                return Ok(());
            }
        }
    }

    /// Stops the application, lets the rebuild come up to exactly where it stopped, and puts the new topology in.
    fn exchange(
        &self,
        index: usize,
        file: LoadedFile,
        rebuild: &mut Rebuild,
        admin: &dyn Admin,
    ) -> Result<Exchanged> {
        let mut list = self.lock();
        let Some(app) = list.get_mut(index) else { return Ok(Exchanged::default()) };
        let began = Instant::now();
        // First its clock, then the application's: it must not take for silent what the application did not.
        let so_far = committed(&rebuild.streams, &app.group, admin)?;
        rebuild.streams.hold_inputs(Hold::LastBefore(Arc::new(so_far)));
        let from = reload::stop_dry(app, admin)?;
        rebuild.streams.hold_inputs(Hold::LastBefore(Arc::new(from.clone())));
        let deadline = Instant::now() + LAST_STEP_TIMEOUT;
        let mut caught_up = Ok(false);
        while Instant::now() < deadline && matches!(caught_up, Ok(false)) {
            std::thread::park_timeout(POLL);
            caught_up = rebuild.is_drained();
        }
        let closed = rebuild.streams.close(LAST_STEP_TIMEOUT);
        if !matches!(caught_up, Ok(true)) || !closed {
            // As it was: the state of the old file is untouched.
            let old = files::load_text(&app.name, &app.text).map_err(StreamsError::fatal)?;
            app.replace(old, &self.shared);
            reload::start_again(app, &self.shared, &self.changed)?;
            let reason = caught_up
                .err()
                .map_or_else(|| "it did not come up in time".to_owned(), |error| error.to_string());
            return Err(StreamsError::Retriable(format!("the new state was not taken: {reason}")));
        }
        let former = stores(app);
        app.replace(file, &self.shared);
        // Before it commits anything: who dies now goes on with the new state, which is complete, and never with the old one, which
        // would miss what the new one has read.
        app.note(&self.shared);
        reload::start_again(app, &self.shared, &self.changed)?;
        // What the old version kept is of no further use: it would be stale.
        let application = app.streams.application_id();
        let gone: Vec<String> =
            former.difference(&stores(app)).map(|store| format!("{application}-{store}-changelog")).collect();
        admin.delete_topics(&gone)?;
        Ok(Exchanged { paused: began.elapsed(), from })
    }
}

fn stores(app: &Application) -> BTreeSet<String> {
    app.streams.topology().stores.iter().map(|store| store.builder.name.clone()).collect()
}

/// Nothing of an earlier attempt is left, and the new topics are there with the partitions they need.
fn prepare(app: &Application, file: &LoadedFile, nodes: &BTreeSet<String>, shared: &Shared) -> Result<()> {
    let admin = shared.log.admin()?;
    let application = app.streams.application_id();
    clean_up(application, shared)?;
    let known = stores(app);
    let new = file.stores_of(nodes).into_iter().filter(|store| !known.contains(store));
    let topics: Vec<String> = new.map(|store| format!("{application}-{store}-changelog")).collect();
    admin.delete_topics(&topics)?;
    let plan = plan_partitions(&file.topology, &*admin)?;
    create_internal_topics(&file.topology, &plan, shared.runtime.replication_factor, &*admin)
}

/// Deletes topics and files of rebuilds of an application; their groups are forgotten by the log in time.
fn clean_up(application: &str, shared: &Shared) -> Result<()> {
    let prefix = prefix(application);
    let admin = shared.log.admin()?;
    let topics: Vec<String> =
        admin.list_topics()?.into_iter().filter(|name| name.starts_with(&prefix)).collect();
    admin.delete_topics(&topics)?;
    let Ok(entries) = std::fs::read_dir(&shared.runtime.state_dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            std::fs::remove_dir_all(entry.path()).map_err(|error| {
                StreamsError::fatal(format!("deleting {}: {error}", entry.path().display()))
            })?;
        }
    }
    Ok(())
}

fn prefix(application: &str) -> String {
    format!("{application}-rebuild-")
}

/// What the application has committed of the inputs that the rebuild reads.
fn committed(
    rebuild: &KafkaStreams,
    group: &str,
    admin: &dyn Admin,
) -> Result<BTreeMap<TopicPartition, i64>> {
    let topics = rebuild.topology().external_source_topics();
    let offsets = admin.group_offsets(group)?.into_iter();
    Ok(offsets.filter(|(at, _)| topics.contains(&at.topic)).map(|(at, offset)| (at, offset.offset)).collect())
}

impl Rebuild {
    fn start(
        application: &str,
        file: &LoadedFile,
        nodes: &BTreeSet<String>,
        shared: &Shared,
    ) -> Result<Self> {
        // A name of its own each time: an attempt that broke off is not continued.
        let id = format!("{}{}", prefix(application), system_clock());
        let part = load_rebuild(&file.name, &file.text, &files::processors(), nodes, &id)
            .map_err(|error| StreamsError::Topology(error.to_string()))?;
        let mut options = RunOptions::new(shared.runtime.clone());
        options.config.group_id = Some(id.clone());
        options.config.idle_close_ms = part.idle_close_ms;
        // Its figures are not the application's.
        options.metrics = StreamsMetrics::default();
        let mut streams = KafkaStreams::new(part.topology, shared.log.clone(), options);
        streams.hold_inputs(Hold::Before(Arc::default()));
        streams.start()?;
        Ok(Self { id, streams })
    }

    fn is_drained(&self) -> Result<bool> {
        if let Some(error) = self.streams.error() {
            return Err(StreamsError::Fatal(format!("building state anew failed: {error}")));
        }
        match self.streams.is_drained() {
            Err(StreamsError::Retriable(_)) => Ok(false),
            other => other,
        }
    }
}
