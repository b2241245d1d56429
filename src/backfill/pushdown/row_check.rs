//! Whether a statement wrote its rows, by the number that the server reports.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backfill::error::WorkError;

/// Checks the numbers of rows written. All segments share one.
#[derive(Debug, Default)]
pub(super) struct RowCheck {
    /// Whether materialized views read the target's inserts: their rows count too.
    has_views: bool,
    /// Whether views are known to write other numbers of rows than one for each.
    views_vary: AtomicBool,
    /// Segments whose statements wrote at least their rows, but no multiple.
    differed: Mutex<BTreeSet<u32>>,
}

impl RowCheck {
    /// A check of inserts into a table that may have views.
    pub(super) fn new(has_views: bool) -> Self {
        Self {
            has_views,
            ..Self::default()
        }
    }

    /// Checks what a segment's statement wrote. Views write mostly one row for each, so that the number is a
    /// multiple.
    ///
    /// # Errors
    /// [`WorkError::RowsDiffer`] if it may be incomplete.
    pub(super) fn check(&self, segment: u32, rows: u64, written: u64) -> Result<(), WorkError> {
        let is_complete = match self.has_views {
            false => written == rows,
            true => {
                let is_multiple = written > rows && written.is_multiple_of(rows);
                is_multiple || (written >= rows && self.views_vary.load(Ordering::Relaxed))
            }
        };
        if is_complete {
            return Ok(());
        }
        if self.has_views && written >= rows {
            self.differed().insert(segment);
        }
        Err(WorkError::RowsDiffer { rows, written })
    }

    /// Stops asking for multiples if the segment's statement was found to have written all of its rows, so that
    /// the next attempt `sent` nothing.
    pub(super) fn learn(&self, segment: u32, sent: bool) {
        if self.differed().remove(&segment) && !sent {
            self.views_vary.store(true, Ordering::Relaxed);
        }
    }

    fn differed(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.differed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_views_each_row_counts() {
        let check = RowCheck::new(false);
        assert!(check.check(1, 10, 10).is_ok());
        for written in [9, 11, 20] {
            assert!(check.check(1, 10, written).is_err(), "{written}");
            check.learn(1, false);
        }
    }

    #[test]
    fn views_that_write_other_numbers_are_believed_once_all_rows_were_found() {
        let check = RowCheck::new(true);
        assert!(check.check(1, 10, 20).is_ok());
        assert!(check.check(1, 10, 30).is_ok());
        // Without its view, or with fewer rows than it must have.
        assert!(check.check(1, 10, 10).is_err());
        check.learn(1, true);
        assert!(check.check(1, 10, 18).is_err());
        check.learn(1, true);
        assert!(check.check(2, 10, 18).is_err());
        check.learn(3, false);
        assert!(check.check(2, 10, 18).is_err());
        check.learn(2, false);
        assert!(check.check(3, 10, 18).is_ok());
        assert!(check.check(3, 10, 9).is_err());
    }
}
