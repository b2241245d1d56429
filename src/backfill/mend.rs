//! A repair: just the rows that are wanted go the way of all others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::guard::target::Extent;
use super::job::{Job, Spent, store_failed};
use crate::cli::options::Options;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::mapping::Source;
use crate::session::Session;
use crate::state::checkpoint::Checkpoint;
use crate::state::directory::StateDir;
use crate::state::report::Report;
use crate::trace_store::{Against, TraceStore, WantedDay};

/// With more days of projects, all projects of a day are looked at together.
const MOST_EXTENTS: usize = 100;

/// What is to be mended.
pub(crate) struct Mending {
    /// Server, tables and partition.
    pub inspected: Inspected,
    /// What was asked for.
    pub options: Options,
    /// The tries.
    pub retries: Retries,
    /// Where the state is.
    pub state: StateDir,
    /// What is wanted, and what is known of traces.
    pub store: Arc<TraceStore>,
    /// What of it is done; the segments are in it.
    pub checkpoint: Checkpoint,
    /// Whether another process has begun it.
    pub resumed: bool,
    /// When it began.
    pub started: Instant,
}

/// Writes what is wanted, and gives the view's table what only it lacks.
pub(crate) async fn mend(session: &Session, mending: Mending) -> (Report, Result<(), Error>) {
    let Mending {
        inspected,
        options,
        retries,
        state,
        store,
        checkpoint,
        resumed,
        started,
    } = mending;
    let mut job = Job {
        before: Source::BOTH.map(|source| checkpoint.counts(source).observations),
        connection: session.connection.with_retries(&retries),
        inspected,
        state,
        checkpoint,
        resumed,
        display: session.display.clone(),
        shutdown: session.shutdown.clone(),
        retries,
        pool: options.budget.pool(),
        started,
        options,
        changes: Arc::default(),
        rows_to_merge: None,
        is_repair: true,
    };
    let mut spent = Spent::default();
    let outcome = job.mend(&store, &mut spent).await;
    let outcome = outcome.map_err(|error| job.with_way_on(error));
    let failed = matches!(outcome, Err(Error::Failed(_) | Error::Configuration(_)));
    (job.report(&spent, failed), outcome)
}

impl Job {
    async fn mend(&mut self, store: &Arc<TraceStore>, spent: &mut Spent) -> Result<(), Error> {
        let has_segments = self
            .options
            .sources()
            .into_iter()
            .any(|source| self.checkpoint.segments_of(source).next().is_some());
        self.look_at_target_for_repair().await?;
        if has_segments {
            self.prepare_to_mend(store).await?;
        }
        for source in self.options.sources() {
            if self.checkpoint.segments_of(source).next().is_none() {
                continue;
            }
            let started = Instant::now();
            let destination = Arc::new(self.destination(source));
            let streamed = self.stream_source(source, store, &destination).await;
            spent.stream[source as usize] = started.elapsed();
            streamed?;
        }
        let extents = self.core_extents(store)?;
        self.level_extents(store, &extents).await?;
        self.rows_to_merge = self.count_rows_to_merge().await?;
        self.checkpoint.finished = true;
        self.save()
    }

    async fn prepare_to_mend(&mut self, store: &Arc<TraceStore>) -> Result<(), Error> {
        match self.options.remote_lookup {
            // The traces of the rows at hand are asked for by their ids, and once more after an
            // interruption: they may have changed.
            true => {
                self.checkpoint.superseded = Some(0);
                if self.resumed {
                    store.forget_answers().map_err(store_failed)?;
                }
            }
            false => {
                self.load_traces(store).await?;
                if self.resumed {
                    self.trace_changes(store).reload().await?;
                }
            }
        }
        self.find_experiments(store).await?;
        let recovery = self.recovery(store);
        self.read_what_is_in_doubt(&recovery).await?;
        if let Some(target) = &self.checkpoint.target
            && target.has_live_rows
        {
            let month = self.options.partition.days_with_margin(0);
            let segments = self.checkpoint.segments.iter().flatten();
            let extents = segments.map(|segment| Extent::of_segment(segment, &month));
            let extents = self.few(extents.collect(), target.rows);
            store.clear(Against::RowsBefore).map_err(store_failed)?;
            for extent in &extents {
                recovery.load_into(Against::RowsBefore, extent).await?;
            }
        }
        let has_whole_days = store.wanted_days(WantedDay::Rows).map_err(store_failed)?;
        if !has_whole_days.is_empty() {
            self.scan_versions(store).await?;
        }
        self.save_with(store)
    }

    /// These extents, or days of all projects where they are too many.
    fn few(&self, extents: BTreeSet<Extent>, rows: u64) -> BTreeSet<Extent> {
        if extents.len() <= MOST_EXTENTS {
            return extents;
        }
        let days = self.target_keys().days_to_read(rows).into_iter();
        days.map(Extent::of_days).collect()
    }

    async fn look_at_target_for_repair(&mut self) -> Result<(), Error> {
        if self.checkpoint.target.is_some() {
            return Ok(());
        }
        let keys = self.target_keys();
        let looked = tokio::select! {
            looked = keys.look(0, true) => looked,
            signal = self.shutdown.requested() => return Err(Error::interrupted(signal)),
        };
        let mut target = looked
            .map_err(|error| Error::failed("it cannot be told which rows the target has", error))?;
        // What is left to Langfuse was not found wrong.
        target.until = None;
        self.checkpoint.target = Some(target);
        self.save()
    }

    /// Where the view's table may lack something: where it was found to, and where rows were
    /// written with trouble.
    fn core_extents(&self, store: &TraceStore) -> Result<BTreeSet<Extent>, Error> {
        let month = self.options.partition.days_with_margin(0);
        let days = store.wanted_days(WantedDay::Core).map_err(store_failed)?;
        let mut extents: BTreeSet<Extent> = days
            .iter()
            .map(|(project, day)| Extent::of_project(project, *day..=*day))
            .collect();
        let repeated = self.checkpoint.repeated.iter();
        let repeated = repeated.filter_map(|&number| self.checkpoint.segment(number));
        extents.extend(repeated.map(|segment| Extent::of_segment(segment, &month)));
        let rows = self.checkpoint.target.as_ref();
        Ok(self.few(extents, rows.map_or(0, |target| target.rows)))
    }
}
