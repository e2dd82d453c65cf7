//! The topologies of this process for those who run it: what runs, and putting changed files in its place.
//!
//! The routes are there where topologies run, with or without the API. What they do is behind [`StreamsControl`].

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{FromRequestParts, Query, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    admin::{Admin, AdminGuard},
    error::Problem,
};
use crate::streams::file::plan::diff::Change;

/// What the routes ask of the topologies.
pub trait StreamsControl: Send + Sync {
    /// What runs.
    fn topologies(&self) -> BoxFuture<'static, Vec<RunningTopology>>;
    /// Reads the files again and, unless it is only to be looked at, puts them in place.
    fn reload(&self, dry_run: bool) -> BoxFuture<'static, Result<Reload, ReloadProblem>>;
}

/// What these handlers share.
pub struct StreamsState {
    /// The topologies.
    pub control: Arc<dyn StreamsControl>,
    /// Who may.
    pub admin: AdminGuard,
}

/// A topology that runs here.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningTopology {
    /// Its application id.
    #[schema(example = "coupon-statistics")]
    pub application: String,
    /// The file it came from.
    #[schema(example = "builtin:coupon-statistics")]
    pub file: String,
    /// `Running`, `Rebalancing`, `Error` and so on, as Kafka Streams names them.
    #[schema(example = "Running")]
    pub state: String,
    /// Why it does not run, where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The plan in canonical form, as `sluice topology plan` prints it.
    #[schema(value_type = Object)]
    pub plan: serde_json::Value,
    /// Milliseconds for which it read nothing at the last reload, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Where it began in each input partition at the last reload, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<BTreeMap<String, i64>>,
}

/// What runs.
#[derive(Serialize, ToSchema)]
pub struct RunningTopologies {
    /// Each topology of this process.
    items: Vec<RunningTopology>,
}

/// How far a reload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReloadProgress {
    /// Looked at only.
    Compared,
    /// The files are in place.
    Applied,
    /// It goes on; `GET /api/streams/topologies` shows the new plans when they are in place.
    Applying,
}

/// What a reload does.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Reload {
    /// How far it is.
    pub progress: ReloadProgress,
    /// By application, what the files change.
    pub applications: Vec<ReloadedTopology>,
}

/// What a file changes.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReloadedTopology {
    /// The application id.
    #[schema(example = "coupon-statistics")]
    pub application: String,
    /// The changes; none when the file means what runs.
    pub changes: Vec<TopologyChange>,
    /// Milliseconds for which the application read nothing, where it was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Where the new topology began in each input partition, where it was exchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!({ "coupon-issued-0": 4711 }))]
    pub from: Option<BTreeMap<String, i64>>,
}

/// One change and what it means for what runs.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopologyChange {
    /// `transparent`, `forward-only`, `new-node`, `removed-node`, `new-state-version`, `needs-state-version` or `refused`.
    #[schema(example = "forward-only")]
    pub class: String,
    /// The node; absent when it is about the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "coupon_totals")]
    pub node: Option<String>,
    /// What differs.
    #[schema(example = "where")]
    pub what: String,
    /// What it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What follows from it, or what to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl From<&Change> for TopologyChange {
    fn from(change: &Change) -> Self {
        // A class is a unit variant: its JSON is one text.
        let class =
            serde_json::to_value(change.class).ok().and_then(|class| class.as_str().map(str::to_owned));
        Self {
            class: class.unwrap_or_default(),
            node: change.node.clone(),
            what: change.what.clone(),
            before: change.before.clone(),
            after: change.after.clone(),
            note: change.note.clone(),
        }
    }
}

/// Why files were not put in place.
#[derive(Clone, Debug)]
pub enum ReloadProblem {
    /// Mistakes in the files.
    Broken(String),
    /// Changes that do not fit what runs.
    Refused(String, Vec<TopologyChange>),
    /// Not now.
    Unfinished(String),
}

impl From<ReloadProblem> for Problem {
    fn from(problem: ReloadProblem) -> Self {
        match problem {
            ReloadProblem::Broken(detail) => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "topology-broken",
                "Broken topology file",
                detail,
            ),
            ReloadProblem::Refused(detail, changes) => Problem {
                changes: Some(changes),
                ..Problem::new(StatusCode::CONFLICT, "topology-refused", "Change of topology refused", detail)
            },
            ReloadProblem::Unfinished(detail) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "reload-unfinished",
                "Reload not finished",
                detail,
            ),
        }
    }
}

/// One problem of each kind, for the document.
pub(super) fn examples() -> [Problem; 3] {
    let change = TopologyChange {
        class: "needs-state-version".into(),
        node: Some("coupon_totals".into()),
        what: "aggregates".into(),
        before: Some("sum(amount) int?".into()),
        after: Some("max(amount) int?".into()),
        note: "write state_version = 2 to have the state built anew from the earliest input".into(),
    };
    let detail = "coupon-statistics: needs state_version + 1: coupon_totals: aggregates: sum(amount) int? -> max(amount) int?";
    [
        ReloadProblem::Broken("statistics.toml:12:22: unknown column `usr`".into()).into(),
        ReloadProblem::Refused(detail.into(), vec![change]).into(),
        ReloadProblem::Unfinished("another reload goes on".into()).into(),
    ]
}

/// How to reload.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReloadQuery {
    /// Only say what would change.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
}

/// The topologies that run in this process, with their plans.
#[utoipa::path(
    get, path = "/api/streams/topologies", operation_id = "listTopologies", tag = "streams", security(("admin" = [])),
    responses(
        (status = 200, description = "What runs", body = RunningTopologies),
        (status = 404, description = "No topologies run in this process", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn topologies(_: Admin, State(state): State<Arc<StreamsState>>) -> Json<RunningTopologies> {
    Json(RunningTopologies { items: state.control.topologies().await })
}

/// Read the topology files again and put them in the place of what runs, without losing or repeating a record.
///
/// Nothing is touched when a file is broken (422) or a change does not fit the state that is kept (409, with the
/// changes). A repeat with unchanged files changes nothing.
#[utoipa::path(
    post, path = "/api/streams/reload", operation_id = "reloadTopologies", tag = "streams", security(("admin" = [])),
    params(ReloadQuery),
    responses(
        (status = 200, description = "In place, or with dryRun what would change", body = Reload),
        (status = 202, description = "It goes on: state is rebuilt, or has to be restored", body = Reload),
        (status = 404, description = "No topologies run in this process", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The changes do not fit what runs; nothing was changed", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Mistakes in the files, each with file:line:column; nothing was changed", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn reload(
    _: Admin,
    query: ReloadParams,
    State(state): State<Arc<StreamsState>>,
) -> Result<Response, Problem> {
    let reload = state.control.reload(query.0.dry_run).await.map_err(Problem::from)?;
    let status = match reload.progress {
        ReloadProgress::Applying => StatusCode::ACCEPTED,
        ReloadProgress::Applied | ReloadProgress::Compared => StatusCode::OK,
    };
    Ok((status, Json(reload)).into_response())
}

/// [`ReloadQuery`] with mistakes as problems.
pub struct ReloadParams(ReloadQuery);

impl FromRequestParts<Arc<StreamsState>> for ReloadParams {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<StreamsState>) -> Result<Self, Problem> {
        let query = Query::<ReloadQuery>::from_request_parts(parts, state).await;
        let Query(query) =
            query.map_err(|error| Problem::malformed(format!("query: {}", error.body_text())))?;
        Ok(Self(query))
    }
}
