//! The keys of segments' rows, kept on disk between the scan that read them and the statements that
//! name them.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::keys::Keys;
use crate::backfill::error::WorkError;
use crate::clickhouse::PartitionState;

/// The keys of segments, in one file that is unlinked as soon as it is created.
#[derive(Debug)]
pub(crate) struct KeyFile {
    file: File,
    directory: PathBuf,
    places: Mutex<Places>,
    /// The partition before its rows were read.
    state: PartitionState,
    most_bytes: AtomicU64,
}

/// Where in the file each segment's keys are.
#[derive(Debug, Default)]
struct Places {
    end: u64,
    of_segments: HashMap<u32, Place>,
}

/// Where keys begin, and the lengths of their parts.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    lengths: [usize; Keys::PARTS],
}

impl KeyFile {
    /// Creates a file of at most `most_bytes` in a directory, for the keys of a partition in this state.
    ///
    /// # Errors
    /// [`WorkError::File`] if it cannot be created.
    pub(crate) fn new(
        directory: &Path,
        state: PartitionState,
        most_bytes: u64,
    ) -> Result<Self, WorkError> {
        let file = tempfile::tempfile_in(directory);
        Ok(Self {
            file: file.map_err(|error| WorkError::file(directory, &error))?,
            directory: directory.to_owned(),
            places: Mutex::default(),
            state,
            most_bytes: most_bytes.into(),
        })
    }

    /// Whether the rows are still those that were read, with the partition in this state.
    pub(super) fn is_as_of(&self, state: PartitionState) -> bool {
        state.is_within(self.state)
    }

    /// Keeps the keys of a segment, if there is room. Gives all room back if there is less than there was: what
    /// is not kept is read again.
    pub(super) fn put(&self, segment: u32, keys: &Keys) {
        if self.write(segment, keys).is_err() {
            self.most_bytes.store(0, Ordering::Relaxed);
            self.places().of_segments.clear();
            // If it stays as large, no more than its room is lost.
            let _ = self.file.set_len(0);
        }
    }

    fn write(&self, segment: u32, keys: &Keys) -> std::io::Result<()> {
        let parts = keys.parts();
        let lengths = parts.map(<[u8]>::len);
        let bytes: u64 = lengths.iter().map(|&length| length as u64).sum();
        let start = {
            let mut places = self.places();
            let most_bytes = self.most_bytes.load(Ordering::Relaxed);
            if bytes > most_bytes.saturating_sub(places.end) {
                return Ok(());
            }
            places.end += bytes;
            places.end - bytes
        };
        let mut at = start;
        for part in parts {
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        let mut places = self.places();
        // Another writer may have failed meanwhile.
        if self.most_bytes.load(Ordering::Relaxed) > 0 {
            places.of_segments.insert(segment, Place { start, lengths });
        }
        Ok(())
    }

    /// The keys of a segment, if they are kept. They are given once: an attempt after a failure must read them
    /// from the table.
    ///
    /// # Errors
    /// [`WorkError::File`] if the file cannot be read.
    pub(super) fn take(&self, segment: u32) -> Result<Option<Keys>, WorkError> {
        let Some(place) = self.places().of_segments.remove(&segment) else {
            return Ok(None);
        };
        let mut at = place.start;
        let mut parts = [const { Vec::new() }; Keys::PARTS];
        for (part, length) in parts.iter_mut().zip(place.lengths) {
            part.resize(length, 0);
            let read = self.file.read_exact_at(part, at);
            read.map_err(|error| WorkError::file(&self.directory, &error))?;
            at += length as u64;
        }
        Ok(Some(Keys::of_parts(parts)))
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
