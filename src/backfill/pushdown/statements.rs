//! The statements of the server's own engine: which rows there are, which of their traces are near,
//! and the insert that joins the two.

use std::ops::RangeInclusive;

use super::key_list::KeyList;
use super::sorted_rows::SortedRows;
use crate::backfill::guard::row_hash::{OF_TRACES, RowColumns, microseconds, version_place};
use crate::clickhouse::{TableInfo, quoting};
use crate::inspect::Inspected;
use crate::inspect::segments::Segment;
use crate::inspect::statements::{SegmentQuery, TRACE, place_of, trace_expressions, trace_items};
use crate::mapping::{Mapping, SelectItem, Source};
use crate::partition::Day;

/// Alias of the joined traces.
const JOINED: &str = "x";

/// One of several equal shares of a segment's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// Which one, from 0.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

/// The statements for one source.
pub(super) struct Statements {
    source: Source,
    /// Reads keys.
    pub keys: SegmentQuery,
    version_key: [String; 2],
    /// The condition for rows that are not left to Langfuse.
    until: Option<String>,
    span_check: String,
    trace_key: [String; 2],
    insert: String,
    expressions: String,
    columns: String,
    table: String,
    traces: TableInfo,
    trace_items: String,
}

impl Statements {
    /// The statements for a source. `None` if the target lacks a column that every event needs.
    pub(super) fn new(inspected: &Inspected, source: Source, until: Option<i64>) -> Option<Self> {
        let mapping = inspected.mapping_of(source);
        let (project, trace) = (mapping.sent("project_id")?, mapping.sent("trace_id")?);
        let span = mapping.sent("span_id")?;
        let columns = RowColumns {
            project: &project,
            trace: &trace,
            span: &span,
        };
        let day_of = format!("{}.{}", source.alias(), source.time_column());
        let place = version_place(&day_of, &mapping.sent("type")?);
        let (start, event_ts) = (mapping.sent("start_time")?, mapping.sent("event_ts")?);
        let version_key = columns.version_key(&start, &event_ts, &place);
        let until = until.map(|until| format!("{} <= {until}", microseconds(&event_ts)));
        let table = inspected.partition(source).table;
        Some(Self {
            until,
            source,
            keys: inspected.segment_query_of(source, &mapping.of_keys()),
            span_check: version_key[1].clone(),
            version_key,
            trace_key: columns.trace_key(),
            insert: format!(
                "INSERT INTO {} ({})",
                inspected.target.qualified_name(),
                mapping.insert_columns()
            ),
            expressions: expressions(mapping, source),
            columns: source_columns(mapping),
            table: table.qualified_name(),
            traces: inspected.traces.clone(),
            trace_items: SelectItem::list(&trace_items(mapping)),
        })
    }

    /// Reads the keys of a slice's rows.
    pub(super) fn keys_of(&self, segment: &Segment, slice: Slice) -> String {
        match self.of_slice(slice) {
            None => self.keys.sql(segment),
            Some(condition) => self.keys.sql_of_rows(segment, &condition, "1"),
        }
    }

    /// The condition for a slice's rows, from the span id alone.
    fn of_slice(&self, slice: Slice) -> Option<String> {
        (slice.of > 1).then(|| format!("{} % {} = {}", self.span_check, slice.of, slice.number))
    }

    /// Inserts a slice's events, except those that are left out. Observations need their trace among
    /// those that are near, on these days, or gone. With `splits_blocks` the server heeds
    /// `max_block_size`, which `FINAL` alone does not.
    pub(super) fn insert(
        &self,
        segment: &Segment,
        slice: Slice,
        days: &RangeInclusive<Day>,
        sorted: &SortedRows,
        splits_blocks: bool,
    ) -> String {
        let left_out = &sorted.not_by_server;
        let alias = self.source.alias();
        let prewhere = self.of_slice(slice);
        let prewhere = prewhere.map_or_else(String::new, |slice| format!(" PREWHERE {slice}"));
        let prewhere = match splits_blocks {
            true => format!(" ARRAY JOIN [1] AS one{prewhere}"),
            false => prewhere,
        };
        let mut conditions = format!(
            "{} AND {}{}",
            self.keys.of_share,
            segment.predicate(),
            self.keys.exclusion(segment)
        );
        // Versions that arrived since the keys were read are Langfuse's to write.
        if let Some(until) = &self.until {
            conditions.push_str(&format!(" AND {until}"));
        }
        if !left_out.is_empty() {
            conditions.push_str(&format!(
                " AND NOT ({})",
                left_out.contains(&self.version_key)
            ));
        }
        if self.source == Source::Traces {
            return format!(
                "{} SELECT {} FROM {} AS {alias} FINAL{prewhere} WHERE {conditions} AND {}",
                self.insert,
                self.expressions,
                self.table,
                sorted.near.contains(&self.trace_key),
            );
        }
        format!(
            "{} SELECT {} FROM (SELECT {} FROM {} AS {alias} FINAL{prewhere} WHERE {conditions} \
             AND ({} OR {})) AS {alias} LEFT ANY JOIN (SELECT {} FROM {} AS {TRACE} FINAL PREWHERE {} \
             WHERE {}) AS {JOINED} ON {alias}.project_id = {JOINED}.c0 AND {alias}.trace_id = \
             {JOINED}.c1",
            self.insert,
            self.expressions,
            self.columns,
            self.table,
            sorted.near.contains(&self.trace_key),
            sorted.gone.contains(&self.trace_key),
            self.trace_items,
            self.traces.qualified_name(),
            sorted.near.contains(&OF_TRACES.trace_key()),
            near(segment, days),
        )
    }

    /// The conditions for the rows that go through this process: those with one of these keys, and
    /// those of these traces, whose rows are `rows_of_traces`. The first one reads the span id alone.
    pub(super) fn rest(
        &self,
        rows: &KeyList,
        traces: &KeyList,
        rows_of_traces: &KeyList,
    ) -> (String, String) {
        let prewhere = format!(
            "{} OR {}",
            rows.has_check(&self.span_check),
            rows_of_traces.has_check(&self.span_check)
        );
        let condition = format!(
            "{} OR {}",
            rows.contains(&self.version_key),
            traces.contains(&self.trace_key)
        );
        (format!("({prewhere})"), condition)
    }
}

/// The condition for traces that a segment's rows may belong to.
fn near(segment: &Segment, days: &RangeInclusive<Day>) -> String {
    let mut condition = format!(
        "toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({})",
        days.start(),
        days.end()
    );
    if let Some(projects) = segment.project_condition(&format!("{TRACE}.project_id")) {
        condition.push_str(&format!(" AND {projects}"));
    }
    condition
}

/// The SELECT list of the insert.
fn expressions(mapping: &Mapping, source: Source) -> String {
    let own = trace_expressions(mapping);
    let expressions = mapping.expressions(|attribute| {
        let place = place_of(attribute);
        match source {
            Source::Observations => format!("{JOINED}.c{place}"),
            // A root span is made of its trace's own row.
            Source::Traces => own[place].0.clone(),
        }
    });
    let numbered = expressions.into_iter().enumerate();
    let numbered = numbered.map(|(number, expression)| format!("{expression} AS e{number}"));
    numbered.collect::<Vec<_>>().join(", ")
}

/// The source columns that those expressions read.
fn source_columns(mapping: &Mapping) -> String {
    let alias = mapping.source.alias();
    let mut columns = mapping.source_columns();
    columns.extend(["project_id", mapping.source.trace_column()]);
    columns.sort_unstable();
    columns.dedup();
    let columns = columns.into_iter().map(|name| {
        let name = quoting::identifier(name);
        format!("{alias}.{name} AS {name}")
    });
    columns.collect::<Vec<_>>().join(", ")
}
