//! Measures loading, reading, enriching and event size on a small sample, with the same code as a
//! run. Inserts nothing; the sample's trace store is in a temporary directory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::Instant;

use crate::backfill::error::WorkError;
use crate::backfill::load::versions::{self, TraceSource};
use crate::backfill::pipeline::compress::Compressor;
use crate::backfill::remote_lookup::query::Question;
use crate::backfill::work_attempts::WorkAttempts;
use crate::cli::options::Options;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::enrich::{EnrichError, Enricher, SetAside, Unknown};
use crate::error::Error;
use crate::inspect::Inspected;
use crate::inspect::segments::Segment;
use crate::inspect::statements::of_segment;
use crate::mapping::Helper;
use crate::mapping::Source;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::memory::numbers::whole;
use crate::native::{Block, BlockReader, FixedCursor, NativeError, held_bytes};
use crate::partition::Day;
use crate::shutdown::Shutdown;
use crate::trace_store::{About, SeenTraces, TraceStore};

/// Enough rows for a measurement.
const MOST_ROWS: u64 = 100_000;
/// Stop reading after this.
const LONGEST: Duration = Duration::from_secs(5);
/// How often a reader without rows checks whether the others have enough.
const GLANCE: Duration = Duration::from_millis(100);
/// Attribute bytes that loading may put into the temporary store, and looking for traces once more.
const STORE_BYTES: u64 = 64 << 20;

/// Rows, and the time they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Measured {
    /// Number of rows.
    pub rows: u64,
    /// Time taken, in seconds.
    pub seconds: f64,
}

impl Measured {
    /// Time for `rows` rows in seconds, or `None` if nothing was measured.
    pub(crate) fn seconds_of(&self, rows: u64) -> Option<f64> {
        (self.rows > 0).then(|| self.seconds / self.rows as f64 * rows as f64)
    }
}

/// Traces with dataset run items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Experiments {
    /// Number of such traces with a row in the month.
    pub traces: u64,
    /// Traces whose spans were found, and the time taken.
    pub found: Measured,
    /// Whether measuring stopped early, making the figures lower bounds.
    pub is_cut_short: bool,
}

/// The measurements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Traces read and loaded into a store.
    pub load: Measured,
    /// Observations read, over several concurrent segments.
    pub read: Measured,
    /// Observations enriched, in one thread.
    pub enrich: Measured,
    /// Size of those as events, in uncompressed bytes sent.
    pub event_bytes: u64,
    /// Traces with dataset run items, if the run needs them.
    pub experiments: Option<Experiments>,
}

impl Sample {
    /// Bytes of `rows` events, or `None` if nothing was measured.
    pub(crate) fn bytes_of(&self, rows: u64) -> Option<u64> {
        let enriched = self.enrich.rows;
        (enriched > 0).then(|| whole(self.event_bytes as f64 / enriched as f64 * rows as f64))
    }
}

/// Takes the sample.
pub(super) struct Sampler<'a> {
    /// The options of the run.
    pub options: &'a Options,
    /// The server.
    pub connection: &'a Connection,
    /// Its inspected tables.
    pub inspected: &'a Inspected,
    /// When to retry.
    pub retries: &'a Retries,
    /// Signals a request to stop.
    pub shutdown: &'a Shutdown,
}

impl Sampler<'_> {
    /// Samples the traces and these segments of observations.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) if the server or the temporary directory fails.
    pub(super) async fn take(&self, segments: &[Segment]) -> Result<Sample, Error> {
        let directory = tempfile::tempdir().map_err(|error| {
            Error::failed(format!(
                "cannot create a temporary directory for the sample: {error}; set TMPDIR to a \
                 writable directory"
            ))
        })?;
        let path = directory.path().join("traces");
        let store = TraceStore::create(&path, self.options.budget.cache_bytes, "sample")
            .map_err(|error| given_up(&error.into(), ""))?;
        let store = Arc::new(store);
        let load = self.load(&store).await?;
        let experiments = self.experiments(&store).await?;
        let (read, blocks) = self.read(segments).await?;
        let blocks = self.find_traces(blocks, &store).await?;
        let (enrich, event_bytes) = block_in_place(|| self.enrich(blocks, &store))?;
        Ok(Sample {
            load,
            read,
            enrich,
            event_bytes,
            experiments,
        })
    }

    /// The number of traces whose attributes fill [`STORE_BYTES`].
    fn most_traces(&self) -> u64 {
        let Inspected {
            trace_bytes,
            traces_to_load,
            ..
        } = *self.inspected;
        let each = trace_bytes / traces_to_load.max(1);
        (STORE_BYTES / each.max(1)).clamp(1, MOST_ROWS)
    }

    fn trace_source(&self) -> TraceSource<'_> {
        TraceSource {
            connection: self.connection,
            table: &self.inspected.traces,
            mapping: &self.inspected.mapping,
            budget: self.options.budget,
            pool: self.options.budget.pool(),
            most_rows: Some(self.most_traces()),
        }
    }

    /// Loads the month's first traces.
    async fn load(&self, store: &TraceStore) -> Result<Measured, Error> {
        if self.inspected.trace_rows == 0 {
            return Ok(Measured::default());
        }
        let days = self.options.share().days();
        let source = self.trace_source();
        let mut attempts = attempts(self.retries, "loading traces", versions::BLOCK_ROWS);
        loop {
            let mut seen = SeenTraces::new(MOST_ROWS, self.options.budget.seen_bytes);
            let rows = AtomicU64::new(0);
            let count = |more| {
                rows.fetch_add(more, Ordering::Relaxed);
            };
            let started = Instant::now();
            let load = source.load_days(
                store,
                days.clone(),
                attempts.block_rows(),
                &mut seen,
                &count,
                self.shutdown,
            );
            match load.await {
                Ok(_) => {
                    return Ok(Measured {
                        rows: rows.into_inner(),
                        seconds: started.elapsed().as_secs_f64(),
                    });
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Reads the start of segments from all over the month, several at once, and keeps some blocks.
    async fn read(&self, segments: &[Segment]) -> Result<(Measured, Vec<Block>), Error> {
        let options = self.options;
        let query = self.inspected.segment_query(Source::Observations);
        let statements = spread(segments.len()).map(|index| query.sql(&segments[index]));
        let work = Arc::new(Reading {
            connection: self.connection.clone(),
            budget: options.budget,
            pool: options.budget.pool(),
            statements: Mutex::new(statements.collect()),
            rows: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            started: Instant::now(),
        });
        let mut readers = JoinSet::new();
        for _ in 0..options.concurrency {
            let (work, retries) = (Arc::clone(&work), self.retries.clone());
            // As in a run: the server does not split a block, so a block must not exceed a part.
            let block_rows = options.block_rows.min(options.batch_rows);
            readers.spawn(async move { work.read_all(block_rows, &retries).await });
        }
        let mut kept = Vec::new();
        while let Some(ended) = readers.join_next().await {
            let blocks =
                ended.map_err(|error| Error::caused("reading a sample ended unexpectedly", error));
            kept.extend(blocks??);
        }
        let nanoseconds = work.nanoseconds.load(Ordering::Relaxed);
        let measured = Measured {
            rows: work.rows.load(Ordering::Relaxed),
            seconds: Duration::from_nanos(nanoseconds).as_secs_f64(),
        };
        Ok((measured, kept))
    }

    /// Loads the traces of the blocks and returns the blocks whose traces were found. A run has
    /// them loaded by then, so this is not timed.
    async fn find_traces(
        &self,
        blocks: Vec<Block>,
        store: &TraceStore,
    ) -> Result<Vec<Block>, Error> {
        let mapping = &self.inspected.mapping;
        let mut question = Question::default();
        let mut days = Vec::new();
        let mut asked = Vec::new();
        for block in blocks {
            if question.is_full() || question.len() as u64 >= self.most_traces() {
                break;
            }
            block_in_place(|| question.add(&block, mapping.key_columns, About::Missing, store))
                .map_err(|error| given_up(&error, ""))?;
            days.extend(self.edges(&block));
            asked.push(block);
        }
        if let (Some(first), Some(last)) = (days.iter().min(), days.iter().max())
            && !question.is_empty()
        {
            // A trace starts with its first observation, or a little earlier.
            let question = question.on_days(first.saturating_sub(1)..=*last);
            let source = self.trace_source();
            let mut attempts = attempts(self.retries, "looking for traces", versions::BLOCK_ROWS);
            let (about, shutdown) = (About::Missing, self.shutdown);
            while let Err(error) = source
                .ask(&question, about, store, attempts.block_rows(), shutdown)
                .await
            {
                attempts.failed(error).await?;
            }
        }
        Ok(asked)
    }

    /// The first and last day of a block.
    fn edges(&self, block: &Block) -> Vec<Day> {
        let Some(column) = self.inspected.mapping.helper_index(Helper::Day) else {
            return Vec::new();
        };
        let mut days = FixedCursor::<2>::new(block.values(column));
        let days: Vec<Day> = (0..block.rows)
            .map_while(|_| days.next_value().ok().map(Day::from_le_bytes))
            .collect();
        days.iter()
            .min()
            .into_iter()
            .chain(days.iter().max())
            .copied()
            .collect()
    }

    /// Turns the blocks into events, ready to send.
    fn enrich(
        &self,
        blocks: Vec<Block>,
        store: &Arc<TraceStore>,
    ) -> Result<(Measured, u64), Error> {
        let budget = self.options.budget;
        let mapping = Arc::new(self.inspected.mapping.clone());
        let enricher = Enricher::new(mapping, Arc::clone(store), budget.pool());
        let compressor = Compressor {
            compression: self.connection.compression(),
            pool: budget.pool(),
        };
        let started = Instant::now();
        let (mut rows, mut bytes) = (0, 0);
        let mut groups = groups(blocks, budget.look_up_bytes);
        while let Some(mut group) = groups.pop() {
            // Without deferral, nothing is set aside.
            let (unknown, mut set_aside) = (Unknown::WithoutTrace, SetAside::default());
            let enriched =
                enricher.enrich(&mut group, unknown, &mut set_aside, budget.segment_bytes);
            let events = match enriched {
                Err(EnrichError::Native(NativeError::TooLarge { .. })) if group.len() > 1 => {
                    let second = group.split_off(group.len() / 2);
                    groups.extend([second, group]);
                    continue;
                }
                // A run would request smaller blocks; a sample has others.
                Err(EnrichError::Native(NativeError::TooLarge { .. })) => continue,
                enriched => enriched.map_err(|error| given_up(&error.into(), ""))?,
            };
            for event in events {
                rows += event.rows as u64;
                bytes += event.bytes() as u64;
                compressor
                    .seal(event)
                    .map_err(|error| Error::caused("cannot compress the sample", error))?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok((Measured { rows, seconds }, bytes))
    }
}

/// Retry handling for one part of the sample.
pub(super) fn attempts<'a>(
    retries: &'a Retries,
    doing: &str,
    block_rows: usize,
) -> WorkAttempts<'a> {
    WorkAttempts::new(
        retries,
        format!("{doing} for a sample"),
        "cannot take a sample",
    )
    .in_blocks_of(block_rows)
}

fn given_up(error: &WorkError, tries: &str) -> Error {
    Error::caused(format_args!("cannot take a sample{tries}"), error).with(error.advice())
}

/// Groups blocks to about `bytes` each, as a run enriches them.
fn groups(blocks: Vec<Block>, bytes: usize) -> Vec<Vec<Block>> {
    let mut groups: Vec<Vec<Block>> = Vec::new();
    let mut held = usize::MAX;
    for block in blocks {
        if held >= bytes {
            groups.push(Vec::new());
            held = 0;
        }
        held += block.held_bytes;
        if let Some(group) = groups.last_mut() {
            group.push(block);
        }
    }
    groups
}

/// State shared by the sample's readers.
struct Reading {
    connection: Connection,
    budget: Budget,
    pool: BufferPool,
    /// Statements still to read.
    statements: Mutex<VecDeque<String>>,
    rows: AtomicU64,
    /// When the last rows arrived.
    nanoseconds: AtomicU64,
    started: Instant,
}

impl Reading {
    fn next_statement(&self) -> Option<String> {
        self.statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// The first rows are awaited however long they take, since an estimate needs some.
    fn is_enough(&self) -> bool {
        let rows = self.rows.load(Ordering::Relaxed);
        rows >= MOST_ROWS || (rows > 0 && self.started.elapsed() >= LONGEST)
    }

    async fn enough(&self) {
        while !self.is_enough() {
            tokio::time::sleep(GLANCE).await;
        }
    }

    async fn read_all(&self, block_rows: usize, retries: &Retries) -> Result<Vec<Block>, Error> {
        let mut kept = Vec::new();
        while !self.is_enough()
            && let Some(statement) = self.next_statement()
        {
            let mut attempts = attempts(retries, "reading", block_rows);
            while let Err(error) = self
                .read(&statement, attempts.block_rows(), &mut kept)
                .await
            {
                attempts.failed(error).await?;
            }
        }
        Ok(kept)
    }

    async fn read(
        &self,
        statement: &str,
        block_rows: usize,
        kept: &mut Vec<Block>,
    ) -> Result<(), WorkError> {
        let statement = of_segment(statement, block_rows, self.budget.preferred_block_bytes);
        let mut stream = self.connection.send(&statement)?;
        let mut reader = BlockReader::new(self.budget.max_block_bytes, &self.pool);
        let mut kept_bytes = held_bytes(kept);
        loop {
            let chunk = tokio::select! {
                chunk = stream.next_chunk() => chunk?,
                () = self.enough() => return Ok(()),
            };
            let Some(chunk) = chunk else {
                return Ok(reader.finish()?);
            };
            reader.push(&chunk);
            while let Some(block) = reader.next_block()? {
                self.count(&block);
                kept_bytes += block.held_bytes;
                if kept_bytes <= self.budget.look_up_bytes {
                    kept.push(block);
                }
            }
        }
    }

    fn count(&self, block: &Block) {
        let elapsed = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_max(elapsed, Ordering::Relaxed);
        self.rows.fetch_add(block.rows as u64, Ordering::Relaxed);
    }
}

/// The numbers below `count`, ordered so that any prefix is spread over the whole range.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    /// Number of evenly spread starting points.
    const PLACES: usize = 8;
    let stride = count.div_ceil(PLACES).max(1);
    (0..stride).flat_map(move |first| (first..count).step_by(stride))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_taken_from_all_over_the_month() {
        assert_eq!(spread(0).count(), 0);
        assert_eq!(spread(3).collect::<Vec<_>>(), [0, 1, 2]);
        let order: Vec<_> = spread(80).collect();
        assert_eq!(order[..9], [0, 10, 20, 30, 40, 50, 60, 70, 1]);
        for count in 0..100 {
            let mut order: Vec<_> = spread(count).collect();
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nothing_is_made_of_a_sample_without_rows() {
        let sample = Sample::default();
        assert_eq!(
            (sample.read.seconds_of(7), sample.bytes_of(7)),
            (None, None)
        );
        let enrich = Measured {
            rows: 10,
            seconds: 2.0,
        };
        let sample = Sample {
            enrich,
            event_bytes: 1_000,
            ..sample
        };
        assert_eq!(sample.enrich.seconds_of(5), Some(1.0));
        assert_eq!(sample.bytes_of(7), Some(700));
    }
}
