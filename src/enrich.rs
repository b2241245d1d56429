//! A block of observations and the traces they belong to become a block of events.
//!
//! The pass-through columns are not touched: they are one slice of the block
//! that arrived. Only the columns the trace has a part in are built.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde_bytes::Bytes as Text;

use crate::buffer_pool::BufferPool;
use crate::json;
use crate::mapping::{Enriched, Helper, Mapping};
use crate::native::{
    ArrayCursor, Block, DataType, FixedCursor, NativeError, NullableStringCursor,
    StringArrayWriter, StringCursor, put_block_header, put_column_header, put_string,
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
    /// Bytes of memory it holds: the buffer of the whole block that arrived, helper
    /// columns included, and the one of what was built.
    pub held_bytes: usize,
}

impl EnrichedBlock {
    /// Bytes that are sent for it, uncompressed.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// What became of some blocks.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Blocks of events.
    pub events: Vec<EnrichedBlock>,
    /// Blocks of observations of whose traces the store knows nothing.
    pub late: Vec<Block>,
}

/// What to do with an observation of whose trace the store knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It becomes an event without the attributes of a trace.
    WithoutTrace,
    /// It is put aside, unless it has no trace id.
    Late,
}

/// Enriches blocks. Shared by all segments.
pub struct Enricher {
    mapping: Arc<Mapping>,
    store: Arc<TraceStore>,
    pool: BufferPool,
    /// Name and type of each column that arrives.
    expected: Vec<(String, DataType)>,
}

impl Enricher {
    /// An enricher that builds blocks in buffers of `pool`.
    pub fn new(mapping: Arc<Mapping>, store: Arc<TraceStore>, pool: BufferPool) -> Self {
        Self {
            expected: mapping.result_columns(),
            mapping,
            store,
            pool,
        }
    }

    /// Looks up the traces of some blocks, all together, and builds the blocks of
    /// events, within `max_bytes` of memory besides the blocks themselves.
    ///
    /// # Errors
    /// [`EnrichError::Native`] with [`NativeError::TooLarge`] where the traces, or
    /// their attributes repeated for each row, exceed that: give fewer blocks, or
    /// ask for fewer rows.
    pub fn enrich(
        &self,
        blocks: &[Block],
        unknown: Unknown,
        max_bytes: usize,
    ) -> Result<Outcome, EnrichError> {
        let too_large = || {
            EnrichError::Native(NativeError::TooLarge {
                rows: blocks.iter().map(|block| block.rows).max().unwrap_or(0),
                limit: max_bytes,
            })
        };
        blocks
            .iter()
            .try_for_each(|block| self.check_columns(block))?;
        let (slots, found) = self.look_up(blocks, max_bytes / 2)?;
        if found.is_too_large() {
            return Err(too_large());
        }
        let unique = (0..slots.unique).map(|index| found.record(index));
        let records = unique.collect::<Result<Vec<_>, _>>()?;
        let mut room = max_bytes.saturating_sub(found.held_bytes());
        let is_late: Vec<bool> = (0..slots.unique)
            .map(|slot| unknown == Unknown::Late && slots.has_id[slot] && !found.is_known(slot))
            .collect();
        let mut of_row = slots.of_row.as_slice();
        let mut enriched = Outcome::default();
        for block in blocks {
            let (of_block, after) = of_row.split_at(block.rows);
            of_row = after;
            let (in_time, late) = divide(of_block, &is_late);
            if late.is_empty() {
                let traces = RowTraces {
                    of_row: of_block,
                    records: &records,
                };
                let built = self.build_block(block, &traces, room)?;
                let built = built.ok_or_else(too_large)?;
                room -= built.held_bytes - block.held_bytes;
                enriched.events.push(built);
                continue;
            }
            // Both parts take as much as the block.
            room = room.checked_sub(block.bytes.len()).ok_or_else(too_large)?;
            enriched
                .late
                .push(block.take_rows(&late, self.pool.take())?);
            if in_time.is_empty() {
                continue;
            }
            let block = block.take_rows(&in_time, self.pool.take())?;
            let of_block: Vec<u32> = in_time
                .iter()
                .flat_map(|rows| &of_block[rows.clone()])
                .copied()
                .collect();
            let traces = RowTraces {
                of_row: &of_block,
                records: &records,
            };
            let built = self.build_block(&block, &traces, room)?;
            let built = built.ok_or_else(too_large)?;
            room -= built.held_bytes - block.held_bytes;
            enriched.events.push(built);
        }
        Ok(enriched)
    }

    /// The block of events, unless it takes more than `max_bytes` besides the block.
    fn build_block(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        max_bytes: usize,
    ) -> Result<Option<EnrichedBlock>, EnrichError> {
        // Refused before it is built: a trace's attributes are repeated in each of its rows.
        if traces.attribute_bytes() > max_bytes {
            return Ok(None);
        }
        let merged = self.merge_metadata(block, traces)?;
        let mut appended = self.pool.take();
        for column in &self.mapping.enriched {
            put_column_header(&mut appended, &column.name, &column.sent_type);
            self.build(column.form, block, traces, &merged, &mut appended)?;
            if appended.capacity() > max_bytes {
                return Ok(None);
            }
        }
        let pass_through = self.mapping.pass_through.len();
        let mut header = Vec::with_capacity(8);
        put_block_header(
            &mut header,
            pass_through + self.mapping.enriched.len(),
            block.rows,
        );
        let held_bytes = block.held_bytes + appended.capacity();
        Ok(Some(EnrichedBlock {
            held_bytes,
            pieces: vec![
                Bytes::from(header),
                block.slice(0..pass_through),
                appended.freeze(),
            ],
            rows: block.rows,
            without_trace: traces.iter().filter(Option::is_none).count(),
        }))
    }

    /// The columns that arrive must be the ones that were asked for, in name,
    /// type and order.
    fn check_columns(&self, block: &Block) -> Result<(), NativeError> {
        if block.columns.len() != self.expected.len() {
            return Err(NativeError::corrupt(format!(
                "{} columns arrived where {} were asked for",
                block.columns.len(),
                self.expected.len()
            )));
        }
        for ((name, data_type), arrived) in self.expected.iter().zip(&block.columns) {
            if **name != *arrived.name || *data_type != *arrived.data_type {
                return Err(NativeError::corrupt(format!(
                    "column {} {} arrived where {name} {data_type} was asked for",
                    arrived.name, arrived.data_type
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

    /// The distinct traces of the rows of all blocks, looked up together, unless they
    /// take more than `max_bytes`.
    fn look_up(&self, blocks: &[Block], max_bytes: usize) -> Result<(Slots, Found), EnrichError> {
        let rows = blocks.iter().map(|block| block.rows).sum();
        let mut keys = Vec::with_capacity(rows * 48);
        let mut of_rows: Vec<(Day, usize)> = Vec::with_capacity(rows);
        let (project_column, trace_column) = self.mapping.key_columns;
        for block in blocks {
            let mut projects = StringCursor::new(block.values(project_column));
            let mut traces = StringCursor::new(block.values(trace_column));
            let mut days = FixedCursor::<2>::new(self.helper(block, Helper::Day)?);
            for _ in 0..block.rows {
                key::encode(&mut keys, projects.next_value()?, traces.next_value()?);
                of_rows.push((Day::from_le_bytes(days.next_value()?), keys.len()));
            }
        }
        let mut unique: Vec<(Day, &[u8])> = Vec::new();
        let mut has_id = Vec::new();
        let mut slot_of_key: HashMap<&[u8], u32> = HashMap::new();
        let mut of_row = Vec::with_capacity(rows);
        let mut start = 0;
        for (day, end) in of_rows {
            let key = &keys[start..end];
            start = end;
            let slot = *slot_of_key.entry(key).or_insert_with(|| {
                unique.push((day, key));
                has_id.push(key::has_trace_id(key));
                unique.len() as u32 - 1
            });
            of_row.push(slot);
        }
        let found = self.store.look_up(&unique, max_bytes)?;
        let slots = Slots {
            of_row,
            unique: unique.len(),
            has_id,
        };
        Ok((slots, found))
    }

    /// Appends the values of one column to `out`.
    fn build(
        &self,
        column: Enriched,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        merged: &[MergedRow<'_, '_>],
        out: &mut Vec<u8>,
    ) -> Result<(), NativeError> {
        match column {
            Enriched::Version => self.build_version(block, traces, out)?,
            Enriched::Release => traces.put_strings(out, |trace| trace.release),
            Enriched::UserId => traces.put_strings(out, |trace| trace.user_id),
            Enriched::SessionId => traces.put_strings(out, |trace| trace.session_id),
            Enriched::TraceName => traces.put_strings(out, |trace| trace.name),
            Enriched::Tags => traces.put_tags(out),
            Enriched::Public => {
                out.extend(
                    traces
                        .iter()
                        .map(|trace| u8::from(trace.is_some_and(|t| t.public))),
                );
            }
            Enriched::Bookmarked => self.build_bookmarked(block, traces, out)?,
            Enriched::MetadataNames => put_names(merged, out),
            Enriched::MetadataValues => put_values(merged, out),
            Enriched::MetadataMap => {
                // A map is the offsets once, then all keys, then all values.
                put_names(merged, out);
                merged
                    .iter()
                    .for_each(|row| row.for_each_value(&mut Appended(out)));
            }
            Enriched::MetadataJson | Enriched::MetadataText => {
                if column == Enriched::MetadataJson {
                    // Says that the values follow as text.
                    out.extend_from_slice(&1_u64.to_le_bytes());
                }
                for row in merged {
                    put_string(out, &row.to_json()?);
                }
            }
        }
        Ok(())
    }

    fn build_version(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        out: &mut Vec<u8>,
    ) -> Result<(), NativeError> {
        let own = self.helper(block, Helper::Version)?;
        let mut own = NullableStringCursor::new(own, block.rows)?;
        for trace in traces.iter() {
            let of_trace = trace.map_or(&b""[..], |trace| trace.version);
            put_string(out, own.next_value()?.unwrap_or(of_trace));
        }
        Ok(())
    }

    fn build_bookmarked(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        out: &mut Vec<u8>,
    ) -> Result<(), NativeError> {
        let mut is_root = FixedCursor::<1>::new(self.helper(block, Helper::IsRoot)?);
        for trace in traces.iter() {
            let root = is_root.next_value()? != [0];
            out.push(u8::from(
                root && trace.is_some_and(|trace| trace.bookmarked),
            ));
        }
        Ok(())
    }

    /// For each row the observation's pairs, then the trace's whose key the
    /// observation lacks, then the tags if they have no column of their own.
    fn merge_metadata<'a>(
        &self,
        block: &'a Block,
        traces: &RowTraces<'a, 'a>,
    ) -> Result<Vec<MergedRow<'a, 'a>>, NativeError> {
        if self.mapping.helper_index(Helper::MetadataNames).is_none() {
            return Ok(Vec::new());
        }
        let mut own = OwnMetadata::new(
            self.helper(block, Helper::MetadataNames)?,
            self.helper(block, Helper::MetadataValues)?,
            block.rows,
        )?;
        let mut own_names: Vec<&[u8]> = Vec::new();
        let mut merged = Vec::with_capacity(block.rows);
        for trace in traces.iter() {
            let mut row = own.next_row(&mut own_names)?;
            if let Some(trace) = trace {
                if self.mapping.trace_metadata {
                    row.from_trace = Kept::pairs_not_in(&trace.metadata, &own_names);
                }
                row.tags = self.tags_pair(trace, &row.from_trace, &own_names);
            }
            merged.push(row);
        }
        Ok(merged)
    }

    fn tags_pair(
        &self,
        trace: &TraceRecord<'_>,
        kept: &Kept<'_, '_>,
        own_names: &[&[u8]],
    ) -> Option<Vec<u8>> {
        if !self.mapping.tags_in_metadata || trace.tags.is_empty() {
            return None;
        }
        let is_taken =
            own_names.contains(&TAGS_KEY) || kept.iter().any(|(name, _)| name == TAGS_KEY);
        (!is_taken).then(|| json::array(trace.tags.iter().map(|tag| tag.as_ref())))
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

/// Which of the distinct traces each row of all blocks belongs to.
struct Slots {
    of_row: Vec<u32>,
    unique: usize,
    /// Whether each of them has an id that is not empty.
    has_id: Vec<bool>,
}

/// Ranges of rows.
type Rows = Vec<Range<usize>>;

/// The rows that are in time, and those whose trace is late.
fn divide(of_row: &[u32], is_late: &[bool]) -> (Rows, Rows) {
    let (mut in_time, mut late) = (Rows::new(), Rows::new());
    for (row, &slot) in of_row.iter().enumerate() {
        let rows = match is_late[slot as usize] {
            true => &mut late,
            false => &mut in_time,
        };
        match rows.last_mut() {
            Some(last) if last.end == row => last.end += 1,
            _ => rows.push(row..row + 1),
        }
    }
    (in_time, late)
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

    /// An upper bound for the bytes that all rows take from their traces.
    fn attribute_bytes(&self) -> usize {
        let of_record: Vec<usize> = self
            .records
            .iter()
            .map(|record| record.as_ref().map_or(0, attribute_bytes))
            .collect();
        let slots = self.of_row.iter();
        slots.map(|&slot| of_record[slot as usize]).sum()
    }

    fn put_strings(&self, out: &mut Vec<u8>, attribute: impl Fn(&TraceRecord<'r>) -> &'r Text) {
        for trace in self.iter() {
            put_string(out, trace.map_or(&b""[..], |trace| attribute(trace)));
        }
    }

    fn put_tags(&self, out: &mut Vec<u8>) {
        let mut column = StringArrayWriter::new(out, self.of_row.len());
        for trace in self.iter() {
            for tag in trace.iter().flat_map(|trace| &trace.tags) {
                column.push_element(tag);
            }
            column.end_row();
        }
    }
}

type Pair<'r> = (&'r Text, &'r Text);

/// From so many keys on a set is faster than comparing each with each.
const MANY_NAMES: usize = 16;

/// The pairs of a trace that a row takes.
enum Kept<'a, 'r> {
    /// All of them: the usual case.
    All(&'a [Pair<'r>]),
    /// Those whose key the observation lacks.
    Some(Vec<Pair<'r>>),
}

impl<'a, 'r> Kept<'a, 'r> {
    fn pairs_not_in(pairs: &'a [Pair<'r>], own_names: &[&[u8]]) -> Self {
        let set: Option<HashSet<&[u8]>> =
            (own_names.len() > MANY_NAMES).then(|| own_names.iter().copied().collect());
        let is_own = |(name, _): &Pair<'r>| match &set {
            Some(set) => set.contains(as_slice(name)),
            None => own_names.contains(&as_slice(name)),
        };
        if !pairs.iter().any(is_own) {
            return Kept::All(pairs);
        }
        Kept::Some(pairs.iter().filter(|pair| !is_own(pair)).copied().collect())
    }

    fn iter(&self) -> impl Iterator<Item = (&'r [u8], &'r [u8])> + use<'_, 'a, 'r> {
        let pairs = match self {
            Kept::All(pairs) => pairs,
            Kept::Some(pairs) => pairs.as_slice(),
        };
        pairs
            .iter()
            .map(|&(name, value)| (as_slice(name), as_slice(value)))
    }
}

fn as_slice(text: &Text) -> &[u8] {
    text
}

/// The metadata of one event.
struct MergedRow<'a, 'r> {
    own_count: usize,
    /// The observation's keys and values as they are encoded.
    own_names: &'a [u8],
    own_values: &'a [u8],
    from_trace: Kept<'a, 'r>,
    tags: Option<Vec<u8>>,
}

/// Where the elements of a column go.
trait Elements {
    fn encoded(&mut self, encoded: &[u8], count: usize);
    fn element(&mut self, value: &[u8]);
}

impl Elements for StringArrayWriter<'_> {
    fn encoded(&mut self, encoded: &[u8], count: usize) {
        self.push_encoded(encoded, count);
    }

    fn element(&mut self, value: &[u8]) {
        self.push_element(value);
    }
}

/// Elements without offsets of their own.
struct Appended<'a>(&'a mut Vec<u8>);

impl Elements for Appended<'_> {
    fn encoded(&mut self, encoded: &[u8], _count: usize) {
        self.0.extend_from_slice(encoded);
    }

    fn element(&mut self, value: &[u8]) {
        put_string(self.0, value);
    }
}

impl MergedRow<'_, '_> {
    fn for_each_name(&self, out: &mut impl Elements) {
        out.encoded(self.own_names, self.own_count);
        self.from_trace
            .iter()
            .for_each(|(name, _)| out.element(name));
        if self.tags.is_some() {
            out.element(TAGS_KEY);
        }
    }

    fn for_each_value(&self, out: &mut impl Elements) {
        out.encoded(self.own_values, self.own_count);
        self.from_trace
            .iter()
            .for_each(|(_, value)| out.element(value));
        if let Some(tags) = &self.tags {
            out.element(tags);
        }
    }

    fn to_json(&self) -> Result<Vec<u8>, NativeError> {
        let mut object = json::Object::default();
        let mut names = StringCursor::new(self.own_names);
        let mut values = StringCursor::new(self.own_values);
        for _ in 0..self.own_count {
            object.pair(names.next_value()?, values.next_value()?);
        }
        for (name, value) in self.from_trace.iter() {
            object.pair(name, value);
        }
        if let Some(tags) = &self.tags {
            object.pair(TAGS_KEY, tags);
        }
        Ok(object.finish())
    }
}

fn put_names(merged: &[MergedRow<'_, '_>], out: &mut Vec<u8>) {
    let mut column = StringArrayWriter::new(out, merged.len());
    for row in merged {
        row.for_each_name(&mut column);
        column.end_row();
    }
}

fn put_values(merged: &[MergedRow<'_, '_>], out: &mut Vec<u8>) {
    let mut column = StringArrayWriter::new(out, merged.len());
    for row in merged {
        row.for_each_value(&mut column);
        column.end_row();
    }
}

/// The observations' own metadata, row by row.
struct OwnMetadata<'a> {
    name_lengths: ArrayCursor<'a>,
    names: StringCursor<'a>,
    value_lengths: ArrayCursor<'a>,
    values: StringCursor<'a>,
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
    fn next_row(&mut self, decoded: &mut Vec<&'a [u8]>) -> Result<MergedRow<'a, 'a>, NativeError> {
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
        Ok(MergedRow {
            own_count: count,
            own_names: self.names.next_encoded(count)?,
            own_values: self.values.next_encoded(count)?,
            from_trace: Kept::All(&[]),
            tags: None,
        })
    }
}
