//! User coupons: read, list by user, use, take a use back, revoke.
//!
//! Each handler parses, calls one method of the service, and answers.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    ApiState,
    admin::Admin,
    coupons::IDEMPOTENCY_REPLAYED,
    error::Problem,
    extract::{Caller, Id, IdempotencyHeader, JsonBody, amount, order_id, reason},
    list::{ListQuery, Page, PageParams},
};
use crate::coupon::{
    error::Outcome,
    ids::{UserCouponId, UserId},
    model::{UserCoupon, UserCouponStatus},
    service::{CancelUse, UseCoupon},
};

/// Use for an order.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "orderId": "order-77", "orderAmount": 25000 }))]
pub struct UseRequest {
    /// The order: text of 1 to 100 characters; a whole number is taken as its decimal text.
    #[serde(deserialize_with = "order_id")]
    #[schema(min_length = 1, max_length = 100)]
    order_id: String,
    /// What the order costs, in whole units.
    #[serde(deserialize_with = "amount")]
    #[schema(minimum = 0)]
    order_amount: i64,
    /// Whose coupon it must be, where the caller knows; another user's is answered CP006.
    #[schema(value_type = Option<i64>, minimum = 1)]
    user_id: Option<UserId>,
}

/// Take a use back.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "orderId": "order-77" }))]
pub struct CancelUseRequest {
    /// The order it was used for.
    #[serde(deserialize_with = "order_id")]
    #[schema(min_length = 1, max_length = 100)]
    order_id: String,
    /// Whose coupon it must be, where the caller knows; another user's is answered CP006.
    #[schema(value_type = Option<i64>, minimum = 1)]
    user_id: Option<UserId>,
}

/// Take a user coupon away.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "reason": "issued to a test account" }))]
pub struct RevokeRequest {
    /// Why, for the history.
    #[serde(deserialize_with = "reason")]
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// Read a user coupon.
#[utoipa::path(
    get, path = "/api/user-coupons/{userCouponId}", operation_id = "getUserCoupon", tag = "user-coupon",
    params(("userCouponId" = i64, Path, minimum = 1)),
    responses((status = 200, description = "The user coupon", body = UserCoupon))
)]
pub async fn get(
    State(state): State<Arc<ApiState>>,
    Id(user_coupon): Id<UserCouponId>,
) -> Result<Json<UserCoupon>, Problem> {
    Ok(Json(state.service.user_coupon(user_coupon).await?))
}

/// List a user's coupons, newest first.
#[utoipa::path(
    get, path = "/api/coupon/user/{userId}", operation_id = "listUserCoupons", tag = "user-coupon",
    params(("userId" = i64, Path, minimum = 1), ("status" = Option<UserCouponStatus>, Query, description = "Only user coupons of this status"), PageParams),
    responses((status = 200, description = "A page; empty for a user without coupons", body = Page<UserCoupon>))
)]
pub async fn list_by_user(
    State(state): State<Arc<ApiState>>,
    Id(user): Id<UserId>,
    query: ListQuery<UserCouponStatus>,
) -> Result<Json<Page<UserCoupon>>, Problem> {
    Ok(Json(state.service.user_coupons(user, query.status, query.page).await?.into()))
}

/// Use a user coupon for an order. The same order again is the same 200.
#[utoipa::path(
    post, path = "/api/user-coupons/{userCouponId}/use", operation_id = "useUserCoupon", tag = "user-coupon",
    params(("userCouponId" = i64, Path, minimum = 1), IdempotencyHeader), request_body = UseRequest,
    responses(
        (status = 200, description = "Used, with discountAmount", body = UserCoupon, headers(("Idempotency-Replayed" = String, description = "`true` when an earlier call with this Idempotency-Key did it"))),
        (status = 409, description = "CP002 ended or expired; CP003 already used for another order; CP011 not valid yet", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "CP004 minimum order not met; CP015 idempotency key reused", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn redeem(
    State(state): State<Arc<ApiState>>,
    Id(user_coupon): Id<UserCouponId>,
    Caller(context): Caller,
    JsonBody(body): JsonBody<UseRequest>,
) -> Result<Response, Problem> {
    let request =
        UseCoupon { order_id: body.order_id, order_amount: body.order_amount, user_id: body.user_id };
    changed(state.service.use_coupon(user_coupon, request, &context).await)
}

/// Take a use back. The same order again is the same 200.
#[utoipa::path(
    post, path = "/api/user-coupons/{userCouponId}/cancel-use", operation_id = "cancelUse", tag = "user-coupon",
    params(("userCouponId" = i64, Path, minimum = 1), IdempotencyHeader), request_body = CancelUseRequest,
    responses(
        (status = 200, description = "Active again", body = UserCoupon, headers(("Idempotency-Replayed" = String, description = "`true` when an earlier call with this Idempotency-Key did it"))),
        (status = 409, description = "CP003 used for another order; CP014 not used", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "CP015 idempotency key reused", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn cancel_use(
    State(state): State<Arc<ApiState>>,
    Id(user_coupon): Id<UserCouponId>,
    Caller(context): Caller,
    JsonBody(body): JsonBody<CancelUseRequest>,
) -> Result<Response, Problem> {
    let request = CancelUse { order_id: body.order_id, user_id: body.user_id };
    changed(state.service.cancel_use(user_coupon, request, &context).await)
}

/// Take a user coupon away for good. The seat is not given to anybody else.
#[utoipa::path(
    post, path = "/api/user-coupons/{userCouponId}/revoke", operation_id = "revokeUserCoupon", tag = "user-coupon",
    params(("userCouponId" = i64, Path, minimum = 1), IdempotencyHeader), request_body = RevokeRequest, security(("admin" = [])),
    responses(
        (status = 200, description = "Revoked", body = UserCoupon, headers(("Idempotency-Replayed" = String, description = "`true` when an earlier call with this Idempotency-Key did it"))),
        (status = 409, description = "CP014 illegal transition", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "CP015 idempotency key reused", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn revoke(
    _: Admin,
    State(state): State<Arc<ApiState>>,
    Id(user_coupon): Id<UserCouponId>,
    Caller(context): Caller,
    JsonBody(body): JsonBody<RevokeRequest>,
) -> Result<Response, Problem> {
    changed(state.service.revoke(user_coupon, body.reason, &context).await)
}

/// 200 with what it is now; a replay says so in a header.
fn changed(outcome: Outcome<UserCoupon>) -> Result<Response, Problem> {
    match outcome {
        Outcome::Done(user_coupon) => Ok(Json(user_coupon).into_response()),
        Outcome::Replayed(user_coupon) => {
            let mut response = Json(user_coupon).into_response();
            response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Outcome::Refused(refusal) => Err(refusal.into()),
    }
}
