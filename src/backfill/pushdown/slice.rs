//! Reads the keys of a slice's rows, and sorts them: not to be written, for the server, or for the
//! embedded pipeline.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::task::block_in_place;

use super::in_experiments::in_experiments;
use super::key_file::KeyFile;
use super::keys::{Keys, TraceName, TracePlace};
use super::sorted_rows::SortedRows;
use super::statements::{Slice, Statements};
use crate::backfill::block_stream::BlockStream;
use crate::backfill::error::WorkError;
use crate::backfill::guard::Guard;
use crate::backfill::guard::row_hash::version_key;
use crate::backfill::guard::seen_row::SeenRow;
use crate::clickhouse::{Connection, Statement, TableInfo};
use crate::inspect::segments::Segment;
use crate::inspect::statements::of_segment;
use crate::mapping::Source;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::memory::numbers::short;
use crate::native::{Block, StringCursor};
use crate::partition::Day;
use crate::shutdown::Shutdown;
use crate::trace_store::{HASH_BYTES, HashKey, TraceStore, key};

/// Rows per block of keys.
const KEY_ROWS: usize = 65_536;

/// The keys of a slice's rows, before it is known where all of their traces are.
#[derive(Default)]
pub(super) struct ReadSlice {
    sorted: SortedRows,
    traces: Vec<HashKey>,
    /// Project and id of those that are not near, by place.
    not_near: Vec<(u32, TraceName)>,
    /// The row's key and its trace's place.
    rows: Vec<(HashKey, u32)>,
}

/// Keys that were read before.
pub(super) struct KeptKeys {
    /// Has them.
    pub file: Arc<KeyFile>,
    /// The table that they are of.
    pub table: TableInfo,
    /// The partition that they are of.
    pub partition_id: String,
}

/// Reads and sorts the rows of segments.
pub(super) struct Sorter {
    pub source: Source,
    /// Judges rows by their keys.
    pub guard: Guard,
    pub statements: Statements,
    pub store: Arc<TraceStore>,
    pub budget: Budget,
    pub pool: BufferPool,
    pub shutdown: Shutdown,
    /// Keys that were read before, if any were.
    pub kept: Option<KeptKeys>,
}

impl ReadSlice {
    /// Adds a row. `place` is its trace's; rows to write without one are for this process.
    fn add(&mut self, row: &SeenRow, is_write: bool, place: TracePlace) {
        let key = version_key(&row.key, row.version);
        match place {
            Some(place) if is_write => self.rows.push((key, place)),
            _ => {
                self.sorted.not_by_server.push(key);
                if is_write {
                    self.sorted.apart_rows.push(key);
                }
            }
        }
    }

    /// Approximate memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let keys =
            self.traces.len() + self.sorted.not_by_server.len() + self.sorted.apart_rows.len();
        let names = self.not_near.iter();
        let names: usize = names
            .map(|(_, (project, id))| project.len() + id.len() + 64)
            .sum();
        self.rows.len() * 16 + keys * HASH_BYTES + names
    }
}

impl Sorter {
    /// Reads the keys of a slice's rows: those that were kept, if they still hold, or the table's.
    ///
    /// # Errors
    /// [`WorkError`] if the server, the store or a file fails, or on a signal.
    pub(super) async fn read(
        &self,
        connection: &Connection,
        segment: &Segment,
        slice: Slice,
        days: &RangeInclusive<Day>,
    ) -> Result<ReadSlice, WorkError> {
        if let Some(keys) = self.kept_keys(connection, segment, slice).await? {
            return block_in_place(|| self.take_keys(&keys, days));
        }
        let bytes = self.budget.preferred_block_bytes;
        let statement = of_segment(self.statements.keys_of(segment, slice), KEY_ROWS, bytes);
        let mut slice = ReadSlice::default();
        let mut names = Names::default();
        self.for_each_block(connection, &statement, |block| {
            self.take(block, &mut slice, &mut names)
        })
        .await?;
        block_in_place(|| self.find_near(&mut slice, days, |place| names.name(place as usize)))?;
        Ok(slice)
    }

    /// The keys of a whole segment, unless rows have arrived since they were read.
    async fn kept_keys(
        &self,
        connection: &Connection,
        segment: &Segment,
        slice: Slice,
    ) -> Result<Option<Keys>, WorkError> {
        let Some(kept) = self.kept.as_ref().filter(|_| slice.of == 1) else {
            return Ok(None);
        };
        let keys = block_in_place(|| kept.file.take(segment.number));
        let Some(keys) = keys? else {
            return Ok(None);
        };
        let state = connection.partition_state(&kept.table, &kept.partition_id);
        Ok(kept.file.is_as_of(state.await?).then_some(keys))
    }

    fn take_keys(&self, keys: &Keys, days: &RangeInclusive<Day>) -> Result<ReadSlice, WorkError> {
        let mut slice = ReadSlice::default();
        // Traces of rows that are not to be written are not asked for.
        let mut places = vec![None; keys.number_of_traces()];
        let mut kept_places = Vec::new();
        for rows in keys.chunks(KEY_ROWS) {
            let seen: Vec<SeenRow> = rows.iter().map(|(row, _)| *row).collect();
            let (is_write, left_out) = self.guard.judge(&seen, None)?;
            slice.sorted.left_out += left_out;
            slice.sorted.read += rows.len() as u64;
            for ((row, kept_place), is_write) in rows.into_iter().zip(is_write) {
                let place = kept_place.filter(|_| is_write).map(|kept_place| {
                    *places[kept_place as usize].get_or_insert_with(|| {
                        slice.traces.push(keys.trace(kept_place));
                        kept_places.push(kept_place);
                        short(kept_places.len() - 1)
                    })
                });
                slice.add(&row, is_write, place);
            }
        }
        self.find_near(&mut slice, days, |place| {
            keys.name(kept_places[place as usize])
        })?;
        Ok(slice)
    }

    /// Finds out which traces are not near.
    fn find_near(
        &self,
        slice: &mut ReadSlice,
        days: &RangeInclusive<Day>,
        name: impl Fn(u32) -> TraceName,
    ) -> Result<(), WorkError> {
        let days_of_traces = self.store.days_of_traces(&slice.traces)?;
        for (place, day) in (0..).zip(days_of_traces) {
            if !day.is_some_and(|day| days.contains(&day)) {
                slice.not_near.push((place, name(place)));
            }
        }
        Ok(())
    }

    async fn for_each_block(
        &self,
        connection: &Connection,
        statement: &Statement,
        mut take: impl FnMut(&Block) -> Result<(), WorkError>,
    ) -> Result<(), WorkError> {
        let most = self.budget.max_block_bytes;
        let mut blocks =
            BlockStream::open(connection, statement, most, &self.pool, &self.shutdown)?;
        while let Some(block) = blocks.next().await? {
            block_in_place(|| take(&block))?;
        }
        Ok(())
    }

    fn take(
        &self,
        block: &Block,
        slice: &mut ReadSlice,
        names: &mut Names,
    ) -> Result<(), WorkError> {
        let seen = self.guard.seen(block)?;
        let rows: Vec<SeenRow> = seen.iter().map(|(row, _)| *row).collect();
        let (is_write, left_out) = self.guard.judge(&rows, Some(block))?;
        slice.sorted.left_out += left_out;
        slice.sorted.read += block.rows as u64;
        let in_experiments = in_experiments(&self.store, block)?;
        let text = |column| StringCursor::new(block.values(column));
        let (mut projects, mut ids) = (text(0), text(1));
        for (number, ((row, hashes), is_write)) in seen.iter().zip(is_write).enumerate() {
            let (project, trace) = (projects.next_value()?, ids.next_value()?);
            let is_apart = trace.is_empty() || in_experiments.contains(number);
            let place = (is_write && !is_apart).then(|| {
                let key = hashes.trace_key(trace);
                let (place, is_new) = names.place(key, project, trace);
                if is_new {
                    slice.traces.push(key);
                }
                place
            });
            slice.add(row, is_write, place);
        }
        Ok(())
    }

    /// The traces that are not near, and of which the store does not know where they are.
    ///
    /// # Errors
    /// [`WorkError::Store`] if the store fails.
    pub(super) fn unknown(&self, slice: &ReadSlice) -> Result<Vec<TraceName>, WorkError> {
        let known = self.not_near_traces(slice)?;
        let names = slice.not_near.iter().zip(known);
        let names = names.filter(|(_, known)| *known == Known::Nothing);
        Ok(names.map(|((_, name), _)| name.clone()).collect())
    }

    fn not_near_traces(&self, slice: &ReadSlice) -> Result<Vec<Known>, WorkError> {
        let keys: Vec<Vec<u8>> = slice
            .not_near
            .iter()
            .map(|(_, (project, id))| {
                let mut encoded = Vec::new();
                key::encode(&mut encoded, project, id);
                encoded
            })
            .collect();
        let keys: Vec<(Day, &[u8])> = keys.iter().map(|key| (0, key.as_slice())).collect();
        let versions = self.store.trace_versions(&keys)?.into_iter();
        let known = versions.map(|version| match version {
            None => Known::Nothing,
            Some(version) if version.is_deleted => Known::Gone,
            Some(_) => Known::Elsewhere,
        });
        Ok(known.collect())
    }

    /// Sorts the rows of a slice by what is known of their traces now.
    ///
    /// # Errors
    /// [`WorkError::Store`] if the store fails.
    pub(super) fn sort(&self, slice: ReadSlice) -> Result<SortedRows, WorkError> {
        let mut known = vec![Known::Near; slice.traces.len()];
        let not_near = self.not_near_traces(&slice)?;
        for ((place, _), of_it) in slice.not_near.iter().zip(not_near) {
            known[*place as usize] = of_it;
        }
        let mut sorted = slice.sorted;
        for (&trace, known) in slice.traces.iter().zip(&known) {
            match known {
                Known::Near => sorted.near.push(trace),
                Known::Gone if self.source == Source::Observations => sorted.gone.push(trace),
                _ => sorted.apart_traces.push(trace),
            }
        }
        for (row, trace) in slice.rows {
            match known[trace as usize] {
                Known::Near => sorted.to_write += 1,
                Known::Gone if self.source == Source::Observations => {
                    sorted.to_write += 1;
                    sorted.without_trace += 1;
                }
                _ => sorted.rows_of_apart_traces.push(row),
            }
        }
        if self.source == Source::Traces {
            // They are no rows of the server.
            let rows = sorted.rows_of_apart_traces.iter().copied();
            sorted.not_by_server.extend(rows);
        }
        Ok(sorted)
    }
}

/// What is known of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It is near, on one day.
    Near,
    /// Its latest version is in the store.
    Elsewhere,
    /// There is none, or it is deleted.
    Gone,
    /// Nobody has asked yet.
    Nothing,
}

/// The distinct traces of a slice.
#[derive(Default)]
struct Names {
    places: HashMap<HashKey, u32>,
    bytes: Vec<u8>,
    /// Where project and id of each end.
    ends: Vec<(usize, usize)>,
}

impl Names {
    /// The place of a trace, and whether it is new.
    fn place(&mut self, key: HashKey, project: &[u8], id: &[u8]) -> (u32, bool) {
        let next = short(self.ends.len());
        let place = *self.places.entry(key).or_insert(next);
        if place == next {
            self.bytes.extend_from_slice(project);
            let end_of_project = self.bytes.len();
            self.bytes.extend_from_slice(id);
            self.ends.push((end_of_project, self.bytes.len()));
        }
        (place, place == next)
    }

    fn name(&self, place: usize) -> TraceName {
        let start = match place {
            0 => 0,
            place => self.ends[place - 1].1,
        };
        let (end_of_project, end) = self.ends[place];
        let project = self.bytes[start..end_of_project].to_vec();
        (project, self.bytes[end_of_project..end].to_vec())
    }
}
