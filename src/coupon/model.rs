//! What the domain is about: a [`Coupon`] (a campaign) and a [`UserCoupon`] (one issued to one user).
//!
//! Both serialize to exactly the JSON that the API answers with. Money is whole units in an `i64`. What must hold:
//! a campaign only moves along [`CouponStatus::can_become`], a user coupon along [`UserCouponStatus::can_become`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    clock::UtcMicros,
    ids::{CouponId, UserCouponId, UserId},
};

/// How a discount is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DiscountType {
    /// `discountValue` units off.
    Fixed,
    /// `discountValue` percent off, rounded down to a whole unit.
    Percentage,
}

/// Where a campaign stands.
///
/// ```text
/// DRAFT ──open──> OPEN <──open / pause──> PAUSED
///                  │                        │
///                  └───────> CLOSED <───────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum CouponStatus {
    /// Being prepared: nothing can be issued.
    Draft,
    /// Issues, inside its window and while there are seats.
    Open,
    /// Issues nothing until it is opened again.
    Paused,
    /// Issues nothing any more. What was issued stays usable.
    Closed,
}

impl CouponStatus {
    /// The transition table.
    pub fn can_become(self, next: CouponStatus) -> bool {
        use CouponStatus::*;
        matches!(
            (self, next),
            (Draft, Open) | (Open, Paused) | (Paused, Open) | (Open, Closed) | (Paused, Closed)
        )
    }
}

/// Where a user coupon stands.
///
/// ```text
/// ACTIVE <──cancel-use / use──> USED
///   │
///   ├──revoke──> REVOKED
///   └──(validTo passes)──> EXPIRED    derived when read, never stored
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum UserCouponStatus {
    /// May be used inside its validity.
    Active,
    /// Used for an order.
    Used,
    /// Was never used and cannot be any more. Not stored: an active row past its `validTo` reads as this.
    Expired,
    /// Taken back by an operator. The seat is not given to anybody else.
    Revoked,
}

impl UserCouponStatus {
    /// The transition table of what is stored.
    pub fn can_become(self, next: UserCouponStatus) -> bool {
        use UserCouponStatus::*;
        matches!((self, next), (Active, Used) | (Used, Active) | (Active, Revoked))
    }
}

macro_rules! text_form {
    ($type:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $type {
            /// The word as JSON and the ledger hold it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is none of {}", [$($text),+].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

text_form!(DiscountType { Fixed = "FIXED", Percentage = "PERCENTAGE" });
text_form!(CouponStatus { Draft = "DRAFT", Open = "OPEN", Paused = "PAUSED", Closed = "CLOSED" });
text_form!(UserCouponStatus { Active = "ACTIVE", Used = "USED", Expired = "EXPIRED", Revoked = "REVOKED" });

/// A campaign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "couponId": 42, "couponName": "Spring sale", "discountType": "PERCENTAGE", "discountValue": 10,
    "maxDiscountAmount": 5000, "minOrderAmount": 10000, "maxIssueCount": 1000, "issuedCount": 17,
    "validFrom": "2026-02-28T15:00:00.000000Z", "validTo": "2026-03-31T15:00:00.000000Z", "status": "OPEN",
    "isAvailable": true, "createdBy": "marketing", "createdAt": "2026-02-20T01:02:03.000004Z",
    "updatedAt": "2026-02-28T15:00:00.000000Z"
}))]
pub struct Coupon {
    /// Its id.
    #[schema(value_type = i64, minimum = 1)]
    pub coupon_id: CouponId,
    /// Its name.
    pub coupon_name: String,
    /// How the discount is computed.
    pub discount_type: DiscountType,
    /// Units or percent, by the type.
    pub discount_value: i64,
    /// Most units a use takes off; none: no cap but the order itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_discount_amount: Option<i64>,
    /// Least order amount a use needs.
    pub min_order_amount: i64,
    /// How many may be issued.
    pub max_issue_count: i64,
    /// How many are issued, by the ledger.
    pub issued_count: i64,
    /// First moment of issuing; none: as soon as it is open.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub issue_from: Option<UtcMicros>,
    /// End of issuing (exclusive); none: until it is closed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub issue_until: Option<UtcMicros>,
    /// First moment of use.
    #[schema(value_type = String, format = DateTime)]
    pub valid_from: UtcMicros,
    /// End of use (exclusive).
    #[schema(value_type = String, format = DateTime)]
    pub valid_to: UtcMicros,
    /// Where it stands.
    pub status: CouponStatus,
    /// Open, inside its issue window, and with seats left by the ledger.
    pub is_available: bool,
    /// Who created it.
    pub created_by: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: UtcMicros,
    /// When it was last changed by an operator.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: UtcMicros,
    /// Generation of the gate's memory of this campaign; rows admitted in an older one are refused by the ledger.
    #[serde(skip, default = "first_epoch")]
    pub epoch: i64,
    /// The gate may not know the ledger's latest word on this campaign: it is to be rebuilt.
    #[serde(skip)]
    pub gate_stale: bool,
}

fn first_epoch() -> i64 {
    1
}

impl Coupon {
    /// Open, inside its issue window, and with seats left.
    pub fn available_at(&self, now: UtcMicros) -> bool {
        self.status == CouponStatus::Open
            && self.issue_from.is_none_or(|from| from <= now)
            && self.issue_until.is_none_or(|until| now < until)
            && self.issued_count < self.max_issue_count
    }
}

/// A coupon issued to one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "userCouponId": 257, "userId": 1001, "couponId": 42, "couponName": "Spring sale", "discountType": "PERCENTAGE",
    "discountValue": 10, "minOrderAmount": 10000, "status": "USED", "slotNo": 17,
    "issuedAt": "2026-03-01T00:00:00.123456Z", "validFrom": "2026-02-28T15:00:00.000000Z",
    "validTo": "2026-03-31T15:00:00.000000Z", "orderId": "order-77", "usedAt": "2026-03-02T09:30:00.000000Z",
    "discountAmount": 2500
}))]
pub struct UserCoupon {
    /// Its id.
    #[schema(value_type = i64, minimum = 1)]
    pub user_coupon_id: UserCouponId,
    /// Whose it is.
    #[schema(value_type = i64, minimum = 1)]
    pub user_id: UserId,
    /// Of which campaign.
    #[schema(value_type = i64, minimum = 1)]
    pub coupon_id: CouponId,
    /// The campaign's name.
    pub coupon_name: String,
    /// How the discount is computed.
    pub discount_type: DiscountType,
    /// Units or percent, by the type.
    pub discount_value: i64,
    /// Least order amount a use needs.
    pub min_order_amount: i64,
    /// Where it stands.
    pub status: UserCouponStatus,
    /// Which seat of the campaign it is, from 1.
    pub slot_no: i64,
    /// When it was issued.
    #[schema(value_type = String, format = DateTime)]
    pub issued_at: UtcMicros,
    /// First moment of use.
    #[schema(value_type = String, format = DateTime)]
    pub valid_from: UtcMicros,
    /// End of use (exclusive).
    #[schema(value_type = String, format = DateTime)]
    pub valid_to: UtcMicros,
    /// The order it is used for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub order_id: Option<String>,
    /// When it was used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub used_at: Option<UtcMicros>,
    /// Units it took off that order.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub discount_amount: Option<i64>,
}

/// Seats of a campaign, seen from both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "maxIssueCount": 1000, "issued": 17, "admitted": 18, "remaining": 982, "asOf": "2026-03-01T00:00:00.123456Z"
}))]
pub struct Stock {
    /// How many may be issued.
    pub max_issue_count: i64,
    /// How many are issued, by the ledger: the truth.
    pub issued: i64,
    /// How many seats the gate has given, those on their way to the ledger included; none while the gate does not answer.
    pub admitted: Option<i64>,
    /// Seats left: the limit less the larger of the two, never negative.
    pub remaining: i64,
    /// When both were read.
    #[schema(value_type = String, format = DateTime)]
    pub as_of: UtcMicros,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries, newest first.
    pub items: Vec<T>,
    /// Where the next page starts; none on the last.
    pub next_cursor: Option<Cursor>,
}

/// Where a page starts: an opaque text for clients, the last id seen for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub(super) i64);

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{:x}", self.0)
    }
}

impl std::str::FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix('c')
            .and_then(|hex| i64::from_str_radix(hex, 16).ok())
            .filter(|id| *id > 0)
            .map(Cursor)
            .ok_or_else(|| {
                format!("cursor `{text}` is not one this service gave; leave it out for the first page")
            })
    }
}

/// Most entries of one page.
pub const PAGE_LIMIT_MAX: usize = 100;
/// Entries of a page when the client does not say.
pub const PAGE_LIMIT_DEFAULT: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drawn_transitions_exist() {
        use CouponStatus::*;
        let all = [Draft, Open, Paused, Closed];
        let allowed: Vec<(CouponStatus, CouponStatus)> = all
            .into_iter()
            .flat_map(|from| all.map(|to| (from, to)))
            .filter(|(from, to)| from.can_become(*to))
            .collect();
        assert_eq!(
            allowed,
            [(Draft, Open), (Open, Paused), (Open, Closed), (Paused, Open), (Paused, Closed)]
        );
    }

    #[test]
    fn a_cursor_survives_its_text_and_a_foreign_one_is_refused() {
        let cursor = Cursor(9_007_199_254_740_993);
        assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        for text in ["", "c", "17", "c-1", "c0", "cxyz"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
