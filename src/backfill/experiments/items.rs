//! Copies dataset run items from ClickHouse to the store.

use std::collections::BTreeMap;

use serde_bytes::Bytes as Text;

use super::live_items::LiveItems;
use super::pointers::{Pointer, Pointers};
use crate::backfill::error::WorkError;
use crate::inspect::statements::{ITEM_ARRAYS, ITEM_COLUMNS, ITEM_TEXTS};
use crate::memory::numbers::short;
use crate::native::{ArrayCursor, Block, FixedCursor, NativeError, StringCursor};
use crate::trace_store::{ExperimentWriter, ItemRecord, key};

/// Stores a block's items, except those that live spans carry, and adds them to their traces'
/// pointers. Returns the number stored.
pub(super) fn take(
    block: &Block,
    pointers: &mut BTreeMap<Vec<u8>, Pointers>,
    live: &LiveItems,
    writer: &mut ExperimentWriter<'_>,
) -> Result<u64, WorkError> {
    if block.columns.len() != ITEM_COLUMNS {
        return Err(NativeError::corrupt(format!(
            "{} columns arrived instead of the {ITEM_COLUMNS} requested",
            block.columns.len()
        ))
        .into());
    }
    let mut texts: [_; 10] = std::array::from_fn(|index| StringCursor::new(block.values(index)));
    let mut arrays = Vec::new();
    for index in 0..ITEM_ARRAYS.len() {
        let values = block.values(ITEM_TEXTS.len() + index);
        let (lengths, elements) = ArrayCursor::new(values, block.rows)?;
        arrays.push((lengths, StringCursor::new(elements)));
    }
    let first_time = ITEM_TEXTS.len() + ITEM_ARRAYS.len();
    let mut created_at = FixedCursor::<8>::new(block.values(first_time));
    let mut has_no_version = FixedCursor::<1>::new(block.values(first_time + 1));
    let mut version = FixedCursor::<8>::new(block.values(first_time + 2));
    let mut taken = 0;
    let mut encoded = Vec::new();
    for _ in 0..block.rows {
        let mut row = [Text::new(b""); 10];
        for (value, column) in row.iter_mut().zip(&mut texts) {
            *value = Text::new(column.next_value()?);
        }
        let [run_names, run_values, item_names, item_values] = next_arrays(&mut arrays)?;
        let created_at = i64::from_le_bytes(created_at.next_value()?);
        let has_version = has_no_version.next_value()? == [0];
        let version = i64::from_le_bytes(version.next_value()?);
        let [
            project,
            trace,
            observation,
            id,
            run_id,
            run_name,
            run_description,
            dataset_id,
            item_id,
            expected_output,
        ] = row;
        encoded.clear();
        key::encode(&mut encoded, project, trace);
        // The condition also matches an equal trace id in another project.
        let Some(pointers) = pointers.get_mut(&encoded) else {
            continue;
        };
        let span = match observation.is_empty() {
            true => super::tree::root_span_id(trace),
            false => observation.to_vec(),
        };
        let item = item_key([project, dataset_id, run_id, id]);
        let is_left = live.carry(&encoded, run_id, item_id);
        if !is_left {
            let record = ItemRecord {
                run_id,
                run_name,
                run_description,
                run_metadata: run_names.into_iter().zip(run_values).collect(),
                dataset_id,
                item_id,
                item_version: has_version.then_some(version),
                expected_output,
                item_metadata: item_names.into_iter().zip(item_values).collect(),
                root_span_id: Text::new(&span),
            };
            writer.put_item(&item, &record)?;
        }
        taken += 1;
        let pointer = Pointer {
            created_at,
            id: id.to_vec(),
            item,
            is_left,
        };
        if pointers.get(&span).is_none_or(|other| *other < pointer) {
            pointers.insert(span, pointer);
        }
    }
    Ok(taken)
}

fn next_arrays<'a>(
    arrays: &mut [(ArrayCursor<'a>, StringCursor<'a>)],
) -> Result<[Vec<&'a Text>; 4], NativeError> {
    let mut row: [Vec<&Text>; 4] = Default::default();
    for (values, (lengths, elements)) in row.iter_mut().zip(arrays) {
        for _ in 0..lengths.next_length()? {
            values.push(Text::new(elements.next_value()?));
        }
    }
    Ok(row)
}

/// The table's sort key as one byte string, unique per item.
fn item_key(columns: [&Text; 4]) -> Vec<u8> {
    let mut key = Vec::new();
    for column in columns {
        key.extend_from_slice(&short(column.len()).to_be_bytes());
        key.extend_from_slice(column);
    }
    key
}
