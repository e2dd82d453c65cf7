//! The plan as JSON: what reviews, locks and comparisons of plans read.
//!
//! Keys are sorted and expressions are in canonical text, so that equal plans are equal texts. What must always hold: anything that
//! changes what a node keeps changes its fingerprint, and nothing else does.

use serde_json::{Value, json};

use super::{
    BadPolicy, JoinPlan, LookupPlan, Operator, Plan, PlanNode, SinkPlan, SourcePlan, TableJoinPlan, TablePlan,
};
use crate::streams::{
    file::{
        expression::Typed,
        parse::{Format, JoinKind, Role},
        time::format_duration,
        value::Column,
        window::Windows,
    },
    topology::{changelog_topic, repartition_topic},
};

/// The fingerprint of a part of a plan: eight hexadecimal digits.
pub(crate) fn fingerprint(part: &Value) -> String {
    format!("{:08x}", crc32fast::hash(part.to_string().as_bytes()))
}

impl Plan {
    /// The canonical form.
    pub(crate) fn to_json(&self) -> Value {
        let nodes: Vec<Value> = self.nodes.iter().map(|node| self.node(node)).collect();
        let mut internal: Vec<String> = self.nodes.iter().flat_map(|node| self.repartitions(node)).collect();
        internal.extend(self.nodes.iter().flat_map(|node| {
            stores(node).into_iter().map(|name| changelog_topic(&self.app, &name).to_string())
        }));
        internal.sort();
        json!({
            "app": self.app,
            "group": self.group,
            "idleClose": self.idle_close_ms.map(format_duration),
            "internalTopics": internal,
            "nodes": nodes,
        })
    }

    fn node(&self, node: &PlanNode) -> Value {
        let inputs: Vec<&str> = node.inputs.iter().map(|input| self.nodes[*input].name.as_str()).collect();
        let mut value = json!({
            "name": node.name,
            "inputs": inputs,
            "columns": columns(&node.columns),
            "keyedBy": node.keyed_by,
            "operator": self.operator(node),
        });
        if let Some(sink) = &node.sink {
            value["sink"] = sink_json(sink);
        }
        let repartitions = self.repartitions(node);
        if !repartitions.is_empty() {
            value["repartitions"] = json!(repartitions);
        }
        let stores = stores(node);
        if !stores.is_empty() {
            value["stores"] = json!(stores);
            value["state"] = self.state(node);
            value["stateFingerprint"] = json!(fingerprint(&self.state(node)));
        }
        value
    }

    fn operator(&self, node: &PlanNode) -> Value {
        match &node.operator {
            Operator::Source(source) => self.source(node, source),
            Operator::Stream { filter, select } => json!({
                "kind": "stream",
                "where": text(filter.as_ref()),
                "select": select.as_ref().map(|select| selected(&node.columns, select)),
            }),
            Operator::Merge { .. } => json!({ "kind": "merge" }),
            Operator::Split { into, rest } => json!({
                "kind": "split",
                "into": into.iter().map(|(name, condition)| format!("{name} = {condition}")).collect::<Vec<_>>(),
                "rest": rest,
            }),
            Operator::Branch => json!({ "kind": "branch" }),
            Operator::Dedupe { by, within_ms, .. } => json!({
                "kind": "dedupe",
                "by": node.columns[*by].name,
                "within": format_duration(*within_ms),
            }),
            Operator::Repartition { by } => json!({
                "kind": "repartition",
                "by": by.iter().map(|slot| &node.columns[*slot].name).collect::<Vec<_>>(),
            }),
            Operator::Table(table) => self.table(node, table),
            Operator::Join(join) => self.join(node, join),
            Operator::Lookup(lookup) => self.lookup(node, lookup),
            Operator::TableJoin(join) => self.table_join(node, join),
            Operator::Processor { uses, stores } => {
                json!({ "kind": "processor", "uses": uses, "stores": stores })
            }
        }
    }

    fn table(&self, node: &PlanNode, table: &TablePlan) -> Value {
        let mut value = self.state(node);
        let first = table.group_by.len() + if table.windows.is_some() { 2 } else { 0 };
        value["kind"] = json!("table");
        value["where"] = json!(text(table.filter.as_ref()));
        value["having"] = json!(text(table.having.as_ref()));
        value["select"] = selected(&node.columns[first..], &table.select);
        value["carried"] = json!(self.carried(node, 0, table.carried.as_ref()));
        value["partial"] = json!(table.partial);
        value["emit"] = json!({ "update": table.on_update, "close": table.on_close });
        if table.on_record {
            value["emit"]["record"] = json!(true);
        }
        value["retention"] = json!(table.windows.is_some().then(|| format_duration(table.retention_ms)));
        value
    }

    fn source(&self, node: &PlanNode, source: &SourcePlan) -> Value {
        let mut value = json!({
            "kind": match source.role {
                Role::Stream => "source",
                Role::Table => "table",
                Role::Global => "global",
            },
            "topic": source.topic,
            "time": source.time.map(|slot| &node.columns[slot].name),
            "maxFuture": source.max_future_ms.map(format_duration),
            "bad": match &source.bad {
                BadPolicy::DeadLetter(topic) => json!({ "dlq": topic }),
                BadPolicy::Skip => json!("skip"),
                BadPolicy::Fail => json!("fail"),
            },
        });
        if source.format == Format::Raw {
            value["format"] = json!("raw");
        }
        if !source.key.is_empty() {
            value["key"] = source.key.iter().map(|slot| json!(node.columns[*slot].name)).collect();
        }
        value
    }

    fn lookup(&self, node: &PlanNode, lookup: &LookupPlan) -> Value {
        json!({
            "kind": if lookup.global { "global lookup" } else { "lookup" },
            "joinKind": if lookup.left { "left" } else { "inner" },
            "on": self.slot_names(node, 0, lookup.carried.as_ref(), &lookup.on),
            "carried": self.carried(node, 0, lookup.carried.as_ref()),
            "where": text(lookup.filter.as_ref()),
            "select": selected(&node.columns, &lookup.select),
        })
    }

    fn table_join(&self, node: &PlanNode, join: &TableJoinPlan) -> Value {
        let foreign = join.foreign.as_ref().map(|slots| self.slot_names(node, 0, None, slots));
        json!({
            "kind": "table join",
            "joinKind": kind_name(join.kind),
            "foreignKey": foreign,
            "where": text(join.filter.as_ref()),
            "select": selected(&node.columns, &join.select),
        })
    }

    /// Names of slots of a side's row, which may be the carried one.
    fn slot_names(
        &self,
        node: &PlanNode,
        side: usize,
        carried: Option<&Vec<usize>>,
        slots: &[usize],
    ) -> Value {
        let input = &self.nodes[node.inputs[side]].columns;
        let name = |slot: &usize| json!(input[carried.map_or(*slot, |carried| carried[*slot])].name);
        slots.iter().map(name).collect()
    }

    fn join(&self, node: &PlanNode, join: &JoinPlan) -> Value {
        let mut value = self.state(node);
        value["kind"] = json!("join");
        value["where"] = json!(text(join.filter.as_ref()));
        value["select"] = selected(&node.columns, &join.select);
        value
    }

    /// What decides the meaning of the rows that a node keeps.
    fn state(&self, node: &PlanNode) -> Value {
        match &node.operator {
            Operator::Dedupe { by, within_ms, state_version } => versioned(
                json!({ "by": node.columns[*by], "within": format_duration(*within_ms) }),
                *state_version,
            ),
            Operator::Source(source) if source.role == Role::Table => json!({
                "topic": source.topic,
                "key": source.key.iter().map(|slot| json!(node.columns[*slot])).collect::<Vec<_>>(),
                "columns": node.columns.iter().map(|c| json!(c)).collect::<Vec<_>>(),
                "stateVersion": source.state_version,
            }),
            Operator::TableJoin(join) if join.foreign.is_some() => {
                let mut value = self.table_join(node, join);
                value["columns"] = node.columns.iter().map(|c| json!(c)).collect();
                value["stateVersion"] = json!(join.state_version);
                value
            }
            Operator::Table(table) => json!({
                "groupBy": node.columns[..table.group_by.len()].iter().map(|c| json!(c)).collect::<Vec<_>>(),
                "window": table.windows.as_ref().map(|windows| window(windows, table.grace_ms)),
                "aggregates": table.aggregates.iter().map(|a| format!("{a} {}", a.column_type())).collect::<Vec<_>>(),
                "stateVersion": table.state_version,
            }),
            Operator::Join(join) => versioned(
                json!({
                    // One column is written as itself, as it was when there could be but one.
                    "on": join.on.each_ref().map(|slots| match &slots[..] {
                        [slot] => json!(slot),
                        slots => json!(slots),
                    }),
                    "sides": [
                        self.carried(node, 0, Some(&join.carried[0])),
                        self.carried(node, 1, Some(&join.carried[1])),
                    ],
                    "before": format_duration(join.before_ms),
                    "after": format_duration(join.after_ms),
                    "grace": format_duration(join.grace_ms),
                    "joinKind": kind_name(join.kind),
                }),
                join.state_version,
            ),
            _ => Value::Null,
        }
    }

    /// Names of the columns that reach the state.
    fn carried(&self, node: &PlanNode, side: usize, carried: Option<&Vec<usize>>) -> Value {
        let input = &self.nodes[node.inputs[side]].columns;
        match carried {
            Some(slots) => slots.iter().map(|slot| json!(input[*slot].name)).collect(),
            None => Value::Null,
        }
    }

    fn repartitions(&self, node: &PlanNode) -> Vec<String> {
        let full = |name: &str| repartition_topic(&self.app, &format!("{name}-repartition")).to_string();
        match &node.operator {
            Operator::Repartition { .. } => vec![full(&node.name)],
            Operator::Table(TablePlan { carried: Some(_), .. })
            | Operator::Lookup(LookupPlan { carried: Some(_), .. }) => vec![full(&node.name)],
            Operator::TableJoin(join) if join.foreign.is_some() => {
                let base = state_name(&node.name, join.state_version);
                let topic =
                    |part: &str| repartition_topic(&self.app, &format!("{base}-{part}-topic")).to_string();
                vec![topic("subscription-registration"), topic("subscription-response")]
            }
            Operator::Join(join) => ["left", "right"]
                .into_iter()
                .zip(join.keyed)
                .filter(|(_, keyed)| !keyed)
                .map(|(side, _)| full(&format!("{}-{side}", node.name)))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Names of a node's stores.
pub(crate) fn stores(node: &PlanNode) -> Vec<String> {
    match &node.operator {
        Operator::Dedupe { state_version, .. } => vec![state_name(&node.name, *state_version)],
        Operator::Source(SourcePlan { role: Role::Table, state_version, .. }) => {
            vec![state_name(&node.name, *state_version)]
        }
        Operator::Table(table) => vec![state_name(&node.name, table.state_version)],
        Operator::Join(join) => {
            let base = state_name(&node.name, join.state_version);
            ["left", "right"].into_iter().map(|part| format!("{base}-{part}-rows")).collect()
        }
        Operator::TableJoin(join) if join.foreign.is_some() => {
            let base = state_name(&node.name, join.state_version);
            vec![base.clone(), format!("{base}-subscription-store")]
        }
        _ => Vec::new(),
    }
}

/// The name of a node's state: the node's name, and its version from the second on.
pub(crate) fn state_name(name: &str, version: i64) -> String {
    if version > 1 { format!("{name}-v{version}") } else { name.to_owned() }
}

/// The description of a state with its version, from the second on.
fn versioned(mut state: Value, version: i64) -> Value {
    if version > 1 {
        state["stateVersion"] = json!(version);
    }
    state
}

fn kind_name(kind: JoinKind) -> &'static str {
    match kind {
        JoinKind::Inner => "inner",
        JoinKind::Left => "left",
        JoinKind::Outer => "outer",
    }
}

fn text(typed: Option<&Typed>) -> Option<String> {
    typed.map(ToString::to_string)
}

fn columns(columns: &[Column]) -> Value {
    columns.iter().map(|column| json!(format!("{} {}", column.name, column.column_type))).collect()
}

fn selected(columns: &[Column], select: &[Typed]) -> Value {
    columns.iter().zip(select).map(|(column, typed)| json!(format!("{} = {typed}", column.name))).collect()
}

fn window(windows: &Windows, grace_ms: i64) -> Value {
    let days = |days: i64| format!("{days}d");
    let mut value = match windows {
        Windows::Fixed { size_ms, step_ms } if size_ms == step_ms => {
            json!({ "tumbling": format_duration(*size_ms) })
        }
        Windows::Fixed { size_ms, step_ms } => {
            json!({ "hopping": [format_duration(*size_ms), format_duration(*step_ms)] })
        }
        Windows::Days { days: length, step, .. } if length == step => {
            json!({ "tumbling": format_duration(windows.size_ms()) })
        }
        Windows::Days { days: length, step, .. } => json!({ "hopping": [days(*length), days(*step)] }),
        Windows::Sliding { size_ms } => json!({ "sliding": format_duration(*size_ms) }),
        Windows::Session { gap_ms } => json!({ "session": format_duration(*gap_ms) }),
    };
    value["zone"] = json!(windows.zone());
    value["grace"] = json!(format_duration(grace_ms));
    value
}

fn sink_json(sink: &SinkPlan) -> Value {
    let headers: Vec<String> = sink.headers.iter().map(|(name, typed)| format!("{name} = {typed}")).collect();
    let mut value = json!({ "topic": sink.topic, "key": text(sink.key.as_ref()), "headers": headers });
    if sink.format == Format::Raw {
        value["format"] = json!("raw");
    }
    value
}
