//! Natural batching: whatever waits now travels together, and nobody waits for company.
//!
//! Stands in front of a call whose cost is mostly per call and little per job: a script of the gate, a transaction of
//! the ledger. The first job to find nobody under way starts a batch; while it is under way others gather, and leave
//! together with the next. A second batch goes beside the first only when enough wait to be worth a call of their own.
//!
//! What must always hold: each job is in exactly one batch; while one waits, a batch is under way; the queue has a
//! bound beyond which jobs are given back instead of kept; dropping every handle lets what is queued finish.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;

/// How jobs are batched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Most jobs of one batch.
    pub batch_max: usize,
    /// Most batches under way.
    pub in_flight_max: usize,
    /// Jobs that must wait before another batch begins beside one that is under way.
    pub beside_min: usize,
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
}

struct State<J> {
    waiting: VecDeque<J>,
    in_flight: usize,
}

impl<J: Send + 'static> Batches<J> {
    pub(super) fn new(rules: Rules, run: Box<Run<J>>) -> Self {
        let state = Mutex::new(State { waiting: VecDeque::new(), in_flight: 0 });
        Self(Arc::new(Shared { state, rules, run }))
    }

    /// Queues a job, or gives it back when as many wait as may. Call inside a tokio runtime.
    pub(super) fn push(&self, job: J) -> Result<(), J> {
        let mut state = self.0.lock();
        if state.waiting.len() >= self.0.rules.queue_max {
            return Err(job);
        }
        state.waiting.push_back(job);
        let Rules { in_flight_max, beside_min, .. } = self.0.rules;
        let begin = state.in_flight == 0
            || (state.in_flight < in_flight_max && state.waiting.len() >= beside_min.max(1));
        if begin {
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
    while let Some((shared, jobs)) = place.next() {
        (shared.run)(jobs).await;
    }
}

/// A place under way. It is given back when its task ends, also by a panic.
struct Place<J: Send + 'static>(Option<Arc<Shared<J>>>);

impl<J: Send + 'static> Place<J> {
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
            _ => shared.lock().in_flight -= 1,
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

    const RULES: Rules = Rules { batch_max: 4, in_flight_max: 2, beside_min: 3, queue_max: 6 };

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
}
