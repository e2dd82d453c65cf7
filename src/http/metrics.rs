//! What the API counts: requests by route and status, their latency, and how many are being worked on.

use std::{collections::HashMap, sync::OnceLock, time::Duration};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

/// Statuses this API answers with; anything else is counted as the last.
const STATUSES: [u16; 17] =
    [200, 201, 304, 400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 500, 503, 504, 0];

/// Metrics of the HTTP server.
pub struct HttpMetrics {
    routes: HashMap<&'static str, RouteMetrics>,
    unmatched: RouteMetrics,
    /// Requests being worked on.
    pub in_flight: IntGauge,
    /// Requests told to come back because too many were being worked on.
    pub overloaded: IntCounter,
    /// Open connections.
    pub connections: IntGauge,
    requests: IntCounterVec,
}

/// Handles of one route, looked up once, so that a request costs two atomic additions.
struct RouteMetrics {
    route: &'static str,
    seconds: Histogram,
    by_status: [OnceLock<IntCounter>; STATUSES.len()],
}

impl HttpMetrics {
    /// Registers metrics for these routes.
    pub fn register(
        registry: &Registry,
        routes: impl IntoIterator<Item = &'static str>,
    ) -> prometheus::Result<Self> {
        let requests = IntCounterVec::new(
            Opts::new("http_requests_total", "Requests answered, by route and status."),
            &["route", "status"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("http_request_seconds", "Time from head to answer, by route.").buckets(vec![
                0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
                2.5, 5.0, 10.0,
            ]),
            &["route"],
        )?;
        let in_flight = IntGauge::new("http_in_flight", "Requests being worked on.")?;
        let overloaded = IntCounter::new(
            "http_overloaded_total",
            "Requests told to come back because http.max_in_flight were being worked on.",
        )?;
        let connections = IntGauge::new("http_connections", "Open connections.")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(overloaded.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        let route = |route| RouteMetrics {
            route,
            seconds: seconds.with_label_values(&[route]),
            by_status: Default::default(),
        };
        Ok(Self {
            routes: routes.into_iter().map(|name| (name, route(name))).collect(),
            unmatched: route("unmatched"),
            in_flight,
            overloaded,
            connections,
            requests,
        })
    }

    /// Counts one answer. The label is the route's pattern, never the path: labels are bounded.
    pub fn answered(&self, route: Option<&str>, status: u16, elapsed: Duration) {
        let route = route.and_then(|route| self.routes.get(route)).unwrap_or(&self.unmatched);
        route.seconds.observe(elapsed.as_secs_f64());
        let slot = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        route.by_status[slot]
            .get_or_init(|| {
                let label = if STATUSES[slot] == 0 { "other".to_owned() } else { status.to_string() };
                self.requests.with_label_values(&[route.route, &label])
            })
            .inc();
    }
}
