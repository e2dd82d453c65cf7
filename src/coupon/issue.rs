//! Issue.
use super::{
    error::Outcome,
    gate::Gate,
    ids::{CouponId, UserId},
    ledger::Ledger,
    metrics::CouponMetrics,
    model::UserCoupon,
    service::{CouponConfig, CouponService, RequestContext},
};
use std::sync::Arc;
pub(super) struct Issuer;
impl Issuer {
    pub(super) fn start(_: Arc<dyn Gate>, _: Ledger, _: &CouponConfig, _: CouponMetrics) -> Self {
        Self
    }
}
impl CouponService {
    /// Issues one of the campaign's coupons to the user. `Replayed` when the idempotency key is the first call's.
    pub async fn issue(
        &self,
        _coupon: CouponId,
        _user: UserId,
        _context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        unimplemented!()
    }
}
