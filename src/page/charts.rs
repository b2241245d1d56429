//! The charts of a month, and a table of their figures.

use std::collections::{BTreeMap, BTreeSet};

use super::chart::{Chart, Drawing, Series};
use super::columns::{Column, Columns};
use super::fact::Fact;
use crate::memory::ByteSize;
use crate::memory::numbers::whole;
use crate::progress::words::{count, seconds};

/// Maximum lines in the table of figures.
const MOST_LINES: usize = 30;
/// One mebibyte, the smallest unit on the memory axis.
const MEBIBYTE: f64 = 1_048_576.0;

/// All charts; none without measurements.
pub(super) fn charts(all: &Columns) -> Vec<Chart> {
    if all.columns.is_empty() {
        return Vec::new();
    }
    [throughput(all), inserts(all), throttling(all), memory(all)]
        .into_iter()
        .map(|drawing| drawing.of(all))
        .collect()
}

fn throughput(all: &Columns) -> Drawing<'_> {
    let total = |number: fn(&Column) -> u64| all.columns.iter().map(number).sum::<u64>();
    let (traces, rows) = (
        total(|column| column.trace_rows),
        total(|column| column.rows),
    );
    let mut facts = Vec::new();
    let mut series = Vec::new();
    if traces > 0 {
        let while_loading = |column: &Column| column.trace_rows > 0;
        facts.push(Fact::new("traces", mean_rate(all, traces, while_loading)));
        series.push(series_of("traces loaded", |column| {
            (column.trace_rows > 0).then(|| column.trace_rows as f64 / column.seconds())
        }));
    }
    let while_writing = |column: &Column| column.rows > 0;
    facts.push(Fact::new("events", mean_rate(all, rows, while_writing)));
    series.push(series_of("events", |column| {
        (column.trace_rows == 0 || column.rows > 0).then(|| column.rows as f64 / column.seconds())
    }));
    Drawing {
        title: "Throughput",
        about: "Rows per second: first traces being loaded, then events being written.",
        facts,
        series,
        unit: 1.0,
        at_least: 10.0,
        words: per_second,
    }
}

/// Mean rate over the time at work of the columns that count.
fn mean_rate(all: &Columns, rows: u64, counts: impl Fn(&Column) -> bool) -> String {
    let columns = all.columns.iter().filter(|column| counts(column));
    let seconds: f64 = columns.map(Column::seconds_at_work).sum();
    match seconds > 0.0 {
        true => format!("{} on average", per_second(rows as f64 / seconds)),
        false => "none".to_owned(),
    }
}

fn inserts(all: &Columns) -> Drawing<'_> {
    let waited: f64 = all.columns.iter().map(|column| column.insert_seconds).sum();
    let rows: u64 = all.columns.iter().map(|column| column.rows).sum();
    let mut facts = vec![Fact::new("total wait", seconds(waited))];
    if rows > 0 {
        let per_million = seconds(waited * 1e6 / rows as f64);
        facts.push(Fact::new("per million events", per_million));
    }
    Drawing {
        title: "Inserts",
        about: "Average number of segments waiting for the server to accept their events. With more \
                segments in parallel, the total wait grows.",
        facts,
        series: vec![series_of("waiting", |column| {
            Some(column.insert_seconds / column.seconds())
        })],
        unit: 1.0,
        at_least: 1.0,
        words: |value| {
            let text = format!("{value:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        },
    }
}

fn throttling(all: &Columns) -> Drawing<'_> {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (reason, seconds) in all.columns.iter().flat_map(|column| &column.throttled) {
        *sums.entry(reason).or_default() += seconds;
    }
    let reasons: BTreeSet<&str> = sums.keys().copied().collect();
    let facts = sums.iter().map(|(reason, time)| {
        let reason = reason.replace('_', " ");
        Fact::new("", format!("{reason}: {}", seconds(*time)))
    });
    let mut facts: Vec<Fact> = facts.collect();
    if facts.is_empty() {
        facts.push(Fact::new("", "at full speed throughout"));
    }
    let series = reasons.into_iter().map(|reason| {
        series_of(&reason.replace('_', " "), move |column: &Column| {
            let throttled = column.throttled.get(reason).unwrap_or(&0.0);
            Some((throttled / column.seconds() * 100.0).min(100.0))
        })
    });
    Drawing {
        title: "Throttling",
        about: "Share of the time for which the run was slowed down, by reason.",
        facts,
        series: series.collect(),
        unit: 1.0,
        at_least: 100.0,
        words: |value| format!("{value:.0} %"),
    }
}

fn memory(all: &Columns) -> Drawing<'_> {
    let most = |bytes: fn(&Column) -> u64| all.columns.iter().map(bytes).max().unwrap_or(0);
    let resident = most(|column| column.resident_bytes);
    let store = most(|column| column.store_bytes);
    Drawing {
        title: "Memory",
        about: "Resident memory of the process. The trace store is on disk.",
        facts: vec![
            Fact::new("peak", ByteSize(resident).to_string()),
            Fact::new("largest trace store", ByteSize(store).to_string()),
        ],
        series: vec![series_of("memory", |column| {
            Some(column.resident_bytes as f64)
        })],
        unit: unit_of_bytes(resident),
        at_least: MEBIBYTE,
        words: |value| {
            let text = ByteSize(whole(value)).to_string();
            text.replace(".0 ", " ")
        },
    }
}

/// The axis unit for values up to `bytes`.
fn unit_of_bytes(bytes: u64) -> f64 {
    match bytes as f64 {
        bytes if bytes >= 1024.0 * MEBIBYTE => 1024.0 * MEBIBYTE,
        _ => MEBIBYTE,
    }
}

fn series_of<'a>(name: &str, value: impl Fn(&Column) -> Option<f64> + 'a) -> Series<'a> {
    Series {
        name: name.to_owned(),
        value: Box::new(value),
    }
}

fn per_second(rate: f64) -> String {
    format!("{}/s", count(whole(rate)))
}

/// A line in the table of figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Figures {
    pub time: String,
    pub traces: String,
    pub events: String,
    pub inserts: String,
    pub throttled: String,
    pub memory: String,
    pub disk: String,
}

/// The charts' values as a table.
pub(super) fn figures(all: &Columns) -> Vec<Figures> {
    let few = all.at_most(MOST_LINES);
    let lines = few.columns.iter().map(|column| Figures {
        time: format!("{:.0} to {:.0} s", column.from, column.to),
        traces: count(column.trace_rows),
        events: count(column.rows),
        inserts: seconds(column.insert_seconds),
        throttled: {
            let longest = column.throttled.values().copied().fold(0.0, f64::max);
            seconds(longest)
        },
        memory: ByteSize(column.resident_bytes).to_string(),
        disk: ByteSize(column.store_bytes).to_string(),
    });
    lines.collect()
}
