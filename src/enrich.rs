//! A block of observations and the traces they belong to become a block of events.
//!
//! The pass-through columns are not touched: they are one slice of the block
//! that arrived. Only the columns the trace has a part in are built.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_bytes::Bytes as Text;

use crate::json;
use crate::mapping::{Enriched, Helper, Mapping};
use crate::native::{
    ArrayCursor, Block, FixedCursor, NativeError, NullableStringCursor, StringArrayBuilder,
    StringBuilder, StringCursor, put_block_header, put_column_header,
};
use crate::trace_store::{Day, Found, StoreError, TraceRecord, TraceStore, key};

/// Key under which tags go into the metadata of a target without a column for them.
pub const TAGS_KEY: &[u8] = b"trace_tags";

/// Why a block could not be enriched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrichError {
    /// The block is not what was asked for, or becomes too large.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The trace store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A block of events, in pieces that are sent one after the other.
#[derive(Debug, Clone)]
pub struct EnrichedBlock {
    /// The bytes.
    pub pieces: Vec<Bytes>,
    /// Rows in it.
    pub rows: usize,
    /// Rows whose trace was not found.
    pub without_trace: usize,
}

impl EnrichedBlock {
    /// Bytes of all pieces.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Enriches blocks. Shared by all segments.
pub struct Enricher {
    mapping: Arc<Mapping>,
    store: Arc<TraceStore>,
    max_block_bytes: usize,
}

impl Enricher {
    /// An enricher that refuses to build more than `max_block_bytes` for one block.
    pub fn new(mapping: Arc<Mapping>, store: Arc<TraceStore>, max_block_bytes: usize) -> Self {
        Self {
            mapping,
            store,
            max_block_bytes,
        }
    }

    /// Looks up the traces of a block and builds the block of events.
    ///
    /// # Errors
    /// [`EnrichError::Native`] with [`NativeError::TooLarge`] where the traces'
    /// attributes, repeated for each row, exceed the bound: ask for fewer rows.
    pub fn enrich(&self, block: &Block) -> Result<EnrichedBlock, EnrichError> {
        self.check_columns(block)?;
        let (slots, found) = self.look_up(block)?;
        if found.bytes() > self.max_block_bytes {
            return Err(self.too_large(block));
        }
        let unique = (0..slots.unique).map(|index| found.record(index));
        let records = unique.collect::<Result<Vec<_>, _>>()?;
        let traces = RowTraces {
            of_row: &slots.of_row,
            records: &records,
        };
        self.check_size(block, &traces)?;
        let mut appended = Vec::new();
        for (name, column) in &self.mapping.enriched {
            put_column_header(&mut appended, name, column.sent_type());
            appended.extend_from_slice(&self.build(*column, block, &traces)?);
        }
        let pass_through = self.mapping.pass_through.len();
        let mut header = Vec::with_capacity(8);
        put_block_header(
            &mut header,
            pass_through + self.mapping.enriched.len(),
            block.rows,
        );
        Ok(EnrichedBlock {
            pieces: vec![
                Bytes::from(header),
                block.slice(0..pass_through),
                Bytes::from(appended),
            ],
            rows: block.rows,
            without_trace: traces.iter().filter(Option::is_none).count(),
        })
    }

    fn too_large(&self, block: &Block) -> EnrichError {
        EnrichError::Native(NativeError::TooLarge {
            rows: block.rows,
            limit: self.max_block_bytes,
        })
    }

    /// The columns that arrive must be the ones that were asked for, in type and order.
    fn check_columns(&self, block: &Block) -> Result<(), NativeError> {
        let expected = self.mapping.pass_through.len() + self.mapping.helpers.len();
        if block.columns.len() != expected {
            return Err(NativeError::corrupt(format!(
                "{} columns arrived where {expected} were asked for",
                block.columns.len()
            )));
        }
        let names = self.mapping.pass_through.iter().zip(&block.columns);
        for (asked, arrived) in names {
            if *asked.name != *arrived.name {
                return Err(NativeError::corrupt(format!(
                    "column {} arrived where {} was asked for",
                    arrived.name, asked.name
                )));
            }
        }
        Ok(())
    }

    fn helper<'a>(&self, block: &'a Block, helper: Helper) -> Result<&'a [u8], NativeError> {
        self.mapping
            .helper_index(helper)
            .map(|index| block.values(index))
            .ok_or_else(|| NativeError::corrupt(format!("helper column {helper:?} is missing")))
    }

    /// The distinct traces of a block's rows, looked up together.
    fn look_up(&self, block: &Block) -> Result<(Slots, Found), EnrichError> {
        let (project_column, trace_column) = self.mapping.key_columns;
        let mut projects = StringCursor::new(block.values(project_column));
        let mut traces = StringCursor::new(block.values(trace_column));
        let mut days = FixedCursor::<2>::new(self.helper(block, Helper::Day)?);
        let mut keys = Vec::with_capacity(block.rows * 48);
        let mut ends = Vec::with_capacity(block.rows);
        for _ in 0..block.rows {
            key::encode(&mut keys, projects.next_value()?, traces.next_value()?);
            ends.push(keys.len());
        }
        let mut unique: Vec<(Day, &[u8])> = Vec::new();
        let mut slot_of_key: HashMap<&[u8], u32> = HashMap::new();
        let mut of_row = Vec::with_capacity(block.rows);
        let mut start = 0;
        for end in ends {
            let day = Day::from_le_bytes(days.next_value()?);
            let key = &keys[start..end];
            start = end;
            let slot = *slot_of_key.entry(key).or_insert_with(|| {
                unique.push((day, key));
                unique.len() as u32 - 1
            });
            of_row.push(slot);
        }
        let found = self.store.look_up(&unique)?;
        let slots = Slots {
            of_row,
            unique: unique.len(),
        };
        Ok((slots, found))
    }

    /// Refuses what would not fit before it is built: a trace's attributes are
    /// repeated in each of its rows.
    fn check_size(&self, block: &Block, traces: &RowTraces<'_, '_>) -> Result<(), EnrichError> {
        let of_record: Vec<usize> = traces
            .records
            .iter()
            .map(|record| record.as_ref().map_or(0, attribute_bytes))
            .collect();
        let total: usize = traces
            .of_row
            .iter()
            .map(|&slot| of_record[slot as usize])
            .sum();
        if total > self.max_block_bytes {
            return Err(self.too_large(block));
        }
        Ok(())
    }

    fn build(
        &self,
        column: Enriched,
        block: &Block,
        traces: &RowTraces<'_, '_>,
    ) -> Result<Vec<u8>, NativeError> {
        Ok(match column {
            Enriched::Version => self.build_version(block, traces)?,
            Enriched::Release => traces.strings(|trace| trace.release),
            Enriched::UserId => traces.strings(|trace| trace.user_id),
            Enriched::SessionId => traces.strings(|trace| trace.session_id),
            Enriched::TraceName => traces.strings(|trace| trace.name),
            Enriched::Tags => traces.tags(),
            Enriched::Public => traces
                .iter()
                .map(|t| u8::from(t.is_some_and(|t| t.public)))
                .collect(),
            Enriched::Bookmarked => self.build_bookmarked(block, traces)?,
            Enriched::MetadataNames => {
                let mut names = StringArrayBuilder::default();
                self.merge_metadata(block, traces, &mut names, &mut Discard)?;
                names.into_bytes()
            }
            Enriched::MetadataValues => {
                let mut values = StringArrayBuilder::default();
                self.merge_metadata(block, traces, &mut Discard, &mut values)?;
                values.into_bytes()
            }
            Enriched::MetadataMap => {
                let mut names = StringArrayBuilder::default();
                let mut values = StringArrayBuilder::default();
                self.merge_metadata(block, traces, &mut names, &mut values)?;
                // A map is the offsets once, then all keys, then all values.
                let mut map = names.into_bytes();
                map.extend_from_slice(&values.into_parts().1);
                map
            }
            Enriched::MetadataJson => self.build_metadata_json(block, traces)?,
        })
    }

    fn build_version(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
    ) -> Result<Vec<u8>, NativeError> {
        let own = self.helper(block, Helper::Version)?;
        let mut own = NullableStringCursor::new(own, block.rows)?;
        let mut versions = StringBuilder::with_capacity(block.rows * 2);
        for trace in traces.iter() {
            let of_trace = trace.map_or(&b""[..], |trace| trace.version);
            versions.push(own.next_value()?.unwrap_or(of_trace));
        }
        Ok(versions.into_bytes())
    }

    fn build_bookmarked(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
    ) -> Result<Vec<u8>, NativeError> {
        let mut is_root = FixedCursor::<1>::new(self.helper(block, Helper::IsRoot)?);
        traces
            .iter()
            .map(|trace| {
                let root = is_root.next_value()?[0] != 0;
                Ok(u8::from(
                    root && trace.is_some_and(|trace| trace.bookmarked),
                ))
            })
            .collect()
    }

    /// The observation's pairs, then the trace's whose key the observation
    /// lacks, then the tags if they have no column of their own.
    fn merge_metadata(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        names: &mut dyn PairSide,
        values: &mut dyn PairSide,
    ) -> Result<(), NativeError> {
        let mut own = OwnMetadata::new(
            self.helper(block, Helper::MetadataNames)?,
            self.helper(block, Helper::MetadataValues)?,
            block.rows,
        )?;
        let mut own_names: Vec<&[u8]> = Vec::new();
        for trace in traces.iter() {
            let row = own.next_row(&mut own_names)?;
            names.encoded(row.names, own_names.len());
            values.encoded(row.values, own_names.len());
            if let Some(trace) = trace {
                for (name, value) in self.trace_pairs(trace, &own_names) {
                    names.element(name);
                    values.element(value);
                }
                if let Some(tags) = self.tags_pair(trace, &own_names) {
                    names.element(TAGS_KEY);
                    values.element(&tags);
                }
            }
            names.end_row();
            values.end_row();
        }
        Ok(())
    }

    fn build_metadata_json(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
    ) -> Result<Vec<u8>, NativeError> {
        let mut own = OwnMetadata::new(
            self.helper(block, Helper::MetadataNames)?,
            self.helper(block, Helper::MetadataValues)?,
            block.rows,
        )?;
        let mut own_names: Vec<&[u8]> = Vec::new();
        let mut objects = StringBuilder::default();
        for trace in traces.iter() {
            let row = own.next_row(&mut own_names)?;
            let mut object = json::Object::default();
            let mut own_values = StringCursor::new(row.values);
            for name in &own_names {
                object.pair(name, own_values.next_value()?);
            }
            if let Some(trace) = trace {
                for (name, value) in self.trace_pairs(trace, &own_names) {
                    object.pair(name, value);
                }
                if let Some(tags) = self.tags_pair(trace, &own_names) {
                    object.pair(TAGS_KEY, &tags);
                }
            }
            objects.push(&object.finish());
        }
        Ok(objects.into_bytes())
    }

    /// The trace's pairs whose key the observation lacks.
    fn trace_pairs<'r>(
        &self,
        trace: &'r TraceRecord<'_>,
        own_names: &'r [&[u8]],
    ) -> impl Iterator<Item = (&'r [u8], &'r [u8])> {
        let pairs = if self.mapping.trace_metadata {
            trace.metadata.as_slice()
        } else {
            &[]
        };
        pairs
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
            .filter(|(name, _)| !own_names.contains(name))
    }

    fn tags_pair(&self, trace: &TraceRecord<'_>, own_names: &[&[u8]]) -> Option<Vec<u8>> {
        let is_taken = || {
            own_names.contains(&TAGS_KEY)
                || self
                    .trace_pairs(trace, own_names)
                    .any(|(name, _)| name == TAGS_KEY)
        };
        if !self.mapping.tags_in_metadata || trace.tags.is_empty() || is_taken() {
            return None;
        }
        Some(json::array(trace.tags.iter().map(|tag| tag.as_ref())))
    }
}

/// An upper bound for the bytes one row takes from its trace.
fn attribute_bytes(record: &TraceRecord<'_>) -> usize {
    let tags: usize = record.tags.iter().map(|tag| tag.len() + 4).sum();
    let texts = [
        record.name,
        record.user_id,
        record.session_id,
        record.release,
        record.version,
    ];
    let texts: usize = texts.iter().map(|text| text.len()).sum();
    record.metadata_bytes() + tags + texts
}

/// Which of the distinct traces each row belongs to.
struct Slots {
    of_row: Vec<u32>,
    unique: usize,
}

/// The trace of each row.
struct RowTraces<'a, 'r> {
    of_row: &'a [u32],
    records: &'a [Option<TraceRecord<'r>>],
}

impl<'a, 'r> RowTraces<'a, 'r> {
    fn iter(&self) -> impl Iterator<Item = Option<&'a TraceRecord<'r>>> {
        let records = self.records;
        self.of_row
            .iter()
            .map(move |&slot| records[slot as usize].as_ref())
    }

    fn strings(&self, attribute: impl Fn(&TraceRecord<'r>) -> &'r Text) -> Vec<u8> {
        let mut column = StringBuilder::with_capacity(self.of_row.len() * 16);
        for trace in self.iter() {
            column.push(trace.map_or(&b""[..], |trace| attribute(trace)));
        }
        column.into_bytes()
    }

    fn tags(&self) -> Vec<u8> {
        let mut column = StringArrayBuilder::with_capacity(self.of_row.len(), 0);
        for trace in self.iter() {
            for tag in trace.iter().flat_map(|trace| &trace.tags) {
                column.push_element(tag);
            }
            column.end_row();
        }
        column.into_bytes()
    }
}

/// One side of the metadata pairs: the names, or the values, or neither.
trait PairSide {
    fn encoded(&mut self, encoded: &[u8], count: usize);
    fn element(&mut self, value: &[u8]);
    fn end_row(&mut self);
}

impl PairSide for StringArrayBuilder {
    fn encoded(&mut self, encoded: &[u8], count: usize) {
        self.push_encoded(encoded, count);
    }

    fn element(&mut self, value: &[u8]) {
        self.push_element(value);
    }

    fn end_row(&mut self) {
        StringArrayBuilder::end_row(self);
    }
}

struct Discard;

impl PairSide for Discard {
    fn encoded(&mut self, _encoded: &[u8], _count: usize) {}
    fn element(&mut self, _value: &[u8]) {}
    fn end_row(&mut self) {}
}

/// The observations' own metadata, row by row.
struct OwnMetadata<'a> {
    name_lengths: ArrayCursor<'a>,
    names: StringCursor<'a>,
    value_lengths: ArrayCursor<'a>,
    values: StringCursor<'a>,
}

/// One row's names and values as they are encoded.
struct OwnRow<'a> {
    names: &'a [u8],
    values: &'a [u8],
}

impl<'a> OwnMetadata<'a> {
    fn new(names: &'a [u8], values: &'a [u8], rows: usize) -> Result<Self, NativeError> {
        let (name_lengths, names) = ArrayCursor::new(names, rows)?;
        let (value_lengths, values) = ArrayCursor::new(values, rows)?;
        Ok(Self {
            name_lengths,
            names: StringCursor::new(names),
            value_lengths,
            values: StringCursor::new(values),
        })
    }

    /// The next row; its names are put into `decoded`.
    fn next_row(&mut self, decoded: &mut Vec<&'a [u8]>) -> Result<OwnRow<'a>, NativeError> {
        let count = self.name_lengths.next_length()?;
        if self.value_lengths.next_length()? != count {
            return Err(NativeError::corrupt(
                "a map has more keys than values, or fewer",
            ));
        }
        decoded.clear();
        let mut names = self.names.clone();
        for _ in 0..count {
            decoded.push(names.next_value()?);
        }
        Ok(OwnRow {
            names: self.names.next_encoded(count)?,
            values: self.values.next_encoded(count)?,
        })
    }
}
