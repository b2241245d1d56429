//! Traces with an item, in batches.

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::clickhouse::quoting;
use crate::trace_store::key;

/// A trace with an item.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Row)]
pub(crate) struct Trace {
    /// `project_id`
    pub project_id: ByteBuf,
    /// `id`
    pub trace_id: ByteBuf,
}

/// Its key in the store.
pub(super) fn key_of(trace: &Trace) -> Vec<u8> {
    let mut encoded = Vec::new();
    key::encode(&mut encoded, &trace.project_id, &trace.trace_id);
    encoded
}

/// A condition on a table's project and trace columns. It may also match an equal id in another
/// listed project.
pub(super) fn condition(alias: &str, trace_column: &str, traces: &[Trace]) -> String {
    let list = |values: Vec<&ByteBuf>| {
        let values: Vec<String> = values.into_iter().map(quoting::string).collect();
        values.join(", ")
    };
    // Sorted by project.
    let mut projects: Vec<&ByteBuf> = traces.iter().map(|trace| &trace.project_id).collect();
    projects.dedup();
    let ids = traces.iter().map(|trace| &trace.trace_id).collect();
    format!(
        "{alias}.project_id IN ({}) AND {alias}.{trace_column} IN ({})",
        list(projects),
        list(ids)
    )
}
