//! Lines on standard error, as text or JSON.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;

use serde::Serialize;
use serde_json::Value;

use crate::error::without_os_errors;

/// The format of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// A JSON object per line: `time`, `level`, `message`, and the numbers of progress lines.
    Json,
}

/// The severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// All is well.
    Info,
    /// The work continues, but the operator should know.
    Warning,
    /// The work has ended.
    Error,
}

impl Level {
    /// The beginning of a text line.
    fn prefix(self) -> &'static str {
        match self {
            Level::Info => "",
            Level::Warning => "warning: ",
            Level::Error => "error: ",
        }
    }
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Sets the format of all lines of this process. Only the first call counts.
pub(crate) fn choose(format: LogFormat) {
    let _ = FORMAT.set(format);
}

/// The chosen format.
pub(super) fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}

/// Prints a line. A closed standard error does not stop the work.
pub(crate) fn line(level: Level, message: impl Display) {
    line_with(level, message, &[]);
}

/// The same with additional fields, for JSON only.
pub(super) fn line_with(level: Level, message: impl Display, fields: &[(&str, Value)]) {
    let message = message.to_string();
    let message = without_os_errors(&message);
    let mut out = std::io::stderr().lock();
    let _ = match format() {
        LogFormat::Text => writeln!(out, "{}{message}", level.prefix()),
        LogFormat::Json => writeln!(out, "{}", as_json(level, &message, fields)),
    };
}

/// Prints a line from another process's standard error, marked with `what` and `number`, for example
/// `shard 2`.
pub(crate) fn of_process(what: &str, number: u32, line: &[u8]) {
    let mut out = std::io::stderr().lock();
    let _ = match format() {
        LogFormat::Text => write!(out, "{what} {number}: ")
            .and_then(|()| out.write_all(line))
            .and_then(|()| out.write_all(b"\n")),
        LogFormat::Json => {
            let mut object: serde_json::Map<_, _> =
                serde_json::from_slice(line).unwrap_or_else(|_| {
                    let text = String::from_utf8_lossy(line).into_owned();
                    serde_json::Map::from_iter([("message".to_owned(), text.into())])
                });
            object.insert(what.to_owned(), number.into());
            writeln!(out, "{}", Value::Object(object))
        }
    };
}

fn as_json(level: Level, message: &str, fields: &[(&str, Value)]) -> String {
    let mut object = serde_json::Map::new();
    let now = time::OffsetDateTime::now_utc();
    let now = now.format(&time::format_description::well_known::Rfc3339);
    object.insert("time".to_owned(), now.unwrap_or_default().into());
    object.insert(
        "level".to_owned(),
        serde_json::to_value(level).unwrap_or_default(),
    );
    // Leading newlines only separate lines of text.
    object.insert("message".to_owned(), message.trim().into());
    for (name, value) in fields {
        object.insert((*name).to_owned(), value.clone());
    }
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_a_program_is_one_object_on_one_line() {
        let line = as_json(
            Level::Warning,
            "\nfirst\nsecond \"quoted\"",
            &[("rows", 7.into())],
        );
        assert!(!line.contains('\n'));
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["level"], "warning");
        assert_eq!(parsed["message"], "first\nsecond \"quoted\"");
        assert_eq!(parsed["rows"], 7);
        assert!(parsed["time"].as_str().unwrap().ends_with('Z'));
    }
}
