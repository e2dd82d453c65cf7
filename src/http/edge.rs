//! The edge around every handler: what each request goes through, in order.
//!
//! 1. It gets a correlation id: the caller's `X-Request-Id` when that is usable, else a new one. It is returned, put
//!    into every problem, and passed into the domain.
//! 2. It is admitted or told at once to come back: at most `max_in_flight` are worked on. Health, readiness and
//!    metrics are always answered, an overloaded server most of all.
//! 3. It has a time to be answered in, and a panic below is answered 500.
//! 4. A [`Problem`] on the way out gets its body here, and the answer is counted.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;

use super::{OpsState, error::Problem};
use crate::coupon::{
    correlation,
    error::{Dependency, Refusal},
};

/// The header that carries the correlation id.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest correlation id taken from a caller.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The correlation id of a request, in its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);

/// Counts requests being worked on; the permit gives its place back when dropped, also on cancellation.
#[derive(Debug, Default)]
pub struct InFlight(AtomicUsize);

/// A place among the requests being worked on.
struct Permit<'a>(&'a OpsState);

impl InFlight {
    fn enter<'a>(&self, state: &'a OpsState) -> Option<Permit<'a>> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before >= state.config.max_in_flight {
            self.0.fetch_sub(1, Ordering::Relaxed);
            state.metrics.overloaded.inc();
            return None;
        }
        state.metrics.in_flight.inc();
        Some(Permit(state))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.in_flight.0.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.dec();
    }
}

/// Wraps one request; see the file's description for the order.
pub async fn edge(State(state): State<Arc<OpsState>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let uri = request.uri().clone();
    let method = request.method().clone();
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));

    let is_limited = uri.path().starts_with("/api/");
    let permit = if is_limited { state.in_flight.enter(&state) } else { None };
    let mut response = if is_limited && permit.is_none() {
        Problem::overloaded(1).into_response()
    } else {
        let answer = correlation::within(id.clone(), next.run(request));
        let answer = AssertUnwindSafe(answer).catch_unwind();
        match tokio::time::timeout(state.config.request_timeout, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                // The panic hook has printed message and place; this line ties them to the request.
                tracing::error!(request_id = %id, path = uri.path(), "a handler panicked");
                Problem::internal().into_response()
            }
            Err(_) => {
                tracing::warn!(request_id = %id, path = uri.path(), "no answer within http.request_timeout_ms");
                late(changes).into_response()
            }
        }
    };
    drop(permit);

    if let Some(mut problem) = response.extensions_mut().remove::<Box<Problem>>() {
        problem.instance = uri.path().to_owned();
        problem.request_id = id.to_string();
        let rendered = problem.render();
        // Headers set beside the problem (Allow) stay.
        let mut headers = std::mem::take(response.headers_mut());
        headers.remove(header::CONTENT_LENGTH);
        response = rendered;
        for (name, value) in headers {
            if let Some(name) = name
                && !response.headers().contains_key(&name)
            {
                response.headers_mut().append(name, value);
            }
        }
    }
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        // The rest of the body is not read, so the connection ends here; a client that is not told would send its next
        // request into it.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    // Not at info: a request that works is a number, not a line.
    tracing::debug!(request_id = %id, %method, path = uri.path(), status, micros = elapsed.as_micros() as u64, "answered");
    state.metrics.answered(route.as_ref().map(MatchedPath::as_str), status, elapsed);
    response
}

/// The answer past `request_timeout`. Whatever the request was doing was dropped on the way, so the outcome of a
/// change is unknown; repeating it is safe by the idempotency rules of each endpoint.
fn late(changes: bool) -> Problem {
    let problem = Problem::from(Refusal::OutcomeUnknown { dependency: Dependency::Ledger });
    if changes {
        return problem;
    }
    Problem {
        error_code: None,
        detail: "no answer in time; nothing was changed, try again".into(),
        ..problem
    }
}

/// The caller's id when it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id)
            if (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            id.into()
        }
        _ => {
            let mut buffer = uuid::Uuid::encode_buffer();
            (&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer)).into()
        }
    }
}
