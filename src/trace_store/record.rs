//! What is stored of a trace: exactly what events take from it.
//!
//! Encoded with bincode 2 (standard configuration: little-endian, variable-length
//! integers). Nothing outside this file knows the encoding.

use bincode::config::{Configuration, standard};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::error::StoreError;
use crate::partition::Day;

/// How many texts events take from a trace. Whoever changes it increases the version of the
/// checkpoint's format.
pub(crate) const TEXTS: usize = 5;

/// The attributes of one version of a trace. Text is bytes, since ClickHouse
/// strings need not be UTF-8; null is stored as empty, as events have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord<'a> {
    /// Version: microseconds since 1970 of the event that wrote it. The greatest counts.
    pub event_ts: i64,
    /// Whether this version says that the trace is deleted; then the rest is empty.
    pub is_deleted: bool,
    /// The day of this version, which tells it from those on other days.
    pub day: Day,
    /// `traces.public`
    pub public: bool,
    /// `traces.bookmarked`
    pub bookmarked: bool,
    /// The texts that events take from it, each where the mapping's table has it.
    #[serde(borrow)]
    pub texts: [&'a Bytes; TEXTS],
    /// `traces.tags`
    #[serde(borrow)]
    pub tags: Vec<&'a Bytes>,
    /// `traces.metadata`, in its order
    #[serde(borrow)]
    pub metadata: Vec<(&'a Bytes, &'a Bytes)>,
}

impl<'a> TraceRecord<'a> {
    /// Bytes of memory that the lists of a decoded record take, besides the bytes they point at: of
    /// many short pairs that is more than these.
    pub(crate) fn list_bytes(&self) -> usize {
        size_of_val(&*self.tags) + size_of_val(&*self.metadata)
    }

    /// A record that says only that the trace is deleted.
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

    /// Replaces the content of `out` by the encoded record.
    ///
    /// # Errors
    /// [`StoreError::Record`]; does not happen for a record in memory.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), StoreError> {
        encode(self, out)
    }

    /// Reads a record back without copying its texts.
    ///
    /// # Errors
    /// [`StoreError::Record`] where the bytes are not a record.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        decode(bytes)
    }

    /// An upper bound for the bytes that one row takes from it, for bounding what an enriched block may
    /// take.
    pub(crate) fn attribute_bytes(&self) -> usize {
        let pairs = self.metadata.iter();
        let metadata: usize = pairs.map(|(key, value)| key.len() + value.len() + 4).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 4).sum();
        let texts: usize = self.texts.iter().map(|text| text.len()).sum();
        metadata + tags + texts
    }
}

/// What a record begins with.
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
    /// Reads the beginning of an encoded record, and leaves the rest.
    ///
    /// # Errors
    /// [`StoreError::Record`] where the bytes are not a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        bincode::serde::decode_from_slice(bytes, configuration())
            .map(|(head, _)| head)
            .map_err(|error| StoreError::Record(error.to_string()))
    }
}

/// Replaces the content of `out` by the encoded record.
pub(super) fn encode(record: &impl Serialize, out: &mut Vec<u8>) -> Result<(), StoreError> {
    out.clear();
    bincode::serde::encode_into_std_write(record, out, configuration())
        .map(|_| ())
        .map_err(|error| StoreError::Record(error.to_string()))
}

/// Reads a record that takes all of `bytes`, without copying its texts.
pub(super) fn decode<'a, R: Deserialize<'a>>(bytes: &'a [u8]) -> Result<R, StoreError> {
    let (record, length) = bincode::serde::borrow_decode_from_slice(bytes, configuration())
        .map_err(|error| StoreError::Record(error.to_string()))?;
    match length == bytes.len() {
        true => Ok(record),
        false => Err(StoreError::Record("there are bytes after its end".into())),
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
