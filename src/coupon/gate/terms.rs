//! What both gates ask of their input before they touch anything: terms in range, and a rebuild's members put in order.
//!
//! Both adapters call this first, so that they refuse the same input with the same words. Pure: no clock, no I/O.

use std::collections::HashSet;
use std::time::Duration;

use super::{CampaignChange, CampaignMeta, GateError, IssueWindow, LIMIT_MAX, Member};

/// The most members one page or one claim of expired seats returns; a script that runs long stops every client.
pub(super) const PAGE_MAX: usize = 1000;

impl CampaignMeta {
    /// Every number in range, or a refusal that names the field.
    pub(super) fn validate(&self) -> Result<(), GateError> {
        in_range("limit", self.limit)?;
        in_range("epoch", self.epoch)?;
        self.window.validate()
    }
}

impl CampaignChange {
    /// Every number in range, or a refusal that names the field.
    pub(super) fn validate(&self) -> Result<(), GateError> {
        if let Some(limit) = self.limit {
            in_range("limit", limit)?;
        }
        self.window.unwrap_or_default().validate()
    }
}

impl IssueWindow {
    fn validate(&self) -> Result<(), GateError> {
        if let Some(from) = self.from_us {
            in_range("issue_from", from)?;
        }
        if let Some(until) = self.until_us {
            in_range("issue_until", until)?;
        }
        match (self.from_us, self.until_us) {
            (Some(from), Some(until)) if until <= from => Err(GateError::Refused(format!(
                "issue_until ({until}) must be later than issue_from ({from}), both in microseconds"
            ))),
            _ => Ok(()),
        }
    }
}

/// A rebuild's members in admission order, and what follows from them.
#[derive(Debug)]
pub(super) struct RebuildPlan {
    /// In admission order; admission times strictly increasing. The n-th has the ordinal n, counted from 1.
    pub members: Vec<Member>,
    /// The highest slot held; 0 without members.
    pub slot_sequence: i64,
    /// Slots below it that nobody holds, ascending.
    pub free: Vec<i64>,
    /// The last admission time; 0 without members.
    pub clock_us: i64,
}

/// Orders a rebuild's members and finds the holes between their slots.
///
/// Rows written in one batch may carry equal times; a microsecond is added where needed, because a page's cursor is
/// an admission time. A user or slot twice is refused: the ledger's own constraints forbid both.
pub(super) fn plan_rebuild(mut members: Vec<Member>) -> Result<RebuildPlan, GateError> {
    let mut users = HashSet::with_capacity(members.len());
    let mut slots = HashSet::with_capacity(members.len());
    for member in &members {
        in_range("slot", member.slot)?;
        in_range("admission time", member.admitted_at_us)?;
        if !users.insert(member.user) {
            return Err(GateError::Refused(format!("user {} is a member twice", member.user)));
        }
        if !slots.insert(member.slot) {
            return Err(GateError::Refused(format!("slot {} is held twice", member.slot)));
        }
    }
    members.sort_unstable_by_key(|member| (member.admitted_at_us, member.slot));
    let mut clock_us = 0;
    for member in &mut members {
        clock_us = member.admitted_at_us.max(clock_us + 1);
        member.admitted_at_us = clock_us;
    }
    let slot_sequence = slots.iter().copied().max().unwrap_or(0);
    let free = (1..slot_sequence).filter(|slot| !slots.contains(slot)).collect();
    Ok(RebuildPlan { members, slot_sequence, free, clock_us })
}

/// A lease in microseconds: at least one, at most some decades, so that now + lease stays an exact double.
pub(super) fn lease_us(lease: Duration) -> i64 {
    i64::try_from(lease.as_micros()).unwrap_or(i64::MAX).clamp(1, 1 << 50)
}

fn in_range(field: &str, value: i64) -> Result<(), GateError> {
    if (1..=LIMIT_MAX).contains(&value) {
        return Ok(());
    }
    Err(GateError::Refused(format!("{field} must be in 1..={LIMIT_MAX}, not {value}")))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::coupon::ids::UserId;

    fn member(user: i64, slot: i64, admitted_at_us: i64) -> Member {
        Member { user: UserId::new(user).unwrap(), slot, token: Uuid::nil(), admitted_at_us }
    }

    #[test]
    fn members_are_ordered_times_made_unique_and_holes_found() {
        let plan = plan_rebuild(vec![member(1, 6, 50), member(2, 2, 10), member(3, 4, 10), member(4, 1, 11)])
            .unwrap();
        let order: Vec<_> = plan.members.iter().map(|m| (m.user.get(), m.slot, m.admitted_at_us)).collect();
        assert_eq!(order, [(2, 2, 10), (3, 4, 11), (4, 1, 12), (1, 6, 50)]);
        assert_eq!((plan.slot_sequence, plan.free, plan.clock_us), (6, vec![3, 5], 50));
    }

    #[test]
    fn what_the_ledger_forbids_is_refused_by_name() {
        let table = [
            (vec![member(1, 1, 5), member(1, 2, 6)], "user 1 is a member twice"),
            (vec![member(1, 7, 5), member(2, 7, 6)], "slot 7 is held twice"),
            (vec![member(1, 0, 5)], "slot must be in"),
            (vec![member(1, 1, 0)], "admission time must be in"),
        ];
        for (members, expected) in table {
            let error = plan_rebuild(members).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_upside_down_window_is_refused() {
        let window = IssueWindow { from_us: Some(5), until_us: Some(5) };
        let error = CampaignChange { window: Some(window), ..Default::default() }.validate().unwrap_err();
        assert!(error.to_string().contains("must be later than issue_from"), "{error}");
    }
}
