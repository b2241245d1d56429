//! Builds the statements. All are SELECTs.

use std::ops::RangeInclusive;

use serde_bytes::ByteBuf;

use super::columns::{Columns, Texts};
use super::events_core::Core;
use super::origin::{EVENT, OBSERVATION, Origin, microseconds};
use super::rows::EventKey;
use super::scope::{Class, Names, Scope, between, hash, on_days, one_of};
use crate::cli::options::Options;
use crate::clickhouse::{TableInfo, quoting};
use crate::inspect::Inspected;
use crate::inspect::statements::TRACE;
use crate::partition::Day;

/// A partition key that keeps equal sort keys in one partition.
const BY_MONTH: &str = "toYYYYMM(start_time)";
/// One side of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// What observations and traces say.
    Source,
    /// Events.
    Target,
}

/// What to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pair {
    /// Observations and traces with events.
    SourceAndEvents,
    /// The view's output with its table.
    ViewAndCore,
}

/// The statements for one source and target.
pub(super) struct Statements {
    pub(super) observations: String,
    pub(super) traces: String,
    /// The target, aliased [`EVENT`], with `FINAL` if it keeps versions.
    pub(super) events: String,
    /// The target with all versions.
    pub(super) event_versions: String,
    /// The dataset run items, if their traces are excluded.
    pub(super) dataset_items: Option<String>,
    /// The dataset run items, if events have experiment columns, and whether items have a version.
    pub(super) experiment_items: Option<(String, bool)>,
    /// The table that a view fills from the target, if any.
    pub(super) core: Option<Core>,
    pub(super) partition_id: String,
    /// The days whose traces are known, if not all are.
    pub(super) known_days: Option<RangeInclusive<Day>>,
    /// Whether root spans are expected from traces.
    pub(super) root_spans: bool,
    /// Which `system.parts` rows the two tables' reads cover.
    parts: [String; 2],
    /// Type of `observations.start_time`, whose time zone defines days.
    pub(super) start_type: String,
    by_month: bool,
    /// Whether the target keeps only a row's latest version.
    pub(super) is_replacing: bool,
    /// The columns to compare.
    pub columns: Columns,
}

impl Statements {
    /// Builds the statements for the inspected tables.
    pub(super) fn new(inspected: &Inspected, options: &Options) -> Self {
        let target = &inspected.target;
        let name = target.qualified_name();
        let partition_id = options.partition.to_string();
        let last_versions = match target.is_replacing() {
            true => " FINAL",
            false => "",
        };
        let by_month = target.partition_key == BY_MONTH;
        let parts_of = |table: &TableInfo, by_month: bool| {
            let mut condition = format!(
                "database = {} AND table = {}",
                quoting::string(&table.database),
                quoting::string(&table.name)
            );
            if by_month {
                condition.push_str(&format!(
                    " AND partition_id = {}",
                    quoting::string(&partition_id)
                ));
            }
            condition
        };
        Self {
            parts: [
                parts_of(&inspected.observations, true),
                parts_of(target, by_month),
            ],
            observations: inspected.observations.qualified_name(),
            traces: inspected.traces.qualified_name(),
            events: format!("{name} AS {EVENT}{last_versions}"),
            event_versions: format!("{name} AS {EVENT}"),
            dataset_items: inspected
                .dataset_items
                .as_ref()
                .filter(|_| inspected.excludes_dataset_items)
                .map(TableInfo::qualified_name),
            experiment_items: inspected
                .dataset_items
                .as_ref()
                .filter(|_| inspected.mapping.has_experiments())
                .map(|table| {
                    let has_version = table.column("dataset_item_version").is_some();
                    (table.qualified_name(), has_version)
                }),
            core: None,
            partition_id,
            known_days: (!options.subject.remote_lookup).then(|| {
                options
                    .partition
                    .days_with_margin(options.subject.trace_margin_days)
            }),
            root_spans: options.subject.root_spans,
            start_type: inspected.start_type(),
            by_month,
            is_replacing: target.is_replacing(),
            columns: Columns::new(&inspected.mapping, inspected.root_spans.as_ref(), target),
        }
    }

    /// Whether target rows in different partitions are never versions of each other, because the
    /// key determines the partition. Rows of observations never are.
    pub(super) fn partitions_are_apart(&self) -> bool {
        self.by_month
    }

    /// Row widths of both tables: `Widths`.
    pub(super) fn widths(&self) -> String {
        let of_table = self.parts.each_ref().map(|condition| {
            format!(
                "SELECT count() AS parts, toUInt64(max(intDiv(data_uncompressed_bytes, rows))) AS \
                 row_bytes FROM system.parts WHERE active AND rows > 0 AND {condition}"
            )
        });
        of_table.join(" UNION ALL ")
    }

    /// The start of each day: `DayStart`s in order.
    pub(super) fn day_starts(&self, days: &RangeInclusive<Day>) -> String {
        let of_day = format!(
            "CAST(concat(toString(toDate(toUInt16(day))), ' 00:00:00'), {})",
            quoting::string(&self.start_type)
        );
        format!(
            "SELECT toUnixTimestamp64Milli(CAST({of_day}, 'DateTime64(3)')) AS start \
             FROM (SELECT arrayJoin(range(toUInt32({}), toUInt32({}) + 1)) AS day) ORDER BY day",
            days.start(),
            days.end()
        )
    }

    /// Observation rows per piece: `PieceRows`.
    pub(super) fn count_observations(&self) -> String {
        format!(
            "SELECT CAST({OBSERVATION}.project_id, 'String') AS project, \
             toUInt16(toDate({OBSERVATION}.start_time)) AS day, count() AS row_count \
             FROM {} AS {OBSERVATION} WHERE {OBSERVATION}._partition_id = {} GROUP BY project, day",
            self.observations,
            quoting::string(&self.partition_id)
        )
    }

    /// Event rows per piece, and how many are live: `EventRows`.
    pub(super) fn count_events(&self, moments: (i64, i64)) -> String {
        format!(
            "SELECT CAST({EVENT}.project_id, 'String') AS project, {} AS day, \
             count() AS row_count, countIf({} != 0) AS live FROM {} WHERE {} GROUP BY project, day",
            self.event_day(),
            self.columns.by_others(),
            self.event_versions,
            between(&format!("{EVENT}.start_time"), moments)
        )
    }

    /// Trace versions on some days: `PieceRows`.
    pub(super) fn count_traces(&self, days: &RangeInclusive<Day>) -> String {
        format!(
            "SELECT CAST({TRACE}.project_id, 'String') AS project, \
             toUInt16(toDate({TRACE}.timestamp)) AS day, count() AS row_count {} \
             GROUP BY project, day",
            self.versions_where(&on_days(days))
        )
    }

    /// Traces with versions on several days that span or overlap `days`: `MovedTrace`s.
    /// Groups by hashes, which take a fraction of the ids' memory.
    pub(super) fn moved_traces(&self, days: &RangeInclusive<Day>) -> String {
        let day = format!("toUInt16(toDate({TRACE}.timestamp))");
        format!(
            "SELECT {} AS hash, min({day}) AS first, max({day}) AS last, \
             argMax({day}, ({TRACE}.event_ts, {day})) AS latest {} \
             GROUP BY cityHash64({TRACE}.project_id), hash \
             HAVING first < last AND first <= {} AND last >= {}",
            hash(&format!("{TRACE}.id")),
            self.versions_where("1"),
            days.end(),
            days.start()
        )
    }

    /// Trace ids of observations, at most `most`, found on none of the days searched first: `Id`s.
    pub(super) fn unresolved_traces(&self, scope: &Scope, most: Option<usize>) -> String {
        let near = scope.trace_conditions(&scope.trace_days);
        let limit = most.map_or_else(String::new, |most| format!(" LIMIT {most}"));
        format!(
            "SELECT DISTINCT CAST({OBSERVATION}.trace_id, 'String') AS id FROM {} AS \
             {OBSERVATION} WHERE {} AND ({OBSERVATION}.project_id, {OBSERVATION}.trace_id) NOT IN \
             (SELECT {TRACE}.project_id, {TRACE}.id {}){limit}",
            self.observations,
            self.condition(Origin::Observation, scope),
            self.versions_where(&near[0]),
        )
    }

    /// The days on which these traces have versions: [`VersionDay`](super::rows::VersionDay)s.
    pub(super) fn places_of_traces(&self, projects: &[ByteBuf], ids: &[ByteBuf]) -> String {
        let condition = format!(
            "{} AND {}",
            one_of(&format!("{TRACE}.project_id"), projects),
            one_of(&format!("{TRACE}.id"), ids)
        );
        format!(
            "SELECT DISTINCT {} AS hash, toUInt16(toDate({TRACE}.timestamp)) AS day {}",
            hash(&format!("{TRACE}.id")),
            self.versions_where(&condition)
        )
    }

    /// Where observations with these ids are, in any month, and where their other versions are:
    /// `FoundObservation`s.
    pub(super) fn find_observations(&self, project: &ByteBuf, ids: &[ByteBuf]) -> String {
        /// Maximum number of distinct starts kept per observation.
        const MOST_STARTS: usize = 1_000;
        let day = format!("toDate({OBSERVATION}.start_time)");
        let order = format!("({OBSERVATION}.event_ts, {day})");
        let start = microseconds(&format!("{OBSERVATION}.start_time"));
        format!(
            "SELECT CAST({OBSERVATION}.trace_id, 'String') AS trace_id, \
             CAST({OBSERVATION}.id, 'String') AS span_id, \
             max({}) AS event_ts, argMax({start}, {order}) AS start, \
             argMax({OBSERVATION}.is_deleted, {order}) AS is_deleted, \
             groupUniqArray({MOST_STARTS})({start}) AS starts, \
             uniqExact({OBSERVATION}.type, {day}) AS places \
             FROM {} AS {OBSERVATION} WHERE {} AND {} GROUP BY trace_id, span_id",
            microseconds(&format!("{OBSERVATION}.event_ts")),
            self.observations,
            one_of(
                &format!("{OBSERVATION}.project_id"),
                std::slice::from_ref(project)
            ),
            one_of(&format!("{OBSERVATION}.id"), ids),
        )
    }

    /// Counts and sums of one side per piece, each in `slices` slices: `Sums`.
    pub(super) fn sums(&self, pair: Pair, side: Side, scope: &Scope, slices: u64) -> String {
        if pair == Pair::ViewAndCore {
            return self.sums_of_core(side, scope, slices);
        }

        let slice = match slices {
            1 => "toUInt64(0)".to_owned(),
            _ => format!("toUInt64(cityHash64(key_trace, key_span) % {slices})"),
        };
        format!(
            "SELECT key_project AS project, key_day AS day, class, {slice} AS slice, count() AS \
             row_count, sum(own_hash) AS own_sum, groupBitXor(own_hash) AS own_xor, \
             sum(trace_hash) AS trace_sum, groupBitXor(trace_hash) AS trace_xor, \
             countIf(has_trace = 0) AS without_trace, countIf(of_trace != 0) AS of_traces FROM \
             ({}) GROUP BY project, day, class, slice",
            self.rows(side, scope)
        )
    }

    /// The spans that differ: `SpanRow`s.
    pub(super) fn different_spans(&self, scope: &Scope) -> String {
        let side = |number: u8, rows: String| {
            format!(
                "SELECT toUInt8({number}) AS side, key_project, key_trace, key_span, key_start, \
                 key_event_ts, class, own_hash, trace_hash, of_trace FROM ({rows})"
            )
        };
        let all = [
            side(0, self.rows(Side::Source, scope)),
            side(1, self.rows(Side::Target, scope)),
            side(2, self.deletions(scope)),
        ];
        let rows = |side: u8| {
            format!(
                "CAST(groupArrayIf((key_start, key_event_ts, own_hash, trace_hash, of_trace), \
                 side = {side}), 'Array(Tuple(Int64, Int64, UInt64, UInt64, UInt8))')"
            )
        };
        let hash = "cityHash64(key_start, own_hash, trace_hash)";
        format!(
            "SELECT key_project AS project, key_trace AS trace_id, key_span AS span_id, \
             {} AS expected, {} AS events, \
             maxIf(key_event_ts, side = 2) AS deleted_at FROM ({}) \
             WHERE class NOT IN ({}, {}) GROUP BY key_project, key_trace, key_span \
             HAVING countIf(side = 0) != countIf(side = 1) \
             OR sumIf({hash}, side = 0) != sumIf({hash}, side = 1)",
            rows(0),
            rows(1),
            all.join(" UNION ALL "),
            Class::Aside as u8,
            Class::Live as u8
        )
    }

    /// All compared columns of one row on one side: at most one `Details`.
    pub(super) fn details(&self, side: Side, scope: &Scope, key: &EventKey) -> String {
        if side == Side::Target {
            let (mut hashes, mut texts) = self.columns.own_details(Origin::Event);
            let (trace_hashes, trace_texts) = self.columns.trace_details(Origin::Event);
            hashes.extend(trace_hashes);
            texts.extend(trace_texts);
            return format!(
                "SELECT {} AS hashes, {} AS texts FROM {} WHERE {} AND {} LIMIT 1",
                hash_array(&hashes),
                text_array(&texts),
                self.events,
                self.condition(Origin::Event, scope),
                is_row(Origin::Event, key),
            );
        }
        let (trace_hashes, trace_texts) = self.columns.trace_details(Origin::Observation);
        let own = |origin| {
            let (hashes, texts) = self.columns.own_details(origin);
            let mut items = vec![
                ("own_hashes".into(), hash_array(&hashes)),
                ("own_texts".into(), text_array(&texts)),
            ];
            items.extend(self.columns.own_items(origin, Texts::Plain));
            items
        };
        let trace = [format!(
            "{} AND {}",
            one_of(
                &format!("{TRACE}.project_id"),
                std::slice::from_ref(&key.project)
            ),
            one_of(&format!("{TRACE}.id"), std::slice::from_ref(&key.trace_id))
        )];
        let rows = |from: String| {
            format!(
                "SELECT arrayConcat(own_hashes, {}) AS hashes, arrayConcat(own_texts, {}) AS \
                 texts, key_event_ts FROM {from}",
                hash_array(&trace_hashes),
                text_array(&trace_texts),
            )
        };
        let mut sources = vec![rows(self.observations_with_traces(
            &own(Origin::Observation),
            &format!(
                "{} AND {}",
                self.condition(Origin::Observation, scope),
                is_row(Origin::Observation, key)
            ),
            &self.latest_traces(&trace, &self.columns.items_of_trace(Texts::Plain)),
        ))];
        if self.root_spans {
            let mut items = own(Origin::Trace);
            items.extend(self.columns.items_of_trace(Texts::Plain));
            sources.push(format!(
                "{} WHERE key_span = {} AND key_start = {}",
                rows(format!("({})", self.root_spans_of(scope, &trace, &items))),
                quoting::string(&key.span_id),
                key.start
            ));
        }
        format!(
            "SELECT hashes, texts FROM ({}) ORDER BY key_event_ts DESC LIMIT 1",
            sources.join(" UNION ALL ")
        )
    }
}

fn is_row(origin: Origin, key: &EventKey) -> String {
    let names = Names::of(origin);
    format!(
        "{} = {} AND {} = {} AND {} = {} AND {} = {}",
        names.project,
        quoting::string(&key.project),
        names.trace,
        quoting::string(&key.trace_id),
        names.span,
        quoting::string(&key.span_id),
        microseconds(&names.moment),
        key.start
    )
}

fn hash_array(items: &[String]) -> String {
    format!("CAST([{}], 'Array(UInt64)')", items.join(", "))
}

fn text_array(items: &[String]) -> String {
    let items: Vec<String> = items
        .iter()
        .map(|item| format!("CAST({item}, 'Nullable(String)')"))
        .collect();
    format!("CAST([{}], 'Array(Nullable(String))')", items.join(", "))
}
