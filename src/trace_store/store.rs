//! The store itself: creates, opens and reopens its column families.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use rocksdb::{ColumnFamilyDescriptor, DBWithThreadMode, MultiThreaded, Options};

use super::error::StoreError;
use super::families::{
    Against, DAY_PREFIX, DEFAULT, MOVED, NotEmpty, OF_ITEMS, REMOTE, SUSPECTS, WANTED, day_family,
    is_unfinished,
};
use super::options;
use super::read_ahead::ReadAhead;
use crate::partition::Day;

pub(super) type Database = DBWithThreadMode<MultiThreaded>;

/// Key in the default family that holds the id of the run that created the store.
const RUN_KEY: &[u8] = b"run";

/// The trace store of one partition.
pub struct TraceStore {
    pub(super) path: PathBuf,
    /// Block cache size in bytes, including indexes and filters.
    pub(super) cache_bytes: usize,
    pub(super) database: Database,
    pub(super) family_options: Options,
    pub(super) compacted_options: Options,
    pub(super) walked_options: Options,
    pub(super) days: RwLock<BTreeSet<Day>>,
    pub(super) has_moved: AtomicBool,
    pub(super) has_remote: AtomicBool,
    pub(super) has_experiments: AtomicBool,
    pub(super) not_empty: NotEmpty,
    pub(super) looked_up: AtomicU64,
    pub(super) missed: AtomicU64,
    pub(super) reading_ahead: ReadAhead,
}

impl TraceStore {
    /// Opens or creates the store in `path`, with a block cache of `cache_bytes` that includes
    /// indexes and filters.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the directory is unusable or damaged.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let failed = |error: rocksdb::Error| StoreError::Database {
            path: path.to_owned(),
            message: error.into_string(),
        };
        let database_options = options::database();
        let family_options = options::family(cache_bytes);
        let compacted_options = options::compacted(&family_options);
        let walked_options = options::walked(cache_bytes);
        // Without a CURRENT file there is no database yet, and listing families would fail.
        // The default family too: with RocksDB's options, 70 MiB of disk would be reserved for the log.
        let known = [DEFAULT, SUSPECTS, MOVED, REMOTE, WANTED];
        let mut families = BTreeSet::from(known.map(str::to_owned));
        families.extend(OF_ITEMS.map(str::to_owned));
        families.extend(Against::ALL.map(|against| against.family().to_owned()));
        if path.join("CURRENT").exists() {
            families.extend(Database::list_cf(&database_options, path).map_err(failed)?);
        }
        let days = families
            .iter()
            .filter_map(|name| name.strip_prefix(DAY_PREFIX)?.parse().ok())
            .collect();
        let descriptors = families.into_iter().map(|name| {
            let is_compacted = OF_ITEMS.contains(&name.as_str())
                || [SUSPECTS, MOVED, REMOTE].contains(&name.as_str());
            let options = match Against::of_family(&name) {
                Some(against) if against.is_walked() => &walked_options,
                None if is_compacted => &compacted_options,
                _ => &family_options,
            };
            ColumnFamilyDescriptor::new(name, options.clone())
        });
        let database =
            Database::open_cf_descriptors(&database_options, path, descriptors).map_err(failed)?;
        let store = Self {
            path: path.to_owned(),
            cache_bytes,
            database,
            family_options,
            compacted_options,
            walked_options,
            days: RwLock::new(days),
            has_moved: AtomicBool::new(false),
            has_remote: AtomicBool::new(false),
            has_experiments: AtomicBool::new(false),
            not_empty: NotEmpty::default(),
            looked_up: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            reading_ahead: ReadAhead::default(),
        };
        for (name, has_some) in [(MOVED, &store.has_moved), (REMOTE, &store.has_remote)] {
            has_some.store(!store.family_is_empty(name)?, Ordering::Relaxed);
        }
        store.notice_experiments()?;
        for against in Against::ALL {
            store.notice(against)?;
        }
        Ok(store)
    }

    /// Number of traces looked up, and how many of those were missing.
    pub fn look_ups(&self) -> (u64, u64) {
        let counters = [&self.looked_up, &self.missed];
        let [made, missed] = counters.map(|counter| counter.load(Ordering::Relaxed));
        (made, missed)
    }

    /// Creates a store and records the run it belongs to.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the directory is unusable.
    pub fn create(path: &Path, cache_bytes: usize, run_id: &str) -> Result<Self, StoreError> {
        let store = Self::open(path, cache_bytes)?;
        store
            .database
            .put(RUN_KEY, run_id)
            .map_err(|error| store.failed(error))?;
        Ok(store)
    }

    /// Reopens a run's store. `days` are fully loaded; any other day is incomplete and deleted.
    ///
    /// # Errors
    /// [`StoreError`] if the store is damaged or belongs to another run.
    pub fn reopen(
        path: &Path,
        cache_bytes: usize,
        run_id: &str,
        days: &[Day],
    ) -> Result<Self, StoreError> {
        let mismatch = |message: String| StoreError::Mismatch {
            path: path.to_owned(),
            message,
        };
        match path.join("CURRENT").try_exists() {
            Ok(true) => {}
            Ok(false) => return Err(mismatch("the store is missing".to_owned())),
            Err(error) => {
                return Err(StoreError::Database {
                    path: path.to_owned(),
                    message: error.to_string(),
                });
            }
        }
        remove_unfinished_files(path);
        let store = Self::open(path, cache_bytes)?;
        let made_by = store
            .database
            .get(RUN_KEY)
            .map_err(|error| store.failed(error))?;
        if made_by.as_deref() != Some(run_id.as_bytes()) {
            return Err(mismatch("another run created it".to_owned()));
        }
        let in_store = store.days();
        if let Some(day) = days.iter().find(|day| !in_store.contains(day)) {
            return Err(mismatch(format!("day {day} is missing")));
        }
        for day in in_store.iter().filter(|day| !days.contains(day)) {
            store.remove_day(*day)?;
        }
        Ok(store)
    }

    pub(super) fn remove_day(&self, day: Day) -> Result<(), StoreError> {
        self.database
            .drop_cf(&day_family(day))
            .map_err(|error| self.failed(error))?;
        self.days
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&day);
        Ok(())
    }

    /// Size on disk, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.path)
    }

    /// The loaded days, in order.
    pub fn days(&self) -> Vec<Day> {
        let days = self.days.read().unwrap_or_else(PoisonError::into_inner);
        days.iter().copied().collect()
    }

    pub(super) fn options_of(&self, against: Against) -> &Options {
        match against.is_walked() {
            true => &self.walked_options,
            false => &self.family_options,
        }
    }

    pub(super) fn family(
        &self,
        name: &str,
    ) -> Result<std::sync::Arc<rocksdb::BoundColumnFamily<'_>>, StoreError> {
        self.database
            .cf_handle(name)
            .ok_or_else(|| StoreError::Database {
                path: self.path.clone(),
                message: format!("column family {name} is missing"),
            })
    }

    pub(super) fn family_is_empty(&self, name: &str) -> Result<bool, StoreError> {
        let mut iterator = self.database.raw_iterator_cf(&self.family(name)?);
        iterator.seek_to_first();
        iterator.status().map_err(|error| self.failed(error))?;
        Ok(!iterator.valid())
    }

    /// Deletes a family's contents.
    pub(super) fn empty_family(&self, name: &str, options: &Options) -> Result<(), StoreError> {
        self.database
            .drop_cf(name)
            .and_then(|()| self.database.create_cf(name, options))
            .map_err(|error| self.failed(error))
    }

    pub(super) fn failed(&self, error: rocksdb::Error) -> StoreError {
        StoreError::Database {
            path: self.path.clone(),
            message: error.into_string(),
        }
    }
}

/// Size on disk of the store in `path`, in bytes, whether or not it is open. 0 if there is none.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Deletes files left by a killed load.
fn remove_unfinished_files(path: &Path) {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_unfinished(&entry.file_name())) {
        // Leftovers are deleted with the whole store.
        let _ = std::fs::remove_file(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_empty_store_takes_little_of_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = TraceStore::create(&path, 1 << 20, "run").unwrap();
        store.sync().unwrap();
        // With what RocksDB has reserved for files that are still short; see STORE_BYTES_EMPTY.
        let files = std::fs::read_dir(&path).unwrap();
        let blocks = files.map(|file| file.unwrap().metadata().unwrap().blocks());
        let taken = blocks.sum::<u64>() * 512;
        assert!(taken < 10 << 20, "{taken}");
    }
}
