//! The verdict of a demo run, as a table for people and one JSON line for machines.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    crowd::Counters,
    data::{REMINDED_AFTER_MS, Run},
};
use crate::coupon::verify::{Facts, Report};

/// Most findings printed per check.
const FINDINGS_SHOWN: usize = 5;

/// One line of the table.
pub struct CheckLine {
    /// `I1` … `I9`, or what the demo itself promises.
    pub name: String,
    /// What must hold.
    pub promise: String,
    /// Whether it does.
    pub holds: bool,
    /// What was compared, or what was found.
    pub detail: String,
    /// What is wrong.
    pub findings: Vec<String>,
}

/// Everything that must hold at the end of a run: the invariants, each really compared, and the demo's own promises.
pub fn checks(run: &Run, report: &Report, facts: &Facts) -> Vec<CheckLine> {
    let mut lines: Vec<CheckLine> = report
        .checks
        .iter()
        .map(|check| CheckLine {
            name: format!("{:?}", check.invariant),
            promise: check.promise.into(),
            holds: check.holds() && check.compared.is_some_and(|compared| compared > 0),
            detail: match check.compared {
                Some(compared) => format!("{compared} compared"),
                None => "nothing to compare with".into(),
            },
            findings: check.findings.iter().map(|f| format!("{}: {}", f.subject, f.detail)).collect(),
        })
        .collect();
    let issued = facts.user_coupons.iter().filter(|row| row.coupon_id == run.coupon).count() as i64;
    let expected = run.seats.min(run.users);
    lines.push(CheckLine {
        name: "exact".into(),
        promise: format!("exactly {expected} of {} seats issued to {} users", run.seats, run.users),
        holds: issued == expected,
        detail: format!("{issued} issued"),
        findings: Vec::new(),
    });
    lines.push(reminders(run, facts));
    lines
}

/// Who did not use the coupon in time is reminded once; who did is not. Judged by the times in the history, in whole
/// milliseconds as the records have them.
fn reminders(run: &Run, facts: &Facts) -> CheckLine {
    let millis = |micros: i64| micros.div_euclid(1_000);
    let used_at: BTreeMap<i64, i64> = (facts.history.iter().rev())
        .filter(|line| line.coupon_id == run.coupon && line.to_status == "USED")
        .map(|line| (line.user_id, millis(line.at)))
        .collect();
    let unused: BTreeSet<i64> = (facts.user_coupons.iter())
        .filter(|row| row.coupon_id == run.coupon)
        .filter(|row| {
            let due = millis(row.issued_at) + REMINDED_AFTER_MS;
            used_at.get(&row.user_id).is_none_or(|used_at| *used_at > due)
        })
        .map(|row| row.user_id)
        .collect();
    let commands = facts.log.as_ref().map_or(&[][..], |log| log.commands.as_slice());
    let reminders: Vec<i64> = commands
        .iter()
        .filter(|command| command.kind == "COUPON_UNUSED_REMINDER")
        .filter_map(|command| command.user_id)
        .collect();
    let reminded: BTreeSet<i64> = reminders.iter().copied().collect();
    let wrongly =
        reminded.difference(&unused).map(|user| format!("user {user} used it in time and was reminded"));
    let missed = unused
        .difference(&reminded)
        .map(|user| format!("user {user} did not use it in time and was not reminded"));
    let findings: Vec<String> = wrongly.chain(missed).collect();
    CheckLine {
        name: "remind".into(),
        promise: "one reminder for each coupon not used in time, no other".into(),
        holds: findings.is_empty() && reminders.len() == reminded.len(),
        detail: format!("{} reminders, {} unused", reminders.len(), unused.len()),
        findings,
    }
}

/// The verdict.
pub struct Summary {
    lines: Vec<CheckLine>,
    figures: Value,
}

impl Summary {
    /// Puts the verdict together.
    pub fn new(run: &Run, report: &Report, facts: &Facts, counters: &Counters, elapsed: Duration) -> Self {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let log = facts.log.as_ref();
        let finals: usize =
            log.map_or(0, |log| log.windows.values().flatten().map(|(_, window)| window.finals).sum());
        let figures = json!({
            "seed": run.seed,
            "couponId": run.coupon,
            "seats": run.seats,
            "users": run.users,
            "issued": facts.user_coupons.iter().filter(|row| row.coupon_id == run.coupon).count(),
            "used": facts.user_coupons.iter().filter(|row| row.status == "USED").count(),
            "requests": count(&counters.requests),
            "accepted": count(&counters.accepted),
            "soldOut": count(&counters.sold_out),
            "duplicates": count(&counters.duplicates),
            "retries": count(&counters.retries),
            "unexpected": count(&counters.unexpected),
            "latencyMsP50": (counters.latency_ms(0.5) * 100.0).round() / 100.0,
            "latencyMsP99": (counters.latency_ms(0.99) * 100.0).round() / 100.0,
            "finalWindows": finals,
            "notificationCommands": log.map_or(0, |log| log.commands.len()),
            "seconds": (elapsed.as_secs_f64() * 10.0).round() / 10.0,
        });
        let mut lines = checks(run, report, facts);
        let unexpected = count(&counters.unexpected);
        lines.push(CheckLine {
            name: "answers".into(),
            promise: "every answer is one the contract allows".into(),
            holds: unexpected == 0,
            detail: format!("{} answers, {unexpected} unexpected", count(&counters.requests)),
            findings: Vec::new(),
        });
        Self { lines, figures }
    }

    /// Everything holds.
    pub fn holds(&self) -> bool {
        self.lines.iter().all(|line| line.holds)
    }

    /// For people.
    pub fn table(&self) -> String {
        let width = self.lines.iter().map(|line| line.promise.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for line in &self.lines {
            let verdict = if line.holds { "holds" } else { "BROKEN" };
            text.push_str(&format!(
                "{:8} {:width$}  {verdict:6}  {}\n",
                line.name, line.promise, line.detail
            ));
            for finding in line.findings.iter().take(FINDINGS_SHOWN) {
                text.push_str(&format!("           {finding}\n"));
            }
            if line.findings.len() > FINDINGS_SHOWN {
                text.push_str(&format!("           and {} more\n", line.findings.len() - FINDINGS_SHOWN));
            }
        }
        let figure = |name: &str| &self.figures[name];
        text.push_str(&format!(
            "\n{} requests: {} accepted, {} sold out, {} already held, {} tried again; p50 {} ms, p99 {} ms; \
             {} final windows, {} notification commands; {} s\n",
            figure("requests"),
            figure("accepted"),
            figure("soldOut"),
            figure("duplicates"),
            figure("retries"),
            figure("latencyMsP50"),
            figure("latencyMsP99"),
            figure("finalWindows"),
            figure("notificationCommands"),
            figure("seconds"),
        ));
        text.push_str(if self.holds() { "verdict: everything holds" } else { "verdict: BROKEN" });
        text
    }

    /// For machines: one object.
    pub fn json(&self) -> Value {
        let mut object = self.figures.clone();
        object["ok"] = json!(self.holds());
        object["checks"] = self
            .lines
            .iter()
            .map(|line| (line.name.clone(), json!({ "holds": line.holds, "detail": line.detail })))
            .collect::<serde_json::Map<_, _>>()
            .into();
        object
    }
}
