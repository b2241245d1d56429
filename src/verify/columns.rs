//! Compares every event column: the SQL for its expected value and for the value in the event.
//!
//! Columns that come from the observation alone use the same expressions as a run (`mapping/`).
//! Columns that depend on the trace are defined here a second time, from the tables' specification
//! and independently of `enrich/`: code cannot prove itself.

use std::borrow::Cow;

use super::observation_columns::OwnColumn;
use super::origin::{EVENT, Item, Origin, event_column, metadata_of, table_of};
use crate::clickhouse::TableInfo;
use crate::inspect::statements::TRACE;
use crate::mapping::{Enriched, Mapping, TRACE_TEXTS, VERSION};
use crate::native::DataType;

/// How statements represent texts that depend on the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texts {
    /// As hashes, so that a trace takes little memory however long its metadata is. The rules still
    /// work: they only ask whether texts exist or are equal.
    Hashed,
    /// As plain text, for the few rows shown.
    Plain,
}

impl Texts {
    fn text(self, expression: &str) -> String {
        match self {
            Texts::Hashed => format!("cityHash64({expression})"),
            Texts::Plain => expression.to_owned(),
        }
    }

    /// An array compared element by element.
    fn elements(self, expression: &str) -> String {
        match self {
            Texts::Hashed => format!("arrayMap(one -> cityHash64(one), {expression})"),
            Texts::Plain => expression.to_owned(),
        }
    }
}

/// A column that depends on the trace.
#[derive(Debug, Clone)]
struct TraceColumn {
    name: String,
    form: Enriched,
    /// Whether the target's column is nullable. An event's value never is null.
    nullable: bool,
}

/// The columns to compare, and those that cannot be compared.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    own: Vec<OwnColumn>,
    of_trace: Vec<TraceColumn>,
    trace_metadata: bool,
    tags_in_metadata: bool,
    has_source: bool,
    /// Columns that are filled but cannot be compared, with their types.
    pub not_compared: Vec<String>,
}

/// The value of a column that depends on the trace.
struct Value {
    /// What its hash covers. None can be null.
    arguments: Vec<String>,
    /// The text to show, for plain texts.
    text: String,
}

impl Value {
    fn new(expression: String, text: String) -> Self {
        Self {
            arguments: vec![expression],
            text,
        }
    }
}

const EMPTY_LIST: &str = "CAST([], 'Array(String)')";

impl Columns {
    /// Selects the columns to compare for a source and target.
    pub(super) fn new(mapping: &Mapping, root_spans: Option<&Mapping>, target: &TableInfo) -> Self {
        let type_of = |name: &str| target.column(name).map(|column| column.data_type.as_str());
        let own = mapping.pass_through.iter().filter_map(|selected| {
            Some(OwnColumn {
                name: selected.name.clone(),
                data_type: DataType::parse(&selected.data_type).ok()?,
                expression: selected.expression.clone(),
                root_span: root_spans.and_then(|mapping| {
                    let mut columns = mapping.pass_through.iter();
                    let column = columns.find(|column| column.name == selected.name)?;
                    Some(column.expression.clone())
                }),
            })
        });
        let is_json = |form| matches!(form, Enriched::MetadataJson | Enriched::MetadataText);
        let enriched = || mapping.enriched.iter();
        // Experiment columns are compared separately.
        let is_apart = |form: Enriched| is_json(form) || form.is_experiment();
        let of_trace = enriched().filter(|column| !is_apart(column.form));
        let of_trace = of_trace.map(|column| TraceColumn {
            name: column.name.clone(),
            form: column.form,
            nullable: type_of(&column.name)
                .and_then(|name| DataType::parse(name).ok())
                .is_some_and(|data_type| data_type.is_nullable()),
        });
        let not_compared = enriched().filter(|column| is_json(column.form));
        let not_compared = not_compared.map(|column| match type_of(&column.name) {
            Some(data_type) => format!("{} ({data_type})", column.name),
            None => column.name.clone(),
        });
        let left_aside = target.column("experiment_id").is_some() && !mapping.has_experiments();
        let of_experiments = left_aside.then(|| "experiment_*".to_owned());
        Self {
            own: own.collect(),
            of_trace: of_trace.collect(),
            trace_metadata: mapping.trace_metadata,
            tags_in_metadata: mapping.tags_in_metadata,
            has_source: mapping
                .pass_through
                .iter()
                .any(|column| column.name == "source"),
            not_compared: not_compared.chain(of_experiments).collect(),
        }
    }

    /// Column names, in the order of [`Columns::own_details`] and [`Columns::trace_details`].
    pub(super) fn names(&self) -> Vec<&str> {
        let own = self.own.iter().map(|column| column.name.as_str());
        let of_trace = self.of_trace.iter().map(|column| column.name.as_str());
        own.chain(of_trace).collect()
    }

    /// Whether anything other than a backfill wrote the event, by its column `source`. `0` if there
    /// is no such column.
    pub(super) fn by_others(&self) -> String {
        match self.has_source {
            true => format!(
                "toUInt8({EVENT}.source NOT IN ('otel-backfill', 'ingestion-api-backfill'))"
            ),
            false => "toUInt8(0)".to_owned(),
        }
    }

    /// One hash over everything that comes from the observation alone.
    pub(super) fn own_hash(&self, origin: Origin) -> String {
        let arguments = self.own.iter();
        let arguments = arguments.map(|column| column.hashed(origin));
        format!("cityHash64({})", arguments.collect::<Vec<_>>().join(", "))
    }

    /// Each such column's hash and text.
    pub(super) fn own_details(&self, origin: Origin) -> (Vec<String>, Vec<String>) {
        let details = self.own.iter().map(|column| {
            let value = column.of(origin);
            let hash = format!("cityHash64({})", column.hashed(origin));
            (hash, format!("toString({value})"))
        });
        details.unzip()
    }

    /// SELECT items over observations or traces, as `(name, expression)`, that
    /// [`Columns::trace_hash`] and [`Columns::trace_details`] need of the row itself. A root span's
    /// own metadata is its trace's.
    pub(super) fn own_items(&self, origin: Origin, texts: Texts) -> Vec<Item> {
        let table = table_of(origin);
        let mut items = Vec::new();
        if self.has(Enriched::Version) {
            let version = format!("CAST({table}.version, 'Nullable(String)')");
            items.push(("own_has_version".into(), format!("isNotNull({version})")));
            items.push((
                "own_version".into(),
                texts.text(&format!("ifNull({version}, '')")),
            ));
        }
        if self.has(Enriched::Bookmarked) {
            let has_no_parent = match origin {
                Origin::Trace => "1".to_owned(),
                _ => format!(
                    "ifNull(CAST({table}.parent_observation_id, 'Nullable(String)'), '') = ''"
                ),
            };
            items.push(("own_has_no_parent".into(), has_no_parent));
        }
        if self.has_metadata() {
            let (names, values) = metadata_of(table);
            items.push(("own_names".into(), texts.elements(&names)));
            items.push(("own_values".into(), texts.elements(&values)));
        }
        items
    }

    /// The items they need of the trace.
    pub(super) fn items_of_trace(&self, texts: Texts) -> Vec<Item> {
        let nullable = |name: &str| format!("ifNull(CAST(t.{name}, 'Nullable(String)'), '')");
        let text = |place: usize| {
            let expression = texts.text(&nullable(TRACE_TEXTS[place].column));
            (Cow::from(item_of(place)), expression)
        };
        let tags = "CAST(t.tags, 'Array(String)')";
        let mut items = Vec::new();
        for column in &self.of_trace {
            match column.form {
                Enriched::Version => items.push(text(VERSION)),
                Enriched::Text(place) => items.push(text(place)),
                Enriched::Tags => items.push(("trace_tags".into(), texts.text(tags))),
                Enriched::Public => {
                    items.push(("trace_public".into(), "CAST(t.public, 'UInt8')".to_owned()))
                }
                Enriched::Bookmarked => {
                    items.push((
                        "trace_bookmarked".into(),
                        "CAST(t.bookmarked, 'UInt8')".to_owned(),
                    ));
                }
                // Compared separately.
                Enriched::Experiment(_) => {}
                Enriched::MetadataNames
                | Enriched::MetadataValues
                | Enriched::MetadataMap
                | Enriched::MetadataJson
                | Enriched::MetadataText => {}
            }
        }
        if self.has_metadata() && self.trace_metadata {
            let (names, values) = metadata_of(TRACE);
            items.push(("trace_names".into(), texts.elements(&names)));
            items.push(("trace_values".into(), texts.elements(&values)));
        }
        if self.has_metadata() && self.tags_in_metadata {
            items.push(("trace_has_tags".into(), format!("notEmpty({tags})")));
            items.push((
                "trace_tags_as_json".into(),
                texts.text(&format!("toJSONString({tags})")),
            ));
        }
        items
    }

    /// One hash over everything that depends on the trace, bound to the row by `keys`. For expected
    /// rows it refers to the items.
    pub(super) fn trace_hash(&self, origin: Origin, keys: &str) -> String {
        let values = self.of_trace.iter();
        let arguments =
            values.flat_map(|column| self.value(origin, column, Texts::Hashed).arguments);
        let all: Vec<String> = std::iter::once(keys.to_owned()).chain(arguments).collect();
        format!("cityHash64({})", all.join(", "))
    }

    /// Each such column's hash and text.
    pub(super) fn trace_details(&self, origin: Origin) -> (Vec<String>, Vec<String>) {
        let values = self.of_trace.iter();
        let details = values.map(|column| {
            let value = self.value(origin, column, Texts::Plain);
            let hash = format!("cityHash64({})", value.arguments.join(", "));
            (hash, value.text)
        });
        details.unzip()
    }

    fn has(&self, form: Enriched) -> bool {
        self.of_trace.iter().any(|column| column.form == form)
    }

    fn has_metadata(&self) -> bool {
        self.has(Enriched::MetadataNames)
            || self.has(Enriched::MetadataValues)
            || self.has(Enriched::MetadataMap)
    }

    fn value(&self, origin: Origin, column: &TraceColumn, texts: Texts) -> Value {
        match origin {
            Origin::Observation | Origin::Trace => self.expected(column.form, texts),
            Origin::Event => column.actual(texts),
        }
    }

    /// The expected value of a column, by the specification.
    fn expected(&self, form: Enriched, texts: Texts) -> Value {
        // Without a trace, the join yields zeros and empty arrays.
        let of_trace = |name: &str, otherwise: &str| {
            format!("if(has_trace, {name}, {})", texts.text(otherwise))
        };
        let text = |expression: String| Value::new(expression.clone(), expression);
        let flag = |expression: String| {
            let shown = as_flag(&expression);
            Value::new(expression, shown)
        };
        let list = |expression: String| {
            let shown = format!("toString({expression})");
            Value::new(expression, shown)
        };
        match form {
            Enriched::Version => text(format!(
                "if(own_has_version, own_version, {})",
                of_trace(&item_of(VERSION), "''")
            )),
            Enriched::Text(place) => text(of_trace(&item_of(place), "''")),
            Enriched::Tags => list(of_trace("trace_tags", EMPTY_LIST)),
            Enriched::Public => flag("toUInt8(trace_public)".to_owned()),
            Enriched::Bookmarked => {
                flag("toUInt8(own_has_no_parent AND trace_bookmarked)".to_owned())
            }
            // Compared separately.
            Enriched::Experiment(_) => text("''".to_owned()),
            Enriched::MetadataNames => list(self.merged(texts).0),
            Enriched::MetadataValues => list(self.merged(texts).1),
            Enriched::MetadataMap | Enriched::MetadataJson | Enriched::MetadataText => {
                let (names, values) = self.merged(texts);
                Value {
                    text: format!("toString(CAST(({names}, {values}), 'Map(String, String)'))"),
                    arguments: vec![names, values],
                }
            }
        }
    }

    /// An event's metadata names and values: the observation's pairs, then the trace's pairs with
    /// other keys, then the tags if they have no column.
    fn merged(&self, texts: Texts) -> (String, String) {
        let (mut names, mut values) = ("own_names".to_owned(), "own_values".to_owned());
        if self.trace_metadata {
            names = format!(
                "arrayConcat({names}, arrayFilter(one -> NOT has(own_names, one), \
                 trace_names))"
            );
            values = format!(
                "arrayConcat({values}, arrayFilter((other, one) -> NOT has(own_names, one), \
                 trace_values, trace_names))"
            );
        }
        if self.tags_in_metadata {
            let key = texts.text("'trace_tags'");
            let adds_tags = format!("(trace_has_tags AND NOT has({names}, {key}))");
            values =
                format!("if({adds_tags}, arrayPushBack({values}, trace_tags_as_json), {values})");
            names = format!("if({adds_tags}, arrayPushBack({names}, {key}), {names})");
        }
        (names, values)
    }
}

impl TraceColumn {
    /// The value in the event.
    fn actual(&self, texts: Texts) -> Value {
        let column = event_column(&self.name);
        let strings = format!("CAST({column}, 'Array(String)')");
        match self.form {
            Enriched::Version | Enriched::Text(_) | Enriched::Experiment(_) => {
                let value = self.actual_text(&column, texts);
                Value::new(value.clone(), value)
            }
            Enriched::Tags => Value::new(texts.text(&strings), format!("toString({strings})")),
            Enriched::Public | Enriched::Bookmarked => {
                let value = format!("CAST({column}, 'UInt8')");
                let shown = as_flag(&value);
                Value::new(value, shown)
            }
            Enriched::MetadataNames | Enriched::MetadataValues => {
                Value::new(texts.elements(&strings), format!("toString({strings})"))
            }
            Enriched::MetadataMap | Enriched::MetadataJson | Enriched::MetadataText => {
                let map = format!("CAST({column}, 'Map(String, String)')");
                Value {
                    arguments: vec![
                        texts.elements(&format!("mapKeys({map})")),
                        texts.elements(&format!("mapValues({map})")),
                    ],
                    text: format!("toString({map})"),
                }
            }
        }
    }

    /// Null is neither a written value nor a text.
    fn actual_text(&self, column: &str, texts: Texts) -> String {
        if !self.nullable {
            return texts.text(&format!("CAST({column}, 'String')"));
        }
        let text = format!("ifNull(CAST({column}, 'Nullable(String)'), '')");
        let null = match texts {
            Texts::Hashed => "toUInt64(0)",
            Texts::Plain => "'NULL'",
        };
        format!("if(isNull({column}), {null}, {})", texts.text(&text))
    }
}

/// The item name of a trace text.
fn item_of(place: usize) -> String {
    format!("trace_{}", TRACE_TEXTS[place].column)
}

fn as_flag(expression: &str) -> String {
    format!("if({expression} = 0, 'false', 'true')")
}
