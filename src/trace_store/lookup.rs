//! Looking up a batch of traces.

use std::ops::{Range, RangeInclusive};
use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::families::{KEYS_AT_ONCE, MOVED, REMOTE, day_family};
use super::read_ahead::FEWEST_KEYS;
use super::record::RecordHead;
use super::record::TraceRecord;
use super::store::TraceStore;
use crate::partition::Day;

/// Bytes that the answers to one question should take at most. Until they are
/// copied, each pins a block of the cache at least as large as the record.
const BYTES_AT_ONCE: usize = 16 * 1024 * 1024;
/// Records are taken to be this large until some have been seen.
const FIRST_GUESS: usize = 16 * 1024;
/// Bytes of a record in which its head lies: two numbers of at most 9 bytes, and a flag.
const HEAD_BYTES: usize = 24;

/// Bytes that index and filter take for a trace in the cache, at most: 0.9 of the filter, and a key of some 40
/// bytes for each block, which has 60 to 90 records.
const INDEX_BYTES: u64 = 2;

/// Which version of a trace the store knows.
pub(crate) type TraceVersion = RecordHead;

/// On which days a trace is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// On the row's own day and the days beside it; on all others too where indexes and filters of all
    /// days stay in the cache. Where they do not, a single trace that is not there makes room for the
    /// filters of a month: with 100 million traces that is 90 MB read for each look-up.
    Near,
    /// On all that are loaded.
    AllDays,
}

/// The records found for a batch of keys, in the order of the keys.
#[derive(Debug, Default)]
pub struct Found {
    bytes: Vec<u8>,
    records: Vec<Option<Range<usize>>>,
    max_bytes: usize,
    /// Bytes that are kept of a record.
    kept_bytes: usize,
    /// Records that were found so far, and the bytes of all of them.
    seen: usize,
    seen_bytes: usize,
}

impl Found {
    /// Nothing yet, of so many keys.
    fn nothing(keys: usize, max_bytes: usize, kept_bytes: usize) -> Self {
        Self {
            records: vec![None; keys],
            max_bytes,
            kept_bytes,
            ..Self::default()
        }
    }

    /// Whether the records take more than was allowed, and the look-up was
    /// given up.
    pub fn is_too_large(&self) -> bool {
        self.bytes.len() > self.max_bytes
    }

    /// Bytes of memory that the records hold.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// The record of the key at `index`; `None` where there is no such trace,
    /// or it is deleted.
    ///
    /// # Errors
    /// [`StoreError::Record`] where the record is damaged.
    pub fn record(&self, index: usize) -> Result<Option<TraceRecord<'_>>, StoreError> {
        let Some(encoded) = self.encoded(index) else {
            return Ok(None);
        };
        let record = TraceRecord::decode(encoded)?;
        Ok((!record.is_deleted).then_some(record))
    }

    /// The record of the key at `index` as it is stored, be it of a deletion.
    pub(super) fn encoded(&self, index: usize) -> Option<&[u8]> {
        self.records[index].clone().map(|range| &self.bytes[range])
    }

    /// The version that the store knows of the key at `index`, be it a deletion: microseconds
    /// since 1970 of the event that wrote it.
    ///
    /// # Errors
    /// [`StoreError::Record`] where the record is damaged.
    pub fn event_ts(&self, index: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.version(index)?.map(|version| version.event_ts))
    }

    fn version(&self, index: usize) -> Result<Option<TraceVersion>, StoreError> {
        self.encoded(index).map(RecordHead::decode).transpose()
    }

    /// Whether the store knows anything of the key at `index`, be it that there is no
    /// such trace.
    pub fn is_known(&self, index: usize) -> bool {
        self.records[index].is_some()
    }

    /// How many keys to ask for next, judged by the records so far.
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
    /// Looks up the traces of `keys`, which must be distinct; each comes with
    /// the day to look at first. Gives up once the records take more than
    /// `max_bytes`; see [`Found::is_too_large`].
    ///
    /// # Errors
    /// [`StoreError::Database`] where the store fails.
    pub fn look_up(
        &self,
        keys: &[(Day, &[u8])],
        reach: Reach,
        max_bytes: usize,
    ) -> Result<Found, StoreError> {
        self.look_up_parts(keys, reach, max_bytes, usize::MAX)
    }

    /// Which version the store knows of each of some traces, be it a deletion; the keys are those
    /// of [`TraceStore::look_up`].
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or is damaged.
    pub fn trace_versions(
        &self,
        keys: &[(Day, &[u8])],
    ) -> Result<Vec<Option<TraceVersion>>, StoreError> {
        let found = self.look_up_parts(keys, Reach::AllDays, usize::MAX, HEAD_BYTES)?;
        (0..keys.len()).map(|index| found.version(index)).collect()
    }

    /// Which version one day has of each of some traces, whose keys come in order.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails, or is damaged.
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

    /// Asks where a trace may be, each family for those that were not found before it: what counts
    /// whatever a day says (a trace on several days, or one that changed since), the row's own day,
    /// the days beside it, what was found out already of traces that are on none of these, and all other
    /// days that are loaded.
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

    /// Asks the days that are so many days from a row's own for those that are missing.
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
                // Nearly all of them are there: elsewhere the filters spare reading most blocks.
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

    /// Whether indexes and filters of all days stay in the cache.
    ///
    /// # Errors
    /// [`StoreError::Database`] where the store fails.
    pub(crate) fn caches_all_days(&self) -> Result<bool, StoreError> {
        let mut traces = 0;
        for day in self.days() {
            let family = self.family(&day_family(day))?;
            let of_day = self
                .database
                .property_int_value_cf(&family, rocksdb::properties::ESTIMATE_NUM_KEYS);
            traces += of_day.map_err(|error| self.failed(error))?.unwrap_or(0);
        }
        // The rest is for the blocks in which records are.
        Ok(traces.saturating_mul(INDEX_BYTES) <= self.cache_bytes as u64 / 2)
    }

    /// Looks `indices` up in one family and leaves those in it that were not found.
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

/// Merges two lists of indices, each sorted by key, into one that is.
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

    /// A store with a trace on each of some days, of the name `day-` and its number.
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
