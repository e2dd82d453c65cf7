//! The API as a service: the real router over an in-process gate and a SQLite ledger in a directory of the test's own.

mod bad_input;
mod flow;
mod fuzz;
mod limits;
mod openapi;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::{Value, json};
use sluice::{
    config::{Config, Layers},
    coupon::{clock::Clock, gate::embedded::EmbeddedGate, ledger::Ledger, service::CouponService},
    http::{ApiState, InFlight, OpsState, admin::AdminGuard, ops::Check, register_metrics, router},
};
use tower::ServiceExt;

/// The API of one test.
pub struct Api {
    /// Handles requests.
    pub router: Router,
    /// What handlers share.
    pub state: Arc<ApiState>,
    /// Where ledger and log lie.
    pub directory: tempfile::TempDir,
}

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The body, when it is JSON; else null.
    pub json: Value,
}

impl Answer {
    /// The header as text, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Api {
    /// With the default configuration.
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With these keys set.
    pub async fn with(keys: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layers = keys
            .iter()
            .fold(Layers::defaults(), |layers, (key, value)| layers.set(key, *value, "test"))
            .set("data_dir", directory.path().to_str().unwrap(), "test");
        let config = Config::from_layers(layers).unwrap();
        let ledger = Ledger::open(config.ledger.url.expose(), config.ledger.db.clone()).await.unwrap();
        ledger.migrate().await.unwrap();
        let gate = Arc::new(EmbeddedGate::new(config.gate.pending_timeout));
        let service = CouponService::new(gate, ledger, Clock::system(), config.coupon.clone());
        let registry = sluice::telemetry::registry();
        let metrics = register_metrics(&registry).unwrap();
        let token = config.admin_token.as_ref().map(|token| token.expose());
        let admin = AdminGuard::new(token, config.http.listen);
        let ops = Arc::new(OpsState {
            config: config.http,
            in_flight: InFlight::default(),
            metrics,
            registry,
            readiness: Arc::new(|| Box::pin(async { vec![Check::new("ledger", Ok(()))] })),
        });
        let state = Arc::new(ApiState { service: Arc::new(service), admin, ops: ops.clone() });
        Self { router: router(ops, Some(state.clone()), None), state, directory }
    }

    /// Sends a request and reads the answer.
    pub async fn request(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer { status, headers, json: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }

    /// Sends a body as it is.
    pub async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        self.request(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, body.to_string()).await
    }

    /// Sends with headers.
    pub async fn post_with(&self, path: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method("POST").uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.request(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// A campaign of so many seats, open. Returns its id.
    pub async fn open_campaign(&self, seats: i64) -> i64 {
        let created = self.post("/api/coupon", campaign(seats)).await;
        assert_eq!(created.status, 201, "{created:?}");
        let id = created.json["couponId"].as_i64().unwrap();
        let opened = self.post(&format!("/api/coupon/{id}/open"), json!({})).await;
        assert_eq!(opened.status, 200, "{opened:?}");
        id
    }

    /// Issues one to a user and returns its id.
    pub async fn issue(&self, coupon: i64, user: i64) -> i64 {
        let issued = self.post(&format!("/api/coupon/{coupon}/issue-redis"), json!({ "userId": user })).await;
        assert_eq!(issued.status, 201, "{issued:?}");
        issued.json["userCouponId"].as_i64().unwrap()
    }
}

/// A campaign's body: 10 % off, at most 5,000 off, for orders of 10,000 and more.
pub fn campaign(seats: i64) -> Value {
    json!({
        "couponName": "Spring sale", "discountType": "PERCENTAGE", "discountValue": 10, "maxDiscountAmount": 5000,
        "minOrderAmount": 10000, "maxIssueCount": seats, "validFrom": "2020-01-01T00:00:00+09:00",
        "validTo": "2100-01-01T00:00:00+09:00", "createdBy": "test"
    })
}
