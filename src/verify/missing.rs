//! Which events are missing, in bounded memory.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::rows::EventKey;

/// Once so many rows are wrong, no more are looked at one by one: it takes a reading of
/// the piece for each [`super::pieces::BATCH_ROWS`] of them.
pub(super) const MOST_WRONG: u64 = 1_000_000;

/// Which events are missing, as hashes: of at most [`MOST_WRONG`], as no more are looked at one by one.
#[derive(Debug, Default)]
pub(super) struct Missing {
    state: RandomState,
    hashes: HashSet<u64>,
}

impl Missing {
    pub(super) fn insert(&mut self, key: &EventKey) {
        if (self.hashes.len() as u64) < MOST_WRONG {
            self.hashes.insert(self.state.hash_one(key));
        }
    }

    /// Whether an event is known to be missing.
    pub(super) fn has(&self, key: &EventKey) -> bool {
        self.hashes.contains(&self.state.hash_one(key))
    }
}
