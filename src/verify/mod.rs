//! Proof that source and target agree, made by the server and in bounded pieces.
//!
//! ```text
//!  pieces (project, day) ──▶ batches ──▶ sums of hashes on both sides
//!                                            │ where they differ
//!                                            ▼
//!                         slices (by span) ──▶ spans, both sides next to each other ──▶ examples
//! ```
//!
//! A row is two hashes: one over what the observation says, one over what its trace
//! has a part in. Over a batch, their sums do not depend on the order of the rows,
//! and two numbers per piece say whether anything is different. Only where they do
//! are rows themselves looked at.

mod columns;
mod examples;
mod findings;
mod narrow;
mod own;
mod pieces;
mod report;
mod rows;
mod scope;
mod server;
mod sides;
mod sql;
mod traces;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::RangeInclusive;
use std::time::Instant;

use indicatif::HumanCount;
use serde_bytes::ByteBuf;

pub use self::report::Verdict;

use self::pieces::{Batch, Calendar, DifferentPieces, Pieces, with_margin};
use self::report::Report;
use self::rows::{DayStart, PieceRows, Sums, Wanderer, Widths};
use self::scope::{Class, Scope, Share};
use self::server::{Refusal, Server};
use self::sql::{Side, Statements};
use self::traces::find_far_traces;
use crate::clickhouse::Connection;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::job::Session;
use crate::options::Options;
use crate::progress::{Display, Phase};
use crate::retry::Retries;
use crate::trace_store::Day;

/// Verifies one partition and prints what came of it.
///
/// # Errors
/// [`Error`] where it cannot be told whether both sides agree, or the report cannot
/// be written.
pub async fn run(options: Options) -> Result<Verdict, Error> {
    let started = Instant::now();
    let session = Session::begin(&options)?;
    if let Some(path) = &options.report {
        crate::report::require_writable(path)?;
    }
    let retries = session.retries(&options);
    if !options.observations {
        return Err(Error::Configuration(
            "--only goes with a run and a plan: verify compares the events of observations too"
                .to_owned(),
        ));
    }
    let options = Options {
        // A table that keeps what is written twice may be looked at.
        allow_duplicates: true,
        // What they say of an experiment is left aside.
        experiments: false,
        ..options
    };
    let inspected = session.inspect(&options, &retries).await?;
    let display = session.display.clone();
    let mut verification =
        Verification::new(&options, inspected, &session.connection, &retries, display);
    let outcome = session.unless_interrupted(verification.work()).await;
    let mut report = verification.report;
    report.retries = retries.repeated();
    report.seconds = started.elapsed().as_secs_f64();
    report.complete = outcome.is_ok();
    report.equal = report.complete && report.wrong() == 0;
    let published = publish(&report, &options);
    // What went wrong first is what the operator must know.
    outcome.and(published)?;
    Ok(report.verdict())
}

/// Prints and writes what came of it.
fn publish(report: &Report, options: &Options) -> Result<(), Error> {
    if !options.quiet {
        // If nobody reads it, the exit code says it all the same.
        let _ = writeln!(std::io::stdout().lock(), "\n{report}");
    }
    options
        .report
        .as_ref()
        .map_or(Ok(()), |path| crate::report::publish(report, path))
}

/// What is known while the month is compared.
struct Verification {
    server: Server,
    statements: Statements,
    display: Display,
    month: RangeInclusive<Day>,
    calendar: Calendar,
    wanderers: Vec<Wanderer>,
    different: DifferentPieces,
    /// How many events without an observation were looked for elsewhere.
    looked_for: usize,
    report: Report,
}

impl Verification {
    fn new(
        options: &Options,
        inspected: Inspected,
        connection: &Connection,
        retries: &Retries,
        display: Display,
    ) -> Self {
        let statements = Statements::new(&inspected, options);
        let target = &inspected.target;
        let report = Report {
            partition: options.partition.to_string(),
            target_table: format!("{}.{}", target.database, target.name),
            not_compared: statements.columns.not_compared.clone(),
            root_spans_compared: options.root_spans,
            ..Report::default()
        };
        display.note(format_args!(
            "ClickHouse {}: comparing {} rows of {}.observations, partition {}, with {}",
            inspected.server.version,
            HumanCount(inspected.observation_rows.rows),
            options.database,
            options.partition,
            report.target_table,
        ));
        if !report.not_compared.is_empty() {
            display.note(format_args!(
                "not compared: {}",
                report.not_compared.join(", ")
            ));
        }
        let mut days = options.partition.days();
        let first = days.next().unwrap_or_default();
        let last = days.last().unwrap_or(first);
        Self {
            server: Server::new(
                connection.clone(),
                retries.clone(),
                statements.partitions_are_apart(),
            ),
            statements,
            display,
            month: first..=last,
            calendar: Calendar::new(first, Vec::new()),
            wanderers: Vec::new(),
            different: DifferentPieces::new(),
            looked_for: 0,
            report,
        }
    }

    async fn work(&mut self) -> Result<(), Error> {
        let widths = self.statements.widths();
        let widths = self
            .server
            .rows::<Widths>("the parts of the tables", &widths);
        self.server.suit(&widths.await?);
        self.calendar = self.read_calendar().await?;
        let pieces = self.count_pieces().await?;
        self.report.pieces = pieces.count();
        let wanderers = self.statements.wanderers(&with_margin(&self.month));
        let wanderers = self
            .server
            .rows("the traces with versions on several days", &wanderers);
        self.wanderers = wanderers.await?;
        let batches = pieces.batches(&self.month);
        let rows = batches.iter().map(|batch| batch.rows).sum();
        let phase = Phase::begin(&self.display, "rows compared", rows, 0);
        for batch in &batches {
            self.compare(batch).await?;
            self.report.pieces_compared += pieces.count_in(batch);
            phase.advance(batch.rows);
        }
        phase.finish();
        Ok(())
    }

    async fn read_calendar(&self) -> Result<Calendar, Error> {
        let (first, last) = (*self.month.start(), *self.month.end());
        let sql = self
            .statements
            .day_starts(&(first..=last.saturating_add(1)));
        let starts = self.server.rows::<DayStart>("the days", &sql).await?;
        let starts = starts.into_iter().map(|day| day.start).collect();
        Ok(Calendar::new(first, starts))
    }

    async fn count_pieces(&self) -> Result<Pieces, Error> {
        let mut pieces = Pieces::default();
        let count = async |sql: String| {
            let rows = self.server.rows::<PieceRows>("the rows of each day", &sql);
            rows.await
        };
        for row in count(self.statements.count_observations()).await? {
            pieces.add_expected(row.project, row.day, row.row_count);
        }
        let month = self.calendar.range(&self.month);
        for row in count(self.statements.count_events(month)).await? {
            pieces.add_events(row.project, row.day, row.row_count);
        }
        let around = with_margin(&self.month);
        for row in count(self.statements.count_traces(&around)).await? {
            if self.statements.root_spans && self.month.contains(&row.day) {
                pieces.add_expected(row.project.clone(), row.day, row.row_count);
            }
            pieces.add_traces(row.project, row.day, row.row_count);
        }
        Ok(pieces)
    }

    /// Compares a batch, share by share. A share that takes too much of the server is
    /// divided.
    async fn compare(&mut self, batch: &Batch) -> Result<(), Error> {
        let moments = self.calendar.range(&batch.days);
        let of = batch.shares;
        let mut shares: Vec<Share> = (0..of).map(|number| Share { of, number }).collect();
        self.server.forget_small_blocks();
        while let Some(share) = shares.pop() {
            let mut scope = Scope::new(batch, moments, share);
            match self.look_at(&mut scope).await {
                Ok(Some((expected, actual))) => {
                    self.count(&expected, &actual);
                    let different = different_sums(&expected, &actual);
                    if !different.is_empty() {
                        self.narrow(&scope, &different).await?;
                    }
                }
                Ok(None) => shares.extend(share.halves()),
                Err(refusal) if refusal.is_to_be_divided => {
                    self.report.divided += 1;
                    shares.extend(share.halves());
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok(())
    }

    /// The sums of a scope, unless too many of its traces lie far away.
    async fn look_at(&self, scope: &mut Scope) -> Result<Option<BothSums>, Refusal> {
        let (server, statements) = (&self.server, &self.statements);
        match find_far_traces(server, statements, &self.wanderers, scope).await? {
            true => self.sums(scope, 1).await.map(Some),
            false => Ok(None),
        }
    }

    fn count(&mut self, expected: &SumsByKey, actual: &SumsByKey) {
        for sums in expected.values() {
            self.report.observations += sums.row_count - sums.of_traces;
            self.report.observations_without_trace += sums.without_trace;
            self.report.root_spans += sums.of_traces;
        }
        for (key, sums) in actual {
            *match key.2 {
                Class::Aside => &mut self.report.root_spans,
                _ => &mut self.report.events,
            } += sums.row_count;
        }
    }

    /// The sums of both sides, at the same time.
    async fn sums(&self, scope: &Scope, slices: u64) -> Result<BothSums, Refusal> {
        let ask = async |side| {
            let sql = self.statements.sums(side, scope, slices);
            let what = match side {
                Side::Source => "the observations",
                Side::Target => "the events",
            };
            let rows = self.server.rows_of_share::<Sums>(what, &sql, scope.share);
            let rows = rows.await?.into_iter();
            Ok::<_, Refusal>(rows.map(|sums| (key_of(&sums), sums)).collect())
        };
        // Waits for both even if one fails: the server would go on with the other.
        let (expected, actual) = tokio::join!(ask(Side::Source), ask(Side::Target));
        Ok((expected?, actual?))
    }
}

/// Project, day, class and slice.
type SumsKey = (ByteBuf, Day, Class, u64);
type SumsByKey = BTreeMap<SumsKey, Sums>;
/// What is expected, and what there is.
type BothSums = (SumsByKey, SumsByKey);

fn key_of(sums: &Sums) -> SumsKey {
    (
        sums.project.clone(),
        sums.day,
        Class::of(sums.class),
        sums.slice,
    )
}

/// Keys of which the two sides are not the same, and how many rows the larger has.
fn different_sums(expected: &SumsByKey, actual: &SumsByKey) -> BTreeMap<SumsKey, u64> {
    let mut different = BTreeMap::new();
    for (key, sums) in expected.iter().chain(actual) {
        if key.2 != Class::Aside && !are_equal(expected.get(key), actual.get(key)) {
            let rows = different.entry(key.clone()).or_insert(0);
            *rows = sums.row_count.max(*rows);
        }
    }
    different
}

fn are_equal(expected: Option<&Sums>, actual: Option<&Sums>) -> bool {
    let numbers = |sums: &Sums| {
        [
            sums.row_count,
            sums.own_sum,
            sums.own_xor,
            sums.trace_sum,
            sums.trace_xor,
        ]
    };
    expected.map(numbers) == actual.map(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(slice: u64, row_count: u64, trace_xor: u64) -> (SumsKey, Sums) {
        let sums = Sums {
            project: ByteBuf::from("p"),
            day: 1,
            class: 0,
            slice,
            row_count,
            own_sum: 1,
            own_xor: 2,
            trace_sum: 3,
            trace_xor,
            without_trace: slice,
            of_traces: slice,
        };
        (key_of(&sums), sums)
    }

    #[test]
    fn sums_differ_in_any_number_and_where_a_side_has_none() {
        let expected = BTreeMap::from([sums(0, 5, 4), sums(1, 5, 4), sums(2, 7, 4)]);
        let actual = BTreeMap::from([sums(0, 5, 4), sums(1, 5, 9), sums(3, 8, 4)]);
        let different = different_sums(&expected, &actual);
        let seen: Vec<(u64, u64)> = different.iter().map(|(key, rows)| (key.3, *rows)).collect();
        assert_eq!(seen, [(1, 5), (2, 7), (3, 8)]);
    }
}
