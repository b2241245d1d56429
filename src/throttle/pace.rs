//! A rate limit shared by all segments.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time of the next free slot.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Makes the next reservation immediate.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Reserves `amount` at `per_second` and returns when it may go: once earlier reservations have
    /// used their time. Idle time earns no credit.
    pub(super) fn reserve(&self, amount: u64, per_second: u64, now: Instant) -> Instant {
        let mut free_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes = free_at.map_or(now, |free_at| free_at.max(now));
        let takes = Duration::try_from_secs_f64(amount as f64 / per_second.max(1) as f64);
        *free_at = goes.checked_add(takes.unwrap_or(Duration::MAX));
        goes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_goes_in_any_time_than_is_allowed() {
        let (pace, begun) = (Pace::default(), Instant::now());
        let seconds = |amount| (pace.reserve(amount, 100, begun) - begun).as_secs_f64();
        assert_eq!([50, 50, 100, 1].map(seconds), [0.0, 0.5, 1.0, 2.0]);
    }

    #[test]
    fn idle_time_is_not_made_up_for() {
        let (pace, begun) = (Pace::default(), Instant::now());
        let later = begun + Duration::from_secs(60);
        assert_eq!(pace.reserve(100, 100, begun), begun);
        assert_eq!(pace.reserve(100, 100, later), later);
        assert_eq!(
            pace.reserve(100, 100, later),
            later + Duration::from_secs(1)
        );
    }
}
