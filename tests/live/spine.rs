//! The whole path on real services: a crowd at two API processes, seats, rows, events, statistics.

use std::{fs, time::Duration};

use crate::{
    crowd::{self, count_answers},
    deployment::{Deployment, eventually, holds_file, may_have_huge_pages},
    invariants::{self, Campaign},
    services::Services,
    topic, truth,
};

/// Seats, and users who want one; the full form is 10,000 and 50,000.
const SEATS: (&str, i64) = ("SLUICE_TEST_CROWD_SEATS", 10_000);
const USERS: (&str, i64) = ("SLUICE_TEST_CROWD_USERS", 20_000);

fn size((name, default): (&str, i64)) -> i64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Nobody in the crowd waits longer for a definite answer, two hundred asking at once; the machine is shared.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// What the second process does otherwise: nothing that two processes must agree on.
const OTHERWISE: [(&str, &str); 6] = [
    ("SLUICE__GATE__GATHER_MS", "0"),
    ("SLUICE__GATE__SOLD_OUT_MEMO_MS", "0"),
    ("SLUICE__REDIS__CONNECTIONS", "1"),
    ("SLUICE__LEDGER__CONNECTIONS_MAX", "3"),
    ("SLUICE__COUPON__SNAPSHOT_TTL_MS", "0"),
    ("SLUICE__RELAY__BATCH_ROWS_MAX", "100"),
];

/// A final minute follows its end by grace and idle closing, well under two minutes.
const FINAL: Duration = Duration::from_secs(150);

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_gets_exactly_the_stock_from_two_api_processes() {
    let Some(services) = Services::private("crowd") else { return };
    let (stock, users) = (size(SEATS), size(USERS));
    let deployment = Deployment::new(services).await;
    let first = deployment.start("api-1", "api,relay", &[]).await;
    let second = deployment.start("api-2", "api,relay", &OTHERWISE).await;
    let streams = deployment.start("streams", "streams", &[]).await;
    let coupon = deployment.open_campaign(&first, stock as u64).await;
    // They are for the tables of topologies; an API would waste most of each.
    assert_ne!(first.may_have_huge_pages(), Some(true));
    assert_eq!(streams.may_have_huge_pages(), may_have_huge_pages("self"));

    let started = std::time::Instant::now();
    let answers = crowd::rush(&deployment.http, &[&first.url, &second.url], coupon, users, 200).await;
    let longest = crowd::percentile(&answers, 100);
    println!(
        "{stock} seats, {users} users: {:?} in {:?}, p50 {:?}, p99 {:?}, longest {longest:?}",
        count_answers(&answers),
        started.elapsed(),
        crowd::percentile(&answers, 50),
        crowd::percentile(&answers, 99)
    );
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 201).count(),
        stock as usize,
        "{:?}",
        count_answers(&answers)
    );
    assert!(longest <= ANSWERED_WITHIN, "somebody waited {longest:?}");

    truth::ledger_holds(&deployment, coupon, stock).await;
    truth::answers_agree(&deployment, coupon, &answers).await;
    truth::gate_agrees(&deployment, coupon).await;
    truth::outbox_drains(&deployment, Duration::from_secs(60)).await;
    let records = truth::events_agree(&deployment, coupon, true).await;
    truth::partitions_agree(&deployment, &records).await;
    truth::totals_agree(&deployment, coupon, Duration::from_secs(60)).await;
    truth::final_minutes_agree(&deployment, coupon, FINAL).await;
    let campaign = Campaign::of(coupon, stock);
    invariants::judged(&deployment, &crowd::told(&answers), &[campaign], |_| false).await;
    let processes = [&first.name, &second.name, &streams.name];
    backends_are_the_real_ones(&deployment, coupon, stock, &processes.map(String::as_str)).await;
}

/// Nothing of the embedded default may have stood in for a service: no ledger and no log file anywhere, and each service
/// holds what only a real run could have put there.
async fn backends_are_the_real_ones(deployment: &Deployment, coupon: i64, stock: i64, processes: &[&str]) {
    for name in processes {
        let state = deployment.state_dir(name);
        let directory = state.parent().expect("state lies in the directory of the process");
        assert!(!holds_file(directory, "ledger.sqlite"), "{name} kept a ledger in {}", directory.display());
        assert!(!holds_file(directory, "log.sqlite"), "{name} kept a log in {}", directory.display());
    }
    let version: String = sqlx::query_scalar("select version()")
        .fetch_one(&deployment.ledger().await)
        .await
        .expect("a version");
    assert!(version.starts_with("PostgreSQL"), "{version}");
    let client = redis::Client::open(deployment.services.redis.as_str()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("statistics");
    assert!(info.contains("cmdstat_evalsha"), "the gate's scripts ran in Redis: {info}");
    let members: i64 = redis::cmd("ZCARD")
        .arg(format!("coupon:issue:{{{coupon}}}"))
        .query_async(&mut connection)
        .await
        .expect("members");
    assert_eq!(members, stock);
    // A transaction leaves a marker that takes an offset but is no record: only a broker that ran one shows such a gap.
    let totals = topic::read_all(&deployment.services.kafka, "coupon-totals");
    let spans: i64 = (0..3)
        .map(|partition| {
            let offsets =
                totals.iter().filter(|record| record.partition == partition).map(|record| record.offset);
            offsets.max().map_or(0, |last| last + 1)
        })
        .sum();
    assert!(
        spans > totals.len() as i64,
        "coupon-totals was written in transactions: {spans} offsets, {} records",
        totals.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_survive_kill_9_and_an_empty_state_directory() {
    const SEATS: i64 = 3_000;
    let Some(services) = Services::private("restart") else { return };
    let deployment = Deployment::new(services).await;
    let api = deployment.start("api", "api,relay", &[]).await;
    let mut streams = deployment.start("streams", "streams", &[]).await;
    let coupon = deployment.open_campaign(&api, SEATS as u64).await;

    let url = api.url.clone();
    let http = deployment.http.clone();
    // Half of the crowd gives the statistics something to lose; the whole of it is under way when they are killed.
    let mut answers = crowd::rush(&http, &[&url], coupon, SEATS / 2, 20).await;
    let half_way = || async {
        let totals = truth::latest_by_key(&topic::read_all(&deployment.services.kafka, "coupon-totals"));
        (totals.get(&coupon.to_string())?["issuedTotal"].as_i64()? > 100).then_some(())
    };
    assert!(
        eventually(Duration::from_secs(60), half_way).await.is_some(),
        "no totals:\n{}",
        streams.log_tail()
    );
    let load = tokio::spawn(async move { crowd::rush(&http, &[&url], coupon, SEATS, 20).await });
    streams.kill();
    assert!(!load.is_finished(), "killed in the middle, not after the load");
    let state = deployment.state_dir("streams");
    assert!(state.is_dir(), "the state is where the configuration says: {}", state.display());
    fs::remove_dir_all(&state).expect("the state is removed");
    let streams = deployment.start("streams", "streams", &[]).await;

    answers.extend(load.await.expect("the load ran"));
    truth::ledger_holds(&deployment, coupon, SEATS).await;
    truth::answers_agree(&deployment, coupon, &answers).await;
    truth::outbox_drains(&deployment, Duration::from_secs(60)).await;
    truth::events_agree(&deployment, coupon, false).await;
    truth::totals_agree(&deployment, coupon, Duration::from_secs(90)).await;
    truth::final_minutes_agree(&deployment, coupon, FINAL).await;
    let campaign = Campaign::of(coupon, SEATS);
    invariants::judged(&deployment, &crowd::told(&answers), &[campaign], |_| false).await;
    drop(streams);
}
