//! The measurements of a run over time: a bounded series, kept in the state directory for the charts of
//! the report.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Maximum measurements kept, over all processes that have worked on the month.
const MOST_POINTS: usize = 512;
/// The share reserved for the latest process, however many came before it.
const MOST_OF_LAST: usize = MOST_POINTS / 2;
/// Seconds between two measurements of a process, until there are too many.
const FIRST_INTERVAL: f64 = 1.0;
/// The largest plausible interval in seconds, of a run of many years. A file with a larger one was not
/// written by a run.
const LAST_INTERVAL: f64 = 1e7;

/// One measurement. Everything except memory and disk counts from the start of the process's work on the
/// month.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Point {
    /// Seconds since that start.
    pub seconds: f64,
    /// Of these, the seconds in which nothing was under way because no new work was allowed.
    pub still_seconds: f64,
    /// Rows of traces loaded.
    pub trace_rows: u64,
    /// Rows that became events, including repeated work.
    pub rows: u64,
    /// Seconds spent waiting for inserts, summed over all segments.
    pub insert_seconds: f64,
    /// Wall-clock seconds during which the run was throttled, by reason.
    pub throttled_seconds: BTreeMap<String, f64>,
    /// Peak resident memory since the previous point, in bytes.
    pub resident_bytes: u64,
    /// Peak size of the trace store on disk since the previous point, in bytes.
    pub store_bytes: u64,
}

impl Point {
    /// Merges two points: the later one, with the peaks of both.
    fn followed_by(&self, later: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(later.resident_bytes),
            store_bytes: self.store_bytes.max(later.store_bytes),
            ..later
        }
    }
}

/// The work of one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Stretch {
    /// When it started, in seconds since 1970.
    pub began_at: u64,
    /// Minimum seconds between two points, except before the last one.
    interval: f64,
    /// Its measurements in order of time.
    pub points: Vec<Point>,
}

impl Default for Stretch {
    fn default() -> Self {
        Self {
            began_at: 0,
            interval: FIRST_INTERVAL,
            points: vec![Point::default()],
        }
    }
}

impl Stretch {
    /// Seconds at work, without those in which it stood still.
    fn seconds_at_work(&self) -> f64 {
        let last = self.points.last();
        last.map_or(0.0, |last| last.seconds - last.still_seconds)
    }

    /// Adds a point. Replaces the last one if that came too soon after its predecessor.
    fn add(&mut self, point: Point) {
        match &mut self.points[..] {
            [.., before, last] if last.seconds - before.seconds < self.interval => {
                *last = last.followed_by(point);
            }
            _ => self.points.push(point),
        }
    }

    /// Halves the number of points.
    fn thin(&mut self) {
        self.interval *= 2.0;
        for point in std::mem::take(&mut self.points) {
            self.add(point);
        }
    }
}

/// The work of all processes, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    /// Processes whose measurements were dropped to make room.
    pub dropped: u64,
    /// Seconds that these processes were at work.
    pub dropped_seconds: f64,
    /// The other processes.
    pub stretches: Vec<Stretch>,
}

impl History {
    /// Reads a file. Empty if the file is missing or unreadable: it only serves the charts and must not stop
    /// a run.
    pub(crate) fn read(path: &Path) -> Self {
        let read = std::fs::read(path).ok();
        let history: Option<Self> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let is_usable =
            |stretch: &Stretch| (FIRST_INTERVAL..=LAST_INTERVAL).contains(&stretch.interval);
        history
            .filter(|history| history.stretches.iter().all(is_usable))
            .unwrap_or_default()
    }

    /// Seconds between two measurements of the latest process.
    pub(crate) fn interval(&self) -> f64 {
        let last = self.stretches.last();
        last.map_or(FIRST_INTERVAL, |last| last.interval)
    }

    /// Seconds that all processes were at work.
    pub(crate) fn seconds_at_work(&self) -> f64 {
        let stretches = self.stretches.iter().map(Stretch::seconds_at_work);
        self.dropped_seconds + stretches.sum::<f64>()
    }

    /// Adds a process that starts to work.
    pub(crate) fn begin(&mut self, began_at: u64) {
        self.stretches.push(Stretch {
            began_at,
            ..Stretch::default()
        });
        self.make_room();
    }

    /// Adds a measurement of the latest process.
    pub(crate) fn add(&mut self, point: Point) {
        if let Some(stretch) = self.stretches.last_mut() {
            stretch.add(point);
            self.make_room();
        }
    }

    /// Adds the last measurement of the latest process. If it comes soon after the previous one, it replaces
    /// that: a rate over an instant means nothing.
    pub(crate) fn end(&mut self, point: Point) {
        self.add(point);
        let Some(stretch) = self.stretches.last_mut() else {
            return;
        };
        if let [.., _, before, last] = &mut stretch.points[..]
            && last.seconds - before.seconds < stretch.interval / 2.0
        {
            *before = before.followed_by(std::mem::take(last));
            stretch.points.pop();
        }
    }

    /// Thins points if there are too many: those of the latest process if it exceeds its share, else those of
    /// the earlier process with most points. If each of these has only its two ends left, drops the oldest.
    fn make_room(&mut self) {
        let points = |stretches: &[Stretch]| -> usize {
            let points = stretches.iter().map(|stretch| stretch.points.len());
            points.sum()
        };
        while points(&self.stretches) > MOST_POINTS
            && let [earlier @ .., last] = &mut self.stretches[..]
        {
            let longest = earlier
                .iter_mut()
                .max_by_key(|stretch| stretch.points.len());
            match longest.filter(|stretch| stretch.points.len() > 2) {
                _ if last.points.len() > MOST_OF_LAST => last.thin(),
                Some(longest) => longest.thin(),
                None => {
                    self.dropped_seconds += self.stretches.remove(0).seconds_at_work();
                    self.dropped += 1;
                }
            }
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

    fn points(history: &History) -> usize {
        let points = history.stretches.iter().map(|stretch| stretch.points.len());
        points.sum()
    }

    #[test]
    fn a_run_of_any_length_is_kept_in_so_many_measurements_with_its_end() {
        let mut history = History::default();
        history.begin(1_700_000_000);
        for second in 1..=100_000 {
            history.add(point(second));
            assert!(points(&history) <= MOST_POINTS);
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
            assert!(points(&history) <= MOST_POINTS);
        }
        assert_eq!(
            history.stretches.last().map(|stretch| stretch.began_at),
            Some(2_999)
        );
        assert_eq!(history.dropped + history.stretches.len() as u64, 3_000);
        assert_eq!(history.seconds_at_work(), 3_000.0);
    }

    #[test]
    fn how_often_a_process_measures_does_not_depend_on_those_before_it() {
        let mut history = History::default();
        history.begin(0);
        (1..=10_000).for_each(|second| history.add(point(second)));
        for process in 1..500 {
            history.begin(process);
            history.add(point(1));
        }
        history.begin(500);
        (1..=200).for_each(|second| history.add(point(second)));
        assert_eq!(history.interval(), FIRST_INTERVAL);
        assert_eq!(history.stretches.last().unwrap().points.len(), 201);
        assert!(points(&history) <= MOST_POINTS);
        assert_eq!(history.seconds_at_work(), 10_699.0);
    }

    #[test]
    fn the_peaks_of_memory_and_store_outlast_all_thinning() {
        let mut history = History::default();
        history.begin(0);
        let peak = Point {
            resident_bytes: 9_000,
            store_bytes: 8_000,
            ..point(777)
        };
        (1..777).for_each(|second| history.add(point(second)));
        history.add(peak);
        (778..=20_000).for_each(|second| history.add(point(second)));
        history.begin(1);
        history.add(Point {
            resident_bytes: 7_000,
            ..point(1)
        });
        history.end(Point {
            seconds: 1.1,
            ..point(1)
        });
        let most = |bytes: fn(&Point) -> u64| {
            let stretches = history.stretches.iter();
            let most = stretches.map(|stretch| stretch.points.iter().map(bytes).max().unwrap());
            most.collect::<Vec<_>>()
        };
        assert_eq!(most(|point| point.resident_bytes), [9_000, 7_000]);
        assert_eq!(most(|point| point.store_bytes), [8_000, 0]);
    }

    #[test]
    fn what_is_measured_too_soon_is_the_last_point_until_there_is_a_later_one() {
        let mut history = History::default();
        history.begin(0);
        history.add(point(10));
        history.stretches[0].interval = 64.0;
        for second in (20..=90).step_by(10) {
            history.add(point(second));
            assert_eq!(history.stretches[0].points.last(), Some(&point(second)));
        }
        assert_eq!(
            history.stretches[0].points,
            [point(0), point(70), point(90)]
        );
    }

    #[test]
    fn time_for_which_nothing_might_be_begun_is_no_time_at_work() {
        let mut history = History::default();
        history.begin(0);
        history.add(Point {
            still_seconds: 40.0,
            ..point(60)
        });
        history.begin(1);
        history.add(point(5));
        assert_eq!(history.seconds_at_work(), 25.0);
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
            "[true]",
            r#"{"stretches": [{"interval": 0}]}"#,
            r#"{"stretches": [{"interval": 1e300}]}"#,
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
