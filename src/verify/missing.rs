//! Tracks missing events in bounded memory.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::rows::EventKey;

/// Beyond this many wrong rows, none are checked individually: each [`super::pieces::BATCH_ROWS`]
/// of them cost another read of the piece.
pub(super) const MOST_WRONG: u64 = 1_000_000;

/// Hashes of missing events, up to [`MOST_WRONG`].
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
