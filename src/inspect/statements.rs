//! The statements that read rows, and their settings. They are checked before anything is done; the code
//! that runs them decodes the result.

use super::segments::Segment;
use crate::clickhouse::{Statement, TableInfo};
use crate::mapping::{Mapping, SelectItem, Source, TRACE_TEXTS, TraceAttribute};

/// The query that reads the rows of a segment.
pub(crate) struct SegmentQuery {
    /// `SELECT … FROM … FINAL …`, without conditions.
    pub select: String,
    /// The condition for the days of the run's share.
    pub of_share: String,
    /// The table whose traces are excluded, quoted, if any are.
    pub excluded_by: Option<String>,
}

impl SegmentQuery {
    /// The statement that reads a segment.
    pub(crate) fn sql(&self, segment: &Segment) -> String {
        format!(
            "{} WHERE {} AND {}{}",
            self.select,
            self.of_share,
            segment.predicate(),
            self.exclusion(segment)
        )
    }

    /// The statement that reads some rows of a segment: those that satisfy `condition`. `prewhere` holds for
    /// all of them and reads only columns of the sort key, so that `FINAL` sees all versions of a row or
    /// none; the other columns are read only where it holds.
    pub(crate) fn sql_of_rows(&self, segment: &Segment, prewhere: &str, condition: &str) -> String {
        format!(
            "{} PREWHERE {prewhere} WHERE {} AND {}{} AND ({condition})",
            self.select,
            self.of_share,
            segment.predicate(),
            self.exclusion(segment)
        )
    }

    /// The condition that excludes rows; empty if none are excluded.
    pub(crate) fn exclusion(&self, segment: &Segment) -> String {
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

/// Settings of every statement that reads a segment with `FINAL`.
pub(crate) const OF_FINAL: [(&str, u8); 3] = [
    // It must see deleted rows before a condition hides them.
    ("optimize_move_to_prewhere_if_final", 0),
    // Otherwise each thread's layer reads one granule of every part again.
    ("split_intersecting_parts_ranges_into_layers_final", 0),
    // A key is never in two partitions, so it need not compare across them.
    ("do_not_merge_across_partitions_select_final", 1),
];

/// A statement that reads a segment in blocks of at most `block_rows` rows and about `block_bytes` bytes.
pub fn of_segment(sql: impl Into<String>, block_rows: usize, block_bytes: usize) -> Statement {
    let statement = Statement::new(sql, block_rows).in_bytes(block_bytes);
    OF_FINAL
        .into_iter()
        .fold(statement, |statement, (name, value)| {
            statement.with(name, value)
        })
}

/// Alias of the traces table in the SELECT.
pub(crate) const TRACE: &str = Source::Traces.alias();

/// The leading key columns of the SELECT list over traces.
pub(crate) const KEYS: usize = 5;

/// Number of columns in the SELECT list over traces: the keys, `public` and `bookmarked`, [`TRACE_TEXTS`],
/// tags, and names and values of the metadata.
pub(crate) const TRACE_COLUMNS: usize = KEYS + 2 + TRACE_TEXTS.len() + 3;

/// The items of the SELECT list over traces.
pub(crate) fn trace_items(mapping: &Mapping) -> Vec<SelectItem> {
    let items = trace_expressions(mapping).into_iter().enumerate();
    let items = items.map(|(index, (expression, reads))| SelectItem {
        sql: format!("{expression} AS c{index}"),
        reads,
    });
    items.collect()
}

/// The place of an attribute in the SELECT list over traces.
pub(crate) fn place_of(attribute: TraceAttribute) -> usize {
    let lists = KEYS + 2 + TRACE_TEXTS.len();
    match attribute {
        TraceAttribute::Public => KEYS,
        TraceAttribute::Bookmarked => KEYS + 1,
        TraceAttribute::Text(text) => KEYS + 2 + text,
        TraceAttribute::Tags => lists,
        TraceAttribute::MetadataNames => lists + 1,
        TraceAttribute::MetadataValues => lists + 2,
    }
}

/// The expressions of that list, and the columns that each reads.
pub(crate) fn trace_expressions(mapping: &Mapping) -> Vec<(String, Vec<&'static str>)> {
    let wanted = mapping.trace_columns();
    // A column that no event uses is not read.
    let read = |column: &'static str, expression: &str, otherwise: &str, data_type: &str| {
        let column_of_table = format!("{TRACE}.{column}");
        match wanted.contains(&column) {
            true => (
                format!(
                    "CAST({}, '{data_type}')",
                    expression.replace("{c}", &column_of_table)
                ),
                vec![column],
            ),
            false => (format!("CAST({otherwise}, '{data_type}')"), Vec::new()),
        }
    };
    let key = |column: &'static str, expression: &str, data_type: &str| {
        let expression = expression.replace("{c}", &format!("{TRACE}.{column}"));
        (format!("CAST({expression}, '{data_type}')"), vec![column])
    };
    let flag = |column| read(column, "{c}", "0", "UInt8");
    let text = |column| read(column, "ifNull({c}, '')", "''", "String");
    let list = |column, expression| read(column, expression, "[]", "Array(String)");
    let mut items = vec![
        key("project_id", "{c}", "String"),
        key("id", "{c}", "String"),
        key("timestamp", "toDate({c})", "UInt16"),
        key("event_ts", "{c}", "DateTime64(6)"),
        key("is_deleted", "{c}", "UInt8"),
        flag("public"),
        flag("bookmarked"),
    ];
    items.extend(TRACE_TEXTS.iter().map(|of_trace| text(of_trace.column)));
    items.extend([
        list("tags", "{c}"),
        list("metadata", "mapKeys({c})"),
        list("metadata", "mapValues({c})"),
    ]);
    items
}

/// Expressions read from an item as text, never null.
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
/// Expressions read from an item as arrays of text.
pub(crate) const ITEM_ARRAYS: [&str; 4] = [
    "mapKeys(i.dataset_run_metadata)",
    "mapValues(i.dataset_run_metadata)",
    "mapKeys(i.dataset_item_metadata)",
    "mapValues(i.dataset_item_metadata)",
];
/// Columns of the result: these, plus three for the times.
pub(crate) const ITEM_COLUMNS: usize = ITEM_TEXTS.len() + ITEM_ARRAYS.len() + 3;

/// Reads the latest versions of the items that satisfy `condition` (table alias `i`).
pub(crate) fn items_query(table: &TableInfo, condition: &str) -> String {
    let texts = ITEM_TEXTS.map(|column| format!("CAST(ifNull({column}, ''), 'String')"));
    let arrays = ITEM_ARRAYS.map(|expression| format!("CAST({expression}, 'Array(String)')"));
    let version = match table.column("dataset_item_version") {
        Some(_) => "CAST(i.dataset_item_version, 'Nullable(DateTime64(6))')",
        // Older deployments have no item versions.
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
    // The ARRAY JOIN leaves the rows as they are, but splits blocks to max_block_size; FINAL does not.
    format!(
        "SELECT {} FROM {} AS i FINAL ARRAY JOIN [1] AS one WHERE {condition}",
        items.join(", "),
        table.qualified_name(),
    )
}
