//! A campaign's life: created as a draft, changed, opened, paused, closed.
//!
//! Called by the API's admin paths. The order of every change: the ledger first (it is the truth, and remembers that
//! the gate must be told), then the gate. A gate that cannot be told answers
//! [`OutcomeUnknown`](super::error::Refusal::OutcomeUnknown): the change stands, and the repair tells the gate later.

use std::sync::Arc;

use super::{
    db::{DbError, DbResult},
    error::{Dependency, Outcome, Refusal},
    gate::{GateError, LIMIT_MAX},
    ids::CouponId,
    ledger::{CampaignChanged, NewCoupon},
    model::{Coupon, CouponStatus, DiscountType},
    rebuild::{Because, Told, meta},
    service::{CouponService, CreateCoupon, PatchCoupon},
};

impl CouponService {
    /// Creates a campaign as a draft.
    pub async fn create(&self, request: CreateCoupon) -> Outcome<Coupon> {
        let outcome = match judged(request) {
            Err(refusal) => Err(refusal),
            Ok(new) => {
                let created = self.ledger.create_coupon(&new, self.clock.now()).await;
                created.map_err(|error| self.refuse_change("create", &error))
            }
        };
        self.decided("create", outcome.into())
    }

    /// Changes name, number of seats or windows. Fewer seats than are issued is refused.
    pub async fn patch(&self, coupon: CouponId, change: PatchCoupon) -> Outcome<Coupon> {
        let outcome = match judged_patch(&change) {
            Err(refusal) => Err(refusal),
            Ok(()) => {
                let changed = self.ledger.patch_coupon(coupon, &change, self.clock.now()).await;
                self.after_change("patch", "changed", changed).await
            }
        };
        self.decided("patch", outcome.into())
    }

    /// Draft or paused becomes open.
    pub async fn open(&self, coupon: CouponId) -> Outcome<Coupon> {
        self.move_to("open", coupon, CouponStatus::Open).await
    }

    /// Open becomes paused: nothing is issued until it is opened again.
    pub async fn pause(&self, coupon: CouponId) -> Outcome<Coupon> {
        self.move_to("pause", coupon, CouponStatus::Paused).await
    }

    /// Open or paused becomes closed, for good. What was issued stays usable.
    pub async fn close(&self, coupon: CouponId) -> Outcome<Coupon> {
        self.move_to("close", coupon, CouponStatus::Closed).await
    }

    async fn move_to(&self, operation: &str, coupon: CouponId, to: CouponStatus) -> Outcome<Coupon> {
        let changed = self.ledger.move_coupon(coupon, to, self.clock.now()).await;
        let outcome = self.after_change(operation, to.as_str(), changed).await;
        self.decided(operation, outcome.into())
    }

    /// The ledger has decided; tells the gate.
    async fn after_change(
        &self,
        operation: &str,
        to: &'static str,
        changed: DbResult<CampaignChanged>,
    ) -> Result<Coupon, Refusal> {
        let (coupon, was) = match changed.map_err(|error| self.refuse_change(operation, &error))? {
            CampaignChanged::Changed { coupon, was } => (*coupon, was),
            CampaignChanged::NotFound => return Err(Refusal::CouponNotFound),
            CampaignChanged::NotAllowed { status } => {
                return Err(Refusal::IllegalTransition { from: status.to_string(), to });
            }
        };
        self.snapshots.put(coupon.coupon_id, Some(Arc::new(coupon.clone())));
        let told = match (was, meta(&coupon)) {
            (_, None) => Ok(Told::Current),
            (CouponStatus::Draft, Some(_)) => self.introduce(&coupon).await,
            (_, Some(_)) => self.tell_gate(coupon.clone()).await,
        };
        match told.map_err(|error| self.refuse_ledger(operation, &error))? {
            Told::Current => Ok(coupon),
            Told::Stale => Err(Refusal::OutcomeUnknown { dependency: Dependency::Gate }),
        }
    }

    /// Makes a campaign known to the gate that has no rows yet.
    async fn introduce(&self, coupon: &Coupon) -> DbResult<Told> {
        let Some(meta) = meta(coupon) else { return Ok(Told::Current) };
        match self.gate.open(meta).await {
            Ok(()) if self.ledger.mark_gate_current(coupon).await? => Ok(Told::Current),
            Ok(()) => self.tell_gate(coupon.clone()).await,
            // The gate remembers another life of this id (a ledger begun anew): replace it.
            Err(GateError::Stale { .. }) => {
                self.rebuild_gate(coupon.coupon_id, Because::Collision { epoch: coupon.epoch }).await
            }
            Err(error) => {
                self.gate_failed("open", &error);
                Ok(Told::Stale)
            }
        }
    }

    /// A constraint of the schema names the field that is wrong; anything else is about the ledger.
    fn refuse_change(&self, operation: &str, error: &DbError) -> Refusal {
        if let DbError::Constraint { constraint, .. } = error {
            for (name, field, reason) in [
                ("coupons_limit_covers_issued", "maxIssueCount", "must not be below what is issued already"),
                ("coupons_max_issue_count_positive", "maxIssueCount", "must be at least 1"),
                ("coupons_issue_window_ordered", "issueUntil", "must be after issueFrom"),
                ("coupons_validity_ordered", "validTo", "must be after validFrom"),
            ] {
                if constraint == name {
                    return Refusal::InvalidCampaign { field, reason: reason.into() };
                }
            }
        }
        self.refuse_ledger(operation, error)
    }
}

fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::InvalidCampaign { field, reason: reason.into() })
}

fn text(field: &'static str, value: String, max: usize) -> Result<String, Refusal> {
    let length = value.chars().count();
    if value.trim().is_empty() || length > max {
        return invalid(field, format!("must have 1 to {max} characters, not {length}"));
    }
    // Also keeps NUL away, which Postgres cannot store in a text.
    if value.chars().any(char::is_control) {
        return invalid(field, "must not hold control characters");
    }
    Ok(value)
}

fn seats(count: i64) -> Result<i64, Refusal> {
    if (1..=LIMIT_MAX).contains(&count) {
        Ok(count)
    } else {
        invalid("maxIssueCount", format!("must be between 1 and {LIMIT_MAX}, not {count}"))
    }
}

/// Checks a campaign field by field; the first mistake is named.
fn judged(request: CreateCoupon) -> Result<NewCoupon, Refusal> {
    let coupon_name = text("couponName", request.coupon_name, 200)?;
    let discount_type: DiscountType = request.discount_type.parse().map_err(|_| {
        Refusal::InvalidDiscountType { given: request.discount_type.chars().take(50).collect() }
    })?;
    let value = request.discount_value;
    match discount_type {
        DiscountType::Fixed if value < 1 => {
            return invalid("discountValue", format!("must be at least 1, not {value}"));
        }
        DiscountType::Percentage if !(1..=100).contains(&value) => {
            return invalid("discountValue", format!("must be between 1 and 100 percent, not {value}"));
        }
        DiscountType::Fixed | DiscountType::Percentage => {}
    }
    if let Some(cap) = request.max_discount_amount.filter(|cap| *cap < 1) {
        return invalid("maxDiscountAmount", format!("must be at least 1, not {cap}"));
    }
    if request.min_order_amount < 0 {
        return invalid("minOrderAmount", format!("must not be negative, not {}", request.min_order_amount));
    }
    let max_issue_count = seats(request.max_issue_count)?;
    if let (Some(from), Some(until)) = (request.issue_from, request.issue_until)
        && from >= until
    {
        return invalid("issueUntil", format!("must be after issueFrom {from}, not {until}"));
    }
    if request.valid_from >= request.valid_to {
        return invalid(
            "validTo",
            format!("must be after validFrom {}, not {}", request.valid_from, request.valid_to),
        );
    }
    Ok(NewCoupon {
        coupon_name,
        discount_type,
        discount_value: value,
        max_discount_amount: request.max_discount_amount,
        min_order_amount: request.min_order_amount,
        max_issue_count,
        issue_from: request.issue_from,
        issue_until: request.issue_until,
        valid_from: request.valid_from,
        valid_to: request.valid_to,
        created_by: text("createdBy", request.created_by, 100)?,
    })
}

/// Checks what can be checked without the campaign; the schema's constraints check the rest.
fn judged_patch(change: &PatchCoupon) -> Result<(), Refusal> {
    if let Some(name) = &change.coupon_name {
        text("couponName", name.clone(), 200)?;
    }
    change.max_issue_count.map(seats).transpose().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> CreateCoupon {
        CreateCoupon {
            coupon_name: "spring".into(),
            discount_type: "PERCENTAGE".into(),
            discount_value: 10,
            max_discount_amount: None,
            min_order_amount: 0,
            max_issue_count: 1,
            issue_from: None,
            issue_until: None,
            valid_from: "2026-01-01T00:00:00Z".parse().unwrap(),
            valid_to: "2026-02-01T00:00:00Z".parse().unwrap(),
            created_by: "admin".into(),
        }
    }

    #[test]
    fn a_wrong_campaign_is_refused_by_the_field_that_is_wrong() {
        type Break = fn(&mut CreateCoupon);
        let table: [(&str, &str, Break); 12] = [
            ("CP012", "couponName", |c| c.coupon_name = "  ".into()),
            ("CP012", "couponName", |c| c.coupon_name = "a".repeat(201)),
            ("CP012", "couponName", |c| c.coupon_name = "a\0b".into()),
            ("CP008", "", |c| c.discount_type = "fixed".into()),
            ("CP012", "discountValue", |c| c.discount_value = 101),
            ("CP012", "discountValue", |c| (c.discount_type, c.discount_value) = ("FIXED".into(), 0)),
            ("CP012", "maxDiscountAmount", |c| c.max_discount_amount = Some(0)),
            ("CP012", "minOrderAmount", |c| c.min_order_amount = -1),
            ("CP012", "maxIssueCount", |c| c.max_issue_count = 0),
            ("CP012", "issueUntil", |c| {
                (c.issue_from, c.issue_until) = (Some(c.valid_to), Some(c.valid_from))
            }),
            ("CP012", "validTo", |c| c.valid_to = c.valid_from),
            ("CP012", "createdBy", |c| c.created_by = String::new()),
        ];
        assert!(judged(good()).is_ok());
        for (code, field, break_it) in table {
            let mut request = good();
            break_it(&mut request);
            let refusal = judged(request).unwrap_err();
            assert_eq!(refusal.code(), Some(code), "{field}: {refusal}");
            if let Refusal::InvalidCampaign { field: named, .. } = refusal {
                assert_eq!(named, field);
            }
        }
    }
}
