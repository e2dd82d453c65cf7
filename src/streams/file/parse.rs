//! The text of a topology file to its [`File`]: the shape of the format, nothing about what names mean.
//!
//! First step of loading; [`plan`](mod@super::plan) resolves names and types. What must always hold: every key of the format is read here and
//! nowhere else, every other key is refused, and one mistake does not hide the next.

use std::cell::RefCell;

use toml_edit::Document;

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    reader::{Section, Spanned, Text},
};

/// A topology file as it is written.
#[derive(Clone, Debug)]
pub struct File {
    /// Application id.
    pub app: Text,
    /// Consumer group, where it is not the application id.
    pub group: Option<Text>,
    /// The nodes, in the order of the file.
    pub nodes: Vec<Node>,
    /// Names of nodes that could not be read: their readers are not to blame.
    pub broken: Vec<String>,
}

/// A named node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name: unique in the file; names the state, the changelog, the metric label.
    pub name: Text,
    /// What it does.
    pub body: Body,
    /// Where its records are written.
    pub to: Option<To>,
}

/// A condition, projection and the like are texts until the plan reads them.
pub type Columns = Vec<(Text, Text)>;

/// What a node does.
#[derive(Clone, Debug)]
pub enum Body {
    /// Reads a topic.
    Source(Source),
    /// Drops repeats.
    Dedupe {
        /// Input.
        from: Text,
        /// Column that tells repeats.
        by: Text,
        /// Event time within which repeats come, ms.
        within: Spanned<i64>,
    },
    /// Filters and projects.
    Stream {
        /// Input.
        from: Text,
        /// Condition.
        filter: Option<Text>,
        /// Columns of the result; `None` keeps those of the input.
        select: Option<Columns>,
    },
    /// Puts streams of one shape together.
    Merge {
        /// Inputs.
        from: Vec<Text>,
    },
    /// Brings records of a key to one partition.
    Repartition {
        /// Input.
        from: Text,
        /// Columns of the key.
        by: Vec<Text>,
    },
    /// Aggregates.
    Table(Table),
    /// Joins two streams.
    Join(Join),
    /// Runs a processor written in Rust.
    Processor {
        /// Input.
        from: Text,
        /// The name it is registered under.
        uses: Text,
        /// Tables whose state it reads.
        stores: Vec<Text>,
        /// Columns of what it forwards; `None`: those of the input.
        fields: Option<Columns>,
    },
}

/// A source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Topic.
    pub topic: Text,
    /// Field with the event time.
    pub time: Option<Text>,
    /// Field that the record's key repeats.
    pub key: Option<Text>,
    /// How far ahead of the wall clock a record may be dated, ms.
    pub max_future: Option<Spanned<i64>>,
    /// Bad records.
    pub bad: Bad,
    /// Fields and their types.
    pub fields: Columns,
}

/// What happens to bad records.
#[derive(Clone, Debug)]
pub enum Bad {
    /// To `<topic>-dlq`, or the topic named.
    DeadLetter(Option<Text>),
    /// Counted and dropped.
    Skip,
    /// The application stops.
    Fail,
}

/// An aggregation.
#[derive(Clone, Debug)]
pub struct Table {
    /// Input.
    pub from: Text,
    /// Condition on records.
    pub filter: Option<Text>,
    /// Columns of the key.
    pub group_by: Vec<Text>,
    /// Window; `None` aggregates over all time.
    pub window: Option<Window>,
    /// When results leave.
    pub emit: Emit,
    /// Result columns.
    pub select: Columns,
    /// Condition on results.
    pub having: Option<Text>,
    /// How long a closed window stays readable, ms.
    pub retention: Option<Spanned<i64>>,
    /// Bumped to rebuild the state from the inputs.
    pub state_version: i64,
}

/// A tumbling window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Length, ms.
    pub size: Spanned<i64>,
    /// How long after its end records still count, ms.
    pub grace: Spanned<i64>,
    /// Zone in which days begin.
    pub zone: Option<Text>,
}

/// When a table's results leave.
#[derive(Clone, Debug, Default)]
pub struct Emit {
    /// Only when the window closes.
    pub on_close: bool,
    /// A last result marked `final` when the window closes.
    pub with_final: bool,
    /// Silence of the inputs after which the clock goes on without them, ms.
    pub idle_close: Option<Spanned<i64>>,
}

/// Which rows without a partner a join keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinKind {
    /// None.
    Inner,
    /// Of the left side.
    Left,
    /// Of both sides.
    Outer,
}

/// A stream-stream join.
#[derive(Clone, Debug)]
pub struct Join {
    /// Left input.
    pub left: Text,
    /// Right input.
    pub right: Text,
    /// Column of the left side that must equal …
    pub on_left: Text,
    /// … this one of the right side.
    pub on_right: Text,
    /// How much older the right record may be, ms.
    pub before: i64,
    /// How much younger the right record may be, ms.
    pub after: Spanned<i64>,
    /// How long after that a late partner is waited for, ms.
    pub grace: Spanned<i64>,
    /// Inner, left or outer.
    pub kind: JoinKind,
    /// Condition on joined rows.
    pub filter: Option<Text>,
    /// Columns of the result.
    pub select: Option<Columns>,
}

/// Where a node's records are written.
#[derive(Clone, Debug)]
pub struct To {
    /// Topic.
    pub topic: Text,
    /// Expression of the key; `None` writes no key.
    pub key: Option<Text>,
    /// Expressions of headers.
    pub headers: Columns,
}

/// Node kinds that the format knows and this version does not run; saying so beats "unknown key".
const LATER: &[&str] = &["split", "global"];

/// Parses. What can be read is returned beside the mistakes, so that the plan can look for more; `None` when that makes no sense.
pub fn parse(file_name: &str, text: &str) -> (Option<File>, Diagnostics) {
    let diagnostics = RefCell::new(Diagnostics::new(file_name, text));
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
            diagnostics.borrow_mut().push(Diagnostic::new(error.span().unwrap_or(0..0), message));
            return (None, diagnostics.into_inner());
        }
    };
    let root = Section::new(document.as_table(), "the file".into(), 0..0, &diagnostics);
    let file = read_file(&root);
    root.finish();
    (file, diagnostics.into_inner())
}

fn read_file(root: &Section<'_>) -> Option<File> {
    match root.integer("version") {
        Some(version) if version.value != 1 => root.report(
            Diagnostic::new(version.span, format!("version {} of the format is not known", version.value))
                .help("this program reads version 1"),
        ),
        Some(_) => {}
        None if root.has("version") => {}
        None => root.missing("version", "write `version = 1`"),
    }
    let app =
        root.required_text("app", "write `app = \"name\"`: the application id and the prefix of its topics");
    let group = root.text("group");
    for name in [&app, &group].into_iter().flatten() {
        check_topic_name(root, name, "an application id");
    }
    let mut nodes: Vec<Node> = Vec::new();
    let mut known: Vec<Text> = Vec::new();
    let mut broken: Vec<String> = Vec::new();
    let kinds: [(&'static str, ReadBody); 8] = [
        ("source", read_source),
        ("dedupe", read_dedupe),
        ("stream", read_stream),
        ("merge", read_merge),
        ("repartition", read_repartition),
        ("table", read_table),
        ("join", read_join),
        ("processor", read_processor),
    ];
    for (kind, read) in kinds {
        for (name, section) in root.sections(kind) {
            check_node_name(&section, &name, &known);
            known.push(name.clone());
            let body = read(&section);
            let to = if kind == "source" { None } else { read_to(&section) };
            section.finish();
            match body {
                Some(body) => nodes.push(Node { name, body, to }),
                None => broken.push(name.value),
            }
        }
    }
    for kind in LATER {
        for (name, section) in root.sections(kind) {
            section
                .report(Diagnostic::new(name.span, format!("`[{kind}.…]` is not available in this version")));
            broken.push(name.value);
        }
    }
    if nodes.is_empty() && known.is_empty() {
        root.report(
            Diagnostic::new(0..0, "the file has no nodes").help("begin with a source: `[source.name]`"),
        );
    }
    nodes.sort_by_key(|node| node.name.span.start);
    // Without a name the rest can still be looked through.
    let app = app.unwrap_or_else(|| Spanned::new(String::new(), 0..0));
    Some(File { app, group, nodes, broken })
}

type ReadBody = fn(&Section<'_>) -> Option<Body>;

fn check_node_name(section: &Section<'_>, name: &Text, known: &[Text]) {
    let mut chars = name.value.chars();
    let fits = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !fits {
        section.report(
            Diagnostic::new(name.span.clone(), format!("`{}` cannot name a node", name.value)).help(
                "a letter, then letters, digits and `_`: the name is also a topic, a table and a label",
            ),
        );
    }
    if known.iter().any(|other| other.value == name.value) {
        section.report(
            Diagnostic::new(name.span.clone(), format!("there are two nodes `{}`", name.value))
                .help("names are unique over all kinds of nodes"),
        );
    }
}

fn check_topic_name(section: &Section<'_>, name: &Text, what: &str) {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let value = &name.value;
    if value.is_empty() || value.len() > 249 || value == "." || value == ".." || !value.chars().all(legal) {
        section.report(
            Diagnostic::new(name.span.clone(), format!("`{value}` cannot be {what}"))
                .help("Kafka allows letters, digits, `.`, `_` and `-`, at most 249"),
        );
    }
}

const FROM: &str = "write `from = \"…\"`: the node whose records it reads";

fn read_source(section: &Section<'_>) -> Option<Body> {
    let topic = section.required_text("topic", "write `topic = \"…\"`: the topic it reads");
    if let Some(topic) = &topic {
        check_topic_name(section, topic, "a topic");
    }
    if let Some(format) = section.text("format")
        && format.value != "json"
    {
        section.report(
            Diagnostic::new(format.span, format!("format `{}` is not available", format.value))
                .help("write `format = \"json\"`"),
        );
    }
    let (time, key) = (section.text("time"), section.text("key"));
    let max_future = section.duration("max_future");
    let bad = if section.is_table("bad") {
        let inner = section.section("bad")?;
        let dlq = inner
            .required_text("dlq", "write `bad = { dlq = \"topic\" }`, `bad = \"skip\"` or `bad = \"fail\"`");
        if let Some(dlq) = &dlq {
            check_topic_name(section, dlq, "a topic");
        }
        inner.finish();
        Bad::DeadLetter(dlq)
    } else {
        match section.text("bad") {
            None => Bad::DeadLetter(None),
            Some(text) => match text.value.as_str() {
                "skip" => Bad::Skip,
                "fail" => Bad::Fail,
                other => {
                    section.report(
                        Diagnostic::new(text.span, format!("`{other}` is no way to treat bad records"))
                            .help("write `{ dlq = \"topic\" }`, \"skip\" or \"fail\""),
                    );
                    Bad::Fail
                }
            },
        }
    };
    let fields = section.map("fields");
    if fields.as_ref().is_none_or(Vec::is_empty) && (fields.is_some() || !section.has("fields")) {
        section.missing("fields", "write the fields that the topology reads: `fields = { id = \"int\" }`");
    }
    let topic = topic.unwrap_or_else(|| Spanned::new(section.what.clone(), section.span.clone()));
    Some(Body::Source(Source { topic, time, key, max_future, bad, fields: fields? }))
}

fn read_dedupe(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let by = section.required_text("by", "write `by = \"column\"`: the id that repeats have in common");
    let within = section.duration("within");
    if within.is_none() && !section.has("within") {
        section.missing(
            "within",
            "write `within = \"1h\"`: how far apart in event time repeats may be; ids are forgotten after it",
        );
    }
    let within = positive(section, "within", within);
    let within = within.unwrap_or_else(|| Spanned::new(1, section.span.clone()));
    Some(Body::Dedupe { from: from?, by: by?, within })
}

fn read_stream(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let (filter, select) = (section.text("where"), section.map("select"));
    Some(Body::Stream { from: from?, filter, select })
}

fn read_merge(section: &Section<'_>) -> Option<Body> {
    let from = section.texts("from");
    match &from {
        None if !section.has("from") => section.missing("from", "write `from = [\"a\", \"b\"]`"),
        Some(list) if list.len() < 2 => section.report(
            Diagnostic::new(section.key_span("from"), "a merge has two inputs or more")
                .help("for one input use a stream"),
        ),
        _ => {}
    }
    Some(Body::Merge { from: from? })
}

fn read_repartition(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let by = section.texts("by");
    if by.as_ref().is_none_or(Vec::is_empty) {
        section.missing("by", "write `by = [\"column\"]`: the key that decides the partition");
    }
    Some(Body::Repartition { from: from?, by: by? })
}

fn read_table(section: &Section<'_>) -> Option<Body> {
    if section.has("topic") {
        section.report(Diagnostic::new(
            section.key_span("topic"),
            "a table over a topic is not available in this version",
        ));
        for key in ["format", "key", "time"] {
            section.text(key);
        }
        section.text("topic");
        section.map("fields");
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
    let state_version = section.integer("state_version").map_or(1, |version| version.value);
    Some(Body::Table(Table {
        from: from?,
        filter,
        group_by: group_by?,
        window,
        emit,
        select: select?,
        having,
        retention,
        state_version,
    }))
}

fn read_window(table: &Section<'_>, section: Section<'_>) -> Window {
    let section_span = section.span.clone();
    for kind in ["hopping", "sliding", "session"] {
        if section.has(kind) {
            section.report(
                Diagnostic::new(
                    section.key_span(kind),
                    format!("{kind} windows are not available in this version"),
                )
                .help("use `tumbling`"),
            );
        }
    }
    section.texts("hopping");
    section.text("sliding");
    section.text("session");
    let size = section.duration("tumbling");
    if size.is_none() && !["tumbling", "hopping", "sliding", "session"].iter().any(|kind| section.has(kind)) {
        section.missing("tumbling", "write `tumbling = \"1m\"`: the length of a window");
    }
    let size = positive(&section, "tumbling", size);
    let grace = section.duration("grace");
    if grace.is_none() && !section.has("grace") {
        section.report(
            Diagnostic::new(section.span.clone(), format!("the window of {} has no `grace`", table.what))
                .help("write `grace = \"10s\"`: how long after its end a window still takes late records; \"0s\" for none"),
        );
    }
    let zone = section.text("zone");
    section.finish();
    // With something in the place of what is missing, the rest of the node is looked through, too.
    let assumed = |ms| Spanned::new(ms, section_span.clone());
    Window { size: size.unwrap_or_else(|| assumed(60_000)), grace: grace.unwrap_or_else(|| assumed(0)), zone }
}

fn read_emit(section: Section<'_>) -> Emit {
    let on_close = match section.text("on") {
        None => false,
        Some(on) => match on.value.as_str() {
            "update" => false,
            "close" => true,
            other => {
                section.report(
                    Diagnostic::new(on.span, format!("`{other}` is no time to emit"))
                        .help("write \"update\" or \"close\""),
                );
                false
            }
        },
    };
    let with_final = section.boolean("final").is_some_and(|with| with.value);
    let idle_close = section.duration("idle_close");
    let idle_close = positive(&section, "idle_close", idle_close);
    section.finish();
    Emit { on_close, with_final, idle_close }
}

fn read_join(section: &Section<'_>) -> Option<Body> {
    let left = section.required_text("left", "write `left = \"…\"`: the node on the left side");
    let right = section.required_text("right", "write `right = \"…\"`: the node on the right side");
    let (on_left, on_right) = if section.is_table("on") {
        let inner = section.section("on")?;
        let sides = (
            inner.required_text("left", "write `on = { left = \"a\", right = \"b\" }`"),
            inner.required_text("right", "write `on = { left = \"a\", right = \"b\" }`"),
        );
        inner.finish();
        sides
    } else {
        let on = section.required_text("on", "write `on = \"column\"`: what both sides have in common");
        (on.clone(), on)
    };
    let mut within = None;
    if let Some(inner) = section.section("within") {
        let (before, after) = (inner.duration("before"), inner.duration("after"));
        let grace = inner.duration("grace");
        for (key, value) in [("after", &after), ("grace", &grace)] {
            if value.is_none() && !inner.has(key) {
                inner.missing(
                    key,
                    "write `within = { after = \"24h\", grace = \"1m\" }`; there is no default",
                );
            }
        }
        inner.finish();
        within = after.zip(grace).map(|(after, grace)| (before.map_or(0, |ms| ms.value), after, grace));
    } else if !section.has("within") {
        section.missing(
            "within",
            "write `within = { after = \"24h\", grace = \"1m\" }`: how far apart partners may be; there is no default",
        );
    }
    let kind = match section.text("kind") {
        None => JoinKind::Inner,
        Some(kind) => match kind.value.as_str() {
            "inner" => JoinKind::Inner,
            "left" => JoinKind::Left,
            "outer" => JoinKind::Outer,
            other => {
                section.report(
                    Diagnostic::new(kind.span, format!("`{other}` is no kind of join"))
                        .help("write \"inner\", \"left\" or \"outer\""),
                );
                JoinKind::Inner
            }
        },
    };
    let (filter, select) = (section.text("where"), section.map("select"));
    if select.is_none() && !section.has("select") {
        section.missing("select", "write `select = { … }`: the columns of the result, as `node.column`");
    }
    let assumed = || Spanned::new(1, section.span.clone());
    let (before, after, grace) = within.unwrap_or_else(|| (0, assumed(), assumed()));
    Some(Body::Join(Join {
        left: left?,
        right: right?,
        on_left: on_left?,
        on_right: on_right?,
        before,
        after,
        grace,
        kind,
        filter,
        select: Some(select?),
    }))
}

fn read_processor(section: &Section<'_>) -> Option<Body> {
    let from = section.required_text("from", FROM);
    let uses =
        section.required_text("uses", "write `uses = \"name\"`: the name the processor is registered under");
    let stores = section.texts("stores").unwrap_or_default();
    let fields = section.map("fields");
    Some(Body::Processor { from: from?, uses: uses?, stores, fields })
}

fn read_to(section: &Section<'_>) -> Option<To> {
    let inner = section.section("to")?;
    let topic = inner.required_text("topic", "write `to = { topic = \"…\", key = \"…\" }`");
    if let Some(topic) = &topic {
        check_topic_name(section, topic, "a topic");
    }
    let (key, headers) = (inner.text("key"), inner.map("headers").unwrap_or_default());
    inner.finish();
    Some(To { topic: topic?, key, headers })
}

fn positive(section: &Section<'_>, key: &str, duration: Option<Spanned<i64>>) -> Option<Spanned<i64>> {
    if let Some(Spanned { value: ..=0, span }) = &duration {
        section.report(Diagnostic::new(span.clone(), format!("`{key}` must be longer than nothing")));
        return None;
    }
    duration
}
