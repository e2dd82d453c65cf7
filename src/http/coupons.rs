//! Campaigns: create, read, change, open, pause, close, stock, and the rush itself: issue.
//!
//! Each handler parses, calls one method of the service, and answers.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    ApiState,
    admin::Admin,
    error::Problem,
    extract::{Caller, Id, IdempotencyHeader, JsonBody, given, present},
    list::{ListQuery, Page, PageParams},
};
use crate::coupon::{
    clock::UtcMicros,
    error::Outcome,
    ids::{CouponId, UserId},
    model::{Coupon, CouponStatus, Stock, UserCoupon},
    service::{CreateCoupon, PatchCoupon},
};

/// Says that the answer is an earlier call's.
pub(super) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A campaign to create.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({
    "couponName": "Spring sale", "discountType": "PERCENTAGE", "discountValue": 10, "maxDiscountAmount": 5000,
    "minOrderAmount": 10000, "maxIssueCount": 1000, "validFrom": "2026-03-01T00:00:00+09:00",
    "validTo": "2026-04-01T00:00:00+09:00", "createdBy": "marketing"
}))]
pub struct CreateCouponRequest {
    /// 1 to 200 characters.
    #[schema(min_length = 1, max_length = 200)]
    coupon_name: String,
    /// `FIXED` or `PERCENTAGE`.
    #[schema(value_type = crate::coupon::model::DiscountType)]
    discount_type: String,
    /// Whole units, or percent from 1 to 100.
    #[schema(minimum = 1)]
    discount_value: i64,
    /// Most units one use takes off.
    #[schema(minimum = 1)]
    max_discount_amount: Option<i64>,
    /// Least order amount a use needs.
    #[serde(default)]
    #[schema(minimum = 0)]
    min_order_amount: i64,
    /// Seats.
    #[schema(minimum = 1)]
    max_issue_count: i64,
    /// Start of issuing; left out: as soon as it is open.
    #[schema(value_type = Option<String>, format = DateTime)]
    issue_from: Option<UtcMicros>,
    /// End of issuing (exclusive); left out: until it is closed.
    #[schema(value_type = Option<String>, format = DateTime)]
    issue_until: Option<UtcMicros>,
    /// Start of use.
    #[schema(value_type = String, format = DateTime)]
    valid_from: UtcMicros,
    /// End of use (exclusive).
    #[schema(value_type = String, format = DateTime)]
    valid_to: UtcMicros,
    /// Who creates it.
    #[schema(min_length = 1, max_length = 100)]
    created_by: String,
}

/// A change of a campaign; what is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "maxIssueCount": 2000, "issueUntil": null }))]
pub struct PatchCouponRequest {
    /// New name.
    #[serde(default, deserialize_with = "given")]
    #[schema(min_length = 1, max_length = 200)]
    coupon_name: Option<String>,
    /// New number of seats, never below what is issued.
    #[serde(default, deserialize_with = "given")]
    #[schema(minimum = 1)]
    max_issue_count: Option<i64>,
    /// New start of issuing; null removes it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, format = DateTime)]
    issue_from: Option<Option<UtcMicros>>,
    /// New end of issuing; null removes it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, format = DateTime)]
    issue_until: Option<Option<UtcMicros>>,
    /// New start of use.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_from: Option<UtcMicros>,
    /// New end of use.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    valid_to: Option<UtcMicros>,
}

/// Who wants one.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "userId": 1001 }))]
pub struct IssueRequest {
    /// The user.
    #[schema(value_type = i64, minimum = 1)]
    user_id: UserId,
}

/// Create a campaign, in DRAFT.
#[utoipa::path(
    post, path = "/api/coupon", operation_id = "createCoupon", tag = "coupon", request_body = CreateCouponRequest,
    security(("admin" = [])),
    responses(
        (status = 201, description = "Created, in DRAFT", body = Coupon, headers(("Location" = String, description = "Where it is"))),
        (status = 422, description = "CP008 invalid discount type; CP012 invalid campaign", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    _: Admin,
    State(state): State<Arc<ApiState>>,
    JsonBody(body): JsonBody<CreateCouponRequest>,
) -> Result<Response, Problem> {
    let request = CreateCoupon {
        coupon_name: body.coupon_name,
        discount_type: body.discount_type,
        discount_value: body.discount_value,
        max_discount_amount: body.max_discount_amount,
        min_order_amount: body.min_order_amount,
        max_issue_count: body.max_issue_count,
        issue_from: body.issue_from,
        issue_until: body.issue_until,
        valid_from: body.valid_from,
        valid_to: body.valid_to,
        created_by: body.created_by,
    };
    let outcome = state.service.create(request).await;
    created(outcome, |coupon| format!("/api/coupon/{}", coupon.coupon_id))
}

/// List campaigns, newest first.
#[utoipa::path(
    get, path = "/api/coupon", operation_id = "listCoupons", tag = "coupon", params(("status" = Option<CouponStatus>, Query, description = "Only campaigns of this status"), PageParams),
    responses((status = 200, description = "A page", body = Page<Coupon>))
)]
pub async fn list(
    State(state): State<Arc<ApiState>>,
    query: ListQuery<CouponStatus>,
) -> Result<Json<Page<Coupon>>, Problem> {
    Ok(Json(state.service.coupons(query.status, query.page).await?.into()))
}

/// Read a campaign.
#[utoipa::path(
    get, path = "/api/coupon/{couponId}", operation_id = "getCoupon", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1)),
    responses((status = 200, description = "The campaign", body = Coupon))
)]
pub async fn get(
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
) -> Result<Json<Coupon>, Problem> {
    Ok(Json(state.service.coupon(coupon).await?))
}

/// Change a campaign: name, number of seats, windows.
#[utoipa::path(
    patch, path = "/api/coupon/{couponId}", operation_id = "patchCoupon", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1)), request_body = PatchCouponRequest, security(("admin" = [])),
    responses(
        (status = 200, description = "The campaign as it is now", body = Coupon),
        (status = 422, description = "CP012 invalid campaign, for example fewer seats than issued", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn patch(
    _: Admin,
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
    JsonBody(body): JsonBody<PatchCouponRequest>,
) -> Result<Json<Coupon>, Problem> {
    let change = PatchCoupon {
        coupon_name: body.coupon_name,
        max_issue_count: body.max_issue_count,
        issue_from: body.issue_from,
        issue_until: body.issue_until,
        valid_from: body.valid_from,
        valid_to: body.valid_to,
    };
    Ok(Json(state.service.patch(coupon, change).await.done()?))
}

/// Open a campaign: it issues from now on, inside its window.
#[utoipa::path(
    post, path = "/api/coupon/{couponId}/open", operation_id = "openCoupon", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1)), security(("admin" = [])),
    responses(
        (status = 200, description = "Open", body = Coupon),
        (status = 409, description = "CP014 illegal transition", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn open(
    _: Admin,
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
) -> Result<Json<Coupon>, Problem> {
    Ok(Json(state.service.open(coupon).await.done()?))
}

/// Pause a campaign: nothing is issued until it is opened again.
#[utoipa::path(
    post, path = "/api/coupon/{couponId}/pause", operation_id = "pauseCoupon", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1)), security(("admin" = [])),
    responses(
        (status = 200, description = "Paused", body = Coupon),
        (status = 409, description = "CP014 illegal transition", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn pause(
    _: Admin,
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
) -> Result<Json<Coupon>, Problem> {
    Ok(Json(state.service.pause(coupon).await.done()?))
}

/// Close a campaign for good. What was issued stays usable.
#[utoipa::path(
    post, path = "/api/coupon/{couponId}/close", operation_id = "closeCoupon", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1)), security(("admin" = [])),
    responses(
        (status = 200, description = "Closed", body = Coupon),
        (status = 409, description = "CP014 illegal transition", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn close(
    _: Admin,
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
) -> Result<Json<Coupon>, Problem> {
    Ok(Json(state.service.close(coupon).await.done()?))
}

/// Seats left, by the ledger (the truth) and by the gate (what is on its way).
#[utoipa::path(
    get, path = "/api/coupon/{couponId}/stock", operation_id = "getStock", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1)),
    responses((status = 200, description = "The stock", body = Stock))
)]
pub async fn stock(
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
) -> Result<Json<Stock>, Problem> {
    Ok(Json(state.service.stock(coupon).await?))
}

/// Issue one to a user: first come, first served.
///
/// The natural key is (couponId, userId): a repeat is 409 CP007 with `existing`, or, with the same
/// `Idempotency-Key` as the first call, 200 with the same body. After 503 CP010 send the same request again.
#[utoipa::path(
    post, path = "/api/coupon/{couponId}/issue-redis", operation_id = "issueCoupon", tag = "coupon",
    params(("couponId" = i64, Path, minimum = 1), IdempotencyHeader),
    request_body = IssueRequest,
    responses(
        (status = 201, description = "Issued", body = UserCoupon, headers(("Location" = String, description = "Where it is"))),
        (status = 200, description = "Issued by an earlier call with this Idempotency-Key", body = UserCoupon, headers(("Idempotency-Replayed" = String, description = "`true`"))),
        (status = 409, description = "CP002 ended; CP005 sold out; CP007 already issued (with `existing`); CP011 not open yet (with `openAt`, Retry-After); CP013 paused", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "CP015 idempotency key reused with another body", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn issue(
    State(state): State<Arc<ApiState>>,
    Id(coupon): Id<CouponId>,
    Caller(context): Caller,
    JsonBody(body): JsonBody<IssueRequest>,
) -> Result<Response, Problem> {
    let outcome = state.service.issue(coupon, body.user_id, &context).await;
    created(outcome, |issued| format!("/api/user-coupons/{}", issued.user_coupon_id))
}

/// 201 with Location, or 200 for a replay.
fn created<T: Serialize>(outcome: Outcome<T>, location: impl Fn(&T) -> String) -> Result<Response, Problem> {
    let (status, value, is_replay) = match outcome {
        Outcome::Done(value) => (StatusCode::CREATED, value, false),
        Outcome::Replayed(value) => (StatusCode::OK, value, true),
        Outcome::Refused(refusal) => return Err(refusal.into()),
    };
    let location = HeaderValue::from_str(&location(&value)).map_err(|_| Problem::internal())?;
    let mut response = (status, Json(value)).into_response();
    response.headers_mut().insert(header::LOCATION, location);
    if is_replay {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}
