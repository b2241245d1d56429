//! Compares the versions of rows that ClickHouse itself never compares.
//!
//! The sort keys of `observations` and `traces` include the day, the former's also the type, so
//! `FINAL` leaves one row for each: an observation whose type or start time changed appears twice,
//! and one deleted after such a change is still there. The latest of all versions wins, wherever it
//! is. Of traces, the engine of the server needs those that are on one day alone.
//!
//! Every row is read as 29 bytes (two hashes of its ids, its `event_ts`, its day and type, whether
//! it is deleted) and appended to one of many [files](super::version_files), in which its versions
//! meet. Rows of other months are kept only if they may be versions of the month's: written later
//! than the month's earliest row, and passed by a Bloom filter of the month's ids. A shard treats
//! other shards' days like other months. The server neither sorts nor holds rows; time and disk
//! space grow linearly with them.

use std::path::Path;

use fastbloom::BloomFilter;
use tokio::task::block_in_place;

use super::row_hash::{OF_TRACES, RowColumns, hash_key, microseconds, version_place};
use super::version_files::{Row, VersionFiles, latest_of_several, on_one_day};
use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::backfill::error::WorkError;
use crate::clickhouse::{Connection, Statement, TableInfo};
use crate::mapping::Source;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, FixedCursor};
use crate::shutdown::Shutdown;
use crate::trace_store::{Against, TraceStore, Version};

/// Bloom filter bits per row of the month: 1 % false positives.
const BITS_PER_ROW: u64 = 10;
/// Maximum rows per block read.
const BLOCK_ROWS: usize = 65_536;

/// What to read, and where to put it.
pub(crate) struct VersionScan<'a> {
    /// The server.
    pub connection: &'a Connection,
    /// Which table.
    pub source: Source,
    /// The table.
    pub table: &'a TableInfo,
    /// The condition for the rows to process.
    pub own: String,
    /// Approximate number of these rows.
    pub rows: u64,
    /// Whether the table has other rows.
    pub has_others: bool,
    /// Memory for the Bloom filter, in bytes.
    pub filter_bytes: usize,
    /// Maximum block size, in bytes.
    pub max_block_bytes: usize,
    /// Block buffers.
    pub pool: BufferPool,
    /// Directory for the files, which are unlinked as soon as they are created.
    pub directory: &'a Path,
    /// Signals a request to stop.
    pub shutdown: &'a Shutdown,
    /// Called with the number of rows read.
    pub on_rows: &'a (dyn Fn(u64) + Sync),
}

impl VersionScan<'_> {
    /// Replaces what the store knows: of observations, the latest version of each that has several, at
    /// least one of them among the scan's own rows; of traces, the day of each that is on one day.
    ///
    /// # Errors
    /// [`WorkError`] if the server, the store or a file fails, or on a signal. May be repeated.
    pub(crate) async fn run(&self, store: &TraceStore) -> Result<(), WorkError> {
        let mut own = self.begin(store)?;
        self.read(&self.own, |row| own.add(&row)).await?;
        self.read_others(&mut own).await?;
        self.settle(own, store)
    }

    /// Forgets what the store knows, and begins to compare.
    ///
    /// # Errors
    /// [`WorkError`] if the store or a file fails.
    pub(crate) fn begin(&self, store: &TraceStore) -> Result<OwnRows, WorkError> {
        block_in_place(|| {
            store.clear(self.against())?;
            Ok(OwnRows {
                files: VersionFiles::new(self.directory, self.rows)?,
                seen: self.has_others.then(|| self.filter()),
                earliest: i64::MAX,
            })
        })
    }

    /// Reads the other rows that may be versions of the scan's own.
    ///
    /// # Errors
    /// [`WorkError`] if the server or a file fails, or on a signal. May be repeated: a version that is read twice
    /// is still one.
    pub(crate) async fn read_others(&self, own: &mut OwnRows) -> Result<(), WorkError> {
        let OwnRows {
            files,
            seen,
            earliest,
        } = own;
        if let Some(seen) = seen
            && *earliest != i64::MAX
        {
            let event_ts = format!("{}.event_ts", self.source.alias());
            let elsewhere = format!(
                "NOT ({}) AND {} >= {earliest}",
                self.own,
                microseconds(&event_ts)
            );
            self.read(&elsewhere, |row| match seen.contains(&row.key) {
                true => files.push(&row),
                false => Ok(()),
            })
            .await?;
        }
        Ok(())
    }

    /// Tells the store what all versions together say.
    ///
    /// # Errors
    /// [`WorkError`] if the store or a file fails, or on a signal.
    pub(crate) fn settle(&self, own: OwnRows, store: &TraceStore) -> Result<(), WorkError> {
        let files = own.files;
        let (stop, against) = (|| self.shutdown.signal().is_some(), self.against());
        block_in_place(|| match self.source {
            Source::Observations => files.settle(store, against, latest_of_several, &stop),
            Source::Traces => files.settle(store, against, on_one_day, &stop),
        })
        .map(|_| ())
    }

    /// Waits until the server has all rows of the table.
    ///
    /// # Errors
    /// [`WorkError::Request`] if it does not catch up, [`WorkError::Interrupted`] on a signal.
    pub(crate) async fn catch_up(&self) -> Result<(), WorkError> {
        catch_up(self.connection, self.table, self.shutdown).await
    }

    fn against(&self) -> Against {
        match self.source {
            Source::Observations => Against::Versions,
            Source::Traces => Against::TraceDays,
        }
    }

    fn filter(&self) -> BloomFilter {
        let wanted = self.rows.saturating_mul(BITS_PER_ROW);
        let most = (self.filter_bytes as u64).saturating_mul(8);
        let bits = wanted.clamp(1_024, most.max(1_024));
        BloomFilter::with_num_bits(usize::try_from(bits).unwrap_or(usize::MAX))
            .seed(&0x0065_7665_6e74_735f)
            .expected_items(usize::try_from(self.rows.max(1)).unwrap_or(usize::MAX))
    }

    async fn read(
        &self,
        condition: &str,
        mut take: impl FnMut(Row) -> std::io::Result<()>,
    ) -> Result<(), WorkError> {
        let statement = Statement::new(self.query(condition), BLOCK_ROWS).of_a_table();
        let most = self.max_block_bytes;
        self.catch_up().await?;
        let mut blocks =
            BlockStream::open(self.connection, &statement, most, &self.pool, self.shutdown)?;
        while let Some(block) = blocks.next().await? {
            block_in_place(|| for_each_row(&block, self.directory, &mut take))?;
            (self.on_rows)(block.rows as u64);
        }
        Ok(())
    }

    fn query(&self, condition: &str) -> String {
        let alias = self.source.alias();
        let ([hash, check], observation_type) = match self.source {
            Source::Observations => (OF_OBSERVATIONS.observation_key(), "o.type"),
            Source::Traces => (OF_TRACES.trace_key(), "''"),
        };
        format!(
            "SELECT CAST({hash}, 'UInt64') AS c0, CAST({check}, 'UInt32') AS c1, CAST({}, \
             'Int64') AS c2, CAST({}, 'UInt64') AS c3, CAST({alias}.is_deleted, 'UInt8') AS \
             c4 FROM {} AS {alias} WHERE {condition}",
            microseconds(&format!("{alias}.event_ts")),
            version_place(
                &format!("{alias}.{}", self.source.time_column()),
                observation_type
            ),
            self.table.qualified_name(),
        )
    }
}

/// The rows that a scan compares the others with.
pub(crate) struct OwnRows {
    files: VersionFiles,
    seen: Option<BloomFilter>,
    earliest: i64,
}

impl OwnRows {
    /// Adds a version of a row.
    ///
    /// # Errors
    /// Those of writing a file.
    pub(crate) fn add(&mut self, row: &Row) -> std::io::Result<()> {
        if let Some(seen) = &mut self.seen {
            seen.insert(&row.key);
        }
        self.earliest = self.earliest.min(row.version.event_ts);
        self.files.push(row)
    }
}

/// Columns of the table `observations` with alias `o`.
const OF_OBSERVATIONS: RowColumns<'static> = RowColumns {
    project: "o.project_id",
    trace: "o.trace_id",
    span: "o.id",
};

fn for_each_row(
    block: &Block,
    directory: &Path,
    take: &mut impl FnMut(Row) -> std::io::Result<()>,
) -> Result<(), WorkError> {
    let mut hashes = FixedCursor::<8>::new(block.values(0));
    let mut checks = FixedCursor::<4>::new(block.values(1));
    let mut event_ts = FixedCursor::<8>::new(block.values(2));
    let mut places = FixedCursor::<8>::new(block.values(3));
    let mut is_deleted = FixedCursor::<1>::new(block.values(4));
    for _ in 0..block.rows {
        let hash = u64::from_le_bytes(hashes.next_value()?);
        let row = Row {
            key: hash_key(hash, u32::from_le_bytes(checks.next_value()?)),
            version: Version {
                event_ts: i64::from_le_bytes(event_ts.next_value()?),
                place: u64::from_le_bytes(places.next_value()?),
                is_deleted: is_deleted.next_value()? != [0],
            },
        };
        take(row).map_err(|error| WorkError::file(directory, &error))?;
    }
    Ok(())
}
