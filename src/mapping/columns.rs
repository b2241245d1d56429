//! The SELECT's columns, and those that enriching appends.

use super::source::Source;
use crate::native::DataType;
use crate::trace_store::TEXTS;

/// A text copied from the trace to its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceText {
    /// The column in `traces`.
    pub column: &'static str,
    /// The column in the events.
    pub event_column: &'static str,
}

/// The texts copied from the trace, in trace record order.
pub(crate) const TRACE_TEXTS: [TraceText; TEXTS] = [
    trace_text("name", "trace_name"),
    trace_text("user_id", "user_id"),
    trace_text("session_id", "session_id"),
    trace_text("release", "release"),
    trace_text("version", "version"),
];

/// Metadata key for tags, if the target has no tags column.
pub(crate) const TAGS_KEY: &str = "trace_tags";

/// Index of the version, which a row's own version overrides.
pub(crate) const VERSION: usize = 4;

const fn trace_text(column: &'static str, event_column: &'static str) -> TraceText {
    TraceText {
        column,
        event_column,
    }
}

/// Event columns that depend on the trace, besides the texts.
pub(super) const OF_TRACE: [(&str, Enriched); 6] = [
    ("tags", Enriched::Tags),
    ("public", Enriched::Public),
    ("bookmarked", Enriched::Bookmarked),
    ("metadata_names", Enriched::MetadataNames),
    ("metadata_values", Enriched::MetadataValues),
    ("metadata", Enriched::MetadataMap),
];

/// The event columns of the texts.
pub(super) fn texts() -> impl Iterator<Item = (&'static str, Enriched)> {
    TRACE_TEXTS.iter().enumerate().map(|(place, text)| {
        let form = match place {
            VERSION => Enriched::Version,
            place => Enriched::Text(place),
        };
        (text.event_column, form)
    })
}

/// How an event column that depends on the trace or item is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enriched {
    /// The observation's version, or else the trace's.
    Version,
    /// One of [`TRACE_TEXTS`], by index.
    Text(usize),
    /// `traces.tags`
    Tags,
    /// `traces.public`
    Public,
    /// `traces.bookmarked`, for observations without a parent only.
    Bookmarked,
    /// Keys of the observation's metadata, then of the trace's that it lacks.
    MetadataNames,
    /// The values of those keys.
    MetadataValues,
    /// Keys and values as a map.
    MetadataMap,
    /// Keys and values as a JSON object in a JSON column.
    MetadataJson,
    /// Keys and values as JSON text in a string column.
    MetadataText,
    /// A field of the dataset run item that the span belongs to.
    Experiment(Experiment),
}

/// Experiment columns, for spans that belong to a dataset run item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experiment {
    /// `dataset_run_id`
    Id,
    /// `dataset_run_name`
    Name,
    /// `dataset_run_description`
    Description,
    /// Keys of `dataset_run_metadata`.
    MetadataNames,
    /// The values of those keys.
    MetadataValues,
    /// `dataset_id`
    DatasetId,
    /// `dataset_item_id`
    ItemId,
    /// `dataset_item_version`
    ItemVersion,
    /// `dataset_item_expected_output`
    ItemExpectedOutput,
    /// Keys of `dataset_item_metadata`.
    ItemMetadataNames,
    /// The values of those keys.
    ItemMetadataValues,
    /// The span the item points at.
    ItemRootSpanId,
}

/// The event columns for experiments.
pub(super) const EXPERIMENT: [(&str, Enriched); 12] = [
    ("experiment_id", Enriched::Experiment(Experiment::Id)),
    ("experiment_name", Enriched::Experiment(Experiment::Name)),
    (
        "experiment_description",
        Enriched::Experiment(Experiment::Description),
    ),
    (
        "experiment_metadata_names",
        Enriched::Experiment(Experiment::MetadataNames),
    ),
    (
        "experiment_metadata_values",
        Enriched::Experiment(Experiment::MetadataValues),
    ),
    (
        "experiment_dataset_id",
        Enriched::Experiment(Experiment::DatasetId),
    ),
    (
        "experiment_item_id",
        Enriched::Experiment(Experiment::ItemId),
    ),
    (
        "experiment_item_version",
        Enriched::Experiment(Experiment::ItemVersion),
    ),
    (
        "experiment_item_expected_output",
        Enriched::Experiment(Experiment::ItemExpectedOutput),
    ),
    (
        "experiment_item_metadata_names",
        Enriched::Experiment(Experiment::ItemMetadataNames),
    ),
    (
        "experiment_item_metadata_values",
        Enriched::Experiment(Experiment::ItemMetadataValues),
    ),
    (
        "experiment_item_root_span_id",
        Enriched::Experiment(Experiment::ItemRootSpanId),
    ),
];

impl Enriched {
    /// The type to send; the server casts it to the target's. JSON is sent as JSON: casting from a
    /// string would alter texts that look like times.
    pub(super) fn sent_type(self, target: &DataType) -> String {
        let fixed = match self {
            Enriched::Tags | Enriched::MetadataNames | Enriched::MetadataValues => "Array(String)",
            Enriched::Experiment(
                Experiment::MetadataNames
                | Experiment::MetadataValues
                | Experiment::ItemMetadataNames
                | Experiment::ItemMetadataValues,
            ) => "Array(String)",
            Enriched::Experiment(Experiment::ItemVersion) => "Nullable(DateTime64(6))",
            Enriched::Public | Enriched::Bookmarked => "Bool",
            Enriched::MetadataMap => "Map(String, String)",
            Enriched::MetadataJson => return target.to_string(),
            _ => "String",
        };
        fixed.to_owned()
    }

    /// The column of `traces` it depends on, if any.
    pub(super) fn trace_column(self) -> Option<&'static str> {
        let column = match self {
            Enriched::Version => TRACE_TEXTS[VERSION].column,
            Enriched::Text(text) => TRACE_TEXTS[text].column,
            Enriched::Tags => "tags",
            Enriched::Public => "public",
            Enriched::Bookmarked => "bookmarked",
            Enriched::MetadataNames
            | Enriched::MetadataValues
            | Enriched::MetadataMap
            | Enriched::MetadataJson
            | Enriched::MetadataText => "metadata",
            Enriched::Experiment(_) => return None,
        };
        Some(column)
    }

    pub(super) fn is_metadata(self) -> bool {
        self.trace_column() == Some("metadata")
    }

    /// Whether it is a boolean.
    pub(super) fn is_flag(self) -> bool {
        matches!(self, Enriched::Public | Enriched::Bookmarked)
    }

    /// Whether it comes from a dataset run item.
    pub fn is_experiment(self) -> bool {
        matches!(self, Enriched::Experiment(_))
    }
}

/// Source columns that enriching reads but does not pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// `Date`: the day to try first for the trace.
    Day,
    /// `DateTime64(6)`: the version of the row.
    EventTs,
    /// `Nullable(String)`: the row's own version.
    Version,
    /// `UInt8`: 1 if the row has no parent.
    IsRoot,
    /// `UInt8`: 1 if the row is a deletion.
    IsDeleted,
    /// `Array(String)`: keys of the row's metadata.
    MetadataNames,
    /// `Array(String)`: values of the row's metadata.
    MetadataValues,
}

impl Helper {
    pub(super) fn selected(self, source: Source) -> Selected {
        let (name, data_type, (expression, reads)) = match self {
            Helper::Day => ("helper_day", "Date", source.day()),
            Helper::EventTs => (
                "helper_event_ts",
                "DateTime64(6)",
                (source.column("event_ts"), vec!["event_ts"]),
            ),
            Helper::Version => (
                "helper_version",
                "Nullable(String)",
                (source.column("version"), vec!["version"]),
            ),
            Helper::IsRoot => ("helper_is_root", "UInt8", source.is_root()),
            Helper::IsDeleted => (
                "helper_is_deleted",
                "UInt8",
                (source.column("is_deleted"), vec!["is_deleted"]),
            ),
            Helper::MetadataNames => (
                "helper_metadata_names",
                "Array(String)",
                (source.expression("mapKeys({c}.metadata)"), vec!["metadata"]),
            ),
            Helper::MetadataValues => (
                "helper_metadata_values",
                "Array(String)",
                (
                    source.expression("mapValues({c}.metadata)"),
                    vec!["metadata"],
                ),
            ),
        };
        Selected {
            name: name.to_owned(),
            data_type: data_type.to_owned(),
            expression,
            reads,
        }
    }
}

/// One column of the SELECT list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its name in the result; for pass-through columns, the target's name.
    pub name: String,
    /// Its type in the result.
    pub data_type: String,
    /// The SQL expression.
    pub expression: String,
    /// The source columns it reads.
    pub reads: Vec<&'static str>,
}

/// One item of a SELECT list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SelectItem {
    /// `expression AS name`
    pub sql: String,
    /// The table's columns it reads.
    pub reads: Vec<&'static str>,
}

impl SelectItem {
    /// Joins items into a SELECT list.
    pub(crate) fn list(items: &[SelectItem]) -> String {
        let items: Vec<&str> = items.iter().map(|item| item.sql.as_str()).collect();
        items.join(", ")
    }
}

/// A column that enriching appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrichedColumn {
    /// Its name in the target.
    pub name: String,
    /// How it is built.
    pub form: Enriched,
    /// The type it is sent as.
    pub sent_type: String,
}
