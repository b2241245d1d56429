//! Results for traces found neither on their row's day nor the day before or after: those on other
//! loaded days, and ClickHouse's answers, fetched thousands at a time. Also the versions that
//! override any day's.

use std::sync::atomic::Ordering;

use rocksdb::WriteBatch;

use super::error::StoreError;
use super::families::{MOVED, REMOTE};
use super::lookup::Reach;
use super::store::TraceStore;
use crate::partition::Day;

/// Write batch size, in bytes.
const BATCH_BYTES: usize = 1 << 20;

impl TraceStore {
    /// Looks for traces on all loaded days and stores those found with ClickHouse's answers, so
    /// that a later look-up need not try every day of the month. Holds at most `max_bytes` of
    /// records, or a single larger one. Returns for each key whether its trace was found.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub(crate) fn gather_from_all_days(
        &self,
        keys: &[&[u8]],
        max_bytes: usize,
    ) -> Result<Vec<bool>, StoreError> {
        let max_bytes_of = |count| match count {
            1 => usize::MAX,
            _ => max_bytes,
        };
        let mut writer = RemoteWriter::new(self, About::Missing);
        let mut are_there = Vec::with_capacity(keys.len());
        let mut at_once = keys.len().max(1);
        while are_there.len() < keys.len() {
            let rest = &keys[are_there.len()..];
            let these = &rest[..rest.len().min(at_once)];
            // They are not on their own day, so any first day will do.
            let asked: Vec<(Day, &[u8])> = these.iter().map(|&key| (0, key)).collect();
            let found = self.look_up(&asked, Reach::AllDays, max_bytes_of(these.len()))?;
            if found.is_too_large() {
                at_once = these.len() / 2;
                continue;
            }
            for (index, key) in these.iter().enumerate() {
                if let Some(record) = found.encoded(index) {
                    writer.put(key, record)?;
                }
                are_there.push(found.is_known(index));
            }
        }
        writer.finish()?;
        Ok(are_there)
    }

    /// Whether the location of the key's trace is already known.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn is_answered(&self, key: &[u8]) -> Result<bool, StoreError> {
        let answer = self
            .database
            .get_pinned_cf(&self.family(REMOTE)?, key)
            .map_err(|error| self.failed(error))?;
        Ok(answer.is_some())
    }

    /// Deletes all answers, so that ClickHouse is queried again.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn forget_answers(&self) -> Result<(), StoreError> {
        for (family, has_some) in [(REMOTE, &self.has_remote), (MOVED, &self.has_moved)] {
            has_some.store(false, Ordering::Relaxed);
            self.empty_family(family, &self.family_options)?;
        }
        Ok(())
    }
}

/// The kind of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// Traces neither on their row's day nor the day before or after.
    Missing,
    /// Traces on one of these days and on others; the answer overrides them.
    Moved,
}

/// Writes answers, all stored by [`RemoteWriter::finish`].
pub(crate) struct RemoteWriter<'a> {
    store: &'a TraceStore,
    about: About,
    batch: WriteBatch,
    has_put: bool,
}

impl<'a> RemoteWriter<'a> {
    /// A writer of answers.
    pub(crate) fn new(store: &'a TraceStore, about: About) -> Self {
        Self {
            store,
            about,
            batch: WriteBatch::default(),
            has_put: false,
        }
    }

    /// Adds the encoded [`TraceRecord`](super::TraceRecord) for a key. A missing trace gets the
    /// record of a deleted one, so it is not queried again.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn put(&mut self, key: &[u8], record: &[u8]) -> Result<(), StoreError> {
        let family = self.store.family(match self.about {
            About::Missing => REMOTE,
            About::Moved => MOVED,
        })?;
        self.batch.put_cf(&family, key, record);
        self.has_put = true;
        if self.batch.size_in_bytes() >= BATCH_BYTES {
            self.store.write(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }

    /// Writes the rest of the batch.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        if !self.has_put {
            return Ok(());
        }
        self.store.write(self.batch)?;
        let has_some = match self.about {
            About::Missing => &self.store.has_remote,
            About::Moved => &self.store.has_moved,
        };
        has_some.store(true, Ordering::Relaxed);
        Ok(())
    }
}
