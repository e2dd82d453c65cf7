//! The relay: carries committed events from the outbox to the log.
//!
//! Behind the ledger's transactions, beside the requests: a log that is down for an hour only lets the outbox grow.
//! What must always hold: an event may be sent again, is never lost, and never overtakes another of its user; a row
//! the log refuses for good is parked and holds back its own user's later events, nobody else's.
//!
//! One step, [`Relay::relay_batch`]: keep the leases, read what is unsent, send it, wait for the acknowledgements,
//! mark. [`Relay::run`] calls it when a commit of this process rings, and by timer.

mod metrics;
pub mod progress;
mod send;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub use metrics::RelayMetrics;
use progress::Announcer;
use send::{Sender, Sent};

use super::{
    clock::{Clock, UtcMicros},
    db::{Db, DbError},
    failpoint,
    ledger::Ledger,
    outbox::{self, Lease, UnsentRow},
};
use crate::streams::{client::ClientSupplier, error::StreamsError};

/// How the relay works.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// How often the outbox is looked at when no commit rings.
    pub interval: Duration,
    /// Most rows of one step.
    pub batch_rows_max: usize,
    /// Age at which a lease that was not renewed is free for others.
    pub lease: Duration,
    /// How long sent rows are kept; zero deletes them as soon as they are acknowledged, which saves a write a row.
    pub keep_sent: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(50),
            batch_rows_max: 1_000,
            lease: Duration::from_secs(10),
            keep_sent: Duration::ZERO,
        }
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Every lane is somebody else's.
    NoLane,
    /// Nothing to send.
    Idle,
    /// Rows left the outbox.
    Moved {
        /// Rows acknowledged and marked.
        sent: usize,
        /// Rows parked.
        parked: usize,
        /// There was at least one more batch to read.
        more: bool,
    },
}

/// Why a step did not end well; the next one may.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The ledger's side.
    #[error(transparent)]
    Ledger(#[from] DbError),
    /// The log's side.
    #[error("the log: {0}")]
    Log(#[from] StreamsError),
}

/// Rest between two steps that found little, so that a trickle of commits is carried in batches: a step costs ledger and
/// log as much as some fifty events.
const REST: Duration = Duration::from_millis(40);
/// Longest pause after a failed step.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How often the backlog is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// Sent rows deleted at once.
const DELETE_ROWS_MAX: usize = 10_000;

/// One relay. Several may run, in one process or many: each lane is carried by one of them.
pub struct Relay {
    db: Db,
    wake: Arc<Notify>,
    /// Away while a step sends.
    sender: Option<Sender>,
    supplier: Arc<dyn ClientSupplier>,
    clock: Clock,
    config: RelayConfig,
    metrics: RelayMetrics,
    /// This relay's name in the leases.
    holder: String,
    leases: Vec<Lease>,
    /// When the leases were last renewed, before the ledger was asked.
    leased_at: Option<Instant>,
    counted_at: Option<Instant>,
    /// Away while it speaks.
    announcer: Option<Announcer>,
}

impl Relay {
    /// A relay from this ledger to this log. Nothing is connected yet.
    pub fn new(
        ledger: &Ledger,
        supplier: Arc<dyn ClientSupplier>,
        clock: Clock,
        config: RelayConfig,
    ) -> Self {
        Self {
            db: ledger.db().clone(),
            wake: ledger.outbox_written(),
            sender: Some(Sender::new(supplier.clone())),
            supplier,
            clock,
            config,
            metrics: RelayMetrics::new(),
            holder: uuid::Uuid::new_v4().to_string(),
            leases: Vec::new(),
            leased_at: None,
            counted_at: None,
            announcer: None,
        }
    }

    /// The counters and gauges, to be registered where metrics are served.
    pub fn metrics(&self) -> &RelayMetrics {
        &self.metrics
    }

    /// This relay's name in the leases, see [`outbox::release_leases`].
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Carries events until `stop`, then as far as one more round takes it, and gives the lanes back.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let rest = REST.min(self.config.interval);
        let mut backoff = rest;
        let mut last_failure = String::new();
        loop {
            let pause = match self.relay_batch().await {
                Ok(Step::Moved { more: true, .. }) => Duration::ZERO,
                Ok(_) => {
                    last_failure.clear();
                    backoff = rest;
                    rest
                }
                Err(error) => {
                    // Said once per cause: a log that is down fails every step.
                    let words = error.to_string();
                    if words != last_failure {
                        tracing::warn!(%error, "the relay cannot carry events; they wait in the outbox");
                        last_failure = words;
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    backoff
                }
            };
            let failing = backoff > rest;
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(pause) => {}
            }
            if pause.is_zero() || failing {
                continue;
            }
            tokio::select! {
                () = &mut stop => break,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(self.config.interval - rest) => {}
            }
        }
        while let Ok(Step::Moved { more: true, .. }) = self.relay_batch().await {}
        if let Err(error) = outbox::release_leases(&self.db, &self.holder).await {
            tracing::warn!(%error, "the relay's lanes become free when their lease runs out");
        }
    }

    /// One step.
    ///
    /// 1. Keep the leases (a third of their time before they run out), or take what is free.
    /// 2. Read what is unsent in these lanes, oldest first.
    /// 3. Send, a user's next event only after the one before is acknowledged.
    /// 4. Mark what is acknowledged and park what is refused, both only in lanes still held.
    pub async fn relay_batch(&mut self) -> Result<Step, RelayError> {
        let step = self.step().await;
        if step.is_err() {
            self.metrics.failed.inc();
        }
        let counted = self.count().await;
        let step = step?;
        // A log that did not take the events is not told how far they are.
        if let Some(up_to) = counted? {
            self.announce(up_to).await;
        }
        Ok(step)
    }

    async fn step(&mut self) -> Result<Step, RelayError> {
        // 1
        self.keep_leases().await?;
        if self.leases.is_empty() {
            return Ok(Step::NoLane);
        }
        // 2
        let lanes: Vec<i64> = self.leases.iter().map(|lease| lease.lane).collect();
        let rows = outbox::read_unsent(&self.db, &lanes, self.config.batch_rows_max).await?;
        if rows.is_empty() {
            return Ok(Step::Idle);
        }
        let timer = self.metrics.step_seconds.start_timer();
        let more = rows.len() == self.config.batch_rows_max;
        // 3
        let (rows, sent) = self.send(rows).await?;
        // 4
        failpoint::hit("relay_before_mark");
        let parked = self.park(&rows, &sent).await?;
        let marked = self.mark(&sent.acknowledged).await?;
        timer.observe_duration();
        match sent.stopped {
            Some(error) => Err(error.into()),
            None => Ok(Step::Moved { sent: marked, parked, more }),
        }
    }

    async fn keep_leases(&mut self) -> Result<(), RelayError> {
        let due = self.leased_at.is_none_or(|at| at.elapsed() >= self.config.lease / 3);
        // Without a lane, look for one now and then only.
        if !due {
            return Ok(());
        }
        let asked_at = Instant::now();
        let ttl_micros = i64::try_from(self.config.lease.as_micros()).unwrap_or(i64::MAX / 4);
        self.leases = outbox::acquire_leases(&self.db, &self.holder, ttl_micros, self.clock.now()).await?;
        self.leased_at = Some(asked_at);
        self.metrics.lanes.set(self.leases.len() as i64);
        Ok(())
    }

    /// Sends on a thread that may block.
    async fn send(&mut self, rows: Vec<UnsentRow>) -> Result<(Vec<UnsentRow>, Sent), RelayError> {
        let mut sender = self.sender.take().unwrap_or_else(|| Sender::new(self.supplier.clone()));
        let until = self.leased_at.unwrap_or_else(Instant::now) + self.config.lease;
        let sending = tokio::task::spawn_blocking(move || {
            let sent = sender.send(&rows, until);
            (sender, rows, sent)
        });
        let (sender, rows, sent) = sending
            .await
            .map_err(|error| StreamsError::fatal(format!("the sending thread failed: {error}")))?;
        self.sender = Some(sender);
        Ok((rows, sent))
    }

    async fn park(&mut self, rows: &[UnsentRow], sent: &Sent) -> Result<usize, RelayError> {
        let mut parked = 0;
        for (id, reason) in &sent.refused {
            let lane = rows.iter().find(|row| row.id == *id).map(|row| row.row.lane);
            let Some(lease) = self.leases.iter().find(|lease| Some(lease.lane) == lane) else { continue };
            if outbox::park(&self.db, *id, *lease, reason, self.clock.now()).await? {
                tracing::error!(
                    row = id,
                    reason,
                    "the log refuses an event for good; it is parked, see the outbox"
                );
                parked += 1;
            }
        }
        Ok(parked)
    }

    async fn mark(&mut self, acknowledged: &[i64]) -> Result<usize, RelayError> {
        if acknowledged.is_empty() {
            return Ok(0);
        }
        self.metrics.sent.inc_by(acknowledged.len() as u64);
        let marked = if self.config.keep_sent.is_zero() {
            outbox::delete_acknowledged(&self.db, acknowledged, &self.leases).await
        } else {
            outbox::mark_sent(&self.db, acknowledged, &self.leases, self.clock.now()).await
        };
        let count = marked.as_ref().map_or(0, |rows| *rows as usize).min(acknowledged.len());
        self.metrics.unmarked.inc_by((acknowledged.len() - count) as u64);
        marked?;
        Ok(count)
    }

    /// Now and then: the gauges, and old sent rows. Returns the moment up to which everything is in the log: that of the
    /// oldest event still to be sent, or, when there is none, that at which the outbox was asked.
    async fn count(&mut self) -> Result<Option<UtcMicros>, RelayError> {
        if self.counted_at.is_some_and(|at| at.elapsed() < COUNT_INTERVAL) {
            return Ok(None);
        }
        self.counted_at = Some(Instant::now());
        let now = self.clock.now();
        let backlog = outbox::backlog(&self.db).await?;
        let age = backlog.oldest_at.map_or(0, |at| (now.micros() - at.micros()).max(0));
        self.metrics.backlog.set(backlog.unsent);
        self.metrics.parked.set(backlog.parked);
        self.metrics.oldest_unsent_seconds.set(age as f64 / 1e6);
        if !self.config.keep_sent.is_zero() {
            let keep = i64::try_from(self.config.keep_sent.as_micros()).unwrap_or(i64::MAX);
            outbox::delete_sent(&self.db, now.plus_micros(-keep), DELETE_ROWS_MAX).await?;
        }
        Ok(Some(backlog.oldest_sendable_at.map_or(now, |at| at.min(now))))
    }

    /// Says in the log how far the events are, see [`progress`]. Failing only delays readers.
    async fn announce(&mut self, up_to: UtcMicros) {
        let mut announcer = self.announcer.take().unwrap_or_default();
        let supplier = self.supplier.clone();
        let speaking = tokio::task::spawn_blocking(move || {
            let said = announcer.announce(&*supplier, up_to);
            (announcer, said)
        });
        match speaking.await {
            Ok((announcer, said)) => {
                self.announcer = Some(announcer);
                match said {
                    Ok(()) => self.metrics.progress_seconds.set(up_to.micros() as f64 / 1e6),
                    Err(error) => tracing::debug!(%error, "how far the relay is could not be said"),
                }
            }
            Err(error) => tracing::error!(%error, "the announcing thread failed"),
        }
    }
}
