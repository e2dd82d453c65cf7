//! How a table's change travels through a repartition topic (Kafka's `ChangedSerializer`, KIP-904): new and old value and a
//! flag byte at the end that says which are there.
//!
//! | flag | bytes before it |
//! |---|---|
//! | 0 | old |
//! | 1 | new |
//! | 2 | length of new (zigzag varint), new, old |

use std::sync::Arc;

use crate::streams::{
    error::ProcessingError,
    serdes::AnySerde,
    topology::{DecodedRecord, EncodedRecord, RecordDecoder, RecordEncoder},
};

/// Writes changes.
pub(crate) fn change_encoder(key: AnySerde, value: AnySerde) -> RecordEncoder {
    Arc::new(move |record| {
        let key = record.key.as_ref().map(|k| key.to_bytes(k)).transpose()?;
        let new = record.value.as_ref().map(|v| value.to_bytes(v)).transpose()?;
        let old = record.old.as_ref().map(|v| value.to_bytes(v)).transpose()?;
        let bytes = match (new, old) {
            (Some(new), Some(old)) => {
                let mut bytes = Vec::with_capacity(new.len() + old.len() + 6);
                write_varint(new.len(), &mut bytes);
                bytes.extend(new);
                bytes.extend(old);
                bytes.push(2);
                bytes
            }
            (Some(mut new), None) => {
                new.push(1);
                new
            }
            (None, Some(mut old)) => {
                old.push(0);
                old
            }
            (None, None) => {
                return Err(ProcessingError::new(
                    "StreamsException",
                    "a change has neither an old nor a new value: nothing to repartition",
                ));
            }
        };
        Ok(EncodedRecord { key, value: Some(bytes) })
    })
}

/// Reads changes.
pub(crate) fn change_decoder(key: AnySerde, value: AnySerde) -> RecordDecoder {
    Arc::new(move |record| {
        let key = record.key.as_deref().map(|bytes| key.deserialize(bytes)).transpose()?;
        let broken = || ProcessingError::new("StreamsException", "this is not a table's change");
        let bytes = record.value.as_deref().ok_or_else(broken)?;
        let (flag, rest) = bytes.split_last().ok_or_else(broken)?;
        let (new, old) = match flag {
            0 => (None, Some(rest)),
            1 => (Some(rest), None),
            2 => {
                let (length, rest) = read_varint(rest).ok_or_else(broken)?;
                if length > rest.len() {
                    return Err(broken());
                }
                let (new, old) = rest.split_at(length);
                (Some(new), Some(old))
            }
            _ => return Err(broken()),
        };
        Ok(DecodedRecord {
            key,
            value: new.map(|bytes| value.deserialize(bytes)).transpose()?,
            old: old.map(|bytes| value.deserialize(bytes)).transpose()?,
        })
    })
}

/// Zigzag, then seven bits a byte, lowest first, as Kafka's `ByteUtils.writeVarint`.
fn write_varint(value: usize, out: &mut Vec<u8>) {
    let mut rest = (value as u64) << 1;
    while rest >= 0x80 {
        out.push((rest as u8) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn read_varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(((value >> 1) as usize, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back() {
        for value in [0, 1, 63, 64, 127, 128, 300, 70_000] {
            let mut bytes = Vec::new();
            write_varint(value, &mut bytes);
            bytes.push(9);
            assert_eq!(read_varint(&bytes), Some((value, &[9_u8][..])), "{value}");
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        use crate::streams::{
            record::{ConsumerRecord, Headers},
            serdes::HasSerde,
        };
        let decode = change_decoder(String::serde(), String::serde());
        let record = ConsumerRecord {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            timestamp: 0,
            key: None,
            value: Some(bytes::Bytes::from_static(&[20, b'a', 2])),
            headers: Headers::EMPTY,
        };
        assert!(decode(&record).is_err());
    }
}
