//! Kafka goes away under load: callers notice nothing, and afterwards the backlog drains in order.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    crowd::{self, Answer, count_answers, percentile},
    deployment::Deployment,
    invariants::{self, Campaign},
    services::Services,
    truth,
};

/// How long Kafka is away: long enough for every retry and timeout in reach, short enough for every run of the tests.
/// `SLUICE_TEST_OUTAGE_SECONDS=60` is the full length.
fn outage() -> Duration {
    let seconds = std::env::var("SLUICE_TEST_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Seats of a campaign that is sold out while Kafka is away.
const SCARCE: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_away_under_load_delays_events_and_nothing_else() {
    let Some(services) = Services::private("outage") else { return };
    let mut deployment = Deployment::new(services).await;
    deployment.shorten_windows();
    let api = deployment.start("api", "api,relay", &[]).await;
    let streams = deployment.start("streams", "streams", &[]).await;
    // Three campaigns: a user takes them one after the other, so the order of one user's events is known.
    let mut coupons = Vec::new();
    for _ in 0..3 {
        coupons.push(deployment.open_campaign(&api, 1_000_000).await);
    }
    let scarce = deployment.open_campaign(&api, SCARCE).await;

    let before = steady_load(&deployment, &api.url, &coupons, 1, Duration::from_secs(5)).await;
    deployment.services.act("kafka", "stop");
    let during = steady_load(&deployment, &api.url, &coupons, 1_000_000, outage()).await;
    let rush = crowd::rush(&deployment.http, &[&api.url], scarce, 2 * SCARCE as i64, 20).await;
    deployment.services.act("kafka", "start");
    let after = steady_load(&deployment, &api.url, &coupons, 2_000_000, Duration::from_secs(2)).await;

    for (when, answers) in [("before", &before), ("during", &during), ("after", &after)] {
        println!(
            "{when}: {:?}, p50 {:?}, p99 {:?}",
            count_answers(answers),
            percentile(answers, 50),
            percentile(answers, 99)
        );
        assert!(answers.iter().all(|answer| answer.status == 201), "{when}: {:?}", count_answers(answers));
    }
    // Two cores shared with a broker that is being stopped: the comparison allows noise, not a timeout of any client.
    let (usual, meanwhile) = (percentile(&before, 50), percentile(&during, 50));
    assert!(
        meanwhile <= usual * 3 + Duration::from_millis(100),
        "median before {usual:?}, during {meanwhile:?}"
    );
    let worst = percentile(&during, 99);
    assert!(
        worst <= percentile(&before, 99) * 3 + Duration::from_millis(400),
        "p99 during the outage: {worst:?}"
    );

    truth::outbox_drains(&deployment, Duration::from_secs(120)).await;
    let mut order: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for coupon in &coupons {
        truth::events_agree(&deployment, *coupon, true).await;
    }
    for record in crate::topic::read_all(&deployment.services.kafka, "coupon-issued") {
        let (user, coupon) = (record.key.clone(), record.json()["couponId"].as_i64().expect("a couponId"));
        if coupon == scarce {
            continue;
        }
        let seen = order.entry(user).or_default();
        // The relay may repeat a record; what must not happen is that a later one comes first.
        if !seen.contains(&coupon) {
            seen.push(coupon);
        }
    }
    for (user, seen) in order {
        assert_eq!(seen, coupons[..seen.len()], "events of user {user} in the order in which they happened");
    }
    let told = crowd::told(&[before, during, rush, after].concat());
    let issued = |id: i64| told.iter().filter(|told| told.coupon == id && told.status == 201).count() as i64;
    let campaigns = coupons.iter().map(|&id| Campaign::of(id, issued(id)));
    let campaigns: Vec<_> = campaigns.chain([Campaign::of(scarce, SCARCE as i64)]).collect();
    invariants::judged(&deployment, &told, &campaigns, |_| false).await;
    drop(streams);
}

/// Eighty users a second, each taking all campaigns in order, fresh users from `first` on, until the time is over. A steady
/// rate, not a closed loop: a saturated machine would hide what the outage adds.
async fn steady_load(
    deployment: &Deployment,
    url: &str,
    coupons: &[i64],
    first: i64,
    time: Duration,
) -> Vec<Answer> {
    let end = Instant::now() + time;
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            let (http, url, coupons) = (deployment.http.clone(), url.to_owned(), coupons.to_vec());
            tokio::spawn(async move {
                let (mut answers, mut user) = (Vec::new(), first + worker);
                let mut pace = tokio::time::interval(Duration::from_millis(100));
                while Instant::now() < end {
                    pace.tick().await;
                    for coupon in &coupons {
                        answers.push(crowd::issue(&http, &url, *coupon, user).await);
                    }
                    user += 8;
                }
                answers
            })
        })
        .collect();
    let mut answers = Vec::new();
    for worker in workers {
        answers.extend(worker.await.expect("a worker does not panic"));
    }
    answers
}
