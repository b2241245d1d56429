//! How many rows a segment has.

use super::engine::Engine;
use crate::memory::Budget;

/// Unless told otherwise. As large as an attempt may be that is done again.
const EMBEDDED: u64 = 250_000;
/// The same for the server's join, if memory allows. Each segment reads the traces of its days again: with half as
/// many segments, 12 % fewer rows are read for four million observations (docs/benchmarks.md).
const OF_SERVER: u64 = 500_000;

/// How many rows a segment has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRows {
    /// About so many, if the partition's parts allow.
    pub wanted: u64,
    /// About so many at most, however many parts there are.
    pub most: u64,
    /// Whether the operator said so.
    pub is_asked: bool,
    /// So many segments are worked on at once, and shall have the same size; 0 where sizes do not matter.
    pub at_once: u64,
}

impl SegmentRows {
    /// What was asked for, or what suits the engine.
    pub(super) fn new(
        asked: Option<u64>,
        engine: Engine,
        budget: &Budget,
        concurrency: usize,
    ) -> Self {
        if let Some(rows) = asked {
            return Self::asked(rows);
        }
        match engine {
            Engine::Embedded => Self {
                is_asked: false,
                ..Self::asked(EMBEDDED)
            },
            Engine::ClickHouse => Self::of_server(budget, concurrency),
        }
    }

    /// What suits the server's engine.
    pub(crate) fn of_server(budget: &Budget, concurrency: usize) -> Self {
        // One with more than a statement's rows would be several statements, each of which reads all of its
        // rows. A segment may become as much larger than it should as the rows of one project, type and day.
        let most = (budget.rows_per_statement() * 4 / 5).max(1);
        Self {
            wanted: OF_SERVER.min(most),
            most,
            is_asked: false,
            at_once: concurrency.max(1) as u64,
        }
    }

    /// So many, if the partition's parts allow.
    pub fn asked(rows: u64) -> Self {
        Self {
            wanted: rows,
            most: u64::MAX,
            is_asked: true,
            at_once: 0,
        }
    }

    /// Rows per segment of a partition of `rows`, whose parts require at least `least` of them.
    ///
    /// Segments are large where the server joins, and few: without equal sizes, one worker would do the last of
    /// them alone.
    pub(crate) fn of_partition(self, rows: u64, least: u64) -> u64 {
        let size = self.wanted.max(least).min(self.most).max(1);
        if self.at_once == 0 || rows == 0 {
            return size;
        }
        let fewest = rows.div_ceil(self.most).max(1);
        let nearest = ((rows + size / 2) / size).max(fewest);
        let of_all = nearest.next_multiple_of(self.at_once);
        // But none is less than half as large, nor smaller than the parts require.
        let most = (2 * rows).div_ceil(size).min(rows / least.max(1));
        rows.div_ceil(of_all.min(most).max(fewest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ByteSize;

    fn of_server(mebibytes: u64, concurrency: usize) -> SegmentRows {
        let budget = Budget::new(ByteSize(mebibytes << 20), concurrency).unwrap();
        SegmentRows::new(None, Engine::ClickHouse, &budget, concurrency)
    }

    #[test]
    fn what_was_asked_for_is_raised_only_for_parts() {
        let budget = Budget::new(ByteSize(200 << 20), 2).unwrap();
        for engine in [Engine::Embedded, Engine::ClickHouse] {
            let rows = SegmentRows::new(Some(900_000), engine, &budget, 2);
            assert_eq!(rows.of_partition(1_000_000, 0), 900_000);
            assert_eq!(rows.of_partition(1_000_000, 950_000), 950_000);
        }
    }

    #[test]
    fn parts_do_not_make_a_segment_of_several_statements() {
        let rows = of_server(512, 2);
        assert!(rows.of_partition(100_000_000, 10_000_000) <= rows.most);
        let embedded = SegmentRows {
            is_asked: false,
            ..SegmentRows::asked(EMBEDDED)
        };
        assert_eq!(embedded.of_partition(100_000_000, 10_000_000), 10_000_000);
    }

    #[test]
    fn all_workers_have_segments_of_the_same_size() {
        for concurrency in 1..=4 {
            let sizes = of_server(2_048, concurrency);
            assert_eq!(sizes.wanted, OF_SERVER);
            let segments = |rows: u64| rows.div_ceil(sizes.of_partition(rows, 0));
            assert_eq!(segments(90_000), 1, "too little to be divided");
            assert_eq!(segments(0), 0);
            for rows in [2_000_000, 3_300_000, 4_080_000, 99_000_000] {
                assert_eq!(
                    segments(rows) % sizes.at_once,
                    0,
                    "{rows} for {concurrency}"
                );
                let size = sizes.of_partition(rows, 0);
                assert!(
                    size >= OF_SERVER / 2 && size <= sizes.most,
                    "{rows}: {size}"
                );
            }
        }
        assert_eq!(of_server(2_048, 2).of_partition(600_000, 0), 300_000);
        assert_eq!(of_server(2_048, 2).of_partition(1_020_000, 0), 510_000);
        // Parts that want large ones get them, if one statement can hold them.
        assert_eq!(
            of_server(2_048, 2).of_partition(1_300_000, 600_000),
            650_000
        );
    }
}
