//! The tables rows come from, and their aliases.

use std::borrow::Cow;

use crate::clickhouse::quoting;
use crate::inspect::statements::TRACE;
use crate::mapping::Source;

/// Alias of the observations.
pub(super) const OBSERVATION: &str = Source::Observations.alias();

/// Alias of the events table.
pub(super) const EVENT: &str = "e";

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// An observation, which its trace turns into an event.
    Observation,
    /// A trace, which becomes its root span.
    Trace,
    /// An event.
    Event,
}

/// The alias of a row's table.
pub(super) fn table_of(origin: Origin) -> &'static str {
    match origin {
        Origin::Observation => OBSERVATION,
        Origin::Trace => TRACE,
        Origin::Event => EVENT,
    }
}

/// Names and values of a row's metadata. Keys of `Map(LowCardinality(String), …)` need the cast, or
/// an empty one is not found.
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

/// A text, whatever its column type.
pub(super) fn text(column: &str) -> String {
    format!("CAST({column}, 'String')")
}

/// A moment in microseconds since 1970.
pub(super) fn microseconds(moment: &str) -> String {
    format!("toUnixTimestamp64Micro(CAST({moment}, 'DateTime64(6)'))")
}

/// A SELECT item: name and expression.
pub(super) type Item = (Cow<'static, str>, String);

/// SELECT items to append to others.
pub(super) fn listed(items: &[Item]) -> String {
    items
        .iter()
        .map(|(name, expression)| format!(", {expression} AS {name}"))
        .collect()
}
