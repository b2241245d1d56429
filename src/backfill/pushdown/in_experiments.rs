//! Which rows are spans of experiments.

use crate::backfill::error::WorkError;
use crate::memory::numbers::short;
use crate::native::{Block, StringCursor};
use crate::trace_store::{TraceStore, key};

/// Rows of a block that belong to an item of a dataset run.
#[derive(Debug, Default)]
pub(super) struct InExperiments(Vec<bool>);

impl InExperiments {
    /// Whether this row does.
    pub(super) fn contains(&self, row: usize) -> bool {
        self.0.get(row).is_some_and(|&is_one| is_one)
    }
}

/// Finds them in a block that begins with project, trace and span.
///
/// # Errors
/// [`WorkError`] if the block is damaged or the store fails.
pub(super) fn in_experiments(
    store: &TraceStore,
    block: &Block,
) -> Result<InExperiments, WorkError> {
    if !store.has_experiments() {
        return Ok(InExperiments::default());
    }
    let text = |column| StringCursor::new(block.values(column));
    let (mut projects, mut ids, mut spans) = (text(0), text(1), text(2));
    let mut traces = Vec::with_capacity(block.rows);
    let mut rows = Vec::with_capacity(block.rows);
    for row in 0..block.rows {
        let mut trace = Vec::new();
        key::encode(&mut trace, projects.next_value()?, ids.next_value()?);
        traces.push(trace);
        rows.push((short(row), spans.next_value()?));
    }
    let traces: Vec<&[u8]> = traces.iter().map(Vec::as_slice).collect();
    Ok(InExperiments(store.have_items(&traces, &rows)?))
}
