//! Redeeming: a user coupon is used for an order, its use is taken back, or it is revoked.
//!
//! Called by the API. The decisions ([`decide_use`] and its siblings) are pure functions of the row, the request and
//! the time; the ledger writes what they decide with one conditional UPDATE, or asks them again when the row changed
//! meanwhile. The same order again is the same answer.

use super::{
    clock::UtcMicros,
    error::{Dependency, Outcome, Refusal},
    event::{CouponRevoked, CouponUseCancelled, CouponUsed, Event, SCHEMA_VERSION, new_event_id},
    ids::{UserCouponId, UserId},
    ledger::{KeyLookup, KeyedResponse, StoredUserCoupon, Transition, Transitioned},
    model::{DiscountType, UserCoupon, UserCouponStatus},
    service::{CancelUse, CouponService, RequestContext, UseCoupon},
};
use crate::coupon::ledger::LastLine;

impl CouponService {
    /// Uses a user coupon for an order. The same order again is the same answer.
    pub async fn use_coupon(
        &self,
        id: UserCouponId,
        request: UseCoupon,
        context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        let fingerprint = format!("use:{id}:{}:{}", request.order_amount, request.order_id);
        let now = self.clock.now();
        let outcome = self
            .transition("use", id, &fingerprint, context, now, |row, last| {
                decide_use(row, last, &request, now)
            })
            .await;
        self.decided("use", outcome)
    }

    /// Takes a use back. The same order again is the same answer.
    pub async fn cancel_use(
        &self,
        id: UserCouponId,
        request: CancelUse,
        context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        let fingerprint = format!("cancel-use:{id}:{}", request.order_id);
        let now = self.clock.now();
        let outcome = self
            .transition("cancel_use", id, &fingerprint, context, now, |row, last| {
                decide_cancel(row, last, &request, now)
            })
            .await;
        self.decided("cancel_use", outcome)
    }

    /// Takes a user coupon back for good. Its seat is not given to anybody else. A repeat is the same answer.
    pub async fn revoke(
        &self,
        id: UserCouponId,
        reason: String,
        context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        let fingerprint = format!("revoke:{id}:{reason}");
        let outcome = self
            .transition("revoke", id, &fingerprint, context, self.clock.now(), |row, _| {
                decide_revoke(row, &reason)
            })
            .await;
        self.decided("revoke", outcome)
    }

    async fn transition(
        &self,
        operation: &str,
        id: UserCouponId,
        fingerprint: &str,
        context: &RequestContext,
        now: UtcMicros,
        decide: impl Fn(&StoredUserCoupon, &LastLine) -> Transitioned<Change>,
    ) -> Outcome<UserCoupon> {
        if let Some(answer) = self.replay(operation, fingerprint, context).await {
            return answer;
        }
        let written = self.ledger.transition(id, now, |row, last| match decide(row, last) {
            Transitioned::Do(change) => {
                Transitioned::Do(self.written(row, change, fingerprint, context, now))
            }
            Transitioned::Already(answer) => Transitioned::Already(answer),
            Transitioned::Refuse(refusal) => Transitioned::Refuse(refusal),
        });
        let written = self.timed(Dependency::Ledger, operation, written).await;
        match written {
            Ok(Some(Transitioned::Do(after) | Transitioned::Already(after))) => Outcome::Done(after),
            // The key went to a request that ran beside this one: the very same one, or another.
            Ok(Some(Transitioned::Refuse(Refusal::IdempotencyKeyReused))) => self
                .replay(operation, fingerprint, context)
                .await
                .unwrap_or(Outcome::Refused(Refusal::IdempotencyKeyReused)),
            Ok(Some(Transitioned::Refuse(refusal))) => Outcome::Refused(refusal),
            Ok(None) => Outcome::Refused(Refusal::UserCouponNotFound),
            Err(error) => Outcome::Refused(self.refuse_ledger(operation, &error)),
        }
    }

    /// The answer kept under the request's idempotency key; `None` when there is no key or nothing is kept.
    pub(super) async fn replay(
        &self,
        operation: &str,
        fingerprint: &str,
        context: &RequestContext,
    ) -> Option<Outcome<UserCoupon>> {
        let key = context.idempotency_key.as_ref()?;
        let found = self.ledger.look_up_key(key.as_str(), fingerprint);
        Some(match self.timed(Dependency::Ledger, "look_up_key", found).await {
            Ok(KeyLookup::Unknown) => return None,
            Ok(KeyLookup::Other) => Outcome::Refused(Refusal::IdempotencyKeyReused),
            Ok(KeyLookup::Answered(response)) => match serde_json::from_str(&response) {
                Ok(answer) => Outcome::Replayed(answer),
                Err(error) => {
                    tracing::error!(operation, %error, "an answer kept under an idempotency key cannot be read");
                    return None;
                }
            },
            Err(error) => Outcome::Refused(self.refuse_ledger(operation, &error)),
        })
    }

    /// A decided change with everything that is written beside it.
    fn written(
        &self,
        row: &StoredUserCoupon,
        change: Change,
        fingerprint: &str,
        context: &RequestContext,
        now: UtcMicros,
    ) -> Transition {
        // A clock that steps back must not reorder the history.
        let at = now.max(row.changed_at);
        let mut after = row.shown.clone();
        let event_id = new_event_id(at);
        let request_id = context.request_id.clone();
        let (user_coupon_id, user_id, coupon_id) = (after.user_coupon_id, after.user_id, after.coupon_id);
        let source = &self.config.event_source;
        let schema_version = SCHEMA_VERSION;
        let (mut order, mut reason) = (None, None);
        let event = match change {
            Change::Use { order_id, order_amount, discount_amount } => {
                after.status = UserCouponStatus::Used;
                after.order_id = Some(order_id.clone());
                after.discount_amount = Some(discount_amount);
                after.used_at = Some(at);
                order = Some((order_id.clone(), order_amount, discount_amount));
                CouponUsed {
                    event_id,
                    user_coupon_id,
                    user_id,
                    coupon_id,
                    order_id,
                    order_amount,
                    discount_amount,
                    used_at: at,
                    request_id: request_id.clone(),
                    schema_version,
                }
                .to_outbox(source)
            }
            Change::CancelUse { order_id, order_amount, discount_amount } => {
                after.status = UserCouponStatus::Active;
                (after.order_id, after.discount_amount, after.used_at) = (None, None, None);
                order = Some((order_id.clone(), order_amount, discount_amount));
                CouponUseCancelled {
                    event_id,
                    user_coupon_id,
                    user_id,
                    coupon_id,
                    order_id,
                    order_amount,
                    discount_amount,
                    cancelled_at: at,
                    request_id: request_id.clone(),
                    schema_version,
                }
                .to_outbox(source)
            }
            Change::Revoke { reason: why } => {
                after.status = UserCouponStatus::Revoked;
                reason = Some(why.clone());
                CouponRevoked {
                    event_id,
                    user_coupon_id,
                    user_id,
                    coupon_id,
                    reason: why,
                    revoked_at: at,
                    request_id: request_id.clone(),
                    schema_version,
                }
                .to_outbox(source)
            }
        };
        let idempotency = context.idempotency_key.as_ref().map(|key| KeyedResponse {
            key: key.as_str().into(),
            fingerprint: fingerprint.into(),
            response: serde_json::to_string(&after).expect("a user coupon has only texts and numbers"),
        });
        Transition {
            after,
            order_amount: order.as_ref().map(|(_, amount, _)| *amount),
            at,
            history_order: order,
            reason,
            request_id,
            event,
            idempotency,
        }
    }
}

/// A change of a user coupon that has been decided.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Use { order_id: String, order_amount: i64, discount_amount: i64 },
    CancelUse { order_id: String, order_amount: i64, discount_amount: i64 },
    Revoke { reason: String },
}

/// What an order of that amount is reduced by: whole units, a percentage rounded down, never above the cap or the
/// order itself.
pub fn discount(kind: DiscountType, value: i64, cap: Option<i64>, order_amount: i64) -> i64 {
    let full = match kind {
        DiscountType::Fixed => i128::from(value),
        DiscountType::Percentage => i128::from(order_amount) * i128::from(value) / 100,
    };
    let capped = full.min(cap.map_or(i128::MAX, i128::from)).min(i128::from(order_amount)).max(0);
    i64::try_from(capped).expect("it is between 0 and the order amount")
}

fn owned_by(row: &StoredUserCoupon, user: Option<UserId>) -> bool {
    user.is_none_or(|user| user == row.shown.user_id)
}

fn decide_use(
    row: &StoredUserCoupon,
    _last: &LastLine,
    request: &UseCoupon,
    now: UtcMicros,
) -> Transitioned<Change> {
    let shown = &row.shown;
    if !owned_by(row, request.user_id) {
        return Transitioned::Refuse(Refusal::UserCouponNotFound);
    }
    match shown.status {
        UserCouponStatus::Used if shown.order_id.as_deref() == Some(&request.order_id) => {
            return Transitioned::Already(shown.clone());
        }
        UserCouponStatus::Used => {
            return Transitioned::Refuse(Refusal::AlreadyUsed { existing: Box::new(shown.clone()) });
        }
        UserCouponStatus::Revoked => return ended("the user coupon was revoked"),
        UserCouponStatus::Expired => return ended(format!("the user coupon expired at {}", shown.valid_to)),
        UserCouponStatus::Active => {}
    }
    if now < shown.valid_from {
        return Transitioned::Refuse(Refusal::NotOpenYet { open_at: Some(shown.valid_from), now });
    }
    if request.order_amount < shown.min_order_amount {
        return Transitioned::Refuse(Refusal::MinimumOrderNotMet {
            min_order_amount: shown.min_order_amount,
            order_amount: request.order_amount,
        });
    }
    Transitioned::Do(Change::Use {
        order_id: request.order_id.clone(),
        order_amount: request.order_amount,
        discount_amount: discount(
            shown.discount_type,
            shown.discount_value,
            row.max_discount_amount,
            request.order_amount,
        ),
    })
}

fn decide_cancel(
    row: &StoredUserCoupon,
    last: &LastLine,
    request: &CancelUse,
    _now: UtcMicros,
) -> Transitioned<Change> {
    let shown = &row.shown;
    if !owned_by(row, request.user_id) {
        return Transitioned::Refuse(Refusal::UserCouponNotFound);
    }
    let was_used_for = |order: &Option<String>| order.as_deref() == Some(&request.order_id);
    match row.status {
        UserCouponStatus::Used if was_used_for(&shown.order_id) => Transitioned::Do(Change::CancelUse {
            order_id: request.order_id.clone(),
            order_amount: row.order_amount.unwrap_or_default(),
            discount_amount: shown.discount_amount.unwrap_or_default(),
        }),
        UserCouponStatus::Used => {
            Transitioned::Refuse(Refusal::AlreadyUsed { existing: Box::new(shown.clone()) })
        }
        UserCouponStatus::Active
            if last.from_status.as_deref() == Some(UserCouponStatus::Used.as_str())
                && was_used_for(&last.order_id) =>
        {
            Transitioned::Already(shown.clone())
        }
        status => Transitioned::Refuse(Refusal::IllegalTransition { from: status.to_string(), to: "ACTIVE" }),
    }
}

fn decide_revoke(row: &StoredUserCoupon, reason: &str) -> Transitioned<Change> {
    match row.status {
        UserCouponStatus::Active => Transitioned::Do(Change::Revoke { reason: reason.into() }),
        UserCouponStatus::Revoked => Transitioned::Already(row.shown.clone()),
        status => {
            Transitioned::Refuse(Refusal::IllegalTransition { from: status.to_string(), to: "REVOKED" })
        }
    }
}

fn ended<T>(detail: impl Into<String>) -> Transitioned<T> {
    Transitioned::Refuse(Refusal::Ended { detail: detail.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupon::ids::CouponId;

    #[test]
    fn a_discount_is_floored_and_capped() {
        use DiscountType::*;
        // (type, value, cap, order amount) -> discount
        for (kind, value, cap, order, expected) in [
            (Fixed, 1_000, None, 5_000, 1_000),
            (Fixed, 1_000, None, 999, 999),
            (Fixed, 1_000, Some(300), 5_000, 300),
            (Fixed, 1_000, None, 0, 0),
            (Percentage, 10, None, 999, 99),
            (Percentage, 33, None, 100, 33),
            (Percentage, 1, None, 99, 0),
            (Percentage, 100, None, 12_345, 12_345),
            (Percentage, 50, Some(1_000), 10_000, 1_000),
            (Percentage, 50, Some(1_000), 1_999, 999),
            (Percentage, 100, None, i64::MAX, i64::MAX),
            (Percentage, 99, Some(7), i64::MAX, 7),
        ] {
            assert_eq!(discount(kind, value, cap, order), expected, "{kind} {value} cap {cap:?} of {order}");
        }
    }

    const NOW: i64 = 1_000_000_000;

    fn at(micros: i64) -> UtcMicros {
        UtcMicros::new(micros).unwrap()
    }

    fn row(status: UserCouponStatus) -> StoredUserCoupon {
        let used = status == UserCouponStatus::Used;
        StoredUserCoupon {
            shown: UserCoupon {
                user_coupon_id: UserCouponId::new(1).unwrap(),
                user_id: UserId::new(2).unwrap(),
                coupon_id: CouponId::new(3).unwrap(),
                coupon_name: "spring".into(),
                discount_type: DiscountType::Fixed,
                discount_value: 100,
                min_order_amount: 500,
                status,
                slot_no: 1,
                issued_at: at(1),
                valid_from: at(NOW),
                valid_to: at(NOW + 10),
                order_id: used.then(|| "o-1".into()),
                used_at: used.then(|| at(NOW)),
                discount_amount: used.then_some(100),
            },
            status: if status == UserCouponStatus::Expired { UserCouponStatus::Active } else { status },
            order_amount: used.then_some(700),
            max_discount_amount: None,
            admission_token: String::new(),
            last_seq: 1,
            changed_at: at(1),
        }
    }

    fn told<T>(decision: Transitioned<T>) -> &'static str {
        match decision {
            Transitioned::Do(_) => "do",
            Transitioned::Already(_) => "already",
            Transitioned::Refuse(refusal) => refusal.code().unwrap(),
        }
    }

    #[test]
    fn a_use_is_decided_by_owner_then_status_then_validity_then_minimum() {
        use UserCouponStatus::*;
        // (status, order, amount, user, now) -> answer
        for (status, order, amount, user, now, expected) in [
            (Active, "o-1", 500, None, NOW, "do"),
            (Active, "o-1", 500, Some(2), NOW, "do"),
            (Active, "o-1", 500, Some(9), NOW, "CP006"),
            (Active, "o-1", 499, None, NOW, "CP004"),
            (Active, "o-1", 500, None, NOW - 1, "CP011"),
            (Expired, "o-1", 500, None, NOW + 10, "CP002"),
            (Revoked, "o-1", 500, None, NOW, "CP002"),
            (Used, "o-1", 1, None, NOW + 99, "already"),
            (Used, "o-2", 700, None, NOW, "CP003"),
            (Used, "o-1", 700, Some(9), NOW, "CP006"),
        ] {
            let request = UseCoupon {
                order_id: order.into(),
                order_amount: amount,
                user_id: user.and_then(UserId::new),
            };
            let decision = decide_use(&row(status), &LastLine::default(), &request, at(now));
            assert_eq!(told(decision), expected, "{status} {order} {amount} {user:?} {now}");
        }
    }

    #[test]
    fn a_use_is_taken_back_by_its_own_order_only() {
        use UserCouponStatus::*;
        // (status, last line, order) -> answer
        for (status, last, order, expected) in [
            (Used, None, "o-1", "do"),
            (Used, None, "o-2", "CP003"),
            (Active, Some(("USED", "o-1")), "o-1", "already"),
            (Active, Some(("USED", "o-1")), "o-2", "CP014"),
            (Expired, Some(("USED", "o-1")), "o-1", "already"),
            (Active, None, "o-1", "CP014"),
            (Revoked, None, "o-1", "CP014"),
        ] {
            let request = CancelUse { order_id: order.into(), user_id: None };
            let last = last.map_or_else(LastLine::default, |(from, order)| LastLine {
                from_status: Some(from.into()),
                order_id: Some(order.into()),
            });
            let decision = decide_cancel(&row(status), &last, &request, at(NOW));
            assert_eq!(told(decision), expected, "{status} {last:?} {order}");
        }
    }

    #[test]
    fn only_what_is_not_used_is_revoked() {
        use UserCouponStatus::*;
        for (status, expected) in [(Active, "do"), (Expired, "do"), (Revoked, "already"), (Used, "CP014")] {
            assert_eq!(told(decide_revoke(&row(status), "fraud")), expected, "{status}");
        }
    }
}
