//! The JSON Schema of topology files, for completion and checks in editors (Taplo, Even Better TOML).
//!
//! The types here have the shape of the format and nothing else: [`parse`](mod@super::parse) reads files, with messages of its own. What must
//! always hold, and is tested: the schema has exactly the keys that the parser takes, section by section.

#![allow(dead_code, reason = "shapes to make a schema of; nothing is ever made of them")]

use std::collections::BTreeMap;

use schemars::{JsonSchema, schema_for};
use serde::Deserialize;

/// The schema as JSON text.
pub fn schema() -> String {
    let mut schema = schema_for!(File);
    schema.insert(
        "$id".to_owned(),
        "https://raw.githubusercontent.com/sluice-rs/sluice/main/topologies/schema.json".into(),
    );
    format!("{:#}\n", schema.to_value())
}

/// A topology file: one application, all its nodes in one task graph.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "sluice topology")]
struct File {
    /// Version of the format: 1.
    #[schemars(range(min = 1, max = 1))]
    version: i64,
    /// Application id: prefix of internal topics, and the consumer group unless `group` says otherwise.
    app: String,
    /// Consumer group, where it is not `app`.
    group: Option<String>,
    /// Topics read as streams.
    #[serde(default)]
    source: BTreeMap<String, Source>,
    /// Topics read whole by every process.
    #[serde(default)]
    global: BTreeMap<String, Global>,
    /// Nodes that drop repeats.
    #[serde(default)]
    dedupe: BTreeMap<String, Dedupe>,
    /// Filters and projections.
    #[serde(default)]
    stream: BTreeMap<String, Stream>,
    /// Streams of one shape put together.
    #[serde(default)]
    merge: BTreeMap<String, Merge>,
    /// A stream sent to branches by conditions.
    #[serde(default)]
    split: BTreeMap<String, Split>,
    /// Records moved to the partition of a key.
    #[serde(default)]
    repartition: BTreeMap<String, Repartition>,
    /// Aggregations, or topics read as tables.
    #[serde(default)]
    table: BTreeMap<String, Table>,
    /// Joins of streams and tables.
    #[serde(default)]
    join: BTreeMap<String, Join>,
    /// Processors written in Rust.
    #[serde(default)]
    processor: BTreeMap<String, Processor>,
}

/// A duration: numbers with units ms, s, m, h, d, as "30s" or "1h30m".
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("pattern" = "^([0-9]+(ms|s|m|h|d))+$"))]
struct Duration(String);

/// Columns by name, each a SQL expression.
type Columns = BTreeMap<String, String>;

/// Fields by name, each with its type: text, int, float, bool, timestamp, duration, uuid, json; with `?` where it may be absent.
type Fields = BTreeMap<String, String>;

/// One text or several.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

/// How values are written.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// An object with a member per column.
    Json,
    /// One value as plain text.
    Raw,
}

/// What happens to records that cannot be read.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Bad {
    /// Where they go.
    DeadLetter(DeadLetter),
    /// What else.
    Policy(BadPolicy),
}

/// A topic of dead letters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DeadLetter {
    /// The topic.
    dlq: String,
}

/// Skipped and counted, or the end of the application.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum BadPolicy {
    /// Counted and dropped.
    Skip,
    /// The application stops.
    Fail,
}

/// A topic read as a stream.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Source {
    /// The topic.
    topic: String,
    /// How values are written; json when absent.
    format: Option<Format>,
    /// Field with the event time; the record's timestamp when absent.
    time: Option<String>,
    /// Field that the record's key holds.
    key: Option<OneOrMore>,
    /// How far ahead of the wall clock a record may be dated.
    max_future: Option<Duration>,
    /// Records that cannot be read: to `<topic>-dlq` when absent.
    bad: Option<Bad>,
    /// The fields that are read.
    fields: Fields,
    /// Where rows are written.
    to: Option<To>,
}

/// A topic that every process reads whole.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Global {
    /// The topic.
    topic: String,
    /// How values are written; json when absent.
    format: Option<Format>,
    /// Field with the event time; the record's timestamp when absent.
    time: Option<String>,
    /// Field that the record's key holds.
    key: OneOrMore,
    /// How far ahead of the wall clock a record may be dated.
    max_future: Option<Duration>,
    /// Records that cannot be read: to `<topic>-dlq` when absent.
    bad: Option<Bad>,
    /// The fields that are read.
    fields: Fields,
}

/// Drops repeats of an id within a stretch of event time.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Dedupe {
    /// The node it reads.
    from: String,
    /// The id that repeats have in common.
    by: String,
    /// How far apart repeats may be.
    within: Duration,
    /// Counted up to build the state anew.
    #[schemars(range(min = 1))]
    state_version: Option<i64>,
    /// Where rows are written.
    to: Option<To>,
}

/// A filter and a projection.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Stream {
    /// The node it reads.
    from: String,
    /// Rows to keep: a SQL condition.
    r#where: Option<String>,
    /// Columns of the result; those of the input when absent.
    select: Option<Columns>,
    /// Where rows are written.
    to: Option<To>,
}

/// Streams of one shape put together.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Merge {
    /// The nodes it reads, two or more.
    from: Vec<String>,
    /// Where rows are written.
    to: Option<To>,
}

/// Rows sent to the first branch whose condition holds.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Split {
    /// The node it reads.
    from: String,
    /// Branches, each with a SQL condition.
    into: Columns,
    /// The branch of what no condition takes.
    rest: Option<String>,
}

/// Moves records to the partition of a key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Repartition {
    /// The node it reads.
    from: String,
    /// Columns of the key.
    by: OneOrMore,
    /// Where rows are written.
    to: Option<To>,
}

/// An aggregation, or a topic read as a table.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Table {
    /// Made from a node.
    Aggregation(Aggregation),
    /// A topic with a row per key.
    Topic(TableTopic),
}

/// An aggregation: one result per key, and per window where there is one.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Aggregation {
    /// The node it reads.
    from: String,
    /// Rows to count: a SQL condition.
    r#where: Option<String>,
    /// Columns of the key.
    group_by: OneOrMore,
    /// The window; over all time when absent.
    window: Option<Window>,
    /// When results leave.
    emit: Option<Emit>,
    /// Columns of the result, with aggregates.
    select: Columns,
    /// Results to let through: a SQL condition on the result.
    having: Option<String>,
    /// How long closed windows stay readable.
    retention: Option<Duration>,
    /// Counted up to build the state anew.
    #[schemars(range(min = 1))]
    state_version: Option<i64>,
    /// Where results are written.
    to: Option<To>,
}

/// A topic with a row per key, the newest counts.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TableTopic {
    /// The topic.
    topic: String,
    /// How values are written; json when absent.
    format: Option<Format>,
    /// Field with the event time; the record's timestamp when absent.
    time: Option<String>,
    /// Field that the record's key holds.
    key: OneOrMore,
    /// How far ahead of the wall clock a record may be dated.
    max_future: Option<Duration>,
    /// Records that cannot be read: to `<topic>-dlq` when absent.
    bad: Option<Bad>,
    /// The fields that are read.
    fields: Fields,
    /// Counted up to read the topic anew.
    #[schemars(range(min = 1))]
    state_version: Option<i64>,
    /// Where rows are written.
    to: Option<To>,
}

/// A window, of one of the kinds.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Window {
    /// Windows of this length, one after the other.
    tumbling: Option<Duration>,
    /// Length, and from one start to the next.
    #[schemars(length(min = 2, max = 2))]
    hopping: Option<Vec<Duration>>,
    /// Windows of this length that end with a record.
    sliding: Option<Duration>,
    /// Windows that end with this much silence.
    session: Option<Duration>,
    /// How long after its end a window still takes late records.
    grace: Duration,
    /// Zone in which days begin, as "Asia/Seoul".
    zone: Option<String>,
}

/// When results leave.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Emit {
    /// With updates, with every record, or when the window closes.
    on: Option<EmitOn>,
    /// A last result marked `final` when the window closes.
    r#final: Option<bool>,
    /// Silence of the inputs after which the clock goes on without them.
    idle_close: Option<Duration>,
}

/// A time to emit.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum EmitOn {
    /// What changed, with each commit at the latest.
    Update,
    /// With every record.
    Record,
    /// When the window closes.
    Close,
}

/// A join of streams and tables.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Join {
    /// The node on the left side.
    left: String,
    /// The node on the right side.
    right: String,
    /// What both sides have in common.
    on: On,
    /// Of two streams: how far apart partners may be.
    within: Option<Within>,
    /// Which rows without a partner are kept; inner when absent.
    kind: Option<Kind>,
    /// Joined rows to keep: a SQL condition.
    r#where: Option<String>,
    /// Columns of the result.
    select: Columns,
    /// When rows without a partner leave.
    emit: Option<JoinEmit>,
    /// Counted up to build the state anew.
    #[schemars(range(min = 1))]
    state_version: Option<i64>,
    /// Where rows are written.
    to: Option<To>,
}

/// Columns that both sides have, or columns of each.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum On {
    /// Of the same names.
    Same(OneOrMore),
    /// Of other names.
    Sides(Sides),
}

/// Columns of each side.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sides {
    /// Of the left side.
    left: OneOrMore,
    /// Of the right side.
    right: OneOrMore,
}

/// How far apart partners may be.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Within {
    /// How much older the right record may be; nothing when absent.
    before: Option<Duration>,
    /// How much younger the right record may be.
    after: Duration,
    /// How long after that a late partner is waited for.
    grace: Duration,
}

/// When rows without a partner leave.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JoinEmit {
    /// Silence of the inputs after which the clock goes on without them.
    idle_close: Option<Duration>,
}

/// Rows without a partner.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Dropped.
    Inner,
    /// Kept of the left side.
    Left,
    /// Kept of both sides.
    Outer,
}

/// A processor written in Rust.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Processor {
    /// The node it reads.
    from: String,
    /// The name it is registered under.
    uses: String,
    /// Tables whose state it reads.
    #[serde(default)]
    stores: Vec<String>,
    /// Columns of what it forwards; those of the input when absent.
    fields: Option<Fields>,
    /// Where rows are written.
    to: Option<To>,
}

/// Where rows are written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct To {
    /// The topic.
    topic: String,
    /// The record's key, a SQL expression; no key when absent.
    key: Option<String>,
    /// Headers, each a SQL expression.
    #[serde(default)]
    headers: Columns,
    /// How values are written; json when absent.
    format: Option<Format>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::streams::file::parse::parse;

    #[test]
    fn the_committed_schema_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/topologies/schema.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == schema(), "write it again: sluice topology schema > topologies/schema.json");
    }

    fn keys(schema: &Value, name: &str) -> BTreeSet<String> {
        let properties =
            if name.is_empty() { &schema["properties"] } else { &schema["$defs"][name]["properties"] };
        properties
            .as_object()
            .unwrap_or_else(|| panic!("no properties of {name:?}"))
            .keys()
            .cloned()
            .collect()
    }

    /// Every section: its name in the schema, and a text with a place for one more key.
    const SECTIONS: [(&str, &str); 17] = [
        ("", "@"),
        ("Source", "[source.x]\n@"),
        ("Global", "[global.x]\nkey = \"k\"\n@"),
        ("Dedupe", "[dedupe.x]\n@"),
        ("Stream", "[stream.x]\n@"),
        ("Merge", "[merge.x]\n@"),
        ("Split", "[split.x]\n@"),
        ("Repartition", "[repartition.x]\n@"),
        ("Aggregation", "[table.x]\nfrom = \"y\"\n@"),
        ("TableTopic", "[table.x]\ntopic = \"y\"\nkey = \"k\"\n@"),
        ("Window", "[table.x]\nfrom = \"y\"\n[table.x.window]\n@"),
        ("Emit", "[table.x]\nfrom = \"y\"\n[table.x.emit]\n@"),
        ("Join", "[join.x]\non = \"k\"\n@"),
        ("Sides", "[join.x]\n[join.x.on]\n@"),
        ("Within", "[join.x]\non = \"k\"\n[join.x.within]\n@"),
        ("Processor", "[processor.x]\n@"),
        ("To", "[stream.x]\n[stream.x.to]\n@"),
    ];

    #[test]
    fn the_schema_has_the_keys_that_the_parser_takes() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        let mut all: BTreeSet<String> = SECTIONS.iter().flat_map(|(name, _)| keys(&schema, name)).collect();
        all.extend(["frm", "selekt", "nonsense"].map(str::to_owned));
        let mut differences = Vec::new();
        for (name, text) in SECTIONS {
            let known = keys(&schema, name);
            for key in &all {
                // Which of the two a table is: with both the parser says so, in other words.
                let decides =
                    matches!((name, key.as_str()), ("Aggregation", "topic") | ("TableTopic", "from"));
                if decides
                    || text.contains(&format!("\n{key} = "))
                    || (name.is_empty() && text.starts_with(key.as_str()))
                {
                    continue;
                }
                // Of no type that anything takes, so that only the key itself is judged.
                let text = text.replace('@', &format!("{key} = 1979-05-27\n"));
                let (_, mistakes) = parse("t.toml", &text);
                let refused = mistakes.to_string().contains(&format!("has no key `{key}`"));
                if refused == known.contains(key) {
                    differences.push(format!("{name:?} {key}: the parser takes it: {}", !refused));
                }
            }
        }
        assert!(differences.is_empty(), "{differences:#?}");
    }
}
