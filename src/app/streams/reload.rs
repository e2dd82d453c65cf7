//! Changed files put in the place of what runs, without losing or repeating a record.
//!
//! 1. All files are read again; a mistake in any of them changes nothing.
//! 2. Each is compared with what runs ([`diff`]); a change that cannot be applied to it refuses the whole reload.
//! 3. Application by application: topics that are new are created, inputs are held, what is inside runs dry, a last commit, the threads
//!    end; the new topology starts from the committed offsets with the state that is kept.
//!
//! Between hold and start the application reads nothing; that takes well under a second where nothing has to be restored. The state
//! of nodes that did not change stays where it is: files are per task and know their stores by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{super::topics, Application, Applications, Shared, accepted, files};
use crate::{
    cli::Failure,
    streams::{
        client::Admin,
        error::StreamsError,
        file::{
            LoadedFile,
            plan::diff::{Change, Class, diff},
        },
        record::TopicPartition,
        runtime::{State, create_internal_topics, plan_partitions},
        topology::changelog_topic,
    },
};

#[cfg(test)]
mod tests;

/// How long an application may take to run dry.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a new topology may take to start before it is left to those who try again.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between attempts to start.
const START_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// What became of one application.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded {
    /// Its application id.
    pub application: String,
    /// What the file changes; empty when nothing.
    pub changes: Vec<Change>,
    /// How it was exchanged; `None` where it was not.
    pub exchanged: Option<Exchanged>,
}

/// The moment at which one topology took the place of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// How long inputs were not read.
    pub paused: Duration,
    /// Where the new topology began in each input: everything before was processed by the old one, the rest is not.
    pub from: BTreeMap<TopicPartition, i64>,
}

/// Why nothing, or not everything, was put in place.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReloadError {
    /// Mistakes in the files, with their places; nothing was changed.
    #[error("{0}")]
    Broken(String),
    /// The changes do not fit what runs; nothing was changed.
    #[error("{}", refusal(.0))]
    Refused(Vec<Reloaded>),
    /// It could not be done now.
    #[error("{0}")]
    Unfinished(String),
}

fn refusal(refused: &[Reloaded]) -> String {
    let lines = refused.iter().flat_map(|app| {
        let of_app = |change: &&Change| change.class.is_refused();
        app.changes
            .iter()
            .filter(of_app)
            .map(|change| format!("{}: {}: {change}", app.application, change.class))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Files that fit the state they were last run with, and whether a reload is to follow: where state has to be built anew the process
/// goes on with what it ran last, and does that beside it. A file that does not fit is refused.
pub(super) fn fit_to_state(
    files: Vec<LoadedFile>,
    shared: &Shared,
) -> Result<(Vec<LoadedFile>, bool), Failure> {
    let (mut fitting, mut refused, mut reload) = (Vec::new(), Vec::new(), false);
    for file in files {
        let application = file.topology.application_id.to_string();
        let Some(last) = accepted::read(&shared.runtime.state_dir, &application) else {
            fitting.push(file);
            continue;
        };
        let changes = diff(&last.plan, &file.plan);
        for change in &changes {
            tracing::info!(application, class = %change.class, "{change}");
        }
        let has = |class: Class| changes.iter().any(|change| change.class == class);
        if changes.iter().any(|change| change.class.is_refused()) {
            refused.push(Reloaded { application, changes, exchanged: None });
        } else if has(Class::NewStateVersion) {
            reload = true;
            let last = files::load_text(&file.name, &last.text).map_err(|error| {
                let what = format!(
                    "{}: state has to be built anew, and the file as it last ran does not load",
                    file.name
                );
                Failure::of(what, error)
            })?;
            fitting.push(last);
        } else {
            fitting.push(file);
        }
    }
    if refused.is_empty() {
        return Ok((fitting, reload));
    }
    Err(Failure::Usage(format!(
        "what the files keep has another meaning than the state in {}:\n{}\n\
         `sluice streams reset FILE` begins anew",
        shared.runtime.state_dir.display(),
        refusal(&refused)
    )))
}

impl Applications {
    /// Reads the files again and compares them with what runs. Nothing is touched.
    pub fn compare(&self) -> Result<Vec<Reloaded>, ReloadError> {
        Ok(self.compared()?.1)
    }

    /// Puts the files as they are now in the place of what runs. Blocks until it is done.
    pub fn reload(&self) -> Result<Vec<Reloaded>, ReloadError> {
        let Ok(_one) = self.reloading.try_lock() else {
            let reason =
                "a reload is going on; GET /api/streams/topologies shows when its plans are in place";
            return Err(ReloadError::Unfinished(reason.into()));
        };
        let (files, mut outcomes) = self.compared()?;
        for (index, (file, outcome)) in files.into_iter().zip(&mut outcomes).enumerate() {
            if outcome.changes.is_empty() {
                continue;
            }
            let application = outcome.application.clone();
            let anew = outcome.changes.iter().filter(|change| change.class == Class::NewStateVersion);
            let anew: BTreeSet<String> = anew.filter_map(|change| change.node.clone()).collect();
            let exchanged = match anew.is_empty() {
                true => self.put_in(index, file),
                false => self.rebuild(index, file, &anew),
            };
            let exchanged =
                exchanged.map_err(|error| ReloadError::Unfinished(format!("{application}: {error}")))?;
            for change in &outcome.changes {
                tracing::info!(application, class = %change.class, "{change}");
            }
            let paused_ms = exchanged.paused.as_millis() as u64;
            tracing::info!(application, paused_ms, from = ?exchanged.from, "the topology was exchanged");
            if let Some(app) = self.lock().get_mut(index) {
                app.exchanged = Some(exchanged.clone());
            }
            outcome.exchanged = Some(exchanged);
        }
        Ok(outcomes)
    }

    fn compared(&self) -> Result<(Vec<LoadedFile>, Vec<Reloaded>), ReloadError> {
        let names = self.each(|app| app.name.clone());
        let files = files::load_named(&names).map_err(|failure| ReloadError::Broken(failure.to_string()))?;
        let plans = self.each(|app| (app.streams.application_id().to_owned(), app.plan.clone()));
        let compared = files.iter().zip(plans).map(|(file, (application, plan))| Reloaded {
            application,
            changes: diff(&plan, &file.plan),
            exchanged: None,
        });
        let outcomes: Vec<Reloaded> = compared.collect();
        let refused = |app: &&Reloaded| app.changes.iter().any(|change| change.class.is_refused());
        let refused: Vec<Reloaded> = outcomes.iter().filter(refused).cloned().collect();
        if refused.is_empty() { Ok((files, outcomes)) } else { Err(ReloadError::Refused(refused)) }
    }

    /// Exchanges one application's topology.
    fn put_in(&self, index: usize, file: LoadedFile) -> Result<Exchanged, StreamsError> {
        let mut list = self.lock();
        let Some(app) = list.get_mut(index) else { return Ok(Exchanged::default()) };
        // Whatever could fail for good fails here, while the old topology runs.
        let admin = self.shared.log.admin()?;
        topics::create_sinks(&*admin, &self.shared.topics, &file.sink_topics)?;
        let plan = plan_partitions(&file.topology, &*admin)?;
        let began = Instant::now();
        let from = stop_dry(app, &*admin)?;
        forget_former_lives(app, &file, &self.shared)?;
        create_internal_topics(&file.topology, &plan, self.shared.runtime.replication_factor, &*admin)?;
        app.replace(file, &self.shared);
        // Before it commits anything, so that nobody goes on with the old topology where the new one stopped.
        app.note(&self.shared);
        start_again(app, &self.shared, &self.changed)?;
        Ok(Exchanged { paused: began.elapsed(), from })
    }
}

/// Lets an application run dry and stops it. Returns where it stopped in each input.
pub(super) fn stop_dry(
    app: &mut Application,
    admin: &dyn Admin,
) -> Result<BTreeMap<TopicPartition, i64>, StreamsError> {
    if matches!(app.streams.state(), State::Running | State::Rebalancing) && !app.drain(DRAIN_TIMEOUT)? {
        return Err(StreamsError::Retriable(format!(
            "it did not run dry within {} s, so nothing was changed; are there other processes in group {}? \
             Then stop all of them and start them with the new file",
            DRAIN_TIMEOUT.as_secs(),
            app.group
        )));
    }
    app.close();
    let mut from = admin.group_offsets(&app.group)?;
    from.retain(|partition, _| !app.streams.topology().repartition_topics.contains_key(&partition.topic));
    Ok(from.into_iter().map(|(partition, offset)| (partition, offset.offset)).collect())
}

/// Starts what was put in place and waits until it reads, or has something to restore. What does not start in time is left to
/// whoever tries again.
pub(super) fn start_again(
    app: &mut Application,
    shared: &Shared,
    changed: &Notify,
) -> Result<(), StreamsError> {
    let deadline = Instant::now() + START_TIMEOUT;
    while let Err(error) = app.start(shared) {
        if Instant::now() >= deadline {
            changed.notify_one();
            return Err(error);
        }
        std::thread::park_timeout(START_RETRY_INTERVAL);
    }
    while Instant::now() < deadline && app.streams.state() == State::Rebalancing {
        if app.streams.restore_progress().total > 0 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// An error while other processes are in the group: what is to happen needs all of them to stop.
pub(super) fn refuse_others(app: &Application, shared: &Shared) -> Result<(), StreamsError> {
    let others = others(app, shared)?;
    if others.is_empty() {
        return Ok(());
    }
    Err(StreamsError::Retriable(format!(
        "other processes are in group {}: {}; stop them, and start them with the new file when this one has it",
        app.group,
        others.join(", ")
    )))
}

/// Members of the group that are not this process's.
fn others(app: &Application, shared: &Shared) -> Result<Vec<String>, StreamsError> {
    let own = format!("{}-{}-", app.streams.application_id(), shared.runtime.instance_id);
    let members = shared.log.admin()?.group_members(&app.group)?.into_iter();
    let names = members.map(|member| member.group_instance_id.unwrap_or(member.member_id));
    Ok(names.filter(|name| !name.starts_with(&own)).collect())
}

/// A node that is new begins empty: what a node of its name left behind when it was taken out is deleted. Not while others are in the
/// group: they may have the new node already.
fn forget_former_lives(app: &Application, file: &LoadedFile, shared: &Shared) -> Result<(), StreamsError> {
    let topology = app.streams.topology();
    let new = file.topology.stores.iter().map(|store| store.builder.name.as_str());
    let new: Vec<&str> = new.filter(|name| topology.store_id(name).is_none()).collect();
    if new.is_empty() {
        return Ok(());
    }
    let admin = shared.log.admin()?;
    let topics: Vec<String> =
        new.iter().map(|store| changelog_topic(app.streams.application_id(), store).to_string()).collect();
    let existing: Vec<String> = admin.describe(&topics)?.into_keys().collect();
    if existing.is_empty() {
        return Ok(());
    }
    if !others(app, shared)?.is_empty() {
        tracing::info!(?existing, "kept: others in the group may have these new nodes already");
        return Ok(());
    }
    tracing::info!(?existing, "deleted: left behind by nodes of the same names");
    admin.delete_topics(&existing)
}

/// Does the reload that was put off at the start, if there is one.
pub fn finish_start(applications: &std::sync::Arc<Applications>) {
    if applications.reload_after_start.swap(false, std::sync::atomic::Ordering::Relaxed) {
        let applications = applications.clone();
        // Nobody waits for it: its outcome is in the log and in the plans that run.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = applications.reload() {
                tracing::error!("building state anew: {error}");
            }
        }));
    }
}

/// Reloads at each SIGHUP, until the process ends.
pub fn reload_on_hangup(applications: std::sync::Arc<Applications>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup =
        signal(SignalKind::hangup()).map_err(|error| Failure::of("listening for signals", error))?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let applications = applications.clone();
            match tokio::task::spawn_blocking(move || applications.reload()).await {
                Ok(Ok(outcomes)) => {
                    let changed = outcomes.iter().filter(|outcome| outcome.exchanged.is_some()).count();
                    tracing::info!(changed, of = outcomes.len(), "SIGHUP: topologies reloaded");
                }
                Ok(Err(error)) => tracing::error!("SIGHUP: what runs goes on as it is:\n{error}"),
                Err(error) => tracing::error!(%error, "SIGHUP: the reload failed"),
            }
        }
    });
    Ok(())
}
