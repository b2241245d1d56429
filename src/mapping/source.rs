//! The source tables.

use serde::{Deserialize, Serialize};

use crate::clickhouse::quoting;

/// A table whose rows become events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// `observations`: one event each.
    Observations,
    /// `traces`: one root span each.
    Traces,
}

/// Properties of a source.
struct Facts {
    alias: &'static str,
    table: &'static str,
    time_column: &'static str,
    trace_column: &'static str,
    is_root: (&'static str, &'static [&'static str]),
}

const OBSERVATIONS: Facts = Facts {
    alias: "o",
    table: "observations",
    time_column: "start_time",
    trace_column: "trace_id",
    is_root: (
        "ifNull({c}.parent_observation_id, '') = ''",
        &["parent_observation_id"],
    ),
};

const TRACES: Facts = Facts {
    alias: "t",
    table: "traces",
    time_column: "timestamp",
    trace_column: "id",
    is_root: ("1", &[]),
};

impl Source {
    /// Both sources, by number.
    pub const BOTH: [Source; 2] = [Source::Observations, Source::Traces];

    const fn facts(self) -> Facts {
        match self {
            Source::Observations => OBSERVATIONS,
            Source::Traces => TRACES,
        }
    }

    /// The table's alias in a SELECT.
    pub const fn alias(self) -> &'static str {
        self.facts().alias
    }

    /// The table's name.
    pub const fn table(self) -> &'static str {
        self.facts().table
    }

    /// The column that decides a row's day and partition.
    pub const fn time_column(self) -> &'static str {
        self.facts().time_column
    }

    /// The column with the trace id.
    pub const fn trace_column(self) -> &'static str {
        self.facts().trace_column
    }

    /// An expression for "has no parent", and the columns it reads.
    pub(super) fn is_root(self) -> (String, Vec<&'static str>) {
        let (template, reads) = self.facts().is_root;
        (self.expression(template), reads.to_vec())
    }

    /// An expression for the row's day, and the column it reads.
    pub(super) fn day(self) -> (String, Vec<&'static str>) {
        let column = self.time_column();
        (format!("toDate({}.{column})", self.alias()), vec![column])
    }

    /// Fills the table's alias into a template with `{c}`.
    pub(super) fn expression(self, template: &str) -> String {
        template.replace("{c}", self.alias())
    }

    /// Qualifies a column with the table's alias.
    pub(super) fn column(self, name: &str) -> String {
        format!("{}.{}", self.alias(), quoting::identifier(name))
    }
}
