//! How long to wait before trying again.

use std::time::Duration;

/// Exponential backoff with jitter, up to a number of tries.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries after the first one.
    pub max_retries: u32,
}

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl RetryPolicy {
    /// How long to wait after `failures` failed tries, or `None` to give up.
    /// Between half and the whole of 0.5 s, 1 s, 2 s, … 60 s, so that segments
    /// which failed together do not come back together.
    pub fn wait_after(&self, failures: u32) -> Option<Duration> {
        if failures > self.max_retries {
            return None;
        }
        let doubled = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16));
        Some(
            doubled
                .min(LONGEST_WAIT)
                .mul_f64(0.5 + fastrand::f64() / 2.0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_then_end() {
        let policy = RetryPolicy { max_retries: 12 };
        for failures in 1..=12 {
            let wait = policy.wait_after(failures).unwrap();
            assert!(wait >= FIRST_WAIT / 2 && wait <= LONGEST_WAIT);
        }
        assert!(policy.wait_after(12).unwrap() >= LONGEST_WAIT / 2);
        assert_eq!(policy.wait_after(13), None);
        assert_eq!(RetryPolicy { max_retries: 0 }.wait_after(1), None);
    }
}
