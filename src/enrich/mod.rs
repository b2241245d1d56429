//! Turns blocks of observations and their traces into blocks of events.
//!
//! Pass-through columns stay untouched, as slices of the block that arrived. Only columns that
//! depend on the trace are built.

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

/// Minimum contiguous bytes for sending a column in place, without the deferred rows. Shorter runs
/// are cheaper to copy than to send piece by piece.
const PIECE_BYTES: usize = 4 * 1024;

/// Why a block could not be enriched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrichError {
    /// The block does not match the query or exceeds its limit.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The trace store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A block of events, in pieces to send one after another.
#[derive(Debug, Clone)]
pub struct EnrichedBlock {
    /// The bytes.
    pub pieces: Vec<Bytes>,
    /// Number of rows.
    pub rows: usize,
    /// Number of rows whose trace was not found.
    pub without_trace: usize,
    /// Number of rows that belong to an experiment.
    pub in_experiments: usize,
    /// Memory held in bytes: the arrived block's buffer with its helper columns, copies made from
    /// it, and the built columns.
    pub held_bytes: usize,
}

impl EnrichedBlock {
    /// Uncompressed bytes to send.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
}

/// Rows that do not become events now.
#[derive(Debug, Default)]
pub struct SetAside {
    /// Rows whose trace the store lacks, or knows only in an older version.
    pub deferred: Vec<Block>,
    /// Number of dropped rows: trace versions that do not win.
    pub superseded: usize,
}

/// How to treat a row whose trace the store lacks, or knows only in an older version than the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Write it with what is known. A trace row the store knows nothing of has since been deleted.
    WithoutTrace,
    /// Defer it, unless it has no trace id.
    Deferred,
}

/// Enriches blocks. All segments share one.
pub struct Enricher {
    mapping: Arc<Mapping>,
    store: Arc<TraceStore>,
    pool: BufferPool,
    /// Buffers for blocks whose deferred rows were removed.
    divided: BufferPool,
    /// Name and type of each expected column.
    expected: Vec<(String, DataType)>,
}

impl Enricher {
    /// Builds blocks in buffers from `pool`.
    pub fn new(mapping: Arc<Mapping>, store: Arc<TraceStore>, pool: BufferPool) -> Self {
        Self {
            expected: mapping.result_columns(),
            divided: pool.for_another_size(),
            mapping,
            store,
            pool,
        }
    }

    /// Looks up the traces of several blocks together and builds the event blocks, using up to
    /// `max_bytes` of memory besides the blocks themselves. Rows that do not become events now move
    /// from the blocks to `set_aside`, even if enriching the others fails.
    ///
    /// # Errors
    /// [`EnrichError::Native`] with [`NativeError::TooLarge`] if the traces, or their attributes
    /// repeated per row, exceed the limit: pass fewer blocks or request fewer rows.
    /// [`EnrichError::Store`] if the trace store fails.
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
        // A block with rows removed holds both the copies and what stays in place.
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

    /// Keeps the rows that become events now in the blocks, and returns their indices over all
    /// blocks, one list per remaining block.
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
                    // Deferred rows are few: use an exact-size buffer.
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

    /// Whether enriching never reads a column's values.
    fn is_only_passed_on(&self, column: usize) -> bool {
        let mapping = &self.mapping;
        let (project, trace) = mapping.key_columns;
        column < mapping.pass_through.len()
            && ![project, trace, mapping.span_column].contains(&column)
    }

    /// Builds the block of events, unless it would take more than `max_bytes` besides the block.
    fn build_block(
        &self,
        block: &Block,
        traces: &RowTraces<'_, '_>,
        items: &RowItems<'_, '_>,
        max_bytes: usize,
    ) -> Result<Option<EnrichedBlock>, EnrichError> {
        // Reject it before building: trace and item attributes are repeated in every row.
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

    /// Checks that the columns match the query in name, type and order.
    fn check_columns(&self, block: &Block) -> Result<(), NativeError> {
        if block.columns.len() != self.expected.len() {
            return Err(NativeError::corrupt(format!(
                "{} columns arrived instead of the {} requested",
                block.columns.len(),
                self.expected.len()
            )));
        }
        for ((name, data_type), arrived) in self.expected.iter().zip(&block.columns) {
            if **name != *arrived.name || *data_type != *arrived.data_type {
                return Err(NativeError::corrupt(format!(
                    "column {} {} arrived instead of {name} {data_type}",
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

    /// Each row's day and trace key, over all blocks.
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

    /// The items of all rows, or none if experiments are off.
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

    /// Decides what happens to each row.
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
                    // The row is newer than the loaded trace. If a repeated look-up found no
                    // record, the trace is gone.
                    (Some(known), _) if known < event_ts => wait(match &records[slot] {
                        Some(_) => Disposition::Event,
                        None => Disposition::Superseded,
                    }),
                    (Some(_), true) => Disposition::Event,
                    // Another version wins, or the trace is deleted.
                    (Some(_), false) => Disposition::Superseded,
                });
            }
        }
        Ok(dispositions)
    }

    /// Appends one column's values to `out`.
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
                // A map is the offsets, then all keys, then all values.
                put_names(merged, out);
                merged
                    .iter()
                    .for_each(|row| row.for_each_value(&mut Appended(out)));
            }
            // Built by the caller from the items.
            Enriched::Experiment(_) => {}
            Enriched::MetadataJson | Enriched::MetadataText => {
                if column == Enriched::MetadataJson {
                    // The format version that says the values follow as text.
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
