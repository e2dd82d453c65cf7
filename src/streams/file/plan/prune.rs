//! Which columns somebody reads: walked from sinks and state back to the sources.
//!
//! The result names the columns to keep of each node; the plan is then bound again with those only, so that sources decode and
//! repartitions carry nothing else. What must always hold: a column that an expression, a key, a clock or a sink reads is kept.

use std::collections::{BTreeMap, BTreeSet};

use super::{JoinPlan, LookupPlan, Operator, Plan, PlanNode, SourcePlan, TableJoinPlan, TablePlan};
use crate::streams::file::expression::{Side, Typed};

/// Columns to keep, by node.
pub(super) type Needed = BTreeMap<String, BTreeSet<String>>;

/// Finds them.
pub(super) fn needed(plan: &Plan) -> Needed {
    let mut slots: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); plan.nodes.len()];
    // Readers come after their inputs, so one walk backwards sees every reader first.
    for (position, node) in plan.nodes.iter().enumerate().rev() {
        if node.sink.is_some() {
            slots[position].extend(0..node.columns.len());
        }
        for (input, reads) in node.inputs.iter().zip(reads(plan, node, &slots[position].clone())) {
            slots[*input].extend(reads);
        }
        if let Operator::Source(SourcePlan { time: Some(time), .. }) = node.operator {
            slots[position].insert(time);
        }
    }
    plan.nodes
        .iter()
        .zip(slots)
        .map(|(node, slots)| {
            (node.name.clone(), slots.into_iter().map(|slot| node.columns[slot].name.clone()).collect())
        })
        .collect()
}

fn side(expressions: impl Iterator<Item = impl std::borrow::Borrow<Typed>>, side: Side) -> BTreeSet<usize> {
    expressions
        .flat_map(|typed| typed.borrow().slots())
        .filter(|slot| slot.side == side)
        .map(|slot| slot.index)
        .collect()
}

/// What a node reads of each input, given which of its own columns are needed.
fn reads(plan: &Plan, node: &PlanNode, needed: &BTreeSet<usize>) -> Vec<BTreeSet<usize>> {
    match &node.operator {
        Operator::Source(_) => Vec::new(),
        Operator::Split { into, .. } => {
            let mut read = side(into.iter().map(|(_, condition)| condition), Side::Left);
            read.extend(needed);
            vec![read]
        }
        Operator::Branch => vec![needed.clone()],
        Operator::Stream { filter, select } => {
            let mut read = side(filter.iter(), Side::Left);
            match select {
                None => read.extend(needed),
                Some(select) => {
                    read.extend(side(needed.iter().map(|slot| &select[*slot]), Side::Left));
                }
            }
            vec![read]
        }
        Operator::Merge { slots } => {
            slots.iter().map(|slots| needed.iter().map(|slot| slots[*slot]).collect()).collect()
        }
        Operator::Dedupe { by, .. } => vec![needed.iter().copied().chain([*by]).collect()],
        Operator::Repartition { by } => vec![needed.iter().chain(by).copied().collect()],
        Operator::Table(table) => vec![table_reads(table)],
        Operator::Join(join) => join_reads(join, needed),
        Operator::Lookup(lookup) => lookup_reads(lookup, needed),
        Operator::TableJoin(join) => table_join_reads(join, needed),
        Operator::Processor { .. } => vec![(0..plan.nodes[node.inputs[0]].columns.len()).collect()],
    }
}

/// A table's state needs all of its aggregates, whoever reads the results.
fn table_reads(table: &TablePlan) -> BTreeSet<usize> {
    let aggregated = table.aggregates.iter().flat_map(|aggregate| aggregate.slots()).map(|slot| slot.index);
    let carried = aggregated.chain(table.group_by.iter().copied());
    let input = |slot: usize| table.carried.as_ref().map_or(slot, |carried| carried[slot]);
    let mut read: BTreeSet<usize> = carried.map(input).collect();
    read.extend(side(table.filter.iter(), Side::Left));
    read
}

fn join_reads(join: &JoinPlan, needed: &BTreeSet<usize>) -> Vec<BTreeSet<usize>> {
    let expressions = || needed.iter().map(|slot| &join.select[*slot]).chain(join.filter.iter());
    [Side::Left, Side::Right]
        .into_iter()
        .enumerate()
        .map(|(index, which)| {
            let input = |slot: usize| join.carried[index][slot];
            side(expressions(), which).into_iter().chain(join.on[index].iter().copied()).map(input).collect()
        })
        .collect()
}

fn lookup_reads(lookup: &LookupPlan, needed: &BTreeSet<usize>) -> Vec<BTreeSet<usize>> {
    let expressions = || needed.iter().map(|slot| &lookup.select[*slot]).chain(lookup.filter.iter());
    let input = |slot: usize| lookup.carried.as_ref().map_or(slot, |carried| carried[slot]);
    let left = side(expressions(), Side::Left).into_iter().chain(lookup.on.iter().copied()).map(input);
    vec![left.collect(), side(expressions(), Side::Right)]
}

/// Tables of topics are kept whole, whoever reads them; only joined columns may go, and those of a foreign key are state, too.
fn table_join_reads(join: &TableJoinPlan, needed: &BTreeSet<usize>) -> Vec<BTreeSet<usize>> {
    let all: BTreeSet<usize> = (0..join.select.len()).collect();
    let needed = if join.foreign.is_some() { &all } else { needed };
    let expressions = || needed.iter().map(|slot| &join.select[*slot]).chain(join.filter.iter());
    let left = side(expressions(), Side::Left).into_iter().chain(join.foreign.iter().flatten().copied());
    vec![left.collect(), side(expressions(), Side::Right)]
}
