//! Natural batching: issues that wait share a ledger transaction; one that does not wait goes alone.
//!
//! A dispatcher first gets a place in flight, then takes whatever is queued *now*, at most [`BATCH_ROWS_MAX`]: no
//! time is added to collect more. While the places are taken the queue fills, so batches grow exactly as much as the
//! database is slow. On SQLite one batch is in flight, on Postgres a few. What must always hold: every queued issue
//! gets one answer of its own, also when a neighbour is so wrong that the database refuses the statement.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Issuance, Ledger, Recorded};
use crate::coupon::{
    clock::Clock,
    db::{DbError, DbResult},
    metrics::CouponMetrics,
};

/// Most issues of one transaction.
pub const BATCH_ROWS_MAX: usize = 256;
/// Transactions in flight on Postgres.
const IN_FLIGHT_POSTGRES: usize = 3;
/// Times a batch that gave way to another transaction is tried.
const ATTEMPTS_MAX: usize = 3;

struct Job {
    issuance: Issuance,
    answer: oneshot::Sender<DbResult<Recorded>>,
}

/// The queue in front of the ledger. Dropping every clone lets what is queued finish.
#[derive(Clone)]
pub struct IssuanceQueue {
    jobs: mpsc::Sender<Job>,
    metrics: CouponMetrics,
}

/// As many issues wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

impl IssuanceQueue {
    /// Starts the dispatcher; call inside a tokio runtime.
    pub fn start(ledger: Ledger, queue_max: usize, clock: Clock, metrics: CouponMetrics) -> Self {
        let (jobs, queue) = mpsc::channel(queue_max);
        tokio::spawn(dispatch(ledger, queue, clock, metrics.clone()));
        Self { jobs, metrics }
    }

    /// Records one issuance together with whoever else waits. The outer error means that it was not even queued.
    pub async fn record(&self, issuance: Issuance) -> Result<DbResult<Recorded>, QueueFull> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job { issuance, answer }).map_err(|_| QueueFull)?;
        self.metrics.issue_queue.inc();
        // The dispatcher answers every job; without an answer it died in the middle of one.
        let lost = || DbError::Unknown("the ledger's dispatcher ended before it answered".into());
        Ok(answered.await.unwrap_or_else(|_| Err(lost())))
    }
}

async fn dispatch(ledger: Ledger, mut queue: mpsc::Receiver<Job>, clock: Clock, metrics: CouponMetrics) {
    let in_flight = if ledger.db().is_postgres() {
        IN_FLIGHT_POSTGRES.min(ledger.db().config().connections_max as usize).max(1)
    } else {
        1
    };
    let places = Arc::new(Semaphore::new(in_flight));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut jobs = Vec::with_capacity(BATCH_ROWS_MAX);
        if queue.recv_many(&mut jobs, BATCH_ROWS_MAX).await == 0 {
            return;
        }
        metrics.issue_queue.sub(jobs.len() as i64);
        metrics.batch_rows.observe(jobs.len() as f64);
        let (ledger, clock, metrics) = (ledger.clone(), clock.clone(), metrics.clone());
        tokio::spawn(async move {
            record(&ledger, jobs, &clock, &metrics).await;
            drop(place);
        });
    }
}

async fn record(ledger: &Ledger, jobs: Vec<Job>, clock: &Clock, metrics: &CouponMetrics) {
    let (batch, answers): (Vec<Issuance>, Vec<_>) =
        jobs.into_iter().map(|job| (job.issuance, job.answer)).unzip();
    let timer = metrics.dependency_seconds.with_label_values(&["ledger", "issue"]).start_timer();
    let result = record_batch(ledger, &batch, clock).await;
    timer.observe_duration();
    match result {
        // The database refused a statement for one row's sake: each alone, so that only that one is refused.
        Err(DbError::Constraint { .. } | DbError::Refused(_) | DbError::Corrupt(_)) if batch.len() > 1 => {
            for (issuance, answer) in batch.iter().zip(answers) {
                let alone = record_batch(ledger, std::slice::from_ref(issuance), clock).await;
                tell(answer, alone.map(|mut recorded| recorded.remove(0)), metrics);
            }
        }
        Ok(recorded) => {
            for (recorded, answer) in recorded.into_iter().zip(answers) {
                tell(answer, Ok(recorded), metrics);
            }
        }
        Err(error) => {
            for answer in answers {
                tell(answer, Err(error.clone()), metrics);
            }
        }
    }
}

async fn record_batch(ledger: &Ledger, batch: &[Issuance], clock: &Clock) -> DbResult<Vec<Recorded>> {
    let mut attempts_left = ATTEMPTS_MAX;
    loop {
        attempts_left -= 1;
        match ledger.record_issuances(batch, clock.now()).await {
            Err(DbError::Conflict(_)) if attempts_left > 0 => {}
            result => return result,
        }
    }
}

/// A caller that has gone away needs no answer: its row stands, and a repeat finds it.
fn tell(answer: oneshot::Sender<DbResult<Recorded>>, result: DbResult<Recorded>, metrics: &CouponMetrics) {
    if let Err(error) = &result {
        let kind = if error.is_unknown() { "unknown" } else { "definite" };
        metrics.dependency_errors.with_label_values(&["ledger", kind]).inc();
    }
    let _ = answer.send(result);
}
