//! How long something has lasted, by name: what a run waits for, or is about.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts the time.
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
    /// How long at least one has waited.
    total: Duration,
    /// How long all of them have, together.
    summed: Duration,
    /// How many wait, and since when they are so many.
    waiting: u32,
    since: Option<Instant>,
}

impl Running {
    /// Counts the time until now, from when on so many wait.
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

/// Something lasts until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a, K: Copy + Ord> {
    stopwatch: &'a Stopwatch<K>,
    name: K,
}

impl<K: Copy + Ord> Stopwatch<K> {
    /// Something lasts from now on.
    pub(crate) fn waiting(&self, name: K) -> Waiting<'_, K> {
        self.begin(name);
        Waiting {
            stopwatch: self,
            name,
        }
    }

    /// The same, without anything that ends it when it is dropped.
    pub(crate) fn begin(&self, name: K) {
        let mut times = self.times();
        let running = times.entry(name).or_default();
        running.now_wait(running.waiting + 1);
    }

    /// The end of what was begun.
    pub(crate) fn end(&self, name: K) {
        let mut times = self.times();
        let running = times.entry(name).or_default();
        running.now_wait(running.waiting.saturating_sub(1));
    }

    /// Seconds by the clock so far, during which at least one lasted.
    pub(crate) fn seconds(&self) -> BTreeMap<K, f64> {
        let mut times = self.times();
        let seconds = times.iter_mut().map(|(&name, running)| {
            running.now_wait(running.waiting);
            (name, running.total.as_secs_f64())
        });
        seconds.collect()
    }

    /// Seconds so far that all of them have lasted, together.
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
