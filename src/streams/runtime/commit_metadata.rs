//! [`CommitMetadata`]: the clocks committed with an offset and who committed it, as text (Kafka Streams keeps its clocks in the same place).
//!
//! Committed in the transaction that commits the offset, so clocks are rewound exactly when the input is.

use crate::streams::record::Timestamp;

/// What is stored beside a committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommitMetadata {
    /// Commit number of the task: of several partitions' metadata the highest has the newest clocks.
    pub commit: u64,
    /// Largest timestamp taken from the partition, -1 before the first.
    pub partition_time: Timestamp,
    /// What each upstream partition vouched for, in a repartition topic.
    pub vouched: Vec<Timestamp>,
    /// Operator clocks, `<node>/<clock>`.
    pub clocks: Vec<(String, i64)>,
    /// Rows of the task's stores have expired by this watermark, -1 by none.
    pub expired: Timestamp,
    /// The transactional id of the producer that committed; `None` where there are no transactions.
    pub committer: Option<String>,
}

const VERSION: &str = "s1";

impl CommitMetadata {
    /// `s1|commit|time|vouched,…|name=value,…|expired|committer`. Node names contain neither `|`, `,` nor `=` (the topology builder's names
    /// do not). A committer with a `|` in its id is left out.
    pub(super) fn encode(&self) -> String {
        let vouched: Vec<String> = self.vouched.iter().map(ToString::to_string).collect();
        let clocks: Vec<String> = self.clocks.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let committer = self.committer.as_deref().filter(|id| !id.contains('|'));
        format!(
            "{VERSION}|{}|{}|{}|{}|{}|{}",
            self.commit,
            self.partition_time,
            vouched.join(","),
            clocks.join(","),
            self.expired,
            committer.unwrap_or_default()
        )
    }

    /// Reads it again; `None` for text of anybody else (an offset set by a tool).
    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut parts = text.split('|');
        if parts.next()? != VERSION {
            return None;
        }
        let commit = parts.next()?.parse().ok()?;
        let partition_time = parts.next()?.parse().ok()?;
        let list = |text: &str| -> Vec<String> {
            text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let vouched = list(parts.next()?).iter().map(|t| t.parse().ok()).collect::<Option<_>>()?;
        let clocks = list(parts.next()?)
            .iter()
            .map(|clock| {
                let (name, value) = clock.rsplit_once('=')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect::<Option<_>>()?;
        // Earlier versions did not say what follows.
        let expired = parts.next().map_or(Some(-1), |expired| expired.parse().ok())?;
        let committer = parts.next().filter(|id| !id.is_empty()).map(str::to_owned);
        Some(Self { commit, partition_time, vouched, clocks, expired, committer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(expired: Timestamp, committer: Option<&str>) -> CommitMetadata {
        CommitMetadata {
            commit: 3,
            partition_time: -1,
            vouched: vec![5, -1],
            clocks: vec![("join/min_time".into(), i64::MAX), ("w/observed".into(), 7)],
            expired,
            committer: committer.map(str::to_owned),
        }
    }

    #[test]
    fn round_trips_and_refuses_foreign_text() {
        for committer in [None, Some("app-0-1"), Some("a pp,=%-ä\n-0-1")] {
            let metadata = metadata(6, committer);
            assert_eq!(CommitMetadata::decode(&metadata.encode()), Some(metadata));
        }
        assert_eq!(CommitMetadata::decode(""), None);
        assert_eq!(CommitMetadata::decode("AgAAAA=="), None);
    }

    #[test]
    fn a_committer_that_does_not_fit_is_left_out() {
        let text = metadata(6, Some("a|pp-0-1")).encode();
        assert_eq!(CommitMetadata::decode(&text), Some(metadata(6, None)));
    }

    #[test]
    fn what_earlier_versions_did_not_say_is_not_known() {
        let first = "s1|3|-1|5,-1|join/min_time=9223372036854775807,w/observed=7";
        assert_eq!(CommitMetadata::decode(first), Some(metadata(-1, None)));
        assert_eq!(CommitMetadata::decode(&format!("{first}|6")), Some(metadata(6, None)));
    }
}
