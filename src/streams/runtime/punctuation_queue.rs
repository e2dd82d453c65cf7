//! Schedules of a task and when they fall due (Kafka's `PunctuationQueue` and `PunctuationSchedule`).

use super::java_priority_queue::JavaPriorityQueue;
use crate::streams::{
    processor::{NodeId, ScheduleId},
    record::Timestamp,
};

struct Schedule {
    node: NodeId,
    interval_ms: i64,
    cancelled: bool,
}

/// The schedules of one kind of time.
pub(super) struct PunctuationQueue {
    schedules: Vec<(ScheduleId, Schedule)>,
    due: JavaPriorityQueue<usize>,
}

impl PunctuationQueue {
    pub(super) fn new() -> Self {
        Self { schedules: Vec::new(), due: JavaPriorityQueue::new() }
    }

    pub(super) fn schedule(&mut self, id: ScheduleId, node: NodeId, first: Timestamp, interval_ms: i64) {
        self.due.offer(first, self.schedules.len());
        self.schedules.push((id, Schedule { node, interval_ms: interval_ms.max(1), cancelled: false }));
    }

    pub(super) fn cancel(&mut self, id: ScheduleId) {
        if let Some((_, schedule)) = self.schedules.iter_mut().find(|(known, _)| *known == id) {
            schedule.cancelled = true;
        }
    }

    /// Takes the next schedule due at `now`, with its due time. Give it back with [`reschedule`](Self::reschedule) after the call.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<(Timestamp, usize, ScheduleId, NodeId)> {
        loop {
            if self.due.peek()?.0 > now {
                return None;
            }
            let (at, index) = self.due.poll()?;
            let (id, schedule) = &self.schedules[index];
            if !schedule.cancelled {
                return Some((at, index, *id, schedule.node));
            }
        }
    }

    /// The next call of a schedule that was due `at` and called at `now`: one interval on, missed intervals skipped.
    pub(super) fn reschedule(&mut self, index: usize, at: Timestamp, now: Timestamp) {
        let schedule = &self.schedules[index].1;
        if schedule.cancelled {
            return;
        }
        let interval = schedule.interval_ms;
        let mut next = at.saturating_add(interval);
        if now >= next {
            next = at.saturating_add(((now - at) / interval + 1).saturating_mul(interval));
        }
        self.due.offer(next, index);
    }

    /// When the next schedule is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.peek().map(|(at, _)| at)
    }
}
