//! What the operator sees while it runs: bars on a terminal, a plain line every
//! ten seconds elsewhere, nothing with `--quiet`. All of it on standard error.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle,
};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Bars.
    Terminal,
    /// A line now and then.
    Lines,
    /// Nothing.
    Quiet,
}

/// Where progress is shown. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Display {
    style: Style,
    bars: MultiProgress,
}

impl Display {
    /// What fits standard error.
    pub fn detect(quiet: bool) -> Self {
        let style = if quiet {
            Style::Quiet
        } else if std::io::stderr().is_terminal() {
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
        }
    }

    /// Prints one line, without disturbing a bar.
    pub fn note(&self, text: impl std::fmt::Display) {
        if self.style != Style::Quiet {
            self.bars.suspend(|| print_line(text));
        }
    }
}

/// A line on standard error. If nobody reads it any more, the work goes on.
fn print_line(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Progress of one phase towards a total that is known beforehand.
///
/// The total counts rows in parts, of which several may be versions of one;
/// so finished work is set to its planned rows, and the end is 100 %.
pub struct Phase {
    style: Style,
    name: &'static str,
    bar: ProgressBar,
    position: AtomicU64,
    total: u64,
    started: Instant,
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
    pub fn begin(display: &Display, name: &'static str, total: u64, offset: u64) -> Self {
        let bar = display.bars.add(ProgressBar::new(total));
        let template =
            "{msg:<22} [{wide_bar}] {percent:>3} % {human_pos}/{human_len} {per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(name);
        bar.set_position(offset);
        // The rate and the time left must not count what an earlier run did.
        bar.reset_eta();
        let now = Instant::now();
        Self {
            style: display.style,
            name,
            bar,
            position: AtomicU64::new(offset),
            total,
            started: now,
            offset,
            last_line: Mutex::new(LastLine {
                at: now,
                position: None,
            }),
        }
    }

    /// Counts rows as they pass.
    pub fn advance(&self, rows: u64) {
        let position = self.position.fetch_add(rows, Ordering::Relaxed) + rows;
        self.show(position);
    }

    /// Takes rows back that have to be done again.
    pub fn go_back(&self, rows: u64) {
        let position = self.position.fetch_sub(rows, Ordering::Relaxed) - rows;
        self.show(position);
    }

    /// Replaces rows counted for a piece of work by the rows planned for it.
    pub fn finish_piece(&self, counted: u64, planned: u64) {
        if counted <= planned {
            self.advance(planned - counted);
        } else {
            self.go_back(counted - planned);
        }
    }

    /// Ends the phase, where it is.
    pub fn finish(&self) {
        match self.style {
            Style::Terminal => self.bar.abandon(),
            Style::Lines => self.line(self.position.load(Ordering::Relaxed), Duration::ZERO),
            Style::Quiet => {}
        }
    }

    fn show(&self, position: u64) {
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
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
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
        print_line(format_args!(
            "{}: {} of {} ({percent} %), {}/s{left}",
            self.name,
            HumanCount(position.min(self.total)),
            HumanCount(self.total),
            HumanCount(rate as u64),
        ));
    }
}
