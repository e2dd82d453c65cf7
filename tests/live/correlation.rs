//! One id from the caller's request to the last thing derived from it, and no secret on the way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    deployment::{ADMIN_TOKEN, Deployment, eventually},
    services::Services,
    topic::{self, Read},
};

/// Two requests with ids of the caller's: each is found in the answer, the history, the event's value and headers, the
/// notification command that follows from the event, and the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_found_in_everything_it_caused() {
    let Some(services) = Services::private("correlation") else { return };
    let deployment = Deployment::new(services).await;
    let settings =
        [("SLUICE__TELEMETRY__LOG", "info,sluice::http=debug"), ("SLUICE__TELEMETRY__FORMAT", "json")];
    let api = deployment.start("api", "api,relay,streams", &settings).await;
    let coupon = deployment.open_campaign(&api, 1).await;

    let issue = |user: i64, id: &'static str| {
        let url = format!("{}/api/coupon/{coupon}/issue-redis", api.url);
        deployment.http.post(url).header("X-Request-Id", id).json(&json!({ "userId": user })).send()
    };
    let issued = issue(7, "caller-issue-1").await.expect("an answer");
    assert_eq!(
        (issued.status().as_u16(), &issued.headers()["x-request-id"]),
        (201, &"caller-issue-1".parse().unwrap())
    );
    let user_coupon = issued.json::<Value>().await.expect("JSON")["userCouponId"].as_i64().expect("an id");
    let url = format!("{}/api/user-coupons/{user_coupon}/use", api.url);
    let body = json!({ "orderId": "o-1", "orderAmount": 5_000 });
    let used = deployment.http.post(url).header("X-Request-Id", "caller-use-2").json(&body).send();
    assert_eq!(used.await.expect("an answer").status(), 200);
    let refused = issue(8, "caller-refused-3").await.expect("an answer");
    assert_eq!(refused.json::<Value>().await.expect("JSON")["requestId"], "caller-refused-3");

    let history: Vec<(String, String)> = sqlx::query_as(
        "select request_id, event_id from coupon_history where user_coupon_id = $1 order by seq",
    )
    .bind(user_coupon)
    .fetch_all(&deployment.ledger().await)
    .await
    .expect("the ledger answers");
    let ids: Vec<&str> = history.iter().map(|(request, _)| request.as_str()).collect();
    assert_eq!(ids, ["caller-issue-1", "caller-use-2"]);

    for (topic, (request, event)) in ["coupon-issued", "coupon-used"].into_iter().zip(&history) {
        let record = one(&deployment, topic, |_| true).await;
        assert_eq!(
            (&record.headers["ce_correlationid"], &record.headers["ce_id"]),
            (request, event),
            "{topic}"
        );
        assert_eq!(record.json()["requestId"], json!(request), "{topic}");
        let command = one(&deployment, "coupon-notification-commands", |record| {
            record.json()["causationId"] == json!(event)
        });
        assert_eq!(command.await.key, "7", "what follows from the event names it");
    }

    let log = api.log();
    for id in ["caller-issue-1", "caller-use-2", "caller-refused-3"] {
        assert!(
            log.lines().any(|line| line.contains(&format!("\"request_id\":\"{id}\""))),
            "{id} is in no line:\n{log}"
        );
    }
    // Everything a reader of logs, metrics or errors sees, and none of it holds the token.
    let wrong =
        deployment.http.post(format!("{}/api/coupon/{coupon}/open", api.url)).bearer_auth("wrong").send();
    let wrong = wrong.await.expect("an answer").text().await.expect("a body");
    let metrics = deployment.http.get(format!("{}/metrics", api.url)).send().await.expect("metrics");
    for (place, text) in [("log", log), ("metrics", metrics.text().await.expect("text")), ("error", wrong)] {
        assert!(!text.contains(ADMIN_TOKEN), "the {place} holds the admin token");
    }
}

/// The record of a topic that fits, once it is there.
async fn one(deployment: &Deployment, name: &str, fits: impl Fn(&Read) -> bool) -> Read {
    let found = || async {
        let (kafka, name) = (deployment.services.kafka.clone(), name.to_owned());
        let records =
            tokio::task::spawn_blocking(move || topic::read_all(&kafka, &name)).await.expect("read");
        records.into_iter().find(|record| fits(record))
    };
    eventually(Duration::from_secs(60), found).await.unwrap_or_else(|| panic!("nothing that fits in {name}"))
}
