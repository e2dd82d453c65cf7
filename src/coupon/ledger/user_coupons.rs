//! Reads of user coupons.

use super::{
    Ledger,
    rows::{self, StoredUserCoupon, user_coupon_columns},
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbResult, Param},
    ids::{CouponId, UserCouponId, UserId},
    model::{UserCoupon, UserCouponStatus},
};

/// The one of a campaign's rows that a user holds.
pub(super) const OF_USER: &str = concat!(
    "select ",
    user_coupon_columns!(),
    " from user_coupons join coupons on coupons.coupon_id = user_coupons.coupon_id
      where user_coupons.coupon_id = $1 and user_id = $2"
);

/// One row by its id.
pub(super) const BY_ID: &str = concat!(
    "select ",
    user_coupon_columns!(),
    " from user_coupons join coupons on coupons.coupon_id = user_coupons.coupon_id where user_coupon_id = $1"
);

impl Ledger {
    /// One user coupon.
    pub async fn user_coupon(&self, id: UserCouponId, now: UtcMicros) -> DbResult<Option<StoredUserCoupon>> {
        let rows = self.db.read(BY_ID, &[Param::Int(id.get())]).await?;
        rows.first().map(|row| rows::user_coupon(row, now)).transpose()
    }

    /// The one a user holds of a campaign.
    pub async fn user_coupon_of(
        &self,
        coupon: CouponId,
        user: UserId,
        now: UtcMicros,
    ) -> DbResult<Option<StoredUserCoupon>> {
        let rows = self.db.read(OF_USER, &[Param::Int(coupon.get()), Param::Int(user.get())]).await?;
        rows.first().map(|row| rows::user_coupon(row, now)).transpose()
    }

    /// A user's coupons below the id `before`, newest first. `ACTIVE` and `EXPIRED` are told apart by `now`.
    pub async fn user_coupons(
        &self,
        user: UserId,
        status: Option<UserCouponStatus>,
        before: i64,
        max: usize,
        now: UtcMicros,
    ) -> DbResult<Vec<UserCoupon>> {
        let rows = self
            .db
            .read(
                concat!(
                    "select ",
                    user_coupon_columns!(),
                    " from user_coupons join coupons on coupons.coupon_id = user_coupons.coupon_id
                      where user_id = $1 and user_coupon_id < $2
                        and ($3 = '' or $3 = case when user_coupons.status = 'ACTIVE' and valid_to <= $4
                                                  then 'EXPIRED' else user_coupons.status end)
                      order by user_coupon_id desc limit $5"
                ),
                &[
                    Param::Int(user.get()),
                    Param::Int(before),
                    Param::Text(status.map_or("", UserCouponStatus::as_str)),
                    Param::Int(now.micros()),
                    Param::Int(super::limit(max)),
                ],
            )
            .await?;
        rows.iter().map(|row| Ok(rows::user_coupon(row, now)?.shown)).collect()
    }
}
