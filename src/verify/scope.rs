//! Which rows a statement is about, and the conditions that say so in SQL.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_bytes::ByteBuf;

use super::origin::{EVENT, OBSERVATION, Origin};
use super::pieces::Batch;
use crate::clickhouse::quoting;
use crate::inspect::statements::TRACE;
use crate::partition::Day;

/// Which rows a statement is about.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// The projects.
    pub projects: Vec<ByteBuf>,
    /// The days on which observations and events start.
    pub days: RangeInclusive<Day>,
    /// The same in milliseconds since 1970, the end not included.
    pub moments: (i64, i64),
    /// The days on which their traces are looked for.
    pub trace_days: RangeInclusive<Day>,
    /// Only traces whose id has this hash, modulo the first number.
    pub share: Share,
    /// Traces that are, or may be, on other days than the batch's.
    pub moved: Moved,
    /// The days of the batch.
    pub batch_days: RangeInclusive<Day>,
    /// Only rows of this class.
    pub only_class: Option<Class>,
    /// Only spans whose hash is one of these, modulo the first number.
    pub slices: Option<(u64, Vec<u64>)>,
    /// Whether something live has written events on its days, or the days around them.
    pub has_live: bool,
    /// Observations of which some rows do not count.
    pub superseded: Superseded,
}

/// What kind of span a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Class {
    /// One that is not called as the root span of a trace.
    Ordinary = 0,
    /// One that is called as the root span of a trace, `t-<trace_id>`.
    Root = 1,
    /// A root span that is none of this comparison.
    Aside = 2,
    /// An event that something live wrote, and what is expected in its place.
    Live = 3,
}

impl Class {
    /// The class that has a number.
    pub(super) fn of(number: u8) -> Self {
        match number {
            0 => Class::Ordinary,
            1 => Class::Root,
            2 => Class::Aside,
            _ => Class::Live,
        }
    }
}

/// Observations that `FINAL` shows more than once, because their versions are of several types
/// or days, as far as they matter to a scope.
#[derive(Debug, Clone, Default)]
pub(super) struct Superseded {
    /// Hashes of their ids.
    pub observations: Vec<u64>,
    /// Hashes of the version of each that counts.
    pub counting: Vec<u64>,
}

impl Superseded {
    /// The condition that leaves out the rows that do not count; to follow another.
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

/// The hash of what tells the version of an observation that counts from those that do not.
pub(super) fn version_hash() -> String {
    format!(
        "cityHash64({}, {OBSERVATION}.event_ts, toUInt16(toDate({OBSERVATION}.start_time)))",
        observation_hash()
    )
}

/// Where to look for traces besides the days of a scope.
#[derive(Debug, Clone, Default)]
pub(super) struct Moved {
    /// Hashes of their ids: shorter than ids, and who shares one does no harm.
    pub hashes: BTreeSet<u64>,
    /// The days on which their versions are.
    pub days: BTreeSet<Day>,
}

/// A share of all traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// How many there are.
    pub of: u64,
    /// Which it is, from 0.
    pub number: u64,
}

/// Into so many shares a batch is divided at most.
const MOST_SHARES: u64 = 1_024;

impl Share {
    /// Whether it is worth dividing further.
    pub(super) fn is_divisible(self) -> bool {
        self.of < MOST_SHARES
    }

    /// The two shares it consists of.
    pub(super) fn halves(self) -> [Share; 2] {
        let of = self.of * 2;
        [self.number, self.number + self.of].map(|number| Share { of, number })
    }

    /// Whether a trace is in it, by the hash of its id.
    pub(super) fn contains(self, hash: u64) -> bool {
        hash % self.of == self.number
    }

    /// The condition for the rows of its traces; to follow another.
    pub(super) fn condition(self, trace_id: &str) -> String {
        match self.of {
            1 => String::new(),
            of => format!(" AND {} % {of} = {}", hash(trace_id), self.number),
        }
    }
}

/// How a table calls what all of them have.
pub(super) struct Names {
    /// Id of the project.
    pub project: String,
    /// Id of the trace.
    pub trace: String,
    /// Id of the span.
    pub span: String,
    /// When it starts.
    pub moment: String,
    /// When it was written.
    pub event_ts: String,
}

impl Names {
    /// The names in one of the tables.
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

    /// Whether a row is called as the root span of its trace.
    pub(super) fn is_root(&self) -> String {
        format!("{} = concat('t-', {})", self.span, self.trace)
    }
}

impl Scope {
    /// One share of a batch, before it is known which traces lie far away.
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

    /// Its moments and those two days before and after: the spans of a trace may begin on
    /// another day than the trace.
    pub(super) fn moments_around(&self) -> (i64, i64) {
        const TWO_DAYS: i64 = 2 * 86_400_000;
        (self.moments.0 - TWO_DAYS, self.moments.1 + TWO_DAYS)
    }

    /// The two scopes it consists of.
    pub(super) fn halves(&self) -> [Scope; 2] {
        self.share.halves().map(|share| Scope {
            share,
            ..self.clone()
        })
    }

    /// Whether rows of a class belong to it.
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

    /// Which of the rows of its projects and days belong to it; to follow another
    /// condition.
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

    /// The conditions for the versions of the traces it needs: those on some days, and
    /// those that are elsewhere.
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

/// The hash of the id of a trace.
pub(super) fn hash(trace_id: &str) -> String {
    format!("cityHash64(CAST({trace_id}, 'String'))")
}

/// Versions of traces, called `t`, that began on these days.
pub(super) fn on_days(days: &RangeInclusive<Day>) -> String {
    format!(
        "toDate({TRACE}.timestamp) BETWEEN toDate({}) AND toDate({})",
        days.start(),
        days.end()
    )
}

/// From one moment to another, in milliseconds, the second not included.
pub(super) fn between(column: &str, (from, to): (i64, i64)) -> String {
    format!(
        "{column} >= fromUnixTimestamp64Milli(toInt64({from})) \
         AND {column} < fromUnixTimestamp64Milli(toInt64({to}))"
    )
}

/// One of some values, which must not be none. Written so that the primary key
/// and the indexes are used.
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
