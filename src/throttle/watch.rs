//! Looks at the server every few seconds, and makes a run slower or faster after what it sees.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::handle::Throttle;
use super::level::Level;
use super::options::Thresholds;
use super::reason::Reason;
use super::signs::{Reading, Sign, signs};
use crate::clickhouse::{Connection, TableInfo};

/// How often the server is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// From so many times its threshold on something is urgent.
const URGENT: f64 = 1.5;
/// Below so much of all thresholds it goes faster again.
const CALM: f64 = 0.8;
/// Over how long the time of inserts is taken together: the server writes large parts now and then.
const INSERT_WINDOW: Duration = Duration::from_secs(30);
/// Fewer bytes say nothing about their time.
const TELLING_BYTES: u64 = 32 << 20;

/// What is looked at, and who is told.
pub(crate) struct Watched {
    /// The server.
    pub connection: Connection,
    /// What is written to, by ourselves or by views.
    pub tables: Vec<TableInfo>,
    /// Memory of the server in bytes, where it is limited.
    pub server_memory: Option<u64>,
    /// Is told when a run goes slower, why, and when it does no longer.
    pub tell: Box<dyn Fn(Told) + Send + Sync>,
}

/// What is told.
#[derive(Debug, PartialEq)]
pub(crate) enum Told {
    /// It goes slower, for this reason.
    Slower(Reason, String),
    /// It does no longer.
    FullSpeed,
    /// Something cannot be looked at.
    LeftOut(String),
}

/// The server is looked at until this is dropped.
pub(crate) struct Watching {
    throttle: Throttle,
    task: Option<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.throttle.set_level(Level::NONE);
    }
}

impl Throttle {
    /// Looks at the server from now on, unless the options say not to.
    pub(crate) fn watch(&self, watched: Watched) -> Watching {
        let throttle = self.clone();
        let task = self.0.thresholds.map(|thresholds| {
            let watch = Watch {
                throttle: self.clone(),
                watched,
                thresholds,
                inserts: InsertTime::default(),
            };
            tokio::spawn(watch.run())
        });
        Watching { throttle, task }
    }

    /// Takes another level, and counts the time for its reason.
    fn set_level(&self, level: Level) {
        self.0.speed.send_if_modified(|speed| {
            let before = speed.level;
            if before.reason() != level.reason() {
                if let Some(reason) = before.reason() {
                    self.0.stopwatch.end(reason);
                }
                if let Some(reason) = level.reason() {
                    self.0.stopwatch.begin(reason);
                }
            }
            speed.level = level;
            before != level
        });
    }
}

struct Watch {
    throttle: Throttle,
    watched: Watched,
    thresholds: Thresholds,
    inserts: InsertTime,
}

impl Watch {
    async fn run(mut self) {
        let mut to_read = self.signs().await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut readings = self.read(&mut to_read).await;
            readings.extend(self.time_of_inserts());
            self.follow(&readings);
        }
    }

    /// What there is to read, once the server says it.
    async fn signs(&self) -> Vec<Sign> {
        loop {
            let Watched {
                connection,
                tables,
                server_memory,
                ..
            } = &self.watched;
            // While it does not answer, the run meets that as well, and knows what to do.
            if let Ok(signs) = signs(connection, tables, *server_memory, &self.thresholds).await {
                for (reason, error) in &signs.refused {
                    self.leave_out(*reason, error);
                }
                return signs.to_read;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Reads what can be read; what may not be, never again.
    async fn read(&self, signs: &mut Vec<Sign>) -> Vec<Reading> {
        let mut readings = Vec::new();
        let mut refused = Vec::new();
        for sign in &*signs {
            match sign.read(&self.watched.connection).await {
                Ok(reading) => readings.push(reading),
                Err(error) if error.is_passing() => {}
                Err(error) => {
                    self.leave_out(sign.reason, &error);
                    refused.push(sign.reason);
                }
            }
        }
        signs.retain(|sign| !refused.contains(&sign.reason));
        readings
    }

    fn leave_out(&self, reason: Reason, error: impl std::fmt::Display) {
        let flag = reason.flag();
        (self.watched.tell)(Told::LeftOut(format!("{flag} has no effect: {error}")));
    }

    fn time_of_inserts(&mut self) -> Option<Reading> {
        let shared = &self.throttle.0;
        let now = Sample {
            at: Instant::now(),
            seconds: shared.insert_nanoseconds.load(Ordering::Relaxed) as f64 / 1e9,
            bytes: shared.inserted_bytes.load(Ordering::Relaxed),
        };
        Some(Reading {
            reason: Reason::InsertTime,
            value: self.inserts.times_as_long(now)?,
            threshold: self.thresholds.insert_slowdown as f64,
        })
    }

    /// Goes slower or faster, and says so.
    fn follow(&self, readings: &[Reading]) {
        let before = self.throttle.speed().level;
        let level = after(before, readings);
        self.throttle.set_level(level);
        match (before.reason(), level.reason()) {
            (Some(_), None) => (self.watched.tell)(Told::FullSpeed),
            (before, Some(reason)) if before != Some(reason) => {
                let why = readings.iter().find(|reading| reading.reason == reason);
                let why = why.map(Reading::in_words).unwrap_or_default();
                (self.watched.tell)(Told::Slower(reason, why));
            }
            _ => {}
        }
    }
}

/// The level that follows from what was read.
fn after(level: Level, readings: &[Reading]) -> Level {
    let worst = readings
        .iter()
        .filter(|reading| reading.value > reading.threshold)
        .max_by(|one, other| one.ratio().total_cmp(&other.ratio()));
    match worst {
        Some(worst) => level.raised(worst.reason, worst.ratio() >= URGENT),
        None if readings.iter().all(|reading| reading.ratio() < CALM) => level.lowered(),
        None => level,
    }
}

/// How long inserts take for their bytes, and took at first.
#[derive(Debug, Default)]
struct InsertTime {
    samples: VecDeque<Sample>,
    /// Seconds a byte.
    at_first: Option<f64>,
}

/// All inserts until then.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    seconds: f64,
    bytes: u64,
}

impl InsertTime {
    /// How many times as long they take for the same bytes, once that can be told.
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
        let at_first = *self.at_first.get_or_insert(pace);
        (at_first > 0.0).then_some(pace / at_first)
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

    #[test]
    fn it_slows_down_by_steps_while_something_is_too_much_and_comes_back_once_all_is_calm() {
        let at_once = |readings: &[f64]| {
            let levels = readings.iter().scan(Level::NONE, |level, &value| {
                *level = after(*level, &[reading(Reason::Parts, value)]);
                Some(level.segments_at_once(4))
            });
            levels.collect::<Vec<_>>()
        };
        assert_eq!(
            at_once(&[99.0, 101.0, 101.0, 101.0, 101.0]),
            [4, 2, 1, 1, 0]
        );
        // Between calm and too much it stays as it is.
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
        assert_eq!(after(Level::NONE, &readings).reason(), Some(Reason::Parts));
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
        // 40 s for 100 MiB, in place of 10 s.
        assert_eq!(at(60, 50.0, 200), Some(4.0));
        assert_eq!(at(90, 50.1, 201), None);
    }
}
