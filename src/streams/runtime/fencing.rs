//! [`Fencing`]: ends the transactions that dead threads have left open, for the thread that takes their partitions over.
//!
//! Who dies within a transaction leaves it open until its timeout has passed and a broker has looked. Until then offsets in it are not
//! told, a changelog it has written to is not replayed to its end, and a repartition topic is not read beyond it. A new producer of the same
//! transactional id aborts it at once.
//!
//! Which id: each commit says so beside its offsets ([`CommitMetadata`]). Who is dead: the group does not count it as a member any more; one
//! name stands for a thread's producer and for its membership. Always: what belongs to a member is left alone, and so is the thread's own,
//! which its producer has seen to.
//!
//! Why nothing is lost: the partitions of who is not a member are given to others, and its commits are refused. One that lives all the same
//! (it stood still, or starts again in this moment) is refused once, `TaskMigrated`, takes a newer epoch and joins the group, where it is
//! found from then on: two never fence each other for ever. What is not found is waited for as before: the transaction of one that died before
//! its first commit of every partition that comes here, or that committed with an earlier version.

use std::{collections::BTreeMap, sync::Arc};

use super::commit_metadata::CommitMetadata;
use crate::streams::{
    client::{ClientSupplier, OffsetAndMetadata, ProducerConfig},
    config::{ProcessingGuarantee, StreamsConfig},
    error::{Result, StreamsError},
    record::TopicPartition,
};

type Offsets = BTreeMap<TopicPartition, OffsetAndMetadata>;

/// See the module's documentation.
pub(super) struct Fencing {
    clients: Arc<dyn ClientSupplier>,
    config: Arc<StreamsConfig>,
    /// The thread's own transactional id.
    own: String,
    /// The last commits of those who were fenced: while a partition has no other, there is nobody new to fence.
    fenced: Offsets,
}

impl Fencing {
    pub(super) fn new(clients: Arc<dyn ClientSupplier>, config: Arc<StreamsConfig>, own: String) -> Self {
        Self { clients, config, own, fenced: Offsets::new() }
    }

    /// Fences who committed last of these partitions and is dead, each once. Where that fails, it is logged and nothing else: their
    /// transactions end by their timeout.
    pub(super) fn fence_the_dead(&mut self, partitions: &[TopicPartition]) {
        if self.config.processing_guarantee != ProcessingGuarantee::ExactlyOnce {
            return;
        }
        let dead = match self.dead(partitions) {
            Ok(dead) => dead,
            Err(error) => {
                tracing::warn!(%error, "cannot ask who has died; what it left open is waited for");
                return;
            }
        };
        for (id, last_commits) in dead {
            match self.fence(&id) {
                Ok(()) => {
                    tracing::info!(
                        transactional_id = id,
                        "fenced a dead thread: what it left open is aborted"
                    );
                    self.fenced.extend(last_commits);
                }
                Err(error) => {
                    tracing::warn!(transactional_id = id, %error, "cannot fence a dead thread; what it left open is waited for");
                    if matches!(error, StreamsError::Retriable(_)) {
                        // Each further one would wait as long.
                        return;
                    }
                }
            }
        }
    }

    /// Transactional ids that committed last of these partitions and are no member's, with those commits.
    fn dead(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<String, Offsets>> {
        let (admin, group) = (self.clients.admin()?, self.config.group_id());
        // Of undecided ones this tells the commit before.
        let committed = admin.group_offsets(group)?;
        let mut others: BTreeMap<String, Offsets> = BTreeMap::new();
        for partition in partitions {
            let Some(commit) = committed.get(partition) else { continue };
            let committer = CommitMetadata::decode(&commit.metadata).and_then(|metadata| metadata.committer);
            let Some(id) = committer.filter(|id| *id != self.own) else { continue };
            if self.fenced.get(partition) != Some(commit) {
                others.entry(id).or_default().insert(partition.clone(), commit.clone());
            }
        }
        if !others.is_empty() {
            for name in admin.group_members(group)?.into_iter().filter_map(|member| member.group_instance_id)
            {
                others.remove(&name);
            }
        }
        Ok(others)
    }

    fn fence(&self, id: &str) -> Result<()> {
        let mut successor = self.clients.producer(&ProducerConfig {
            transactional_id: Some(id.to_owned()),
            transaction_timeout: Some(self.config.transaction_timeout),
        })?;
        successor.init_transactions()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use super::*;
    use crate::streams::client::{
        Admin, Consumer, ConsumerConfig, NewTopic, Producer, embedded::EmbeddedLog,
    };

    /// A log that notes who is fenced, and refuses one.
    struct Noting {
        log: EmbeddedLog,
        fenced: Mutex<Vec<String>>,
        refuses: Option<Refusal>,
    }

    /// Whose id is refused, and how.
    type Refusal = (&'static str, fn(String) -> StreamsError);

    impl Noting {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.fenced.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl ClientSupplier for Noting {
        fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
            self.log.consumer(config)
        }

        fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
            let id = config.transactional_id.clone().unwrap_or_default();
            self.fenced.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
            match self.refuses {
                Some((refused, error)) if refused == id => Err(error("refused".to_owned())),
                _ => self.log.producer(config),
            }
        }

        fn admin(&self) -> Result<Arc<dyn Admin>> {
            self.log.admin()
        }
    }

    /// A group with one member, `app-live-0`.
    struct Group {
        clients: Arc<Noting>,
        member: Box<dyn Consumer>,
        fencing: Fencing,
    }

    impl Group {
        fn new(guarantee: ProcessingGuarantee, refuses: Option<Refusal>) -> Self {
            let log = EmbeddedLog::in_memory();
            let topic =
                NewTopic { name: "t".into(), partitions: 4, replication_factor: 1, config: BTreeMap::new() };
            log.admin().unwrap().create_topics(&[topic]).unwrap();
            let mut member = log
                .consumer(&ConsumerConfig {
                    group_id: Some("app".into()),
                    group_instance_id: Some("app-live-0".into()),
                    ..ConsumerConfig::default()
                })
                .unwrap();
            member.subscribe(&["t".into()]).unwrap();
            assert!(member.poll(Duration::ZERO).unwrap().rebalance.is_some());
            member.assign(&[]).unwrap();
            let config = StreamsConfig {
                application_id: "app".into(),
                processing_guarantee: guarantee,
                ..StreamsConfig::default()
            };
            let clients = Arc::new(Noting { log, fenced: Mutex::default(), refuses });
            let fencing = Fencing::new(clients.clone(), Arc::new(config), "app-own-0".into());
            Self { clients, member, fencing }
        }

        /// Commits of these, partition by partition.
        fn commit(&mut self, offset: i64, committers: &[&str]) {
            let commits = committers.iter().enumerate().map(|(partition, committer)| {
                let metadata = CommitMetadata {
                    commit: 1,
                    partition_time: -1,
                    vouched: Vec::new(),
                    clocks: Vec::new(),
                    expired: -1,
                    committer: Some((*committer).to_owned()),
                };
                let metadata = metadata.encode();
                (TopicPartition::new("t", partition as i32), OffsetAndMetadata { offset, metadata })
            });
            self.member.commit(&commits.collect()).unwrap();
        }

        /// Who is fenced when the first so many partitions are assigned.
        fn assigned(&mut self, partitions: i32) -> Vec<String> {
            let partitions: Vec<_> =
                (0..partitions).map(|partition| TopicPartition::new("t", partition)).collect();
            self.fencing.fence_the_dead(&partitions);
            self.clients.take()
        }
    }

    const EXACTLY_ONCE: ProcessingGuarantee = ProcessingGuarantee::ExactlyOnce;

    #[test]
    fn each_of_the_dead_is_fenced_once_and_nobody_else() {
        let mut group = Group::new(EXACTLY_ONCE, None);
        group.commit(1, &["app-dead-1", "app-own-0", "app-live-0", "app-dead-0"]);
        assert_eq!(group.assigned(3), ["app-dead-1"], "what goes to others is others' to see to");
        group.commit(1, &["app-dead-1", "app-dead-0", "app-dead-1", "app-dead-0"]);
        assert_eq!(group.assigned(4), ["app-dead-0", "app-dead-1"]);
    }

    #[test]
    fn who_was_fenced_is_fenced_again_only_when_it_has_committed_since() {
        let mut group = Group::new(EXACTLY_ONCE, None);
        group.commit(1, &["app-dead-0", "app-dead-0"]);
        assert_eq!(group.assigned(2), ["app-dead-0"]);
        assert_eq!(group.assigned(2), [""; 0]);
        group.commit(2, &["app-dead-0"]);
        assert_eq!(group.assigned(2), ["app-dead-0"]);
    }

    #[test]
    fn who_cannot_be_fenced_is_tried_again_and_holds_up_others_only_where_the_log_does_not_answer() {
        let refusals: [(fn(String) -> StreamsError, &[&str]); 2] = [
            (StreamsError::Fatal, &["app-dead-0", "app-dead-1"]),
            (StreamsError::Retriable, &["app-dead-0"]),
        ];
        for (refusal, tried) in refusals {
            let mut group = Group::new(EXACTLY_ONCE, Some(("app-dead-0", refusal)));
            group.commit(1, &["app-dead-0", "app-dead-1"]);
            assert_eq!(group.assigned(2), tried);
            assert!(group.assigned(2).contains(&"app-dead-0".to_owned()), "at the next assignment");
        }
    }

    #[test]
    fn at_least_once_fences_nobody() {
        let mut group = Group::new(ProcessingGuarantee::AtLeastOnce, None);
        group.commit(1, &["app-dead-0"]);
        assert_eq!(group.assigned(1), [""; 0]);
    }
}
