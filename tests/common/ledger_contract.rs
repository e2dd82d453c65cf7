//! What the coupon service and its ledger must do, written once and run on SQLite and on Postgres.
//!
//! A case takes a [`Fixture`]: a service over an in-process gate and a ledger with an empty schema of its own, and a
//! clock that the case moves. [`ledger_contract_tests`] turns the list into tests of a module that has an async
//! function giving `Option<Fixture>`.

#![allow(dead_code, reason = "not every test binary uses every helper")]

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use sluice::coupon::{
    audit::{self, AuditFilter},
    clock::{Clock, UtcMicros},
    db::{DbConfig, DbError, Param},
    error::{Outcome, Refusal},
    event::{Event, SCHEMA_VERSION},
    gate::{Gate, embedded::EmbeddedGate},
    ids::{CouponId, UserCouponId, UserId},
    ledger::{Issuance, KeyLookup, KeyedResponse, Ledger, Recorded},
    model::{Coupon, CouponStatus, UserCoupon, UserCouponStatus},
    outbox,
    service::{
        CancelUse, CouponConfig, CouponService, CreateCoupon, IdempotencyKey, PageRequest, PatchCoupon,
        RequestContext, UseCoupon,
    },
};
use uuid::Uuid;

/// The moment at which every case begins.
pub const START: i64 = 1_700_000_000_000_000;
pub const DAY: i64 = 86_400_000_000;

pub struct Fixture {
    pub service: CouponService,
    pub ledger: Ledger,
    pub gate: Arc<EmbeddedGate>,
    pub now_us: Arc<AtomicI64>,
    /// Kept until the case ends: a directory, a database.
    pub keep: Option<Box<dyn std::any::Any + Send + Sync>>,
}

impl Fixture {
    /// A service over the (still empty) database of this url.
    pub async fn new(url: &str, keep: Option<Box<dyn std::any::Any + Send + Sync>>) -> Self {
        Self::with_config(url, DbConfig::default(), keep).await
    }

    /// The same with the database used otherwise.
    pub async fn with_config(
        url: &str,
        db: DbConfig,
        keep: Option<Box<dyn std::any::Any + Send + Sync>>,
    ) -> Self {
        let ledger = Ledger::open(url, db).await.unwrap();
        ledger.migrate().await.unwrap();
        let now_us = Arc::new(AtomicI64::new(START));
        let (ours, gates) = (now_us.clone(), now_us.clone());
        let clock = Clock::from_fn(move || UtcMicros::clamped(ours.load(Ordering::SeqCst)));
        let gate = Arc::new(EmbeddedGate::with_clock(
            Duration::from_secs(60),
            Arc::new(move || gates.load(Ordering::SeqCst)),
        ));
        let config = CouponConfig {
            snapshot_ttl: Duration::ZERO,
            unknown_ttl: Duration::ZERO,
            duplicate_wait: Duration::from_millis(200),
            ..CouponConfig::default()
        };
        let service = CouponService::new(gate.clone(), ledger.clone(), clock, config);
        Self { service, ledger, gate, now_us, keep }
    }

    pub fn now(&self) -> UtcMicros {
        UtcMicros::clamped(self.now_us.load(Ordering::SeqCst))
    }

    pub fn advance(&self, micros: i64) {
        self.now_us.fetch_add(micros, Ordering::SeqCst);
    }

    /// An open campaign of so many seats: 10 % off, valid for a day.
    pub async fn open(&self, seats: i64) -> CouponId {
        let coupon = self.draft(seats).await;
        self.service.open(coupon.coupon_id).await.done().unwrap().coupon_id
    }

    pub async fn draft(&self, seats: i64) -> Coupon {
        self.service.create(campaign(seats)).await.done().unwrap()
    }

    pub async fn issue(&self, coupon: CouponId, who: i64) -> Outcome<UserCoupon> {
        self.service.issue(coupon, user(who), &context("r")).await
    }

    /// Waits until the gate has been told of every row.
    pub async fn until_confirmed(&self, coupon: CouponId) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while self.gate.stock(coupon).await.unwrap().pending > 0 {
            assert!(std::time::Instant::now() < deadline, "seats are still pending");
            tokio::task::yield_now().await;
        }
    }

    /// What the user's row was admitted with.
    pub async fn token_of(&self, coupon: CouponId, who: i64) -> Uuid {
        let stored = self.ledger.user_coupon_of(coupon, user(who), self.now()).await.unwrap().unwrap();
        stored.admission_token.parse().unwrap()
    }

    /// Every number of a one-column query.
    pub async fn ints(&self, sql: &'static str) -> Vec<i64> {
        self.ledger.db().read(sql, &[]).await.unwrap().iter().map(|row| row.int("n").unwrap()).collect()
    }

    /// A row as the gate would have admitted it, with a fresh id.
    pub async fn issuance(&self, coupon: CouponId, who: i64, slot_no: i64) -> Issuance {
        let user_coupon_id = self.ledger.next_user_coupon_id().await.unwrap();
        let event = sluice::coupon::event::CouponIssued {
            event_id: Uuid::new_v4(),
            user_coupon_id,
            user_id: user(who),
            coupon_id: coupon,
            coupon_name: "spring".into(),
            issued_at: self.now(),
            slot_no,
            request_id: "r".into(),
            schema_version: SCHEMA_VERSION,
            max_issue_count: None,
        };
        Issuance {
            user_coupon_id,
            coupon_id: coupon,
            user_id: user(who),
            slot_no,
            epoch: 1,
            token: Uuid::new_v4(),
            issued_at: self.now(),
            request_id: "r".into(),
            event: event.to_outbox("/test"),
            idempotency: None,
        }
    }

    /// The tables, rebuilt from the history alone, equal the tables.
    pub async fn assert_replay_equals_tables(&self) {
        let history = self
            .ledger
            .db()
            .read("select * from coupon_history order by user_coupon_id, seq", &[])
            .await
            .unwrap();
        let mut replayed = BTreeMap::new();
        for line in &history {
            let id = line.int("user_coupon_id").unwrap();
            let before: Option<&(i64, String, Option<String>, Option<i64>, i64, i64)> = replayed.get(&id);
            assert_eq!(before.map(|row| row.1.clone()), line.opt_text("from_status").unwrap());
            assert_eq!(before.map_or(1, |row| row.4 + 1), line.int("seq").unwrap());
            assert!(before.is_none_or(|row| row.5 <= line.int("at").unwrap()), "history goes back in time");
            let used = line.text("to_status").unwrap() == "USED";
            replayed.insert(
                id,
                (
                    line.int("user_id").unwrap(),
                    line.text("to_status").unwrap(),
                    line.opt_text("order_id").unwrap().filter(|_| used),
                    line.opt_int("discount_amount").unwrap().filter(|_| used),
                    line.int("seq").unwrap(),
                    line.int("at").unwrap(),
                ),
            );
        }
        let tables =
            self.ledger.db().read("select * from user_coupons order by user_coupon_id", &[]).await.unwrap();
        let tables: BTreeMap<_, _> = tables
            .iter()
            .map(|row| {
                (
                    row.int("user_coupon_id").unwrap(),
                    (
                        row.int("user_id").unwrap(),
                        row.text("status").unwrap(),
                        row.opt_text("order_id").unwrap(),
                        row.opt_int("discount_amount").unwrap(),
                        row.int("last_seq").unwrap(),
                        row.int("changed_at").unwrap(),
                    ),
                )
            })
            .collect();
        assert_eq!(replayed, tables);
        let replay = audit::replay(self.ledger.db()).await.unwrap();
        assert!(replay.is_equal(), "{replay:?}");
        assert_eq!((replay.lines, replay.rows), (history.len() as u64, tables.len() as u64));
    }
}

pub fn user(id: i64) -> UserId {
    UserId::new(id).unwrap()
}

pub fn context(request_id: &str) -> RequestContext {
    RequestContext { request_id: request_id.into(), idempotency_key: None }
}

pub fn keyed(key: &str) -> RequestContext {
    RequestContext { request_id: "r".into(), idempotency_key: Some(IdempotencyKey::parse(key).unwrap()) }
}

pub fn campaign(seats: i64) -> CreateCoupon {
    CreateCoupon {
        coupon_name: "spring".into(),
        discount_type: "PERCENTAGE".into(),
        discount_value: 10,
        max_discount_amount: Some(500),
        min_order_amount: 100,
        max_issue_count: seats,
        issue_from: None,
        issue_until: None,
        valid_from: UtcMicros::clamped(START),
        valid_to: UtcMicros::clamped(START + DAY),
        created_by: "admin".into(),
    }
}

pub fn order(id: &str, amount: i64) -> UseCoupon {
    UseCoupon { order_id: id.into(), order_amount: amount, user_id: None }
}

pub fn cancel(id: &str) -> CancelUse {
    CancelUse { order_id: id.into(), user_id: None }
}

/// The code of a refusal, `done` or `replayed`.
pub fn told<T: std::fmt::Debug>(outcome: &Outcome<T>) -> &'static str {
    match outcome {
        Outcome::Done(_) => "done",
        Outcome::Replayed(_) => "replayed",
        Outcome::Refused(refusal) => refusal.code().unwrap_or("overloaded"),
    }
}

/// Lists every case for a macro.
#[macro_export]
macro_rules! ledger_contract_tests {
    ($fixture:ident) => {
        $crate::ledger_contract_tests! { $fixture ledger_contract:
            migrations_may_be_repeated
            a_schema_of_a_newer_version_is_refused
            a_campaign_lives_along_its_arrows
            a_limit_never_falls_below_what_is_issued
            an_issue_writes_row_history_and_event_together
            a_repeat_of_an_issue_is_recognised
            many_requests_for_few_seats_give_each_seat_once
            a_forgetful_gate_is_rebuilt_from_the_ledger
            a_gate_behind_the_ledger_is_found_out_by_the_slot
            one_bad_row_leaves_its_neighbours_alone
            what_refuses_a_row_is_told_apart
            a_fenced_admission_never_lands
            a_use_is_counted_once_whoever_races
            use_cancel_and_revoke_follow_the_contract
            idempotency_keys_answer_once
            lists_are_paged_without_gaps
            history_is_append_only_and_replays_to_the_tables
            a_clock_that_steps_back_keeps_the_history_in_order
            outbox_rows_are_found_by_being_unsent
            leases_change_hands_with_a_higher_token
            a_parked_row_holds_back_its_key_only
            the_database_itself_holds_the_cap
            an_audit_shows_every_moment
            a_replay_names_exactly_what_was_tampered_with
            reconciling_names_each_drift_and_fixes_the_gate
        }
    };
    ($fixture:ident $contract:ident: $($case:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if let Some(fixture) = $fixture().await {
                    $contract::$case(fixture).await;
                }
            }
        )+
    };
}

pub async fn migrations_may_be_repeated(f: Fixture) {
    let coupon = f.open(3).await;
    f.issue(coupon, 1).await.done().unwrap();
    assert_eq!(f.ledger.migrate().await.unwrap(), f.ledger.migrate().await.unwrap());
    assert_eq!(f.service.coupon(coupon).await.unwrap().issued_count, 1);
}

/// What the first release had written when this version takes over: a campaign of three seats, one used and one active.
pub const FIRST_RELEASE: [&str; 5] = [
    "insert into coupons (coupon_id, coupon_name, discount_type, discount_value, max_issue_count, valid_from, valid_to, status,
         created_by, created_at, updated_at)
     values (1, 'spring', 'PERCENTAGE', 10, 3, 1, 4000000000000000, 'OPEN', 'admin', 1, 1)",
    "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, status, issued_at, order_id,
         order_amount, discount_amount, used_at, last_seq, changed_at)
     values (1, 1, 7, 1, 1, '7b5cbd7e-3f0a-4f0b-9a57-0d1f3c1b2a01', 'USED', 10, 'o-1', 1000, 100, 20, 2, 20)",
    "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
     values (2, 1, 8, 2, 1, '7b5cbd7e-3f0a-4f0b-9a57-0d1f3c1b2a02', 11, 11)",
    "insert into coupon_history (user_coupon_id, seq, coupon_id, user_id, slot_no, from_status, to_status, event_id, request_id,
         order_id, order_amount, discount_amount, at)
     values (1, 1, 1, 7, 1, null, 'ACTIVE', 'e-1', 'r', null, null, null, 10),
            (1, 2, 1, 7, 1, 'ACTIVE', 'USED', 'e-2', 'r', 'o-1', 1000, 100, 20),
            (2, 1, 1, 8, 2, null, 'ACTIVE', 'e-3', 'r', null, null, null, 11)",
    "insert into outbox (event_id, lane, topic, key, headers, payload, created_at)
     values ('e-3', 3, 'coupon-issued', '8', '{}', '{}', 11)",
];

/// A directory with the first release's migrations only. What a release has shipped is never edited: a database that has
/// it would refuse the next version by its checksum.
pub fn first_migrations(engine: &str) -> tempfile::TempDir {
    let shipped = format!("{}/migrations/{engine}/0001_ledger.sql", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(&shipped).unwrap();
    let checksum = crc32fast::hash(&text);
    let expected = if engine == "postgres" { 2_573_639_318 } else { 375_119_776 };
    assert_eq!(checksum, expected, "{shipped} was edited: add a new migration instead");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("0001_ledger.sql"), text).unwrap();
    directory
}

/// After this version's migrations everything that [`FIRST_RELEASE`] wrote is there, and life goes on.
pub async fn goes_on_after_an_upgrade(f: Fixture) {
    let id = CouponId::new(1).unwrap();
    let used = f.service.user_coupon(UserCouponId::new(1).unwrap()).await.unwrap();
    assert_eq!(
        (used.status, used.order_id.as_deref(), used.discount_amount),
        (UserCouponStatus::Used, Some("o-1"), Some(100))
    );
    f.assert_replay_equals_tables().await;
    assert_eq!(outbox::backlog(f.ledger.db()).await.unwrap().unsent, 1);
    // The gate starts empty and is told by the ledger.
    assert_eq!(told(&f.issue(id, 7).await), "CP007");
    let next = f.issue(id, 9).await.done().unwrap();
    assert_eq!((next.slot_no, told(&f.issue(id, 10).await)), (3, "CP005"));
    f.until_confirmed(id).await;
    assert!(f.service.reconcile(true).await.unwrap().iter().all(|drift| drift.is_zero()));
    f.assert_replay_equals_tables().await;
}

pub async fn a_schema_of_a_newer_version_is_refused(f: Fixture) {
    let mut tx = f.ledger.db().begin().await.unwrap();
    let sql = f.ledger.db().pick(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'later', true, '', 0)",
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (9999, 'later', true, x'', 0)",
    );
    tx.execute(sql, &[]).await.unwrap();
    tx.commit().await.unwrap();
    let error = f.ledger.migrate().await.unwrap_err().to_string();
    assert!(error.contains("9999") && error.contains("newer version of sluice"), "{error}");
}

pub async fn a_campaign_lives_along_its_arrows(f: Fixture) {
    let draft = f.draft(2).await;
    let id = draft.coupon_id;
    assert_eq!((draft.status, draft.is_available, draft.issued_count), (CouponStatus::Draft, false, 0));
    // A draft issues nothing, and neither does a campaign nobody knows.
    assert_eq!(told(&f.issue(id, 1).await), "CP011");
    assert_eq!(told(&f.issue(CouponId::new(999_999).unwrap(), 1).await), "CP001");
    assert_eq!(told(&f.service.open(CouponId::new(999_999).unwrap()).await), "CP001");
    assert_eq!(told(&f.service.pause(id).await), "CP014");
    assert!(f.service.open(id).await.done().unwrap().is_available);
    assert_eq!(told(&f.service.open(id).await), "CP014");
    assert_eq!(told(&f.issue(id, 1).await), "done");
    f.service.pause(id).await.done().unwrap();
    assert_eq!(told(&f.issue(id, 2).await), "CP013");
    f.service.open(id).await.done().unwrap();
    assert_eq!(told(&f.issue(id, 2).await), "done");
    assert_eq!(told(&f.issue(id, 3).await), "CP005");
    assert!(!f.service.coupon(id).await.unwrap().is_available);
    f.service.close(id).await.done().unwrap();
    assert_eq!(told(&f.issue(id, 4).await), "CP002");
    assert_eq!(told(&f.service.open(id).await), "CP014");
    // Who has one already is told so, whatever the state.
    assert_eq!(told(&f.issue(id, 1).await), "CP007");
    let stock = f.service.stock(id).await.unwrap();
    assert_eq!((stock.max_issue_count, stock.issued, stock.admitted, stock.remaining), (2, 2, Some(2), 0));
}

pub async fn a_limit_never_falls_below_what_is_issued(f: Fixture) {
    let id = f.open(3).await;
    for who in 1..=3 {
        f.issue(id, who).await.done().unwrap();
    }
    let limit = |seats| PatchCoupon { max_issue_count: Some(seats), ..PatchCoupon::default() };
    let refused = f.service.patch(id, limit(2)).await;
    assert!(
        matches!(&refused, Outcome::Refused(Refusal::InvalidCampaign { field: "maxIssueCount", .. })),
        "{refused:?}"
    );
    assert_eq!(f.service.patch(id, limit(3)).await.done().unwrap().max_issue_count, 3);
    assert_eq!(told(&f.issue(id, 4).await), "CP005");
    f.service.patch(id, limit(4)).await.done().unwrap();
    assert_eq!(f.issue(id, 4).await.done().unwrap().slot_no, 4);
    assert_eq!(told(&f.issue(id, 5).await), "CP005");
    let backwards = PatchCoupon { valid_to: Some(UtcMicros::clamped(START)), ..PatchCoupon::default() };
    let refused = f.service.patch(id, backwards).await;
    assert!(
        matches!(&refused, Outcome::Refused(Refusal::InvalidCampaign { field: "validTo", .. })),
        "{refused:?}"
    );
    let from = UtcMicros::clamped(START + 1_000);
    let window =
        PatchCoupon { issue_from: Some(Some(from)), max_issue_count: Some(9), ..PatchCoupon::default() };
    f.service.patch(id, window).await.done().unwrap();
    match f.issue(id, 5).await {
        Outcome::Refused(Refusal::NotOpenYet { open_at, .. }) => assert_eq!(open_at, Some(from)),
        other => panic!("{other:?}"),
    }
    f.advance(1_000);
    assert_eq!(told(&f.issue(id, 5).await), "done");
}

pub async fn an_issue_writes_row_history_and_event_together(f: Fixture) {
    let id = f.open(5).await;
    let row = f.service.issue(id, user(7), &context("req-7")).await.done().unwrap();
    assert_eq!((row.slot_no, row.user_id, row.status), (1, user(7), UserCouponStatus::Active));
    assert_eq!(f.service.user_coupon(row.user_coupon_id).await.unwrap(), row);
    let history = f.ledger.db().read("select * from coupon_history", &[]).await.unwrap();
    let unsent = outbox::read_unsent(f.ledger.db(), &(0..16).collect::<Vec<_>>(), 10).await.unwrap();
    assert_eq!((history.len(), unsent.len()), (1, 1));
    let event: serde_json::Value = serde_json::from_slice(&unsent[0].row.payload).unwrap();
    assert_eq!(history[0].text("event_id").unwrap(), unsent[0].row.event_id);
    assert_eq!(history[0].text("request_id").unwrap(), "req-7");
    assert_eq!(
        event,
        serde_json::json!({
            "eventId": unsent[0].row.event_id, "userCouponId": row.user_coupon_id, "userId": 7, "couponId": id,
            "couponName": "spring", "issuedAt": row.issued_at, "slotNo": 1, "requestId": "req-7", "schemaVersion": 1,
            "maxIssueCount": 5,
        })
    );
    assert_eq!((unsent[0].row.topic.as_str(), unsent[0].row.key.as_str()), ("coupon-issued", "7"));
}

pub async fn a_repeat_of_an_issue_is_recognised(f: Fixture) {
    let id = f.open(5).await;
    let first = f.service.issue(id, user(1), &keyed("k-1")).await.done().unwrap();
    match f.issue(id, 1).await {
        Outcome::Refused(Refusal::AlreadyIssued { existing }) => assert_eq!(*existing, first),
        other => panic!("{other:?}"),
    }
    assert_eq!(f.service.issue(id, user(1), &keyed("k-1")).await, Outcome::Replayed(first.clone()));
    // The same body, also after the coupon has moved on.
    f.service.use_coupon(first.user_coupon_id, order("o", 1_000), &context("r")).await.done().unwrap();
    assert_eq!(f.service.issue(id, user(1), &keyed("k-1")).await, Outcome::Replayed(first));
    assert_eq!(told(&f.service.issue(id, user(2), &keyed("k-1")).await), "CP015");
    assert_eq!(told(&f.service.issue(id, user(1), &keyed("k-2")).await), "CP007");
    // A key given to a refusal is free.
    assert_eq!(told(&f.service.issue(id, user(3), &keyed("k-2")).await), "done");
    assert_eq!(f.ints("select count(*) as n from user_coupons").await, [2]);
}

pub async fn many_requests_for_few_seats_give_each_seat_once(f: Fixture) {
    let id = f.open(50).await;
    let f = Arc::new(f);
    // 200 users, each asking twice at once.
    let asked = (0..400).map(|n| {
        let f = f.clone();
        tokio::spawn(async move { (n % 200 + 1, f.issue(id, n % 200 + 1).await) })
    });
    let mut done = HashSet::new();
    for task in asked.collect::<Vec<_>>() {
        let (who, outcome) = task.await.unwrap();
        match &outcome {
            Outcome::Done(row) => {
                assert!(done.insert((who, row.slot_no)), "{who} was told twice that it is done")
            }
            Outcome::Refused(Refusal::SoldOut | Refusal::AlreadyIssued { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let mut slots: Vec<i64> = done.iter().map(|(_, slot)| *slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, (1..=50).collect::<Vec<_>>());
    assert_eq!(f.ints("select slot_no as n from user_coupons order by slot_no").await, slots);
    assert_eq!(f.ints("select count(*) as n from coupon_history").await, [50]);
    assert_eq!(f.ints("select count(*) as n from outbox").await, [50]);
    assert_eq!(f.ints("select count(distinct user_id) as n from user_coupons").await, [50]);
}

pub async fn a_forgetful_gate_is_rebuilt_from_the_ledger(f: Fixture) {
    let id = f.open(3).await;
    f.issue(id, 1).await.done().unwrap();
    f.issue(id, 2).await.done().unwrap();
    f.gate.forget_all();
    // The request that finds out has the gate rebuilt and is served.
    assert_eq!(f.issue(id, 3).await.done().unwrap().slot_no, 3);
    assert_eq!(told(&f.issue(id, 4).await), "CP005");
    assert_eq!(told(&f.issue(id, 1).await), "CP007");
    assert_eq!(f.ints("select epoch as n from coupons").await, [2]);
    assert_eq!(f.ints("select count(*) as n from user_coupons").await, [3]);
}

pub async fn a_gate_behind_the_ledger_is_found_out_by_the_slot(f: Fixture) {
    let id = f.open(3).await;
    // A row the gate never heard of holds seat 1, which the gate gives first.
    let planted = f.issuance(id, 99, 1).await;
    assert_eq!(f.ledger.record_issuances(&[planted], f.now()).await.unwrap(), [Recorded::Inserted]);
    assert_eq!(f.issue(id, 1).await.done().unwrap().slot_no, 2);
    assert_eq!(f.ints("select epoch as n from coupons").await, [2]);
    assert_eq!(f.ints("select count(*) as n from coupons where gate_stale").await, [0]);
    // Now the gate knows the planted row.
    assert_eq!(told(&f.issue(id, 99).await), "CP007");
}

pub async fn one_bad_row_leaves_its_neighbours_alone(f: Fixture) {
    let id = f.open(100).await;
    let mut batch = Vec::new();
    for who in 1..=20 {
        batch.push(f.issuance(id, who, who).await);
    }
    // One has the user of another, one has the seat of another, one has the seat above the limit, one the epoch of yesterday.
    batch[5].user_id = user(1);
    batch[6].slot_no = 2;
    batch[7].slot_no = 101;
    batch[8].epoch = 7;
    batch[9].coupon_id = CouponId::new(999_999).unwrap();
    let answers = f.ledger.record_issuances(&batch, f.now()).await.unwrap();
    let inserted = answers.iter().filter(|answer| **answer == Recorded::Inserted).count();
    assert_eq!(inserted, 15, "{answers:?}");
    // Which of two that want the same wins is the transaction's choice; exactly one does.
    assert!(
        (answers[0] == Recorded::Inserted) != (answers[5] == Recorded::Inserted)
            && (answers[1] == Recorded::Inserted) != (answers[6] == Recorded::Inserted),
        "{answers:?}"
    );
    assert_eq!(answers[7..10], [Recorded::AboveLimit, Recorded::EpochOver, Recorded::NoSuchCoupon]);
    assert_eq!(f.ints("select count(*) as n from coupon_history").await, [15]);
    assert_eq!(f.ints("select count(*) as n from outbox").await, [15]);

    // A row so wrong that the database refuses the whole statement (a text it cannot store, a discount of nonsense) is
    // refused alone by the queue in front.
    let metrics = f.service.metrics().clone();
    let clock = Clock::from_fn(|| UtcMicros::clamped(START));
    let queue = sluice::coupon::ledger::IssuanceQueue::new(f.ledger.clone(), 1_000, clock, metrics);
    let mut rows = Vec::new();
    for who in 31..=60 {
        rows.push(f.issuance(id, who, who).await);
    }
    rows[10].user_coupon_id = UserCouponId::new(i64::MAX).unwrap();
    rows[11].user_coupon_id = UserCouponId::new(i64::MAX).unwrap();
    rows[12].event.payload = vec![0xff, 0xfe];
    rows[12].request_id = "a\0b".into();
    let answers = futures::future::join_all(rows.into_iter().map(|row| queue.record(row))).await;
    for (index, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        match index {
            10 | 11 => {}
            12 => assert!(matches!(answer, Err(DbError::Refused(_) | DbError::Unavailable(_))), "{answer:?}"),
            _ => assert_eq!(answer, Ok(Recorded::Inserted), "row {index}"),
        }
    }
}

pub async fn what_refuses_a_row_is_told_apart(f: Fixture) {
    let id = f.open(10).await;
    let first = f.issuance(id, 1, 1).await;
    let record = async |row: &Issuance| {
        f.ledger.record_issuances(std::slice::from_ref(row), f.now()).await.unwrap().remove(0)
    };
    assert_eq!(record(&first).await, Recorded::Inserted);
    // The very same admission again: its answer was lost.
    let mut again = first.clone();
    again.user_coupon_id = f.ledger.next_user_coupon_id().await.unwrap();
    assert_eq!(record(&again).await, Recorded::Inserted);
    let other_admission = f.issuance(id, 1, 2).await;
    match record(&other_admission).await {
        Recorded::AlreadyIssued(stored) => assert_eq!(stored.shown.user_coupon_id, first.user_coupon_id),
        other => panic!("{other:?}"),
    }
    let same_slot = f.issuance(id, 2, 1).await;
    assert_eq!(record(&same_slot).await, Recorded::SlotTaken);
    let key = |key: &str| {
        Some(KeyedResponse { key: key.into(), fingerprint: "this".into(), response: "{}".into() })
    };
    let mut with_key = f.issuance(id, 3, 3).await;
    with_key.idempotency = key("k");
    assert_eq!(record(&with_key).await, Recorded::Inserted);
    let mut same_key = f.issuance(id, 4, 4).await;
    same_key.idempotency = key("k");
    assert_eq!(record(&same_key).await, Recorded::KeyTaken);
    // A key claimed by a row that came to nothing is given back.
    let mut in_vain = f.issuance(id, 5, 1).await;
    in_vain.idempotency = key("k-2");
    assert_eq!(record(&in_vain).await, Recorded::SlotTaken);
    assert_eq!(f.ledger.look_up_key("k-2", "this").await.unwrap(), KeyLookup::Unknown);
    assert_eq!(f.ledger.look_up_key("k", "this").await.unwrap(), KeyLookup::Answered("{}".into()));
    assert_eq!(f.ledger.look_up_key("k", "that").await.unwrap(), KeyLookup::Other);
    assert_eq!(f.ints("select count(*) as n from user_coupons").await, [2]);
    assert_eq!(f.ints("select count(*) as n from coupon_history").await, [2]);
    assert_eq!(f.ledger.purge_keys(f.now().plus_micros(1), 10).await.unwrap(), 1);
    assert_eq!(f.ledger.look_up_key("k", "this").await.unwrap(), KeyLookup::Unknown);
}

pub async fn a_fenced_admission_never_lands(f: Fixture) {
    let id = f.open(10).await;
    let landed = f.issuance(id, 1, 1).await;
    let late = f.issuance(id, 2, 2).await;
    f.ledger.record_issuances(std::slice::from_ref(&landed), f.now()).await.unwrap();
    let admissions = [(landed.user_id, landed.token), (late.user_id, late.token)];
    let issued = f.ledger.fence_issuances(id, &admissions, f.now()).await.unwrap();
    assert_eq!(issued.keys().copied().collect::<Vec<_>>(), [landed.user_id]);
    assert_eq!(f.ledger.record_issuances(&[late], f.now()).await.unwrap(), [Recorded::Fenced]);
    // The same user with a new admission is welcome.
    let anew = f.issuance(id, 2, 2).await;
    assert_eq!(f.ledger.record_issuances(&[anew], f.now()).await.unwrap(), [Recorded::Inserted]);
    assert_eq!(f.ledger.purge_fences(f.now().plus_micros(1)).await.unwrap(), 1);
}

pub async fn a_use_is_counted_once_whoever_races(f: Fixture) {
    let id = f.open(1).await;
    let row = f.issue(id, 1).await.done().unwrap();
    let f = Arc::new(f);
    let uses = (0..40).map(|n| {
        let f = f.clone();
        tokio::spawn(async move {
            f.service
                .use_coupon(row.user_coupon_id, order(&format!("o-{}", n % 4), 1_000), &context("r"))
                .await
        })
    });
    let mut winners = HashSet::new();
    for task in uses.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Outcome::Done(used) => {
                winners.insert(used.order_id);
            }
            Outcome::Refused(Refusal::AlreadyUsed { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(f.ints("select count(*) as n from coupon_history where to_status = 'USED'").await, [1]);
    assert_eq!(f.ints("select count(*) as n from outbox where topic = 'coupon-used'").await, [1]);
}

pub async fn use_cancel_and_revoke_follow_the_contract(f: Fixture) {
    let id = f.open(5).await;
    let row = f.issue(id, 1).await.done().unwrap();
    let own = row.user_coupon_id;
    let unknown = UserCouponId::new(i64::MAX).unwrap();
    let service = &f.service;
    assert_eq!(told(&service.use_coupon(unknown, order("o", 1_000), &context("r")).await), "CP006");
    assert_eq!(told(&service.use_coupon(own, order("o", 99), &context("r")).await), "CP004");
    let used = service.use_coupon(own, order("o-1", 999), &context("r")).await.done().unwrap();
    assert_eq!(
        (used.status, used.discount_amount, used.order_id.as_deref()),
        (UserCouponStatus::Used, Some(99), Some("o-1"))
    );
    assert_eq!(service.user_coupon(own).await.unwrap(), used);
    // The same order again, even with another amount, is the same answer; another order is not.
    f.advance(5);
    assert_eq!(
        service.use_coupon(own, order("o-1", 5_000), &context("r")).await,
        Outcome::Done(used.clone())
    );
    assert_eq!(told(&service.use_coupon(own, order("o-2", 5_000), &context("r")).await), "CP003");
    assert_eq!(told(&service.cancel_use(own, cancel("o-2"), &context("r")).await), "CP003");
    assert_eq!(told(&service.revoke(own, "fraud".into(), &context("r")).await), "CP014");
    let back = service.cancel_use(own, cancel("o-1"), &context("r")).await.done().unwrap();
    assert_eq!(
        (back.status, back.order_id.clone(), back.discount_amount),
        (UserCouponStatus::Active, None, None)
    );
    assert_eq!(service.cancel_use(own, cancel("o-1"), &context("r")).await, Outcome::Done(back));
    assert_eq!(told(&service.cancel_use(own, cancel("o-9"), &context("r")).await), "CP014");
    // The cap of the discount.
    let again = service.use_coupon(own, order("o-3", 1_000_000), &context("r")).await.done().unwrap();
    assert_eq!(again.discount_amount, Some(500));

    let other = f.issue(id, 2).await.done().unwrap().user_coupon_id;
    let revoked = service.revoke(other, "fraud".into(), &context("r")).await.done().unwrap();
    assert_eq!(revoked.status, UserCouponStatus::Revoked);
    assert_eq!(told(&service.revoke(other, "again".into(), &context("r")).await), "done");
    assert_eq!(told(&service.use_coupon(other, order("o", 1_000), &context("r")).await), "CP002");
    // A revoked seat is not given again.
    assert_eq!(f.service.stock(id).await.unwrap().issued, 2);

    let third = f.issue(id, 3).await.done().unwrap().user_coupon_id;
    f.advance(DAY);
    assert_eq!(told(&service.use_coupon(third, order("o", 1_000), &context("r")).await), "CP002");
    assert_eq!(service.user_coupon(third).await.unwrap().status, UserCouponStatus::Expired);
    let statuses = [(UserCouponStatus::Expired, 1), (UserCouponStatus::Active, 0)];
    for (status, expected) in statuses {
        let page = service.user_coupons(user(3), Some(status), PageRequest::default()).await.unwrap();
        assert_eq!(page.items.len(), expected, "{status}");
    }
    let topics = f
        .ledger
        .db()
        .read("select topic, count(*) as n from outbox group by topic order by topic", &[])
        .await
        .unwrap();
    let topics: Vec<(String, i64)> =
        topics.iter().map(|row| (row.text("topic").unwrap(), row.int("n").unwrap())).collect();
    let expected =
        [("coupon-issued", 3), ("coupon-revoked", 1), ("coupon-use-cancelled", 1), ("coupon-used", 2)];
    assert_eq!(topics, expected.map(|(topic, n)| (topic.to_owned(), n)));
    f.assert_replay_equals_tables().await;
}

pub async fn idempotency_keys_answer_once(f: Fixture) {
    let id = f.open(5).await;
    let own = f.issue(id, 1).await.done().unwrap().user_coupon_id;
    let other = f.issue(id, 2).await.done().unwrap().user_coupon_id;
    let service = f.service.clone();
    let first = service.use_coupon(own, order("o-1", 1_000), &keyed("k-1")).await.done().unwrap();
    assert_eq!(
        service.use_coupon(own, order("o-1", 1_000), &keyed("k-1")).await,
        Outcome::Replayed(first.clone())
    );
    assert_eq!(told(&service.use_coupon(own, order("o-1", 1_001), &keyed("k-1")).await), "CP015");
    assert_eq!(told(&service.use_coupon(other, order("o-1", 1_000), &keyed("k-1")).await), "CP015");
    assert_eq!(told(&service.cancel_use(own, cancel("o-1"), &keyed("k-1")).await), "CP015");
    assert_eq!(told(&service.cancel_use(own, cancel("o-1"), &keyed("k-2")).await), "done");
    // The kept answer stays what it was, though the coupon has moved on.
    assert_eq!(service.use_coupon(own, order("o-1", 1_000), &keyed("k-1")).await, Outcome::Replayed(first));
    // A refusal is not kept.
    assert_eq!(told(&service.use_coupon(other, order("o-2", 1), &keyed("k-3")).await), "CP004");
    assert_eq!(told(&service.use_coupon(other, order("o-2", 1_000), &keyed("k-3")).await), "done");

    // Many at once under one key, for one coupon each: one is done, one key is one request.
    let mut rows = Vec::new();
    for who in 3..=5 {
        rows.push(f.issue(id, who).await.done().unwrap().user_coupon_id);
    }
    let tasks: Vec<_> = (0..30)
        .map(|n| {
            let (service, row) = (service.clone(), rows[n % 3]);
            tokio::spawn(async move { service.use_coupon(row, order("o-7", 1_000), &keyed("k-7")).await })
        })
        .collect();
    let mut outcomes = BTreeMap::<&str, usize>::new();
    for task in tasks {
        *outcomes.entry(told(&task.await.unwrap())).or_default() += 1;
    }
    assert_eq!(outcomes.get("CP015"), Some(&20), "{outcomes:?}");
    assert_eq!(f.ints("select count(*) as n from user_coupons where order_id = 'o-7'").await, [1]);
}

pub async fn lists_are_paged_without_gaps(f: Fixture) {
    let mut coupons = Vec::new();
    for _ in 0..7 {
        let id = f.open(2).await;
        f.issue(id, 1).await.done().unwrap();
        coupons.push(id);
    }
    coupons.reverse();
    let (mut page, mut seen) = (PageRequest { cursor: None, limit: Some(3) }, Vec::new());
    let mut pages = 0;
    loop {
        let found = f.service.user_coupons(user(1), None, page).await.unwrap();
        seen.extend(found.items.iter().map(|row| row.coupon_id));
        pages += 1;
        let Some(cursor) = found.next_cursor else { break };
        // Through its text, as a client would.
        page.cursor = Some(cursor.to_string().parse().unwrap());
    }
    assert_eq!((&seen, pages), (&coupons, 3));
    let first = f.service.coupons(None, PageRequest { cursor: None, limit: Some(5) }).await.unwrap();
    let rest = PageRequest { cursor: first.next_cursor, limit: Some(5) };
    let rest = f.service.coupons(None, rest).await.unwrap();
    let ids = first.items.iter().chain(&rest.items).map(|coupon| (coupon.coupon_id, coupon.issued_count));
    assert_eq!(ids.collect::<Vec<_>>(), coupons.iter().map(|id| (*id, 1)).collect::<Vec<_>>());
    assert!(rest.next_cursor.is_none());
    let drafts = f.service.coupons(Some(CouponStatus::Draft), PageRequest::default()).await.unwrap();
    assert!(drafts.items.is_empty());
}

pub async fn history_is_append_only_and_replays_to_the_tables(f: Fixture) {
    let id = f.open(10).await;
    for who in 1..=10 {
        let row = f.issue(id, who).await.done().unwrap().user_coupon_id;
        f.advance(10);
        if who % 2 == 0 {
            f.service.use_coupon(row, order("o", 1_000), &context("r")).await.done().unwrap();
        }
        if who % 4 == 0 {
            f.service.cancel_use(row, cancel("o"), &context("r")).await.done().unwrap();
        }
        if who == 9 {
            f.service.revoke(row, "fraud".into(), &context("r")).await.done().unwrap();
        }
    }
    f.assert_replay_equals_tables().await;
    for sql in ["update coupon_history set at = 0", "delete from coupon_history where seq = 1"] {
        let mut tx = f.ledger.db().begin().await.unwrap();
        let error = tx.execute(sql, &[]).await.unwrap_err();
        assert!(error.is_constraint("coupon_history_append_only"), "{sql}: {error}");
        tx.rollback().await;
    }
}

pub async fn a_clock_that_steps_back_keeps_the_history_in_order(f: Fixture) {
    let id = f.open(2).await;
    let row = f.issue(id, 1).await.done().unwrap();
    f.advance(1_000);
    let used =
        f.service.use_coupon(row.user_coupon_id, order("o", 1_000), &context("r")).await.done().unwrap();
    f.advance(-900);
    f.service.cancel_use(row.user_coupon_id, cancel("o"), &context("r")).await.done().unwrap();
    let used_again =
        f.service.use_coupon(row.user_coupon_id, order("o", 1_000), &context("r")).await.done().unwrap();
    assert_eq!(used_again.used_at, used.used_at);
    f.assert_replay_equals_tables().await;
}

pub async fn outbox_rows_are_found_by_being_unsent(f: Fixture) {
    let id = f.open(10).await;
    let lanes: Vec<i64> = (0..i64::from(outbox::LANES)).collect();
    let db = f.ledger.db();
    let leases = outbox::acquire_leases(db, "me", 60_000_000, f.now()).await.unwrap();
    for who in 1..=3 {
        f.issue(id, who).await.done().unwrap();
    }
    let unsent = outbox::read_unsent(db, &lanes, 10).await.unwrap();
    // The last is sent; a transaction with a lower id that commits later is found all the same.
    let last = unsent.last().unwrap().id;
    assert_eq!(outbox::mark_sent(db, &[last], &leases, f.now()).await.unwrap(), 1);
    let still: Vec<i64> =
        outbox::read_unsent(db, &lanes, 10).await.unwrap().iter().map(|row| row.id).collect();
    assert_eq!(still, unsent[..2].iter().map(|row| row.id).collect::<Vec<_>>());
    let backlog = outbox::backlog(db).await.unwrap();
    assert_eq!((backlog.unsent, backlog.oldest_at, backlog.parked), (2, Some(unsent[0].row.created_at), 0));
    assert_eq!(outbox::delete_sent(db, f.now(), 10).await.unwrap(), 0, "nothing is older than now");
    assert_eq!(outbox::delete_sent(db, f.now().plus_micros(1), 10).await.unwrap(), 1);
    assert_eq!(outbox::delete_acknowledged(db, &still, &leases).await.unwrap(), 2);
    assert_eq!(f.ints("select count(*) as n from outbox").await, [0]);
}

pub async fn leases_change_hands_with_a_higher_token(f: Fixture) {
    let id = f.open(10).await;
    f.issue(id, 1).await.done().unwrap();
    let db = f.ledger.db();
    let lanes = outbox::LANES as usize;
    let row = outbox::read_unsent(db, &(0..i64::from(outbox::LANES)).collect::<Vec<_>>(), 10)
        .await
        .unwrap()
        .remove(0);
    // The lease is over at once, so the next holder takes the lanes.
    let mine = outbox::acquire_leases(db, "me", 0, f.now()).await.unwrap();
    assert_eq!(mine.len(), lanes);
    assert_eq!(
        outbox::acquire_leases(db, "me", 0, f.now()).await.unwrap(),
        mine,
        "keeping is not changing hands"
    );
    let theirs = outbox::acquire_leases(db, "they", 3_600_000_000, f.now()).await.unwrap();
    assert_eq!(theirs.len(), lanes);
    assert!(theirs.iter().zip(&mine).all(|(theirs, mine)| theirs.token > mine.token));
    assert!(outbox::acquire_leases(db, "me", 0, f.now()).await.unwrap().is_empty());
    // What the old holder says no longer counts.
    assert_eq!(outbox::mark_sent(db, &[row.id], &mine, f.now()).await.unwrap(), 0);
    let lane =
        |leases: &[outbox::Lease]| leases.iter().copied().find(|lease| lease.lane == row.row.lane).unwrap();
    assert!(!outbox::park(db, row.id, lane(&mine), "no", f.now()).await.unwrap());
    assert_eq!(outbox::mark_sent(db, &[row.id], &theirs, f.now()).await.unwrap(), 1);
    outbox::release_leases(db, "they").await.unwrap();
    assert_eq!(outbox::acquire_leases(db, "me", 0, f.now()).await.unwrap().len(), lanes);
}

pub async fn a_parked_row_holds_back_its_key_only(f: Fixture) {
    let id = f.open(10).await;
    let db = f.ledger.db();
    let lanes: Vec<i64> = (0..i64::from(outbox::LANES)).collect();
    let leases = outbox::acquire_leases(db, "me", 3_600_000_000, f.now()).await.unwrap();
    let one = f.issue(id, 1).await.done().unwrap().user_coupon_id;
    f.issue(id, 2).await.done().unwrap();
    f.service.use_coupon(one, order("o", 1_000), &context("r")).await.done().unwrap();
    let unsent = outbox::read_unsent(db, &lanes, 10).await.unwrap();
    assert_eq!(unsent.len(), 3);
    let lease = *leases.iter().find(|lease| lease.lane == unsent[0].row.lane).unwrap();
    assert!(outbox::park(db, unsent[0].id, lease, "too large", f.now()).await.unwrap());
    let keys: Vec<String> =
        outbox::read_unsent(db, &lanes, 10).await.unwrap().into_iter().map(|row| row.row.key).collect();
    assert_eq!(keys, ["2"]);
    let parked = outbox::parked(db).await.unwrap();
    assert_eq!((parked.len(), parked[0].reason.as_str(), parked[0].waiting), (1, "too large", 1));
    assert!(outbox::resume(db, parked[0].id).await.unwrap());
    assert!(!outbox::resume(db, parked[0].id).await.unwrap());
    let ids: Vec<i64> = outbox::read_unsent(db, &lanes, 10).await.unwrap().iter().map(|row| row.id).collect();
    assert_eq!(ids, unsent.iter().map(|row| row.id).collect::<Vec<_>>());
}

pub async fn the_database_itself_holds_the_cap(f: Fixture) {
    let id = f.open(2).await;
    let good = f.issuance(id, 1, 1).await;
    f.ledger.record_issuances(&[good], f.now()).await.unwrap();
    let insert = async |user: i64, slot: i64, epoch: i64| {
        let mut tx = f.ledger.db().begin().await.unwrap();
        let result = tx
            .execute(
                "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at,
                     changed_at) values ($1, $2, $3, $4, $5, 't', 1, 1)",
                &[
                    Param::Int(1_000_000 + user),
                    Param::Int(id.get()),
                    Param::Int(user),
                    Param::Int(slot),
                    Param::Int(epoch),
                ],
            )
            .await;
        tx.rollback().await;
        match result {
            Err(DbError::Constraint { constraint, .. }) => constraint,
            other => panic!("user {user} slot {slot} epoch {epoch}: {other:?}"),
        }
    };
    assert_eq!(insert(2, 3, 1).await, "user_coupons_slot_within_limit");
    assert_eq!(insert(2, 2, 9).await, "user_coupons_epoch_current");
    assert_eq!(insert(2, 0, 1).await, "user_coupons_slot_positive");
    let by_slot = insert(2, 1, 1).await;
    assert!(by_slot.contains("one_per_slot") || by_slot.contains("slot_no"), "{by_slot}");
    let by_user = insert(1, 2, 1).await;
    assert!(by_user.contains("one_per_user") || by_user.contains("user_id"), "{by_user}");
    // A row keeps its seat, and a limit does not fall below it.
    for (sql, constraint) in [
        ("update user_coupons set slot_no = 2", "user_coupons_identity_fixed"),
        ("update coupons set max_issue_count = 0", "coupons_limit_covers_issued"),
        ("update coupons set epoch = 0", "coupons_epoch_rises"),
        ("update user_coupons set order_id = 'o'", "user_coupons_use_complete"),
    ] {
        let mut tx = f.ledger.db().begin().await.unwrap();
        let error = tx.execute(sql, &[]).await.unwrap_err();
        assert!(error.is_constraint(constraint), "{sql}: {error}");
        tx.rollback().await;
    }
}

pub async fn an_audit_shows_every_moment(f: Fixture) {
    let (first, second) = (f.open(5).await, f.open(5).await);
    let row = f.issue(first, 1).await.done().unwrap().user_coupon_id;
    f.advance(10);
    f.issue(second, 1).await.done().unwrap();
    f.issue(first, 2).await.done().unwrap();
    f.advance(10);
    f.service.use_coupon(row, order("o-1", 1_000), &context("use-it")).await.done().unwrap();
    f.advance(10);
    f.service.cancel_use(row, cancel("o-1"), &context("r")).await.done().unwrap();
    // (moment, coupon, user) -> status and order of each
    type Seen<'a> = &'a [(&'a str, Option<&'a str>)];
    let table: [(i64, Option<CouponId>, Option<i64>, Seen<'_>); 9] = [
        (-1, None, None, &[]),
        (0, None, None, &[("ACTIVE", None)]),
        (10, None, None, &[("ACTIVE", None), ("ACTIVE", None), ("ACTIVE", None)]),
        (19, Some(first), Some(1), &[("ACTIVE", None)]),
        (20, Some(first), None, &[("USED", Some("o-1")), ("ACTIVE", None)]),
        (29, None, Some(1), &[("USED", Some("o-1")), ("ACTIVE", None)]),
        (30, Some(first), Some(1), &[("ACTIVE", None)]),
        (30, Some(second), Some(2), &[]),
        (DAY, Some(second), None, &[("EXPIRED", None)]),
    ];
    for (offset, coupon, who, expected) in table {
        let filter = AuditFilter { coupon, user: who.map(user) };
        let seen = audit::as_of(f.ledger.db(), UtcMicros::clamped(START + offset), filter).await.unwrap();
        let seen: Vec<_> = seen.iter().map(|row| (row.status.as_str(), row.order_id.as_deref())).collect();
        assert_eq!(seen, expected, "at {offset} of {coupon:?} {who:?}");
    }
    let used = audit::as_of(
        f.ledger.db(),
        UtcMicros::clamped(START + 20),
        AuditFilter { coupon: Some(first), user: Some(user(1)) },
    );
    let used = used.await.unwrap().remove(0);
    assert_eq!((used.request_id.as_str(), used.seq, used.discount_amount), ("use-it", 2, Some(100)));
}

pub async fn a_replay_names_exactly_what_was_tampered_with(f: Fixture) {
    let coupon = f.open(10).await;
    let mut ids = Vec::new();
    for who in 1..=4 {
        ids.push(f.issue(coupon, who).await.done().unwrap().user_coupon_id.get());
    }
    f.service
        .use_coupon(UserCouponId::new(ids[0]).unwrap(), order("o-1", 1_000), &context("r"))
        .await
        .done()
        .unwrap();
    f.assert_replay_equals_tables().await;
    let first = ids[0];
    // (what is done to the tables behind the ledger's back, the difference it must show)
    let tampering: [(&'static str, i64, &str); 4] = [
        ("update user_coupons set order_id = 'o-9' where user_coupon_id = $1", first, "order_id"),
        ("update user_coupons set discount_amount = 1 where user_coupon_id = $1", first, "discount_amount"),
        ("update user_coupons set status = 'REVOKED' where user_coupon_id = $1", ids[1], "status"),
        ("delete from user_coupons where user_coupon_id = $1", ids[2], "row"),
    ];
    let mut expected = Vec::new();
    for (sql, id, field) in tampering {
        let mut tx = f.ledger.db().begin().await.unwrap();
        assert_eq!(tx.execute(sql, &[Param::Int(id)]).await.unwrap(), 1, "{sql}");
        tx.commit().await.unwrap();
        expected.push((id, field));
    }
    // A row without a history.
    let mut tx = f.ledger.db().begin().await.unwrap();
    tx.execute(
        "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
         values (1000000, $1, 99, 9, 1, 't', 1, 1)",
        &[Param::Int(coupon.get())],
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    expected.push((1_000_000, "row"));
    let replay = audit::replay(f.ledger.db()).await.unwrap();
    let found: HashSet<(i64, &str)> =
        replay.differences.iter().map(|difference| (difference.user_coupon_id, difference.field)).collect();
    assert_eq!(found, expected.into_iter().collect(), "{replay:?}");
    assert!(!replay.is_equal());
}

pub async fn reconciling_names_each_drift_and_fixes_the_gate(f: Fixture) {
    let (quiet, coupon) = (f.open(10).await, f.open(10).await);
    f.draft(10).await;
    for who in 1..=3 {
        f.issue(quiet, who).await.done().unwrap();
        f.issue(coupon, who).await.done().unwrap();
    }
    f.until_confirmed(coupon).await;
    let all_zero = f.service.reconcile(true).await.unwrap();
    assert_eq!(all_zero.len(), 3);
    assert!(all_zero.iter().all(|drift| drift.is_zero()), "{all_zero:?}");
    assert_eq!(all_zero.iter().map(|drift| drift.outbox_waiting).sum::<i64>(), 6);

    // A row the gate never heard of, a confirmed seat without a row, a seat at another place, other terms.
    let planted = f.issuance(coupon, 50, 9).await;
    f.ledger.record_issuances(&[planted], f.now()).await.unwrap();
    let token = Uuid::new_v4();
    f.gate.admit(coupon, user(60), token).await.unwrap();
    f.gate.confirm(coupon, user(60), token).await.unwrap();
    f.gate.release(coupon, user(2), f.token_of(coupon, 2).await).await.unwrap();
    f.gate.release(coupon, user(3), f.token_of(coupon, 3).await).await.unwrap();
    for who in [3, 2] {
        let token = Uuid::new_v4();
        f.gate.admit(coupon, user(who), token).await.unwrap();
        f.gate.confirm(coupon, user(who), token).await.unwrap();
    }
    f.gate.set_limit(coupon, 8).await.unwrap();
    let drifts = f.service.reconcile(true).await.unwrap();
    let drift = drifts.iter().find(|drift| drift.coupon_id == coupon.get()).unwrap();
    let gate = drift.gate.as_ref().unwrap();
    assert_eq!((&gate.missing.first, &gate.unknown.first), (&vec![50], &vec![60]), "{drift:?}");
    let mut misplaced = gate.misplaced.first.clone();
    misplaced.sort_unstable();
    assert_eq!(misplaced, [2, 3], "{drift:?}");
    assert_eq!(gate.terms, ["limit is 8 at the gate and 10 in the ledger"]);
    assert_eq!(drifts.iter().filter(|drift| !drift.is_zero()).count(), 1);

    assert!(f.service.fix_gate(coupon).await.unwrap());
    let fixed = f.service.reconcile(true).await.unwrap();
    assert!(fixed.iter().all(|drift| drift.is_zero()), "{fixed:?}");
    // What cannot be repaired is reported: a row without history, an event the log refuses.
    let mut tx = f.ledger.db().begin().await.unwrap();
    tx.execute(
        "insert into user_coupons (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
         values (1000000, $1, 99, 8, 1, 't', 1, 1)",
        &[Param::Int(quiet.get())],
    )
    .await
    .unwrap();
    tx.execute("update outbox set parked_at = 1 where id = (select min(id) from outbox)", &[]).await.unwrap();
    tx.commit().await.unwrap();
    let drift = f.service.reconcile(false).await.unwrap().remove(0);
    assert_eq!(
        (drift.coupon_id, drift.rows_without_history, drift.outbox_parked, drift.gate.is_none()),
        (quiet.get(), 1, 1, true)
    );
    assert!(!drift.is_zero());
}
