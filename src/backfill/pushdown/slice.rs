//! Reads the keys of a slice's rows, and sorts them: not to be written, for the server, or for the
//! embedded pipeline.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::task::block_in_place;

use super::sorted_rows::SortedRows;
use super::statements::{Slice, Statements};
use crate::backfill::block_stream::BlockStream;
use crate::backfill::error::WorkError;
use crate::backfill::guard::{Guard, Judged};
use crate::clickhouse::{Connection, Statement};
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

/// A trace's `project_id` and `id`.
pub(crate) type TraceName = (Vec<u8>, Vec<u8>);

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
}

impl ReadSlice {
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
    /// Reads the keys of a slice's rows.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal.
    pub(super) async fn read(
        &self,
        connection: &Connection,
        segment: &Segment,
        slice: Slice,
        days: &RangeInclusive<Day>,
    ) -> Result<ReadSlice, WorkError> {
        let bytes = self.budget.preferred_block_bytes;
        let statement = of_segment(self.statements.keys_of(segment, slice), KEY_ROWS, bytes);
        let mut slice = ReadSlice::default();
        let mut names = Names::default();
        self.for_each_block(connection, &statement, |block| {
            self.take(block, &mut slice, &mut names)
        })
        .await?;
        block_in_place(|| {
            let days_of_traces = self.store.days_of_traces(&slice.traces)?;
            for (place, day) in days_of_traces.into_iter().enumerate() {
                if !day.is_some_and(|day| days.contains(&day)) {
                    slice.not_near.push((short(place), names.name(place)));
                }
            }
            Ok(slice)
        })
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
        let (judged, left_out) = self.guard.judge(block)?;
        let sorted = &mut slice.sorted;
        sorted.left_out += left_out;
        sorted.read += block.rows as u64;
        let in_experiments = self.in_experiments(block)?;
        let is_in_experiment = |row| in_experiments.get(row).is_some_and(|&is_one| is_one);
        let text = |column| StringCursor::new(block.values(column));
        let (mut projects, mut ids) = (text(0), text(1));
        for (row, of_row) in judged.into_iter().enumerate() {
            let Judged {
                key,
                hashes,
                is_write,
            } = of_row;
            let (project, trace) = (projects.next_value()?, ids.next_value()?);
            if !is_write {
                sorted.not_by_server.push(key);
            } else if is_in_experiment(row) || trace.is_empty() {
                sorted.not_by_server.push(key);
                sorted.apart_rows.push(key);
            } else {
                let trace_key = hashes.trace_key(trace);
                let (place, is_new) = names.place(trace_key, project, trace);
                if is_new {
                    slice.traces.push(trace_key);
                }
                slice.rows.push((key, place));
            }
        }
        Ok(())
    }

    /// Which rows belong to an item; empty if none can.
    fn in_experiments(&self, block: &Block) -> Result<Vec<bool>, WorkError> {
        if !self.store.has_experiments() {
            return Ok(Vec::new());
        }
        let text = |column| StringCursor::new(block.values(column));
        let (mut projects, mut ids, mut spans) = (text(0), text(1), text(2));
        let mut traces = Vec::with_capacity(block.rows);
        let mut rows = Vec::with_capacity(block.rows);
        for row in 0..block.rows {
            let mut trace = Vec::new();
            key::encode(&mut trace, projects.next_value()?, ids.next_value()?);
            traces.push(trace);
            rows.push((short(row), spans.next_value()?));
        }
        let traces: Vec<&[u8]> = traces.iter().map(Vec::as_slice).collect();
        Ok(self.store.have_items(&traces, &rows)?)
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
