//! Checks whether observations and their traces are on the same shard.

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use crate::clickhouse::{Connection, RequestError, TABLE_TIMEOUT, quoting};

/// Traces to sample.
pub(crate) const SAMPLE: usize = 200;

/// The table of dataset run items.
pub(crate) const ITEMS: &str = "dataset_run_items_rmt";
/// The tables whose rows name traces.
pub(crate) const NAMING: [&str; 2] = ["observations", ITEMS];

/// A trace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Row, Deserialize)]
pub(crate) struct Trace {
    project_id: ByteBuf,
    id: ByteBuf,
}

#[derive(Row, Deserialize)]
struct Count {
    count: u64,
}

/// Traces that some rows of a table name on a shard, and that this shard has not. Nothing where it has no
/// such tables.
///
/// # Errors
/// [`RequestError`] if the shard rejects the query or cannot be reached.
pub(crate) async fn sample(
    connection: &Connection,
    database: &str,
    table: &str,
) -> Result<Vec<Trace>, RequestError> {
    let Some(table) = connection.local_table(database, table).await? else {
        return Ok(Vec::new());
    };
    let query = format!(
        "SELECT DISTINCT CAST(o.project_id, 'String') AS project_id, CAST(o.trace_id, 'String') AS id \
         FROM {} AS o WHERE o.trace_id != '' LIMIT {SAMPLE}",
        table.qualified_name()
    );
    let mut named = connection
        .rows_within::<Trace>(&query, TABLE_TIMEOUT)
        .await?;
    let Some(query) = found(connection, database, &named).await? else {
        return Ok(Vec::new());
    };
    let there = connection
        .rows_within::<Trace>(&query, TABLE_TIMEOUT)
        .await?;
    named.retain(|trace| !there.contains(trace));
    Ok(named)
}

/// How many of these traces a shard has.
///
/// # Errors
/// [`RequestError`] if the shard rejects the query or cannot be reached.
pub(crate) async fn count(
    connection: &Connection,
    database: &str,
    traces: &[Trace],
) -> Result<u64, RequestError> {
    let Some(query) = found(connection, database, traces).await? else {
        return Ok(0);
    };
    let query = format!("SELECT count() AS count FROM ({query})");
    let counts = connection
        .rows_within::<Count>(&query, TABLE_TIMEOUT)
        .await?;
    Ok(counts.iter().map(|count| count.count).sum())
}

/// The query for those of `traces` that a shard has.
async fn found(
    connection: &Connection,
    database: &str,
    traces: &[Trace],
) -> Result<Option<String>, RequestError> {
    let table = connection.local_table(database, "traces").await?;
    let Some(table) = table.filter(|_| !traces.is_empty()) else {
        return Ok(None);
    };
    let traces: Vec<String> = traces
        .iter()
        .map(|trace| {
            let (project, id) = (
                quoting::string(&trace.project_id),
                quoting::string(&trace.id),
            );
            format!("({project}, {id})")
        })
        .collect();
    Ok(Some(format!(
        "SELECT DISTINCT CAST(t.project_id, 'String') AS project_id, CAST(t.id, 'String') AS id FROM {} AS t \
         WHERE (t.project_id, t.id) IN ({})",
        table.qualified_name(),
        traces.join(", ")
    )))
}
