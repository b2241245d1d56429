//! Settles which version of a trace wins when it occurs on several days.
//!
//! A filter over all traces flags those seen before, some falsely. These suspects are looked up
//! many at a time, one day after another: if the cache cannot hold the indexes and filters of all
//! days, each day's are read once for many suspects. (Looking up single suspects took half the
//! loading time for 30 million traces with a 16 MiB cache.)

use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::families::{MOVED, SUSPECTS, day_family};
use super::lookup::TraceVersion;
use super::remote::{About, RemoteWriter};
use super::store::TraceStore;
use crate::partition::Day;

/// Suspects per batch, at about 150 bytes each.
const SUSPECTS_AT_ONCE: usize = 50_000;
/// Records copied at once.
const RECORDS_AT_ONCE: usize = 64;

/// A trace's versions across the loaded days.
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    /// Number of versions.
    count: u64,
    /// Number of versions that are not deletions.
    live: u64,
    /// The winning version and its day.
    latest: Option<(TraceVersion, Day)>,
}

impl Versions {
    fn add(&mut self, version: TraceVersion, day: Day) {
        self.count += 1;
        self.live += u64::from(!version.is_deleted);
        // On a tie the later day wins, as if it had been written last.
        let is_latest = self
            .latest
            .is_none_or(|(latest, _)| version.event_ts >= latest.event_ts);
        if is_latest {
            self.latest = Some((version, day));
        }
    }

    /// The winning version's day, if there are several versions.
    fn day_that_counts(&self) -> Option<Day> {
        self.latest.filter(|_| self.count > 1).map(|(_, day)| day)
    }

    /// Number of versions that are not deletions and do not win.
    fn superseded(&self) -> u64 {
        match self.latest {
            Some((latest, _)) => self.live - u64::from(!latest.is_deleted),
            None => 0,
        }
    }
}

impl TraceStore {
    /// Finds traces on more than one day and settles which version wins: the highest `event_ts` on
    /// any day, or none if that version is a deletion. Call it once all days are loaded; it may be
    /// called again. Returns the number of loaded versions that lost, or `None` if interrupted by
    /// `stop`.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn settle_moved_traces(&self, stop: &dyn Fn() -> bool) -> Result<Option<u64>, StoreError> {
        let suspects = self.family(SUSPECTS)?;
        let mut superseded = 0;
        let mut iterator = self.database.raw_iterator_cf(&suspects);
        iterator.seek_to_first();
        loop {
            let mut keys = Vec::new();
            while keys.len() < SUSPECTS_AT_ONCE
                && let Some(key) = iterator.key()
            {
                keys.push(key.to_vec());
                iterator.next();
            }
            iterator.status().map_err(|error| self.failed(error))?;
            if keys.is_empty() {
                break;
            }
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            superseded += self.settle(&keys)?;
            if stop() {
                return Ok(None);
            }
        }
        self.has_moved
            .store(!self.family_is_empty(MOVED)?, Ordering::Relaxed);
        Ok(Some(superseded))
    }

    /// Settles a batch of suspects, given in key order.
    fn settle(&self, keys: &[&[u8]]) -> Result<u64, StoreError> {
        let days = self.days();
        let mut versions = vec![Versions::default(); keys.len()];
        for &day in &days {
            let of_day = self.versions_of_day(day, keys)?;
            for (versions, version) in versions.iter_mut().zip(of_day) {
                if let Some(version) = version {
                    versions.add(version, day);
                }
            }
        }
        let mut writer = RemoteWriter::new(self, About::Moved);
        for &day in &days {
            let counting: Vec<&[u8]> = keys
                .iter()
                .zip(&versions)
                .filter(|(_, versions)| versions.day_that_counts() == Some(day))
                .map(|(&key, _)| key)
                .collect();
            self.copy_records(day, &counting, &mut writer)?;
        }
        writer.finish()?;
        let several = versions.iter().filter(|versions| versions.count > 1);
        Ok(several.map(Versions::superseded).sum())
    }

    /// Copies one day's records of some traces, given in key order, to the writer.
    fn copy_records(
        &self,
        day: Day,
        keys: &[&[u8]],
        writer: &mut RemoteWriter<'_>,
    ) -> Result<(), StoreError> {
        let family = self.family(&day_family(day))?;
        for keys in keys.chunks(RECORDS_AT_ONCE) {
            let records = self.database.batched_multi_get_cf(&family, keys, true);
            for (key, record) in keys.iter().zip(records) {
                if let Some(record) = record.map_err(|error| self.failed(error))? {
                    writer.put(key, &record)?;
                }
            }
        }
        Ok(())
    }
}
