//! What the guard reads of a row: its keys and its version.

use super::row_hash::{RowHashes, RowParts, day_of_place, version};
use crate::mapping::{Helper, Mapping, Source};
use crate::native::{Block, DataType, FixedCursor, NativeError, StringCursor};
use crate::partition::Day;
use crate::trace_store::{HASH_BYTES, HashKey, ROW_KEY_BYTES, RowKey, Version};

/// Bytes of an encoded row.
pub(crate) const SEEN_BYTES: usize = ROW_KEY_BYTES + 8 + 8 + 8;

/// The parts of a row that the guard reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeenRow {
    /// Its key in the target.
    pub key: RowKey,
    /// The key of the observation, or of the trace.
    pub observation: HashKey,
    /// Its version.
    pub version: Version,
}

impl SeenRow {
    /// Its day.
    pub(super) fn day(&self) -> Day {
        day_of_place(self.version.place)
    }

    /// The row of an observation as bytes, without whether it is deleted.
    pub(crate) fn encode(&self) -> [u8; SEEN_BYTES] {
        let mut bytes = [0; SEEN_BYTES];
        let (key, rest) = bytes.split_at_mut(ROW_KEY_BYTES);
        key.copy_from_slice(&self.key);
        // The check is the end of the row's key too.
        rest[..8].copy_from_slice(&self.observation[..8]);
        rest[8..16].copy_from_slice(&self.version.event_ts.to_le_bytes());
        rest[16..].copy_from_slice(&self.version.place.to_le_bytes());
        bytes
    }

    /// The reverse of [`SeenRow::encode`], for rows that are not deleted.
    pub(crate) fn decode(bytes: &[u8; SEEN_BYTES]) -> Self {
        let mut key = [0; ROW_KEY_BYTES];
        key.copy_from_slice(&bytes[..ROW_KEY_BYTES]);
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[ROW_KEY_BYTES + at..ROW_KEY_BYTES + at + 8]);
            number
        };
        let mut observation = [0; HASH_BYTES];
        observation[..8].copy_from_slice(&number(0));
        observation[8..].copy_from_slice(&key[ROW_KEY_BYTES - 4..]);
        Self {
            key,
            observation,
            version: Version {
                event_ts: i64::from_le_bytes(number(8)),
                place: u64::from_le_bytes(number(16)),
                is_deleted: false,
            },
        }
    }
}

/// Reads the rows of blocks that a mapping selects.
#[derive(Debug, Clone)]
pub(crate) struct RowReader {
    source: Source,
    pub(super) project: usize,
    pub(super) trace: usize,
    span: usize,
    start: TimeColumn,
    event_ts: TimeColumn,
    observation_type: usize,
    day: usize,
    is_deleted: Option<usize>,
}

impl RowReader {
    /// A reader of the blocks that a mapping selects.
    ///
    /// # Errors
    /// A sentence for the operator if the target lacks a required column or it has the wrong type.
    pub(crate) fn new(mapping: &Mapping) -> Result<Self, String> {
        let day = mapping.helper_index(Helper::Day);
        let (project, trace) = mapping.key_columns;
        Ok(Self {
            source: mapping.source,
            project,
            trace,
            span: mapping.span_column,
            start: TimeColumn::find(mapping, "start_time")?,
            event_ts: TimeColumn::find(mapping, "event_ts")?,
            observation_type: mapping
                .column_index("type")
                .ok_or("the target has no writable column type")?,
            day: day.ok_or("the helper column of the day is not selected")?,
            is_deleted: mapping.helper_index(Helper::IsDeleted),
        })
    }

    /// The rows of a block, with the hashes of their ids.
    ///
    /// # Errors
    /// [`NativeError`] if the block is damaged.
    pub(crate) fn rows(&self, block: &Block) -> Result<Vec<(SeenRow, RowHashes)>, NativeError> {
        let text = |index| StringCursor::new(block.values(index));
        let (mut projects, mut traces) = (text(self.project), text(self.trace));
        let (mut spans, mut types) = (text(self.span), text(self.observation_type));
        let mut starts = FixedCursor::<8>::new(block.values(self.start.index));
        let mut event_ts = FixedCursor::<8>::new(block.values(self.event_ts.index));
        let mut days = FixedCursor::<2>::new(block.values(self.day));
        let deleted = self.is_deleted.map(|index| block.values(index));
        let mut deleted = deleted.map(FixedCursor::<1>::new);
        let mut rows = Vec::with_capacity(block.rows);
        for _ in 0..block.rows {
            let trace = traces.next_value()?;
            let hashes = RowParts {
                project: projects.next_value()?,
                trace,
                span: spans.next_value()?,
            }
            .hashes();
            let start = self.start.microseconds(starts.next_value()?);
            let event_ts = self.event_ts.microseconds(event_ts.next_value()?);
            let day = u16::from_le_bytes(days.next_value()?);
            let is_deleted = match &mut deleted {
                Some(deleted) => deleted.next_value()? != [0],
                None => false,
            };
            let row = SeenRow {
                key: hashes.row_key(start),
                observation: match self.source {
                    Source::Observations => hashes.observation_key(),
                    Source::Traces => hashes.trace_key(trace),
                },
                version: version(event_ts, day, types.next_value()?, is_deleted),
            };
            rows.push((row, hashes));
        }
        Ok(rows)
    }
}

/// A `DateTime64` column.
#[derive(Debug, Clone, Copy)]
struct TimeColumn {
    index: usize,
    /// Microseconds per tick, or ticks per microsecond.
    scale: Scale,
}

#[derive(Debug, Clone, Copy)]
enum Scale {
    Times(i64),
    Through(i64),
}

impl TimeColumn {
    /// Finds a column among those that a mapping selects.
    fn find(mapping: &Mapping, name: &str) -> Result<Self, String> {
        let index = mapping.column_index(name).ok_or_else(|| {
            format!("the target has no writable column {name}, which every event needs")
        })?;
        let data_type = &mapping.pass_through[index].data_type;
        let digits = match DataType::parse(data_type) {
            Ok(DataType::Scalar { name, arguments }) if name == "DateTime64" => arguments
                .and_then(|arguments| arguments.split(',').next()?.trim().parse::<u32>().ok()),
            _ => None,
        };
        let scale = match digits {
            Some(digits @ 0..=6) => Scale::Times(10_i64.pow(6 - digits)),
            Some(digits @ 7..=9) => Scale::Through(10_i64.pow(digits - 6)),
            _ => {
                return Err(format!(
                    "column {name} of the target is {data_type}, not DateTime64 as in Langfuse's \
                     events tables"
                ));
            }
        };
        Ok(Self { index, scale })
    }

    fn microseconds(self, ticks: [u8; 8]) -> i64 {
        let ticks = i64::from_le_bytes(ticks);
        match self.scale {
            Scale::Times(factor) => ticks.saturating_mul(factor),
            Scale::Through(divisor) => ticks.div_euclid(divisor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::guard::row_hash::hash_key;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_row_is_read_back_as_it_was_encoded(
            hash in any::<u64>(), check in any::<u32>(), start in any::<i64>(),
            event_ts in any::<i64>(), place in any::<u64>(), span in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let parts = RowParts { project: b"p", trace: b"t", span: &span };
            let mut key = parts.hashes().row_key(start);
            key[ROW_KEY_BYTES - 4..].copy_from_slice(&check.to_be_bytes());
            let row = SeenRow {
                key,
                observation: hash_key(hash, check),
                version: Version { event_ts, place, is_deleted: false },
            };
            prop_assert_eq!(SeenRow::decode(&row.encode()), row);
        }
    }
}
