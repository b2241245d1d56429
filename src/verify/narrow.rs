//! Narrows a batch whose sums differ down to the rows that differ.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_bytes::ByteBuf;

use super::examples::Example;
use super::findings::{Finding, FoundRow, Kind, Location, Unlisted, Unmatched, judge, kind_beside};
use super::missing::MOST_WRONG;
use super::pieces::BATCH_ROWS;
use super::report::EXAMPLES;
use super::rows::{Details, EventKey, FoundObservation, Id, SpanRow};
use super::scope::{Class, Scope};
use super::server::QueryError;
use super::statements::{Pair, Side};
use super::sums::{SumsKey, different_sums};
use super::traces::IDS_PER_STATEMENT;
use super::verification::Verification;
use crate::error::Error;
use crate::mapping::Source;

/// Target size of a slice of a large piece, in rows.
const SLICE_ROWS: u64 = 10_000;
/// Maximum number of slices, which keeps results small.
const MOST_SLICES: u64 = 10_000;
/// Maximum number of events without an observation to look up elsewhere. Beyond it, doubled events
/// count as extra, which is just as wrong.
const MOST_LOOKED_FOR: usize = 200_000;

/// Events without an observation in their piece, by trace and span.
type UnmatchedEvents = BTreeMap<(ByteBuf, ByteBuf), Vec<Unmatched>>;

impl Verification<'_> {
    /// Finds the rows behind differing sums.
    pub(super) async fn narrow(
        &mut self,
        pair: Pair,
        scope: &Scope,
        different: &BTreeMap<SumsKey, u64>,
    ) -> Result<(), Error> {
        let scope = self.restricted(pair, scope, different);
        let rows: u64 = different.values().sum();
        let mut groups = match self.report.wrong() < MOST_WRONG {
            true => self.slices(pair, scope, rows).await?,
            false => vec![(rows, scope)],
        };
        while let Some((rows, scope)) = groups.pop() {
            if self.report.wrong() >= MOST_WRONG {
                let left: u64 = groups.iter().map(|(rows, _)| rows).sum();
                self.report.not_narrowed += rows + left;
                self.leave_unlisted(pair, different);
                break;
            }
            let compared = match pair {
                Pair::SourceAndEvents => self.compare_spans(&scope).await,
                Pair::ViewAndCore => self.compare_with_core(&scope).await,
            };
            match compared {
                Ok(()) => {}
                Err(error) if error.is_to_be_divided => {
                    self.report.divided += 1;
                    groups.extend(scope.halves().map(|half| (rows / 2, half)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.report.pieces_different = self.different.len() as u64;
        Ok(())
    }

    /// Reports rows that are not checked individually.
    fn leave_unlisted(&mut self, pair: Pair, different: &BTreeMap<SumsKey, u64>) {
        for ((project, day, class, _), rows) in different {
            let what = match (pair, class) {
                (Pair::ViewAndCore, _) => Unlisted::InCore,
                (_, Class::Root) => Unlisted::RootSpans,
                _ => Unlisted::Events,
            };
            self.different.insert((project.clone(), *day));
            self.findings.found_unlisted(what, project, *day, *rows);
        }
    }

    /// The part of a scope whose sums differ.
    fn restricted(&self, pair: Pair, scope: &Scope, different: &BTreeMap<SumsKey, u64>) -> Scope {
        let mut scope = scope.clone();
        scope
            .projects
            .retain(|project| different.keys().any(|key| key.0 == *project));
        let days = || different.keys().map(|key| key.1);
        if let (Some(first), Some(last)) = (days().min(), days().max()) {
            scope.days = first..=last;
            scope.moments = self.calendar.range(&scope.days);
        }
        let classes: HashSet<Class> = different.keys().map(|key| key.2).collect();
        // All rows of the view's table have one class.
        if let (Pair::SourceAndEvents, 1, Some(&class)) =
            (pair, classes.len(), classes.iter().next())
        {
            scope.only_class = Some(class);
        }
        scope
    }

    /// Divides a scope with too many spans into slices, and drops those with equal sums. Returns
    /// each remaining one with its rows.
    async fn slices(
        &mut self,
        pair: Pair,
        scope: Scope,
        rows: u64,
    ) -> Result<Vec<(u64, Scope)>, Error> {
        if rows <= BATCH_ROWS {
            return Ok(vec![(rows, scope)]);
        }
        let of = rows.div_ceil(SLICE_ROWS).min(MOST_SLICES);
        let mut parts = vec![scope];
        let mut groups: Vec<(u64, Scope)> = Vec::new();
        while let Some(scope) = parts.pop() {
            let (expected, actual) = match self.sums(pair, &scope, of).await {
                Ok(sums) => sums,
                Err(error) if error.is_to_be_divided => {
                    self.report.divided += 1;
                    parts.extend(scope.halves());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut rows_of_slices: BTreeMap<u64, u64> = BTreeMap::new();
            for ((.., slice), rows) in different_sums(&expected, &actual) {
                *rows_of_slices.entry(slice).or_default() += rows;
            }
            for (sum, slices) in grouped(rows_of_slices) {
                let slices = Some((of, slices));
                groups.push((
                    sum,
                    Scope {
                        slices,
                        ..scope.clone()
                    },
                ));
            }
        }
        Ok(groups)
    }

    /// Records nothing if it fails with an error that calls for dividing the scope.
    async fn compare_spans(&mut self, scope: &Scope) -> Result<(), QueryError> {
        let sql = self.statements.different_spans(scope);
        let spans = self
            .server
            .rows_of_share::<SpanRow>("spans", &sql, scope.share)
            .await?;
        let mut strays: BTreeMap<ByteBuf, UnmatchedEvents> = BTreeMap::new();
        let mut missing_roots: BTreeMap<ByteBuf, Vec<(EventKey, Finding)>> = BTreeMap::new();
        for span in spans {
            let (findings, unknown) = judge(&span, self.until);
            for finding in findings {
                let key = key(&span.project, &span.trace_id, &span.span_id, &finding);
                match finding.kind == Kind::Missing && finding.of_trace {
                    true => {
                        let of_project = missing_roots.entry(span.project.clone()).or_default();
                        of_project.push((key, finding));
                    }
                    false => self.note(scope, key, &finding).await?,
                }
            }
            if !unknown.is_empty() {
                let of_project = strays.entry(span.project).or_default();
                of_project.insert((span.trace_id, span.span_id), unknown);
            }
        }
        for (project, roots) in missing_roots {
            self.note_missing_roots(scope, &project, roots).await?;
        }
        for (project, strays) in strays {
            self.look_for(scope, &project, strays).await?;
        }
        Ok(())
    }

    /// Drops missing root spans whose trace already has one on any day: a live one, or an
    /// observation of the month with that id.
    async fn note_missing_roots(
        &mut self,
        scope: &Scope,
        project: &ByteBuf,
        roots: Vec<(EventKey, Finding)>,
    ) -> Result<(), Error> {
        for roots in roots.chunks(IDS_PER_STATEMENT) {
            let are_observations = self.root_observations(project, roots).await?;
            let ids: Vec<ByteBuf> = roots.iter().map(|root| root.0.trace_id.clone()).collect();
            let with_root = match self.has_live {
                true => {
                    let sql = self.statements.traces_with_live_roots(project, &ids);
                    self.server.rows::<Id>("live root spans", &sql).await?
                }
                false => Vec::new(),
            };
            let with_root: HashSet<ByteBuf> = with_root.into_iter().map(|row| row.id).collect();
            for (key, finding) in roots {
                let mut finding = finding.clone();
                if with_root.contains(&key.trace_id) {
                    finding.kind = Kind::LeftToLiveRoot;
                } else if are_observations.contains(&key.span_id) {
                    // It is compared as that observation's event.
                    continue;
                }
                self.note(scope, key.clone(), &finding).await?;
            }
        }
        Ok(())
    }

    /// The missing root spans that have a month's observation with their id.
    async fn root_observations(
        &self,
        project: &ByteBuf,
        roots: &[(EventKey, Finding)],
    ) -> Result<HashSet<ByteBuf>, Error> {
        let ids: Vec<ByteBuf> = roots.iter().map(|root| root.0.span_id.clone()).collect();
        let sql = self.statements.find_observations(project, &ids);
        let what = "observations that have a root span's id";
        let found = self.server.rows::<FoundObservation>(what, &sql).await?;
        let (from, to) = self.calendar.range(&self.month);
        let in_month = |start: i64| (from..to).contains(&start.div_euclid(1_000));
        let is_root = |found: &FoundObservation| {
            found.span_id.strip_prefix(b"t-") == Some(&found.trace_id[..])
                && found.is_deleted == 0
                && found.starts.iter().any(|&start| in_month(start))
        };
        Ok(found
            .into_iter()
            .filter(is_root)
            .map(|found| found.span_id)
            .collect())
    }

    /// Decides the kind of events without an observation in their piece, or with one that starts at
    /// another time.
    async fn look_for(
        &mut self,
        scope: &Scope,
        project: &ByteBuf,
        strays: UnmatchedEvents,
    ) -> Result<(), Error> {
        let observations = self.observations_of(project, &strays).await?;
        for ((trace_id, span_id), events) in &strays {
            let found = observations.get(span_id).map_or(&[][..], Vec::as_slice);
            for event in events {
                let (kind, origin) = explain(event, trace_id, found);
                let finding = Finding {
                    kind,
                    start: event.start,
                    origin,
                    of_trace: span_id.strip_prefix(b"t-") == Some(&trace_id[..])
                        && found.is_empty(),
                };
                let key = key(project, trace_id, span_id, &finding);
                self.note(scope, key, &finding).await?;
            }
        }
        Ok(())
    }

    /// Observations with these span ids, anywhere, latest first.
    async fn observations_of(
        &mut self,
        project: &ByteBuf,
        strays: &UnmatchedEvents,
    ) -> Result<HashMap<ByteBuf, Vec<FoundObservation>>, Error> {
        let left = MOST_LOOKED_FOR.saturating_sub(self.looked_for);
        let ids = strays.keys().map(|(_, span_id)| span_id.clone());
        let ids: Vec<ByteBuf> = ids.take(left).collect();
        self.looked_for += ids.len();
        let mut found: HashMap<ByteBuf, Vec<FoundObservation>> = HashMap::new();
        for ids in ids.chunks(IDS_PER_STATEMENT) {
            let sql = self.statements.find_observations(project, ids);
            let what = "events without an observation";
            for row in self.server.rows::<FoundObservation>(what, &sql).await? {
                found.entry(row.span_id.clone()).or_default().push(row);
            }
        }
        for of_span in found.values_mut() {
            of_span.sort_by_key(|found| std::cmp::Reverse((found.event_ts, found.start)));
        }
        Ok(found)
    }

    /// Counts a finding, and keeps it as an example while there are few.
    async fn note(&mut self, scope: &Scope, key: EventKey, finding: &Finding) -> Result<(), Error> {
        self.count_finding(&key, finding);
        if !finding.kind.is_wrong() {
            return Ok(());
        }
        if self.report.examples.len() >= EXAMPLES {
            return Ok(());
        }
        let example = Example::new(&key, finding);
        let example = match finding.kind {
            Kind::Different | Kind::Stale => {
                let expected = self.details(Side::Source, scope, &key).await?;
                let actual = self.details(Side::Target, scope, &key).await?;
                let names = self.statements.columns.names();
                example.with_columns(&names, expected.as_ref(), actual.as_ref())
            }
            _ => example,
        };
        self.report.examples.push(example);
        Ok(())
    }

    /// Counts and reports a finding.
    pub(super) fn count_finding(&mut self, key: &EventKey, finding: &Finding) {
        self.report.count(finding.kind);
        if finding.kind == Kind::Missing {
            self.missing.insert(key);
        }
        if !finding.kind.is_wrong() {
            return;
        }
        let day = self.calendar.day_of(finding.start);
        self.different.insert((key.project.clone(), day));
        self.findings.found(&FoundRow {
            key,
            day,
            kind: finding.kind,
            source: match finding.of_trace {
                true => Source::Traces,
                false => Source::Observations,
            },
        });
    }

    async fn details(
        &self,
        side: Side,
        scope: &Scope,
        key: &EventKey,
    ) -> Result<Option<Details>, Error> {
        let sql = self.statements.details(side, scope, key);
        let rows = self.server.rows::<Details>("a row", &sql).await?;
        Ok(rows.into_iter().next())
    }
}

/// The kind of an event without a matching observation in its piece, from the observations with its
/// span id, latest first.
fn explain(
    event: &Unmatched,
    trace_id: &ByteBuf,
    found: &[FoundObservation],
) -> (Kind, Option<Location>) {
    let same = found.iter().find(|found| found.trace_id == *trace_id);
    let was_there = same.is_some_and(|same| same.starts.contains(&event.start));
    if let Some((event_ts, location)) = &event.right {
        let kind = match kind_beside(event.event_ts, *event_ts) {
            Kind::Doubled if was_there => Kind::Superseded,
            kind => kind,
        };
        return (kind, Some(location.clone()));
    }
    if let Some(same) = same.filter(|same| same.is_deleted != 0) {
        // If all versions share a day and type, it was simply deleted.
        return match was_there && same.places > 1 {
            true => (Kind::Superseded, None),
            false => (Kind::Extra, None),
        };
    }
    let alive = found.iter().find(|found| found.is_deleted == 0);
    let Some(right) = same.or(alive) else {
        return (Kind::Extra, None);
    };
    let kind = match kind_beside(event.event_ts, right.event_ts) {
        Kind::Doubled if was_there => Kind::Superseded,
        kind => kind,
    };
    let location = Location {
        trace_id: right.trace_id.clone(),
        start: right.start,
    };
    (kind, Some(location))
}

fn key(project: &ByteBuf, trace_id: &ByteBuf, span_id: &ByteBuf, finding: &Finding) -> EventKey {
    EventKey {
        project: project.clone(),
        trace_id: trace_id.clone(),
        span_id: span_id.clone(),
        start: finding.start,
    }
}

/// Groups slices so that no group has many more rows than can be compared at once.
fn grouped(rows_of_slices: BTreeMap<u64, u64>) -> Vec<(u64, Vec<u64>)> {
    let mut groups: Vec<(u64, Vec<u64>)> = Vec::new();
    for (slice, rows) in rows_of_slices {
        match groups.last_mut() {
            Some((sum, slices)) if *sum + rows <= BATCH_ROWS => {
                *sum += rows;
                slices.push(slice);
            }
            _ => groups.push((rows, vec![slice])),
        }
    }
    groups
}
