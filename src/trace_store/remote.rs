//! What was found out about traces besides the days that were loaded: what ClickHouse said when it was
//! asked for some, thousands at a time, and which versions count whatever a day says.

use std::sync::atomic::Ordering;

use rocksdb::WriteBatch;

use super::error::StoreError;
use super::families::{MOVED, REMOTE};
use super::store::TraceStore;

/// Bytes that are gathered before they are written.
const BATCH_BYTES: usize = 1 << 20;

impl TraceStore {
    /// Whether ClickHouse was asked for the trace of a key already.
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
    /// Traces that are on none of the days that were loaded.
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
