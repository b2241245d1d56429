//! The result of a repair, as text and JSON.

use std::fmt;

use indicatif::HumanCount;
use serde::{Deserialize, Serialize};

use super::optimize::Optimized;
use super::pieces::Wanted;
use crate::cli::options::Options;
use crate::inspect::Inspected;
use crate::memory::ByteSize;
use crate::progress::words::{count, seconds, table_name, write_lines};
use crate::state::checkpoint::Checkpoint;
use crate::state::report::dry_run_in_words;

/// Column width of the labels.
const WIDTH: usize = 42;

/// What was wrong before the repair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Observations and traces without an event.
    pub missing: u64,
    /// Events with a wrong value from the observation.
    pub different: u64,
    /// Events with a wrong value from the trace only.
    pub stale: u64,
    /// Events whose experiment columns do not match the items.
    pub different_experiments: u64,
    /// Events missing in the view's table.
    pub missing_in_core: u64,
    /// Events that differ in the view's table.
    pub different_in_core: u64,
    /// Rows beyond the first per key in the target.
    pub doubled_in_full: u64,
    /// Rows beyond the first per key in the view's table.
    pub doubled_in_core: u64,
    /// Additional events of an observation.
    pub doubled: u64,
    /// Events of outdated versions.
    pub superseded: u64,
    /// Events without an observation.
    pub extra: u64,
    /// Root spans of traces that also have a live one.
    pub second_roots: u64,
    /// Events of spans that also have a live one.
    pub beside_live: u64,
    /// Events only in the view's table.
    pub extra_in_core: u64,
    /// Amount to write.
    pub wanted: Wanted,
}

impl Found {
    /// Copies verify's findings.
    pub(super) fn of(verified: &crate::verify::Report) -> Self {
        Self {
            missing: verified.missing,
            different: verified.different,
            stale: verified.stale,
            different_experiments: verified.different_experiments,
            missing_in_core: verified.missing_in_core,
            different_in_core: verified.different_in_core,
            doubled_in_full: verified.doubled_in_full,
            doubled_in_core: verified.doubled_in_core,
            doubled: verified.doubled,
            superseded: verified.superseded,
            extra: verified.extra,
            second_roots: verified.second_roots,
            beside_live: verified.beside_live,
            extra_in_core: verified.extra_in_core,
            wanted: Wanted::default(),
        }
    }
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Report {
    /// The partition, `YYYYMM`.
    pub partition: String,
    /// Repaired table, as `database.table`.
    pub target_table: String,
    /// The table that a view fills from the target, as `database.table`.
    #[serde(skip)]
    pub core_table: Option<String>,
    /// A TTL of the target that removes rows or values of the month, as a sentence.
    #[serde(skip)]
    pub expiry: Option<String>,
    /// Whether it only searched and wrote nothing.
    pub dry_run: bool,
    /// Whether it used an earlier process's findings.
    pub resumed: bool,
    /// Whether it finished.
    pub complete: bool,
    /// What was wrong.
    pub found: Found,
    /// Rows to write, counted individually.
    pub rows_wanted: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Rows that a live row or an earlier attempt had fixed by then.
    pub rows_there_meanwhile: u64,
    /// Segments to write.
    pub segments_total: u64,
    /// Segments written.
    pub segments_done: u64,
    /// Target rows with unmerged duplicates, if counted.
    pub rows_to_merge: Option<u64>,
    /// Merged tables.
    pub optimized: Vec<Optimized>,
    /// Retried statements and inserts.
    pub retries: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Peak resident memory, in bytes.
    pub peak_rss_bytes: u64,
}

/// One kind of rows that a repair leaves.
struct Left {
    /// What they are.
    name: String,
    /// Where they are, if the name does not say.
    place: Option<String>,
    /// Their number.
    count: u64,
    /// What to do about them.
    advice: &'static str,
    /// Whether the target has some.
    in_full: bool,
    /// Whether the view's table has some.
    in_core: bool,
}

impl Report {
    /// An empty report.
    pub(super) fn begin(options: &Options, inspected: &Inspected) -> Self {
        let names = inspected.written.iter();
        let mut names = names.map(|table| format!("{}.{}", table.database, table.name));
        Self {
            partition: options.partition.to_string(),
            target_table: names.next().unwrap_or_default(),
            core_table: names.next(),
            dry_run: options.dry_run,
            expiry: inspected.expiry.clone(),
            ..Self::default()
        }
    }

    /// Records the work to do.
    pub(super) fn take(&mut self, checkpoint: &Checkpoint, wanted: Wanted) {
        let segments = checkpoint.segments.iter().flatten();
        let rows: u64 = segments.map(|segment| segment.rows).sum();
        self.rows_wanted = rows.saturating_sub(wanted.of_either);
        self.segments_total = checkpoint.segments.as_ref().map_or(0, Vec::len) as u64;
    }

    /// Adds what was written.
    pub(super) fn add(&mut self, mended: &crate::state::report::Report) {
        self.rows_written = mended.events_inserted + mended.root_spans_inserted.unwrap_or(0);
        self.rows_there_meanwhile = mended.left_to_live_rows + mended.already_there;
        self.segments_done = mended.segments_done;
        self.rows_to_merge = mended.rows_to_merge;
    }

    /// Rows to write whose source has since disappeared.
    fn gone(&self) -> u64 {
        if self.dry_run {
            return 0;
        }
        let done = self.rows_written + self.rows_there_meanwhile;
        self.rows_wanted.saturating_sub(done)
    }

    /// The view's table for people.
    pub(super) fn core_name(&self) -> &str {
        let core = self.core_table.as_deref();
        core.map_or("the view's table", table_name)
    }

    /// Whether the target and the view's table have unmerged duplicates, if there are any.
    fn have_duplicates(&self) -> (bool, bool) {
        let found = &self.found;
        // A row that is written again stands beside the old one, and the view copies it.
        let again = [
            found.different,
            found.stale,
            found.different_experiments,
            found.different_in_core,
        ];
        let wrote_again = self.rows_written > 0 && again.into_iter().any(|rows| rows > 0);
        let in_full = wrote_again || found.doubled_in_full > 0;
        let in_core = wrote_again || found.doubled_in_core > 0;
        match in_full || in_core {
            true => (in_full, in_core && self.core_table.is_some()),
            // Something else has written meanwhile.
            false => (true, self.core_table.is_some()),
        }
    }

    /// What is left.
    fn left(&self) -> Vec<Left> {
        let found = &self.found;
        let (full, core) = (table_name(&self.target_table), self.core_name());
        // The count from before the repair, until it is counted again.
        let found_doubled = found.doubled_in_full.max(found.doubled_in_core);
        let doubled = self.rows_to_merge.unwrap_or(found_doubled);
        let duplicates = self.have_duplicates();
        let tables = match duplicates {
            (true, true) => format!("{full} and {core}"),
            (false, true) => core.to_owned(),
            _ => full.to_owned(),
        };
        const DELETE: &str = "delete them by hand: a repair never deletes";
        const MERGE: &str = "merge them with --optimize";
        let left = |name: &str, count, advice, (in_full, in_core)| Left {
            name: name.to_owned(),
            place: None,
            count,
            advice,
            in_full,
            in_core,
        };
        let of_full = |name: &str, count| left(name, count, DELETE, (true, false));
        let only_core = format!("only in {core}");
        let left = [
            of_full("doubled", found.doubled),
            of_full("superseded", found.superseded),
            of_full("extra", found.extra),
            of_full("with a second root span", found.second_roots),
            of_full("beside live rows", found.beside_live),
            left(&only_core, found.extra_in_core, DELETE, (false, true)),
            Left {
                place: Some(tables),
                ..left("unmerged duplicates", doubled, MERGE, duplicates)
            },
            left(
                "changed during the repair",
                self.gone(),
                "verify again",
                (true, false),
            ),
        ];
        left.into_iter().filter(|left| left.count > 0).collect()
    }

    /// One sentence about what is left, or `None`.
    pub(super) fn what_is_left(&self) -> Option<String> {
        let left = self.left();
        if left.is_empty() {
            return None;
        }
        let rows: u64 = left.iter().map(|left| left.count).sum();
        let tables = [
            (
                left.iter().any(|left| left.in_full),
                Some(&self.target_table),
            ),
            (
                left.iter().any(|left| left.in_core),
                self.core_table.as_ref(),
            ),
        ];
        let tables = tables.into_iter().filter(|table| table.0);
        let tables: Vec<&str> = tables
            .filter_map(|table| table.1.map(String::as_str))
            .collect();
        let mut advice: Vec<(&str, Vec<String>)> = Vec::new();
        for left in left {
            let place = left
                .place
                .map_or_else(String::new, |place| format!(" in {place}"));
            let named = format!("{} {}{place}", HumanCount(left.count), left.name);
            match advice.iter_mut().find(|advice| advice.0 == left.advice) {
                Some((_, names)) => names.push(named),
                None => advice.push((left.advice, vec![named])),
            }
        }
        let mut advice: Vec<String> = advice
            .into_iter()
            .map(|(what, names)| format!("{}: {what}", names.join(", ")))
            .collect();
        // The TTL would remove the rewritten rows again.
        let expiry = self.expiry.iter();
        advice.extend(expiry.map(|what| format!("fix first: {what}")));
        let (rows_are, count) = match rows {
            1 => ("row is", HumanCount(1)),
            _ => ("rows are", HumanCount(rows)),
        };
        Some(format!(
            "{count} {rows_are} left in {}, partition {} ({})",
            tables.join(" and "),
            self.partition,
            advice.join("; ")
        ))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| write_lines(f, WIDTH, [(name, value)]);
        let found = &self.found;
        line("Partition", self.partition.clone())?;
        line("Target table", self.target_table.clone())?;
        if self.dry_run {
            line("Dry run", dry_run_in_words(true))?;
        }
        let (full, core) = (table_name(&self.target_table), self.core_name());
        let kinds = [
            ("missing".to_owned(), found.missing),
            ("different".to_owned(), found.different),
            ("stale (trace attributes)".to_owned(), found.stale),
            (
                "wrong experiment columns".to_owned(),
                found.different_experiments,
            ),
            (format!("missing in {core}"), found.missing_in_core),
            (format!("different in {core}"), found.different_in_core),
            (
                format!("unmerged duplicates in {full}"),
                found.doubled_in_full,
            ),
            (
                format!("unmerged duplicates in {core}"),
                found.doubled_in_core,
            ),
        ];
        let mut kinds = kinds.iter().filter(|kind| kind.1 > 0).peekable();
        if kinds.peek().is_none() {
            line("Found", "nothing to write or merge".to_owned())?;
        }
        for (name, number) in kinds {
            line(&format!("Found {name}"), count(*number))?;
        }
        let segments = format!("{} of {}", self.segments_done, self.segments_total);
        match self.dry_run {
            true => {
                line("Rows to write", count(self.rows_wanted))?;
                line("Segments", count(self.segments_total))?;
            }
            false => {
                line("Rows written", count(self.rows_written))?;
                line("Segments", segments)?;
            }
        }
        for optimized in &self.optimized {
            line(
                &format!("Merged {}", optimized.table),
                optimized.to_string(),
            )?;
        }
        for left in self.left() {
            let place = left
                .place
                .map_or_else(String::new, |place| format!(" in {place}"));
            line(
                &format!("Left: {}", left.name),
                format!("{}{place} ({})", HumanCount(left.count), left.advice),
            )?;
        }
        line("Time", seconds(self.seconds))?;
        line("Peak memory", ByteSize(self.peak_rss_bytes).to_string())
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

    #[test]
    fn what_is_left_names_the_table_it_is_in() {
        let mut report = report();
        report.found.doubled_in_core = 4;
        assert_eq!(
            report.what_is_left().unwrap(),
            "4 rows are left in a.events_core, partition 202406 (4 unmerged duplicates in \
             events_core: merge them with --optimize)"
        );
        report.found.extra = 1;
        report.found.extra_in_core = 2;
        assert_eq!(
            report.what_is_left().unwrap(),
            "7 rows are left in a.events_full and a.events_core, partition 202406 (1 extra, 2 only \
             in events_core: delete them by hand: a repair never deletes; 4 unmerged duplicates in \
             events_core: merge them with --optimize)"
        );
    }

    #[test]
    fn rows_that_are_written_again_wait_in_both_tables() {
        let mut report = report();
        report.found.stale = 3;
        (report.rows_wanted, report.rows_written) = (3, 3);
        report.rows_to_merge = Some(3);
        let sentence = report.what_is_left().unwrap();
        let begin = "3 rows are left in a.events_full and a.events_core, partition 202406 (3 \
                     unmerged duplicates in events_full and events_core: ";
        assert!(sentence.starts_with(begin), "{sentence}");
        report.core_table = None;
        let sentence = report.what_is_left().unwrap();
        let begin = "3 rows are left in a.events_full, partition 202406 (3 unmerged duplicates in \
                     events_full: ";
        assert!(sentence.starts_with(begin), "{sentence}");
    }

    #[test]
    fn a_summary_says_that_nothing_was_written_and_leaves_out_what_was_not_found() {
        let mut report = Report {
            dry_run: true,
            ..report()
        };
        report.found.missing_in_core = 2;
        let text = report.to_string();
        assert!(text.contains("Dry run "), "{text}");
        assert!(text.contains("yes: nothing was inserted\n"), "{text}");
        assert!(text.contains("Found missing in events_core "), "{text}");
        assert_eq!(text.matches("Found").count(), 1, "{text}");
        report.found.missing_in_core = 0;
        report.dry_run = false;
        let text = report.to_string();
        assert!(text.contains("nothing to write or merge"), "{text}");
        assert!(!text.contains("Dry run"), "{text}");
    }

    #[test]
    fn what_a_ttl_takes_again_is_to_be_seen_to_first() {
        let report = Report {
            rows_to_merge: Some(5),
            expiry: Some("the TTL of a.b".to_owned()),
            ..Report::default()
        };
        let sentence = report.what_is_left().unwrap();
        assert!(
            sentence.ends_with("fix first: the TTL of a.b)"),
            "{sentence}"
        );
    }
}
