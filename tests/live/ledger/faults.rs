//! Postgres taken away at the worst moments: a definite no gives the seat back, an unknown outcome never does.
//!
//! A [`Proxy`] stands between the service and the server. After each, all invariants are judged.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use sluice::coupon::{
    db::DbConfig,
    error::{Dependency, Outcome, Refusal},
    gate::Gate,
    ids::CouponId,
    model::UserCoupon,
};

use super::{
    ledger_contract::{Fixture, cancel, context, order, told, user},
    own_database,
};
use crate::{
    invariants::Campaign,
    proxy::Proxy,
    told::{Asked, Told},
    verdict,
};

/// Longer than the fixture's gate keeps a seat pending.
const LEASE_US: i64 = 61_000_000;

/// An issue, and what its caller was told.
async fn issue(f: &Fixture, id: CouponId, who: i64, heard: &mut Vec<Told>) -> Outcome<UserCoupon> {
    let asked = Asked::now(id.get(), who);
    let outcome = f.issue(id, who).await;
    heard.push(verdict::told(asked, &outcome));
    outcome
}

/// Lets what is pending become overdue, and judges.
async fn judge(f: &Fixture, heard: &[Told], campaigns: &[(CouponId, i64)]) {
    f.advance(LEASE_US);
    let campaigns: Vec<_> = campaigns.iter().map(|(id, seats)| Campaign::of(id.get(), *seats)).collect();
    verdict::holds(&f.service, heard, &campaigns).await;
}

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
    let mut heard = Vec::new();
    let first = f.open(1).await;
    // An id block is taken by the first issue; let that be over, so that the cut meets the issue itself.
    f.ledger.next_user_coupon_id().await.unwrap();
    proxy.arm("BEGIN");
    let outcome = issue(&f, first, 1, &mut heard).await;
    assert_eq!(proxy.cuts(), 1);
    // A transaction that could not begin is begun again on another connection: the caller need not know.
    assert_eq!(told(&outcome), "done");

    let id = f.open(1).await;
    proxy.set_closed(true);
    match issue(&f, id, 1, &mut heard).await {
        Outcome::Refused(Refusal::SeatReleased { dependency: Dependency::Ledger }) => {}
        other => panic!("{other:?}"),
    }
    let stock = f.gate.stock(id).await.unwrap();
    assert_eq!((stock.admitted, stock.pending), (0, 0), "the seat is free again");
    proxy.set_closed(false);
    assert_eq!(told(&issue(&f, id, 1, &mut heard).await), "done");
    judge(&f, &heard, &[(first, 1), (id, 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_found_out_or_left_unknown_and_never_released() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let mut heard = Vec::new();
    let id = f.open(2).await;
    f.ledger.next_user_coupon_id().await.unwrap();

    // The ledger can be asked afterwards: it has the row, so the answer is yes.
    proxy.arm("COMMIT");
    assert_eq!(told(&issue(&f, id, 1, &mut heard).await), "done");
    assert_eq!(proxy.cuts(), 1);

    // It cannot be asked: unknown, and the seat stays taken.
    proxy.arm_to_close("COMMIT");
    match issue(&f, id, 2, &mut heard).await {
        Outcome::Refused(Refusal::OutcomeUnknown { dependency: Dependency::Ledger }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(f.gate.stock(id).await.unwrap().admitted, 2, "the seat is not given to anybody else");
    proxy.set_closed(false);
    // The same request again finds out.
    match issue(&f, id, 2, &mut heard).await {
        Outcome::Refused(Refusal::AlreadyIssued { existing }) => assert_eq!(existing.user_id, user(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(told(&issue(&f, id, 3, &mut heard).await), "CP005");
    judge(&f, &heard, &[(id, 2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_without_an_answer_may_be_repeated() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let mut heard = Vec::new();
    let id = f.open(1).await;
    let row = issue(&f, id, 1, &mut heard).await.done().unwrap().user_coupon_id;
    proxy.arm("COMMIT");
    let lost = f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await;
    assert_eq!((told(&lost), proxy.cuts()), ("CP010", 1));
    let again = f.service.use_coupon(row, order("o-1", 1_000), &context("r")).await.done().unwrap();
    assert_eq!(again.discount_amount, Some(100));
    judge(&f, &heard, &[(id, 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_meets_cut_connections_gets_every_seat_once() {
    let Some((f, proxy)) = behind_a_proxy().await else { return };
    let id = f.open(200).await;
    f.ledger.next_user_coupon_id().await.unwrap();
    let f = Arc::new(f);
    let (mut answers, mut heard) = (Vec::new(), Vec::new());
    // Each part of the crowd meets another cut at its first transaction; the last two find the ledger closed until one of
    // them has been told so.
    let cuts = [("COMMIT", None), ("BEGIN", None), ("COMMIT", Some("CP010")), ("BEGIN", Some("CP009"))];
    for (part, (word, closed_until)) in cuts.into_iter().enumerate() {
        if closed_until.is_some() {
            proxy.arm_to_close(word)
        } else {
            proxy.arm(word)
        }
        let mut asking: FuturesUnordered<_> = (1..=50)
            .map(|n| {
                let (f, who) = (f.clone(), 50 * part as i64 + n);
                tokio::spawn(async move {
                    let mut heard = Vec::new();
                    (who, issue(&f, id, who, &mut heard).await, heard)
                })
            })
            .collect();
        let mut codes = HashSet::new();
        while let Some(answer) = asking.next().await {
            let (who, outcome, was_told) = answer.unwrap();
            if codes.insert(told(&outcome)) && closed_until == Some(told(&outcome)) {
                proxy.set_closed(false);
            }
            answers.push((who, outcome));
            heard.extend(was_told);
        }
        assert_eq!(proxy.cuts(), part + 1);
        assert!(closed_until.is_none_or(|code| codes.contains(code)), "{word}: {codes:?}");
    }
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
                let again = issue(&f, id, who, &mut heard).await;
                assert!(matches!(told(&again), "done" | "CP007" | "CP010"), "{who}: {again:?}");
            }
            other => panic!("{who}: {other:?}"),
        }
    }
    // What nobody knew is known once the sweeper has asked; then every seat can be had.
    f.advance(LEASE_US);
    let mut sweeper = sluice::coupon::sweeper::Sweeper::new(f.service.clone());
    sweeper.sweep_once().await;
    for who in 1_001..=1_200 {
        if told(&issue(&f, id, who, &mut heard).await) == "CP005" {
            break;
        }
    }
    judge(&f, &heard, &[(id, 200)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_refuses_within_its_time_limit() {
    let Some(url) = own_database().await else { return };
    let config =
        DbConfig { connections_max: 1, acquire_timeout: Duration::from_millis(200), ..DbConfig::default() };
    let f = Fixture::with_config(&url, config, None).await;
    let mut heard = Vec::new();
    let id = f.open(1).await;
    f.ledger.next_user_coupon_id().await.unwrap();
    f.service.coupon(id).await.unwrap();
    let held = f.ledger.db().begin().await.unwrap();
    let asked = Instant::now();
    assert_eq!(told(&issue(&f, id, 1, &mut heard).await), "CP009");
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    held.rollback().await;
    assert_eq!(told(&issue(&f, id, 1, &mut heard).await), "done");
    judge(&f, &heard, &[(id, 1)]).await;
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
    let (mut heard, mut held) = (Vec::new(), Vec::new());
    for turn in [1..=20, 15..=60] {
        let asking: Vec<_> = turn
            .map(|who| {
                let f = f.clone();
                tokio::spawn(async move {
                    f.advance(1_000);
                    let mut heard = Vec::new();
                    (issue(&f, id, who, &mut heard).await, heard)
                })
            })
            .collect();
        for task in asking {
            let (outcome, told) = task.await.unwrap();
            heard.extend(told);
            if let Outcome::Done(row) = outcome {
                held.push(row.user_coupon_id);
            }
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

    judge(&f, &heard, &[(id, 40)]).await;
    f.assert_replay_equals_tables().await;
}
