//! Compares the events' experiment columns with dataset run items.
//!
//! An item points at a span or at its trace's root span, and applies to everything below it. This
//! code walks up from each span to the nearest item; a run walks down from the items. Ids are
//! hashes, so a span takes a few bytes, and only traces with items are read.

use std::collections::{HashMap, HashSet};

use clickhouse::Row;
use serde::Deserialize;
use serde_bytes::ByteBuf;

use super::examples::Example;
use super::findings::{Finding, Kind};
use super::origin::{EVENT, OBSERVATION, Origin, microseconds, text};
use super::report::EXAMPLES;
use super::rows::{EventKey, KeyRow, Number};
use super::scope::{Names, between, one_of};
use super::statements::Statements;
use super::verification::Verification;
use crate::error::Error;

/// Traces whose items are compared together.
const TRACES_AT_ONCE: usize = 40_000;
/// Events compared together, unless one trace has more.
const EVENTS_AT_ONCE: u64 = 100_000;
/// Maximum number of events without an item to report individually.
const MOST_LISTED: usize = 100_000;

/// A trace with items, and its number of event rows in the month.
#[derive(Debug, Clone, Row, Deserialize)]
struct ItemTrace {
    project: ByteBuf,
    trace_id: ByteBuf,
    row_count: u64,
}

/// A dataset run item.
#[derive(Debug, Clone, Row, Deserialize)]
struct Item {
    /// The hash of its trace.
    tree: u64,
    /// The hash of the span it points at.
    span: u64,
    created_at: i64,
    id: ByteBuf,
    /// The hash of its run and dataset item.
    item: u64,
    /// The hash of the columns it gives its spans.
    says: u64,
}

/// A span and its parent.
#[derive(Debug, Clone, Copy, Row, Deserialize)]
struct Node {
    tree: u64,
    span: u64,
    parent: u64,
}

/// An item that live spans carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Row, Deserialize)]
struct Carried {
    tree: u64,
    item: u64,
}

/// An event written by a backfill.
#[derive(Debug, Clone, Row, Deserialize)]
struct Said {
    project: ByteBuf,
    trace_id: ByteBuf,
    span_id: ByteBuf,
    start: i64,
    tree: u64,
    span: u64,
    says: u64,
}

/// The spans of some traces, and the items that point at them.
#[derive(Default)]
struct Trees {
    parents: HashMap<(u64, u64), u64>,
    pointed: HashMap<(u64, u64), Item>,
    carried: HashSet<Carried>,
    nearest: HashMap<(u64, u64), Option<(u64, u64)>>,
}

impl Trees {
    fn point(&mut self, item: Item) {
        let at = (item.tree, item.span);
        let order = |item: &Item| (item.created_at, item.id.clone());
        let is_later = self
            .pointed
            .get(&at)
            .is_none_or(|other| order(other) < order(&item));
        if is_later {
            self.pointed.insert(at, item);
        }
    }

    /// What a span should carry, if anything.
    fn says(&mut self, span: (u64, u64)) -> Option<u64> {
        let item = self.nearest(span).and_then(|at| self.pointed.get(&at))?;
        let carried = Carried {
            tree: item.tree,
            item: item.item,
        };
        (!self.carried.contains(&carried)).then_some(item.says)
    }

    /// The nearest span, starting with this one and going up, that an item points at.
    fn nearest(&mut self, span: (u64, u64)) -> Option<(u64, u64)> {
        let mut way = Vec::new();
        let mut at = span;
        let found = loop {
            if self.pointed.contains_key(&at) {
                break Some(at);
            }
            if let Some(&known) = self.nearest.get(&at) {
                break known;
            }
            // Guards against cycles: visiting this span again yields none.
            self.nearest.insert(at, None);
            way.push(at);
            match self.parents.get(&at) {
                Some(&parent) => at.1 = parent,
                None => break None,
            }
        };
        for at in way {
            self.nearest.insert(at, found);
        }
        found
    }
}

impl Verification<'_> {
    /// Compares the experiment columns of a backfill's events with dataset run items.
    pub(super) async fn compare_experiments(&mut self) -> Result<(), Error> {
        let month = self.calendar.range(&self.month);
        if self.statements.experiment_items.is_none() {
            return Ok(());
        }
        let nothing = self.statements.says_nothing();
        let nothing = self.server.rows::<Number>("experiments", &nothing).await?;
        let nothing = nothing.first().map_or(0, |row| row.number);
        let mut last = None;
        loop {
            let sql = self.statements.item_traces(month, last.as_ref());
            let traces = self
                .server
                .rows::<ItemTrace>("traces of dataset runs", &sql);
            let traces = traces.await?;
            let Some(of_next) = traces.last().cloned() else {
                break;
            };
            for lot in lots(&traces) {
                self.compare_items(lot, month, nothing).await?;
            }
            last = Some(of_next);
        }
        self.find_without_item(month).await
    }

    /// Compares the events of some traces with items.
    async fn compare_items(
        &mut self,
        traces: &[ItemTrace],
        month: (i64, i64),
        nothing: u64,
    ) -> Result<(), Error> {
        let (server, statements) = (&self.server, &self.statements);
        let mut trees = Trees::default();
        let what = "dataset run items";
        for item in server.rows::<Item>(what, &statements.items(traces)).await? {
            trees.point(item);
        }
        let nodes = statements.nodes(traces);
        let nodes = server.rows::<Node>("spans of dataset runs", &nodes);
        for node in nodes.await? {
            trees.parents.insert((node.tree, node.span), node.parent);
        }
        if self.has_live {
            let carried = statements.carried(traces);
            let carried = server.rows::<Carried>(what, &carried);
            trees.carried = carried.await?.into_iter().collect();
            let items = trees.pointed.values();
            let left = items.filter(|item| {
                let carried = Carried {
                    tree: item.tree,
                    item: item.item,
                };
                trees.carried.contains(&carried)
            });
            self.report.items_left_to_live_spans += left.count() as u64;
        }
        let said = statements.said(traces, month);
        let said = server.rows::<Said>("experiment columns of events", &said);
        for event in said.await? {
            let expected = trees.says((event.tree, event.span)).unwrap_or(nothing);
            self.report.spans_in_experiments += u64::from(expected != nothing);
            if event.says != expected {
                self.note_experiment(EventKey {
                    project: event.project,
                    trace_id: event.trace_id,
                    span_id: event.span_id,
                    start: event.start,
                });
            }
        }
        Ok(())
    }

    /// Finds a backfill's events with experiment columns whose trace has no item.
    async fn find_without_item(&mut self, month: (i64, i64)) -> Result<(), Error> {
        let what = "events of no dataset run";
        let sql = self.statements.without_item(month, "count() AS number", "");
        let count = self.server.rows::<Number>(what, &sql).await?;
        let count = count.first().map_or(0, |row| row.number);
        if count == 0 {
            return Ok(());
        }
        let names = Names::of(Origin::Event);
        let keys = format!(
            "{} AS project, {} AS trace_id, {} AS span_id, {} AS start, toUInt64(1) AS row_count",
            text(&names.project),
            text(&names.trace),
            text(&names.span),
            microseconds(&names.moment)
        );
        let limit = format!(" LIMIT {MOST_LISTED}");
        let sql = self.statements.without_item(month, &keys, &limit);
        let keys = self.server.rows::<KeyRow>(what, &sql).await?;
        let unlisted = count.saturating_sub(keys.len() as u64);
        for row in keys {
            self.note_experiment(row.key());
        }
        self.report.different_experiments += unlisted;
        Ok(())
    }

    fn note_experiment(&mut self, key: EventKey) {
        let finding = Finding {
            kind: Kind::Experiment,
            start: key.start,
            origin: None,
            of_trace: key.span_id.strip_prefix(b"t-") == Some(&key.trace_id[..]),
        };
        self.count_finding(&key, &finding);
        if self.report.examples.len() < EXAMPLES {
            self.report.examples.push(Example::new(&key, &finding));
        }
    }
}

/// Groups traces so that each group's events can be compared together.
fn lots(traces: &[ItemTrace]) -> Vec<&[ItemTrace]> {
    let mut lots = Vec::new();
    let (mut first, mut rows) = (0, 0);
    for (index, trace) in traces.iter().enumerate() {
        if index > first && rows + trace.row_count > EVENTS_AT_ONCE {
            lots.push(&traces[first..index]);
            (first, rows) = (index, 0);
        }
        rows += trace.row_count;
    }
    lots.push(&traces[first..]);
    lots
}

/// The hash of the columns an item gives its spans: texts, arrays, version, in this order.
fn says(texts: [String; 7], arrays: [String; 4], version: &str) -> String {
    let texts = texts.map(|text| format!("ifNull(CAST({text}, 'Nullable(String)'), '')"));
    let arrays = arrays.map(|array| format!("CAST({array}, 'Array(String)')"));
    let version = format!("CAST({version}, 'Nullable(DateTime64(6))')");
    format!(
        "cityHash64({}, {}, isNull({version}), toUnixTimestamp64Micro(ifNull({version}, \
         toDateTime64(0, 6))))",
        texts.join(", "),
        arrays.join(", ")
    )
}

/// The same hash for an event.
fn event_says() -> String {
    let column = |name: &str| format!("{EVENT}.experiment_{name}");
    says(
        [
            "id",
            "name",
            "description",
            "dataset_id",
            "item_id",
            "item_expected_output",
            "item_root_span_id",
        ]
        .map(column),
        [
            "metadata_names",
            "metadata_values",
            "item_metadata_names",
            "item_metadata_values",
        ]
        .map(column),
        &column("item_version"),
    )
}

fn tree(project: &str, trace: &str) -> String {
    format!("cityHash64({}, {})", text(project), text(trace))
}

fn span(id: &str) -> String {
    format!("cityHash64({})", text(id))
}

/// The condition for some traces' rows. It may also match an equal id in another project, which is
/// harmless: that trace has its own tree.
fn of_traces(project: &str, trace: &str, traces: &[ItemTrace]) -> String {
    let mut projects: Vec<ByteBuf> = traces.iter().map(|one| one.project.clone()).collect();
    // Sorted by project.
    projects.dedup();
    let ids: Vec<ByteBuf> = traces.iter().map(|one| one.trace_id.clone()).collect();
    format!("{} AND {}", one_of(project, &projects), one_of(trace, &ids))
}

impl Statements {
    fn items_table(&self) -> (&str, bool) {
        let items = self.experiment_items.as_ref();
        items.map_or(("", false), |(name, has_version)| (name, *has_version))
    }

    /// The hash of empty experiment columns: a [`Number`].
    fn says_nothing(&self) -> String {
        let nothing = says(
            std::array::from_fn(|_| "''".to_owned()),
            std::array::from_fn(|_| "[]".to_owned()),
            "NULL",
        );
        format!("SELECT {nothing} AS number")
    }

    /// Traces with items and with events in the month, in order, after `last`: [`ItemTrace`]s.
    fn item_traces(&self, month: (i64, i64), last: Option<&ItemTrace>) -> String {
        let names = Names::of(Origin::Event);
        let after = last.map_or_else(String::new, |last| {
            let project = crate::clickhouse::quoting::string(&last.project);
            let trace = crate::clickhouse::quoting::string(&last.trace_id);
            format!(" AND (project > {project} OR project = {project} AND trace_id > {trace})")
        });
        format!(
            "SELECT {} AS project, {} AS trace_id, count() AS row_count FROM {} \
             WHERE {} AND {} IN ({}){after} GROUP BY project, trace_id \
             ORDER BY project, trace_id LIMIT {TRACES_AT_ONCE}",
            text(&names.project),
            text(&names.trace),
            self.event_versions,
            between(&names.moment, month),
            tree(&names.project, &names.trace),
            self.trees_with_items(),
        )
    }

    fn trees_with_items(&self) -> String {
        format!(
            "SELECT {} FROM {} AS i FINAL",
            tree("i.project_id", "i.trace_id"),
            self.items_table().0
        )
    }

    /// The items of some traces: [`Item`]s.
    fn items(&self, traces: &[ItemTrace]) -> String {
        let (table, has_version) = self.items_table();
        let pointed = "if(ifNull(i.observation_id, '') = '', concat('t-', i.trace_id), \
                       assumeNotNull(i.observation_id))";
        let texts = [
            "i.dataset_run_id",
            "i.dataset_run_name",
            "i.dataset_run_description",
            "i.dataset_id",
            "i.dataset_item_id",
            "i.dataset_item_expected_output",
            pointed,
        ];
        let arrays = [
            "mapKeys(i.dataset_run_metadata)",
            "mapValues(i.dataset_run_metadata)",
            "mapKeys(i.dataset_item_metadata)",
            "mapValues(i.dataset_item_metadata)",
        ];
        let version = match has_version {
            true => "i.dataset_item_version",
            false => "NULL",
        };
        format!(
            "SELECT {} AS tree, {} AS span, {} AS created_at, {} AS id, \
             cityHash64({}, {}) AS item, {} AS says FROM {table} AS i FINAL WHERE {}",
            tree("i.project_id", "i.trace_id"),
            span(pointed),
            microseconds("i.created_at"),
            text("i.id"),
            text("i.dataset_run_id"),
            text("i.dataset_item_id"),
            says(texts.map(str::to_owned), arrays.map(str::to_owned), version),
            of_traces("i.project_id", "i.trace_id", traces)
        )
    }

    /// The spans of some traces: [`Node`]s. Deleted ones are included, since spans below them still
    /// belong to those above.
    fn nodes(&self, traces: &[ItemTrace]) -> String {
        let names = Names::of(Origin::Observation);
        let root = "concat('t-', trace)";
        let above = format!("multiIf(id = {root}, '', latest_parent = '', {root}, latest_parent)");
        format!(
            "SELECT {} AS tree, {} AS span, {} AS parent FROM (\
             SELECT {} AS project, {} AS trace, {} AS id, \
             argMax(ifNull(CAST({OBSERVATION}.parent_observation_id, 'Nullable(String)'), ''), \
             ({OBSERVATION}.event_ts, toDate({OBSERVATION}.start_time))) AS latest_parent \
             FROM {} AS {OBSERVATION} WHERE {} GROUP BY project, trace, id)",
            tree("project", "trace"),
            span("id"),
            span(&above),
            text(&names.project),
            text(&names.trace),
            text(&names.span),
            self.observations,
            of_traces(&names.project, &names.trace, traces)
        )
    }

    /// The items that live spans of these traces carry: [`Carried`].
    fn carried(&self, traces: &[ItemTrace]) -> String {
        let names = Names::of(Origin::Event);
        format!(
            "SELECT DISTINCT {} AS tree, cityHash64({}, {}) AS item FROM {} \
             WHERE {} AND {} AND {EVENT}.experiment_id != ''",
            tree(&names.project, &names.trace),
            text(&format!("{EVENT}.experiment_id")),
            text(&format!("{EVENT}.experiment_item_id")),
            self.events,
            of_traces(&names.project, &names.trace, traces),
            self.columns.by_others()
        )
    }

    /// The experiment columns of a backfill's events of these traces: [`Said`].
    fn said(&self, traces: &[ItemTrace], month: (i64, i64)) -> String {
        let names = Names::of(Origin::Event);
        format!(
            "SELECT {} AS project, {} AS trace_id, {} AS span_id, {} AS start, {} AS tree, \
             {} AS span, {} AS says FROM {} WHERE {} AND {} AND NOT ({})",
            text(&names.project),
            text(&names.trace),
            text(&names.span),
            microseconds(&names.moment),
            tree(&names.project, &names.trace),
            span(&names.span),
            event_says(),
            self.events,
            between(&names.moment, month),
            of_traces(&names.project, &names.trace, traces),
            self.columns.by_others()
        )
    }

    /// Selects `items` from a backfill's events that carry an item although their trace has none.
    fn without_item(&self, month: (i64, i64), items: &str, limit: &str) -> String {
        let names = Names::of(Origin::Event);
        format!(
            "SELECT {items} FROM {} WHERE {} AND NOT ({}) AND {} != ({}) AND {} NOT IN ({}){limit}",
            self.events,
            between(&names.moment, month),
            self.columns.by_others(),
            event_says(),
            self.says_nothing(),
            tree(&names.project, &names.trace),
            self.trees_with_items()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trees(parents: &[(u64, u64)], pointed: &[(u64, u64)]) -> Trees {
        let mut trees = Trees::default();
        for &(span, parent) in parents {
            trees.parents.insert((1, span), parent);
        }
        for &(span, says) in pointed {
            trees.point(item(span, says, 0, "i"));
        }
        trees
    }

    fn item(span: u64, says: u64, created_at: i64, id: &str) -> Item {
        Item {
            tree: 1,
            span,
            created_at,
            id: ByteBuf::from(id),
            item: says,
            says,
        }
    }

    #[test]
    fn the_nearest_item_above_a_span_counts() {
        let mut trees = trees(&[(2, 1), (3, 2), (4, 3), (5, 9)], &[(1, 10), (3, 30)]);
        let says = [1, 2, 3, 4, 5, 6].map(|span| trees.says((1, span)));
        assert_eq!(says, [Some(10), Some(10), Some(30), Some(30), None, None]);
        // Other traces are unaffected.
        assert_eq!(trees.says((2, 1)), None);
    }

    #[test]
    fn a_circle_has_an_end() {
        let mut trees = trees(&[(1, 2), (2, 3), (3, 1), (4, 1)], &[]);
        assert_eq!(trees.says((1, 4)), None);
        assert_eq!(trees.says((1, 2)), None);
    }

    #[test]
    fn of_several_items_the_last_counts_and_one_that_live_spans_carry_is_for_no_other() {
        let mut trees = trees(&[(2, 1)], &[]);
        for (says, created_at, id) in [(1, 5, "b"), (2, 6, "a"), (3, 6, "b"), (4, 6, "aa")] {
            trees.point(item(1, says, created_at, id));
        }
        assert_eq!(trees.says((1, 2)), Some(3));
        trees.carried.insert(Carried { tree: 1, item: 3 });
        assert_eq!(trees.says((1, 2)), None);
    }

    #[test]
    fn lots_have_an_end() {
        let trace = |row_count| ItemTrace {
            project: ByteBuf::from("p"),
            trace_id: ByteBuf::from("t"),
            row_count,
        };
        let traces = [60_000, 50_000, 40_000, 500_000, 1].map(trace);
        let lengths: Vec<usize> = lots(&traces).iter().map(|lot| lot.len()).collect();
        assert_eq!(lengths, [1, 2, 1, 1]);
    }
}
