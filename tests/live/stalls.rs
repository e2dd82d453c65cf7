//! A Kafka that takes connections and does not answer: a commit whose answer is lost is asked for again, a transaction whose records expired
//! is aborted, and a stream thread that waits says so until it need not.

use std::time::{Duration, Instant};

use sluice::streams::{
    client::{
        ClientSupplier,
        kafka::{KafkaClients, KafkaConfig},
    },
    error::StreamsError,
};

use crate::{
    chaos::{Fleet, Load, close_windows, holds},
    contract::{producer_with_timeout, reader, record, retried, take, topic, unique, values},
    deployment::eventually,
    services::Services,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_kafka_that_does_not_answer_is_waited_for_and_told_of() {
    let Some(services) = Services::private_proxied("stalls", 1) else { return };
    let mut fleet = Fleet::new(services, "stalls").await.serving();
    let proxy = fleet.proxies[0].clone();

    let (stopped, address) = (proxy.clone(), format!("127.0.0.1:{}", proxy.port));
    let contract = move || {
        let log = KafkaClients::new(KafkaConfig::new(address)).expect("valid");
        let set = |on| stopped.set_stopped(on);
        crate::contract::an_unknown_commit_is_asked_for_again(&log, || set(true), || set(false));
        a_transaction_that_failed_meanwhile_takes_no_record(&log, || set(true), || set(false));
    };
    tokio::task::spawn_blocking(contract).await.expect("the contract holds");

    // Calls have limits of ten seconds and more; what is stuck is told of sooner here.
    fleet.set("SLUICE__STREAMS__STUCK_AFTER_MS", 2_000);
    fleet.start(0);
    let load = Load::start(&fleet, 300);
    fleet.catch_up("the start").await;
    let http = reqwest::Client::new();
    let stuck = async |fleet: &Fleet| {
        fleet.members[0].metric(&http, "streams_thread_stuck_seconds", "").await.expect("metrics")
    };
    let ready = async |fleet: &Fleet| {
        let url = format!("{}/readyz", fleet.members[0].url.as_ref().expect("it serves"));
        let answer = http.get(url).send().await.expect("an answer");
        (answer.status().is_success(), answer.text().await.expect("text"))
    };
    // What has caught up with nothing yet may not listen yet.
    let member = &fleet.members[0];
    let listens = eventually(Duration::from_secs(60), async || {
        member.metric(&http, "streams_thread_stuck_seconds", "").await
    });
    assert_eq!(listens.await, Some(0.0), "{}", fleet.logs());
    let waited = eventually(Duration::from_secs(60), async || ready(&fleet).await.0.then_some(()));
    assert!(waited.await.is_some(), "it gets ready: {:?}", ready(&fleet).await);

    proxy.set_stopped(true);
    let told = eventually(Duration::from_secs(60), async || (stuck(&fleet).await > 0.0).then_some(()));
    assert!(told.await.is_some(), "it tells of the call\n{}", fleet.logs());
    let (is_ready, text) = ready(&fleet).await;
    assert!(!is_ready && text.contains("has not returned for"), "{text}");
    proxy.set_stopped(false);
    let back = eventually(Duration::from_secs(60), async || (ready(&fleet).await.0).then_some(()));
    assert!(back.await.is_some(), "it goes on: {:?}\n{}", ready(&fleet).await, fleet.logs());
    assert_eq!(stuck(&fleet).await, 0.0);
    assert!(fleet.said(&["a call to the log does not return"]) > 0, "{}", fleet.logs());
    let orders = load.stop();
    close_windows(&fleet);
    holds(&mut fleet, orders, &[]).await;
}

/// A record expires while the log does not answer: what is sent after it is told that the transaction cannot go on.
fn a_transaction_that_failed_meanwhile_takes_no_record(
    log: &dyn ClientSupplier,
    mut lose: impl FnMut(),
    mut give_back: impl FnMut(),
) {
    let topic = topic(log, 1);
    let id = unique("tx");
    let producer = || producer_with_timeout(log, &id, Some(Duration::from_secs(3)));
    let mut first = producer();
    first.begin_transaction().unwrap();
    first.send(record(&topic, 0, "begun")).unwrap();
    first.flush().unwrap();
    lose();
    let deadline = Instant::now() + Duration::from_secs(60);
    let told = loop {
        match first.send(record(&topic, 0, "lost")) {
            Ok(()) => assert!(Instant::now() < deadline, "nothing expires"),
            Err(error) => break error,
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    give_back();
    assert!(matches!(told, StreamsError::AbortTransaction(_)), "{told:?}");
    // Its time may be over meanwhile: then the log has ended it, and the abort is told that it is fenced. A runtime goes on with a new one.
    let _ = first.abort_transaction();
    drop(first);
    let mut second = producer();
    second.begin_transaction().unwrap();
    second.send(record(&topic, 0, "2")).unwrap();
    retried("commit", || second.commit_transaction());
    assert_eq!(values(&take(&mut *reader(log, &topic, 1, true), 1)), ["2"]);
}
