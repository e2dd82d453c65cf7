//! I8: the statistics that came out of the topologies equal what SQL counts.
//!
//! Counted here from the history, which the statistics have never seen: totals per campaign, and per minute. A minute
//! whose window is over must have exactly one final record, however late or repeated the events were.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    facts::Facts,
    log::{self, WindowRecord},
    rules::Verdict,
};

/// Microseconds of a minute.
const MINUTE_US: i64 = 60_000_000;

/// What is counted, over a window or in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    issued: i64,
    used: i64,
    cancelled: i64,
    /// Of uses, less those taken back.
    discount_amount_sum: i64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "issued {}, used {}, cancelled {}, discounts {}",
            self.issued, self.used, self.cancelled, self.discount_amount_sum
        )
    }
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.issued += other.issued;
        self.used += other.used;
        self.cancelled += other.cancelled;
        self.discount_amount_sum += other.discount_amount_sum;
    }

    fn of_window(window: &WindowRecord) -> Self {
        Self {
            issued: window.issued,
            used: window.used,
            cancelled: window.cancelled,
            discount_amount_sum: window.discount_amount_sum,
        }
    }
}

/// I8
pub(super) fn equal_sql(facts: &Facts) -> Verdict {
    let Some(log) = &facts.log else { return (None, Vec::new()) };
    // Without any statistics there is nothing to judge them by: the topologies do not run here.
    if log.totals.is_empty() && log.windows.is_empty() {
        return (None, Vec::new());
    }
    let mut totals: BTreeMap<i64, Counts> = BTreeMap::new();
    let mut minutes: BTreeMap<(i64, i64), Counts> = BTreeMap::new();
    for line in &facts.history {
        let discount = line.discount_amount.unwrap_or(0);
        let counts = match line.topic() {
            log::TOPIC_ISSUED => Counts { issued: 1, ..Counts::default() },
            log::TOPIC_USED => Counts { used: 1, discount_amount_sum: discount, ..Counts::default() },
            log::TOPIC_USE_CANCELLED => {
                Counts { cancelled: 1, discount_amount_sum: -discount, ..Counts::default() }
            }
            _ => continue,
        };
        totals.entry(line.coupon_id).or_default().add(counts);
        minutes.entry((line.coupon_id, line.at.div_euclid(MINUTE_US))).or_default().add(counts);
    }

    let mut findings = Vec::new();
    let coupons: BTreeSet<i64> = totals.keys().chain(log.totals.keys()).copied().collect();
    for coupon in &coupons {
        let expected = totals.get(coupon).copied().unwrap_or_default();
        let found = log.totals.get(coupon).map_or(Counts::default(), |totals| Counts {
            issued: totals.issued_total,
            used: totals.used_total,
            cancelled: totals.cancelled_total,
            discount_amount_sum: totals.discount_amount_sum,
        });
        if found != expected {
            findings.push((format!("coupon {coupon}"), format!("totals say {found}; SQL counts {expected}")));
        }
    }
    let compared_minutes = compare_minutes(log, &minutes, &mut findings);
    compare_days(log, &totals, &mut findings);
    (Some(coupons.len() + compared_minutes), findings)
}

fn compare_minutes(
    log: &log::LogFacts,
    minutes: &BTreeMap<(i64, i64), Counts>,
    findings: &mut Vec<(String, String)>,
) -> usize {
    let mut found: BTreeMap<(i64, i64), (Counts, usize)> = BTreeMap::new();
    for window in log.windows.get(log::TOPIC_MINUTE).into_iter().flatten().map(|(_, window)| window) {
        let Some(start) = start_us(&window.latest) else { continue };
        let key = (window.latest.coupon_id, start.div_euclid(MINUTE_US));
        found.insert(key, (Counts::of_window(&window.latest), window.finals));
    }
    let keys: BTreeSet<(i64, i64)> = minutes.keys().chain(found.keys()).copied().collect();
    for key in &keys {
        let subject = || format!("coupon {} minute {}", key.0, minute_text(key.1));
        let expected = minutes.get(key).copied().unwrap_or_default();
        match found.get(key) {
            None => findings.push((subject(), format!("has no window; SQL counts {expected}"))),
            Some((counts, _)) if *counts != expected => {
                findings.push((subject(), format!("the window says {counts}; SQL counts {expected}")));
            }
            Some((_, 1)) => {}
            Some((_, finals)) => findings.push((subject(), format!("{finals} final records, not 1"))),
        }
    }
    keys.len()
}

/// Days end at midnight of a zone that only the topology knows, so they are compared by their sum.
fn compare_days(log: &log::LogFacts, totals: &BTreeMap<i64, Counts>, findings: &mut Vec<(String, String)>) {
    let Some(windows) = log.windows.get(log::TOPIC_DAY) else { return };
    let mut sums: BTreeMap<i64, Counts> = BTreeMap::new();
    for window in windows.values() {
        sums.entry(window.latest.coupon_id).or_default().add(Counts::of_window(&window.latest));
        if window.finals > 1 {
            let subject = format!("coupon {} day", window.latest.coupon_id);
            findings.push((subject, format!("{} final records", window.finals)));
        }
    }
    for (coupon, expected) in totals {
        let found = sums.get(coupon).copied().unwrap_or_default();
        if found != *expected {
            findings
                .push((format!("coupon {coupon}"), format!("days add up to {found}; SQL counts {expected}")));
        }
    }
}

/// A window's start, given as RFC 3339 or as milliseconds.
fn start_us(window: &WindowRecord) -> Option<i64> {
    match &window.window_start {
        serde_json::Value::Number(millis) => millis.as_i64()?.checked_mul(1_000),
        serde_json::Value::String(text) => {
            text.parse::<crate::coupon::clock::UtcMicros>().ok().map(|at| at.micros())
        }
        _ => None,
    }
}

fn minute_text(minute: i64) -> String {
    crate::coupon::clock::UtcMicros::clamped(minute.saturating_mul(MINUTE_US)).to_string()
}
