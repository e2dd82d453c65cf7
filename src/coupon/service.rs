//! The door of the domain: one [`CouponService`], one method an endpoint, requests in, [`Outcome`]s out.
//!
//! This file holds what the methods share (gate, ledger, clock, the local snapshot of campaigns) and the requests'
//! types. The methods live with their concern: `issue.rs` (the order of an issue), `redeem.rs` (use, cancel-use,
//! revoke), `coupons.rs` (a campaign's life), `query.rs` (reads).

use std::sync::Arc;

use super::{
    clock::{Clock, UtcMicros},
    confirm::Confirmer,
    correlation,
    db::{DbError, DbResult},
    error::{Dependency, Outcome, Refusal},
    gate::Gate,
    ids::UserId,
    ledger::{HolderQueue, IssuanceQueue, Ledger},
    metrics::CouponMetrics,
    model::Cursor,
    rebuild::Rebuilds,
    snapshot::Snapshots,
};

/// How the service behaves; every field has a key in the configuration file.
#[derive(Clone, Debug)]
pub struct CouponConfig {
    /// `ce_source` of every event.
    pub event_source: String,
    /// How long a campaign's local snapshot is believed before it is read again.
    pub snapshot_ttl: std::time::Duration,
    /// How long "no such coupon" is believed.
    pub unknown_ttl: std::time::Duration,
    /// How long a concurrent duplicate waits for the first call's answer.
    pub duplicate_wait: std::time::Duration,
    /// Most issues waiting for a ledger transaction, and most duplicates waiting to be told what they hold; one more is
    /// refused as overload.
    pub issue_queue_max: usize,
    /// How long an idempotency key is kept.
    pub idempotency_ttl: std::time::Duration,
}

impl Default for CouponConfig {
    fn default() -> Self {
        use std::time::Duration;
        Self {
            event_source: "/sluice/coupon".into(),
            snapshot_ttl: Duration::from_secs(1),
            unknown_ttl: Duration::from_secs(1),
            duplicate_wait: Duration::from_secs(3),
            issue_queue_max: 16_384,
            idempotency_ttl: Duration::from_secs(24 * 3_600),
        }
    }
}

/// What travels with every changing request.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// Correlation id, from the request to the row, the event and what is derived from it. At most 128 characters.
    pub request_id: String,
    /// The client's `Idempotency-Key`.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// A client's idempotency key: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Parses a header's value.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 255 {
            return Err(format!("Idempotency-Key has 1 to 255 characters, not {}", text.len()));
        }
        if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err("Idempotency-Key has visible ASCII characters only".into());
        }
        Ok(Self(text.into()))
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A campaign to create. Judged by [`CouponService::create`]; nothing here is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateCoupon {
    /// Name, 1 to 200 characters.
    pub coupon_name: String,
    /// `FIXED` or `PERCENTAGE`; anything else is CP008.
    pub discount_type: String,
    /// Units, or percent 1 to 100.
    pub discount_value: i64,
    /// Cap of one discount.
    pub max_discount_amount: Option<i64>,
    /// Least order amount; 0 = any.
    pub min_order_amount: i64,
    /// Seats, >= 1.
    pub max_issue_count: i64,
    /// Start of issuing.
    pub issue_from: Option<UtcMicros>,
    /// End of issuing.
    pub issue_until: Option<UtcMicros>,
    /// Start of use.
    pub valid_from: UtcMicros,
    /// End of use.
    pub valid_to: UtcMicros,
    /// Who creates it.
    pub created_by: String,
}

/// A change of a campaign; what is `None` stays. The windows' inner `None` removes that end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchCoupon {
    /// New name.
    pub coupon_name: Option<String>,
    /// New number of seats, never below what is issued.
    pub max_issue_count: Option<i64>,
    /// New start of issuing.
    pub issue_from: Option<Option<UtcMicros>>,
    /// New end of issuing.
    pub issue_until: Option<Option<UtcMicros>>,
    /// New start of use.
    pub valid_from: Option<UtcMicros>,
    /// New end of use.
    pub valid_to: Option<UtcMicros>,
}

/// Use of a user coupon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UseCoupon {
    /// For which order, 1 to 100 characters.
    pub order_id: String,
    /// The order's amount, >= 0.
    pub order_amount: i64,
    /// Who asks, where the caller says so: another user's coupon is then not found.
    pub user_id: Option<UserId>,
}

/// Taking a use back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelUse {
    /// The order it was used for.
    pub order_id: String,
    /// Who asks, where the caller says so.
    pub user_id: Option<UserId>,
}

/// Which page of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// Where it starts; none: at the newest.
    pub cursor: Option<Cursor>,
    /// How many entries, 1 to [`PAGE_LIMIT_MAX`](super::model::PAGE_LIMIT_MAX); none: the default.
    pub limit: Option<usize>,
}

/// The coupon service. Clones share everything; every method may be called from many tasks at once.
#[derive(Clone)]
pub struct CouponService(Arc<Shared>);

/// What the methods share.
pub struct Shared {
    pub(super) gate: Arc<dyn Gate>,
    pub(super) ledger: Ledger,
    pub(super) clock: Clock,
    pub(super) config: CouponConfig,
    pub(super) snapshots: Snapshots,
    /// Issues on their way into a shared ledger transaction.
    pub(super) issuances: IssuanceQueue,
    /// Looks at what users hold, on their way into a shared query.
    pub(super) holders: HolderQueue,
    /// Seats whose row is committed and which the gate is to be told of.
    pub(super) confirmer: Confirmer,
    /// Rebuilds of the gate under way in this process.
    pub(super) rebuilds: Rebuilds,
    pub(super) metrics: CouponMetrics,
}

impl std::ops::Deref for CouponService {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl CouponService {
    /// Puts the service together and starts its confirmer; call inside a tokio runtime. Dropping every clone lets what
    /// is queued finish.
    pub fn new(gate: Arc<dyn Gate>, ledger: Ledger, clock: Clock, config: CouponConfig) -> Self {
        let metrics = CouponMetrics::new();
        Self(Arc::new(Shared {
            issuances: IssuanceQueue::new(
                ledger.clone(),
                config.issue_queue_max,
                clock.clone(),
                metrics.clone(),
            ),
            holders: HolderQueue::new(ledger.clone(), config.issue_queue_max, clock.clone(), metrics.clone()),
            confirmer: Confirmer::start(gate.clone(), metrics.clone()),
            snapshots: Snapshots::new(&config),
            rebuilds: Rebuilds::default(),
            config,
            gate,
            ledger,
            clock,
            metrics,
        }))
    }

    /// The counters and histograms, to be registered where metrics are served.
    pub fn metrics(&self) -> &CouponMetrics {
        &self.metrics
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The gate.
    pub fn gate(&self) -> &Arc<dyn Gate> {
        &self.gate
    }

    /// Can requests be decided: the ledger and the gate both answer. The first that does not is named.
    pub async fn ready(&self) -> Result<(), (Dependency, String)> {
        self.ledger.ping().await.map_err(|error| (Dependency::Ledger, error.to_string()))?;
        self.gate.health().await.map_err(|error| (Dependency::Gate, error.to_string()))
    }

    /// Forgets idempotency keys and fences past their time, at most `max` keys; one bounded step of housekeeping.
    pub async fn purge(&self, max: usize) -> DbResult<u64> {
        let now = self.clock.now();
        let before =
            |age: std::time::Duration| now.plus_micros(-i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
        // A transaction is late by seconds at most; an hour is far outside of that.
        let fences = self.ledger.purge_fences(before(std::time::Duration::from_secs(3_600))).await?;
        Ok(fences + self.ledger.purge_keys(before(self.config.idempotency_ttl), max).await?)
    }

    /// Measures one call of a dependency.
    pub(super) async fn timed<T>(
        &self,
        dependency: Dependency,
        call: &str,
        asked: impl Future<Output = T>,
    ) -> T {
        let seconds = self.metrics.dependency_seconds.with_label_values(&[dependency.as_str(), call]);
        let started = std::time::Instant::now();
        let answer = asked.await;
        seconds.observe(started.elapsed().as_secs_f64());
        answer
    }

    /// Counts an answer and passes it on.
    pub(super) fn decided<T>(&self, operation: &str, outcome: Outcome<T>) -> Outcome<T> {
        let label = match &outcome {
            Outcome::Done(_) => "done",
            Outcome::Replayed(_) => "replayed",
            Outcome::Refused(refusal) => refusal.label(),
        };
        self.metrics.decisions.with_label_values(&[operation, label]).inc();
        outcome
    }

    /// What a failure of the ledger means to the caller. Logged here, where its handling ends.
    pub(super) fn refuse_ledger(&self, call: &str, error: &DbError) -> Refusal {
        let dependency = Dependency::Ledger;
        let request_id = correlation::current();
        if error.is_unknown() {
            self.metrics.dependency_errors.with_label_values(&["ledger", "unknown"]).inc();
            tracing::warn!(call, %error, %request_id, "the ledger's outcome is unknown");
            Refusal::OutcomeUnknown { dependency }
        } else {
            self.metrics.dependency_errors.with_label_values(&["ledger", "definite"]).inc();
            tracing::warn!(call, %error, %request_id, "the ledger said no");
            Refusal::SeatReleased { dependency }
        }
    }
}
