//! The first phase: traces into the store.

pub(crate) mod trace_changes;
pub(crate) mod versions;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use self::versions::{LoadedDay, TraceSource};
use super::job::{Job, store_failed};
use crate::backfill::attempts::Attempts;
use crate::error::Error;
use crate::partition::Day;
use crate::partition::Partition;
use crate::progress::Phase;
use crate::trace_store::{SeenTraces, TraceStore};

impl Job {
    pub(super) async fn load_traces(&mut self, store: &TraceStore) -> Result<(), Error> {
        if self.checkpoint.superseded.is_some() {
            return Ok(());
        }
        let expected = self.inspected.traces_to_load;
        let before = self.checkpoint.days.values().map(|(rows, _)| rows).sum();
        let phase = Phase::begin(&self.display, "traces loaded", expected, before);
        let mut superseded = 0;
        if expected > 0 {
            let mut seen = SeenTraces::new(expected, self.options.budget.seen_bytes);
            let shutdown = self.shutdown.clone();
            let stop = || shutdown.signal().is_some();
            tokio::task::block_in_place(|| seen.remember(store, &stop)).map_err(store_failed)?;
            let mut block_rows = versions::BLOCK_ROWS;
            for days in self.days_to_load(expected) {
                let loaded = self
                    .load_days(store, &days, &mut block_rows, &mut seen, &phase)
                    .await?;
                let loaded = loaded.iter();
                let done = loaded.map(|(&day, loaded)| (day, (loaded.rows_read, loaded.traces)));
                self.checkpoint.days.extend(done);
                // What is not written down will be done again.
                self.save_with(store).inspect_err(|_| {
                    self.checkpoint.days.retain(|day, _| !days.contains(day));
                })?;
            }
            drop(seen);
            let settled = tokio::task::block_in_place(|| store.settle_moved_traces(&stop));
            superseded = settled
                .map_err(store_failed)?
                .ok_or_else(|| Error::interrupted(self.shutdown.signal().unwrap_or_default()))?;
            self.settle_far_moved(store).await?;
        }
        self.checkpoint.superseded = Some(superseded);
        self.save_with(store)?;
        phase.finish();
        Ok(())
    }

    /// The days that are not loaded yet, a few together where the partition is
    /// small, given its rows.
    fn days_to_load(&self, rows: u64) -> Vec<RangeInclusive<Day>> {
        let margin = self.options.trace_margin_days;
        let days = self.options.partition.days_with_margin(margin);
        let together = versions::days_per_query(rows, days.len());
        let missing = |day: &Day| !self.checkpoint.days.contains_key(day);
        let missing: Vec<Day> = days.filter(missing).collect();
        // A query reads one partition.
        let are_neighbours = |day: &Day, next: &Day| {
            day + 1 == *next && Partition::id_of(*day) == Partition::id_of(*next)
        };
        missing
            .chunk_by(are_neighbours)
            .flat_map(|neighbours| neighbours.chunks(together))
            .map(|days| days[0]..=days[days.len() - 1])
            .collect()
    }

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

    /// Loads some days, again and again while what stops it may pass.
    async fn load_days(
        &self,
        store: &TraceStore,
        days: &RangeInclusive<Day>,
        block_rows: &mut usize,
        seen: &mut SeenTraces,
        phase: &Phase,
    ) -> Result<BTreeMap<Day, LoadedDay>, Error> {
        let source = self.trace_source();
        let doing = format!("loading the traces of {}", dates(days));
        let failed = format!("the traces of {} could not be loaded", dates(days));
        let mut attempts = Attempts::new(&self.retries, doing, failed).in_blocks_of(*block_rows);
        loop {
            let shown = AtomicU64::new(0);
            let on_rows = |rows| {
                shown.fetch_add(rows, Ordering::Relaxed);
                phase.advance(rows);
            };
            let load = source.load_days(
                store,
                days.clone(),
                attempts.block_rows(),
                seen,
                &on_rows,
                &self.shutdown,
            );
            match load.await {
                Ok(loaded) => {
                    // Where rows are larger than expected, the other days' are alike.
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
}

/// A day as `YYYY-MM-DD`.
fn date(day: Day) -> String {
    const EPOCH: i32 = 2_440_588; // Julian day of 1970-01-01
    time::Date::from_julian_day(EPOCH + i32::from(day))
        .map_or_else(|_| format!("day {day}"), |date| date.to_string())
}

/// Some days as `YYYY-MM-DD`, or `YYYY-MM-DD to YYYY-MM-DD`.
fn dates(days: &RangeInclusive<Day>) -> String {
    match days.len() {
        1 => date(*days.start()),
        _ => format!("{} to {}", date(*days.start()), date(*days.end())),
    }
}
