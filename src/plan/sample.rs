//! How fast traces are loaded, and observations read and enriched, and how large events
//! are: measured on a few of them, with what a run does it with. Nothing is
//! inserted, and the trace store of the sample is in a temporary directory.

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

/// So many rows tell enough.
const MOST_ROWS: u64 = 100_000;
/// After this time, what was read by then must do.
const LONGEST: Duration = Duration::from_secs(5);
/// How often a reader that has nothing yet looks whether another one has enough.
const GLANCE: Duration = Duration::from_millis(100);
/// Bytes of attributes that the temporary store may hold, twice.
const STORE_BYTES: u64 = 64 << 20;

/// How long something took for so many rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Measured {
    /// Rows.
    pub rows: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Measured {
    /// How long so many rows would take, in seconds, if there were rows.
    pub(crate) fn seconds_of(&self, rows: u64) -> Option<f64> {
        (self.rows > 0).then(|| self.seconds / self.rows as f64 * rows as f64)
    }
}

/// Traces that have an item of a dataset run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Experiments {
    /// All of them that have a row in the month.
    pub traces: u64,
    /// Those whose spans were found, and how long it took.
    pub found: Measured,
    /// Whether it took too long to go on, so that both are more than is said here.
    pub is_cut_short: bool,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Traces that were read and loaded into a store.
    pub load: Measured,
    /// Observations that were read, several segments at once.
    pub read: Measured,
    /// Observations that were enriched with their traces, in one thread.
    pub enrich: Measured,
    /// What these are as events, in bytes as they travel, uncompressed.
    pub event_bytes: u64,
    /// Traces that have an item of a dataset run, where a run looks for them.
    pub experiments: Option<Experiments>,
}

impl Sample {
    /// Bytes of so many events, if there were some.
    pub(crate) fn bytes_of(&self, rows: u64) -> Option<u64> {
        let enriched = self.enrich.rows;
        (enriched > 0).then(|| whole(self.event_bytes as f64 / enriched as f64 * rows as f64))
    }
}

/// What takes a sample.
pub(super) struct Sampler<'a> {
    /// What a run would be told.
    pub options: &'a Options,
    /// The server.
    pub connection: &'a Connection,
    /// Its tables.
    pub inspected: &'a Inspected,
    /// When to try again.
    pub retries: &'a Retries,
    /// Whether to end.
    pub shutdown: &'a Shutdown,
}

impl Sampler<'_> {
    /// Takes a sample: of the traces, and of these segments of observations.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind) where the server or the temporary directory does not let it.
    pub(super) async fn take(&self, segments: &[Segment]) -> Result<Sample, Error> {
        let directory = tempfile::tempdir().map_err(|error| {
            Error::failed(format!(
                "a sample needs a temporary directory, and there is none: {error}; name another \
                 one with TMPDIR"
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

    /// So many traces have attributes of [`STORE_BYTES`].
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

    /// Loads the first traces of the month.
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

    /// Reads the beginnings of segments from all over the month, several at once, and
    /// keeps some blocks.
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
            // As a run: the server does not divide a block, so it must not be larger than a part.
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

    /// Asks for the traces of the blocks, and gives those blocks whose traces are in the
    /// store then. A run has loaded them by then, so this is not measured.
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
            // A trace begins when its first observation does, or a little earlier.
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

    /// The first and the last day of a block.
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

    /// Makes events of the blocks, as they are sent.
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
            // Without deferred rows, nothing is set aside.
            let (unknown, mut set_aside) = (Unknown::WithoutTrace, SetAside::default());
            let enriched =
                enricher.enrich(&mut group, unknown, &mut set_aside, budget.segment_bytes);
            let events = match enriched {
                Err(EnrichError::Native(NativeError::TooLarge { .. })) if group.len() > 1 => {
                    let second = group.split_off(group.len() / 2);
                    groups.extend([second, group]);
                    continue;
                }
                // A run would ask for smaller blocks. For a sample there are others.
                Err(EnrichError::Native(NativeError::TooLarge { .. })) => continue,
                enriched => enriched.map_err(|error| given_up(&error.into(), ""))?,
            };
            for event in events {
                rows += event.rows as u64;
                bytes += event.bytes() as u64;
                compressor
                    .seal(event)
                    .map_err(|error| Error::caused("a sample cannot be compressed", error))?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok((Measured { rows, seconds }, bytes))
    }
}

/// The attempts at a part of a sample.
pub(super) fn attempts<'a>(
    retries: &'a Retries,
    doing: &str,
    block_rows: usize,
) -> WorkAttempts<'a> {
    WorkAttempts::new(
        retries,
        format!("{doing} for a sample"),
        "a sample could not be taken",
    )
    .in_blocks_of(block_rows)
}

fn given_up(error: &WorkError, tries: &str) -> Error {
    Error::caused(format_args!("a sample could not be taken{tries}"), error).with(error.advice())
}

/// Blocks of about so many bytes together, as they are enriched at once.
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

/// What the readers of one sample share.
struct Reading {
    connection: Connection,
    budget: Budget,
    pool: BufferPool,
    /// What is not read yet.
    statements: Mutex<VecDeque<String>>,
    rows: AtomicU64,
    /// After which time the last rows arrived.
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

    /// The first rows are waited for however long they take: without any, nothing can
    /// be told.
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

/// The numbers below `count`, each once, so that the first of them are spread
/// over all of them.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    /// Places that come first.
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
