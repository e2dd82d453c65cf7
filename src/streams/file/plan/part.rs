//! Part of a plan: some nodes and everything they read.

use std::collections::BTreeSet;

use super::{Operator, Plan, PlanNode};

impl Plan {
    /// These nodes and what they read, as another application without sinks.
    pub(crate) fn only(self, wanted: &BTreeSet<String>, application: &str) -> Plan {
        let mut keep = vec![false; self.nodes.len()];
        // Readers come after their inputs, so one walk backwards is enough.
        for (position, node) in self.nodes.iter().enumerate().rev() {
            keep[position] |= wanted.contains(&node.name);
            if !keep[position] {
                continue;
            }
            node.inputs.iter().for_each(|input| keep[*input] = true);
            if let Operator::Processor { stores, .. } = &node.operator {
                let reads = |other: &PlanNode| stores.contains(&other.name);
                self.nodes
                    .iter()
                    .enumerate()
                    .filter(|(_, other)| reads(other))
                    .for_each(|(at, _)| keep[at] = true);
            }
        }
        let place = |old: usize| keep[..old].iter().filter(|kept| **kept).count();
        let nodes = self.nodes.into_iter().enumerate().filter(|(position, _)| keep[*position]);
        let nodes = nodes.map(|(_, mut node)| {
            node.inputs = node.inputs.iter().map(|input| place(*input)).collect();
            node.sink = None;
            node
        });
        Plan {
            nodes: nodes.collect(),
            app: application.to_owned(),
            group: application.to_owned(),
            idle_close_ms: self.idle_close_ms,
        }
    }
}
