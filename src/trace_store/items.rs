//! Maps spans to the dataset run items they belong to.
//!
//! Three families: the traces that items point into (few traces are), the spans of those traces
//! that belong to an item, and the items, which many spans share.

use crate::memory::numbers::short;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;

use super::error::StoreError;
use super::families::{ITEMS, KEYS_AT_ONCE, OF_ITEMS, SPANS, TRACES};
use super::record::{decode, encode};
use super::store::TraceStore;

/// Write batch size, in bytes.
const BATCH_BYTES: usize = 1 << 20;

/// The item fields that events take. Text is bytes; null is stored as empty, as in the events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemRecord<'a> {
    /// `dataset_run_id`
    #[serde(borrow)]
    pub run_id: &'a Bytes,
    /// `dataset_run_name`
    #[serde(borrow)]
    pub run_name: &'a Bytes,
    /// `dataset_run_description`
    #[serde(borrow)]
    pub run_description: &'a Bytes,
    /// `dataset_run_metadata`, in original order
    #[serde(borrow)]
    pub run_metadata: Vec<(&'a Bytes, &'a Bytes)>,
    /// `dataset_id`
    #[serde(borrow)]
    pub dataset_id: &'a Bytes,
    /// `dataset_item_id`
    #[serde(borrow)]
    pub item_id: &'a Bytes,
    /// `dataset_item_version`, in microseconds since 1970
    pub item_version: Option<i64>,
    /// `dataset_item_expected_output`
    #[serde(borrow)]
    pub expected_output: &'a Bytes,
    /// `dataset_item_metadata`, in original order
    #[serde(borrow)]
    pub item_metadata: Vec<(&'a Bytes, &'a Bytes)>,
    /// The span the item points at.
    #[serde(borrow)]
    pub root_span_id: &'a Bytes,
}

impl ItemRecord<'_> {
    /// Upper bound on the uncompressed bytes an event takes from this item.
    pub fn attribute_bytes(&self) -> usize {
        let texts = [
            self.run_id,
            self.run_name,
            self.run_description,
            self.dataset_id,
            self.item_id,
            self.expected_output,
            self.root_span_id,
        ];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        let pairs = self.run_metadata.iter().chain(&self.item_metadata);
        let pairs: usize = pairs.map(|(key, value)| key.len() + value.len() + 4).sum();
        texts + pairs
    }
}

/// Writes items and their spans, all stored by [`ExperimentWriter::finish`].
pub(crate) struct ExperimentWriter<'a> {
    store: &'a TraceStore,
    batch: WriteBatch,
    encoded: Vec<u8>,
}

impl<'a> ExperimentWriter<'a> {
    /// A writer.
    pub(crate) fn new(store: &'a TraceStore) -> Self {
        Self {
            store,
            batch: WriteBatch::default(),
            encoded: Vec::new(),
        }
    }

    /// Adds an item under its own key.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn put_item(
        &mut self,
        item: &[u8],
        record: &ItemRecord<'_>,
    ) -> Result<(), StoreError> {
        encode(record, &mut self.encoded)?;
        let family = self.store.family(ITEMS)?;
        self.batch.put_cf(&family, item, &self.encoded);
        self.write_if_full()
    }

    /// Marks the trace with key `trace` as having items.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn put_trace(&mut self, trace: &[u8]) -> Result<(), StoreError> {
        self.batch.put_cf(&self.store.family(TRACES)?, trace, b"");
        self.write_if_full()
    }

    /// Assigns a span to an item.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn put_span(
        &mut self,
        trace: &[u8],
        span_id: &[u8],
        item: &[u8],
    ) -> Result<(), StoreError> {
        let family = self.store.family(SPANS)?;
        self.batch.put_cf(&family, span_key(trace, span_id), item);
        self.write_if_full()
    }

    fn write_if_full(&mut self) -> Result<(), StoreError> {
        match self.batch.size_in_bytes() >= BATCH_BYTES {
            true => self.store.write(std::mem::take(&mut self.batch)),
            false => Ok(()),
        }
    }

    /// Writes the rest of the batch.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, for example on a full disk.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        self.store.write(self.batch)?;
        self.store.notice_experiments()
    }
}

/// Unique per pair: a trace key ends unambiguously.
fn span_key(trace: &[u8], span_id: &[u8]) -> Vec<u8> {
    let length = short(trace.len()).to_be_bytes();
    [&length[..], trace, span_id].concat()
}

/// The items of a batch of rows.
#[derive(Debug, Default)]
pub struct FoundItems {
    items: Vec<Vec<u8>>,
    of_row: Vec<Option<u32>>,
    max_bytes: usize,
}

impl FoundItems {
    /// The index of each row's item, if it has one.
    pub fn of_row(&self) -> &[Option<u32>] {
        &self.of_row
    }

    /// Decodes the items.
    ///
    /// # Errors
    /// [`StoreError::Record`] if an item is damaged.
    pub fn records(&self) -> Result<Vec<ItemRecord<'_>>, StoreError> {
        self.items.iter().map(|bytes| decode(bytes)).collect()
    }

    /// Memory held by the items, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.items.iter().map(Vec::capacity).sum()
    }

    /// Whether the look-up was abandoned because the items exceed the limit.
    pub fn is_too_large(&self) -> bool {
        self.held_bytes() > self.max_bytes
    }
}

impl TraceStore {
    /// Looks up items for rows, each given as an index into `traces` (keys) and a span id. Stops
    /// once the items exceed `max_bytes`; see [`FoundItems::is_too_large`].
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails, or [`StoreError::Record`] if a span refers to a
    /// missing item.
    pub fn look_up_items(
        &self,
        traces: &[&[u8]],
        rows: &[(u32, &[u8])],
        max_bytes: usize,
    ) -> Result<FoundItems, StoreError> {
        let mut found = FoundItems {
            items: Vec::new(),
            of_row: vec![None; rows.len()],
            max_bytes,
        };
        if !self.has_experiments() {
            return Ok(found);
        }
        let mut numbers = HashMap::new();
        for (row, item) in self.items_of(traces, rows)? {
            if !numbers.contains_key(&item) {
                found.items.push(self.item(&item)?);
                numbers.insert(item.clone(), short(found.items.len() - 1));
            }
            found.of_row[row] = numbers.get(&item).copied();
            if found.is_too_large() {
                return Ok(found);
            }
        }
        Ok(found)
    }

    /// Whether any span belongs to an item.
    pub fn has_experiments(&self) -> bool {
        self.has_experiments.load(Ordering::Relaxed)
    }

    /// Which rows have an item, each given as an index into `traces` (keys) and a span id.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn have_items(
        &self,
        traces: &[&[u8]],
        rows: &[(u32, &[u8])],
    ) -> Result<Vec<bool>, StoreError> {
        let mut have = vec![false; rows.len()];
        for (row, _) in self.items_of(traces, rows)? {
            have[row] = true;
        }
        Ok(have)
    }

    /// The rows with an item, and its key.
    fn items_of(
        &self,
        traces: &[&[u8]],
        rows: &[(u32, &[u8])],
    ) -> Result<Vec<(usize, Vec<u8>)>, StoreError> {
        let mut has_items = Vec::with_capacity(traces.len());
        for chunk in traces.chunks(KEYS_AT_ONCE) {
            let answers = self.values(TRACES, chunk)?;
            has_items.extend(answers.iter().map(Option::is_some));
        }
        let asked: Vec<usize> = (0..rows.len())
            .filter(|&row| has_items[rows[row].0 as usize])
            .collect();
        let mut found = Vec::new();
        for chunk in asked.chunks(KEYS_AT_ONCE) {
            let key = |&row: &usize| span_key(traces[rows[row].0 as usize], rows[row].1);
            let keys: Vec<Vec<u8>> = chunk.iter().map(key).collect();
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let items = chunk.iter().zip(self.values(SPANS, &keys)?);
            found.extend(items.filter_map(|(&row, item)| Some((row, item?))));
        }
        Ok(found)
    }

    /// Values for `keys`, in the same order.
    fn values(&self, family: &str, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let family = self.family(family)?;
        let keys = keys.iter().map(|key| (&family, key));
        let values = self.database.multi_get_cf(keys);
        values
            .into_iter()
            .map(|value| value.map_err(|error| self.failed(error)))
            .collect()
    }

    fn item(&self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.database
            .get_cf(&self.family(ITEMS)?, key)
            .map_err(|error| self.failed(error))?
            .ok_or_else(|| {
                StoreError::Record(
                    "a span refers to a dataset run item that is missing from the store".into(),
                )
            })
    }

    /// Deletes all experiment data.
    ///
    /// # Errors
    /// [`StoreError::Database`] if RocksDB fails.
    pub fn clear_experiments(&self) -> Result<(), StoreError> {
        for name in OF_ITEMS {
            self.empty_family(name, &self.compacted_options)?;
        }
        self.notice_experiments()
    }

    pub(super) fn notice_experiments(&self) -> Result<(), StoreError> {
        self.has_experiments
            .store(!self.family_is_empty(TRACES)?, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn two_spans_never_share_a_key(
            a in proptest::collection::vec(0_u8..3, 0..5), b in proptest::collection::vec(0_u8..3, 0..5),
            c in proptest::collection::vec(0_u8..3, 0..5), d in proptest::collection::vec(0_u8..3, 0..5),
        ) {
            prop_assert_eq!(span_key(&a, &b) == span_key(&c, &d), (a, b) == (c, d));
        }
    }

    #[test]
    fn an_item_is_found_for_its_spans_and_for_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
        let text = Bytes::new;
        let record = ItemRecord {
            run_id: text(b"run"),
            run_name: text(b"name"),
            run_description: text(b""),
            run_metadata: vec![(text(b"k"), text(b"v"))],
            dataset_id: text(b"dataset"),
            item_id: text(b"item"),
            item_version: Some(7),
            expected_output: text(b"\xff"),
            item_metadata: Vec::new(),
            root_span_id: text(b"root"),
        };
        let rows = [(0, &b"root"[..]), (0, b"other"), (1, b"root")];
        let traces = [&b"trace"[..], b"another"];
        let nothing = store.look_up_items(&traces, &rows, 1 << 20).unwrap();
        assert_eq!(nothing.of_row(), [None, None, None]);
        let mut writer = ExperimentWriter::new(&store);
        writer.put_item(b"key", &record).unwrap();
        writer.put_trace(b"trace").unwrap();
        writer.put_span(b"trace", b"root", b"key").unwrap();
        writer.finish().unwrap();
        let found = store.look_up_items(&traces, &rows, 1 << 20).unwrap();
        assert_eq!(found.of_row(), [Some(0), None, None]);
        assert_eq!(found.records().unwrap(), [record]);
        assert!(
            store
                .look_up_items(&traces, &rows, 1)
                .unwrap()
                .is_too_large()
        );
        store.clear_experiments().unwrap();
        let nothing = store.look_up_items(&traces, &rows, 1 << 20).unwrap();
        assert_eq!(nothing.of_row(), [None, None, None]);
    }
}
