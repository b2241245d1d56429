//! What is wrong with a span, if anything is: the two sides of it put next to
//! each other. Knows nothing of ClickHouse.

use std::collections::BTreeMap;

use serde_bytes::ByteBuf;

use super::rows::{SideRow, SpanRow};

/// What two sides that are not the same mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An observation without an event.
    Missing,
    /// An event without an observation.
    Extra,
    /// An event besides the one of its observation.
    Doubled,
    /// An event with something of the observation that is not as it is there.
    Different,
    /// An event with something of the trace that is not as it is there.
    Stale,
    /// An event that was written, or deleted, after its observation was: no error.
    Newer,
    /// An event without an observation that something else than a backfill wrote: no error.
    ByOthers,
}

impl Kind {
    /// Whether it is something that should not be.
    pub fn is_wrong(self) -> bool {
        match self {
            Kind::Missing | Kind::Extra | Kind::Doubled | Kind::Different | Kind::Stale => true,
            Kind::Newer | Kind::ByOthers => false,
        }
    }
}

/// What was found about one event of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// When the event starts, or should, in microseconds.
    pub start: i64,
    /// What the event is made of, where that is somewhere else.
    pub origin: Option<Place>,
}

/// Where an observation, or a trace, says that its event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The trace.
    pub trace_id: ByteBuf,
    /// When it starts, in microseconds.
    pub start: i64,
}

/// An event of a span of which the piece has no observation. What it is has to be
/// looked for elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// When it starts, in microseconds.
    pub start: i64,
    /// Its `event_ts` in microseconds.
    pub event_ts: i64,
    /// Whether something else than a backfill wrote it.
    pub by_others: bool,
}

/// What one side has under one key.
#[derive(Debug, Clone, Copy)]
struct Version {
    event_ts: i64,
    own_hash: u64,
    trace_hash: u64,
}

/// Puts the two sides of a span next to each other.
pub fn judge(span: &SpanRow) -> (Vec<Finding>, Vec<Stray>) {
    if span.expected.is_empty() {
        return (Vec::new(), strays(span));
    }
    let expected = by_start(&span.expected);
    let mut actual = by_start(&span.events);
    let is_there = expected.keys().any(|start| actual.contains_key(start));
    let collides = collides(&span.expected);
    let mut findings = Vec::new();
    for (&start, expected) in &expected {
        let found = actual.remove(&start).unwrap_or_default();
        if found.is_empty() && is_there && collides {
            continue;
        }
        let kinds = judge_key(expected, &found, span.deleted_at);
        findings.extend(kinds.into_iter().map(|kind| Finding {
            kind,
            start,
            origin: None,
        }));
    }
    let (latest, origin) = latest(span);
    for (start, events) in actual {
        findings.extend(events.into_iter().map(|event| Finding {
            kind: elsewhere(event.event_ts, latest),
            start,
            origin: Some(origin.clone()),
        }));
    }
    (findings, Vec::new())
}

/// Whether an observation is called as the root span of its trace, and the trace
/// makes one too. Of the two either may be there.
fn collides(expected: &[SideRow]) -> bool {
    let is_of_trace = |row: &SideRow| row.4 != 0;
    expected.iter().any(is_of_trace) && !expected.iter().all(is_of_trace)
}

fn by_start(rows: &[SideRow]) -> BTreeMap<i64, Vec<Version>> {
    let mut versions: BTreeMap<i64, Vec<Version>> = BTreeMap::new();
    for &(start, event_ts, own_hash, trace_hash, _) in rows {
        versions.entry(start).or_default().push(Version {
            event_ts,
            own_hash,
            trace_hash,
        });
    }
    versions
}

/// What an event is whose observation starts at another time.
pub fn elsewhere(event_ts: i64, of_observation: i64) -> Kind {
    match event_ts > of_observation {
        true => Kind::Newer,
        false => Kind::Doubled,
    }
}

fn strays(span: &SpanRow) -> Vec<Stray> {
    let strays = span.events.iter();
    let strays = strays.map(|&(start, event_ts, _, _, by_others)| Stray {
        start,
        event_ts,
        by_others: by_others != 0,
    });
    strays.collect()
}

/// `event_ts` and place of what was written last of what is expected.
fn latest(span: &SpanRow) -> (i64, Place) {
    let written = span.expected.iter();
    let written = written.map(|&(start, event_ts, ..)| (event_ts, start));
    let (event_ts, start) = written.max().unwrap_or_default();
    let place = Place {
        trace_id: span.trace_id.clone(),
        start,
    };
    (event_ts, place)
}

/// What is wrong with one key. Observations that differ only in their type have
/// the same one, and so have an observation and a trace that make the same root span:
/// of these the latest counts, and of equally late ones any.
fn judge_key(expected: &[Version], found: &[Version], deleted_at: i64) -> Vec<Kind> {
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
    let mut kinds = Vec::new();
    if found.is_empty() {
        kinds.push(match deleted_at > latest {
            true => Kind::Newer,
            false => Kind::Missing,
        });
    } else if found.iter().any(is_equal) {
        // That is the event of this observation.
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
        judge(&span).0.iter().map(|finding| finding.kind).collect()
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
            events: flagged(events, 1),
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
        assert_eq!(kinds(&[row], &[row, (11, 101, 2, 2)], 0), [Kind::Newer]);
    }

    #[test]
    fn a_span_has_one_event() {
        let row = (10, 100, 1, 1);
        assert_eq!(kinds(&[row], &[row, (11, 100, 1, 1)], 0), [Kind::Doubled]);
        assert_eq!(kinds(&[row], &[row, row], 0), [Kind::Doubled]);
        assert_eq!(
            kinds(&[row], &[(11, 100, 1, 1)], 0),
            [Kind::Missing, Kind::Doubled]
        );
        let found = judge(&span(&[row], &[row, (11, 100, 1, 1)], 0)).0;
        let origin = found[0].origin.as_ref().map(|place| place.start);
        assert_eq!((found[0].start, origin), (11, Some(10)));
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
        // Their hashes count as pairs.
        let mixed = (10, 101, 2, 3);
        assert_eq!(kinds(&[late, equally_late], &[mixed], 0), [Kind::Stale]);
    }

    #[test]
    fn an_observation_and_a_trace_may_make_the_same_root_span() {
        let judged = |of_observation: Row, of_trace: Row, events: &[Row]| {
            let mut span = span(&[of_observation, of_trace], events, 0);
            span.expected[1].4 = 1;
            let kinds: Vec<Kind> = judge(&span).0.iter().map(|found| found.kind).collect();
            kinds
        };
        let (early, late) = ((10, 100, 1, 1), (10, 101, 2, 2));
        assert_eq!(judged(early, late, &[late]), []);
        assert_eq!(judged(late, early, &[late]), []);
        assert_eq!(judged(late, early, &[early]), [Kind::Different]);
        assert_eq!(judged(late, early, &[]), [Kind::Missing]);
        let later_start = (11, 100, 3, 3);
        for events in [&[early][..], &[later_start], &[early, later_start]] {
            assert_eq!(judged(early, later_start, events), []);
        }
        let missing = judged(early, later_start, &[]);
        assert_eq!(missing, [Kind::Missing, Kind::Missing]);
    }

    #[test]
    fn an_event_without_an_observation_is_to_be_looked_for() {
        let (findings, strays) = judge(&span(&[], &[(10, 100, 1, 1)], 0));
        assert!(findings.is_empty());
        assert_eq!(
            strays,
            [Stray {
                start: 10,
                event_ts: 100,
                by_others: true
            }]
        );
    }
}
