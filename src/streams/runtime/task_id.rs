//! [`TaskId`]: which sub-topology, which partition.

use std::fmt;

/// Names a task; prints as `0_1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Number of the sub-topology.
    pub subtopology: usize,
    /// Partition read of every topic of it.
    pub partition: i32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.subtopology, self.partition)
    }
}

impl std::str::FromStr for TaskId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('_')
            .and_then(|(subtopology, partition)| {
                Some(Self { subtopology: subtopology.parse().ok()?, partition: partition.parse().ok()? })
            })
            .ok_or_else(|| format!("{text} is not a task id: expected <subtopology>_<partition>"))
    }
}
