//! How large parts and inserts may be, which is learned from what the server, or a proxy before it,
//! does not take. Shared by all segments.

use std::sync::atomic::{AtomicUsize, Ordering};

/// All segments together may have parts of this share of the server's memory: it holds the rows of a
/// part three times over and 2 MiB for each column of it, and merges take as much again.
const SHARE_OF_SERVER: u64 = 16;
/// The same of what one statement may take.
const SHARE_OF_STATEMENT: u64 = 16;

/// The largest part to begin with, for so many segments at once: what was asked for, and less where the
/// server, or one statement, has less memory than that takes. All are bytes.
pub(crate) fn first_part_bytes(
    wanted: u64,
    server_memory: Option<u64>,
    statement_memory: Option<u64>,
    concurrency: usize,
) -> u64 {
    let segments = concurrency.max(1) as u64;
    let of_server = server_memory.map(|bytes| bytes / SHARE_OF_SERVER / segments);
    let of_statement = statement_memory.map(|bytes| bytes / SHARE_OF_STATEMENT);
    let limits = [of_server, of_statement].into_iter().flatten();
    limits.fold(wanted, u64::min).max(1)
}

/// The limits of one target.
#[derive(Debug)]
pub(crate) struct InsertLimits {
    /// Of what the server gathers for a part.
    pub part: PartLimit,
    /// Most bytes in the body of an insert.
    body: AtomicUsize,
}

impl InsertLimits {
    /// Parts of no more than `part_bytes`, and bodies of any length.
    pub(crate) fn new(part_bytes: usize) -> Self {
        Self {
            part: PartLimit::new(part_bytes),
            body: AtomicUsize::new(usize::MAX),
        }
    }

    /// The most bytes in a body.
    pub(crate) fn body_bytes(&self) -> usize {
        self.body.load(Ordering::Relaxed)
    }

    /// A proxy did not take a body of so many bytes. Its limit stays as it is, so this does not grow.
    pub(crate) fn body_was_too_large(&self, bytes: usize) {
        self.body.fetch_min((bytes / 2).max(1), Ordering::Relaxed);
    }
}

/// Bytes at which the server ends a part: what was asked for, and less for a while after it had too
/// little memory for one.
#[derive(Debug)]
pub(crate) struct PartLimit {
    allowed: usize,
    now: AtomicUsize,
    /// How far it grows for now: not to what was refused.
    ceiling: AtomicUsize,
    /// Parts that were taken since one was refused.
    taken: AtomicUsize,
}

/// A limit that was lowered grows by this share of what is allowed with each part that the server
/// takes.
const RECOVERY: usize = 32;
/// So many parts have to be taken before one may be larger than three quarters of one that was
/// refused: after each refusal the segment is read once more from its beginning.
const PATIENCE: usize = 64;
/// Smaller parts are of no use to anybody.
pub(crate) const SMALLEST_PART: usize = 1024 * 1024;

impl PartLimit {
    /// The server ends a part with the block with which it has `allowed` bytes.
    fn new(allowed: usize) -> Self {
        Self {
            allowed,
            now: AtomicUsize::new(allowed),
            ceiling: AtomicUsize::new(allowed),
            taken: AtomicUsize::new(0),
        }
    }

    /// The bytes at the moment.
    pub(crate) fn bytes(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// The server had too little memory for a part of so many bytes.
    pub(crate) fn was_too_large(&self, bytes: usize) {
        self.now
            .fetch_min((bytes / 2).max(SMALLEST_PART), Ordering::Relaxed);
        self.ceiling
            .fetch_min((bytes / 4 * 3).max(SMALLEST_PART), Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
    }

    /// The server took an insert of so many bytes.
    pub(crate) fn was_taken(&self, bytes: usize) {
        let parts = bytes / self.bytes().max(1);
        for _ in 0..parts.clamp(1, PATIENCE) {
            let taken = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
            if taken.is_multiple_of(PATIENCE) {
                self.grow(&self.ceiling, self.allowed);
            }
            self.grow(&self.now, self.ceiling.load(Ordering::Relaxed));
        }
    }

    fn grow(&self, limit: &AtomicUsize, most: usize) {
        let grown = |now: usize| (now < most).then(|| most.min(now + self.allowed / RECOVERY));
        // An error says that there was nothing to change.
        let _ = limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_smaller_at_once_and_larger_slowly() {
        const MIB: usize = 1024 * 1024;
        let limit = PartLimit::new(64 * MIB);
        limit.was_too_large(40 * MIB);
        assert_eq!(limit.bytes(), 20 * MIB);
        limit.was_too_large(60 * MIB);
        assert_eq!(limit.bytes(), 20 * MIB);
        limit.was_taken(10);
        assert_eq!(limit.bytes(), 22 * MIB);
        // Five parts of the size that they have by then.
        limit.was_taken(110 * MIB);
        assert_eq!(limit.bytes(), 30 * MIB);
        // What was refused is not tried again soon.
        for _ in 0..30 {
            limit.was_taken(MIB);
        }
        assert_eq!(limit.bytes(), 30 * MIB);
        for _ in 0..17 * PATIENCE {
            limit.was_taken(MIB);
        }
        assert_eq!(limit.bytes(), 64 * MIB);
    }

    #[test]
    fn that_a_server_has_no_memory_at_all_does_not_make_parts_tiny() {
        let limit = PartLimit::new(1 << 28);
        limit.was_too_large(10_000);
        for _ in 0..100 {
            limit.was_too_large(limit.bytes());
        }
        assert!(limit.bytes() >= SMALLEST_PART);
    }

    #[test]
    fn a_part_is_no_larger_than_a_server_or_a_statement_has_memory_for() {
        let gib = 1 << 30;
        assert_eq!(first_part_bytes(gib, None, None, 2), gib);
        assert_eq!(first_part_bytes(gib, Some(2 * gib), None, 2), gib / 16);
        assert_eq!(first_part_bytes(gib, Some(2 * gib), None, 4), gib / 32);
        assert_eq!(
            first_part_bytes(gib, Some(200 * gib), Some(gib), 2),
            gib / 16
        );
        assert_eq!(first_part_bytes(1, Some(2 * gib), None, 2), 1);
    }

    #[test]
    fn a_body_is_half_of_what_a_proxy_refused_for_good() {
        let limits = InsertLimits::new(64);
        assert_eq!(limits.body_bytes(), usize::MAX);
        limits.body_was_too_large(1_000);
        limits.body_was_too_large(2_000);
        assert_eq!(limits.body_bytes(), 500);
        limits.body_was_too_large(1);
        assert_eq!(limits.body_bytes(), 1);
    }
}
