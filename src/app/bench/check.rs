//! What a workload must have written, whatever happened while it ran.
//!
//! W1, W1n: the newest results of all windows sum to the number of issues, and no window is final twice. W2: the newest
//! totals of all users sum to it. W3: one result for each issue that was used within half an hour.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::Events;
use crate::{
    cli::{BenchCheckArgs, Workload},
    streams::{
        client::{ClientSupplier, read_topic},
        error::{Result, StreamsError},
    },
};

/// The join's window, ms.
const WITHIN_MS: i64 = 30 * 60_000;

/// What was found.
pub struct Report {
    /// One JSON object.
    pub summary: Value,
    /// What is not as it must be; empty = all well.
    pub mistakes: Vec<String>,
}

/// Reads a workload's output topic and judges it.
pub fn check(log: &dyn ClientSupplier, args: &BenchCheckArgs) -> Result<Report> {
    let topic = args.topic.clone().unwrap_or_else(|| format!("bench-{}-out", args.workload.name()));
    let mut report = Report { summary: Value::Null, mistakes: Vec::new() };
    let mut found = Found::default();
    let outputs = read(log, &topic, |value| found.take(args.workload, value))?;
    let expected = match args.workload {
        Workload::W3 => {
            let events = Events::new(args.seed);
            (0..args.records)
                .filter_map(|index| events.used_after_ms(index))
                .filter(|after| *after <= WITHIN_MS)
                .count() as i64
        }
        _ => i64::from(args.records),
    };
    let sum: i64 = found.newest.values().sum();
    if sum != expected {
        report.mistakes.push(format!("{topic} tells of {sum}, the input of {expected}"));
    }
    if found.twice > 0 {
        report.mistakes.push(format!("{} results of {topic} are there twice", found.twice));
    }
    let open = found.newest.len() - found.finals.len();
    if args.all_final && open > 0 {
        report.mistakes.push(format!("{open} windows of {topic} have no final result"));
    }
    report.summary = json!({
        "workload": args.workload.name(),
        "outputs": outputs,
        "rows": found.newest.len(),
        "sum": sum,
        "expected": expected,
        "final": found.finals.len(),
        "twice": found.twice,
    });
    Ok(report)
}

#[derive(Default)]
struct Found {
    /// By row: the newest count.
    newest: HashMap<(i64, String), i64>,
    /// Rows whose final result was seen.
    finals: HashSet<(i64, String)>,
    /// Final results, or pairs, that came again.
    twice: u64,
}

impl Found {
    fn take(&mut self, workload: Workload, value: &Value) {
        let number = |name: &str| value[name].as_i64().unwrap_or_default();
        match workload {
            Workload::W1 | Workload::W1n => {
                let row = (number("couponId"), value["windowStart"].to_string());
                if value["final"] == Value::Bool(true) && !self.finals.insert(row.clone()) {
                    self.twice += 1;
                }
                self.newest.insert(row, number("issued"));
            }
            Workload::W2 => drop(self.newest.insert((number("userId"), String::new()), number("count"))),
            Workload::W3 => {
                let again = self.newest.insert((number("userCouponId"), String::new()), 1);
                self.twice += u64::from(again.is_some());
            }
        }
    }
}

/// Reads what is committed of a topic; returns how many records that is.
fn read(log: &dyn ClientSupplier, topic: &str, mut take: impl FnMut(&Value)) -> Result<u64> {
    if log.admin()?.describe(&[topic.to_owned()])?.is_empty() {
        return Err(StreamsError::Fatal(format!("there is no topic {topic}: run the workload first")));
    }
    read_topic(log, topic, |record| {
        let value: Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())
            .map_err(|error| StreamsError::Fatal(format!("{topic} at {}: {error}", record.offset)))?;
        take(&value);
        Ok(())
    })
}
