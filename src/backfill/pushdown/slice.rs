//! Reads the keys of a slice's rows, and sorts them: not to be written, for the server, or for the
//! embedded pipeline.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::task::block_in_place;

use super::key_list::KeyList;
use super::statements::{Slice, Statements};
use crate::backfill::block_stream::BlockStream;
use crate::backfill::error::WorkError;
use crate::backfill::guard::Guard;
use crate::backfill::guard::row_hash::{RowParts, hash_key};
use crate::clickhouse::{Connection, Statement};
use crate::inspect::segments::Segment;
use crate::inspect::statements::of_segment;
use crate::mapping::Source;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::memory::numbers::short;
use crate::native::{Block, FixedCursor, StringCursor};
use crate::partition::Day;
use crate::shutdown::Shutdown;
use crate::state::counts::LeftOut;
use crate::trace_store::{HASH_BYTES, HashKey, RowKey, TraceStore, key};

/// Rows per block of keys.
const KEY_ROWS: usize = 65_536;

/// The rows of a slice, sorted.
#[derive(Debug, Default)]
pub(super) struct SortedRows {
    /// Rows read.
    pub read: u64,
    /// Rows for the server.
    pub to_write: usize,
    /// Rows for the embedded pipeline.
    pub apart: usize,
    /// Rows that are not to be written.
    pub left_out: LeftOut,
    /// The traces of the rows for the server.
    pub near: KeyList,
    /// Keys of rows that the server must not take although their trace is near: those left out, and
    /// those in experiments.
    pub not_by_server: KeyList,
    /// Rows for the embedded pipeline, by their own key.
    pub apart_rows: Vec<HashKey>,
    /// Traces all of whose rows are for the embedded pipeline.
    pub apart_traces: Vec<HashKey>,
    /// The keys of those rows.
    pub rows_of_apart_traces: Vec<HashKey>,
}

/// Rows that may be written, before it is known where their traces are.
#[derive(Default)]
struct Candidates {
    sorted: SortedRows,
    /// The place of each trace in `traces`.
    places: HashMap<HashKey, u32>,
    traces: Vec<HashKey>,
    /// The row's key and its trace's place.
    rows: Vec<(HashKey, u32)>,
}

/// Sorts the rows of segments.
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

impl Sorter {
    /// Reads and sorts the keys of a slice's rows.
    ///
    /// # Errors
    /// [`WorkError`] if the server or the store fails, or on a signal.
    pub(super) async fn sort(
        &self,
        connection: &Connection,
        segment: &Segment,
        slice: Slice,
        days: &RangeInclusive<Day>,
    ) -> Result<SortedRows, WorkError> {
        let bytes = self.budget.preferred_block_bytes;
        let statement = of_segment(self.statements.keys_of(segment, slice), KEY_ROWS, bytes);
        let mut candidates = Candidates::default();
        self.for_each_block(connection, &statement, |block| {
            self.take(block, &mut candidates)
        })
        .await?;
        let near = match self.source {
            Source::Observations => {
                self.near(connection, segment, days, &candidates.traces)
                    .await?
            }
            // Nothing is joined.
            Source::Traces => candidates.traces.iter().copied().collect(),
        };
        block_in_place(|| self.settle(candidates, near))
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

    fn take(&self, block: &Block, candidates: &mut Candidates) -> Result<(), WorkError> {
        let (judged, left_out) = self.guard.judge(block)?;
        candidates.sorted.left_out += left_out;
        candidates.sorted.read += block.rows as u64;
        let in_experiments = self.in_experiments(block)?;
        let text = |column| StringCursor::new(block.values(column));
        let (mut projects, mut ids) = (text(0), text(1));
        for (row, judged) in judged.into_iter().enumerate() {
            let (project, trace) = (projects.next_value()?, ids.next_value()?);
            let key = short_key(&judged.key);
            if !judged.is_write {
                candidates.sorted.not_by_server.push(key);
            } else if in_experiments.get(row).is_some_and(|&is_one| is_one) {
                candidates.sorted.not_by_server.push(key);
                candidates.sorted.apart_rows.push(key);
            } else if trace.is_empty() {
                candidates.sorted.apart_rows.push(key);
            } else {
                let span = &b""[..];
                let parts = RowParts {
                    project,
                    trace,
                    span,
                };
                candidates.add(key, parts.trace_key());
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

    /// Those of some traces that are near and have versions on no other day.
    async fn near(
        &self,
        connection: &Connection,
        segment: &Segment,
        days: &RangeInclusive<Day>,
        traces: &[HashKey],
    ) -> Result<HashSet<HashKey>, WorkError> {
        let mut near = HashSet::new();
        if traces.is_empty() {
            return Ok(near);
        }
        let mut asked = KeyList::default();
        asked.extend(traces.iter().copied());
        let sql = self.statements.near_traces(segment, days, &asked);
        drop(asked);
        let statement = Statement::new(sql, KEY_ROWS).of_a_table();
        self.for_each_block(connection, &statement, |block| {
            let mut hashes = FixedCursor::<8>::new(block.values(0));
            let mut checks = FixedCursor::<4>::new(block.values(1));
            for _ in 0..block.rows {
                let hash = u64::from_le_bytes(hashes.next_value()?);
                near.insert(hash_key(hash, u32::from_le_bytes(checks.next_value()?)));
            }
            Ok(())
        })
        .await?;
        Ok(near)
    }

    fn settle(
        &self,
        candidates: Candidates,
        near: HashSet<HashKey>,
    ) -> Result<SortedRows, WorkError> {
        let Candidates {
            mut sorted,
            traces,
            rows,
            ..
        } = candidates;
        let of_several_days = self.store.are_of_several_days(&traces)?;
        let is_near: Vec<bool> = traces
            .iter()
            .zip(of_several_days)
            .map(|(trace, of_several_days)| near.contains(trace) && !of_several_days)
            .collect();
        for (&trace, &is_near) in traces.iter().zip(&is_near) {
            match is_near {
                true => sorted.near.push(trace),
                false => sorted.apart_traces.push(trace),
            }
        }
        for (row, trace) in rows {
            match is_near[trace as usize] {
                true => sorted.to_write += 1,
                false => sorted.rows_of_apart_traces.push(row),
            }
        }
        if self.source == Source::Traces {
            // Its statement takes all rows that it is not told to leave.
            sorted
                .not_by_server
                .extend(sorted.rows_of_apart_traces.iter().copied());
        }
        sorted.apart = sorted.apart_rows.len() + sorted.rows_of_apart_traces.len();
        Ok(sorted)
    }
}

impl Candidates {
    fn add(&mut self, row: HashKey, trace: HashKey) {
        let next = short(self.traces.len());
        let place = *self.places.entry(trace).or_insert(next);
        if place == next {
            self.traces.push(trace);
        }
        self.rows.push((row, place));
    }
}

/// The two hashes of a row's key.
fn short_key(key: &RowKey) -> HashKey {
    let mut short = [0; HASH_BYTES];
    short.copy_from_slice(&key[key.len() - HASH_BYTES..]);
    short
}
