//! Events: what a topic says of a change of a user coupon, byte for byte.
//!
//! Made before the ledger's transaction, frozen in the outbox by it, carried to the log unchanged by the relay. Every
//! record is a CloudEvent in binary mode: the attributes are headers, the value is the JSON below. What must always
//! hold: fields are only ever added, and the key is the user's id as a decimal string, so a user's events keep their
//! order.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    clock::UtcMicros,
    ids::{CouponId, UserCouponId, UserId},
    outbox::{LANES, OutboxRow},
};
use crate::streams::client::partition_for_key;

/// Topic of [`CouponIssued`].
pub const TOPIC_ISSUED: &str = "coupon-issued";
/// Topic of [`CouponUsed`].
pub const TOPIC_USED: &str = "coupon-used";
/// Topic of [`CouponUseCancelled`].
pub const TOPIC_USE_CANCELLED: &str = "coupon-use-cancelled";
/// Topic of [`CouponRevoked`].
pub const TOPIC_REVOKED: &str = "coupon-revoked";
/// Every topic the outbox writes to.
pub const TOPICS: [&str; 4] = [TOPIC_ISSUED, TOPIC_USED, TOPIC_USE_CANCELLED, TOPIC_REVOKED];

/// Version of every event's JSON.
pub const SCHEMA_VERSION: u32 = 1;

/// A user got a coupon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the user coupon and the request")]
pub struct CouponIssued {
    pub event_id: Uuid,
    pub user_coupon_id: UserCouponId,
    pub user_id: UserId,
    pub coupon_id: CouponId,
    pub coupon_name: String,
    pub issued_at: UtcMicros,
    pub slot_no: i64,
    pub request_id: String,
    pub schema_version: u32,
    /// Seats of the campaign when this one was issued: with the count of events it tells a reader when the coupon is sold out.
    /// Absent in events written before it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_issue_count: Option<i64>,
}

/// A user coupon was used for an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the user coupon and the request")]
pub struct CouponUsed {
    pub event_id: Uuid,
    pub user_coupon_id: UserCouponId,
    pub user_id: UserId,
    pub coupon_id: CouponId,
    pub order_id: String,
    pub order_amount: i64,
    pub discount_amount: i64,
    pub used_at: UtcMicros,
    pub request_id: String,
    pub schema_version: u32,
}

/// A use was taken back; amounts and order are those of the use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the user coupon and the request")]
pub struct CouponUseCancelled {
    pub event_id: Uuid,
    pub user_coupon_id: UserCouponId,
    pub user_id: UserId,
    pub coupon_id: CouponId,
    pub order_id: String,
    pub order_amount: i64,
    pub discount_amount: i64,
    pub cancelled_at: UtcMicros,
    pub request_id: String,
    pub schema_version: u32,
}

/// An operator took a user coupon back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of the user coupon and the request")]
pub struct CouponRevoked {
    pub event_id: Uuid,
    pub user_coupon_id: UserCouponId,
    pub user_id: UserId,
    pub coupon_id: CouponId,
    pub reason: String,
    pub revoked_at: UtcMicros,
    pub request_id: String,
    pub schema_version: u32,
}

/// A fresh event id, whose leading bits are the time.
pub fn new_event_id(at: UtcMicros) -> Uuid {
    let micros = at.micros().unsigned_abs();
    let nanos = (micros % 1_000_000) as u32 * 1_000;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, micros / 1_000_000, nanos))
}

/// The headers of a record, as they are stored.
#[derive(Serialize)]
struct EventHeaders<'a> {
    ce_correlationid: &'a str,
    ce_id: &'a str,
    ce_source: &'a str,
    ce_specversion: &'a str,
    ce_time: UtcMicros,
    ce_type: &'a str,
    #[serde(rename = "content-type")]
    content_type: &'a str,
}

/// What every event can say of itself to become an outbox row.
pub trait Event: Serialize {
    /// Where it goes.
    const TOPIC: &'static str;
    /// `ce_type`.
    const TYPE: &'static str;
    /// `ce_id`.
    fn event_id(&self) -> Uuid;
    /// Whose order it keeps.
    fn user_id(&self) -> UserId;
    /// `ce_time` and the record's timestamp.
    fn at(&self) -> UtcMicros;
    /// Correlation id of the request that caused it.
    fn request_id(&self) -> &str;

    /// The row of the outbox: value and headers as they will be sent.
    fn to_outbox(&self, source: &str) -> OutboxRow {
        let event_id = self.event_id().to_string();
        let key = self.user_id().to_string();
        let headers = EventHeaders {
            ce_correlationid: self.request_id(),
            ce_id: &event_id,
            ce_source: source,
            ce_specversion: "1.0",
            ce_time: self.at(),
            ce_type: Self::TYPE,
            content_type: "application/json",
        };
        let headers = serde_json::to_string(&headers).expect("texts always serialize");
        OutboxRow {
            lane: i64::from(partition_for_key(key.as_bytes(), LANES)),
            topic: Self::TOPIC.into(),
            headers,
            payload: serde_json::to_vec(self).expect("an event has only texts and numbers"),
            created_at: self.at(),
            event_id,
            key,
        }
    }
}

macro_rules! event {
    ($type:ident, $topic:expr, $ce_type:literal, $at:ident) => {
        impl Event for $type {
            const TOPIC: &'static str = $topic;
            const TYPE: &'static str = $ce_type;
            fn event_id(&self) -> Uuid {
                self.event_id
            }
            fn user_id(&self) -> UserId {
                self.user_id
            }
            fn at(&self) -> UtcMicros {
                self.$at
            }
            fn request_id(&self) -> &str {
                &self.request_id
            }
        }
    };
}

event!(CouponIssued, TOPIC_ISSUED, "sluice.coupon.issued", issued_at);
event!(CouponUsed, TOPIC_USED, "sluice.coupon.used", used_at);
event!(CouponUseCancelled, TOPIC_USE_CANCELLED, "sluice.coupon.use-cancelled", cancelled_at);
event!(CouponRevoked, TOPIC_REVOKED, "sluice.coupon.revoked", revoked_at);

#[cfg(test)]
mod tests {
    use super::*;

    fn text(row: &OutboxRow) -> &str {
        std::str::from_utf8(&row.payload).unwrap()
    }

    #[test]
    fn the_json_is_the_contract_to_the_byte() {
        let at: UtcMicros = "2026-03-01T09:00:00.123456+09:00".parse().unwrap();
        let event_id = Uuid::from_u128(7);
        let issued = CouponIssued {
            event_id,
            user_coupon_id: UserCouponId::new(11).unwrap(),
            user_id: UserId::new(21).unwrap(),
            coupon_id: CouponId::new(3).unwrap(),
            coupon_name: "봄 \"세일\"".into(),
            issued_at: at,
            slot_no: 5,
            request_id: "r-1".into(),
            schema_version: SCHEMA_VERSION,
            max_issue_count: Some(9),
        };
        let row = issued.to_outbox("/here");
        assert_eq!(
            text(&row),
            r#"{"eventId":"00000000-0000-0000-0000-000000000007","userCouponId":11,"userId":21,"couponId":3,"couponName":"봄 \"세일\"","issuedAt":"2026-03-01T00:00:00.123456Z","slotNo":5,"requestId":"r-1","schemaVersion":1,"maxIssueCount":9}"#
        );
        assert_eq!((row.topic.as_ref(), row.key.as_str()), ("coupon-issued", "21"));
        let used = CouponUsed {
            event_id,
            user_coupon_id: issued.user_coupon_id,
            user_id: issued.user_id,
            coupon_id: issued.coupon_id,
            order_id: "o-9".into(),
            order_amount: 1_000,
            discount_amount: 100,
            used_at: at,
            request_id: "r-2".into(),
            schema_version: SCHEMA_VERSION,
        };
        let row = used.to_outbox("/here");
        assert_eq!(
            text(&row),
            r#"{"eventId":"00000000-0000-0000-0000-000000000007","userCouponId":11,"userId":21,"couponId":3,"orderId":"o-9","orderAmount":1000,"discountAmount":100,"usedAt":"2026-03-01T00:00:00.123456Z","requestId":"r-2","schemaVersion":1}"#
        );
        let headers: serde_json::Value = serde_json::from_str(&row.headers).unwrap();
        assert_eq!(
            headers,
            serde_json::json!({
                "ce_id": "00000000-0000-0000-0000-000000000007", "ce_type": "sluice.coupon.used",
                "ce_source": "/here", "ce_specversion": "1.0", "ce_time": "2026-03-01T00:00:00.123456Z",
                "ce_correlationid": "r-2", "content-type": "application/json",
            })
        );
    }

    #[test]
    fn event_ids_are_version_7_and_carry_their_time() {
        let at: UtcMicros = "2026-03-01T00:00:00.123Z".parse().unwrap();
        let id = new_event_id(at);
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.get_timestamp().unwrap().to_unix().0 as i64, at.millis() / 1_000);
        assert_ne!(id, new_event_id(at));
    }
}
