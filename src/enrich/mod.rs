//! A block of observations and the traces they belong to become a block of events.
//!
//! The pass-through columns are not touched: they are slices of the block
//! that arrived. Only the columns the trace has a part in are built.

mod disposition;
mod item_columns;
mod json;
mod keys;
mod metadata;
mod row_traces;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::mapping::{Enriched, Helper, Mapping, Source, VERSION};
use crate::memory::buffer_pool::BufferPool;
use crate::native::{
    Block, DataType, FixedCursor, NativeError, NullableStringCursor, Share, StringCursor,
    held_bytes, put_block_header, put_column_header, put_string,
};
use crate::partition::Day;
use crate::trace_store::{Found, FoundItems, Reach, StoreError, TraceRecord, TraceStore, key};

use disposition::{Disposition, Rows, divide, take};
use item_columns::RowItems;
use keys::{Keys, Slots};
use metadata::{Appended, MergedRow, put_names, put_values};
use row_traces::RowTraces;

/// Bytes that have to lie side by side in a column to be sent from where they are, without those of the
/// rows that are deferred: less is copied faster than it is sent piece by piece.
const PIECE_BYTES: usize = 4 * 1024;

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
    /// Rows that belong to an experiment.
    pub in_experiments: usize,
    /// Bytes of memory it holds: the buffer of the whole block that arrived, helper
    /// columns included, what was copied of it, and the buffer of what was built.
    pub held_bytes: usize,
}

impl EnrichedBlock {
    /// Bytes that are sent for it, uncompressed.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Rows that do not become events now.
#[derive(Debug, Default)]
pub struct SetAside {
    /// Blocks of rows of whose traces the store knows nothing, or too little.
    pub deferred: Vec<Block>,
    /// Rows that are nothing: versions of traces that do not count.
    pub superseded: usize,
}

/// What to do with a row of whose trace the store knows nothing, or only an older version
/// than the row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It becomes an event with what is known; a version of a trace of which nothing is
    /// known is deleted by now.
    WithoutTrace,
    /// It is set aside, unless it has no trace id.
    Deferred,
}

/// Enriches blocks. Shared by all segments.
pub struct Enricher {
    mapping: Arc<Mapping>,
    store: Arc<TraceStore>,
    pool: BufferPool,
    /// Buffers of blocks without those rows that are set aside.
    divided: BufferPool,
    /// Name and type of each column that arrives.
    expected: Vec<(String, DataType)>,
}

impl Enricher {
    /// An enricher that builds blocks in buffers of `pool`.
    pub fn new(mapping: Arc<Mapping>, store: Arc<TraceStore>, pool: BufferPool) -> Self {
        Self {
            expected: mapping.result_columns(),
            divided: pool.for_another_size(),
            mapping,
            store,
            pool,
        }
    }

    /// Looks up the traces of some blocks, all together, and builds the blocks of
    /// events, within `max_bytes` of memory besides the blocks themselves. Rows that do
    /// not become events now are taken out of the blocks, and put into `set_aside`, whatever comes
    /// of the others.
    ///
    /// # Errors
    /// [`EnrichError::Native`] with [`NativeError::TooLarge`] where the traces, or
    /// their attributes repeated for each row, exceed that: give fewer blocks, or
    /// ask for fewer rows.
    pub fn enrich(
        &self,
        blocks: &mut Vec<Block>,
        unknown: Unknown,
        set_aside: &mut SetAside,
        max_bytes: usize,
    ) -> Result<Vec<EnrichedBlock>, EnrichError> {
        let rows = blocks.iter().map(|block| block.rows).max().unwrap_or(0);
        let too_large = || {
            EnrichError::Native(NativeError::TooLarge {
                rows,
                limit: max_bytes,
            })
        };
        blocks
            .iter()
            .try_for_each(|block| self.check_columns(block))?;
        let keys = self.keys(blocks)?;
        let (slots, unique) = keys.distinct();
        let reach = match unknown {
            Unknown::WithoutTrace => Reach::AllDays,
            Unknown::Deferred => Reach::Near,
        };
        let found = self.store.look_up(&unique, reach, max_bytes / 2)?;
        if found.is_too_large() {
            return Err(too_large());
        }
        let found_items = self.look_up_items(blocks, &slots, &unique, max_bytes / 4)?;
        if found_items.is_too_large() {
            return Err(too_large());
        }
        let records = (0..unique.len()).map(|index| found.record(index));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let lists = records.iter().flatten().map(TraceRecord::list_bytes);
        let of_records = size_of::<Option<TraceRecord<'_>>>() * unique.len();
        let held = found.held_bytes() + found_items.held_bytes() + of_records;
        let held = held + lists.sum::<usize>();
        if held > max_bytes {
            return Err(too_large());
        }
        let items = found_items.records()?;
        let dispositions = self.dispositions(blocks, unknown, &slots, &records, &found)?;
        let before = held_bytes(blocks);
        let kept = self.put_aside(blocks, &dispositions, set_aside)?;
        // A block without some of its rows holds what was copied, and what stays where it is.
        let copied = held_bytes(blocks).saturating_sub(before);
        let mut room = max_bytes.saturating_sub(held + copied);
        let mut enriched = Vec::with_capacity(blocks.len());
        for (block, rows) in blocks.iter().zip(kept) {
            let traces = RowTraces {
                of_row: take(&slots.of_row, &rows),
                records: &records,
            };
            let items = RowItems {
                of_row: take(found_items.of_row(), &rows),
                items: &items,
            };
            let built = self.build_block(block, &traces, &items, room)?;
            let built = built.ok_or_else(too_large)?;
            room -= built.held_bytes - block.held_bytes;
            enriched.push(built);
        }
        Ok(enriched)
    }

    /// Leaves in the blocks the rows that become events now, and gives their numbers among
    /// the rows of all blocks: one list for each block that is left.
    fn put_aside(
        &self,
        blocks: &mut Vec<Block>,
        dispositions: &[Disposition],
        set_aside: &mut SetAside,
    ) -> Result<Vec<Rows>, NativeError> {
        let mut kept = Vec::with_capacity(blocks.len());
        let mut left = Vec::with_capacity(blocks.len());
        let mut first = 0;
        for block in blocks.drain(..) {
            let dispositions = &dispositions[first..first + block.rows];
            let among_all = |range: &Range<usize>| range.start + first..range.end + first;
            let (in_time, deferred) = divide(dispositions);
            let rows = in_time.iter().map(among_all).collect();
            first += block.rows;
            let is_superseded =
                |disposition: &&Disposition| **disposition == Disposition::Superseded;
            set_aside.superseded += dispositions.iter().filter(is_superseded).count();
            if in_time.first() == Some(&(0..block.rows)) {
                left.push(block);
                kept.push(rows);
                continue;
            }
            let shares = [
                Share {
                    rows: &in_time,
                    buffer: self.divided.take(),
                },
                Share {
                    rows: &deferred,
                    // Few rows, in a buffer of their own size.
                    buffer: BufferPool::new(0, 0).take(),
                },
            ];
            let [now, later] = block.divide(shares, |column, bytes| {
                bytes >= PIECE_BYTES && self.is_only_passed_on(column)
            })?;
            if !deferred.is_empty() {
                set_aside.deferred.push(later);
            }
            if !in_time.is_empty() {
                left.push(now);
                kept.push(rows);
            }
        }
        *blocks = left;
        Ok(kept)
    }

    /// Whether nothing here looks at the values of a column.
    fn is_only_passed_on(&self, column: usize) -> bool {
        let mapping = &self.mapping;
        let (project, trace) = mapping.key_columns;
        column < mapping.pass_through.len()
            && ![project, trace, mapping.span_column].contains(&column)
    }

    /// The block of events, unless it takes more than `max_bytes` besides the block.
    fn build_block(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        items: &RowItems<'_, '_>,
        max_bytes: usize,
    ) -> Result<Option<EnrichedBlock>, EnrichError> {
        // Refused before it is built: what a trace or an item says is repeated in each of its rows.
        if traces.attribute_bytes() + items.attribute_bytes() > max_bytes {
            return Ok(None);
        }
        let merged = match self.mapping.helper_index(Helper::MetadataNames) {
            None => Vec::new(),
            Some(_) => {
                let helpers = [Helper::MetadataNames, Helper::MetadataValues];
                let [names, values] = helpers.map(|helper| self.helper(block, helper));
                metadata::merge(&self.mapping, names?, values?, block.rows, traces)?
            }
        };
        let mut appended = self.pool.take();
        for column in &self.mapping.enriched {
            put_column_header(&mut appended, &column.name, &column.sent_type);
            match column.form {
                Enriched::Experiment(column) => items.put(column, &mut appended),
                form => self.build(form, block, traces, &merged, &mut appended)?,
            }
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
            pieces: [
                vec![Bytes::from(header)],
                block.pieces(0..pass_through),
                vec![appended.freeze()],
            ]
            .concat(),
            rows: block.rows,
            without_trace: traces.iter().filter(Option::is_none).count(),
            in_experiments: items.count(),
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

    /// The day and the trace's key of each row of all blocks.
    fn keys(&self, blocks: &[Block]) -> Result<Keys, NativeError> {
        let rows = blocks.iter().map(|block| block.rows).sum();
        let mut keys = Keys {
            bytes: Vec::with_capacity(rows * 48),
            of_row: Vec::with_capacity(rows),
        };
        let (project_column, trace_column) = self.mapping.key_columns;
        for block in blocks {
            let mut projects = StringCursor::new(block.values(project_column));
            let mut traces = StringCursor::new(block.values(trace_column));
            let mut days = FixedCursor::<2>::new(self.helper(block, Helper::Day)?);
            for _ in 0..block.rows {
                key::encode(
                    &mut keys.bytes,
                    projects.next_value()?,
                    traces.next_value()?,
                );
                let day = Day::from_le_bytes(days.next_value()?);
                keys.of_row.push((day, keys.bytes.len()));
            }
        }
        Ok(keys)
    }

    /// The items of the rows of all blocks; of none, where they are not wanted.
    fn look_up_items(
        &self,
        blocks: &[Block],
        slots: &Slots,
        unique: &[(Day, &[u8])],
        max_bytes: usize,
    ) -> Result<FoundItems, EnrichError> {
        if !self.mapping.has_experiments() {
            return Ok(FoundItems::default());
        }
        let mut rows = Vec::with_capacity(slots.of_row.len());
        let mut traces = slots.of_row.iter();
        for block in blocks {
            let mut spans = StringCursor::new(block.values(self.mapping.span_column));
            for &trace in traces.by_ref().take(block.rows) {
                rows.push((trace, spans.next_value()?));
            }
        }
        let traces: Vec<&[u8]> = unique.iter().map(|(_, key)| *key).collect();
        Ok(self.store.look_up_items(&traces, &rows, max_bytes)?)
    }

    /// What becomes of each row of all blocks.
    fn dispositions(
        &self,
        blocks: &[Block],
        unknown: Unknown,
        slots: &Slots,
        records: &[Option<TraceRecord<'_>>],
        found: &Found,
    ) -> Result<Vec<Disposition>, EnrichError> {
        let wait = |otherwise| match unknown {
            Unknown::Deferred => Disposition::Deferred,
            Unknown::WithoutTrace => otherwise,
        };
        let of_row = slots.of_row.iter().map(|&slot| slot as usize);
        if self.mapping.source == Source::Observations {
            let dispositions: Vec<Disposition> = (0..records.len())
                .map(|slot| match slots.has_id[slot] && !found.is_known(slot) {
                    true => wait(Disposition::Event),
                    false => Disposition::Event,
                })
                .collect();
            return Ok(of_row.map(|slot| dispositions[slot]).collect());
        }
        let known = (0..records.len()).map(|slot| found.event_ts(slot));
        let known: Vec<Option<i64>> = known.collect::<Result<_, _>>()?;
        let mut dispositions = Vec::with_capacity(slots.of_row.len());
        let mut rows = of_row.zip(&slots.days);
        for block in blocks {
            let mut versions = FixedCursor::<8>::new(self.helper(block, Helper::EventTs)?);
            for (slot, &day) in rows.by_ref().take(block.rows) {
                let event_ts = i64::from_le_bytes(versions.next_value()?);
                let counts = records[slot].as_ref().is_some_and(|r| r.day == day);
                dispositions.push(match (known[slot], counts) {
                    (None, _) => wait(Disposition::Superseded),
                    // The row was written after its trace was loaded. Without a record by the
                    // time it was asked for again, it is not there any more.
                    (Some(known), _) if known < event_ts => wait(match &records[slot] {
                        Some(_) => Disposition::Event,
                        None => Disposition::Superseded,
                    }),
                    (Some(_), true) => Disposition::Event,
                    // Another version counts, or the trace is deleted.
                    (Some(_), false) => Disposition::Superseded,
                });
            }
        }
        Ok(dispositions)
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
            Enriched::Text(text) => traces.put_text(text, out),
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
            // Built by the caller, from the items.
            Enriched::Experiment(_) => {}
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
            let of_trace = trace.map_or(&b""[..], |trace| trace.texts[VERSION]);
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
}
