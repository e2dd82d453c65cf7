//! `[table.…]`: an aggregation with its window, or a topic read as a table.

use super::{Body, Emit, FROM, Role, Table, Window, WindowShape, positive, source, state_version};
use crate::streams::file::{
    diagnostic::Diagnostic,
    reader::{Section, Spanned},
    time::parse_duration,
};

/// `[table.…]`
pub(super) fn read(section: &Section<'_>) -> Option<Body> {
    if section.has("topic") && !section.has("from") {
        return source::read_as(section, Role::Table);
    }
    if section.has("topic") {
        section.report(
            Diagnostic::new(
                section.key_span("topic"),
                format!("{} has both `topic` and `from`", section.what),
            )
            .help("a table is either a topic with a row per key, or made `from` a node"),
        );
        // Which of the two was meant is not known, so nothing else is said.
        section.ask_for_all();
        return None;
    }
    let from = section.required_text("from", FROM);
    let filter = section.text("where");
    let group_by = section.texts("group_by");
    if group_by.as_ref().is_none_or(Vec::is_empty) && (group_by.is_some() || !section.has("group_by")) {
        section.missing("group_by", "write `group_by = [\"column\"]`: one result per key");
    }
    let windowed = section.has("window");
    let window = section.section("window").map(|inner| read_window(section, inner));
    let emit = section.section("emit").map(read_emit).unwrap_or_default();
    if !windowed && (emit.on_close || emit.with_final) {
        section.report(
            Diagnostic::new(section.key_span("emit"), "a table without a window never closes")
                .help("add `window = { tumbling = \"1m\", grace = \"10s\" }`, or emit on update"),
        );
    }
    let select = section.map("select");
    if select.as_ref().is_none_or(Vec::is_empty) && (select.is_some() || !section.has("select")) {
        section.missing("select", "write `select = { total = \"count(*)\" }`");
    }
    let having = section.text("having");
    let retention = section.duration("retention");
    let state_version = state_version(section);
    Some(Body::Table(Table {
        from: from?,
        filter,
        group_by: group_by.filter(|columns| !columns.is_empty())?,
        window,
        emit,
        select: select?,
        having,
        retention,
        state_version,
    }))
}

fn read_window(table: &Section<'_>, section: Section<'_>) -> Window {
    const KINDS: [&str; 4] = ["tumbling", "hopping", "sliding", "session"];
    let present: Vec<&str> = KINDS.into_iter().filter(|kind| section.has(kind)).collect();
    if let [_, second, ..] = present[..] {
        section.report(
            Diagnostic::new(
                section.key_span(second),
                format!("the window of {} is of two kinds", table.what),
            )
            .help(format!("write one of {}", KINDS.join(", "))),
        );
    }
    if present.is_empty() {
        section.missing("tumbling", "write `tumbling = \"1m\"`, `hopping = [\"5m\", \"1m\"]`, `sliding = \"5m\"` or `session = \"30m\"`");
    }
    let place = section.span.clone();
    // With something in the place of what is missing, the rest of the node is looked through, too.
    let assumed = |ms| Spanned::new(ms, place.clone());
    let length = |key: &'static str| {
        let length = section.duration(key);
        positive(&section, key, length)
    };
    let (tumbling, sliding, session) = (length("tumbling"), length("sliding"), length("session"));
    let hopping = read_hopping(&section);
    let shape = match present.first() {
        Some(&"hopping") => hopping.unwrap_or_else(|| WindowShape::Hopping(assumed(60_000), assumed(60_000))),
        Some(&"sliding") => WindowShape::Sliding(sliding.unwrap_or_else(|| assumed(60_000))),
        Some(&"session") => WindowShape::Session(session.unwrap_or_else(|| assumed(60_000))),
        _ => WindowShape::Tumbling(tumbling.unwrap_or_else(|| assumed(60_000))),
    };
    let grace = section.duration("grace");
    if grace.is_none() && !section.has("grace") {
        section.report(
            Diagnostic::new(section.span.clone(), format!("the window of {} has no `grace`", table.what))
                .help("write `grace = \"10s\"`: how long after its end a window still takes late records; \"0s\" for none"),
        );
    }
    let zone = section.text("zone");
    section.finish();
    Window { shape, grace: grace.unwrap_or_else(|| assumed(0)), zone }
}

/// `hopping = ["5m", "1m"]`: length, and from one start to the next.
fn read_hopping(section: &Section<'_>) -> Option<WindowShape> {
    let texts = section.texts("hopping")?;
    let help = "write `hopping = [\"5m\", \"1m\"]`: the length of a window, and from one start to the next";
    let [size, step] = &texts[..] else {
        let found = format!("`hopping` has two durations, found {}", texts.len());
        section.report(Diagnostic::new(section.key_span("hopping"), found).help(help));
        return None;
    };
    let parsed = [size, step].map(|text| match parse_duration(&text.value) {
        Some(ms) => positive(section, "hopping", Some(Spanned::new(ms, text.span.clone()))),
        None => {
            let message = format!("`{}` is not a duration", text.value);
            section.report(
                Diagnostic::new(text.span.clone(), message)
                    .help("write a number and a unit (ms, s, m, h, d): \"30s\", \"1h30m\""),
            );
            None
        }
    });
    let [Some(size), Some(step)] = parsed else { return None };
    if step.value > size.value {
        section.report(
            Diagnostic::new(
                step.span.clone(),
                "windows that begin further apart than they are long leave gaps",
            )
            .help(help),
        );
        return None;
    }
    Some(WindowShape::Hopping(size, step))
}

fn read_emit(section: Section<'_>) -> Emit {
    let (on_close, on_record) = match section.text("on") {
        None => (false, false),
        Some(on) => match on.value.as_str() {
            "update" => (false, false),
            "record" => (false, true),
            "close" => (true, false),
            other => {
                section.report(
                    Diagnostic::new(on.span, format!("`{other}` is no time to emit"))
                        .help("write \"update\", \"record\" or \"close\""),
                );
                (false, false)
            }
        },
    };
    let with_final = section.boolean("final").is_some_and(|with| with.value);
    let idle_close = section.duration("idle_close");
    let idle_close = positive(&section, "idle_close", idle_close);
    section.finish();
    Emit { on_close, on_record, with_final, idle_close }
}
