//! Polls the server every few seconds and slows or speeds up the run.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::handle::{Speed, Throttle};
use super::level::Level;
use super::options::Thresholds;
use super::reason::Reason;
use super::replicas;
use super::signs::{Reading, Sign, signs};
use crate::clickhouse::{Connection, RequestError, TableInfo};

/// Polling interval.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often to repeat that a run is at a standstill.
const REMIND_EVERY: Duration = Duration::from_secs(300);
/// At this multiple of its threshold, a sign is urgent.
const URGENT: f64 = 1.5;
/// Speed up again once all signs are below this share of their thresholds.
const CALM: f64 = 0.8;
/// Averaging period for insert times; the server writes large parts now and then.
const INSERT_WINDOW: Duration = Duration::from_secs(30);
/// Lowest initial insert time considered, in seconds per byte. Anything faster only measures the
/// server's buffering.
const LEAST_PACE: f64 = 5e-9;
/// Too few bytes sent say nothing about insert times.
const TELLING_BYTES: u64 = 32 << 20;

/// What to watch, and where to report.
pub(crate) struct Watched {
    /// The server to watch.
    pub connection: Connection,
    /// Tables written to, directly or through views.
    pub tables: Vec<TableInfo>,
    /// The server's memory limit in bytes, if any.
    pub server_memory: Option<u64>,
    /// Called when the level changes and when a sign cannot be read.
    pub tell: Box<dyn Fn(Told) + Send + Sync>,
}

/// A message from the watcher.
#[derive(Debug, PartialEq)]
pub(crate) enum Told {
    /// Slowed or sped up; [`Throttle::state`] has the reason. It is news when leaving full speed or
    /// reaching standstill.
    Slower {
        /// Whether to tell the operator.
        is_news: bool,
    },
    /// Back at full speed.
    FullSpeed,
    /// A sign that cannot be read.
    LeftOut(String),
}

/// Watches the server until dropped.
pub(crate) struct Watching {
    throttle: Throttle,
    task: Option<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.throttle.0.speed.send_modify(|speed| {
            // In one step, or a poll in progress could still set a level afterwards.
            speed.is_watched = false;
            self.throttle.take_level(speed, Level::NONE);
        });
    }
}

impl Throttle {
    /// Starts watching the server, unless the options disable it.
    pub(crate) fn watch(&self, watched: Watched) -> Watching {
        let throttle = self.clone();
        self.0.speed.send_modify(|speed| speed.is_watched = true);
        let task = self.0.thresholds.map(|thresholds| {
            let watch = Watch {
                throttle: self.clone(),
                watched,
                thresholds,
                inserts: InsertTime::default(),
                told: Instant::now(),
            };
            tokio::spawn(watch.run())
        });
        Watching { throttle, task }
    }

    /// Sets the level and times it under its reason.
    fn set_level(&self, level: Level, why: String) {
        self.0.speed.send_if_modified(|speed| {
            // The watch may have ended during this poll.
            if !speed.is_watched {
                return false;
            }
            *self.0.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
            self.take_level(speed, level)
        });
    }

    /// Returns whether the level changed.
    fn take_level(&self, speed: &mut Speed, level: Level) -> bool {
        let before = std::mem::replace(&mut speed.level, level);
        if before.reason() != level.reason() {
            if let Some(reason) = before.reason() {
                self.0.stopwatch.end(reason);
            }
            if let Some(reason) = level.reason() {
                self.0.stopwatch.begin(reason);
            }
        }
        before != level
    }
}

struct Watch {
    throttle: Throttle,
    watched: Watched,
    thresholds: Thresholds,
    inserts: InsertTime,
    /// Last message to the operator.
    told: Instant,
}

impl Watch {
    async fn run(mut self) {
        let mut to_read = self.signs().await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut look = self.look(&mut to_read).await;
            match self.time_of_inserts() {
                Some(reading) => look.readings.push(reading),
                // Too little was sent for a reading.
                None if self.throttle.speed().level.reason() == Some(Reason::InsertTime) => {
                    look.is_whole = false;
                }
                None => {}
            }
            self.follow(&look);
        }
    }

    /// The signs to read, retried until the server answers.
    async fn signs(&self) -> Vec<Sign> {
        loop {
            let Watched {
                connection,
                tables,
                server_memory,
                ..
            } = &self.watched;
            let thresholds = &self.thresholds;
            let of_server = signs(connection, tables, *server_memory, thresholds).await;
            let of_replicas = replicas::signs(connection, tables, thresholds).await;
            // While the server is down, the run fails too and handles it.
            if let (Ok(mut signs), Ok(of_replicas)) = (of_server, of_replicas) {
                for (reason, error) in &signs.refused {
                    self.leave_out(*reason, error);
                }
                signs.to_read.extend(of_replicas);
                return signs.to_read;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads all signs. Drops those the user may not read.
    async fn look(&self, signs: &mut Vec<Sign>) -> Look {
        let mut readings = Vec::new();
        let mut refused = Vec::new();
        for sign in &*signs {
            match sign.read(&self.watched.connection).await {
                Ok(reading) => readings.push(reading),
                Err(RequestError::TimedOut { .. }) => {
                    // A server too busy to answer this is overloaded.
                    readings.push(sign.too_much());
                    break;
                }
                Err(error) if error.is_passing() => break,
                Err(error) => {
                    self.leave_out(sign.reason, &error);
                    refused.push(sign.reason);
                }
            }
        }
        signs.retain(|sign| !refused.contains(&sign.reason));
        Look {
            is_whole: readings.len() == signs.len(),
            readings,
        }
    }

    fn leave_out(&self, reason: Reason, error: impl std::fmt::Display) {
        let flag = reason.flag();
        (self.watched.tell)(Told::LeftOut(format!(
            "{flag} is ignored, so the run does not slow down for it: {error}"
        )));
    }

    fn time_of_inserts(&mut self) -> Option<Reading> {
        let now = Sample {
            at: Instant::now(),
            seconds: self.throttle.insert_seconds(),
            bytes: self.throttle.sent_bytes(),
        };
        Some(Reading {
            reason: Reason::InsertTime,
            value: self.inserts.times_as_long(now)?,
            threshold: self.thresholds.insert_slowdown as f64,
        })
    }

    /// Repeats that the run is at a standstill; nothing else is reported meanwhile.
    fn remind(&mut self, level: Level) {
        if level.stands_still() && self.told.elapsed() >= REMIND_EVERY {
            self.told = Instant::now();
            (self.watched.tell)(Told::Slower { is_news: true });
        }
    }

    /// Adjusts the level and reports the change.
    fn follow(&mut self, look: &Look) {
        let before = self.throttle.speed().level;
        let level = after(before, look);
        if before == level {
            self.remind(level);
            return;
        }
        let why = level.reason().map_or_else(String::new, |reason| {
            let reading = look
                .readings
                .iter()
                .find(|reading| reading.reason == reason);
            let why = reading.map_or_else(|| reason.to_string(), Reading::in_words);
            format!("{why}; {}", level.in_words())
        });
        self.throttle.set_level(level, why);
        self.told = Instant::now();
        let was_full_speed = before.reason().is_none();
        let stands_still = level.stands_still() && !before.stands_still();
        (self.watched.tell)(match level.reason() {
            Some(_) => Told::Slower {
                is_news: was_full_speed || stands_still,
            },
            None => Told::FullSpeed,
        });
    }
}

/// The readings of one poll.
#[derive(Debug, Default)]
struct Look {
    readings: Vec<Reading>,
    /// Whether every sign was read.
    is_whole: bool,
}

/// The level after a poll.
fn after(level: Level, look: &Look) -> Level {
    let readings = &look.readings;
    let worst = readings
        .iter()
        .filter(|reading| reading.value > reading.threshold)
        .max_by(|one, other| one.ratio().total_cmp(&other.ratio()));
    let level = worst.map_or(level, |worst| {
        level.raised(worst.reason, worst.ratio() >= URGENT)
    });
    if !look.is_whole {
        return level;
    }
    let mut not_calm = readings
        .iter()
        .filter(|reading| reading.ratio() >= CALM)
        .peekable();
    match not_calm.peek() {
        None => level.lowered(),
        Some(_) => level.bounded_by(not_calm.map(|reading| reading.reason)),
    }
}

/// Insert time per byte, now and at first.
#[derive(Debug, Default)]
struct InsertTime {
    samples: VecDeque<Sample>,
    /// Seconds per byte.
    at_first: Option<f64>,
}

/// Totals over all inserts up to a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    seconds: f64,
    bytes: u64,
}

impl InsertTime {
    /// Insert time per byte as a multiple of its initial value, once there is enough data.
    fn times_as_long(&mut self, now: Sample) -> Option<f64> {
        self.samples.push_back(now);
        while self.samples.len() > 2 && now.at - self.samples[1].at >= INSERT_WINDOW {
            self.samples.pop_front();
        }
        let then = self.samples.front()?;
        let bytes = now.bytes - then.bytes;
        if now.at - then.at < INSERT_WINDOW || bytes < TELLING_BYTES {
            return None;
        }
        let pace = (now.seconds - then.seconds) / bytes as f64;
        let at_first = *self.at_first.get_or_insert(pace.max(LEAST_PACE));
        Some(pace / at_first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(reason: Reason, value: f64) -> Reading {
        Reading {
            reason,
            value,
            threshold: 100.0,
        }
    }

    fn whole(readings: &[Reading]) -> Look {
        Look {
            readings: readings.to_vec(),
            is_whole: true,
        }
    }

    #[test]
    fn it_slows_down_by_steps_while_something_is_too_much_and_comes_back_once_all_is_calm() {
        let at_once = |readings: &[f64]| {
            let levels = readings.iter().scan(Level::NONE, |level, &value| {
                *level = after(*level, &whole(&[reading(Reason::Parts, value)]));
                Some(level.segments_at_once(4))
            });
            levels.collect::<Vec<_>>()
        };
        assert_eq!(
            at_once(&[99.0, 101.0, 101.0, 101.0, 101.0]),
            [4, 2, 1, 1, 0]
        );
        // Between calm and the threshold, the level stays.
        assert_eq!(at_once(&[101.0, 90.0, 90.0, 79.0]), [2, 2, 2, 4]);
        assert_eq!(at_once(&[150.0]), [0]);
    }

    #[test]
    fn the_worst_sign_is_the_reason() {
        let readings = [
            reading(Reason::Merges, 120.0),
            reading(Reason::Parts, 130.0),
            reading(Reason::Queries, 99.0),
        ];
        assert_eq!(
            after(Level::NONE, &whole(&readings)).reason(),
            Some(Reason::Parts)
        );
    }

    #[test]
    fn whoever_still_looks_after_the_end_changes_nothing() {
        let options = crate::throttle::ThrottleOptions {
            thresholds: None,
            rows_per_second: None,
            bytes_per_second: None,
            window: None,
        };
        let throttle = Throttle::new(&options, 4);
        throttle.set_level(Level::NONE.raised(Reason::Parts, true), String::new());
        assert_eq!(throttle.segments_at_once(), 4);
        assert!(throttle.seconds().is_empty());
    }

    #[test]
    fn a_look_that_was_cut_short_makes_nothing_faster() {
        let slow = Level::NONE.raised(Reason::Parts, true);
        let nothing = Look::default();
        assert_eq!(after(slow, &nothing), slow);
        let some = Look {
            readings: vec![reading(Reason::Merges, 1.0)],
            is_whole: false,
        };
        assert_eq!(after(slow, &some), slow);
        assert_ne!(after(slow, &whole(&some.readings)), slow);
    }

    #[test]
    fn inserts_are_compared_with_the_first_ones() {
        let (mut inserts, begun) = (InsertTime::default(), Instant::now());
        let mut at = |second: u64, seconds: f64, mebibytes: u64| {
            inserts.times_as_long(Sample {
                at: begun + Duration::from_secs(second),
                seconds,
                bytes: mebibytes << 20,
            })
        };
        assert_eq!(at(0, 0.0, 0), None);
        assert_eq!(at(15, 5.0, 40), None);
        assert_eq!(at(30, 10.0, 100), Some(1.0));
        // 40 s for 100 MiB instead of 10 s.
        assert_eq!(at(60, 50.0, 200), Some(4.0));
        assert_eq!(at(90, 50.1, 201), None);
    }
}
