//! The topologies of this process: loaded, started when their log is there, watched, and closed with a last commit.
//!
//! [`Applications`] holds one [`Application`] per file; [`supervise`] is its life beside the API. The log may be away
//! for any time: starting is tried again until it answers, and nothing here ever stops the API.

mod accepted;
mod application;
pub mod control;
pub mod files;
mod rebuild;
pub mod reload;
pub mod reset;
pub mod run;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use self::application::{Application, Shared};
use super::topics::{self, TopicsState};
use crate::{
    cli::Failure,
    config::Config,
    coupon::{event, relay::progress},
    http::ops::Check,
    streams::{
        client::ClientSupplier, error::StreamsError, file::LoadedFile, metrics::StreamsMetrics,
        runtime::State,
    },
};

/// How long to wait before an application that could not start is started again.
const START_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// The applications of this process.
pub struct Applications {
    list: Mutex<Vec<Application>>,
    shared: Shared,
    /// Held while files are reloaded: one reload at a time.
    reloading: Mutex<()>,
    /// Told when an application was put in that has yet to start.
    changed: Notify,
    /// The files ask for state to be built anew: once what ran last runs again.
    reload_after_start: AtomicBool,
}

impl Applications {
    /// Puts them together; nothing starts. Refuses a file that does not fit the state that it was last run with.
    pub fn new(
        files: Vec<LoadedFile>,
        config: &Config,
        log: Arc<dyn ClientSupplier>,
        metrics: &StreamsMetrics,
    ) -> Result<Self, Failure> {
        let mut runtime = config.streams.runtime.clone();
        runtime.instance_id = match &config.streams.instance_id {
            Some(name) => name.clone(),
            None => made_up_instance_id(&config.data_dir, &runtime.state_dir)?,
        };
        let progress = progress::follow(log.clone());
        runtime.progress = event::TOPICS.map(|topic| (topic.to_owned(), progress.clone())).into();
        let shared = Shared { runtime, log, topics: config.topics.clone(), metrics: metrics.clone() };
        let (files, reload) = reload::fit_to_state(files, &shared)?;
        let list = files.into_iter().map(|file| Application::new(file, &shared)).collect();
        Ok(Self {
            list: Mutex::new(list),
            shared,
            reloading: Mutex::default(),
            changed: Notify::new(),
            reload_after_start: AtomicBool::new(reload),
        })
    }

    /// Creates sink topics that do not exist and starts what has not started. Blocks. `Ok(true)` when all have started;
    /// an error is one that trying again does not mend.
    pub fn start(&self) -> Result<bool, StreamsError> {
        let mut list = self.lock();
        let sinks: Vec<String> = list.iter().flat_map(|app| app.sink_topics.clone()).collect();
        if let Err(error) = topics::create_sinks(&*self.shared.log.admin()?, &self.shared.topics, &sinks) {
            let reason = error.to_string();
            let may_pass = matches!(error, StreamsError::Retriable(_));
            for app in list.iter_mut() {
                (app.start_error, app.start_may_pass) = (Some(reason.clone()), may_pass);
            }
            return Ok(false);
        }
        for app in list.iter_mut().filter(|app| app.streams.state() == State::Created) {
            // The reason is kept by the application.
            drop(app.start(&self.shared));
        }
        Ok(list.iter().all(|app| app.start_error.is_none()))
    }

    /// Whether everything that keeps an application from starting may pass by itself.
    pub fn start_may_pass(&self) -> bool {
        self.lock().iter().all(|app| app.start_error.is_none() || app.start_may_pass)
    }

    /// Stops all after a last commit. Blocks.
    pub fn close(&self) {
        self.lock().iter_mut().for_each(Application::close);
    }

    /// What each says of itself, for `/readyz`.
    pub fn checks(&self) -> Vec<Check> {
        // A start that blocks on its log holds the lock; readiness does not wait for it.
        let Ok(list) = self.list.try_lock() else {
            return vec![Check::new("topologies", Err("starting".into()))];
        };
        list.iter().map(|app| Check::new(app.streams.application_id(), app.ready())).collect()
    }

    /// Whether any has stopped for good, and why.
    pub fn failure(&self) -> Option<String> {
        let list = self.list.try_lock().ok()?;
        list.iter()
            .find_map(|app| Some(format!("{}: {}", app.streams.application_id(), app.streams.error()?)))
    }

    /// Runs something on each application.
    pub fn each<T>(&self, look: impl FnMut(&Application) -> T) -> Vec<T> {
        self.lock().iter().map(look).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Application>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the applications when the topics are there, and closes them at `stop`.
pub async fn supervise(
    applications: Arc<Applications>,
    mut topics: watch::Receiver<TopicsState>,
    mut stop: watch::Receiver<bool>,
) {
    // An error means that the sender is gone, which is a stop too.
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        _ = topics.wait_for(TopicsState::exist) => {}
    }
    loop {
        let starting = applications.clone();
        // Starting talks to the log, which blocks.
        match tokio::task::spawn_blocking(move || starting.start()).await {
            Ok(Ok(true)) => {
                reload::finish_start(&applications);
                // A reload may put in what has yet to start.
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => break,
                    () = applications.changed.notified() => continue,
                }
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the topologies cannot start yet"),
            Err(error) => tracing::error!(%error, "starting the topologies failed"),
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = tokio::time::sleep(START_RETRY_INTERVAL) => {}
        }
    }
    drop(stop.wait_for(|stop| *stop).await);
    if let Err(error) = tokio::task::spawn_blocking(move || applications.close()).await {
        tracing::error!(%error, "closing the topologies failed");
    }
}

/// The name of this process in its groups, made up once per state directory and kept outside of it: who deletes state must
/// not become a stranger to the group, which would hold the partitions for the old name until its session ends (45 s).
fn made_up_instance_id(data_dir: &Path, state_dir: &Path) -> Result<String, Failure> {
    let place = crc32fast::hash(state_dir.as_os_str().as_encoded_bytes());
    let file = data_dir.join(format!("instance-id-{place:08x}"));
    let read_or_make = || {
        if let Ok(name) = std::fs::read_to_string(&file)
            && !name.trim().is_empty()
        {
            return Ok(name.trim().to_owned());
        }
        std::fs::create_dir_all(data_dir)?;
        let name = uuid::Uuid::new_v4().simple().to_string();
        std::fs::write(&file, &name)?;
        Ok(name)
    };
    read_or_make()
        .map_err(|error: std::io::Error| Failure::of(format!("data_dir: {}", file.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_outlives_the_state_and_is_one_per_state_directory() {
        let data = tempfile::tempdir().unwrap();
        let state = data.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let name = made_up_instance_id(data.path(), &state).unwrap();
        std::fs::remove_dir_all(&state).unwrap();
        assert_eq!(made_up_instance_id(data.path(), &state).unwrap(), name);
        assert_ne!(made_up_instance_id(data.path(), &data.path().join("other")).unwrap(), name);
    }
}
