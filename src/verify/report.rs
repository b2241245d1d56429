//! The result of verifying, as text and JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::examples::Example;
use super::findings::Kind;
use crate::error::Error;
use crate::progress::words::{count, seconds, write_lines};

/// Column width of the labels.
const WIDTH: usize = 30;

/// Maximum number of examples.
pub(super) const EXAMPLES: usize = 10;

/// The result of verifying.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Report {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// Compared table, as `database.table`.
    pub target_table: String,
    /// Whether everything was compared. False after an error or a signal.
    pub complete: bool,
    /// Whether everything was compared and nothing is wrong.
    pub equal: bool,
    /// Number of pieces: days on which a project has observations or events.
    pub pieces: u64,
    /// Pieces compared.
    pub pieces_compared: u64,
    /// Pieces with a wrong row.
    pub pieces_different: u64,
    /// Observations compared.
    pub observations: u64,
    /// Events compared.
    pub events: u64,
    /// Observations without an event.
    pub missing: u64,
    /// Events without an observation.
    pub extra: u64,
    /// Additional events of an observation, elsewhere than where it belongs.
    pub doubled: u64,
    /// Events of outdated versions of their observations.
    pub superseded: u64,
    /// Events with a wrong value from the observation, and possibly from the trace.
    pub different: u64,
    /// Events with a wrong value from the trace only.
    pub stale: u64,
    /// Events written or deleted after their observation: no error.
    pub newer: u64,
    /// Events without an observation, written by something else: no error.
    pub written_by_others: u64,
    /// Observations with versions of several types or days, one of which wins.
    pub observations_superseded: u64,
    /// A backfill's events whose experiment columns do not match the items.
    pub different_experiments: u64,
    /// A backfill's events that belong to a dataset run item.
    pub spans_in_experiments: u64,
    /// Rows beyond the first per key, if one of them is a backfill's: v4 reads without `FINAL` and
    /// counts each.
    pub doubled_in_full: u64,
    /// The same in the view's table.
    pub doubled_in_core: u64,
    /// Spans with both a backfill's event and a live one that starts at another time.
    pub beside_live: u64,
    /// Traces with both a backfill's root span and a live one with another id.
    pub second_roots: u64,
    /// The table that a view fills from the target, also compared.
    pub core_table: Option<String>,
    /// Events missing in the view's table.
    pub missing_in_core: u64,
    /// Events that differ in the view's table.
    pub different_in_core: u64,
    /// Events only in the view's table.
    pub extra_in_core: u64,
    /// Observations and traces with live events, which exist and are not compared.
    pub left_to_live_rows: u64,
    /// Traces that need no root span of a backfill, since they have a live one.
    pub root_spans_left_to_live_roots: u64,
    /// Dataset run items that live spans carry, and that no other spans should carry.
    pub items_left_to_live_spans: u64,
    /// What a TTL of the target removes from the month.
    pub expiry: Option<String>,
    /// Which rows the user cannot see.
    pub hidden: Option<String>,
    /// Observations and traces changed after `until` whose events are missing or outdated.
    pub left_to_live_path: u64,
    /// Changes after this time are left to Langfuse if it also writes to the target.
    pub until: Option<String>,
    /// `until` in seconds since 1970, by this machine's clock.
    #[serde(skip)]
    pub until_second: Option<u64>,
    /// Root spans of traces, compared or not.
    pub root_spans: u64,
    /// Whether root spans were compared.
    pub root_spans_compared: bool,
    /// Rows of differing pieces that were not checked individually, since too much was wrong
    /// already.
    pub not_narrowed: u64,
    /// Observations without a trace: no error, their events have no trace attributes.
    pub observations_without_trace: u64,
    /// Columns that could not be compared.
    pub not_compared: Vec<String>,
    /// Some of the wrong rows.
    pub examples: Vec<Example>,
    /// How often a statement was divided because the server lacked memory.
    pub divided: u64,
    /// Retried statements.
    pub retries: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Report {
    /// Counts a finding.
    pub(crate) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Missing => &mut self.missing,
            Kind::Extra => &mut self.extra,
            Kind::Doubled => &mut self.doubled,
            Kind::Different => &mut self.different,
            Kind::Stale => &mut self.stale,
            Kind::Newer => &mut self.newer,
            Kind::Superseded => &mut self.superseded,
            Kind::LeftToLivePath => &mut self.left_to_live_path,
            Kind::LeftToLiveRoot => &mut self.root_spans_left_to_live_roots,
            Kind::Experiment => &mut self.different_experiments,
            Kind::SecondRoot => &mut self.second_roots,
            Kind::BesideLive => &mut self.beside_live,
            Kind::MissingInCore => &mut self.missing_in_core,
            Kind::DifferentInCore => &mut self.different_in_core,
            Kind::ExtraInCore => &mut self.extra_in_core,
        } += 1;
    }

    /// Each kind of error with its count and remedy.
    fn kinds(&self) -> [(String, u64, Remedy); 14] {
        let full = table_name(&self.target_table);
        let core = self
            .core_table
            .as_deref()
            .map_or("the view's table", table_name);
        let kind = |name: &str, count, remedy| (name.to_owned(), count, remedy);
        [
            kind("missing", self.missing, Remedy::Repair),
            kind("different", self.different, Remedy::Repair),
            kind("stale", self.stale, Remedy::Repair),
            (
                "with wrong experiment columns".to_owned(),
                self.different_experiments,
                Remedy::Repair,
            ),
            (
                format!("missing in {core}"),
                self.missing_in_core,
                Remedy::Repair,
            ),
            (
                format!("different in {core}"),
                self.different_in_core,
                Remedy::Repair,
            ),
            (
                format!("unmerged duplicates in {full}"),
                self.doubled_in_full,
                Remedy::Optimize,
            ),
            (
                format!("unmerged duplicates in {core}"),
                self.doubled_in_core,
                Remedy::Optimize,
            ),
            kind("doubled", self.doubled, Remedy::Delete),
            ("superseded".to_owned(), self.superseded, Remedy::Delete),
            kind("extra", self.extra, Remedy::Delete),
            kind("with a second root span", self.second_roots, Remedy::Delete),
            kind("beside live rows", self.beside_live, Remedy::Delete),
            (
                format!("only in {core}"),
                self.extra_in_core,
                Remedy::Delete,
            ),
        ]
    }

    /// Number of wrong rows.
    pub(crate) fn wrong(&self) -> u64 {
        self.kinds().iter().map(|(_, count, _)| count).sum()
    }

    /// The verdict, once everything was compared.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind::Failed) with what is wrong and what to do.
    pub(super) fn verdict(&self) -> Result<(), Error> {
        if self.wrong() == 0 {
            return Ok(());
        }
        let kinds = self.kinds();
        let wrong = || kinds.iter().filter(|(_, count, _)| *count > 0);
        let there_are: Vec<String> = wrong()
            .map(|(name, count, _)| format!("{} {name}", HumanCount(*count)))
            .collect();
        let mut advice = Vec::new();
        let names_of = |remedy| {
            let names = wrong().filter(move |kind| kind.2 == remedy);
            let names: Vec<&str> = names.map(|kind| kind.0.as_str()).collect();
            names.join(", ")
        };
        if !names_of(Remedy::Repair).is_empty() {
            advice.push(
                "run `events-backfill repair` on this partition, with the options of the run, to \
                 rewrite what is missing, different or stale"
                    .to_owned(),
            );
        }
        if !names_of(Remedy::Optimize).is_empty() {
            advice.push(
                "run `events-backfill repair --optimize` on this partition to merge duplicates, \
                 which may take hours"
                    .to_owned(),
            );
        }
        let to_delete = names_of(Remedy::Delete);
        if !to_delete.is_empty() {
            advice.push(format!(
                "delete rows by hand ({to_delete}), since a repair never deletes"
            ));
        }
        // The TTL would remove rewritten rows again.
        advice.extend(self.expiry.iter().map(|what| format!("fix first: {what}")));
        if let Some(hidden) = &self.hidden {
            // Events of hidden rows are not wrong.
            advice = vec![format!(
                "{hidden}: verify as a user that sees all rows before deleting or repairing \
                 anything"
            )];
        }
        let advice = advice.join("; ");
        let (rows, do_not, their) = match self.wrong() {
            1 => ("row", "does not", "its"),
            _ => ("rows", "do not", "their"),
        };
        let at_least = match self.not_narrowed {
            0 => "",
            _ => "at least ",
        };
        Err(Error::failed(format!(
            "{at_least}{} {rows} of {}, partition {}, {do_not} match {their} observation and trace \
             ({}): {advice}",
            HumanCount(self.wrong()),
            self.target_table,
            self.partition,
            there_are.join(", ")
        )))
    }
}

/// How to fix an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Rewrite the rows.
    Repair,
    /// Let ClickHouse merge them.
    Optimize,
    /// Delete them by hand.
    Delete,
}

/// A table's name without its database.
fn table_name(label: &str) -> &str {
    label.rsplit_once('.').map_or(label, |(_, name)| name)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match (self.complete, self.equal) {
            (false, _) => "incomplete",
            (true, true) => "equal",
            (true, false) => "different",
        };
        let not_compared = match self.not_compared.is_empty() {
            true => "nothing".to_owned(),
            false => self.not_compared.join(", "),
        };
        let root_spans = match (self.root_spans_compared, self.root_spans) {
            (true, _) | (_, 0) => count(self.root_spans),
            (false, _) => format!("{}, not compared: add --root-spans", count(self.root_spans)),
        };
        let rows: [(&str, String); 17] = [
            ("Partition", self.partition.clone()),
            ("Target table", self.target_table.clone()),
            ("Result", result.to_owned()),
            (
                "Pieces compared",
                format!("{} of {}", count(self.pieces_compared), count(self.pieces)),
            ),
            ("Differing pieces", count(self.pieces_different)),
            ("Observations", count(self.observations)),
            (
                "  with several versions",
                count(self.observations_superseded),
            ),
            ("Events", count(self.events)),
            ("Missing", count(self.missing)),
            ("Different", count(self.different)),
            ("Stale (trace attributes)", count(self.stale)),
            ("Doubled", count(self.doubled)),
            ("Extra", count(self.extra)),
            ("Root spans", root_spans),
            (
                "Observations without trace",
                count(self.observations_without_trace),
            ),
            ("Not compared", not_compared),
            ("Time", seconds(self.seconds)),
        ];
        write_lines(f, WIDTH, rows)?;
        // Zero in most months, so shown only if not.
        let rest = [
            ("Superseded", self.superseded),
            ("Wrong experiment columns", self.different_experiments),
            ("Unmerged duplicates", self.doubled_in_full),
            ("  in the view's table", self.doubled_in_core),
            ("Missing in the view's table", self.missing_in_core),
            ("  different in that table", self.different_in_core),
            ("  only in that table", self.extra_in_core),
            ("Second root spans", self.second_roots),
            ("Beside live rows", self.beside_live),
            ("Newer (no error)", self.newer),
            ("Written by others (no error)", self.written_by_others),
            ("Left to live rows", self.left_to_live_rows),
            (
                "Left to live root spans",
                self.root_spans_left_to_live_roots,
            ),
            ("Items left to live spans", self.items_left_to_live_spans),
            ("Left to Langfuse (late)", self.left_to_live_path),
        ];
        let rest = rest.into_iter().filter(|(_, number)| *number > 0);
        write_lines(f, WIDTH, rest.map(|(name, number)| (name, count(number))))?;
        if self.not_narrowed > 0 {
            let rows = format!("{} more rows in differing pieces", count(self.not_narrowed));
            write_lines(f, WIDTH, [("Not checked individually", rows)])?;
        }
        if !self.examples.is_empty() {
            writeln!(
                f,
                "\n{} of {} wrong rows:",
                self.examples.len(),
                count(self.wrong())
            )?;
        }
        for example in &self.examples {
            writeln!(f, "{example}")?;
        }
        Ok(())
    }
}
