//! What somebody was told, and what it means: the one vocabulary of every crowd, whichever way it asks.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use sluice::coupon::clock::Clock;

/// One answer to one request, with the times between which it was given (since the tests began).
#[derive(Clone, Debug)]
pub struct Told {
    pub coupon: i64,
    pub user: i64,
    /// The HTTP status; 0 when no answer came.
    pub status: u16,
    /// `errorCode` of a refusal.
    pub code: Option<String>,
    pub asked: Duration,
    pub told: Duration,
    /// When that was, by the wall clock: microseconds since 1970.
    pub told_at: i64,
}

impl Told {
    /// Has the user one now?
    pub fn is_yes(&self) -> bool {
        matches!(self.status, 200 | 201) || self.code.as_deref() == Some("CP007")
    }

    /// Is it certain that this request has left nothing, and never will?
    pub fn is_no(&self) -> bool {
        matches!(self.code.as_deref(), Some("CP001" | "CP002" | "CP005" | "CP009" | "CP011" | "CP013"))
    }

    /// Need the user not ask again?
    pub fn is_final(&self) -> bool {
        self.is_yes() || self.code.as_deref() == Some("CP005")
    }
}

/// A request on its way: make it when asking, and finish it with the answer.
pub struct Asked {
    coupon: i64,
    user: i64,
    asked: Duration,
}

impl Asked {
    pub fn now(coupon: i64, user: i64) -> Self {
        Self { coupon, user, asked: BEGAN.elapsed() }
    }

    pub fn told(self, status: u16, code: Option<String>) -> Told {
        let told_at = Clock::system().now().micros();
        let Self { coupon, user, asked } = self;
        Told { coupon, user, status, code, asked, told: BEGAN.elapsed(), told_at }
    }
}

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
