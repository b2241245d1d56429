//! State of a verification, and its sequence of steps.

use std::ops::RangeInclusive;

use indicatif::HumanCount;

use super::examples;
use super::findings::Findings;
use super::missing::Missing;
use super::pieces::{Batch, Calendar, DifferentPieces, Pieces, with_margin};
use super::report::Report;
use super::rows::{DayStart, EventRows, MovedTrace, Number, PieceRows, Sums, Versions, Widths};
use super::scope::{Class, Scope, Share};
use super::server::{QueryError, Server};
use super::statements::{Pair, Side, Statements};
use super::sums::{BothSums, SumsByKey, different_sums, key_of};
use super::traces::find_far_traces;
use super::versions::{MOST_VERSIONS, Superseding};
use crate::cli::options::Options;
use crate::clickhouse::retry::Retries;
use crate::clickhouse::{Connection, now_in_microseconds};
use crate::error::Error;
use crate::inspect::{Inspected, LEFT_TO_LANGFUSE};
use crate::partition::Day;
use crate::progress::{Display, Phase};

/// State of a verification.
pub(super) struct Verification<'a> {
    pub(super) server: Server,
    pub(super) statements: Statements,
    pub(super) display: Display,
    pub(super) findings: &'a mut dyn Findings,
    pub(super) month: RangeInclusive<Day>,
    pub(super) calendar: Calendar,
    pub(super) moved_traces: Vec<MovedTrace>,
    pub(super) superseding: Superseding,
    pub(super) different: DifferentPieces,
    pub(super) missing: Missing,
    /// Events without an observation looked up elsewhere so far.
    pub(super) looked_for: usize,
    /// Event rows in the month.
    pub(super) event_rows: u64,
    /// Whether the target has live rows.
    pub(super) has_live: bool,
    /// Changes after this time are left to Langfuse if it also writes to the target.
    pub(super) until: Option<i64>,
    /// How far the server's clock is ahead, in microseconds.
    clock_ahead: i64,
    pub(super) report: Report,
}

impl<'a> Verification<'a> {
    pub(super) fn new(
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
            root_spans_compared: options.subject.root_spans,
            ..Report::default()
        };
        display.note(format_args!(
            "ClickHouse {}: comparing {} rows of {}.observations, partition {}, with {}",
            inspected.server.version,
            HumanCount(inspected.observation_partition.rows),
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
            moved_traces: Vec::new(),
            superseding: Superseding::default(),
            different: DifferentPieces::new(),
            missing: Missing::default(),
            looked_for: 0,
            event_rows: 0,
            has_live: false,
            until: options.subject.until,
            clock_ahead: inspected.server.clock_ahead,
            report,
        }
    }

    pub(super) async fn work(&mut self, inspected: &Inspected) -> Result<(), Error> {
        let widths = self.statements.widths();
        let widths = self.server.rows::<Widths>("the tables' parts", &widths);
        self.server.suit(&widths.await?);
        self.find_core(&inspected.target).await?;
        self.note_what_is_compared();
        self.calendar = self.read_calendar().await?;
        self.find_out_what_is_live().await?;
        let pieces = self.count_pieces().await?;
        self.report.pieces = pieces.count();
        self.event_rows = pieces.events();
        self.report.is_unfilled = !pieces.has_own_events();
        let moved_traces = self.statements.moved_traces(&with_margin(&self.month));
        let moved_traces = self
            .server
            .rows("traces with versions on several days", &moved_traces);
        self.moved_traces = moved_traces.await?;
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
                // The view's table, if any, is compared once more after this.
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
                "no view fills another table from {0}: verifying only {0}",
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

    /// Checks whether Langfuse also writes to the target, and up to when a backfill is then
    /// responsible for changes.
    async fn find_out_what_is_live(&mut self) -> Result<(), Error> {
        let sql = self.statements.some_live_row();
        let live = self.server.rows::<Number>("live rows", &sql).await?;
        self.has_live = !live.is_empty();
        if !self.has_live {
            self.until = None;
            return Ok(());
        }
        let until = self
            .until
            .unwrap_or_else(|| now_in_microseconds() + self.clock_ahead - LEFT_TO_LANGFUSE);
        self.until = Some(until);
        self.report.until = examples::rfc3339(until);
        self.report.until_second = u64::try_from((until - self.clock_ahead) / 1_000_000).ok();
        self.display.note(format_args!(
            "Langfuse also writes to {}: its rows are not compared, and changes after {} are left \
             to it",
            self.report.target_table,
            examples::moment(until)
        ));
        Ok(())
    }

    /// Finds observations with several versions, all or those of one pass. Returns how many passes
    /// the month needs.
    async fn find_superseding(&mut self, pass: Option<Share>) -> Result<u64, Error> {
        let what = "observation versions";
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
            let rows = self.server.rows::<PieceRows>("row counts per day", &sql);
            rows.await
        };
        for row in count(self.statements.count_observations()).await? {
            pieces.add_expected(row.project, row.day, row.row_count);
        }
        let month = self.calendar.range(&self.month);
        let events = self.statements.count_events(month);
        let events = self.server.rows::<EventRows>("row counts per day", &events);
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

    /// Compares a batch share by share, dividing shares that need too much of the server. Covers
    /// only the pass's traces.
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
                Err(error) if error.is_to_be_divided => {
                    self.report.divided += 1;
                    shares.extend(share.halves());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The sums of a scope, or `None` if it has too many distant traces or versions.
    async fn look_at(&self, pair: Pair, scope: &mut Scope) -> Result<Option<BothSums>, QueryError> {
        if pair == Pair::ViewAndCore {
            return self.sums(pair, scope, 1).await.map(Some);
        }
        match self.superseding.of(scope) {
            Some(superseded) => scope.superseded = superseded,
            None => return Ok(None),
        }
        let (server, statements) = (&self.server, &self.statements);
        match find_far_traces(server, statements, &self.moved_traces, scope).await? {
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

    /// The sums of both sides, computed concurrently.
    pub(super) async fn sums(
        &self,
        pair: Pair,
        scope: &Scope,
        slices: u64,
    ) -> Result<BothSums, QueryError> {
        let ask = async |side| {
            let sql = self.statements.sums(pair, side, scope, slices);
            let what = match (pair, side) {
                (Pair::SourceAndEvents, Side::Source) => "the observations",
                (Pair::ViewAndCore, Side::Target) => "the rows of the view's table",
                _ => "the events",
            };
            let rows = self.server.rows_of_share::<Sums>(what, &sql, scope.share);
            let rows = rows.await?.into_iter();
            Ok::<_, QueryError>(rows.map(|sums| (key_of(&sums), sums)).collect())
        };
        // Wait for both even if one fails, since the server would keep running the other.
        let (expected, actual) = tokio::join!(ask(Side::Source), ask(Side::Target));
        Ok((expected?, actual?))
    }
}
