//! SQL for columns that come from the observation alone.

use super::origin::{Origin, event_column};
use crate::clickhouse::quoting;
use crate::native::DataType;

/// A column that comes from the observation alone or, for a root span, from the trace alone.
#[derive(Debug, Clone)]
pub(super) struct OwnColumn {
    /// Its name in the target.
    pub name: String,
    /// The type for the comparison.
    pub data_type: DataType,
    /// The expression over the observation.
    pub expression: String,
    /// The expression over the trace for a root span, if any.
    pub root_span: Option<String>,
}

impl OwnColumn {
    /// The arguments for its hash.
    pub(super) fn hashed(&self, origin: Origin) -> String {
        hash_arguments(&self.of(origin), &self.data_type)
    }

    /// Its value in a row.
    pub(super) fn of(&self, origin: Origin) -> String {
        let expression = match origin {
            Origin::Observation => self.expression.clone(),
            Origin::Trace => self.of_root_span(),
            Origin::Event => event_column(&self.name),
        };
        let data_type = quoting::string(self.data_type.to_string());
        format!("CAST({expression}, {data_type})")
    }

    /// A root span's value. What a trace does not have is the type's default.
    fn of_root_span(&self) -> String {
        let default = || {
            let data_type = quoting::string(self.data_type.to_string());
            format!("defaultValueOfTypeName({data_type})")
        };
        self.root_span.clone().unwrap_or_else(default)
    }
}

/// Arguments of `cityHash64` that differ for different values. The function's treatment of null is
/// undocumented, so nulls are passed explicitly.
fn hash_arguments(value: &str, data_type: &DataType) -> String {
    match data_type {
        DataType::Nullable(inner) if is_plain(inner) => format!(
            "isNull({value}), ifNull({value}, defaultValueOfTypeName({}))",
            quoting::string(inner.to_string())
        ),
        _ if is_plain(data_type) => value.to_owned(),
        // Serialised bytes distinguish all values, but take longer.
        _ => format!("formatRow('RowBinary', {value})"),
    }
}

/// Whether `cityHash64` covers the whole value and the type has no nulls.
fn is_plain(data_type: &DataType) -> bool {
    match data_type {
        DataType::Scalar { .. } => true,
        DataType::Array(element) => is_plain(element),
        DataType::Map(key, value) => is_plain(key) && is_plain(value),
        DataType::Nullable(_) | DataType::LowCardinality(_) | DataType::Tuple(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_is_hashed_as_what_it_is() {
        let arguments = |name| hash_arguments("x", &DataType::parse(name).unwrap());
        assert_eq!(arguments("String"), "x");
        assert_eq!(arguments("Map(String, UInt64)"), "x");
        assert_eq!(
            arguments("Nullable(String)"),
            "isNull(x), ifNull(x, defaultValueOfTypeName('String'))"
        );
        for nested in [
            "Array(Nullable(String))",
            "Map(String, Nullable(UInt8))",
            "Tuple(String)",
        ] {
            assert_eq!(arguments(nested), "formatRow('RowBinary', x)", "{nested}");
        }
    }
}
