//! Claims of the gate that wait now travel together: one script call for thirty-two costs Redis about what three
//! single ones do.
//!
//! It stands between a gate's callers and a call that decides several claims of one campaign at once; the queue itself
//! is [`Batches`]. What must always hold: answers reach their own claimants, and beyond the queue's bound claims are
//! refused instead of kept waiting.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{GateError, Outcome};
use crate::coupon::batching::{Batches, Rules};
use crate::coupon::ids::{CouponId, UserId};

/// Most claims of one batch: about half a millisecond of Redis.
const BATCH_MAX: usize = 256;

/// Most claims waiting; about a tenth of a second of them.
const QUEUE_MAX: usize = 32_768;

/// Claims that are worth a call beside one that is under way.
const BESIDE_MIN: usize = 16;

/// Claims that leave without waiting for more: most of what sharing saves is saved by then.
const GATHER_MIN: usize = 4;

/// What a batch decides about: a user and the token.
pub(super) type Claim = (UserId, Uuid);

/// Decides a batch: one answer per claim, in the order of the claims.
pub(super) type Decide<A> =
    dyn Fn(CouponId, Vec<Claim>) -> BoxFuture<'static, Result<Vec<A>, GateError>> + Send + Sync;

/// The queue in front of a deciding call.
pub(super) struct Batcher<A> {
    queue: Batches<Waiting<A>>,
}

struct Waiting<A> {
    coupon: CouponId,
    claim: Claim,
    answer: oneshot::Sender<Result<A, GateError>>,
}

impl<A: Send + 'static> Batcher<A> {
    /// A queue that sends at most `in_flight_max` batches at a time, `gather` apart while few wait.
    pub(super) fn new(in_flight_max: usize, gather: Duration, decide: Arc<Decide<A>>) -> Self {
        let rules = Rules {
            batch_max: BATCH_MAX,
            in_flight_max,
            beside_min: BESIDE_MIN,
            gather,
            gather_min: GATHER_MIN,
            queue_max: QUEUE_MAX,
        };
        let run = move |waiting: Vec<Waiting<A>>| answer_all(decide.clone(), waiting).boxed();
        Self { queue: Batches::new(rules, Box::new(run)) }
    }

    /// One claim's answer.
    pub(super) async fn decide(&self, coupon: CouponId, claim: Claim) -> Result<A, GateError> {
        let (answer, answered) = oneshot::channel();
        self.queue.push(Waiting { coupon, claim, answer }).map_err(|_| GateError::Unavailable {
            outcome: Outcome::NotDone,
            reason: format!("{QUEUE_MAX} claims are waiting for the gate already"),
        })?;
        answered.await.unwrap_or_else(|_| {
            // The batch ended under way, because the runtime is shutting down.
            Err(GateError::Unavailable {
                outcome: Outcome::Unknown,
                reason: "the process is stopping".into(),
            })
        })
    }
}

async fn answer_all<A: Send + 'static>(decide: Arc<Decide<A>>, waiting: Vec<Waiting<A>>) {
    let mut batches = by_coupon(waiting);
    match (batches.pop(), batches.is_empty()) {
        (Some((coupon, claims)), true) => answer_batch(&*decide, coupon, claims).await,
        (last, _) => {
            let batches = batches.into_iter().chain(last);
            drop(join_all(batches.map(|(coupon, claims)| answer_batch(&*decide, coupon, claims))).await);
        }
    }
}

/// Splits by campaign and keeps the order of arrival inside each. Nearly always there is one campaign, so a search
/// through the few found so far is cheaper than a map.
fn by_coupon<A>(waiting: Vec<Waiting<A>>) -> Vec<(CouponId, Vec<Waiting<A>>)> {
    let mut batches: Vec<(CouponId, Vec<Waiting<A>>)> = Vec::new();
    for claim in waiting {
        match batches.iter_mut().find(|(coupon, _)| *coupon == claim.coupon) {
            Some((_, claims)) => claims.push(claim),
            None => batches.push((claim.coupon, vec![claim])),
        }
    }
    batches
}

async fn answer_batch<A>(decide: &Decide<A>, coupon: CouponId, waiting: Vec<Waiting<A>>) {
    let claims: Vec<Claim> = waiting.iter().map(|waiting| waiting.claim).collect();
    let expected = claims.len();
    let answers = decide(coupon, claims).await.and_then(|answers| match answers.len() == expected {
        true => Ok(answers),
        false => Err(GateError::Unavailable {
            outcome: Outcome::Unknown,
            reason: format!("{} answers came for {expected} claims", answers.len()),
        }),
    });
    // A claimant that stopped waiting has dropped its end; its seat is pending and the sweeper's.
    match answers {
        Ok(answers) => {
            for (waiting, answer) in waiting.into_iter().zip(answers) {
                let _ = waiting.answer.send(Ok(answer));
            }
        }
        Err(error) => {
            for waiting in waiting {
                let _ = waiting.answer.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::join;
    use tokio::sync::Semaphore;

    use super::*;

    fn coupon(id: i64) -> CouponId {
        CouponId::new(id).unwrap()
    }

    fn claim(id: i64) -> Claim {
        (UserId::new(id).unwrap(), Uuid::nil())
    }

    /// A decision that answers each claim by its user's id, after a permit; and the batches it saw.
    #[derive(Default)]
    struct Seen {
        batches: Mutex<Vec<(i64, Vec<i64>)>>,
    }

    fn gated(seen: Arc<Seen>, permits: Arc<Semaphore>) -> Arc<Decide<i64>> {
        Arc::new(move |coupon, claims| {
            let users: Vec<i64> = claims.iter().map(|(user, _)| user.get()).collect();
            seen.batches.lock().unwrap().push((coupon.get(), users.clone()));
            let permits = permits.clone();
            async move {
                permits.acquire().await.unwrap().forget();
                if users.contains(&666) {
                    return Err(GateError::Refused("666".into()));
                }
                Ok(users)
            }
            .boxed()
        })
    }

    #[tokio::test]
    async fn the_first_leaves_alone_and_those_who_gather_leave_together() {
        let (seen, permits) = (Arc::new(Seen::default()), Arc::new(Semaphore::new(0)));
        let batcher = Arc::new(Batcher::new(1, Duration::ZERO, gated(seen.clone(), permits.clone())));
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.decide(coupon(1), claim(1)).await }
        });
        while seen.batches.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let others = join_all((2..=5).map(|id| batcher.decide(coupon(1 + id % 2), claim(id))));
        let release = async { permits.add_permits(10) };
        let (answers, ()) = join(others, release).await;
        assert_eq!(first.await.unwrap(), Ok(1));
        assert_eq!(answers, (2..=5).map(Ok).collect::<Vec<_>>(), "each got its own answer");
        assert_eq!(*seen.batches.lock().unwrap(), [(1, vec![1]), (1, vec![2, 4]), (2, vec![3, 5])]);
    }

    #[tokio::test]
    async fn an_error_reaches_everybody_of_its_batch_only() {
        let (seen, permits) = (Arc::new(Seen::default()), Arc::new(Semaphore::new(10)));
        let batcher = Batcher::new(1, Duration::ZERO, gated(seen, permits));
        let claims = [(1, 666), (1, 7), (2, 8)];
        let answers =
            join_all(claims.map(|(campaign, id)| batcher.decide(coupon(campaign), claim(id)))).await;
        assert_eq!(answers[0], Err(GateError::Refused("666".into())));
        assert_eq!(answers[1], Err(GateError::Refused("666".into())));
        assert_eq!(answers[2], Ok(8));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_definitely() {
        let (seen, permits) = (Arc::new(Seen::default()), Arc::new(Semaphore::new(0)));
        let batcher = Batcher::new(1, Duration::ZERO, gated(seen, permits.clone()));
        let crowd = (0..QUEUE_MAX as i64 + 2 * BATCH_MAX as i64)
            .map(|id| batcher.decide(coupon(1), claim(id + 1000)));
        let crowd = join_all(crowd);
        let release = async { permits.add_permits(1_000) };
        let (answers, ()) = join(crowd, release).await;
        let refused = answers.iter().filter(|answer| answer.is_err()).count();
        assert!(refused > 0, "the queue has a bound");
        assert!(
            answers.iter().filter_map(|answer| answer.as_ref().err()).all(|error| !error.outcome_unknown())
        );
    }
}
