//! The result of a repair, as text and JSON.

use std::fmt;

use indicatif::{HumanBytes, HumanCount};
use serde::{Deserialize, Serialize};

use super::optimize::Optimized;
use super::pieces::Wanted;
use crate::cli::options::Options;
use crate::inspect::Inspected;
use crate::progress::words::{count, seconds, write_lines};
use crate::state::checkpoint::Checkpoint;

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

impl Report {
    /// An empty report.
    pub(super) fn begin(options: &Options, inspected: &Inspected) -> Self {
        let target = &inspected.target;
        Self {
            partition: options.partition.to_string(),
            target_table: format!("{}.{}", target.database, target.name),
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

    /// What is left: name, count and advice.
    fn left(&self) -> Vec<(&'static str, u64, &'static str)> {
        let found = &self.found;
        // The count from before the repair, until it is counted again.
        let found_doubled = found.doubled_in_full.max(found.doubled_in_core);
        let doubled = self.rows_to_merge.unwrap_or(found_doubled);
        const DELETE: &str = "delete them by hand: a repair never deletes";
        let left = [
            ("doubled", found.doubled, DELETE),
            ("superseded", found.superseded, DELETE),
            ("extra", found.extra, DELETE),
            ("with a second root span", found.second_roots, DELETE),
            ("beside live rows", found.beside_live, DELETE),
            ("only in the view's table", found.extra_in_core, DELETE),
            ("unmerged duplicates", doubled, "merge them with --optimize"),
            ("changed during the repair", self.gone(), "verify again"),
        ];
        left.into_iter().filter(|left| left.1 > 0).collect()
    }

    /// One sentence about what is left, or `None`.
    pub(super) fn what_is_left(&self) -> Option<String> {
        let left = self.left();
        if left.is_empty() {
            return None;
        }
        let rows: u64 = left.iter().map(|left| left.1).sum();
        let mut advice: Vec<(&str, Vec<String>)> = Vec::new();
        for (name, count, what) in left {
            let named = format!("{} {name}", HumanCount(count));
            match advice.iter_mut().find(|advice| advice.0 == what) {
                Some((_, names)) => names.push(named),
                None => advice.push((what, vec![named])),
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
            self.target_table,
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
        for (name, number) in [
            ("Found missing", found.missing),
            ("Found different", found.different),
            ("Found stale (trace attributes)", found.stale),
        ] {
            line(name, count(number))?;
        }
        for (name, number) in [
            ("  wrong experiment columns", found.different_experiments),
            ("  missing in the view's table", found.missing_in_core),
            ("  different in the view's table", found.different_in_core),
            ("  unmerged duplicates", found.doubled_in_full),
            (
                "  unmerged duplicates in the view's table",
                found.doubled_in_core,
            ),
        ] {
            if number > 0 {
                line(name, count(number))?;
            }
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
        for (name, number, advice) in self.left() {
            line(
                &format!("Left: {name}"),
                format!("{} ({advice})", HumanCount(number)),
            )?;
        }
        line("Time", seconds(self.seconds))?;
        line("Peak memory", HumanBytes(self.peak_rss_bytes).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
