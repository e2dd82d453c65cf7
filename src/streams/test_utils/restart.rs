//! A restart of the driver's application, as an instance on another machine would find it: nothing that was only in memory survives.
//!
//! What must always hold: the new tasks begin where the old ones had committed, with the clocks of that commit and stores restored from
//! changelogs.

use super::harness::{Harness, build_stores, consumed, make_task};
use crate::streams::{
    error::Result,
    record::{ConsumerRecord, TopicPartition},
    topology::changelog_topic,
};

impl Harness {
    pub(super) fn restart(&mut self) -> Result<()> {
        for index in 0..self.tasks.len() {
            self.commit_and_capture(index)?;
        }
        let mut tasks = Vec::new();
        for (plan, mut old) in
            self.layout.tasks(&self.topology).into_iter().zip(std::mem::take(&mut self.tasks))
        {
            for ((node, reason), count) in old.dropped() {
                let counted = (old.id(), old.node_name(node), reason);
                *self.dropped_before.entry(counted).or_default() += count;
            }
            let committed = old.committable_offsets(None);
            old.close();
            let mut stores = build_stores(&self.topology, &plan, self.options.config.semantics)?;
            for (id, store) in &mut stores {
                let name = &self.topology.stores[id.0].builder.name;
                let restored = self.restored(name, plan.id.partition);
                store.as_state_store().restore(&restored)?;
            }
            let mut task = make_task(plan, stores, &self.options)?;
            let clocks = task.restore_metadata(&committed);
            task.init(clocks, self.now)?;
            tasks.push(task);
        }
        self.tasks = tasks;
        Ok(())
    }

    /// What one partition of a store's changelog holds.
    fn restored(&self, store: &str, partition: i32) -> Vec<ConsumerRecord> {
        let topic = changelog_topic(&self.topology.application_id, store);
        let wanted = TopicPartition { topic: topic.clone(), partition };
        let records = self.changelogs.get(&topic).into_iter().flatten();
        records
            .filter(|record| self.partition(record) == wanted)
            .enumerate()
            .map(|(offset, record)| consumed(record, partition, offset as i64, self.now))
            .collect()
    }
}
