//! Repair: sends only the wanted rows through the normal pipeline.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::context::Context;
use super::experiments::find_experiments;
use super::guard::target::Extent;
use super::job::{listen, with_way_on, write_source};
use super::journal::Journal;
use super::load::{load_traces, trace_changes};
use super::run_report::{Spent, report};
use super::{known_rows, target, views};
use crate::error::Error;
use crate::state::checkpoint::Checkpoint;
use crate::state::report::Report;
use crate::trace_store::{Against, TraceStore, WantedDay};

/// With more extents than this, read all projects of a day together.
const MOST_EXTENTS: usize = 100;

/// Writes the rows wanted in the store, and copies rows that only the view's table lacks. Segments
/// and progress are in the checkpoint.
pub(crate) async fn mend(
    context: &Context,
    checkpoint: Checkpoint,
    store: &Arc<TraceStore>,
) -> (Report, Result<(), Error>) {
    let _listening = listen(context);
    let mut spent = Spent::after(&checkpoint);
    let mut journal = Journal::new(checkpoint, &context.state, context.options.dry_run);
    let outcome = work(context, &mut journal, store, &mut spent).await;
    let outcome = outcome.map_err(|error| with_way_on(context, &journal, error));
    let failed = matches!(&outcome, Err(error) if error.signal().is_none());
    let report = report(context, journal.checkpoint(), &spent, failed);
    (report, outcome)
}

async fn work(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
    spent: &mut Spent,
) -> Result<(), Error> {
    let sources = context.options.subject.sources();
    let has_segments =
        |journal: &Journal, source| journal.checkpoint().segments_of(source).next().is_some();
    target::look_for_repair(context, journal).await?;
    if sources.iter().any(|&source| has_segments(journal, source)) {
        prepare(context, journal, store).await?;
    }
    for source in sources {
        if has_segments(journal, source) {
            write_source(context, journal, source, store, None, spent).await?;
        }
    }
    let extents = core_extents(context, journal.checkpoint(), store)?;
    views::level_extents(context, journal.checkpoint(), store, &extents).await?;
    spent.rows_to_merge = views::count_rows_to_merge(context, journal.checkpoint()).await?;
    journal.commit(|checkpoint| checkpoint.finished = true)
}

async fn prepare(
    context: &Context,
    journal: &mut Journal,
    store: &Arc<TraceStore>,
) -> Result<(), Error> {
    match context.options.subject.remote_lookup {
        // Look up the rows' traces by id, and again after an interruption, since they may have
        // changed.
        true => {
            if context.resumed {
                store.forget_answers()?;
            }
            journal.commit(|checkpoint| checkpoint.superseded = Some(0))?;
        }
        false => {
            load_traces(context, journal, store).await?;
            if context.resumed {
                trace_changes(context, journal, store).reload().await?;
            }
        }
    }
    find_experiments(context, journal, store).await?;
    let recovery = known_rows::recovery(context, journal.checkpoint(), store);
    known_rows::read_what_is_in_doubt(context, journal, &recovery).await?;
    let checkpoint = journal.checkpoint();
    if let Some(target) = &checkpoint.target
        && target.has_live_rows
    {
        let days = context.days();
        let segments = checkpoint.segments.iter().flatten();
        let extents = segments.map(|segment| Extent::of_segment(segment, &days));
        let extents = few(context, extents.collect(), target.rows);
        store.clear(Against::RowsBefore)?;
        for extent in &extents {
            recovery.load_into(Against::RowsBefore, extent).await?;
        }
    }
    if !store.wanted_days(WantedDay::Rows)?.is_empty() {
        known_rows::scan_versions(context, journal.checkpoint(), store).await?;
    }
    journal.commit_with(store, |_| {})
}

/// These extents, or whole days of all projects if they are too many.
fn few(context: &Context, extents: BTreeSet<Extent>, rows: u64) -> BTreeSet<Extent> {
    if extents.len() <= MOST_EXTENTS {
        return extents;
    }
    let days = context.target_month().days_to_read(rows).into_iter();
    days.map(Extent::of_days).collect()
}

/// Where the view's table may lack rows: where verify found gaps, and where writing had trouble.
fn core_extents(
    context: &Context,
    checkpoint: &Checkpoint,
    store: &TraceStore,
) -> Result<BTreeSet<Extent>, Error> {
    let of_share = context.days();
    let days = store.wanted_days(WantedDay::Core)?;
    let mut extents: BTreeSet<Extent> = days
        .iter()
        .map(|(project, day)| Extent::of_project(project, *day..=*day))
        .collect();
    let repeated = checkpoint.repeated_segments();
    extents.extend(repeated.map(|segment| Extent::of_segment(segment, &of_share)));
    let rows = checkpoint.target.as_ref();
    Ok(few(context, extents, rows.map_or(0, |target| target.rows)))
}
