//! What was found out about traces that are not on their rows' days or beside these: on which other day they
//! are, and what ClickHouse said when it was asked for some, thousands at a time. And which versions count
//! whatever a day says.

use std::sync::atomic::Ordering;

use rocksdb::WriteBatch;

use super::error::StoreError;
use super::families::{MOVED, REMOTE};
use super::lookup::Reach;
use super::store::TraceStore;
use crate::partition::Day;

/// Bytes that are gathered before they are written.
const BATCH_BYTES: usize = 1 << 20;

impl TraceStore {
    /// Looks for traces on all days that are loaded, and keeps those that are there beside the answers of
    /// ClickHouse, where a look-up finds them without asking a month's days. The records that are held at
    /// once take at most `max_bytes`, but for a single one. Says of each key whether its trace is there.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
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
            // They are not on their own day, so it does not matter which one comes first.
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

    /// Whether it was found out already where the trace of a key is.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the store fails.
    pub fn is_answered(&self, key: &[u8]) -> Result<bool, StoreError> {
        let answer = self
            .database
            .get_pinned_cf(&self.family(REMOTE)?, key)
            .map_err(|error| self.failed(error))?;
        Ok(answer.is_some())
    }

    /// Forgets all answers, so that ClickHouse is asked again.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the store fails.
    pub fn forget_answers(&self) -> Result<(), StoreError> {
        for (family, has_some) in [(REMOTE, &self.has_remote), (MOVED, &self.has_moved)] {
            has_some.store(false, Ordering::Relaxed);
            self.empty_family(family, &self.family_options)?;
        }
        Ok(())
    }
}

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// Traces that are neither on their row's day nor on one beside it.
    Missing,
    /// Traces that are on one of these days, and on others: the answer counts.
    Moved,
}

/// Writes answers. All of them are in the store after [`RemoteWriter::finish`].
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

    /// Adds what was found under a key: an encoded [`TraceRecord`](super::TraceRecord), which
    /// is one of a deleted trace where there is none, so that nobody asks again.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
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

    /// Writes what is left.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the disk is full.
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
