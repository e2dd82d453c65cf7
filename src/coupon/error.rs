//! Refusals: every expected answer that is not the thing asked for, each with its CP code.
//!
//! The domain answers with [`Outcome`], never with an HTTP status; `http/error.rs` holds the one table from here to
//! there. A refusal is either a business answer (a definite no that left nothing behind) or says what became of a
//! dependency: [`Refusal::SeatReleased`] is a definite no, [`Refusal::OutcomeUnknown`] is *not* a no, and the same
//! request may safely be repeated.

use super::{clock::UtcMicros, model::UserCoupon};

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Done by this call.
    Done(T),
    /// Done by an earlier call with the same idempotency key: the same body, and nothing happened now.
    Replayed(T),
    /// Not done.
    Refused(Refusal),
}

impl<T> Outcome<T> {
    /// What was done, now or earlier.
    pub fn done(self) -> Result<T, Refusal> {
        match self {
            Outcome::Done(value) | Outcome::Replayed(value) => Ok(value),
            Outcome::Refused(refusal) => Err(refusal),
        }
    }
}

impl<T> From<Result<T, Refusal>> for Outcome<T> {
    fn from(result: Result<T, Refusal>) -> Self {
        match result {
            Ok(value) => Outcome::Done(value),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }
}

/// What a refusal may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dependency {
    /// The gate (Redis).
    Gate,
    /// The ledger (SQL).
    Ledger,
}

impl Dependency {
    /// Its name, as clients and metrics see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Dependency::Gate => "gate",
            Dependency::Ledger => "ledger",
        }
    }
}

/// Why the thing asked for was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// CP001: no such campaign.
    CouponNotFound,
    /// CP002: the issue window is over, the campaign is closed, or the user coupon is expired, not valid yet or revoked.
    Ended {
        /// What ended, for a person.
        detail: String,
    },
    /// CP003: used for another order.
    AlreadyUsed {
        /// The user coupon as it is.
        existing: Box<UserCoupon>,
    },
    /// CP004: the order is below the coupon's minimum.
    MinimumOrderNotMet {
        /// What the order needs.
        min_order_amount: i64,
        /// What it has.
        order_amount: i64,
    },
    /// CP005: every seat is taken.
    SoldOut,
    /// CP006: no such user coupon (or not this user's).
    UserCouponNotFound,
    /// CP007: the user already holds one.
    AlreadyIssued {
        /// The one held, so that a client that lost the answer recovers.
        existing: Box<UserCoupon>,
    },
    /// CP008: the discount type is not one we know.
    InvalidDiscountType {
        /// What was given.
        given: String,
    },
    /// CP009: a dependency said a definite no; nothing is left behind, a seat taken on the way was given back.
    SeatReleased {
        /// Which.
        dependency: Dependency,
    },
    /// CP010: whether it was done is unknown. The same request again is safe and finds out.
    OutcomeUnknown {
        /// Which dependency did not answer.
        dependency: Dependency,
    },
    /// CP011: the campaign does not issue yet.
    NotOpenYet {
        /// When it will, where that is known.
        open_at: Option<UtcMicros>,
        /// The moment this was decided, to compute a Retry-After.
        now: UtcMicros,
    },
    /// CP012: the campaign asked for cannot be.
    InvalidCampaign {
        /// The JSON field.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// CP013: paused by an operator.
    Paused,
    /// CP014: the state machine has no such arrow.
    IllegalTransition {
        /// Where it stands.
        from: String,
        /// Where it was to go.
        to: &'static str,
    },
    /// CP015: the idempotency key was used with another request.
    IdempotencyKeyReused,
    /// No CP code: too much at once, come back in a moment.
    Overloaded {
        /// When, in seconds.
        retry_after_s: u32,
    },
}

impl Refusal {
    /// The error code; [`Refusal::Overloaded`] has none.
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Refusal::CouponNotFound => "CP001",
            Refusal::Ended { .. } => "CP002",
            Refusal::AlreadyUsed { .. } => "CP003",
            Refusal::MinimumOrderNotMet { .. } => "CP004",
            Refusal::SoldOut => "CP005",
            Refusal::UserCouponNotFound => "CP006",
            Refusal::AlreadyIssued { .. } => "CP007",
            Refusal::InvalidDiscountType { .. } => "CP008",
            Refusal::SeatReleased { .. } => "CP009",
            Refusal::OutcomeUnknown { .. } => "CP010",
            Refusal::NotOpenYet { .. } => "CP011",
            Refusal::InvalidCampaign { .. } => "CP012",
            Refusal::Paused => "CP013",
            Refusal::IllegalTransition { .. } => "CP014",
            Refusal::IdempotencyKeyReused => "CP015",
            Refusal::Overloaded { .. } => return None,
        })
    }

    /// The outcome as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Refusal::CouponNotFound => "coupon_not_found",
            Refusal::Ended { .. } => "ended",
            Refusal::AlreadyUsed { .. } => "already_used",
            Refusal::MinimumOrderNotMet { .. } => "minimum_order_not_met",
            Refusal::SoldOut => "sold_out",
            Refusal::UserCouponNotFound => "user_coupon_not_found",
            Refusal::AlreadyIssued { .. } => "already_issued",
            Refusal::InvalidDiscountType { .. } => "invalid_discount_type",
            Refusal::SeatReleased { .. } => "seat_released",
            Refusal::OutcomeUnknown { .. } => "outcome_unknown",
            Refusal::NotOpenYet { .. } => "not_open_yet",
            Refusal::InvalidCampaign { .. } => "invalid_campaign",
            Refusal::Paused => "paused",
            Refusal::IllegalTransition { .. } => "illegal_transition",
            Refusal::IdempotencyKeyReused => "idempotency_key_reused",
            Refusal::Overloaded { .. } => "overloaded",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::CouponNotFound => f.write_str("there is no such coupon"),
            Refusal::Ended { detail } => f.write_str(detail),
            Refusal::AlreadyUsed { .. } => f.write_str("the user coupon is already used for another order"),
            Refusal::MinimumOrderNotMet { min_order_amount, order_amount } => {
                write!(
                    f,
                    "the order amount {order_amount} is below the coupon's minimum of {min_order_amount}"
                )
            }
            Refusal::SoldOut => f.write_str("every coupon of this campaign is issued"),
            Refusal::UserCouponNotFound => f.write_str("there is no such user coupon"),
            Refusal::AlreadyIssued { .. } => f.write_str("this user already holds this coupon"),
            Refusal::InvalidDiscountType { given } => {
                write!(f, "discountType `{given}` is none of FIXED, PERCENTAGE")
            }
            Refusal::SeatReleased { dependency } => {
                write!(f, "the {} is not available; nothing was done, try again", dependency.as_str())
            }
            Refusal::OutcomeUnknown { dependency } => write!(
                f,
                "the {} did not answer in time and the outcome is unknown; repeating the same request is safe",
                dependency.as_str()
            ),
            Refusal::NotOpenYet { open_at: Some(at), .. } => write!(f, "this coupon is issued from {at}"),
            Refusal::NotOpenYet { open_at: None, .. } => f.write_str("this coupon is not open yet"),
            Refusal::InvalidCampaign { field, reason } => write!(f, "{field} {reason}"),
            Refusal::Paused => f.write_str("issuing is paused"),
            Refusal::IllegalTransition { from, to } => write!(f, "{from} cannot become {to}"),
            Refusal::IdempotencyKeyReused => {
                f.write_str("this Idempotency-Key was used with another request; use a new key")
            }
            Refusal::Overloaded { .. } => f.write_str("too many requests at once"),
        }
    }
}
