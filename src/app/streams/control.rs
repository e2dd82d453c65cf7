//! [`Applications`] behind the HTTP port: plans to look at, reloads to ask for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use super::{
    Applications,
    reload::{Exchanged, ReloadError, Reloaded},
};
use crate::http::streams::{
    Reload, ReloadProblem, ReloadProgress, ReloadedTopology, RunningTopology, StreamsControl, TopologyChange,
};

/// How long a caller waits for a reload before it is told that it goes on.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// See the module's documentation.
pub struct Control(pub Arc<Applications>);

impl StreamsControl for Control {
    fn topologies(&self) -> BoxFuture<'static, Vec<RunningTopology>> {
        let applications = self.0.clone();
        let look = move || {
            applications.each(|app| RunningTopology {
                application: app.streams.application_id().to_owned(),
                file: app.name.clone(),
                state: format!("{:?}", app.streams.state()),
                error: app.start_error.clone().or_else(|| app.streams.error()),
                plan: app.plan.clone(),
                paused_ms: app.exchanged.as_ref().map(paused_ms),
                from: app.exchanged.as_ref().map(from),
            })
        };
        // While topologies are exchanged this waits for them.
        async move { tokio::task::spawn_blocking(look).await.unwrap_or_default() }.boxed()
    }

    fn reload(&self, dry_run: bool) -> BoxFuture<'static, Result<Reload, ReloadProblem>> {
        let applications = self.0.clone();
        async move {
            let looking = applications.clone();
            let compared = joined(tokio::task::spawn_blocking(move || looking.compare()).await)?;
            let reload = |progress, outcomes: Vec<Reloaded>| Reload {
                progress,
                applications: outcomes.iter().map(shown).collect(),
            };
            if dry_run {
                return Ok(reload(ReloadProgress::Compared, compared));
            }
            // A task of its own: it goes on when the caller has gone.
            let applying = tokio::task::spawn_blocking(move || {
                applications.reload().inspect_err(|error| tracing::error!("reload: {error}"))
            });
            match tokio::time::timeout(ANSWER_WITHIN, applying).await {
                Ok(outcomes) => Ok(reload(ReloadProgress::Applied, joined(outcomes)?)),
                Err(_) => Ok(reload(ReloadProgress::Applying, compared)),
            }
        }
        .boxed()
    }
}

fn joined<T>(result: Result<Result<T, ReloadError>, tokio::task::JoinError>) -> Result<T, ReloadProblem> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(problem(&error)),
        Err(error) => Err(ReloadProblem::Unfinished(error.to_string())),
    }
}

fn problem(error: &ReloadError) -> ReloadProblem {
    let detail = error.to_string();
    match error {
        ReloadError::Broken(_) => ReloadProblem::Broken(detail),
        ReloadError::Refused(refused) => {
            let changes = refused.iter().flat_map(|app| app.changes.iter().map(TopologyChange::from));
            ReloadProblem::Refused(detail, changes.collect())
        }
        ReloadError::Unfinished(_) => ReloadProblem::Unfinished(detail),
    }
}

fn shown(outcome: &Reloaded) -> ReloadedTopology {
    ReloadedTopology {
        application: outcome.application.clone(),
        changes: outcome.changes.iter().map(TopologyChange::from).collect(),
        paused_ms: outcome.exchanged.as_ref().map(paused_ms),
        from: outcome.exchanged.as_ref().map(from),
    }
}

fn paused_ms(exchanged: &Exchanged) -> u64 {
    exchanged.paused.as_millis() as u64
}

fn from(exchanged: &Exchanged) -> BTreeMap<String, i64> {
    exchanged.from.iter().map(|(partition, offset)| (partition.to_string(), *offset)).collect()
}
