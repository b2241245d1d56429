//! Counters of a running process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::progress::stopwatch::{Stopwatch, Waiting};
use crate::trace_store::TraceStore;

/// The process's counters. Cheap to clone.
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

/// The month in progress, plus look-ups counted in earlier months.
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

/// Row counts of one source.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rows {
    pub(super) processed: u64,
    pub(super) written: u64,
    pub(super) without_trace: u64,
}

/// Trace store look-ups.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LookUps {
    pub(super) made: u64,
    pub(super) missed: u64,
}

/// The month in progress.
pub(crate) struct Job {
    /// `YYYYMM`
    pub partition: String,
    /// The target table, as `database.table`.
    pub target: String,
    /// Segments planned for the month.
    pub segments: u64,
    /// Segments finished before this process started.
    pub segments_before: u64,
    /// The month's trace store.
    pub store: Arc<TraceStore>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", self.partition)
    }
}

/// Marks a month as in progress until dropped.
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
    /// Marks a month as in progress.
    pub(crate) fn begin(&self, job: Job) -> AtWork {
        self.0
            .segments_done
            .store(job.segments_before, Ordering::Relaxed);
        lock(&self.0.now).job = Some(job);
        AtWork(self.clone())
    }

    /// Times a phase until the returned guard is dropped.
    pub(crate) fn phase(&self, name: &'static str) -> Waiting<'_, &'static str> {
        self.0.phases.waiting(name)
    }

    /// Counts finished rows of a source: rows processed, events acknowledged by the server, and
    /// rows without a trace.
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

    /// Counts trace rows loaded. Rows loaded again after a retry count again.
    pub(crate) fn loaded(&self, rows: u64) {
        self.0.trace_rows_loaded.fetch_add(rows, Ordering::Relaxed);
    }

    /// Counts rows turned into events. Rows enriched again after a retry count again.
    pub(crate) fn enriched(&self, rows: u64) {
        self.0.rows_enriched.fetch_add(rows, Ordering::Relaxed);
    }

    /// Trace rows loaded so far.
    pub(crate) fn trace_rows_loaded(&self) -> u64 {
        self.0.trace_rows_loaded.load(Ordering::Relaxed)
    }

    /// Rows turned into events so far.
    pub(crate) fn rows_enriched(&self) -> u64 {
        self.0.rows_enriched.load(Ordering::Relaxed)
    }

    /// Size on disk of the current month's trace store, in bytes.
    pub(crate) fn store_bytes(&self) -> u64 {
        let store = lock(&self.0.now)
            .job
            .as_ref()
            .map(|job| Arc::clone(&job.store));
        store.map_or(0, |store| store.disk_bytes())
    }

    /// Counts a finished segment.
    pub(crate) fn segment_done(&self) {
        self.0.segments_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a retry by the kind of error that caused it.
    pub(crate) fn retried(&self, kind: &str) {
        *lock(&self.0.retries).entry(kind.to_owned()).or_default() += 1;
    }

    /// Whether a month is in progress.
    pub(super) fn is_at_work(&self) -> bool {
        lock(&self.0.now).job.is_some()
    }
}

/// Locks, even after a panic elsewhere: the counts up to then are still right.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
