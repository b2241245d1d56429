//! How long a run has gone slower, by reason.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::reason::Reason;

/// Seconds by the clock during which at least one segment went slower, by the name of the reason.
pub(crate) type ThrottledSeconds = BTreeMap<&'static str, f64>;

/// What of `now` has come since `before`.
pub(crate) fn since(now: &ThrottledSeconds, before: &ThrottledSeconds) -> ThrottledSeconds {
    now.iter()
        .map(|(&name, seconds)| (name, seconds - before.get(name).unwrap_or(&0.0)))
        .filter(|(_, seconds)| *seconds > 0.0)
        .collect()
}

/// Counts the time.
#[derive(Debug, Default)]
pub(super) struct Stopwatch(Mutex<BTreeMap<Reason, Running>>);

/// The time of one reason.
#[derive(Debug, Default)]
struct Running {
    total: Duration,
    /// How many wait, and since when at least one does.
    waiting: usize,
    since: Option<Instant>,
}

/// Something waits for a reason, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    stopwatch: &'a Stopwatch,
    reason: Reason,
}

impl Stopwatch {
    /// Something waits from now on.
    pub(super) fn waiting(&self, reason: Reason) -> Waiting<'_> {
        self.begin(reason);
        Waiting {
            stopwatch: self,
            reason,
        }
    }

    /// The same, without anything that ends it when it is dropped.
    pub(super) fn begin(&self, reason: Reason) {
        let mut times = self.times();
        let running = times.entry(reason).or_default();
        running.waiting += 1;
        running.since.get_or_insert_with(Instant::now);
    }

    /// The end of what was begun.
    pub(super) fn end(&self, reason: Reason) {
        let mut times = self.times();
        let running = times.entry(reason).or_default();
        running.waiting = running.waiting.saturating_sub(1);
        if running.waiting == 0
            && let Some(since) = running.since.take()
        {
            running.total += since.elapsed();
        }
    }

    /// The times so far.
    pub(super) fn seconds(&self) -> ThrottledSeconds {
        let times = self.times();
        let seconds = times.iter().map(|(reason, running)| {
            let now = running
                .since
                .map_or(Duration::ZERO, |since| since.elapsed());
            (reason.name(), (running.total + now).as_secs_f64())
        });
        seconds.collect()
    }

    fn times(&self) -> MutexGuard<'_, BTreeMap<Reason, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.stopwatch.end(self.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_several_wait_counts_once() {
        let stopwatch = Stopwatch::default();
        let begun = Instant::now();
        let first = stopwatch.waiting(Reason::Parts);
        let second = stopwatch.waiting(Reason::Parts);
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
        let meanwhile = stopwatch.seconds()["parts"];
        assert!(meanwhile >= 0.02);
        drop(second);
        let seconds = stopwatch.seconds()["parts"];
        assert!(seconds >= meanwhile && seconds <= begun.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(stopwatch.seconds()["parts"], seconds);
    }

    #[test]
    fn what_came_before_is_taken_off() {
        let before = ThrottledSeconds::from([("parts", 3.0), ("merges", 1.0)]);
        let now = ThrottledSeconds::from([("parts", 5.0), ("merges", 1.0), ("queries", 2.0)]);
        let expected = ThrottledSeconds::from([("parts", 2.0), ("queries", 2.0)]);
        assert_eq!(since(&now, &before), expected);
    }
}
