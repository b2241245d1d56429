//! Finds the items that live spans carry. Langfuse already assigned them to its own spans, and
//! assigning them again under another root would count them twice.

use std::collections::{HashMap, HashSet};

use super::traces::{Trace, condition};
use crate::backfill::error::WorkError;
use crate::backfill::guard::target::BACKFILL_SOURCES;
use crate::clickhouse::TableInfo;
use crate::native::{Block, StringCursor};
use crate::trace_store::key;

/// A dataset run and an item in it.
type RunItem = (Vec<u8>, Vec<u8>);

/// The items that live spans of some traces carry.
#[derive(Debug, Default)]
pub(super) struct LiveItems {
    /// `dataset_run_id` and `dataset_item_id`, by trace key.
    items: HashMap<Vec<u8>, HashSet<RunItem>>,
}

impl LiveItems {
    /// Adds a block of the answer to [`query`].
    pub(super) fn add(&mut self, block: &Block) -> Result<(), WorkError> {
        let mut columns = [0, 1, 2, 3].map(|index| StringCursor::new(block.values(index)));
        for _ in 0..block.rows {
            let mut row = [&b""[..]; 4];
            for (value, column) in row.iter_mut().zip(&mut columns) {
                *value = column.next_value()?;
            }
            let [project, trace, run, item] = row;
            let mut encoded = Vec::new();
            key::encode(&mut encoded, project, trace);
            let of_trace = self.items.entry(encoded).or_default();
            of_trace.insert((run.to_vec(), item.to_vec()));
        }
        Ok(())
    }

    /// Whether live spans of the trace with key `trace` carry the item.
    pub(super) fn carry(&self, trace: &[u8], run: &[u8], item: &[u8]) -> bool {
        let of_trace = self.items.get(trace);
        of_trace.is_some_and(|items| items.contains(&(run.to_vec(), item.to_vec())))
    }
}

/// Selects project, trace, run and item of the items that live spans of these traces carry in the
/// target.
pub(super) fn query(target: &TableInfo, traces: &[Trace]) -> String {
    let last_versions = match target.is_replacing() {
        true => " FINAL",
        false => "",
    };
    let columns = [
        "project_id",
        "trace_id",
        "experiment_id",
        "experiment_item_id",
    ];
    let columns = columns.map(|column| format!("CAST(e.{column}, 'String') AS of_{column}"));
    format!(
        "SELECT DISTINCT {} FROM {} AS e{last_versions} WHERE {} \
         AND e.source NOT IN ({BACKFILL_SOURCES}) AND e.experiment_id != ''",
        columns.join(", "),
        target.qualified_name(),
        condition("e", "trace_id", traces),
    )
}
