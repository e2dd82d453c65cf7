//! The table of bad input: every line is answered with exactly this status, as a problem, and never reaches the domain.

use serde_json::json;

use super::{Api, campaign};

#[tokio::test]
async fn each_bad_input_has_its_answer() {
    let api = Api::new().await;
    let huge = format!("{{\"userId\": 1, \"padding\": \"{}\"}}", "x".repeat(16_384));
    let deep = "[".repeat(5_000);
    let long_order = json!({ "orderId": "o".repeat(101), "orderAmount": 1 }).to_string();
    let issue = "/api/coupon/1/issue-redis";
    let create = "/api/coupon";
    // method, path, body, status, what the detail must name
    let table: &[(&str, &str, &str, u16, &str)] = &[
        // not JSON
        ("POST", issue, "", 400, "JSON body"),
        ("POST", issue, "{", 400, "EOF"),
        ("POST", issue, "userId=1", 400, "expected"),
        ("POST", issue, "{\"userId\": 1} x", 400, "trailing"),
        ("POST", issue, "\u{feff}{\"userId\": 1}", 400, "expected"),
        ("POST", issue, &deep, 400, ""),
        ("POST", issue, "null", 400, "null"),
        ("POST", issue, "[]", 400, ""),
        // wrong types, exact numbers
        ("POST", issue, "{}", 400, "userId"),
        ("POST", issue, "{\"userId\": null}", 400, "userId"),
        ("POST", issue, "{\"userId\": \"1\"}", 400, "userId"),
        ("POST", issue, "{\"userId\": 1.0}", 400, "userId"),
        ("POST", issue, "{\"userId\": 1e3}", 400, "userId"),
        ("POST", issue, "{\"userId\": true}", 400, "userId"),
        ("POST", issue, "{\"userId\": [1]}", 400, "userId"),
        ("POST", issue, "{\"userId\": 0}", 400, "userId"),
        ("POST", issue, "{\"userId\": -1}", 400, "userId"),
        ("POST", issue, "{\"userId\": 9223372036854775808}", 400, "userId"),
        ("POST", issue, "{\"userId\": 99999999999999999999999999}", 400, "userId"),
        ("POST", issue, "{\"userId\": 1, \"userId\": 2}", 400, "userId"),
        // too large
        ("POST", issue, &huge, 413, "16384"),
        // ids in paths
        ("POST", "/api/coupon/0/issue-redis", "{\"userId\": 1}", 400, "id in the path"),
        ("POST", "/api/coupon/-1/issue-redis", "{\"userId\": 1}", 400, "id in the path"),
        ("PATCH", "/api/coupon/x/issue-redis", "{\"userId\": 1}", 400, "id in the path"),
        ("POST", "/api/coupon/1.5/issue", "{\"userId\": 1}", 400, "id in the path"),
        ("GET", "/api/coupon/9223372036854775808", "", 400, "id in the path"),
        ("GET", "/api/coupon/01", "", 400, "id in the path"),
        ("GET", "/api/coupon/%31%00", "", 400, "id in the path"),
        ("GET", "/api/coupon/%ff", "", 400, "id in the path"),
        ("GET", "/api/user-coupons/abc", "", 400, "id in the path"),
        ("GET", "/api/coupon/user/0", "", 400, "id in the path"),
        // lists
        ("GET", "/api/coupon?limit=0", "", 400, "limit"),
        ("GET", "/api/coupon?limit=101", "", 400, "limit"),
        ("GET", "/api/coupon?limit=ten", "", 400, "limit"),
        ("GET", "/api/coupon?status=open", "", 400, "status"),
        ("GET", "/api/coupon?cursor=17", "", 400, "cursor"),
        ("GET", "/api/coupon?limit=1&limit=2", "", 400, "query"),
        ("GET", "/api/coupon/user/1?status=DRAFT", "", 400, "status"),
        // use
        ("POST", "/api/user-coupons/1/use", "{\"orderId\": \"o\"}", 400, "orderAmount"),
        ("POST", "/api/user-coupons/1/use", "{\"orderId\": null, \"orderAmount\": 1}", 400, "orderId"),
        ("POST", "/api/user-coupons/1/use", "{\"orderId\": \"o\", \"orderAmount\": 1.5}", 400, "orderAmount"),
        ("POST", "/api/user-coupons/1/use", "{\"orderId\": \"o\", \"orderAmount\": -1}", 400, "orderAmount"),
        ("POST", "/api/user-coupons/1/use", "{\"orderId\": \"\", \"orderAmount\": 1}", 400, "orderId"),
        (
            "POST",
            "/api/user-coupons/1/use",
            "{\"orderId\": \"a\\u0000b\", \"orderAmount\": 1}",
            400,
            "orderId",
        ),
        ("POST", "/api/user-coupons/1/use", &long_order, 400, "orderId"),
        ("POST", "/api/user-coupons/1/cancel-use", "{}", 400, "orderId"),
        ("POST", "/api/user-coupons/1/cancel-use", "{\"orderId\": \" \"}", 400, "orderId"),
        ("POST", "/api/user-coupons/1/revoke", "{\"reason\": \"\"}", 400, "reason"),
        ("POST", "/api/user-coupons/1/revoke", "{\"reason\": \"\\u0000\"}", 400, "reason"),
        ("POST", "/api/user-coupons/1/revoke", "{\"reasn\": \"x\"}", 400, "reasn"),
        // campaigns: an unknown field does not pass for a default
        ("POST", create, "{\"couponName\": \"x\", \"issueUntl\": null}", 400, "issueUntl"),
        ("PATCH", "/api/coupon/1", "{\"maxIssueCuont\": 5}", 400, "maxIssueCuont"),
        ("PATCH", "/api/coupon/1", "{\"validTo\": \"tomorrow\"}", 400, "validTo"),
        ("PATCH", "/api/coupon/1", "{\"validTo\": \"2026-03-01T09:00:00\"}", 400, "offset"),
        ("PATCH", "/api/coupon/1", "{\"couponName\": null}", 400, "couponName"),
        ("PATCH", "/api/coupon/1", "{\"maxIssueCount\": null}", 400, "maxIssueCount"),
        // paths and methods
        ("GET", "/", "", 404, "nothing at this path"),
        ("GET", "/api/coupon/1/", "", 404, "nothing at this path"),
        ("GET", "/api/coupon/1/issue-redis", "", 405, "method"),
        ("DELETE", "/api/coupon/1", "", 405, "method"),
    ];
    for (method, path, body, status, detail) in table {
        let answer = api.send(method, path, (*body).to_owned()).await;
        let line = format!("{method} {path} {}", body.chars().take(60).collect::<String>());
        assert_eq!(answer.status.as_u16(), *status, "{line}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{line}");
        assert_eq!(answer.json["status"], *status, "{line}");
        let path_only = path.split('?').next().unwrap();
        assert_eq!(answer.json["instance"], path_only, "{line}");
        assert_eq!(answer.json["requestId"], answer.header("x-request-id"), "{line}");
        assert!(answer.json["type"].as_str().unwrap().starts_with("urn:sluice:problem:"), "{line}");
        let found = answer.json["detail"].as_str().unwrap();
        assert!(found.contains(detail), "{line}: the detail `{found}` does not name `{detail}`");
    }
    let metrics = prometheus::TextEncoder::new().encode_to_string(&api.state.ops.registry.gather()).unwrap();
    assert!(!metrics.contains("status=\"5"), "a bad request became a server error:\n{metrics}");
}

#[tokio::test]
async fn each_impossible_campaign_is_refused_with_its_code() {
    let api = Api::new().await;
    for (field, value, code) in [
        ("discountType", json!("BOGUS"), "CP008"),
        ("discountType", json!(""), "CP008"),
        ("discountValue", json!(0), "CP012"),
        ("discountValue", json!(101), "CP012"),
        ("maxIssueCount", json!(0), "CP012"),
        ("maxIssueCount", json!(-5), "CP012"),
        ("minOrderAmount", json!(-1), "CP012"),
        ("maxDiscountAmount", json!(0), "CP012"),
        ("couponName", json!(""), "CP012"),
        ("couponName", json!("x".repeat(201)), "CP012"),
        ("createdBy", json!(""), "CP012"),
        ("validTo", json!("2019-12-31T00:00:00Z"), "CP012"),
    ] {
        let mut body = campaign(10);
        body[field] = value.clone();
        let answer = api.post("/api/coupon", body).await;
        assert_eq!(answer.status, 422, "{field} = {value}: {answer:?}");
        assert_eq!(answer.json["errorCode"], code, "{field} = {value}: {answer:?}");
        assert!(answer.json["detail"].as_str().unwrap().contains(field), "{field} = {value}: {answer:?}");
    }
}

#[tokio::test]
async fn idempotency_keys_and_request_ids_are_checked() {
    let api = Api::new().await;
    let path = "/api/coupon/1/issue-redis";
    let body = json!({ "userId": 1 });
    let long = "k".repeat(256);
    for key in ["", &long] {
        let answer = api.post_with(path, body.clone(), &[("Idempotency-Key", key)]).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.json["detail"].as_str().unwrap().contains("Idempotency-Key"));
    }
    let twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")];
    assert_eq!(api.post_with(path, body.clone(), &twice).await.status, 400);

    let answer = api.post_with("/nope", body.clone(), &[("X-Request-Id", "mine-1")]).await;
    assert_eq!(answer.header("x-request-id"), "mine-1");
    assert_eq!(answer.json["requestId"], "mine-1");
    let too_long = "r".repeat(129);
    for unusable in ["", "two words", &too_long] {
        let answer = api.post_with("/nope", body.clone(), &[("X-Request-Id", unusable)]).await;
        assert_eq!(answer.header("x-request-id").len(), 36, "{unusable:?} is replaced by a new id");
    }
}
