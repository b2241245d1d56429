//! Loading: sorted records straight into SST files that are ingested whole, so
//! that there is no memtable, no log and no compaction.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use fastbloom::BloomFilter;
use rocksdb::{IngestExternalFileOptions, SstFileWriter, WriteBatch, WriteOptions};

use super::options::{TARGET_FILE_BYTES, TARGET_FILE_ENTRIES};
use super::{Day, MOVED, SUSPECTS, StoreError, TraceRecord, TraceStore, day_family};

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

    fn insert(&mut self, key: &[u8]) -> bool {
        self.filter.insert(key)
    }
}

/// Writes the traces of one day. Nothing of it is in the store before [`DayWriter::finish`].
pub struct DayWriter<'a> {
    store: &'a TraceStore,
    day: Day,
    current: Option<SstFileWriter<'a>>,
    entries_in_file: u64,
    entries: u64,
    files: Vec<PathBuf>,
    suspects: WriteBatch,
}

impl<'a> DayWriter<'a> {
    /// A writer for one day, which must not be in the store yet.
    pub fn new(store: &'a TraceStore, day: Day) -> Self {
        Self {
            store,
            day,
            current: None,
            entries_in_file: 0,
            entries: 0,
            files: Vec::new(),
            suspects: WriteBatch::default(),
        }
    }

    /// Adds a trace with its encoded [`TraceRecord`]. Keys must come in ascending order.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full, or the order is wrong.
    pub fn put(
        &mut self,
        key: &[u8],
        record: &[u8],
        seen: &mut SeenTraces,
    ) -> Result<(), StoreError> {
        let mut writer = match self.current.take() {
            Some(writer) => writer,
            None => self.next_file()?,
        };
        writer
            .put(key, record)
            .map_err(|error| self.store.failed(error))?;
        self.entries += 1;
        self.entries_in_file += 1;
        if self.entries_in_file >= TARGET_FILE_ENTRIES || writer.file_size() >= TARGET_FILE_BYTES {
            writer.finish().map_err(|error| self.store.failed(error))?;
        } else {
            self.current = Some(writer);
        }
        if seen.insert(key) {
            self.suspect(key)?;
        }
        Ok(())
    }

    fn next_file(&mut self) -> Result<SstFileWriter<'a>, StoreError> {
        let path = self
            .store
            .path
            .join(format!("load-{}-{}.sst", self.day, self.files.len()));
        let writer = SstFileWriter::create(&self.store.family_options);
        writer
            .open(&path)
            .map_err(|error| self.store.failed(error))?;
        self.files.push(path);
        self.entries_in_file = 0;
        Ok(writer)
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
        if let Some(mut writer) = self.current.take() {
            writer.finish().map_err(|error| self.store.failed(error))?;
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
    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.database
            .write_opt(batch, &WriteOptions::default())
            .map_err(|error| self.failed(error))
    }

    /// Finds the traces that stand on more than one day and settles which of
    /// their versions counts: the one with the greatest `event_ts`, whatever its
    /// day, and if that one is deleted, none. To be called once all days are
    /// loaded. Gives the number of such traces.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
    pub fn settle_moved_traces(&self) -> Result<u64, StoreError> {
        let suspects = self.family(SUSPECTS)?;
        let moved = self.family(MOVED)?;
        let days = self.days();
        let mut settled = 0;
        let mut iterator = self.database.raw_iterator_cf(&suspects);
        iterator.seek_to_first();
        while let Some(key) = iterator.key() {
            if let Some(latest) = self.latest_of_several(key, &days)? {
                let mut batch = WriteBatch::default();
                batch.put_cf(&moved, key, latest);
                self.write(batch)?;
                settled += 1;
            }
            iterator.next();
        }
        iterator.status().map_err(|error| self.failed(error))?;
        self.has_moved.store(settled > 0, Ordering::Relaxed);
        Ok(settled)
    }

    /// The latest version of a trace that is on at least two days.
    fn latest_of_several(&self, key: &[u8], days: &[Day]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut latest: Option<(i64, Vec<u8>)> = None;
        let mut versions = 0;
        for &day in days {
            let family = self.family(&day_family(day))?;
            let Some(found) = self
                .database
                .get_pinned_cf(&family, key)
                .map_err(|error| self.failed(error))?
            else {
                continue;
            };
            versions += 1;
            let event_ts = TraceRecord::event_ts_of(&found)?;
            // The later day wins a tie, as the version written last would.
            if latest.as_ref().is_none_or(|(best, _)| event_ts >= *best) {
                latest = Some((event_ts, found.to_vec()));
            }
        }
        Ok(latest.filter(|_| versions > 1).map(|(_, record)| record))
    }
}
