//! Every event column as SQL over a row and its trace, for a server that makes the events itself.
//!
//! `enrich/` builds the same values from blocks, and `verify/columns.rs` has its own SQL to compare
//! both with: neither is derived from what stands here.

use super::columns::{Enriched, EnrichedColumn, Helper, Selected, TAGS_KEY, VERSION};
use super::source::Source;
use crate::clickhouse::quoting;

/// What an event takes from its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TraceAttribute {
    /// `public`
    Public,
    /// `bookmarked`
    Bookmarked,
    /// One of [`TRACE_TEXTS`](super::TRACE_TEXTS), by index; empty instead of null.
    Text(usize),
    /// `tags`
    Tags,
    /// Keys of `metadata`.
    MetadataNames,
    /// The values of those keys.
    MetadataValues,
}

/// The columns of an event, and what their metadata takes from the trace.
pub(super) struct EventColumns<'a> {
    pub(super) source: Source,
    pub(super) pass_through: &'a [Selected],
    pub(super) enriched: &'a [EnrichedColumn],
    pub(super) trace_metadata: bool,
    pub(super) tags_in_metadata: bool,
}

impl EventColumns<'_> {
    /// See [`Mapping::expressions`](super::Mapping::expressions).
    pub(super) fn expressions(&self, of_trace: impl Fn(TraceAttribute) -> String) -> Vec<String> {
        let pass_through = self.pass_through.iter();
        let pass_through = pass_through.map(|column| cast(&column.expression, &column.data_type));
        let (names, values) = self.merged_metadata(&of_trace);
        let enriched = self.enriched.iter().map(|column| {
            let value = match column.form {
                Enriched::Version => format!(
                    "ifNull({}, {})",
                    self.helper(Helper::Version),
                    of_trace(TraceAttribute::Text(VERSION))
                ),
                Enriched::Text(text) => of_trace(TraceAttribute::Text(text)),
                Enriched::Tags => of_trace(TraceAttribute::Tags),
                Enriched::Public => of_trace(TraceAttribute::Public),
                Enriched::Bookmarked => format!(
                    "{} AND {}",
                    self.helper(Helper::IsRoot),
                    of_trace(TraceAttribute::Bookmarked)
                ),
                Enriched::MetadataNames => names.clone(),
                Enriched::MetadataValues => values.clone(),
                Enriched::MetadataMap | Enriched::MetadataJson | Enriched::MetadataText => {
                    format!("({names}, {values})")
                }
                Enriched::Experiment(_) => format!(
                    "defaultValueOfTypeName({})",
                    quoting::string(&column.sent_type)
                ),
            };
            cast(&value, &column.sent_type)
        });
        pass_through.chain(enriched).collect()
    }

    /// The row's own pairs, then the trace's pairs with other keys, then the tags if they have no column.
    fn merged_metadata(&self, of_trace: impl Fn(TraceAttribute) -> String) -> (String, String) {
        let own = self.helper(Helper::MetadataNames);
        let (mut names, mut values) = (own.clone(), self.helper(Helper::MetadataValues));
        if self.trace_metadata {
            let other_names = of_trace(TraceAttribute::MetadataNames);
            let other_values = of_trace(TraceAttribute::MetadataValues);
            names = format!(
                "arrayConcat({names}, arrayFilter(one -> NOT has({own}, one), {other_names}))"
            );
            values = format!(
                "arrayConcat({values}, arrayFilter((other, one) -> NOT has({own}, one), \
                 {other_values}, {other_names}))"
            );
        }
        if self.tags_in_metadata {
            let (tags, key) = (of_trace(TraceAttribute::Tags), quoting::string(TAGS_KEY));
            let adds_tags = format!("notEmpty({tags}) AND NOT has({names}, {key})");
            values =
                format!("if({adds_tags}, arrayPushBack({values}, toJSONString({tags})), {values})");
            names = format!("if({adds_tags}, arrayPushBack({names}, {key}), {names})");
        }
        (names, values)
    }

    fn helper(&self, helper: Helper) -> String {
        let selected = helper.selected(self.source);
        cast(&selected.expression, &selected.data_type)
    }
}

/// A value as the type that is sent.
pub(super) fn cast(expression: &str, data_type: &str) -> String {
    format!("CAST({expression}, {})", quoting::string(data_type))
}
