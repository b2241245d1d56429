//! Progress bars of phases, fitted to the terminal's width.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::words::short;
use super::work_clock::WorkTime;
use crate::memory::numbers::whole;

/// Minimum columns for showing row counts.
const WIDE: u16 = 100;

/// Without row counts.
const NARROW_TEMPLATE: &str = "{msg} [{wide_bar:.green}] {percent:>3} % {rate}{left}";
/// With row counts.
const WIDE_TEMPLATE: &str =
    "{msg:<22} [{wide_bar:.green}] {percent:>3} % {human_pos}/{human_len}{unit} {rate}{left}";

/// Whether the terminal is too narrow for row counts.
pub(super) fn is_narrow() -> bool {
    let (_, columns) = console::Term::stderr().size();
    columns < WIDE
}

/// A bar towards `total` rows, `offset` of which were done by earlier processes and do not count for
/// rate and time left. Both average over the whole phase, so that they do not jump.
pub(super) fn of_phase(name: &'static str, total: u64, offset: u64, time: WorkTime) -> ProgressBar {
    // Hidden until it is added to the other bars.
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    let bar = bar.with_message(name).with_position(offset);
    set_unit(&bar, "", offset, time);
    bar
}

/// Shows `unit` behind the counts of a bar of [`of_phase`], if there is room for them.
pub(super) fn set_unit(bar: &ProgressBar, unit: &'static str, offset: u64, time: WorkTime) {
    let template = match is_narrow() {
        true => NARROW_TEMPLATE,
        false => WIDE_TEMPLATE,
    };
    let Ok(style) = ProgressStyle::with_template(template) else {
        return;
    };
    bar.set_style(
        style
            .progress_chars("=> ")
            .with_key("unit", move |_: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(unit);
            })
            .with_key("rate", {
                let time = time.clone();
                move |state: &ProgressState, out: &mut dyn Write| {
                    let rate = rate(state, offset, time.seconds());
                    let _ = write!(out, "{}/s", HumanCount(whole(rate)));
                }
            })
            .with_key("left", move |state: &ProgressState, out: &mut dyn Write| {
                if let Some(left) = left(state, offset, time.seconds()) {
                    let _ = write!(out, " {} left", short(left));
                }
            }),
    );
}

/// Ends the bar at its position, with a check mark if complete.
pub(super) fn finish(bar: &ProgressBar, name: &str) {
    if bar.length().is_some_and(|total| bar.position() >= total) {
        bar.set_message(format!("✓ {name}"));
    }
    bar.abandon();
}

/// Rows per second at work.
fn rate(state: &ProgressState, offset: u64, seconds: f64) -> f64 {
    state.pos().saturating_sub(offset) as f64 / seconds.max(0.001)
}

/// Time for the rest at that rate.
fn left(state: &ProgressState, offset: u64, seconds: f64) -> Option<Duration> {
    let left = state.len()?.saturating_sub(state.pos()) as f64;
    let rate = rate(state, offset, seconds);
    if rate <= 0.0 && left > 0.0 {
        return None;
    }
    let seconds = left / rate.max(f64::MIN_POSITIVE);
    Duration::try_from_secs_f64(seconds.min(1e9)).ok()
}
