//! Loading: sorted records straight into SST files that are ingested whole, so
//! that there is no memtable, no log and no compaction.

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

/// Bits per trace of the filter over all traces seen so far: 1 % false suspects.
const SEEN_BITS: usize = 10;

/// Remembers, roughly and in bounded memory, which traces were loaded already,
/// to find those that stand on more than one day.
pub struct SeenTraces {
    filter: BloomFilter,
}

impl SeenTraces {
    /// Room for `traces`, but never more than `max_bytes`: with less, more
    /// traces are suspected wrongly, which costs time and is still right.
    pub fn new(traces: u64, max_bytes: usize) -> Self {
        let wanted = usize::try_from(traces).unwrap_or(usize::MAX);
        let bits = wanted.saturating_mul(SEEN_BITS).clamp(1024, max_bytes * 8);
        let filter = BloomFilter::with_num_bits(bits)
            .seed(&0x0065_7665_6e74_735f)
            .expected_items(wanted.max(1));
        Self { filter }
    }

    /// Remembers every trace of the days that are in `store`, unless `stop` says
    /// to stop.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
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

/// Writes the traces of one day. Nothing of it is in the store before [`DayWriter::finish`].
pub struct DayWriter<'a> {
    store: &'a TraceStore,
    day: Day,
    /// The file that is being written for each form of keys.
    current: [Option<OpenFile<'a>>; key::FORMS],
    entries: u64,
    entries_per_file: u64,
    files: Vec<PathBuf>,
    suspects: WriteBatch,
}

/// An SST file that is being written.
struct OpenFile<'a> {
    writer: SstFileWriter<'a>,
    entries: u64,
}

impl<'a> DayWriter<'a> {
    /// A writer for one day. What the store has of it is removed. `at_once` says
    /// how many writers there are at the same time, since they share a bound on
    /// the memory for what is not on disk yet.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the day cannot be removed.
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

    /// Adds a trace with its encoded [`TraceRecord`](super::TraceRecord). Keys of
    /// each form must come in ascending order.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full, or the order is wrong.
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

    /// Makes the day part of the store, all of it or nothing, and says how many traces it has.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
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
    /// Removes the files of a day that was not finished.
    fn drop(&mut self) {
        for file in &self.files {
            // What cannot be removed now is removed with the whole store.
            let _ = std::fs::remove_file(file);
        }
    }
}

impl TraceStore {
    /// Makes sure that all that was written outlasts a loss of power. To be called before a
    /// checkpoint that relies on it.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk does not let it.
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
