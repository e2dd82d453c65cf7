//! Bad input to the real binary: what is refused, with which exit code or status, and what the message names.
//!
//! Always true: a mistake in the configuration stops the program before anything starts, and all of them are reported.

use serde_json::{Value, json};

use crate::{binary, server::Server};

/// The program ends with 2 and its message holds every part.
fn check_refused(args: &[&str], settings: &[(&str, &str)], parts: &[&str]) {
    let output = binary::sluice(args).envs(settings.iter().copied()).output().expect("the binary starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?} {settings:?}: {message}");
    for part in parts {
        assert!(message.contains(part), "{args:?} {settings:?}: no {part:?} in {message}");
    }
}

#[test]
fn mistakes_in_settings_stop_the_program_before_it_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("sluice.toml");
    std::fs::write(&file, "data_dir = 3\n\n[htp]\nlisten = \"127.0.0.1:0\"\n").expect("written");
    let file = file.to_str().expect("a path of text");
    let serve: &[&str] = &["serve"];
    check_refused(serve, &[("SLUICE__HTTP__LISTN", "x")], &["http.listn", "SLUICE__HTTP__LISTEN"]);
    check_refused(
        serve,
        &[("SLUICE__TOPICS__PARTITIONS", "many")],
        &["topics.partitions", "many", "whole number"],
    );
    check_refused(serve, &[("SLUICE__TOPICS__PARTITIONS", "-3")], &["topics.partitions", "-3"]);
    check_refused(serve, &[("SLUICE__LOG__KIND", "kafka")], &["kafka.bootstrap_servers", "log.kind"]);
    check_refused(
        serve,
        &[("SLUICE__LOG__KIND", "disk"), ("SLUICE__HTTP__LISTEN", "nowhere")],
        &["2 mistakes", "disk", "nowhere"],
    );
    check_refused(
        &["serve", "--config", file],
        &[],
        &["2 mistakes", ":1: data_dir = 3", ":4: htp.listen", "http.listen"],
    );
    check_refused(&["serve", "--config", "no-such-file.toml"], &[], &["no-such-file.toml"]);
    check_refused(&["serve", "--roles", "apy"], &[], &["apy", "api"]);
    check_refused(&["serv"], &[], &["serv"]);
}

#[test]
fn every_mistake_of_a_topology_is_reported_with_its_place() {
    const THREE_MISTAKES: &str = r#"version = 1
app     = "mistakes"

[source.issued]
topic  = "issued"
fields = { id = "int", at = "timestamp" }
colour = "red"

[stream.twice]
from   = "isued"
select = { id = "id" }

[stream.wrong]
from   = "issued"
select = { id = "idd + 1" }
"#;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mistakes.toml");
    std::fs::write(&file, THREE_MISTAKES).expect("written");
    let file = file.to_str().expect("a path of text");
    let place = |line_and_column: &str| format!("{file}:{line_and_column}:");
    check_refused(
        &["topology", "check", file],
        &[],
        &[
            &place("7:1"),
            "colour",
            &place("10:10"),
            "did you mean `issued`?",
            &place("15:18"),
            "unknown column `idd`",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_a_problem_that_names_the_mistake() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(binary::sluice(&["serve", "--roles", "api"]).current_dir(directory.path()));
    let http = reqwest::Client::new();
    let post = async |path: &str, body: Vec<u8>| {
        let request =
            http.post(format!("{}{path}", server.url)).header("content-type", "application/json").body(body);
        let response = request.send().await.expect("an answer");
        let (status, kind) = (response.status().as_u16(), response.headers().get("content-type").cloned());
        if status == 413 {
            // Its body was not read to the end: a client that sent another request after it would lose that one.
            let connection = response.headers().get("connection").map(|value| value.as_bytes());
            assert_eq!(connection, Some(&b"close"[..]), "{path}");
        }
        let text = response.text().await.expect("a body");
        let problem: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error} in {text:?}"));
        (status, kind.map(|kind| kind.to_str().expect("text").to_owned()).unwrap_or_default(), problem)
    };
    let campaign = json!({
        "couponName": "bad input", "discountType": "FIXED", "discountValue": 1000, "maxIssueCount": 5,
        "validFrom": "2020-01-01T00:00:00Z", "validTo": "2099-01-01T00:00:00Z", "createdBy": "test",
    });
    let (status, _, created) = post("/api/coupon", campaign.to_string().into_bytes()).await;
    assert_eq!(status, 201, "{created}");
    let coupon = created["couponId"].as_i64().expect("an id");
    let issue = format!("/api/coupon/{coupon}/issue-redis");
    let unsold = |field: &str, value: Value| {
        let mut body = campaign.clone();
        body[field] = value;
        body.to_string()
    };

    let huge = format!("{{\"userId\": 1, \"padding\": \"{}\"}}", "x".repeat(100_000));
    // path, body, status, errorCode where there is one
    let cases: Vec<(&str, String, u16, Option<&str>)> = vec![
        (&issue, "{".into(), 400, None),
        (&issue, "".into(), 400, None),
        (&issue, "[]".into(), 400, None),
        (&issue, r#"{"userId": "seven"}"#.into(), 400, None),
        (&issue, r#"{"userId": 1.5}"#.into(), 400, None),
        (&issue, r#"{"userId": 0}"#.into(), 400, None),
        (&issue, r#"{"userId": -1}"#.into(), 400, None),
        (&issue, r#"{"userId": 9223372036854775808}"#.into(), 400, None),
        (&issue, r#"{}"#.into(), 400, None),
        (&issue, huge, 413, None),
        ("/api/coupon/999999/issue-redis", r#"{"userId": 1}"#.into(), 404, Some("CP001")),
        ("/api/coupon/9007199254740993/issue-redis", r#"{"userId": 1}"#.into(), 404, Some("CP001")),
        ("/api/coupon/-1/issue-redis", r#"{"userId": 1}"#.into(), 400, None),
        ("/api/coupon/9223372036854775808/issue-redis", r#"{"userId": 1}"#.into(), 400, None),
        ("/api/coupon/seven/issue-redis", r#"{"userId": 1}"#.into(), 400, None),
        ("/api/user-coupons/999999/use", r#"{"orderId": "o", "orderAmount": 1}"#.into(), 404, Some("CP006")),
        ("/api/coupon", unsold("maxIssueCount", json!(0)), 422, Some("CP012")),
        ("/api/coupon", unsold("discountType", json!("GIFT")), 422, Some("CP008")),
        ("/api/coupon", unsold("validTo", json!("2019-01-01T00:00:00Z")), 422, Some("CP012")),
    ];
    for (path, body, expected, code) in cases {
        let shown: String = body.chars().take(60).collect();
        let (status, kind, problem) = post(path, body.into_bytes()).await;
        assert_eq!(status, expected, "{path} {shown}: {problem}");
        assert!(kind.starts_with("application/problem+json"), "{path} {shown}: {kind}");
        assert_eq!(problem["status"], expected, "{path} {shown}: {problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{path} {shown}: {problem}");
        if let Some(code) = code {
            assert_eq!(problem["errorCode"], code, "{path} {shown}: {problem}");
        }
    }
    // After all that the server still serves, and an id beyond 2^53 is kept exactly.
    post(&format!("/api/coupon/{coupon}/open"), b"{}".to_vec()).await;
    let (status, _, issued) = post(&issue, br#"{"userId": 9007199254740993}"#.to_vec()).await;
    assert_eq!((status, issued["userId"].as_i64()), (201, Some(9_007_199_254_740_993)), "{issued}");
}
