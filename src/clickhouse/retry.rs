//! Retries: how many, and how long to wait before each.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::shutdown::Shutdown;

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Takes the kind of an error and a sentence for the operator.
type Tell = dyn Fn(&str, fmt::Arguments<'_>) + Send + Sync;

/// The retry settings that all work of a run shares. Cheap to clone.
#[derive(Clone)]
pub struct Retries {
    most: u32,
    shutdown: Shutdown,
    tell: Arc<Tell>,
    repeated: Arc<AtomicU64>,
}

impl Retries {
    /// Allows up to `most` retries for each piece of work; `tell` is called before each, with the kind
    /// of the error and a sentence for the operator.
    pub fn new(
        most: u32,
        shutdown: Shutdown,
        tell: impl Fn(&str, fmt::Arguments<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            most,
            shutdown,
            tell: Arc::new(tell),
            repeated: Arc::default(),
        }
    }

    /// The attempts at one piece of work.
    pub fn attempts(&self) -> Attempts<'_> {
        Attempts {
            retries: self,
            failures: 0,
            last: String::new(),
        }
    }

    /// The number of retries so far, over all work.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }
}

/// Whether the same work may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hope {
    /// It will not.
    None,
    /// It may.
    Passing,
    /// It may, unless the next attempt fails in exactly the same way: an answer was damaged in
    /// transit, or cannot be decoded.
    UnlessRepeated,
    /// It rarely does: two more attempts are enough.
    Rare,
}

/// Failures after which to give up on [`Hope::Rare`].
const ENOUGH: u32 = 3;

impl From<bool> for Hope {
    fn from(is_passing: bool) -> Self {
        match is_passing {
            true => Hope::Passing,
            false => Hope::None,
        }
    }
}

/// The attempts at one piece of work.
pub struct Attempts<'a> {
    retries: &'a Retries,
    failures: u32,
    last: String,
}

impl Attempts<'_> {
    /// Failed attempts.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The signal that asked the run to stop, if one did.
    pub(crate) fn signal(&self) -> Option<u8> {
        self.retries.shutdown.signal()
    }

    /// The number of failed attempts, for a message; empty for a single one.
    pub fn in_words(&self) -> String {
        match self.failures {
            0 | 1 => String::new(),
            failures => format!(" ({failures} tries)"),
        }
    }

    /// After an attempt failed with an error of this kind: whether to make another one. If so, tells
    /// the operator `what` failed and waits first; a signal cuts the wait short, since the next attempt
    /// then ends at once.
    pub async fn again(
        &mut self,
        hope: impl Into<Hope>,
        kind: &str,
        what: impl fmt::Display,
    ) -> bool {
        self.failures += 1;
        let what = what.to_string();
        let is_repeated = what == self.last;
        let is_passing = match hope.into() {
            Hope::None => false,
            Hope::Passing => true,
            Hope::UnlessRepeated => !is_repeated,
            Hope::Rare => self.failures < ENOUGH,
        };
        if !is_passing || self.failures > self.retries.most {
            return false;
        }
        self.retries.repeated.fetch_add(1, Ordering::Relaxed);
        let wait = wait_after(self.failures);
        let seconds = wait.as_secs_f64().ceil();
        (self.retries.tell)(kind, format_args!("{what}; trying again in {seconds:.0} s"));
        self.last = what;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = self.retries.shutdown.requested() => {}
        }
        true
    }
}

/// How long to wait after `failures` failed attempts: a random time between half and all of 0.5 s, 1 s,
/// 2 s, … 60 s, so that work that failed together is not retried together.
fn wait_after(failures: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(LONGEST_WAIT)
        .mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        for failures in 1..=40 {
            let wait = wait_after(failures);
            assert!(wait >= FIRST_WAIT / 2 && wait <= LONGEST_WAIT);
        }
        assert!(wait_after(12) >= LONGEST_WAIT / 2);
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_as_often_as_allowed_and_counted() {
        let shutdown = Shutdown::listen(|_| {}).unwrap();
        let retries = Retries::new(2, shutdown, |_, _| {});
        let mut attempts = retries.attempts();
        for _ in 0..2 {
            assert!(attempts.again(true, "network", "it failed").await);
        }
        assert!(!attempts.again(true, "network", "it failed").await);
        assert_eq!((attempts.failures(), retries.repeated()), (3, 2));
        assert!(
            !retries
                .attempts()
                .again(false, "unexpected", "it is wrong")
                .await
        );
        assert_eq!(retries.repeated(), 2);
    }

    #[tokio::test]
    async fn what_fails_twice_in_the_same_way_is_not_tried_a_third_time() {
        let shutdown = Shutdown::listen(|_| {}).unwrap();
        let retries = Retries::new(8, shutdown, |_, _| {});
        let mut attempts = retries.attempts();
        assert!(
            attempts
                .again(Hope::UnlessRepeated, "damaged", "byte 7 is wrong")
                .await
        );
        assert!(
            attempts
                .again(Hope::UnlessRepeated, "damaged", "byte 9 is wrong")
                .await
        );
        assert!(
            !attempts
                .again(Hope::UnlessRepeated, "damaged", "byte 9 is wrong")
                .await
        );
        let mut attempts = retries.attempts();
        for _ in 1..ENOUGH {
            assert!(
                attempts
                    .again(Hope::Rare, "memory", "too much memory")
                    .await
            );
        }
        assert!(
            !attempts
                .again(Hope::Rare, "memory", "too much memory")
                .await
        );
    }
}
