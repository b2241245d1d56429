//! Items of dataset runs, from ClickHouse into the store.

use std::collections::BTreeMap;

use serde_bytes::Bytes as Text;

use super::live_items::LiveItems;
use super::pointers::{Pointer, Pointers};
use crate::clickhouse::TableInfo;
use crate::error::WorkError;
use crate::native::{ArrayCursor, Block, FixedCursor, NativeError, StringCursor};
use crate::trace_store::{ExperimentWriter, ItemRecord, key};

/// What is read of an item, as text that is never null.
const TEXTS: [&str; 10] = [
    "i.project_id",
    "i.trace_id",
    "i.observation_id",
    "i.id",
    "i.dataset_run_id",
    "i.dataset_run_name",
    "i.dataset_run_description",
    "i.dataset_id",
    "i.dataset_item_id",
    "i.dataset_item_expected_output",
];
/// What is read of it as arrays of text.
const ARRAYS: [&str; 4] = [
    "mapKeys(i.dataset_run_metadata)",
    "mapValues(i.dataset_run_metadata)",
    "mapKeys(i.dataset_item_metadata)",
    "mapValues(i.dataset_item_metadata)",
];
/// Columns of the result: these, and three for the times.
const COLUMNS: usize = TEXTS.len() + ARRAYS.len() + 3;

/// The latest versions of the items for which `condition` on the table `i` is true.
pub fn query(table: &TableInfo, condition: &str) -> String {
    let texts = TEXTS.map(|column| format!("CAST(ifNull({column}, ''), 'String')"));
    let arrays = ARRAYS.map(|expression| format!("CAST({expression}, 'Array(String)')"));
    let version = match table.column("dataset_item_version") {
        Some(_) => "CAST(i.dataset_item_version, 'Nullable(DateTime64(6))')",
        // Older deployments have no versions of items.
        None => "CAST(NULL, 'Nullable(DateTime64(6))')",
    };
    let times = [
        "CAST(i.created_at, 'DateTime64(6)')".to_owned(),
        format!("CAST(isNull({version}), 'UInt8')"),
        format!("CAST(ifNull({version}, toDateTime64(0, 6)), 'DateTime64(6)')"),
    ];
    let items: Vec<String> = texts
        .into_iter()
        .chain(arrays)
        .chain(times)
        .enumerate()
        .map(|(number, expression)| format!("{expression} AS c{number}"))
        .collect();
    // The ARRAY JOIN changes no row. It divides blocks to max_block_size, which FINAL does not.
    format!(
        "SELECT {} FROM {} AS i FINAL ARRAY JOIN [1] AS one WHERE {condition}",
        items.join(", "),
        table.qualified_name(),
    )
}

/// Puts the items of a block into the store, unless live spans carry them, and among the pointers of
/// their traces. Gives their number.
pub(super) fn take(
    block: &Block,
    pointers: &mut BTreeMap<Vec<u8>, Pointers>,
    live: &LiveItems,
    writer: &mut ExperimentWriter<'_>,
) -> Result<u64, WorkError> {
    if block.columns.len() != COLUMNS {
        return Err(NativeError::corrupt(format!(
            "{} columns arrived where {COLUMNS} were asked for",
            block.columns.len()
        ))
        .into());
    }
    let mut texts: [_; 10] = std::array::from_fn(|index| StringCursor::new(block.values(index)));
    let mut arrays = Vec::new();
    for index in 0..ARRAYS.len() {
        let values = block.values(TEXTS.len() + index);
        let (lengths, elements) = ArrayCursor::new(values, block.rows)?;
        arrays.push((lengths, StringCursor::new(elements)));
    }
    let first_time = TEXTS.len() + ARRAYS.len();
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
        // The trace may be one of another project than the one that was asked for.
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

/// The table's sort key as one byte string; no two items have the same.
fn item_key(columns: [&Text; 4]) -> Vec<u8> {
    let mut key = Vec::new();
    for column in columns {
        key.extend_from_slice(&(column.len() as u32).to_be_bytes());
        key.extend_from_slice(column);
    }
    key
}
