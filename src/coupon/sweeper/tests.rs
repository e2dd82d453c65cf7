//! The sweeper over the in-process gate and a SQLite ledger, with everything cut off that can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures::FutureExt;
use futures::future::{join, join_all, ready};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::coupon::clock::Clock;
use crate::coupon::db::DbConfig;
use crate::coupon::event::{CouponIssued, Event, SCHEMA_VERSION, new_event_id};
use crate::coupon::gate::embedded::EmbeddedGate;
use crate::coupon::gate::{
    Admission, Amendment, CampaignChange, CampaignMeta, Confirmation, Gate, GateFuture, Member, Outcome,
    Release, Seat, SeatView,
};
use crate::coupon::ids::CouponId;
use crate::coupon::ledger::{Issuance, Ledger, Recorded};
use crate::coupon::rebuild::meta;
use crate::coupon::service::{CouponConfig, CreateCoupon, RequestContext};

const LEASE: Duration = Duration::from_secs(30);

/// A gate whose confirmations get lost on the way, while it is deaf.
struct DeafGate {
    gate: EmbeddedGate,
    deaf: AtomicBool,
}

impl Gate for DeafGate {
    fn admit(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Admission> {
        self.gate.admit(coupon, user, token)
    }
    fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Confirmation> {
        if self.deaf.load(Ordering::SeqCst) {
            let error = GateError::Unavailable { outcome: Outcome::Unknown, reason: "lost".into() };
            return ready(Err(error)).boxed();
        }
        self.gate.confirm(coupon, user, token)
    }
    fn release(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Release> {
        self.gate.release(coupon, user, token)
    }
    fn open(&self, campaign: CampaignMeta) -> GateFuture<'_, ()> {
        self.gate.open(campaign)
    }
    fn amend(&self, coupon: CouponId, change: CampaignChange) -> GateFuture<'_, Amendment> {
        self.gate.amend(coupon, change)
    }
    fn rebuild(&self, campaign: CampaignMeta, members: Vec<Member>) -> GateFuture<'_, ()> {
        self.gate.rebuild(campaign, members)
    }
    fn pending_expired(&self, coupon: CouponId, max: usize) -> GateFuture<'_, Vec<Pending>> {
        self.gate.pending_expired(coupon, max)
    }
    fn extend(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, bool> {
        self.gate.extend(coupon, user, token)
    }
    fn stock(&self, coupon: CouponId) -> GateFuture<'_, GateStock> {
        self.gate.stock(coupon)
    }
    fn members(&self, coupon: CouponId, after_us: i64, max: usize) -> GateFuture<'_, Vec<SeatView>> {
        self.gate.members(coupon, after_us, max)
    }
    fn seat(&self, coupon: CouponId, user: UserId) -> GateFuture<'_, Option<SeatView>> {
        self.gate.seat(coupon, user)
    }
    fn health(&self) -> GateFuture<'_, ()> {
        self.gate.health()
    }
}

struct Setting {
    service: CouponService,
    gate: Arc<DeafGate>,
    ledger: Ledger,
    now_us: Arc<AtomicI64>,
    coupon: CouponId,
    _directory: tempfile::TempDir,
}

impl Setting {
    async fn new(limit: i64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("ledger.db").display());
        let config = DbConfig { sync_commits: false, ..DbConfig::default() };
        let ledger = Ledger::open(&url, config).await.unwrap();
        ledger.migrate().await.unwrap();

        let now_us = Arc::new(AtomicI64::new(1_800_000_000_000_000));
        let (gates, services) = (now_us.clone(), now_us.clone());
        let clock = Arc::new(move || gates.fetch_add(1, Ordering::SeqCst));
        let gate =
            Arc::new(DeafGate { gate: EmbeddedGate::with_clock(LEASE, clock), deaf: AtomicBool::new(false) });
        let clock = Clock::from_fn(move || UtcMicros::clamped(services.load(Ordering::SeqCst)));
        let config = CouponConfig { duplicate_wait: Duration::ZERO, ..CouponConfig::default() };
        let service = CouponService::new(gate.clone(), ledger.clone(), clock, config);

        let campaign = CreateCoupon {
            coupon_name: "spring".into(),
            discount_type: "FIXED".into(),
            discount_value: 100,
            max_discount_amount: None,
            min_order_amount: 0,
            max_issue_count: limit,
            issue_from: None,
            issue_until: None,
            valid_from: "2026-01-01T00:00:00Z".parse().unwrap(),
            valid_to: "2099-01-01T00:00:00Z".parse().unwrap(),
            created_by: "test".into(),
        };
        let coupon = service.create(campaign).await.done().unwrap().coupon_id;
        service.open(coupon).await.done().unwrap();
        Self { service, gate, ledger, now_us, coupon, _directory: directory }
    }

    fn sweeper(&self) -> Sweeper {
        Sweeper::new(self.service.clone())
    }

    fn pass(&self, time: Duration) {
        self.now_us.fetch_add(time.as_micros() as i64, Ordering::SeqCst);
    }

    async fn issue(&self, id: i64) -> bool {
        self.service.issue(self.coupon, user(id), &RequestContext::default()).await.done().is_ok()
    }

    /// An issue that dies after the gate admitted it.
    async fn admit_and_die(&self, id: i64) -> Seat {
        match self.gate.admit(self.coupon, user(id), Uuid::new_v4()).await.unwrap() {
            Admission::Admitted(seat) => seat,
            other => panic!("user {id}: {other:?}"),
        }
    }

    /// The ledger transaction of an admission.
    async fn record(&self, id: i64, seat: Seat) -> Recorded {
        let issued_at = UtcMicros::clamped(seat.admitted_at_us);
        let user_coupon_id = self.ledger.next_user_coupon_id().await.unwrap();
        let event = CouponIssued {
            event_id: new_event_id(issued_at),
            user_coupon_id,
            user_id: user(id),
            coupon_id: self.coupon,
            coupon_name: "spring".into(),
            issued_at,
            slot_no: seat.slot,
            request_id: "late".into(),
            schema_version: SCHEMA_VERSION,
            max_issue_count: None,
        };
        let issuance = Issuance {
            user_coupon_id,
            coupon_id: self.coupon,
            user_id: user(id),
            slot_no: seat.slot,
            epoch: seat.epoch,
            token: seat.token,
            issued_at,
            request_id: "late".into(),
            event: event.to_outbox("/test"),
            idempotency: None,
        };
        self.ledger.record_issuances(&[issuance], issued_at).await.unwrap().remove(0)
    }

    /// A replica that missed every write is promoted: the campaign is known there, its members are not.
    async fn miss_every_write(&self) {
        let campaign = self.ledger.campaign(self.coupon, UtcMicros::clamped(1)).await.unwrap().unwrap();
        self.gate.gate.forget_all();
        self.gate.open(meta(&campaign).unwrap()).await.unwrap();
    }

    async fn stock(&self) -> GateStock {
        self.gate.stock(self.coupon).await.unwrap()
    }

    /// Users and slots, at the gate and in the ledger, by slot.
    async fn held(&self) -> [Vec<(i64, i64)>; 2] {
        let mut gate: Vec<_> = self.gate.members(self.coupon, 0, 1000).await.unwrap();
        gate.sort_by_key(|view| view.seat.slot);
        let ledger = self.ledger.members(self.coupon).await.unwrap();
        [
            gate.iter().map(|view| (view.user.get(), view.seat.slot)).collect(),
            ledger.iter().map(|member| (member.user.get(), member.slot)).collect(),
        ]
    }

    /// Waits for confirmations under way: the confirmer works behind the answers.
    async fn confirmed(&self, pending: i64) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while self.stock().await.pending != pending {
            assert!(std::time::Instant::now() < deadline, "{:?}", self.stock().await);
            tokio::task::yield_now().await;
        }
    }
}

fn user(id: i64) -> UserId {
    UserId::new(id).unwrap()
}

#[tokio::test]
async fn rows_whose_confirmation_was_lost_are_confirmed_once_overdue() {
    let setting = Setting::new(10).await;
    setting.gate.deaf.store(true, Ordering::SeqCst);
    for id in 1..=3 {
        assert!(setting.issue(id).await);
    }
    // The confirmer's calls fail; wait until it made them all, so that none comes after the hearing returns.
    let failed = || setting.service.metrics.dependency_errors.with_label_values(&["gate", "confirm"]).get();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while failed() < 3 {
        assert!(std::time::Instant::now() < deadline, "{} confirmations failed", failed());
        tokio::task::yield_now().await;
    }
    setting.gate.deaf.store(false, Ordering::SeqCst);

    let mut sweeper = setting.sweeper();
    assert_eq!(sweeper.sweep_once().await, Swept::default(), "not overdue yet");
    assert_eq!(setting.stock().await.pending, 3);
    setting.pass(LEASE);
    assert_eq!(sweeper.sweep_once().await, Swept { confirmed: 3, ..Swept::default() });
    assert_eq!(setting.stock().await.pending, 0);
    let [gate, ledger] = setting.held().await;
    assert_eq!(gate, ledger);
}

#[tokio::test]
async fn a_dead_issue_gives_its_seat_back_and_its_late_transaction_inserts_nothing() {
    let setting = Setting::new(2).await;
    let late = setting.admit_and_die(1).await;
    setting.admit_and_die(2).await;
    let mut sweeper = setting.sweeper();
    assert_eq!(sweeper.sweep_once().await, Swept::default(), "not overdue yet");
    assert!(!setting.issue(3).await, "sold out while the dead hold the seats");

    setting.pass(LEASE);
    assert_eq!(sweeper.sweep_once().await, Swept { released: 2, ..Swept::default() });
    assert!(setting.issue(3).await);
    assert_eq!(setting.record(1, late).await, Recorded::Fenced);
    assert!(setting.issue(1).await, "the user may come again");
    assert!(!setting.issue(2).await);
    setting.confirmed(0).await;
    let [gate, ledger] = setting.held().await;
    assert_eq!(gate, ledger);
    assert_eq!(ledger.len(), 2);
}

#[tokio::test]
async fn a_forgotten_campaign_is_rebuilt_at_once() {
    let setting = Setting::new(10).await;
    for id in 1..=3 {
        assert!(setting.issue(id).await);
    }
    setting.gate.gate.forget_all();
    assert_eq!(setting.sweeper().sweep_once().await, Swept { rebuilt: 1, ..Swept::default() });
    let [gate, ledger] = setting.held().await;
    assert_eq!(gate, ledger);
    assert_eq!(setting.stock().await.epoch, 2);
    assert!(setting.issue(4).await);
    assert!(!setting.issue(1).await, "a holder is still known");
}

#[tokio::test]
async fn a_draft_and_a_closed_campaign_are_left_alone() {
    let setting = Setting::new(10).await;
    assert!(setting.issue(1).await);
    setting.confirmed(0).await;
    setting.service.close(setting.coupon).await.done().unwrap();
    setting.gate.gate.forget_all();
    let mut sweeper = setting.sweeper();
    for _ in 0..3 {
        assert_eq!(sweeper.sweep_once().await, Swept::default());
    }
    assert_eq!(setting.stock().await, GateStock::NOT_READY);
}

#[tokio::test]
async fn a_mark_is_repaired_when_it_still_stands_one_step_later() {
    let setting = Setting::new(10).await;
    assert!(setting.issue(1).await);
    setting.confirmed(0).await;
    setting.ledger.mark_gate_stale(setting.coupon, 1).await.unwrap();
    let mut sweeper = setting.sweeper();
    assert_eq!(sweeper.sweep_once().await, Swept::default(), "somebody may be at it");
    assert_eq!(sweeper.sweep_once().await, Swept { rebuilt: 1, ..Swept::default() });
    assert_eq!(sweeper.sweep_once().await, Swept::default());
    let [gate, ledger] = setting.held().await;
    assert_eq!(gate, ledger);
}

#[tokio::test]
async fn a_gate_that_missed_writes_is_brought_back_to_the_ledgers_seats() {
    let setting = Setting::new(10).await;
    assert!(setting.issue(1).await);
    setting.confirmed(0).await;
    setting.miss_every_write().await;
    assert_eq!(setting.admit_and_die(9).await.slot, 1);
    assert_eq!(setting.admit_and_die(1).await.slot, 2, "the ledger has user 1 on slot 1");

    setting.pass(LEASE);
    let mut sweeper = setting.sweeper();
    let expected = Swept { confirmed: 1, released: 1, ..Swept::default() };
    assert_eq!(sweeper.sweep_once().await, expected);
    assert_eq!(sweeper.sweep_once().await, Swept::default(), "the mark is noticed");
    assert_eq!(sweeper.sweep_once().await, Swept { rebuilt: 1, ..Swept::default() });
    assert_eq!(setting.held().await, [vec![(1, 1)], vec![(1, 1)]]);
}

#[tokio::test]
async fn rows_without_members_are_counted_and_repaired() {
    let setting = Setting::new(10).await;
    for id in 1..=3 {
        assert!(setting.issue(id).await);
    }
    setting.confirmed(0).await;
    let mut sweeper = setting.sweeper();
    assert_eq!(sweeper.sweep_once().await, Swept::default());
    assert_eq!(setting.service.metrics.gate_drift.get(), 0);

    setting.miss_every_write().await;
    setting.pass(DRIFT_INTERVAL);
    sweeper.sweep_once().await;
    assert_eq!(setting.service.metrics.gate_drift.get(), 3);
    sweeper.sweep_once().await;
    assert_eq!(sweeper.sweep_once().await, Swept { rebuilt: 1, ..Swept::default() });
    let [gate, ledger] = setting.held().await;
    assert_eq!(gate, ledger);
    setting.pass(DRIFT_INTERVAL);
    sweeper.sweep_once().await;
    assert_eq!(setting.service.metrics.gate_drift.get(), 0);
}

#[tokio::test]
async fn two_sweepers_share_the_work() {
    let setting = Setting::new(900).await;
    for id in 1..=900 {
        setting.admit_and_die(id).await;
    }
    setting.pass(LEASE);
    let (mut one, mut two) = (setting.sweeper(), setting.sweeper());
    let (one, two) = join(one.sweep_once(), two.sweep_once()).await;
    assert_eq!(one.released + two.released, 900, "each seat is one sweeper's: {one:?} {two:?}");
    assert_eq!(setting.stock().await.admitted, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_random_faults_gate_and_ledger_agree_once_quiet() {
    let seed = std::env::var("SLUICE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    println!("SLUICE_SEED={seed} repeats this run");
    let mut rng = SmallRng::seed_from_u64(seed);
    let limit = rng.random_range(5..=40);
    let setting = Setting::new(limit).await;
    let mut sweeper = setting.sweeper();
    let mut told_yes = Vec::new();
    for _ in 0..150 {
        match rng.random_range(0..100) {
            0..55 => {
                let ids: Vec<i64> = (0..rng.random_range(1..6)).map(|_| rng.random_range(1..=60)).collect();
                let answers = join_all(ids.iter().map(|&id| setting.issue(id))).await;
                told_yes.extend(ids.into_iter().zip(answers).filter_map(|(id, yes)| yes.then_some(id)));
            }
            55..65 => {
                let id = user(rng.random_range(1..=60));
                let _died = setting.gate.admit(setting.coupon, id, Uuid::new_v4()).await.unwrap();
            }
            65..75 => setting.gate.deaf.store(rng.random_bool(0.5), Ordering::SeqCst),
            75..78 => setting.gate.gate.forget_all(),
            78..81 => setting.miss_every_write().await,
            81..90 => setting.pass(LEASE / 2),
            _ => drop(sweeper.sweep_once().await),
        }
    }
    setting.gate.deaf.store(false, Ordering::SeqCst);
    for _ in 0..8 {
        setting.pass(LEASE);
        assert_eq!(sweeper.sweep_once().await.failed, 0, "seed {seed}");
    }
    let [gate, ledger] = setting.held().await;
    assert_eq!(gate, ledger, "seed {seed}: members are rows");
    assert!(ledger.len() as i64 <= limit, "seed {seed}");
    assert_eq!(setting.stock().await.pending, 0, "seed {seed}");
    for id in told_yes {
        assert!(ledger.iter().any(|(holder, _)| *holder == id), "seed {seed}: user {id} was told yes");
    }
    // The seats that are left can be had.
    let mut more = 0;
    for id in 1_000..1_000 + limit {
        more += i64::from(setting.issue(id).await);
    }
    assert_eq!(ledger.len() as i64 + more, limit, "seed {seed}");
}
