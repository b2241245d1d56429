//! The column families of the store, and the files beside them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::partition::Day;

/// Keys of traces that were seen on more than one day, perhaps.
pub(super) const SUSPECTS: &str = "suspects";
/// The version that counts, whatever a day says: of a trace on several days, of one that changed since
/// it was loaded, and of one whose root span was deferred.
pub(super) const MOVED: &str = "moved";
/// What was found of traces that are neither on their row's day nor on one beside it.
pub(super) const REMOTE: &str = "remote";
pub(super) const DAY_PREFIX: &str = "day-";

/// Most keys asked for at once.
pub(super) const KEYS_AT_ONCE: usize = 1_024;

/// Rows that are wanted.
pub(super) const WANTED: &str = "wanted";
/// Traces that have an item.
pub(super) const TRACES: &str = "experiment-traces";
/// The item of each span that has one.
pub(super) const SPANS: &str = "experiment-spans";
/// What is known of each item.
pub(super) const ITEMS: &str = "experiment-items";
/// The families of items.
pub(super) const OF_ITEMS: [&str; 3] = [TRACES, SPANS, ITEMS];

/// What the names of files begin with that are not part of the store yet.
pub(super) const UNFINISHED_PREFIX: &str = "load-";

/// Whether a file is one that a load had not finished.
pub(super) fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(UNFINISHED_PREFIX.as_bytes())
}

pub(super) fn day_family(day: Day) -> String {
    format!("{DAY_PREFIX}{day}")
}

/// A family of what rows are held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Rows that stood in the target before the run: [`RowKey`] → [`TargetRow`].
    RowsBefore,
    /// Rows that were found in the target after the run had begun to write: the same.
    RowsSince,
    /// Latest versions: [`HashKey`] → [`Version`].
    Versions,
    /// Traces that need no root of ours: [`HashKey`] → [`Root`].
    Roots,
}

impl Against {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Against; 4] = [
        Against::RowsBefore,
        Against::RowsSince,
        Against::Versions,
        Against::Roots,
    ];

    /// Name of the column family.
    pub(super) const fn family(self) -> &'static str {
        match self {
            Against::RowsBefore => "target-rows-before",
            Against::RowsSince => "target-rows-since",
            Against::Versions => "observation-versions",
            Against::Roots => "roots",
        }
    }

    /// Whether it is walked, and needs no filter.
    pub(super) const fn is_walked(self) -> bool {
        matches!(self, Against::RowsBefore | Against::RowsSince)
    }

    /// The one whose column family has that name.
    pub(super) fn of_family(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.family() == name)
    }
}

/// Which families have something in them, so that the others are not asked.
#[derive(Debug, Default)]
pub(super) struct NotEmpty(pub(super) [AtomicBool; Against::ALL.len()]);

impl NotEmpty {
    pub(super) fn set(&self, against: Against, has_some: bool) {
        self.0[against as usize].store(has_some, Ordering::Relaxed);
    }
}
