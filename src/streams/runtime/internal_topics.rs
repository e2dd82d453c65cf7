//! Topics inside the application: how many partitions each needs, and creating them.
//!
//! A repartition topic gets the count asked for, else the largest of what is upstream; co-partitioned topics get one count
//! (Kafka's `RepartitionTopics` and `CopartitionedTopicsEnforcer`). A changelog has one partition per task.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::streams::{
    client::{Admin, NewTopic},
    error::{Result, StreamsError},
    state::StoreKind,
    topology::Topology,
};

/// Partition counts of every topic of the application, and tasks per sub-topology.
#[derive(Clone, Debug, Default)]
pub struct PartitionPlan {
    /// By topic: sources, repartition topics.
    pub partitions: BTreeMap<Arc<str>, i32>,
    /// By sub-topology: how many tasks it has.
    pub tasks: Vec<i32>,
}

/// Decides partition counts from what exists.
pub fn plan(topology: &Topology, admin: &dyn Admin) -> Result<PartitionPlan> {
    let external: Vec<String> = topology
        .external_source_topics()
        .into_iter()
        .chain(topology.global_topics())
        .map(|topic| topic.to_string())
        .collect();
    let existing = admin.describe(&external)?;
    let missing: Vec<&str> =
        external.iter().filter(|topic| !existing.contains_key(*topic)).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(StreamsError::Fatal(format!(
            "source topics do not exist: {}. Create them (or correct their names in the topology) and start again",
            missing.join(", ")
        )));
    }
    plan_from(topology, existing.into_iter().map(|(name, topic)| (name.into(), topic.partitions)).collect())
}

/// As [`plan`], given how many partitions each external topic has.
pub(crate) fn plan_from(
    topology: &Topology,
    mut partitions: BTreeMap<Arc<str>, i32>,
) -> Result<PartitionPlan> {
    for (topic, asked) in &topology.repartition_topics {
        if let Some(asked) = asked {
            partitions.insert(topic.clone(), *asked);
        }
    }
    // Counts flow downstream. A sub-topology may write to a repartition topic that it reads itself, when what is before
    // and behind it is merged: then no source waits for the other for ever, and what is known of its inputs decides.
    for with_known_only in [false, true] {
        // Each round settles at least one more topic, so there are at most as many rounds as topics.
        for _ in 0..=topology.repartition_topics.len() {
            for subtopology in &topology.subtopologies {
                let known: Option<i32> =
                    subtopology.source_topics.iter().filter_map(|topic| partitions.get(topic)).max().copied();
                let settled = subtopology.source_topics.iter().all(|topic| partitions.contains_key(topic));
                let (Some(count), true) = (known, settled || with_known_only) else { continue };
                for sink in &subtopology.sink_topics {
                    if topology.repartition_topics.contains_key(sink) && !partitions.contains_key(sink) {
                        partitions.insert(sink.clone(), count);
                    }
                }
            }
            for group in &topology.copartition_groups {
                enforce_copartitioning(topology, group, &mut partitions)?;
            }
        }
    }
    let unsettled: Vec<&str> = topology
        .repartition_topics
        .keys()
        .filter(|topic| !partitions.contains_key(*topic))
        .map(|topic| &**topic)
        .collect();
    if !unsettled.is_empty() {
        return Err(StreamsError::Topology(format!(
            "cannot tell how many partitions {} need: nothing upstream has a count",
            unsettled.join(", ")
        )));
    }
    let tasks = topology
        .subtopologies
        .iter()
        .map(|sub| {
            sub.source_topics.iter().filter_map(|topic| partitions.get(topic)).max().copied().unwrap_or(0)
        })
        .collect();
    Ok(PartitionPlan { partitions, tasks })
}

/// Gives all repartition topics of a group one count; user topics must already agree.
fn enforce_copartitioning(
    topology: &Topology,
    group: &[Arc<str>],
    partitions: &mut BTreeMap<Arc<str>, i32>,
) -> Result<()> {
    let internal = |topic: &Arc<str>| topology.repartition_topics.contains_key(topic);
    let user: BTreeSet<i32> = group
        .iter()
        .filter(|topic| !internal(topic))
        .filter_map(|topic| partitions.get(topic).copied())
        .collect();
    if user.len() > 1 {
        let list: Vec<String> = group
            .iter()
            .filter(|topic| !internal(topic))
            .map(|topic| format!("{topic} has {}", partitions.get(topic).copied().unwrap_or_default()))
            .collect();
        return Err(StreamsError::Topology(format!(
            "topics that are joined must have the same number of partitions, but {}. Repartition one of them",
            list.join(", ")
        )));
    }
    let asked: BTreeSet<i32> =
        group.iter().filter_map(|topic| topology.repartition_topics.get(topic).copied().flatten()).collect();
    if asked.len() > 1 {
        return Err(StreamsError::Topology(format!(
            "repartition topics that are joined ask for different partition counts: {}",
            group.join(", ")
        )));
    }
    let count = match (user.first(), asked.first()) {
        (Some(user), Some(asked)) if user != asked => {
            return Err(StreamsError::Topology(format!(
                "a repartition topic of {} asks for {asked} partitions, but is joined with topics that have {user}",
                group.join(", ")
            )));
        }
        (Some(count), _) | (None, Some(count)) => Some(*count),
        (None, None) => group.iter().filter_map(|topic| partitions.get(topic).copied()).max(),
    };
    if let Some(count) = count {
        for topic in group.iter().filter(|topic| internal(topic)) {
            partitions.insert(topic.clone(), count);
        }
    }
    Ok(())
}

/// Creates what is missing and checks what exists.
pub fn create(topology: &Topology, plan: &PartitionPlan, replication: i32, admin: &dyn Admin) -> Result<()> {
    let wanted = wanted(topology, plan, replication);
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let existing = admin.describe(&names)?;
    for topic in &wanted {
        // Another application's topic, which is filled for it, may have more.
        let borrowed = topology.changelog_names.values().any(|name| **name == *topic.name);
        if let Some(found) = existing.get(&topic.name)
            && (found.partitions < topic.partitions || (found.partitions != topic.partitions && !borrowed))
        {
            return Err(StreamsError::Fatal(format!(
                "internal topic {} has {} partitions, but the topology needs {}. Its input was repartitioned or another \
                 topology uses the same application id: run `sluice streams reset` for this application, or choose a new app name",
                topic.name, found.partitions, topic.partitions
            )));
        }
    }
    let missing: Vec<NewTopic> =
        wanted.into_iter().filter(|topic| !existing.contains_key(&topic.name)).collect();
    if missing.is_empty() { Ok(()) } else { admin.create_topics(&missing) }
}

/// What an unlimited window keeps is beyond what a number holds: then it is the largest.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Every internal topic with its policy (streams-semantics 3.2).
pub(crate) fn wanted(topology: &Topology, plan: &PartitionPlan, replication_factor: i32) -> Vec<NewTopic> {
    const DAY_MS: i64 = 86_400_000;
    let topic = |name: &str, partitions: i32, config: &[(&str, String)]| NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        config: config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .chain([("message.timestamp.type".to_owned(), "CreateTime".to_owned())])
            .collect(),
    };
    let mut topics = Vec::new();
    for name in topology.repartition_topics.keys() {
        let config = [
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", "-1".to_owned()),
            ("segment.bytes", (50 << 20).to_string()),
        ];
        topics.push(topic(name, plan.partitions.get(name).copied().unwrap_or(1), &config));
    }
    for subtopology in &topology.subtopologies {
        for id in &subtopology.stores {
            let store = &topology.stores[id.0];
            if !store.builder.logging || store.source_topic.is_some() {
                continue;
            }
            let name = topology.changelog_topic(&store.builder.name);
            let config = match &store.builder.kind {
                StoreKind::Window { retention, .. } | StoreKind::Session { retention, .. } => vec![
                    ("cleanup.policy", "compact,delete".to_owned()),
                    ("retention.ms", (millis(*retention).saturating_add(DAY_MS)).to_string()),
                ],
                StoreKind::Versioned { history } => vec![
                    ("cleanup.policy", "compact".to_owned()),
                    ("min.compaction.lag.ms", (millis(*history).saturating_add(DAY_MS)).to_string()),
                ],
                StoreKind::KeyValue { .. } | StoreKind::Buffer => {
                    vec![("cleanup.policy", "compact".to_owned())]
                }
            };
            topics.push(topic(&name, plan.tasks[subtopology.id], &config));
        }
    }
    topics
}
