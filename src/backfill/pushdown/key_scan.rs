//! Reads the keys of all segments' rows once: for the versions that no `FINAL` compares, and for the
//! statements that will write the segments.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{JoinSet, block_in_place};

use super::in_experiments::in_experiments;
use super::key_file::KeyFile;
use super::keys::Gathering;
use crate::backfill::block_stream::BlockStream;
use crate::backfill::error::WorkError;
use crate::backfill::guard::seen_row::RowReader;
use crate::backfill::guard::version_files::Row;
use crate::backfill::guard::version_scan::{OwnRows, VersionScan};
use crate::clickhouse::{Connection, RequestError, Statement};
use crate::inspect::segments::Segment;
use crate::inspect::statements::SegmentQuery;
use crate::memory::Budget;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, StringCursor};
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
    /// Called with the number of rows read.
    pub on_rows: Box<dyn Fn(u64) + Send + Sync>,
}

impl KeyScan {
    /// Reads the segments, `at_once` at a time. Adds their rows to those of `versions`, and their keys to `file`.
    ///
    /// # Errors
    /// [`WorkError`] if the server, the store or a file fails, or on a signal. May be repeated, with a new file.
    pub(crate) async fn run(
        self: Arc<Self>,
        versions: &VersionScan<'_>,
        file: &Arc<KeyFile>,
        at_once: usize,
    ) -> Result<(), WorkError> {
        let own = Arc::new(Mutex::new(versions.begin(&self.store)?));
        let next = Arc::new(AtomicUsize::new(0));
        let mut readers: JoinSet<Result<(), WorkError>> = JoinSet::new();
        for _ in 0..at_once.max(1) {
            let (scan, own, file) = (Arc::clone(&self), Arc::clone(&own), Arc::clone(file));
            let next = Arc::clone(&next);
            readers.spawn(async move {
                while let Some(segment) = scan.segments.get(next.fetch_add(1, Ordering::Relaxed)) {
                    tokio::select! {
                        () = scan.throttle.may_begin() => {}
                        _ = scan.shutdown.requested() => return Err(WorkError::Interrupted),
                    }
                    scan.read(segment, &own, &file).await?;
                }
                Ok(())
            });
        }
        let unexpected = || RequestError::Unexpected(ENDED.to_owned());
        while let Some(read) = readers.join_next().await {
            read.map_err(|_| unexpected())??;
        }
        let own = Arc::into_inner(own).ok_or_else(unexpected)?;
        let own = own.into_inner().unwrap_or_else(PoisonError::into_inner);
        versions.finish(own, &self.store).await
    }

    async fn read(
        &self,
        segment: &Segment,
        own: &Mutex<OwnRows>,
        file: &KeyFile,
    ) -> Result<(), WorkError> {
        let statement = Statement::new(self.query.sql(segment), BLOCK_ROWS)
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
            (self.on_rows)(block.rows as u64);
        }
        block_in_place(|| match gathering.and_then(Gathering::finish) {
            Some(keys) => file.put(segment.number, &keys),
            None => Ok(()),
        })
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
