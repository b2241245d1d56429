//! What each event column is made of. This is the only place that knows it.
//!
//! The rules meet what source and target really have (`system.columns`), and
//! the result is a [`Mapping`]: the SELECT list that yields every pass-through
//! column under its target name and type, the helper columns that enriching
//! needs, and the columns that enriching appends.

use crate::clickhouse::{TableColumn, TableInfo, sql};
use crate::native::{DataType, TypeError};

/// How the observations table is called inside the SELECT.
pub const OBSERVATION: &str = "o";

/// What a pass-through column is made of.
enum Form {
    /// A column of the observation; null becomes the type's default where the
    /// target cannot be null.
    Column(&'static str),
    /// As `Column`, with a literal in place of null.
    ColumnOr(&'static str, &'static str),
    /// An expression over columns of the observation; `{c}` stands for the table.
    Expression(&'static str, &'static [&'static str]),
}

struct Rule {
    target: &'static str,
    form: Form,
    /// Whether old deployments lack the source column; then the target column
    /// is left to its default.
    came_later: bool,
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

/// Columns that come from the observation alone.
const PASS_THROUGH: &[Rule] = &[
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
    expression(
        "source",
        "if(mapContains({c}.metadata, 'resourceAttributes'), \
         'otel-backfill', 'ingestion-api-backfill')",
        &["metadata"],
    ),
    same("created_at"),
    same("updated_at"),
    same("event_ts"),
    // A deleted observation is not written, so what is written is not deleted.
    expression("is_deleted", "0", &[]),
];

/// Event columns without which a row could not be told from another, or read.
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

/// Event columns by which an observation's trace is found.
const KEY_COLUMNS: [&str; 2] = ["project_id", "trace_id"];

/// Columns that say which row of `traces` counts.
const REQUIRED_TRACE: &[&str] = &["id", "project_id", "timestamp", "event_ts", "is_deleted"];

/// What the trace has a part in, and how it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enriched {
    /// The observation's version, else the trace's.
    Version,
    /// `traces.release`
    Release,
    /// `traces.user_id`
    UserId,
    /// `traces.session_id`
    SessionId,
    /// `traces.name`
    TraceName,
    /// `traces.tags`
    Tags,
    /// `traces.public`
    Public,
    /// `traces.bookmarked`, only where the observation has no parent.
    Bookmarked,
    /// Keys of the observation's metadata, then the trace's that it lacks.
    MetadataNames,
    /// The values to those keys.
    MetadataValues,
    /// Both, as a map.
    MetadataMap,
    /// Both, as a JSON object in a JSON column.
    MetadataJson,
    /// Both, as the text of a JSON object in a string column.
    MetadataText,
}

impl Enriched {
    /// The type in which the column is sent; the server casts it to the target's.
    /// JSON is sent as it is: cast from a string, texts that look like times change.
    fn sent_type(self, target: &DataType) -> String {
        let fixed = match self {
            Enriched::Tags | Enriched::MetadataNames | Enriched::MetadataValues => "Array(String)",
            Enriched::Public | Enriched::Bookmarked => "Bool",
            Enriched::MetadataMap => "Map(String, String)",
            Enriched::MetadataJson => return target.to_string(),
            _ => "String",
        };
        fixed.to_owned()
    }

    /// The column of `traces` it takes something from.
    fn trace_column(self) -> &'static str {
        match self {
            Enriched::Version => "version",
            Enriched::Release => "release",
            Enriched::UserId => "user_id",
            Enriched::SessionId => "session_id",
            Enriched::TraceName => "name",
            Enriched::Tags => "tags",
            Enriched::Public => "public",
            Enriched::Bookmarked => "bookmarked",
            _ => "metadata",
        }
    }

    fn is_metadata(self) -> bool {
        self.trace_column() == "metadata"
    }
}

/// Columns of the observation that enriching reads and does not pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// `Date`: the day on which to look for the trace first.
    Day,
    /// `Nullable(String)`: the observation's own version.
    Version,
    /// `UInt8`: 1 where the observation has no parent.
    IsRoot,
    /// `Array(String)`: keys of the observation's metadata.
    MetadataNames,
    /// `Array(String)`: values of the observation's metadata.
    MetadataValues,
}

impl Helper {
    fn selected(self) -> Selected {
        let (name, data_type, expression) = match self {
            Helper::Day => ("helper_day", "Date", "toDate({c}.start_time)"),
            Helper::Version => ("helper_version", "Nullable(String)", "{c}.version"),
            Helper::IsRoot => (
                "helper_is_root",
                "UInt8",
                "ifNull({c}.parent_observation_id, '') = ''",
            ),
            Helper::MetadataNames => (
                "helper_metadata_names",
                "Array(String)",
                "mapKeys({c}.metadata)",
            ),
            Helper::MetadataValues => (
                "helper_metadata_values",
                "Array(String)",
                "mapValues({c}.metadata)",
            ),
        };
        Selected {
            name: name.to_owned(),
            data_type: data_type.to_owned(),
            expression: of_observation(expression),
        }
    }
}

/// One column of the SELECT list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Its name in the result: for a pass-through column, the target's.
    pub name: String,
    /// Its type in the result.
    pub data_type: String,
    /// What it is made of.
    pub expression: String,
}

/// A column that enriching appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrichedColumn {
    /// Its name in the target.
    pub name: String,
    /// What it is.
    pub form: Enriched,
    /// The type in which it is sent.
    pub sent_type: String,
}

/// How observations become events, for one source and one target.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Pass-through columns, in the order of the SELECT list.
    pub pass_through: Vec<Selected>,
    /// Helper columns, which follow them.
    pub helpers: Vec<Helper>,
    /// Columns that enriching appends.
    pub enriched: Vec<EnrichedColumn>,
    /// Where the key columns are among the pass-through columns: project, trace.
    pub key_columns: (usize, usize),
    /// Whether the traces' metadata is part of the result.
    pub trace_metadata: bool,
    /// Whether tags go into the metadata, because the target has no column for them.
    pub tags_in_metadata: bool,
    /// Target columns that are left to their defaults.
    pub left_to_default: Vec<String>,
    /// What the target has no place for.
    pub without_place: Vec<String>,
}

/// Why no mapping can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// A column the job needs is missing.
    #[error("table {table} has no column {column}, which {needed_for}")]
    MissingColumn {
        /// Table that lacks it.
        table: String,
        /// Its name.
        column: String,
        /// What it is needed for.
        needed_for: String,
    },
    /// A column of the target has a type that cannot be sent.
    #[error("column {column} of table {table}: {error}")]
    ColumnType {
        /// Table that has it.
        table: String,
        /// Its name.
        column: String,
        /// What is wrong with its type.
        error: TypeError,
    },
}

impl Mapping {
    /// Works out how `observations` and `traces` become rows of `target`.
    ///
    /// # Errors
    /// [`MappingError`] where a needed column is missing or has a type that
    /// cannot be sent.
    pub fn new(
        observations: &TableInfo,
        traces: &TableInfo,
        target: &TableInfo,
        with_trace_metadata: bool,
    ) -> Result<Self, MappingError> {
        require(target, REQUIRED_TARGET, "every event has")?;
        if let Some(column) = REQUIRED_TARGET
            .iter()
            .find(|name| insertable(target, name).is_none())
        {
            return Err(missing(
                target,
                column,
                "every event has, and that can be written",
            ));
        }
        for column in KEY_COLUMNS {
            require_text(target, column)?;
        }
        require(
            traces,
            REQUIRED_TRACE,
            "tells which version of a trace counts",
        )?;
        let mut pass_through = Vec::new();
        let mut without_place = Vec::new();
        for rule in PASS_THROUGH {
            match insertable(target, rule.target) {
                Some(column) => pass_through.extend(apply(rule, column, observations, target)?),
                // An alias computes itself: it is neither filled nor missed.
                None if target.column(rule.target).is_none() && rule.target != "total_cost" => {
                    without_place.push(rule.target.to_owned());
                }
                None => {}
            }
        }
        let mut enriched = enriched_columns(target)?;
        if !enriched.iter().any(|column| column.form.is_metadata()) {
            return Err(missing(
                target,
                "metadata_names",
                "takes the metadata (with metadata_values; or a column metadata)",
            ));
        }
        let has = |wanted| enriched.iter().any(|column| column.form == wanted);
        let tags_in_metadata = !has(Enriched::Tags);
        for (name, column) in [
            ("release", Enriched::Release),
            ("user_id", Enriched::UserId),
            ("session_id", Enriched::SessionId),
            ("trace_name", Enriched::TraceName),
            ("public", Enriched::Public),
            ("bookmarked", Enriched::Bookmarked),
            ("version", Enriched::Version),
        ] {
            if !has(column) {
                without_place.push(name.to_owned());
            }
        }
        if !with_trace_metadata && !tags_in_metadata {
            pass_metadata_through(&mut enriched, &mut pass_through, observations)?;
        }
        for column in &enriched {
            // With --no-trace-metadata only tags reach the metadata.
            let source = match column.form.is_metadata() && !with_trace_metadata {
                true => "tags",
                false => column.form.trace_column(),
            };
            require(traces, &[source], "events take from their trace")?;
        }
        let helpers = helpers(&enriched, observations)?;
        let position = |name| {
            pass_through
                .iter()
                .position(|column: &Selected| column.name == name)
        };
        let key_columns = (
            position("project_id").unwrap_or_default(),
            position("trace_id").unwrap_or_default(),
        );
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
            pass_through,
            helpers,
            enriched,
            key_columns,
            trace_metadata: with_trace_metadata,
            tags_in_metadata,
            left_to_default,
            without_place,
        })
    }

    /// The items of the SELECT list: pass-through columns, then helpers.
    pub fn select_items(&self) -> Vec<String> {
        let helpers = self.helpers.iter().map(|helper| helper.selected());
        let columns = self.pass_through.iter().cloned().chain(helpers);
        columns
            .map(|column| {
                format!(
                    "CAST({}, {}) AS {}",
                    column.expression,
                    sql::string(&column.data_type),
                    sql::identifier(&column.name)
                )
            })
            .collect()
    }

    /// Name and type of each column of the result.
    pub fn result_columns(&self) -> Vec<(String, DataType)> {
        let helpers = self.helpers.iter().map(|helper| helper.selected());
        let columns = self.pass_through.iter().cloned().chain(helpers);
        columns
            .filter_map(|column| Some((column.name, DataType::parse(&column.data_type).ok()?)))
            .collect()
    }

    /// The SELECT list: pass-through columns, then helpers.
    pub fn select_list(&self) -> String {
        self.select_items().join(", ")
    }

    /// Names of the columns of an insert, for SQL.
    pub fn insert_columns(&self) -> String {
        let pass_through = self.pass_through.iter().map(|column| column.name.as_str());
        let enriched = self.enriched.iter().map(|column| column.name.as_str());
        let names: Vec<String> = pass_through.chain(enriched).map(sql::identifier).collect();
        names.join(", ")
    }

    /// Where a helper is in the result of the SELECT.
    pub fn helper_index(&self, helper: Helper) -> Option<usize> {
        let index = self.helpers.iter().position(|&other| other == helper)?;
        Some(self.pass_through.len() + index)
    }

    /// Columns of `traces` that events take something from, besides its keys.
    pub fn trace_columns(&self) -> Vec<&'static str> {
        let mut columns: Vec<_> = self
            .enriched
            .iter()
            .filter(|column| !column.form.is_metadata())
            .map(|column| column.form.trace_column())
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

fn of_observation(template: &str) -> String {
    template.replace("{c}", OBSERVATION)
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

/// The column must be text that is never null, since it is decoded here.
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

/// The selected column for one rule, or none where the source column came
/// later than the source table was made.
fn apply(
    rule: &Rule,
    column: &TableColumn,
    observations: &TableInfo,
    target: &TableInfo,
) -> Result<Option<Selected>, MappingError> {
    let sent = parse_type(target, column)?.without_low_cardinality();
    sent.layout()
        .map_err(|error| column_type(target, column, error))?;
    let needed_for = format!("event column {} is made of", rule.target);
    let expression = match &rule.form {
        Form::Column(source) | Form::ColumnOr(source, _) => {
            let Some(found) = observations.column(source) else {
                return match rule.came_later {
                    true => Ok(None),
                    false => Err(missing(observations, source, &needed_for)),
                };
            };
            let name = format!("{OBSERVATION}.{}", sql::identifier(source));
            if parse_type(observations, found)?.is_nullable() && !sent.is_nullable() {
                let instead = match rule.form {
                    Form::ColumnOr(_, literal) => literal.to_owned(),
                    _ => format!("defaultValueOfTypeName({})", sql::string(sent.to_string())),
                };
                format!("ifNull({name}, {instead})")
            } else {
                name
            }
        }
        Form::Expression(template, columns) => {
            require(observations, columns, &needed_for)?;
            of_observation(template)
        }
    };
    Ok(Some(Selected {
        name: rule.target.to_owned(),
        data_type: sent.to_string(),
        expression,
    }))
}

fn enriched_columns(target: &TableInfo) -> Result<Vec<EnrichedColumn>, MappingError> {
    let mut enriched = Vec::new();
    for (name, form) in [
        ("version", Enriched::Version),
        ("release", Enriched::Release),
        ("user_id", Enriched::UserId),
        ("session_id", Enriched::SessionId),
        ("trace_name", Enriched::TraceName),
        ("tags", Enriched::Tags),
        ("public", Enriched::Public),
        ("bookmarked", Enriched::Bookmarked),
        ("metadata_names", Enriched::MetadataNames),
        ("metadata_values", Enriched::MetadataValues),
        ("metadata", Enriched::MetadataMap),
    ] {
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
    let has = |wanted| {
        enriched
            .iter()
            .any(|column: &EnrichedColumn| column.form == wanted)
    };
    match (has(Enriched::MetadataNames), has(Enriched::MetadataValues)) {
        (true, false) => Err(missing(
            target,
            "metadata_values",
            "metadata_names goes with",
        )),
        (false, true) => Err(missing(
            target,
            "metadata_names",
            "metadata_values goes with",
        )),
        _ => Ok(enriched),
    }
}

/// How the column is sent to a target column of that type, if it can be.
fn fitting(form: Enriched, data_type: &DataType) -> Option<Enriched> {
    let is_scalar = |names: &[&str]| match data_type {
        DataType::Scalar { name, .. } => names.contains(&name.as_str()),
        _ => false,
    };
    let fits = match form {
        Enriched::Tags | Enriched::MetadataNames | Enriched::MetadataValues => {
            matches!(data_type, DataType::Array(element) if element.is_string())
        }
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

/// Without the traces' metadata, the observation's passes through as it is.
fn pass_metadata_through(
    enriched: &mut Vec<EnrichedColumn>,
    pass_through: &mut Vec<Selected>,
    observations: &TableInfo,
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
            observations,
            &["metadata"],
            "the events' metadata is made of",
        )?;
        let name = enriched.remove(index).name;
        pass_through.push(Selected {
            name,
            data_type: data_type.to_owned(),
            expression: of_observation(function),
        });
    }
    Ok(())
}

fn helpers(
    enriched: &[EnrichedColumn],
    observations: &TableInfo,
) -> Result<Vec<Helper>, MappingError> {
    let mut helpers = vec![Helper::Day];
    if enriched
        .iter()
        .any(|column| column.form == Enriched::Version)
    {
        require(
            observations,
            &["version"],
            "event column version is made of",
        )?;
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
            observations,
            &["metadata"],
            "the events' metadata is made of",
        )?;
        helpers.extend([Helper::MetadataNames, Helper::MetadataValues]);
    }
    Ok(helpers)
}
