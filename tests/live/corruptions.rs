//! The verifier on real services: corruptions planted in Postgres, Redis and Kafka themselves, behind everybody's back, and
//! exactly those are found. (On plain facts, more kinds: tests/fast/verify.rs.)

use std::{collections::BTreeSet, io::Write};

use serde_json::{Value, json};
use sqlx::Executor;

use crate::{
    deployment::Deployment,
    topic::{self, read_all},
    truth::latest_by_key,
};

/// Plants them in a deployment that is quiet, sound and stopped, and has issued at least twenty of one campaign.
pub async fn are_found_as_what_they_are(deployment: &Deployment, coupon: i64) {
    assert_eq!(found(deployment, "[]"), BTreeSet::new(), "nothing is found on clean data");
    let ledger = deployment.ledger().await;
    // Of those that are as they were issued: what is planted below is all that was done to them.
    let rows: Vec<(i64, i64)> = sqlx::query_as(
        "select user_coupon_id, user_id from user_coupons where coupon_id = $1 and last_seq = 1
         order by user_coupon_id",
    )
    .bind(coupon)
    .fetch_all(&ledger)
    .await
    .expect("the rows");
    let (row, user) = (|n: usize| rows[n].0, |n: usize| rows[n].1);
    let kafka = &deployment.services.kafka;
    let mut expected: BTreeSet<(String, String)> = BTreeSet::new();
    let mut plant = |invariant: &str, subject: String| {
        expected.insert((invariant.to_owned(), subject));
    };
    let of_row = |n: usize| format!("user coupon {}", row(n));
    let of_user = |user: i64| format!("coupon {coupon} user {user}");

    // -- Postgres: constraints and triggers out of the way, as a careless superuser could --
    let mut sql = vec!["set session_replication_role = replica".to_owned()];
    // 1 a limit below what is issued
    let (highest, slot_max): (i64, i64) = sqlx::query_as(
        "select user_coupon_id, slot_no from user_coupons where coupon_id = $1 order by slot_no desc limit 1",
    )
    .bind(coupon)
    .fetch_one(&ledger)
    .await
    .expect("rows");
    sql.push(format!("update coupons set max_issue_count = {} where coupon_id = {coupon}", slot_max - 1));
    plant("I1", format!("user coupon {highest}"));
    plant("I1", format!("coupon {coupon}"));
    // 2 used, and the history does not know
    sql.push(format!(
        "update user_coupons set status = 'USED', order_id = 'o', order_amount = 1, discount_amount = 1, used_at = 1
         where user_coupon_id = {}",
        row(0)
    ));
    plant("I6", of_row(0));
    plant("I7", of_row(0));
    // 3 another time than its history says
    sql.push(format!("update user_coupons set issued_at = issued_at + 1 where user_coupon_id = {}", row(1)));
    plant("I7", of_row(1));
    // 4 a line of history too many: a use without an event
    sql.push(format!(
        "insert into coupon_history select user_coupon_id, 2, coupon_id, user_id, slot_no, 'ACTIVE', 'USED', 'e-planted', 'r',
             'o', 1, 0, null, at from coupon_history where user_coupon_id = {}",
        row(2)
    ));
    plant("I4", of_row(2));
    plant("I6", of_row(2));
    plant("I6", "coupon-used".into());
    plant("I7", of_row(2));
    // 5 a user coupon that came from nowhere, for a user who has one
    sql.push("alter table user_coupons drop constraint user_coupons_one_per_user".into());
    sql.push(format!(
        "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
         values (900000, {coupon}, {}, {slot_max} + 1, 1, 't', 1, 1)",
        user(3)
    ));
    for invariant in ["I1", "I3", "I7"] {
        plant(invariant, "user coupon 900000".into());
    }
    plant("I2", of_user(user(3)));
    plant("I5", of_user(user(3)));
    // 6 of a campaign that is not there
    sql.push(
        "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
         values (900001, 999, 1, 1, 1, 't', 1, 1)"
            .into(),
    );
    for invariant in ["I1", "I3", "I7"] {
        plant(invariant, "user coupon 900001".into());
    }
    let mut connection = ledger.acquire().await.expect("a connection");
    for sql in sql {
        connection
            .execute(sqlx::AssertSqlSafe(sql.clone()))
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    drop(connection);

    // -- Redis --
    let client = redis::Client::open(deployment.services.redis.as_str()).expect("an address");
    let mut redis = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let key = |word: &str| format!("coupon:{word}:{{{coupon}}}");
    let mut pipeline = redis::pipe();
    // 7 a member forgotten
    pipeline.cmd("ZREM").arg(key("issue")).arg(user(4)).cmd("HDEL").arg(key("slot")).arg(user(4));
    plant("I5", of_user(user(4)));
    // 8 a member without a row
    let seat = "77777:77777:1:0123456789abcdef0123456789abcdef";
    pipeline.cmd("ZADD").arg(key("issue")).arg("4000000000000000").arg(777_777);
    pipeline.cmd("HSET").arg(key("slot")).arg(777_777).arg(seat);
    plant("I5", of_user(777_777));
    // 9 a seat that is never confirmed
    pipeline.cmd("ZADD").arg(key("pending")).arg("4000000000000000").arg(user(5));
    plant("I5", of_user(user(5)));
    // 10 another slot than the row's
    pipeline.cmd("HSET").arg(key("slot")).arg(user(6)).arg(seat);
    plant("I5", of_user(user(6)));
    let () = pipeline.query_async(&mut redis).await.expect("planted");

    // -- Kafka --
    let event_of = |n: usize| {
        let events = read_all(kafka, "coupon-issued");
        events.into_iter().find(|event| event.json()["userCouponId"] == row(n)).expect("its event")
    };
    // 11 an event without a row
    let forged = r#"{"eventId":"forged","userCouponId":800000,"userId":9,"couponId":1}"#;
    topic::write(kafka, "coupon-issued", &[("9", forged.as_bytes())]);
    plant("I4", "coupon-issued event forged".into());
    // 12 something that is no event
    topic::write(kafka, "coupon-used", &[("9", b"not json")]);
    plant("I4", "log".into());
    // 13 an event once more, under the key of another user
    let event = event_of(7);
    topic::write(kafka, "coupon-issued", &[("999999", &event.value)]);
    plant("I4", format!("coupon-issued event {}", event.json()["eventId"].as_str().expect("an id")));
    // 14 a second event for one row
    let mut second = event_of(8).json();
    second["eventId"] = json!("second");
    topic::write(kafka, "coupon-issued", &[(&user(8).to_string(), second.to_string().as_bytes())]);
    plant("I3", of_row(8));
    plant("I4", "coupon-issued event second".into());
    // 15 a total that counts one too many
    let mut totals =
        latest_by_key(&read_all(kafka, "coupon-totals")).remove(&coupon.to_string()).expect("totals");
    totals["issuedTotal"] = json!(totals["issuedTotal"].as_i64().expect("a number") + 1);
    topic::write(kafka, "coupon-totals", &[(&coupon.to_string(), totals.to_string().as_bytes())]);
    plant("I8", format!("coupon {coupon}"));
    // 16 a window that is final twice
    let windows = read_all(kafka, "coupon-stats-minute");
    let last = windows.iter().rfind(|window| !window.value.is_empty()).expect("a window");
    topic::write(kafka, "coupon-stats-minute", &[(&last.key, &last.value)]);
    let start = last.json()["windowStart"].as_str().expect("a time").to_owned();
    let start: sluice::coupon::clock::UtcMicros = start.parse().expect("RFC 3339");
    plant("I8", format!("coupon-stats-minute coupon {coupon} {start}"));
    // The use of 4 is in no statistics, and falls into some window of its own.
    let at: i64 = sqlx::query_scalar("select at from coupon_history where event_id = 'e-planted'")
        .fetch_one(&ledger)
        .await
        .expect("its time");
    for topic in ["coupon-stats-minute", "coupon-stats-day"] {
        for window in
            latest_by_key(&read_all(kafka, topic)).values().filter(|window| window["couponId"] == coupon)
        {
            let edge = |name: &str| {
                let text = window[name].as_str().expect("a time");
                text.parse::<sluice::coupon::clock::UtcMicros>().expect("RFC 3339")
            };
            if (edge("windowStart").micros()..edge("windowEnd").micros()).contains(&at) {
                plant("I8", format!("{topic} coupon {coupon} {}", edge("windowStart")));
            }
        }
    }

    // -- what clients were told --
    // 17 yes, and has none  18 a definite no, and has one
    let told = json!([
        { "couponId": coupon, "userId": 555, "status": 201 },
        { "couponId": coupon, "userId": user(9), "status": 409, "code": "CP005" },
    ]);
    plant("I9", of_user(555));
    plant("I9", of_user(user(9)));
    ledger.close().await;

    let found = found(deployment, &told.to_string());
    let missed: Vec<_> = expected.difference(&found).collect();
    let invented: Vec<_> = found.difference(&expected).collect();
    assert!(missed.is_empty() && invented.is_empty(), "missed {missed:#?}\ninvented {invented:#?}");
}

/// Invariant and subject of everything that `sluice verify` finds.
fn found(deployment: &Deployment, told: &str) -> BTreeSet<(String, String)> {
    let answers = deployment.file("planted-answers.jsonl");
    let mut file = std::fs::File::create(&answers).expect("a file");
    for line in serde_json::from_str::<Vec<Value>>(told).expect("a list") {
        writeln!(file, "{line}").expect("written");
    }
    let (code, text) = deployment.run(&["verify", "--json", "--answers", &answers.display().to_string()]);
    let report: Value = text
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_else(|| panic!("no report: {text}"));
    let found: BTreeSet<(String, String)> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .flat_map(|check| check["findings"].as_array().expect("findings"))
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().expect("a text").to_owned();
            (text("invariant"), text("subject"))
        })
        .collect();
    assert_eq!(code, Some(if found.is_empty() { 0 } else { 1 }), "the exit code is the verdict");
    found
}
