//! The handle that tells a run how fast it may go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch as channel;
use tokio::time::Instant;

use super::level::Level;
use super::options::{Thresholds, ThrottleOptions};
use super::pace::Pace;
use super::reason::Reason;
use super::state::{SpeedState, SpeedWishes};
use crate::progress::WorkClock;
use crate::progress::stopwatch::{Stopwatch, Waiting};

/// Minimum rows per second for a segment. The server closes connections that read more slowly.
pub(crate) const LEAST_ROWS: u64 = 500;
/// Minimum bytes per second for a segment, for the same reason.
pub(crate) const LEAST_BYTES: u64 = 256 << 10;

/// Controls a run's speed. One per process; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Throttle(pub(super) Arc<Shared>);

/// State shared by all handles.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) thresholds: Option<Thresholds>,
    /// Maximum segments; memory is divided among this many.
    most_segments: usize,
    pub(super) speed: channel::Sender<Speed>,
    rows: Pace,
    bytes: Pace,
    pub(super) stopwatch: Stopwatch<Reason>,
    /// Why the run is slowed, as shown to people.
    pub(super) why: Mutex<String>,
    /// Time segments spend waiting for inserts.
    inserts: Stopwatch<()>,
    /// Stops while nothing is running because nothing may start.
    clock: WorkClock,
    /// Bytes of events sent by those inserts.
    inserted_bytes: AtomicU64,
}

/// The current limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    /// Maximum segments at once.
    concurrency: usize,
    rows_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
    pub(super) level: Level,
    /// Paused by the operator.
    is_paused: bool,
    /// Outside the time window.
    is_outside_window: bool,
    /// Whether a watcher is active and may change the level.
    pub(super) is_watched: bool,
}

/// Wall-clock seconds during which at least one segment was throttled, by name of the reason.
pub(crate) type ThrottledSeconds = BTreeMap<&'static str, f64>;

/// The seconds added between `before` and `now`.
pub(crate) fn since(now: &ThrottledSeconds, before: &ThrottledSeconds) -> ThrottledSeconds {
    now.iter()
        .map(|(&name, seconds)| (name, seconds - before.get(name).unwrap_or(&0.0)))
        .filter(|(_, seconds)| *seconds > 0.0)
        .collect()
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
    /// Starts at the speed the options allow, for up to `concurrency` segments.
    pub(crate) fn new(options: &ThrottleOptions, concurrency: usize) -> Self {
        let (speed, _) = channel::channel(Speed {
            concurrency,
            rows_per_second: options.rows_per_second,
            bytes_per_second: options.bytes_per_second,
            level: Level::NONE,
            is_paused: false,
            is_outside_window: false,
            is_watched: false,
        });
        Self(Arc::new(Shared {
            most_segments: concurrency,
            thresholds: options.thresholds,
            speed,
            rows: Pace::default(),
            bytes: Pace::default(),
            stopwatch: Stopwatch::default(),
            why: Mutex::default(),
            inserts: Stopwatch::default(),
            clock: WorkClock::default(),
            inserted_bytes: AtomicU64::new(0),
        }))
    }

    pub(super) fn speed(&self) -> Speed {
        *self.0.speed.borrow()
    }

    /// How many segments may run now. If more are already running, they finish.
    pub(crate) fn segments_at_once(&self) -> usize {
        let speed = self.speed();
        if speed.is_paused || speed.is_outside_window {
            return 0;
        }
        // A segment that reads too slowly loses its connection, so each needs a minimum share of
        // the limits.
        let shares = [
            (speed.rows_per_second, LEAST_ROWS),
            (speed.bytes_per_second, LEAST_BYTES),
        ];
        let shares = shares.map(|(limit, least)| limit.map_or(u64::MAX, |limit| limit / least));
        let most = shares.into_iter().fold(u64::MAX, u64::min).max(1);
        let segments = speed.level.segments_at_once(speed.concurrency);
        segments.min(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// Stops starting segments.
    pub(crate) fn pause(&self) {
        self.hold(Reason::Paused, true);
    }

    /// Ends the pause.
    pub(crate) fn go_on(&self) {
        self.hold(Reason::Paused, false);
    }

    /// Opens or closes the window.
    pub(super) fn open(&self, is_open: bool) {
        self.hold(Reason::Window, !is_open);
    }

    /// Starts or ends a hold for `reason`, and times it.
    fn hold(&self, reason: Reason, is_held: bool) {
        self.0.speed.send_if_modified(|speed| {
            let held = match reason {
                Reason::Window => &mut speed.is_outside_window,
                _ => &mut speed.is_paused,
            };
            if *held == is_held {
                return false;
            }
            *held = is_held;
            match is_held {
                true => self.0.stopwatch.begin(reason),
                false => self.0.stopwatch.end(reason),
            }
            true
        });
    }

    /// Changes the speed.
    ///
    /// # Errors
    /// A sentence for the operator if `concurrency` exceeds what memory was divided for.
    pub(crate) fn set(&self, wishes: &SpeedWishes) -> Result<(), String> {
        let most = self.0.most_segments;
        if let Some(segments) = wishes
            .concurrency
            .filter(|segments| !(1..=most).contains(segments))
        {
            return Err(format!(
                "concurrency={segments} is out of range: this run's memory allows 1 to {most}"
            ));
        }
        self.0.speed.send_modify(|speed| {
            speed.concurrency = wishes.concurrency.unwrap_or(speed.concurrency);
            speed.rows_per_second = wishes.rows_per_second.unwrap_or(speed.rows_per_second);
            speed.bytes_per_second = wishes.bytes_per_second.unwrap_or(speed.bytes_per_second);
        });
        // Reservations made at the old speed no longer apply.
        self.0.rows.forget();
        self.0.bytes.forget();
        Ok(())
    }

    /// The current speed, for display.
    pub(crate) fn state(&self) -> SpeedState {
        let speed = self.speed();
        SpeedState {
            concurrency: speed.concurrency,
            rows_per_second: speed.rows_per_second,
            bytes_per_second: speed.bytes_per_second,
            is_paused: speed.is_paused,
            is_outside_window: speed.is_outside_window,
            slowed_by: speed.level.reason().map(|_| {
                let why = self.0.why.lock().unwrap_or_else(PoisonError::into_inner);
                why.clone()
            }),
        }
    }

    /// Waits until a segment may start.
    pub(crate) async fn may_begin(&self) {
        let mut changes = self.changes();
        while self.segments_at_once() == 0 {
            let _still = self.stand_still();
            changes.next().await;
        }
    }

    /// Stops the work clock until the returned guard is dropped.
    pub(crate) fn stand_still(&self) -> Waiting<'_, ()> {
        self.0.clock.stand_still()
    }

    /// Seconds the work clock has been stopped so far.
    pub(crate) fn still_seconds(&self) -> f64 {
        self.0.clock.stood_still()
    }

    /// The work clock.
    pub(crate) fn clock(&self) -> WorkClock {
        self.0.clock.clone()
    }

    /// Subscribes to changes.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.0.speed.subscribe())
    }

    /// The pause needed before sending a block of `rows` and `bytes` that took `worked` to prepare.
    /// `None` if no limit applies.
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

    /// Caps a block's rows at one second's allowance.
    pub(crate) fn block_rows(&self, rows: usize) -> usize {
        least(rows, self.speed().rows_per_second)
    }

    /// Caps a block's bytes at one second's allowance.
    pub(crate) fn block_bytes(&self, bytes: usize) -> usize {
        least(bytes, self.speed().bytes_per_second)
    }

    /// Times a pause until the returned guard is dropped.
    pub(crate) fn waiting(&self, reason: Reason) -> Waiting<'_, Reason> {
        self.0.stopwatch.waiting(reason)
    }

    /// Time throttled so far, by reason.
    pub(crate) fn seconds(&self) -> ThrottledSeconds {
        let seconds = self.0.stopwatch.seconds().into_iter();
        seconds
            .map(|(reason, seconds)| (reason.name(), seconds))
            .collect()
    }

    /// Uncompressed bytes of events sent by all segments.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.0.inserted_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes sent.
    pub(crate) fn has_sent(&self, bytes: u64) {
        self.0.inserted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Time segments have waited for inserts so far, summed over all segments.
    pub(crate) fn insert_seconds(&self) -> f64 {
        self.0.inserts.summed_seconds()
    }

    /// Times an insert until the returned guard is dropped.
    pub(crate) fn inserting(&self) -> Waiting<'_, ()> {
        self.0.inserts.waiting(())
    }
}

fn least(wanted: usize, most: Option<u64>) -> usize {
    let most = most.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    });
    wanted.min(most).max(1)
}

/// Reports changes of speed.
pub(crate) struct Changes(channel::Receiver<Speed>);

impl Changes {
    /// Waits for the next change.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // No sender is left, so nothing will change.
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
            window: None,
        };
        Throttle::new(&options, 4)
    }

    #[test]
    fn what_came_before_is_taken_off() {
        let before = ThrottledSeconds::from([("parts", 3.0), ("merges", 1.0)]);
        let now = ThrottledSeconds::from([("parts", 5.0), ("merges", 1.0), ("queries", 2.0)]);
        let expected = ThrottledSeconds::from([("parts", 2.0), ("queries", 2.0)]);
        assert_eq!(since(&now, &before), expected);
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
    async fn what_is_changed_meanwhile_counts_from_then_on() {
        let throttle = throttle(None, None);
        let mut changes = throttle.changes();
        throttle.pause();
        changes.next().await;
        assert_eq!(throttle.segments_at_once(), 0);
        throttle.open(false);
        throttle.go_on();
        assert_eq!(throttle.segments_at_once(), 0);
        throttle.open(true);
        throttle.may_begin().await;
        let wishes = SpeedWishes {
            concurrency: Some(3),
            rows_per_second: Some(Some(2_000)),
            bytes_per_second: None,
        };
        assert_eq!(throttle.set(&wishes), Ok(()));
        assert_eq!(
            (throttle.segments_at_once(), throttle.block_rows(8192)),
            (3, 2_000)
        );
        let no_limit = SpeedWishes {
            rows_per_second: Some(None),
            ..SpeedWishes::default()
        };
        assert_eq!(throttle.set(&no_limit), Ok(()));
        assert_eq!(
            (throttle.segments_at_once(), throttle.block_rows(8192)),
            (3, 8192)
        );
        let too_many = SpeedWishes {
            concurrency: Some(5),
            ..SpeedWishes::default()
        };
        assert!(throttle.set(&too_many).unwrap_err().contains("1 to 4"));
        let seconds = throttle.seconds();
        assert!(seconds.contains_key("paused") && seconds.contains_key("window"));
    }

    #[tokio::test]
    async fn a_paused_run_stands_still_once_nothing_is_under_way() {
        let throttle = throttle(None, None);
        let pause = Duration::from_millis(20);
        throttle.pause();
        // A segment goes on.
        std::thread::sleep(pause);
        assert_eq!(throttle.still_seconds(), 0.0);
        let waiting = tokio::time::timeout(pause, throttle.may_begin()).await;
        assert!(waiting.is_err());
        let still = throttle.still_seconds();
        assert!(still >= 0.02, "{still}");
        throttle.go_on();
        throttle.may_begin().await;
        assert_eq!(throttle.still_seconds(), still);
    }

    #[test]
    fn the_wait_for_an_insert_counts_while_it_lasts_and_for_each_segment() {
        let throttle = throttle(None, None);
        let both = [throttle.inserting(), throttle.inserting()];
        std::thread::sleep(Duration::from_millis(20));
        let meanwhile = throttle.insert_seconds();
        assert!(meanwhile >= 0.04, "{meanwhile}");
        drop(both);
        let ended = throttle.insert_seconds();
        assert!(ended >= meanwhile);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(throttle.insert_seconds(), ended);
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
