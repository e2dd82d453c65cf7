//! Random requests: never a 5xx, never a panic, always a well-formed answer.

use axum::{body::Body, http::Request};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Api;

#[path = "../../common/openapi_fuzz.rs"]
mod openapi_fuzz;

/// Any JSON, with the API's own field names among the keys.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..5).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "FIXED",
            "PERCENTAGE",
            "2026-01-01T00:00:00Z",
            "9999-12-31T23:59:59+23:59",
            "o-1"
        ])
        .prop_map(Value::from),
    ];
    let key = prop_oneof![
        prop::sample::select(vec![
            "userId",
            "orderId",
            "orderAmount",
            "reason",
            "couponName",
            "discountType",
            "discountValue",
            "maxDiscountAmount",
            "minOrderAmount",
            "maxIssueCount",
            "issueFrom",
            "issueUntil",
            "validFrom",
            "validTo",
            "createdBy",
        ])
        .prop_map(String::from),
        "\\PC{0,8}",
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Nearly right campaigns, with one or two fields replaced by anything.
fn damaged_campaign() -> impl Strategy<Value = Value> {
    let fields = vec![
        "couponName",
        "discountType",
        "discountValue",
        "maxDiscountAmount",
        "minOrderAmount",
        "maxIssueCount",
        "issueFrom",
        "issueUntil",
        "validFrom",
        "validTo",
        "createdBy",
    ];
    prop::collection::vec((prop::sample::select(fields), any_json()), 0..3).prop_map(|damages| {
        let mut body = super::campaign(3);
        for (field, value) in damages {
            body[field] = value;
        }
        body
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any_json().prop_map(|json| json.to_string().into_bytes()),
        3 => damaged_campaign().prop_map(|json| json.to_string().into_bytes()),
        2 => (any::<i64>(), "\\PC{0,6}").prop_map(|(amount, order)| json!({
            "userId": amount, "orderId": order, "orderAmount": amount, "reason": order
        }).to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

fn any_path() -> impl Strategy<Value = String> {
    let id = prop_oneof![
        3 => (1i64..4).prop_map(|id| id.to_string()),
        1 => any::<i64>().prop_map(|id| id.to_string()),
        1 => "[A-Za-z0-9._~%-]{0,12}",
    ];
    let shape = prop::sample::select(vec![
        "/api/coupon",
        "/api/coupon/{}",
        "/api/coupon/{}/open",
        "/api/coupon/{}/pause",
        "/api/coupon/{}/close",
        "/api/coupon/{}/stock",
        "/api/coupon/{}/issue-redis",
        "/api/coupon/{}/issue",
        "/api/coupon/user/{}",
        "/api/user-coupons/{}",
        "/api/user-coupons/{}/use",
        "/api/user-coupons/{}/cancel-use",
        "/api/user-coupons/{}/revoke",
        "/{}",
    ]);
    let query = prop_oneof![
        3 => Just(String::new()),
        1 => "\\?(status|cursor|limit)=[A-Za-z0-9%]{0,8}(&limit=[0-9]{0,3})?",
    ];
    (shape, id, query).prop_map(|(shape, id, query)| format!("{}{query}", shape.replace("{}", &id)))
}

#[test]
fn random_requests_never_break_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let api = runtime.block_on(async {
        let api = Api::new().await;
        // Two campaigns and a user coupon, so that random ids meet something.
        let id = api.open_campaign(3).await;
        api.issue(id, 1).await;
        api.open_campaign(3).await;
        api
    });
    let method = prop::sample::select(vec!["POST", "PATCH", "GET", "PUT", "DELETE", "HEAD", "OPTIONS"]);
    let key = prop::option::of("[ -~]{0,20}");
    // proptest prints the failing case and stores its seed.
    let config = ProptestConfig { cases: 1_500, failure_persistence: None, ..Default::default() };
    proptest!(config, |(method in method, path in any_path(), body in any_body(), key in key)| {
        let mut request = Request::builder().method(method).uri(&path);
        if let Some(key) = &key {
            request = request.header("Idempotency-Key", key.as_str());
        }
        // A path that the http crate itself refuses never reaches a server.
        let Ok(request) = request.body(Body::from(body.clone())) else { return Ok(()) };
        let answer = runtime.block_on(api.request(request));
        let status = answer.status.as_u16();
        prop_assert!(status < 500, "{} {} {:?}: {:?}", method, path, String::from_utf8_lossy(&body), answer);
        prop_assert!(!answer.header("x-request-id").is_empty());
        if status >= 400 && method != "HEAD" {
            prop_assert_eq!(answer.header("content-type"), "application/problem+json");
            prop_assert_eq!(&answer.json["status"], &json!(status));
        }
    });
}

/// Every operation of the document is asked with values made from its own description, and everything answered is as
/// described. `SLUICE_FUZZ_REQUESTS` makes the run longer, `SLUICE_FUZZ_SEED` another one.
#[tokio::test]
async fn what_is_described_is_what_is_answered() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (requests, seed) = (number("SLUICE_FUZZ_REQUESTS", 6_000), number("SLUICE_FUZZ_SEED", 1));
    let api = Api::new().await;
    let id = api.open_campaign(40).await;
    api.issue(id, 1).await;
    let document = api.get("/openapi.json").await.json;
    let mut fuzzer = openapi_fuzz::Fuzzer::new(document, seed);
    for number in 0..requests {
        let described = fuzzer.request();
        let mut request = Request::builder().method(described.method.as_str()).uri(&described.path);
        for (name, value) in &described.headers {
            request = request.header(name, value);
        }
        let answer = api.request(request.body(Body::from(described.body.clone())).unwrap()).await;
        let judged =
            fuzzer.judge(&described, answer.status.as_u16(), answer.header("content-type"), &answer.json);
        if let Err(reason) = judged {
            panic!(
                "seed {seed}, request {number}: {reason}\n{} {} {:?}\n{}\n{answer:?}",
                described.method,
                described.path,
                described.headers,
                String::from_utf8_lossy(&described.body)
            );
        }
    }
    // The run went through the doors and not only against them.
    for success in ["POST /api/coupon 201", "POST /api/coupon/{couponId}/issue 201", "GET /api/coupon 200"] {
        assert!(fuzzer.seen.contains_key(success), "no {success}: {:#?}", fuzzer.seen);
    }
}
