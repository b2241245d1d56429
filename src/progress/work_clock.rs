//! A clock that stops while a run is idle in a pause or outside its window, so that rates and the time
//! left stay right.

use std::sync::Arc;
use std::time::Instant;

use super::stopwatch::{Stopwatch, Waiting};

/// The clock. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkClock(Arc<Stopwatch<()>>);

impl WorkClock {
    /// Stops the clock until the result is dropped.
    pub(crate) fn stand_still(&self) -> Waiting<'_, ()> {
        self.0.waiting(())
    }

    /// Seconds for which the clock was stopped.
    pub(crate) fn stood_still(&self) -> f64 {
        self.0.seconds().get(&()).copied().unwrap_or(0.0)
    }

    /// Measures the time at work from now on.
    pub(super) fn begin(&self) -> WorkTime {
        WorkTime {
            started: Instant::now(),
            stood_still_before: self.stood_still(),
            clock: self.clone(),
        }
    }
}

/// The time at work since some point.
#[derive(Debug, Clone)]
pub(super) struct WorkTime {
    started: Instant,
    stood_still_before: f64,
    clock: WorkClock,
}

impl WorkTime {
    /// Seconds at work so far.
    pub(super) fn seconds(&self) -> f64 {
        let stood_still = self.clock.stood_still() - self.stood_still_before;
        (self.started.elapsed().as_secs_f64() - stood_still).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// It reads two clocks one after the other, and the operating system may come between.
    fn least(time: &WorkTime) -> f64 {
        let several = std::iter::repeat_with(|| time.seconds()).take(10);
        several.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn time_in_which_nothing_may_be_begun_does_not_count() {
        let clock = WorkClock::default();
        let still = clock.stand_still();
        std::thread::sleep(Duration::from_millis(20));
        let time = clock.begin();
        std::thread::sleep(Duration::from_millis(20));
        let stood_still = least(&time);
        assert!(stood_still < 0.01, "{stood_still}");
        drop(still);
        std::thread::sleep(Duration::from_millis(30));
        let at_work = time.seconds();
        assert!(at_work >= 0.03, "{at_work}");
        let _still = clock.stand_still();
        let before = least(&time);
        std::thread::sleep(Duration::from_millis(20));
        let after = least(&time);
        assert!(after < before + 0.015, "{before} {after}");
    }
}
