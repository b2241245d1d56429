//! What the operator sees while it runs: bars on a terminal, a plain line every
//! ten seconds elsewhere, nothing with `--quiet`. All of it on standard error.

mod bar;
pub(crate) mod log;
pub(crate) mod moment;
mod overall;
pub(crate) mod stopwatch;
mod style;
pub(crate) mod words;
mod work_clock;

use std::collections::HashSet;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle,
};

use self::log::{Level, LogFormat};
use self::overall::Overall;
use self::style::Style;
pub(crate) use self::work_clock::WorkClock;
use self::work_clock::WorkTime;
use crate::memory::numbers::whole;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress is shown. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Display {
    style: Style,
    bars: MultiProgress,
    /// Progress over all partitions, if there are several.
    overall: Option<Arc<Overall>>,
    /// What was said and is not to be said again.
    said: Arc<Mutex<HashSet<String>>>,
    /// Why it does not go at full speed, if it does not.
    status: Arc<Mutex<Status>>,
    clock: WorkClock,
}

/// What is shown below the bars, or behind each line.
#[derive(Debug, Default)]
struct Status {
    words: Option<String>,
    bar: Option<ProgressBar>,
}

impl Display {
    /// What fits standard error. Rates are told by that clock.
    pub(crate) fn detect(quiet: bool, clock: WorkClock) -> Self {
        let style = if quiet {
            Style::Quiet
        } else if std::io::stderr().is_terminal() && log::format() == LogFormat::Text {
            Style::Terminal
        } else {
            Style::Lines
        };
        let target = match style {
            Style::Terminal => ProgressDrawTarget::stderr(),
            Style::Lines | Style::Quiet => ProgressDrawTarget::hidden(),
        };
        Self {
            style,
            bars: MultiProgress::with_draw_target(target),
            overall: None,
            said: Arc::default(),
            status: Arc::default(),
            clock,
        }
    }

    /// The same display for so many partitions, one after the other, with `total` rows of
    /// observations together.
    pub(crate) fn over_partitions(self, partitions: usize, total: u64) -> Self {
        let overall = Overall::new(self.style, &self.bars, &self.clock, partitions, total);
        Self {
            overall: Some(Arc::new(overall)),
            ..self
        }
    }

    /// Goes on to the next partition, which has so many rows of observations.
    pub(crate) fn begin_partition(&self, name: impl std::fmt::Display, rows: u64) {
        if let Some(overall) = &self.overall {
            overall.begin_partition(name.to_string(), rows);
        }
    }

    /// No partition is worked on any more.
    pub(crate) fn end_partitions(&self) {
        if let Some(overall) = &self.overall {
            overall.finish();
        }
    }

    /// Prints one line, without disturbing a bar.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        if self.style != Style::Quiet {
            self.bars.suspend(|| log::line(Level::Info, text));
        }
    }

    /// Prints one line about something that is done, on a terminal with a mark.
    pub(crate) fn note_done(&self, text: impl std::fmt::Display) {
        match self.style {
            Style::Terminal => self.note(format_args!(
                "{} {text}",
                console::style("✓").for_stderr().green()
            )),
            Style::Lines | Style::Quiet => self.note(text),
        }
    }

    /// Prints one line, unless it was printed before.
    pub(crate) fn note_once(&self, text: String) {
        if self.is_new(&text) {
            self.note(text);
        }
    }

    /// The same of a warning, which matters too much to be left out of `--quiet`.
    pub(crate) fn warn_once(&self, text: String) {
        if self.is_new(&text) {
            self.bars.suspend(|| log::line(Level::Warning, text));
        }
    }

    /// Shows why it does not go at full speed, until it does again.
    pub(crate) fn set_status(&self, words: Option<String>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.words = words;
        if self.style != Style::Terminal {
            return;
        }
        match (status.words.clone(), status.bar.take()) {
            (Some(words), bar) => {
                let bar = bar.unwrap_or_else(|| self.bars.add(line_of_words()));
                bar.set_message(words);
                status.bar = Some(bar);
            }
            (None, Some(bar)) => {
                bar.finish_and_clear();
                self.bars.remove(&bar);
            }
            (None, None) => {}
        }
    }

    fn is_new(&self, text: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.insert(text.to_owned())
    }
}

/// A line below the bars, cut where the terminal ends.
fn line_of_words() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    match ProgressStyle::with_template("{wide_msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Progress of one phase towards a total that is known beforehand.
///
/// The total counts rows in parts, of which several may be versions of one;
/// so finished work is set to its planned rows, and the end is 100 %.
pub(crate) struct Phase {
    style: Style,
    name: &'static str,
    bar: ProgressBar,
    overall: Option<Arc<Overall>>,
    status: Arc<Mutex<Status>>,
    /// Where it leads: the rows of the partition before this phase, and all of them.
    leads: Option<(u64, u64)>,
    position: AtomicU64,
    total: u64,
    time: WorkTime,
    /// Rows that were done before this process began.
    offset: u64,
    last_line: Mutex<LastLine>,
}

/// When the last line was printed, and for which position.
struct LastLine {
    at: Instant,
    position: Option<u64>,
}

impl Phase {
    /// Begins a phase of `total` rows, `offset` of which are done already.
    pub(crate) fn begin(display: &Display, name: &'static str, total: u64, offset: u64) -> Self {
        let time = display.clock.begin();
        let bar = bar::of_phase(name, total, offset, time.clone());
        let bar = display.bars.add(bar);
        if let Some(overall) = &display.overall {
            overall.add_phase(&bar);
        }
        let now = Instant::now();
        Self {
            style: display.style,
            name,
            bar,
            overall: display.overall.clone(),
            status: Arc::clone(&display.status),
            leads: None,
            position: AtomicU64::new(offset),
            total,
            time,
            offset,
            last_line: Mutex::new(LastLine {
                at: now,
                position: None,
            }),
        }
    }

    /// The same phase, as one by which the partition's own progress is told where there are
    /// several partitions: of the `whole` rows of this one, `before` come before the phase.
    pub(crate) fn leading(mut self, before: u64, whole: u64) -> Self {
        self.leads = Some((before, whole));
        if let Some(overall) = &self.overall {
            overall.begin_at(before + self.offset, whole);
        }
        self
    }

    /// Counts rows as they pass.
    pub(crate) fn advance(&self, rows: u64) {
        let position = self.position.fetch_add(rows, Ordering::Relaxed) + rows;
        self.show(position);
    }

    /// Says how many rows have passed, where something else counts them.
    pub(crate) fn advance_to(&self, rows: u64) {
        self.position.store(rows, Ordering::Relaxed);
        self.show(rows);
    }

    /// Takes rows back that have to be done again.
    pub(crate) fn go_back(&self, rows: u64) {
        let position = self.position.fetch_sub(rows, Ordering::Relaxed) - rows;
        self.show(position);
    }

    /// Replaces rows counted for a piece of work by the rows planned for it.
    pub(crate) fn finish_piece(&self, counted: u64, planned: u64) {
        if counted <= planned {
            self.advance(planned - counted);
        } else {
            self.go_back(counted - planned);
        }
    }

    /// Ends the phase, where it is.
    pub(crate) fn finish(&self) {
        match self.style {
            Style::Terminal => bar::finish(&self.bar, self.name),
            Style::Lines => self.line(self.position.load(Ordering::Relaxed), Duration::ZERO),
            Style::Quiet => {}
        }
    }

    fn show(&self, position: u64) {
        match (&self.overall, self.leads) {
            (Some(overall), Some((before, whole))) => {
                overall.advance_to(before + position.min(self.total), whole);
            }
            (Some(overall), None) => overall.refresh(),
            (None, _) => {}
        }
        match self.style {
            Style::Terminal => self.bar.set_position(position.min(self.total)),
            Style::Lines => self.line(position, LINE_EVERY),
            Style::Quiet => {}
        }
    }

    /// Prints a line unless there was one less than `pause` ago, or it would say the same.
    fn line(&self, position: u64, pause: Duration) {
        let mut last = self
            .last_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.at.elapsed() >= pause && last.position != Some(position) {
            *last = LastLine {
                at: Instant::now(),
                position: Some(position),
            };
            self.print_line(position);
        }
    }

    fn print_line(&self, position: u64) {
        let seconds = self.time.seconds().max(0.001);
        let rate = position.saturating_sub(self.offset) as f64 / seconds;
        let percent = match self.total {
            0 => 100,
            total => position.min(total) * 100 / total,
        };
        let left = match position {
            position if position >= self.total || rate <= 0.0 => String::new(),
            position => {
                let seconds = (self.total - position) as f64 / rate;
                format!(
                    ", {} left",
                    HumanDuration(Duration::from_secs_f64(seconds.min(1e9)))
                )
            }
        };
        let overall = self.overall.as_ref();
        let (prefix, suffix) = overall
            .map(|overall| (overall.line_prefix(), overall.line_suffix()))
            .unwrap_or_default();
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let status = status
            .words
            .as_ref()
            .map_or_else(String::new, |words| format!("; {words}"));
        let words = format_args!(
            "{prefix}{}: {} of {} ({percent} %), {}/s{left}{suffix}{status}",
            self.name,
            HumanCount(position.min(self.total)),
            HumanCount(self.total),
            HumanCount(whole(rate)),
        );
        let fields = [
            ("phase", self.name.into()),
            ("rows", position.min(self.total).into()),
            ("rows_total", self.total.into()),
            ("rows_per_second", whole(rate).into()),
        ];
        log::line_with(Level::Info, words, &fields);
    }
}
