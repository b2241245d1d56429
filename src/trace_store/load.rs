//! Loads sorted records straight into SST files and ingests them whole: no memtable, no log, no
//! compaction.

use std::path::PathBuf;
use std::sync::PoisonError;

use fastbloom::BloomFilter;
use rocksdb::{IngestExternalFileOptions, SstFileWriter, WriteBatch, WriteOptions};

use super::error::StoreError;
use super::families::{SUSPECTS, UNFINISHED_PREFIX, day_family};
use super::key;
use super::options::{TARGET_FILE_BYTES, TARGET_FILE_ENTRIES};
use super::store::TraceStore;
use crate::partition::Day;

/// Filter bits per trace: 1 % false suspects.
const SEEN_BITS: usize = 10;

/// An approximate, bounded set of the traces loaded so far, used to find traces on more than one
/// day.
pub struct SeenTraces {
    filter: BloomFilter,
}

impl SeenTraces {
    /// Sized for `traces`, up to `max_bytes`. Less memory means more false suspects: slower, but
    /// still correct.
    pub fn new(traces: u64, max_bytes: usize) -> Self {
        let wanted = usize::try_from(traces).unwrap_or(usize::MAX);
        let bits = wanted.saturating_mul(SEEN_BITS).clamp(1024, max_bytes * 8);
        let filter = BloomFilter::with_num_bits(bits)
            .seed(&0x0065_7665_6e74_735f)
            .expected_items(wanted.max(1));
        Self { filter }
    }

    /// Adds every trace already in `store`, unless interrupted by `stop`.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn remember(
        &mut self,
        store: &TraceStore,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), StoreError> {
        for day in store.days() {
            let mut iterator = store
                .database
                .raw_iterator_cf(&store.family(&day_family(day))?);
            iterator.seek_to_first();
            while let Some(key) = iterator.key() {
                self.insert(key);
                iterator.next();
            }
            iterator.status().map_err(|error| store.failed(error))?;
            if stop() {
                break;
            }
        }
        Ok(())
    }

    fn insert(&mut self, key: &[u8]) -> bool {
        self.filter.insert(key)
    }
}

/// Writes one day's traces. None are in the store until [`DayWriter::finish`].
pub struct DayWriter<'a> {
    store: &'a TraceStore,
    day: Day,
    /// The current file for each key form.
    current: [Option<OpenFile<'a>>; key::FORMS],
    entries: u64,
    entries_per_file: u64,
    files: Vec<PathBuf>,
    suspects: WriteBatch,
}

/// An SST file in progress.
struct OpenFile<'a> {
    writer: SstFileWriter<'a>,
    entries: u64,
}

impl<'a> DayWriter<'a> {
    /// Starts a day, deleting any data the store has for it. `at_once` is the number of concurrent
    /// writers, which share the memory for data not yet on disk.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the old data cannot be deleted.
    pub fn new(store: &'a TraceStore, day: Day, at_once: usize) -> Result<Self, StoreError> {
        if store.days().contains(&day) {
            store.remove_day(day)?;
        }
        Ok(Self {
            store,
            day,
            current: Default::default(),
            entries: 0,
            entries_per_file: (TARGET_FILE_ENTRIES / at_once.max(1) as u64).max(1),
            files: Vec::new(),
            suspects: WriteBatch::default(),
        })
    }

    /// Adds a trace with its encoded [`TraceRecord`](super::TraceRecord). Keys of each form must be
    /// in ascending order.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the disk is full or the key is out of order.
    pub fn put(
        &mut self,
        key: &[u8],
        record: &[u8],
        seen: &mut SeenTraces,
    ) -> Result<(), StoreError> {
        let form = key::form(key);
        let mut file = match self.current[form].take() {
            Some(file) => file,
            None => self.next_file()?,
        };
        file.writer
            .put(key, record)
            .map_err(|error| self.store.failed(error))?;
        self.entries += 1;
        file.entries += 1;
        if file.entries >= self.entries_per_file || file.writer.file_size() >= TARGET_FILE_BYTES {
            self.close(file)?;
        } else {
            self.current[form] = Some(file);
        }
        if seen.insert(key) {
            self.suspect(key)?;
        }
        Ok(())
    }

    fn next_file(&mut self) -> Result<OpenFile<'a>, StoreError> {
        let path = self.store.path.join(format!(
            "{UNFINISHED_PREFIX}{}-{}.sst",
            self.day,
            self.files.len()
        ));
        let writer = SstFileWriter::create(&self.store.family_options);
        writer
            .open(&path)
            .map_err(|error| self.store.failed(error))?;
        self.files.push(path);
        Ok(OpenFile { writer, entries: 0 })
    }

    fn close(&self, mut file: OpenFile<'a>) -> Result<(), StoreError> {
        file.writer
            .finish()
            .map_err(|error| self.store.failed(error))
    }

    fn suspect(&mut self, key: &[u8]) -> Result<(), StoreError> {
        const BATCH_BYTES: usize = 1 << 20;
        self.suspects
            .put_cf(&self.store.family(SUSPECTS)?, key, b"");
        if self.suspects.size_in_bytes() >= BATCH_BYTES {
            self.store.write(std::mem::take(&mut self.suspects))?;
        }
        Ok(())
    }

    /// Adds the whole day to the store atomically. Returns its number of traces.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub fn finish(mut self) -> Result<u64, StoreError> {
        for file in std::mem::take(&mut self.current).into_iter().flatten() {
            self.close(file)?;
        }
        self.store.write(std::mem::take(&mut self.suspects))?;
        let name = day_family(self.day);
        if self.store.database.cf_handle(&name).is_none() {
            self.store
                .database
                .create_cf(&name, &self.store.family_options)
                .map_err(|error| self.store.failed(error))?;
        }
        if !self.files.is_empty() {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(true);
            let files = std::mem::take(&mut self.files);
            self.store
                .database
                .ingest_external_file_cf_opts(&self.store.family(&name)?, &options, files)
                .map_err(|error| self.store.failed(error))?;
        }
        let mut days = self
            .store
            .days
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        days.insert(self.day);
        Ok(self.entries)
    }
}

impl Drop for DayWriter<'_> {
    /// Deletes the files of an unfinished day.
    fn drop(&mut self) {
        for file in &self.files {
            // Leftovers are deleted with the whole store.
            let _ = std::fs::remove_file(file);
        }
    }
}

impl TraceStore {
    /// Flushes everything to stable storage. Call it before writing a checkpoint that depends on
    /// it.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the disk cannot be synced.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.database
            .flush_wal(true)
            .map_err(|error| self.failed(error))
    }

    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.database
            .write_opt(batch, &WriteOptions::default())
            .map_err(|error| self.failed(error))
    }
}
