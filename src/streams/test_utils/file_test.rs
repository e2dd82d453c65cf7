//! Runs the tests beside a topology file on the driver that the Rust DSL is tested with.
//!
//! [`parse_tests`] says what is sent and expected; here it is sent, and what came out is compared. What must always hold: a test runs the
//! very topology that `streams run` would, and an expectation that is not met says what came instead.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{DriverOptions, Partitions, TopologyTestDriver};
use crate::streams::{
    error::{Result, StreamsError},
    file::{
        LoadError, Plan, Processors, load,
        parse::{Format, Role},
        plan,
        plan::{Operator, PlanNode, SourcePlan},
        test_file::{Action, DAY_ZERO_MS, Expected, Payload, TestCase, parse_tests, short_time},
        time::{format_timestamp, parse_timestamp},
    },
    record::{Headers, ProducerRecord, Timestamp},
};

/// How one test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestOutcome {
    /// The test's name.
    pub name: String,
    /// What was not as expected; empty when all was.
    pub failures: Vec<String>,
}

/// Runs all tests of a file.
///
/// # Errors
/// When the topology file or the test file does not load; a test that fails is an outcome.
pub fn run_test_file(
    (topology_name, topology): (&str, &str),
    (test_name, tests): (&str, &str),
    processors: &Processors,
) -> Result<Vec<TestOutcome>, LoadError> {
    // Mistakes of the file itself are shown once, not per test.
    plan(topology_name, topology, &processors.names())?;
    let cases = parse_tests(test_name, tests)?;
    cases.iter().map(|case| run_case(topology_name, topology, case, processors)).collect()
}

fn run_case(
    topology_name: &str,
    topology: &str,
    case: &TestCase,
    processors: &Processors,
) -> Result<TestOutcome, LoadError> {
    let mut failures = Vec::new();
    let mut text = topology.to_owned();
    for (find, replace) in &case.patch {
        if !text.contains(find) {
            failures.push(format!("the file has no `{find}` to replace"));
        }
        text = text.replace(find, replace);
    }
    let done = |failures| Ok(TestOutcome { name: case.name.clone(), failures });
    let planned = plan(topology_name, &text, &processors.names());
    match (&case.error, planned) {
        (Some(wanted), Ok(_)) => {
            failures.push(format!("the file loads, though it should be refused with: {wanted}"));
            done(failures)
        }
        (Some(wanted), Err(mistakes)) => {
            let shown = mistakes.to_string();
            if !shown.contains(wanted) {
                failures.push(format!("the file is refused, but not with: {wanted}\n{shown}"));
            }
            done(failures)
        }
        (None, Err(mistakes)) => Err(mistakes.into()),
        (None, Ok(planned)) => {
            let loaded = load(topology_name, &text, processors)?;
            let mut run = Run::new(planned, loaded)?;
            if let Err(error) = run.perform(&case.send) {
                failures.push(format!("it stopped: {error}"));
            }
            failures.extend(run.compare(case));
            done(failures)
        }
    }
}

struct Run {
    driver: TopologyTestDriver,
    plan: Plan,
    sinks: Vec<String>,
}

impl Run {
    fn new(plan: Plan, loaded: crate::streams::file::LoadedFile) -> Result<Self> {
        let mut options = DriverOptions { wall_clock_ms: DAY_ZERO_MS, ..DriverOptions::default() };
        // Time in a test is event time: who is silent vouches for the clock at once, not after a while of waiting.
        options.config.idle_close_ms = loaded.idle_close_ms.map(|_| 0);
        // Tasks are apart, as in production: what one sends at the close of its windows reaches the next before its clock does.
        options.partitions = Some(Partitions::each(1));
        let driver = TopologyTestDriver::with_options(loaded.topology, options)?;
        Ok(Self { driver, plan, sinks: loaded.sink_topics })
    }

    fn perform(&mut self, actions: &[Action]) -> Result<()> {
        for action in actions {
            match action {
                Action::Advance(time) => self.driver.advance_wall_clock_to(*time)?,
                Action::Restart => self.driver.restart()?,
                Action::Send { to, at, now, key, value } => {
                    self.send(to, *at, *now, key.as_deref(), value)?;
                }
            }
        }
        Ok(())
    }

    fn send(
        &self,
        to: &str,
        at: Option<Timestamp>,
        now: Option<Timestamp>,
        key: Option<&str>,
        value: &Payload,
    ) -> Result<()> {
        let source = self.plan.nodes.iter().find_map(|node| match &node.operator {
            Operator::Source(source) if node.name == to => Some((node, source)),
            _ => None,
        });
        let Some((node, source)) = source else {
            return Err(StreamsError::Topology(format!("the file has no source or table of a topic `{to}`")));
        };
        let at = at.unwrap_or_else(|| self.driver.now());
        self.driver.advance_wall_clock_to(now.unwrap_or(at))?;
        let key = key.map(|key| key.as_bytes().to_vec()).or_else(|| key_in_value(node, source, value));
        let bytes = match value {
            Payload::Deletion => None,
            Payload::Raw(raw) => Some(raw.clone().into_bytes()),
            Payload::Json(json) => {
                let mut json = json.clone();
                let time_field = source.time.map(|slot| node.columns[slot].name.clone());
                if let (Some(field), Some(members)) = (time_field, json.as_object_mut()) {
                    let time = || Json::from(format_timestamp(at));
                    match members.get_mut(&field) {
                        None => {
                            members.insert(field, time());
                        }
                        Some(given) => {
                            if let Some(ms) = given.as_str().and_then(short_time) {
                                *given = Json::from(format_timestamp(ms));
                            }
                        }
                    }
                }
                Some(match (&json, source.format) {
                    // A raw topic has the value itself, not JSON of it.
                    (Json::String(text), Format::Raw) => text.clone().into_bytes(),
                    _ => json.to_string().into_bytes(),
                })
            }
        };
        self.driver.pipe_record(ProducerRecord {
            topic: source.topic.as_str().into(),
            partition: None,
            key: key.map(Into::into),
            value: bytes.map(Into::into),
            timestamp: Some(at),
            headers: Headers::EMPTY,
        })
    }

    fn compare(&self, case: &TestCase) -> Vec<String> {
        let mut failures = Vec::new();
        let mut written: BTreeMap<&str, Vec<ProducerRecord>> = BTreeMap::new();
        for topic in &self.sinks {
            written.insert(topic, self.driver.read_records(topic));
        }
        let mut next: BTreeMap<&str, usize> = BTreeMap::new();
        for expected in &case.expect {
            let Some(records) = written.get(expected.topic.as_str()) else {
                failures.push(format!("nothing in the file writes topic `{}`", expected.topic));
                continue;
            };
            let from = next.entry(expected.topic.as_str()).or_default();
            match records[*from..].iter().position(|record| matches(expected, record)) {
                Some(at) => *from += at + 1,
                None => failures.push(missing(expected, records, *from)),
            }
        }
        for (topic, count) in &case.counts {
            let found = written.get(topic.as_str()).map_or(0, Vec::len) as i64;
            if found != *count {
                let records = written.get(topic.as_str()).map(|records| list(records)).unwrap_or_default();
                failures.push(format!("topic `{topic}` got {found} records, not {count}:{records}"));
            }
        }
        for (node, reason, count) in &case.dropped {
            if !self.plan.nodes.iter().any(|known| known.name == *node) {
                failures.push(format!("the file has no node `{node}`"));
                continue;
            }
            // Operators that have two sides are two nodes of the engine.
            let parts = ["", "-left", "-right", "-source", "-partial"].map(|part| format!("{node}{part}"));
            let found: u64 = parts.iter().map(|part| self.driver.dropped_by(part, *reason)).sum();
            if found as i64 != *count {
                let why = reason.map(|reason| format!(" as {reason}")).unwrap_or_default();
                failures.push(format!("`{node}` dropped {found} records{why}, not {count}"));
            }
        }
        failures
    }
}

/// The key of a table's record as its fields tell it, so that a test need not write it twice.
fn key_in_value(node: &PlanNode, source: &SourcePlan, value: &Payload) -> Option<Vec<u8>> {
    let Payload::Json(Json::Object(members)) = value else { return None };
    if source.role == Role::Stream {
        return None;
    }
    let parts: Vec<&Json> =
        source.key.iter().map(|slot| members.get(&node.columns[*slot].name)).collect::<Option<_>>()?;
    Some(match parts[..] {
        [Json::String(text)] => text.clone().into_bytes(),
        [one] => one.to_string().into_bytes(),
        _ => serde_json::to_vec(&parts).ok()?,
    })
}

fn matches(expected: &Expected, record: &ProducerRecord) -> bool {
    let key = record.key.as_deref().map(String::from_utf8_lossy);
    let key_fits = expected.key.as_ref().is_none_or(|wanted| key.is_some_and(|key| fits(wanted, &key)));
    let headers_fit = expected.headers.iter().all(|(name, wanted)| {
        let header = record.headers.last(name).and_then(|header| header.value.as_deref());
        header.is_some_and(|value| fits(wanted, &String::from_utf8_lossy(value)))
    });
    let bytes = record.value.as_deref().unwrap_or_default();
    let value_fits = match &expected.value {
        None => true,
        Some(Payload::Deletion) => record.value.is_none(),
        Some(Payload::Raw(raw)) => fits(raw, &String::from_utf8_lossy(bytes)),
        Some(Payload::Json(wanted)) => {
            serde_json::from_slice::<Json>(bytes).is_ok_and(|found| contains(&found, wanted))
        }
    };
    key_fits && headers_fit && value_fits
}

/// Whether a text is the wanted one, in which `…` stands for anything.
fn fits(wanted: &str, found: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut rest) = parts.next().and_then(|first| found.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether the value has everything that is wanted; times may be short, and texts may have `…` in them.
fn contains(found: &Json, wanted: &Json) -> bool {
    match (found, wanted) {
        (Json::Object(found), Json::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| found.get(name).is_some_and(|found| contains(found, wanted)))
        }
        (Json::String(found), Json::String(wanted)) => {
            let same_time = parse_timestamp(found).is_some_and(|time| short_time(wanted) == Some(time));
            same_time || fits(wanted, found)
        }
        (Json::Number(found), Json::Number(wanted)) => found == wanted || found.as_f64() == wanted.as_f64(),
        // TOML has no null; the text stands for it.
        (Json::Null, Json::String(wanted)) => wanted == "null",
        (found, wanted) => found == wanted,
    }
}

fn missing(expected: &Expected, records: &[ProducerRecord], from: usize) -> String {
    let mut wanted = String::new();
    if let Some(key) = &expected.key {
        wanted.push_str(&format!(" key {key}"));
    }
    match &expected.value {
        Some(Payload::Json(value)) => wanted.push_str(&format!(" value {value}")),
        Some(Payload::Raw(value)) => wanted.push_str(&format!(" value {value}")),
        Some(Payload::Deletion) => wanted.push_str(" a deletion"),
        None => {}
    }
    for (name, value) in &expected.headers {
        wanted.push_str(&format!(" header {name}={value}"));
    }
    let topic = &expected.topic;
    if records.len() == from {
        return format!("topic `{topic}` has no further record; wanted{wanted}");
    }
    let nearest = nearest(expected, &records[from..]).unwrap_or_default();
    format!("topic `{topic}` has no record with{wanted}; it has:{}{nearest}", list(&records[from..]))
}

/// What tells the wanted record from the one that is most like it.
fn nearest(expected: &Expected, records: &[ProducerRecord]) -> Option<String> {
    let Some(Payload::Json(wanted @ Json::Object(_))) = &expected.value else { return None };
    let candidates = records.iter().filter_map(|record| {
        let found: Json = serde_json::from_slice(record.value.as_deref()?).ok()?;
        let found = as_wanted(&found, wanted);
        let (wanted, found) = (format!("{wanted:#}\n"), format!("{found:#}\n"));
        let diff = similar::TextDiff::from_lines(wanted.as_str(), found.as_str());
        let key = record.key.as_deref().map(String::from_utf8_lossy).unwrap_or("null".into());
        Some((
            diff.ratio(),
            format!("\nthe nearest has key {key}, and (- wanted, + found)"),
            diff_lines(&diff),
        ))
    });
    // Of equally near ones the first: it is where the reader looks first.
    let best = candidates.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    Some(format!("{}{}", best.1, best.2))
}

fn diff_lines(diff: &similar::TextDiff<'_, '_, str>) -> String {
    let mut lines = String::new();
    for change in diff.iter_all_changes() {
        let sign = match change.tag() {
            similar::ChangeTag::Delete => '-',
            similar::ChangeTag::Insert => '+',
            similar::ChangeTag::Equal => ' ',
        };
        lines.push_str(&format!("\n{sign} {}", change.value().trim_end()));
    }
    lines
}

/// The members of a value that are wanted; those that fit as they are wanted, so that they do not show as a difference.
fn as_wanted(found: &Json, wanted: &Json) -> Json {
    if contains(found, wanted) {
        return wanted.clone();
    }
    match (found, wanted) {
        (Json::Object(found), Json::Object(wanted)) => wanted
            .iter()
            .filter_map(|(name, wanted)| Some((name.clone(), as_wanted(found.get(name)?, wanted))))
            .collect(),
        _ => found.clone(),
    }
}

impl TestOutcome {
    /// The failures as lines for a person; with colours what was wanted is red and what came instead green.
    pub fn lines(&self, colour: bool) -> Vec<String> {
        let paint = |line: &str| {
            let code = match line.as_bytes() {
                [b'-', b' ', ..] => "31",
                [b'+', b' ', ..] => "32",
                _ => return line.to_owned(),
            };
            if colour { format!("\x1b[{code}m{line}\x1b[0m") } else { line.to_owned() }
        };
        self.failures.iter().flat_map(|failure| failure.lines().map(paint)).collect()
    }
}

fn list(records: &[ProducerRecord]) -> String {
    fn text(bytes: Option<&bytes::Bytes>) -> std::borrow::Cow<'_, str> {
        bytes.map_or("null".into(), |bytes| String::from_utf8_lossy(bytes))
    }
    records
        .iter()
        .map(|record| format!("\n  {} {}", text(record.key.as_ref()), text(record.value.as_ref())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_with_gaps_fit() {
        let cases = [
            ("7@…", "7@2026", true),
            ("7@…", "8@2026", false),
            ("…x…", "axb", true),
            ("a…b", "ab", true),
            ("a…b", "aXbY", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
        ];
        for (wanted, found, expected) in cases {
            assert_eq!(fits(wanted, found), expected, "{wanted} {found}");
        }
    }
}
