//! The topics of the service: what they are called, how they are kept, and how they are created or checked.
//!
//! Created at start when missing, and checked; an existing topic is never altered, because repartitioning moves
//! users to other partitions and breaks their order. The engine's own topics (changelogs, repartitions) are the
//! engine's business.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::TopicsConfig,
    coupon::relay::progress,
    streams::client::{Admin, NewTopic},
};

/// How a topic keeps its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// Facts: for the configured retention.
    Events,
    /// The newest record of each key.
    Latest,
    /// The newest record of each key, and none older than the retention: windows end.
    LatestForAWhile,
    /// What could not be processed: 30 days to look at it.
    DeadLetters,
}

/// Every topic of the service.
const TOPICS: [(&str, Kept); 11] = [
    ("coupon-issued", Kept::Events),
    ("coupon-used", Kept::Events),
    ("coupon-use-cancelled", Kept::Events),
    ("coupon-revoked", Kept::Events),
    (progress::TOPIC, Kept::Latest),
    ("coupon-stats-minute", Kept::LatestForAWhile),
    ("coupon-stats-day", Kept::LatestForAWhile),
    ("coupon-totals", Kept::Latest),
    ("coupon-notification-commands", Kept::Events),
    ("coupon-issued-dlq", Kept::DeadLetters),
    ("coupon-used-dlq", Kept::DeadLetters),
];

/// Names of all topics.
pub fn names() -> Vec<String> {
    TOPICS.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn wanted(config: &TopicsConfig) -> Vec<NewTopic> {
    let millis = |time: Duration| time.as_millis().to_string();
    TOPICS
        .iter()
        .map(|(name, kept)| {
            let policy = match kept {
                Kept::Events | Kept::DeadLetters => "delete",
                Kept::Latest => "compact",
                Kept::LatestForAWhile => "compact,delete",
            };
            let retention = match kept {
                Kept::Events | Kept::LatestForAWhile => Some(config.retention),
                Kept::DeadLetters => Some(Duration::from_secs(30 * 86_400)),
                Kept::Latest => None,
            };
            let mut settings = BTreeMap::from([("cleanup.policy".to_owned(), policy.to_owned())]);
            settings.extend(retention.map(|time| ("retention.ms".to_owned(), millis(time))));
            NewTopic {
                name: (*name).to_owned(),
                partitions: config.partitions,
                replication_factor: config.replication_factor,
                config: settings,
            }
        })
        .collect()
}

/// Creates what is missing, then checks all. The error lists every topic that is not as configured.
pub fn create(admin: &dyn Admin, config: &TopicsConfig) -> crate::streams::error::Result<Vec<String>> {
    admin.create_topics(&wanted(config))?;
    validate(admin, config)
}

/// Creates topics that topologies write to and that are neither the service's nor there yet; they keep records as
/// events do.
pub fn create_sinks(
    admin: &dyn Admin,
    config: &TopicsConfig,
    sinks: &[String],
) -> crate::streams::error::Result<()> {
    let mut missing: Vec<NewTopic> = Vec::new();
    let existing = admin.describe(sinks)?;
    for name in sinks {
        if existing.contains_key(name) || missing.iter().any(|topic| topic.name == *name) {
            continue;
        }
        let known = wanted(config).into_iter().find(|topic| topic.name == *name);
        missing.push(known.unwrap_or_else(|| NewTopic {
            name: name.clone(),
            partitions: config.partitions,
            replication_factor: config.replication_factor,
            config: BTreeMap::from([
                ("cleanup.policy".to_owned(), "delete".to_owned()),
                ("retention.ms".to_owned(), config.retention.as_millis().to_string()),
            ]),
        }));
    }
    if missing.is_empty() { Ok(()) } else { admin.create_topics(&missing) }
}

/// How far the topics are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicsState {
    /// Not looked at yet.
    Pending,
    /// They could not be created or looked at; it is tried again.
    Unreachable(String),
    /// They exist, and something about them is not as configured.
    Differ(Vec<String>),
    /// They exist as configured.
    Ready,
}

impl TopicsState {
    /// All exist.
    pub fn exist(&self) -> bool {
        matches!(self, TopicsState::Ready | TopicsState::Differ(_))
    }

    /// For `/readyz`.
    pub fn check(&self) -> Result<(), String> {
        match self {
            TopicsState::Pending => Err("the topics are being created".into()),
            TopicsState::Unreachable(reason) => Err(reason.clone()),
            TopicsState::Differ(findings) => Err(findings.join("; ")),
            TopicsState::Ready => Ok(()),
        }
    }
}

/// Compares the topics that exist with the configuration; returns what is wrong, in words.
pub fn validate(admin: &dyn Admin, config: &TopicsConfig) -> crate::streams::error::Result<Vec<String>> {
    let existing = admin.describe(&names())?;
    let mut findings = Vec::new();
    for topic in wanted(config) {
        let Some(found) = existing.get(&topic.name) else {
            findings.push(format!(
                "{}: does not exist; run `sluice topics create`, or create it with {} partitions",
                topic.name, topic.partitions
            ));
            continue;
        };
        if found.partitions != topic.partitions {
            findings.push(format!(
                "{}: has {} partitions, topics.partitions says {}; set the key to what exists (a topic's partitions \
                 are never changed: users would move and lose their order)",
                topic.name, found.partitions, topic.partitions
            ));
        }
        if topic.replication_factor > 0 && found.replication_factor < topic.replication_factor {
            findings.push(format!(
                "{}: has {} replicas, topics.replication_factor says {}; reassign it on the cluster or lower the key",
                topic.name, found.replication_factor, topic.replication_factor
            ));
        }
        let settings = admin.topic_config(&topic.name)?;
        if let Some(policy) = settings.get("cleanup.policy")
            && !same_policy(policy, &topic.config["cleanup.policy"])
        {
            findings.push(format!(
                "{}: has cleanup.policy={policy}, needs {}; alter the topic",
                topic.name, topic.config["cleanup.policy"]
            ));
        }
    }
    Ok(findings)
}

/// `compact,delete` and `delete,compact` are the same.
fn same_policy(left: &str, right: &str) -> bool {
    let sorted = |text: &str| {
        let mut parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        parts.sort_unstable();
        parts
    };
    sorted(left) == sorted(right)
}
