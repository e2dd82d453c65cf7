//! Poison on both input topics: every record that cannot be read becomes a dead letter, and processing goes on.

use std::time::Duration;

use serde_json::Value;

use crate::{
    crowd,
    deployment::{Deployment, eventually},
    invariants::{self, Campaign},
    services::Services,
    topic::{self, Read},
    truth,
};

/// Values that no topology may accept, with what is wrong with them.
const POISON: &[(&str, &[u8])] = &[
    ("not JSON", b"{"),
    ("no object", b"[1, 2]"),
    ("no text at all", b"\xff\xfe\x00"),
    ("an id of another type", br#"{"eventId":"p1","userCouponId":999999,"userId":1,"couponId":"seven","issuedAt":"2026-01-01T00:00:00Z","usedAt":"2026-01-01T00:00:00Z"}"#),
    ("a time that is none", br#"{"eventId":"p2","userCouponId":999999,"userId":1,"couponId":999,"issuedAt":"yesterday","usedAt":"yesterday"}"#),
    ("a time far ahead", br#"{"eventId":"p3","userCouponId":999999,"userId":1,"couponId":999,"issuedAt":"2199-01-01T00:00:00Z","usedAt":"2199-01-01T00:00:00Z"}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn poison_becomes_dead_letters_and_processing_goes_on() {
    let Some(services) = Services::private("poison") else { return };
    let mut deployment = Deployment::new(services).await;
    deployment.shorten_windows();
    let kafka = deployment.services.kafka.clone();
    let api = deployment.start("api", "api,relay", &[]).await;
    let streams = deployment.start("streams", "streams", &[]).await;
    for input in ["coupon-issued", "coupon-used"] {
        // Six keys for each value: poison lies on every partition, in front of what follows.
        for (what, value) in POISON {
            let keys: Vec<String> = (0..6).map(|n| format!("{what} {n}")).collect();
            let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), *value)).collect();
            topic::write(&kafka, input, &records);
        }
    }

    let coupon = deployment.open_campaign(&api, 30).await;
    let mut answers = Vec::new();
    for user in 1..=40 {
        answers.push(crowd::issue(&deployment.http, &api.url, coupon, user).await);
    }
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 30);
    truth::totals_agree(&deployment, coupon, Duration::from_secs(60)).await;

    for input in ["coupon-issued", "coupon-used"] {
        let sent: Vec<Read> = topic::read_all(&kafka, input)
            .into_iter()
            .filter(|record| POISON.iter().any(|(_, value)| record.value == *value))
            .collect();
        assert_eq!(sent.len(), POISON.len() * 6);
        let mut letters = Vec::new();
        let complete = eventually(Duration::from_secs(30), || {
            letters = topic::read_all(&kafka, &format!("{input}-dlq"));
            let complete =
                sent.iter().all(|record| letters.iter().any(|letter| is_letter_of(letter, record, input)));
            async move { complete.then_some(()) }
        })
        .await;
        let missing: Vec<_> = sent
            .iter()
            .filter(|record| !letters.iter().any(|letter| is_letter_of(letter, record, input)))
            .map(|record| &record.key)
            .collect();
        assert!(
            complete.is_some(),
            "{input}: no dead letter for {missing:?}, {} letters\n{}",
            letters.len(),
            streams.log_tail()
        );
        assert!(
            letters.iter().all(|letter| sent.iter().any(|record| is_letter_of(letter, record, input))),
            "{input}: a dead letter for a record that was fine: {letters:?}"
        );
    }
    let campaign = Campaign::of(coupon, 30);
    invariants::judged(&deployment, &crowd::told(&answers), &[campaign], is_poison).await;
}

/// The verifier reads the input topics too, and must find the poison there: what is no event, and events that nobody wrote.
fn is_poison(finding: &Value) -> bool {
    let says = |name: &str, part: &str| finding[name].as_str().is_some_and(|text| text.contains(part));
    let is_unreadable = says("subject", "log") && says("detail", "unreadable record");
    let is_unknown = says("subject", " event p2") || says("subject", " event p3");
    // The two that are read as uses are two more than there were.
    let are_too_many = says("invariant", "I6") && says("subject", "coupon-used");
    says("invariant", "I4") && (is_unreadable || is_unknown) || are_too_many
}

/// Key and value byte for byte, and headers that say where it was read and why it was refused.
fn is_letter_of(letter: &Read, record: &Read, input: &str) -> bool {
    let says = |name: &str, expected: &str| {
        letter.headers.get(&format!("__streams.errors.{name}")).is_some_and(|text| text == expected)
    };
    letter.key == record.key
        && letter.value == record.value
        && says("topic", input)
        && says("partition", &record.partition.to_string())
        && says("offset", &record.offset.to_string())
        && letter.headers.get("__streams.errors.message").is_some_and(|message| !message.is_empty())
}
