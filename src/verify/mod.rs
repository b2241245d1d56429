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
mod core_table;
mod event_rows;
mod examples;
mod experiments;
mod findings;
mod narrow;
mod observation_columns;
mod pieces;
mod report;
mod rows;
mod scope;
mod server;
mod statements;
mod traces;
mod twice;
mod versions;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::RangeInclusive;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use indicatif::HumanCount;
use serde_bytes::ByteBuf;

pub use self::findings::{Findings, FoundRow, Kind, OnlyCounted, Unlisted};
pub use self::report::{Report, Verdict};
pub use self::rows::EventKey;

use self::narrow::Missing;
use self::pieces::{Batch, Calendar, DifferentPieces, Pieces, with_margin};
use self::rows::{DayStart, EventRows, Number, PieceRows, Sums, Versions, Wanderer, Widths};
use self::scope::{Class, Scope, Share};
use self::server::{Refusal, Server};
use self::statements::{Pair, Side, Statements};
use self::traces::find_far_traces;
use self::versions::{MOST_VERSIONS, Superseding};
use crate::cli::options::{Intent, Options};
use crate::clickhouse::Connection;
use crate::clickhouse::retry::Retries;
use crate::error::Error;
use crate::inspect::Inspected;
use crate::partition::Day;
use crate::progress::{Display, Phase};
use crate::session::Session;

/// What changed in the last hour is left to Langfuse, unless the user says another moment: in
/// microseconds.
const LEFT_TO_LANGFUSE: i64 = 3_600_000_000;

/// Verifies one partition and prints what came of it.
///
/// # Errors
/// [`Error`] where it cannot be told whether both sides agree, or the report cannot
/// be written.
pub async fn run(options: Options) -> Result<Verdict, Error> {
    let session = Session::begin(&options)?;
    if let Some(path) = &options.report {
        crate::state::report::require_writable(path)?;
    }
    let retries = session.retries(&options);
    if !options.observations {
        return Err(Error::Configuration(
            "--only goes with a run and a plan: verify compares the events of observations too"
                .to_owned(),
        ));
    }
    let mut options = Options {
        // A table that keeps what is written twice may be looked at.
        allow_duplicates: true,
        intent: Intent::Look,
        ..options
    };
    let inspected = session.inspect(&mut options, &retries).await?;
    let (report, outcome) =
        examine(&session, &options, &inspected, &retries, &mut OnlyCounted).await;
    let published = publish(&report, &options);
    // What went wrong first is what the operator must know.
    outcome.and(published)?;
    Ok(report.verdict())
}

/// Verifies one partition, and hands each row that is wrong to `findings`, as it is found. Prints
/// nothing but progress. The report says what was found, also where it ended early.
pub async fn examine(
    session: &Session,
    options: &Options,
    inspected: &Inspected,
    retries: &Retries,
    findings: &mut dyn Findings,
) -> (Report, Result<(), Error>) {
    let started = Instant::now();
    let display = session.display.clone();
    let connection = &session.connection;
    let mut verification =
        Verification::new(options, inspected, connection, retries, display, findings);
    let outcome = session
        .unless_interrupted(verification.work(inspected))
        .await;
    let mut report = verification.report;
    report.retries = retries.repeated();
    report.seconds = started.elapsed().as_secs_f64();
    report.complete = outcome.is_ok();
    report.equal = report.complete && report.wrong() == 0;
    (report, outcome)
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
        .map_or(Ok(()), |path| crate::state::report::publish(report, path))
}

/// What is known while the month is compared.
struct Verification<'a> {
    server: Server,
    statements: Statements,
    display: Display,
    findings: &'a mut dyn Findings,
    month: RangeInclusive<Day>,
    calendar: Calendar,
    wanderers: Vec<Wanderer>,
    superseding: Superseding,
    different: DifferentPieces,
    missing: Missing,
    /// How many events without an observation were looked for elsewhere.
    looked_for: usize,
    /// Rows of events in the month.
    event_rows: u64,
    /// Whether something live has written to the target.
    has_live: bool,
    /// What changed after this moment is left to Langfuse, if it writes to the target too.
    until: Option<i64>,
    report: Report,
}

impl<'a> Verification<'a> {
    fn new(
        options: &Options,
        inspected: &Inspected,
        connection: &Connection,
        retries: &Retries,
        display: Display,
        findings: &'a mut dyn Findings,
    ) -> Self {
        let statements = Statements::new(inspected, options);
        let target = &inspected.target;
        let report = Report {
            expiry: inspected.expiry.clone(),
            hidden: inspected.hidden.clone(),
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
            findings,
            month: first..=last,
            calendar: Calendar::new(first, Vec::new()),
            wanderers: Vec::new(),
            superseding: Superseding::default(),
            different: DifferentPieces::new(),
            missing: Missing::default(),
            looked_for: 0,
            event_rows: 0,
            has_live: false,
            until: options.until,
            report,
        }
    }

    async fn work(&mut self, inspected: &Inspected) -> Result<(), Error> {
        let widths = self.statements.widths();
        let widths = self
            .server
            .rows::<Widths>("the parts of the tables", &widths);
        self.server.suit(&widths.await?);
        self.find_core(&inspected.target).await?;
        self.note_what_is_compared();
        self.calendar = self.read_calendar().await?;
        self.find_out_what_is_live().await?;
        let pieces = self.count_pieces().await?;
        self.report.pieces = pieces.count();
        self.event_rows = pieces.events();
        let wanderers = self.statements.wanderers(&with_margin(&self.month));
        let wanderers = self
            .server
            .rows("the traces with versions on several days", &wanderers);
        self.wanderers = wanderers.await?;
        let passes = self.find_superseding(None).await?;
        let batches = pieces.batches(&self.month);
        let rows: u64 = batches.iter().map(|batch| batch.rows).sum();
        let has_core = self.statements.core.is_some();
        let times = passes + u64::from(has_core);
        let phase = Phase::begin(&self.display, "rows compared", rows * times, 0);
        for number in 0..passes {
            let pass = Share { of: passes, number };
            if passes > 1 {
                self.find_superseding(Some(pass)).await?;
            }
            for batch in &batches {
                self.compare(Pair::SourceAndEvents, batch, pass).await?;
                phase.advance(batch.rows);
                // With the table that the view fills, it is compared once more.
                if number + 1 == passes && !has_core {
                    self.report.pieces_compared += pieces.count_in(batch);
                }
            }
        }
        if has_core {
            let pass = Share { of: 1, number: 0 };
            for batch in &batches {
                self.compare(Pair::ViewAndCore, batch, pass).await?;
                self.report.pieces_compared += pieces.count_in(batch);
                phase.advance(batch.rows);
            }
        }
        phase.finish();
        self.compare_experiments().await?;
        self.find_what_is_twice().await?;
        self.report.pieces_different = self.different.len() as u64;
        Ok(())
    }

    fn note_what_is_compared(&mut self) {
        match &self.statements.core {
            Some(core) => self.report.core_table = Some(core.label.clone()),
            None => self.display.note(format_args!(
                "no view fills another table from {}: it alone is compared",
                self.report.target_table
            )),
        }
        if !self.report.not_compared.is_empty() {
            self.display.note(format_args!(
                "not compared: {}",
                self.report.not_compared.join(", ")
            ));
        }
    }

    /// Whether Langfuse writes to the target too, and until when what changed is expected of a
    /// backfill then.
    async fn find_out_what_is_live(&mut self) -> Result<(), Error> {
        let sql = self.statements.some_live_row();
        let live = self.server.rows::<Number>("live rows", &sql).await?;
        self.has_live = !live.is_empty();
        if !self.has_live {
            self.until = None;
            return Ok(());
        }
        let until = self.until.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |passed| passed.as_micros());
            i64::try_from(now).unwrap_or(i64::MAX) - LEFT_TO_LANGFUSE
        });
        self.until = Some(until);
        self.report.until = examples::rfc3339(until);
        self.display.note(format_args!(
            "Langfuse writes to {} too: its rows are looked for and not compared, and what changed \
             after {} is left to it",
            self.report.target_table,
            examples::moment(until)
        ));
        Ok(())
    }

    /// Finds the observations of several versions, all or some; in how many passes the month is
    /// to be compared since there are so many.
    async fn find_superseding(&mut self, pass: Option<Share>) -> Result<u64, Error> {
        let what = "the versions of observations";
        let most = pass.is_none().then_some(MOST_VERSIONS + 1);
        let share = pass.unwrap_or(Share { of: 1, number: 0 });
        let sql = self.statements.superseding(&self.month, share, most);
        let versions = self.server.rows::<Versions>(what, &sql).await?;
        let mut passes = 1;
        if pass.is_none() {
            let mut count = versions.len() as u64;
            if versions.len() > MOST_VERSIONS {
                let sql = self.statements.count_superseding(&self.month);
                let counted = self.server.rows::<Number>(what, &sql).await?;
                count = counted.first().map_or(count, |row| row.number);
                passes = count.div_ceil(MOST_VERSIONS as u64);
            }
            self.report.observations_superseded = count;
            if passes > 1 {
                return Ok(passes);
            }
        }
        let projects = match versions.is_empty() {
            true => Vec::new(),
            false => {
                let sql = self.statements.project_hashes();
                self.server.rows(what, &sql).await?
            }
        };
        self.superseding = Superseding::new(projects, versions);
        Ok(passes)
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
        let events = self.statements.count_events(month);
        let events = self
            .server
            .rows::<EventRows>("the rows of each day", &events);
        for row in events.await? {
            pieces.add_events(row.project, row.day, row.row_count, row.live);
        }
        if let Some(sql) = self.statements.count_core(month) {
            for row in count(sql).await? {
                pieces.add_core(row.project, row.day, row.row_count);
            }
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
    /// divided. Only the traces of a pass are looked at.
    async fn compare(&mut self, pair: Pair, batch: &Batch, pass: Share) -> Result<(), Error> {
        let moments = self.calendar.range(&batch.days);
        let shares_of_pass = match pair {
            Pair::SourceAndEvents => batch.shares,
            Pair::ViewAndCore => 1,
        };
        let of = shares_of_pass * pass.of;
        let shares = (0..shares_of_pass).map(|number| pass.number + number * pass.of);
        let mut shares: Vec<Share> = shares.map(|number| Share { of, number }).collect();
        self.server.forget_small_blocks();
        while let Some(share) = shares.pop() {
            let mut scope = Scope::new(batch, moments, share);
            match self.look_at(pair, &mut scope).await {
                Ok(Some((expected, actual))) => {
                    if pair == Pair::SourceAndEvents {
                        self.count(&expected, &actual);
                    }
                    let different = different_sums(&expected, &actual);
                    if !different.is_empty() {
                        self.narrow(pair, &scope, &different).await?;
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

    /// The sums of a scope, unless too much of it lies far away, or has several versions.
    async fn look_at(&self, pair: Pair, scope: &mut Scope) -> Result<Option<BothSums>, Refusal> {
        if pair == Pair::ViewAndCore {
            return self.sums(pair, scope, 1).await.map(Some);
        }
        match self.superseding.of(scope) {
            Some(superseded) => scope.superseded = superseded,
            None => return Ok(None),
        }
        let (server, statements) = (&self.server, &self.statements);
        match find_far_traces(server, statements, &self.wanderers, scope).await? {
            true => self.sums(pair, scope, 1).await.map(Some),
            false => Ok(None),
        }
    }

    fn count(&mut self, expected: &SumsByKey, actual: &SumsByKey) {
        let mut live = 0;
        for (key, sums) in expected {
            match key.2 {
                Class::Aside => {
                    self.report.root_spans_left_to_live_roots += sums.row_count;
                    continue;
                }
                Class::Live => {
                    self.report.left_to_live_rows += sums.row_count;
                    live += sums.row_count;
                }
                Class::Ordinary | Class::Root => {}
            }
            self.report.observations += sums.row_count - sums.of_traces;
            self.report.observations_without_trace += sums.without_trace;
            self.report.root_spans += sums.of_traces;
        }
        let mut others = 0;
        for (key, sums) in actual {
            match key.2 {
                Class::Aside if self.statements.root_spans => continue,
                Class::Aside => self.report.root_spans += sums.row_count,
                Class::Live => {
                    self.report.events += sums.row_count;
                    others += sums.row_count;
                }
                Class::Ordinary | Class::Root => self.report.events += sums.row_count,
            }
        }
        self.report.written_by_others += others.saturating_sub(live);
    }

    /// The sums of both sides, at the same time.
    async fn sums(&self, pair: Pair, scope: &Scope, slices: u64) -> Result<BothSums, Refusal> {
        let ask = async |side| {
            let sql = self.statements.sums(pair, side, scope, slices);
            let what = match (pair, side) {
                (Pair::SourceAndEvents, Side::Source) => "the observations",
                (Pair::ViewAndCore, Side::Target) => "the rows of the view's table",
                _ => "the events",
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
        let is_compared = matches!(key.2, Class::Ordinary | Class::Root);
        if is_compared && !are_equal(expected.get(key), actual.get(key)) {
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
