//! The speed of earlier runs, from reports in the state directory.

use std::path::Path;

use serde::Deserialize;

use crate::state::directory::PartitionDir;

/// Shorter measurements, in seconds, say little about a run of hours.
const LONG_ENOUGH: f64 = 10.0;

/// A finished run with a report.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Earlier {
    /// Its partition.
    pub partition: String,
    /// Observations read, enriched and inserted per second.
    pub observations_per_second: f64,
    target_table: String,
    dry_run: bool,
    seconds: Seconds,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Seconds {
    stream: f64,
}

/// The longest measured run into `target` (`database.table`) among the reports in the state
/// directory `root`.
pub(super) fn longest(root: &Path, target: &str) -> Option<Earlier> {
    let directories = PartitionDir::all(root).unwrap_or_default();
    let reports = directories.iter().filter_map(|directory| {
        // Reports of other versions of this program may not parse.
        serde_json::from_slice(&std::fs::read(directory.report()).ok()?).ok()
    });
    longest_of(reports, target)
}

fn longest_of(reports: impl Iterator<Item = Earlier>, target: &str) -> Option<Earlier> {
    reports
        .filter(|report| {
            !report.dry_run
                && report.target_table == target
                && report.seconds.stream >= LONG_ENOUGH
                && report.observations_per_second > 0.0
        })
        .max_by(|a, b| a.seconds.stream.total_cmp(&b.seconds.stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(partition: &str, stream: f64) -> Earlier {
        Earlier {
            partition: partition.to_owned(),
            observations_per_second: 7.0,
            target_table: "a.b".to_owned(),
            dry_run: false,
            seconds: Seconds { stream },
        }
    }

    #[test]
    fn the_run_that_measured_for_longest_counts() {
        let reports = [report("202401", 10.0), report("202402", 20.0)];
        let longest = longest_of(reports.into_iter(), "a.b").unwrap();
        assert_eq!(longest.partition, "202402");
    }

    #[test]
    fn what_was_not_really_measured_does_not_count() {
        let dry = Earlier {
            dry_run: true,
            ..report("202401", 20.0)
        };
        let reports = || [report("202402", 9.9), dry.clone()].into_iter();
        assert_eq!(longest_of(reports(), "a.b"), None);
        let other = std::iter::once(report("202402", 99.0));
        assert_eq!(longest_of(other, "a.c"), None);
    }
}
