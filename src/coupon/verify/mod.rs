//! The verifier: reads everything there is (ledger, gate, log, what clients were told) and says which invariant is
//! broken, where.
//!
//! It stands outside the flow and shares no code with what it judges but the readers of rows and records: it counts
//! for itself. [`facts`] gathers plain data, [`rules`] are pure functions from facts to findings, so a test plants a
//! corruption and requires exactly that finding. What must always hold: it changes nothing, and it is only meaningful
//! when all is quiet (no request on its way, outbox empty); a busy system is reported, not excused.

pub mod answers;
pub mod facts;
pub mod log;
mod rules;
mod statistics;

use serde::Serialize;

pub use answers::{Answer, Answers};
pub use facts::Facts;

/// The invariants that can be checked from outside, once quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Invariant {
    /// Live rows never exceed the limit; slots are distinct and within it.
    I1,
    /// No user holds a campaign's coupon twice.
    I2,
    /// Each row has exactly one issued history line and one event.
    I3,
    /// Every committed event is in the log, and no event lacks a row.
    I4,
    /// The gate's members are the rows.
    I5,
    /// At most one active use a row; used events are the uses.
    I6,
    /// The history, replayed, gives the tables.
    I7,
    /// The statistics equal what SQL counts.
    I8,
    /// Who was told yes has a row; who was told a definite no has none.
    I9,
}

impl Invariant {
    /// All, in order.
    pub const ALL: [Invariant; 9] = [
        Invariant::I1,
        Invariant::I2,
        Invariant::I3,
        Invariant::I4,
        Invariant::I5,
        Invariant::I6,
        Invariant::I7,
        Invariant::I8,
        Invariant::I9,
    ];

    /// What it promises.
    pub fn promise(self) -> &'static str {
        match self {
            Invariant::I1 => "issued coupons never exceed the limit",
            Invariant::I2 => "no user holds the same coupon twice",
            Invariant::I3 => "each coupon has one issued history line and one event",
            Invariant::I4 => "every committed event is in the log, no event lacks a row",
            Invariant::I5 => "gate members are the ledger's rows",
            Invariant::I6 => "at most one active use; used events are the uses",
            Invariant::I7 => "history replayed gives the tables",
            Invariant::I8 => "statistics equal SQL",
            Invariant::I9 => "told yes has a row, told a definite no has none",
        }
    }
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which invariant.
    pub invariant: Invariant,
    /// What it is about, for example `user coupon 17` or `coupon 3 user 9`.
    pub subject: String,
    /// What is there and what should be.
    pub detail: String,
}

/// What was looked at for one invariant, and what was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Which invariant.
    pub invariant: Invariant,
    /// What it promises.
    pub promise: &'static str,
    /// How many things were compared; none: there was nothing to check it by.
    pub compared: Option<usize>,
    /// What is wrong; empty when it holds.
    pub findings: Vec<Finding>,
}

impl Check {
    /// Nothing is wrong.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }
}

/// The verdict over all invariants.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One per invariant, in order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Nothing is wrong anywhere.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(Check::holds)
    }

    /// Every finding.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.checks.iter().flat_map(|check| &check.findings)
    }
}

/// Judges the facts.
pub fn judge(facts: &Facts) -> Report {
    let checks = Invariant::ALL.into_iter().map(|invariant| {
        let (compared, findings) = match invariant {
            Invariant::I1 => rules::within_the_limit(facts),
            Invariant::I2 => rules::one_per_user(facts),
            Invariant::I3 => rules::one_history_and_event_each(facts),
            Invariant::I4 => rules::events_are_in_the_log(facts),
            Invariant::I5 => rules::gate_members_are_rows(facts),
            Invariant::I6 => rules::used_events_are_uses(facts),
            Invariant::I7 => rules::history_gives_tables(facts),
            Invariant::I8 => statistics::equal_sql(facts),
            Invariant::I9 => rules::told_is_true(facts),
        };
        let findings =
            findings.into_iter().map(|(subject, detail)| Finding { invariant, subject, detail }).collect();
        Check { invariant, promise: invariant.promise(), compared, findings }
    });
    Report { checks: checks.collect() }
}
