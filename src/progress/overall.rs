//! Total progress over several partitions: a bar above those of the phases, or additional text in each
//! line.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{
    HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle,
};

use super::bar;
use super::style::Style;
use super::words::short;
use super::work_clock::{WorkClock, WorkTime};
use crate::memory::numbers::whole;

/// Total progress, in rows that become events.
#[derive(Debug)]
pub(super) struct Overall {
    style: Style,
    bars: MultiProgress,
    bar: ProgressBar,
    partitions: usize,
    total: u64,
    time: WorkTime,
    now: Mutex<Now>,
}

/// The current position.
#[derive(Debug, Default)]
struct Now {
    /// The current partition.
    name: String,
    /// Its number, from 1.
    number: usize,
    /// Its rows.
    rows: u64,
    /// Rows of it that are done.
    done: u64,
    /// Rows of earlier partitions.
    before: u64,
    /// Rows passed that this process did not process itself.
    not_done_now: u64,
    /// Bars of its phases.
    phases: Vec<ProgressBar>,
}

impl Overall {
    /// Shows `partitions` partitions with a total of `total` rows.
    pub(super) fn new(
        style: Style,
        bars: &MultiProgress,
        clock: &WorkClock,
        partitions: usize,
        total: u64,
    ) -> Self {
        // Hidden until it is added to the other bars.
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let bar = bar.with_message("all partitions");
        let template = match bar::is_narrow() {
            true => "{msg} [{wide_bar:.green}] {percent:>3} %{prefix}",
            false => "{msg} [{wide_bar:.green}] {percent:>3} % {human_pos}/{human_len}{prefix}",
        };
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style.progress_chars("=> ")),
            Err(_) => bar,
        };
        Self {
            style,
            bars: bars.clone(),
            bar: bars.add(bar),
            partitions,
            total,
            time: clock.begin(),
            now: Mutex::default(),
        }
    }

    /// Moves to the next partition.
    pub(super) fn begin_partition(&self, name: String, rows: u64) {
        let mut now = self.now();
        self.leave(&mut now);
        now.name = name;
        now.number += 1;
        now.rows = rows;
        self.show(&now);
    }

    /// Ends the last partition.
    pub(super) fn finish(&self) {
        let mut now = self.now();
        self.leave(&mut now);
        self.show(&now);
        self.bar.abandon();
    }

    /// Leaves the partition, and counts its remaining rows as not processed by this process.
    fn leave(&self, now: &mut Now) {
        now.not_done_now += now.rows - now.done;
        now.before += now.rows;
        (now.rows, now.done) = (0, 0);
        for bar in now.phases.drain(..) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    /// Adds a phase's bar, to be removed with the partition.
    pub(super) fn add_phase(&self, bar: &ProgressBar) {
        self.now().phases.push(bar.clone());
    }

    /// Starts the partition at a position reached by earlier processes.
    pub(super) fn begin_at(&self, position: u64, total: u64) {
        let mut now = self.now();
        let done = share(now.rows, position, total);
        now.not_done_now += done.saturating_sub(now.done);
        now.done = done;
        self.show(&now);
    }

    /// The work on the partition has come to this share of it.
    pub(super) fn advance_to(&self, position: u64, total: u64) {
        let mut now = self.now();
        now.done = share(now.rows, position, total);
        self.show(&now);
    }

    /// Updates the time left, which changes even without progress.
    pub(super) fn refresh(&self) {
        if self.style == Style::Terminal {
            self.show(&self.now());
        }
    }

    fn show(&self, now: &Now) {
        if self.style != Style::Terminal {
            return;
        }
        self.bar.set_position(self.position(now));
        self.bar.set_message(self.title(now));
        self.bar.set_prefix(match self.left(now) {
            Some(left) => format!(" {} left", short(left)),
            None => String::new(),
        });
    }

    fn position(&self, now: &Now) -> u64 {
        (now.before + now.done).min(self.total)
    }

    /// Time left at this process's pace, which includes loading traces, since each partition has to.
    fn left(&self, now: &Now) -> Option<Duration> {
        let behind = now.before + now.done;
        let done_now = behind.saturating_sub(now.not_done_now);
        let left = self.total.saturating_sub(behind);
        // Too little is done to extrapolate.
        if done_now < self.total / 100 || done_now == 0 || left == 0 {
            return None;
        }
        let seconds = self.time.seconds() * left as f64 / done_now as f64;
        Some(Duration::from_secs_f64(seconds.min(1e9)))
    }

    /// Text before a line about the partition.
    pub(super) fn line_prefix(&self) -> String {
        let now = self.now();
        format!("{}: ", self.title(&now))
    }

    /// Text after a line about the partition.
    pub(super) fn line_suffix(&self) -> String {
        let now = self.now();
        let position = self.position(&now);
        let percent = (position * 100).checked_div(self.total).unwrap_or(100);
        let left = match self.left(&now) {
            Some(left) => format!(", {} left", HumanDuration(left)),
            None => String::new(),
        };
        format!(
            "; total: {} of {} ({percent} %){left}",
            HumanCount(position),
            HumanCount(self.total),
        )
    }

    fn title(&self, now: &Now) -> String {
        format!(
            "partition {} of {} ({})",
            now.number, self.partitions, now.name
        )
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Scales `position` of `total` to `rows`.
fn share(rows: u64, position: u64, total: u64) -> u64 {
    match total {
        0 => rows,
        total => whole(rows as f64 * (position.min(total) as f64 / total as f64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overall() -> Overall {
        Overall::new(
            Style::Lines,
            &MultiProgress::new(),
            &WorkClock::default(),
            3,
            1_000,
        )
    }

    #[test]
    fn partitions_add_up_to_the_whole() {
        let overall = overall();
        let position = || overall.position(&overall.now());
        overall.begin_partition("202406".to_owned(), 500);
        assert_eq!(overall.line_prefix(), "partition 1 of 3 (202406): ");
        // What is planned may be more or less than the rows that the parts have.
        overall.begin_at(0, 250);
        overall.advance_to(125, 250);
        assert_eq!(position(), 250);
        overall.advance_to(260, 250);
        assert_eq!(position(), 500);
        overall.begin_partition("202405".to_owned(), 100);
        assert_eq!(position(), 500);
        overall.begin_partition("202404".to_owned(), 400);
        assert_eq!(position(), 600);
        assert!(overall.line_suffix().contains("600 of 1,000 (60 %)"));
        overall.finish();
        assert_eq!(position(), 1_000);
    }

    #[test]
    fn only_what_this_process_does_counts_for_the_time_left() {
        let overall = overall();
        let left = || overall.left(&overall.now());
        overall.begin_partition("202406".to_owned(), 500);
        assert_eq!(left(), None);
        // This one was finished before.
        overall.begin_partition("202405".to_owned(), 100);
        assert_eq!(left(), None);
        // Half of this one was.
        overall.begin_at(50, 100);
        assert_eq!(left(), None);
        overall.advance_to(75, 100);
        std::thread::sleep(Duration::from_millis(2));
        let pace = Duration::from_secs_f64(overall.time.seconds()) / 25;
        let left = left().unwrap();
        assert!(left >= pace * 425, "{left:?} {pace:?}");
    }
}
