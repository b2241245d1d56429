//! Looking up a batch of traces.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::error::StoreError;
use super::families::{KEYS_AT_ONCE, MOVED, REMOTE, day_family};
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

/// Which version of a trace the store knows.
pub(crate) type TraceVersion = RecordHead;

/// The records found for a batch of keys, in the order of the keys.
#[derive(Debug, Default)]
pub struct Found {
    bytes: Vec<u8>,
    records: Vec<Option<Range<usize>>>,
    max_bytes: usize,
    /// Bytes that are kept of a record.
    kept_bytes: usize,
}

impl Found {
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
        let Some(range) = self.records[index].clone() else {
            return Ok(None);
        };
        let record = TraceRecord::decode(&self.bytes[range])?;
        Ok((!record.is_deleted).then_some(record))
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
        let range = self.records[index].clone();
        let head = range.map(|range| RecordHead::decode(&self.bytes[range]));
        head.transpose()
    }

    /// Whether the store knows anything of the key at `index`, be it that there is no
    /// such trace.
    pub fn is_known(&self, index: usize) -> bool {
        self.records[index].is_some()
    }

    /// How many keys to ask for next, judged by the records so far.
    fn keys_at_once(&self) -> usize {
        if self.kept_bytes < usize::MAX {
            // What is kept says nothing of what is pinned.
            return BYTES_AT_ONCE / FIRST_GUESS;
        }
        let found = self.records.iter().flatten().count();
        let average =
            (self.bytes.len().checked_div(found)).map_or(FIRST_GUESS, |bytes| bytes.max(1));
        (BYTES_AT_ONCE / average).clamp(1, KEYS_AT_ONCE)
    }

    fn keep(&mut self, index: usize, value: &[u8]) {
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
    pub fn look_up(&self, keys: &[(Day, &[u8])], max_bytes: usize) -> Result<Found, StoreError> {
        self.look_up_parts(keys, max_bytes, usize::MAX)
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
        let found = self.look_up_parts(keys, usize::MAX, HEAD_BYTES)?;
        (0..keys.len()).map(|index| found.version(index)).collect()
    }

    /// Asks where a trace may be, each family for those that were not found before it: what counts
    /// whatever a day says (a trace on several days, or one that changed since), the row's own day,
    /// the days beside it, all others that are loaded, and what was asked for from other months.
    fn look_up_parts(
        &self,
        keys: &[(Day, &[u8])],
        max_bytes: usize,
        kept_bytes: usize,
    ) -> Result<Found, StoreError> {
        let mut found = Found {
            bytes: Vec::new(),
            records: vec![None; keys.len()],
            max_bytes,
            kept_bytes,
        };
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        missing.sort_unstable_by_key(|&index| keys[index].1);
        if self.has_moved.load(Ordering::Relaxed) {
            self.ask(MOVED, keys, &mut missing, &mut found)?;
        }
        let days = self.days();
        // The own day, its neighbours, the rest.
        for distance in [0..=0, 1..=1, 2..=Day::MAX] {
            for &day in &days {
                let (mut asked, others): (Vec<usize>, Vec<usize>) = missing
                    .iter()
                    .partition(|&&index| distance.contains(&keys[index].0.abs_diff(day)));
                if !asked.is_empty() {
                    self.ask(&day_family(day), keys, &mut asked, &mut found)?;
                    missing = merge_sorted(asked, others, keys);
                }
            }
        }
        if self.has_remote.load(Ordering::Relaxed) && !missing.is_empty() {
            self.ask(REMOTE, keys, &mut missing, &mut found)?;
        }
        self.looked_up
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
        self.missed
            .fetch_add(missing.len() as u64, Ordering::Relaxed);
        Ok(found)
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
