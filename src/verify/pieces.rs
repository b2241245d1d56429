//! Divides a month. A piece is a project's day; a batch is what one statement compares: many small
//! pieces, one large piece, or a share of one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde_bytes::ByteBuf;

use crate::partition::Day;

/// Maximum rows per comparison, unless a single piece has more. This many fit in little memory when
/// compared individually.
pub(super) const BATCH_ROWS: u64 = 250_000;
/// Maximum trace versions that one statement holds in the server's memory, at a few hundred bytes
/// each. A lower limit would read a large project's day too often.
const BATCH_TRACES: u64 = 1_000_000;
/// Maximum projects per batch.
const BATCH_PROJECTS: usize = 100;
/// Traces are first looked up on the observation's day and this many days around it, unless those
/// hold very many; then everywhere.
const MARGIN: Day = 1;

/// A project and a day.
pub(super) type Piece = (ByteBuf, Day);

/// Row counts of a month's pieces.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    rows: BTreeMap<ByteBuf, BTreeMap<Day, Rows>>,
    traces: BTreeMap<ByteBuf, BTreeMap<Day, u64>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Rows {
    expected: u64,
    events: u64,
    live: u64,
    core: u64,
}

impl Rows {
    fn most(self) -> u64 {
        self.expected.max(self.events).max(self.core)
    }
}

/// What one statement compares: some days of some projects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    /// The projects.
    pub projects: Vec<ByteBuf>,
    /// The days.
    pub days: RangeInclusive<Day>,
    /// The days on which to look for traces first.
    pub trace_days: RangeInclusive<Day>,
    /// Approximate rows on the larger side.
    pub rows: u64,
    /// Number of shares, by trace id, to compare it in.
    pub shares: u64,
    /// Whether there are live events on these days or the days around them.
    pub has_live: bool,
}

/// Some days, plus the days around them.
pub(super) fn with_margin(days: &RangeInclusive<Day>) -> RangeInclusive<Day> {
    days.start().saturating_sub(MARGIN)..=days.end().saturating_add(MARGIN)
}

impl Pieces {
    /// Adds rows that become events.
    pub(super) fn add_expected(&mut self, project: ByteBuf, day: Day, rows: u64) {
        self.piece(project, day).expected += rows;
    }

    /// Adds rows of the events table, `live` of them live.
    pub(super) fn add_events(&mut self, project: ByteBuf, day: Day, rows: u64, live: u64) {
        let piece = self.piece(project, day);
        piece.events += rows;
        piece.live += live;
    }

    /// Adds rows of the view's table.
    pub(super) fn add_core(&mut self, project: ByteBuf, day: Day, rows: u64) {
        self.piece(project, day).core += rows;
    }

    /// Rows of the events table or the view's table, whichever has more.
    pub(super) fn events(&self) -> u64 {
        let pieces = self.rows.values().flat_map(BTreeMap::values);
        pieces.map(|rows| rows.events.max(rows.core)).sum()
    }

    /// Whether any row of the events table is a backfill's.
    pub(super) fn has_own_events(&self) -> bool {
        let mut pieces = self.rows.values().flat_map(BTreeMap::values);
        pieces.any(|rows| rows.events > rows.live)
    }

    /// Adds trace versions that started on a day.
    pub(super) fn add_traces(&mut self, project: ByteBuf, day: Day, rows: u64) {
        *self
            .traces
            .entry(project)
            .or_default()
            .entry(day)
            .or_default() += rows;
    }

    fn piece(&mut self, project: ByteBuf, day: Day) -> &mut Rows {
        self.rows
            .entry(project)
            .or_default()
            .entry(day)
            .or_default()
    }

    /// Number of pieces.
    pub(super) fn count(&self) -> u64 {
        self.rows.values().map(|days| days.len() as u64).sum()
    }

    /// Number of pieces in a batch.
    pub(super) fn count_in(&self, batch: &Batch) -> u64 {
        let days = batch
            .projects
            .iter()
            .filter_map(|project| self.rows.get(project));
        days.map(|days| days.range(batch.days.clone()).count() as u64)
            .sum()
    }

    /// Divides a month into batches, ordered by project and day.
    pub(super) fn batches(&self, month: &RangeInclusive<Day>) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut group = Group::default();
        for (project, days) in &self.rows {
            let rows = days.values().map(|rows| rows.most()).sum();
            let traces = self.traces_on(project, &with_margin(month));
            if rows > BATCH_ROWS || traces > BATCH_TRACES {
                batches.extend(self.divide(project, days));
                continue;
            }
            if !group.has_room(rows, traces) {
                batches.extend(group.take(month));
            }
            group.add(
                project,
                rows,
                traces,
                days.values().map(|rows| rows.live).sum(),
            );
        }
        batches.extend(group.take(month));
        batches
    }

    /// Batches of a large project: several days each, or a share of one.
    fn divide(&self, project: &ByteBuf, days: &BTreeMap<Day, Rows>) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for (&day, rows) in days {
            if let Some(last) = batches.last_mut() {
                let longer = *last.days.start()..=day;
                let traces = self.traces_on(project, &with_margin(&longer));
                if last.rows + rows.most() <= BATCH_ROWS && traces <= BATCH_TRACES {
                    last.trace_days = with_margin(&longer);
                    last.days = longer;
                    last.rows += rows.most();
                    last.has_live |= live_around(days, day) > 0;
                    continue;
                }
            }
            let mut trace_days = with_margin(&(day..=day));
            if self.traces_on(project, &trace_days) > BATCH_TRACES {
                // Traces on the days around it are found like distant ones.
                trace_days = day..=day;
            }
            let traces = self.traces_on(project, &trace_days);
            let live = live_around(days, day);
            batches.push(Batch {
                projects: vec![project.clone()],
                days: day..=day,
                trace_days,
                rows: rows.most(),
                // Keys of live rows are held like traces.
                shares: traces.max(live).div_ceil(BATCH_TRACES).max(1),
                has_live: live > 0,
            });
        }
        batches
    }

    fn traces_on(&self, project: &ByteBuf, days: &RangeInclusive<Day>) -> u64 {
        self.traces.get(project).map_or(0, |traces| {
            traces.range(days.clone()).map(|(_, rows)| rows).sum()
        })
    }
}

/// Live rows on a day and the days around it.
fn live_around(days: &BTreeMap<Day, Rows>, day: Day) -> u64 {
    let around = days.range(with_margin(&(day..=day)));
    around.map(|(_, rows)| rows.live).sum()
}

/// Small projects compared together.
#[derive(Default)]
struct Group {
    projects: Vec<ByteBuf>,
    rows: u64,
    traces: u64,
    live: u64,
}

impl Group {
    fn has_room(&self, rows: u64, traces: u64) -> bool {
        self.projects.len() < BATCH_PROJECTS
            && self.rows + rows <= BATCH_ROWS
            && self.traces + traces <= BATCH_TRACES
    }

    fn add(&mut self, project: &ByteBuf, rows: u64, traces: u64, live: u64) {
        self.projects.push(project.clone());
        self.rows += rows;
        self.traces += traces;
        self.live += live;
    }

    fn take(&mut self, month: &RangeInclusive<Day>) -> Option<Batch> {
        let group = std::mem::take(self);
        (!group.projects.is_empty()).then(|| Batch {
            projects: group.projects,
            days: month.clone(),
            trace_days: with_margin(month),
            rows: group.rows,
            shares: 1,
            has_live: group.live > 0,
        })
    }
}

/// Day boundaries of a month, in the observations' time zone.
#[derive(Debug, Clone)]
pub(super) struct Calendar {
    first: Day,
    /// Milliseconds since 1970: the start of each day, and the end of the last.
    starts: Vec<i64>,
}

impl Calendar {
    /// Builds a calendar from the starts of the days from `first` on, plus the end of the last day.
    pub(super) fn new(first: Day, starts: Vec<i64>) -> Self {
        Self { first, starts }
    }

    /// The half-open range of some days, in milliseconds.
    pub(super) fn range(&self, days: &RangeInclusive<Day>) -> (i64, i64) {
        let at = |day: Day| {
            let index = usize::from(day.saturating_sub(self.first));
            let last = self.starts.len().saturating_sub(1);
            self.starts.get(index.min(last)).copied().unwrap_or(0)
        };
        (at(*days.start()), at(days.end().saturating_add(1)))
    }

    /// The day of a time in microseconds.
    pub(super) fn day_of(&self, moment: i64) -> Day {
        let milliseconds = moment.div_euclid(1_000);
        let begun = self.starts.partition_point(|&start| start <= milliseconds);
        let index = begun.saturating_sub(1).min(usize::from(Day::MAX));
        self.first
            .saturating_add(Day::try_from(index).unwrap_or(Day::MAX))
    }
}

/// Pieces with a difference.
pub(super) type DifferentPieces = BTreeSet<Piece>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MONTH: RangeInclusive<Day> = 100..=129;

    fn name(project: usize) -> ByteBuf {
        ByteBuf::from(format!("project-{project:04}"))
    }

    #[test]
    fn small_projects_are_compared_together_and_large_ones_by_day() {
        let mut pieces = Pieces::default();
        for project in 0..3 {
            pieces.add_expected(name(project), 105, 1_000);
            pieces.add_events(name(project), 106, 2_000, 0);
        }
        for day in 100..104 {
            pieces.add_events(name(7), day, 120_000, 0);
            pieces.add_traces(name(7), day, 10_000);
        }
        pieces.add_expected(name(7), 110, 900_000);
        pieces.add_traces(name(7), 109, 900_000);
        pieces.add_traces(name(7), 110, 2_500_000);
        let batches = pieces.batches(&MONTH);
        let seen: Vec<_> = batches
            .iter()
            .map(|batch| {
                (
                    batch.projects.len(),
                    batch.days.clone(),
                    batch.rows,
                    batch.shares,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (1, 100..=101, 240_000, 1),
                (1, 102..=103, 240_000, 1),
                (1, 110..=110, 900_000, 3),
                (3, MONTH, 9_000, 1),
            ]
        );
        assert_eq!(batches[0].trace_days, 99..=102);
        assert_eq!(batches[2].trace_days, 110..=110);
        assert_eq!(pieces.count(), 11);
        assert_eq!(pieces.count_in(&batches[3]), 6);
    }

    #[test]
    fn a_moment_has_its_day() {
        let hour = 3_600_000;
        // The second day has 25 hours.
        let calendar = Calendar::new(100, vec![hour, 25 * hour, 50 * hour, 74 * hour]);
        assert_eq!(calendar.range(&(100..=100)), (hour, 25 * hour));
        assert_eq!(calendar.range(&(101..=102)), (25 * hour, 74 * hour));
        assert_eq!(calendar.day_of(hour * 1_000), 100);
        assert_eq!(calendar.day_of(25 * hour * 1_000 - 1), 100);
        assert_eq!(calendar.day_of(25 * hour * 1_000), 101);
        assert_eq!(calendar.day_of(50 * hour * 1_000), 102);
    }

    proptest! {
        #[test]
        fn every_piece_is_in_one_batch(
            sizes in proptest::collection::vec(
                (0_usize..200, 100_u16..130, 1_u64..600_000, 0_u64..900_000), 0..300),
        ) {
            let mut pieces = Pieces::default();
            for &(project, day, rows, traces) in &sizes {
                pieces.add_expected(name(project), day, rows);
                pieces.add_traces(name(project), day, traces);
            }
            let batches = pieces.batches(&MONTH);
            let mut seen = BTreeSet::new();
            for batch in &batches {
                for project in &batch.projects {
                    for day in pieces.rows[project].range(batch.days.clone()).map(|(day, _)| *day) {
                        prop_assert!(seen.insert((project.clone(), day)));
                    }
                }
                let one_piece = batch.days.start() == batch.days.end();
                prop_assert!(batch.rows <= BATCH_ROWS || one_piece);
                prop_assert!(batch.shares == 1 || one_piece);
            }
            prop_assert_eq!(seen.len() as u64, pieces.count());
        }
    }
}
