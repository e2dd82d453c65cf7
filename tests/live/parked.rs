//! An event that Kafka refuses for good: it is parked and holds back what comes later of its own user, nobody else's; once Kafka would
//! take it, `sluice outbox resume` has it sent, before what waited behind it.

use std::time::Duration;

use serde_json::json;

use crate::{
    crowd,
    deployment::{Deployment, eventually},
    invariants::{self, Campaign},
    services::Services,
    topic, truth,
};

/// Between the size of an ordinary event with its headers and that of one whose coupon has the longest name.
const MESSAGE_BYTES_MAX: u32 = 750;
/// What a topic has where nothing is said.
const MESSAGE_BYTES_USUAL: u32 = 1_048_588;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_event_is_resumed_in_its_place() {
    let Some(services) = Services::private_only("parked", "kafka,redis") else { return };
    let mut deployment = Deployment::new(services).await;
    // Long enough that what was parked for a moment is not late: its window must still be open.
    deployment.set_windows("10s", "20s", "5s");
    let kafka = deployment.services.kafka.clone();
    topic::create(&kafka, "coupon-issued", 3).await;
    topic::limit_messages(&kafka, "coupon-issued", MESSAGE_BYTES_MAX).await;
    let everything = deployment.start("everything", "api,relay,streams", &[]).await;

    let plain = deployment.open_campaign(&everything, 2).await;
    // Two hundred different letters of four bytes each, which no compression makes small.
    let name: String = (0..200).filter_map(|n| char::from_u32(0x20000 + n * 197)).collect();
    let mut campaign = Deployment::campaign(1);
    campaign["couponName"] = json!(name);
    let wordy = deployment.admin(&everything, "/api/coupon", &campaign).await["couponId"].as_i64();
    let wordy = wordy.expect("a couponId");
    deployment.admin(&everything, &format!("/api/coupon/{wordy}/open"), &json!({})).await;

    let mut answers = Vec::new();
    // User 7's large event, then one of the same user that would fit, then somebody else's; and one who comes too late.
    for (coupon, user) in [(wordy, 7), (plain, 7), (plain, 8), (plain, 9)] {
        answers.push(crowd::issue(&deployment.http, &everything.url, coupon, user).await);
    }
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [201, 201, 201, 409], "callers notice nothing");

    let mut listed = String::new();
    let parked = eventually(Duration::from_secs(30), || {
        listed = deployment.run(&["outbox", "parked"]).1;
        let is_parked = listed.contains("1 waiting behind it") && listed.contains("1 parked");
        async move { is_parked.then_some(()) }
    });
    assert!(parked.await.is_some(), "the event is not parked: {listed}\n{}", everything.log_tail());
    let sent = || -> Vec<(String, i64)> {
        let records = topic::read_all(&kafka, "coupon-issued").into_iter();
        records
            .map(|record| (record.key.clone(), record.json()["couponId"].as_i64().expect("an id")))
            .collect()
    };
    let theirs = || async { (sent() == [("8".to_owned(), plain)]).then_some(()) };
    assert!(
        eventually(Duration::from_secs(30), theirs).await.is_some(),
        "only user 8 has an event: {:?}",
        sent()
    );
    let row = listed.split_whitespace().next().expect("a row").to_owned();
    assert_eq!(
        deployment.run(&["outbox", "resume", &(row.clone() + "0")]).0,
        Some(1),
        "no other row is resumed"
    );

    topic::limit_messages(&kafka, "coupon-issued", MESSAGE_BYTES_USUAL).await;
    let mut said = Vec::new();
    // A broker that has not heard of it yet refuses the event once more; then it is parked again and resumed again.
    let drained = eventually(Duration::from_secs(30), || {
        said.push(deployment.run(&["outbox", "resume", &row]));
        let drained = truth::unsent(&deployment);
        async { (drained.await == Some(0)).then_some(()) }
    });
    assert!(drained.await.is_some(), "{said:?}");
    assert_eq!(said[0].0, Some(0), "{said:?}");
    assert_eq!(deployment.run(&["outbox", "parked"]), (Some(0), "0 parked\n".into()));
    let (key, of_one) = ("7".to_owned(), sent().into_iter().filter(|(key, _)| key == "7"));
    assert_eq!(of_one.collect::<Vec<_>>(), [(key.clone(), wordy), (key, plain)], "in their order, once each");
    let campaigns = [Campaign::of(wordy, 1), Campaign::of(plain, 2)];
    invariants::judged(&deployment, &crowd::told(&answers), &campaigns, |_| false).await;
}
