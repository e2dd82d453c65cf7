//! The plan as JSON: what reviews, locks and comparisons of plans read.
//!
//! Keys are sorted and expressions are in canonical text, so that equal plans are equal texts. What must always hold: anything that
//! changes what a node keeps changes its fingerprint, and nothing else does.

use serde_json::{Value, json};

use super::{BadPolicy, JoinPlan, Operator, Plan, PlanNode, SinkPlan, TablePlan};
use crate::streams::{
    file::{expression::Typed, parse::JoinKind, time::format_duration, value::Column, window::Windows},
    topology::{changelog_topic, repartition_topic},
};

/// The fingerprint of a part of a plan: eight hexadecimal digits.
pub fn fingerprint(part: &Value) -> String {
    format!("{:08x}", crc32fast::hash(part.to_string().as_bytes()))
}

impl Plan {
    /// The canonical form.
    pub fn to_json(&self) -> Value {
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
        let stores = stores(node);
        if !stores.is_empty() {
            value["stores"] = json!(stores);
            value["stateFingerprint"] = json!(fingerprint(&self.state(node)));
        }
        value
    }

    fn operator(&self, node: &PlanNode) -> Value {
        match &node.operator {
            Operator::Source { topic, time, max_future_ms, bad } => json!({
                "kind": "source",
                "topic": topic,
                "time": time.map(|slot| &node.columns[slot].name),
                "maxFuture": max_future_ms.map(format_duration),
                "bad": match bad {
                    BadPolicy::DeadLetter(topic) => json!({ "dlq": topic }),
                    BadPolicy::Skip => json!("skip"),
                    BadPolicy::Fail => json!("fail"),
                },
            }),
            Operator::Stream { filter, select } => json!({
                "kind": "stream",
                "where": text(filter.as_ref()),
                "select": select.as_ref().map(|select| selected(&node.columns, select)),
            }),
            Operator::Merge { .. } => json!({ "kind": "merge" }),
            Operator::Dedupe { by, within_ms } => json!({
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
        value["retention"] = json!(table.windows.is_some().then(|| format_duration(table.retention_ms)));
        value
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
            Operator::Dedupe { by, within_ms } => {
                json!({ "by": node.columns[*by], "within": format_duration(*within_ms) })
            }
            Operator::Table(table) => json!({
                "groupBy": node.columns[..table.group_by.len()].iter().map(|c| json!(c)).collect::<Vec<_>>(),
                "window": table.windows.as_ref().map(|windows| window(windows, table.grace_ms)),
                "aggregates": table.aggregates.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "stateVersion": table.state_version,
            }),
            Operator::Join(join) => json!({
                "on": join.on,
                "sides": [
                    self.carried(node, 0, join.carried[0].as_ref()),
                    self.carried(node, 1, join.carried[1].as_ref()),
                ],
                "before": format_duration(join.before_ms),
                "after": format_duration(join.after_ms),
                "grace": format_duration(join.grace_ms),
                "joinKind": match join.kind {
                    JoinKind::Inner => "inner",
                    JoinKind::Left => "left",
                    JoinKind::Outer => "outer",
                },
            }),
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
            Operator::Table(TablePlan { carried: Some(_), .. }) => vec![full(&node.name)],
            Operator::Join(join) => ["left", "right"]
                .into_iter()
                .zip(&join.carried)
                .filter(|(_, carried)| carried.is_some())
                .map(|(side, _)| full(&format!("{}-{side}", node.name)))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Names of a node's stores.
pub fn stores(node: &PlanNode) -> Vec<String> {
    match &node.operator {
        Operator::Dedupe { .. } => vec![node.name.clone()],
        Operator::Table(table) => vec![table_store(&node.name, table)],
        Operator::Join(_) => {
            ["left", "right", "due"].into_iter().map(|part| format!("{}-{part}", node.name)).collect()
        }
        _ => Vec::new(),
    }
}

/// The name of a table's store: the node's name, and its version from the second on.
pub fn table_store(name: &str, table: &TablePlan) -> String {
    if table.state_version > 1 { format!("{name}-v{}", table.state_version) } else { name.to_owned() }
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
    json!({
        "tumbling": format_duration(windows.size_ms()),
        "zone": windows.zone(),
        "grace": format_duration(grace_ms),
    })
}

fn sink_json(sink: &SinkPlan) -> Value {
    let headers: Vec<String> = sink.headers.iter().map(|(name, typed)| format!("{name} = {typed}")).collect();
    json!({ "topic": sink.topic, "key": text(sink.key.as_ref()), "headers": headers })
}
