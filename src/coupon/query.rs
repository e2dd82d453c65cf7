//! Reads.
use super::{
    error::Refusal,
    ids::{CouponId, UserCouponId, UserId},
    model::{Coupon, CouponStatus, Page, Stock, UserCoupon, UserCouponStatus},
    service::{CouponService, PageRequest},
};
impl CouponService {
    /// One campaign.
    pub async fn coupon(&self, _coupon: CouponId) -> Result<Coupon, Refusal> {
        unimplemented!()
    }
    /// Campaigns, newest first.
    pub async fn coupons(
        &self,
        _status: Option<CouponStatus>,
        _page: PageRequest,
    ) -> Result<Page<Coupon>, Refusal> {
        unimplemented!()
    }
    /// Seats of a campaign.
    pub async fn stock(&self, _coupon: CouponId) -> Result<Stock, Refusal> {
        unimplemented!()
    }
    /// One user coupon.
    pub async fn user_coupon(&self, _id: UserCouponId) -> Result<UserCoupon, Refusal> {
        unimplemented!()
    }
    /// A user's coupons, newest first.
    pub async fn user_coupons(
        &self,
        _user: UserId,
        _status: Option<UserCouponStatus>,
        _page: PageRequest,
    ) -> Result<Page<UserCoupon>, Refusal> {
        unimplemented!()
    }
}
