//! The rows at the bottom of most statements: expected rows, made from observations and traces, and
//! actual events.

use serde_bytes::ByteBuf;

use super::columns::Texts;
use super::origin::{EVENT, Item, OBSERVATION, Origin, listed, microseconds, text};
use super::scope::{Class, Names, Scope, between, on_days, one_of};
use super::statements::{Side, Statements};
use crate::clickhouse::quoting;
use crate::inspect::statements::TRACE;

/// Columns of expected and actual rows.
const ROW: &str = "key_project, key_trace, key_span, key_start, key_event_ts, key_day, class, \
                   own_hash, trace_hash, has_trace, of_trace";
/// Binds a hash to its row.
const KEYS: &str = "key_project, key_trace, key_span, key_start";

/// Block size for traces, in rows. Traces are sorted and held, and every column of a block costs
/// the server kilobytes, however few its rows.
const TRACE_BLOCK_ROWS: u64 = 8_192;

impl Statements {
    /// One row per expected or actual event: its keys and two hashes.
    pub(super) fn rows(&self, side: Side, scope: &Scope) -> String {
        match side {
            Side::Target => self.actual_rows(scope),
            Side::Source if self.root_spans && scope.includes(Class::Root) => {
                let of_observations = self.rows_of_observations(scope);
                let of_traces = self.rows_of_traces(scope);
                format!("{of_observations} UNION ALL {of_traces}")
            }
            Side::Source => self.rows_of_observations(scope),
        }
    }

    fn rows_of_observations(&self, scope: &Scope) -> String {
        let mut class = Names::of(Origin::Observation).is_root();
        if scope.has_live {
            let is_live = self.is_live(Origin::Observation, scope);
            class = format!("if({is_live}, {}, {class})", Class::Live as u8);
        }
        let mut own = vec![
            ("class".into(), format!("toUInt8({class})")),
            (
                "own_hash".into(),
                self.columns.own_hash(Origin::Observation),
            ),
        ];
        own.extend(self.columns.own_items(Origin::Observation, Texts::Hashed));
        let traces = self.latest_traces(
            &scope.trace_conditions(&scope.trace_days),
            &self.columns.items_of_trace(Texts::Hashed),
        );
        format!(
            "SELECT {ROW} FROM (SELECT *, {} AS trace_hash, toUInt8(0) AS of_trace FROM {})",
            self.columns.trace_hash(Origin::Observation, KEYS),
            self.observations_with_traces(
                &own,
                &self.condition(Origin::Observation, scope),
                &traces
            ),
        )
    }

    /// Observations, with the given items of each, joined with their traces.
    pub(super) fn observations_with_traces(
        &self,
        items: &[Item],
        condition: &str,
        traces: &str,
    ) -> String {
        format!(
            "(SELECT {}{} FROM {} AS {OBSERVATION} FINAL WHERE {condition}) AS own \
             LEFT ANY JOIN ({traces}) AS trace \
             ON own.key_project = trace.trace_project AND own.key_trace = trace.trace_id",
            self.keys(Origin::Observation),
            listed(items),
            self.observations,
        )
    }

    /// The root spans that traces make on the scope's days.
    fn rows_of_traces(&self, scope: &Scope) -> String {
        let mut items = vec![("own_hash".into(), self.columns.own_hash(Origin::Trace))];
        items.extend(self.columns.own_items(Origin::Trace, Texts::Hashed));
        items.extend(self.columns.items_of_trace(Texts::Hashed));
        if scope.has_live {
            let is_live = self.is_live(Origin::Trace, scope);
            let class = format!(
                "toUInt8(multiIf({}, {}, {is_live}, {}, {}))",
                self.has_live_root(Origin::Trace, scope),
                Class::Aside as u8,
                Class::Live as u8,
                Class::Root as u8
            );
            items.push(("class".into(), class));
        } else {
            items.push(("class".into(), format!("toUInt8({})", Class::Root as u8)));
        }
        let conditions = scope.trace_conditions(&scope.batch_days);
        let conditions: Vec<String> = conditions
            .iter()
            .map(|condition| format!("{condition}{}", scope.filter(Origin::Trace)))
            .collect();
        format!(
            "SELECT {ROW} FROM (SELECT *, {} AS trace_hash, toUInt8(1) AS of_trace FROM ({}) \
             WHERE key_day BETWEEN {} AND {})",
            self.columns.trace_hash(Origin::Trace, KEYS),
            self.root_spans_of(scope, &conditions, &items),
            scope.days.start(),
            scope.days.end(),
        )
    }

    /// The root spans of traces that meet one of the conditions. A trace has none if an observation
    /// has the root span's id.
    pub(super) fn root_spans_of(
        &self,
        scope: &Scope,
        conditions: &[String],
        items: &[Item],
    ) -> String {
        let excluded = format!(
            "{}{}",
            self.without_dataset_items(Origin::Trace, &scope.projects),
            self.without_root_observations(scope)
        );
        let conditions: Vec<String> = conditions
            .iter()
            .map(|condition| format!("{condition}{excluded}"))
            .collect();
        let keys = self.keys(Origin::Trace);
        self.latest(&conditions, &format!(", {keys}{}", listed(items)))
    }

    /// A condition, appended to another, that excludes traces with a root-span observation near the
    /// scope's days that is in the month and not deleted. Those farther away are looked up once
    /// their root spans are missing.
    fn without_root_observations(&self, scope: &Scope) -> String {
        let trace = Names::of(Origin::Trace);
        let observation = Names::of(Origin::Observation);
        format!(
            " AND ({}, {}) NOT IN (SELECT {}, {} FROM {} AS {OBSERVATION} \
             WHERE {OBSERVATION}._partition_id = {} AND {} AND {}{} \
             AND startsWith({OBSERVATION}.id, 't-') AND {} \
             GROUP BY {}, {} HAVING argMax({OBSERVATION}.is_deleted, {OBSERVATION}.event_ts) = 0)",
            trace.project,
            trace.trace,
            observation.project,
            observation.trace,
            self.observations,
            quoting::string(&self.partition_id),
            one_of(&observation.project, &scope.projects),
            between(&observation.moment, scope.moments_around()),
            scope.share.condition(&observation.trace),
            observation.is_root(),
            observation.project,
            observation.trace,
        )
    }

    fn actual_rows(&self, scope: &Scope) -> String {
        format!(
            "SELECT {ROW} FROM (SELECT {}, {} AS class, {} AS own_hash, {} AS trace_hash, \
             toUInt8(1) AS has_trace, toUInt8(0) AS of_trace FROM {} WHERE {})",
            self.keys(Origin::Event),
            self.class_of_event(scope),
            self.columns.own_hash(Origin::Event),
            self.columns.trace_hash(Origin::Event, KEYS),
            self.events,
            self.condition(Origin::Event, scope),
        )
    }

    /// Deletions in the target. `FINAL` hides them together with the rows they delete.
    pub(super) fn deletions(&self, scope: &Scope) -> String {
        format!(
            "SELECT {}, toUInt8(0) AS class, toUInt64(0) AS own_hash, toUInt64(0) AS trace_hash, \
             toUInt8(0) AS of_trace FROM {} WHERE {} AND {EVENT}.is_deleted != 0",
            self.keys(Origin::Event),
            self.event_versions,
            self.condition(Origin::Event, scope),
        )
    }

    /// The given items of the traces' latest versions that are not deletions. No row may meet two
    /// of the conditions.
    pub(super) fn latest_traces(&self, conditions: &[String], items: &[Item]) -> String {
        self.latest(conditions, &listed(items))
    }

    fn latest(&self, conditions: &[String], items: &str) -> String {
        let versions = conditions.iter().map(|condition| {
            // Among versions with equal event_ts, the later day wins. On one day the version
            // written later wins, which is in a later part.
            format!(
                "SELECT CAST({TRACE}.project_id, 'String') AS trace_project, \
                 CAST({TRACE}.id, 'String') AS trace_id{items}, \
                 CAST({TRACE}.is_deleted, 'UInt8') AS version_is_deleted, \
                 {} AS version_event_ts, toUInt16(toDate({TRACE}.timestamp)) AS version_day, \
                 {TRACE}._part_index AS version_part, {TRACE}._part_offset AS version_offset {}",
                microseconds(&format!("{TRACE}.event_ts")),
                self.versions_where(condition)
            )
        });
        format!(
            "SELECT * EXCEPT (version_is_deleted, version_event_ts, version_day, version_part, \
             version_offset), toUInt8(1) AS has_trace FROM (SELECT * FROM ({}) \
             ORDER BY version_event_ts DESC, version_day DESC, version_part DESC, \
             version_offset DESC LIMIT 1 BY trace_project, trace_id \
             SETTINGS max_block_size = {TRACE_BLOCK_ROWS}) WHERE version_is_deleted = 0",
            versions.collect::<Vec<_>>().join(" UNION ALL ")
        )
    }

    /// Versions of known traces that meet a condition.
    pub(super) fn versions_where(&self, condition: &str) -> String {
        let known = self
            .known_days
            .as_ref()
            .map_or_else(String::new, |days| format!(" AND {}", on_days(days)));
        format!("FROM {} AS {TRACE} WHERE {condition}{known}", self.traces)
    }

    /// The columns that identify a row.
    pub(super) fn keys(&self, origin: Origin) -> String {
        let names = Names::of(origin);
        let day = match origin {
            Origin::Event => self.event_day(),
            _ => format!("toUInt16(toDate({}))", names.moment),
        };
        format!(
            "{} AS key_project, {} AS key_trace, {} AS key_span, {} AS key_start, \
             {} AS key_event_ts, {day} AS key_day",
            text(&names.project),
            text(&names.trace),
            text(&names.span),
            microseconds(&names.moment),
            microseconds(&names.event_ts),
        )
    }

    /// Whether a live event exists for the row's event.
    fn is_live(&self, origin: Origin, scope: &Scope) -> String {
        let key = |origin| {
            let names = Names::of(origin);
            format!(
                "cityHash64({}, {}, {}, {})",
                text(&names.project),
                text(&names.trace),
                text(&names.span),
                microseconds(&names.moment)
            )
        };
        format!(
            "{} IN (SELECT {} FROM {} WHERE {} AND {})",
            key(origin),
            key(Origin::Event),
            self.events,
            self.condition(Origin::Event, scope),
            self.columns.by_others(),
        )
    }

    /// Whether the row's trace has a live root span near the scope's days.
    fn has_live_root(&self, origin: Origin, scope: &Scope) -> String {
        let trace = |origin| {
            let names = Names::of(origin);
            format!(
                "cityHash64({}, {})",
                text(&names.project),
                text(&names.trace)
            )
        };
        let event = Names::of(Origin::Event);
        format!(
            "{} IN (SELECT {} FROM {} WHERE {} AND {}{} AND {})",
            trace(origin),
            trace(Origin::Event),
            self.events,
            one_of(&event.project, &scope.projects),
            between(&event.moment, scope.moments_around()),
            scope.share.condition(&event.trace),
            self.is_live_root(),
        )
    }

    /// Whether an event is a live root span with its own id.
    pub(super) fn is_live_root(&self) -> String {
        format!(
            "{} AND {EVENT}.parent_span_id = '' AND NOT ({})",
            self.columns.by_others(),
            Names::of(Origin::Event).is_root()
        )
    }

    /// An event's class. If no root spans are expected of traces, existing ones are not compared,
    /// unless an observation with that id starts at the same time.
    fn class_of_event(&self, scope: &Scope) -> String {
        let event = Names::of(Origin::Event);
        let by_others = self.columns.by_others();
        let live = format!("{by_others}, {}, ", Class::Live as u8);
        if !scope.includes(Class::Root) {
            return format!("toUInt8(multiIf({live}{}))", event.is_root());
        }
        let observation = Names::of(Origin::Observation);
        if self.root_spans {
            let second_root = match scope.has_live {
                true => format!(
                    "{} AND {} AND ({}, {}) NOT IN (SELECT {}, {} FROM {} AS {OBSERVATION} FINAL \
                     WHERE {} AND {}), {}, ",
                    event.is_root(),
                    self.has_live_root(Origin::Event, scope),
                    event.project,
                    event.trace,
                    observation.project,
                    observation.trace,
                    self.observations,
                    self.condition(Origin::Observation, scope),
                    observation.is_root(),
                    Class::Aside as u8,
                ),
                false => String::new(),
            };
            return format!("toUInt8(multiIf({live}{second_root}{}))", event.is_root());
        }
        format!(
            "toUInt8(multiIf({live}NOT ({}), {}, ({}, {}, {}) IN (SELECT {}, {}, {} FROM {} AS \
             {OBSERVATION} FINAL WHERE {} AND {}), {}, ({}, {}) IN (SELECT trace_project, \
             trace_id FROM ({})), {}, {}))",
            event.is_root(),
            Class::Ordinary as u8,
            event.project,
            event.trace,
            microseconds(&event.moment),
            observation.project,
            observation.trace,
            microseconds(&observation.moment),
            self.observations,
            self.condition(Origin::Observation, scope),
            observation.is_root(),
            Class::Root as u8,
            event.project,
            event.trace,
            self.latest_traces(&scope.trace_conditions(&scope.trace_days), &[]),
            Class::Aside as u8,
            Class::Root as u8,
        )
    }

    /// An event's day, in the observations' time zone.
    pub(super) fn event_day(&self) -> String {
        format!(
            "toUInt16(toDate(CAST({EVENT}.start_time, {})))",
            quoting::string(&self.start_type)
        )
    }

    /// The condition for a scope's observations or events.
    pub(super) fn condition(&self, origin: Origin, scope: &Scope) -> String {
        let partition = match origin {
            Origin::Observation => format!(
                "{OBSERVATION}._partition_id = {} AND ",
                quoting::string(&self.partition_id)
            ),
            _ => String::new(),
        };
        let superseded = match origin {
            Origin::Observation => scope.superseded.condition(),
            _ => String::new(),
        };
        format!(
            "{partition}{}{}{superseded}",
            scope.condition(origin),
            self.without_dataset_items(origin, &scope.projects)
        )
    }

    /// A condition, appended to another, that excludes traces of dataset runs.
    pub(super) fn without_dataset_items(&self, origin: Origin, projects: &[ByteBuf]) -> String {
        let Names { project, trace, .. } = Names::of(origin);
        self.dataset_items
            .as_ref()
            .map_or_else(String::new, |table| {
                format!(
                    " AND ({project}, {trace}) NOT IN \
                     (SELECT i.project_id, i.trace_id FROM {table} AS i FINAL WHERE {})",
                    one_of("i.project_id", projects)
                )
            })
    }
}
