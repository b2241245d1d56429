//! Finds the latest version of observations that have several.
//!
//! The sort key of `observations` includes type and day, so `FINAL` leaves one row for each: an
//! observation whose type or start time changed appears twice, and one deleted after such a change
//! is still there. The latest of all versions wins, wherever it is.
//!
//! To find these few, every row is read as 28 bytes (two hashes of its ids, its `event_ts`, its day
//! and type) and appended to one of many files chosen by its hash. Versions of an observation thus
//! meet in one file, small enough to sort in memory. Rows of other months are kept only if they may
//! be versions of the month's: written later than the month's earliest row, and passed by a Bloom
//! filter of the month's ids. A shard treats other shards' days like other months. The server
//! neither sorts nor holds rows; time and disk space grow linearly with them.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::Path;

use fastbloom::BloomFilter;
use tokio::task::block_in_place;

use super::row_hash::{RowColumns, hash_key, microseconds, version_place};
use crate::backfill::block_stream::{BlockStream, catch_up};
use crate::backfill::error::WorkError;
use crate::clickhouse::{Connection, Statement, TableInfo};
use crate::inspect::share::is_of_share;
use crate::mapping::Source;
use crate::memory::buffer_pool::BufferPool;
use crate::native::{Block, FixedCursor};
use crate::partition::ShareOfMonth;
use crate::shutdown::Shutdown;
use crate::trace_store::{Against, HashKey, SortedWriter, TraceStore, Version};

/// Alias of `observations`.
const OBSERVATION: &str = Source::Observations.alias();
/// Size of a row in a file.
const ROW_BYTES: usize = 8 + 4 + 8 + 8 + 1;
/// Approximate size of a file sorted in memory.
const FILE_BYTES: u64 = 4 << 20;
/// Maximum open files, each with a buffer of [`BUFFER_BYTES`].
const MOST_FILES: u64 = 256;
/// Larger files are divided again before sorting.
const LARGEST_FILE: u64 = 4 * FILE_BYTES;
const BUFFER_BYTES: usize = 8 * 1024;
/// Bloom filter bits per row of the month: 1 % false positives.
const BITS_PER_ROW: u64 = 10;
/// Maximum rows per block read.
const BLOCK_ROWS: usize = 65_536;

/// What to read, and where to put it.
pub(crate) struct VersionScan<'a> {
    /// The server.
    pub connection: &'a Connection,
    /// `observations`
    pub observations: &'a TableInfo,
    /// The share of the month to process.
    pub share: ShareOfMonth,
    /// Approximate number of rows in it.
    pub rows: u64,
    /// Whether the table has rows outside it.
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
    /// Finds observations with several versions, at least one in the month, and replaces the stored
    /// versions with the latest of each. Returns their number.
    ///
    /// # Errors
    /// [`WorkError`] if the server, the store or a file fails, or on a signal. May be repeated.
    pub(crate) async fn run(&self, store: &TraceStore) -> Result<u64, WorkError> {
        block_in_place(|| store.clear(Against::Versions))?;
        let mut files = block_in_place(|| Files::new(self.directory, self.rows))?;
        let mut seen = self.has_others.then(|| self.filter());
        let mut earliest = i64::MAX;
        let own = is_of_share(Source::Observations, self.share);
        self.read(&own, |row| {
            if let Some(seen) = &mut seen {
                seen.insert(&row.key);
            }
            earliest = earliest.min(row.version.event_ts);
            files.push(&row)
        })
        .await?;
        if let Some(seen) = seen
            && earliest != i64::MAX
        {
            let elsewhere = format!(
                "NOT ({own}) AND {} >= {earliest}",
                microseconds("o.event_ts")
            );
            self.read(&elsewhere, |row| match seen.contains(&row.key) {
                true => files.push(&row),
                false => Ok(()),
            })
            .await?;
        }
        block_in_place(|| files.settle(store, &|| self.shutdown.signal().is_some()))
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
        let columns = RowColumns {
            project: "o.project_id",
            trace: "o.trace_id",
            span: "o.id",
        };
        let [hash, check] = columns.observation_key();
        let query = format!(
            "SELECT CAST({hash}, 'UInt64') AS c0, CAST({check}, 'UInt32') AS c1, CAST({}, \
             'Int64') AS c2, CAST({}, 'UInt64') AS c3, CAST({OBSERVATION}.is_deleted, 'UInt8') AS \
             c4 FROM {} AS {OBSERVATION} WHERE {condition}",
            microseconds("o.event_ts"),
            version_place("o.start_time", "o.type"),
            self.observations.qualified_name(),
        );
        let statement = Statement::new(query, BLOCK_ROWS).of_a_table();
        let most = self.max_block_bytes;
        catch_up(self.connection, self.observations, self.shutdown).await?;
        let mut blocks =
            BlockStream::open(self.connection, &statement, most, &self.pool, self.shutdown)?;
        while let Some(block) = blocks.next().await? {
            block_in_place(|| for_each_row(&block, self.directory, &mut take))?;
            (self.on_rows)(block.rows as u64);
        }
        Ok(())
    }
}

/// One version of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    key: HashKey,
    version: Version,
}

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

/// A row as bytes that sort like rows.
type Encoded = [u8; ROW_BYTES];

impl Row {
    fn encode(&self) -> Encoded {
        let mut bytes = [0; ROW_BYTES];
        bytes[..12].copy_from_slice(&self.key);
        // Flip the sign bit, or negative numbers would sort after positive ones.
        let event_ts = self.version.event_ts.cast_unsigned() ^ SIGN;
        bytes[12..20].copy_from_slice(&event_ts.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.version.place.to_be_bytes());
        bytes[28] = u8::from(self.version.is_deleted);
        bytes
    }

    fn decode(bytes: &Encoded) -> Self {
        let mut key = [0; 12];
        key.copy_from_slice(&bytes[..12]);
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        };
        Self {
            key,
            version: Version {
                event_ts: (number(12) ^ SIGN).cast_signed(),
                place: number(20),
                is_deleted: bytes[28] != 0,
            },
        }
    }
}

const SIGN: u64 = 1 << 63;

/// A half-open range of key prefixes.
type Beginnings = Range<u64>;

const ALL_BEGINNINGS: Beginnings = 0..1 << 32;

/// Rows in files, by key prefix.
struct Files {
    directory: std::path::PathBuf,
    files: Vec<BufWriter<File>>,
    beginnings: Beginnings,
}

impl Files {
    /// Creates unnamed files, sized for `rows` rows of the month.
    fn new(directory: &Path, rows: u64) -> Result<Self, WorkError> {
        let bytes = rows.saturating_mul(ROW_BYTES as u64);
        Self::of(directory, bytes, ALL_BEGINNINGS)
    }

    fn of(directory: &Path, bytes: u64, beginnings: Beginnings) -> Result<Self, WorkError> {
        let count = (bytes / FILE_BYTES + 1).min(MOST_FILES);
        let files = (0..count).map(|_| {
            let file = tempfile::tempfile_in(directory)?;
            Ok(BufWriter::with_capacity(BUFFER_BYTES, file))
        });
        Ok(Self {
            directory: directory.to_owned(),
            beginnings,
            files: files
                .collect::<std::io::Result<_>>()
                .map_err(|error| WorkError::file(directory, &error))?,
        })
    }

    fn push(&mut self, row: &Row) -> std::io::Result<()> {
        self.push_encoded(&row.encode())
    }

    fn push_encoded(&mut self, row: &Encoded) -> std::io::Result<()> {
        let first = u64::from(u32::from_be_bytes([row[0], row[1], row[2], row[3]]));
        // Key order across files follows file order.
        let Range { start, end } = self.beginnings;
        let index = (first.saturating_sub(start) * self.files.len() as u64) / (end - start).max(1);
        match usize::try_from(index)
            .ok()
            .and_then(|index| self.files.get_mut(index))
        {
            Some(file) => file.write_all(row),
            None => Err(std::io::Error::other("a row has no file")),
        }
    }

    /// Stores the latest version of each observation that has several.
    fn settle(self, store: &TraceStore, stop: &dyn Fn() -> bool) -> Result<u64, WorkError> {
        let mut writer = SortedWriter::new(store, Against::Versions, "versions");
        self.settle_into(&mut writer, stop)?;
        Ok(writer.finish()?)
    }

    fn settle_into(
        self,
        writer: &mut SortedWriter<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), WorkError> {
        let failed = |error| WorkError::file(&self.directory, &error);
        let count = self.files.len() as u64;
        let Range { start, end } = self.beginnings;
        // The lowest prefix of a file; see `push_encoded`.
        let begins = |index: u64| start + (index * (end - start)).div_ceil(count.max(1));
        for (index, file) in (0_u64..).zip(self.files) {
            if stop() {
                return Err(WorkError::Interrupted);
            }
            let (mut file, length) = rewound(file).map_err(failed)?;
            let beginnings = begins(index)..begins(index + 1);
            // Versions of one observation cannot be divided, and are few.
            if length > LARGEST_FILE && beginnings.end - beginnings.start > 1 {
                let mut divided = Files::of(&self.directory, length, beginnings)?;
                divide(&mut file, &mut divided).map_err(failed)?;
                drop(file);
                divided.settle_into(writer, stop)?;
                continue;
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(failed)?;
            let (rows, _) = bytes.as_chunks_mut::<ROW_BYTES>();
            rows.sort_unstable();
            for versions in rows.chunk_by(|a, b| a[..12] == b[..12]) {
                if let Some(latest) = latest_of_several(versions) {
                    writer.put(&latest.key, &latest.version.encode())?;
                }
            }
        }
        Ok(())
    }
}

/// Rewinds a written file. Returns it with its length.
fn rewound(file: BufWriter<File>) -> std::io::Result<(File, u64)> {
    let mut file = file
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    let length = file.stream_position()?;
    file.rewind()?;
    Ok((file, length))
}

/// Distributes a file's rows over several files.
fn divide(file: &mut File, into: &mut Files) -> std::io::Result<()> {
    let mut rows = BufReader::new(file);
    let mut row: Encoded = [0; ROW_BYTES];
    loop {
        match rows.read_exact(&mut row) {
            Ok(()) => into.push_encoded(&row)?,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The latest of an observation's versions, given in ascending order. `None` if all share a type
/// and day, since `FINAL` handles those.
fn latest_of_several(versions: &[Encoded]) -> Option<Row> {
    let place = |row: &Encoded| row[20..28] == versions[0][20..28];
    match versions.iter().all(place) {
        true => None,
        false => versions.last().map(Row::decode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn row() -> impl Strategy<Value = Row> {
        (0_u8..40, 0_i64..6, 0_u64..3, any::<bool>()).prop_map(
            |(key, event_ts, place, is_deleted)| Row {
                key: [key.wrapping_mul(37); 12],
                version: Version {
                    event_ts,
                    place,
                    is_deleted,
                },
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_latest_of_several_versions_counts_in_whatever_order_they_come(
            rows in proptest::collection::vec(row(), 0..200), files in 1_u64..9,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let store = TraceStore::open(&directory.path().join("store"), 1 << 20).unwrap();
            let bytes = files * FILE_BYTES / ROW_BYTES as u64;
            let mut sorted = Files::new(directory.path(), bytes).unwrap();
            let mut expected: BTreeMap<HashKey, Vec<Version>> = BTreeMap::new();
            for row in &rows {
                sorted.push(row).unwrap();
                expected.entry(row.key).or_default().push(row.version);
            }
            expected.retain(|_, versions| versions.iter().any(|v| v.place != versions[0].place));
            prop_assert_eq!(sorted.settle(&store, &|| false).unwrap(), expected.len() as u64);
            for row in &rows {
                let found = store.versions_of(&[row.key]).unwrap()[0];
                let latest = expected.get(&row.key).and_then(|all| all.iter().max().copied());
                prop_assert_eq!(found, latest);
            }
        }

        #[test]
        fn files_that_are_divided_again_keep_the_order_of_keys(
            firsts in proptest::collection::vec(any::<u32>(), 1..300),
            start in 0_u64..1 << 31, length in 1_u64..1 << 31, count in 1_u64..70,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let beginnings = start..start + length;
            let mut files =
                Files::of(directory.path(), (count - 1) * FILE_BYTES, beginnings).unwrap();
            let mut rows: Vec<Encoded> = firsts
                .iter()
                .map(|&first| {
                    let first = u32::try_from(start + u64::from(first) % length).unwrap();
                    let mut row = [0; ROW_BYTES];
                    row[..4].copy_from_slice(&first.to_be_bytes());
                    row
                })
                .collect();
            for row in &rows {
                files.push_encoded(row).unwrap();
            }
            let mut read = Vec::new();
            for file in files.files {
                let (mut file, bytes) = rewound(file).unwrap();
                let mut of_file = Vec::new();
                file.read_to_end(&mut of_file).unwrap();
                prop_assert_eq!(of_file.len() as u64, bytes);
                let (of_file, _) = of_file.as_chunks_mut::<ROW_BYTES>();
                of_file.sort_unstable();
                read.extend_from_slice(of_file);
            }
            rows.sort_unstable();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn a_row_is_read_back_as_it_was_written(row in row()) {
            prop_assert_eq!(Row::decode(&row.encode()), row);
        }
    }
}
