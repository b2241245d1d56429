//! Event columns that depend on a single row: the expression for each, for observations and for
//! root spans of traces.

use super::source::Source;

/// A column of an event.
pub(super) struct EventColumn {
    /// Its name in the target.
    pub(super) name: &'static str,
    observation: From,
    root_span: From,
    /// Whether old deployments lack the source column. If so, the target column gets its default.
    pub(super) came_later: bool,
}

/// Where a column's value comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum From {
    /// Nothing: the column gets its default.
    Default,
    /// A source column; null becomes the type's default if the target is not nullable.
    Column(&'static str),
    /// A source column, with a literal in place of null.
    ColumnOr(&'static str, &'static str),
    /// An expression over the listed source columns; `{c}` stands for the table.
    Expression(&'static str, &'static [&'static str]),
}

impl From {
    /// The source columns it reads.
    pub(super) fn reads(&self) -> Vec<&'static str> {
        match self {
            From::Default => Vec::new(),
            From::Column(column) | From::ColumnOr(column, _) => vec![column],
            From::Expression(_, columns) => columns.to_vec(),
        }
    }
}

use self::From::{Column, ColumnOr, Default, Expression};

impl EventColumn {
    /// Where the value comes from, by source.
    pub(super) fn from(&self, source: Source) -> &From {
        match source {
            Source::Observations => &self.observation,
            Source::Traces => &self.root_span,
        }
    }

    const fn of(name: &'static str, observation: From, root_span: From) -> Self {
        Self {
            name,
            observation,
            root_span,
            came_later: false,
        }
    }

    /// Same name in both sources.
    const fn same(name: &'static str) -> Self {
        Self::of(name, Column(name), Column(name))
    }

    /// Only in observations, under the same name.
    const fn only(name: &'static str) -> Self {
        Self::of(name, Column(name), Default)
    }

    /// Only in observations, under the same name, and missing from old deployments.
    const fn later(name: &'static str) -> Self {
        Self {
            came_later: true,
            ..Self::only(name)
        }
    }
}

/// How the row reached Langfuse.
const SOURCE: &str = "if(mapContains({c}.metadata, 'resourceAttributes'), \
                      'otel-backfill', 'ingestion-api-backfill')";

/// The parent's id. An observation without a parent becomes a child of its trace's root span.
const PARENT: &str = "if({c}.id = concat('t-', {c}.trace_id), '', \
                      if(ifNull({c}.parent_observation_id, '') = '', concat('t-', {c}.trace_id), \
                      assumeNotNull({c}.parent_observation_id)))";

/// All event columns: name, value for observations, value for traces.
pub(super) const EVENT_COLUMNS: &[EventColumn] = &[
    EventColumn::same("project_id"),
    EventColumn::of("trace_id", Column("trace_id"), Column("id")),
    EventColumn::of(
        "span_id",
        Column("id"),
        Expression("concat('t-', {c}.id)", &["id"]),
    ),
    EventColumn::of(
        "parent_span_id",
        Expression(PARENT, &["id", "trace_id", "parent_observation_id"]),
        Expression("''", &[]),
    ),
    EventColumn::of("start_time", Column("start_time"), Column("timestamp")),
    EventColumn::only("end_time"),
    EventColumn::only("completion_start_time"),
    EventColumn::same("name"),
    EventColumn::of("type", Column("type"), Expression("'SPAN'", &[])),
    EventColumn::same("environment"),
    EventColumn::of("level", Column("level"), Expression("'DEFAULT'", &[])),
    EventColumn::only("status_message"),
    EventColumn::only("prompt_id"),
    EventColumn::only("prompt_name"),
    EventColumn::only("prompt_version"),
    EventColumn::of("model_id", Column("internal_model_id"), Default),
    EventColumn::only("provided_model_name"),
    EventColumn::of(
        "model_parameters",
        ColumnOr("model_parameters", "'{}'"),
        Expression("'{}'", &[]),
    ),
    EventColumn::only("provided_usage_details"),
    EventColumn::only("usage_details"),
    EventColumn::only("provided_cost_details"),
    EventColumn::only("cost_details"),
    // A real column in older event tables, an alias in newer ones.
    EventColumn::only("total_cost"),
    EventColumn::later("usage_pricing_tier_id"),
    EventColumn::later("usage_pricing_tier_name"),
    EventColumn::later("tool_definitions"),
    EventColumn::later("tool_calls"),
    EventColumn::later("tool_call_names"),
    EventColumn::same("input"),
    EventColumn::same("output"),
    EventColumn::of(
        "source",
        Expression(SOURCE, &["metadata"]),
        Expression(SOURCE, &["metadata"]),
    ),
    EventColumn::same("created_at"),
    EventColumn::same("updated_at"),
    EventColumn::same("event_ts"),
    // Deleted rows are never written.
    EventColumn::of("is_deleted", Expression("0", &[]), Expression("0", &[])),
];
