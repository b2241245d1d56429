//! What the proof came to, as text and as JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::examples::Example;
use super::findings::Kind;

/// Rows that are shown.
pub const EXAMPLES: usize = 10;

/// What is to be said about a partition of which everything was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Equal,
    /// What is wrong, and what to do about it, in one sentence.
    Different(String),
}

/// What the proof came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
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
    /// Events that differ in something of the observation, and perhaps of the trace.
    pub different: u64,
    /// Events that differ only in something of the trace.
    pub stale: u64,
    /// Events that were written or deleted later than their observation: no error.
    pub newer: u64,
    /// Events without an observation that something else wrote: no error.
    pub written_by_others: u64,
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
    pub fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Missing => &mut self.missing,
            Kind::Extra => &mut self.extra,
            Kind::Doubled => &mut self.doubled,
            Kind::Different => &mut self.different,
            Kind::Stale => &mut self.stale,
            Kind::Newer => &mut self.newer,
            Kind::ByOthers => &mut self.written_by_others,
        } += 1;
    }

    /// Rows that are wrong.
    pub fn wrong(&self) -> u64 {
        self.missing + self.extra + self.doubled + self.different + self.stale
    }

    /// What it says about both sides, and what to do where something is wrong.
    pub fn verdict(&self) -> Verdict {
        if self.wrong() == 0 {
            return Verdict::Equal;
        }
        let kinds = [
            ("missing", self.missing),
            ("different", self.different),
            ("stale", self.stale),
            ("doubled", self.doubled),
            ("extra", self.extra),
        ];
        let there_are = kinds.iter().filter(|(_, count)| *count > 0);
        let there_are: Vec<String> = there_are
            .map(|(name, count)| format!("{} {name}", HumanCount(*count)))
            .collect();
        let can_be_written = self.missing + self.different + self.stale > 0;
        let can_be_deleted = self.doubled + self.extra > 0;
        let advice = match (can_be_written, can_be_deleted) {
            (true, false) => {
                "run the backfill of this partition again, with the same options and --restart"
            }
            (true, true) => {
                "run the backfill of this partition again, with the same options and --restart, and \
                 delete by hand what is doubled or extra"
            }
            (false, _) => "delete by hand what is doubled or extra, a backfill deletes nothing",
        };
        let (rows, are, them) = match self.wrong() {
            1 => ("row", "is", "it"),
            _ => ("rows", "are", "them"),
        };
        let at_least = match self.not_narrowed {
            0 => "",
            _ => "at least ",
        };
        Verdict::Different(format!(
            "{at_least}{} {rows} of {}, partition {}, {are} not what observations and traces make \
             of {them} ({}): {advice}",
            HumanCount(self.wrong()),
            self.target_table,
            self.partition,
            there_are.join(", ")
        ))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |number: u64| HumanCount(number).to_string();
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
        let rows: [(&str, String); 18] = [
            ("Partition", self.partition.clone()),
            ("Target table", self.target_table.clone()),
            ("Result", result.to_owned()),
            (
                "Pieces compared",
                format!("{} of {}", count(self.pieces_compared), count(self.pieces)),
            ),
            ("Pieces that differ", count(self.pieces_different)),
            ("Observations", count(self.observations)),
            ("Events", count(self.events)),
            ("Missing", count(self.missing)),
            ("Different", count(self.different)),
            ("Stale (trace attributes)", count(self.stale)),
            ("Doubled", count(self.doubled)),
            ("Extra", count(self.extra)),
            ("Newer (no error)", count(self.newer)),
            (
                "Written by others (no error)",
                count(self.written_by_others),
            ),
            ("Root spans", root_spans),
            (
                "Observations without trace",
                count(self.observations_without_trace),
            ),
            ("Not compared", not_compared),
            ("Time", format!("{:.1} s", self.seconds)),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<30}{value}")?;
        }
        if self.not_narrowed > 0 {
            writeln!(
                f,
                "{:<30}{} rows in pieces that differ too",
                "Not looked at one by one",
                count(self.not_narrowed)
            )?;
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
