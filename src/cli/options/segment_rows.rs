//! How many rows a segment has.

use super::engine::Engine;
use crate::memory::Budget;

/// Unless told otherwise. As large as an attempt may be that is done again.
const EMBEDDED: u64 = 250_000;
/// The same for the server's join. Each segment reads the traces of its days again: with half as many segments,
/// 12 % fewer rows are read for four million observations (docs/benchmarks.md).
const OF_SERVER: u64 = 500_000;

/// How many rows a segment has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRows {
    /// About so many, if the partition's parts allow.
    pub wanted: u64,
    /// Not more, however many parts there are.
    pub most: u64,
    /// Whether the operator said so.
    pub is_asked: bool,
    /// Segments that are worked on at once.
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
        let (usual, most) = match engine {
            Engine::Embedded => (EMBEDDED, u64::MAX),
            Engine::ClickHouse => {
                // One with more would be several statements, and each reads all of its rows.
                let of_memory = budget.rows_per_statement();
                (OF_SERVER.min(of_memory), of_memory)
            }
        };
        let wanted = asked.unwrap_or(usual);
        Self {
            wanted,
            most: most.max(wanted),
            is_asked: asked.is_some(),
            at_once: concurrency.max(1) as u64,
        }
    }

    /// So many, if the partition's parts allow.
    pub fn asked(rows: u64) -> Self {
        Self {
            wanted: rows,
            most: u64::MAX,
            is_asked: true,
            at_once: 1,
        }
    }

    /// Rows per segment of a partition whose parts require at least `least`.
    pub(crate) fn for_parts(self, least: u64) -> u64 {
        self.wanted.max(least).min(self.most)
    }

    /// Rows per segment, so that `rows` become segments of the same size, and none is left over for one worker
    /// while the others are idle. What was asked for stays.
    pub(crate) fn evenly(self, rows: u64, per_segment: u64) -> u64 {
        if self.is_asked || rows == 0 {
            return per_segment;
        }
        let nearest = (rows + per_segment / 2) / per_segment;
        let of_all = nearest.max(1).next_multiple_of(self.at_once);
        // Not less than half of the size.
        let segments = of_all.min(2 * rows / per_segment).max(1);
        rows.div_ceil(segments.max(rows.div_ceil(self.most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ByteSize;

    fn rows(asked: Option<u64>, engine: Engine, mebibytes: u64) -> SegmentRows {
        let budget = Budget::new(ByteSize(mebibytes << 20), 2).unwrap();
        SegmentRows::new(asked, engine, &budget, 2)
    }

    #[test]
    fn a_segment_of_the_servers_engine_is_one_statement() {
        assert_eq!(rows(None, Engine::ClickHouse, 512).wanted, OF_SERVER);
        let little = rows(None, Engine::ClickHouse, 200);
        assert!(little.wanted < OF_SERVER, "{little:?}");
        // Many parts ask for more than that.
        assert_eq!(little.for_parts(10_000_000), little.most);
        assert_eq!(
            rows(None, Engine::Embedded, 200).for_parts(10_000_000),
            10_000_000
        );
        assert_eq!(
            rows(Some(900_000), Engine::ClickHouse, 200).for_parts(1),
            900_000
        );
    }

    #[test]
    fn all_workers_have_segments_of_the_same_size() {
        let evenly = |total| {
            let rows = rows(None, Engine::ClickHouse, 512);
            rows.evenly(total, rows.for_parts(0))
        };
        assert_eq!(evenly(0), 500_000);
        assert_eq!(evenly(90_000), 90_000, "too little to be divided");
        assert_eq!(evenly(600_000), 300_000);
        assert_eq!(evenly(1_020_000), 510_000);
        assert_eq!(evenly(1_300_000), 325_000);
        assert_eq!(evenly(100_000_000), 500_000);
        let asked = rows(Some(500_000), Engine::ClickHouse, 512);
        assert_eq!(
            asked.evenly(1_020_000, 500_000),
            500_000,
            "as it was asked for"
        );
    }
}
