//! Reading what the scripts answer. Whatever is not exactly as their headers say is an error that shows it.

use ::redis::Value;
use uuid::Uuid;

use crate::coupon::gate::{Admission, GateError, Outcome, Seat};
use crate::coupon::ids::{CouponId, UserId};

/// One claim's answer of `admit_seat`.
pub(super) fn admission(answer: &Value) -> Result<Admission, GateError> {
    let values = list(answer)?;
    let [code, rest @ ..] = values else { return Err(unexpected("a code", answer)) };
    match (number(code)?, rest) {
        (0, []) => Ok(Admission::SoldOut),
        (-1, [held, at, pending]) => {
            Ok(Admission::Duplicate { seat: seat(held, at)?, pending: is_one(pending)? })
        }
        (-2, [from]) => Ok(Admission::NotStarted { issue_from_us: number(from)? }),
        (-3, []) => Ok(Admission::Ended),
        (-4, []) => Ok(Admission::Paused),
        (-5, []) => Ok(Admission::NotReady),
        (1.., [held, at]) => Ok(Admission::Admitted(seat(held, at)?)),
        _ => Err(unexpected("an admission", answer)),
    }
}

/// `slot:ordinal:epoch:token` and the admission time.
pub(super) fn seat(held: &Value, at: &Value) -> Result<Seat, GateError> {
    let parse = |text: &str| -> Option<Seat> {
        let mut parts = text.splitn(4, ':');
        Some(Seat {
            slot: parts.next()?.parse().ok()?,
            ordinal: parts.next()?.parse().ok()?,
            epoch: parts.next()?.parse().ok()?,
            token: Uuid::try_parse(parts.next()?).ok()?,
            admitted_at_us: number(at).ok()?,
        })
    };
    text_of(held).and_then(parse).ok_or_else(|| unexpected("slot:ordinal:epoch:token and a time", held))
}

pub(super) fn user_id(value: &Value) -> Result<UserId, GateError> {
    UserId::new(number(value)?).ok_or_else(|| unexpected("a user id", value))
}

pub(super) fn done_or_stale(reply: &Value, coupon: CouponId) -> Result<(), GateError> {
    match list(reply)? {
        [Value::Int(1)] => Ok(()),
        [Value::Int(0), epoch] => Err(GateError::Stale { coupon, epoch: number(epoch)? }),
        _ => Err(unexpected("{1} or {0, epoch}", reply)),
    }
}

pub(super) fn is_one(value: &Value) -> Result<bool, GateError> {
    match value {
        Value::Int(1) => Ok(true),
        Value::Int(0) => Ok(false),
        _ => Err(unexpected("1 or 0", value)),
    }
}

pub(super) fn number(value: &Value) -> Result<i64, GateError> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => text_of(value)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| unexpected("a whole number", value)),
    }
}

pub(super) fn list(value: &Value) -> Result<&[Value], GateError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected("an array", value)),
    }
}

pub(super) fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// The script ran and said something else: whatever it did is done.
pub(super) fn unexpected(expected: &str, value: &Value) -> GateError {
    GateError::Unavailable {
        outcome: Outcome::Unknown,
        reason: format!(
            "Redis answered {value:?} where {expected} was expected; do other programs write its keys?"
        ),
    }
}
