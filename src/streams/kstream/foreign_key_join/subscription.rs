//! What the two sides of a foreign-key join send each other, and its bytes (Kafka's `SubscriptionWrapper`, `SubscriptionResponseWrapper`,
//! `CombinedKey`).
//!
//! | what | bytes |
//! |---|---|
//! | subscription | version (high bit: no hash), instruction, 16 bytes of hash, primary key, 4 bytes of partition |
//! | response | version (high bit: no hash), 16 bytes of hash, the foreign row's value (none: no bytes) |
//! | row of the subscription store | 4 bytes length of the foreign key, foreign key, primary key |

use crate::streams::{
    error::ProcessingError,
    record::AnyValue,
    serdes::{AnySerde, Serde},
};

/// A hash of the left row's value: answers to an older value are recognised by it.
pub(super) type ValueHash = [u64; 2];

const VERSION: u8 = 1;
const NO_HASH: u8 = 0x80;

/// What the foreign side is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    /// Forget the row, say nothing.
    DeleteKeyNoPropagate,
    /// Forget the row, answer with no value.
    DeleteKeyAndPropagate,
    /// Remember the row, answer with the foreign value or none.
    PropagateNullIfNoForeignValue,
    /// Remember the row, answer if there is a foreign value.
    PropagateOnlyIfForeignValue,
}

impl Instruction {
    const ALL: [Instruction; 4] = [
        Instruction::DeleteKeyNoPropagate,
        Instruction::DeleteKeyAndPropagate,
        Instruction::PropagateNullIfNoForeignValue,
        Instruction::PropagateOnlyIfForeignValue,
    ];

    /// Whether the foreign side forgets the row.
    pub(super) fn deletes(self) -> bool {
        matches!(self, Instruction::DeleteKeyNoPropagate | Instruction::DeleteKeyAndPropagate)
    }
}

/// A left row's interest in a foreign key.
#[derive(Clone)]
pub(super) struct Subscription {
    pub hash: Option<ValueHash>,
    pub instruction: Instruction,
    pub primary_key: AnyValue,
    /// The left task's partition: where the answer goes.
    pub primary_partition: i32,
}

/// The foreign side's answer.
pub(super) struct Response {
    pub hash: Option<ValueHash>,
    pub foreign_value: Option<AnyValue>,
    /// Where to; not part of the bytes.
    pub primary_partition: Option<i32>,
}

/// A foreign key (none for a left row without one) and a primary key.
pub(super) struct CombinedKey {
    pub foreign_key: Option<AnyValue>,
    pub primary_key: AnyValue,
}

fn damaged(what: &str) -> ProcessingError {
    ProcessingError::new("SerializationException", format!("the {what} of a foreign-key join is damaged"))
}

fn write_head(hash: Option<ValueHash>, instruction: Option<Instruction>, out: &mut Vec<u8>) {
    out.push(if hash.is_some() { VERSION } else { VERSION | NO_HASH });
    if let Some(instruction) = instruction {
        out.push(instruction as u8);
    }
    for word in hash.into_iter().flatten() {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

fn read_hash(has_hash: bool, bytes: &[u8]) -> Option<(Option<ValueHash>, &[u8])> {
    if !has_hash {
        return Some((None, bytes));
    }
    let (first, rest) = bytes.split_first_chunk::<8>()?;
    let (second, rest) = rest.split_first_chunk::<8>()?;
    Some((Some([u64::from_be_bytes(*first), u64::from_be_bytes(*second)]), rest))
}

/// Serde of subscriptions.
pub(super) struct SubscriptionSerde {
    primary_key: AnySerde,
}

impl SubscriptionSerde {
    /// A serde, given that of the primary key.
    pub(super) fn of(primary_key: AnySerde) -> AnySerde {
        AnySerde::new::<Subscription>(Self { primary_key })
    }
}

impl Serde<Subscription> for SubscriptionSerde {
    fn serialize(&self, value: &Subscription, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        write_head(value.hash, Some(value.instruction), out);
        self.primary_key.serialize(&value.primary_key, out)?;
        out.extend_from_slice(&value.primary_partition.to_be_bytes());
        Ok(())
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Subscription, ProcessingError> {
        let broken = || damaged("subscription");
        let [version, instruction, rest @ ..] = bytes else { return Err(broken()) };
        let instruction = *Instruction::ALL.get(usize::from(*instruction)).ok_or_else(broken)?;
        let (hash, rest) = read_hash(version & NO_HASH == 0, rest).ok_or_else(broken)?;
        let (primary_key, partition) = rest.split_last_chunk::<4>().ok_or_else(broken)?;
        Ok(Subscription {
            hash,
            instruction,
            primary_key: self.primary_key.deserialize(primary_key)?,
            primary_partition: i32::from_be_bytes(*partition),
        })
    }
}

/// Serde of responses. A foreign value that serializes to nothing reads as no value, as in Kafka Streams.
pub(super) struct ResponseSerde {
    foreign_value: AnySerde,
}

impl ResponseSerde {
    /// A serde, given that of the foreign values.
    pub(super) fn of(foreign_value: AnySerde) -> AnySerde {
        AnySerde::new::<Response>(Self { foreign_value })
    }
}

impl Serde<Response> for ResponseSerde {
    fn serialize(&self, value: &Response, out: &mut Vec<u8>) -> Result<(), ProcessingError> {
        write_head(value.hash, None, out);
        match &value.foreign_value {
            Some(foreign) => self.foreign_value.serialize(foreign, out),
            None => Ok(()),
        }
    }

    fn deserialize(&self, bytes: &[u8]) -> Result<Response, ProcessingError> {
        let broken = || damaged("response");
        let (version, rest) = bytes.split_first().ok_or_else(broken)?;
        let (hash, rest) = read_hash(version & NO_HASH == 0, rest).ok_or_else(broken)?;
        let foreign_value = if rest.is_empty() { None } else { Some(self.foreign_value.deserialize(rest)?) };
        Ok(Response { hash, foreign_value, primary_partition: None })
    }
}

/// What the rows of one foreign key begin with.
pub(super) fn prefix(foreign_key: &[u8]) -> Vec<u8> {
    let mut bytes = (foreign_key.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(foreign_key);
    bytes
}

/// The primary key's bytes of a row of the subscription store.
pub(super) fn primary_key_of(row: &[u8]) -> Result<&[u8], ProcessingError> {
    let broken = || damaged("subscription store");
    let (length, rest) = row.split_first_chunk::<4>().ok_or_else(broken)?;
    rest.get(u32::from_be_bytes(*length) as usize..).ok_or_else(broken)
}

/// MurmurHash3, x64, 128 bits, with the seed Kafka Streams uses.
pub(super) fn hash128(bytes: &[u8]) -> ValueHash {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    const SEED: u64 = 104_729;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (SEED, SEED);
    let mut blocks = bytes.chunks_exact(16);
    for block in &mut blocks {
        let (k1, k2) = words(block);
        h1 = (h1 ^ mix1(k1)).rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ mix2(k2)).rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = blocks.remainder();
    if !tail.is_empty() {
        let mut padded = [0_u8; 16];
        padded[..tail.len()].copy_from_slice(tail);
        let (k1, k2) = words(&padded);
        h2 ^= mix2(k2);
        h1 ^= mix1(k1);
    }
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = finish(h1);
    h2 = finish(h2);
    h1 = h1.wrapping_add(h2);
    [h1, h2.wrapping_add(h1)]
}

/// Two little-endian words of a block of 16 bytes.
fn words(block: &[u8]) -> (u64, u64) {
    let (first, second) = block.split_at(8);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    (word(first), word(second))
}

fn finish(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::streams::serdes::HasSerde;

    #[test]
    fn subscriptions_and_responses_come_back() {
        let serde = SubscriptionSerde::of(String::serde());
        for hash in [None, Some([1, 2])] {
            let value: AnyValue = Arc::new(Subscription {
                hash,
                instruction: Instruction::PropagateOnlyIfForeignValue,
                primary_key: Arc::new("p".to_owned()),
                primary_partition: 3,
            });
            let back = serde.deserialize(&serde.to_bytes(&value).unwrap()).unwrap();
            let back = back.downcast_ref::<Subscription>().unwrap();
            assert_eq!((back.hash, back.primary_partition), (hash, 3));
            assert_eq!(back.instruction, Instruction::PropagateOnlyIfForeignValue);
            assert_eq!(back.primary_key.downcast_ref::<String>().unwrap(), "p");
        }
        let serde = ResponseSerde::of(String::serde());
        let value: AnyValue = Arc::new(Response {
            hash: Some([3, 4]),
            foreign_value: Some(Arc::new("v".to_owned())),
            primary_partition: None,
        });
        let back = serde.deserialize(&serde.to_bytes(&value).unwrap()).unwrap();
        let back = back.downcast_ref::<Response>().unwrap();
        assert_eq!(back.hash, Some([3, 4]));
        assert!(back.foreign_value.is_some());
        assert!(serde.deserialize(&[]).is_err());
    }

    #[test]
    fn every_byte_counts_in_the_hash() {
        let bytes: Vec<u8> = (0..40).collect();
        for length in 0..40 {
            let mut other = bytes[..length].to_vec();
            assert_ne!(hash128(&bytes[..length]), hash128(&bytes[..length + 1]));
            if let Some(last) = other.last_mut() {
                *last ^= 1;
                assert_ne!(hash128(&bytes[..length]), hash128(&other), "length {length}");
            }
        }
    }

    #[test]
    fn the_primary_key_follows_the_foreign_one() {
        let mut row = prefix(b"fk");
        row.extend_from_slice(b"pk");
        assert_eq!(primary_key_of(&row).unwrap(), b"pk");
        assert!(primary_key_of(&row[..5]).is_err());
    }
}
