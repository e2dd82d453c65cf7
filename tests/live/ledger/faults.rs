//! Postgres taken away at the worst moments: a definite no gives the seat back, an unknown outcome never does.
//!
//! A [`Proxy`] stands between the service and the server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sluice::{
    coupon::{
        clock::Clock,
        db::DbConfig,
        error::{Dependency, Outcome, Refusal},
        gate::Gate,
        relay::{Relay, RelayConfig, Step},
        verify::{self, Answer, Answers, Invariant, answers, facts},
    },
    streams::client::embedded::EmbeddedLog,
};

use super::{
    ledger_contract::{Fixture, cancel, context, order, told, user},
    own_database,
};
use crate::proxy::Proxy;

async fn behind_a_proxy() -> Option<(Fixture, Arc<Proxy>)> {
    let url = own_database().await?;
    let (proxy, url) = Proxy::in_front_of(&url).await;
    let config = DbConfig {
        acquire_timeout: Duration::from_millis(500),
        statement_timeout: Duration::from_millis(500),
        ..DbConfig::default()
    };
    Some((Fixture::with_config(&url, config, None).await, proxy))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_before_commit_is_a_definite_no_and_the_seat_comes_back() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(1).await;
    // An id block is taken by the first issue; let that be over, so that the cut meets the issue itself.
    f.ledger.next_user_coupon_id().await.unwrap();
    proxy.arm("BEGIN");
    let outcome = f.issue(id, 1).await;
    assert_eq!(proxy.cuts(), 1);
    // A transaction that could not begin is begun again on another connection: the caller need not know.
    assert_eq!(told(&outcome), "done");

    let id = f.open(1).await;
    proxy.set_closed(true);
    match f.issue(id, 1).await {
        Outcome::Refused(Refusal::SeatReleased { dependency: Dependency::Ledger }) => {}
        other => panic!("{other:?}"),
    }
    let stock = f.gate.stock(id).await.unwrap();
    assert_eq!((stock.admitted, stock.pending), (0, 0), "the seat is free again");
    proxy.set_closed(false);
    assert_eq!(told(&f.issue(id, 1).await), "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_found_out_or_left_unknown_and_never_released() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(2).await;
    f.ledger.next_user_coupon_id().await.unwrap();

    // The ledger can be asked afterwards: it has the row, so the answer is yes.
    proxy.arm("COMMIT");
    assert_eq!(told(&f.issue(id, 1).await), "done");
    assert_eq!(proxy.cuts(), 1);

    // It cannot be asked: unknown, and the seat stays taken.
    proxy.arm("COMMIT");
    let watching = proxy.clone();
    let close = tokio::spawn(async move {
        while watching.cuts() < 2 {
            tokio::task::yield_now().await;
        }
        watching.set_closed(true);
    });
    let outcome = f.issue(id, 2).await;
    close.await.unwrap();
    if let Outcome::Refused(refusal) = &outcome {
        assert_eq!(*refusal, Refusal::OutcomeUnknown { dependency: Dependency::Ledger });
    } else {
        // The look at the ledger was quicker than the door.
        assert_eq!(told(&outcome), "done");
    }
    assert_eq!(f.gate.stock(id).await.unwrap().admitted, 2, "the seat is not given to anybody else");
    proxy.set_closed(false);
    // The same request again finds out.
    match f.issue(id, 2).await {
        Outcome::Refused(Refusal::AlreadyIssued { existing }) => assert_eq!(existing.user_id, user(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(told(&f.issue(id, 3).await), "CP005");
    assert_eq!(f.ints("select count(*) as n from user_coupons").await, [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_without_an_answer_may_be_repeated() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(1).await;
    let row = f.issue(id, 1).await.done().unwrap().user_coupon_id;
    proxy.arm("COMMIT");
    let lost = f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await;
    assert_eq!((told(&lost), proxy.cuts()), ("CP010", 1));
    let again = f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await.done().unwrap();
    assert_eq!(again.discount_amount, Some(100));
    assert_eq!(f.ints("select count(*) as n from outbox where topic = 'coupon-used'").await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_meets_cut_connections_gets_every_seat_once() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(300).await;
    let f = Arc::new(f);
    let asking: Vec<_> = (1..=300)
        .map(|who| {
            let f = f.clone();
            tokio::spawn(async move { (who, f.issue(id, who).await) })
        })
        .collect();
    let cutting = {
        let (proxy, f) = (proxy.clone(), f.clone());
        tokio::spawn(async move {
            // Cut a commit whenever another piece of the crowd got through.
            for pass in 1..=5 {
                let before = proxy.cuts();
                proxy.arm(if pass % 2 == 0 { "BEGIN" } else { "COMMIT" });
                let deadline = Instant::now() + Duration::from_millis(300);
                while proxy.cuts() == before && Instant::now() < deadline {
                    tokio::task::yield_now().await;
                }
            }
            proxy.disarm();
            drop(f);
        })
    };
    let mut answers = Vec::new();
    for task in asking {
        answers.push(task.await.unwrap());
    }
    cutting.await.unwrap();
    // A definite no has left nothing behind.
    for (who, outcome) in &answers {
        let held = f.ledger.user_coupon_of(id, user(*who), f.now()).await.unwrap();
        match outcome {
            Outcome::Done(row) => assert_eq!(held.unwrap().shown.user_coupon_id, row.user_coupon_id),
            Outcome::Refused(Refusal::SeatReleased { .. }) => assert_eq!(held, None, "{who} was told no"),
            _ => {}
        }
    }
    // Whoever was refused asks again, as the answers say is safe.
    for (who, outcome) in answers {
        match outcome {
            Outcome::Done(_) | Outcome::Refused(Refusal::AlreadyIssued { .. }) => {}
            Outcome::Refused(
                Refusal::SeatReleased { .. } | Refusal::OutcomeUnknown { .. } | Refusal::Overloaded { .. },
            ) => {
                let again = f.issue(id, who).await;
                assert!(matches!(told(&again), "done" | "CP007" | "CP010"), "{who}: {again:?}");
            }
            other => panic!("{who}: {other:?}"),
        }
    }
    assert!(proxy.cuts() >= 1);
    let rows = f.ints("select count(*) as n from user_coupons").await[0];
    assert_eq!(f.ints("select count(distinct slot_no) as n from user_coupons").await, [rows]);
    assert_eq!(f.ints("select count(*) as n from coupon_history").await, [rows]);
    assert_eq!(f.ints("select count(*) as n from outbox").await, [rows]);
    let admitted = f.gate.stock(id).await.unwrap().admitted;
    assert!(rows <= admitted && admitted <= 300, "rows {rows}, gate {admitted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_refuses_within_its_time_limit() {
    let Some(url) = own_database().await else { return };
    let config =
        DbConfig { connections_max: 1, acquire_timeout: Duration::from_millis(200), ..DbConfig::default() };
    let f = Fixture::with_config(&url, config, None).await;
    let id = f.open(1).await;
    f.ledger.next_user_coupon_id().await.unwrap();
    f.service.coupon(id).await.unwrap();
    let held = f.ledger.db().begin().await.unwrap();
    let asked = Instant::now();
    assert_eq!(told(&f.issue(id, 1).await), "CP009");
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    held.rollback().await;
    assert_eq!(told(&f.issue(id, 1).await), "done");
}

/// An hour back, in the middle of a crowd and of uses: nobody loses a place, the history stays in order, and all
/// invariants hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_back_takes_nothing_from_anybody() {
    const HOUR: i64 = 3_600_000_000;
    let Some(f) = super::postgres().await else { return };
    let f = Arc::new(f);
    let id = f.open(40).await;
    f.advance(2 * HOUR);
    let mut answers = Answers::new();
    let mut held = Vec::new();
    for turn in [1..=20, 15..=60] {
        let asking: Vec<_> = turn
            .map(|who| {
                let f = f.clone();
                tokio::spawn(async move {
                    f.advance(1_000);
                    (who, f.issue(id, who).await)
                })
            })
            .collect();
        for task in asking {
            let (who, outcome) = task.await.unwrap();
            let (status, code) = match &outcome {
                Outcome::Done(row) => {
                    held.push(row.user_coupon_id);
                    (201, None)
                }
                refused => (409, Some(told(refused).to_owned())),
            };
            answers::add(&mut answers, &Answer { coupon_id: id.get(), user_id: who, status, code });
        }
        for row in &held {
            f.service.use_coupon(*row, order("o", 1_000), &context("r")).await.done().unwrap();
        }
        f.advance(-HOUR);
        for row in held.iter().step_by(2) {
            f.service.cancel_use(*row, cancel("o"), &context("r")).await.done().unwrap();
        }
    }
    assert_eq!(held.len(), 40);
    f.until_confirmed(id).await;
    // Who was first is first, by the gate's order of admission too.
    let members = f.gate.members(id, 0, 100).await.unwrap();
    let early: Vec<bool> = members.iter().map(|member| member.user.get() <= 20).collect();
    assert!(early[..20].iter().all(|early| *early) && !early[20..].contains(&true), "{members:?}");

    let log = EmbeddedLog::in_memory();
    super::relay_contract::create_topics(&log);
    let log: Arc<dyn sluice::streams::client::ClientSupplier> = Arc::new(log);
    let mut relay = Relay::new(&f.ledger, log.clone(), Clock::system(), RelayConfig::default());
    while relay.relay_batch().await.unwrap() != Step::Idle {}
    let gate: Arc<dyn Gate> = f.gate.clone();
    let facts = facts::gather(f.ledger.db(), Some(&gate), Some(log), Some(answers)).await.unwrap();
    let report = verify::judge(&facts);
    assert!(report.holds(), "{:#?}", report.findings().collect::<Vec<_>>());
    let unchecked: Vec<_> = report.checks.iter().filter(|check| check.compared.is_none()).collect();
    assert_eq!(unchecked.iter().map(|check| check.invariant).collect::<Vec<_>>(), [Invariant::I8]);
    assert!(f.service.reconcile(true).await.unwrap().iter().all(|drift| drift.is_zero()));
    f.assert_replay_equals_tables().await;
}
