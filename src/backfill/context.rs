//! What all phases of a month's work share and never change.

use std::ops::RangeInclusive;
use std::time::Instant;

use super::guard::leftover_inserts;
use super::guard::target::TargetMonth;
use super::load::versions::TraceSource;
use crate::cli::options::Options;
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::memory::buffer_pool::BufferPool;
use crate::partition::Day;
use crate::progress::Display;
use crate::session::{Session, unless_interrupted};
use crate::shutdown::Shutdown;
use crate::state::directory::StateDir;
use crate::telemetry::Telemetry;
use crate::throttle::{Throttle, ThrottledSeconds, since};

/// A month's work: options, inspected tables and resources.
pub(crate) struct Context {
    pub(super) options: Options,
    pub(super) connection: Connection,
    pub(super) inspected: Inspected,
    pub(super) state: StateDir,
    pub(super) display: Display,
    pub(super) shutdown: Shutdown,
    pub(super) retries: Retries,
    pub(super) throttle: Throttle,
    pub(super) telemetry: Telemetry,
    /// Time the process was throttled before this work.
    throttled_before: ThrottledSeconds,
    pub(super) pool: BufferPool,
    pub(super) started: Instant,
    /// Whether another process started it.
    pub(super) resumed: bool,
    /// Whether only the rows named in the store are written.
    pub(super) is_repair: bool,
}

impl Context {
    /// The work for an inspected month, in a state directory held by this process. Total time
    /// counts from `started`.
    pub(crate) fn new(
        session: &Session,
        options: Options,
        inspected: Inspected,
        retries: Retries,
        state: StateDir,
        started: Instant,
    ) -> Self {
        Self {
            connection: session.connection.with_retries(&retries),
            display: session.display.clone(),
            shutdown: session.shutdown.clone(),
            throttle: session.throttle.clone(),
            telemetry: session.telemetry.clone(),
            throttled_before: session.throttle.seconds(),
            pool: options.budget.pool(),
            resumed: false,
            is_repair: false,
            options,
            inspected,
            state,
            retries,
            started,
        }
    }

    /// Makes it a repair, possibly started by another process.
    pub(crate) fn of_repair(self, resumed: bool) -> Self {
        Self {
            resumed,
            is_repair: true,
            ..self
        }
    }

    /// Deletes the state once nothing is left to continue.
    pub(crate) fn remove_state(&self) {
        let _ = std::fs::remove_dir_all(self.state.path());
    }

    /// The days of the month to write.
    pub(super) fn days(&self) -> RangeInclusive<Day> {
        self.options.share().days()
    }

    /// The days whose traces are loaded.
    pub(super) fn days_of_traces(&self) -> RangeInclusive<Day> {
        self.options.days_of_traces()
    }

    /// Query id prefix of a run's writing statements.
    pub(super) fn query_prefix(&self, run_id: &str) -> String {
        let of_share = leftover_inserts::prefix_of(self.options.share());
        format!("{of_share}{run_id}-")
    }

    /// Converts seconds since 1970 on this machine's clock to microseconds on the server's.
    pub(super) fn server_time(&self, seconds: u64) -> i64 {
        let microseconds = i64::try_from(seconds)
            .unwrap_or(0)
            .saturating_mul(1_000_000);
        microseconds.saturating_add(self.inspected.server.clock_ahead)
    }

    /// Waits until a segment may start.
    ///
    /// # Errors
    /// [`Kind::Interrupted`](crate::error::Kind) on a signal.
    pub(super) async fn may_begin(&self) -> Result<(), Error> {
        let waiting = async {
            self.throttle.may_begin().await;
            Ok(())
        };
        unless_interrupted(&self.shutdown, waiting).await
    }

    /// Time this work has been throttled, by reason.
    pub(super) fn throttled(&self) -> ThrottledSeconds {
        since(&self.throttle.seconds(), &self.throttled_before)
    }

    /// Reads traces.
    pub(super) fn trace_source(&self) -> TraceSource<'_> {
        TraceSource {
            connection: &self.connection,
            table: &self.inspected.traces,
            mapping: &self.inspected.mapping,
            budget: self.options.budget,
            pool: self.pool.clone(),
            most_rows: None,
        }
    }

    /// Reads the month's target rows, sharing the month's buffers.
    pub(super) fn target_month(&self) -> TargetMonth {
        let connection = self.connection.clone();
        TargetMonth {
            pool: self.pool.clone(),
            ..target_month(connection, &self.shutdown, &self.inspected, &self.options)
        }
    }

    /// Runs work that leaves nothing half done, until a signal.
    ///
    /// # Errors
    /// The error of the work, or [`Kind::Interrupted`](crate::error::Kind) on a signal.
    pub(super) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        unless_interrupted(&self.shutdown, work).await
    }
}

/// Reads the month's target rows, with its own buffers.
pub(crate) fn target_month(
    connection: Connection,
    shutdown: &Shutdown,
    inspected: &Inspected,
    options: &Options,
) -> TargetMonth {
    TargetMonth {
        connection,
        table: inspected.target.clone(),
        start_type: inspected.start_type(),
        share: options.share(),
        max_block_bytes: options.budget.max_block_bytes,
        pool: options.budget.pool(),
        shutdown: shutdown.clone(),
    }
}
