//! The local snapshot of campaigns.
use super::service::CouponConfig;
pub(super) struct Snapshots;
impl Snapshots {
    pub(super) fn new(_: &CouponConfig) -> Self {
        Self
    }
}
