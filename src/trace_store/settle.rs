//! Which version counts of a trace that stands on several days.
//!
//! A filter over all traces suspects those that were seen before, some of them wrongly. Suspects are looked up
//! many at a time, one day after the other: where the indexes and filters of all days do not stay in the
//! cache, those of a day are read once for many suspects. (One suspect at a time, 30 million traces in a cache
//! of 16 MiB, took half of the time of loading.)

use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::families::{MOVED, SUSPECTS, day_family};
use super::lookup::TraceVersion;
use super::remote::{About, RemoteWriter};
use super::store::TraceStore;
use crate::partition::Day;

/// Suspects that are looked up at once; each takes some 150 bytes.
const SUSPECTS_AT_ONCE: usize = 50_000;
/// Records that are copied at once.
const RECORDS_AT_ONCE: usize = 64;

/// The versions of a trace on the days that are loaded.
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    /// How many there are.
    count: u64,
    /// How many of them are not deleted.
    live: u64,
    /// The one that counts, and its day.
    latest: Option<(TraceVersion, Day)>,
}

impl Versions {
    fn add(&mut self, version: TraceVersion, day: Day) {
        self.count += 1;
        self.live += u64::from(!version.is_deleted);
        // The later day wins a tie, as the version written last would.
        let is_latest = self
            .latest
            .is_none_or(|(latest, _)| version.event_ts >= latest.event_ts);
        if is_latest {
            self.latest = Some((version, day));
        }
    }

    /// The day of the version that counts, where there are several.
    fn day_that_counts(&self) -> Option<Day> {
        self.latest.filter(|_| self.count > 1).map(|(_, day)| day)
    }

    /// Versions that are not deleted and do not count.
    fn superseded(&self) -> u64 {
        match self.latest {
            Some((latest, _)) => self.live - u64::from(!latest.is_deleted),
            None => 0,
        }
    }
}

impl TraceStore {
    /// Finds the traces that stand on more than one day and settles which of
    /// their versions counts: the one with the greatest `event_ts`, whatever its
    /// day, and if that one is deleted, none. To be called once all days are
    /// loaded. Gives the number of loaded versions that do not count, or `None`
    /// where `stop` said to stop; it can be called again.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails.
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

    /// The same for some suspects, whose keys come in order.
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

    /// Gives the writer the records that a day has of some traces, whose keys come in order.
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
