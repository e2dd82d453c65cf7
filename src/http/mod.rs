//! The API: parse, one call into the domain, answer.
//!
//! A request goes down: `server` (connections) -> `edge` (id, admission, time, metrics) -> a handler in [`coupons`],
//! [`user_coupons`], [`streams`] or [`ops`], whose arguments are made by `extract`, `list` and `admin` -> one `coupon::` method -> `error`
//! (the only table from outcomes to statuses). Nothing here knows Redis, SQL or Kafka.

pub mod admin;
mod config;
pub mod coupons;
mod edge;
pub mod error;
mod extract;
mod list;
mod metrics;
pub mod openapi;
pub mod ops;
mod server;
pub mod streams;
pub mod user_coupons;

use std::sync::Arc;

use axum::{
    Router,
    http::Method,
    middleware,
    routing::{MethodRouter, get, patch, post},
};

pub use config::HttpConfig;
pub use edge::{InFlight, X_REQUEST_ID};
pub use metrics::HttpMetrics;
pub use server::serve;

use crate::coupon::service::CouponService;
use error::Problem;

/// What the handlers of the API share.
pub struct ApiState {
    /// The domain.
    pub service: Arc<CouponService>,
    /// Who may use the admin paths.
    pub admin: admin::AdminGuard,
    /// What every path shares.
    pub ops: Arc<OpsState>,
}

/// What every path shares, those of a process without the API too.
pub struct OpsState {
    /// Limits.
    pub config: HttpConfig,
    /// Requests being worked on.
    pub in_flight: InFlight,
    /// Counters of this API.
    pub metrics: Arc<HttpMetrics>,
    /// Everything `/metrics` shows.
    pub registry: prometheus::Registry,
    /// What `/readyz` asks.
    pub readiness: ops::ReadinessProbe,
}

/// The routes of a process that runs topologies.
fn streams_routes() -> Routes<streams::StreamsState> {
    use Method as M;
    vec![
        ("/api/streams/topologies", vec![M::GET], get(streams::topologies)),
        ("/api/streams/reload", vec![M::POST], post(streams::reload)),
    ]
}

type Routes<S> = Vec<(&'static str, Vec<Method>, MethodRouter<Arc<S>>)>;

/// The API's routes. A new endpoint is a line here and a handler named in `openapi`.
fn api_routes() -> Routes<ApiState> {
    use Method as M;
    vec![
        ("/api/coupon", vec![M::POST, M::GET], post(coupons::create).get(coupons::list)),
        ("/api/coupon/{couponId}", vec![M::GET, M::PATCH], get(coupons::get).patch(coupons::patch)),
        ("/api/coupon/{couponId}/open", vec![M::POST], post(coupons::open)),
        ("/api/coupon/{couponId}/pause", vec![M::POST], post(coupons::pause)),
        ("/api/coupon/{couponId}/close", vec![M::POST], post(coupons::close)),
        ("/api/coupon/{couponId}/stock", vec![M::GET], get(coupons::stock)),
        (
            "/api/coupon/{couponId}/issue-redis",
            vec![M::POST, M::PATCH],
            patch(coupons::issue).post(coupons::issue),
        ),
        ("/api/coupon/{couponId}/issue", vec![M::POST], post(coupons::issue)),
        ("/api/coupon/user/{userId}", vec![M::GET], get(user_coupons::list_by_user)),
        ("/api/user-coupons/{userCouponId}", vec![M::GET], get(user_coupons::get)),
        ("/api/user-coupons/{userCouponId}/use", vec![M::POST], post(user_coupons::redeem)),
        ("/api/user-coupons/{userCouponId}/cancel-use", vec![M::POST], post(user_coupons::cancel_use)),
        ("/api/user-coupons/{userCouponId}/revoke", vec![M::POST], post(user_coupons::revoke)),
    ]
}

/// The routes of every process.
fn ops_routes() -> Routes<OpsState> {
    use Method as M;
    vec![
        ("/healthz", vec![M::GET], get(ops::healthz)),
        ("/readyz", vec![M::GET], get(ops::readyz)),
        ("/metrics", vec![M::GET], get(ops::metrics)),
        ("/openapi.json", vec![M::GET], get(ops::openapi_json)),
    ]
}

/// Routes that are another's: method, path, and the path whose POST it is.
pub(crate) const ALIASES: &[(Method, &str, &str)] = &[
    (Method::POST, "/api/coupon/{couponId}/issue", "/api/coupon/{couponId}/issue-redis"),
    (Method::PATCH, "/api/coupon/{couponId}/issue-redis", "/api/coupon/{couponId}/issue-redis"),
];

/// Registers the API's metrics, with every route's label.
pub fn register_metrics(registry: &prometheus::Registry) -> prometheus::Result<Arc<HttpMetrics>> {
    let api = api_routes().into_iter().map(|(path, ..)| path);
    let streams = streams_routes().into_iter().map(|(path, ..)| path);
    let ops = ops_routes().into_iter().map(|(path, ..)| path);
    HttpMetrics::register(registry, api.chain(streams).chain(ops)).map(Arc::new)
}

/// Everything this process answers, as a service: the API and the topologies where they run, health and metrics in any case.
pub fn router(
    ops: Arc<OpsState>,
    api: Option<Arc<ApiState>>,
    streams: Option<Arc<streams::StreamsState>>,
) -> Router {
    fn mounted<S: Send + Sync + 'static>(routes: Routes<S>, state: Arc<S>) -> Router {
        let router = Router::new();
        let router =
            routes.into_iter().fold(router, |router, (path, _, handlers)| router.route(path, handlers));
        router.with_state(state)
    }
    let mut router = mounted(ops_routes(), ops.clone());
    if let Some(api) = api {
        router = router.merge(mounted(api_routes(), api));
    }
    if let Some(streams) = streams {
        router = router.merge(mounted(streams_routes(), streams));
    }
    router
        .fallback(async || Problem::no_such_path())
        .method_not_allowed_fallback(async || Problem::no_such_method())
        .layer(middleware::from_fn_with_state(ops, edge::edge))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn routes_and_document_are_equal() {
        let api = api_routes().into_iter().map(|(path, methods, _)| (path, methods));
        let ops = ops_routes().into_iter().map(|(path, methods, _)| (path, methods));
        let streams = streams_routes().into_iter().map(|(path, methods, _)| (path, methods));
        let served: BTreeSet<String> = api
            .chain(ops)
            .chain(streams)
            .flat_map(|(path, methods)| methods.into_iter().map(move |method| format!("{method} {path}")))
            .collect();
        let described: BTreeSet<String> = (openapi::document().paths.paths.iter())
            .flat_map(|(path, item)| {
                [(&item.get, "GET"), (&item.post, "POST"), (&item.patch, "PATCH")].into_iter().filter_map(
                    move |(operation, method)| operation.as_ref().map(|_| format!("{method} {path}")),
                )
            })
            .collect();
        assert_eq!(served, described);
    }
}
