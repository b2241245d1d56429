//! The store's column families and the files beside them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::partition::Day;

/// RocksDB's own, with the id of the run.
pub(super) const DEFAULT: &str = "default";
/// Keys of traces possibly seen on more than one day.
pub(super) const SUSPECTS: &str = "suspects";
/// Versions that override any day's: of traces on several days, of traces changed since loading,
/// and of traces whose root span was deferred.
pub(super) const MOVED: &str = "moved";
/// Results for traces found neither on their row's day nor the day before or after.
pub(super) const REMOTE: &str = "remote";
pub(super) const DAY_PREFIX: &str = "day-";

/// Maximum keys per look-up.
pub(super) const KEYS_AT_ONCE: usize = 1_024;

/// Rows to be written by a repair.
pub(super) const WANTED: &str = "wanted";
/// Traces that have a dataset run item.
pub(super) const TRACES: &str = "experiment-traces";
/// The item of each span in an experiment.
pub(super) const SPANS: &str = "experiment-spans";
/// The contents of each item.
pub(super) const ITEMS: &str = "experiment-items";
/// The families that hold items.
pub(super) const OF_ITEMS: [&str; 3] = [TRACES, SPANS, ITEMS];

/// Prefix of files not yet ingested.
pub(super) const UNFINISHED_PREFIX: &str = "load-";

/// Whether a file was left by an unfinished load.
pub(super) fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(UNFINISHED_PREFIX.as_bytes())
}

pub(super) fn day_family(day: Day) -> String {
    format!("{DAY_PREFIX}{day}")
}

/// A family that rows are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Target rows from before the run: `RowKey` → `TargetRow`.
    RowsBefore,
    /// Target rows found after the run started writing: `RowKey` → `TargetRow`.
    RowsSince,
    /// Latest versions: [`HashKey`](super::target_rows::HashKey) → [`Version`](super::target_rows::Version).
    Versions,
    /// Traces that already have a root: `HashKey` → `Root`.
    Roots,
    /// The day of each trace that has versions on one day alone and is not deleted: `HashKey` → `Day`.
    TraceDays,
}

impl Against {
    /// All families, by number.
    pub(super) const ALL: [Against; 5] = [
        Against::RowsBefore,
        Against::RowsSince,
        Against::Versions,
        Against::Roots,
        Against::TraceDays,
    ];

    /// Name of the column family.
    pub(super) const fn family(self) -> &'static str {
        match self {
            Against::RowsBefore => "target-rows-before",
            Against::RowsSince => "target-rows-since",
            Against::Versions => "observation-versions",
            Against::Roots => "roots",
            Against::TraceDays => "trace-days",
        }
    }

    /// Whether the family is read in key order and needs no filter.
    pub(super) const fn is_walked(self) -> bool {
        matches!(
            self,
            Against::RowsBefore | Against::RowsSince | Against::TraceDays
        )
    }

    /// The family with that name.
    pub(super) fn of_family(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.family() == name)
    }
}

/// Which families are non-empty, to skip look-ups in the others.
#[derive(Debug, Default)]
pub(super) struct NotEmpty(pub(super) [AtomicBool; Against::ALL.len()]);

impl NotEmpty {
    pub(super) fn set(&self, against: Against, has_some: bool) {
        self.0[against as usize].store(has_some, Ordering::Relaxed);
    }
}
