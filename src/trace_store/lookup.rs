//! Looks up batches of traces.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::families::{KEYS_AT_ONCE, MOVED, REMOTE, day_family};
use super::read_ahead::FEWEST_KEYS;
use super::record::RecordHead;
use super::record::TraceRecord;
use super::store::TraceStore;
use crate::partition::Day;

/// Target size of one multi-get's results, in bytes. Until copied, each result pins a cache block
/// at least as large as the record.
const BYTES_AT_ONCE: usize = 16 * 1024 * 1024;
/// Assumed record size until some records have been seen.
const FIRST_GUESS: usize = 16 * 1024;
/// Bytes that contain a record's head: two integers of up to 9 bytes and a flag.
const HEAD_BYTES: usize = 24;

/// Upper bound on index and filter bytes per trace in the cache: 0.9 for the filter, plus a key of
/// about 40 bytes per block of 60 to 90 records.
const INDEX_BYTES: u64 = 2;

/// The version of a trace in the store.
pub(crate) type TraceVersion = RecordHead;

/// Which days a look-up covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The row's own day and its neighbours, plus all other days if the cache holds every day's
    /// indexes and filters. If it does not, one missing trace would evict them by reading a month
    /// of filters: with 100 million traces, 90 MB per look-up.
    Near,
    /// All loaded days.
    AllDays,
}

/// Records found for a batch of keys, in key order.
#[derive(Debug, Default)]
pub struct Found {
    bytes: Vec<u8>,
    records: Vec<Option<Range<usize>>>,
    max_bytes: usize,
    /// Bytes to keep of each record.
    kept_bytes: usize,
    /// Number of records found so far, and their total bytes.
    seen: usize,
    seen_bytes: usize,
}

impl Found {
    /// An empty result for `keys` keys.
    fn nothing(keys: usize, max_bytes: usize, kept_bytes: usize) -> Self {
        Self {
            records: vec![None; keys],
            max_bytes,
            kept_bytes,
            ..Self::default()
        }
    }

    /// Whether the look-up was abandoned because the records exceed the limit.
    pub fn is_too_large(&self) -> bool {
        self.bytes.len() > self.max_bytes
    }

    /// Memory held by the records, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// The record for key `index`, or `None` if the trace is missing or deleted.
    ///
    /// # Errors
    /// [`StoreError::Record`] if the record is damaged.
    pub fn record(&self, index: usize) -> Result<Option<TraceRecord<'_>>, StoreError> {
        let Some(encoded) = self.encoded(index) else {
            return Ok(None);
        };
        let record = TraceRecord::decode(encoded)?;
        Ok((!record.is_deleted).then_some(record))
    }

    /// The stored record for key `index`, including deletions.
    pub(super) fn encoded(&self, index: usize) -> Option<&[u8]> {
        self.records[index].clone().map(|range| &self.bytes[range])
    }

    /// The stored version for key `index`, including deletions: `event_ts` in microseconds since
    /// 1970.
    ///
    /// # Errors
    /// [`StoreError::Record`] if the record is damaged.
    pub fn event_ts(&self, index: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.version(index)?.map(|version| version.event_ts))
    }

    fn version(&self, index: usize) -> Result<Option<TraceVersion>, StoreError> {
        self.encoded(index).map(RecordHead::decode).transpose()
    }

    /// Whether the store has an answer for key `index`, even if the answer is that the trace does
    /// not exist.
    pub fn is_known(&self, index: usize) -> bool {
        self.records[index].is_some()
    }

    /// Size of the next multi-get, based on the records so far.
    fn keys_at_once(&self) -> usize {
        let average = self.seen_bytes.checked_div(self.seen);
        let average = average.map_or(FIRST_GUESS, |bytes| bytes.max(1));
        (BYTES_AT_ONCE / average).clamp(1, KEYS_AT_ONCE)
    }

    fn keep(&mut self, index: usize, value: &[u8]) {
        self.seen += 1;
        self.seen_bytes += value.len();
        let start = self.bytes.len();
        let kept = &value[..value.len().min(self.kept_bytes)];
        self.bytes.extend_from_slice(kept);
        self.records[index] = Some(start..self.bytes.len());
    }
}

impl TraceStore {
    /// Looks up the traces of `keys`, which must be distinct. Each key comes with the day to try
    /// first. Stops once the records exceed `max_bytes`; see [`Found::is_too_large`].
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn look_up(
        &self,
        keys: &[(Day, &[u8])],
        reach: Reach,
        max_bytes: usize,
    ) -> Result<Found, StoreError> {
        self.look_up_parts(keys, reach, max_bytes, usize::MAX)
    }

    /// The stored version of each trace, including deletions. `keys` as for
    /// [`TraceStore::look_up`].
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub fn trace_versions(
        &self,
        keys: &[(Day, &[u8])],
    ) -> Result<Vec<Option<TraceVersion>>, StoreError> {
        let found = self.look_up_parts(keys, Reach::AllDays, usize::MAX, HEAD_BYTES)?;
        (0..keys.len()).map(|index| found.version(index)).collect()
    }

    /// The versions that one day has of some traces, given in key order.
    ///
    /// # Errors
    /// [`StoreError`] if RocksDB fails or a record is damaged.
    pub(super) fn versions_of_day(
        &self,
        day: Day,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<TraceVersion>>, StoreError> {
        let keys: Vec<(Day, &[u8])> = keys.iter().map(|&key| (day, key)).collect();
        let mut found = Found::nothing(keys.len(), usize::MAX, HEAD_BYTES);
        self.ask(
            &day_family(day),
            &keys,
            &mut (0..keys.len()).collect(),
            &mut found,
        )?;
        (0..keys.len()).map(|index| found.version(index)).collect()
    }

    /// Tries the families in order, each for the keys still missing: overriding versions (of traces
    /// on several days or changed since loading), the row's own day, its neighbours, earlier remote
    /// results, then all other loaded days.
    fn look_up_parts(
        &self,
        keys: &[(Day, &[u8])],
        reach: Reach,
        max_bytes: usize,
        kept_bytes: usize,
    ) -> Result<Found, StoreError> {
        let mut found = Found::nothing(keys.len(), max_bytes, kept_bytes);
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        missing.sort_unstable_by_key(|&index| keys[index].1);
        if self.has_moved.load(Ordering::Relaxed) {
            self.ask(MOVED, keys, &mut missing, &mut found)?;
        }
        let days = self.days();
        for distance in [0..=0, 1..=1] {
            self.ask_days(&days, distance, keys, &mut missing, &mut found)?;
        }
        if self.has_remote.load(Ordering::Relaxed) && !missing.is_empty() {
            self.ask(REMOTE, keys, &mut missing, &mut found)?;
        }
        if !missing.is_empty() && (reach == Reach::AllDays || self.caches_all_days()?) {
            self.ask_days(&days, 2..=Day::MAX, keys, &mut missing, &mut found)?;
        }
        self.looked_up
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.missed
            .fetch_add(missing.len() as u64, Ordering::Relaxed);
        Ok(found)
    }

    /// Looks up missing keys on the days at a given distance from each row's own.
    fn ask_days(
        &self,
        days: &[Day],
        distance: RangeInclusive<Day>,
        keys: &[(Day, &[u8])],
        missing: &mut Vec<usize>,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        for &day in days {
            let (mut asked, others): (Vec<usize>, Vec<usize>) = missing
                .iter()
                .partition(|&&index| distance.contains(&keys[index].0.abs_diff(day)));
            if !asked.is_empty() {
                let family = day_family(day);
                // Nearly all keys are on their own day. On other days the filters avoid most reads.
                if *distance.end() == 0 && asked.len() >= FEWEST_KEYS {
                    let keys: Vec<&[u8]> = asked.iter().map(|&index| keys[index].1).collect();
                    let files = self.database.live_files().unwrap_or_default().into_iter();
                    let of_day = files.filter(|file| file.column_family_name == family);
                    self.reading_ahead.begin(&self.path, of_day, &keys);
                }
                self.ask(&family, keys, &mut asked, found)?;
                *missing = merge_sorted(asked, others, keys);
            }
        }
        Ok(())
    }

    /// Whether the cache can hold every day's indexes and filters.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub(crate) fn caches_all_days(&self) -> Result<bool, StoreError> {
        let mut traces = 0;
        for day in self.days() {
            let family = self.family(&day_family(day))?;
            let of_day = self
                .database
                .property_int_value_cf(&family, rocksdb::properties::ESTIMATE_NUM_KEYS);
            traces += of_day.map_err(|error| self.failed(error))?.unwrap_or(0);
        }
        // The other half is for data blocks.
        Ok(traces.saturating_mul(INDEX_BYTES) <= self.cache_bytes as u64 / 2)
    }

    /// Looks up `indices` in one family, leaving those not found.
    fn ask(
        &self,
        family: &str,
        keys: &[(Day, &[u8])],
        indices: &mut Vec<usize>,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        let family = self.family(family)?;
        let mut missing = Vec::new();
        let mut rest = indices.as_slice();
        while !rest.is_empty() && !found.is_too_large() {
            let (chunk, after) = rest.split_at(rest.len().min(found.keys_at_once()));
            rest = after;
            let asked = chunk.iter().map(|&index| keys[index].1);
            let answers = self.database.batched_multi_get_cf(&family, asked, true);
            for (&index, answer) in chunk.iter().zip(answers) {
                match answer.map_err(|error| self.failed(error))? {
                    Some(value) => found.keep(index, &value),
                    None => missing.push(index),
                }
            }
        }
        *indices = missing;
        Ok(())
    }
}

/// Merges two key-sorted lists of indices.
fn merge_sorted(first: Vec<usize>, second: Vec<usize>, keys: &[(Day, &[u8])]) -> Vec<usize> {
    if first.is_empty() {
        return second;
    }
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
    while let (Some(&a), Some(&b)) = (first.peek(), second.peek()) {
        let next = if keys[a].1 <= keys[b].1 {
            &mut first
        } else {
            &mut second
        };
        merged.extend(next.next());
    }
    merged.extend(first);
    merged.extend(second);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace_store::{DayWriter, SeenTraces, key};

    fn key_of(trace: &str) -> Vec<u8> {
        let mut key = Vec::new();
        key::encode(&mut key, b"project", trace.as_bytes());
        key
    }

    /// A store with one trace, named `day-` plus the day's number, on each day.
    fn store_of_days(directory: &std::path::Path, cache_bytes: usize, days: &[Day]) -> TraceStore {
        let store = TraceStore::open(directory, cache_bytes).unwrap();
        let mut seen = SeenTraces::new(10, 1 << 10);
        for &day in days {
            let mut writer = DayWriter::new(&store, day, 1).unwrap();
            let mut record = Vec::new();
            TraceRecord::deleted(i64::from(day), day)
                .encode(&mut record)
                .unwrap();
            let key = key_of(&format!("day-{day}"));
            writer.put(&key, &record, &mut seen).unwrap();
            writer.finish().unwrap();
        }
        store
    }

    fn known(store: &TraceStore, reach: Reach) -> [bool; 4] {
        let keys = ["day-10", "day-11", "day-20", "none"].map(key_of);
        let asked = keys.each_ref().map(|key| (10, key.as_slice()));
        let found = store.look_up(&asked, reach, usize::MAX).unwrap();
        std::array::from_fn(|index| found.is_known(index))
    }

    #[test]
    fn days_far_away_are_asked_only_where_the_filters_of_all_days_stay_in_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let days = [10, 11, 20];
        let large = store_of_days(&directory.path().join("large"), 1 << 20, &days);
        assert_eq!(known(&large, Reach::Near), [true, true, true, false]);
        let small = store_of_days(&directory.path().join("small"), 8, &days);
        assert_eq!(known(&small, Reach::Near), [true, true, false, false]);
        assert_eq!(known(&small, Reach::AllDays), [true, true, true, false]);
    }

    #[test]
    fn a_trace_that_was_gathered_from_a_day_far_away_is_found_without_asking_that_day() {
        let directory = tempfile::tempdir().unwrap();
        let store = store_of_days(directory.path(), 8, &[10, 11, 20]);
        let keys = ["day-20", "none"].map(key_of);
        let keys = keys.each_ref().map(Vec::as_slice);
        for max_bytes in [0, usize::MAX] {
            let are_there = store.gather_from_all_days(&keys, max_bytes).unwrap();
            assert_eq!(are_there, [true, false], "{max_bytes}");
        }
        assert_eq!(known(&store, Reach::Near), [true, true, true, false]);
        let keys = keys.map(|key| (10, key));
        let found = store.look_up(&keys, Reach::Near, usize::MAX).unwrap();
        assert_eq!(found.event_ts(0).unwrap(), Some(20));
    }
}
