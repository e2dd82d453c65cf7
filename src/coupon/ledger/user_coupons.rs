//! Reads of user coupons.

use std::collections::HashMap;

use super::{
    Ledger,
    rows::{self, StoredUserCoupon, user_coupon_columns},
};
use crate::coupon::{
    clock::UtcMicros,
    db::{DbResult, Param, Row, Tx},
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

/// What many users hold, each of a campaign: lists of both, place by place.
const OF_USERS_POSTGRES: &str = concat!(
    "select ",
    user_coupon_columns!(),
    " from unnest($1::bigint[], $2::bigint[]) as wanted (coupon, owner)
      join user_coupons on user_coupons.coupon_id = wanted.coupon and user_coupons.user_id = wanted.owner
      join coupons on coupons.coupon_id = user_coupons.coupon_id"
);
const OF_USERS_SQLITE: &str = concat!(
    "select ",
    user_coupon_columns!(),
    " from json_each($1) as coupon join json_each($2) as owner on owner.key = coupon.key
      join user_coupons on user_coupons.coupon_id = coupon.value and user_coupons.user_id = owner.value
      join coupons on coupons.coupon_id = user_coupons.coupon_id"
);

/// What users hold, by campaign and user.
pub type Held = HashMap<(CouponId, UserId), StoredUserCoupon>;

/// What these users hold, as a transaction sees it.
pub(super) async fn held(
    tx: &mut Tx,
    wanted: impl Iterator<Item = (CouponId, UserId)>,
    now: UtcMicros,
) -> DbResult<Held> {
    let sql = tx.pick(OF_USERS_POSTGRES, OF_USERS_SQLITE);
    by_holder(&tx.fetch(sql, &lists(wanted)).await?, now)
}

fn lists(wanted: impl Iterator<Item = (CouponId, UserId)>) -> [Param<'static>; 2] {
    let (coupons, users) = wanted.map(|(coupon, user)| (coupon.get(), user.get())).unzip();
    [Param::Ints(coupons), Param::Ints(users)]
}

fn by_holder(found: &[Row], now: UtcMicros) -> DbResult<Held> {
    let stored = found.iter().map(|row| rows::user_coupon(row, now));
    stored.map(|row| row.map(|row| ((row.shown.coupon_id, row.shown.user_id), row))).collect()
}

impl Ledger {
    /// What these users hold, each of a campaign; who holds nothing is left out.
    pub async fn holders(&self, wanted: &[(CouponId, UserId)], now: UtcMicros) -> DbResult<Held> {
        let sql = self.db.pick(OF_USERS_POSTGRES, OF_USERS_SQLITE);
        by_holder(&self.db.read(sql, &lists(wanted.iter().copied())).await?, now)
    }

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
