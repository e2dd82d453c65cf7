//! How outputs of the runtime and the driver are compared.

use std::collections::BTreeMap;

use bytes::Bytes;
use sluice::streams::record::{Headers, Timestamp, TopicPartition};

/// A record of an output topic.
#[derive(Clone, PartialEq)]
pub struct Output {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub timestamp: Timestamp,
    pub headers: Headers,
}

/// Records by partition, in order.
pub type Outputs = BTreeMap<TopicPartition, Vec<Output>>;

/// How much of an output does not depend on which thread was faster.
#[derive(Clone, Copy)]
pub enum Agree {
    /// Every record of every partition, in order: one task writes the partition, and reads nothing that several write.
    Everything,
    /// The same records in the same partitions, in any order: each depends on one input record only.
    Bag,
    /// As [`Bag`](Self::Bag), headers aside: they are those of whichever record came last.
    Results,
    /// The last value of each key: what comes before depends on how upstream tasks interleave.
    Last,
}

/// What is different first; `None` when the outputs agree.
pub fn difference(agree: Agree, found: &Outputs, expected: &Outputs) -> Option<String> {
    if expected.is_empty() {
        return Some("the driver wrote nothing: the case tests nothing".to_owned());
    }
    if let Agree::Results = agree {
        let bare = |outputs: &Outputs| -> Outputs {
            let bare = |output: &Output| Output { headers: Headers::EMPTY, ..output.clone() };
            outputs.iter().map(|(p, outputs)| (p.clone(), outputs.iter().map(bare).collect())).collect()
        };
        return difference(Agree::Bag, &bare(found), &bare(expected));
    }
    // Where a record without a key goes is the producer's choice.
    let keyless = |outputs: &Outputs| -> Vec<String> {
        let mut keyless: Vec<String> =
            outputs.values().flatten().filter(|output| output.key.is_none()).map(show).collect();
        keyless.sort();
        keyless
    };
    let (without, wanted) = (keyless(found), keyless(expected));
    if !matches!(agree, Agree::Last) && without != wanted {
        return Some(format!("records without a key: found {without:?}, expected {wanted:?}"));
    }
    let keyed = |outputs: &Outputs| -> Outputs {
        let keep = |outputs: &Vec<Output>| -> Vec<Output> {
            outputs.iter().filter(|output| output.key.is_some()).cloned().collect()
        };
        outputs.iter().map(|(partition, outputs)| (partition.clone(), keep(outputs))).collect()
    };
    let (found, expected) = (&keyed(found), &keyed(expected));
    let partitions = |outputs: &Outputs| -> Vec<TopicPartition> {
        outputs
            .iter()
            .filter(|(_, outputs)| !outputs.is_empty())
            .map(|(partition, _)| partition.clone())
            .collect()
    };
    if partitions(found) != partitions(expected) {
        return Some(format!("found {:?}, expected {:?}", partitions(found), partitions(expected)));
    }
    partitions(found).iter().find_map(|partition| {
        let (found, expected) = (&found[partition], &expected[partition]);
        let shown = |outputs: &[Output]| -> Vec<String> { outputs.iter().map(show).collect() };
        let (found, expected) = match agree {
            Agree::Everything => (shown(found), shown(expected)),
            Agree::Bag | Agree::Results => {
                let (mut found, mut expected) = (shown(found), shown(expected));
                found.sort();
                expected.sort();
                (found, expected)
            }
            Agree::Last => (last(found), last(expected)),
        };
        let at = found.iter().zip(&expected).position(|(a, b)| a != b);
        let at = at.or_else(|| (found.len() != expected.len()).then(|| found.len().min(expected.len())))?;
        let nothing = "nothing".to_owned();
        Some(format!(
            "{partition}, record {at} of {} (expected {}): found {}, expected {}",
            found.len(),
            expected.len(),
            found.get(at).unwrap_or(&nothing),
            expected.get(at).unwrap_or(&nothing)
        ))
    })
}

fn show(output: &Output) -> String {
    let bytes =
        |bytes: &Option<Bytes>| bytes.as_ref().map_or("null".to_owned(), |bytes| format!("{bytes:?}"));
    format!("{} = {} @{} {:?}", bytes(&output.key), bytes(&output.value), output.timestamp, output.headers)
}

/// The table a reader of the topic holds.
fn last(outputs: &[Output]) -> Vec<String> {
    let mut table = BTreeMap::new();
    for output in outputs {
        match &output.value {
            Some(value) => drop(table.insert(output.key.clone(), value.clone())),
            None => drop(table.remove(&output.key)),
        }
    }
    table.into_iter().map(|(key, value)| format!("{key:?} = {value:?}")).collect()
}
