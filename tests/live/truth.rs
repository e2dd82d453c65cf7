//! What must agree once everything is quiet: answers, ledger, gate, log and statistics.
//!
//! Each function asks one pair and says what it compared; they are called after every scenario, faults or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;
use sqlx::Row;

use crate::{
    crowd::Answer,
    deployment::{Deployment, eventually},
    topic::{self, Read},
};

/// Rows = distinct users = distinct seats, all seats within the limit.
pub async fn ledger_holds(deployment: &Deployment, coupon: i64, expected: i64) {
    let row = sqlx::query(
        "select count(*), count(distinct user_id), count(distinct slot_no), min(slot_no), max(slot_no),
                (select max_issue_count from coupons where coupon_id = $1)
         from user_coupons where coupon_id = $1",
    )
    .bind(coupon)
    .fetch_one(&deployment.ledger().await)
    .await
    .expect("the ledger answers");
    let [rows, users, seats]: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(
        [rows, users, seats],
        [expected; 3],
        "rows, distinct users, distinct seats of coupon {coupon}"
    );
    if expected > 0 {
        let (first, last, limit): (i64, i64, i64) = (row.get(3), row.get(4), row.get(5));
        assert!(first >= 1 && last <= limit, "seats {first}..={last} of coupon {coupon} with limit {limit}");
    }
}

/// Everyone told 201 has a row, everyone told a definite no has none (or had one already).
pub async fn answers_agree(deployment: &Deployment, coupon: i64, answers: &[Answer]) {
    let rows = sqlx::query_scalar::<_, i64>("select user_id from user_coupons where coupon_id = $1")
        .bind(coupon)
        .fetch_all(&deployment.ledger().await)
        .await
        .expect("the ledger answers");
    let owners: BTreeSet<i64> = rows.into_iter().collect();
    let issued: BTreeSet<i64> =
        answers.iter().filter(|answer| answer.status == 201).map(|answer| answer.user).collect();
    let told = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(told, issued.len(), "nobody is told 201 twice");
    let liars: Vec<_> = issued.difference(&owners).collect();
    assert!(liars.is_empty(), "told 201 but without a row: {liars:?}");
    let already = |answer: &&Answer| answer.code.as_deref() == Some("CP007");
    let refused = answers.iter().filter(|answer| answer.status != 201);
    for answer in refused.clone().filter(already) {
        assert!(owners.contains(&answer.user), "told 'already issued' without a row: {answer:?}");
    }
    for answer in refused.filter(|answer| !already(answer)) {
        assert_eq!(
            (answer.status, answer.code.as_deref()),
            (409, Some("CP005")),
            "a definite answer: {answer:?}"
        );
        assert!(!owners.contains(&answer.user), "told 'sold out' but has a row: {answer:?}");
    }
}

/// Who has a row, and who has a seat at the gate.
pub async fn rows_and_members(deployment: &Deployment, coupon: i64) -> (BTreeSet<i64>, BTreeSet<i64>) {
    // The rows first: whoever has one then must be at the gate, while a member may still be on the way to a row.
    let rows = sqlx::query_scalar::<_, i64>("select user_id from user_coupons where coupon_id = $1")
        .bind(coupon)
        .fetch_all(&deployment.ledger().await)
        .await
        .expect("the ledger answers");
    let client = redis::Client::open(deployment.services.redis.as_str()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let members: Vec<i64> = redis::cmd("ZRANGE")
        .arg(format!("coupon:issue:{{{coupon}}}"))
        .arg(0)
        .arg(-1)
        .query_async(&mut connection)
        .await
        .expect("the gate's members");
    (rows.into_iter().collect(), members.into_iter().collect())
}

/// Gate members = ledger rows, user by user.
pub async fn gate_agrees(deployment: &Deployment, coupon: i64) {
    let (rows, members) = rows_and_members(deployment, coupon).await;
    assert!(
        members == rows,
        "gate has {} members, ledger {} rows; only in the gate: {:?}, only in the ledger: {:?}",
        members.len(),
        rows.len(),
        members.difference(&rows).take(5).collect::<Vec<_>>(),
        rows.difference(&members).take(5).collect::<Vec<_>>()
    );
}

/// Waits until the outbox is empty.
pub async fn outbox_drains(deployment: &Deployment, limit: Duration) {
    let empty = || async { (unsent(deployment).await == Some(0)).then_some(()) };
    assert!(eventually(limit, empty).await.is_some(), "the outbox is not empty after {limit:?}");
}

/// How many events the outbox holds, parked ones too; `None` when the ledger does not answer.
pub async fn unsent(deployment: &Deployment) -> Option<i64> {
    let ledger = deployment.ledger().await;
    let left = sqlx::query_scalar("select count(*) from outbox where sent_at is null");
    let left = left.fetch_one(&ledger).await.ok();
    ledger.close().await;
    left
}

/// Every row has its event in the topic and every event its row. Returns the records of this campaign.
/// `repeats` says whether the relay had a reason to send something twice.
pub async fn events_agree(deployment: &Deployment, coupon: i64, repeats: bool) -> Vec<Read> {
    let rows: BTreeSet<i64> =
        sqlx::query_scalar::<_, i64>("select user_coupon_id from user_coupons where coupon_id = $1")
            .bind(coupon)
            .fetch_all(&deployment.ledger().await)
            .await
            .expect("the ledger answers")
            .into_iter()
            .collect();
    let mut records = topic::read_all(&deployment.services.kafka, "coupon-issued");
    records.retain(|record| record.json()["couponId"] == coupon);
    let told: BTreeSet<i64> =
        records.iter().filter_map(|record| record.json()["userCouponId"].as_i64()).collect();
    assert!(told == rows, "{} rows but events of {} user coupons", rows.len(), told.len());
    let events: BTreeSet<String> =
        records.iter().map(|record| record.json()["eventId"].to_string()).collect();
    assert_eq!(events.len(), rows.len(), "one event id for each row, repeated or not");
    if !repeats {
        assert_eq!(records.len(), rows.len(), "one record for each row");
    }
    records
}

/// Waits until the running total of the campaign is what the ledger counts.
pub async fn totals_agree(deployment: &Deployment, coupon: i64, limit: Duration) {
    let issued: i64 = sqlx::query_scalar("select count(*) from user_coupons where coupon_id = $1")
        .bind(coupon)
        .fetch_one(&deployment.ledger().await)
        .await
        .expect("the ledger answers");
    let mut last = None;
    let agreed = eventually(limit, || {
        let total = latest_by_key(&topic::read_all(&deployment.services.kafka, "coupon-totals"))
            .remove(&coupon.to_string());
        last.clone_from(&total);
        async move { (total?["issuedTotal"] == issued).then_some(()) }
    })
    .await;
    assert!(agreed.is_some(), "coupon-totals of coupon {coupon}: {last:?}, the ledger has {issued} rows");
}

/// Waits until the final minute windows cover every row; each window is final once and counts what SQL counts.
pub async fn final_minutes_agree(deployment: &Deployment, coupon: i64, limit: Duration) {
    let rows = sqlx::query_as::<_, (i64, i64)>(
        "select issued_at / 60000000, count(*) from user_coupons where coupon_id = $1 group by 1 order by 1",
    )
    .bind(coupon)
    .fetch_all(&deployment.ledger().await)
    .await
    .expect("the ledger answers");
    let expected: Vec<i64> = rows.iter().map(|(_, issued)| *issued).collect();
    let mut finals: Vec<Read> = Vec::new();
    let complete = eventually(limit, || {
        let mut records = topic::read_all(&deployment.services.kafka, "coupon-stats-minute");
        records.retain(|record| {
            !record.value.is_empty() && record.json()["final"] == true && record.json()["couponId"] == coupon
        });
        finals = records;
        let enough = finals.len() >= expected.len();
        async move { enough.then_some(()) }
    })
    .await;
    let keys: Vec<&str> = finals.iter().map(|record| record.key.as_str()).collect();
    assert!(complete.is_some(), "{} of {} minutes are final: {keys:?}", finals.len(), expected.len());
    let distinct: BTreeSet<&str> = keys.iter().copied().collect();
    assert_eq!(distinct.len(), keys.len(), "a window is final only once: {keys:?}");
    let mut counted: Vec<(String, i64)> = finals
        .iter()
        .map(|record| {
            (record.json()["windowStart"].to_string(), record.json()["issued"].as_i64().unwrap_or(-1))
        })
        .collect();
    counted.sort();
    let counted: Vec<i64> = counted.into_iter().map(|(_, issued)| issued).collect();
    assert_eq!(counted, expected, "issued by minute, statistics against SQL");
}

/// The last value under each key; a tombstone removes it.
pub fn latest_by_key(records: &[Read]) -> BTreeMap<String, Value> {
    let mut latest = BTreeMap::new();
    for record in records {
        if record.value.is_empty() {
            latest.remove(&record.key);
        } else {
            latest.insert(record.key.clone(), record.json());
        }
    }
    latest
}

/// Every record lies where librdkafka's own Java-compatible partitioner puts its key, and its key is the user.
pub async fn partitions_agree(deployment: &Deployment, records: &[Read]) {
    let keys: Vec<String> = records.iter().map(|record| record.key.clone()).collect();
    let java = topic::partitions_as_java(&deployment.services.kafka, 3, &keys).await;
    let used: BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
    assert_eq!(used.len(), 3, "a crowd of this size uses every partition");
    for record in records {
        assert_eq!(record.json()["userId"].to_string(), record.key, "the key is the user");
        assert_eq!(java[&record.key], record.partition, "partition of key {}", record.key);
    }
}
