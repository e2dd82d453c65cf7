//! The embedded log: a real log inside the process, in a SQLite file or in memory.
//!
//! It is the zero-service default of `demo` and `serve`, the test driver's broker and the simulated one; the second
//! adapter behind the ports of [`client`](super), held by the same contract tests as Kafka.
//!
//! | file | what it is |
//! |---|---|
//! | `consumer`, `producer`, `admin` | the three clients |
//! | `broker` | all state behind one lock |
//! | `partition`, `group`, `transaction` | its parts, without locks |
//! | `storage`, `batch` | the file |
//! | `maintain` | retention and compaction, run when called |
//!
//! # Guarantees
//! * When `flush`, `commit_transaction`, `commit` or an admin call has returned, a killed process loses nothing of it.
//! * After a crash the file is at one moment of the log's history: an open transaction was aborted, and no offset is
//!   given twice.
//! * Time comes from the clock of [`EmbeddedOptions`]; nothing here reads another one to decide anything. Only how
//!   long a blocking call sleeps is real time.
//! * One process (and one [`EmbeddedLog::open`]) per file at a time.

mod admin;
mod batch;
mod broker;
mod consumer;
mod group;
mod maintain;
mod partition;
mod producer;
mod storage;
mod transaction;
mod waiter;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

pub use maintain::{Maintained, Maintenance};

use self::{broker::Broker, storage::Storage};
use super::{Admin, ClientSupplier, Consumer, ConsumerConfig, Producer, ProducerConfig};
use crate::streams::{
    error::{Result, StreamsError},
    record::Timestamp,
};

/// Tells the time in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Calls a [`FaultHook`] may make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogCall {
    /// `Consumer::poll`
    Poll,
    /// `Consumer::commit`
    Commit,
    /// `Producer::send`
    Send,
    /// `Producer::flush`
    Flush,
    /// `Producer::send_offsets_to_transaction`
    SendOffsets,
    /// `Producer::commit_transaction`
    CommitTransaction,
    /// `Producer::abort_transaction`
    AbortTransaction,
}

/// Asked before a call is done (`done` false) and, where the outcome can be lost on the way back, after it: an error is
/// given to the caller in place of the call or of its result.
pub type FaultHook = Arc<dyn Fn(LogCall, bool) -> Result<()> + Send + Sync>;

/// What a log is opened with.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// The log's time: timestamps, sessions, transaction timeouts.
    pub clock: Clock,
    /// Memory for records that the file has too; beyond it the oldest are read from the file. A log in memory keeps all.
    pub memory_bytes_max: usize,
    /// How long `committed` waits for an undecided transaction before it answers `Retriable`.
    pub request_timeout: Duration,
    /// Session timeout of members that ask for none.
    pub session_timeout: Duration,
    /// Faults to inject; none outside a simulation.
    pub faults: Option<FaultHook>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        let system_clock = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |d| d.as_millis() as Timestamp)
        };
        Self {
            clock: Arc::new(system_clock),
            memory_bytes_max: 128 << 20,
            request_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(45),
            faults: None,
        }
    }
}

/// A log in this process. Clones are handles of the same log.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Shared>);

impl EmbeddedLog {
    /// Opens or creates the log in a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, EmbeddedOptions::default())
    }

    /// [`open`](Self::open) with other options.
    pub fn open_with(path: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self> {
        let storage = Storage::open(path.as_ref())?;
        let (topics, offsets) = storage.load()?;
        let broker = Mutex::new(Broker::new(true, topics, offsets));
        Ok(Self(Arc::new(Shared { broker, storage: Some(storage), options, failure: OnceLock::new() })))
    }

    /// A log that lives as long as its handles and clients.
    pub fn in_memory() -> Self {
        Self::in_memory_with(EmbeddedOptions::default())
    }

    /// [`in_memory`](Self::in_memory) with other options.
    pub fn in_memory_with(options: EmbeddedOptions) -> Self {
        let broker = Mutex::new(Broker::new(false, Vec::new(), Vec::new()));
        Self(Arc::new(Shared { broker, storage: None, options, failure: OnceLock::new() }))
    }
}

impl ClientSupplier for EmbeddedLog {
    fn consumer(&self, config: &ConsumerConfig) -> Result<Box<dyn Consumer>> {
        Ok(Box::new(consumer::EmbeddedConsumer::new(self.0.clone(), config.clone())))
    }

    fn producer(&self, config: &ProducerConfig) -> Result<Box<dyn Producer>> {
        Ok(Box::new(producer::EmbeddedProducer::new(self.0.clone(), config.clone())))
    }

    fn admin(&self) -> Result<Arc<dyn Admin>> {
        Ok(Arc::new(admin::EmbeddedAdmin::new(self.0.clone())))
    }
}

/// What all clients of one log share. Locks are taken in the order storage, broker.
struct Shared {
    broker: Mutex<Broker>,
    storage: Option<Storage>,
    options: EmbeddedOptions,
    /// Set when the file could not be written: memory is ahead of the file then, so everything stops.
    failure: OnceLock<String>,
}

impl Shared {
    fn now(&self) -> Timestamp {
        (self.options.clock)()
    }

    fn lock(&self) -> Result<MutexGuard<'_, Broker>> {
        if let Some(failure) = self.failure.get() {
            return Err(StreamsError::Fatal(failure.clone()));
        }
        self.broker.lock().map_err(|_| {
            StreamsError::fatal(
                "embedded log: a thread panicked while it changed the log; restart the process",
            )
        })
    }

    fn fault(&self, call: LogCall, done: bool) -> Result<()> {
        self.options.faults.as_ref().map_or(Ok(()), |hook| hook(call, done))
    }

    /// Returns when the file has everything up to this number of changes. Callers that come while another one writes
    /// find their work done with the next writer's: a group commit.
    fn persist(&self, changes: u64) -> Result<()> {
        let Some(storage) = &self.storage else { return Ok(()) };
        let mut writer = storage.writer();
        if writer.durable >= changes {
            return Ok(());
        }
        let (snapshot, reached) = {
            let mut broker = self.lock()?;
            (broker.take_snapshot(), broker.changes)
        };
        if let Err(error) = writer.write(&snapshot) {
            let failure = format!("{error}: free space or repair the disk, then restart the process");
            return Err(StreamsError::Fatal(self.failure.get_or_init(|| failure).clone()));
        }
        writer.durable = reached;
        self.lock()?.evict(self.options.memory_bytes_max);
        Ok(())
    }
}

impl Drop for Shared {
    /// What was sent but never flushed is written too; nobody was promised it, so an error is nobody's.
    fn drop(&mut self) {
        let changes = self.broker.get_mut().unwrap_or_else(PoisonError::into_inner).changes;
        let _ = self.persist(changes);
    }
}
