//! Sections that read a topic: `[source.…]`, `[global.…]`, and `[table.…]` with a `topic`.

use super::{Bad, Body, Role, Source, check_topic_name, format, state_version};
use crate::streams::file::{
    diagnostic::Diagnostic,
    reader::{Section, Spanned},
};

/// `[source.…]`
pub(super) fn read(section: &Section<'_>) -> Option<Body> {
    read_as(section, Role::Stream)
}

/// `[global.…]`
pub(super) fn read_global(section: &Section<'_>) -> Option<Body> {
    read_as(section, Role::Global)
}

/// A section that reads a topic as this.
pub(super) fn read_as(section: &Section<'_>, role: Role) -> Option<Body> {
    let topic = section.required_text("topic", "write `topic = \"…\"`: the topic it reads");
    if let Some(topic) = &topic {
        check_topic_name(section, topic, "a topic");
    }
    let format = format(section);
    let (time, key) = (section.text("time"), section.texts("key"));
    if role != Role::Stream
        && key.as_ref().is_none_or(Vec::is_empty)
        && (key.is_some() || !section.has("key"))
    {
        section.missing(
            "key",
            "write `key = \"field\"`: the field that the record's key holds; a table has one row per key",
        );
    }
    let max_future = section.duration("max_future");
    let bad = read_bad(section)?;
    let fields = section.map("fields");
    if fields.as_ref().is_none_or(Vec::is_empty) && (fields.is_some() || !section.has("fields")) {
        section.missing("fields", "write the fields that the topology reads: `fields = { id = \"int\" }`");
    }
    // Every instance reads a global table anew when it starts; only a table has a state to rebuild.
    let state_version = if role == Role::Table { state_version(section) } else { 1 };
    if role != Role::Stream && key.as_ref().is_none_or(Vec::is_empty) {
        // Its readers would take it for a stream.
        return None;
    }
    let topic = topic.unwrap_or_else(|| Spanned::new(section.what.clone(), section.span.clone()));
    Some(Body::Source(Source {
        role,
        topic,
        format,
        time,
        key,
        max_future,
        bad,
        fields: fields?,
        state_version,
    }))
}

/// `None` when the value is of the wrong shape, which is reported.
fn read_bad(section: &Section<'_>) -> Option<Bad> {
    if section.is_table("bad") {
        let inner = section.section("bad")?;
        let dlq = inner
            .required_text("dlq", "write `bad = { dlq = \"topic\" }`, `bad = \"skip\"` or `bad = \"fail\"`");
        if let Some(dlq) = &dlq {
            check_topic_name(section, dlq, "a topic");
        }
        inner.finish();
        return Some(Bad::DeadLetter(dlq));
    }
    let Some(text) = section.text("bad") else { return Some(Bad::DeadLetter(None)) };
    Some(match text.value.as_str() {
        "skip" => Bad::Skip,
        "fail" => Bad::Fail,
        other => {
            section.report(
                Diagnostic::new(text.span, format!("`{other}` is no way to treat bad records"))
                    .help("write `{ dlq = \"topic\" }`, \"skip\" or \"fail\""),
            );
            Bad::Fail
        }
    })
}
