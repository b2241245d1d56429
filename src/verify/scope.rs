//! The rows a statement covers, and the SQL conditions for them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_bytes::ByteBuf;

use super::origin::{EVENT, OBSERVATION, Origin};
use super::pieces::Batch;
use crate::clickhouse::quoting;
use crate::inspect::statements::TRACE;
use crate::partition::Day;

/// The rows a statement covers.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// The projects.
    pub projects: Vec<ByteBuf>,
    /// The days on which the observations and events start.
    pub days: RangeInclusive<Day>,
    /// Those days as a half-open range of milliseconds since 1970.
    pub moments: (i64, i64),
    /// The days on which to look for their traces.
    pub trace_days: RangeInclusive<Day>,
    /// Only traces in this share, by the hash of their id.
    pub share: Share,
    /// Traces that are, or may be, outside the batch's days.
    pub moved: Moved,
    /// The batch's days.
    pub batch_days: RangeInclusive<Day>,
    /// Only rows of this class.
    pub only_class: Option<Class>,
    /// Only spans whose hash modulo the first number is among the others.
    pub slices: Option<(u64, Vec<u64>)>,
    /// Whether there are live events on its days or the days around them.
    pub has_live: bool,
    /// Observations with rows that do not win.
    pub superseded: Superseded,
}

/// A row's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Class {
    /// A span without a root span's id.
    Ordinary = 0,
    /// A span with a root span's id, `t-<trace_id>`.
    Root = 1,
    /// A root span that is not compared.
    Aside = 2,
    /// A live event, or the row expected in its place.
    Live = 3,
}

impl Class {
    /// The class with that number.
    pub(super) fn of(number: u8) -> Self {
        match number {
            0 => Class::Ordinary,
            1 => Class::Root,
            2 => Class::Aside,
            _ => Class::Live,
        }
    }
}

/// Observations that `FINAL` shows more than once because their versions have several types or
/// days, as far as a scope contains them.
#[derive(Debug, Clone, Default)]
pub(super) struct Superseded {
    /// Hashes of their ids.
    pub observations: Vec<u64>,
    /// Hashes of their winning versions.
    pub counting: Vec<u64>,
}

impl Superseded {
    /// A condition, appended to another, that excludes the rows that do not win.
    pub(super) fn condition(&self) -> String {
        if self.observations.is_empty() {
            return String::new();
        }
        format!(
            " AND ({} NOT IN ({}) OR {} IN ({}))",
            observation_hash(),
            listed(self.observations.iter().map(u64::to_string)),
            version_hash(),
            listed(self.counting.iter().map(u64::to_string)),
        )
    }
}

/// The hash of an observation's ids.
pub(super) fn observation_hash() -> String {
    let names = Names::of(Origin::Observation);
    format!(
        "cityHash64(CAST({}, 'String'), CAST({}, 'String'), CAST({}, 'String'))",
        names.project, names.trace, names.span
    )
}

/// A hash that identifies the winning version among an observation's rows.
pub(super) fn version_hash() -> String {
    format!(
        "cityHash64({}, {OBSERVATION}.event_ts, toUInt16(toDate({OBSERVATION}.start_time)))",
        observation_hash()
    )
}

/// Where to look for traces outside the scope's days.
#[derive(Debug, Clone, Default)]
pub(super) struct Moved {
    /// Hashes of their ids. Shorter than ids, and a collision is harmless.
    pub hashes: BTreeSet<u64>,
    /// The days of their versions.
    pub days: BTreeSet<Day>,
}

/// A share of all traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// The number of shares.
    pub of: u64,
    /// The index of this share.
    pub number: u64,
}

/// Maximum number of shares of a batch.
const MOST_SHARES: u64 = 1_024;

impl Share {
    /// Whether further division is useful.
    pub(super) fn is_divisible(self) -> bool {
        self.of < MOST_SHARES
    }

    /// Splits the share in two.
    pub(super) fn halves(self) -> [Share; 2] {
        let of = self.of * 2;
        [self.number, self.number + self.of].map(|number| Share { of, number })
    }

    /// Whether it contains a trace, by the hash of its id.
    pub(super) fn contains(self, hash: u64) -> bool {
        hash % self.of == self.number
    }

    /// A condition, appended to another, for the rows of its traces.
    pub(super) fn condition(self, trace_id: &str) -> String {
        match self.of {
            1 => String::new(),
            of => format!(" AND {} % {of} = {}", hash(trace_id), self.number),
        }
    }
}

/// Column names of one table for concepts that all share.
pub(super) struct Names {
    /// Id of the project.
    pub project: String,
    /// Id of the trace.
    pub trace: String,
    /// Id of the span.
    pub span: String,
    /// Its start.
    pub moment: String,
    /// Its time of writing.
    pub event_ts: String,
}

impl Names {
    /// The names for one table.
    pub(super) fn of(origin: Origin) -> Self {
        let (table, trace, moment) = match origin {
            Origin::Observation => (OBSERVATION, "trace_id", "start_time"),
            Origin::Trace => (TRACE, "id", "timestamp"),
            Origin::Event => (EVENT, "trace_id", "start_time"),
        };
        let span = match origin {
            Origin::Observation => format!("{table}.id"),
            Origin::Trace => format!("concat('t-', {table}.id)"),
            Origin::Event => format!("{table}.span_id"),
        };
        Self {
            project: format!("{table}.project_id"),
            trace: format!("{table}.{trace}"),
            span,
            moment: format!("{table}.{moment}"),
            event_ts: format!("{table}.event_ts"),
        }
    }

    /// Whether a row has the id of its trace's root span.
    pub(super) fn is_root(&self) -> String {
        format!("{} = concat('t-', {})", self.span, self.trace)
    }
}

impl Scope {
    /// One share of a batch, before distant traces are known.
    pub(super) fn new(batch: &Batch, moments: (i64, i64), share: Share) -> Self {
        Self {
            projects: batch.projects.clone(),
            days: batch.days.clone(),
            moments,
            trace_days: batch.trace_days.clone(),
            share,
            moved: Moved::default(),
            batch_days: batch.days.clone(),
            only_class: None,
            slices: None,
            has_live: batch.has_live,
            superseded: Superseded::default(),
        }
    }

    /// Its time range plus two days before and after: a trace's spans may start on another day than
    /// the trace.
    pub(super) fn moments_around(&self) -> (i64, i64) {
        const TWO_DAYS: i64 = 2 * 86_400_000;
        (self.moments.0 - TWO_DAYS, self.moments.1 + TWO_DAYS)
    }

    /// Splits the scope in two.
    pub(super) fn halves(&self) -> [Scope; 2] {
        self.share.halves().map(|share| Scope {
            share,
            ..self.clone()
        })
    }

    /// Whether it covers rows of a class.
    pub(super) fn includes(&self, class: Class) -> bool {
        self.only_class.is_none_or(|only| only == class)
    }

    /// The condition for its observations or events, without their partition.
    pub(super) fn condition(&self, origin: Origin) -> String {
        let names = Names::of(origin);
        format!(
            "{} AND {}{}",
            one_of(&names.project, &self.projects),
            between(&names.moment, self.moments),
            self.filter(origin)
        )
    }

    /// A condition, appended to another, that selects its rows among those of its projects and
    /// days.
    pub(super) fn filter(&self, origin: Origin) -> String {
        let names = Names::of(origin);
        let mut condition = self.share.condition(&names.trace);
        if let Some(class) = self.only_class {
            let is_not = if class == Class::Ordinary { "NOT " } else { "" };
            condition.push_str(&format!(" AND {is_not}({})", names.is_root()));
        }
        if let Some((of, slices)) = &self.slices {
            condition.push_str(&format!(
                " AND cityHash64(CAST({}, 'String'), CAST({}, 'String')) % {of} IN ({})",
                names.trace,
                names.span,
                listed(slices.iter().map(u64::to_string))
            ));
        }
        condition
    }

    /// The conditions for the trace versions it needs: those on some days, and those elsewhere.
    pub(super) fn trace_conditions(&self, days: &RangeInclusive<Day>) -> Vec<String> {
        let projects = one_of(&format!("{TRACE}.project_id"), &self.projects);
        let near = on_days(days);
        let share = self.share.condition(&format!("{TRACE}.id"));
        let mut conditions = vec![format!("{projects} AND {near}{share}")];
        if !self.moved.hashes.is_empty() {
            conditions.push(format!(
                "{projects} AND toDate({TRACE}.timestamp) IN ({}) AND {} IN ({}) AND NOT ({near})",
                listed(self.moved.days.iter().map(|day| format!("toDate({day})"))),
                hash(&format!("{TRACE}.id")),
                listed(self.moved.hashes.iter().map(u64::to_string)),
            ));
        }
        conditions
    }
}

pub(super) fn listed(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(", ")
}

/// The hash of a trace's id.
pub(super) fn hash(trace_id: &str) -> String {
    format!("cityHash64(CAST({trace_id}, 'String'))")
}

/// Trace versions, aliased `t`, that started on these days.
pub(super) fn on_days(days: &RangeInclusive<Day>) -> String {
    format!(
        "toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({})",
        days.start(),
        days.end()
    )
}

/// A half-open range of times, in milliseconds.
pub(super) fn between(column: &str, (from, to): (i64, i64)) -> String {
    format!(
        "{column} >= fromUnixTimestamp64Milli(toInt64({from})) \
         AND {column} < fromUnixTimestamp64Milli(toInt64({to}))"
    )
}

/// Equality with any of `values`, which must not be empty. Written to use the primary key and the
/// indexes.
pub(super) fn one_of(column: &str, values: &[ByteBuf]) -> String {
    if let [value] = values {
        return format!("{column} = {}", quoting::string(value));
    }
    let values: Vec<String> = values.iter().map(quoting::string).collect();
    format!("{column} IN ({})", values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_share_are_all_of_it() {
        let share = Share { of: 3, number: 1 };
        for hash in (0..100).filter(|&hash| share.contains(hash)) {
            let halves = share.halves();
            let in_half = halves.iter().filter(|half| half.contains(hash));
            assert_eq!(in_half.count(), 1);
        }
    }
}
