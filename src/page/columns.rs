//! Turns a history into chart columns, each of which covers a span of the processes' time.

use std::collections::BTreeMap;

use crate::state::history::{History, Point};

/// The measurements of a time span.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Column {
    /// Start, in seconds of the processes' time without the gaps between them.
    pub from: f64,
    /// End, likewise.
    pub to: f64,
    /// Idle seconds in a pause or outside the window.
    still: f64,
    /// Trace rows loaded.
    pub trace_rows: u64,
    /// Rows that became events.
    pub rows: u64,
    /// Sum of the seconds that segments waited for inserts.
    pub insert_seconds: f64,
    /// Seconds for which the run was slowed down, by reason.
    pub throttled: BTreeMap<String, f64>,
    /// Peak resident memory, in bytes.
    pub resident_bytes: u64,
    /// Largest size of the trace store, in bytes.
    pub store_bytes: u64,
}

impl Column {
    /// The column between two measurements of a process that started at `offset` seconds.
    fn between(before: &Point, after: &Point, offset: f64) -> Self {
        let throttled = after.throttled_seconds.iter().map(|(reason, seconds)| {
            let earlier = before.throttled_seconds.get(reason).unwrap_or(&0.0);
            (reason.clone(), (seconds - earlier).max(0.0))
        });
        Self {
            from: offset + before.seconds,
            to: offset + after.seconds,
            still: (after.still_seconds - before.still_seconds).max(0.0),
            trace_rows: after.trace_rows.saturating_sub(before.trace_rows),
            rows: after.rows.saturating_sub(before.rows),
            insert_seconds: (after.insert_seconds - before.insert_seconds).max(0.0),
            throttled: throttled.filter(|(_, seconds)| *seconds > 0.0).collect(),
            resident_bytes: after.resident_bytes,
            store_bytes: after.store_bytes,
        }
    }

    /// Length in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.to - self.from
    }

    /// Length without idle time, in seconds.
    pub(super) fn seconds_at_work(&self) -> f64 {
        (self.seconds() - self.still).max(0.0)
    }

    /// This column joined with the one that follows it.
    fn joined(mut self, next: &Self) -> Self {
        self.to = next.to;
        self.still += next.still;
        self.trace_rows += next.trace_rows;
        self.rows += next.rows;
        self.insert_seconds += next.insert_seconds;
        for (reason, seconds) in &next.throttled {
            *self.throttled.entry(reason.clone()).or_default() += seconds;
        }
        self.resident_bytes = self.resident_bytes.max(next.resident_bytes);
        self.store_bytes = self.store_bytes.max(next.store_bytes);
        self
    }
}

/// The measurements of a history.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Columns {
    /// The columns in chronological order.
    pub columns: Vec<Column>,
    /// Start of each process but the first: in seconds of the processes' time, and in seconds since 1970.
    pub resumed: Vec<(f64, u64)>,
}

impl Columns {
    /// All measurements of a history.
    pub(super) fn of(history: &History) -> Self {
        let mut all = Self::default();
        let mut offset = 0.0;
        for stretch in &history.stretches {
            if offset > 0.0 {
                all.resumed.push((offset, stretch.began_at));
            }
            let pairs = stretch.points.windows(2);
            let columns = pairs
                .filter(|pair| pair[1].seconds > pair[0].seconds)
                .map(|pair| Column::between(&pair[0], &pair[1], offset));
            all.columns.extend(columns);
            offset += stretch.points.last().map_or(0.0, |point| point.seconds);
        }
        all
    }

    /// Total seconds of all processes.
    pub(super) fn seconds(&self) -> f64 {
        self.columns.last().map_or(0.0, |column| column.to)
    }

    /// Joins columns into at most `columns` of about equal length.
    pub(super) fn at_most(&self, columns: usize) -> Self {
        let width = self.seconds() / columns as f64;
        let mut wide: Vec<Column> = Vec::new();
        for column in &self.columns {
            match wide.last_mut() {
                // Measurements are slightly late, so columns may be slightly longer.
                Some(last) if last.seconds() + column.seconds() <= width * 1.01 => {
                    *last = std::mem::take(last).joined(column);
                }
                _ => wide.push(column.clone()),
            }
        }
        // Very uneven columns can still be too many.
        while wide.len() > columns {
            let pairs = wide.chunks(2);
            wide = pairs
                .map(|pair| match pair {
                    [first, second] => first.clone().joined(second),
                    _ => pair[0].clone(),
                })
                .collect();
        }
        Self {
            columns: wide,
            resumed: self.resumed.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(seconds: f64, rows: u64, parts: f64) -> Point {
        Point {
            seconds,
            rows,
            throttled_seconds: BTreeMap::from([("parts".to_owned(), parts)]),
            ..Point::default()
        }
    }

    fn history(stretches: Vec<Vec<Point>>) -> History {
        let mut history = History::default();
        for (index, points) in stretches.into_iter().enumerate() {
            history.begin(1_000 + index as u64);
            for point in points {
                history.add(point);
            }
        }
        history
    }

    #[test]
    fn processes_follow_each_other_without_the_time_between_them() {
        let history = history(vec![
            vec![point(2.0, 10, 0.0), point(4.0, 30, 1.0)],
            vec![point(5.0, 7, 0.0)],
        ]);
        let columns = Columns::of(&history);
        assert_eq!(columns.seconds(), 9.0);
        assert_eq!(columns.resumed, [(4.0, 1_001)]);
        let rows: Vec<_> = columns.columns.iter().map(|column| column.rows).collect();
        assert_eq!(rows, [10, 20, 7]);
        assert_eq!(columns.columns[1].throttled["parts"], 1.0);
        assert!(columns.columns[2].throttled.is_empty());
    }

    proptest! {
        #[test]
        fn fewer_columns_hold_as_much(
            pauses in prop::collection::vec((0.1_f64..100.0, 0_u64..1_000_000), 1..300),
            most in 1_usize..200,
        ) {
            let (mut seconds, mut rows) = (0.0, 0);
            let points = pauses.iter().map(|(pause, more)| {
                seconds += pause;
                rows += more;
                point(seconds, rows, 0.0)
            });
            let all = Columns::of(&history(vec![points.collect()]));
            let few = all.at_most(most);
            prop_assert!(few.columns.len() <= most);
            prop_assert_eq!(few.seconds(), all.seconds());
            prop_assert_eq!(few.columns.iter().map(|column| column.rows).sum::<u64>(), rows);
            for pair in few.columns.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
            }
        }
    }
}
