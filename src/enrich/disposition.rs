//! Decides which rows become events, now or later.

use std::ops::Range;

/// What happens to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    /// Becomes an event.
    Event,
    /// Waits for its trace.
    Deferred,
    /// Is dropped: another version wins, or it is deleted.
    Superseded,
}

/// Ranges of rows.
pub(super) type Rows = Vec<Range<usize>>;

/// The rows that become events now, and the deferred ones.
pub(super) fn divide(dispositions: &[Disposition]) -> (Rows, Rows) {
    let (mut in_time, mut deferred) = (Rows::new(), Rows::new());
    for (row, disposition) in dispositions.iter().enumerate() {
        let rows = match disposition {
            Disposition::Event => &mut in_time,
            Disposition::Deferred => &mut deferred,
            Disposition::Superseded => continue,
        };
        match rows.last_mut() {
            Some(last) if last.end == row => last.end += 1,
            _ => rows.push(row..row + 1),
        }
    }
    (in_time, deferred)
}

/// The values of some rows. Empty if there are no values.
pub(super) fn take<T: Clone>(values: &[T], rows: &[Range<usize>]) -> Vec<T> {
    let ranges = rows.iter().filter_map(|range| values.get(range.clone()));
    ranges.flatten().cloned().collect()
}
