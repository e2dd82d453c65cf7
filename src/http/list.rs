//! Lists: which page is asked for, and how one is answered. The same for campaigns and for a user's coupons.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{ApiState, error::Problem};
use crate::coupon::{
    model::{self, Cursor, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX},
    service::PageRequest,
};

/// One page of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// Newest first.
    items: Vec<T>,
    /// Give this as `cursor` for the next page; null on the last.
    next_cursor: Option<String>,
}

impl<T> From<model::Page<T>> for Page<T> {
    fn from(page: model::Page<T>) -> Self {
        Self { items: page.items, next_cursor: page.next_cursor.map(|cursor| cursor.to_string()) }
    }
}

/// Which page, as the OpenAPI document shows it; each list adds its own `status`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the query for OpenAPI; `ListQuery` reads it")]
pub struct PageParams {
    /// `nextCursor` of the page before.
    cursor: Option<String>,
    /// Entries per page, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u32>,
}

/// Filter and page of a list: `?status=&cursor=&limit=`.
pub struct ListQuery<S> {
    /// Only entries of this status.
    pub status: Option<S>,
    /// Which page.
    pub page: PageRequest,
}

#[derive(Deserialize)]
struct RawListQuery {
    status: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

impl<S: std::str::FromStr<Err = String>> FromRequestParts<Arc<ApiState>> for ListQuery<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, Problem> {
        let Query(raw) = Query::<RawListQuery>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::malformed(format!("query: {}", error.body_text())))?;
        // An empty parameter (`?status=`) is one that is left out.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let status = given(raw.status)
            .map(|text| text.parse::<S>().map_err(|error| Problem::malformed(format!("status: {error}"))))
            .transpose()?;
        let cursor =
            given(raw.cursor).map(|text| text.parse::<Cursor>().map_err(Problem::malformed)).transpose()?;
        let limit = given(raw.limit)
            .map(|text| {
                text.parse::<usize>().ok().filter(|limit| (1..=PAGE_LIMIT_MAX).contains(limit)).ok_or_else(|| {
                    Problem::malformed(format!(
                        "limit must be a whole number from 1 to {PAGE_LIMIT_MAX} (default {PAGE_LIMIT_DEFAULT})"
                    ))
                })
            })
            .transpose()?;
        Ok(Self { status, page: PageRequest { cursor, limit } })
    }
}
