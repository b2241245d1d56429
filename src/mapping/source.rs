//! The tables whose rows become events.

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

/// What a source is like.
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
    /// Both, in the order of their numbers.
    pub const BOTH: [Source; 2] = [Source::Observations, Source::Traces];

    const fn facts(self) -> Facts {
        match self {
            Source::Observations => OBSERVATIONS,
            Source::Traces => TRACES,
        }
    }

    /// How the table is called inside a SELECT.
    pub const fn alias(self) -> &'static str {
        self.facts().alias
    }

    /// The name of the table.
    pub const fn table(self) -> &'static str {
        self.facts().table
    }

    /// The column that says on which day, and in which partition, a row is.
    pub const fn time_column(self) -> &'static str {
        self.facts().time_column
    }

    /// The column with the id of the row's trace.
    pub const fn trace_column(self) -> &'static str {
        self.facts().trace_column
    }

    /// Whether a row has no parent, as an expression of it, and the columns that this reads.
    pub(super) fn is_root(self) -> (String, Vec<&'static str>) {
        let (template, reads) = self.facts().is_root;
        (self.expression(template), reads.to_vec())
    }

    /// The day of a row, as an expression of it, and the column that this reads.
    pub(super) fn day(self) -> (String, Vec<&'static str>) {
        let column = self.time_column();
        (format!("toDate({}.{column})", self.alias()), vec![column])
    }

    /// A template in which `{c}` stands for the table, as an expression of it.
    pub(super) fn expression(self, template: &str) -> String {
        template.replace("{c}", self.alias())
    }

    /// A column of it, as an expression.
    pub(super) fn column(self, name: &str) -> String {
        format!("{}.{}", self.alias(), quoting::identifier(name))
    }
}
