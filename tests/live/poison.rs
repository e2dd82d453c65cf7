//! Poison on both input topics: every record that cannot be read becomes a dead letter, and processing goes on.

use std::time::Duration;

use crate::{
    crowd,
    deployment::{Deployment, eventually},
    services::Services,
    topic::{self, Read},
    truth,
};

/// Values that no topology may accept, with what is wrong with them.
const POISON: &[(&str, &[u8])] = &[
    ("not JSON", b"{"),
    ("no object", b"[1, 2]"),
    ("no text at all", b"\xff\xfe\x00"),
    ("an id of another type", br#"{"eventId":"p1","userCouponId":7,"userId":1,"couponId":"seven","issuedAt":"2026-01-01T00:00:00Z","usedAt":"2026-01-01T00:00:00Z"}"#),
    ("a time that is none", br#"{"eventId":"p2","userCouponId":7,"userId":1,"couponId":999,"issuedAt":"yesterday","usedAt":"yesterday"}"#),
    ("a time far ahead", br#"{"eventId":"p3","userCouponId":7,"userId":1,"couponId":999,"issuedAt":"2199-01-01T00:00:00Z","usedAt":"2199-01-01T00:00:00Z"}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn poison_becomes_dead_letters_and_processing_goes_on() {
    let Some(services) = Services::private("poison") else { return };
    let deployment = Deployment::new(services).await;
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

    let coupon = deployment.open_campaign(&api, 100).await;
    for user in 1..=30 {
        assert_eq!(crowd::issue(&deployment.http, &api.url, coupon, user).await.status, 201);
    }
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
