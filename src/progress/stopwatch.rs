//! Measures how long named states last, for example why a run waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Measures time by name.
#[derive(Debug)]
pub(crate) struct Stopwatch<K>(Mutex<BTreeMap<K, Running>>);

impl<K> Default for Stopwatch<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The time of one name.
#[derive(Debug, Default)]
struct Running {
    /// Time during which at least one waited.
    total: Duration,
    /// Sum of all waiting times.
    summed: Duration,
    /// How many wait now, and since when this number holds.
    waiting: u32,
    since: Option<Instant>,
}

impl Running {
    /// Adds the time until now, and sets how many wait from now on.
    fn now_wait(&mut self, waiting: u32) {
        let now = Instant::now();
        if let Some(since) = self.since.replace(now)
            && self.waiting > 0
        {
            let lasted = now - since;
            self.total += lasted;
            self.summed += lasted * self.waiting;
        }
        self.waiting = waiting;
    }
}

/// Keeps a state going until dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a, K: Copy + Ord> {
    stopwatch: &'a Stopwatch<K>,
    name: K,
}

impl<K: Copy + Ord> Stopwatch<K> {
    /// Starts a state that ends when the result is dropped.
    pub(crate) fn waiting(&self, name: K) -> Waiting<'_, K> {
        self.begin(name);
        Waiting {
            stopwatch: self,
            name,
        }
    }

    /// Starts a state that [`end`](Self::end) ends.
    pub(crate) fn begin(&self, name: K) {
        let mut times = self.times();
        let running = times.entry(name).or_default();
        running.now_wait(running.waiting + 1);
    }

    /// Ends a state started with [`begin`](Self::begin).
    pub(crate) fn end(&self, name: K) {
        let mut times = self.times();
        let running = times.entry(name).or_default();
        running.now_wait(running.waiting.saturating_sub(1));
    }

    /// Seconds so far during which at least one state of each name lasted.
    pub(crate) fn seconds(&self) -> BTreeMap<K, f64> {
        let mut times = self.times();
        let seconds = times.iter_mut().map(|(&name, running)| {
            running.now_wait(running.waiting);
            (name, running.total.as_secs_f64())
        });
        seconds.collect()
    }

    /// Sum of the seconds of all states so far.
    pub(crate) fn summed_seconds(&self) -> f64 {
        let mut times = self.times();
        let seconds = times.values_mut().map(|running| {
            running.now_wait(running.waiting);
            running.summed.as_secs_f64()
        });
        seconds.sum()
    }

    fn times(&self) -> MutexGuard<'_, BTreeMap<K, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Ord> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        self.stopwatch.end(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_several_wait_counts_once() {
        let stopwatch = Stopwatch::default();
        let begun = Instant::now();
        let first = stopwatch.waiting("parts");
        let second = stopwatch.waiting("parts");
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
}
