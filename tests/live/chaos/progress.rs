//! What a group has committed, moment by moment: how long a partition stood still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::fleet::{Fleet, PARTITIONS};
use crate::topic::Observer;

/// Looks every few milliseconds until told to stop.
pub struct Progress {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Vec<(Instant, Vec<i64>)>>,
}

/// What it saw.
pub struct Seen(Vec<(Instant, Vec<i64>)>);

impl Progress {
    pub fn watch(fleet: &Fleet) -> Self {
        let observer = Observer::new(&fleet.services.kafka, &fleet.app, &fleet.topic("in"), PARTITIONS);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let looking = std::thread::spawn(move || {
            let (mut seen, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(3_600));
            while !stopped.load(Ordering::Relaxed) && Instant::now() < deadline {
                if let Some(committed) = observer.committed() {
                    seen.push((Instant::now(), committed));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        });
        Self { stop, looking }
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        Seen(self.looking.join().expect("it looked"))
    }
}

impl Seen {
    /// The longest time in which nothing was committed of a partition, of those times that touch this stretch. Only of use while
    /// records keep coming.
    pub fn longest_stand(&self, partition: usize, from: Instant, to: Instant) -> Duration {
        let mut longest = Duration::ZERO;
        let mut moved: Option<(Instant, i64)> = None;
        for (at, offsets) in &self.0 {
            let offset = offsets[partition];
            let (since, _) = match moved {
                Some((since, known)) if known == offset => (since, known),
                Some((since, _)) => {
                    if *at >= from && since <= to {
                        longest = longest.max(*at - since);
                    }
                    moved = Some((*at, offset));
                    continue;
                }
                None => *moved.insert((*at, offset)),
            };
            if *at >= from && since <= to {
                longest = longest.max(at.min(&to).saturating_duration_since(since));
            }
        }
        longest
    }

    /// Of the partition that stood longest.
    pub fn longest_stand_of_any(&self, from: Instant, to: Instant) -> Duration {
        (0..PARTITIONS as usize)
            .map(|partition| self.longest_stand(partition, from, to))
            .max()
            .unwrap_or_default()
    }
}
