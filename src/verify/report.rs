//! The result of verifying, as text and JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::Serialize;

use super::examples::Example;
use super::findings::Kind;
use crate::error::Error;
use crate::progress::words::{count, plural, seconds, table_name, write_lines};

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
    /// Whether the month has no row of a backfill, and the state directory no finished run.
    #[serde(skip)]
    pub is_unfilled: bool,
    /// What ends the unfinished run of the month, if there is one: what it has not written yet is missing.
    #[serde(skip)]
    pub unfinished: Option<String>,
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

    /// The view's table for people.
    pub(super) fn core_name(&self) -> &str {
        let core = self.core_table.as_deref();
        core.map_or("the view's table", table_name)
    }

    /// Each kind of error with its count, its table and its remedy.
    fn kinds(&self) -> [(String, u64, Side, Remedy); 14] {
        let (full, core) = (table_name(&self.target_table), self.core_name());
        let in_full = |name: &str, count, remedy| (name.to_owned(), count, Side::Full, remedy);
        let in_core =
            |name: &str, count, remedy| (format!("{name} {core}"), count, Side::Core, remedy);
        let experiments = self.different_experiments;
        let unmerged = format!("unmerged duplicates in {full}");
        [
            in_full("missing", self.missing, Remedy::Repair),
            in_full("different", self.different, Remedy::Repair),
            in_full("stale", self.stale, Remedy::Repair),
            in_full("with wrong experiment columns", experiments, Remedy::Repair),
            in_core("missing in", self.missing_in_core, Remedy::Repair),
            in_core("different in", self.different_in_core, Remedy::Repair),
            in_full(&unmerged, self.doubled_in_full, Remedy::Optimize),
            in_core(
                "unmerged duplicates in",
                self.doubled_in_core,
                Remedy::Optimize,
            ),
            in_full("doubled", self.doubled, Remedy::Delete),
            in_full("superseded", self.superseded, Remedy::Delete),
            in_full("extra", self.extra, Remedy::Delete),
            in_core("only in", self.extra_in_core, Remedy::Delete),
            in_full("with a second root span", self.second_roots, Remedy::Delete),
            in_full("beside live rows", self.beside_live, Remedy::Delete),
        ]
    }

    /// The lines of the summary about what was found, in the order of [`Report::kinds`] and of
    /// docs/operating.md: what a repair mends, what merging mends, what is to be deleted, and then what is no
    /// error.
    fn found(&self) -> [(String, u64, Shown); 20] {
        let (full, core) = (table_name(&self.target_table), self.core_name());
        let always = |name: &str, count| (name.to_owned(), count, Shown::Always);
        let if_any = |name: &str, count| (name.to_owned(), count, Shown::IfAny);
        let in_table =
            |what: &str, table: &str, count| (format!("{what} {table}"), count, Shown::IfAny);
        [
            always("Missing", self.missing),
            always("Different", self.different),
            always("Stale (trace attributes)", self.stale),
            if_any("Wrong experiment columns", self.different_experiments),
            in_table("Missing in", core, self.missing_in_core),
            in_table("Different in", core, self.different_in_core),
            in_table("Unmerged in", full, self.doubled_in_full),
            in_table("Unmerged in", core, self.doubled_in_core),
            always("Doubled", self.doubled),
            if_any("Superseded", self.superseded),
            always("Extra", self.extra),
            in_table("Only in", core, self.extra_in_core),
            if_any("Second root spans", self.second_roots),
            if_any("Beside live rows", self.beside_live),
            if_any("Newer (no error)", self.newer),
            if_any("Written by others (no error)", self.written_by_others),
            if_any("Left to live rows", self.left_to_live_rows),
            if_any(
                "Left to live root spans",
                self.root_spans_left_to_live_roots,
            ),
            if_any("Items left to live spans", self.items_left_to_live_spans),
            if_any("Left to Langfuse (late)", self.left_to_live_path),
        ]
    }

    /// Number of wrong rows.
    pub(crate) fn wrong(&self) -> u64 {
        self.kinds().iter().map(|(_, count, ..)| count).sum()
    }

    /// The verdict, once everything was compared.
    ///
    /// # Errors
    /// [`Kind::Failed`](crate::error::Kind::Failed) with what is wrong and what to do.
    pub(super) fn verdict(&self) -> Result<(), Error> {
        if self.wrong() == 0 {
            return Ok(());
        }
        let at_least = match self.not_narrowed {
            0 => "",
            _ => "at least ",
        };
        let is_explained = self.hidden.is_some() || self.expiry.is_some();
        if self.is_unfilled
            && self.unfinished.is_none()
            && self.wrong() == self.missing
            && !is_explained
        {
            return Err(Error::failed(format!(
                "no run has filled partition {} of {} yet ({at_least}{} missing): run \
                 `events-backfill --partition {}` first, with the same options",
                self.partition,
                self.target_table,
                plural(self.missing, "event"),
                self.partition
            )));
        }
        let kinds = self.kinds();
        let wrong = || kinds.iter().filter(|(_, count, ..)| *count > 0);
        let there_are: Vec<String> = wrong()
            .map(|(name, count, ..)| format!("{} {name}", HumanCount(*count)))
            .collect();
        let has_wrong = |side| wrong().any(|kind| kind.2 == side);
        let tables = [
            (Side::Full, Some(&self.target_table)),
            (Side::Core, self.core_table.as_ref()),
        ];
        let tables = tables.into_iter().filter(|table| has_wrong(table.0));
        let tables: Vec<&str> = tables
            .filter_map(|table| table.1.map(String::as_str))
            .collect();
        let (rows, are) = match self.wrong() {
            1 => ("row", "is"),
            _ => ("rows", "are"),
        };
        Err(Error::failed(format!(
            "{at_least}{} {rows} of {}, partition {}, {are} wrong ({}): {}",
            HumanCount(self.wrong()),
            tables.join(" and "),
            self.partition,
            there_are.join(", "),
            self.advice()
        )))
    }

    /// What to do about what is wrong.
    fn advice(&self) -> String {
        if let Some(hidden) = &self.hidden {
            // Events of hidden rows are not wrong.
            return format!(
                "{hidden}: verify as a user that sees all rows before deleting or repairing \
                 anything"
            );
        }
        let kinds = self.kinds();
        let names_of = |remedy| {
            let names = kinds.iter().filter(|kind| kind.1 > 0 && kind.3 == remedy);
            let names: Vec<&str> = names.map(|kind| kind.0.as_str()).collect();
            names.join(", ")
        };
        if let Some(remedy) = &self.unfinished {
            return format!("{remedy}, then verify again");
        }
        let mut advice = Vec::new();
        let partition = &self.partition;
        let is_wrong = |remedy| !names_of(remedy).is_empty();
        match (is_wrong(Remedy::Repair), is_wrong(Remedy::Optimize)) {
            (false, false) => {}
            (true, false) => advice.push(format!(
                "run `events-backfill repair --partition {partition}`, with the options of the run, to \
                 rewrite what is missing, different or stale"
            )),
            (true, true) => advice.push(format!(
                "run `events-backfill repair --partition {partition} --optimize`, with the options of the \
                 run, to rewrite what is missing, different or stale and to merge duplicates, which may \
                 take hours"
            )),
            (false, true) => advice.push(format!(
                "run `events-backfill repair --partition {partition} --optimize`, with the options of the \
                 run, to merge duplicates, which may take hours"
            )),
        }
        let to_delete = names_of(Remedy::Delete);
        if !to_delete.is_empty() {
            advice.push(format!(
                "delete rows by hand ({to_delete}), since a repair never deletes"
            ));
        }
        // The TTL would remove rewritten rows again.
        advice.extend(self.expiry.iter().map(|what| format!("fix first: {what}")));
        advice.join("; ")
    }
}

/// When the summary has a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// In each summary.
    Always,
    /// If there are any: in most months there are none.
    IfAny,
}

/// Where a wrong row is, or should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The target.
    Full,
    /// The view's table.
    Core,
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
        let compared: [(&str, String); 10] = [
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
            (
                "Observations without trace",
                count(self.observations_without_trace),
            ),
            ("Events", count(self.events)),
            ("Root spans", root_spans),
        ];
        write_lines(f, WIDTH, compared)?;
        let found = self.found().into_iter();
        let found = found.filter(|(_, number, shown)| *shown == Shown::Always || *number > 0);
        write_lines(
            f,
            WIDTH,
            found.map(|(name, number, _)| (name, count(number))),
        )?;
        if self.not_narrowed > 0 {
            let rows = format!("{} more rows in differing pieces", count(self.not_narrowed));
            write_lines(f, WIDTH, [("Not checked individually", rows)])?;
        }
        let end = [
            ("Not compared", not_compared),
            ("Time", seconds(self.seconds)),
        ];
        write_lines(f, WIDTH, end)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            partition: "202406".to_owned(),
            target_table: "a.events_full".to_owned(),
            core_table: Some("a.events_core".to_owned()),
            ..Report::default()
        }
    }

    fn told(report: &Report) -> String {
        report.verdict().unwrap_err().to_string()
    }

    #[test]
    fn the_verdict_names_the_table_whose_rows_are_wrong() {
        let core = Report {
            doubled_in_core: 4,
            ..report()
        };
        let begin = "4 rows of a.events_core, partition 202406, are wrong (4 unmerged duplicates \
                     in events_core): ";
        assert!(told(&core).starts_with(begin), "{}", told(&core));
        let both = Report {
            missing: 1_000,
            not_narrowed: 5,
            ..core
        };
        let begin = "at least 1,004 rows of a.events_full and a.events_core, partition 202406, are \
                     wrong (1,000 missing, 4 unmerged duplicates in events_core): ";
        assert!(told(&both).starts_with(begin), "{}", told(&both));
        let full = Report {
            extra: 1,
            ..report()
        };
        let begin =
            "1 row of a.events_full, partition 202406, is wrong (1 extra): delete rows by hand";
        assert!(told(&full).starts_with(begin), "{}", told(&full));
    }

    #[test]
    fn a_month_that_no_run_has_filled_is_to_be_run_and_not_repaired() {
        let unfilled = Report {
            missing: 12_345,
            is_unfilled: true,
            ..report()
        };
        assert_eq!(
            told(&unfilled),
            "no run has filled partition 202406 of a.events_full yet (12,345 events missing): run \
             `events-backfill --partition 202406` first, with the same options"
        );
        // Whatever else is wrong is not mended by a run.
        let damaged = Report {
            extra_in_core: 1,
            ..unfilled
        };
        assert!(told(&damaged).contains("by hand"), "{}", told(&damaged));
    }

    #[test]
    fn the_summary_names_the_tables() {
        let report = Report {
            doubled_in_full: 1,
            doubled_in_core: 2,
            different_in_core: 3,
            ..report()
        };
        let text = report.to_string();
        for line in [
            "\nUnmerged in events_full       1\n",
            "\nUnmerged in events_core       2\n",
            "\nDifferent in events_core      3\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("Missing in"), "{text}");
    }

    #[test]
    fn the_summary_has_what_is_mended_in_one_way_together_and_what_is_no_error_last() {
        let report = Report {
            doubled_in_core: 1,
            superseded: 1,
            different_experiments: 1,
            extra_in_core: 1,
            beside_live: 1,
            newer: 1,
            ..report()
        };
        let text = report.to_string();
        let places = [
            "Result",
            "Missing",
            "Wrong experiment columns",
            "Unmerged in events_core",
            "Doubled",
            "Superseded",
            "Extra",
            "Only in events_core",
            "Beside live rows",
            "Newer (no error)",
            "Not compared",
        ]
        .map(|name| text.find(&format!("\n{name} ")));
        assert!(places.iter().all(Option::is_some), "{places:?} {text}");
        assert!(places.is_sorted(), "{places:?} {text}");
    }
}
