//! The verifier is itself verified: nothing is found on clean data, and each planted corruption is found as exactly
//! what it is.
//!
//! The clean data is made by the real service: a campaign, a crowd, uses and their cancellations over the real router,
//! carried by the real relay to an embedded log. Corruptions are planted in what was gathered, where the ledger's own
//! constraints would not let them pass, and in the ledger, gate and log themselves where they can.

use std::sync::Arc;

use serde_json::json;
use sluice::{
    coupon::{
        clock::{Clock, UtcMicros},
        ids::{CouponId, UserId},
        relay::{Relay, RelayConfig, Step},
        verify::{
            Answer, Answers, Facts, Invariant, answers, facts, judge,
            log::{LogFacts, TotalsRecord, Window, WindowRecord},
        },
    },
    streams::{
        client::{ClientSupplier, ProducerConfig, embedded::EmbeddedLog},
        record::{Headers, ProducerRecord},
    },
};

use crate::http::Api;

/// A service that has done some of everything, and is quiet.
struct Quiet {
    api: Api,
    log: Arc<dyn ClientSupplier>,
    coupon: i64,
    told: Answers,
}

impl Quiet {
    async fn new() -> Self {
        let api = Api::new().await;
        let coupon = api.open_campaign(6).await;
        let mut told = Answers::new();
        let mut held = Vec::new();
        for user in 1..=8 {
            let answer = api.post(&format!("/api/coupon/{coupon}/issue"), json!({ "userId": user })).await;
            held.extend(answer.json["userCouponId"].as_i64());
            let code = answer.json["errorCode"].as_str().map(str::to_owned);
            let status = answer.status.as_u16();
            answers::add(&mut told, &Answer { coupon_id: coupon, user_id: user, status, code });
        }
        assert_eq!(held.len(), 6);
        let order = json!({ "orderId": "o", "orderAmount": 20_000 });
        for user_coupon in &held[..4] {
            assert_eq!(
                api.post(&format!("/api/user-coupons/{user_coupon}/use"), order.clone()).await.status,
                200
            );
        }
        let cancelled = api.post(&format!("/api/user-coupons/{}/cancel-use", held[0]), order.clone()).await;
        assert_eq!(cancelled.status, 200);
        let revoke = format!("/api/user-coupons/{}/revoke", held[5]);
        assert_eq!(api.post(&revoke, json!({ "reason": "test" })).await.status, 200);

        let log = EmbeddedLog::in_memory();
        let topics = ["coupon-issued", "coupon-used", "coupon-use-cancelled", "coupon-revoked"];
        let topics = topics.map(|name| sluice::streams::client::NewTopic {
            name: name.into(),
            partitions: 3,
            replication_factor: 1,
            config: Default::default(),
        });
        log.admin().unwrap().create_topics(&topics).unwrap();
        let log: Arc<dyn ClientSupplier> = Arc::new(log);
        let ledger = api.state.service.ledger();
        let mut relay = Relay::new(ledger, log.clone(), Clock::system(), RelayConfig::default());
        while relay.relay_batch().await.unwrap() != Step::Idle {}
        // Confirmations are lazy; the gate is quiet when none is pending.
        let quiet = Self { api, log, coupon, told };
        while quiet.seats().await.iter().any(|(_, pending)| *pending) {
            tokio::task::yield_now().await;
        }
        quiet
    }

    async fn seats(&self) -> Vec<(i64, bool)> {
        let coupon = CouponId::new(self.coupon).unwrap();
        let members = self.api.state.service.gate().members(coupon, 0, 100).await.unwrap();
        members.iter().map(|member| (member.user.get(), member.pending)).collect()
    }

    /// Everything, with the statistics that a right topology would have made.
    async fn facts(&self) -> Facts {
        let service = &self.api.state.service;
        let told = Some(self.told.clone());
        let mut facts =
            facts::gather(service.ledger().db(), Some(service.gate()), Some(self.log.clone()), told)
                .await
                .unwrap();
        let log = facts.log.as_mut().unwrap();
        if facts.history.iter().any(|line| line.coupon_id == self.coupon) {
            add_statistics(log, &facts.history, self.coupon);
        }
        facts
    }
}

fn add_statistics(log: &mut LogFacts, history: &[facts::HistoryRow], coupon: i64) {
    let count = |from: Option<&str>, to: &str| {
        history.iter().filter(|line| line.from_status.as_deref() == from && line.to_status == to).count()
            as i64
    };
    let (issued, used) = (count(None, "ACTIVE"), count(Some("ACTIVE"), "USED"));
    let cancelled = count(Some("USED"), "ACTIVE");
    // 10 % of 20,000 for each use that stands.
    let discount_amount_sum = (used - cancelled) * 2_000;
    let totals = TotalsRecord {
        coupon_id: coupon,
        issued_total: issued,
        used_total: used,
        cancelled_total: cancelled,
        discount_amount_sum,
    };
    log.totals.insert(coupon, totals);
    let first = history.iter().map(|line| line.at).min().unwrap();
    let start = first - first % 3_600_000_000;
    for (topic, finals) in [("coupon-stats-minute", 1), ("coupon-stats-day", 0)] {
        let latest = WindowRecord {
            coupon_id: coupon,
            window_start: UtcMicros::clamped(start),
            window_end: UtcMicros::clamped(start + 7_200_000_000),
            issued,
            used,
            cancelled,
            discount_amount_sum,
            is_final: finals == 1,
        };
        let window = Window { latest, finals };
        log.windows.entry(topic.into()).or_default().insert(format!("{coupon}@"), window);
    }
}

fn findings(facts: &Facts) -> Vec<(Invariant, String)> {
    judge(facts).findings().map(|finding| (finding.invariant, finding.subject.clone())).collect()
}

#[tokio::test]
async fn nothing_is_found_on_clean_data_and_everything_is_compared() {
    let quiet = Quiet::new().await;
    let report = judge(&quiet.facts().await);
    assert!(report.holds(), "{:#?}", report.findings().collect::<Vec<_>>());
    for check in &report.checks {
        assert!(
            check.compared.is_some_and(|compared| compared > 0),
            "{:?} compared nothing",
            check.invariant
        );
    }
}

#[tokio::test]
async fn each_planted_corruption_is_found_as_exactly_what_it_is() {
    use Invariant::*;
    let quiet = Quiet::new().await;
    let clean = quiet.facts().await;
    let coupon = quiet.coupon;
    let ids: Vec<i64> = clean.user_coupons.iter().map(|row| row.user_coupon_id).collect();
    let row = |index: usize| format!("user coupon {}", ids[index]);
    let user = |user: i64| format!("coupon {coupon} user {user}");

    type Plant<'a> = Box<dyn Fn(&mut Facts) + 'a>;
    let plants: Vec<(&str, Plant<'_>, Vec<(Invariant, String)>)> = vec![
        (
            "the limit is below what is issued",
            Box::new(|facts| facts.coupons.get_mut(&coupon).unwrap().max_issue_count = 5),
            vec![(I1, row(5)), (I1, format!("coupon {coupon}"))],
        ),
        (
            "two rows hold one slot",
            Box::new(|facts| {
                facts.user_coupons[1].slot_no = 1;
                facts
                    .history
                    .iter_mut()
                    .filter(|line| line.user_coupon_id == ids[1])
                    .for_each(|line| line.slot_no = 1);
                facts.gate.as_mut().unwrap().get_mut(&coupon).unwrap().get_mut(&2).unwrap().slot = 1;
            }),
            vec![(I1, format!("coupon {coupon}"))],
        ),
        (
            "one user holds two",
            Box::new(|facts| {
                facts.user_coupons[1].user_id = 1;
                facts
                    .history
                    .iter_mut()
                    .filter(|line| line.user_coupon_id == ids[1])
                    .for_each(|line| line.user_id = 1);
                facts.gate.as_mut().unwrap().get_mut(&coupon).unwrap().remove(&2);
                facts.answers.as_mut().unwrap().remove(&(coupon, 2));
                for events in facts.log.as_mut().unwrap().events.values_mut() {
                    for event in events.iter_mut().filter(|event| event.user_coupon_id == ids[1]) {
                        event.user_id = 1;
                        event.key = "1".into();
                    }
                }
            }),
            // The gate can hold only one of the two slots.
            vec![(I2, user(1)), (I5, user(1))],
        ),
        (
            "a second issued event for one row",
            Box::new(|facts| {
                let events = facts.log.as_mut().unwrap().events.get_mut("coupon-issued").unwrap();
                let mut copy = events[0].clone();
                copy.event_id = "00000000-0000-7000-8000-000000000001".into();
                copy.user_coupon_id = ids[0];
                events.push(copy);
            }),
            vec![(I3, row(0)), (I4, "coupon-issued event 00000000-0000-7000-8000-000000000001".into())],
        ),
        (
            "a row without any history",
            Box::new(|facts| facts.history.retain(|line| line.user_coupon_id != ids[4])),
            vec![
                (I3, row(4)),
                (I4, format!("coupon-issued event {}", event_of(&clean, ids[4]))),
                (I7, row(4)),
                (I8, format!("coupon {coupon}")),
                (I8, format!("coupon-stats-minute coupon {coupon} {}", start(&clean))),
                (I8, format!("coupon-stats-day coupon {coupon} {}", start(&clean))),
            ],
        ),
        (
            "an event never reached the log",
            Box::new(|facts| {
                let events = facts.log.as_mut().unwrap().events.get_mut("coupon-issued").unwrap();
                events.retain(|event| event.user_coupon_id != ids[2]);
            }),
            vec![(I4, row(2))],
        ),
        (
            "an event says another user than its row",
            Box::new(|facts| {
                let events = facts.log.as_mut().unwrap().events.get_mut("coupon-issued").unwrap();
                let event = events.iter_mut().find(|event| event.user_coupon_id == ids[2]).unwrap();
                event.user_id = 99;
                event.key = "99".into();
            }),
            vec![(I4, format!("coupon-issued event {}", event_of(&clean, ids[2])))],
        ),
        (
            "an event under the wrong key",
            Box::new(|facts| {
                let events = facts.log.as_mut().unwrap().events.get_mut("coupon-issued").unwrap();
                events.iter_mut().find(|event| event.user_coupon_id == ids[2]).unwrap().key = "1".into();
            }),
            vec![(I4, format!("coupon-issued event {}", event_of(&clean, ids[2])))],
        ),
        (
            "a record that nobody can read",
            Box::new(|facts| facts.log.as_mut().unwrap().unreadable.push("coupon-used-0@7: EOF".into())),
            vec![(I4, "log".into())],
        ),
        (
            "a seat at the gate without a row",
            Box::new(|facts| {
                let seat = facts::GateSeat { slot: 7, pending: false };
                facts.gate.as_mut().unwrap().get_mut(&coupon).unwrap().insert(77, seat);
            }),
            vec![(I5, user(77))],
        ),
        (
            "a row that the gate has forgotten",
            Box::new(|facts| {
                facts.gate.as_mut().unwrap().get_mut(&coupon).unwrap().remove(&3);
            }),
            vec![(I5, user(3))],
        ),
        (
            "a seat that is never confirmed",
            Box::new(|facts| {
                facts.gate.as_mut().unwrap().get_mut(&coupon).unwrap().get_mut(&3).unwrap().pending = true;
            }),
            vec![(I5, user(3))],
        ),
        (
            "a use that left no event",
            Box::new(|facts| {
                let events = facts.log.as_mut().unwrap().events.get_mut("coupon-used").unwrap();
                events.retain(|event| event.user_coupon_id != ids[3]);
            }),
            vec![(I4, row(3)), (I6, "coupon-used".into())],
        ),
        (
            "a row is used, and its history does not know",
            Box::new(|facts| facts.user_coupons[4].status = "USED".into()),
            vec![(I6, row(4)), (I7, row(4))],
        ),
        (
            "an amount was changed behind the history's back",
            Box::new(|facts| facts.user_coupons[1].discount_amount = Some(1)),
            vec![(I7, row(1))],
        ),
        (
            "a line of history is missing in the middle",
            Box::new(|facts| facts.history.retain(|line| !(line.user_coupon_id == ids[5] && line.seq == 1))),
            vec![
                (I3, row(5)),
                (I4, format!("coupon-issued event {}", event_of(&clean, ids[5]))),
                (I7, row(5)),
                (I7, row(5)),
                (I8, format!("coupon {coupon}")),
                (I8, format!("coupon-stats-minute coupon {coupon} {}", start(&clean))),
                (I8, format!("coupon-stats-day coupon {coupon} {}", start(&clean))),
            ],
        ),
        (
            "totals count one twice",
            Box::new(|facts| facts.log.as_mut().unwrap().totals.get_mut(&coupon).unwrap().issued_total += 1),
            vec![(I8, format!("coupon {coupon}"))],
        ),
        (
            "a window is final twice",
            Box::new(|facts| minute(facts).finals = 2),
            vec![(I8, format!("coupon-stats-minute coupon {coupon} {}", start(&clean)))],
        ),
        (
            "a window never ends",
            Box::new(|facts| minute(facts).finals = 0),
            vec![(I8, format!("coupon-stats-minute coupon {coupon} {}", start(&clean)))],
        ),
        (
            "a window dropped a late event",
            Box::new(|facts| minute(facts).latest.used -= 1),
            vec![(I8, format!("coupon-stats-minute coupon {coupon} {}", start(&clean)))],
        ),
        (
            "a window is missing",
            Box::new(|facts| {
                facts.log.as_mut().unwrap().windows.get_mut("coupon-stats-minute").unwrap().clear()
            }),
            vec![(I8, format!("coupon-stats-minute coupon {coupon}"))],
        ),
        (
            "somebody was told yes and has nothing",
            Box::new(|facts| {
                facts
                    .answers
                    .as_mut()
                    .unwrap()
                    .insert((coupon, 50), answers::Told { yes: true, ..Default::default() });
            }),
            vec![(I9, user(50))],
        ),
        (
            "somebody was told sold out and has one",
            Box::new(|facts| {
                facts
                    .answers
                    .as_mut()
                    .unwrap()
                    .insert((coupon, 1), answers::Told { no: true, ..Default::default() });
            }),
            vec![(I9, user(1))],
        ),
    ];
    assert!(plants.len() >= 12);
    for (name, plant, expected) in plants {
        let mut corrupted = clean.clone();
        plant(&mut corrupted);
        let mut found = findings(&corrupted);
        found.sort();
        let mut expected = expected;
        expected.sort();
        assert_eq!(found, expected, "{name}:\n{:#?}", judge(&corrupted).findings().collect::<Vec<_>>());
    }
}

/// What the statistics cannot know (an event that came after its window was final) is told from what they got wrong.
#[tokio::test]
async fn a_late_event_is_named_as_such() {
    let clean = Quiet::new().await.facts().await;
    let detail = |change: fn(&mut WindowRecord)| {
        let mut corrupted = clean.clone();
        change(&mut minute(&mut corrupted).latest);
        let report = judge(&corrupted);
        let details: Vec<String> = report.findings().map(|finding| finding.detail.clone()).collect();
        assert_eq!(details.len(), 1, "{details:?}");
        details[0].clone()
    };
    assert!(detail(|window| window.issued -= 1).contains("after it was final"));
    assert!(!detail(|window| window.issued += 1).contains("after it was final"));
}

fn event_of(facts: &Facts, user_coupon: i64) -> String {
    let line = facts.history.iter().find(|line| line.user_coupon_id == user_coupon).unwrap();
    line.event_id.clone()
}

fn minute(facts: &mut Facts) -> &mut Window {
    let windows = facts.log.as_mut().unwrap().windows.get_mut("coupon-stats-minute").unwrap();
    windows.values_mut().next().unwrap()
}

fn start(facts: &Facts) -> UtcMicros {
    facts.log.as_ref().unwrap().windows["coupon-stats-minute"].values().next().unwrap().latest.window_start
}

/// The same, planted where it would really stand: the readers see it too.
#[tokio::test]
async fn corruptions_in_gate_and_log_are_seen_by_the_readers() {
    let quiet = Quiet::new().await;
    let coupon = CouponId::new(quiet.coupon).unwrap();
    // More seats at the gate than in the ledger, and one more admitted, never issued.
    let gate = quiet.api.state.service.gate();
    gate.set_limit(coupon, 10).await.unwrap();
    gate.admit(coupon, UserId::new(70).unwrap(), uuid::Uuid::new_v4()).await.unwrap();
    // An event without a row, and something that is not an event, in the log.
    let mut producer = quiet.log.producer(&ProducerConfig::default()).unwrap();
    for (key, value) in
        [("9", r#"{"eventId":"forged","userCouponId":900,"userId":9,"couponId":1}"#), ("9", "not json")]
    {
        let record = ProducerRecord {
            topic: "coupon-issued".into(),
            partition: None,
            key: Some(key.into()),
            value: Some(value.into()),
            timestamp: None,
            headers: Headers::EMPTY,
        };
        producer.send(record).unwrap();
    }
    producer.flush().unwrap();
    let mut found = findings(&quiet.facts().await);
    found.sort();
    let expected = [
        (Invariant::I4, "coupon-issued event forged".to_owned()),
        (Invariant::I4, "log".to_owned()),
        (Invariant::I5, format!("coupon {coupon} user 70")),
    ];
    assert_eq!(found, expected);
}

/// An outbox that was not relayed is named, not excused.
#[tokio::test]
async fn what_still_waits_in_the_outbox_is_missing_in_the_log() {
    let quiet = Quiet::new().await;
    let id = quiet.api.open_campaign(1).await;
    let user_coupon = quiet.api.issue(id, 5).await;
    let report = judge(&quiet.facts().await);
    let waiting: Vec<_> = report.findings().filter(|finding| finding.invariant == Invariant::I4).collect();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0].subject, format!("user coupon {user_coupon}"));
    assert!(waiting[0].detail.ends_with("it still waits in the outbox"), "{waiting:?}");
}
