//! Defines how every event column is made; nothing else knows it.
//!
//! Combines the rules with the columns that source and target really have (`system.columns`) into a
//! [`Mapping`]: the SELECT list with every pass-through column under its target name and type, the
//! helper columns that enriching needs, and the columns that enriching appends.

mod columns;
mod event_columns;
mod expressions;
mod source;

use crate::clickhouse::{TableColumn, TableInfo, quoting};
use crate::native::{DataType, TypeError};

use columns::{EXPERIMENT, OF_TRACE, texts};
pub(crate) use columns::{
    Enriched, EnrichedColumn, Experiment, Helper, SelectItem, Selected, TAGS_KEY, TRACE_TEXTS,
    VERSION,
};
use event_columns::{EVENT_COLUMNS, EventColumn, From};
pub(crate) use expressions::TraceAttribute;
use expressions::{EventColumns, cast};
pub use source::Source;

/// Event columns needed to tell rows apart or to read them.
const REQUIRED_TARGET: &[&str] = &[
    "project_id",
    "trace_id",
    "span_id",
    "parent_span_id",
    "start_time",
    "name",
    "type",
    "event_ts",
    "is_deleted",
];

/// Event columns that identify an observation's trace.
const KEY_COLUMNS: [&str; 2] = ["project_id", "trace_id"];

/// Columns that decide which row of `traces` wins.
const REQUIRED_TRACE: &[&str] = &["id", "project_id", "timestamp", "event_ts", "is_deleted"];

/// Optional contents of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The traces' metadata.
    pub trace_metadata: bool,
    /// The experiment a span belongs to.
    pub experiments: bool,
}

/// How a source's rows become events in a target.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// The source.
    pub source: Source,
    /// Pass-through columns, in the order of the SELECT list.
    pub pass_through: Vec<Selected>,
    /// Helper columns, which follow the pass-through columns.
    pub helpers: Vec<Helper>,
    /// Columns that enriching appends.
    pub enriched: Vec<EnrichedColumn>,
    /// Indices of the key columns among the pass-through columns: project, trace.
    pub key_columns: (usize, usize),
    /// Index of the span id among the pass-through columns.
    pub span_column: usize,
    /// Whether events include the traces' metadata.
    pub trace_metadata: bool,
    /// Whether tags go into the metadata because the target has no tags column.
    pub tags_in_metadata: bool,
    /// Target columns that get their defaults.
    pub left_to_default: Vec<String>,
    /// Source data the target has no column for.
    pub without_place: Vec<String>,
}

/// Why source and target cannot be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// A required column is missing.
    #[error("table {table} has no column {column}, which {needed_for}")]
    MissingColumn {
        /// The table that lacks it.
        table: String,
        /// Its name.
        column: String,
        /// Why it is needed, after "which".
        needed_for: String,
    },
    /// A target column has a type that cannot be sent.
    #[error("column {column} of table {table}: {error}")]
    ColumnType {
        /// The table that has it.
        table: String,
        /// Its name.
        column: String,
        /// What is wrong with its type.
        error: TypeError,
    },
}

impl Mapping {
    /// Maps rows of the source `table`, enriched from `traces`, to rows of `target`.
    ///
    /// # Errors
    /// [`MappingError`] if a required column is missing or has a type that cannot be sent.
    pub fn new(
        source: Source,
        table: &TableInfo,
        traces: &TableInfo,
        target: &TableInfo,
        wanted: Wanted,
    ) -> Result<Self, MappingError> {
        require(target, REQUIRED_TARGET, "every event needs")?;
        if let Some(column) = REQUIRED_TARGET
            .iter()
            .find(|name| insertable(target, name).is_none())
        {
            return Err(missing(
                target,
                column,
                "every event needs and which must be writable",
            ));
        }
        for column in KEY_COLUMNS {
            require_text(target, column)?;
        }
        require(
            traces,
            REQUIRED_TRACE,
            "decides which version of a trace wins",
        )?;
        let mut pass_through = Vec::new();
        let mut without_place = Vec::new();
        let of_source = EVENT_COLUMNS.iter();
        let of_source = of_source.filter(|column| *column.from(source) != From::Default);
        for rule in of_source {
            match insertable(target, rule.name) {
                Some(column) => pass_through.extend(apply(rule, column, source, table, target)?),
                // An alias computes itself, so it is neither filled nor reported missing.
                None if target.column(rule.name).is_none() && rule.name != "total_cost" => {
                    without_place.push(rule.name.to_owned());
                }
                None => {}
            }
        }
        let mut enriched = enriched_columns(target, wanted.experiments)?;
        if !enriched.iter().any(|column| column.form.is_metadata()) {
            return Err(missing(
                target,
                "metadata_names",
                "holds the metadata (together with metadata_values, or in a metadata column)",
            ));
        }
        let has = |form| enriched.iter().any(|column| column.form == form);
        let tags_in_metadata = !has(Enriched::Tags);
        if wanted.experiments {
            require_text(target, "span_id")?;
            let without = EXPERIMENT.iter().filter(|(_, form)| !has(*form));
            without_place.extend(without.map(|(name, _)| (*name).to_owned()));
        }
        let scalars = OF_TRACE.into_iter().filter(|(_, form)| form.is_flag());
        for (name, column) in texts().chain(scalars) {
            if !has(column) {
                without_place.push(name.to_owned());
            }
        }
        if !wanted.trace_metadata && !tags_in_metadata {
            pass_metadata_through(&mut enriched, &mut pass_through, source, table)?;
        }
        for column in &enriched {
            // With --no-trace-metadata, only tags reach the metadata.
            let taken = match column.form.is_metadata() && !wanted.trace_metadata {
                true => Some("tags"),
                false => column.form.trace_column(),
            };
            require(traces, taken.as_slice(), "events copy from their trace")?;
        }
        let helpers = helpers(source, &enriched, table)?;
        let position = |name| {
            pass_through
                .iter()
                .position(|column: &Selected| column.name == name)
        };
        let required =
            |name| position(name).ok_or_else(|| missing(target, name, "every event needs"));
        let key_columns = (required("project_id")?, required("trace_id")?);
        let span_column = required("span_id")?;
        let filled = |name: &str| {
            pass_through.iter().any(|column| column.name == name)
                || enriched.iter().any(|column| column.name == name)
        };
        let left_to_default = target
            .columns
            .iter()
            .filter(|column| column.is_insertable() && !filled(&column.name))
            .map(|column| column.name.clone())
            .collect();
        Ok(Self {
            source,
            pass_through,
            helpers,
            enriched,
            key_columns,
            span_column,
            trace_metadata: wanted.trace_metadata,
            tags_in_metadata,
            left_to_default,
            without_place,
        })
    }

    /// The SELECT items: pass-through columns, then helpers.
    pub(crate) fn source_items(&self) -> Vec<SelectItem> {
        let helpers = self
            .helpers
            .iter()
            .map(|helper| helper.selected(self.source));
        let columns = self.pass_through.iter().cloned().chain(helpers);
        columns
            .map(|column| SelectItem {
                sql: format!(
                    "CAST({}, {}) AS {}",
                    column.expression,
                    quoting::string(&column.data_type),
                    quoting::identifier(&column.name)
                ),
                reads: column.reads,
            })
            .collect()
    }

    /// Name and type of each result column.
    pub fn result_columns(&self) -> Vec<(String, DataType)> {
        let helpers = self
            .helpers
            .iter()
            .map(|helper| helper.selected(self.source));
        let columns = self.pass_through.iter().cloned().chain(helpers);
        columns
            .filter_map(|column| Some((column.name, DataType::parse(&column.data_type).ok()?)))
            .collect()
    }

    /// The SELECT list: pass-through columns, then helpers.
    pub fn select_list(&self) -> String {
        SelectItem::list(&self.source_items())
    }

    /// The column list of an INSERT.
    pub fn insert_columns(&self) -> String {
        let pass_through = self.pass_through.iter().map(|column| column.name.as_str());
        let enriched = self.enriched.iter().map(|column| column.name.as_str());
        let names: Vec<String> = pass_through
            .chain(enriched)
            .map(quoting::identifier)
            .collect();
        names.join(", ")
    }

    /// The SQL of all event columns, in the order of [`Mapping::insert_columns`]. `of_trace` gives it for
    /// an attribute of the row's trace: empty, or 0, where there is no trace. Columns of experiments
    /// get their type's default.
    pub(crate) fn expressions(&self, of_trace: impl Fn(TraceAttribute) -> String) -> Vec<String> {
        let columns = EventColumns {
            source: self.source,
            pass_through: &self.pass_through,
            enriched: &self.enriched,
            trace_metadata: self.trace_metadata,
            tags_in_metadata: self.tags_in_metadata,
        };
        columns.expressions(of_trace)
    }

    /// The columns that SQL cannot make byte for byte as enriching does: JSON replaces invalid UTF-8
    /// there, and keeps the first of two equal names.
    pub(crate) fn not_as_sql(&self) -> Vec<&str> {
        let columns = self.enriched.iter().filter(|column| {
            matches!(column.form, Enriched::MetadataJson | Enriched::MetadataText)
        });
        columns.map(|column| column.name.as_str()).collect()
    }

    /// The source columns that [`Mapping::expressions`] reads, besides those of the trace.
    pub(crate) fn source_columns(&self) -> Vec<&'static str> {
        let items = self.source_items().into_iter();
        let mut columns: Vec<_> = items.flat_map(|item| item.reads).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// The same mapping with only what identifies a row and its version: enough to decide whether to
    /// write it.
    pub(crate) fn of_keys(&self) -> Self {
        let keys = [
            "project_id",
            "trace_id",
            "span_id",
            "start_time",
            "event_ts",
            "type",
        ];
        let selected = |name: &&str| {
            let mut columns = self.pass_through.iter();
            columns.find(|column| column.name == *name).cloned()
        };
        Self {
            key_columns: (0, 1),
            span_column: 2,
            pass_through: keys.iter().filter_map(selected).collect(),
            helpers: vec![Helper::Day],
            enriched: Vec::new(),
            ..self.clone()
        }
    }

    /// The same, also with whether the row is a deletion.
    pub(crate) fn of_versions(&self) -> Self {
        Self {
            helpers: vec![Helper::Day, Helper::IsDeleted],
            ..self.of_keys()
        }
    }

    /// The SQL of a pass-through column, as it is sent.
    pub(crate) fn sent(&self, name: &str) -> Option<String> {
        let column = self.pass_through.get(self.column_index(name)?)?;
        Some(cast(&column.expression, &column.data_type))
    }

    /// Index of a pass-through column in the SELECT's result.
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.pass_through
            .iter()
            .position(|column| column.name == name)
    }

    /// Index of a helper column in the SELECT's result.
    pub fn helper_index(&self, helper: Helper) -> Option<usize> {
        let index = self.helpers.iter().position(|&other| other == helper)?;
        Some(self.pass_through.len() + index)
    }

    /// Whether events include experiment columns.
    pub fn has_experiments(&self) -> bool {
        self.enriched
            .iter()
            .any(|column| column.form.is_experiment())
    }

    /// Columns of `traces` that events depend on, besides its keys.
    pub fn trace_columns(&self) -> Vec<&'static str> {
        let mut columns: Vec<_> = self
            .enriched
            .iter()
            .filter(|column| !column.form.is_metadata())
            .filter_map(|column| column.form.trace_column())
            .collect();
        if self.tags_in_metadata {
            columns.push("tags");
        }
        if self.trace_metadata {
            columns.push("metadata");
        }
        columns
    }
}

fn insertable<'a>(table: &'a TableInfo, name: &str) -> Option<&'a TableColumn> {
    table.column(name).filter(|column| column.is_insertable())
}

fn missing(table: &TableInfo, column: &str, needed_for: &str) -> MappingError {
    MappingError::MissingColumn {
        table: format!("{}.{}", table.database, table.name),
        column: column.to_owned(),
        needed_for: needed_for.to_owned(),
    }
}

fn require(table: &TableInfo, columns: &[&str], needed_for: &str) -> Result<(), MappingError> {
    match columns.iter().find(|column| table.column(column).is_none()) {
        Some(column) => Err(missing(table, column, needed_for)),
        None => Ok(()),
    }
}

/// Requires a non-null text column, since it is decoded here.
fn require_text(table: &TableInfo, name: &str) -> Result<(), MappingError> {
    let Some(column) = table.column(name) else {
        return Ok(());
    };
    if parse_type(table, column)?.without_low_cardinality() == DataType::string() {
        return Ok(());
    }
    Err(unsupported(table, column))
}

fn parse_type(table: &TableInfo, column: &TableColumn) -> Result<DataType, MappingError> {
    DataType::parse(&column.data_type).map_err(|error| column_type(table, column, error))
}

fn column_type(table: &TableInfo, column: &TableColumn, error: TypeError) -> MappingError {
    MappingError::ColumnType {
        table: format!("{}.{}", table.database, table.name),
        column: column.name.clone(),
        error,
    }
}

fn unsupported(table: &TableInfo, column: &TableColumn) -> MappingError {
    let error = TypeError::Unsupported(column.data_type.clone());
    column_type(table, column, error)
}

/// The selected column for a rule. `None` if the source table is too old to have the column.
fn apply(
    rule: &EventColumn,
    column: &TableColumn,
    source: Source,
    table: &TableInfo,
    target: &TableInfo,
) -> Result<Option<Selected>, MappingError> {
    let sent = parse_type(target, column)?.without_low_cardinality();
    sent.layout()
        .map_err(|error| column_type(target, column, error))?;
    let needed_for = format!("event column {} is computed from", rule.name);
    let expression = match rule.from(source) {
        From::Default => return Ok(None),
        from @ (From::Column(name) | From::ColumnOr(name, _)) => {
            let Some(found) = table.column(name) else {
                return match rule.came_later {
                    true => Ok(None),
                    false => Err(missing(table, name, &needed_for)),
                };
            };
            let value = source.column(name);
            if parse_type(table, found)?.is_nullable() && !sent.is_nullable() {
                let instead = match from {
                    From::ColumnOr(_, literal) => (*literal).to_owned(),
                    _ => format!(
                        "defaultValueOfTypeName({})",
                        quoting::string(sent.to_string())
                    ),
                };
                format!("ifNull({value}, {instead})")
            } else {
                value
            }
        }
        From::Expression(template, columns) => {
            require(table, columns, &needed_for)?;
            source.expression(template)
        }
    };
    Ok(Some(Selected {
        name: rule.name.to_owned(),
        data_type: sent.to_string(),
        expression,
        reads: rule.from(source).reads(),
    }))
}

fn enriched_columns(
    target: &TableInfo,
    with_experiments: bool,
) -> Result<Vec<EnrichedColumn>, MappingError> {
    let mut enriched = Vec::new();
    let experiments: &[_] = match with_experiments {
        true => &EXPERIMENT,
        false => &[],
    };
    let of_trace = texts().chain(OF_TRACE);
    for (name, form) in of_trace.chain(experiments.iter().copied()) {
        let Some(column) = insertable(target, name) else {
            continue;
        };
        let data_type = parse_type(target, column)?.without_low_cardinality();
        match fitting(form, &data_type) {
            Some(form) => enriched.push(EnrichedColumn {
                name: name.to_owned(),
                form,
                sent_type: form.sent_type(&data_type),
            }),
            None => return Err(unsupported(target, column)),
        }
    }
    let has = |form| {
        enriched
            .iter()
            .any(|column: &EnrichedColumn| column.form == form)
    };
    if with_experiments && !has(Enriched::Experiment(Experiment::Id)) {
        return Err(missing(target, "experiment_id", "--experiments fills"));
    }
    for (names, values) in PAIRS {
        let has = |name: &str| enriched.iter().any(|column| column.name == name);
        let needed_for = |other| format!("{other} requires");
        match (has(names), has(values)) {
            (true, false) => return Err(missing(target, values, &needed_for(names))),
            (false, true) => return Err(missing(target, names, &needed_for(values))),
            _ => {}
        }
    }
    Ok(enriched)
}

/// Columns that are only useful together.
const PAIRS: [(&str, &str); 3] = [
    ("metadata_names", "metadata_values"),
    ("experiment_metadata_names", "experiment_metadata_values"),
    (
        "experiment_item_metadata_names",
        "experiment_item_metadata_values",
    ),
];

/// How to send the column to a target of that type, if possible.
fn fitting(form: Enriched, data_type: &DataType) -> Option<Enriched> {
    let is_scalar = |names: &[&str]| match data_type {
        DataType::Scalar { name, .. } => names.contains(&name.as_str()),
        _ => false,
    };
    let fits = match form {
        _ if form.sent_type(data_type) == "Array(String)" => {
            matches!(data_type, DataType::Array(element) if element.is_string())
        }
        Enriched::Experiment(Experiment::ItemVersion) => matches!(
            data_type,
            DataType::Nullable(inner)
                if matches!(&**inner, DataType::Scalar { name, .. } if name == "DateTime64")
        ),
        Enriched::Public | Enriched::Bookmarked => is_scalar(&["Bool", "UInt8", "Int8"]),
        Enriched::MetadataMap if is_scalar(&["JSON"]) => return Some(Enriched::MetadataJson),
        Enriched::MetadataMap if is_scalar(&["String"]) => return Some(Enriched::MetadataText),
        Enriched::MetadataMap => matches!(
            data_type,
            DataType::Map(key, value) if key.is_string() && value.is_string()
        ),
        _ => data_type.is_string(),
    };
    fits.then_some(form)
}

/// Without trace metadata, passes the row's own metadata through unchanged.
fn pass_metadata_through(
    enriched: &mut Vec<EnrichedColumn>,
    pass_through: &mut Vec<Selected>,
    source: Source,
    table: &TableInfo,
) -> Result<(), MappingError> {
    for (column, function, data_type) in [
        (
            Enriched::MetadataNames,
            "mapKeys({c}.metadata)",
            "Array(String)",
        ),
        (
            Enriched::MetadataValues,
            "mapValues({c}.metadata)",
            "Array(String)",
        ),
        (Enriched::MetadataMap, "{c}.metadata", "Map(String, String)"),
    ] {
        let Some(index) = enriched.iter().position(|other| other.form == column) else {
            continue;
        };
        require(
            table,
            &["metadata"],
            "the events' metadata is computed from",
        )?;
        let name = enriched.remove(index).name;
        pass_through.push(Selected {
            name,
            data_type: data_type.to_owned(),
            expression: source.expression(function),
            reads: vec!["metadata"],
        });
    }
    Ok(())
}

fn helpers(
    source: Source,
    enriched: &[EnrichedColumn],
    table: &TableInfo,
) -> Result<Vec<Helper>, MappingError> {
    let mut helpers = vec![Helper::Day];
    if source == Source::Traces {
        helpers.push(Helper::EventTs);
    }
    if enriched
        .iter()
        .any(|column| column.form == Enriched::Version)
    {
        require(table, &["version"], "event column version is computed from")?;
        helpers.push(Helper::Version);
    }
    if enriched
        .iter()
        .any(|column| column.form == Enriched::Bookmarked)
    {
        helpers.push(Helper::IsRoot);
    }
    if enriched.iter().any(|column| column.form.is_metadata()) {
        require(
            table,
            &["metadata"],
            "the events' metadata is computed from",
        )?;
        helpers.extend([Helper::MetadataNames, Helper::MetadataValues]);
    }
    Ok(helpers)
}
