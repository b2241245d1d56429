//! The stored form of a trace: exactly what events take from it.
//!
//! Encoded with bincode 2 (standard configuration: little-endian, variable-length integers). Only
//! this file knows the encoding.

use bincode::config::{Configuration, standard};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::error::StoreError;
use crate::partition::Day;

/// Number of texts that events take from a trace. Changing it requires a new checkpoint format
/// version.
pub(crate) const TEXTS: usize = 5;

/// The attributes of one version of a trace. Text is bytes, since ClickHouse strings need not be
/// UTF-8; null is stored as empty, as in the events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord<'a> {
    /// The version: `event_ts` in microseconds since 1970. The highest wins.
    pub event_ts: i64,
    /// Whether this version deletes the trace. If so, the other fields are empty.
    pub is_deleted: bool,
    /// The day of this version, which distinguishes it from versions on other days.
    pub day: Day,
    /// `traces.public`
    pub public: bool,
    /// `traces.bookmarked`
    pub bookmarked: bool,
    /// The texts events take, in the order of the mapping's table.
    #[serde(borrow)]
    pub texts: [&'a Bytes; TEXTS],
    /// `traces.tags`
    #[serde(borrow)]
    pub tags: Vec<&'a Bytes>,
    /// `traces.metadata`, in original order
    #[serde(borrow)]
    pub metadata: Vec<(&'a Bytes, &'a Bytes)>,
}

impl<'a> TraceRecord<'a> {
    /// Memory for a decoded record's lists, besides the bytes they point at. With many short pairs
    /// the lists are the larger part.
    pub(crate) fn list_bytes(&self) -> usize {
        size_of_val(&*self.tags) + size_of_val(&*self.metadata)
    }

    /// A record that marks the trace as deleted.
    pub fn deleted(event_ts: i64, day: Day) -> Self {
        Self {
            event_ts,
            is_deleted: true,
            day,
            public: false,
            bookmarked: false,
            texts: [Bytes::new(&[]); TEXTS],
            tags: Vec::new(),
            metadata: Vec::new(),
        }
    }

    /// Encodes the record into `out`, replacing its content.
    ///
    /// # Errors
    /// [`StoreError::Record`] if encoding fails, which no in-memory record causes.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StoreError> {
        encode(self, out)
    }

    /// Decodes a record without copying its texts.
    ///
    /// # Errors
    /// [`StoreError::Record`] if the bytes are not a record.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        decode(bytes)
    }

    /// Upper bound on the bytes one row takes from this trace, used to bound an enriched block.
    pub(crate) fn attribute_bytes(&self) -> usize {
        let pairs = self.metadata.iter();
        let metadata: usize = pairs.map(|(key, value)| key.len() + value.len() + 4).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 4).sum();
        let texts: usize = self.texts.iter().map(|text| text.len()).sum();
        metadata + tags + texts
    }
}

/// The first fields of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct RecordHead {
    /// As [`TraceRecord::event_ts`].
    pub event_ts: i64,
    /// As [`TraceRecord::is_deleted`].
    pub is_deleted: bool,
    /// As [`TraceRecord::day`].
    pub day: Day,
}

impl RecordHead {
    /// Decodes only the head of an encoded record.
    ///
    /// # Errors
    /// [`StoreError::Record`] if the bytes are not a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        bincode::serde::decode_from_slice(bytes, configuration())
            .map(|(head, _)| head)
            .map_err(|error| StoreError::Record(error.to_string()))
    }
}

/// Encodes `record` into `out`, replacing its content.
pub(super) fn encode(record: &impl Serialize, out: &mut Vec<u8>) -> Result<(), StoreError> {
    out.clear();
    bincode::serde::encode_into_std_write(record, out, configuration())
        .map(|_| ())
        .map_err(|error| StoreError::Record(error.to_string()))
}

/// Decodes a record that spans all of `bytes`, without copying its texts.
pub(super) fn decode<'a, R: Deserialize<'a>>(bytes: &'a [u8]) -> Result<R, StoreError> {
    let (record, length) = bincode::serde::borrow_decode_from_slice(bytes, configuration())
        .map_err(|error| StoreError::Record(error.to_string()))?;
    match length == bytes.len() {
        true => Ok(record),
        false => Err(StoreError::Record("trailing bytes after its end".into())),
    }
}

fn configuration() -> Configuration {
    standard()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..40)
    }

    proptest! {
        #[test]
        fn a_record_is_read_back_as_it_was_stored(
            event_ts: i64, day: Day, flags: (bool, bool, bool), texts in vec(text(), TEXTS),
            tags in vec(text(), 0..4), metadata in vec((text(), text()), 0..4),
        ) {
            let record = TraceRecord {
                event_ts,
                is_deleted: flags.0,
                day,
                public: flags.1,
                bookmarked: flags.2,
                texts: std::array::from_fn(|index| Bytes::new(&texts[index])),
                tags: tags.iter().map(|tag| Bytes::new(tag)).collect(),
                metadata: metadata.iter().map(|(k, v)| (Bytes::new(k), Bytes::new(v))).collect(),
            };
            let mut encoded = Vec::new();
            record.encode(&mut encoded).unwrap();
            prop_assert_eq!(TraceRecord::decode(&encoded).unwrap(), record);
            let head = RecordHead::decode(&encoded).unwrap();
            prop_assert_eq!((head.event_ts, head.is_deleted), (event_ts, flags.0));
            for length in 0..encoded.len() {
                prop_assert!(TraceRecord::decode(&encoded[..length]).is_err());
            }
        }

        #[test]
        fn any_bytes_decode_to_a_record_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            let _ = TraceRecord::decode(&bytes);
        }
    }
}
