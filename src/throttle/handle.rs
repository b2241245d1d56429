//! The handle by which a run asks how fast it may go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch as channel;
use tokio::time::Instant;

use super::level::Level;
use super::options::{Thresholds, ThrottleOptions};
use super::pace::Pace;
use super::reason::Reason;
use super::stopwatch::{Stopwatch, ThrottledSeconds, Waiting};

/// How fast a run may go. One for each process; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Throttle(pub(super) Arc<Shared>);

/// What all handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) thresholds: Option<Thresholds>,
    pub(super) speed: channel::Sender<Speed>,
    rows: Pace,
    bytes: Pace,
    pub(super) stopwatch: Stopwatch,
    /// Time that segments have waited for inserts, in nanoseconds, over all of them.
    pub(super) insert_nanoseconds: AtomicU64,
    /// Bytes of events that they have sent meanwhile.
    pub(super) inserted_bytes: AtomicU64,
}

/// What decides at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    /// Segments at once, at most.
    concurrency: usize,
    rows_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
    pub(super) level: Level,
}

/// A pause before a block is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pause {
    /// When it ends.
    pub until: Instant,
    /// Why it is made.
    pub reason: Reason,
}

impl Throttle {
    /// As the options have it, for so many segments at once.
    pub(crate) fn new(options: &ThrottleOptions, concurrency: usize) -> Self {
        let (speed, _) = channel::channel(Speed {
            concurrency,
            rows_per_second: options.rows_per_second,
            bytes_per_second: options.bytes_per_second,
            level: Level::NONE,
        });
        Self(Arc::new(Shared {
            thresholds: options.thresholds,
            speed,
            rows: Pace::default(),
            bytes: Pace::default(),
            stopwatch: Stopwatch::default(),
            insert_nanoseconds: AtomicU64::new(0),
            inserted_bytes: AtomicU64::new(0),
        }))
    }

    pub(super) fn speed(&self) -> Speed {
        *self.0.speed.borrow()
    }

    /// How many segments may be under way now. Those that are, are not ended where it is fewer.
    pub(crate) fn segments_at_once(&self) -> usize {
        let speed = self.speed();
        speed.level.segments_at_once(speed.concurrency)
    }

    /// What tells of changes.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.0.speed.subscribe())
    }

    /// The pause before a block of so many rows and bytes is sent, after as much work as that; none
    /// where nothing asks for one.
    pub(crate) fn pause_before(&self, rows: u64, bytes: u64, worked: Duration) -> Option<Pause> {
        let speed = self.speed();
        let now = Instant::now();
        let limits = [
            (
                &self.0.rows,
                rows,
                speed.rows_per_second,
                Reason::RowsPerSecond,
            ),
            (
                &self.0.bytes,
                bytes,
                speed.bytes_per_second,
                Reason::BytesPerSecond,
            ),
        ];
        let limits = limits
            .into_iter()
            .filter_map(|(pace, amount, rate, reason)| {
                let until = pace.reserve(amount, rate?, now);
                Some(Pause { until, reason })
            });
        let of_level = speed.level.reason().map(|reason| Pause {
            until: now + speed.level.pause_after(worked),
            reason,
        });
        let longest = limits.chain(of_level).max_by_key(|pause| pause.until);
        longest.filter(|pause| pause.until > now)
    }

    /// Rows in a block, if it is not to take more than a second of what is allowed.
    pub(crate) fn block_rows(&self, rows: usize) -> usize {
        least(rows, self.speed().rows_per_second)
    }

    /// The same of its bytes.
    pub(crate) fn block_bytes(&self, bytes: usize) -> usize {
        least(bytes, self.speed().bytes_per_second)
    }

    /// Counts the time of a pause, until what it gives is dropped.
    pub(crate) fn waiting(&self, reason: Reason) -> Waiting<'_> {
        self.0.stopwatch.waiting(reason)
    }

    /// How long it has been throttled so far, by reason.
    pub(crate) fn seconds(&self) -> ThrottledSeconds {
        self.0.stopwatch.seconds()
    }

    /// Counts bytes that a segment has sent.
    pub(crate) fn has_sent(&self, bytes: u64) {
        self.0.inserted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts nanoseconds for which a segment has waited for its insert.
    pub(crate) fn has_waited(&self, nanoseconds: u64) {
        self.0
            .insert_nanoseconds
            .fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

fn least(wanted: usize, most: Option<u64>) -> usize {
    let most = most.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    });
    wanted.min(most).max(1)
}

/// Tells of changes since the last one.
pub(crate) struct Changes(channel::Receiver<Speed>);

impl Changes {
    /// Waits until the speed is another.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // Nothing changes any more.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::level::LONGEST_PAUSE;
    use super::*;

    fn throttle(rows_per_second: Option<u64>, bytes_per_second: Option<u64>) -> Throttle {
        let options = ThrottleOptions {
            thresholds: None,
            rows_per_second,
            bytes_per_second,
        };
        Throttle::new(&options, 4)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_where_nothing_is_limited() {
        let throttle = throttle(None, None);
        let pause = throttle.pause_before(1 << 40, 1 << 50, Duration::from_secs(9));
        assert_eq!(pause, None);
        assert_eq!(throttle.segments_at_once(), 4);
        assert_eq!(throttle.block_rows(8192), 8192);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_limits_the_stricter_one_counts() {
        let throttle = throttle(Some(1000), Some(1_000_000));
        let begun = Instant::now();
        // The first block goes at once.
        assert_eq!(throttle.pause_before(500, 4_000_000, Duration::ZERO), None);
        let pause = throttle.pause_before(500, 10, Duration::ZERO).unwrap();
        assert_eq!(pause.reason, Reason::BytesPerSecond);
        assert_eq!(pause.until, begun + Duration::from_secs(4));
        assert_eq!(throttle.block_rows(8192), 1000);
        assert_eq!(throttle.block_bytes(4 << 20), 1_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_makes_pauses_as_long_as_the_work_and_no_longer_than_a_segment_bears() {
        let throttle = throttle(None, None);
        throttle.0.speed.send_modify(|speed| {
            for _ in 0..3 {
                speed.level = speed.level.raised(Reason::Parts, false);
            }
        });
        assert_eq!(throttle.segments_at_once(), 1);
        let pause = |seconds| {
            let pause = throttle
                .pause_before(1, 1, Duration::from_secs(seconds))
                .unwrap();
            pause.until - Instant::now()
        };
        assert_eq!(pause(2), Duration::from_secs(2));
        assert_eq!(pause(60), LONGEST_PAUSE);
    }
}
