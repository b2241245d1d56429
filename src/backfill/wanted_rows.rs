//! Reads only the wanted rows; of the rest of their days, only ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::WorkError;
use crate::clickhouse::quoting;
use crate::inspect::segments::Segment;
use crate::inspect::statements::SegmentQuery;
use crate::mapping::Source;
use crate::partition::Day;
use crate::trace_store::{TraceStore, WantedRow};

/// The wanted rows of each segment.
pub(crate) struct WantedRows {
    /// Where they are stored.
    pub store: Arc<TraceStore>,
    /// The source table, quoted.
    pub table: String,
    /// Its partition.
    pub partition_id: String,
}

impl WantedRows {
    /// The statement that reads them: the latest version of each observation, of any type.
    ///
    /// # Errors
    /// [`WorkError::Store`] if the store fails.
    pub(crate) fn sql(&self, query: &SegmentQuery, segment: &Segment) -> Result<String, WorkError> {
        let (rows, versions) = match self.store.rows_of_piece(segment.number)? {
            Some(rows) => (
                in_days(segment.source, segment.source.alias(), &rows),
                self.latest(segment.source, &rows),
            ),
            None => (whole_days(segment), String::new()),
        };
        // Only sort key columns: versions of a row share them, so FINAL sees all or none. Other
        // columns are read for matching rows only.
        Ok(format!(
            "{} PREWHERE {rows} WHERE {}{versions}{}",
            query.select,
            query.of_share,
            query.exclusion(segment)
        ))
    }

    fn latest(&self, source: Source, rows: &[WantedRow]) -> String {
        if source == Source::Traces {
            return String::new();
        }
        let spans: Vec<String> = rows
            .iter()
            .map(|row| {
                let texts = [&row.project, &row.trace_id, &row.span_id].map(quoting::string);
                format!("({})", texts.join(", "))
            })
            .collect();
        let columns = |alias: &str| {
            format!("CAST({alias}.project_id, 'String'), ifNull({alias}.trace_id, ''), {alias}.id")
        };
        let kind = |alias: &str| format!("CAST({alias}.type, 'String')");
        format!(
            " AND ({}, {}) IN (SELECT {own}, argMax({kind}, (w.event_ts, {kind})) FROM {} AS w \
             PREWHERE {} WHERE w._partition_id = {} AND ({own}) IN ({}) GROUP BY {own})",
            columns("o"),
            kind("o"),
            self.table,
            in_days(source, "w", rows),
            quoting::string(&self.partition_id),
            spans.join(", "),
            own = columns("w"),
            kind = kind("w"),
        )
    }
}

/// The condition for rows by id, on their days.
fn in_days(source: Source, alias: &str, rows: &[WantedRow]) -> String {
    let mut days: BTreeMap<(&[u8], Day), Vec<String>> = BTreeMap::new();
    for row in rows {
        let id = match source {
            Source::Observations => &row.span_id,
            Source::Traces => &row.trace_id,
        };
        let ids = days.entry((&row.project, row.day)).or_default();
        ids.push(quoting::string(id));
    }
    let days: Vec<String> = days
        .into_iter()
        .map(|((project, day), ids)| {
            format!(
                "({alias}.project_id = {} AND toDate({alias}.{}) = toDate({day}) \
                 AND {alias}.id IN ({}))",
                quoting::string(project),
                source.time_column(),
                ids.join(", ")
            )
        })
        .collect();
    format!("({})", days.join(" OR "))
}

/// The condition for all rows of a project on some days.
fn whole_days(segment: &Segment) -> String {
    let (source, alias) = (segment.source, segment.source.alias());
    let (Some(from), Some(to)) = (&segment.from, &segment.to) else {
        return "1".to_owned();
    };
    let day = format!("toDate({alias}.{})", source.time_column());
    format!(
        "{alias}.project_id = {} AND {day} >= toDate({}) AND {day} < toDate({})",
        quoting::string(&from.project_id),
        from.day,
        to.day
    )
}
