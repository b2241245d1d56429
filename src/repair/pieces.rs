//! Stores verify's findings and divides them into segments.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::inspect::segments::{Boundary, Segment};
use crate::mapping::Source;
use crate::memory::numbers::short;
use crate::partition::Day;
use crate::trace_store::{StoreError, TraceStore, WantedDay, WantedRow};
use crate::verify::{Findings, FoundRow, Kind, Unlisted};

/// Rows per segment: their ids take several hundred kilobytes of SQL.
const SEGMENT_ROWS: usize = 4_000;
/// Days of projects per segment, each a separate condition.
const SEGMENT_DAYS: usize = 64;

/// Amount to write, as far as rows were checked individually.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Rows.
    pub rows: u64,
    /// Rows in days that are rewritten as a whole.
    pub rows_of_whole_days: u64,
    /// Rows missing only in the view's table.
    pub only_missing_in_core: u64,
    /// Rows wanted both as a trace's and as an observation's, since their source is unknown.
    pub of_either: u64,
}

/// Stores findings.
pub(super) struct Keeper {
    store: Arc<TraceStore>,
    wanted: Wanted,
    /// The last day stored for the view's table, to skip repeats.
    last_core: Option<(Vec<u8>, Day)>,
    failed: Option<StoreError>,
}

impl Findings for Keeper {
    fn found(&mut self, row: &FoundRow<'_>) {
        let kept = match row.kind {
            Kind::Missing | Kind::Different | Kind::Stale => self.keep_row(row, row.source),
            Kind::Experiment | Kind::DifferentInCore => self.keep_event(row),
            Kind::MissingInCore => self.keep_core(row),
            _ => Ok(()),
        };
        self.note(kept);
    }

    fn found_unlisted(&mut self, what: Unlisted, project: &[u8], day: Day, rows: u64) {
        let day_of = match what {
            Unlisted::Events => WantedDay::Rows,
            Unlisted::RootSpans => WantedDay::Roots,
            Unlisted::InCore => WantedDay::Core,
        };
        match what {
            Unlisted::InCore => self.wanted.only_missing_in_core += rows,
            _ => self.wanted.rows_of_whole_days += rows,
        }
        let kept = self.store.want_day(day_of, project, day);
        self.note(kept);
    }
}

impl Keeper {
    /// Stores findings in `store`.
    pub(super) fn new(store: Arc<TraceStore>) -> Self {
        Self {
            store,
            wanted: Wanted::default(),
            last_core: None,
            failed: None,
        }
    }

    /// Stores an event that was not compared with its source. A root span's id may also be an
    /// observation's, so both are requested; the wrong source has no such row or leaves it to the
    /// other.
    fn keep_event(&mut self, row: &FoundRow<'_>) -> Result<(), StoreError> {
        if row.source == Source::Traces {
            self.wanted.of_either += 1;
            self.keep_row(row, Source::Observations)?;
        }
        self.keep_row(row, row.source)
    }

    fn keep_row(&mut self, row: &FoundRow<'_>, source: Source) -> Result<(), StoreError> {
        self.wanted.rows += 1;
        self.store.want_row(&WantedRow {
            source: source as u8,
            project: row.key.project.to_vec(),
            day: row.day,
            trace_id: row.key.trace_id.to_vec(),
            span_id: row.key.span_id.to_vec(),
        })
    }

    fn keep_core(&mut self, row: &FoundRow<'_>) -> Result<(), StoreError> {
        self.wanted.only_missing_in_core += 1;
        let day = (row.key.project.to_vec(), row.day);
        if self.last_core.as_ref() == Some(&day) {
            return Ok(());
        }
        let kept = self.store.want_day(WantedDay::Core, &day.0, day.1);
        self.last_core = Some(day);
        kept
    }

    fn note(&mut self, kept: Result<(), StoreError>) {
        if let Err(error) = kept {
            self.failed.get_or_insert(error);
        }
    }

    /// Finishes and returns the amount to write and its segments.
    ///
    /// # Errors
    /// [`StoreError`] if anything could not be stored.
    pub(super) fn finish(self) -> Result<(Wanted, Vec<Segment>), StoreError> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok((self.wanted, segments(&self.store)?)),
        }
    }
}

/// Divides the stored rows into segments and records each segment's rows in the store.
fn segments(store: &TraceStore) -> Result<Vec<Segment>, StoreError> {
    type Days = BTreeSet<(Vec<u8>, Day)>;
    let whole: [Days; 2] = [
        store.wanted_days(WantedDay::Rows)?.into_iter().collect(),
        store.wanted_days(WantedDay::Roots)?.into_iter().collect(),
    ];
    let is_of_whole_day = |row: &WantedRow| {
        let days = match row.source == Source::Traces as u8 {
            true => &whole[1],
            false => &whole[0],
        };
        days.contains(&(row.project.clone(), row.day))
    };
    let mut division = Division {
        store,
        segments: Vec::new(),
        piece: None,
    };
    store.for_each_wanted(|row| match is_of_whole_day(&row) {
        true => division.cut(),
        false => division.add(row),
    })?;
    division.cut()?;
    let mut segments = division.segments;
    for (source, days) in Source::BOTH.into_iter().zip(&whole) {
        for (project, day) in days {
            segments.push(Segment {
                number: short(segments.len()),
                source,
                from: boundary(project, *day),
                to: boundary(project, *day + 1),
                rows: 0,
            });
        }
    }
    Ok(segments)
}

/// The position before a project's day, for all types.
fn boundary(project: &[u8], day: Day) -> Option<Boundary> {
    Some(Boundary {
        project_id: ByteBuf::from(project),
        observation_type: ByteBuf::new(),
        day,
        id: None,
    })
}

struct Division<'a> {
    store: &'a TraceStore,
    segments: Vec<Segment>,
    piece: Option<Piece>,
}

/// Consecutive rows.
struct Piece {
    first: WantedRow,
    last: WantedRow,
    rows: usize,
    project_days: usize,
    days: (Day, Day),
}

impl Division<'_> {
    fn add(&mut self, row: WantedRow) -> Result<(), StoreError> {
        if let Some(piece) = &mut self.piece {
            let is_same_day = (&piece.last.project, piece.last.day) == (&row.project, row.day);
            let project_days = piece.project_days + usize::from(!is_same_day);
            if piece.first.source == row.source
                && piece.rows < SEGMENT_ROWS
                && project_days <= SEGMENT_DAYS
            {
                piece.rows += 1;
                piece.project_days = project_days;
                piece.days = (piece.days.0.min(row.day), piece.days.1.max(row.day));
                piece.last = row;
                return Ok(());
            }
        }
        self.cut()?;
        self.piece = Some(Piece {
            first: row.clone(),
            rows: 1,
            project_days: 1,
            days: (row.day, row.day),
            last: row,
        });
        Ok(())
    }

    fn cut(&mut self) -> Result<(), StoreError> {
        let Some(piece) = self.piece.take() else {
            return Ok(());
        };
        let number = short(self.segments.len());
        self.store.put_piece(number, &piece.first, &piece.last)?;
        self.segments.push(Segment {
            number,
            source: match piece.first.source == Source::Traces as u8 {
                true => Source::Traces,
                false => Source::Observations,
            },
            from: boundary(&piece.first.project, piece.days.0),
            to: boundary(&piece.last.project, piece.days.1 + 1),
            rows: piece.rows as u64,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(project: &str, day: Day, span: usize) -> WantedRow {
        WantedRow {
            source: 0,
            project: project.as_bytes().to_vec(),
            day,
            trace_id: b"t".to_vec(),
            span_id: format!("{span:06}").into_bytes(),
        }
    }

    #[test]
    fn each_row_is_in_one_segment_and_segments_stay_small() {
        let directory = tempfile::tempdir().unwrap();
        let store = TraceStore::open(directory.path(), 1 << 20).unwrap();
        for span in 0..SEGMENT_ROWS + 10 {
            store.want_row(&row("a", 3, span)).unwrap();
        }
        for day in 0..100 {
            store.want_row(&row("b", day, 1)).unwrap();
        }
        store.want_day(WantedDay::Rows, b"b", 50).unwrap();
        store.want_day(WantedDay::Roots, b"b", 51).unwrap();
        let segments = segments(&store).unwrap();
        let mut rows = 0;
        for segment in &segments {
            let of_segment = store.rows_of_piece(segment.number).unwrap();
            let of_segment = of_segment.map_or(0, |rows| rows.len() as u64);
            assert_eq!(of_segment, segment.rows);
            assert!(of_segment <= SEGMENT_ROWS as u64);
            rows += of_segment;
        }
        assert_eq!(rows, SEGMENT_ROWS as u64 + 10 + 99);
        let whole = segments.iter().filter(|segment| segment.rows == 0);
        let sources: Vec<Source> = whole.map(|segment| segment.source).collect();
        assert_eq!(sources, [Source::Observations, Source::Traces]);
    }
}
