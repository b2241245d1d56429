//! How a run went over time: a bounded series of measurements, kept in the state directory for the
//! charts of a report.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Measurements that are kept, over all processes that have worked on the month.
const MOST_POINTS: usize = 512;
/// Seconds between two measurements, until there are too many of them.
const FIRST_INTERVAL: f64 = 1.0;
/// The same of a run of many years: what a file says beyond that was not written by a run.
const LAST_INTERVAL: f64 = 1e7;

/// What was measured at a moment. Everything but memory and disk counts from the beginning of the
/// process's work on the month.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Point {
    /// Seconds since then.
    pub seconds: f64,
    /// Rows of traces that were loaded.
    pub trace_rows: u64,
    /// Rows that became events, those of repeated work included.
    pub rows: u64,
    /// Seconds that segments have waited for the server's inserts, over all of them.
    pub insert_seconds: f64,
    /// Seconds by the clock for which it went slower than it could, by reason.
    pub throttled_seconds: BTreeMap<String, f64>,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// The trace store on disk, in bytes.
    pub store_bytes: u64,
}

/// The work of one process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stretch {
    /// When it began, in seconds since 1970.
    pub began_at: u64,
    /// What was measured, in the order of time.
    pub points: Vec<Point>,
}

/// The work of all processes, the first one first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    /// Seconds between two measurements, at least.
    interval: f64,
    /// Processes whose measurements had to make room for later ones.
    pub dropped: u64,
    /// The others.
    pub stretches: Vec<Stretch>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            interval: FIRST_INTERVAL,
            dropped: 0,
            stretches: Vec::new(),
        }
    }
}

impl History {
    /// What is kept in a file; nothing where there is none, or where it is not to be read: it is only
    /// there to be looked at, and no reason not to work.
    pub(crate) fn read(path: &Path) -> Self {
        let read = std::fs::read(path).ok();
        let history: Option<Self> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        history
            .filter(|history| (FIRST_INTERVAL..=LAST_INTERVAL).contains(&history.interval))
            .unwrap_or_default()
    }

    /// Seconds between two measurements.
    pub(crate) fn interval(&self) -> f64 {
        self.interval
    }

    /// A process begins to work.
    pub(crate) fn begin(&mut self, began_at: u64) {
        self.stretches.push(Stretch {
            began_at,
            points: vec![Point::default()],
        });
        self.make_room();
    }

    /// The process that began last has measured something.
    pub(crate) fn add(&mut self, point: Point) {
        if let Some(stretch) = self.stretches.last_mut() {
            stretch.points.push(point);
            self.make_room();
        }
    }

    /// The process that began last ends with this. Where that comes soon after what it measured before, it
    /// takes its place: rates of an instant say nothing.
    pub(crate) fn end(&mut self, point: Point) {
        self.add(point);
        let least = self.interval / 2.0;
        if let Some(stretch) = self.stretches.last_mut()
            && let [.., _, before, last] = &stretch.points[..]
            && last.seconds - before.seconds < least
        {
            stretch.points.remove(stretch.points.len() - 2);
        }
    }

    fn points(&self) -> usize {
        let points = self.stretches.iter().map(|stretch| stretch.points.len());
        points.sum()
    }

    /// Keeps every other measurement where there are too many, and fewer processes where there is
    /// hardly more than the beginning and the end of each.
    fn make_room(&mut self) {
        if self.points() <= MOST_POINTS {
            return;
        }
        self.interval *= 2.0;
        for stretch in &mut self.stretches {
            let last = stretch.points.len().saturating_sub(1);
            let mut index = 0..;
            stretch.points.retain(|_| {
                index
                    .next()
                    .is_none_or(|index| index % 2 == 0 || index == last)
            });
        }
        while self.points() > MOST_POINTS / 4 * 3 && self.stretches.len() > 1 {
            self.stretches.remove(0);
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seconds: u32) -> Point {
        Point {
            seconds: f64::from(seconds),
            rows: u64::from(seconds) * 10,
            ..Point::default()
        }
    }

    #[test]
    fn a_run_of_any_length_is_kept_in_so_many_measurements_with_its_end() {
        let mut history = History::default();
        history.begin(1_700_000_000);
        for second in 1..=100_000 {
            history.add(point(second));
            assert!(history.points() <= MOST_POINTS);
        }
        let points = &history.stretches[0].points;
        assert!(points.len() >= MOST_POINTS / 4, "{}", points.len());
        assert_eq!(points.first(), Some(&point(0)));
        assert_eq!(points.last(), Some(&point(100_000)));
        assert!(points.is_sorted_by(|before, after| before.seconds < after.seconds));
        assert!(history.interval() > FIRST_INTERVAL);
    }

    #[test]
    fn of_a_run_that_was_begun_very_often_the_last_processes_are_kept() {
        let mut history = History::default();
        for process in 0..3_000 {
            history.begin(process);
            history.add(point(1));
            assert!(history.points() <= MOST_POINTS);
        }
        assert_eq!(
            history.stretches.last().map(|stretch| stretch.began_at),
            Some(2_999)
        );
        assert_eq!(history.dropped + history.stretches.len() as u64, 3_000);
    }

    #[test]
    fn an_end_that_follows_at_once_makes_no_measurement_of_its_own() {
        let mut history = History::default();
        history.begin(1);
        history.end(point(0));
        assert_eq!(history.stretches[0].points.len(), 2);
        history.begin(2);
        history.add(point(1));
        let end = Point {
            seconds: 1.25,
            ..point(9)
        };
        history.end(end.clone());
        assert_eq!(history.stretches[1].points, [point(0), end]);
        history.begin(3);
        history.add(point(1));
        history.end(point(2));
        assert_eq!(history.stretches[2].points.len(), 3);
    }

    #[test]
    fn what_cannot_be_read_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("history.json");
        assert_eq!(History::read(&file), History::default());
        for text in [
            "",
            "{",
            "[1]",
            r#"{"interval": 0}"#,
            r#"{"interval": 1e300}"#,
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(History::read(&file), History::default(), "{text}");
        }
        let mut history = History::default();
        history.begin(7);
        history.add(point(3));
        crate::state::report::keep(&history, &file).unwrap();
        assert_eq!(History::read(&file), history);
    }
}
