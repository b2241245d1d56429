//! Progress on standard error: bars on a terminal, a line every ten seconds elsewhere, nothing with
//! `--quiet`.

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

/// Interval between lines without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// What a phase that leads counts. The summary counts observations, which are fewer: a table has rows of
/// replaced versions too.
const TABLE_ROWS: &str = " table rows";

/// Shows progress. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Display {
    style: Style,
    bars: MultiProgress,
    /// Total progress, if there are several partitions.
    overall: Option<Arc<Overall>>,
    /// Messages not to be repeated.
    said: Arc<Mutex<HashSet<String>>>,
    /// Why the run is slowed down, if it is.
    status: Arc<Mutex<Status>>,
    clock: WorkClock,
}

/// Text below the bars, or at the end of each line.
#[derive(Debug, Default)]
struct Status {
    words: Option<String>,
    bar: Option<ProgressBar>,
}

impl Display {
    /// Chooses the style that suits standard error. `clock` is the time base of rates.
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

    /// The same display for `partitions` consecutive partitions with a total of `total` observation
    /// rows.
    pub(crate) fn over_partitions(self, partitions: usize, total: u64) -> Self {
        let overall = Overall::new(self.style, &self.bars, &self.clock, partitions, total);
        Self {
            overall: Some(Arc::new(overall)),
            ..self
        }
    }

    /// Moves to the next partition, with `rows` observation rows.
    pub(crate) fn begin_partition(&self, name: impl std::fmt::Display, rows: u64) {
        if let Some(overall) = &self.overall {
            overall.begin_partition(name.to_string(), rows);
        }
    }

    /// Ends the last partition.
    pub(crate) fn end_partitions(&self) {
        if let Some(overall) = &self.overall {
            overall.finish();
        }
    }

    /// Prints a line without disturbing the bars.
    pub(crate) fn note(&self, text: impl std::fmt::Display) {
        if self.style != Style::Quiet {
            self.bars.suspend(|| log::line(Level::Info, text));
        }
    }

    /// Prints a line about something done, with a check mark on a terminal.
    pub(crate) fn note_done(&self, text: impl std::fmt::Display) {
        match self.style {
            Style::Terminal => self.note(format_args!(
                "{} {text}",
                console::style("✓").for_stderr().green()
            )),
            Style::Lines | Style::Quiet => self.note(text),
        }
    }

    /// Prints a line, unless it was printed before.
    pub(crate) fn note_once(&self, text: String) {
        if self.is_new(&text) {
            self.note(text);
        }
    }

    /// The same for a warning, which is printed even with `--quiet`.
    pub(crate) fn warn_once(&self, text: String) {
        if self.is_new(&text) {
            self.bars.suspend(|| log::line(Level::Warning, text));
        }
    }

    /// Shows why the run is slowed down; `None` when it is back at full speed.
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

/// A line below the bars, cut to the terminal's width.
fn line_of_words() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    match ProgressStyle::with_template("{wide_msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Progress of a phase towards a total known beforehand.
///
/// The total counts rows in parts, some of which are older versions of others and never pass. So
/// finished work is counted with its planned rows, and ends at 100 %.
pub(crate) struct Phase {
    style: Style,
    name: &'static str,
    bar: ProgressBar,
    overall: Option<Arc<Overall>>,
    status: Arc<Mutex<Status>>,
    /// If it drives the total progress: the partition's rows before this phase, and all its rows.
    leads: Option<(u64, u64)>,
    /// Follows the counts.
    unit: &'static str,
    position: AtomicU64,
    total: u64,
    time: WorkTime,
    /// Rows done by earlier processes.
    offset: u64,
    last_line: Mutex<LastLine>,
}

/// Time and position of the last line.
struct LastLine {
    at: Instant,
    position: Option<u64>,
}

impl Phase {
    /// Starts a phase of `total` rows, `offset` of which are already done.
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
            unit: "",
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

    /// Lets the phase drive the total progress over several partitions. Of the partition's `whole` rows,
    /// `before` precede the phase.
    pub(crate) fn leading(mut self, before: u64, whole: u64) -> Self {
        self.leads = Some((before, whole));
        self.unit = TABLE_ROWS;
        bar::set_unit(&self.bar, self.unit, self.offset, self.time.clone());
        if let Some(overall) = &self.overall {
            overall.begin_at(before + self.offset, whole);
        }
        self
    }

    /// Adds rows that have passed.
    pub(crate) fn advance(&self, rows: u64) {
        let position = self.position.fetch_add(rows, Ordering::Relaxed) + rows;
        self.show(position);
    }

    /// Sets the rows that have passed, counted elsewhere.
    pub(crate) fn advance_to(&self, rows: u64) {
        self.position.store(rows, Ordering::Relaxed);
        self.show(rows);
    }

    /// Subtracts rows that must be repeated.
    pub(crate) fn go_back(&self, rows: u64) {
        let position = self.position.fetch_sub(rows, Ordering::Relaxed) - rows;
        self.show(position);
    }

    /// Replaces the rows counted for a piece of work with its planned rows.
    pub(crate) fn finish_piece(&self, counted: u64, planned: u64) {
        if counted <= planned {
            self.advance(planned - counted);
        } else {
            self.go_back(counted - planned);
        }
    }

    /// Ends the phase at its position.
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

    /// Prints a line, unless the last one is less than `pause` ago or has the same position.
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
            "{prefix}{}: {} of {}{} ({percent} %), {}/s{left}{suffix}{status}",
            self.name,
            HumanCount(position.min(self.total)),
            HumanCount(self.total),
            self.unit,
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
