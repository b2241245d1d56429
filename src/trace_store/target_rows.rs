//! What the target has already, and which versions of observations count: what a row is held
//! against before it becomes an event.
//!
//! Four families, all keyed by hashes that the caller makes: the rows that stood in the target
//! before the run, those found in it while the run went on, the latest version of each
//! observation that has several, and the traces that have a root already. The first two are
//! walked, since a segment's rows are neighbours in them; the others are asked point by point.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rocksdb::{DBRawIteratorWithThreadMode, IngestExternalFileOptions, SstFileWriter};

use super::error::StoreError;
use super::families::{Against, KEYS_AT_ONCE, UNFINISHED_PREFIX};
use super::options::TARGET_FILE_BYTES;
use super::store::{Database, TraceStore};

/// Bytes of the key of a row of the target.
pub(crate) const ROW_KEY_BYTES: usize = 22;
/// Bytes of the key of an observation or a trace.
pub(crate) const HASH_BYTES: usize = 12;

/// The key of a row of the target: it sorts by day, project and the beginning of the span's id.
pub(crate) type RowKey = [u8; ROW_KEY_BYTES];
/// The key of an observation or a trace.
pub(crate) type HashKey = [u8; HASH_BYTES];

/// A row of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetRow {
    /// Its `event_ts`, in microseconds since 1970.
    pub event_ts: i64,
    /// Whether something else than a backfill wrote it.
    pub is_live: bool,
}

impl TargetRow {
    const BYTES: usize = 9;

    /// As it is stored.
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
            event_ts: i64::from_le_bytes(event_ts.ok_or_else(|| damaged("a row of the target"))?),
            is_live: is_live != 0,
        })
    }
}

/// What is the root of a trace already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// A span that something live wrote under an id of its own.
    Live,
    /// An observation that is called as the root span of its trace.
    Observation,
}

impl Root {
    /// As it is stored.
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
                "what is the root of a trace is none of the kinds that are stored".to_owned(),
            )),
        }
    }
}

/// A version of an observation. The greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Its `event_ts`, in microseconds since 1970.
    pub event_ts: i64,
    /// Its day and type, as a number: of versions that were written at the same time the one on
    /// the later day counts.
    pub place: u64,
    /// Whether it says that the observation is deleted.
    pub is_deleted: bool,
}

impl Version {
    const BYTES: usize = 17;

    /// As it is stored.
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
    StoreError::Record(format!("{what} has another length than was stored"))
}

/// Writes entries in the order of their keys straight into files that are ingested whole.
pub(crate) struct SortedWriter<'a> {
    store: &'a TraceStore,
    against: Against,
    /// Distinguishes its files from those of other writers.
    name: String,
    current: Option<SstFileWriter<'a>>,
    files: Vec<PathBuf>,
    entries: u64,
}

impl<'a> SortedWriter<'a> {
    /// A writer into one family. Writers at the same time must have different names.
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

    /// Adds an entry. Keys must come in strictly ascending order.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full, or the order is wrong.
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

    /// Makes all entries part of the store, over what it has under the same keys, and gives their
    /// number.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
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
    /// Removes the files of a writer that was not finished.
    fn drop(&mut self) {
        for file in &self.files {
            // What cannot be removed now is removed with the whole store.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Steps that are taken from one key to the next before the place is searched for anew.
const STEPS: usize = 24;

impl TraceStore {
    /// Whether a family has anything in it.
    pub fn has(&self, against: Against) -> bool {
        self.not_empty.0[against as usize].load(Ordering::Relaxed)
    }

    pub(super) fn notice(&self, against: Against) -> Result<(), StoreError> {
        let has_some = !self.family_is_empty(against.family())?;
        self.not_empty.set(against, has_some);
        Ok(())
    }

    /// Removes all that is in a family.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the store fails.
    pub fn clear(&self, against: Against) -> Result<(), StoreError> {
        self.not_empty.set(against, false);
        self.empty_family(against.family(), self.options_of(against))
    }

    /// The rows under some keys, in the order of `keys`, which may be any.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or is damaged.
    pub fn target_rows(
        &self,
        against: Against,
        keys: &[RowKey],
    ) -> Result<Vec<Option<TargetRow>>, StoreError> {
        let mut found = vec![None; keys.len()];
        if !self.has(against) {
            return Ok(found);
        }
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|&index| keys[index]);
        let family = self.family(against.family())?;
        let mut walk = Walk {
            iterator: self.database.raw_iterator_cf(&family),
            is_placed: false,
        };
        for index in order {
            if let Some(value) = walk.value(&keys[index]) {
                found[index] = Some(TargetRow::decode(value)?);
            }
        }
        walk.iterator.status().map_err(|error| self.failed(error))?;
        Ok(found)
    }

    /// The versions that count of some observations, in the order of `keys`; of those that have
    /// one version only, nothing.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or is damaged.
    pub fn versions_of(&self, keys: &[HashKey]) -> Result<Vec<Option<Version>>, StoreError> {
        let decode = |value: &[u8]| Version::decode(value);
        self.points(Against::Versions, keys, decode)
    }

    /// What is the root of each of some traces already, in the order of `keys`.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or is damaged.
    pub fn roots_of(&self, keys: &[HashKey]) -> Result<Vec<Option<Root>>, StoreError> {
        self.points(Against::Roots, keys, Root::decode)
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
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|&index| keys[index]);
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

/// Goes through a family in the order of its keys.
struct Walk<'a> {
    iterator: DBRawIteratorWithThreadMode<'a, Database>,
    is_placed: bool,
}

impl Walk<'_> {
    /// What stands under a key, which must not be less than the one before.
    fn value(&mut self, key: &RowKey) -> Option<&[u8]> {
        if !self.is_placed {
            self.iterator.seek(key);
            self.is_placed = true;
        }
        let mut steps = 0;
        while self.iterator.key().is_some_and(|at| at < &key[..]) {
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
