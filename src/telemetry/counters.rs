//! What is counted while a process works.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::progress::stopwatch::{Stopwatch, Waiting};
use crate::trace_store::TraceStore;

/// The counters of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Telemetry(pub(super) Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    /// By source.
    pub(super) rows: Mutex<BTreeMap<&'static str, Rows>>,
    pub(super) trace_rows_loaded: AtomicU64,
    pub(super) rows_enriched: AtomicU64,
    pub(super) segments_done: AtomicU64,
    pub(super) phases: Stopwatch<&'static str>,
    pub(super) retries: Mutex<BTreeMap<String, u64>>,
    pub(super) now: Mutex<Now>,
}

/// The month that is worked on, and what those before it came to.
#[derive(Debug, Default)]
pub(super) struct Now {
    pub(super) job: Option<Job>,
    look_ups_before: LookUps,
}

impl Now {
    pub(super) fn look_ups(&self) -> LookUps {
        let (made, missed) = (self.job.as_ref()).map_or((0, 0), |job| job.store.look_ups());
        LookUps {
            made: self.look_ups_before.made + made,
            missed: self.look_ups_before.missed + missed,
        }
    }
}

/// What has become of the rows of a source.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rows {
    pub(super) processed: u64,
    pub(super) written: u64,
    pub(super) without_trace: u64,
}

/// Look-ups in the trace store.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LookUps {
    pub(super) made: u64,
    pub(super) missed: u64,
}

/// The month that is worked on.
pub(crate) struct Job {
    /// `YYYYMM`
    pub partition: String,
    /// `database.table` that is written to.
    pub target: String,
    /// Segments of the plan.
    pub segments: u64,
    /// Segments that were done before this process began.
    pub segments_before: u64,
    /// Its traces.
    pub store: Arc<TraceStore>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", self.partition)
    }
}

/// A month is worked on until this is dropped.
#[derive(Debug)]
pub(crate) struct AtWork(Telemetry);

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut now = lock(&self.0.0.now);
        *now = Now {
            look_ups_before: now.look_ups(),
            job: None,
        };
    }
}

impl Telemetry {
    /// A month is worked on from now on.
    pub(crate) fn begin(&self, job: Job) -> AtWork {
        self.0
            .segments_done
            .store(job.segments_before, Ordering::Relaxed);
        lock(&self.0.now).job = Some(job);
        AtWork(self.clone())
    }

    /// Counts the time of a phase, until what it gives is dropped.
    pub(crate) fn phase(&self, name: &'static str) -> Waiting<'_, &'static str> {
        self.0.phases.waiting(name)
    }

    /// Counts rows of a source that are done: how many became something, how many of them the server
    /// has acknowledged, and how many have no trace.
    pub(crate) fn done(
        &self,
        source: &'static str,
        processed: u64,
        written: u64,
        without_trace: u64,
    ) {
        let mut rows = lock(&self.0.rows);
        let rows = rows.entry(source).or_default();
        rows.processed += processed;
        rows.written += written;
        rows.without_trace += without_trace;
    }

    /// Counts rows of traces that were loaded, again where that had to be repeated.
    pub(crate) fn loaded(&self, rows: u64) {
        self.0.trace_rows_loaded.fetch_add(rows, Ordering::Relaxed);
    }

    /// Counts rows that were made into events, again where that had to be repeated.
    pub(crate) fn enriched(&self, rows: u64) {
        self.0.rows_enriched.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows of traces that were loaded so far.
    pub(crate) fn trace_rows_loaded(&self) -> u64 {
        self.0.trace_rows_loaded.load(Ordering::Relaxed)
    }

    /// Rows that were made into events so far.
    pub(crate) fn rows_enriched(&self) -> u64 {
        self.0.rows_enriched.load(Ordering::Relaxed)
    }

    /// The trace store of the month that is worked on, in bytes on disk.
    pub(crate) fn store_bytes(&self) -> u64 {
        let store = lock(&self.0.now)
            .job
            .as_ref()
            .map(|job| Arc::clone(&job.store));
        store.map_or(0, |store| store.disk_bytes())
    }

    /// Counts a segment that is done.
    pub(crate) fn segment_done(&self) {
        self.0.segments_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts something that is tried again, after an error of that kind.
    pub(crate) fn retried(&self, kind: &str) {
        *lock(&self.0.retries).entry(kind.to_owned()).or_default() += 1;
    }

    /// Whether a month is worked on.
    pub(super) fn is_at_work(&self) -> bool {
        lock(&self.0.now).job.is_some()
    }
}

/// What was counted before somebody panicked is still right.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
