//! The same verdict for a service that lives inside the test: I1 to I7, I9 and I10, zero drift.
//!
//! There are no processes to ask, so the outbox is relayed to a log of the test's own and the verifier's rules are called
//! directly. No statistics run here (I8): the same faults under whole processes, statistics included, are in `faults.rs`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sluice::{
    coupon::{
        clock::Clock,
        error::Outcome,
        relay::{Relay, RelayConfig, Step},
        service::CouponService,
        sweeper::Sweeper,
        verify::{self, Answer, Answers, Invariant, answers, facts},
    },
    streams::client::{ClientSupplier, embedded::EmbeddedLog},
};

use crate::{
    invariants::{Campaign, ROWS_OF_AN_OLDER_EPOCH, not_overtaken, was_kept},
    ledger::relay_contract::create_topics,
    told::{Asked, Told},
    world::PATIENCE,
};

/// What a caller of the service was told, as the API would have said it.
pub fn told<T>(asked: Asked, outcome: &Outcome<T>) -> Told {
    match outcome {
        Outcome::Done(_) => asked.told(201, None),
        Outcome::Replayed(_) => asked.told(200, None),
        Outcome::Refused(refusal) => asked.told(409, refusal.code().map(str::to_owned)),
    }
}

/// Fails unless all that can be judged here holds, once the sweeper has brought it to rest. The ledger must not have been
/// relayed before.
pub async fn holds(service: &CouponService, told: &[Told], campaigns: &[Campaign]) {
    let deadline = Instant::now() + PATIENCE;
    let mut sweeper = Sweeper::new(service.clone());
    loop {
        sweeper.sweep_once().await;
        let drifts = service.reconcile(true).await.expect("ledger and gate answer");
        let is_quiet = drifts.iter().all(|drift| drift.gate.as_ref().is_none_or(|gate| gate.pending == 0));
        if is_quiet && drifts.iter().all(|drift| drift.is_zero()) {
            break;
        }
        assert!(Instant::now() < deadline, "no rest: {drifts:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let log = EmbeddedLog::in_memory();
    create_topics(&log);
    let log: Arc<dyn ClientSupplier> = Arc::new(log);
    let mut relay = Relay::new(service.ledger(), log.clone(), Clock::system(), RelayConfig::default());
    while relay.relay_batch().await.expect("the ledger answers") != Step::Idle {}

    let mut heard = Answers::new();
    for Told { coupon, user, status, code, .. } in told {
        let (coupon_id, user_id, code) = (*coupon, *user, code.clone());
        answers::add(&mut heard, &Answer { coupon_id, user_id, status: *status, code });
    }
    let gate = Some(service.gate());
    let facts = facts::gather(service.ledger().db(), gate, Some(log), Some(heard)).await.expect("the facts");
    let report = verify::judge(&facts);
    assert!(report.holds(), "{:#?}", report.findings().collect::<Vec<_>>());
    for check in report.checks {
        let was_checked = check.compared.is_some() || check.invariant == Invariant::I8;
        assert!(was_checked, "{:?} was not checked", check.invariant);
    }
    for campaign in campaigns {
        let rows = facts.user_coupons.iter().filter(|row| row.coupon_id == campaign.coupon).count() as i64;
        assert_eq!(rows, campaign.seats, "rows of coupon {}", campaign.coupon);
        let sql = "select count(*) as n from issuance_fence where coupon_id = $1";
        let id = [sluice::coupon::db::Param::Int(campaign.coupon)];
        let fenced = service.ledger().db().read(sql, &id).await.expect("the ledger answers");
        not_overtaken(told, *campaign, fenced[0].int("n").expect("a number") as usize);
        let older =
            service.ledger().db().read(ROWS_OF_AN_OLDER_EPOCH, &id).await.expect("the ledger answers");
        was_kept(*campaign, older[0].int("n").expect("a number"));
    }
}
