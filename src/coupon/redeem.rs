//! Redeem.
use super::{
    error::Outcome,
    ids::UserCouponId,
    model::UserCoupon,
    service::{CancelUse, CouponService, RequestContext, UseCoupon},
};
impl CouponService {
    /// Uses a user coupon for an order. The same order again is the same answer.
    pub async fn use_coupon(
        &self,
        _id: UserCouponId,
        _request: UseCoupon,
        _context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        unimplemented!()
    }
    /// Takes a use back. The same order again is the same answer.
    pub async fn cancel_use(
        &self,
        _id: UserCouponId,
        _request: CancelUse,
        _context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        unimplemented!()
    }
    /// Takes a user coupon back for good.
    pub async fn revoke(
        &self,
        _id: UserCouponId,
        _reason: String,
        _context: &RequestContext,
    ) -> Outcome<UserCoupon> {
        unimplemented!()
    }
}
