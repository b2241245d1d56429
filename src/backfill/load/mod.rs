//! Phase one: loads traces into the store.

pub(crate) mod trace_changes;
pub(crate) mod versions;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::block_in_place;

use self::trace_changes::TraceChanges;
use self::versions::LoadedDay;
use super::context::Context;
use super::journal::Journal;
use super::remote_lookup;
use crate::backfill::work_attempts::WorkAttempts;
use crate::cli::options::Engine;
use crate::error::Error;
use crate::partition::Day;
use crate::partition::Partition;
use crate::progress::Phase;
use crate::trace_store::{SeenTraces, TraceStore};

/// Loads the remaining days' traces and settles which versions win.
///
/// # Errors
/// [`Error`] if the server or the store fails, or on a signal.
pub(super) async fn load_traces(
    context: &Context,
    journal: &mut Journal,
    store: &TraceStore,
) -> Result<(), Error> {
    if journal.checkpoint().superseded.is_some() {
        return Ok(());
    }
    let expected = context.inspected.traces_to_load;
    let before = journal.checkpoint().days.values();
    let before = before.map(|(rows, _)| rows).sum();
    let phase = Phase::begin(&context.display, "traces loaded", expected, before);
    let mut superseded = 0;
    if expected > 0 {
        let mut seen = SeenTraces::new(expected, context.options.budget.seen_bytes);
        let shutdown = context.shutdown.clone();
        let stop = || shutdown.signal().is_some();
        block_in_place(|| seen.remember(store, &stop))?;
        let mut block_rows = versions::BLOCK_ROWS;
        for days in days_to_load(context, journal, expected) {
            context.may_begin().await?;
            let loaded = load_days(context, store, &days, &mut block_rows, &mut seen, &phase);
            let loaded = loaded.await?.into_iter();
            let done = loaded.map(|(day, loaded)| (day, (loaded.rows_read, loaded.traces)));
            journal.commit_with(store, |checkpoint| checkpoint.days.extend(done))?;
        }
        drop(seen);
        superseded = block_in_place(|| store.settle_moved_traces(&stop))?
            .ok_or_else(|| Error::interrupted(shutdown.signal().unwrap_or_default()))?;
        remote_lookup::settle_far_moved(context, store).await?;
    }
    journal.commit_with(store, |checkpoint| checkpoint.superseded = Some(superseded))?;
    phase.finish();
    Ok(())
}

/// The days still to load; in a partition with few rows, several days form one group.
fn days_to_load(context: &Context, journal: &Journal, rows: u64) -> Vec<RangeInclusive<Day>> {
    let days = context.days_of_traces();
    let together = versions::days_per_query(rows, days.len());
    let missing = |day: &Day| !journal.checkpoint().days.contains_key(day);
    let missing: Vec<Day> = days.filter(missing).collect();
    // A query reads a single partition.
    let are_neighbours = |day: &Day, next: &Day| {
        day + 1 == *next && Partition::id_of(*day) == Partition::id_of(*next)
    };
    missing
        .chunk_by(are_neighbours)
        .flat_map(|neighbours| neighbours.chunks(together))
        .map(|days| days[0]..=days[days.len() - 1])
        .collect()
}

/// Loads some days, with retries.
async fn load_days(
    context: &Context,
    store: &TraceStore,
    days: &RangeInclusive<Day>,
    block_rows: &mut usize,
    seen: &mut SeenTraces,
    phase: &Phase,
) -> Result<BTreeMap<Day, LoadedDay>, Error> {
    let source = context.trace_source();
    let doing = format!("loading traces of {}", dates(days));
    let failed = format!("cannot load the traces of {}", dates(days));
    let mut attempts = WorkAttempts::new(&context.retries, doing, failed).in_blocks_of(*block_rows);
    loop {
        let shown = AtomicU64::new(0);
        let on_rows = |rows| {
            shown.fetch_add(rows, Ordering::Relaxed);
            phase.advance(rows);
            context.telemetry.loaded(rows);
        };
        let load = source.load_days(
            store,
            days.clone(),
            attempts.block_rows(),
            seen,
            &on_rows,
            &context.shutdown,
        );
        match load.await {
            Ok(loaded) => {
                // If these rows are larger than expected, so are the other days'.
                *block_rows = attempts.block_rows();
                return Ok(loaded);
            }
            Err(error) => {
                phase.go_back(shown.into_inner());
                attempts.failed(error).await?;
            }
        }
    }
}

/// Reloads traces that change during the run.
pub(super) fn trace_changes(
    context: &Context,
    journal: &Journal,
    store: &Arc<TraceStore>,
) -> TraceChanges {
    let started = context.server_time(journal.checkpoint().started_at);
    TraceChanges {
        connection: context.connection.clone(),
        traces: context.inspected.traces.clone(),
        mapping: context.inspected.mapping.clone(),
        budget: context.options.budget,
        pool: context.pool.clone(),
        retries: context.retries.clone(),
        shutdown: context.shutdown.clone(),
        store: Arc::clone(store),
        days: context.days_of_traces(),
        every: context.options.reload_every,
        clock_ahead: context.inspected.server.clock_ahead,
        read_until: started.into(),
        counts: journal.changes(),
        // A repair loads the traces of its rows, whatever the engine of the run.
        unknown_since: (context.options.engine == Engine::ClickHouse && !context.is_repair)
            .then_some(started),
    }
}

/// A day as `YYYY-MM-DD`.
fn date(day: Day) -> String {
    const EPOCH: i32 = 2_440_588; // Julian day of 1970-01-01
    time::Date::from_julian_day(EPOCH + i32::from(day))
        .map_or_else(|_| format!("day {day}"), |date| date.to_string())
}

/// A day or range of days, as `YYYY-MM-DD` or `YYYY-MM-DD to YYYY-MM-DD`.
pub(super) fn dates(days: &RangeInclusive<Day>) -> String {
    match days.len() {
        1 => date(*days.start()),
        _ => format!("{} to {}", date(*days.start()), date(*days.end())),
    }
}
