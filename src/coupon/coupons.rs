//! A campaign's life.
use super::{
    error::Outcome,
    ids::CouponId,
    model::Coupon,
    service::{CouponService, CreateCoupon, PatchCoupon},
};
impl CouponService {
    /// Creates a campaign as a draft.
    pub async fn create(&self, _request: CreateCoupon) -> Outcome<Coupon> {
        unimplemented!()
    }
    /// Changes a campaign.
    pub async fn patch(&self, _coupon: CouponId, _change: PatchCoupon) -> Outcome<Coupon> {
        unimplemented!()
    }
    /// Draft or paused becomes open.
    pub async fn open(&self, _coupon: CouponId) -> Outcome<Coupon> {
        unimplemented!()
    }
    /// Open becomes paused.
    pub async fn pause(&self, _coupon: CouponId) -> Outcome<Coupon> {
        unimplemented!()
    }
    /// Open or paused becomes closed.
    pub async fn close(&self, _coupon: CouponId) -> Outcome<Coupon> {
        unimplemented!()
    }
}
