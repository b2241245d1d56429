//! Records measurements during the work, for the charts of a report.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::context::Context;
use super::run_report::by_name;
use crate::memory::resident_bytes;
use crate::partition::seconds_since_1970;
use crate::state::history::{History, Point};
use crate::state::report;
use crate::telemetry::Telemetry;
use crate::throttle::{Throttle, ThrottledSeconds, since};

/// Maximum interval between measurements. A killed process loses what it measured since the last
/// one.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// Measures until told to stop.
pub(super) struct Recorder {
    end: oneshot::Sender<u64>,
    task: JoinHandle<History>,
}

impl Recorder {
    /// Starts measuring, continuing the measurements of earlier processes.
    pub(super) fn begin(context: &Context) -> Self {
        let file = (!context.options.dry_run).then(|| context.state.history());
        let mut history = match context.resumed {
            true => History::read(&context.state.history()),
            false => History::default(),
        };
        history.begin(seconds_since_1970());
        let meter = Meter::new(context);
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(record(meter, history, file, ended));
        Self { end, task }
    }

    /// Stops, and returns all measurements. `store_bytes` is the final size of the trace store,
    /// which is gone by now.
    pub(super) async fn end(self, store_bytes: u64) -> History {
        // It only stops early if it failed.
        let _ = self.end.send(store_bytes);
        self.task.await.unwrap_or_default()
    }
}

/// What is measured, since this process started on the month.
struct Meter {
    began: Instant,
    telemetry: Telemetry,
    throttle: Throttle,
    trace_rows: u64,
    rows: u64,
    insert_seconds: f64,
    still_seconds: f64,
    throttled: ThrottledSeconds,
}

impl Meter {
    fn new(context: &Context) -> Self {
        let (telemetry, throttle) = (context.telemetry.clone(), context.throttle.clone());
        Self {
            began: Instant::now(),
            trace_rows: telemetry.trace_rows_loaded(),
            rows: telemetry.rows_enriched(),
            insert_seconds: throttle.insert_seconds(),
            still_seconds: throttle.still_seconds(),
            throttled: throttle.seconds(),
            telemetry,
            throttle,
        }
    }

    fn measure(&self) -> Point {
        Point {
            seconds: self.began.elapsed().as_secs_f64(),
            still_seconds: self.throttle.still_seconds() - self.still_seconds,
            trace_rows: self.telemetry.trace_rows_loaded() - self.trace_rows,
            rows: self.telemetry.rows_enriched() - self.rows,
            insert_seconds: self.throttle.insert_seconds() - self.insert_seconds,
            throttled_seconds: by_name(since(&self.throttle.seconds(), &self.throttled)),
            resident_bytes: resident_bytes().unwrap_or(0),
            store_bytes: self.telemetry.store_bytes(),
        }
    }
}

async fn record(
    meter: Meter,
    mut history: History,
    file: Option<PathBuf>,
    mut ended: oneshot::Receiver<u64>,
) -> History {
    let mut kept = Instant::now();
    loop {
        let end = tokio::select! {
            () = tokio::time::sleep(until_next(&history)) => None,
            end = &mut ended => Some(end.unwrap_or(0)),
        };
        let point = meter.measure();
        match end {
            Some(store_bytes) => history.end(Point {
                store_bytes,
                ..point
            }),
            None => history.add(point),
        }
        if end.is_some() || kept.elapsed() >= KEEP_EVERY {
            kept = Instant::now();
            keep(&history, file.as_deref());
        }
        if end.is_some() {
            return history;
        }
    }
}

/// Time until the next measurement.
fn until_next(history: &History) -> Duration {
    Duration::from_secs_f64(history.interval()).min(KEEP_EVERY)
}

/// Saves the measurements. A failure only shortens the charts; the work itself reports problems
/// with the disk.
fn keep(history: &History, file: Option<&Path>) {
    if let Some(file) = file {
        let _ = tokio::task::block_in_place(|| report::keep(history, file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_any_length_measures_as_often_as_that_is_written_down() {
        let mut history = History::default();
        history.begin(0);
        assert_eq!(until_next(&history), Duration::from_secs(1));
        for second in 1..=20_000 {
            history.add(Point {
                seconds: f64::from(second),
                ..Point::default()
            });
        }
        assert!(history.interval() > 60.0);
        assert_eq!(until_next(&history), KEEP_EVERY);
    }
}
