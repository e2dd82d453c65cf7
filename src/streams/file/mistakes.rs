//! The catalogue of mistakes: one valid file, each entry breaks it in one way, `mistakes.golden` holds what is said.
//!
//! `SLUICE_BLESS=1 cargo test --lib mistakes` writes the golden file anew; read its difference before committing it. What must hold:
//! every entry is refused, with a place and (nearly always) advice, and no two entries break the file alike.

use std::{collections::BTreeSet, fmt::Write};

use super::{Processors, load};

const VALID: &str = include_str!("corpus/shop.toml");

/// Name, what is replaced, by what. An empty first text appends.
const MISTAKES: &[(&str, &str, &str)] = &[
    // The file.
    ("not toml", "version = 1", "version = "),
    ("a key twice", "app     = \"shop\"", "app = \"shop\"\napp = \"shop\""),
    ("no version", "version = 1\n", ""),
    ("another version", "version = 1", "version = 2"),
    ("version as text", "version = 1", "version = \"1\""),
    ("no app", "app     = \"shop\"\n", ""),
    ("an app that is no topic name", "\"shop\"", "\"my shop\""),
    ("an unknown key at the top", "app     =", "aplication = \"x\"\napp     ="),
    ("an unknown kind of node", "[stream.big]", "[steam.big]"),
    ("a node without a name", "", "\n[merge]\nfrom = \"x\"\n"),
    ("a node name with a dash", "[merge.activity]", "[merge.all-activity]"),
    ("two nodes of one name", "[stream.paid]", "[stream.orders]"),
    // Sources.
    ("a source without topic", "topic  = \"payments\"\n", ""),
    ("a topic with a space", "topic  = \"payments\"", "topic  = \"the payments\""),
    ("two sources of one topic", "topic  = \"payments\"", "topic  = \"orders\""),
    (
        "a source without fields",
        "fields = { paymentId = \"text\", orderId = \"text\", userId = \"int\", paidAt = \"timestamp\" }\n",
        "",
    ),
    ("a field of an unknown type", "gift = \"bool\"", "gift = \"boole\""),
    ("a field of a type from elsewhere", "gift = \"bool\"", "gift = \"varchar\""),
    ("a field whose type is a number", "gift = \"bool\"", "gift = 1"),
    ("an unknown format", "format = \"json\"", "format = \"avro\""),
    ("an event time that is no field", "time   = \"orderedAt\"", "time   = \"orderdAt\""),
    ("an event time that is text", "time   = \"orderedAt\"", "time   = \"orderId\""),
    ("an event time that may be null", "orderedAt = \"timestamp\"", "orderedAt = \"timestamp?\""),
    ("a key that is no field", "key    = \"userId\"", "key    = \"user\""),
    ("an unknown way with bad records", "{ dlq = \"orders-dlq\" }", "\"ignore\""),
    ("dead letters without a topic", "{ dlq = \"orders-dlq\" }", "{ topic = \"orders-dlq\" }"),
    ("a duration without unit", "within = \"1h\"", "within = \"60\""),
    ("a duration that is a number", "within = \"1h\"", "within = 60"),
    // Names.
    ("an unknown node", "from   = \"orders_once\"", "from   = \"order_once\""),
    ("a node that does not exist at all", "from   = \"orders_once\"", "from   = \"xyz\""),
    ("a node that reads itself", "from   = \"orders\"", "from   = \"orders_once\""),
    ("a cycle of two", "from   = \"orders\"\nby", "from   = \"big\"\nby"),
    ("an unknown column", "amount > 100", "amuont > 100"),
    ("a column in other letters", "amount > 100", "Amount > 100"),
    ("a column in snake case", "at = \"orderedAt\"", "at = \"ordered_at\""),
    ("a column that is nowhere", "amount > 100", "zzz > 100"),
    ("an id of a dedupe that is no column", "by     = \"orderId\"", "by     = \"order\""),
    ("a group column that is none", "group_by = [\"userId\"]", "group_by = [\"user\"]"),
    // Shapes of nodes.
    ("a dedupe without within", "within = \"1h\"\n", ""),
    ("a dedupe within nothing", "within = \"1h\"", "within = \"0s\""),
    ("a misspelt key of a node", "where  = \"amount > 100\"", "wher  = \"amount > 100\""),
    ("a merge of one", "from = [\"big\", \"paid\"]", "from = [\"big\"]"),
    (
        "a merge of other columns",
        "select = { userId = \"userId\", kind = \"'payment'\"",
        "select = { user = \"userId\", kind = \"'payment'\"",
    ),
    ("a merge of other types", "value = \"cast(null as int)\"", "value = \"'none'\""),
    ("a table without group", "group_by = [\"userId\"]\n", ""),
    (
        "a table without select",
        "select   = { orders = \"count(*) filter (where kind = 'order')\", total = \"coalesce(sum(value), 0)\" }\n",
        "",
    ),
    ("a window without length", "{ tumbling = \"1m\", grace = \"10s\" }", "{ grace = \"10s\" }"),
    ("a window without grace", "{ tumbling = \"1m\", grace = \"10s\" }", "{ tumbling = \"1m\" }"),
    ("a window of two kinds", "{ session = \"30m\"", "{ session = \"30m\", sliding = \"1m\""),
    ("a hopping window of one duration", "[\"5m\", \"1m\"]", "\"5m\""),
    ("a hopping window of three durations", "[\"5m\", \"1m\"]", "[\"5m\", \"1m\", \"1s\"]"),
    ("hops that leave gaps", "[\"5m\", \"1m\"]", "[\"1m\", \"5m\"]"),
    ("a hop that is no duration", "[\"5m\", \"1m\"]", "[\"5m\", \"often\"]"),
    ("a hop of nothing", "[\"5m\", \"1m\"]", "[\"5m\", \"0s\"]"),
    ("too many hops", "[\"5m\", \"1m\"]", "[\"5m\", \"1ms\"]"),
    ("a session without end", "session = \"30m\"", "session = \"0s\""),
    ("a session with a zone", "{ session = \"30m\"", "{ zone = \"UTC\", session = \"30m\""),
    ("half days with a zone", "[\"5m\", \"1m\"]", "[\"1d\", \"12h\"], zone = \"UTC\""),
    // Splits.
    ("a split without branches", "into = { large = \"amount > 1000\", middling = \"amount > 100\" }\n", ""),
    ("a split on something else than a condition", "middling = \"amount > 100\"", "middling = \"amount\""),
    ("a branch with the name of another node", "middling = ", "big = "),
    ("a split as an input", "left   = \"large\"", "left   = \"sizes\""),
    ("a branch that there is not", "left   = \"large\"", "left   = \"larg\""),
    ("a split with a sink", "rest = \"small\"\n", "rest = \"small\"\nto = { topic = \"sizes\" }\n"),
    // Tables of topics.
    (
        "a table of a topic without key",
        "key    = \"userId\"\nfields = { userId = \"int\", name",
        "fields = { userId = \"int\", name",
    ),
    ("a key of a table that may be null", "fields = { shopId = \"int\"", "fields = { shopId = \"int?\""),
    ("a key of a table that is json", "fields = { shopId = \"int\"", "fields = { shopId = \"json\""),
    ("a table of a topic and of a node", "topic  = \"shops\"", "topic  = \"shops\"\nfrom = \"paid\""),
    ("a state version of nothing", "topic  = \"shops\"", "topic  = \"shops\"\nstate_version = 0"),
    ("a state version of a global table", "topic  = \"cities\"", "topic  = \"cities\"\nstate_version = 2"),
    (
        "dead letters of a global table",
        "topic  = \"cities\"",
        "topic  = \"cities\"\nbad = { dlq = \"bad-cities\" }",
    ),
    ("a global table as a stream", "from   = \"lines\"", "from   = \"cities\""),
    ("a global table on the left", "left   = \"named\"", "left   = \"cities\""),
    (
        "an aggregation over a table",
        "from     = \"paid\"\ngroup_by = [\"userId\"]\nselect   = { payments",
        "from     = \"users\"\ngroup_by = [\"userId\"]\nselect   = { payments",
    ),
    (
        "a raw topic with two values",
        "fields = { line = \"text\" }",
        "fields = { line = \"text\", more = \"text\" }",
    ),
    (
        "a raw result of two columns",
        "select = { line = \"upper(line)\" }",
        "select = { line = \"upper(line)\", more = \"line\" }",
    ),
    ("an unknown format of a result", "format = \"raw\" }", "format = \"text\" }"),
    // Joins with tables.
    (
        "an outer join with a table",
        "kind   = \"left\"\nselect = { userId = \"large.userId\"",
        "kind   = \"outer\"\nselect = { userId = \"large.userId\"",
    ),
    (
        "a table that looks up a stream",
        "left   = \"large\"\nright  = \"users\"",
        "left   = \"users\"\nright  = \"large\"",
    ),
    (
        "a table that looks up a global table",
        "left   = \"named\"\nright  = \"cities\"\non     = { left = \"name\"",
        "left   = \"shops\"\nright  = \"cities\"\non     = { left = \"city\"",
    ),
    (
        "a join on another column than the table's key",
        "on     = { left = \"name\", right = \"city\" }",
        "on     = { left = \"name\", right = \"country\" }",
    ),
    (
        "a join with a table within a time",
        "on     = \"shopId\"\n",
        "on     = \"shopId\"\nwithin = { after = \"1h\", grace = \"1m\" }\n",
    ),
    (
        "a join by foreign key that is outer",
        "on     = \"shopId\"\n",
        "on     = \"shopId\"\nkind = \"outer\"\n",
    ),
    (
        "a join on lists of other lengths",
        "on     = { left = \"name\", right = \"city\" }",
        "on     = { left = [\"name\", \"userId\"], right = \"city\" }",
    ),
    ("a join on nothing", "on     = \"shopId\"", "on     = []"),
    ("a join on a number", "on     = \"shopId\"", "on     = 5"),
    (
        "a join with a table on other types",
        "on     = { left = \"name\", right = \"city\" }",
        "on     = { left = \"userId\", right = \"city\" }",
    ),
    ("a join with a windowed table", "right  = \"paid_by_user\"", "right  = \"hops\""),
    ("a join that emits", "on     = \"shopId\"\n", "on     = \"shopId\"\nemit = { on = \"close\" }\n"),
    ("minutes with a zone", "tumbling = \"1m\", grace", "tumbling = \"1m\", zone = \"UTC\", grace"),
    ("an unknown zone", "tumbling = \"1m\", grace", "tumbling = \"1d\", zone = \"Asia/Soul\", grace"),
    ("an unknown time to emit", "on = \"update\"", "on = \"change\""),
    ("a final result without window", "window   = { tumbling = \"1m\", grace = \"10s\" }\n", ""),
    ("final as text", "final = true", "final = \"yes\""),
    ("a result column that is there already", "total = \"coalesce", "userId = \"coalesce"),
    ("a result column named final", "total = \"coalesce", "final = \"coalesce"),
    (
        "two tables that close at other times",
        "",
        "\n[table.other]\nfrom = \"paid\"\ngroup_by = [\"userId\"]\nwindow = { tumbling = \"1m\", grace = \"0s\" }\nemit = { idle_close = \"5s\" }\nselect = { n = \"count(*)\" }\n",
    ),
    ("a join without within", "within = { after = \"1h\", grace = \"1m\" }\n", ""),
    ("a join without grace", "within = { after = \"1h\", grace = \"1m\" }", "within = { after = \"1h\" }"),
    ("a join without after", "within = { after = \"1h\", grace = \"1m\" }", "within = { grace = \"1m\" }"),
    ("a join whose within is a text", "within = { after = \"1h\", grace = \"1m\" }", "within = \"1h\""),
    ("a join of an unknown kind", "kind   = \"left\"", "kind   = \"leftish\""),
    ("a join of a node with itself", "right  = \"payments\"", "right  = \"orders_once\""),
    ("a join on a column of one side", "on     = \"orderId\"", "on     = \"amount\""),
    ("a join on other types", "on     = \"orderId\"", "on     = { left = \"orderId\", right = \"userId\" }"),
    (
        "a join without select",
        "select = { orderId = \"orders_once.orderId\", userId = \"orders_once.userId\", due = \"orderedAt + interval '1h'\" }\n",
        "",
    ),
    ("a column of both sides", "userId = \"orders_once.userId\"", "userId = \"userId\""),
    ("a side that is none", "userId = \"orders_once.userId\"", "userId = \"orders.userId\""),
    ("a column that the side has not", "userId = \"orders_once.userId\"", "userId = \"payments.amount\""),
    (
        "a sink without topic",
        "to     = { topic = \"unpaid\", key = \"userId\" }",
        "to     = { key = \"userId\" }",
    ),
    (
        "a sink with an unknown key",
        "to     = { topic = \"unpaid\", key",
        "to     = { topic = \"unpaid\", partition = 1, key",
    ),
    ("two shapes in one topic", "topic = \"unpaid\"", "topic = \"per-minute\""),
    ("a result into an input", "topic = \"unpaid\"", "topic = \"payments\""),
    (
        "a processor that is not registered",
        "",
        "\n[processor.score]\nfrom = \"paid\"\nuses = \"shop.score\"\n",
    ),
    (
        "a processor with the state of a stream",
        "",
        "\n[processor.score]\nfrom = \"paid\"\nuses = \"known\"\nstores = [\"big\"]\n",
    ),
    // Expressions.
    ("an unfinished expression", "amount > 100", "amount >"),
    ("an empty expression", "amount > 100", ""),
    ("two expressions", "amount > 100", "amount > 100 price"),
    ("a text without end", "amount > 100", "note = 'x"),
    ("text against number", "amount > 100", "amount > 'many'"),
    ("a number as condition", "amount > 100", "amount"),
    ("equal to null", "amount > 100", "amount = null"),
    ("plus between texts", "kind = \"'order'\"", "kind = \"orderId + 'x'\""),
    ("a moment that is none", "amount > 100", "orderedAt > 'yesterday'"),
    ("a duration that is none", "orderedAt + interval '1h'", "orderedAt + interval 'soon'"),
    ("adding two moments", "orderedAt + interval '1h'", "orderedAt + paidAt"),
    ("comparing documents", "amount > 100", "note = note"),
    ("an unknown function", "kind = \"'order'\"", "kind = \"uper(orderId)\""),
    ("a function with other arguments", "value = \"amount\"", "value = \"length(amount)\""),
    ("an unknown unit", "at = \"orderedAt\"", "at = \"date_trunc('fortnight', orderedAt)\""),
    ("an unknown cast", "kind = \"'order'\"", "kind = \"cast(amount as txt)\""),
    ("a cast that makes no sense", "kind = \"'order'\"", "kind = \"cast(cast(gift as uuid) as text)\""),
    ("the clock", "amount > 100", "orderedAt > now()"),
    ("the clock without parentheses", "amount > 100", "orderedAt > current_timestamp"),
    ("chance", "amount > 100", "random() > 5"),
    ("an aggregate outside of a table", "amount > 100", "sum(amount) > 100"),
    ("an aggregate in an aggregate", "coalesce(sum(value), 0)", "sum(count(*))"),
    ("a column that is not grouped", "coalesce(sum(value), 0)", "value"),
    ("a sum of texts", "coalesce(sum(value), 0)", "sum(kind)"),
    ("a top of nobody knows how many", "coalesce(sum(value), 0)", "top(value, kind, value)"),
    ("a top by nothing", "coalesce(sum(value), 0)", "top(3, kind)"),
    ("a sum of distinct values", "coalesce(sum(value), 0)", "sum(distinct value)"),
    ("a filter that is no condition", "where kind = 'order'", "where value"),
    ("a filter on no aggregate", "kind = \"'order'\"", "kind = \"upper(orderId) filter (where gift)\""),
    ("a window function", "coalesce(sum(value), 0)", "sum(value) over (partition by kind)"),
    ("a subquery", "amount > 100", "amount > (select 1)"),
    ("another operator", "amount > 100", "amount & 1 = 1"),
    ("a null of no type", "value = \"amount\"", "value = \"null\""),
    ("mixed branches", "value = \"amount\"", "value = \"case when gift then 1 else 'x' end\""),
    ("what fails always", "value = \"amount\"", "value = \"abs(-9223372036854775808)\""),
    ("a star", "value = \"amount\"", "value = \"*\""),
    ("ilike", "amount > 100", "orderId ilike 'x%'"),
    ("a wrong place inside escapes", "kind = \"'order'\"", "kind = \"'\\u00e9\\\"' || orderid\""),
    ("a key of a sink that is no column", "key = \"userId\" }", "key = \"user\" }"),
    ("a header that is no expression", "headers = { kind = \"'minute'\" }", "headers = { kind = 5 }"),
    // Several at once.
    (
        "five mistakes, five messages",
        "[dedupe.orders_once]\nfrom   = \"orders\"\nby     = \"orderId\"\nwithin = \"1h\"\n\n[stream.big]\nfrom   = \"orders_once\"\nwhere  = \"amount > 100\"",
        "[dedupe.orders_once]\nfrom   = \"orders\"\nby     = \"orderid\"\n\n[stream.big]\nfrom   = \"orders\"\nwher  = \"amuont > 100\"\nwhere = \"amuont > 100\"\n\n[stream.huge]\nfrom = \"bigg\"",
    ),
];

fn processors() -> Processors {
    struct Nothing;
    impl crate::streams::processor::AnyProcessor for Nothing {
        fn process(
            &mut self,
            _: crate::streams::processor::NodeContext<'_>,
            _: crate::streams::record::AnyRecord,
        ) -> crate::streams::error::Result<()> {
            Ok(())
        }
    }
    let mut processors = Processors::default();
    processors.register("known", std::sync::Arc::new(|| Box::new(Nothing)));
    processors
}

#[test]
fn the_valid_file_is_valid() {
    if let Err(error) = load("shop.toml", VALID, &processors()) {
        panic!("{error}");
    }
}

#[test]
fn every_mistake_is_said_as_the_catalogue_has_it() {
    let mut catalogue = String::new();
    let mut texts = BTreeSet::new();
    for (name, find, replace) in MISTAKES {
        let text = if find.is_empty() {
            format!("{VALID}{replace}")
        } else {
            assert!(VALID.contains(find), "{name}: the valid file has no {find}");
            VALID.replacen(find, replace, 1)
        };
        assert!(texts.insert(text.clone()), "{name} is there twice");
        let Err(error) = load("shop.toml", &text, &processors()) else { panic!("{name}: the file loads") };
        let _ = write!(catalogue, "## {name}\n\n{error}\n");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/streams/file/mistakes.golden");
    if std::env::var_os("SLUICE_BLESS").is_some() {
        std::fs::write(path, &catalogue).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    if golden != catalogue {
        let diff = similar::TextDiff::from_lines(&golden, &catalogue);
        panic!("what is said has changed:\n{}", diff.unified_diff().context_radius(4));
    }
    assert!(MISTAKES.len() >= 60);
}
