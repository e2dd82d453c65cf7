//! From bytes to the domain's types, exactly: what is not precisely right is answered 400 and names its field.
//!
//! * Ids are decimal digits without sign, leading zero or fraction, 1 to 2^63-1, in paths; in JSON they are numbers.
//! * Bodies are JSON whatever `Content-Type` says, at most `body_bytes_max` bytes, and must arrive in time.
//! * Admin bodies refuse unknown fields (a misspelt limit must not pass for the default); users' bodies ignore them,
//!   so that a client newer than this server still works.

use std::sync::Arc;

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, HeaderName, request::Parts},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use utoipa::IntoParams;

use super::{ApiState, edge::RequestId, error::Problem};
use crate::coupon::service::{IdempotencyKey, RequestContext};

/// The id in the path.
pub struct Id<T>(pub T);

impl<T: TryFrom<i64>> FromRequestParts<Arc<ApiState>> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::malformed("the id in the path is not text"))?;
        parse_id(&text).map(Id).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Problem::malformed(format!(
                "the id in the path must be a whole number from 1 to {}, not `{shown}`",
                i64::MAX
            ))
        })
    }
}

fn parse_id<T: TryFrom<i64>>(text: &str) -> Option<T> {
    let exact = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    exact.then(|| text.parse::<i64>().ok()).flatten().and_then(|id| T::try_from(id).ok())
}

/// A JSON body.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<ApiState>> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, Problem> {
        let bytes = tokio::time::timeout(
            state.ops.config.body_timeout,
            read_body(request, state.ops.config.body_bytes_max),
        )
        .await
        .map_err(|_| Problem::too_slow())??;
        parse_json(&bytes).map(JsonBody)
    }
}

async fn read_body(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let mut chunks = request.into_body().into_data_stream();
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Problem::malformed("the body broke off"))?;
        if first.len() + rest.len() + chunk.len() > limit {
            return Err(Problem::too_large(limit));
        }
        // Nearly every body is one chunk: then nothing is copied.
        if first.is_empty() { first = chunk } else { rest.extend_from_slice(&chunk) }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    if bytes.is_empty() {
        return Err(Problem::malformed("the request needs a JSON body"));
    }
    // Read again with the path kept: only a refused body pays for it.
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let result: Result<T, _> = serde_path_to_error::deserialize(&mut deserializer);
    let detail = match result {
        Err(error) => {
            let path = error.path().to_string();
            let inner = error.into_inner();
            match path.as_str() {
                "." | "?" => inner.to_string(),
                path => format!("{path}: {inner}"),
            }
        }
        Ok(_) => deserializer.end().map_or_else(|error| error.to_string(), |()| "not JSON".into()),
    };
    Err(Problem::malformed(detail))
}

/// Correlation id and idempotency key of a changing request.
pub struct Caller(pub RequestContext);

impl FromRequestParts<Arc<ApiState>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<ApiState>) -> Result<Self, Problem> {
        let request_id =
            parts.extensions.get::<RequestId>().map(|RequestId(id)| id.to_string()).unwrap_or_default();
        Ok(Self(RequestContext { request_id, idempotency_key: idempotency_key(&parts.headers)? }))
    }
}

/// The header, as the OpenAPI document shows it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "describes the header for OpenAPI; `Caller` reads it")]
pub struct IdempotencyHeader {
    /// Makes a repeat answer like the first call; kept 24 hours
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(Problem::malformed("Idempotency-Key is given more than once"));
    }
    let text =
        key.to_str().map_err(|_| Problem::malformed("Idempotency-Key has visible ASCII characters only"))?;
    IdempotencyKey::parse(text).map(Some).map_err(Problem::malformed)
}

/// Tells a field that is `null` (`Some(None)`) from one that is left out (`None`, by `default`).
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

/// An order's id: 1 to 100 characters; a whole number is taken as its decimal text, since many shops number their orders.
pub fn order_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = String;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("text or a whole number")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
            bounded(text, 100)
        }
        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(Visitor)
}

/// A reason: 1 to 500 characters.
pub fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    bounded(&String::deserialize(deserializer)?, 500)
}

/// Control characters are kept out of everything that is stored; Postgres could not hold a NUL at all.
fn bounded<E: serde::de::Error>(text: &str, max: usize) -> Result<String, E> {
    let length = text.chars().count();
    if text.trim().is_empty() || length > max {
        return Err(E::custom(format!("must have 1 to {max} characters, not {length} or only blanks")));
    }
    if text.chars().any(char::is_control) {
        return Err(E::custom("must not hold control characters"));
    }
    Ok(text.to_owned())
}

/// An amount of money: a whole number from 0.
pub fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let amount = i64::deserialize(deserializer)?;
    if amount < 0 {
        return Err(serde::de::Error::custom(format!("must be a whole number from 0, not {amount}")));
    }
    Ok(amount)
}

/// A field that may be left out but not be `null`: there is nothing that removing it could mean.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    match Option::<T>::deserialize(deserializer)? {
        Some(value) => Ok(Some(value)),
        None => Err(serde::de::Error::custom("cannot be removed; leave it out to keep it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupon::ids::CouponId;

    #[test]
    fn ids_are_exact() {
        let id = |text: &str| parse_id::<CouponId>(text).map(CouponId::get);
        assert_eq!(id("1"), Some(1));
        assert_eq!(id("9223372036854775807"), Some(i64::MAX));
        for text in ["", "0", "-1", "+1", "01", "1.0", "1e3", " 1", "1 ", "9223372036854775808", "١", "0x1"]
        {
            assert_eq!(id(text), None, "{text:?}");
        }
    }
}
