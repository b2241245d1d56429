//! What each row is checked against before it becomes an event: rows already in the target, and the
//! latest versions of observations.
//!
//! Families keyed by hashes that the caller computes: target rows from before the run, target rows
//! found during the run, the latest version of each observation that has several, the traces that
//! already have a root, and the days of traces. Target rows and days are read in key order, since a
//! segment's rows are neighbours there, and its traces are all over the second; the others by point look-ups.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rocksdb::{DBRawIteratorWithThreadMode, IngestExternalFileOptions, SstFileWriter};

use super::error::StoreError;
use super::families::{Against, KEYS_AT_ONCE, UNFINISHED_PREFIX};
use super::options::TARGET_FILE_BYTES;
use super::store::{Database, TraceStore};
use crate::partition::Day;

/// Length of a target row's key.
pub(crate) const ROW_KEY_BYTES: usize = 22;
/// Length of an observation's or trace's key.
pub(crate) const HASH_BYTES: usize = 12;

/// A target row's key, sorted by day, project and the first bytes of the span id.
pub(crate) type RowKey = [u8; ROW_KEY_BYTES];
/// An observation's or trace's key.
pub(crate) type HashKey = [u8; HASH_BYTES];

/// A row of the target table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetRow {
    /// Its `event_ts`, in microseconds since 1970.
    pub event_ts: i64,
    /// Whether anything other than a backfill wrote it.
    pub is_live: bool,
}

impl TargetRow {
    const BYTES: usize = 9;

    /// The stored form.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.event_ts.to_le_bytes());
        bytes[8] = u8::from(self.is_live);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let (event_ts, is_live) = match bytes {
            [event_ts @ .., is_live] => (event_ts.try_into().ok(), *is_live),
            [] => (None, 0),
        };
        Ok(Self {
            event_ts: i64::from_le_bytes(event_ts.ok_or_else(|| damaged("a target row"))?),
            is_live: is_live != 0,
        })
    }
}

/// Why a trace already has a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// A live span with its own id.
    Live,
    /// An observation whose id is that of its trace's root span.
    Observation,
}

impl Root {
    /// The stored form.
    pub fn encode(self) -> [u8; 1] {
        [match self {
            Root::Live => 0,
            Root::Observation => 1,
        }]
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        match bytes {
            [0] => Ok(Root::Live),
            [1] => Ok(Root::Observation),
            _ => Err(StoreError::Record(
                "the kind of a trace's root is not one that this program stores".to_owned(),
            )),
        }
    }
}

/// A version of an observation. The highest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Its `event_ts`, in microseconds since 1970.
    pub event_ts: i64,
    /// Its day and type as a number. Of versions written at the same time, the one on the later day
    /// wins.
    pub place: u64,
    /// Whether it deletes the observation.
    pub is_deleted: bool,
}

impl Version {
    const BYTES: usize = 17;

    /// The stored form.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.event_ts.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.place.to_le_bytes());
        bytes[16] = u8::from(self.is_deleted);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = || damaged("a version of an observation");
        let bytes: &[u8; Self::BYTES] = bytes.try_into().map_err(|_| damaged())?;
        let number = |bytes: &[u8]| bytes.try_into().map_err(|_| damaged());
        Ok(Self {
            event_ts: i64::from_le_bytes(number(&bytes[..8])?),
            place: u64::from_le_bytes(number(&bytes[8..16])?),
            is_deleted: bytes[16] != 0,
        })
    }
}

fn damaged(what: &str) -> StoreError {
    StoreError::Record(format!("{what} has the wrong length"))
}

/// Writes sorted entries straight into SST files and ingests them whole.
pub(crate) struct SortedWriter<'a> {
    store: &'a TraceStore,
    against: Against,
    /// Distinguishes its files from other writers'.
    name: String,
    current: Option<SstFileWriter<'a>>,
    files: Vec<PathBuf>,
    entries: u64,
}

impl<'a> SortedWriter<'a> {
    /// Creates a writer for one family. Concurrent writers need different names.
    pub(crate) fn new(store: &'a TraceStore, against: Against, name: impl Into<String>) -> Self {
        Self {
            store,
            against,
            name: name.into(),
            current: None,
            files: Vec::new(),
            entries: 0,
        }
    }

    /// Adds an entry. Keys must be in strictly ascending order.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the disk is full or the key is out of order.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut file = match self.current.take() {
            Some(file) => file,
            None => self.next_file()?,
        };
        file.put(key, value)
            .map_err(|error| self.store.failed(error))?;
        self.entries += 1;
        if file.file_size() >= TARGET_FILE_BYTES {
            file.finish().map_err(|error| self.store.failed(error))?;
        } else {
            self.current = Some(file);
        }
        Ok(())
    }

    fn next_file(&mut self) -> Result<SstFileWriter<'a>, StoreError> {
        let path = self.store.path.join(format!(
            "{UNFINISHED_PREFIX}{}-{}-{}.sst",
            self.against.family(),
            self.name,
            self.files.len()
        ));
        let writer = SstFileWriter::create(self.store.options_of(self.against));
        writer
            .open(&path)
            .map_err(|error| self.store.failed(error))?;
        self.files.push(path);
        Ok(writer)
    }

    /// Adds all entries to the store, replacing those with equal keys. Returns their number.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn finish(mut self) -> Result<u64, StoreError> {
        if let Some(mut file) = self.current.take() {
            file.finish().map_err(|error| self.store.failed(error))?;
        }
        if !self.files.is_empty() {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(true);
            let family = self.store.family(self.against.family())?;
            let files = std::mem::take(&mut self.files);
            self.store
                .database
                .ingest_external_file_cf_opts(&family, &options, files)
                .map_err(|error| self.store.failed(error))?;
            self.store.not_empty.set(self.against, true);
        }
        Ok(self.entries)
    }
}

impl Drop for SortedWriter<'_> {
    /// Deletes the files of an unfinished writer.
    fn drop(&mut self) {
        for file in &self.files {
            // Leftovers are deleted with the whole store.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Steps to take towards the next key before seeking instead.
const STEPS: usize = 24;

impl TraceStore {
    /// Whether a family is non-empty.
    pub fn has(&self, against: Against) -> bool {
        self.not_empty.0[against as usize].load(Ordering::Relaxed)
    }

    pub(super) fn notice(&self, against: Against) -> Result<(), StoreError> {
        let has_some = !self.family_is_empty(against.family())?;
        self.not_empty.set(against, has_some);
        Ok(())
    }

    /// Deletes a family's contents.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn clear(&self, against: Against) -> Result<(), StoreError> {
        self.not_empty.set(against, false);
        self.empty_family(against.family(), self.options_of(against))
    }

    /// The target rows for `keys`, which may be in any order. The result is in the same order.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn target_rows(
        &self,
        against: Against,
        keys: &[RowKey],
    ) -> Result<Vec<Option<TargetRow>>, StoreError> {
        self.walk(against, keys, TargetRow::decode)
    }

    /// The latest versions of observations, in the order of `keys`. Observations with only one
    /// version have no entry.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn versions_of(&self, keys: &[HashKey]) -> Result<Vec<Option<Version>>, StoreError> {
        let decode = |value: &[u8]| Version::decode(value);
        self.points(Against::Versions, keys, decode)
    }

    /// The existing roots of traces, in the order of `keys`.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn roots_of(&self, keys: &[HashKey]) -> Result<Vec<Option<Root>>, StoreError> {
        self.points(Against::Roots, keys, Root::decode)
    }

    /// The days of traces that are on one day alone and not deleted, in the order of `keys`.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn days_of_traces(&self, keys: &[HashKey]) -> Result<Vec<Option<Day>>, StoreError> {
        self.walk(Against::TraceDays, keys, |value| {
            let day = value
                .try_into()
                .map_err(|_| damaged("the day of a trace"))?;
            Ok(Day::from_le_bytes(day))
        })
    }

    /// Looks keys up in a family, going through both in key order.
    fn walk<K: Copy + Ord + AsRef<[u8]>, T: Clone>(
        &self,
        against: Against,
        keys: &[K],
        decode: impl Fn(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Vec<Option<T>>, StoreError> {
        let mut found = vec![None; keys.len()];
        if !self.has(against) {
            return Ok(found);
        }
        let order = in_key_order(keys);
        let family = self.family(against.family())?;
        let mut walk = Walk {
            iterator: self.database.raw_iterator_cf(&family),
            is_placed: false,
        };
        for index in order {
            if let Some(value) = walk.value(keys[index].as_ref()) {
                found[index] = Some(decode(value)?);
            }
        }
        walk.iterator.status().map_err(|error| self.failed(error))?;
        Ok(found)
    }

    fn points<T: Clone>(
        &self,
        against: Against,
        keys: &[HashKey],
        decode: impl Fn(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Vec<Option<T>>, StoreError> {
        let mut found = vec![None; keys.len()];
        if !self.has(against) {
            return Ok(found);
        }
        let order = in_key_order(keys);
        let family = self.family(against.family())?;
        for chunk in order.chunks(KEYS_AT_ONCE) {
            let asked = chunk.iter().map(|&index| &keys[index]);
            let answers = self.database.batched_multi_get_cf(&family, asked, true);
            for (&index, answer) in chunk.iter().zip(answers) {
                if let Some(value) = answer.map_err(|error| self.failed(error))? {
                    found[index] = Some(decode(&value)?);
                }
            }
        }
        Ok(found)
    }
}

/// The places of keys, in the order of the keys.
fn in_key_order<K: Ord>(keys: &[K]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_unstable_by(|&a, &b| keys[a].cmp(&keys[b]));
    order
}

/// Reads a family in key order.
struct Walk<'a> {
    iterator: DBRawIteratorWithThreadMode<'a, Database>,
    is_placed: bool,
}

impl Walk<'_> {
    /// The value for `key`, which must not be less than the previous one.
    fn value(&mut self, key: &[u8]) -> Option<&[u8]> {
        if !self.is_placed {
            self.iterator.seek(key);
            self.is_placed = true;
        }
        let mut steps = 0;
        while self.iterator.key().is_some_and(|at| at < key) {
            if steps == STEPS {
                self.iterator.seek(key);
                break;
            }
            self.iterator.next();
            steps += 1;
        }
        match self.iterator.item() {
            Some((at, value)) if at == key => Some(value),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(number: u32) -> RowKey {
        let mut key = [0; ROW_KEY_BYTES];
        key[..4].copy_from_slice(&number.to_be_bytes());
        key
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn rows_are_found_under_their_keys_and_under_no_others(
            rows in proptest::collection::btree_map(0_u32..5_000, (any::<i64>(), any::<bool>()), 0..800),
            again in proptest::collection::btree_map(0_u32..5_000, (any::<i64>(), any::<bool>()), 0..50),
            asked in proptest::collection::vec(0_u32..5_000, 0..300),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
            let mut all = BTreeMap::new();
            for rows in [rows, again] {
                let mut writer = SortedWriter::new(&store, Against::RowsSince, "a");
                for (&number, &(event_ts, is_live)) in &rows {
                    let row = TargetRow { event_ts, is_live };
                    writer.put(&key(number), &row.encode()).unwrap();
                    all.insert(number, row);
                }
                prop_assert_eq!(writer.finish().unwrap(), rows.len() as u64);
            }
            let keys: Vec<RowKey> = asked.iter().map(|&number| key(number)).collect();
            let found = store.target_rows(Against::RowsSince, &keys).unwrap();
            let expected: Vec<_> = asked.iter().map(|number| all.get(number).copied()).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(store.has(Against::RowsSince), !all.is_empty());
            prop_assert!(!store.has(Against::RowsBefore));
            store.clear(Against::RowsSince).unwrap();
            prop_assert!(!store.has(Against::RowsSince));
        }
    }

    #[test]
    fn versions_and_roots_are_found_by_their_hashes() {
        let directory = tempfile::tempdir().unwrap();
        let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
        let hash = |number: u8| [number; HASH_BYTES];
        assert_eq!(store.versions_of(&[hash(1)]).unwrap(), [None]);
        let version = Version {
            event_ts: -3,
            place: u64::MAX,
            is_deleted: true,
        };
        let mut writer = SortedWriter::new(&store, Against::Versions, "a");
        writer.put(&hash(1), &version.encode()).unwrap();
        writer.finish().unwrap();
        let mut writer = SortedWriter::new(&store, Against::Roots, "a");
        writer.put(&hash(2), &Root::Live.encode()).unwrap();
        writer.put(&hash(3), &Root::Observation.encode()).unwrap();
        writer.finish().unwrap();
        let keys = [hash(2), hash(1), hash(3)];
        let versions = [None, Some(version), None];
        assert_eq!(store.versions_of(&keys).unwrap(), versions);
        assert_eq!(
            store.roots_of(&keys).unwrap(),
            [Some(Root::Live), None, Some(Root::Observation)]
        );
        drop(store);
        let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
        assert_eq!(store.versions_of(&keys).unwrap(), versions);
    }
}
