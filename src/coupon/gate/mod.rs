//! The gate: who gets one of the seats, decided in one atomic step per request, before the ledger is asked.
//!
//! It stands between the API and the ledger (`issue.rs` calls [`Gate::admit`], then the ledger, then
//! [`Gate::confirm`] or [`Gate::release`]). Two adapters answer the same contract: Redis, one Lua script per
//! decision, and an in-process one.
//!
//! What must always hold:
//! * The gate is **advice, not the truth**: the ledger's constraints hold the cap. A gate that lost its memory
//!   answers [`Admission::NotReady`] until it is rebuilt from the ledger; it never admits from nothing.
//! * A refusal writes nothing, and an unknown coupon id never creates a key.
//! * Admission times are microseconds of the gate's own clock, strictly increasing inside one campaign even when
//!   that clock steps back, so admissions have one total order.
//! * A seat is freed only by the holder of the token it was admitted with.

mod batch;
pub mod embedded;
pub mod memo;
pub mod redis;
mod scripts;
mod terms;

use std::sync::Arc;

use futures::future::BoxFuture;
use uuid::Uuid;

use crate::coupon::ids::{CouponId, UserId};

/// A gate's answer, or why there is none.
pub type GateFuture<'a, T> = BoxFuture<'a, Result<T, GateError>>;

/// How a gate decides and keeps seats.
///
/// # Contract
/// * Every method is one atomic decision, except [`Gate::rebuild`], during which the campaign answers
///   [`Admission::NotReady`].
/// * Every call may be repeated by a caller that lost its answer, with the same token: a repeated `admit` or `confirm`
///   gets the first one's answer, a repeated `release` changes nothing and says [`Release::NotMine`].
/// * Dropping a returned future leaves the outcome unknown; the pending deadline and the sweeper resolve it.
/// * Business answers are in the `Ok` type. An `Err` is about the gate itself, see [`GateError`].
pub trait Gate: Send + Sync {
    /// Asks for a seat. Looks, in this order: not ready, duplicate, closed (ended), paused, not started, ended,
    /// sold out, admitted. An admitted seat is *pending* until confirmed.
    fn admit(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Admission>;

    /// The ledger holds the row: the seat is no longer pending. Repeating is harmless.
    fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Confirmation>;

    /// The ledger said a definite no: the seat goes to the free list, but only when `token` is the one stored.
    /// Must never be called while the ledger's outcome is unknown.
    fn release(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Release>;

    /// Makes a campaign known that **has no rows in the ledger yet**; with rows, use [`Gate::rebuild`].
    /// Known already in the same epoch: sets state, limit and window and keeps its members. Known in another
    /// epoch: [`GateError::Stale`].
    fn open(&self, campaign: CampaignMeta) -> GateFuture<'_, ()>;

    /// Changes state, limit or window of a known campaign. On a gate that does not know it, nothing is written
    /// and the answer is [`Amendment::NotReady`]: the rebuild will carry the new values from the ledger.
    fn amend(&self, coupon: CouponId, change: CampaignChange) -> GateFuture<'_, Amendment>;

    /// Replaces everything the gate knows of a campaign by the ledger's rows, under a new epoch.
    ///
    /// The caller first raises the epoch in the ledger (which fences transactions of older epochs), then reads the
    /// rows, then calls this. An epoch not above the stored one is [`GateError::Stale`]. Pending seats of the old
    /// epoch are forgotten, members arrive confirmed, slots below the highest that no member holds become free.
    /// When it fails half-way the campaign stays not ready; repeat with a higher epoch.
    fn rebuild(&self, campaign: CampaignMeta, members: Vec<Member>) -> GateFuture<'_, ()>;

    /// Up to `max` seats pending past their deadline, oldest first, each **claimed**: its deadline moves one lease
    /// ahead, so that two sweepers do not work on the same seat at once. The caller asks the ledger by
    /// (coupon, user), then confirms, or fences the token in the ledger and releases.
    fn pending_expired(&self, coupon: CouponId, max: usize) -> GateFuture<'_, Vec<Pending>>;

    /// Moves a pending seat's deadline one lease from now, when `token` is the one stored; false otherwise.
    fn extend(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, bool>;

    /// What the gate knows of a campaign. An unknown one has the state [`GateState::NotReady`] and zeros.
    fn stock(&self, coupon: CouponId) -> GateFuture<'_, GateStock>;

    /// Members in admission order, at most `max`, admitted after `after_us` (0 for the first page); the next
    /// page's `after_us` is the last member's [`Seat::admitted_at_us`]. An empty page is the end.
    fn members(&self, coupon: CouponId, after_us: i64, max: usize) -> GateFuture<'_, Vec<SeatView>>;

    /// One user's seat.
    fn seat(&self, coupon: CouponId, user: UserId) -> GateFuture<'_, Option<SeatView>>;

    /// Can the gate decide now? For Redis: one round trip and the eviction policy.
    fn health(&self) -> GateFuture<'_, ()>;

    /// Refuses newcomers with [`Admission::Paused`].
    fn pause(&self, coupon: CouponId) -> GateFuture<'_, Amendment> {
        self.amend(coupon, CampaignChange { state: Some(CampaignState::Paused), ..Default::default() })
    }

    /// Admits again after [`Gate::pause`].
    fn resume(&self, coupon: CouponId) -> GateFuture<'_, Amendment> {
        self.amend(coupon, CampaignChange { state: Some(CampaignState::Open), ..Default::default() })
    }

    /// Refuses newcomers with [`Admission::Ended`], for good.
    fn close(&self, coupon: CouponId) -> GateFuture<'_, Amendment> {
        self.amend(coupon, CampaignChange { state: Some(CampaignState::Closed), ..Default::default() })
    }

    /// Sets the number of seats. Below what is admitted: nobody loses a seat, newcomers are sold out.
    fn set_limit(&self, coupon: CouponId, limit: i64) -> GateFuture<'_, Amendment> {
        self.amend(coupon, CampaignChange { limit: Some(limit), ..Default::default() })
    }

    /// Sets the issue window.
    fn set_window(&self, coupon: CouponId, window: IssueWindow) -> GateFuture<'_, Amendment> {
        self.amend(coupon, CampaignChange { window: Some(window), ..Default::default() })
    }
}

/// The answer to [`Gate::admit`].
///
/// | code | variant |
/// |---|---|
/// | n >= 1 | `Admitted`, n is the ordinal |
/// | 0 | `SoldOut` |
/// | -1 | `Duplicate` |
/// | -2 | `NotStarted` |
/// | -3 | `Ended` |
/// | -4 | `Paused` |
/// | -5 | `NotReady` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A seat, pending until confirmed.
    Admitted(Seat),
    /// Every slot up to the limit is held.
    SoldOut,
    /// The user already holds this seat, admitted with another token.
    Duplicate {
        /// The seat held, with the token it was admitted with.
        seat: Seat,
        /// Not confirmed yet: another request is at work on it, or its outcome is unknown. When false the ledger
        /// holds the row.
        pending: bool,
    },
    /// Before the issue window.
    NotStarted {
        /// When the window opens, microseconds since 1970.
        issue_from_us: i64,
    },
    /// After the issue window, or closed.
    Ended,
    /// Paused by an operator.
    Paused,
    /// The gate does not know this campaign, or is being rebuilt: it must be rebuilt from the ledger.
    NotReady,
}

impl Admission {
    /// The known integer code, as the table above.
    pub fn code(&self) -> i64 {
        match self {
            Admission::Admitted(seat) => seat.ordinal,
            Admission::SoldOut => 0,
            Admission::Duplicate { .. } => -1,
            Admission::NotStarted { .. } => -2,
            Admission::Ended => -3,
            Admission::Paused => -4,
            Admission::NotReady => -5,
        }
    }

    /// The variant as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Admission::Admitted(_) => "admitted",
            Admission::SoldOut => "sold_out",
            Admission::Duplicate { .. } => "duplicate",
            Admission::NotStarted { .. } => "not_started",
            Admission::Ended => "ended",
            Admission::Paused => "paused",
            Admission::NotReady => "not_ready",
        }
    }
}

/// One admitted seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// How many-th admission of this epoch it was; strictly increasing in admission order, never reused in an
    /// epoch. With no releases it is 1..=limit; a released seat that is taken again gets a new ordinal.
    pub ordinal: i64,
    /// The ledger's `slot_no`: 1..=limit, held by one member at a time.
    pub slot: i64,
    /// What confirms or releases it.
    pub token: Uuid,
    /// The campaign's epoch at admission; the ledger refuses rows of an older one.
    pub epoch: i64,
    /// When, microseconds since 1970 by the gate's clock, strictly increasing inside the campaign.
    pub admitted_at_us: i64,
}

/// The answer to [`Gate::confirm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The seat is confirmed (now, or already before).
    Confirmed,
    /// The user holds no seat with this token: swept, released, or the gate was rebuilt meanwhile.
    NotMine,
}

/// The answer to [`Gate::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The slot is free again.
    Released {
        /// Which.
        slot: i64,
    },
    /// The user holds no seat with this token. Nothing was changed.
    NotMine,
}

/// The answer to [`Gate::amend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amendment {
    /// The gate decides by the new values from now on.
    Amended,
    /// The gate does not know the campaign; nothing was written.
    NotReady,
}

/// What a campaign may be set to. Drafts are unknown to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignState {
    /// Admits.
    Open,
    /// Refuses with [`Admission::Paused`].
    Paused,
    /// Refuses with [`Admission::Ended`].
    Closed,
}

/// When seats may be had, microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IssueWindow {
    /// First moment, inclusive; none: at once.
    pub from_us: Option<i64>,
    /// Last moment, exclusive; none: until closed.
    pub until_us: Option<i64>,
}

/// What the gate must know of a campaign before it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CampaignMeta {
    /// Which.
    pub coupon: CouponId,
    /// Open, paused or closed.
    pub state: CampaignState,
    /// Number of seats, 1..=[`LIMIT_MAX`].
    pub limit: i64,
    /// When seats may be had.
    pub window: IssueWindow,
    /// The campaign's epoch in the ledger, >= 1; every rebuild has a higher one.
    pub epoch: i64,
}

/// What [`Gate::amend`] changes; `None` leaves as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CampaignChange {
    /// New state.
    pub state: Option<CampaignState>,
    /// New number of seats, 1..=[`LIMIT_MAX`].
    pub limit: Option<i64>,
    /// New window, both ends.
    pub window: Option<IssueWindow>,
}

/// The largest limit, slot, epoch and time: Redis scores and Lua numbers are doubles, exact up to 2^53.
pub const LIMIT_MAX: i64 = 1 << 53;

/// One ledger row, as a rebuild gives it to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// The row's `slot_no`.
    pub slot: i64,
    /// The admission's token; a fresh one when the ledger has none.
    pub token: Uuid,
    /// When issued, microseconds since 1970.
    pub admitted_at_us: i64,
}

/// A member as the gate holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatView {
    /// Who.
    pub user: UserId,
    /// The seat.
    pub seat: Seat,
    /// Not confirmed yet.
    pub pending: bool,
}

/// A seat pending past its deadline, see [`Gate::pending_expired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Who.
    pub user: UserId,
    /// The seat.
    pub seat: Seat,
    /// The deadline it missed, microseconds since 1970.
    pub deadline_us: i64,
}

/// State of a campaign at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateState {
    /// Unknown: never opened here, or forgotten by a flush. Also when what the gate holds contradicts itself, because
    /// part of it was deleted from outside; the epoch is then above 0.
    NotReady,
    /// A rebuild began and has not finished.
    Rebuilding,
    /// Decides.
    Open,
    /// Refuses, paused.
    Paused,
    /// Refuses, ended.
    Closed,
}

/// The gate's numbers of a campaign, read in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateStock {
    /// State.
    pub state: GateState,
    /// Number of seats.
    pub limit: i64,
    /// Members, pending ones included.
    pub admitted: i64,
    /// Members not confirmed yet.
    pub pending: i64,
    /// Released slots waiting for a taker (those above a lowered limit included).
    pub free: i64,
    /// Highest slot ever handed out in this epoch.
    pub slot_sequence: i64,
    /// Epoch.
    pub epoch: i64,
}

impl GateStock {
    /// What an unknown campaign has.
    pub const NOT_READY: GateStock = GateStock {
        state: GateState::NotReady,
        limit: 0,
        admitted: 0,
        pending: 0,
        free: 0,
        slot_sequence: 0,
        epoch: 0,
    };

    /// Seats left, never negative.
    pub fn remaining(&self) -> i64 {
        (self.limit - self.admitted).max(0)
    }
}

/// Why a gate gave no answer, split by what the receiver does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The gate cannot be reached or did not answer in time. Answer 503 and let the caller retry.
    #[error("the gate is unavailable ({outcome}): {reason}")]
    Unavailable {
        /// Whether the call may have had its effect.
        outcome: Outcome,
        /// What happened.
        reason: String,
    },
    /// The epoch is not above (rebuild) or not equal to (open) the stored one: somebody else rebuilt meanwhile.
    /// Read the campaign from the ledger again.
    #[error("the gate holds coupon {coupon} in epoch {epoch}: read the campaign from the ledger again")]
    Stale {
        /// Which campaign.
        coupon: CouponId,
        /// The epoch stored.
        epoch: i64,
    },
    /// A definite no, nothing was written: a caller's mistake. Do not retry.
    #[error("the gate refused: {0}")]
    Refused(String),
    /// The gate runs, but not as it must; an operator has to act.
    #[error("the gate is misconfigured: {problem}; {remedy}")]
    Misconfigured {
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

impl GateError {
    /// May the call have had its effect?
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, GateError::Unavailable { outcome: Outcome::Unknown, .. })
    }
}

/// What an unavailable gate may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: the request never left.
    NotDone,
    /// Unknown: the request left and no answer came. Safe to repeat with the same token; a seat admitted this way
    /// is pending, and the sweeper resolves it.
    Unknown,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Outcome::NotDone => "nothing was done",
            Outcome::Unknown => "whether it was done is unknown",
        })
    }
}

/// A shared gate is a gate, so that a decorator may wrap `Arc<dyn Gate>`.
impl<G: Gate + ?Sized> Gate for Arc<G> {
    fn admit(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Admission> {
        (**self).admit(coupon, user, token)
    }
    fn confirm(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Confirmation> {
        (**self).confirm(coupon, user, token)
    }
    fn release(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, Release> {
        (**self).release(coupon, user, token)
    }
    fn open(&self, campaign: CampaignMeta) -> GateFuture<'_, ()> {
        (**self).open(campaign)
    }
    fn amend(&self, coupon: CouponId, change: CampaignChange) -> GateFuture<'_, Amendment> {
        (**self).amend(coupon, change)
    }
    fn rebuild(&self, campaign: CampaignMeta, members: Vec<Member>) -> GateFuture<'_, ()> {
        (**self).rebuild(campaign, members)
    }
    fn pending_expired(&self, coupon: CouponId, max: usize) -> GateFuture<'_, Vec<Pending>> {
        (**self).pending_expired(coupon, max)
    }
    fn extend(&self, coupon: CouponId, user: UserId, token: Uuid) -> GateFuture<'_, bool> {
        (**self).extend(coupon, user, token)
    }
    fn stock(&self, coupon: CouponId) -> GateFuture<'_, GateStock> {
        (**self).stock(coupon)
    }
    fn members(&self, coupon: CouponId, after_us: i64, max: usize) -> GateFuture<'_, Vec<SeatView>> {
        (**self).members(coupon, after_us, max)
    }
    fn seat(&self, coupon: CouponId, user: UserId) -> GateFuture<'_, Option<SeatView>> {
        (**self).seat(coupon, user)
    }
    fn health(&self) -> GateFuture<'_, ()> {
        (**self).health()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_known_ones() {
        let seat = Seat { ordinal: 7, slot: 3, token: Uuid::nil(), epoch: 1, admitted_at_us: 5 };
        let table = [
            (Admission::Admitted(seat), 7),
            (Admission::SoldOut, 0),
            (Admission::Duplicate { seat, pending: true }, -1),
            (Admission::NotStarted { issue_from_us: 1 }, -2),
            (Admission::Ended, -3),
            (Admission::Paused, -4),
            (Admission::NotReady, -5),
        ];
        for (admission, code) in table {
            assert_eq!(admission.code(), code, "{}", admission.label());
        }
    }
}
