//! The text of a topology file to its [`File`]: the shape of the format, nothing about what names mean.
//!
//! First step of loading; [`plan`](mod@super::plan) resolves names and types. What must always hold: every key of the format is read here and
//! nowhere else, every other key is refused, and one mistake does not hide the next.

mod join;
mod node;
mod source;
mod table;

use std::cell::RefCell;

use toml_edit::Document;

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    reader::{Section, Spanned, Text},
};

/// A topology file as it is written.
#[derive(Clone, Debug)]
pub(crate) struct File {
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
pub(crate) struct Node {
    /// Its name: unique in the file; names the state, the changelog, the metric label.
    pub name: Text,
    /// What it does.
    pub body: Body,
    /// Where its records are written.
    pub to: Option<To>,
}

/// A condition, projection and the like are texts until the plan reads them.
pub(crate) type Columns = Vec<(Text, Text)>;

/// What a node does.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Reads a topic, as a stream or as a table.
    Source(Source),
    /// Drops repeats.
    Dedupe {
        /// Input.
        from: Text,
        /// Column that tells repeats.
        by: Text,
        /// Event time within which repeats come, ms.
        within: Spanned<i64>,
        /// Bumped to begin with an empty memory.
        state_version: i64,
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
    /// Sends each record to the first branch whose condition holds.
    Split {
        /// Input.
        from: Text,
        /// Names and conditions of the branches, in order.
        into: Columns,
        /// Name of the branch of what no condition takes; without it that is left out.
        rest: Option<Text>,
    },
    /// What a split sends this way.
    Branch {
        /// The split.
        from: Text,
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
    /// Joins two streams, a stream with a table, or two tables.
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

/// What a topic is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Records, each for itself.
    Stream,
    /// The newest row of each key.
    Table,
    /// The same, all of it in every instance.
    Global,
}

/// How the values of a topic are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// A JSON object.
    #[default]
    Json,
    /// One value as plain text.
    Raw,
}

/// A source.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Stream, table or global table.
    pub role: Role,
    /// Topic.
    pub topic: Text,
    /// How values are written.
    pub format: Format,
    /// Field with the event time.
    pub time: Option<Text>,
    /// Fields of the record's key.
    pub key: Option<Vec<Text>>,
    /// How far ahead of the wall clock a record may be dated, ms.
    pub max_future: Option<Spanned<i64>>,
    /// Bad records.
    pub bad: Bad,
    /// Fields and their types.
    pub fields: Columns,
    /// Bumped to read a table anew from its topic.
    pub state_version: i64,
}

/// What happens to bad records.
#[derive(Clone, Debug)]
pub(crate) enum Bad {
    /// To `<topic>-dlq`, or the topic named.
    DeadLetter(Option<Text>),
    /// Counted and dropped.
    Skip,
    /// The application stops.
    Fail,
}

/// An aggregation.
#[derive(Clone, Debug)]
pub(crate) struct Table {
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

/// A window.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Its kind and length.
    pub shape: WindowShape,
    /// How long after its end records still count, ms.
    pub grace: Spanned<i64>,
    /// Zone in which days begin.
    pub zone: Option<Text>,
}

/// Kinds of windows, with their lengths in ms.
#[derive(Clone, Debug)]
pub(crate) enum WindowShape {
    /// One after the other.
    Tumbling(Spanned<i64>),
    /// Overlapping: length, and from one start to the next.
    Hopping(Spanned<i64>, Spanned<i64>),
    /// Around every record.
    Sliding(Spanned<i64>),
    /// Until a silence.
    Session(Spanned<i64>),
}

/// When a table's results leave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Emit {
    /// Only when the window closes.
    pub on_close: bool,
    /// With every record, not only with the commit.
    pub on_record: bool,
    /// A last result marked `final` when the window closes.
    pub with_final: bool,
    /// Silence of the inputs after which the clock goes on without them, ms.
    pub idle_close: Option<Spanned<i64>>,
}

/// Which rows without a partner a join keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinKind {
    /// None.
    Inner,
    /// Of the left side.
    Left,
    /// Of both sides.
    Outer,
}

/// A join.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    /// Left input.
    pub left: Text,
    /// Right input.
    pub right: Text,
    /// Columns of the left side that must equal …
    pub on_left: Vec<Text>,
    /// … these of the right side.
    pub on_right: Vec<Text>,
    /// How far apart partners of two streams may be.
    pub within: Option<Spanned<Within>>,
    /// Whether the file says something about that, right or wrong.
    pub has_within: bool,
    /// Inner, left or outer.
    pub kind: Spanned<JoinKind>,
    /// Condition on joined rows.
    pub filter: Option<Text>,
    /// Columns of the result.
    pub select: Columns,
    /// Silence of the inputs after which rows without a partner leave, ms.
    pub idle_close: Option<Spanned<i64>>,
    /// Bumped to rebuild the state from the inputs.
    pub state_version: i64,
}

/// How far apart partners of two streams may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Within {
    /// How much older the right record may be, ms.
    pub before: i64,
    /// How much younger the right record may be, ms.
    pub after: i64,
    /// How long after that a late partner is waited for, ms.
    pub grace: i64,
}

/// Where a node's records are written.
#[derive(Clone, Debug)]
pub(crate) struct To {
    /// Topic.
    pub topic: Text,
    /// Expression of the key; `None` writes no key.
    pub key: Option<Text>,
    /// Expressions of headers.
    pub headers: Columns,
    /// How values are written.
    pub format: Format,
}

/// Parses. What can be read is returned beside the mistakes, so that the plan can look for more; `None` when that makes no sense.
pub(crate) fn parse(file_name: &str, text: &str) -> (Option<File>, Diagnostics) {
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
    let kinds: [(&'static str, ReadBody); 10] = [
        ("source", source::read),
        ("global", source::read_global),
        ("dedupe", node::read_dedupe),
        ("stream", node::read_stream),
        ("merge", node::read_merge),
        ("split", node::read_split),
        ("repartition", node::read_repartition),
        ("table", table::read),
        ("join", join::read),
        ("processor", node::read_processor),
    ];
    for (kind, read) in kinds {
        for (name, section) in root.sections(kind) {
            check_node_name(&section, &name, &known);
            known.push(name.clone());
            let body = read(&section);
            // What a split or a global table would write is nowhere all together.
            let to = if matches!(kind, "split" | "global") { None } else { node::read_to(&section) };
            for branch in branches(body.as_ref()) {
                check_node_name(&section, &branch, &known);
                known.push(branch.clone());
                nodes.push(Node { name: branch, body: Body::Branch { from: name.clone() }, to: None });
            }
            section.finish();
            match body {
                Some(body) => nodes.push(Node { name, body, to }),
                None => broken.push(name.value),
            }
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

/// Names of the nodes that a split makes.
fn branches(body: Option<&Body>) -> Vec<Text> {
    match body {
        Some(Body::Split { into, rest, .. }) => {
            into.iter().map(|(name, _)| name).chain(rest).cloned().collect()
        }
        _ => Vec::new(),
    }
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

/// The version that a state is counted up to.
fn state_version(section: &Section<'_>) -> i64 {
    let Some(version) = section.integer("state_version") else { return 1 };
    if version.value < 1 {
        section.report(
            Diagnostic::new(version.span, format!("`state_version` {} is none", version.value))
                .help("it begins at 1 and is counted up to build the state anew"),
        );
        return 1;
    }
    version.value
}

/// How values are written.
fn format(section: &Section<'_>) -> Format {
    match section.text("format") {
        None => Format::Json,
        Some(format) => match format.value.as_str() {
            "json" => Format::Json,
            "raw" => Format::Raw,
            other => {
                section
                    .report(Diagnostic::new(format.span, format!("format `{other}` is not available")).help(
                        "write `format = \"json\"`, or `format = \"raw\"` for one value as plain text",
                    ));
                Format::Json
            }
        },
    }
}

fn positive(section: &Section<'_>, key: &str, duration: Option<Spanned<i64>>) -> Option<Spanned<i64>> {
    if let Some(Spanned { value: ..=0, span }) = &duration {
        section.report(Diagnostic::new(span.clone(), format!("`{key}` must be longer than nothing")));
        return None;
    }
    duration
}

const FROM: &str = "write `from = \"…\"`: the node whose records it reads";
