//! What rows are read from, and how statements call it.

use std::borrow::Cow;

use crate::clickhouse::quoting;
use crate::inspect::statements::TRACE;
use crate::mapping::Source;

/// How the observations are called inside statements.
pub(super) const OBSERVATION: &str = Source::Observations.alias();

/// How the events table is called in the statements.
pub(super) const EVENT: &str = "e";

/// What a row is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// An observation, which becomes an event with the help of its trace.
    Observation,
    /// A trace, which becomes its root span.
    Trace,
    /// An event.
    Event,
}

/// How the statements call what a row is read from.
pub(super) fn table_of(origin: Origin) -> &'static str {
    match origin {
        Origin::Observation => OBSERVATION,
        Origin::Trace => TRACE,
        Origin::Event => EVENT,
    }
}

/// Names and values of a row's metadata. Of `Map(LowCardinality(String), …)` the
/// keys have to be cast, or an empty one is not found.
pub(super) fn metadata_of(table: &str) -> (String, String) {
    (
        format!("CAST(mapKeys({table}.metadata), 'Array(String)')"),
        format!("CAST(mapValues({table}.metadata), 'Array(String)')"),
    )
}

/// A column of the event.
pub(super) fn event_column(name: &str) -> String {
    format!("{EVENT}.{}", quoting::identifier(name))
}

/// A text, whatever its type in the table.
pub(super) fn text(column: &str) -> String {
    format!("CAST({column}, 'String')")
}

/// A moment in microseconds since 1970.
pub(super) fn microseconds(moment: &str) -> String {
    format!("toUnixTimestamp64Micro(CAST({moment}, 'DateTime64(6)'))")
}

/// An item of a SELECT: its name, and what it is.
pub(super) type Item = (Cow<'static, str>, String);

/// Items of a SELECT, behind others.
pub(super) fn listed(items: &[Item]) -> String {
    items
        .iter()
        .map(|(name, expression)| format!(", {expression} AS {name}"))
        .collect()
}
