//! Compares a span's expected and actual events and says what is wrong. Knows nothing of
//! ClickHouse.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use super::rows::{EventKey, SideRow, SpanRow};
use crate::mapping::Source;
use crate::partition::Day;

/// Receives wrong rows as they are found.
pub(crate) trait Findings {
    /// Receives a wrong row.
    fn found(&mut self, row: &FoundRow<'_>);

    /// Receives the number of rows in a project's day that differ but were not checked
    /// individually, since too much was wrong already.
    fn found_unlisted(&mut self, what: Unlisted, project: &[u8], day: Day, rows: u64);
}

/// What was not checked individually.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlisted {
    /// Events of observations.
    Events,
    /// Root spans of traces.
    RootSpans,
    /// Rows of the view's table.
    InCore,
}

/// A wrong row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundRow<'a> {
    /// Its event.
    pub key: &'a EventKey,
    /// The day it starts, in days since 1970 in the observations' time zone.
    pub day: Day,
    /// What is wrong with it.
    pub kind: Kind,
    /// The source of the event; for an event without a known source, a guess from its id.
    pub source: Source,
}

/// Ignores the rows; the counts are enough.
pub(crate) struct OnlyCounted;

impl Findings for OnlyCounted {
    fn found(&mut self, _row: &FoundRow<'_>) {}

    fn found_unlisted(&mut self, _what: Unlisted, _project: &[u8], _day: Day, _rows: u64) {}
}

/// How the two sides differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// An observation without an event.
    Missing,
    /// An event without an observation.
    Extra,
    /// An additional event of an observation, elsewhere than where it belongs.
    Doubled,
    /// An event of an outdated version of its observation.
    Superseded,
    /// An event with a wrong value from the observation.
    Different,
    /// An event with a wrong value from the trace only.
    Stale,
    /// An event written or deleted after its observation: no error.
    Newer,
    /// An event that is missing or wrong because its observation or trace changed so late that
    /// Langfuse is responsible: no error.
    LeftToLivePath,
    /// A root span that is missing because its trace has a live one: no error.
    LeftToLiveRoot,
    /// An event whose experiment columns do not match the dataset run items.
    Experiment,
    /// A root span of a trace that has a live one.
    SecondRoot,
    /// An event of a span that has a live event with another start.
    BesideLive,
    /// An event missing in the view's table.
    MissingInCore,
    /// An event that differs in the view's table from what the view makes of it.
    DifferentInCore,
    /// A row of the view's table that is missing in the target.
    ExtraInCore,
}

impl Kind {
    /// Whether it is an error.
    pub(crate) fn is_wrong(self) -> bool {
        !matches!(
            self,
            Kind::Newer | Kind::LeftToLivePath | Kind::LeftToLiveRoot
        )
    }
}

/// A finding about one event of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What it is.
    pub kind: Kind,
    /// When the event starts, or should start, in microseconds.
    pub start: i64,
    /// Where the event belongs, if that is elsewhere.
    pub origin: Option<Location>,
    /// Whether its source is a trace.
    pub of_trace: bool,
}

/// Where an observation or trace places its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    /// The trace.
    pub trace_id: ByteBuf,
    /// Its start, in microseconds.
    pub start: i64,
}

/// An event without an observation of the same start in its piece. Its kind is decided by looking
/// elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unmatched {
    /// Its start, in microseconds.
    pub start: i64,
    /// Its `event_ts`, in microseconds.
    pub event_ts: i64,
    /// `event_ts` and location of the span's observation or trace in the piece, if any.
    pub right: Option<(i64, Location)>,
}

/// One side's version of a key.
#[derive(Debug, Clone, Copy)]
struct Version {
    event_ts: i64,
    own_hash: u64,
    trace_hash: u64,
    of_trace: bool,
}

/// Compares the two sides of a span. Changes after `until` are left to Langfuse if it also writes
/// to the target.
pub(super) fn judge(span: &SpanRow, until: Option<i64>) -> (Vec<Finding>, Vec<Unmatched>) {
    if span.expected.is_empty() {
        return (Vec::new(), strays(span));
    }
    let expected = by_start(&span.expected);
    let mut actual = by_start(&span.events);
    let mut findings = Vec::new();
    for (&start, expected) in &expected {
        let found = actual.remove(&start).unwrap_or_default();
        let kinds = judge_key(expected, &found, span.deleted_at, until);
        let latest = expected.iter().max_by_key(|row| row.event_ts);
        let of_trace = latest.is_some_and(|row| row.of_trace);
        findings.extend(kinds.into_iter().map(|kind| Finding {
            kind,
            start,
            origin: None,
            of_trace,
        }));
    }
    let right = latest(span);
    let strays = actual
        .into_iter()
        .flat_map(|(start, events)| events.into_iter().map(move |event| (start, event.event_ts)));
    let strays = strays.map(|(start, event_ts)| Unmatched {
        start,
        event_ts,
        right: Some(right.clone()),
    });
    (findings, strays.collect())
}

fn by_start(rows: &[SideRow]) -> BTreeMap<i64, Vec<Version>> {
    let mut versions: BTreeMap<i64, Vec<Version>> = BTreeMap::new();
    for &(start, event_ts, own_hash, trace_hash, of_trace) in rows {
        versions.entry(start).or_default().push(Version {
            event_ts,
            own_hash,
            trace_hash,
            of_trace: of_trace != 0,
        });
    }
    versions
}

/// The kind of an event whose observation starts at another time.
pub(super) fn kind_beside(event_ts: i64, of_observation: i64) -> Kind {
    match event_ts > of_observation {
        true => Kind::Newer,
        false => Kind::Doubled,
    }
}

fn strays(span: &SpanRow) -> Vec<Unmatched> {
    let strays = span.events.iter();
    let strays = strays.map(|&(start, event_ts, ..)| Unmatched {
        start,
        event_ts,
        right: None,
    });
    strays.collect()
}

/// `event_ts` and location of the latest expected version.
fn latest(span: &SpanRow) -> (i64, Location) {
    let written = span.expected.iter();
    let written = written.map(|&(start, event_ts, ..)| (event_ts, start));
    let (event_ts, start) = written.max().unwrap_or_default();
    let location = Location {
        trace_id: span.trace_id.clone(),
        start,
    };
    (event_ts, location)
}

/// Compares one key. Observations that differ only in type share a key; the latest wins, or any of
/// equally late ones.
fn judge_key(
    expected: &[Version],
    found: &[Version],
    deleted_at: i64,
    until: Option<i64>,
) -> Vec<Kind> {
    let latest = expected
        .iter()
        .map(|row| row.event_ts)
        .max()
        .unwrap_or_default();
    let counts = || expected.iter().filter(|row| row.event_ts == latest);
    let is_own = |event: &Version| counts().any(|row| row.own_hash == event.own_hash);
    let is_equal = |event: &Version| {
        counts().any(|row| (row.own_hash, row.trace_hash) == (event.own_hash, event.trace_hash))
    };
    let is_left = until.is_some_and(|until| latest > until)
        && found.iter().all(|event| event.event_ts < latest);
    let mut kinds = Vec::new();
    if found.is_empty() {
        kinds.push(match deleted_at > latest {
            true => Kind::Newer,
            false if is_left => Kind::LeftToLivePath,
            false => Kind::Missing,
        });
    } else if is_left {
        kinds.push(Kind::LeftToLivePath);
    } else if found.iter().any(is_equal) {
        // It is the event of this observation, so not a new finding.
    } else if found.iter().any(|event| event.event_ts > latest) {
        kinds.push(Kind::Newer);
    } else if found.iter().any(is_own) {
        kinds.push(Kind::Stale);
    } else {
        kinds.push(Kind::Different);
    }
    // Only a table that keeps every version shows several.
    kinds.extend(found.iter().skip(1).map(|_| Kind::Doubled));
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, `event_ts` and the two hashes.
    type Row = (i64, i64, u64, u64);

    fn kinds(observations: &[Row], events: &[Row], deleted_at: i64) -> Vec<Kind> {
        let span = span(observations, events, deleted_at);
        judge(&span, None)
            .0
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }

    /// Events that start at another time than their observation.
    fn strays_of(observations: &[Row], events: &[Row]) -> Vec<Unmatched> {
        judge(&span(observations, events, 0), None).1
    }

    fn span(observations: &[Row], events: &[Row], deleted_at: i64) -> SpanRow {
        let flagged = |rows: &[Row], flag| {
            let rows = rows.iter();
            rows.map(|&(start, ts, own, trace)| (start, ts, own, trace, flag))
                .collect()
        };
        SpanRow {
            project: ByteBuf::new(),
            trace_id: ByteBuf::new(),
            span_id: ByteBuf::new(),
            expected: flagged(observations, 0),
            events: flagged(events, 0),
            deleted_at,
        }
    }

    #[test]
    fn an_event_is_compared_with_its_observation() {
        let row = (10, 100, 1, 1);
        assert_eq!(kinds(&[row], &[row], 0), []);
        assert_eq!(kinds(&[row], &[], 0), [Kind::Missing]);
        assert_eq!(kinds(&[row], &[(10, 100, 2, 1)], 0), [Kind::Different]);
        assert_eq!(kinds(&[row], &[(10, 100, 2, 2)], 0), [Kind::Different]);
        assert_eq!(kinds(&[row], &[(10, 100, 1, 2)], 0), [Kind::Stale]);
        assert_eq!(kinds(&[row], &[(10, 99, 2, 2)], 0), [Kind::Different]);
    }

    #[test]
    fn what_was_written_later_is_no_error() {
        let row = (10, 100, 1, 1);
        assert_eq!(kinds(&[row], &[(10, 101, 2, 2)], 0), [Kind::Newer]);
        assert_eq!(kinds(&[row], &[], 101), [Kind::Newer]);
        assert_eq!(kinds(&[row], &[], 100), [Kind::Missing]);
        assert_eq!(kind_beside(101, 100), Kind::Newer);
    }

    #[test]
    fn what_changed_after_the_last_hour_is_left_to_langfuse() {
        let judged = |events: &[Row], until| {
            let findings = judge(&span(&[(10, 100, 1, 1)], events, 0), Some(until)).0;
            let kinds: Vec<Kind> = findings.iter().map(|finding| finding.kind).collect();
            kinds
        };
        assert_eq!(judged(&[], 99), [Kind::LeftToLivePath]);
        assert_eq!(judged(&[], 100), [Kind::Missing]);
        assert_eq!(judged(&[(10, 99, 2, 2)], 99), [Kind::LeftToLivePath]);
        assert_eq!(judged(&[(10, 99, 2, 2)], 100), [Kind::Different]);
        // It exists, so it can be compared.
        assert_eq!(judged(&[(10, 100, 2, 2)], 99), [Kind::Different]);
        assert_eq!(judged(&[(10, 100, 1, 1)], 99), []);
    }

    #[test]
    fn a_span_has_one_event() {
        let row = (10, 100, 1, 1);
        assert_eq!(kind_beside(100, 100), Kind::Doubled);
        assert_eq!(kinds(&[row], &[row, row], 0), [Kind::Doubled]);
        assert_eq!(kinds(&[row], &[(11, 100, 1, 1)], 0), [Kind::Missing]);
        let strays = strays_of(&[row], &[row, (11, 100, 1, 1)]);
        let [
            Unmatched {
                start: 11,
                event_ts: 100,
                right: Some((100, location)),
            },
        ] = &strays[..]
        else {
            panic!("{strays:?}");
        };
        assert_eq!(location.start, 10);
    }

    #[test]
    fn of_two_observations_with_one_key_the_later_counts_and_of_equals_either() {
        let (early, late) = ((10, 100, 1, 1), (10, 101, 2, 2));
        assert_eq!(kinds(&[early, late], &[late], 0), []);
        assert_eq!(kinds(&[early, late], &[early], 0), [Kind::Different]);
        let equally_late = (10, 101, 3, 3);
        for either in [late, equally_late] {
            assert_eq!(kinds(&[late, equally_late], &[either], 0), []);
        }
        // Hashes count as pairs.
        let mixed = (10, 101, 2, 3);
        assert_eq!(kinds(&[late, equally_late], &[mixed], 0), [Kind::Stale]);
    }

    #[test]
    fn an_event_without_an_observation_is_to_be_looked_for() {
        let (findings, strays) = judge(&span(&[], &[(10, 100, 1, 1)], 0), None);
        assert!(findings.is_empty());
        assert_eq!(
            strays,
            [Unmatched {
                start: 10,
                event_ts: 100,
                right: None
            }]
        );
    }
}
