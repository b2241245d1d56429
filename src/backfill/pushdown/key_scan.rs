//! Reads the keys of all segments' rows once: for the versions that no `FINAL` compares, and for the
//! statements that will write the segments.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{JoinSet, block_in_place};

use super::in_experiments::in_experiments;
use super::key_file::KeyFile;
use super::keys::{Gathering, Keys};
use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::backfill::error::WorkError;
use crate::backfill::guard::seen_row::RowReader;
use crate::backfill::guard::version_files::Row;
use crate::backfill::guard::version_scan::OwnRows;
use crate::backfill::work_attempts::WorkAttempts;
use crate::clickhouse::retry::Retries;
use crate::clickhouse::{Connection, Statement, TableInfo};
use crate::error::Error;
use crate::inspect::segments::Segment;
use crate::inspect::statements::SegmentQuery;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, StringCursor};
use crate::progress::Phase;
use crate::shutdown::Shutdown;
use crate::throttle::Throttle;
use crate::trace_store::TraceStore;

/// What a reader that panicked is told as.
const ENDED: &str = "reading the keys of a segment ended unexpectedly";
/// Rows per block.
const BLOCK_ROWS: usize = 65_536;

/// What to read, and where to put it.
pub(crate) struct KeyScan {
    /// The share's segments of observations, in the order in which they are read.
    pub segments: Vec<Segment>,
    /// Those whose keys are kept.
    pub kept: BTreeSet<u32>,
    /// The query that reads all versions of their rows.
    pub query: SegmentQuery,
    /// Reads its blocks.
    pub reader: RowReader,
    /// The server.
    pub connection: Connection,
    /// The table.
    pub table: TableInfo,
    /// Knows which rows are in experiments.
    pub store: Arc<TraceStore>,
    /// Memory, as divided among segments.
    pub budget: Budget,
    /// Block buffers.
    pub pool: BufferPool,
    /// Signals a request to stop.
    pub shutdown: Shutdown,
    /// Says when a segment may be read.
    pub throttle: Throttle,
    /// Directory of the files.
    pub directory: PathBuf,
    /// Retries what passes.
    pub retries: Retries,
    /// Shows how many rows were read.
    pub phase: Arc<Phase>,
}

impl KeyScan {
    /// Reads the segments, `at_once` at a time. Adds their rows to `own`, and their keys to `file`.
    ///
    /// # Errors
    /// [`Error`] if the server, the store or a file fails, or on a signal.
    pub(crate) async fn run(
        self: Arc<Self>,
        own: OwnRows,
        file: &Arc<KeyFile>,
        at_once: usize,
    ) -> Result<OwnRows, Error> {
        let own = Arc::new(Mutex::new(own));
        let next = Arc::new(AtomicUsize::new(0));
        let mut readers: JoinSet<Result<(), Error>> = JoinSet::new();
        for _ in 0..at_once.max(1) {
            let (scan, own, file) = (Arc::clone(&self), Arc::clone(&own), Arc::clone(file));
            let next = Arc::clone(&next);
            readers.spawn(async move {
                while let Some(segment) = scan.segments.get(next.fetch_add(1, Ordering::Relaxed)) {
                    scan.read_with_retries(segment, &own, &file).await?;
                }
                Ok(())
            });
        }
        while let Some(read) = readers.join_next().await {
            read.map_err(|error| Error::caused(ENDED, error))??;
        }
        let own = Arc::into_inner(own).ok_or_else(|| Error::failed(ENDED))?;
        Ok(own.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn read_with_retries(
        &self,
        segment: &Segment,
        own: &Mutex<OwnRows>,
        file: &KeyFile,
    ) -> Result<(), Error> {
        tokio::select! {
            () = self.throttle.may_begin() => {}
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        }
        let doing = format!("reading the keys of segment {}", segment.number);
        let failed = format!("{doing} failed");
        let mut attempts = WorkAttempts::new(&self.retries, doing, failed).in_blocks_of(BLOCK_ROWS);
        loop {
            let mut rows = 0;
            let read = self.read(segment, attempts.block_rows(), own, &mut rows);
            match read.await {
                Ok(keys) => {
                    block_in_place(|| keys.inspect(|keys| file.put(segment.number, keys)));
                    return Ok(());
                }
                Err(error) => {
                    self.phase.go_back(rows);
                    attempts.failed(error).await?;
                }
            }
        }
    }

    /// Reads a segment. Versions that an attempt has added before it failed may be added again.
    async fn read(
        &self,
        segment: &Segment,
        block_rows: usize,
        own: &Mutex<OwnRows>,
        rows: &mut u64,
    ) -> Result<Option<Keys>, WorkError> {
        catch_up(&self.connection, &self.table, &self.shutdown).await?;
        let statement = Statement::new(self.query.sql(segment), block_rows)
            .in_bytes(self.budget.preferred_block_bytes)
            .of_a_table();
        let most = self.budget.max_block_bytes;
        let mut blocks = BlockStream::open(
            &self.connection,
            &statement,
            most,
            &self.pool,
            &self.shutdown,
        )?;
        // A segment with more keys than this is read again for its statements.
        let most_bytes = self.budget.segment_bytes / 2;
        let gathering = || Gathering::new(segment.rows, most_bytes);
        let mut gathering = self.kept.contains(&segment.number).then(gathering);
        while let Some(block) = blocks.next().await? {
            block_in_place(|| self.take(&block, own, gathering.as_mut()))?;
            gathering = gathering.filter(|gathering| gathering.bytes() <= most_bytes);
            *rows += block.rows as u64;
            self.phase.advance(block.rows as u64);
        }
        Ok(block_in_place(|| gathering.and_then(Gathering::finish)))
    }

    fn take(
        &self,
        block: &Block,
        own: &Mutex<OwnRows>,
        gathering: Option<&mut Gathering>,
    ) -> Result<(), WorkError> {
        let rows = self.reader.rows(block)?;
        if let Some(gathering) = gathering {
            let in_experiments = in_experiments(&self.store, block)?;
            let text = |column| StringCursor::new(block.values(column));
            let (mut projects, mut traces) = (text(0), text(1));
            for (number, (row, hashes)) in rows.iter().enumerate() {
                let trace = (projects.next_value()?, traces.next_value()?);
                let is_apart = trace.1.is_empty() || in_experiments.contains(number);
                gathering.add(row, hashes, (!is_apart).then_some(trace));
            }
        }
        let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
        for (row, _) in &rows {
            let (key, version) = (row.observation, row.version);
            own.add(&Row { key, version })
                .map_err(|error| self.file_failed(&error))?;
        }
        Ok(())
    }

    fn file_failed(&self, error: &std::io::Error) -> WorkError {
        WorkError::file(&self.directory, error)
    }
}
