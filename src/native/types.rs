//! Parses ClickHouse type names just far enough to know a column's layout in a `Native` block.
//!
//! The grammar is that of `system.columns.type`: a name, for some types with arguments in
//! parentheses, e.g. `Map(LowCardinality(String), Decimal(18, 12))`.

use std::fmt;

/// A parsed type. `Display` restores ClickHouse's spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataType {
    /// A type without type arguments: `String`, `DateTime64(6, 'UTC')`, `Decimal(18, 12)`, …
    Scalar {
        /// The name before the parenthesis.
        name: String,
        /// The text in the parentheses as ClickHouse wrote it, if any.
        arguments: Option<String>,
    },
    /// `Nullable(T)`
    Nullable(Box<DataType>),
    /// `LowCardinality(T)`
    LowCardinality(Box<DataType>),
    /// `Array(T)`
    Array(Box<DataType>),
    /// `Map(K, V)`
    Map(Box<DataType>, Box<DataType>),
    /// `Tuple(T, …)` or `Tuple(name T, …)`
    Tuple(Vec<(Option<String>, DataType)>),
}

/// The layout of a column's values in a block, after its name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// A fixed number of bytes per value.
    Fixed(usize),
    /// A LEB128 length and that many bytes per value.
    String,
    /// One byte per row (1 means null), then all values.
    Nullable(Box<Layout>),
    /// One cumulative `UInt64` end offset per row, then all elements.
    Array(Box<Layout>),
    /// Like an array of (key, value): offsets, all keys, all values.
    Map(Box<Layout>, Box<Layout>),
    /// The element columns, one after another.
    Tuple(Vec<Layout>),
}

/// Why a type cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// The text is not a type name.
    #[error("'{text}' is not a ClickHouse type name (at byte {position})")]
    Syntax {
        /// The text to parse.
        text: String,
        /// Byte position where parsing stopped.
        position: usize,
    },
    /// A type whose layout this program does not know.
    #[error("type {0} is not supported")]
    Unsupported(String),
}

impl DataType {
    /// Parses a type as written in `system.columns` and `Native` blocks.
    ///
    /// # Errors
    /// [`TypeError::Syntax`] if the text is not a type.
    pub fn parse(text: &str) -> Result<Self, TypeError> {
        let mut parser = Parser { text, position: 0 };
        let parsed = parser.data_type(0)?;
        parser.skip_spaces();
        if parser.position == text.len() {
            Ok(parsed)
        } else {
            Err(parser.syntax_error())
        }
    }

    /// `String`, the type of most event columns.
    pub fn string() -> Self {
        Self::scalar("String")
    }

    fn scalar(name: &str) -> Self {
        DataType::Scalar {
            name: name.to_owned(),
            arguments: None,
        }
    }

    /// The type with every `LowCardinality(T)` replaced by `T`.
    ///
    /// Columns are read as this type, because low cardinality sends a dictionary that the walk
    /// would have to decode. On insert ClickHouse casts it back.
    #[must_use]
    pub fn without_low_cardinality(&self) -> Self {
        match self {
            DataType::Scalar { .. } => self.clone(),
            DataType::LowCardinality(inner) => inner.without_low_cardinality(),
            DataType::Nullable(inner) => {
                DataType::Nullable(Box::new(inner.without_low_cardinality()))
            }
            DataType::Array(inner) => DataType::Array(Box::new(inner.without_low_cardinality())),
            DataType::Map(key, value) => DataType::Map(
                Box::new(key.without_low_cardinality()),
                Box::new(value.without_low_cardinality()),
            ),
            DataType::Tuple(elements) => DataType::Tuple(
                elements
                    .iter()
                    .map(|(name, element)| (name.clone(), element.without_low_cardinality()))
                    .collect(),
            ),
        }
    }

    /// Whether a value of this type can be null, `LowCardinality(Nullable(T))` included.
    pub fn is_nullable(&self) -> bool {
        match self {
            DataType::Nullable(_) => true,
            DataType::LowCardinality(inner) => inner.is_nullable(),
            _ => false,
        }
    }

    /// Whether this is `String`, possibly nullable or low-cardinality.
    pub fn is_string(&self) -> bool {
        match self {
            DataType::Nullable(inner) | DataType::LowCardinality(inner) => inner.is_string(),
            DataType::Scalar { name, .. } => name == "String",
            _ => false,
        }
    }

    /// The layout of a column of this type.
    ///
    /// # Errors
    /// [`TypeError::Unsupported`] if the layout is unknown, as for `LowCardinality` (see
    /// [`DataType::without_low_cardinality`]).
    pub fn layout(&self) -> Result<Layout, TypeError> {
        Ok(match self {
            DataType::Scalar { name, arguments } => scalar_layout(name, arguments.as_deref())
                .ok_or_else(|| TypeError::Unsupported(shown(&self.to_string())))?,
            DataType::LowCardinality(_) => {
                return Err(TypeError::Unsupported(shown(&self.to_string())));
            }
            DataType::Nullable(inner) => Layout::Nullable(Box::new(inner.layout()?)),
            DataType::Array(inner) => Layout::Array(Box::new(inner.layout()?)),
            DataType::Map(key, value) => {
                Layout::Map(Box::new(key.layout()?), Box::new(value.layout()?))
            }
            DataType::Tuple(elements) if elements.is_empty() => {
                return Err(TypeError::Unsupported(shown(&self.to_string())));
            }
            DataType::Tuple(elements) => Layout::Tuple(
                elements
                    .iter()
                    .map(|(_, element)| element.layout())
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}

/// Widths from <https://clickhouse.com/docs/sql-reference/data-types>; checked
/// against a server by the test `every_supported_type_passes_through_unchanged`.
fn scalar_layout(name: &str, arguments: Option<&str>) -> Option<Layout> {
    let width = match name {
        "String" => return Some(Layout::String),
        "Bool" | "UInt8" | "Int8" | "Enum8" => 1,
        "UInt16" | "Int16" | "Date" | "Enum16" | "BFloat16" => 2,
        "UInt32" | "Int32" | "Float32" | "Date32" | "DateTime" | "IPv4" | "Decimal32" => 4,
        "UInt64" | "Int64" | "Float64" | "DateTime64" | "Decimal64" => 8,
        "UInt128" | "Int128" | "UUID" | "IPv6" | "Decimal128" => 16,
        "UInt256" | "Int256" | "Decimal256" => 32,
        "FixedString" => arguments?.trim().parse().ok().filter(|&width| width > 0)?,
        "Decimal" => {
            let precision: u32 = arguments?.split(',').next()?.trim().parse().ok()?;
            match precision {
                1..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                39..=76 => 32,
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(Layout::Fixed(width))
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataType::Scalar {
                name,
                arguments: None,
            } => f.write_str(name),
            DataType::Scalar {
                name,
                arguments: Some(arguments),
            } => write!(f, "{name}({arguments})"),
            DataType::Nullable(inner) => write!(f, "Nullable({inner})"),
            DataType::LowCardinality(inner) => write!(f, "LowCardinality({inner})"),
            DataType::Array(inner) => write!(f, "Array({inner})"),
            DataType::Map(key, value) => write!(f, "Map({key}, {value})"),
            DataType::Tuple(elements) => {
                f.write_str("Tuple(")?;
                for (index, (name, element)) in elements.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    if let Some(name) = name {
                        write!(f, "{name} ")?;
                    }
                    write!(f, "{element}")?;
                }
                f.write_str(")")
            }
        }
    }
}

/// Deeper than any real type; bounds recursion on untrusted text.
const MAX_DEPTH: usize = 32;

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn syntax_error(&self) -> TypeError {
        TypeError::Syntax {
            text: shown(self.text),
            position: self.position,
        }
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start().len();
    }

    fn eat(&mut self, expected: char) -> bool {
        self.skip_spaces();
        let found = self.rest().starts_with(expected);
        if found {
            self.position += expected.len_utf8();
        }
        found
    }

    fn expect(&mut self, expected: char) -> Result<(), TypeError> {
        if self.eat(expected) {
            Ok(())
        } else {
            Err(self.syntax_error())
        }
    }

    fn word(&mut self) -> Result<&'a str, TypeError> {
        self.skip_spaces();
        let rest = self.rest();
        let length = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if length == 0 {
            return Err(self.syntax_error());
        }
        self.position += length;
        Ok(&rest[..length])
    }

    fn data_type(&mut self, depth: usize) -> Result<DataType, TypeError> {
        if depth > MAX_DEPTH {
            return Err(self.syntax_error());
        }
        let name = self.word()?;
        let parsed = match name {
            "Nullable" => DataType::Nullable(self.single_argument(depth)?),
            "LowCardinality" => DataType::LowCardinality(self.single_argument(depth)?),
            "Array" => DataType::Array(self.single_argument(depth)?),
            "Map" => {
                self.expect('(')?;
                let key = self.data_type(depth + 1)?;
                self.expect(',')?;
                let value = self.data_type(depth + 1)?;
                self.expect(')')?;
                DataType::Map(Box::new(key), Box::new(value))
            }
            "Tuple" => DataType::Tuple(self.tuple_elements(depth)?),
            _ => DataType::Scalar {
                name: name.to_owned(),
                arguments: self.raw_arguments()?,
            },
        };
        Ok(parsed)
    }

    fn single_argument(&mut self, depth: usize) -> Result<Box<DataType>, TypeError> {
        self.expect('(')?;
        let inner = self.data_type(depth + 1)?;
        self.expect(')')?;
        Ok(Box::new(inner))
    }

    fn tuple_elements(
        &mut self,
        depth: usize,
    ) -> Result<Vec<(Option<String>, DataType)>, TypeError> {
        self.expect('(')?;
        let mut elements = Vec::new();
        while !self.eat(')') {
            if !elements.is_empty() {
                self.expect(',')?;
            }
            elements.push(self.tuple_element(depth)?);
        }
        Ok(elements)
    }

    /// `T` or `name T`. A quoted name keeps its back-quotes.
    fn tuple_element(&mut self, depth: usize) -> Result<(Option<String>, DataType), TypeError> {
        self.skip_spaces();
        let start = self.position;
        if self.rest().starts_with('`') {
            self.quoted('`')?;
        } else {
            self.word()?;
        }
        let name = &self.text[start..self.position];
        if self.rest().starts_with(' ') {
            Ok((Some(name.to_owned()), self.data_type(depth + 1)?))
        } else {
            self.position = start;
            Ok((None, self.data_type(depth + 1)?))
        }
    }

    /// Everything up to the parenthesis that closes the one at the cursor, if any.
    fn raw_arguments(&mut self) -> Result<Option<String>, TypeError> {
        if !self.rest().starts_with('(') {
            return Ok(None);
        }
        let start = self.position + 1;
        let mut open = 0_usize;
        loop {
            match self.rest().chars().next() {
                None => return Err(self.syntax_error()),
                Some(quote @ ('\'' | '`')) => {
                    self.quoted(quote)?;
                    continue;
                }
                Some('(') => open += 1,
                Some(')') => {
                    open -= 1;
                    if open == 0 {
                        let arguments = self.text[start..self.position].to_owned();
                        self.position += 1;
                        return Ok(Some(arguments));
                    }
                }
                Some(_) => {}
            }
            self.position += self.rest().chars().next().map_or(0, char::len_utf8);
        }
    }

    /// Skips a quoted string with backslash escapes, quotes included.
    fn quoted(&mut self, quote: char) -> Result<(), TypeError> {
        let mut escaped = false;
        for (index, c) in self.rest().char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == quote => {
                    self.position += index + quote.len_utf8();
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(self.syntax_error())
    }
}

/// Maximum characters of a name or type in a message; a garbled one could be any data, of any
/// length.
const SHOWN: usize = 100;

/// The start of a possibly garbled text, for a message.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(text: &str) {
        assert_eq!(DataType::parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn a_parsed_type_is_written_as_clickhouse_spelled_it() {
        for text in [
            "String",
            "DateTime64(6, 'Europe/Berlin')",
            "Map(LowCardinality(String), Decimal(18, 12))",
            "Nullable(FixedString(16))",
            "Enum8('a)' = 1, 'it\\'s' = 2)",
            "Tuple(a UInt8, `b c` Array(Nullable(String)))",
            "Tuple(UInt8, Map(String, Array(UInt64)))",
            "JSON(max_dynamic_paths=8)",
        ] {
            round_trip(text);
        }
    }

    #[test]
    fn low_cardinality_is_removed_at_every_depth() {
        let parsed =
            DataType::parse("Map(LowCardinality(String), Array(LowCardinality(Nullable(String))))")
                .unwrap();
        assert_eq!(
            parsed.without_low_cardinality().to_string(),
            "Map(String, Array(Nullable(String)))"
        );
    }

    #[test]
    fn what_cannot_be_walked_is_an_error_that_names_the_type() {
        for text in [
            "JSON",
            "Dynamic",
            "Variant(String, UInt8)",
            "AggregateFunction(sum, UInt8)",
        ] {
            let error = DataType::parse(text).unwrap().layout().unwrap_err();
            assert_eq!(error, TypeError::Unsupported(text.to_owned()));
        }
        assert!(
            DataType::parse("LowCardinality(String)")
                .unwrap()
                .layout()
                .is_err()
        );
        assert!(DataType::parse("Tuple()").unwrap().layout().is_err());
    }

    #[test]
    fn text_that_is_no_type_is_an_error() {
        for text in [
            "",
            "Array(",
            "Array(String",
            "Map(String)",
            "String)",
            "Enum8('a",
            "Nullable()",
        ] {
            assert!(
                matches!(DataType::parse(text), Err(TypeError::Syntax { .. })),
                "{text}"
            );
        }
        assert!(DataType::parse(&"Array(".repeat(100_000)).is_err());
    }
}
