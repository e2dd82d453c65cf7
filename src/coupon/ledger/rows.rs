//! How rows become [`Coupon`]s and [`UserCoupon`]s. The column lists stand beside the code that reads them.

use crate::coupon::{
    clock::UtcMicros,
    db::{DbError, DbResult, Row},
    ids::{CouponId, UserCouponId, UserId},
    model::{Coupon, UserCoupon, UserCouponStatus},
};

/// What [`coupon`] reads, all but the count of issued rows.
macro_rules! coupon_columns {
    () => {
        "coupons.coupon_id, coupon_name, discount_type, discount_value, max_discount_amount, min_order_amount, \
         max_issue_count, issue_from, issue_until, valid_from, valid_to, coupons.status, coupons.epoch, gate_stale, \
         created_by, created_at, updated_at"
    };
}

/// What [`user_coupon`] reads, from user_coupons joined with coupons.
macro_rules! user_coupon_columns {
    () => {
        "user_coupon_id, user_id, user_coupons.coupon_id, coupon_name, discount_type, discount_value, \
         max_discount_amount, min_order_amount, user_coupons.status, slot_no, issued_at, valid_from, valid_to, order_id, \
         order_amount, used_at, discount_amount, admission_token, last_seq, changed_at"
    };
}

pub(crate) use {coupon_columns, user_coupon_columns};

/// Parses a checked id.
pub fn id<T: TryFrom<i64, Error = String>>(row: &Row, column: &'static str) -> DbResult<T> {
    T::try_from(row.int(column)?).map_err(|error| DbError::Corrupt(format!("column {column} {error}")))
}

fn time(row: &Row, column: &'static str) -> DbResult<UtcMicros> {
    row.int(column).map(UtcMicros::clamped)
}

fn opt_time(row: &Row, column: &'static str) -> DbResult<Option<UtcMicros>> {
    Ok(row.opt_int(column)?.map(UtcMicros::clamped))
}

/// A campaign; `issued_count` comes with it or is counted elsewhere.
pub fn coupon(row: &Row, issued_count: i64, now: UtcMicros) -> DbResult<Coupon> {
    let mut coupon = Coupon {
        coupon_id: id::<CouponId>(row, "coupon_id")?,
        coupon_name: row.text("coupon_name")?,
        discount_type: row.parsed("discount_type")?,
        discount_value: row.int("discount_value")?,
        max_discount_amount: row.opt_int("max_discount_amount")?,
        min_order_amount: row.int("min_order_amount")?,
        max_issue_count: row.int("max_issue_count")?,
        issued_count,
        issue_from: opt_time(row, "issue_from")?,
        issue_until: opt_time(row, "issue_until")?,
        valid_from: time(row, "valid_from")?,
        valid_to: time(row, "valid_to")?,
        status: row.parsed("status")?,
        is_available: false,
        created_by: row.text("created_by")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        epoch: row.int("epoch")?,
        gate_stale: row.bool("gate_stale")?,
    };
    coupon.is_available = coupon.available_at(now);
    Ok(coupon)
}

/// A user coupon with what only the ledger's side knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredUserCoupon {
    /// As the API shows it: an active row past its validity is expired.
    pub shown: UserCoupon,
    /// The status as stored.
    pub status: UserCouponStatus,
    /// Amount of the order it is used for.
    pub order_amount: Option<i64>,
    /// Cap of its discount.
    pub max_discount_amount: Option<i64>,
    /// What its seat was admitted with.
    pub admission_token: String,
    /// Number of its last history line.
    pub last_seq: i64,
    /// Time of its last history line.
    pub changed_at: UtcMicros,
}

/// A user coupon joined with its campaign.
pub fn user_coupon(row: &Row, now: UtcMicros) -> DbResult<StoredUserCoupon> {
    let status: UserCouponStatus = row.parsed("status")?;
    let valid_to = time(row, "valid_to")?;
    let expired = status == UserCouponStatus::Active && valid_to <= now;
    Ok(StoredUserCoupon {
        shown: UserCoupon {
            user_coupon_id: id::<UserCouponId>(row, "user_coupon_id")?,
            user_id: id::<UserId>(row, "user_id")?,
            coupon_id: id::<CouponId>(row, "coupon_id")?,
            coupon_name: row.text("coupon_name")?,
            discount_type: row.parsed("discount_type")?,
            discount_value: row.int("discount_value")?,
            min_order_amount: row.int("min_order_amount")?,
            status: if expired { UserCouponStatus::Expired } else { status },
            slot_no: row.int("slot_no")?,
            issued_at: time(row, "issued_at")?,
            valid_from: time(row, "valid_from")?,
            valid_to,
            order_id: row.opt_text("order_id")?,
            used_at: opt_time(row, "used_at")?,
            discount_amount: row.opt_int("discount_amount")?,
        },
        status,
        order_amount: row.opt_int("order_amount")?,
        max_discount_amount: row.opt_int("max_discount_amount")?,
        admission_token: row.text("admission_token")?,
        last_seq: row.int("last_seq")?,
        changed_at: time(row, "changed_at")?,
    })
}
