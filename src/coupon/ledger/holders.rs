//! Looks at what users hold share a query; one that does not wait goes alone.
//!
//! In front of the ledger's reads as [`IssuanceQueue`](super::IssuanceQueue) is in front of its writes: a crowd that comes
//! again must be told what it holds, and a query for two hundred costs little more than one for a single user. What must
//! always hold: a look is answered by a query that began after it was queued (so a row that was committed before is
//! seen), and a row that cannot be read spoils no neighbour's answer.

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;

use super::{Ledger, QueueFull, StoredUserCoupon};
use crate::coupon::{
    batching::{Batches, Rules},
    clock::Clock,
    db::{DbError, DbResult},
    ids::{CouponId, UserId},
    metrics::CouponMetrics,
};

/// Most looks of one query.
const BATCH_MAX: usize = 256;
/// Queries in flight on either engine; the other connections are left to those who write.
const IN_FLIGHT_MAX: usize = 2;
/// Looks that are worth a query beside one that is under way.
const BESIDE_MIN: usize = 32;

struct Job {
    holder: (CouponId, UserId),
    answer: oneshot::Sender<DbResult<Option<StoredUserCoupon>>>,
}

/// The queue. Dropping every clone lets what is queued finish.
#[derive(Clone)]
pub struct HolderQueue(Batches<Job>);

impl HolderQueue {
    /// An empty queue of at most `queue_max` looks; use inside a tokio runtime.
    pub fn new(ledger: Ledger, queue_max: usize, clock: Clock, metrics: CouponMetrics) -> Self {
        let in_flight_max = IN_FLIGHT_MAX.min(ledger.db().config().connections_max as usize).max(1);
        let rules = Rules {
            batch_max: BATCH_MAX,
            in_flight_max,
            beside_min: BESIDE_MIN,
            // The gate's answers come in batches already.
            gather: Duration::ZERO,
            gather_min: 1,
            queue_max,
        };
        let run = move |jobs: Vec<Job>| {
            let (ledger, clock, metrics) = (ledger.clone(), clock.clone(), metrics.clone());
            async move { answer(&ledger, jobs, &clock, &metrics).await }.boxed()
        };
        Self(Batches::new(rules, Box::new(run)))
    }

    /// What the user holds of the campaign. The outer error means that it was not even queued.
    pub async fn look(
        &self,
        coupon: CouponId,
        user: UserId,
    ) -> Result<DbResult<Option<StoredUserCoupon>>, QueueFull> {
        let (answer, answered) = oneshot::channel();
        self.0.push(Job { holder: (coupon, user), answer }).map_err(|_| QueueFull)?;
        // Every look is answered; without an answer its batch died in the middle.
        let lost = || DbError::Unavailable("the ledger's query ended before it answered".into());
        Ok(answered.await.unwrap_or_else(|_| Err(lost())))
    }
}

async fn answer(ledger: &Ledger, jobs: Vec<Job>, clock: &Clock, metrics: &CouponMetrics) {
    let wanted: Vec<_> = jobs.iter().map(|job| job.holder).collect();
    let timer = metrics.dependency_seconds.with_label_values(&["ledger", "holders"]).start_timer();
    let found = ledger.holders(&wanted, clock.now()).await;
    timer.observe_duration();
    match found {
        Ok(found) => {
            for job in jobs {
                tell(job.answer, Ok(found.get(&job.holder).cloned()));
            }
        }
        // Something is wrong with one row: each alone, so that only its holder is told.
        Err(DbError::Corrupt(_)) if jobs.len() > 1 => {
            for Job { holder, answer } in jobs {
                tell(answer, ledger.user_coupon_of(holder.0, holder.1, clock.now()).await);
            }
        }
        Err(error) => {
            for job in jobs {
                tell(job.answer, Err(error.clone()));
            }
        }
    }
}

/// Who has gone away needs no answer.
fn tell(
    answer: oneshot::Sender<DbResult<Option<StoredUserCoupon>>>,
    found: DbResult<Option<StoredUserCoupon>>,
) {
    let _ = answer.send(found);
}
