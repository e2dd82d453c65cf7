//! Issues that wait share a ledger transaction; one that does not wait goes alone.
//!
//! The queue itself is [`Batches`]: while a transaction is under way the queue fills, so batches grow exactly as much
//! as the database is slow. On SQLite one is under way, on Postgres up to a few. What must always hold: every queued
//! issue gets one answer of its own, also when a neighbour is so wrong that the database refuses the statement.

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;

use super::{Issuance, Ledger, Recorded};
use crate::coupon::{
    batching::{Batches, Rules},
    clock::Clock,
    db::{DbError, DbResult},
    metrics::CouponMetrics,
};

/// Most issues of one transaction.
pub const BATCH_ROWS_MAX: usize = 256;
/// Transactions in flight on Postgres.
const IN_FLIGHT_POSTGRES: usize = 3;
/// Issues that are worth a transaction beside one that is under way: a transaction costs as much as some twenty rows.
const BESIDE_MIN: usize = 32;
/// Times a batch that gave way to another transaction is tried.
const ATTEMPTS_MAX: usize = 3;

struct Job {
    issuance: Issuance,
    answer: oneshot::Sender<DbResult<Recorded>>,
}

/// The queue in front of the ledger. Dropping every clone lets what is queued finish.
#[derive(Clone)]
pub struct IssuanceQueue {
    jobs: Batches<Job>,
    metrics: CouponMetrics,
}

/// As many issues wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

impl IssuanceQueue {
    /// An empty queue; record inside a tokio runtime.
    pub fn new(ledger: Ledger, queue_max: usize, clock: Clock, metrics: CouponMetrics) -> Self {
        let in_flight_max = if ledger.db().is_postgres() {
            IN_FLIGHT_POSTGRES.min(ledger.db().config().connections_max as usize).max(1)
        } else {
            1
        };
        let rules = Rules {
            batch_max: BATCH_ROWS_MAX,
            in_flight_max,
            beside_min: BESIDE_MIN,
            // The gate's answers come in batches already.
            gather: Duration::ZERO,
            gather_min: 1,
            queue_max,
        };
        let counted = metrics.clone();
        let run = move |jobs: Vec<Job>| {
            let (ledger, clock, metrics) = (ledger.clone(), clock.clone(), metrics.clone());
            async move { record(&ledger, jobs, &clock, &metrics).await }.boxed()
        };
        Self { jobs: Batches::new(rules, Box::new(run)), metrics: counted }
    }

    /// Records one issuance together with whoever else waits. The outer error means that it was not even queued.
    pub async fn record(&self, issuance: Issuance) -> Result<DbResult<Recorded>, QueueFull> {
        let (answer, answered) = oneshot::channel();
        self.jobs.push(Job { issuance, answer }).map_err(|_| QueueFull)?;
        self.metrics.issue_queue.inc();
        // Every job is answered; without an answer its batch died in the middle.
        let lost = || DbError::Unknown("the ledger's batch ended before it answered".into());
        Ok(answered.await.unwrap_or_else(|_| Err(lost())))
    }
}

async fn record(ledger: &Ledger, jobs: Vec<Job>, clock: &Clock, metrics: &CouponMetrics) {
    metrics.issue_queue.sub(jobs.len() as i64);
    metrics.batch_rows.observe(jobs.len() as f64);
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
                tell(answer, alone.map(|mut recorded| recorded.remove(0)));
            }
        }
        Ok(recorded) => {
            for (recorded, answer) in recorded.into_iter().zip(answers) {
                tell(answer, Ok(recorded));
            }
        }
        Err(error) => {
            for answer in answers {
                tell(answer, Err(error.clone()));
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
fn tell(answer: oneshot::Sender<DbResult<Recorded>>, result: DbResult<Recorded>) {
    let _ = answer.send(result);
}
