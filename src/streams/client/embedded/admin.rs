//! The embedded [`Admin`]: each call changes the broker, then waits for the file.

use std::{collections::BTreeMap, sync::Arc};

use super::{Shared, broker::Broker};
use crate::streams::{
    client::{Admin, GroupMember, NewTopic, OffsetAndMetadata, TopicDescription},
    error::{Result, StreamsError},
    record::TopicPartition,
};

/// See the module.
pub(super) struct EmbeddedAdmin {
    shared: Arc<Shared>,
}

impl EmbeddedAdmin {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn change(&self, work: impl FnOnce(&mut Broker) -> Result<()>) -> Result<()> {
        let mut broker = self.shared.lock()?;
        let result = work(&mut broker);
        let changes = broker.changes;
        drop(broker);
        self.shared.persist(changes).and(result)
    }

    /// An error while the group has members.
    fn require_inactive(&self, broker: &mut Broker, group_id: &str, what: &str) -> Result<()> {
        broker.expire_sessions(group_id, self.shared.now());
        match broker.groups.get(group_id) {
            Some(group) if !group.is_empty() => Err(StreamsError::Fatal(format!(
                "cannot {what} of group {group_id:?}: it has active members; stop them first"
            ))),
            _ => Ok(()),
        }
    }
}

impl Admin for EmbeddedAdmin {
    fn create_topics(&self, topics: &[NewTopic]) -> Result<()> {
        self.change(|broker| topics.iter().try_for_each(|topic| broker.create_topic(topic)))
    }

    fn describe(&self, topics: &[String]) -> Result<BTreeMap<String, TopicDescription>> {
        let broker = self.shared.lock()?;
        let known = topics.iter().filter_map(|name| {
            let partitions = broker.topics.get(name.as_str())?.partitions.len() as i32;
            Some((name.clone(), TopicDescription { name: name.clone(), partitions, replication_factor: 1 }))
        });
        Ok(known.collect())
    }

    fn list_topics(&self) -> Result<Vec<String>> {
        Ok(self.shared.lock()?.topics.keys().map(|name| name.to_string()).collect())
    }

    fn delete_topics(&self, topics: &[String]) -> Result<()> {
        self.change(|broker| {
            topics.iter().for_each(|name| broker.delete_topic(name));
            Ok(())
        })
    }

    fn delete_records(&self, before: &BTreeMap<TopicPartition, i64>) -> Result<()> {
        self.change(|broker| before.iter().try_for_each(|(tp, offset)| broker.delete_records(tp, *offset)))
    }

    fn topic_config(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        let broker = self.shared.lock()?;
        let mut config = broker.topic(topic)?.config.clone();
        for (key, default) in [("cleanup.policy", "delete"), ("retention.ms", "-1")] {
            config.entry(key.to_owned()).or_insert_with(|| default.to_owned());
        }
        Ok(config)
    }

    fn group_offsets(&self, group_id: &str) -> Result<BTreeMap<TopicPartition, OffsetAndMetadata>> {
        let broker = self.shared.lock()?;
        Ok(broker.groups.get(group_id).map(|g| g.committed.clone()).unwrap_or_default())
    }

    fn group_members(&self, group_id: &str) -> Result<Vec<GroupMember>> {
        let mut broker = self.shared.lock()?;
        broker.expire_sessions(group_id, self.shared.now());
        Ok(broker.groups.get(group_id).map(|group| group.members()).unwrap_or_default())
    }

    fn alter_group_offsets(
        &self,
        group_id: &str,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
    ) -> Result<()> {
        self.change(|broker| {
            self.require_inactive(broker, group_id, "set offsets")?;
            offsets.keys().try_for_each(|tp| broker.partition_id(tp).map(|_| ()))?;
            broker.commit_offsets(group_id, offsets);
            Ok(())
        })
    }

    fn delete_group(&self, group_id: &str) -> Result<()> {
        self.change(|broker| {
            self.require_inactive(broker, group_id, "delete the offsets")?;
            broker.delete_group(group_id);
            Ok(())
        })
    }
}
