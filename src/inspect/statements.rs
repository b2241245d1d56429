//! The statements by which rows are read, and the settings that go with them. They are checked before
//! anything is done, and decoded where they are read.

use super::segments::Segment;
use crate::clickhouse::{Statement, TableInfo};
use crate::mapping::{Mapping, Source};

/// How the rows of a segment are asked for.
pub struct SegmentQuery {
    /// `SELECT … FROM … FINAL … WHERE …`, to which the segment's condition is added.
    pub select: String,
    /// Table whose traces are left out, quoted, if any are.
    pub excluded_by: Option<String>,
}

impl SegmentQuery {
    /// The statement that reads a segment.
    pub fn sql(&self, segment: &Segment) -> String {
        let all = format!("{} AND {}", self.select, segment.predicate());
        all + &self.exclusion(segment)
    }

    /// The condition for the rows that are left out.
    pub fn exclusion(&self, segment: &Segment) -> String {
        let mut sql = String::new();
        if let Some(table) = &self.excluded_by {
            let projects = segment
                .project_condition("i.project_id")
                .map_or_else(String::new, |condition| format!(" WHERE {condition}"));
            let (alias, trace) = (segment.source.alias(), segment.source.trace_column());
            sql.push_str(&format!(
                " AND ({alias}.project_id, {alias}.{trace}) NOT IN \
                 (SELECT i.project_id, i.trace_id FROM {table} AS i FINAL{projects})"
            ));
        }
        sql
    }
}

/// The statement that reads a segment, in blocks of at most `block_rows` rows and about `block_bytes`
/// bytes.
pub fn of_segment(sql: impl Into<String>, block_rows: usize, block_bytes: usize) -> Statement {
    Statement::new(sql, block_rows)
        .in_bytes(block_bytes)
        // Deleted rows must be seen by FINAL before a condition hides them.
        .with("optimize_move_to_prewhere_if_final", 0)
        // Otherwise every thread's layer reads a granule of every part again.
        .with("split_intersecting_parts_ranges_into_layers_final", 0)
        // A key never lies in two partitions, so none has to be compared across them.
        .with("do_not_merge_across_partitions_select_final", 1)
}

/// How the traces table is called inside the SELECT.
pub(crate) const TRACE: &str = Source::Traces.alias();

/// Columns of the SELECT list before the attributes.
pub(crate) const KEYS: usize = 5;

/// The items of the SELECT list: the keys, then [`ATTRIBUTES`] in their order.
pub(crate) fn select_items(mapping: &Mapping) -> Vec<String> {
    let wanted = mapping.trace_columns();
    let keys: [&str; KEYS] = [
        "CAST(t.project_id, 'String')",
        "CAST(t.id, 'String')",
        "CAST(toDate(t.timestamp), 'UInt16')",
        "CAST(t.event_ts, 'DateTime64(6)')",
        "CAST(t.is_deleted, 'UInt8')",
    ];
    let attributes = ATTRIBUTES.iter().map(|attribute| {
        let expression = match wanted.contains(&attribute.column) {
            true => attribute.expression,
            false => attribute.otherwise,
        };
        format!("CAST({expression}, '{}')", attribute.data_type)
    });
    let expressions = keys.iter().map(|&key| key.to_owned()).chain(attributes);
    expressions
        .enumerate()
        .map(|(index, expression)| format!("{expression} AS c{index}"))
        .collect()
}

/// Something that events take from a trace.
pub(crate) struct Attribute {
    /// The column of `traces` it comes from.
    column: &'static str,
    /// The type in which it is read.
    data_type: &'static str,
    /// What it is read as.
    expression: &'static str,
    /// What is read where nothing is taken from that column.
    otherwise: &'static str,
}

const fn attribute(
    column: &'static str,
    data_type: &'static str,
    expression: &'static str,
    otherwise: &'static str,
) -> Attribute {
    Attribute {
        column,
        data_type,
        expression,
        otherwise,
    }
}

/// The attributes in the order of the query, in which they are decoded.
pub(crate) const ATTRIBUTES: [Attribute; 10] = [
    attribute("public", "UInt8", "t.public", "0"),
    attribute("bookmarked", "UInt8", "t.bookmarked", "0"),
    attribute("name", "String", "ifNull(t.name, '')", "''"),
    attribute("user_id", "String", "ifNull(t.user_id, '')", "''"),
    attribute("session_id", "String", "ifNull(t.session_id, '')", "''"),
    attribute("release", "String", "ifNull(t.release, '')", "''"),
    attribute("version", "String", "ifNull(t.version, '')", "''"),
    attribute("tags", "Array(String)", "t.tags", "[]"),
    attribute("metadata", "Array(String)", "mapKeys(t.metadata)", "[]"),
    attribute("metadata", "Array(String)", "mapValues(t.metadata)", "[]"),
];

/// What is read of an item, as text that is never null.
pub(crate) const ITEM_TEXTS: [&str; 10] = [
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
pub(crate) const ITEM_ARRAYS: [&str; 4] = [
    "mapKeys(i.dataset_run_metadata)",
    "mapValues(i.dataset_run_metadata)",
    "mapKeys(i.dataset_item_metadata)",
    "mapValues(i.dataset_item_metadata)",
];
/// Columns of the result: these, and three for the times.
pub(crate) const ITEM_COLUMNS: usize = ITEM_TEXTS.len() + ITEM_ARRAYS.len() + 3;

/// The latest versions of the items for which `condition` on the table `i` is true.
pub(crate) fn items_query(table: &TableInfo, condition: &str) -> String {
    let texts = ITEM_TEXTS.map(|column| format!("CAST(ifNull({column}, ''), 'String')"));
    let arrays = ITEM_ARRAYS.map(|expression| format!("CAST({expression}, 'Array(String)')"));
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
