//! Has the versions of a row meet: in one of many files chosen by the row's hash, small enough to sort in
//! memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::ops::Range;
use std::path::Path;

use super::row_hash::day_of_place;
use crate::backfill::error::WorkError;
use crate::memory::open_files;
use crate::trace_store::{Against, HashKey, SortedWriter, TraceStore, Version};

/// Size of a row in a file.
const ROW_BYTES: usize = 8 + 4 + 8 + 8 + 1;
/// Approximate size of a file sorted in memory.
const FILE_BYTES: u64 = 4 << 20;
/// Larger files are divided again before sorting.
const LARGEST_FILE: u64 = 4 * FILE_BYTES;
/// Buffer of each open file.
const BUFFER_BYTES: usize = 8 * 1024;

/// One version of an observation or trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    /// Two hashes of its ids.
    pub key: HashKey,
    /// Which version.
    pub version: Version,
}

/// A row as bytes that sort like rows.
pub(super) type Encoded = [u8; ROW_BYTES];

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
pub(super) struct VersionFiles {
    directory: std::path::PathBuf,
    files: Vec<BufWriter<File>>,
    beginnings: Beginnings,
}

impl VersionFiles {
    /// Creates unnamed files, sized for `rows` rows of the month.
    ///
    /// # Errors
    /// [`WorkError`] if a file cannot be created.
    pub(super) fn new(directory: &Path, rows: u64) -> Result<Self, WorkError> {
        let bytes = rows.saturating_mul(ROW_BYTES as u64);
        Self::of(directory, bytes, ALL_BEGINNINGS)
    }

    fn of(directory: &Path, bytes: u64, beginnings: Beginnings) -> Result<Self, WorkError> {
        let count = (bytes / FILE_BYTES + 1).min(open_files::of_scan());
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

    /// Adds a version.
    ///
    /// # Errors
    /// Those of writing a file.
    pub(super) fn push(&mut self, row: &Row) -> std::io::Result<()> {
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

    /// Stores what `choose` makes of the versions of each row, given in ascending order. Returns the number of
    /// entries.
    ///
    /// # Errors
    /// [`WorkError`] if a file or the store fails, or once `stop` says so.
    pub(super) fn settle<V: AsRef<[u8]>>(
        self,
        store: &TraceStore,
        against: Against,
        choose: fn(&[Encoded]) -> Option<(HashKey, V)>,
        stop: &dyn Fn() -> bool,
    ) -> Result<u64, WorkError> {
        let mut writer = SortedWriter::new(store, against, "versions");
        self.settle_into(&mut writer, choose, stop)?;
        Ok(writer.finish()?)
    }

    fn settle_into<V: AsRef<[u8]>>(
        self,
        writer: &mut SortedWriter<'_>,
        choose: fn(&[Encoded]) -> Option<(HashKey, V)>,
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
                let mut divided = VersionFiles::of(&self.directory, length, beginnings)?;
                divide(&mut file, &mut divided).map_err(failed)?;
                drop(file);
                divided.settle_into(writer, choose, stop)?;
                continue;
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(failed)?;
            let (rows, _) = bytes.as_chunks_mut::<ROW_BYTES>();
            rows.sort_unstable_by(|a, b| beginning(a).cmp(&beginning(b)).then_with(|| a.cmp(b)));
            for versions in rows.chunk_by(|a, b| a[..12] == b[..12]) {
                if let Some((key, value)) = choose(versions) {
                    writer.put(&key, value.as_ref())?;
                }
            }
        }
        Ok(())
    }
}

/// The first bytes of a row as a number that sorts like them: faster to compare, and mostly enough.
fn beginning(row: &Encoded) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *row;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
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
fn divide(file: &mut File, into: &mut VersionFiles) -> std::io::Result<()> {
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

/// The latest of an observation's versions. `None` if all share a type and day, since `FINAL` handles
/// those.
pub(super) fn latest_of_several(
    versions: &[Encoded],
) -> Option<(HashKey, impl AsRef<[u8]> + use<>)> {
    if is_one_place(versions) {
        return None;
    }
    let latest = versions.last().map(Row::decode)?;
    Some((latest.key, latest.version.encode()))
}

/// The day of a trace's versions. `None` if there are several, or the latest version deletes it.
pub(super) fn on_one_day(versions: &[Encoded]) -> Option<(HashKey, impl AsRef<[u8]> + use<>)> {
    let latest = versions.last().map(Row::decode)?;
    let is_on_one = is_one_place(versions) && !latest.version.is_deleted;
    is_on_one.then(|| (latest.key, day_of_place(latest.version.place).to_le_bytes()))
}

fn is_one_place(versions: &[Encoded]) -> bool {
    let place = |row: &Encoded| row[20..28] == versions[0][20..28];
    versions.iter().all(place)
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
            let mut sorted = VersionFiles::new(directory.path(), bytes).unwrap();
            let mut expected: BTreeMap<HashKey, Vec<Version>> = BTreeMap::new();
            for row in &rows {
                sorted.push(row).unwrap();
                expected.entry(row.key).or_default().push(row.version);
            }
            expected.retain(|_, versions| versions.iter().any(|v| v.place != versions[0].place));
            prop_assert_eq!(sorted.settle(&store, Against::Versions, latest_of_several, &|| false).unwrap(), expected.len() as u64);
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
                VersionFiles::of(directory.path(), (count - 1) * FILE_BYTES, beginnings).unwrap();
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
