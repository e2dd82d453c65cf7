//! Rewrites of the logical graph before it is written: equal sources merged, repartition topics merged, self-joins on one
//! store, null keys dropped before a hop unless a join below wants them, versioned tables made known downstream.

use std::time::Duration;

use super::graph::{Graph, GraphNode, GraphNodeId, NodeKind, ROOT};
use super::repartition::Repartition;
use crate::streams::{
    error::{Result, StreamsError},
    state::StoreKind,
};

/// Runs all rewrites, in Kafka's order.
pub(crate) fn optimize(graph: &mut Graph) -> Result<()> {
    merge_duplicate_sources(graph)?;
    if graph.config.reuse_ktable_source_topics {
        for node in &graph.nodes {
            if let Some(reuse) = &node.reuse_source_topic {
                reuse.set(true);
            }
        }
    }
    if graph.config.merge_repartition_topics {
        merge_repartition_topics(graph)?;
    }
    if graph.config.single_store_self_join {
        rewrite_self_joins(graph);
    }
    let mut relaxed = vec![None; graph.nodes.len()];
    relaxed_below(graph, ROOT, &mut relaxed);
    for (node, relaxed) in graph.nodes.iter_mut().zip(relaxed) {
        if let NodeKind::Repartition(repartition) = &mut node.kind {
            repartition.drop_null_keys = relaxed == Some(false);
        }
    }
    enable_versioned_semantics(graph)
}

fn merge_duplicate_sources(graph: &mut Graph) -> Result<()> {
    let mut kept: Vec<GraphNodeId> = Vec::new();
    for id in graph.nodes[ROOT].children.clone() {
        let NodeKind::StreamSource(source) = &graph.nodes[id].kind else { continue };
        let same = kept.iter().copied().find_map(|known| match &graph.nodes[known].kind {
            NodeKind::StreamSource(other) if other.topics.iter().any(|t| source.topics.contains(t)) => {
                Some((known, other))
            }
            _ => None,
        });
        let Some((main, other)) = same else {
            kept.push(id);
            continue;
        };
        let mut topics = (source.topics.clone(), other.topics.clone());
        topics.0.sort();
        topics.1.sort();
        if topics.0 != topics.1 {
            return Err(StreamsError::Topology(format!(
                "sources {} and {} read overlapping but not equal topics: read each topic once",
                graph.nodes[main].name, graph.nodes[id].name
            )));
        }
        if source.offset_reset != other.offset_reset {
            return Err(StreamsError::Topology(format!(
                "sources {} and {} of the same topics differ in offset reset: give both the same",
                graph.nodes[main].name, graph.nodes[id].name
            )));
        }
        for child in graph.nodes[id].children.clone() {
            graph.remove_child(id, child);
            graph.add_child(main, child);
        }
        graph.remove_child(ROOT, id);
    }
    Ok(())
}

/// The first ancestor (or the node itself) that matches, searched as Kafka does: a parent that matches wins at once, otherwise
/// the search below the *last* parent counts.
fn parent_matching(
    graph: &Graph,
    start: GraphNodeId,
    matches: &dyn Fn(&GraphNode) -> bool,
) -> Option<GraphNodeId> {
    if matches(&graph.nodes[start]) {
        return Some(start);
    }
    let mut found = None;
    for parent in &graph.nodes[start].parents {
        if matches(&graph.nodes[*parent]) {
            return Some(*parent);
        }
        found = parent_matching(graph, *parent, matches);
    }
    found
}

/// The key-changing ancestor of a repartition node, unless a value change lies between them (serdes would differ).
pub(crate) fn key_changing_parent(graph: &Graph, repartition: GraphNodeId) -> Option<GraphNodeId> {
    let either = parent_matching(graph, repartition, &|node| node.key_changing || node.value_changing);
    let key = parent_matching(graph, repartition, &|node| node.key_changing);
    if either.is_some() && either == key { key } else { None }
}

fn merge_repartition_topics(graph: &mut Graph) -> Result<()> {
    move_to_merge_nodes(graph);
    for (key_changer, repartitions) in std::mem::take(&mut graph.key_changers) {
        let Some(first) = repartitions.first() else { continue };
        let NodeKind::Repartition(first) = &graph.nodes[*first].kind else { continue };
        let (topic, key_serde, value_serde) =
            (first.topic.clone(), first.key_serde.clone(), first.value_serde.clone());
        let single = Repartition::named(graph, &topic, key_serde, value_serde, None, true);
        let single_name = single.source_name.clone();
        let id = graph.nodes.len();
        graph.nodes.push(GraphNode::new(single_name.clone(), NodeKind::Repartition(single)));
        graph.nodes[id].build_priority = graph.nodes[key_changer].build_priority;
        for replaced in repartitions {
            let child = parent_matching(graph, replaced, &|node| node.parents.contains(&key_changer))
                .ok_or_else(|| {
                    StreamsError::fatal(format!(
                        "{} is not below {}",
                        graph.nodes[replaced].name, graph.nodes[key_changer].name
                    ))
                })?;
            graph.add_child(id, child);
            graph.remove_child(key_changer, child);
            let (children, parents) =
                (graph.nodes[replaced].children.clone(), graph.nodes[replaced].parents.clone());
            for child in &children {
                for parent in &parents {
                    graph.add_child(*parent, *child);
                }
            }
            for parent in &parents {
                graph.remove_child(*parent, replaced);
            }
            for child in children {
                graph.remove_child(replaced, child);
            }
            let replaced_name = graph.nodes[replaced].name.clone();
            for group in &mut graph.copartitioned {
                if group.remove(&replaced_name) {
                    group.insert(single_name.clone());
                }
            }
        }
        graph.add_child(key_changer, id);
    }
    Ok(())
}

/// Repartition nodes below a merge belong to the merge, not to the key changes above it.
fn move_to_merge_nodes(graph: &mut Graph) {
    let mut moved: Vec<(GraphNodeId, Vec<GraphNodeId>)> = Vec::new();
    for merge in graph.merge_nodes.clone() {
        let mut above = Vec::new();
        for (key_changer, repartitions) in &graph.key_changers {
            let all_below = repartitions.iter().all(|repartition| {
                parent_matching(graph, *repartition, &|node| node.parents.contains(&merge)).is_some()
            });
            if all_below
                && parent_matching(graph, merge, &|node| node.parents.contains(key_changer)).is_some()
            {
                above.push(*key_changer);
            }
        }
        moved.push((merge, above));
    }
    let mut emptied: Vec<GraphNodeId> = Vec::new();
    for (merge, above) in moved {
        let mut repartitions: Vec<GraphNodeId> = Vec::new();
        for key_changer in above {
            let below = graph.key_changers.iter().find(|(id, _)| *id == key_changer);
            for id in below.map(|(_, list)| list.clone()).unwrap_or_default() {
                if !repartitions.contains(&id) {
                    repartitions.push(id);
                }
            }
            emptied.push(key_changer);
        }
        match graph.key_changers.iter_mut().find(|(id, _)| *id == merge) {
            Some((_, list)) => *list = repartitions,
            None => graph.key_changers.push((merge, repartitions)),
        }
    }
    graph.key_changers.retain(|(id, _)| !emptied.contains(id));
}

fn rewrite_self_joins(graph: &mut Graph) {
    for id in 0..graph.nodes.len() {
        let node = &graph.nodes[id];
        let Some(join) = &node.stream_join else { continue };
        let [parent] = node.parents[..] else { continue };
        let named = |name: &str| {
            graph.nodes[parent].children.iter().copied().find(|child| {
                graph.nodes[*child].name == name && graph.nodes[*child].build_priority < node.build_priority
            })
        };
        if let (Some(_), Some(right)) = (named(&join.this_windowed), named(&join.other_windowed)) {
            join.self_join.set(true);
            graph.remove_child(parent, right);
        }
    }
}

/// Whether a join that wants null keys is below a node.
fn relaxed_below(graph: &Graph, id: GraphNodeId, known: &mut Vec<Option<bool>>) -> bool {
    if let Some(relaxed) = known[id] {
        return relaxed;
    }
    let mut relaxed = false;
    for child in &graph.nodes[id].children {
        // Every child is visited even after the answer is known: repartition nodes below it need theirs.
        let below = relaxed_below(graph, *child, known);
        relaxed |= below || graph.nodes[*child].null_key_relaxed_join;
    }
    known[id] = Some(relaxed);
    relaxed
}

fn enable_versioned_semantics(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        if let Some(descriptor) = &node.versioned_semantics {
            for parent in &node.parents {
                if is_versioned(graph, *parent) {
                    descriptor.enable_versioned_semantics(&graph.nodes[*parent].name);
                }
            }
        }
        if node.suppress && node.parents.iter().all(|parent| is_versioned(graph, *parent)) {
            return Err(StreamsError::Topology(format!(
                "suppress {} stands below a versioned table: suppress works on tables without versions only",
                node.name
            )));
        }
    }
    Ok(())
}

/// Whether the table at a node is versioned, or inherits it.
pub(crate) fn is_versioned(graph: &Graph, id: GraphNodeId) -> bool {
    if id == ROOT {
        return false;
    }
    match graph.nodes[id].output_versioned {
        Some(versioned) => versioned,
        None => graph.nodes[id].parents.iter().all(|parent| is_versioned(graph, *parent)),
    }
}

/// Refuses a stream-table join whose table forgets versions before the grace has passed.
pub(crate) fn check_grace(join: &str, table: &str, kind: Option<StoreKind>, grace: Duration) -> Result<()> {
    match kind {
        Some(StoreKind::Versioned { history }) if history >= grace => Ok(()),
        Some(StoreKind::Versioned { history }) => Err(StreamsError::Topology(format!(
            "{join} waits {grace:?} for table {table}, which keeps versions for {history:?} only: keep them at least as long"
        ))),
        _ => Err(StreamsError::Topology(format!(
            "{join} has a grace period, but table {table} keeps no versions: materialise it versioned"
        ))),
    }
}
