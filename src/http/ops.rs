//! Endpoints for those who run it: health, readiness, metrics, and the API's description of itself.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;

use super::{OpsState, error::Problem, openapi};

/// Asks every part whether it can work now.
pub type ReadinessProbe = Arc<dyn Fn() -> BoxFuture<'static, Vec<Check>> + Send + Sync>;

/// Liveness.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// Always `UP`: the process answers.
    #[schema(example = "UP")]
    status: &'static str,
}

/// What one part says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Check {
    /// The part: `ledger`, `gate`, `log`, `relay`, or a topology's application id.
    #[schema(example = "ledger")]
    pub name: String,
    /// Whether it can work.
    pub ready: bool,
    /// Whether this process is not ready without it.
    pub required: bool,
    /// Why not, or how far it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Check {
    /// A part without which this process cannot serve.
    pub fn new(name: &str, result: Result<(), String>) -> Self {
        Self {
            name: name.into(),
            ready: result.is_ok(),
            required: true,
            detail: result.err().unwrap_or_default(),
        }
    }

    /// A part that may be away: what needs it waits, and requests are answered all the same.
    pub fn optional(self) -> Self {
        Self { required: false, ..self }
    }
}

/// Readiness.
#[derive(Serialize, ToSchema)]
pub struct Readiness {
    /// `READY` when every required check is, else `NOT_READY`.
    #[schema(example = "READY")]
    status: &'static str,
    /// Each part.
    checks: Vec<Check>,
}

/// Is the process alive? Answers without asking anybody.
#[utoipa::path(get, path = "/healthz", operation_id = "health", tag = "operations",
    responses((status = 200, description = "Alive", body = Health)))]
pub async fn healthz() -> Json<Health> {
    Json(Health { status: "UP" })
}

/// Can it serve? Required are, where the API runs, ledger and gate; elsewhere what runs there. The rest is shown too.
#[utoipa::path(get, path = "/readyz", operation_id = "readiness", tag = "operations",
    responses(
        (status = 200, description = "Ready", body = Readiness),
        (status = 503, description = "Not ready; the checks say why", body = Readiness),
    ))]
pub async fn readyz(State(state): State<Arc<OpsState>>) -> Response {
    let checks = (state.readiness)().await;
    let is_ready = checks.iter().all(|check| check.ready || !check.required);
    let (code, status) =
        if is_ready { (StatusCode::OK, "READY") } else { (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY") };
    (code, Json(Readiness { status, checks })).into_response()
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "operations",
    responses((status = 200, description = "Prometheus text format", body = String, content_type = "text/plain")))]
pub async fn metrics(State(state): State<Arc<OpsState>>) -> Result<Response, Problem> {
    let text =
        prometheus::TextEncoder::new().encode_to_string(&state.registry.gather()).map_err(|error| {
            tracing::error!(%error, "metrics cannot be encoded");
            Problem::internal()
        })?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT))], text).into_response())
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "operations",
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json")))]
pub async fn openapi_json() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], openapi::json()).into_response()
}
