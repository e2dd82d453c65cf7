//! What a change of a topology means for what is running: two plans compared, and each difference put into a class.
//!
//! Works on the canonical form alone, so a committed lock, a running server and a file can each be either side. What must always
//! hold: a difference that makes kept state mean something else is never put into a class that may be applied to it; a difference that
//! no rule knows counts as one that changes results.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;
use serde_json::Value;

/// What a difference means, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// No result changes.
    Transparent,
    /// Results of records that come after the change.
    ForwardOnly,
    /// A node that was not there; with state it begins empty, with the records that come after the change.
    NewNode,
    /// A node that is there no more; its state is left behind.
    RemovedNode,
    /// Kept state means something else, and the file says so: it is built anew beside the old.
    NewStateVersion,
    /// Kept state means something else, and the file does not say so: write `state_version` + 1.
    NeedsStateVersion,
    /// Cannot be applied to what is running at all.
    Refused,
}

impl Class {
    /// In words, as `topology diff` prints it.
    pub fn words(self) -> &'static str {
        match self {
            Class::Transparent => "transparent",
            Class::ForwardOnly => "forward-only",
            Class::NewNode => "a new node",
            Class::RemovedNode => "a removed node",
            Class::NewStateVersion => "state_version + 1",
            Class::NeedsStateVersion => "needs state_version + 1",
            Class::Refused => "refused",
        }
    }

    /// Whether nothing of this class may be applied to what is running.
    pub fn is_refused(self) -> bool {
        matches!(self, Class::NeedsStateVersion | Class::Refused)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What it means.
    pub class: Class,
    /// The node; `None` for the application as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What differs: a key of the node.
    pub what: String,
    /// What it was; `None` when there was nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is to be; `None` when there is to be nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What follows from it, or what to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(f, "{node}: ")?;
        }
        f.write_str(&self.what)?;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, ": {before} -> {after}")?,
            (Some(before), None) => write!(f, ": no longer {before}")?,
            (None, Some(after)) => write!(f, ": {after}")?,
            (None, None) => {}
        }
        if self.note.is_empty() { Ok(()) } else { write!(f, " ({})", self.note) }
    }
}

/// Compares two plans in canonical form.
pub(crate) fn diff(before: &Value, after: &Value) -> Vec<Change> {
    let mut found = Found { before, after, changes: Vec::new() };
    found.application();
    let (old, new) = (nodes(before), nodes(after));
    for (name, node) in &new {
        match old.get(name) {
            Some(was) => found.node(name, was, node),
            None => found.added(name, node, &old, &new),
        }
    }
    for (name, node) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
        found.removed(name, node);
    }
    if found.changes.is_empty() && before != after {
        found.push(Class::Transparent, None, "how it is planned", None, None, "");
    }
    found.changes
}

fn nodes(plan: &Value) -> BTreeMap<&str, &Value> {
    let list = plan["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|node| Some((node["name"].as_str()?, node))).collect()
}

/// `None` for what is not there; texts without their quotes.
fn shown(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| shown(item).unwrap_or("-".into())).collect();
            Some(format!("[{}]", items.join(", ")))
        }
        Value::Object(map) => {
            let entries = map.iter().filter_map(|(key, value)| Some(format!("{key} = {}", shown(value)?)));
            Some(format!("{{ {} }}", entries.collect::<Vec<_>>().join(", ")))
        }
        other => Some(other.to_string()),
    }
}

fn version(node: &Value) -> i64 {
    node["state"]["stateVersion"].as_i64().unwrap_or(1)
}

struct Found<'a> {
    before: &'a Value,
    after: &'a Value,
    changes: Vec<Change>,
}

impl Found<'_> {
    fn push(
        &mut self,
        class: Class,
        node: Option<&str>,
        what: &str,
        before: Option<String>,
        after: Option<String>,
        note: impl Into<String>,
    ) {
        let node = node.map(str::to_owned);
        self.changes.push(Change { class, node, what: what.to_owned(), before, after, note: note.into() });
    }

    fn application(&mut self) {
        let (before, after) = (self.before, self.after);
        for (key, what, class, note) in [
            (
                "app",
                "app",
                Class::Refused,
                "another application: it has topics, offsets and state of its own; stop this one and start that",
            ),
            (
                "group",
                "group",
                Class::Refused,
                "the offsets are the group's; reset or move them, then start anew",
            ),
            ("idleClose", "idle_close", Class::ForwardOnly, ""),
        ] {
            if before[key] != after[key] {
                self.push(class, None, what, shown(&before[key]), shown(&after[key]), note);
            }
        }
    }

    fn added(
        &mut self,
        name: &str,
        node: &Value,
        old: &BTreeMap<&str, &Value>,
        new: &BTreeMap<&str, &Value>,
    ) {
        let has_state = !node["state"].is_null();
        let renamed = old.iter().find(|(other, was)| {
            has_state
                && !new.contains_key(*other)
                && was["operator"]["kind"] == node["operator"]["kind"]
                && was["state"] == node["state"]
        });
        let note = match renamed {
            Some((other, _)) => {
                format!("begins empty; if it is `{other}` renamed, keep the old name to keep its state")
            }
            None if has_state => "begins empty, with the records that come after the change".into(),
            None => String::new(),
        };
        self.push(Class::NewNode, Some(name), "new", None, shown(&node["operator"]["kind"]), note);
    }

    fn removed(&mut self, name: &str, node: &Value) {
        let note =
            if node["state"].is_null() { "" } else { "its state and its internal topics are left behind" };
        self.push(Class::RemovedNode, Some(name), "removed", shown(&node["operator"]["kind"]), None, note);
    }

    fn node(&mut self, name: &str, was: &Value, is: &Value) {
        let kind = |node: &Value| shown(&node["operator"]["kind"]).unwrap_or_default();
        if kind(was) != kind(is) {
            let kept = !was["state"].is_null() || !is["state"].is_null();
            let (class, note) = match kept {
                true => (Class::Refused, "another kind of node with state; give it another name"),
                false => (Class::ForwardOnly, ""),
            };
            return self.push(class, Some(name), "kind", Some(kind(was)), Some(kind(is)), note);
        }
        self.state(name, was, is);
        self.operator(name, was, is);
        self.inputs(name, was, is);
        self.columns(name, was, is);
        self.sink(name, was, is);
    }

    /// What decides the meaning of kept rows, and where they are kept.
    fn state(&mut self, name: &str, was: &Value, is: &Value) {
        if was["state"].is_null() && is["state"].is_null() {
            return;
        }
        let (old, new) = (version(was), version(is));
        if new < old {
            let note = format!("the state of version {new} is stale; write state_version = {}", old + 1);
            self.push(
                Class::Refused,
                Some(name),
                "state_version",
                Some(old.to_string()),
                Some(new.to_string()),
                note,
            );
            return;
        }
        let class = if new > old { Class::NewStateVersion } else { Class::NeedsStateVersion };
        let remedy = match class {
            Class::NeedsStateVersion => format!(
                "write state_version = {} to have the state built anew from the earliest input",
                old + 1
            ),
            _ => String::new(),
        };
        if new > old {
            let note = "the state is built anew from the earliest input, then takes over";
            self.push(class, Some(name), "state_version", Some(old.to_string()), Some(new.to_string()), note);
        }
        for key in keys(&was["state"], &is["state"]).into_iter().filter(|key| key != "stateVersion") {
            self.entries(class, name, &key, &was["state"][&key], &is["state"][&key], &remedy);
        }
        let (from, to) = (placed_by(self.before, name), placed_by(self.after, name));
        if from != to {
            let list = |set: BTreeSet<String>| Some(set.into_iter().collect::<Vec<_>>().join(", "));
            self.push(class, Some(name), "partitioned by", list(from), list(to), remedy.clone());
        }
        // Whatever else went into the fingerprint.
        let known = self.changes.iter().any(|change| change.node.as_deref() == Some(name));
        if !known && was["stateFingerprint"] != is["stateFingerprint"] {
            let (before, after) = (shown(&was["stateFingerprint"]), shown(&is["stateFingerprint"]));
            self.push(class, Some(name), "state", before, after, remedy);
        }
    }

    /// What a node does, apart from its state.
    fn operator(&mut self, name: &str, was: &Value, is: &Value) {
        let (was_state, is_state) = (&was["state"], &is["state"]);
        for key in keys(&was["operator"], &is["operator"]) {
            let of_state = was_state.get(&key).is_some() || is_state.get(&key).is_some();
            if key == "kind" || of_state {
                continue;
            }
            if key == "select" && was["sink"].is_null() && is["sink"].is_null() {
                self.select(name, &was["operator"][&key], &is["operator"][&key]);
                continue;
            }
            let class = match key.as_str() {
                // How rows travel inside of the application.
                "carried" | "partial" => Class::Transparent,
                _ => Class::ForwardOnly,
            };
            self.entries(class, name, &key, &was["operator"][&key], &is["operator"][&key], "");
        }
    }

    /// Columns that are only read inside: one more or less is nobody's result, only another meaning is.
    fn select(&mut self, name: &str, was: &Value, is: &Value) {
        let columns = |value: &Value| -> BTreeMap<String, String> {
            let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.filter_map(|text| text.split_once(" = ")).map(|(n, e)| (n.into(), e.into())).collect()
        };
        let (old, new) = (columns(was), columns(is));
        if was.is_null() != is.is_null() {
            return self.push(Class::ForwardOnly, Some(name), "select", shown(was), shown(is), "");
        }
        for column in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            let show = |found: Option<&String>| found.map(|expression| format!("{column} = {expression}"));
            match (old.get(column), new.get(column)) {
                (Some(from), Some(to)) if from == to => {}
                (from @ Some(_), to @ Some(_)) => {
                    self.push(Class::ForwardOnly, Some(name), "select", show(from), show(to), "");
                }
                (from, to) => {
                    let note =
                        if to.is_some() { "one more column is read" } else { "one column less is read" };
                    self.push(Class::Transparent, Some(name), "select", show(from), show(to), note);
                }
            }
        }
    }

    /// A value that differs; of lists of texts only the items that do.
    fn entries(&mut self, class: Class, name: &str, key: &str, was: &Value, is: &Value, note: &str) {
        if was == is {
            return;
        }
        let texts = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let what = match key {
            "groupBy" => "group_by",
            "joinKind" => "kind",
            other => other,
        };
        let (Some(old), Some(new)) = (texts(was), texts(is)) else {
            return self.push(class, Some(name), what, shown(was), shown(is), note);
        };
        let gone: Vec<&String> = old.iter().filter(|item| !new.contains(item)).collect();
        let come: Vec<&String> = new.iter().filter(|item| !old.contains(item)).collect();
        if gone.is_empty() && come.is_empty() {
            return self.push(class, Some(name), &format!("order of {what}"), shown(was), shown(is), note);
        }
        for place in 0..gone.len().max(come.len()) {
            let item = |list: &[&String]| list.get(place).map(|item| (*item).clone());
            self.push(class, Some(name), what, item(&gone), item(&come), note);
        }
    }

    fn inputs(&mut self, name: &str, was: &Value, is: &Value) {
        if was["inputs"] == is["inputs"] {
            return;
        }
        let sorted = |node: &Value| {
            let mut inputs: Vec<String> =
                node["inputs"].as_array().into_iter().flatten().filter_map(shown).collect();
            inputs.sort();
            inputs
        };
        let is_merge = is["operator"]["kind"] == "merge";
        let class =
            if is_merge && sorted(was) == sorted(is) { Class::Transparent } else { Class::ForwardOnly };
        self.push(class, Some(name), "from", shown(&was["inputs"]), shown(&is["inputs"]), "");
    }

    /// Columns of sources; those of other nodes follow from what they do.
    fn columns(&mut self, name: &str, was: &Value, is: &Value) {
        if is["operator"]["topic"].is_null() || was["columns"] == is["columns"] || !is["state"].is_null() {
            return;
        }
        let typed = |node: &Value| -> BTreeMap<String, String> {
            let list = node["columns"].as_array().into_iter().flatten().filter_map(Value::as_str);
            list.filter_map(|column| column.split_once(' ')).map(|(n, t)| (n.into(), t.into())).collect()
        };
        let (old, new) = (typed(was), typed(is));
        for column in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            let show = |found: Option<&String>| found.map(|typed| format!("{column} {typed}"));
            match (old.get(column), new.get(column)) {
                (Some(from), Some(to)) if from == to => {}
                (from @ Some(_), to @ Some(_)) => {
                    self.push(Class::ForwardOnly, Some(name), "fields", show(from), show(to), "");
                }
                (from, to) => {
                    let note = if to.is_some() { "one more field is read" } else { "one field less is read" };
                    self.push(Class::Transparent, Some(name), "fields", show(from), show(to), note);
                }
            }
        }
    }

    fn sink(&mut self, name: &str, was: &Value, is: &Value) {
        let (was, is) = (&was["sink"], &is["sink"]);
        if was == is {
            return;
        }
        if was.is_null() || is.is_null() {
            return self.push(Class::ForwardOnly, Some(name), "to", shown(was), shown(is), "");
        }
        for key in keys(was, is) {
            self.entries(Class::ForwardOnly, name, &format!("to.{key}"), &was[&key], &is[&key], "");
        }
    }
}

fn keys(a: &Value, b: &Value) -> BTreeSet<String> {
    [a, b].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys().cloned()).collect()
}

/// What decides to which partition a node's rows belong: its own repartition, those above it, or its sources' producers.
fn placed_by(plan: &Value, name: &str) -> BTreeSet<String> {
    let all = nodes(plan);
    let mut found = BTreeSet::new();
    let mut open = vec![name];
    while let Some(at) = open.pop() {
        let Some(node) = all.get(at) else { continue };
        let own = node["repartitions"].as_array().is_some_and(|topics| !topics.is_empty());
        let inputs: Vec<&str> =
            node["inputs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if own {
            // The node's own state is placed by its own key, whatever that key is called above.
            found.insert(if at == name { "its own key".to_owned() } else { format!("the key of {at}") });
        } else if inputs.is_empty() {
            found.insert("the keys of its inputs".to_owned());
        }
        if !own {
            open.extend(inputs);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::streams::file::plan;

    const FILE: &str = r#"version = 1
app = "clicks"

[source.clicks]
topic  = "clicks"
key    = "user"
time   = "at"
bad    = { dlq = "clicks-dlq" }
fields = { id = "text", user = "int", page = "text", at = "timestamp", ms = "int" }

[dedupe.once]
from = "clicks"
by = "id"
within = "1h"

[stream.shown]
from = "once"
where = "ms > 0"
select = { user = "user", page = "page", ms = "ms" }

[stream.all]
from = "once"
select = { user = "user", page = "page", ms = "ms" }

[merge.both]
from = ["shown", "all"]

[table.pages]
from = "both"
group_by = ["page"]
window = { tumbling = "1m", grace = "10s" }
emit = { on = "update", final = true, idle_close = "30s" }
select = { clicks = "count(*)", total = "sum(ms)" }
to = { topic = "pages", key = "page" }
"#;

    fn planned(text: &str) -> Value {
        plan("t.toml", text, &BTreeSet::new()).unwrap_or_else(|mistakes| panic!("{mistakes}")).to_json()
    }

    /// An edit of the file (text to text), and the classes of what it changes, as `node: what`.
    #[track_caller]
    fn check(edits: &[(&str, &str)], expected: &[(Class, &str)]) {
        let mut text = FILE.to_owned();
        for (from, to) in edits {
            assert!(text.contains(from), "{from:?} is not in the file");
            text = text.replacen(from, to, 1);
        }
        let changes = diff(&planned(FILE), &planned(&text));
        let mut found: Vec<(Class, String)> = changes
            .iter()
            .map(|change| {
                (change.class, format!("{}: {}", change.node.as_deref().unwrap_or("-"), change.what))
            })
            .collect();
        found.dedup();
        let found: Vec<(Class, &str)> = found.iter().map(|(class, text)| (*class, text.as_str())).collect();
        assert_eq!(found, expected, "{edits:?}: {changes:#?}");
    }

    #[test]
    fn a_table_that_is_placed_by_another_key_is_not_the_same() {
        let keyed = FILE
            .replace("group_by = [\"page\"]", "group_by = [\"user\"]")
            .replace("key = \"page\"", "key = \"user\"");
        let moved = keyed
            .replace("[merge.both]", "[repartition.by_user]\nfrom = \"all\"\nby = [\"user\"]\n\n[merge.both]")
            .replace("from = [\"shown\", \"all\"]", "from = [\"by_user\", \"by_user_too\"]")
            .replace(
                "[table.pages]",
                "[repartition.by_user_too]\nfrom = \"shown\"\nby = [\"user\"]\n\n[table.pages]",
            );
        let changes = diff(&planned(&keyed), &planned(&moved));
        let placed = changes
            .iter()
            .find(|change| change.what == "partitioned by")
            .unwrap_or_else(|| panic!("{changes:#?}"));
        assert_eq!((placed.class, placed.node.as_deref()), (Class::NeedsStateVersion, Some("pages")));
    }

    #[test]
    fn each_edit_is_put_into_its_class() {
        use Class::{
            ForwardOnly as Forward, NeedsStateVersion as Needs, NewNode, NewStateVersion as New, Refused,
            RemovedNode, Transparent,
        };
        let bump = ("group_by = [\"page\"]", "group_by = [\"page\"]\nstate_version = 2");
        // Nothing that matters.
        check(&[("version = 1", "# a comment\nversion = 1")], &[]);
        check(
            &[("fields = { id = \"text\", user = \"int\",", "fields = { user = \"int\", id = \"text\",")],
            &[],
        );
        check(&[("where = \"ms > 0\"", "where = \"ms>0\"")], &[]);
        check(
            &[("from = [\"shown\", \"all\"]", "from = [\"all\", \"shown\"]")],
            &[(Transparent, "both: from")],
        );
        // From now on.
        check(&[("where = \"ms > 0\"", "where = \"ms > 9\"")], &[(Forward, "shown: where")]);
        check(&[("topic  = \"clicks\"", "topic  = \"clicks2\"")], &[(Forward, "clicks: topic")]);
        check(&[("time   = \"at\"\n", "")], &[(Forward, "clicks: time"), (Transparent, "clicks: fields")]);
        check(&[("bad    = { dlq = \"clicks-dlq\" }", "bad = \"skip\"")], &[(Forward, "clicks: bad")]);
        check(&[("to = { topic = \"pages\"", "to = { topic = \"pages2\"")], &[(Forward, "pages: to.topic")]);
        check(&[("to = { topic = \"pages\", key = \"page\" }\n", "")], &[(Forward, "pages: to")]);
        check(
            &[("key = \"page\" }", "key = \"page\", headers = { p = \"page\" } }")],
            &[(Forward, "pages: to.headers")],
        );
        check(&[("idle_close = \"30s\"", "idle_close = \"60s\"")], &[(Forward, "-: idle_close")]);
        check(&[("on = \"update\"", "on = \"close\"")], &[(Forward, "pages: emit")]);
        check(&[("clicks = \"count(*)\"", "clicks = \"count(*) * 2\"")], &[(Forward, "pages: select")]);
        check(&[("to = { topic", "having = \"clicks > 1\"\nto = { topic")], &[(Forward, "pages: having")]);
        check(&[("to = { topic", "where = \"ms < 100\"\nto = { topic")], &[(Forward, "pages: where")]);
        check(
            &[("[stream.shown]\nfrom = \"once\"", "[stream.shown]\nfrom = \"clicks\"")],
            &[(Forward, "shown: from")],
        );
        // What is kept would mean something else.
        check(
            &[("total = \"sum(ms)\"", "total = \"max(ms)\"")],
            &[(Needs, "pages: aggregates"), (Forward, "pages: select")],
        );
        check(
            &[("total = \"sum(ms)\"", "total = \"sum(ms)\", most = \"max(ms)\"")],
            &[(Needs, "pages: aggregates"), (Forward, "pages: select")],
        );
        check(
            &[("ms = \"int\"", "ms = \"float\"")],
            &[(Forward, "clicks: fields"), (Needs, "pages: aggregates"), (Transparent, "pages: partial")],
        );
        check(&[("tumbling = \"1m\"", "tumbling = \"2m\"")], &[(Needs, "pages: window")]);
        check(&[("by = \"id\"", "by = \"page\"")], &[(Transparent, "clicks: fields"), (Needs, "once: by")]);
        check(&[("within = \"1h\"", "within = \"2h\"")], &[(Needs, "once: within")]);
        check(
            &[("group_by = [\"page\"]", "group_by = [\"user\"]"), ("key = \"page\"", "key = \"user\"")],
            &[
                (Transparent, "all: select"),
                (Transparent, "clicks: fields"),
                (Needs, "pages: group_by"),
                (Needs, "pages: partitioned by"),
                (Transparent, "pages: carried"),
                (Transparent, "pages: partial"),
                (Forward, "pages: to.key"),
                (Transparent, "shown: select"),
            ],
        );
        // Said so in the file.
        check(&[bump], &[(New, "pages: state_version")]);
        check(
            &[bump, ("total = \"sum(ms)\"", "total = \"max(ms)\"")],
            &[(New, "pages: state_version"), (New, "pages: aggregates"), (Forward, "pages: select")],
        );
        // More and less.
        check(
            &[("[merge.both]", "[stream.more]\nfrom = \"once\"\nto = { topic = \"more\" }\n\n[merge.both]")],
            &[(Transparent, "clicks: fields"), (NewNode, "more: new")],
        );
        check(
            &[(
                "[table.pages]",
                "[table.users]\nfrom = \"both\"\ngroup_by = [\"user\"]\nselect = { n = \"count(*)\" }\nto = { topic = \"users\" }\n\n[table.pages]",
            )],
            &[
                (Transparent, "all: select"),
                (Transparent, "clicks: fields"),
                (Transparent, "shown: select"),
                (NewNode, "users: new"),
            ],
        );
        check(
            &[("[table.pages]", "[table.sites]")],
            &[(NewNode, "sites: new"), (RemovedNode, "pages: removed")],
        );
        // Not on what runs.
        check(&[("app = \"clicks\"", "app = \"other\"")], &[(Refused, "-: app"), (Refused, "-: group")]);
        check(&[("app = \"clicks\"", "app = \"clicks\"\ngroup = \"g\"")], &[(Refused, "-: group")]);
        check(
            &[(
                "[dedupe.once]\nfrom = \"clicks\"\nby = \"id\"\nwithin = \"1h\"",
                "[stream.once]\nfrom = \"clicks\"",
            )],
            &[(Transparent, "clicks: fields"), (Refused, "once: kind")],
        );
    }

    #[test]
    fn a_state_version_only_counts_up() {
        let two = planned(&FILE.replace("group_by", "state_version = 2\ngroup_by"));
        let changes = diff(&two, &planned(FILE));
        assert!(
            matches!(&changes[..], [Change { class: Class::Refused, note, .. }] if note.contains("state_version = 3")),
            "{changes:?}"
        );
    }

    #[test]
    fn what_no_rule_knows_is_not_overlooked() {
        let before = planned(FILE);
        let mut after = before.clone();
        after["somethingNew"] = serde_json::json!(1);
        assert_eq!(diff(&before, &after)[0].class, Class::Transparent);
        let mut after = before.clone();
        after["nodes"][0]["operator"]["somethingNew"] = serde_json::json!(1);
        assert_eq!(diff(&before, &after)[0].class, Class::ForwardOnly);
        let mut after = before.clone();
        let table =
            after["nodes"].as_array_mut().unwrap().iter_mut().find(|node| node["name"] == "pages").unwrap();
        table["stateFingerprint"] = serde_json::json!("00000000");
        assert_eq!(diff(&before, &after)[0].class, Class::NeedsStateVersion);
    }
}
