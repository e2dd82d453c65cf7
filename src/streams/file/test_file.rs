//! Test files beside topology files (`*.test.toml`): what is sent, what is expected. The running is the test driver's.
//!
//! `{ restart = true }` among what is sent stops the application and starts it on an empty disk. Times are short: `"00:01:10"` is that time on the first day of a test, `"1d 00:00:05"` on the next; RFC 3339 stands for itself. What must
//! always hold: a test file has no key that is ignored, and mistakes are shown as those of topology files.

use std::cell::RefCell;

use serde_json::Value as Json;
use toml_edit::{Document, Item, Value};

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    reader::Section,
    time::parse_timestamp,
};

/// The first moment of a test: 2026-01-01T00:00:00Z.
pub(crate) const DAY_ZERO_MS: i64 = 1_767_225_600_000;

/// One `[[test]]`.
#[derive(Clone, Debug)]
pub struct TestCase {
    /// Name.
    pub name: String,
    /// Texts of the topology file to replace before it is loaded.
    pub patch: Vec<(String, String)>,
    /// The file must not load, and the message must contain this.
    pub error: Option<String>,
    /// What happens.
    pub send: Vec<Action>,
    /// Records that must come out, in this order per topic; others may stand between.
    pub expect: Vec<Expected>,
    /// How many records a topic must have got in all.
    pub counts: Vec<(String, i64)>,
    /// Records that nodes dropped: node, reason (`None`: whatever), how many.
    pub dropped: Vec<(String, Option<&'static str>, i64)>,
}

/// Something that happens in a test.
#[derive(Clone, Debug)]
pub enum Action {
    /// A record arrives.
    Send {
        /// The source.
        to: String,
        /// Event time, ms.
        at: Option<i64>,
        /// Wall clock of the arrival, ms; `None`: not before the event time.
        now: Option<i64>,
        /// Key.
        key: Option<String>,
        /// Value.
        value: Payload,
    },
    /// Silent inputs vouch for this time.
    Advance(i64),
    /// The application stops and starts on an empty disk: what is in its changelogs survives.
    Restart,
}

/// The value of a record.
#[derive(Clone, Debug)]
pub enum Payload {
    /// JSON.
    Json(Json),
    /// Any text.
    Raw(String),
    /// None: the row of the key is deleted.
    Deletion,
}

/// A record that must come out.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Topic.
    pub topic: String,
    /// Key; `…` stands for any text.
    pub key: Option<String>,
    /// Members that the value must have, or its whole text.
    pub value: Option<Payload>,
    /// Headers that it must have.
    pub headers: Vec<(String, String)>,
}

/// Reads a test file.
pub fn parse_tests(file_name: &str, text: &str) -> Result<Vec<TestCase>, Diagnostics> {
    let diagnostics = RefCell::new(Diagnostics::new(file_name, text));
    let mut cases = Vec::new();
    match Document::parse(text) {
        Err(error) => {
            let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
            diagnostics.borrow_mut().push(Diagnostic::new(error.span().unwrap_or(0..0), message));
        }
        Ok(document) => {
            let root = Section::new(document.as_table(), "the test file".into(), 0..0, &diagnostics);
            for section in root.list("test") {
                cases.extend(read_case(&section));
                section.finish();
            }
            root.finish();
        }
    }
    diagnostics.into_inner().into_result().map(|()| cases)
}

fn read_case(section: &Section<'_>) -> Option<TestCase> {
    let name = section.required_text("name", "write `name = \"what must hold\"`");
    let mut patch = Vec::new();
    for change in section.list("patch") {
        let find = change.required_text("find", "write `{ find = \"…\", replace = \"…\" }`");
        let replace = change.required_text("replace", "write `{ find = \"…\", replace = \"…\" }`");
        patch.extend(find.zip(replace).map(|(find, replace)| (find.value, replace.value)));
        change.finish();
    }
    let error = section.text("error").map(|error| error.value);
    let mut send = Vec::new();
    for action in section.list("send") {
        send.extend(read_action(&action));
        action.finish();
    }
    let mut expect = Vec::new();
    for expected in section.list("expect") {
        let topic = expected.required_text("topic", "write `topic = \"…\"`");
        let key = expected.text("key").map(|key| key.value);
        let value = read_value(&expected);
        let headers = expected.map("headers").unwrap_or_default();
        let headers = headers.into_iter().map(|(name, value)| (name.value, value.value)).collect();
        expect.extend(topic.map(|topic| Expected { topic: topic.value, key, value, headers }));
        expected.finish();
    }
    let counts = section.numbers("counts");
    let mut dropped = Vec::new();
    for (key, reason) in [("late", Some("late")), ("duplicates", Some("duplicate")), ("dropped", None)] {
        dropped.extend(section.numbers(key).into_iter().map(|(node, count)| (node, reason, count)));
    }
    if error.is_none() && expect.is_empty() && counts.is_empty() && dropped.is_empty() {
        section.missing("expect", "a test without an expectation cannot fail: write `expect`, `counts`, `late`, `duplicates`, `dropped` or `error`");
    }
    Some(TestCase { name: name?.value, patch, error, send, expect, counts, dropped })
}

fn read_action(section: &Section<'_>) -> Option<Action> {
    if section.has("advance") {
        return read_time(section, "advance").map(Action::Advance);
    }
    if section.has("restart") {
        if section.boolean("restart").is_some_and(|restart| !restart.value) {
            section.report(
                Diagnostic::new(section.key_span("restart"), "`restart = false` does nothing")
                    .help("leave it out"),
            );
        }
        return Some(Action::Restart);
    }
    let to = section
        .required_text("to", "write `to = \"source\"`, `advance = \"00:01:00\"` or `restart = true`")?;
    let (at, now) = (read_time(section, "at"), read_time(section, "now"));
    let key = section.text("key").map(|key| key.value);
    let value = read_value(section);
    if value.is_none() && !["value", "raw", "delete"].iter().any(|key| section.has(key)) {
        section.missing(
            "value",
            "write `value = { … }`, `raw = \"…\"` for bytes that are no JSON, or `delete = true`",
        );
    }
    Some(Action::Send { to: to.value, at, now, key, value: value? })
}

fn read_value(section: &Section<'_>) -> Option<Payload> {
    // All are asked for, so that each is a known key.
    let (raw, value, delete) = (section.text("raw"), section.any("value"), section.boolean("delete"));
    if delete.is_some_and(|delete| delete.value) {
        if raw.is_some() || value.is_some() {
            section.report(
                Diagnostic::new(section.key_span("delete"), "a deletion has no value")
                    .help("write `key`, and no `value`"),
            );
        }
        return Some(Payload::Deletion);
    }
    raw.map(|raw| Payload::Raw(raw.value)).or_else(|| value.map(|item| Payload::Json(to_json(item))))
}

fn read_time(section: &Section<'_>, key: &'static str) -> Option<i64> {
    let text = section.text(key)?;
    let time = short_time(&text.value);
    if time.is_none() {
        section.report(
            Diagnostic::new(text.span, format!("`{}` is not a time", text.value))
                .help("write \"00:01:10\", \"00:01:10.500\", \"1d 00:00:05\" or RFC 3339"),
        );
    }
    time
}

/// Milliseconds of a short time, counted from [`DAY_ZERO_MS`], or of RFC 3339.
pub(crate) fn short_time(text: &str) -> Option<i64> {
    if let Some(ms) = parse_timestamp(text) {
        return Some(ms);
    }
    let (days, clock) = match text.split_once(' ') {
        Some((days, clock)) => (days.strip_suffix('d')?.parse::<i64>().ok()?, clock),
        None => (0, text),
    };
    let on_a_day = format!("1970-01-01T{clock}Z");
    Some(DAY_ZERO_MS + days * 86_400_000 + parse_timestamp(&on_a_day)?)
}

fn to_json(item: &Item) -> Json {
    match item {
        Item::Value(value) => value_to_json(value),
        Item::Table(table) => table.iter().map(|(name, item)| (name.to_owned(), to_json(item))).collect(),
        Item::ArrayOfTables(list) => list
            .iter()
            .map(|table| table.iter().map(|(name, item)| (name.to_owned(), to_json(item))).collect::<Json>())
            .collect(),
        Item::None => Json::Null,
    }
}

fn value_to_json(value: &Value) -> Json {
    match value {
        Value::String(text) => Json::from(text.value().as_str()),
        Value::Integer(value) => Json::from(*value.value()),
        Value::Float(value) => Json::from(*value.value()),
        Value::Boolean(value) => Json::from(*value.value()),
        Value::Datetime(value) => Json::from(value.value().to_string()),
        Value::Array(list) => list.iter().map(value_to_json).collect(),
        Value::InlineTable(table) => {
            table.iter().map(|(name, value)| (name.to_owned(), value_to_json(value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_count_from_the_first_day() {
        assert_eq!(short_time("00:01:10"), Some(DAY_ZERO_MS + 70_000));
        assert_eq!(short_time("1d 00:00:05.250"), Some(DAY_ZERO_MS + 86_405_250));
        assert_eq!(short_time("2026-01-01T00:00:00Z"), Some(DAY_ZERO_MS));
        assert_eq!(short_time("25:00:00"), None);
        assert_eq!(short_time("soon"), None);
    }

    #[test]
    fn mistakes_of_test_files_have_a_place() {
        let text = "[[test]]\nname = \"x\"\nsend = [ { to = \"a\", att = \"00:00:01\", value = {} } ]\n";
        let shown = parse_tests("x.test.toml", text).unwrap_err().to_string();
        assert!(shown.contains("x.test.toml:3:22: `send` of the test file has no key `att`"), "{shown}");
        assert!(shown.contains("did you mean `at`?"), "{shown}");
        assert!(shown.contains("a test without an expectation cannot fail"), "{shown}");
    }
}
