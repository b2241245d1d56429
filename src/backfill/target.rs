//! The target before, while and after it is written: which rows it has, what is left to Langfuse,
//! and that the table its view fills has what it has.

use std::collections::BTreeSet;
use std::sync::Arc;

use indicatif::HumanCount;

use super::error::WorkError;
use super::guard::core_view::{CoreView, Whose};
use super::guard::leftover_inserts;
use super::guard::observation_versions::VersionScan;
use super::guard::recovery::Recovery;
use super::guard::roots::RootScan;
use super::guard::target::{Extent, Target};
use super::job::{Job, work_failed};
use super::load::trace_changes::TraceChanges;
use crate::cli::options::Options;
use crate::clickhouse::{Connection, TableInfo};
use crate::error::Error;
use crate::inspect::Inspected;
use crate::mapping::Source;
use crate::partition::Partition;
use crate::partition::seconds_since_1970;
use crate::progress::Phase;
use crate::progress::words::moment;
use crate::session::Session;
use crate::shutdown::Shutdown;
use crate::state::counts::{OwnRows, TargetState};
use crate::trace_store::{Against, TraceStore};

/// So long before a run began, in microseconds, rows may have changed that Langfuse has not
/// written as events yet.
const LIVE_PATH: i64 = 3_600_000_000;

/// Makes sure that no other run writes to this month of the target: its rows would not be known.
///
/// # Errors
/// [`Error::Failed`] with what to do.
pub(crate) async fn require_alone(
    session: &Session,
    target: &TableInfo,
    partition: Partition,
) -> Result<(), Error> {
    let alone = alone(&session.connection, target, partition);
    session.unless_interrupted(alone).await
}

async fn alone(
    connection: &Connection,
    target: &TableInfo,
    partition: Partition,
) -> Result<(), Error> {
    let others = leftover_inserts::others_are_at_work(connection, target, partition).await;
    let doing = "waiting for the inserts of another run to end failed";
    match others.map_err(|error| Error::failed(doing, error))? {
        false => Ok(()),
        true => Err(Error::Failed(format!(
            "another events-backfill, with another state directory, is writing {partition} into \
             {}.{}: wait until it has ended, or stop it",
            target.database, target.name
        ))),
    }
}

/// What reads the month of the target, with buffers of its own.
pub(crate) fn target_keys(
    connection: Connection,
    shutdown: &Shutdown,
    inspected: &Inspected,
    options: &Options,
) -> Target {
    Target {
        connection,
        table: inspected.target.clone(),
        start_type: inspected.start_type(),
        partition: options.partition,
        max_block_bytes: options.budget.max_block_bytes,
        pool: options.budget.pool(),
        shutdown: shutdown.clone(),
    }
}

impl Job {
    /// What the query ids of all statements begin with by which the run writes.
    pub(super) fn query_prefix(&self) -> String {
        let of_month = leftover_inserts::prefix_of(self.options.partition);
        format!("{of_month}{}-", self.checkpoint.run_id)
    }

    /// A moment of this machine's clock, in seconds since 1970, by the server's clock, in
    /// microseconds.
    fn server_time(&self, seconds: u64) -> i64 {
        let microseconds = i64::try_from(seconds)
            .unwrap_or(0)
            .saturating_mul(1_000_000);
        microseconds.saturating_add(self.inspected.server.clock_ahead)
    }

    pub(super) fn target_keys(&self) -> Arc<Target> {
        let connection = self.connection.clone();
        Arc::new(Target {
            pool: self.pool.clone(),
            ..target_keys(connection, &self.shutdown, &self.inspected, &self.options)
        })
    }

    pub(super) fn recovery(&self, store: &Arc<TraceStore>) -> Recovery {
        let target = self.checkpoint.target.as_ref();
        Recovery {
            keys: self.target_keys(),
            store: Arc::clone(store),
            own_rows: target.map_or(OwnRows::Keep, |target| target.own_rows),
            retries: self.retries.clone(),
        }
    }

    /// Finds out which rows the target has: those that stood there before the run, and those that
    /// an earlier process of the run may have written.
    pub(super) async fn read_target(&mut self, store: &Arc<TraceStore>) -> Result<(), Error> {
        let recovery = self.recovery(store);
        self.read_what_is_in_doubt(&recovery).await?;
        let Some(target) = self.checkpoint.target.clone() else {
            return Ok(());
        };
        let counts_none = target.own_rows != OwnRows::Keep && !target.has_live_rows;
        if !target.keys_loaded && target.rows > 0 && !counts_none {
            self.read_all_rows(store, target.rows).await?;
        } else if self.resumed && target.has_live_rows {
            // An earlier process has looked, and Langfuse went on.
            self.read_live_rows(store).await?;
        }
        if let Some(target) = &mut self.checkpoint.target {
            target.keys_loaded = true;
        }
        self.save_with(store)
    }

    /// Finds out what an earlier process of the run has written that no checkpoint speaks of.
    pub(super) async fn read_what_is_in_doubt(&mut self, recovery: &Recovery) -> Result<(), Error> {
        if !self.resumed {
            return Ok(());
        }
        let in_doubt: Vec<_> = self.checkpoint.in_doubt().cloned().collect();
        let prefix = self.query_prefix();
        recovery.after_process(in_doubt.iter(), &prefix).await?;
        let numbers = in_doubt.iter().map(|segment| segment.number);
        self.checkpoint.repeated.extend(numbers);
        Ok(())
    }

    /// Whether something live has written to the target.
    pub(super) fn has_live_rows(&self) -> bool {
        let target = self.checkpoint.target.as_ref();
        target.is_some_and(|target| target.has_live_rows)
    }

    /// Finds out what the target is like before the run writes anything.
    pub(super) async fn look_at_target(&mut self) -> Result<(), Error> {
        if self.checkpoint.target.is_some() {
            return self.look_for_live_rows().await;
        }
        let keys = self.target_keys();
        if !self.options.dry_run {
            let (target, partition) = (&self.inspected.target, self.options.partition);
            let alone = alone(&self.connection, target, partition);
            tokio::select! {
                alone = alone => alone?,
                signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
            }
        }
        let default = self.server_time(self.checkpoint.started_at) - LIVE_PATH;
        let looked = tokio::select! {
            looked = keys.look(default, self.state.is_restart()) => looked,
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        };
        let mut target = looked
            .map_err(|error| Error::failed("it cannot be told which rows the target has", error))?;
        target.until = self.options.until.or(target.until);
        if target.rows > 0 {
            self.display.note(format_args!(
                "{} has {} rows of {} already",
                self.inspected.target.name,
                HumanCount(target.rows),
                self.options.partition
            ));
        }
        self.tell_until(&target);
        self.checkpoint.target = Some(target);
        self.save()?;
        self.state.forget_restart();
        Ok(())
    }

    fn tell_until(&self, target: &TargetState) {
        if let Some(until) = target.until {
            let why = match target.has_live_rows {
                true => ", which has written to the target already",
                false => "",
            };
            self.display.note(format_args!(
                "rows that changed after {} are left to Langfuse{why} (--until sets another time)",
                moment(until)
            ));
        }
    }

    /// Finds out whether something live has begun to write to the target since the run was begun.
    /// What changed in the hour before this is left to it from now on.
    pub(super) async fn look_for_live_rows(&mut self) -> Result<(), Error> {
        let Some(target) = self.checkpoint.target.clone() else {
            return Ok(());
        };
        if target.has_live_rows {
            return Ok(());
        }
        let keys = self.target_keys();
        let has_live_rows = tokio::select! {
            has_live_rows = keys.has_live_rows() => has_live_rows,
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        };
        let has_live_rows = has_live_rows
            .map_err(|error| Error::failed("it cannot be told which rows the target has", error))?;
        if !has_live_rows {
            return Ok(());
        }
        let default = self.server_time(seconds_since_1970()) - LIVE_PATH;
        let target = TargetState {
            has_live_rows,
            until: self.options.until.or(target.until).or(Some(default)),
            ..target
        };
        self.tell_until(&target);
        self.checkpoint.target = Some(target);
        self.save()
    }

    /// Reads the keys of so many rows that count as there.
    async fn read_all_rows(&self, store: &Arc<TraceStore>, rows: u64) -> Result<(), Error> {
        let cleared = store.clear(Against::RowsBefore);
        cleared.map_err(|error| work_failed(error.into()))?;
        self.read_rows(&self.recovery(store), rows, "days of the target read")
            .await
    }

    /// Reads the keys of the rows that something live has written since the target was read.
    async fn read_live_rows(&self, store: &Arc<TraceStore>) -> Result<(), Error> {
        let recovery = Recovery {
            own_rows: OwnRows::Rewrite,
            ..self.recovery(store)
        };
        let rows = self.inspected.observation_rows.rows;
        self.read_rows(&recovery, rows, "days of live rows read")
            .await
    }

    async fn read_rows(
        &self,
        recovery: &Recovery,
        rows: u64,
        name: &'static str,
    ) -> Result<(), Error> {
        let days = recovery.keys.days_to_read(rows);
        let phase = Phase::begin(&self.display, name, days.len() as u64, 0);
        for days in days {
            let extent = Extent::of_days(days);
            recovery.load_into(Against::RowsBefore, &extent).await?;
            phase.advance(1);
        }
        phase.finish();
        Ok(())
    }

    /// Finds out which version of each observation counts.
    pub(super) async fn scan_versions(&self, store: &Arc<TraceStore>) -> Result<(), Error> {
        let is_wanted = self.options.sources().contains(&Source::Observations)
            && !self.checkpoint.remaining(Source::Observations).is_empty();
        if !is_wanted {
            return Ok(());
        }
        let inspected = &self.inspected;
        let rows = inspected.observation_rows.rows;
        let phase = Phase::begin(&self.display, "observations compared", rows, 0);
        let recovery = self.recovery(store);
        let mut attempts = recovery.attempts("reading the versions of observations");
        loop {
            let on_rows = |rows| phase.advance(rows);
            let scan = VersionScan {
                connection: &self.connection,
                observations: &inspected.observations,
                partition_id: &inspected.observation_rows.partition_id,
                rows,
                has_other_months: inspected.has_more_observations,
                filter_bytes: self.options.budget.seen_bytes,
                max_block_bytes: self.options.budget.load_block_bytes,
                pool: self.pool.clone(),
                directory: self.state.path(),
                shutdown: &self.shutdown,
                on_rows: &on_rows,
            };
            let error = match scan.run(store).await {
                Ok(_) => break,
                Err(error) => error,
            };
            attempts.failed(error).await?;
        }
        phase.finish();
        Ok(())
    }

    /// Finds out which traces have a root already.
    pub(super) async fn read_roots(&mut self, store: &Arc<TraceStore>) -> Result<(), Error> {
        if !self.has_live_rows() && !self.is_repair {
            self.look_for_live_rows().await?;
            if self.has_live_rows() {
                self.read_live_rows(store).await?;
            }
        }
        let recovery = self.recovery(store);
        let margin = self.options.trace_margin_days;
        let days = self.options.partition.days_with_margin(margin);
        let scan = RootScan {
            keys: &recovery.keys,
            observations: &self.inspected.observations,
            partition_id: &self.inspected.observation_rows.partition_id,
            live_days: self.has_live_rows().then_some(days),
        };
        let mut attempts = recovery.attempts("reading which traces have a root already");
        loop {
            let Err(error) = scan.run(store).await else {
                return Ok(());
            };
            attempts.failed(error).await?;
        }
    }

    /// What loads traces again that change while the run goes on.
    pub(super) fn trace_changes(&self, store: &Arc<TraceStore>) -> TraceChanges {
        let margin = self.options.trace_margin_days;
        let changes = TraceChanges {
            connection: self.connection.clone(),
            traces: self.inspected.traces.clone(),
            mapping: self.inspected.mapping.clone(),
            budget: self.options.budget,
            pool: self.pool.clone(),
            retries: self.retries.clone(),
            shutdown: self.shutdown.clone(),
            store: Arc::clone(store),
            days: self.options.partition.days_with_margin(margin),
            every: self.options.reload_every,
            clock_ahead: self.inspected.server.clock_ahead,
            read_until: self.server_time(self.checkpoint.started_at).into(),
            has_written: (!self.checkpoint.done.is_empty() || !self.checkpoint.begun.is_empty())
                .into(),
            counts: super::load::trace_changes::ChangeCounts::default(),
        };
        changes.counts.reloaded.store(
            self.checkpoint.traces_reloaded,
            std::sync::atomic::Ordering::Relaxed,
        );
        changes.counts.after_writing.store(
            self.checkpoint.traces_changed,
            std::sync::atomic::Ordering::Relaxed,
        );
        changes
    }

    /// Makes sure that the tables that the target's views fill have what the target has, where
    /// that is in doubt.
    pub(super) async fn level_views(&self, store: &Arc<TraceStore>) -> Result<(), Error> {
        let Some(target) = &self.checkpoint.target else {
            return Ok(());
        };
        let recovery = self.recovery(store);
        let month = self.options.partition.days_with_margin(0);
        let days = |rows| {
            let days = recovery.keys.days_to_read(rows).into_iter();
            days.map(Extent::of_days).collect()
        };
        let extents: BTreeSet<Extent> = match target.rows {
            0 => self.repeated_extents(),
            rows => days(rows),
        };
        // With more extents than days, days may be read again and again.
        let extents = match extents.len() > month.len() {
            true => days(self.inspected.observation_rows.rows),
            false => extents,
        };
        self.level_extents(store, &extents).await
    }

    /// Makes sure that the tables that the target's views fill have what the target has in some
    /// extents.
    pub(super) async fn level_extents(
        &self,
        store: &Arc<TraceStore>,
        extents: &BTreeSet<Extent>,
    ) -> Result<(), Error> {
        if extents.is_empty() || self.options.dry_run {
            return Ok(());
        }
        let recovery = self.recovery(store);
        let prefix = format!("{}level", self.query_prefix());
        let mut attempts = recovery.attempts("giving the table of the view what it lacks");
        loop {
            let leveled = tokio::select! {
                leveled = self.level_once(&recovery.keys, extents, &prefix) => leveled,
                signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
            };
            let Err(error) = leveled else { return Ok(()) };
            attempts.failed(error).await?;
            recovery.end_inserts(&prefix).await?;
        }
    }

    async fn level_once(
        &self,
        keys: &Target,
        extents: &BTreeSet<Extent>,
        prefix: &str,
    ) -> Result<(), WorkError> {
        let views = CoreView::all(&self.connection, &self.inspected.target).await?;
        let target = self.checkpoint.target.as_ref();
        let rewritten_since = target.and_then(|target| match target.own_rows {
            OwnRows::KeepAfterBlock(block) => Some((block, &target.view_blocks)),
            _ => None,
        });
        let whose = match self.is_repair {
            true => Whose::Everybodys,
            false => Whose::Backfills,
        };
        for view in &views {
            for extent in extents {
                if !view.is_level(keys, extent).await? {
                    view.level(keys, extent, whose, prefix).await?;
                }
            }
            let Some((block, view_blocks)) = rewritten_since else {
                continue;
            };
            let of_table = view_blocks.get(&view.table.qualified_name()).copied();
            // What was written again has the same keys as before: it cannot be told whether the
            // view has copied it, where an insert has failed.
            for extent in self.repeated_extents() {
                view.copy_again(keys, &extent, (block, of_table), prefix)
                    .await?;
            }
        }
        Ok(())
    }

    /// Where segments lie of which an attempt failed that may have written something.
    fn repeated_extents(&self) -> BTreeSet<Extent> {
        let month = self.options.partition.days_with_margin(0);
        let repeated = self.checkpoint.repeated.iter();
        let segments = repeated.filter_map(|&number| self.checkpoint.segment(number));
        segments
            .map(|segment| Extent::of_segment(segment, &month).of_whole_days())
            .collect()
    }

    /// Counts the rows that wait to be merged, where all were written again.
    pub(super) async fn count_rows_to_merge(&self) -> Result<Option<u64>, Error> {
        let rewrites = |own_rows| own_rows != OwnRows::Keep;
        let target = self.checkpoint.target.as_ref();
        let has_rewritten = target.is_some_and(|target| rewrites(target.own_rows));
        let counts = Source::BOTH.map(|source| self.checkpoint.counts(source).left_out);
        let has_replaced = counts.iter().any(|counts| counts.beside_older > 0);
        if !(has_rewritten || has_replaced) || self.options.dry_run {
            return Ok(None);
        }
        let keys = self.target_keys();
        let rows = tokio::select! {
            rows = keys.rows_to_merge() => rows,
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        };
        rows.map(Some).map_err(|error| {
            Error::failed("the rows that wait to be merged cannot be counted", error)
        })
    }
}
