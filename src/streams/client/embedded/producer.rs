//! The embedded [`Producer`]: appends under the broker's lock; flush and commit wait for the file.

use std::{collections::BTreeMap, sync::Arc};

use super::{LogCall, Shared, transaction::OpenTransaction};
use crate::streams::{
    client::{GroupMetadata, OffsetAndMetadata, Producer, ProducerConfig},
    error::{Result, StreamsError},
    record::{ProducerRecord, TopicPartition},
};

/// Plain sends that may wait for the file before the sender itself writes them: the bound of what only memory has.
const UNSAVED_RECORDS_MAX: usize = 20_000;

/// Its place and epoch in the broker's registry, once initialised.
#[derive(Clone, Copy)]
struct Registration {
    slot: usize,
    epoch: i32,
}

/// See the module.
pub(super) struct EmbeddedProducer {
    shared: Arc<Shared>,
    config: ProducerConfig,
    registration: Option<Registration>,
    in_transaction: bool,
    /// A transaction ended whose outcome is not in the file yet: `commit_transaction` again only waits for it.
    unconfirmed_commit: Option<u64>,
}

impl EmbeddedProducer {
    pub(super) fn new(shared: Arc<Shared>, config: ProducerConfig) -> Self {
        Self { shared, config, registration: None, in_transaction: false, unconfirmed_commit: None }
    }

    fn registration(&self) -> Result<Registration> {
        self.registration.ok_or_else(|| match &self.config.transactional_id {
            Some(id) => {
                StreamsError::Fatal(format!("producer {id:?}: call init_transactions before transactions"))
            }
            None => StreamsError::fatal("a producer without transactional_id has no transactions"),
        })
    }

    fn require_transaction(&self) -> Result<Registration> {
        let registration = self.registration()?;
        match self.in_transaction {
            true => Ok(registration),
            false => Err(StreamsError::fatal("no transaction is open: call begin_transaction first")),
        }
    }

    /// Takes the open transaction out of the registry; `None` when nothing was sent in it.
    fn end(&mut self, commit: bool) -> Result<u64> {
        let Registration { slot, epoch } = self.require_transaction()?;
        let mut broker = self.shared.lock()?;
        broker.expire_transactions(self.shared.now());
        broker.transactions.check(slot, epoch)?;
        let open: Option<OpenTransaction> = broker.transactions.take(slot);
        let empty = open.is_none();
        if let Some(open) = open {
            broker.end_transaction(open, commit);
        }
        self.in_transaction = false;
        Ok(if empty { 0 } else { broker.changes })
    }
}

impl Producer for EmbeddedProducer {
    fn init_transactions(&mut self) -> Result<()> {
        let Some(id) = &self.config.transactional_id else { return self.registration().map(|_| ()) };
        let timeout = self.config.transaction_timeout.map_or(15_000, |t| t.as_millis() as i64);
        let mut broker = self.shared.lock()?;
        let (slot, epoch, left_open) = broker.transactions.init(id, timeout);
        if let Some(open) = left_open {
            broker.end_transaction(open, false);
        }
        self.registration = Some(Registration { slot, epoch });
        self.in_transaction = false;
        Ok(())
    }

    fn begin_transaction(&mut self) -> Result<()> {
        let Registration { slot, epoch } = self.registration()?;
        if self.in_transaction {
            return Err(StreamsError::fatal("a transaction is open already: commit or abort it first"));
        }
        self.shared.lock()?.transactions.check(slot, epoch)?;
        self.in_transaction = true;
        self.unconfirmed_commit = None;
        Ok(())
    }

    fn send(&mut self, record: ProducerRecord) -> Result<()> {
        self.shared.fault(LogCall::Send, false)?;
        let registration = match self.config.transactional_id {
            Some(_) => Some(self.require_transaction()?),
            None => None,
        };
        let now = self.shared.now();
        let mut broker = self.shared.lock()?;
        match registration {
            Some(Registration { slot, epoch }) => {
                broker.transactions.check(slot, epoch)?;
                broker.append(record, now, Some(slot))
            }
            None => {
                broker.append(record, now, None)?;
                if broker.unsaved_records() < UNSAVED_RECORDS_MAX {
                    return Ok(());
                }
                let changes = broker.changes;
                drop(broker);
                self.shared.persist(changes)
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.shared.fault(LogCall::Flush, false)?;
        if self.config.transactional_id.is_some() {
            // Records of an open transaction reach the file with its commit.
            return self.shared.lock().map(|_| ());
        }
        let changes = self.shared.lock()?.changes;
        self.shared.persist(changes)
    }

    fn send_offsets_to_transaction(
        &mut self,
        offsets: &BTreeMap<TopicPartition, OffsetAndMetadata>,
        group: &GroupMetadata,
    ) -> Result<()> {
        self.shared.fault(LogCall::SendOffsets, false)?;
        let Registration { slot, epoch } = self.require_transaction()?;
        let now = self.shared.now();
        let mut broker = self.shared.lock()?;
        broker.expire_transactions(now);
        broker.transactions.check(slot, epoch)?;
        broker.expire_sessions(&group.group_id, now);
        broker.check_member(group)?;
        if !offsets.is_empty() {
            let pending =
                broker.transactions.open(slot, now).offsets.entry(group.group_id.clone()).or_default();
            pending.extend(offsets.iter().map(|(tp, o)| (tp.clone(), o.clone())));
        }
        Ok(())
    }

    fn commit_transaction(&mut self) -> Result<()> {
        self.shared.fault(LogCall::CommitTransaction, false)?;
        let changes = match self.unconfirmed_commit {
            Some(changes) => changes,
            None => self.end(true)?,
        };
        self.unconfirmed_commit = Some(changes);
        self.shared.persist(changes)?;
        self.shared.fault(LogCall::CommitTransaction, true)?;
        self.unconfirmed_commit = None;
        Ok(())
    }

    fn abort_transaction(&mut self) -> Result<()> {
        self.shared.fault(LogCall::AbortTransaction, false)?;
        // Nothing of it was in the file, so there is nothing to wait for.
        self.end(false).map(|_| ())
    }

    fn partition_count(&mut self, topic: &str) -> Result<i32> {
        Ok(self.shared.lock()?.topic(topic)?.partitions.len() as i32)
    }
}
