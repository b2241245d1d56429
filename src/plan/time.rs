//! Estimates a run's duration from the sample or an earlier run.

use indicatif::HumanCount;
use serde::Serialize;

use super::disk::RootSpans;
use super::earlier_runs::Earlier;
use super::experiments::LONGEST;
use super::sample::{Experiments, Sample};
use crate::cli::options::Options;
use crate::inspect::Inspected;
use crate::memory::ByteSize;
use crate::memory::numbers::whole;

/// Uncompressed bytes of events a server inserts per second: two cores with `events_full` and its
/// text indexes (measured at commit ef8dda3: 70,500 events of 1.35 KB per second including reading
/// and enriching, and 215,800 without inserting, which makes 135 MiB; similar machines were a tenth
/// slower).
const INSERTED_PER_SECOND: u64 = 120 << 20;

/// One step of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    /// Its name.
    pub name: &'static str,
    /// Estimated duration in seconds, if known.
    pub seconds: Option<f64>,
    /// The basis of the estimate.
    pub basis: String,
}

/// The estimated duration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Time {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Total in seconds, if every step is known.
    pub total_seconds: Option<f64>,
    /// Whether an earlier run measured inserting.
    pub with_measured_inserts: bool,
    /// What the estimate excludes.
    pub left_out: &'static str,
}

/// What a sample cannot show.
const LEFT_OUT: &str = "other load on the server, merges, retries and look-ups in other months";

impl Time {
    /// Estimates a run that writes `write_bytes`.
    pub(crate) fn new(
        options: &Options,
        inspected: &Inspected,
        sample: &Sample,
        write_bytes: u64,
        root_spans: Option<&RootSpans>,
        earlier: Option<Earlier>,
    ) -> Self {
        let rows = match options.subject.observations {
            true => inspected.observation_rows,
            false => 0,
        };
        let with_measured_inserts = earlier.is_some() && !options.dry_run;
        let mut steps = vec![load_step(inspected.traces_to_load, sample)];
        steps.extend(sample.experiments.as_ref().map(experiments_step));
        if rows > 0 {
            match earlier.filter(|_| with_measured_inserts) {
                Some(earlier) => steps.push(as_earlier(&earlier, rows)),
                None => {
                    steps.push(read_step(options, rows, sample));
                    if !options.dry_run {
                        steps.push(insert_step(write_bytes));
                    }
                }
            }
        }
        if let Some(root_spans) = root_spans.filter(|_| !options.dry_run) {
            steps.push(Step {
                name: "write root spans",
                ..insert_step(root_spans.bytes.uncompressed)
            });
        }
        Self {
            total_seconds: steps.iter().map(|step| step.seconds).sum(),
            steps,
            with_measured_inserts,
            left_out: LEFT_OUT,
        }
    }
}

fn load_step(traces: u64, sample: &Sample) -> Step {
    let (seconds, basis) = match (traces, sample.load.seconds_of(traces)) {
        (0, _) => (Some(0.0), "none to load".to_owned()),
        (_, None) => {
            let basis = "not measured: only a few, from the days before and after the month";
            (Some(0.0), basis.to_owned())
        }
        (_, Some(seconds)) => (
            Some(seconds),
            format!(
                "measured: {} loaded at {}/s",
                HumanCount(sample.load.rows),
                rate(traces, seconds)
            ),
        ),
    };
    Step {
        name: "load traces",
        seconds,
        basis,
    }
}

fn experiments_step(experiments: &Experiments) -> Step {
    let Experiments {
        traces,
        found,
        is_cut_short,
    } = *experiments;
    let measured = format!(
        "{} of {} traces with an item",
        HumanCount(found.rows),
        HumanCount(traces)
    );
    let after = LONGEST.as_secs();
    let basis = match (found.rows, is_cut_short) {
        (0, true) => {
            format!("at least: stopped after {after} s, still searching for traces with an item")
        }
        (_, true) => format!("at least: {measured}, stopped after {after} s"),
        (0, false) => "no trace in this month has an item".to_owned(),
        (_, false) => format!("measured: {measured}"),
    };
    Step {
        name: "find dataset runs",
        seconds: Some(found.seconds_of(traces).unwrap_or(found.seconds)),
        basis,
    }
}

/// Blocks are enriched in one thread per concurrent segment.
fn read_step(options: &Options, rows: u64, sample: &Sample) -> Step {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.concurrency.min(processors) as f64;
    let seconds = sample
        .read
        .seconds_of(rows)
        .zip(sample.enrich.seconds_of(rows))
        .map(|(read, enrich)| read + enrich / threads);
    let basis = match seconds {
        Some(seconds) => format!(
            "measured: {} read and {} enriched, {}/s",
            HumanCount(sample.read.rows),
            HumanCount(sample.enrich.rows),
            rate(rows, seconds)
        ),
        None => "the sample is empty".to_owned(),
    };
    Step {
        name: "read and enrich",
        seconds,
        basis,
    }
}

fn insert_step(bytes: u64) -> Step {
    Step {
        name: "insert",
        seconds: Some(bytes as f64 / INSERTED_PER_SECOND as f64),
        basis: format!(
            "not measured: assumes {}/s, the speed of an idle server with 2 cores",
            ByteSize(INSERTED_PER_SECOND)
        ),
    }
}

fn as_earlier(earlier: &Earlier, rows: u64) -> Step {
    let speed = earlier.observations_per_second;
    Step {
        name: "read, enrich, insert",
        seconds: Some(rows as f64 / speed),
        basis: format!(
            "speed of the run of {}: {}/s including inserts",
            earlier.partition,
            HumanCount(whole(speed))
        ),
    }
}

fn rate(rows: u64, seconds: f64) -> HumanCount {
    HumanCount(whole(rows as f64 / seconds.max(1e-9)))
}

#[cfg(test)]
mod tests {
    use super::super::sample::Measured;
    use super::*;

    #[test]
    fn what_was_cut_short_is_told_as_the_least_that_it_takes() {
        let step = |rows, traces, is_cut_short| {
            let found = Measured {
                rows,
                seconds: 15.0,
            };
            experiments_step(&Experiments {
                traces,
                found,
                is_cut_short,
            })
        };
        assert_eq!(step(40, 80, false).seconds, Some(30.0));
        assert!(step(40, 80, false).basis.starts_with("measured: 40 of 80"));
        assert_eq!(step(40, 80, true).seconds, Some(30.0));
        let cut = [step(40, 80, true), step(0, 0, true)];
        for step in cut {
            assert!(step.basis.starts_with("at least"), "{}", step.basis);
            assert!(step.basis.contains("stopped after 15 s"), "{}", step.basis);
        }
    }
}
