//! What all phases of one month's work read, and none of them changes.

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

/// One month's work: what was asked for, what there is, and what it may use.
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
    /// How long the process had been throttled before.
    throttled_before: ThrottledSeconds,
    pub(super) pool: BufferPool,
    pub(super) started: Instant,
    /// Whether another process has begun it.
    pub(super) resumed: bool,
    /// Whether only some rows are wanted, which the store names.
    pub(super) is_repair: bool,
}

impl Context {
    /// The work for a month that is inspected, in a state directory that is this process's own. The
    /// time in total is counted from `started`.
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

    /// The same for a repair, which another process may have begun.
    pub(crate) fn of_repair(self, resumed: bool) -> Self {
        Self {
            resumed,
            is_repair: true,
            ..self
        }
    }

    /// Removes the state, of which nothing is left to go on with.
    pub(crate) fn remove_state(&self) {
        let _ = std::fs::remove_dir_all(self.state.path());
    }

    /// The days that are done of the month.
    pub(super) fn days(&self) -> RangeInclusive<Day> {
        self.options.share().days()
    }

    /// The days whose traces are loaded.
    pub(super) fn days_of_traces(&self) -> RangeInclusive<Day> {
        self.options.days_of_traces()
    }

    /// What the query ids of all statements begin with by which a run writes.
    pub(super) fn query_prefix(&self, run_id: &str) -> String {
        let of_share = leftover_inserts::prefix_of(self.options.share());
        format!("{of_share}{run_id}-")
    }

    /// A moment of this machine's clock, in seconds since 1970, by the server's clock, in
    /// microseconds.
    pub(super) fn server_time(&self, seconds: u64) -> i64 {
        let microseconds = i64::try_from(seconds)
            .unwrap_or(0)
            .saturating_mul(1_000_000);
        microseconds.saturating_add(self.inspected.server.clock_ahead)
    }

    /// Waits while nothing may be begun.
    ///
    /// # Errors
    /// [`Kind::Interrupted`](crate::error::Kind) where the run is asked to end meanwhile.
    pub(super) async fn may_begin(&self) -> Result<(), Error> {
        let waiting = async {
            self.throttle.may_begin().await;
            Ok(())
        };
        unless_interrupted(&self.shutdown, waiting).await
    }

    /// How long this work has been throttled, by reason.
    pub(super) fn throttled(&self) -> ThrottledSeconds {
        since(&self.throttle.seconds(), &self.throttled_before)
    }

    /// What reads traces.
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

    /// What reads the month of the target, with the month's buffers.
    pub(super) fn target_month(&self) -> TargetMonth {
        let connection = self.connection.clone();
        TargetMonth {
            pool: self.pool.clone(),
            ..target_month(connection, &self.shutdown, &self.inspected, &self.options)
        }
    }

    /// Does something that leaves nothing half done, until the run is asked to end.
    ///
    /// # Errors
    /// Those of the work, or [`Kind::Interrupted`](crate::error::Kind).
    pub(super) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        unless_interrupted(&self.shutdown, work).await
    }
}

/// What reads the month of the target, with buffers of its own.
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
