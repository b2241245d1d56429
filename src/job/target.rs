//! The target before, while and after it is written: which rows it has, what is left to Langfuse,
//! and that the table its view fills has what it has.

use std::collections::BTreeSet;
use std::sync::Arc;

use indicatif::HumanCount;

use super::{Job, work_failed};
use crate::backfill::core_view::CoreView;
use crate::backfill::observation_versions::VersionScan;
use crate::backfill::recovery::Recovery;
use crate::backfill::target_keys::{Extent, OwnRows, TargetKeys};
use crate::backfill::trace_changes::TraceChanges;
use crate::error::{Error, WorkError};
use crate::mapping::Source;
use crate::progress::Phase;
use crate::trace_store::{Against, TraceStore};

/// So long before a run began, in microseconds, rows may have changed that Langfuse has not
/// written as events yet.
const LIVE_PATH: i64 = 3_600_000_000;

impl Job {
    /// What the query ids of all statements begin with by which the run writes.
    pub(super) fn query_prefix(&self) -> String {
        format!("events-backfill-{}-", self.checkpoint.run_id)
    }

    pub(super) fn target_keys(&self) -> Arc<TargetKeys> {
        Arc::new(TargetKeys {
            connection: self.connection.clone(),
            target: self.inspected.target.clone(),
            start_type: self.inspected.start_type(),
            partition: self.options.partition,
            max_block_bytes: self.options.budget.max_block_bytes,
            pool: self.pool.clone(),
            shutdown: self.shutdown.clone(),
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
            store
                .clear(Against::RowsBefore)
                .map_err(|error| work_failed(error.into()))?;
            let days = recovery.keys.days_to_read(target.rows);
            let name = "days of the target read";
            let phase = Phase::begin(&self.display, name, days.len() as u64, 0);
            for days in days {
                let extent = Extent::of_days(days);
                recovery.load_into(Against::RowsBefore, &extent).await?;
                phase.advance(1);
            }
            phase.finish();
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
            return Ok(());
        }
        let keys = self.target_keys();
        let began = i64::try_from(self.checkpoint.started_at).unwrap_or(i64::MAX);
        let default = began.saturating_mul(1_000_000).saturating_sub(LIVE_PATH);
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
        if let Some(until) = target.until {
            let why = match target.has_live_rows {
                true => ", which has written to the target already",
                false => "",
            };
            self.display.note(format_args!(
                "rows that changed after {} are left to Langfuse{why} (--until sets another time)",
                crate::report::moment(until)
            ));
        }
        self.checkpoint.target = Some(target);
        self.save()?;
        self.state.forget_restart();
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
        let mut tries = self.retries.tries();
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
            let doing = "reading the versions of observations";
            recovery.wait_or_give_up(&mut tries, doing, error).await?;
        }
        phase.finish();
        Ok(())
    }

    /// Finds out which traces have a live root.
    pub(super) async fn read_live_roots(&self, store: &Arc<TraceStore>) -> Result<(), Error> {
        if !self.has_live_rows() {
            return Ok(());
        }
        let recovery = self.recovery(store);
        let margin = self.options.trace_margin_days;
        let days = self.options.partition.days_with_margin(margin);
        let mut tries = self.retries.tries();
        loop {
            let Err(error) = recovery.keys.load_live_roots(&days, store).await else {
                return Ok(());
            };
            let doing = "reading which traces have a live root";
            recovery.wait_or_give_up(&mut tries, doing, error).await?;
        }
    }

    /// What loads traces again that change while the run goes on.
    pub(super) fn trace_changes(&self, store: &Arc<TraceStore>) -> TraceChanges {
        let margin = self.options.trace_margin_days;
        let began = i64::try_from(self.checkpoint.started_at).unwrap_or(0);
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
            read_until: began.saturating_mul(1_000_000).into(),
            has_written: (!self.checkpoint.done.is_empty() || !self.checkpoint.begun.is_empty())
                .into(),
            counts: crate::backfill::trace_changes::ChangeCounts::default(),
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
        let extents: BTreeSet<Extent> = match target.rows {
            0 => {
                let repeated = self.checkpoint.repeated.iter();
                repeated
                    .filter_map(|&number| self.checkpoint.segment(number))
                    .map(|segment| Extent::of_segment(segment, &month))
                    .collect()
            }
            rows => {
                let days = recovery.keys.days_to_read(rows).into_iter();
                days.map(Extent::of_days).collect()
            }
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
        let mut tries = self.retries.tries();
        loop {
            let leveled = tokio::select! {
                leveled = self.level_once(&recovery.keys, extents, &prefix) => leveled,
                signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
            };
            let Err(error) = leveled else { return Ok(()) };
            let doing = "giving the table of the view what it lacks";
            recovery.wait_or_give_up(&mut tries, doing, error).await?;
            recovery.end_inserts(&prefix).await?;
        }
    }

    async fn level_once(
        &self,
        keys: &TargetKeys,
        extents: &BTreeSet<Extent>,
        prefix: &str,
    ) -> Result<(), WorkError> {
        let views = CoreView::all(&self.connection, &self.inspected.target).await?;
        for view in &views {
            for extent in extents {
                if !view.is_level(keys, extent).await? {
                    view.level(keys, extent, prefix).await?;
                }
            }
        }
        Ok(())
    }

    /// Counts the rows that wait to be merged, where all were written again.
    pub(super) async fn count_rows_to_merge(&self) -> Result<Option<u64>, Error> {
        let rewrites = |own_rows| own_rows != OwnRows::Keep;
        let target = self.checkpoint.target.as_ref();
        if !target.is_some_and(|target| rewrites(target.own_rows)) || self.options.dry_run {
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
