//! What the proof came to, as text and as JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::examples::Example;
use super::findings::Kind;
use crate::error::Error;
use crate::progress::words::{count, seconds, write_lines};

/// Characters before a value in the text.
const WIDTH: usize = 30;

/// Rows that are shown.
pub(super) const EXAMPLES: usize = 10;

/// What the proof came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Report {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// `database.table` that was compared.
    pub target_table: String,
    /// Whether everything was compared; not so after an error or a signal.
    pub complete: bool,
    /// Whether everything was compared and nothing is wrong.
    pub equal: bool,
    /// Pieces: days on which a project has observations or events.
    pub pieces: u64,
    /// Pieces that were compared.
    pub pieces_compared: u64,
    /// Pieces in which something is wrong.
    pub pieces_different: u64,
    /// Observations that were compared.
    pub observations: u64,
    /// Events that were compared.
    pub events: u64,
    /// Observations without an event.
    pub missing: u64,
    /// Events without an observation.
    pub extra: u64,
    /// Events besides the one of their observation.
    pub doubled: u64,
    /// Events of versions of their observations that do not count.
    pub superseded: u64,
    /// Events that differ in something of the observation, and perhaps of the trace.
    pub different: u64,
    /// Events that differ only in something of the trace.
    pub stale: u64,
    /// Events that were written or deleted later than their observation: no error.
    pub newer: u64,
    /// Events without an observation that something else wrote: no error.
    pub written_by_others: u64,
    /// Observations that have versions of several types or days, of which one counts.
    pub observations_superseded: u64,
    /// Events of a backfill that say something else of experiments than the items do.
    pub different_experiments: u64,
    /// Events of a backfill that belong to an item of a dataset run.
    pub spans_in_experiments: u64,
    /// Rows besides the first of each key, where one is a backfill's: v4 reads without `FINAL`
    /// and counts each.
    pub doubled_in_full: u64,
    /// The same in the table that the view fills.
    pub doubled_in_core: u64,
    /// Spans that have an event of a backfill and a live one at another time.
    pub beside_live: u64,
    /// Traces that have a root span of a backfill and a live one under another id.
    pub second_roots: u64,
    /// The table that a view fills from the target, which is compared with it.
    pub core_table: Option<String>,
    /// Events that it lacks.
    pub missing_in_core: u64,
    /// Events that it has otherwise than the view makes them.
    pub different_in_core: u64,
    /// Events that only it has.
    pub extra_in_core: u64,
    /// Observations and traces whose events something live wrote: they are there, and not
    /// compared.
    pub left_to_live_rows: u64,
    /// Traces that need no root span of a backfill, since they have a live one.
    pub root_spans_left_to_live_roots: u64,
    /// Items of dataset runs that live spans carry, and that are expected on no others.
    pub items_left_to_live_spans: u64,
    /// What a TTL of the target takes of the month.
    pub expiry: Option<String>,
    /// Which rows the user does not see.
    pub hidden: Option<String>,
    /// Observations and traces that changed after `until`, and whose events are not there yet, or
    /// not as they should be.
    pub left_to_live_path: u64,
    /// What changed after this moment is left to Langfuse, if it writes to the target too.
    pub until: Option<String>,
    /// The same in seconds since 1970, by this machine's clock.
    #[serde(skip)]
    pub until_second: Option<u64>,
    /// Root spans of traces: those that were compared, or those that were left aside.
    pub root_spans: u64,
    /// Whether they were compared.
    pub root_spans_compared: bool,
    /// Rows of pieces that differ that were not looked at one by one, since so much
    /// was wrong already.
    pub not_narrowed: u64,
    /// Observations without a trace: no error, their events are expected without
    /// its attributes.
    pub observations_without_trace: u64,
    /// Columns that could not be compared.
    pub not_compared: Vec<String>,
    /// Some of the rows that are wrong.
    pub examples: Vec<Example>,
    /// How often a statement was divided because the server lacked memory for it.
    pub divided: u64,
    /// Questions that were repeated after a passing error.
    pub retries: u64,
    /// Seconds by the clock.
    pub seconds: f64,
}

impl Report {
    /// Counts what was found.
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

    /// What is wrong, with its number and what mends it.
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
                "with other experiment columns".to_owned(),
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
                format!("too many in {full} until it is merged"),
                self.doubled_in_full,
                Remedy::Optimize,
            ),
            (
                format!("too many in {core} until it is merged"),
                self.doubled_in_core,
                Remedy::Optimize,
            ),
            kind("doubled", self.doubled, Remedy::Delete),
            (
                "of versions that do not count".to_owned(),
                self.superseded,
                Remedy::Delete,
            ),
            kind("extra", self.extra, Remedy::Delete),
            kind("second roots", self.second_roots, Remedy::Delete),
            kind("beside live rows", self.beside_live, Remedy::Delete),
            (
                format!("only in {core}"),
                self.extra_in_core,
                Remedy::Delete,
            ),
        ]
    }

    /// Rows that are wrong.
    pub(crate) fn wrong(&self) -> u64 {
        self.kinds().iter().map(|(_, count, _)| count).sum()
    }

    /// What it says about both sides, once all was compared.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind::Failed) with what is wrong, and what to do about it.
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
                "let `events-backfill repair` of this partition, with the options of the run, \
                 write what is missing, different or stale"
                    .to_owned(),
            );
        }
        if !names_of(Remedy::Optimize).is_empty() {
            advice.push(
                "let `events-backfill repair --optimize` of this partition merge what stands more \
                 than once, which may take ClickHouse long"
                    .to_owned(),
            );
        }
        let to_delete = names_of(Remedy::Delete);
        if !to_delete.is_empty() {
            advice.push(format!(
                "delete by hand what is {to_delete}, since a backfill deletes nothing"
            ));
        }
        // Whatever is written again, it takes again.
        advice.extend(
            self.expiry
                .iter()
                .map(|what| format!("first see to {what}")),
        );
        if let Some(hidden) = &self.hidden {
            // What is made of rows that are not seen is not wrong.
            advice = vec![format!(
                "{hidden}: verify as one who sees all, before anything is deleted or repaired"
            )];
        }
        let advice = advice.join("; ");
        let (rows, are, them) = match self.wrong() {
            1 => ("row", "is", "it"),
            _ => ("rows", "are", "them"),
        };
        let at_least = match self.not_narrowed {
            0 => "",
            _ => "at least ",
        };
        Err(Error::failed(format!(
            "{at_least}{} {rows} of {}, partition {}, {are} not what observations and traces make \
             of {them} ({}): {advice}",
            HumanCount(self.wrong()),
            self.target_table,
            self.partition,
            there_are.join(", ")
        )))
    }
}

/// What mends something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// It is written again.
    Repair,
    /// ClickHouse merges it.
    Optimize,
    /// The operator deletes it.
    Delete,
}

/// The name of a table without its database.
fn table_name(label: &str) -> &str {
    label.rsplit_once('.').map_or(label, |(_, name)| name)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match (self.complete, self.equal) {
            (false, _) => "not everything was compared",
            (true, true) => "equal",
            (true, false) => "different",
        };
        let not_compared = match self.not_compared.is_empty() {
            true => "nothing".to_owned(),
            false => self.not_compared.join(", "),
        };
        let root_spans = match (self.root_spans_compared, self.root_spans) {
            (true, _) | (_, 0) => count(self.root_spans),
            (false, _) => format!("{}, not compared: say --root-spans", count(self.root_spans)),
        };
        let rows: [(&str, String); 17] = [
            ("Partition", self.partition.clone()),
            ("Target table", self.target_table.clone()),
            ("Result", result.to_owned()),
            (
                "Pieces compared",
                format!("{} of {}", count(self.pieces_compared), count(self.pieces)),
            ),
            ("Pieces that differ", count(self.pieces_different)),
            ("Observations", count(self.observations)),
            ("  of several versions", count(self.observations_superseded)),
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
        // What most months have nothing of.
        let rest = [
            ("Of versions that do not count", self.superseded),
            ("Other experiment columns", self.different_experiments),
            ("Too many until it is merged", self.doubled_in_full),
            ("  in the view's table", self.doubled_in_core),
            ("Missing in the view's table", self.missing_in_core),
            ("Different there", self.different_in_core),
            ("Only there", self.extra_in_core),
            ("Second roots", self.second_roots),
            ("Beside live rows", self.beside_live),
            ("Newer (no error)", self.newer),
            ("Written by others (no error)", self.written_by_others),
            ("Left to live rows", self.left_to_live_rows),
            (
                "Left to live root spans",
                self.root_spans_left_to_live_roots,
            ),
            ("Items left to live spans", self.items_left_to_live_spans),
            ("Left to Langfuse, since late", self.left_to_live_path),
        ];
        let rest = rest.into_iter().filter(|(_, number)| *number > 0);
        write_lines(f, WIDTH, rest.map(|(name, number)| (name, count(number))))?;
        if self.not_narrowed > 0 {
            let rows = format!(
                "{} rows in pieces that differ too",
                count(self.not_narrowed)
            );
            write_lines(f, WIDTH, [("Not looked at one by one", rows)])?;
        }
        if !self.examples.is_empty() {
            writeln!(
                f,
                "\n{} of {} rows that are wrong:",
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
