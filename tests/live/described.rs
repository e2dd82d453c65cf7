//! The deployed service asked with requests made from its own description, on real Redis and Postgres: what an embedded
//! ledger takes (a NUL in a text, for one) a real one may not.

use std::collections::BTreeSet;

use crate::{deployment::Deployment, services::Services};

#[path = "../common/openapi_fuzz.rs"]
mod openapi_fuzz;

/// `SLUICE_FUZZ_REQUESTS` makes the run longer, `SLUICE_FUZZ_SEED` another one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_made_from_the_description_never_break_the_deployed_service() {
    // Whoever looks at the keys of a Redis must be alone with them.
    let Some(services) = Services::private_only("described", "redis") else { return };
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (requests, seed) = (number("SLUICE_FUZZ_REQUESTS", 3_000), number("SLUICE_FUZZ_SEED", 2));
    let deployment = Deployment::new(services).await;
    let api = deployment.start("api", "api,relay", &[("SLUICE__LOG__KIND", "embedded")]).await;
    deployment.open_campaign(&api, 40).await;
    let document = deployment.http.get(format!("{}/openapi.json", api.url)).send().await.unwrap();
    let mut fuzzer = openapi_fuzz::Fuzzer::new(document.json().await.unwrap(), seed);
    for number in 0..requests {
        let described = fuzzer.request();
        let method = reqwest::Method::from_bytes(described.method.as_bytes()).unwrap();
        let mut request = deployment
            .admin_request(method, format!("{}{}", api.url, described.path))
            .body(described.body.clone());
        for (name, value) in &described.headers {
            request = request.header(name, value);
        }
        let answer = request.send().await.expect("the service answers");
        let status = answer.status().as_u16();
        let media =
            answer.headers().get("content-type").map_or("", |media| media.to_str().unwrap()).to_owned();
        let text = answer.text().await.expect("a whole answer");
        let body = serde_json::from_str(&text).unwrap_or_default();
        if let Err(reason) = fuzzer.judge(&described, status, &media, &body) {
            panic!(
                "seed {seed}, request {number}: {reason}\n{} {} {:?}\n{}\n{text}\n{}",
                described.method,
                described.path,
                described.headers,
                String::from_utf8_lossy(&described.body),
                api.log_tail()
            );
        }
    }
    for success in ["POST /api/coupon 201", "GET /api/coupon 200"] {
        assert!(fuzzer.seen.contains_key(success), "no {success}: {:#?}", fuzzer.seen);
    }
    // By which of its names does not matter.
    let issued = |seen: &String| seen.contains("/{couponId}/issue") && seen.ends_with(" 201");
    assert!(fuzzer.seen.keys().any(issued), "nothing was issued: {:#?}", fuzzer.seen);
    redis_holds_known_campaigns_only(&deployment).await;
}

/// Made-up ids cost Redis nothing: every key in it is of a campaign that the ledger knows, and no user has more than the
/// one entry of his seat.
async fn redis_holds_known_campaigns_only(deployment: &Deployment) {
    let known: Vec<i64> = sqlx::query_scalar("select coupon_id from coupons")
        .fetch_all(&deployment.ledger().await)
        .await
        .unwrap();
    let known: BTreeSet<String> = known.iter().map(i64::to_string).collect();
    let client = redis::Client::open(deployment.services.redis.as_str()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("keys");
    assert!(!keys.is_empty(), "the gate of the first campaign is in Redis");
    for key in keys {
        let id = key.split(['{', '}']).nth(1).unwrap_or_else(|| panic!("{key} has no hash tag"));
        assert!(known.contains(id), "{key} is of a campaign that does not exist");
    }
}
