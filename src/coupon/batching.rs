//! Natural batching: whatever waits now travels together.
//!
//! Stands in front of a call whose cost is mostly per call and little per job: a script of the gate, a transaction of
//! the ledger. The first job to find nobody under way starts a batch; while it is under way others gather, and leave
//! together with the next. A second batch goes beside the first only when enough wait to be worth a call of their own.
//!
//! Calls that are quick let nobody gather, and then every job pays for a call. Where that matters a call leaves no
//! sooner than [`Rules::gather`] after the one before, unless enough wait. A job that comes after a pause never waits for
//! company, nor does one in a crowd.
//!
//! What must always hold: each job is in exactly one batch; while one waits, a batch is under way or leaves within
//! [`Rules::gather`]; the queue has a bound beyond which jobs are given back instead of kept; dropping every handle lets
//! what is queued finish.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{sync::Notify, time::Instant};

/// How jobs are batched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Most jobs of one batch.
    pub batch_max: usize,
    /// Most batches under way.
    pub in_flight_max: usize,
    /// Jobs that must wait before another batch begins beside one that is under way.
    pub beside_min: usize,
    /// Least time from the beginning of one batch to that of the next, while fewer than `gather_min` wait; timers have
    /// milliseconds.
    pub gather: Duration,
    /// Jobs that do not wait for more.
    pub gather_min: usize,
    /// Most jobs waiting.
    pub queue_max: usize,
}

/// Does a batch of jobs. It answers each of them itself; a job that is dropped counts as not answered.
pub(super) type Run<J> = dyn Fn(Vec<J>) -> BoxFuture<'static, ()> + Send + Sync;

/// The queue in front of a call. Clones share it.
pub(super) struct Batches<J>(Arc<Shared<J>>);

impl<J> Clone for Batches<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<J> {
    state: Mutex<State<J>>,
    rules: Rules,
    run: Box<Run<J>>,
    /// Rung for the place that gathers when enough wait.
    enough: Notify,
}

struct State<J> {
    waiting: VecDeque<J>,
    /// Places: batches under way, and the one that gathers.
    in_flight: usize,
    /// The only place there is lets jobs gather.
    gathering: bool,
    /// When the youngest batch began.
    began_at: Option<Instant>,
}

impl<J: Send + 'static> Batches<J> {
    pub(super) fn new(rules: Rules, run: Box<Run<J>>) -> Self {
        let state = State { waiting: VecDeque::new(), in_flight: 0, gathering: false, began_at: None };
        Self(Arc::new(Shared { state: Mutex::new(state), rules, run, enough: Notify::new() }))
    }

    /// Queues a job, or gives it back when as many wait as may. Call inside a tokio runtime.
    pub(super) fn push(&self, job: J) -> Result<(), J> {
        let mut state = self.0.lock();
        if state.waiting.len() >= self.0.rules.queue_max {
            return Err(job);
        }
        state.waiting.push_back(job);
        let Rules { in_flight_max, beside_min, gather_min, .. } = self.0.rules;
        let waiting = state.waiting.len();
        if state.gathering {
            if waiting >= gather_min {
                self.0.enough.notify_one();
            }
        } else if state.in_flight == 0 || (state.in_flight < in_flight_max && waiting >= beside_min.max(1)) {
            state.in_flight += 1;
            drop(state);
            tokio::spawn(run_batches(Place(Some(self.0.clone()))));
        }
        Ok(())
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Batch after batch, until nobody waits.
async fn run_batches<J: Send + 'static>(mut place: Place<J>) {
    // Tasks that are ready now queue their jobs first: no time passes, and one call serves them all.
    tokio::task::yield_now().await;
    loop {
        place.gather().await;
        let Some((shared, jobs)) = place.next() else { return };
        (shared.run)(jobs).await;
    }
}

/// A place under way. It is given back when its task ends, also by a panic.
struct Place<J: Send + 'static>(Option<Arc<Shared<J>>>);

impl<J: Send + 'static> Place<J> {
    /// Waits until the next batch may leave: not at all, when nobody waits, enough do, or the last began long ago.
    async fn gather(&self) {
        let Some(shared) = &self.0 else { return };
        let until = {
            let mut state = shared.lock();
            let until = state.began_at.map(|at| at + shared.rules.gather);
            let few = (1..shared.rules.gather_min).contains(&state.waiting.len());
            let Some(until) = until.filter(|until| few && state.in_flight == 1 && *until > Instant::now())
            else {
                return;
            };
            state.gathering = true;
            until
        };
        // A ring left over from before only lets a batch leave early.
        let _ = tokio::time::timeout_at(until, shared.enough.notified()).await;
        shared.lock().gathering = false;
    }

    /// The next batch; none gives the place back, in the same breath as it sees that nobody is left waiting for it.
    fn next(&mut self) -> Option<(Arc<Shared<J>>, Vec<J>)> {
        let shared = self.0.clone()?;
        let mut state = shared.lock();
        // The last one under way serves everybody; others stay only for a batch that is worth a call.
        let enough = if state.in_flight > 1 { shared.rules.beside_min.max(1) } else { 1 };
        if state.waiting.len() < enough {
            state.in_flight -= 1;
            self.0 = None;
            return None;
        }
        let count = state.waiting.len().min(shared.rules.batch_max);
        let jobs = state.waiting.drain(..count).collect();
        state.began_at = Some(Instant::now());
        drop(state);
        Some((shared, jobs))
    }
}

impl<J: Send + 'static> Drop for Place<J> {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        // Its batch panicked, or the runtime is ending. In the first case whoever waits must still be served.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if std::thread::panicking() => {
                drop(runtime.spawn(run_batches(Place(Some(shared)))));
            }
            _ => {
                let mut state = shared.lock();
                state.in_flight -= 1;
                state.gathering = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    /// A call that reports each batch and then waits for a permit.
    fn gated(rules: Rules) -> (Batches<u32>, mpsc::UnboundedReceiver<Vec<u32>>, Arc<Semaphore>) {
        let (seen, batches) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(0));
        let gate = permits.clone();
        let run = move |jobs: Vec<u32>| {
            let (seen, gate) = (seen.clone(), gate.clone());
            async move {
                let panics = jobs.contains(&666);
                seen.send(jobs).unwrap();
                gate.acquire().await.unwrap().forget();
                assert!(!panics, "asked for");
            }
            .boxed()
        };
        (Batches::new(rules, Box::new(run)), batches, permits)
    }

    const RULES: Rules = Rules {
        batch_max: 4,
        in_flight_max: 2,
        beside_min: 3,
        gather: Duration::ZERO,
        gather_min: 2,
        queue_max: 6,
    };

    #[tokio::test]
    async fn those_who_are_ready_together_leave_together() {
        let (queue, mut batches, permits) = gated(RULES);
        permits.add_permits(10);
        for job in 1..=3 {
            queue.push(job).unwrap();
        }
        assert_eq!(batches.recv().await, Some(vec![1, 2, 3]));
        queue.push(4).unwrap();
        assert_eq!(batches.recv().await, Some(vec![4]), "the place was given back");
    }

    #[tokio::test]
    async fn a_second_batch_begins_only_when_it_is_worth_a_call() {
        let (queue, mut batches, permits) = gated(RULES);
        queue.push(1).unwrap();
        assert_eq!(batches.recv().await, Some(vec![1]));
        queue.push(2).unwrap();
        queue.push(3).unwrap();
        tokio::task::yield_now().await;
        assert!(batches.try_recv().is_err(), "two wait for the one under way");
        queue.push(4).unwrap();
        assert_eq!(batches.recv().await, Some(vec![2, 3, 4]), "three are worth it");
        for job in 5..=10 {
            queue.push(job).unwrap();
        }
        assert_eq!(queue.push(11), Err(11), "the queue has a bound, and gives back what is beyond it");
        permits.add_permits(1);
        assert_eq!(batches.recv().await, Some(vec![5, 6, 7, 8]), "a batch has a bound");
        drop(queue);
        permits.add_permits(10);
        assert_eq!(batches.recv().await, Some(vec![9, 10]), "what is queued finishes without any handle");
        assert_eq!(batches.recv().await, None);
    }

    #[tokio::test]
    async fn a_batch_that_panics_gives_its_place_back() {
        let (queue, mut batches, permits) = gated(Rules { in_flight_max: 1, ..RULES });
        permits.add_permits(10);
        queue.push(666).unwrap();
        assert_eq!(batches.recv().await, Some(vec![666]));
        queue.push(7).unwrap();
        assert_eq!(batches.recv().await, Some(vec![7]), "who waited behind the panic is served");
        queue.push(8).unwrap();
        assert_eq!(batches.recv().await, Some(vec![8]));
    }

    #[tokio::test]
    async fn those_who_come_soon_after_a_call_gather_until_enough_wait() {
        let (queue, mut batches, permits) = gated(Rules { gather: Duration::from_secs(3_600), ..RULES });
        permits.add_permits(10);
        queue.push(1).unwrap();
        assert_eq!(batches.recv().await, Some(vec![1]), "the first does not wait for company");
        queue.push(2).unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(batches.try_recv().is_err(), "the hour is not over");
        queue.push(3).unwrap();
        assert_eq!(batches.recv().await, Some(vec![2, 3]), "two do not wait for a third");
        queue.push(5).unwrap();
        drop(queue);
        tokio::task::yield_now().await;
        assert!(batches.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_time_to_gather_ends() {
        let gather = Duration::from_millis(20);
        let (queue, mut batches, permits) = gated(Rules { gather, ..RULES });
        permits.add_permits(10);
        queue.push(1).unwrap();
        assert_eq!(batches.recv().await, Some(vec![1]));
        let first = Instant::now();
        queue.push(2).unwrap();
        assert_eq!(batches.recv().await, Some(vec![2]));
        assert!(first.elapsed() >= gather - Duration::from_millis(2), "it left early: {:?}", first.elapsed());
    }

    #[tokio::test]
    async fn a_second_call_goes_beside_a_slow_one_though_jobs_gather() {
        let (queue, mut batches, permits) = gated(Rules { gather: Duration::from_secs(3_600), ..RULES });
        queue.push(1).unwrap();
        assert_eq!(batches.recv().await, Some(vec![1]));
        for job in 2..=4 {
            queue.push(job).unwrap();
        }
        assert_eq!(batches.recv().await, Some(vec![2, 3, 4]), "the first is still under way");
        permits.add_permits(10);
    }
}
