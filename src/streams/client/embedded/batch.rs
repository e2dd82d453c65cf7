//! The form of records in the file: a run of records of one partition as one blob.
//!
//! A row per record costs a B-tree insert per record; a blob per run costs one per hundreds. Lengths are varints, null
//! is length 0 and `n` bytes are `n + 1`; offsets and times are kept as differences, because compaction leaves gaps.
//! Decoding slices the blob and copies nothing.

use bytes::Bytes;

use super::partition::Stored;
use crate::streams::record::{Header, Headers};

/// Encodes records of ascending offsets; the first one's offset is the base.
pub(super) fn encode(records: &[Stored]) -> Vec<u8> {
    let payload: usize = records.iter().map(|r| length(&r.key) + length(&r.value) + 12).sum();
    let mut out = Vec::with_capacity(payload);
    let (mut offset, mut time) = (records.first().map_or(0, |r| r.offset), 0);
    for record in records {
        write_varint(&mut out, (record.offset - offset) as u64);
        write_varint(&mut out, zigzag(record.timestamp.wrapping_sub(time)));
        (offset, time) = (record.offset, record.timestamp);
        write_bytes(&mut out, &record.key);
        write_bytes(&mut out, &record.value);
        write_varint(&mut out, record.headers.len() as u64);
        for header in record.headers.iter() {
            write_varint(&mut out, header.key.len() as u64);
            out.extend_from_slice(header.key.as_bytes());
            write_bytes(&mut out, &header.value);
        }
    }
    out
}

/// Decodes a blob whose first record is at `base`; `Err` says that it is not one of ours.
pub(super) fn decode(base: i64, blob: Vec<u8>) -> Result<Vec<Stored>, Damaged> {
    let blob = Bytes::from(blob);
    let mut reader = Reader { blob: &blob, at: 0 };
    let (mut offset, mut time) = (base, 0i64);
    let mut records = Vec::new();
    while reader.at < blob.len() {
        offset += reader.varint()? as i64;
        time = time.wrapping_add(unzigzag(reader.varint()?));
        let (key, value) = (reader.bytes()?, reader.bytes()?);
        let headers = match reader.varint()? {
            0 => Headers::EMPTY,
            count => (0..count).map(|_| reader.header()).collect::<Result<_, _>>()?,
        };
        records.push(Stored { offset, timestamp: time, key, value, headers });
    }
    Ok(records)
}

/// The blob ends early or holds a length beyond its end.
#[derive(Debug)]
pub(super) struct Damaged;

struct Reader<'a> {
    blob: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn varint(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.blob.get(self.at).ok_or(Damaged)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damaged)
    }

    fn take(&mut self, length: usize) -> Result<Bytes, Damaged> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.blob.len()).ok_or(Damaged)?;
        let bytes = self.blob.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    fn bytes(&mut self) -> Result<Option<Bytes>, Damaged> {
        match self.varint()? {
            0 => Ok(None),
            length => self.take(length as usize - 1).map(Some),
        }
    }

    fn header(&mut self) -> Result<Header, Damaged> {
        let length = self.varint()? as usize;
        let key = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| Damaged)?;
        Ok(Header { key, value: self.bytes()? })
    }
}

fn length(bytes: &Option<Bytes>) -> usize {
    bytes.as_ref().map_or(0, Bytes::len)
}

fn write_bytes(out: &mut Vec<u8>, bytes: &Option<Bytes>) {
    match bytes {
        None => out.push(0),
        Some(bytes) => {
            write_varint(out, bytes.len() as u64 + 1);
            out.extend_from_slice(bytes);
        }
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from))
    }

    fn any_record() -> impl Strategy<Value = Stored> {
        let header = ("[a-zé]{0,5}", any_bytes()).prop_map(|(key, value)| Header { key, value });
        let headers = proptest::collection::vec(header, 0..3);
        (1i64..1000, any::<i64>(), any_bytes(), any_bytes(), headers).prop_map(
            |(gap, timestamp, key, value, headers)| Stored {
                offset: gap,
                timestamp,
                key,
                value,
                headers: headers.into_iter().collect(),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(mut records in proptest::collection::vec(any_record(), 1..20)) {
            let mut offset = 40;
            for record in &mut records {
                offset += record.offset;
                record.offset = offset;
            }
            let blob = encode(&records);
            prop_assert_eq!(decode(records[0].offset, blob.clone()).unwrap(), records);
            // A blob cut short never decodes to more or panics.
            if let Ok(fewer) = decode(0, blob[..blob.len() - 1].to_vec()) {
                prop_assert!(fewer.len() < 20);
            }
        }
    }
}
