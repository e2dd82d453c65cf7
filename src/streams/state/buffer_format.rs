//! The bytes of a suppress buffer's changelog record: Kafka's format 3 (header `v` = 3).
//!
//! ```text
//! context: timestamp 8, offset 8, topic (4 + bytes), partition 4, header count 4, headers (4 + name, 4 + value or -1)
//! prior:   4 + bytes, or -1      the value downstream last saw
//! old:     4 + bytes, or -1, or -2 = same bytes as prior
//! new:     4 + bytes, or -1
//! buffer time 8
//! ```

use std::sync::Arc;

use bytes::Bytes;

use crate::streams::record::{Header, Headers, RecordContext, Timestamp};

/// Value of the header `v` that names the format.
pub(crate) const FORMAT: &[u8] = &[3];
/// Length that stands for null.
const NULL: i32 = -1;
/// Length of an old value that equals the prior one.
const SAME_AS_PRIOR: i32 = -2;

/// What is logged of a buffered change; its key is the record's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoggedChange {
    /// The time the change is ordered by in the buffer.
    pub buffer_time: Timestamp,
    /// Where and when the change happened.
    pub context: RecordContext,
    /// The value downstream last saw.
    pub prior: Option<Bytes>,
    /// Old value of the change.
    pub old: Option<Bytes>,
    /// New value of the change.
    pub new: Option<Bytes>,
}

impl LoggedChange {
    /// The bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let context = &self.context;
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&context.timestamp.to_be_bytes());
        out.extend_from_slice(&context.offset.to_be_bytes());
        // Kafka Streams cannot log a row without a topic (it fails on it); an empty name stands for none here.
        put_bytes(&mut out, Some(context.topic.as_deref().unwrap_or("").as_bytes()));
        out.extend_from_slice(&context.partition.to_be_bytes());
        out.extend_from_slice(&(context.headers.len() as i32).to_be_bytes());
        for header in context.headers.iter() {
            put_bytes(&mut out, Some(header.key.as_bytes()));
            put_bytes(&mut out, header.value.as_deref());
        }
        put_bytes(&mut out, self.prior.as_deref());
        match &self.old {
            Some(old) if Some(old) == self.prior.as_ref() => {
                out.extend_from_slice(&SAME_AS_PRIOR.to_be_bytes())
            }
            old => put_bytes(&mut out, old.as_deref()),
        }
        put_bytes(&mut out, self.new.as_deref());
        out.extend_from_slice(&self.buffer_time.to_be_bytes());
        out.into()
    }

    /// Reads the bytes; `None` when they end too early or are not of this format.
    pub(crate) fn parse(bytes: &Bytes) -> Option<Self> {
        let mut reader = Reader { bytes, at: 0 };
        let timestamp = reader.long()?;
        let offset = reader.long()?;
        let topic = reader.field()?.bytes()?;
        let topic = String::from_utf8(topic.to_vec()).ok()?;
        let partition = reader.int()?;
        let headers = (0..reader.int()?.max(0))
            .map(|_| {
                let key = String::from_utf8(reader.field()?.bytes()?.to_vec()).ok()?;
                Some(Header { key, value: reader.field()?.bytes() })
            })
            .collect::<Option<Headers>>()?;
        let topic = (!topic.is_empty()).then(|| Arc::from(topic));
        let context = RecordContext { topic, partition, offset, timestamp, headers };
        let prior = reader.field()?.bytes();
        let old = match reader.field()? {
            Field::SameAsPrior => prior.clone(),
            field => field.bytes(),
        };
        let new = reader.field()?.bytes();
        Some(Self { buffer_time: reader.long()?, context, prior, old, new })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.extend_from_slice(&NULL.to_be_bytes()),
        Some(bytes) => {
            // Kafka limits a record to less than 2 GiB, so the length fits.
            out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
    }
}

/// A length-prefixed field.
enum Field {
    Null,
    SameAsPrior,
    Bytes(Bytes),
}

impl Field {
    fn bytes(self) -> Option<Bytes> {
        match self {
            Field::Bytes(bytes) => Some(bytes),
            Field::Null | Field::SameAsPrior => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Some(taken)
    }

    fn long(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take(8)?.as_ref().try_into().ok()?))
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.as_ref().try_into().ok()?))
    }

    fn field(&mut self) -> Option<Field> {
        match self.int()? {
            NULL => Some(Field::Null),
            SAME_AS_PRIOR => Some(Field::SameAsPrior),
            length => Some(Field::Bytes(self.take(usize::try_from(length).ok()?)?)),
        }
    }
}
