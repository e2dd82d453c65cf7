//! What a client sees when it does not get what it asked for: the only table from outcomes to statuses.
//!
//! Every error is an RFC 9457 `application/problem+json`. A handler returns a [`Problem`] (most often made from the
//! domain's [`Refusal`]); it travels in the response's extensions, and the edge (`edge.rs`) writes the body, because
//! only there the path and the request id are known. Causes (SQL texts, addresses) never reach a client: they are
//! logged where they end.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::streams::TopologyChange;
use crate::coupon::{clock::UtcMicros, error::Refusal, model::UserCoupon};

/// The media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error as clients see it (RFC 9457), with our members after the standard ones.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Names the kind of problem; stable.
    #[serde(rename = "type")]
    #[schema(example = "urn:sluice:problem:sold-out")]
    pub kind: String,
    /// The kind for a person; the same for every occurrence.
    #[schema(example = "Sold out")]
    pub title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599, example = 409)]
    pub status: u16,
    /// What happened this time.
    #[schema(example = "every coupon of this campaign is issued")]
    pub detail: String,
    /// The path that was asked for.
    #[schema(example = "/api/coupon/42/issue-redis")]
    pub instance: String,
    /// The correlation id of this request, as in `X-Request-Id`.
    #[schema(example = "0193c2f0-6f1e-7cc1-9d3a-2f6f0e0a51b7")]
    pub request_id: String,
    /// The domain's code, where the answer is the domain's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "CP005")]
    pub error_code: Option<&'static str>,
    /// Seconds after which trying again makes sense; also the `Retry-After` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// When the campaign opens (CP011).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub open_at: Option<UtcMicros>,
    /// The user coupon the user already holds, so that a client that lost the answer recovers (CP003, CP007).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing: Option<Box<UserCoupon>>,
    /// Which dependency did not answer (CP009, CP010).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dependency: Option<&'static str>,
    /// What topology files change, where that is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<TopologyChange>>,
}

impl Problem {
    /// A problem of a kind; the edge fills in path and request id.
    pub fn new(status: StatusCode, kind: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:sluice:problem:{kind}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            instance: String::new(),
            request_id: String::new(),
            error_code: None,
            retry_after: None,
            open_at: None,
            existing: None,
            dependency: None,
            changes: None,
        }
    }

    /// Whether it is about topologies and their reload.
    pub(super) fn is_of_topologies(&self) -> bool {
        self.kind.contains(":topology-") || self.kind.contains(":reload-")
    }

    /// 400: the request cannot be understood.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "Malformed request", detail)
    }

    /// 413: the body is larger than allowed.
    pub fn too_large(limit: usize) -> Self {
        let detail = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Request too large", detail)
    }

    /// 408: the body did not arrive in time.
    pub fn too_slow() -> Self {
        let detail = "the body of the request did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "Request too slow", detail)
    }

    /// 401: an admin path without the right token.
    pub fn unauthorized(detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Admin token required", detail)
    }

    /// 403: admin paths are closed on this server.
    pub fn forbidden(detail: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Admin paths are closed", detail)
    }

    /// 404 for a path that is not ours.
    pub fn no_such_path() -> Self {
        let detail = "there is nothing at this path; GET /openapi.json lists what there is";
        Self::new(StatusCode::NOT_FOUND, "no-such-path", "No such path", detail)
    }

    /// 405 for a path of ours with another method.
    pub fn no_such_method() -> Self {
        let detail = "this path does not answer this method; the Allow header names those it does";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", "Method not allowed", detail)
    }

    /// 500: a fault of ours.
    pub fn internal() -> Self {
        let detail = "a fault in the server; it is logged under this request id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
    }

    /// 429: more requests than are worked on at once.
    pub fn overloaded(retry_after: u64) -> Self {
        let detail = "too many requests are being worked on; this one was not started";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", "Overloaded", detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// The response's body and headers.
    pub(super) fn render(&self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of texts and numbers always serializes.
        let body = serde_json::to_vec(self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sluice admin\""));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Boxed: extensions are cloned with the response by some layers, and a pointer is cheap to move.
        response.extensions_mut().insert(Box::new(self));
        response
    }
}

/// One row of the table: status, kind, title.
type Row = (StatusCode, &'static str, &'static str);

/// The table.
fn row(refusal: &Refusal) -> Row {
    use StatusCode as S;
    match refusal {
        Refusal::CouponNotFound => (S::NOT_FOUND, "coupon-not-found", "Coupon not found"),
        Refusal::UserCouponNotFound => (S::NOT_FOUND, "user-coupon-not-found", "User coupon not found"),
        Refusal::Ended { .. } => (S::CONFLICT, "ended", "Ended or expired"),
        Refusal::AlreadyUsed { .. } => (S::CONFLICT, "already-used", "Already used"),
        Refusal::SoldOut => (S::CONFLICT, "sold-out", "Sold out"),
        Refusal::AlreadyIssued { .. } => (S::CONFLICT, "already-issued", "Already issued"),
        Refusal::NotOpenYet { .. } => (S::CONFLICT, "not-open-yet", "Not open yet"),
        Refusal::Paused => (S::CONFLICT, "paused", "Paused"),
        Refusal::IllegalTransition { .. } => (S::CONFLICT, "illegal-transition", "Illegal transition"),
        Refusal::MinimumOrderNotMet { .. } => {
            (S::UNPROCESSABLE_ENTITY, "minimum-order-not-met", "Minimum order not met")
        }
        Refusal::InvalidDiscountType { .. } => {
            (S::UNPROCESSABLE_ENTITY, "invalid-discount-type", "Invalid discount type")
        }
        Refusal::InvalidCampaign { .. } => (S::UNPROCESSABLE_ENTITY, "invalid-campaign", "Invalid campaign"),
        Refusal::IdempotencyKeyReused => {
            (S::UNPROCESSABLE_ENTITY, "idempotency-key-reused", "Idempotency key reused")
        }
        Refusal::SeatReleased { .. } => (S::SERVICE_UNAVAILABLE, "not-done", "Not done, nothing left behind"),
        Refusal::OutcomeUnknown { .. } => (S::SERVICE_UNAVAILABLE, "outcome-unknown", "Outcome unknown"),
        Refusal::Overloaded { .. } => (S::TOO_MANY_REQUESTS, "overloaded", "Overloaded"),
    }
}

/// Seconds until a moment, rounded up, at least one.
fn seconds_until(at: UtcMicros, now: UtcMicros) -> u64 {
    let micros = u64::try_from(at.micros() - now.micros()).unwrap_or(0);
    micros.div_ceil(1_000_000).max(1)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, kind, title) = row(&refusal);
        let mut problem = Problem::new(status, kind, title, refusal.to_string());
        problem.error_code = refusal.code();
        match refusal {
            Refusal::AlreadyUsed { existing } | Refusal::AlreadyIssued { existing } => {
                problem.existing = Some(existing);
            }
            Refusal::NotOpenYet { open_at, now } => {
                problem.open_at = open_at;
                problem.retry_after = Some(open_at.map_or(1, |at| seconds_until(at, now)));
            }
            Refusal::SeatReleased { dependency } | Refusal::OutcomeUnknown { dependency } => {
                problem.dependency = Some(dependency.as_str());
                problem.retry_after = Some(1);
            }
            Refusal::Overloaded { retry_after_s } => problem.retry_after = Some(retry_after_s.into()),
            _ => {}
        }
        problem
    }
}

/// A problem of each of the domain's codes, as the OpenAPI document shows them.
pub(super) fn examples(existing: &UserCoupon) -> Vec<Problem> {
    let (gate, ledger) = (crate::coupon::error::Dependency::Gate, crate::coupon::error::Dependency::Ledger);
    let existing = || Box::new(existing.clone());
    let open_at = existing().valid_from;
    let refusals = [
        Refusal::CouponNotFound,
        Refusal::Ended { detail: "issuing of this coupon has ended".into() },
        Refusal::AlreadyUsed { existing: existing() },
        Refusal::MinimumOrderNotMet { min_order_amount: 10_000, order_amount: 9_999 },
        Refusal::SoldOut,
        Refusal::UserCouponNotFound,
        Refusal::AlreadyIssued { existing: existing() },
        Refusal::InvalidDiscountType { given: "HALF".into() },
        Refusal::SeatReleased { dependency: gate },
        Refusal::OutcomeUnknown { dependency: ledger },
        Refusal::NotOpenYet { open_at: Some(open_at), now: open_at.plus_micros(-90_000_000) },
        Refusal::InvalidCampaign { field: "maxIssueCount", reason: "must be at least 1".into() },
        Refusal::Paused,
        Refusal::IllegalTransition { from: "CLOSED".into(), to: "OPEN" },
        Refusal::IdempotencyKeyReused,
    ];
    refusals.into_iter().map(Problem::from).collect()
}
