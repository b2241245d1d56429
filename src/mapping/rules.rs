//! The rules: what each pass-through column is made of, for events of observations and
//! for the root spans of traces.

use serde::{Deserialize, Serialize};

use crate::clickhouse::quoting;

/// The table whose rows become events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// `observations`: one event for each.
    Observations,
    /// `traces`: one root span for each.
    Traces,
}

impl Source {
    /// Both, in the order of their numbers.
    pub const BOTH: [Source; 2] = [Source::Observations, Source::Traces];

    /// How the table is called inside a SELECT.
    pub const fn alias(self) -> &'static str {
        match self {
            Source::Observations => "o",
            Source::Traces => "t",
        }
    }

    /// The name of the table.
    pub const fn table(self) -> &'static str {
        match self {
            Source::Observations => "observations",
            Source::Traces => "traces",
        }
    }

    /// The column that says on which day, and in which partition, a row is.
    pub const fn time_column(self) -> &'static str {
        match self {
            Source::Observations => "start_time",
            Source::Traces => "timestamp",
        }
    }

    /// The column with the id of the row's trace.
    pub const fn trace_column(self) -> &'static str {
        match self {
            Source::Observations => "trace_id",
            Source::Traces => "id",
        }
    }

    /// A template in which `{c}` stands for the table, as an expression of it.
    pub(super) fn expression(self, template: &str) -> String {
        template.replace("{c}", self.alias())
    }

    /// A column of it, as an expression.
    pub(super) fn column(self, name: &str) -> String {
        format!("{}.{}", self.alias(), quoting::identifier(name))
    }

    pub(super) fn rules(self) -> &'static [Rule] {
        match self {
            Source::Observations => OBSERVATION,
            Source::Traces => ROOT_SPAN,
        }
    }
}

/// What a pass-through column is made of.
pub(super) enum Form {
    /// A column of the source; null becomes the type's default where the
    /// target cannot be null.
    Column(&'static str),
    /// As `Column`, with a literal in place of null.
    ColumnOr(&'static str, &'static str),
    /// An expression over columns of the source; `{c}` stands for the table.
    Expression(&'static str, &'static [&'static str]),
}

pub(super) struct Rule {
    pub(super) target: &'static str,
    pub(super) form: Form,
    /// Whether old deployments lack the source column; then the target column
    /// is left to its default.
    pub(super) came_later: bool,
}

const fn column(target: &'static str, source: &'static str) -> Rule {
    Rule {
        target,
        form: Form::Column(source),
        came_later: false,
    }
}

const fn same(name: &'static str) -> Rule {
    column(name, name)
}

const fn later(name: &'static str) -> Rule {
    Rule {
        target: name,
        form: Form::Column(name),
        came_later: true,
    }
}

const fn expression(
    target: &'static str,
    text: &'static str,
    columns: &'static [&'static str],
) -> Rule {
    Rule {
        target,
        form: Form::Expression(text, columns),
        came_later: false,
    }
}

/// Which way the row came into Langfuse.
const SOURCE: Rule = expression(
    "source",
    "if(mapContains({c}.metadata, 'resourceAttributes'), \
     'otel-backfill', 'ingestion-api-backfill')",
    &["metadata"],
);

/// Columns that come from the observation alone.
const OBSERVATION: &[Rule] = &[
    same("project_id"),
    same("trace_id"),
    column("span_id", "id"),
    expression(
        "parent_span_id",
        "if({c}.id = concat('t-', {c}.trace_id), '', \
         if(ifNull({c}.parent_observation_id, '') = '', concat('t-', {c}.trace_id), \
         assumeNotNull({c}.parent_observation_id)))",
        &["id", "trace_id", "parent_observation_id"],
    ),
    same("start_time"),
    same("end_time"),
    same("completion_start_time"),
    same("name"),
    same("type"),
    same("environment"),
    same("level"),
    same("status_message"),
    same("prompt_id"),
    same("prompt_name"),
    same("prompt_version"),
    column("model_id", "internal_model_id"),
    same("provided_model_name"),
    Rule {
        target: "model_parameters",
        form: Form::ColumnOr("model_parameters", "'{}'"),
        came_later: false,
    },
    same("provided_usage_details"),
    same("usage_details"),
    same("provided_cost_details"),
    same("cost_details"),
    // A real column in older event tables, an alias in newer ones.
    same("total_cost"),
    later("usage_pricing_tier_id"),
    later("usage_pricing_tier_name"),
    later("tool_definitions"),
    later("tool_calls"),
    later("tool_call_names"),
    same("input"),
    same("output"),
    SOURCE,
    same("created_at"),
    same("updated_at"),
    same("event_ts"),
    // A deleted observation is not written, so what is written is not deleted.
    expression("is_deleted", "0", &[]),
];

/// Columns of a root span that come from the row of the trace; the others a trace does not
/// have, and they are left to their defaults.
const ROOT_SPAN: &[Rule] = &[
    same("project_id"),
    column("trace_id", "id"),
    expression("span_id", "concat('t-', {c}.id)", &["id"]),
    expression("parent_span_id", "''", &[]),
    column("start_time", "timestamp"),
    same("name"),
    expression("type", "'SPAN'", &[]),
    same("environment"),
    expression("level", "'DEFAULT'", &[]),
    expression("model_parameters", "'{}'", &[]),
    same("input"),
    same("output"),
    SOURCE,
    same("created_at"),
    same("updated_at"),
    same("event_ts"),
    expression("is_deleted", "0", &[]),
];
