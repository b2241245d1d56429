//! The target table, and conditions for parts of it.

use std::ops::RangeInclusive;

use serde_bytes::ByteBuf;

use super::row_hash::RowColumns;
use crate::clickhouse::{Connection, TableInfo, quoting};
use crate::inspect::segments::{Boundary, Segment};
use crate::mapping::Source;
use crate::memory::buffer_pool::BufferPool;
use crate::partition::{Day, ShareOfMonth};
use crate::shutdown::Shutdown;

/// Alias of the target in statements.
pub(super) const EVENT: &str = "e";
/// Values of `source` in rows written by backfills. All other rows are live.
pub(crate) const BACKFILL_SOURCES: &str = "'ingestion-api-backfill', 'otel-backfill'";
/// Partition key of a target partitioned by month.
pub(super) const BY_MONTH: &str = "toYYYYMM(start_time)";

/// Columns of a table or subquery of events with alias `e`.
pub(super) const COLUMNS: RowColumns<'static> = RowColumns {
    project: "e.project_id",
    trace: "e.trace_id",
    span: "e.span_id",
};

/// A region of the target: days of some projects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    /// The first and last project, if limited.
    projects: (Option<ByteBuf>, Option<ByteBuf>),
    /// The first and last day.
    days: (Day, Day),
    /// The first span and the end of the spans, if it is part of one day.
    spans: (Option<ByteBuf>, Option<ByteBuf>),
}

impl Extent {
    /// All projects on some days.
    pub(crate) fn of_days(days: RangeInclusive<Day>) -> Self {
        Self {
            projects: (None, None),
            days: (*days.start(), *days.end()),
            spans: (None, None),
        }
    }

    /// One project on some days.
    pub(crate) fn of_project(project: &[u8], days: RangeInclusive<Day>) -> Self {
        let project = Some(ByteBuf::from(project));
        Self {
            projects: (project.clone(), project),
            ..Self::of_days(days)
        }
    }

    /// Extends it to all spans of its days: the target's sort key does not separate parts of a day.
    pub(crate) fn of_whole_days(self) -> Self {
        Self {
            spans: (None, None),
            ..self
        }
    }

    /// The extent of a segment's events, in a month of these days.
    pub(crate) fn of_segment(segment: &Segment, month: &RangeInclusive<Day>) -> Self {
        let (from, to) = (segment.from.as_ref(), segment.to.as_ref());
        let mut extent = Self {
            projects: (
                from.map(|from| from.project_id.clone()),
                to.map(|to| to.project_id.clone()),
            ),
            ..Self::of_days(month.clone())
        };
        extent.days = days_of(segment, month).into_inner();
        if let (Some(from), Some(to)) = (from, to)
            && is_of_one_group(from, to)
            && from.day == to.day
            && segment.source == Source::Observations
        {
            extent.spans = (from.id.clone(), to.id.clone());
        }
        extent
    }
}

/// The days of a segment's rows: within one type of one project its own, otherwise the whole `month`.
pub(crate) fn days_of(segment: &Segment, month: &RangeInclusive<Day>) -> RangeInclusive<Day> {
    let (Some(from), Some(to)) = (segment.from.as_ref(), segment.to.as_ref()) else {
        return month.clone();
    };
    if !is_of_one_group(from, to) {
        return month.clone();
    }
    // Without an id, the end lies before its day.
    let last = match to.id {
        Some(_) => to.day,
        None => to.day.saturating_sub(1),
    };
    from.day..=last.max(from.day)
}

fn is_of_one_group(from: &Boundary, to: &Boundary) -> bool {
    (&from.project_id, &from.observation_type) == (&to.project_id, &to.observation_type)
}

/// Access to the target. Owns everything, so that segments can share it.
pub(crate) struct TargetMonth {
    /// The server.
    pub connection: Connection,
    /// The target table.
    pub table: TableInfo,
    /// Type of `observations.start_time`, whose time zone defines days.
    pub start_type: String,
    /// The share of the month to process.
    pub share: ShareOfMonth,
    /// Maximum block size, in bytes.
    pub max_block_bytes: usize,
    /// Block buffers.
    pub pool: BufferPool,
    /// Signals a request to stop.
    pub shutdown: Shutdown,
}

impl TargetMonth {
    pub(super) fn is_by_month(&self) -> bool {
        self.table.partition_key == BY_MONTH
    }

    /// The condition for live rows.
    pub(super) fn is_live(&self) -> String {
        match self.table.column("source") {
            Some(_) => format!("{EVENT}.source NOT IN ({BACKFILL_SOURCES})"),
            None => "0".to_owned(),
        }
    }

    /// The condition for rows this run could have written.
    pub(super) fn share_condition(&self) -> String {
        match (self.is_by_month(), self.share.shard) {
            (true, None) => self.partition_condition(),
            (true, Some(_)) => self.condition(&Extent::of_days(self.share.days())),
            (false, _) => self.days_condition(&self.share.days()),
        }
    }

    fn partition_condition(&self) -> String {
        format!(
            "{EVENT}._partition_id = {}",
            quoting::string(self.share.partition.to_string())
        )
    }

    /// The condition for rows that start on some days.
    pub(crate) fn days_condition(&self, days: &RangeInclusive<Day>) -> String {
        let start_of = |day: u32| {
            format!(
                "CAST(concat(toString(toDate({day})), ' 00:00:00'), {})",
                quoting::string(&self.start_type)
            )
        };
        let (first, last) = (u32::from(*days.start()), u32::from(*days.end()));
        format!(
            "{EVENT}.start_time >= {} AND {EVENT}.start_time < {}",
            start_of(first),
            start_of(last + 1)
        )
    }

    /// The condition for an extent's rows.
    pub(super) fn condition(&self, extent: &Extent) -> String {
        let of_columns = self.column_condition(extent);
        match self.is_by_month() {
            true => format!("{} AND {of_columns}", self.partition_condition()),
            false => of_columns,
        }
    }

    /// The same without virtual columns, for a table or subquery with alias `e`.
    pub(crate) fn column_condition(&self, extent: &Extent) -> String {
        let mut conditions = vec![self.days_condition(&(extent.days.0..=extent.days.1))];
        let bounds = [
            ("project_id", ">=", &extent.projects.0),
            ("project_id", "<=", &extent.projects.1),
            ("span_id", ">=", &extent.spans.0),
            ("span_id", "<", &extent.spans.1),
        ];
        for (column, operator, value) in bounds {
            if let Some(value) = value {
                conditions.push(format!(
                    "{EVENT}.{column} {operator} {}",
                    quoting::string(value)
                ));
            }
        }
        conditions.join(" AND ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boundary(project: &str, kind: &str, day: Day, id: Option<&str>) -> Option<Boundary> {
        Some(Boundary {
            project_id: ByteBuf::from(project),
            observation_type: ByteBuf::from(kind),
            day,
            id: id.map(ByteBuf::from),
        })
    }

    fn extent(from: Option<Boundary>, to: Option<Boundary>) -> Extent {
        let segment = Segment {
            number: 0,
            source: Source::Observations,
            from,
            to,
            rows: 0,
        };
        Extent::of_segment(&segment, &(10..=40))
    }

    #[test]
    fn a_segment_lies_on_its_own_days_only_within_one_type_of_a_project() {
        let days = |from, to| extent(from, to).days;
        let begin = boundary("p", "A", 12, None);
        assert_eq!(days(begin.clone(), boundary("p", "A", 15, None)), (12, 14));
        assert_eq!(
            days(begin.clone(), boundary("p", "A", 15, Some("x"))),
            (12, 15)
        );
        assert_eq!(days(begin.clone(), boundary("p", "B", 15, None)), (10, 40));
        assert_eq!(days(begin, None), (10, 40));
        assert_eq!(days(None, None), (10, 40));
        let part = extent(
            boundary("p", "A", 12, Some("c")),
            boundary("p", "A", 12, Some("d")),
        );
        assert_eq!(
            part.spans,
            (Some(ByteBuf::from("c")), Some(ByteBuf::from("d")))
        );
    }
}
