//! Part and insert size limits, lowered when the server or a proxy rejects them. All segments share
//! them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Share of the server's memory for all segments' parts together: the server holds a part's rows
/// three times over plus 2 MiB per column, and merges take as much again.
const SHARE_OF_SERVER: u64 = 16;
/// Share of one statement's memory limit, for the same reasons.
const SHARE_OF_STATEMENT: u64 = 16;

/// The initial part limit for `segments` concurrent segments: the requested size, or less if the
/// server's or a statement's memory is too small. All in bytes.
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

/// Limits for one target.
#[derive(Debug)]
pub(crate) struct InsertLimits {
    /// Size of a part.
    pub part: PartLimit,
    /// Maximum bytes in an insert's body.
    body: AtomicUsize,
}

impl InsertLimits {
    /// Parts up to `part_bytes`, and bodies of any length.
    pub(crate) fn new(part_bytes: usize) -> Self {
        Self {
            part: PartLimit::new(part_bytes),
            body: AtomicUsize::new(usize::MAX),
        }
    }

    /// Maximum bytes in a body.
    pub(crate) fn body_bytes(&self) -> usize {
        self.body.load(Ordering::Relaxed)
    }

    /// Lowers the limit after a proxy rejected a body of `bytes`. It never grows again, since a
    /// proxy's limit is fixed.
    pub(crate) fn body_was_too_large(&self, bytes: usize) {
        self.body.fetch_min((bytes / 2).max(1), Ordering::Relaxed);
    }
}

/// Bytes at which the server ends a part: the requested size, or temporarily less after it ran out
/// of memory.
#[derive(Debug)]
pub(crate) struct PartLimit {
    allowed: usize,
    now: AtomicUsize,
    /// Current upper bound for growth, below sizes that were rejected.
    ceiling: AtomicUsize,
    /// Parts accepted since the last rejection.
    taken: AtomicUsize,
}

/// A lowered limit grows by this share of the allowed size with each accepted part.
const RECOVERY: usize = 32;
/// Parts that must be accepted before exceeding three quarters of a rejected size: each rejection
/// means reading the segment from the start again.
const PATIENCE: usize = 64;
/// Smaller parts help nobody.
pub(crate) const SMALLEST_PART: usize = 1024 * 1024;

impl PartLimit {
    /// The server ends a part with the block that reaches `allowed` bytes.
    fn new(allowed: usize) -> Self {
        Self {
            allowed,
            now: AtomicUsize::new(allowed),
            ceiling: AtomicUsize::new(allowed),
            taken: AtomicUsize::new(0),
        }
    }

    /// The current limit.
    pub(crate) fn bytes(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// Lowers the limit after the server ran out of memory for a part of `bytes`.
    pub(crate) fn was_too_large(&self, bytes: usize) {
        self.now
            .fetch_min((bytes / 2).max(SMALLEST_PART), Ordering::Relaxed);
        self.ceiling
            .fetch_min((bytes / 4 * 3).max(SMALLEST_PART), Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
    }

    /// Records that the server accepted an insert of `bytes`.
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
        // An error means there was nothing to change.
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
        // Five parts of the current size.
        limit.was_taken(110 * MIB);
        assert_eq!(limit.bytes(), 30 * MIB);
        // A rejected size is not retried soon.
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
